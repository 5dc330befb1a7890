//! Direct preference optimisation (Rafailov et al., 2023): the loss of pairs of answers, of which one is the better, from the
//! log-probabilities of their tokens.
//! Legend: P pairs, T tokens a row.

use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Binary, Expr, Graph, Map, Value};
use crate::ops::{LinearCrossEntropy, MatMul};
use serde::{Deserialize, Serialize};

/// How a pair's loss follows from its margin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// -log σ(margin): equation 7 of DPO.
    #[default]
    Sigmoid,
    /// (margin/β - 1/(2β))², which does not drive pairs ever further apart (IPO: Azar et al., 2023, equation 17); of sums over
    /// tokens, as in the paper.
    Ipo,
}

impl std::str::FromStr for PreferenceLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sigmoid" => Ok(PreferenceLoss::Sigmoid),
            "ipo" => Ok(PreferenceLoss::Ipo),
            _ => Err(format!("`{text}` is none of sigmoid, ipo")),
        }
    }
}

/// Training on preference pairs: `[dpo]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// β: how dearly it pays to move away from the model that training began with.
    pub beta: f64,
    /// The loss of a pair.
    pub loss: PreferenceLoss,
    /// The share of pairs that are taken to be the wrong way round (conservative DPO: Mitchell, 2023); of `sigmoid`.
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        DpoConfig { beta: 0.1, loss: PreferenceLoss::Sigmoid, label_smoothing: 0.0 }
    }
}

impl DpoConfig {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence that names the key, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::Invalid(text));
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return invalid(format!("dpo.beta is {}; it must be a number above 0", self.beta));
        }
        let smoothing = self.label_smoothing;
        if !(0.0..0.5).contains(&smoothing) {
            return invalid(format!("dpo.label_smoothing is {smoothing}; it must lie from 0 to below 0.5"));
        }
        if smoothing > 0.0 && self.loss != PreferenceLoss::Sigmoid {
            return invalid(format!(
                "dpo.label_smoothing is {smoothing}, and only the loss sigmoid has it; leave it out"
            ));
        }
        Ok(())
    }
}

/// What a graph says of pairs.
#[derive(Debug, Clone, Copy)]
pub struct Preference {
    /// Mean loss of the pairs, `[1]`.
    pub loss: Value,
    /// log π of each answer, `[2P]`: of the model that training begins with it is the reference.
    pub answers: Value,
    /// β(log π - reference) of each answer, `[2P]`: its implicit reward. The margin of a pair is the better one's less the
    /// worse one's.
    pub rewards: Value,
}

fn constant(g: &mut Graph, name: &str, dims: [usize; 2], values: &[f32]) -> Value {
    g.constant(name, TensorType::f32(dims), values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// The expression a·x + b.
fn linear(a: f64, b: f64) -> Expr {
    Expr::binary(Binary::Add, Expr::binary(Binary::Mul, Expr::Const(a as f32), Expr::Input(0)), Expr::Const(b as f32))
}

/// Of log-probabilities `[2P,T]` of tokens, 0 for those that are not of an answer; rows 2n and 2n + 1 are the better and the
/// worse of a pair. `reference` `[2P]` holds log π of each answer by the model that training began with.
///
/// # Errors
/// If the rows are odd in number, or `reference` has not one number a row.
pub fn preference(g: &mut Graph, log_probs: Value, reference: Value, config: &DpoConfig) -> Result<Preference> {
    let &[rows, t] = g.dims(log_probs) else { return Err(Error::Graph("log-probabilities must be [2P,T]".into())) };
    if rows % 2 == 1 {
        return Err(Error::Graph(format!("{rows} rows are no pairs")));
    }
    let (pairs, beta) = (rows / 2, config.beta);
    g.scope("preference", |g| {
        let product = |g: &mut Graph, x, y| g.apply1(MatMul::new(false, false), &[x, y]);
        let ones = constant(g, "ones", [t, 1], &vec![1.0; t]);
        let answers = product(g, log_probs, ones)?;
        let answers = g.reshape(answers, [rows])?;
        let difference = Expr::binary(Binary::Sub, Expr::Input(0), Expr::Input(1));
        let expr = Expr::binary(Binary::Mul, Expr::Const(beta as f32), difference);
        let rewards = g.apply1(Map { expr }, &[answers, reference])?;
        let signs = constant(g, "signs", [2, 1], &[1.0, -1.0]);
        let by_pair = g.reshape(rewards, [pairs, 2])?;
        let margins = product(g, by_pair, signs)?;
        let mean = |g: &mut Graph, of: Value, scale: f64| {
            let shares = constant(g, "shares", [pairs, 1], &vec![(scale / pairs as f64) as f32; pairs]);
            let of = g.reshape(of, [1, pairs])?;
            let mean = product(g, of, shares)?;
            g.reshape(mean, [1])
        };
        let loss = match config.loss {
            PreferenceLoss::Sigmoid => {
                // -log σ(z) is the cross entropy of the logits (z, 0) against the first, computed without overflow; and
                // -(1-ε) log σ(z) - ε log σ(-z) is that and ε z.
                let two = constant(g, "two", [2, 1], &[1.0, 0.0]);
                let first = g.constant("first", TensorType::u32([pairs]), vec![0; 4 * pairs]);
                let loss = g.apply(LinearCrossEntropy::new(64), &[margins, two, first])?[0];
                match config.label_smoothing {
                    0.0 => loss,
                    smoothing => {
                        let more = mean(g, margins, smoothing)?;
                        g.add(loss, more)?
                    }
                }
            }
            PreferenceLoss::Ipo => {
                let off = g.apply1(Map { expr: linear(1.0 / beta, -0.5 / beta) }, &[margins])?;
                let squares = g.mul(off, off)?;
                mean(g, squares, 1.0)?
            }
        };
        Ok(Preference { loss, answers, rewards })
    })
}
