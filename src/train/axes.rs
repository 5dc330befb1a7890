//! A rank of a run on its mesh: whom it meets along each axis, who holds the same parameters, and the whole model of all parts.

use super::World;
use crate::base::Axis;
use crate::comm::{Communicator, Groups, Waited, Waiting};
use crate::compile::Plan;
use crate::error::Result;
use crate::nn::ParamLayout;
use crate::parallel::{Mesh, Peers, SequenceAxis};
use crate::run::Executor;
use std::sync::Arc;

/// Which ranks are to have what is put together of all ranks' parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// Every one of them.
    All,
    /// The first, whose host alone has room for it.
    First,
}

/// One rank's place.
pub(super) struct Axes {
    mesh: Mesh,
    world: World,
    groups: Groups,
    /// How long messages of other stages were waited for, where there are any.
    waited: Option<Waited>,
}

impl Axes {
    /// Of a rank of this mesh; all ranks call this together.
    pub(super) fn of(world: &World, mesh: Mesh) -> Result<Axes> {
        let mut groups = match world.comm() {
            None => Groups::default(),
            Some(comm) if mesh.ranks() == mesh.data && mesh.expert == 1 => Groups::of(Axis::Data, comm.clone()),
            Some(comm) => Groups::split(comm.as_ref(), mesh)?,
        };
        let mut waited = None;
        if let Some(stages) = groups.along(Axis::Pipeline).cloned() {
            let (comm, clock) = Waiting::new(stages);
            groups.put(Axis::Pipeline, Arc::new(comm));
            waited = Some(clock);
        }
        Ok(Axes { mesh, waited, world: world.clone(), groups })
    }

    /// Which part of a batch is this rank's.
    pub(super) fn share(&self) -> usize {
        self.mesh.place(self.world.rank(), Axis::Data)
    }

    /// Which of each row's tokens are this rank's, where it has not all.
    pub(super) fn sequence(&self) -> Option<SequenceAxis> {
        SequenceAxis::of(self.mesh, self.world.rank())
    }

    /// In how many parts a batch is.
    pub(super) fn shares(&self) -> usize {
        self.mesh.data
    }

    /// The first rank of each place along the pipeline: what it plans, all others at that place plan too.
    pub(super) fn leaders(&self) -> Vec<usize> {
        (0..self.mesh.ranks()).step_by(self.mesh.ranks() / self.mesh.pipeline).collect()
    }

    /// Seconds for which messages of other stages were waited for since this was last asked; nothing without a pipeline.
    pub(super) fn take_waited(&self) -> Option<f64> {
        self.waited.as_ref().map(|waited| waited.take().as_secs_f64())
    }

    /// Joins an executor with those whom its plan meets, if it meets any.
    pub(super) async fn join(&self, run: &mut Executor, plan: &Plan) -> Result<()> {
        if plan.sent().is_empty() { Ok(()) } else { run.join_groups(self.groups.clone()).await }
    }

    /// A page of so many bytes, put together of the parts that its sharers have, where this one has less than that; nothing on ranks
    /// that are not to have it. The first of the sharers is who speaks for them where the whole model is put together.
    pub(super) fn page(&self, own: Vec<u8>, bytes: usize, sharers: Peers, to: To) -> Result<Vec<u8>> {
        let Some(comm) = self.groups.along(sharers.along.axis).filter(|_| own.len() < bytes) else { return Ok(own) };
        if to == To::First && comm.rank() > 0 {
            comm.send(0, &own)?;
            return Ok(Vec::new());
        }
        let mut all = vec![0; bytes];
        if to == To::All {
            comm.all_gather(&own, &mut all)?;
            return Ok(all);
        }
        for (rank, part) in all.chunks_mut(own.len().max(1)).enumerate() {
            if rank == comm.rank() { part.copy_from_slice(&own) } else { comm.receive(rank, part)? }
        }
        Ok(all)
    }

    /// The parameters of the whole model, in the pages of this layout of them, put together of all ranks' parts; nothing where a
    /// rank has all of them, and on ranks that are not to have it.
    pub(super) fn together(
        &self,
        layout: &ParamLayout,
        own: &[Vec<f32>],
        whole: &ParamLayout,
        to: To,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let (Some(parts), Some(comm)) = (layout.parts(), self.world.comm()) else { return Ok(None) };
        let takes = to == To::All || self.world.is_first();
        let mut pages = if takes { whole.zeros() } else { Vec::new() };
        let mut places = whole.tensors_mut(&mut pages).into_iter();
        for spec in whole.specs() {
            let mut place = places.next();
            let held = parts.held(&spec.name);
            let elements = held.shape(&spec.shape, self.mesh).elements();
            for owner in held.owners(self.mesh) {
                let is_own = owner == self.world.rank();
                let mine = is_own.then(|| layout.tensor(own, &spec.name).expect("an owner has its part"));
                let part = given(comm.as_ref(), owner, mine, elements, to)?;
                if let (Some(part), Some((_, data))) = (part, &mut place) {
                    parts.paste(spec, owner, &part, data);
                }
            }
        }
        drop(places);
        Ok(takes.then_some(pages))
    }
}

/// A part of so many elements, which is `mine` on its owner, on the ranks that are to have it.
fn given(
    comm: &dyn Communicator,
    owner: usize,
    mine: Option<&[f32]>,
    elements: usize,
    to: To,
) -> Result<Option<Vec<f32>>> {
    let is_first = comm.rank() == 0;
    match (to, mine) {
        (To::First, Some(mine)) if !is_first => return comm.send(0, bytemuck::cast_slice(mine)).map(|()| None),
        (To::First, None) if !is_first => return Ok(None),
        _ => {}
    }
    let mut part = mine.map_or_else(|| vec![0.0; elements], <[f32]>::to_vec);
    match to {
        To::All => comm.broadcast(owner, bytemuck::cast_slice_mut(&mut part))?,
        To::First if owner > 0 => comm.receive(owner, bytemuck::cast_slice_mut(&mut part))?,
        To::First => {}
    }
    Ok(Some(part))
}
