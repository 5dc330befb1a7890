//! A rank of a run on its mesh: whom it meets along each axis, who holds the same parameters, and the whole model of all parts.

use super::World;
use crate::base::Axis;
use crate::comm::Groups;
use crate::compile::Plan;
use crate::error::Result;
use crate::nn::ParamLayout;
use crate::parallel::Mesh;
use crate::run::Executor;

/// One rank's place.
pub(super) struct Axes {
    mesh: Mesh,
    rank: usize,
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
        Ok(Axes { mesh, rank: world.rank(), groups, peers })
    }

    /// Which part of a batch is this rank's.
    pub(super) fn share(&self) -> usize {
        self.mesh.place(self.rank, Axis::Data)
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
        let (Some(parts), Some(comm)) = (layout.parts(), self.groups.along(Axis::Tensor)) else { return Ok(None) };
        let whole = parts.whole_layout();
        let mut pages = whole.zeros();
        for (spec, data) in whole.tensors_mut(&mut pages) {
            let part = layout.tensor(own, &spec.name).expect("a rank has a part of every parameter");
            let mut all = vec![0.0f32; part.len() * comm.size()];
            comm.all_gather(bytemuck::cast_slice(part), bytemuck::cast_slice_mut(&mut all))?;
            all.chunks_exact(part.len()).enumerate().for_each(|(rank, part)| parts.paste(spec, rank, part, data));
        }
        Ok(Some((whole, pages)))
    }
}
