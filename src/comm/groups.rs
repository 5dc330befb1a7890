//! The groups of one rank, along each axis of a mesh.

use super::{Communicator, Nodes};
use crate::base::Axis;
use crate::error::{Error, Result};
use crate::parallel::Mesh;
use std::sync::Arc;

/// A communicator for each axis along which a rank has others.
#[derive(Clone, Default)]
pub struct Groups {
    along: [Option<Arc<dyn Communicator>>; Axis::COUNT],
}

impl Groups {
    /// One axis and nothing else.
    pub fn of(axis: Axis, comm: Arc<dyn Communicator>) -> Groups {
        let mut groups = Groups::default();
        groups.put(axis, comm);
        groups
    }

    /// The groups of a rank of `world` on a mesh; all ranks call this together. Along each axis of more than one part lie
    /// the ranks that differ in nothing but their place on it, in order; along data also those of the sequence axis
    /// ([`Mesh::group`]).
    ///
    /// # Errors
    /// If there are not as many ranks as the mesh has; as [`Communicator::split`].
    pub fn split(world: &dyn Communicator, mesh: Mesh) -> Result<Groups> {
        if world.size() != mesh.ranks() {
            let (size, ranks) = (world.size(), mesh.ranks());
            return Err(Error::Rank(format!("there are {size} ranks, and the mesh {mesh} has {ranks}")));
        }
        let mut groups = Groups::default();
        for (axis, ..) in mesh.strides() {
            let (size, first, place) = mesh.group(world.rank(), axis);
            if size > 1 {
                let comm = Arc::from(world.split(first as u32, place as u32)?);
                // What experts exchange goes to every rank, from one machine to another in messages as few as can be.
                groups.along[axis as usize] = Some(if axis == Axis::Expert { Nodes::over(comm)? } else { comm });
            }
        }
        Ok(groups)
    }

    /// From now on talks along an axis by this communicator.
    pub fn put(&mut self, axis: Axis, comm: Arc<dyn Communicator>) {
        self.along[axis as usize] = Some(comm);
    }

    /// The ranks along an axis, if there are others.
    pub fn along(&self, axis: Axis) -> Option<&Arc<dyn Communicator>> {
        self.along[axis as usize].as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalComm;
    use super::*;

    #[test]
    fn ranks_meet_those_that_differ_in_one_place() {
        let mesh: Mesh = "data=2,tensor=2,pipeline=2,expert=2".parse().unwrap();
        let seen = |world: LocalComm| {
            let groups = Groups::split(&world, mesh).unwrap();
            let gathered = |axis: Axis| {
                let mut all = vec![0; mesh.size(axis)];
                let comm = groups.along(axis)?;
                comm.all_gather(&[world.rank() as u8], &mut all).unwrap();
                Some(all)
            };
            Axis::ALL.map(gathered)
        };
        let seen: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                LocalComm::group(8, None).into_iter().map(|world| scope.spawn(move || seen(world))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let pair = |a, b| Some(vec![a, b]);
        assert_eq!(seen[0], [pair(0, 2), pair(0, 1), pair(0, 4), pair(0, 2), None]);
        assert_eq!(seen[7], [pair(5, 7), pair(6, 7), pair(3, 7), pair(5, 7), None]);
        let alone = LocalComm::group(1, None).remove(0);
        let said = Groups::split(&alone, mesh).err().unwrap().to_string();
        assert!(said.contains("there are 1 ranks, and the mesh data=2,tensor=2,pipeline=2,expert=2 has 8"), "{said}");
    }
}
