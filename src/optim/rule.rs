//! Which optimizer, and parameters with settings of their own.

use crate::model::{EMBEDDING, OUTPUT};
use crate::nn::ParamSpec;

/// How parameters follow from gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// AdamW (Loshchilov and Hutter, 2019).
    #[default]
    AdamW,
    /// AdamW whose moments take a byte each (Dettmers et al., 2022).
    AdamW8bit,
    /// Muon (Jordan et al., 2024; with the rates of Liu et al., "Muon is scalable for LLM training", 2025) for the matrices
    /// of layers, AdamW for embedding, output, gains and biases.
    Muon,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

impl Rule {
    /// Every rule with its name in a recipe.
    pub const ALL: [(&'static str, Rule); 4] =
        [("adamw", Rule::AdamW), ("adamw8bit", Rule::AdamW8bit), ("muon", Rule::Muon), ("sgd", Rule::Sgd)];

    /// True if the parameter's update is made orthogonal, as Muon's is: a matrix between activations.
    pub(super) fn is_orthogonal(self, spec: &ParamSpec) -> bool {
        self == Rule::Muon && spec.decay && spec.shape.rank() == 2 && ![EMBEDDING, OUTPUT].contains(&spec.name.as_str())
    }
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Rule::ALL.iter().find(|(name, _)| *name == text);
        let names = || Rule::ALL.map(|(name, _)| name).join(", ");
        found.map(|(_, rule)| *rule).ok_or_else(|| format!("`{text}` is none of {}", names()))
    }
}

/// When parameters change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Update {
    /// After the backward pass, of which all gradients are kept until then.
    #[default]
    Step,
    /// In the backward pass, those of each layer as soon as their gradients are there, which then make room (Lv et al., "Full
    /// parameter fine-tuning for large language models with limited resources", 2024).
    Layer,
}

impl Update {
    /// Every value with its name in a recipe.
    pub const ALL: [(&'static str, Update); 2] = [("step", Update::Step), ("layer", Update::Layer)];
}

impl std::str::FromStr for Update {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Update::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, update)| *update).ok_or_else(|| format!("`{text}` is none of step, layer"))
    }
}

/// Settings of parameters whose name fits a pattern; the first that fits counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The last parts of a name, such as `embed_tokens.weight`, or a pattern of all of it, in which * stands for anything.
    pub params: String,
    /// Times the learning rate.
    pub rate: f64,
    /// Weight decay, where not that of the rest; gains and biases have none even so.
    pub weight_decay: Option<f64>,
}
