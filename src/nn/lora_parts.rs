//! Adapters of a rank that has parts of a model. A layer's are where its weight is; of one whose rows are in parts so are those of
//! B, and A is whole; of one whose columns are, those of A, and B is whole.

use super::lora::{Lora, LoraConfig, LoraModule};
use super::{Held, ParamLayout, ParamSpec, Parts};
use crate::base::Axis;
use crate::error::{Error, Result};
use std::collections::HashMap;

impl LoraModule {
    fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// How one of its parameters lies over the ranks, of a layer whose weight lies like this.
    fn held(&self, name: &str, weight: &Held) -> Held {
        let of_columns = usize::from(*name == self.names()[0]);
        let along = |(dim, axis): &(usize, Axis)| if of_columns == 1 { (*dim, *axis) } else { (0, *axis) };
        let splits = weight.splits.iter().filter(|(dim, _)| *dim == of_columns).map(along).collect();
        Held { stages: weight.stages.clone(), splits }
    }
}

impl Lora {
    /// [`Lora::new`] of a rank that has these parts of the model's parameters.
    ///
    /// # Errors
    /// As [`Lora::new`]; if the adapters cannot be in parts.
    pub fn of_parts(config: &LoraConfig, parts: &Parts, page_bytes: u64) -> Result<Lora> {
        let whole = Lora::new(config, parts.whole(), u64::from(u32::MAX))?;
        let why = match () {
            () if parts.mesh.tensor == 1 => "",
            () if config.dora => "lora.dora is true, whose lengths of rows are computed of whole matrices",
            () if config.dropout > 0.0 => "lora.dropout is above 0, and what it leaves out is drawn for whole rows",
            () => "",
        };
        if !why.is_empty() {
            return Err(Error::Invalid(format!(
                "the mesh is {}, and {why}; leave that out, or choose a mesh without tensor",
                parts.mesh
            )));
        }
        Ok(whole.cut(parts, page_bytes))
    }

    /// Of those of a whole model, what a rank has that has these parts of the model's parameters.
    pub(super) fn cut(self, parts: &Parts, page_bytes: u64) -> Lora {
        let own = |module: &LoraModule| {
            let weight = parts.spec(&module.weight()).expect("an adapter is of a layer");
            let shape = parts.held(&weight.name).shape(&weight.shape, parts.mesh);
            parts.has(&weight.name).then(|| LoraModule { shape: [shape.rows(), shape.last()], ..module.clone() })
        };
        let modules = self.modules().iter().filter_map(own).collect();
        let by_name: HashMap<String, &LoraModule> =
            self.modules().iter().flat_map(|module| module.names().map(|name| (name, module))).collect();
        let held = |spec: &ParamSpec| {
            let module = by_name[&spec.name];
            module.held(&spec.name, parts.held(&module.weight()))
        };
        let adapters = Parts::new(self.layout().specs().to_vec(), parts.mesh, parts.rank, held);
        let layout = ParamLayout::new(adapters.specs(), page_bytes).of_parts(adapters);
        self.in_parts(modules, layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;

    #[test]
    fn adapters_are_in_parts_where_their_layers_are() {
        let spec = |name: &str, dims: [usize; 2]| ParamSpec {
            name: format!("model.layers.0.{name}.weight"),
            shape: dims.into(),
            decay: true,
            init: Init::Zeros,
        };
        let specs = vec![spec("self_attn.q_proj", [8, 6]), spec("self_attn.o_proj", [6, 8])];
        let mesh = "data=2,tensor=2".parse().unwrap();
        let held = |spec: &ParamSpec| Held::default().split(usize::from(spec.name.contains("o_proj")), Axis::Tensor);
        let parts = Parts::new(specs.clone(), mesh, 1, held);
        let config = LoraConfig { rank: 3, ..LoraConfig::default() };
        let lora = Lora::of_parts(&config, &parts, 1 << 20).unwrap();
        let shapes: Vec<_> = lora.layout().specs().iter().map(|spec| spec.shape.dims().to_vec()).collect();
        // A and B of queries, A and B of the output.
        assert_eq!(shapes, [[3, 6], [4, 3], [3, 4], [6, 3]]);
        assert_eq!(lora.modules().iter().map(|m| m.shape).collect::<Vec<_>>(), [[4, 6], [6, 4]]);
        // A fresh part is the part of the fresh whole.
        let (whole, own) = (Lora::new(&config, &specs, 1 << 20).unwrap(), lora.layout().init(5));
        let all = whole.layout().init(5);
        let of = lora.layout().parts().unwrap();
        for spec in whole.layout().specs() {
            let (all, own) = (whole.layout().tensor(&all, &spec.name), lora.layout().tensor(&own, &spec.name));
            assert_eq!(of.cut(of.spec(&spec.name).unwrap(), all.unwrap()), own.unwrap());
        }
        let refused = LoraConfig { dora: true, ..config };
        let said = Lora::of_parts(&refused, &parts, 1 << 20).unwrap_err().to_string();
        assert!(said.contains("the mesh is data=2,tensor=2, and lora.dora is true"), "{said}");
        // Where matrices are whole, so are lengths; of layers of other stages there is nothing.
        let mesh = "pipeline=2".parse().unwrap();
        let held = |spec: &ParamSpec| Held::default().at([usize::from(spec.name.contains("o_proj"))]);
        let parts = Parts::new(specs, mesh, 1, held);
        let lora = Lora::of_parts(&refused, &parts, 1 << 20).unwrap();
        let names: Vec<_> = lora.modules().iter().map(|m| m.name.as_str()).collect();
        assert_eq!((names, lora.all().modules().len()), (vec!["model.layers.0.self_attn.o_proj"], 2));
        assert!(lora.layout().specs().iter().all(|spec| spec.name.contains("o_proj")) && lora.trains_magnitudes());
        // As one that has all stages would have it.
        let all = lora.all().clone().cut(&parts.only(&[Axis::Tensor]), 1 << 20);
        assert_eq!(all.modules().len(), 2);
    }
}
