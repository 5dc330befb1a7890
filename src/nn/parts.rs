//! What of each parameter one rank of the tensor axis has: all of it, or one of N equal parts of a dim.

use super::{ParamLayout, ParamSpec};
use crate::ops::Along;
use crate::parallel::Placement;
use std::collections::HashMap;

/// The parameters of one rank, as parts of those of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// The axis, and how many ranks it has.
    pub along: Along,
    /// This one.
    pub rank: usize,
    whole: Vec<ParamSpec>,
    dims: HashMap<String, usize>,
}

impl Parts {
    /// Of these parameters, those of which `dim` names a dim are in parts.
    ///
    /// # Panics
    /// If a dim cannot be divided by the ranks.
    pub fn new(whole: Vec<ParamSpec>, along: Along, rank: usize, dim: impl Fn(&str) -> Option<usize>) -> Parts {
        let dims: HashMap<String, usize> =
            whole.iter().filter_map(|spec| Some((spec.name.clone(), dim(&spec.name)?))).collect();
        for (spec, dim) in whole.iter().filter_map(|spec| Some((spec, *dims.get(&spec.name)?))) {
            assert!(spec.shape.dims()[dim].is_multiple_of(along.ranks), "{} has no {} parts", spec.name, along.ranks);
        }
        Parts { along, rank, whole, dims }
    }

    /// The model's parameters.
    pub fn whole(&self) -> &[ParamSpec] {
        &self.whole
    }

    /// This rank's.
    pub fn specs(&self) -> Vec<ParamSpec> {
        let own = |spec: &ParamSpec| {
            let mut dims = spec.shape.dims().to_vec();
            if let Some(&dim) = self.dims.get(&spec.name) {
                dims[dim] /= self.along.ranks;
            }
            ParamSpec { shape: dims.into(), ..spec.clone() }
        };
        self.whole.iter().map(own).collect()
    }

    /// Which dim of a parameter is in parts; none where every rank has all of it.
    pub fn dim(&self, name: &str) -> Option<usize> {
        self.dims.get(name).copied()
    }

    /// What a rank has of a parameter.
    pub fn placement(&self, spec: &ParamSpec) -> Placement {
        self.dim(&spec.name).map_or(Placement::Same, |dim| Placement::of_dim(&spec.shape, dim))
    }

    /// The model's parameter of this name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.whole.iter().find(|spec| spec.name == name)
    }

    /// Where in a parameter of the model, in elements, the runs of a rank's part begin, and how long each is: they are the part,
    /// one after another.
    pub fn runs(&self, spec: &ParamSpec, rank: usize) -> (impl Iterator<Item = usize> + use<>, usize) {
        let (outer, ranks) = match self.placement(spec) {
            Placement::Same => (1, 1),
            Placement::Split { outer } => (outer, self.along.ranks),
        };
        let run = spec.shape.elements() / outer / ranks;
        let rank = if ranks == 1 { 0 } else { rank };
        ((0..outer).map(move |block| (block * ranks + rank) * run), run)
    }

    /// This rank's part of a parameter of the model.
    pub fn cut(&self, spec: &ParamSpec, whole: &[f32]) -> Vec<f32> {
        let (starts, run) = self.runs(spec, self.rank);
        starts.flat_map(|start| &whole[start..start + run]).copied().collect()
    }

    /// Puts a rank's part of a parameter of the model in its place.
    pub fn paste(&self, spec: &ParamSpec, rank: usize, part: &[f32], whole: &mut [f32]) {
        let (starts, run) = self.runs(spec, rank);
        starts.zip(part.chunks_exact(run)).for_each(|(start, part)| whole[start..start + run].copy_from_slice(part));
    }

    /// A layout of the model's parameters in which nothing is computed: what a graph for one device is declared over.
    pub fn whole_layout(&self) -> ParamLayout {
        ParamLayout::new(self.whole.clone(), u64::from(u32::MAX))
    }
}
