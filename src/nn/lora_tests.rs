//! Which layers get adapters, and what flows into them.

use super::*;
use crate::graph::gradients;
use crate::nn::{Adapted, Declare};

fn specs() -> Vec<ParamSpec> {
    let matrix = |name: &str, n, k| ParamSpec {
        name: format!("{name}.weight"),
        shape: [n, k].into(),
        decay: true,
        init: Init::Normal(0.1),
    };
    let layer = |i: usize| {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        [
            matrix(&name("self_attn.q_proj"), 64, 32),
            matrix(&name("self_attn.k_proj"), 64, 32),
            matrix(&name("mlp.gate"), 4, 32),
            matrix(&name("mlp.down_proj"), 32, 96),
        ]
    };
    let mut specs = vec![matrix("model.embed_tokens", 100, 32)];
    specs.extend((0..12).flat_map(layer));
    specs
}

fn names(targets: &[&str]) -> Result<Vec<String>> {
    let config = LoraConfig { targets: targets.iter().map(|t| t.to_string()).collect(), ..LoraConfig::default() };
    let lora = Lora::new(&config, &specs(), 1 << 20)?;
    Ok(lora.modules().iter().map(|m| m.name.clone()).collect())
}

/// B·A has no higher rank than a layer's smaller side.
#[test]
fn ranks_that_add_nothing_are_refused() {
    let of = |rank, target: &str| {
        let config = LoraConfig { rank, targets: vec![target.into()], ..LoraConfig::default() };
        Lora::new(&config, &specs(), 1 << 20).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!((of(32, "q_proj"), of(32, "down_proj")), (Ok(()), Ok(())));
    let said = of(33, "down_proj").unwrap_err();
    assert!(
        said.starts_with("lora.rank is 33, and no layer that gets an adapter has a smaller side of more than 32"),
        "{said}"
    );
}

#[test]
fn layers_are_named_or_matched() {
    assert_eq!(names(&[]).unwrap().len(), 36, "every linear layer, and neither embedding nor router");
    assert_eq!(names(&["q_proj", "down_proj"]).unwrap().len(), 24);
    assert_eq!(names(&["self_attn.k_proj"]).unwrap().len(), 12);
    assert_eq!(names(&["model.layers.3.self_attn.q_proj"]).unwrap(), ["model.layers.3.self_attn.q_proj"]);
    assert_eq!(names(&["model.layers.1*.self_attn.*"]).unwrap().len(), 6, "layers 1, 10 and 11");
    assert_eq!(names(&["*.mlp.*"]).unwrap().len(), 12);
    for wrong in ["proj", "_proj", "x*", "*q_pro", "embed_tokens"] {
        let message = names(&[wrong]).unwrap_err().to_string();
        assert!(message.starts_with(&format!("lora.targets names {wrong}, and no layer")), "{message}");
        assert!(message.contains("there are q_proj, k_proj, down_proj, and patterns"), "{message}");
    }
}

#[test]
fn impossible_values_are_refused_by_name() {
    let refused = |config: LoraConfig| config.check().unwrap_err().to_string();
    let (rank, alpha, dropout) = (
        LoraConfig { rank: 0, ..LoraConfig::default() },
        LoraConfig { alpha: f64::NAN, ..LoraConfig::default() },
        LoraConfig { dropout: 1.0, ..LoraConfig::default() },
    );
    assert_eq!(refused(rank), "lora.rank is 0; it must lie from 1 to 65536");
    assert_eq!(refused(alpha), "lora.alpha is NaN; it must be a number above 0");
    assert_eq!(refused(dropout), "lora.dropout is 1; it must lie from 0 to below 1");
    assert_eq!("q4".parse::<BaseDtype>().unwrap_err(), "`q4` is none of keep, f32, f16, bf16, q8_0, nf4");
    assert_eq!(LoraConfig { rslora: true, ..LoraConfig::default() }.scale(), 8.0);
    assert_eq!(LoraConfig::default().scale(), 2.0);
}

#[test]
fn bases_are_held_as_asked() {
    let held = |base: BaseDtype, name: &str| {
        let frozen = base.frozen(&specs());
        frozen.params().iter().find(|(n, _)| n == name).unwrap().1.dtype
    };
    let (embedding, q) = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight");
    assert_eq!([embedding, q].map(|n| held(BaseDtype::Keep, n)), [DType::BF16, DType::BF16]);
    assert_eq!([embedding, q].map(|n| held(BaseDtype::F32, n)), [DType::F32, DType::F32]);
    assert_eq!([embedding, q].map(|n| held(BaseDtype::Q8_0, n)), [DType::BF16, DType::Q8_0]);
    // Rows of 32 are no whole blocks of 64; those of 96 neither.
    assert_eq!(held(BaseDtype::Nf4, q), DType::BF16);
}

/// The backward pass holds nothing but what leads to the adapters: no product makes the gradient of a frozen weight,
/// whatever its dtype, none what nobody below reads, and no norm the parts of its gain's.
#[test]
fn nothing_is_computed_for_frozen_weights() {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0] {
        let weight = |name: &str| (name.to_string(), TensorType { shape: [32, 32].into(), dtype });
        let norm = ("norm.weight".to_string(), TensorType::f32([32]));
        let base = Frozen::new(vec![weight("low_proj.weight"), norm, weight("high_proj.weight")]);
        let specs: Vec<ParamSpec> = base
            .params()
            .iter()
            .map(|(name, ty)| ParamSpec { name: name.clone(), shape: ty.shape.clone(), decay: true, init: Init::Zeros })
            .collect();
        let config = LoraConfig { rank: 4, ..LoraConfig::default() };
        let adapted = Adapted { base, lora: Some(Lora::new(&config, &specs, 1 << 20).unwrap()) };
        let mut g = Graph::new();
        let params = adapted.declare(&mut g).unwrap();
        let x = g.input("x", TensorType::f32([8, 32]));
        let low = params.linear("low_proj", false).unwrap().apply(&mut g, x).unwrap();
        let normed = crate::nn::rms_norm(&mut g, low, params.get("norm.weight").unwrap(), 1e-5).unwrap();
        let high = params.linear("high_proj", false).unwrap().apply(&mut g, normed).unwrap();
        let loss = g.sum_to(high, &TensorType::f32([1])).unwrap();
        let gradients = gradients(&mut g, loss, &params.views).unwrap();
        for (i, gradient) in gradients.into_iter().enumerate() {
            g.output(&format!("gradient.{i}"), gradient);
        }
        let plan = crate::compile::optimise(&g, &crate::base::Limits::default()).unwrap();
        let products: Vec<&str> =
            plan.nodes().iter().filter(|n| n.op_name() == "matmul").map(|n| n.name.as_str()).collect();
        let shapes = |n: &crate::graph::Node| n.outputs[0].shape.dims() == [32, 32];
        assert!(!plan.nodes().iter().any(|n| n.op_name() == "matmul" && shapes(n)), "{dtype}: {products:?}");
        let norms: Vec<&crate::graph::Node> = plan.nodes().iter().filter(|n| n.op_name() == "rms_norm_grad").collect();
        assert!(norms.len() == 1 && norms[0].outputs.len() == 1, "{dtype}: {norms:?}");
    }
}
