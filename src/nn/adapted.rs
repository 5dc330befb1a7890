//! A frozen model, and adapters beside it: what is declared of both in one graph.

use super::{Declare, Frozen, Held, Lora, Params, Parts};
use crate::base::Axis;
use crate::error::Result;
use crate::graph::Graph;

/// A frozen model, with adapters where there are any.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// The model's own parameters.
    pub base: Frozen,
    /// What is added.
    pub lora: Option<Lora>,
}

impl Adapted {
    /// That of the whole model, where this is a rank's parts of it.
    pub fn whole(&self) -> Adapted {
        Adapted { base: self.base.whole_model(), lora: self.lora.as_ref().map(|lora| lora.all().clone()) }
    }
}

impl Declare for Adapted {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        let base = self.base.declare(g)?;
        self.lora.as_ref().map_or(Ok(base.clone()), |lora| lora.declare(g, base))
    }

    fn parts(&self) -> Option<&Parts> {
        self.base.parts()
    }

    fn declare_whole(&self, g: &mut Graph) -> Result<Params> {
        let base = self.base.declare_whole(g)?;
        self.lora.as_ref().map_or(Ok(base.clone()), |lora| lora.all().declare(g, base))
    }

    fn only(&self, axes: &[Axis]) -> Option<Box<dyn Declare>> {
        let (parts, Adapted { base, lora }) = (self.parts()?.only(axes), self.whole());
        let lora = lora.map(|lora| lora.cut(&parts, u64::from(u32::MAX)));
        Some(Box::new(Adapted { base: base.in_parts(parts), lora }))
    }

    fn held(&self, name: &str) -> Option<&Held> {
        let adapters = || self.lora.as_ref()?.layout().parts()?.find(name);
        self.base.held(name).or_else(adapters)
    }
}
