//! A rank of a run on its mesh: whom it meets along each axis, who holds the same parameters, and the whole model of all parts.

use super::World;
use crate::base::Axis;
use crate::comm::Groups;
use crate::compile::Plan;
use crate::error::Result;
use crate::nn::ParamLayout;
use crate::parallel::{Mesh, SequenceAxis};
use crate::run::Executor;

/// One rank's place.
pub(super) struct Axes {
    mesh: Mesh,
    world: World,
    groups: Groups,
    /// The ranks that hold the same parameters, this one among them.
    pub(super) peers: World,
}

impl Axes {
    /// Of a rank of this mesh; all ranks call this together.
    pub(super) fn of(world: &World, mesh: Mesh) -> Result<Axes> {
        let (groups, peers) = match world.comm() {
            None => (Groups::default(), World::alone()),
            Some(comm) if mesh.ranks() == mesh.data => (Groups::of(Axis::Data, comm.clone()), world.clone()),
            Some(comm) => {
                let groups = Groups::split(comm.as_ref(), mesh)?;
                let peers = groups.along(Axis::Data).map_or_else(World::alone, |comm| World::of(comm.clone()));
                (groups, peers)
            }
        };
        Ok(Axes { mesh, world: world.clone(), groups, peers })
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

    /// Joins an executor with those whom its plan meets, if it meets any.
    pub(super) async fn join(&self, run: &mut Executor, plan: &Plan) -> Result<()> {
        if plan.sent().is_empty() { Ok(()) } else { run.join_groups(self.groups.clone()).await }
    }

    /// The parameters of the whole model, put together of all ranks' parts; nothing where a rank has all of them.
    pub(super) fn together(
        &self,
        layout: &ParamLayout,
        own: &[Vec<f32>],
    ) -> Result<Option<(ParamLayout, Vec<Vec<f32>>)>> {
        let (Some(parts), Some(comm)) = (layout.parts(), self.world.comm()) else { return Ok(None) };
        let whole = parts.whole_layout();
        let mut pages = whole.zeros();
        for (spec, data) in whole.tensors_mut(&mut pages) {
            let held = parts.held(&spec.name);
            let elements = held.shape(&spec.shape, self.mesh).elements();
            for owner in held.owners(self.mesh) {
                let mut part = vec![0.0f32; elements];
                if owner == self.world.rank() {
                    part.copy_from_slice(layout.tensor(own, &spec.name).expect("an owner has its part"));
                }
                comm.broadcast(owner, bytemuck::cast_slice_mut(&mut part))?;
                parts.paste(spec, owner, &part, data);
            }
        }
        Ok(Some((whole, pages)))
    }
}
