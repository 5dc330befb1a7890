//! Low-rank adapters of linear layers whose own weights stay as they are: LoRA (Hu et al., 2021), its scale for high ranks
//! (rsLoRA, Kalajdzievski, 2023) and the magnitudes of DoRA (Liu et al., 2024). Names and initial values are PEFT's.
//! Legend: N rows and K columns of a layer's weight W, R rank; ΔW = s·B·A.

use super::layers::linear;
use super::{Frozen, Init, ParamLayout, ParamSpec, Params};
use crate::base::{DType, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Binary, Detach, Expr, Graph, Map, Unary, Value};
use crate::ops::{Dropout, MatMul};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The graph's input with seed, step and the part of the batch that this is, u32 `[3]`, which dropout wants.
pub const DROPOUT: &str = "dropout";

/// What follows a layer's name in those of A, B and DoRA's magnitudes.
const PARTS: [&str; 3] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
/// The same of states that belong to it: squared lengths of W's rows, and magnitudes over lengths.
const SQUARES: &str = "squares";
const GAIN: &str = "gain";

/// In which dtype the frozen weights are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// As they came.
    #[default]
    Keep,
    /// All matrices in f32.
    F32,
    /// All matrices in f16.
    F16,
    /// All matrices in bf16.
    Bf16,
    /// Linear layers in blocks of 32 bytes with a scale, the rest as it came.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Linear layers in NF4 with scales that are quantised too (QLoRA, Dettmers et al., 2023), the rest as it came.
    Nf4,
}

impl BaseDtype {
    const ALL: [(BaseDtype, &str); 6] = [
        (BaseDtype::Keep, "keep"),
        (BaseDtype::F32, "f32"),
        (BaseDtype::F16, "f16"),
        (BaseDtype::Bf16, "bf16"),
        (BaseDtype::Q8_0, "q8_0"),
        (BaseDtype::Nf4, "nf4"),
    ];

    /// The type in which a parameter is held that would be `kept` so: another dtype only for matrices whose rows are
    /// whole blocks of it.
    pub fn of(self, name: &str, kept: &TensorType) -> TensorType {
        let dtype = match self {
            BaseDtype::Keep => return kept.clone(),
            BaseDtype::F32 => DType::F32,
            BaseDtype::F16 => DType::F16,
            BaseDtype::Bf16 => DType::BF16,
            BaseDtype::Q8_0 | BaseDtype::Nf4 if !is_linear(name) => return kept.clone(),
            BaseDtype::Q8_0 => DType::Q8_0,
            BaseDtype::Nf4 => DType::Nf4,
        };
        let ty = TensorType { shape: kept.shape.clone(), dtype };
        if kept.shape.rank() > 1 && ty.has_whole_blocks() { ty } else { kept.clone() }
    }

    /// The parameters of a model as they are held if nothing is known but their shapes: those that are kept in bf16, as
    /// models are published.
    pub fn frozen(self, specs: &[ParamSpec]) -> Frozen {
        let held = |spec: &ParamSpec| {
            let kept = BaseDtype::Bf16.of(&spec.name, &TensorType::f32(spec.shape.clone()));
            (spec.name.clone(), self.of(&spec.name, &kept))
        };
        Frozen::new(specs.iter().map(held).collect())
    }
}

impl fmt::Display for BaseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BaseDtype::ALL.iter().find(|(dtype, _)| dtype == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for BaseDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = BaseDtype::ALL.iter().find(|(_, name)| *name == text);
        let names = BaseDtype::ALL.map(|(_, name)| name).join(", ");
        found.map(|(dtype, _)| *dtype).ok_or_else(|| format!("`{text}` is none of {names}"))
    }
}

/// True for the weight of a block's linear layer, or of all its experts'.
fn is_linear(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// Which adapters are trained, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// R.
    pub rank: usize,
    /// The scale s is alpha / R.
    pub alpha: f64,
    /// Share of the adapters' inputs that is left out in training.
    pub dropout: f64,
    /// Names of linear layers, such as `q_proj`, or patterns of whole names, in which * stands for anything; none means
    /// every linear layer of the blocks.
    pub targets: Vec<String>,
    /// The scale is alpha / √R.
    pub rslora: bool,
    /// Magnitudes are trained apart from directions.
    pub dora: bool,
    /// In which dtype the frozen weights are held.
    pub base_dtype: BaseDtype,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Vec::new(),
            rslora: false,
            dora: false,
            base_dtype: BaseDtype::Keep,
        }
    }
}

impl LoraConfig {
    /// s.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence that names the key, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > 1 << 16 {
            return Err(Error::Invalid(format!("lora.rank is {}; it must lie from 1 to {}", self.rank, 1 << 16)));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::Invalid(format!("lora.alpha is {}; it must be a number above 0", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Invalid(format!("lora.dropout is {}; it must lie from 0 to below 1", self.dropout)));
        }
        Ok(())
    }

    /// The layers of a model with these parameters that get adapters.
    fn modules(&self, specs: &[ParamSpec]) -> Result<Vec<LoraModule>> {
        let layers = specs.iter().filter_map(|s| Some((s.name.strip_suffix(".weight")?, s)));
        let layers: Vec<_> = layers.filter(|(_, s)| is_linear(&s.name) && s.shape.rank() == 2).collect();
        for target in &self.targets {
            if !layers.iter().any(|(name, _)| names_match(target, name)) {
                let mut known: Vec<&str> = Vec::new();
                for (name, _) in &layers {
                    let last = name.rsplit('.').next().unwrap_or(name);
                    if !known.contains(&last) {
                        known.push(last);
                    }
                }
                return Err(Error::Invalid(format!(
                    "lora.targets names {target}, and no layer that can have an adapter is called so; there are {}, and \
                     patterns such as model.layers.1*.self_attn.*",
                    known.join(", ")
                )));
            }
        }
        let wanted = |name: &str| self.targets.is_empty() || self.targets.iter().any(|t| names_match(t, name));
        let module = |(name, spec): (&str, &ParamSpec)| LoraModule {
            name: name.into(),
            shape: [spec.shape.rows(), spec.shape.last()],
            rank: self.rank,
            scale: self.scale(),
        };
        let modules: Vec<LoraModule> = layers.into_iter().filter(|(name, _)| wanted(name)).map(module).collect();
        // B·A has no higher rank than W's smaller side.
        let most = modules.iter().map(|module| module.shape[0].min(module.shape[1])).max();
        match most.filter(|most| self.rank > *most) {
            Some(most) => Err(Error::Invalid(format!(
                "lora.rank is {}, and no layer that gets an adapter has a smaller side of more than {most}, above which a rank \
                 adds nothing: choose one up to {most}",
                self.rank
            ))),
            None => Ok(modules),
        }
    }
}

/// True if a target names a layer, or a parameter: by the last parts of its name, or by a pattern of all of it, in which *
/// stands for anything.
pub fn names_match(target: &str, name: &str) -> bool {
    if !target.contains('*') {
        return name == target || name.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'));
    }
    let mut parts = target.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A layer with an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Name of the layer, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// N and K.
    pub shape: [usize; 2],
    /// R.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

impl LoraModule {
    /// Names of A `[R,K]` and B `[N,R]`, and of DoRA's magnitudes `[N]`.
    pub fn names(&self) -> [String; 3] {
        PARTS.map(|part| format!("{}.{part}", self.name))
    }

    /// Name of the state with the squared lengths of W's rows, `[N]`.
    pub fn squares(&self) -> String {
        format!("{}.{SQUARES}", self.name)
    }

    /// Name of the state with DoRA's magnitudes over the lengths of W + ΔW's rows, `[N]`.
    pub fn gain(&self) -> String {
        format!("{}.{GAIN}", self.name)
    }

    fn specs(&self, magnitude: bool) -> Vec<ParamSpec> {
        let ([n, k], [a, b, m]) = (self.shape, self.names());
        // Kaiming's uniform numbers with a = √5, as PEFT has them.
        let init = Init::Uniform(1.0 / (k as f64).sqrt());
        let mut specs = vec![
            ParamSpec { name: a, shape: [self.rank, k].into(), decay: true, init },
            ParamSpec { name: b, shape: [n, self.rank].into(), decay: true, init: Init::Zeros },
        ];
        if magnitude {
            // What they begin with are the lengths of W's rows, which whoever loads W knows.
            specs.push(ParamSpec { name: m, shape: [n].into(), decay: false, init: Init::Ones });
        }
        specs
    }
}

/// Where DoRA's magnitudes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Magnitudes {
    /// There are none.
    None,
    /// Trained: the lengths of W + ΔW's rows are computed with every step.
    Trained,
    /// Nothing changes any more: magnitudes over lengths were computed as the adapter was loaded.
    Divided,
}

/// The adapters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    modules: Vec<LoraModule>,
    layout: ParamLayout,
    magnitudes: Magnitudes,
    dropout: f32,
    /// Where these are a rank's parts: those of the whole model.
    all: Option<Box<Lora>>,
}

impl Lora {
    /// Those that a configuration asks for, of a model with these parameters, to be trained; in pages of at most so many
    /// bytes.
    ///
    /// # Errors
    /// If the configuration is refused, or names no layer.
    pub fn new(config: &LoraConfig, specs: &[ParamSpec], page_bytes: u64) -> Result<Lora> {
        config.check()?;
        let modules = config.modules(specs)?;
        if modules.is_empty() {
            return Err(Error::Invalid("this model has no linear layer that could have an adapter".into()));
        }
        let magnitudes = if config.dora { Magnitudes::Trained } else { Magnitudes::None };
        let layout = layout(&modules, config.dora, page_bytes);
        Ok(Lora { modules, layout, magnitudes, dropout: config.dropout as f32, all: None })
    }

    /// Those of these layers, as they serve.
    pub fn served(modules: Vec<LoraModule>, dora: bool, page_bytes: u64) -> Lora {
        let magnitudes = if dora { Magnitudes::Divided } else { Magnitudes::None };
        Lora { layout: layout(&modules, false, page_bytes), modules, magnitudes, dropout: 0.0, all: None }
    }

    /// The same as a rank has them: these modules, laid out like this.
    pub(super) fn in_parts(self, modules: Vec<LoraModule>, layout: ParamLayout) -> Lora {
        Lora { modules, layout, all: Some(Box::new(self.clone())), ..self }
    }

    /// Those of the whole model, where these are a rank's parts.
    pub fn all(&self) -> &Lora {
        self.all.as_deref().unwrap_or(self)
    }

    /// The layers.
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// Where A and B lie, and magnitudes that are trained.
    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// The same where they lie as an optimizer wants them, which is given where they lie now.
    ///
    /// # Errors
    /// Those of `layout`.
    pub fn laid_out(self, layout: &dyn Fn(&ParamLayout) -> Result<ParamLayout>) -> Result<Lora> {
        let own = layout(&self.layout)?;
        let all = self.all.map(|all| all.laid_out(layout)).transpose()?.map(Box::new);
        Ok(Lora { layout: own, all, ..self })
    }

    /// True where there are magnitudes to be trained.
    pub fn trains_magnitudes(&self) -> bool {
        self.magnitudes == Magnitudes::Trained
    }

    /// The same without dropout, as validation and samples want it.
    pub fn whole(&self) -> Lora {
        let all = self.all.as_ref().map(|all| Box::new(all.whole()));
        Lora { dropout: 0.0, all, ..self.clone() }
    }

    /// Declares them beside the model's own parameters, which are frozen.
    pub(super) fn declare(&self, g: &mut Graph, base: Params) -> Result<Params> {
        let own = self.layout.declare(g)?;
        let dropout = (self.dropout > 0.0).then(|| g.input(DROPOUT, TensorType::u32([3])));
        let mut adapters = std::collections::HashMap::new();
        for (i, module) in self.modules.iter().enumerate() {
            let [a, b, m] = module.names();
            let vector = TensorType::f32([module.shape[0]]);
            let gain = match self.magnitudes {
                Magnitudes::None => Gain::None,
                Magnitudes::Divided => Gain::Given(g.state(&module.gain(), vector)),
                Magnitudes::Trained => {
                    Gain::Trained { magnitude: own.get(&m)?, squares: g.state(&module.squares(), vector) }
                }
            };
            let dropout = dropout.map(|seed| (seed, Dropout { share: self.dropout, stream: i as u32 }));
            let adapter = Adapter { a: own.get(&a)?, b: own.get(&b)?, scale: module.scale, gain, dropout };
            adapters.insert(module.name.clone(), adapter);
        }
        Ok(Params { pages: own.pages, views: own.views, frozen: true, by_name: base.by_name, adapters })
    }
}

fn layout(modules: &[LoraModule], magnitude: bool, page_bytes: u64) -> ParamLayout {
    ParamLayout::new(modules.iter().flat_map(|m| m.specs(magnitude)).collect(), page_bytes)
}

/// What DoRA multiplies the rows of W + ΔW by.
#[derive(Debug, Clone, Copy)]
pub enum Gain {
    /// Nothing: it is LoRA.
    None,
    /// This, f32 `[N]`.
    Given(Value),
    /// Magnitudes over the lengths of the rows.
    Trained {
        /// f32 `[N]`.
        magnitude: Value,
        /// Squared lengths of W's rows, f32 `[N]`.
        squares: Value,
    },
}

/// The adapter of one layer in a graph.
#[derive(Debug, Clone, Copy)]
pub struct Adapter {
    /// f32 `[R,K]`.
    pub a: Value,
    /// f32 `[N,R]`.
    pub b: Value,
    /// s.
    pub scale: f32,
    /// What multiplies the rows.
    pub gain: Gain,
    /// Seed and step, and what of x is left out.
    pub dropout: Option<(Value, Dropout)>,
}

fn times(x: Expr, y: Expr) -> Expr {
    Expr::binary(Binary::Mul, x, y)
}

fn plus(x: Expr, y: Expr) -> Expr {
    Expr::binary(Binary::Add, x, y)
}

impl Adapter {
    /// What is declared of it, by what follows the layer's name.
    pub(super) fn named(&self) -> Vec<(&'static str, Value)> {
        let [a, b, m] = PARTS;
        let mut all = vec![(a, self.a), (b, self.b)];
        match self.gain {
            Gain::None => {}
            Gain::Given(gain) => all.push((GAIN, gain)),
            Gain::Trained { magnitude, squares } => all.extend([(m, magnitude), (SQUARES, squares)]),
        }
        all
    }

    /// The layer's result with the adapter, where y = x·Wᵀ is that without: x `[..,K]`, y `[..,N]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn apply(&self, g: &mut Graph, x: Value, weight: Value, y: Value) -> Result<Value> {
        g.scope("adapter", |g| {
            let seen = match self.dropout {
                Some((seed, dropout)) => g.apply1(dropout, &[x, seed])?,
                None => x,
            };
            let inner = g.scope("a", |g| linear(g, seen, self.a))?;
            let update = g.scope("b", |g| linear(g, inner, self.b))?;
            let scaled = times(Expr::Const(self.scale), Expr::Input(1));
            let sum = plus(Expr::Input(0), scaled.clone());
            let Some(gain) = self.gain(g, weight)? else { return g.apply1(Map { expr: sum }, &[y, update]) };
            if self.dropout.is_none() {
                return g.apply1(Map { expr: times(Expr::Input(2), sum) }, &[y, update, gain]);
            }
            // y + (gain - 1)·W·x' + gain·ΔW·x', where x' is what dropout left of x.
            let again = linear(g, seen, weight)?;
            let rest = times(Expr::Input(2), plus(Expr::Input(3), scaled));
            let expr = Expr::binary(Binary::Sub, plus(Expr::Input(0), rest), Expr::Input(3));
            g.apply1(Map { expr }, &[y, update, gain, again])
        })
    }

    /// What multiplies the rows, `[N]`. Lengths count as constants in the backward pass (DoRA, equation 11).
    fn gain(&self, g: &mut Graph, weight: Value) -> Result<Option<Value>> {
        let (magnitude, squares) = match self.gain {
            Gain::None => return Ok(None),
            Gain::Given(gain) => return Ok(Some(gain)),
            Gain::Trained { magnitude, squares } => (magnitude, squares),
        };
        let &[n, r] = g.dims(self.b) else { return Err(Error::Graph("B must be [N,R]".into())) };
        let length = g.scope("length", |g| {
            // |w + s·b·A|² = |w|² + b · (2s·A·w + s²·A·Aᵀ·b) of each row w of W and b of B: A·Wᵀ is all that is read of W.
            let unit = |i: usize| if i.is_multiple_of(r + 1) { 1.0f32 } else { 0.0 };
            let unit: Vec<u8> = (0..r * r).flat_map(|i| unit(i).to_le_bytes()).collect();
            let unit = g.constant("unit", TensorType::f32([r, r]), unit);
            let ones = g.constant("ones", TensorType::f32([r, 1]), 1f32.to_le_bytes().repeat(r));
            let across = linear(g, self.a, weight)?;
            let across = g.apply1(MatMul::new(true, false), &[across, unit])?;
            let gram = linear(g, self.a, self.a)?;
            let along = g.apply1(MatMul::new(false, false), &[self.b, gram])?;
            let s = self.scale;
            let twice = times(Expr::Const(2.0 * s), Expr::Input(1));
            let expr = times(Expr::Input(0), plus(twice, times(Expr::Const(s * s), Expr::Input(2))));
            let terms = g.apply1(Map { expr }, &[self.b, across, along])?;
            let more = g.apply1(MatMul::new(false, false), &[terms, ones])?;
            let more = g.reshape(more, [n])?;
            let expr = Expr::unary(Unary::InverseSqrt, plus(Expr::Input(0), Expr::Input(1)));
            let inverse = g.apply1(Map { expr }, &[squares, more])?;
            g.apply1(Detach, &[inverse])
        })?;
        Ok(Some(g.mul(magnitude, length)?))
    }
}

#[cfg(test)]
#[path = "lora_tests.rs"]
mod tests;
