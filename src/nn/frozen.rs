//! Parameters that only serve: one state each, in whatever dtype its file has, where training keeps flat pages of f32.

use super::{ParamLayout, Params};
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::Graph;

/// Something that can declare a model's parameters in a graph: pages that are trained, or frozen weights.
pub trait Declare: Send + Sync {
    /// Declares the parameters as states, and a value for each.
    ///
    /// # Errors
    /// If a view does not fit, which would be a bug of the layout.
    fn declare(&self, g: &mut Graph) -> Result<Params>;
}

impl Declare for ParamLayout {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        ParamLayout::declare(self, g)
    }
}

/// Names and types of frozen parameters; each is a state of its name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frozen {
    params: Vec<(String, TensorType)>,
}

impl Frozen {
    /// These parameters.
    pub fn new(params: Vec<(String, TensorType)>) -> Frozen {
        Frozen { params }
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

    /// Bytes of all on the device.
    pub fn bytes(&self) -> u64 {
        self.params.iter().map(|(_, ty)| ty.bytes()).sum()
    }
}

impl Declare for Frozen {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        let values = self.params.iter().map(|(name, ty)| (name.clone(), g.state(name, ty.clone())));
        Ok(Params::frozen(values.collect()))
    }
}
