//! What of each parameter the ranks of a mesh hold: nothing, where other stages of the pipeline have it; all of it; or parts of
//! its dims along one or more axes. Plain data, from which anybody computes what any rank has, and who has the same.

use super::{ParamLayout, ParamSpec};
use crate::base::{Axis, Shape};
use crate::parallel::{Mesh, Placement};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// How a parameter lies over the ranks of a mesh; by default all have all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Held {
    /// The places along the pipeline axis that have it, ascending; all if none is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<usize>,
    /// Dims in equal parts, along an axis each. Where a dim is in parts along several, the later ones are parts of the earlier
    /// ones' parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<(usize, Axis)>,
}

/// Where a part lies in the whole, in elements: runs of one length, in ascending order, which one after another are the part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs {
    /// First elements.
    pub starts: Vec<usize>,
    /// Elements of each.
    pub length: usize,
}

impl Held {
    /// The same with a dim in parts along an axis.
    pub fn split(mut self, dim: usize, axis: Axis) -> Held {
        self.splits.push((dim, axis));
        self
    }

    /// The same at these places of the pipeline only.
    pub fn at(self, stages: impl IntoIterator<Item = usize>) -> Held {
        let stages: BTreeSet<usize> = stages.into_iter().collect();
        Held { stages: stages.into_iter().collect(), ..self }
    }

    /// Which dim is in parts along an axis.
    pub fn dim(&self, axis: Axis) -> Option<usize> {
        self.splits.iter().find(|(_, along)| *along == axis).map(|(dim, _)| *dim)
    }

    /// What a rank has along one axis of a value of this shape, for a pass that knows no other: the shape is as the pass finds
    /// it, in parts along the axes before it already.
    pub fn placement(&self, shape: &Shape, axis: Axis) -> Placement {
        self.dim(axis).map_or(Placement::Same, |dim| Placement::of_dim(shape, dim))
    }

    /// Whether a rank has anything of it.
    pub fn is_on(&self, mesh: Mesh, rank: usize) -> bool {
        self.stages.is_empty() || self.stages.contains(&mesh.place(rank, Axis::Pipeline))
    }

    /// Whether both ranks have it, and the same of it.
    pub fn is_same(&self, mesh: Mesh, a: usize, b: usize) -> bool {
        let alike = |axis| mesh.place(a, axis) == mesh.place(b, axis);
        self.is_on(mesh, a) && self.is_on(mesh, b) && self.splits.iter().all(|(_, axis)| alike(*axis))
    }

    /// The ranks that have the same part as this one, itself among them, ascending; nobody if it has none.
    pub fn replicas(&self, mesh: Mesh, rank: usize) -> Vec<usize> {
        (0..mesh.ranks()).filter(|&other| self.is_same(mesh, rank, other)).collect()
    }

    /// Whether a rank is the first of those that have the same part: who writes it, and who counts it.
    pub fn is_first(&self, mesh: Mesh, rank: usize) -> bool {
        self.is_on(mesh, rank) && !(0..rank).any(|other| self.is_same(mesh, rank, other))
    }

    /// One rank for each part that there is, ascending: together they have all of it.
    pub fn owners(&self, mesh: Mesh) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let place = |rank| -> Vec<usize> { self.splits.iter().map(|(_, axis)| mesh.place(rank, *axis)).collect() };
        (0..mesh.ranks()).filter(|&rank| self.is_on(mesh, rank) && seen.insert(place(rank))).collect()
    }

    /// The axes along which ranks have different parts, or some have none: a sum over the whole parameter is a sum over these.
    pub fn axes(&self, mesh: Mesh) -> BTreeSet<Axis> {
        let stages = Some(Axis::Pipeline).filter(|_| !self.stages.is_empty());
        self.splits.iter().map(|(_, axis)| *axis).chain(stages).filter(|axis| mesh.size(*axis) > 1).collect()
    }

    /// What of each dim is a rank's that has it.
    fn ranges(&self, whole: &Shape, mesh: Mesh, rank: usize) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = whole.dims().iter().map(|size| 0..*size).collect();
        for (dim, axis) in &self.splits {
            let (range, place) = (&mut ranges[*dim], mesh.place(rank, *axis));
            let size = range.len() / mesh.size(*axis);
            *range = range.start + place * size..range.start + (place + 1) * size;
        }
        ranges
    }

    /// The shape of a part.
    pub fn shape(&self, whole: &Shape, mesh: Mesh) -> Shape {
        self.ranges(whole, mesh, 0).iter().map(Range::len).collect::<Vec<_>>().into()
    }

    /// Where a rank's part lies in the whole; nowhere if it has none.
    pub fn runs(&self, whole: &Shape, mesh: Mesh, rank: usize) -> Runs {
        if !self.is_on(mesh, rank) {
            return Runs::default();
        }
        let ranges = self.ranges(whole, mesh, rank);
        let last = self.splits.iter().map(|(dim, _)| *dim).max();
        let (mut starts, mut length) = (vec![0], whole.elements());
        for (dim, range) in ranges.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
            length /= whole.dims()[dim];
            if Some(dim) == last {
                starts.iter_mut().for_each(|start| *start += range.start * length);
                length *= range.len();
            } else {
                starts = starts.iter().flat_map(|start| range.clone().map(move |i| start + i * length)).collect();
            }
        }
        Runs { starts, length }
    }
}

/// The parameters of a model, and what of each a rank of a mesh has.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// The mesh.
    pub mesh: Mesh,
    /// This rank of it.
    pub rank: usize,
    whole: Vec<ParamSpec>,
    held: HashMap<String, Held>,
}

impl Parts {
    /// These parameters, each held as `held` says.
    ///
    /// # Panics
    /// If a dim cannot be divided by the ranks that it is in parts over.
    pub fn new(whole: Vec<ParamSpec>, mesh: Mesh, rank: usize, held: impl Fn(&ParamSpec) -> Held) -> Parts {
        let held: HashMap<String, Held> = whole.iter().map(|spec| (spec.name.clone(), held(spec))).collect();
        for spec in &whole {
            let mut dims = spec.shape.dims().to_vec();
            for (dim, axis) in &held[&spec.name].splits {
                let parts = mesh.size(*axis);
                assert!(dims[*dim].is_multiple_of(parts), "{} has no {parts} parts along {axis}", spec.name);
                dims[*dim] /= parts;
            }
        }
        Parts { mesh, rank, whole, held }
    }

    /// The same as far as it is in parts along these axes: what a pass over the graph is given that comes behind those of
    /// these axes, and before those of the others.
    pub fn only(&self, axes: &[Axis]) -> Parts {
        let held = |held: &Held| Held {
            stages: if axes.contains(&Axis::Pipeline) { held.stages.clone() } else { Vec::new() },
            splits: held.splits.iter().filter(|(_, axis)| axes.contains(axis)).copied().collect(),
        };
        let held = self.held.iter().map(|(name, all)| (name.clone(), held(all))).collect();
        Parts { held, whole: self.whole.clone(), ..*self }
    }

    /// The model's parameters.
    pub fn whole(&self) -> &[ParamSpec] {
        &self.whole
    }

    /// The model's parameter of this name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.whole.iter().find(|spec| spec.name == name)
    }

    /// How a parameter of the model lies over the ranks.
    ///
    /// # Panics
    /// If the model has none of that name.
    pub fn held(&self, name: &str) -> &Held {
        &self.held[name]
    }

    /// The same, if the model has such a parameter.
    pub fn find(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    /// Whether the same ranks hold the same of both parameters.
    ///
    /// # Panics
    /// If the model has none of these names.
    pub fn lie_alike(&self, a: &str, b: &str) -> bool {
        let [a, b] = [a, b].map(|name| self.held(name));
        a.stages == b.stages && a.axes(self.mesh) == b.axes(self.mesh)
    }

    /// Whether this rank has anything of a parameter.
    pub fn has(&self, name: &str) -> bool {
        self.held[name].is_on(self.mesh, self.rank)
    }

    /// This rank's.
    pub fn specs(&self) -> Vec<ParamSpec> {
        let own = |spec: &ParamSpec| {
            let shape = self.held[&spec.name].shape(&spec.shape, self.mesh);
            self.has(&spec.name).then(|| ParamSpec { shape, ..spec.clone() })
        };
        self.whole.iter().filter_map(own).collect()
    }

    /// What this rank has of each dim of a parameter of the model, if it has any.
    pub fn ranges(&self, spec: &ParamSpec) -> Vec<Range<usize>> {
        self.held[&spec.name].ranges(&spec.shape, self.mesh, self.rank)
    }

    /// Where in a parameter of the model a rank's part lies.
    pub fn runs(&self, spec: &ParamSpec, rank: usize) -> Runs {
        self.held[&spec.name].runs(&spec.shape, self.mesh, rank)
    }

    /// This rank's part of a parameter of the model.
    pub fn cut(&self, spec: &ParamSpec, whole: &[f32]) -> Vec<f32> {
        let Runs { starts, length } = self.runs(spec, self.rank);
        starts.into_iter().flat_map(|start| &whole[start..start + length]).copied().collect()
    }

    /// Puts a rank's part of a parameter of the model in its place.
    pub fn paste(&self, spec: &ParamSpec, rank: usize, part: &[f32], whole: &mut [f32]) {
        let Runs { starts, length } = self.runs(spec, rank);
        let parts = part.chunks_exact(length.max(1));
        starts.into_iter().zip(parts).for_each(|(start, part)| whole[start..start + length].copy_from_slice(part));
    }

    /// A layout of the model's parameters in which nothing is computed: what a graph for one device is declared over.
    pub fn whole_layout(&self) -> ParamLayout {
        ParamLayout::new(self.whole.clone(), u64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;
    use proptest::prelude::*;

    fn spec(name: &str, dims: &[usize]) -> ParamSpec {
        ParamSpec { name: name.into(), shape: dims.into(), decay: true, init: Init::Zeros }
    }

    proptest! {
        /// Whatever is in parts along whatever axes: the owners' parts are the whole, none of them twice, and all who hold a
        /// part have the same of it.
        #[test]
        fn parts_of_the_owners_are_the_whole(
            sizes in prop::collection::vec(1usize..4, 3),
            splits in prop::collection::vec((0usize..3, prop::bool::ANY), 0..4),
            sequence in 1usize..3,
            staged in any::<bool>(),
        ) {
            let mesh = Mesh { data: 4, tensor: 3, pipeline: 2, expert: 2, sequence };
            let mut held = Held::default();
            let mut dims = sizes;
            for (dim, of_experts) in splits {
                let axis = if of_experts { Axis::Expert } else { Axis::Tensor };
                if held.dim(axis).is_none() {
                    dims[dim] *= mesh.size(axis);
                    held = held.split(dim, axis);
                }
            }
            let held = if staged { held.at([1]) } else { held };
            let spec = spec("w", &dims);
            let parts = Parts::new(vec![spec.clone()], mesh, 0, |_| held.clone());
            let values: Vec<f32> = (0..spec.shape.elements()).map(|i| i as f32).collect();
            let (mut whole, mut count) = (vec![f32::NAN; values.len()], 0);
            for rank in held.owners(mesh) {
                let own = Parts { rank, ..parts.clone() };
                let part = own.cut(&spec, &values);
                prop_assert_eq!(part.len(), own.specs()[0].shape.elements());
                prop_assert!(held.is_first(mesh, rank));
                for other in held.replicas(mesh, rank) {
                    prop_assert_eq!(&Parts { rank: other, ..parts.clone() }.cut(&spec, &values), &part);
                }
                count += part.len();
                parts.paste(&spec, rank, &part, &mut whole);
            }
            prop_assert_eq!((whole, count), (values.clone(), values.len()));
            for rank in 0..mesh.ranks() {
                let own = Parts { rank, ..parts.clone() };
                let has = !staged || mesh.place(rank, Axis::Pipeline) == 1;
                prop_assert_eq!((own.has("w"), own.specs().len(), own.runs(&spec, rank).starts.is_empty()), (has, usize::from(has), !has));
            }
        }
    }

    #[test]
    fn experts_by_one_axis_and_their_matrices_by_another() {
        let mesh: Mesh = "data=4,tensor=2,expert=2".parse().unwrap();
        let held = Held::default().split(0, Axis::Expert).split(2, Axis::Tensor);
        let all = spec("experts", &[4, 3, 8]);
        // Rank 3 is at place 1 along tensor and at place 1 along data, and so along experts.
        let parts = Parts::new(vec![all.clone(), spec("gain", &[8])], mesh, 3, |spec| {
            if spec.name == "gain" { Held::default() } else { held.clone() }
        });
        assert_eq!(parts.specs()[0].shape.dims(), [2, 3, 4]);
        assert_eq!(parts.runs(&all, 3), Runs { starts: vec![52, 60, 68, 76, 84, 92], length: 4 });
        assert_eq!(held.replicas(mesh, 3), [3, 7]);
        assert_eq!(
            (held.owners(mesh), held.axes(mesh)),
            (vec![0, 1, 2, 3], BTreeSet::from([Axis::Tensor, Axis::Expert]))
        );
        assert_eq!(parts.held("gain").replicas(mesh, 3), (0..8).collect::<Vec<_>>());
        // The tensor axis finds the experts in parts already.
        let before = parts.only(&[Axis::Expert]).specs();
        assert_eq!(before[0].shape.dims(), [2, 3, 8]);
        assert_eq!(parts.held("experts").placement(&before[0].shape, Axis::Tensor), Placement::Split { outer: 6 });
        let text = serde_json::to_string(&held.at([1, 0, 1])).unwrap();
        assert_eq!(text, r#"{"stages":[0,1],"splits":[[0,"expert"],[2,"tensor"]]}"#);
    }
}
