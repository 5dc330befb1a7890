//! Parameters that only serve: states in whatever dtype their file has, where training keeps flat pages of f32.

use super::{Held, ParamLayout, Params, Parts};
use crate::base::{Axis, TensorType};
use crate::error::Result;
use crate::graph::{BINDING, Graph, Slice, aligned};
use std::sync::Arc;

/// Something that can declare a model's parameters in a graph: pages that are trained, or frozen weights.
pub trait Declare: Send + Sync {
    /// Declares the parameters as states, and a value for each.
    ///
    /// # Errors
    /// If a view does not fit, which would be a bug of the layout.
    fn declare(&self, g: &mut Graph) -> Result<Params>;

    /// Where what is declared are a rank's parts of the parameters: which.
    fn parts(&self) -> Option<&Parts> {
        None
    }

    /// The same of the whole model, in a graph in which nothing is computed.
    ///
    /// # Errors
    /// As [`Declare::declare`].
    fn declare_whole(&self, g: &mut Graph) -> Result<Params> {
        self.declare(g)
    }

    /// The same as a rank would have it that had parts along these axes only: what a pass over the graph is given that comes
    /// behind those of these axes and before those of the others, in a graph in which nothing is computed. Nothing where ranks
    /// have no parts.
    fn only(&self, axes: &[Axis]) -> Option<Box<dyn Declare>>;

    /// How what is declared under this name lies over the ranks, where they have parts.
    fn held(&self, name: &str) -> Option<&Held> {
        self.parts()?.find(name)
    }
}

impl Declare for ParamLayout {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        ParamLayout::declare(self, g)
    }

    fn parts(&self) -> Option<&Parts> {
        ParamLayout::parts(self)
    }

    fn declare_whole(&self, g: &mut Graph) -> Result<Params> {
        match ParamLayout::parts(self) {
            Some(parts) => parts.whole_layout().declare(g),
            None => self.declare(g),
        }
    }

    fn only(&self, axes: &[Axis]) -> Option<Box<dyn Declare>> {
        let parts = ParamLayout::parts(self)?.only(axes);
        Some(Box::new(ParamLayout::new(parts.specs(), u64::from(u32::MAX)).of_parts(parts)))
    }
}

/// Names and types of frozen parameters. Each is a state of its name; but queries', keys' and values' weights of a layer
/// that follow each other in one dtype lie one after the other in one state, so that one product can make them all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frozen {
    params: Vec<(String, TensorType)>,
    states: Vec<(String, TensorType)>,
    /// Of each parameter: its state, and its first row there.
    places: Vec<(usize, usize)>,
    /// Where these are a rank's parts: which, and those of the whole model.
    whole: Option<Arc<(Parts, Frozen)>>,
}

/// What follows what in one state.
const TOGETHER: [[&str; 2]; 2] = [["q_proj.weight", "k_proj.weight"], ["k_proj.weight", "v_proj.weight"]];
/// Bytes that one binding can hold on every adapter: a state of several parameters has no more.
const LARGEST: u64 = 128 << 20;

impl Frozen {
    /// These parameters.
    pub fn new(params: Vec<(String, TensorType)>) -> Frozen {
        let (mut states, mut places): (Vec<(String, TensorType)>, Vec<_>) = (Vec::new(), Vec::new());
        for (i, (name, ty)) in params.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| params[i].0.as_str());
            let joined = states.last().filter(|_| before.is_some_and(|b| follows(b, name)));
            match joined.and_then(|(_, state)| adjoined(state, ty)) {
                Some(whole) => {
                    let state = states.len() - 1;
                    places.push((state, states[state].1.shape.rows()));
                    states[state] = (format!("{} {name}", states[state].0), whole);
                }
                None => {
                    places.push((states.len(), 0));
                    states.push((name.clone(), ty.clone()));
                }
            }
        }
        Frozen { params, states, places, whole: None }
    }

    /// Of those of a whole model, what a rank has that has these parts of it.
    ///
    /// # Panics
    /// If one of them is no parameter of that model.
    pub fn in_parts(self, parts: Parts) -> Frozen {
        let own = |(name, ty): &(String, TensorType)| {
            let shape = parts.held(name).shape(&ty.shape, parts.mesh);
            parts.has(name).then(|| (name.clone(), TensorType { shape, dtype: ty.dtype }))
        };
        let own = Frozen::new(self.params.iter().filter_map(own).collect());
        Frozen { whole: Some(Arc::new((parts, self))), ..own }
    }

    /// Those of the whole model, where these are a rank's parts.
    pub fn whole_model(&self) -> Frozen {
        self.whole.as_ref().map_or_else(|| self.clone(), |whole| whole.1.clone())
    }

    /// The same, all in f32.
    pub fn widened(&self) -> Frozen {
        let wide = |(name, ty): &(String, TensorType)| (name.clone(), TensorType::f32(ty.shape.dims()));
        Frozen::new(self.params.iter().map(wide).collect())
    }

    /// Name and type of each.
    pub fn params(&self) -> &[(String, TensorType)] {
        &self.params
    }

    /// Where parameter `i` lies: name and bytes of the state, and the first byte there.
    pub fn place(&self, i: usize) -> (&str, u64, u64) {
        let (state, row) = self.places[i];
        let (name, ty) = &self.states[state];
        (name, ty.bytes(), ty.dtype.size(row * ty.shape.last()))
    }

    /// Bytes of all on the device.
    pub fn bytes(&self) -> u64 {
        self.params.iter().map(|(_, ty)| ty.bytes()).sum()
    }
}

fn follows(before: &str, name: &str) -> bool {
    TOGETHER.iter().any(|[a, b]| before.strip_suffix(a).is_some_and(|layer| name.strip_suffix(b) == Some(layer)))
}

/// The type of both matrices one after the other, where that can be and each can still be bound by itself.
fn adjoined(state: &TensorType, ty: &TensorType) -> Option<TensorType> {
    let (&[rows, k], &[more, width]) = (state.shape.dims(), ty.shape.dims()) else { return None };
    let whole = TensorType { shape: [rows + more, k].into(), dtype: ty.dtype };
    let is_aligned =
        state.bytes().is_multiple_of(BINDING as u64) && state.shape.elements().is_multiple_of(aligned(state.dtype));
    ((state.dtype, k) == (ty.dtype, width) && is_aligned && whole.bytes() <= LARGEST).then_some(whole)
}

impl Declare for Frozen {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        let states: Vec<_> = self.states.iter().map(|(name, ty)| g.state(name, ty.clone())).collect();
        let mut values = Vec::new();
        for ((name, ty), &(state, row)) in self.params.iter().zip(&self.places) {
            let mut value = states[state];
            if *g.ty(value) != *ty {
                let slice = Slice { start: row * ty.shape.last(), shape: ty.shape.clone() };
                value = g.apply_named(Arc::new(slice), &[value], name.clone())?[0];
            }
            values.push((name.clone(), value));
        }
        Ok(Params::frozen(values))
    }

    fn parts(&self) -> Option<&Parts> {
        self.whole.as_ref().map(|whole| &whole.0)
    }

    fn declare_whole(&self, g: &mut Graph) -> Result<Params> {
        match &self.whole {
            Some(whole) => whole.1.declare(g),
            None => self.declare(g),
        }
    }

    fn only(&self, axes: &[Axis]) -> Option<Box<dyn Declare>> {
        Some(Box::new(self.whole_model().in_parts(self.parts()?.only(axes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;

    #[test]
    fn only_what_can_be_bound_alone_lies_together() {
        let state_of = |q: (DType, [usize; 2]), k: (DType, [usize; 2])| {
            let params = [("q", q), ("k", k), ("v", k)].map(|(name, (dtype, dims))| {
                (format!("layers.0.{name}_proj.weight"), TensorType { shape: dims.into(), dtype })
            });
            let frozen = Frozen::new(params.to_vec());
            [0, 1, 2].map(|i| (frozen.places[i].0, frozen.place(i).2))
        };
        let (f32, q4) = (DType::F32, DType::Q4_1);
        assert_eq!(state_of((f32, [576, 576]), (f32, [192, 576])), [(0, 0), (0, 1_327_104), (0, 1_769_472)]);
        assert_eq!(state_of((q4, [576, 576]), (q4, [192, 576])), [(0, 0), (0, 207_360), (0, 276_480)]);
        // Of two dtypes; where the second would begin off a boundary; of more than a binding holds.
        assert_eq!(state_of((f32, [64, 64]), (q4, [64, 64])), [(0, 0), (1, 0), (1, 2560)]);
        assert_eq!(state_of((f32, [63, 33]), (f32, [64, 33])), [(0, 0), (1, 0), (1, 8448)]);
        let large = 1 << 12;
        assert_eq!(state_of((f32, [large, large]), (f32, [large, large])), [(0, 0), (0, 64 << 20), (1, 0)]);
    }
}
