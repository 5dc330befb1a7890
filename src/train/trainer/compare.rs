//! What must be the same on several ranks, by hash. Who computed garbage is told from those who hold the same: along data, and of
//! experts along who has the same ones, all of it; along tensor what is in no parts there; along a pipeline the table at both ends.

use super::{HASHED, Trainer};
use crate::base::Axis;
use crate::compile::Plan;
use crate::data::hash::Hasher;
use crate::error::Result;
use crate::nn::PARAMETERS;
use crate::optim::JUDGE;
use crate::parallel::Mesh;
use crate::train::World;
use std::collections::BTreeMap;
use std::ops::Range;

impl Trainer {
    /// Compares with the others what each of them holds as this rank does, and how all judged the last step; all ranks call this
    /// together. Of parameters that ranks share out ([`crate::optim::Shard::Parameters`]) each has its own along data, and
    /// nobody else the same; what is alike along other axes is, of a part, too. All that was submitted is done then.
    ///
    /// # Errors
    /// If the device failed; a rank that has something else than most of those, by its name, the same on all.
    pub async fn compare_peers(&self) -> Result<()> {
        if self.world.size() == 1 {
            return Ok(());
        }
        // Where all ranks of a batch have the same experts, these are as all else.
        let apart = self.mesh.expert > 1;
        // What nobody else has is not read from the device.
        for axis in [Axis::Data, Axis::Replica, Axis::Tensor, Axis::Pipeline] {
            if self.mesh.group(0, axis).0 < 2 {
                continue;
            }
            let (what, hash) = match axis {
                Axis::Data => ("parameters", self.pages_hash(|experts| !(experts && apart)).await?),
                Axis::Replica => ("experts", self.pages_hash(|experts| experts && apart).await?),
                Axis::Tensor => ("parameters that are alike along tensor", self.alike_hash(axis).await?),
                _ => ("a table of both ends of the pipeline", self.alike_hash(axis).await?),
            };
            self.world.compare_groups(what, hash, &groups(self.mesh, axis))?;
        }
        let mut judged = Hasher::new();
        self.hash(JUDGE, 0..self.states.get(JUDGE)?.bytes(), &mut judged).await?;
        self.world.compare(&[("a judgement of the last step", judged.finish())])
    }

    /// Of whole pages, which are of experts or not; nothing where ranks have a part each.
    async fn pages_hash(&self, wanted: impl Fn(bool) -> bool) -> Result<Option<u64>> {
        let pages = self.layout().pages().iter().enumerate().filter(|(_, page)| wanted(page.is_of_experts()));
        let (mut hasher, mut any) = (Hasher::new(), false);
        for (i, page) in pages.filter(|_| !self.layout().keeps_parts()) {
            self.hash(&format!("{PARAMETERS}.{i}"), 0..4 * page.elements as u64, &mut hasher).await?;
            any = true;
        }
        Ok(any.then(|| hasher.finish()))
    }

    /// Of the parameters that this rank has as others along an axis have them, as far as it keeps them; nothing if there are none.
    async fn alike_hash(&self, axis: Axis) -> Result<Option<u64>> {
        let Some(parts) = self.layout().parts() else { return Ok(None) };
        let (mut hasher, mut any) = (Hasher::new(), false);
        for spec in self.layout().specs() {
            let held = parts.held(&spec.name);
            let is_alike = match axis {
                Axis::Pipeline => held.stages.len() > 1,
                axis => held.dim(axis).is_none(),
            };
            if let Some((page, start)) = self.layout().place(&spec.name).filter(|_| is_alike) {
                let (kept, all) = (self.layout().kept(page), start..start + spec.shape.elements());
                let own = all.start.max(kept.start)..all.end.min(kept.end);
                if own.is_empty() {
                    continue;
                }
                let bytes = |element: usize| 4 * (element - kept.start) as u64;
                hasher.update(spec.name.as_bytes());
                self.hash(&format!("{PARAMETERS}.{page}"), bytes(own.start)..bytes(own.end), &mut hasher).await?;
                any = true;
            }
        }
        Ok(any.then(|| hasher.finish()))
    }

    /// Adds some bytes of a state.
    async fn hash(&self, state: &str, bytes: Range<u64>, hasher: &mut Hasher) -> Result<()> {
        let buffer = self.states.get(state)?;
        for start in bytes.clone().step_by(HASHED as usize) {
            let count = HASHED.min(bytes.end - start);
            hasher.update(&self.states.gpu().read(buffer.range(start, count)).await?);
        }
        Ok(())
    }
}

/// Refuses plans by which ranks would not meet alike: what is computed again, by memory, decides what is gathered when. Along a pipeline
/// and a sequence neighbours do unlike things.
pub(super) fn plans<'a>(plans: impl IntoIterator<Item = Option<&'a Plan>>, mesh: Mesh, world: &World) -> Result<()> {
    let steps: Vec<_> = plans.into_iter().flatten().flat_map(|plan| &plan.steps).collect();
    for axis in [Axis::Data, Axis::Replica, Axis::Expert, Axis::Tensor] {
        if mesh.group(0, axis).0 < 2 {
            continue;
        }
        let mut hasher = Hasher::new();
        for meeting in steps.iter().filter_map(|step| step.meeting.as_ref()).filter(|meeting| meeting.axis == axis) {
            hasher.update(format!("{:?} {:?} {}", meeting.what, meeting.phase, meeting.last).as_bytes());
        }
        world.compare_groups("a plan of what they exchange", Some(hasher.finish()), &groups(mesh, axis))?;
    }
    Ok(())
}

/// The ranks that meet along an axis, all such groups of a mesh.
fn groups(mesh: Mesh, axis: Axis) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    (0..mesh.ranks()).for_each(|rank| groups.entry(mesh.group(rank, axis).1).or_default().push(rank));
    groups.into_values().collect()
}
