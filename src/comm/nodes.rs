//! Exchanges between ranks of several machines, by machine: what goes to one of another's ranks goes first to the rank here
//! that talks to it, and from there in one message with what the others here have for it (He et al., "FasterMoE", 2022; Ma
//! et al., "BaGuaLu", 2022, §4.3: of each rank's messages those that leave the machine are as many as there are others).

use super::Communicator;
use super::over::Over;
use crate::error::Result;
use std::sync::Arc;

/// A group whose ranks lie on several machines, equally many on each and one machine's after another's. All that it does is
/// the group's, but [`Communicator::all_to_all`], which goes over the machines.
///
/// Of N ranks on M machines, L on each, a rank sends L-1 messages within its machine and M-1 to others, where it would send
/// N-L to others; (L-1)/L of its bytes go one way more, within the machine.
pub struct Nodes {
    group: Arc<dyn Communicator>,
    /// Those on this machine.
    within: Box<dyn Communicator>,
    /// Those with this place on all machines.
    between: Box<dyn Communicator>,
}

impl Nodes {
    /// The same group by machine, if there are several with several ranks each; else the group as it is. All ranks call this
    /// together.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn over(group: Arc<dyn Communicator>) -> Result<Arc<dyn Communicator>> {
        let mut all = vec![0; 8 * group.size()];
        group.all_gather(&(group.machine() as u64).to_le_bytes(), &mut all)?;
        let machines: Vec<&[u8]> = all.chunks(8).collect();
        let local = machines.iter().take_while(|machine| **machine == machines[0]).count();
        let nodes: Vec<&[&[u8]]> = machines.chunks(local).collect();
        let is_one = |node: &&[&[u8]]| node.len() == local && node.iter().all(|machine| *machine == node[0]);
        let mut firsts: Vec<&[u8]> = nodes.iter().map(|node| node[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        if local == 1 || nodes.len() == 1 || firsts.len() < nodes.len() || !nodes.iter().all(is_one) {
            return Ok(group);
        }
        let (node, place) = ((group.rank() / local) as u32, (group.rank() % local) as u32);
        let (within, between) = (group.split(node, place)?, group.split(place, node)?);
        Ok(Arc::new(Nodes { group, within, between }))
    }
}

impl Over for Nodes {
    fn inner(&self) -> &dyn Communicator {
        self.group.as_ref()
    }

    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        let (nodes, local) = (self.between.size(), self.within.size());
        if mine.len() != theirs.len() || !mine.len().is_multiple_of(nodes * local) {
            // It has the sentence.
            return self.group.all_to_all(mine, theirs);
        }
        let (part, mut turned, mut came) = (mine.len() / nodes / local, Vec::new(), vec![0; mine.len()]);
        // To each rank here what the ranks with its place on all machines are to have.
        turn(mine, nodes, local, part, &mut turned);
        self.within.all_to_all(&turned, &mut came)?;
        // To each machine what all ranks here have for the rank with this place there.
        turn(&came, local, nodes, part, &mut turned);
        self.between.all_to_all(&turned, theirs)
    }
}

/// Turns `[rows][columns]` parts of `part` bytes into `[columns][rows]`.
pub(crate) fn turn(from: &[u8], rows: usize, columns: usize, part: usize, to: &mut Vec<u8>) {
    to.clear();
    let places = (0..columns).flat_map(|c| (0..rows).map(move |r| (r * columns + c) * part));
    places.for_each(|at| to.extend_from_slice(&from[at..at + part]));
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
