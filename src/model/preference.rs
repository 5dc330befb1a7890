//! Direct preference optimisation (Rafailov et al., 2023): the loss of pairs of answers, of which one is the better, from the
//! log-probabilities of their tokens.
//! Legend: P pairs, T tokens a row.

use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Binary, Expr, Graph, Map, Unary, Value};
use crate::ops::{AllReduce, Along, LinearCrossEntropy, MatMul, Spread};
use serde::{Deserialize, Serialize};

/// How a pair's loss follows from its margin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// -log σ(margin): equation 7 of DPO.
    #[default]
    Sigmoid,
    /// (h - 1/(2β))², which does not drive pairs ever further apart (IPO: Azar et al., 2023, equation 17), h being how much more
    /// likely a token of the better answer has become in the mean than one of the worse: the form of the paper's experiments,
    /// as its authors told TRL's.
    Ipo,
    /// max(0, 1 - margin), of which pairs that are far enough apart have no part (Zhao et al., 2023: SLiC).
    Hinge,
}

impl std::str::FromStr for PreferenceLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sigmoid" => Ok(PreferenceLoss::Sigmoid),
            "ipo" => Ok(PreferenceLoss::Ipo),
            "hinge" => Ok(PreferenceLoss::Hinge),
            _ => Err(format!("`{text}` is none of sigmoid, ipo, hinge")),
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

/// What a graph is told of the `2P` answers, `[2P]` each.
#[derive(Debug, Clone, Copy)]
pub struct PairInputs {
    /// log π of each by the model that training began with.
    pub reference: Value,
    /// One over the number of its tokens: of [`PreferenceLoss::Ipo`], the others have none.
    pub token: Option<Value>,
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

/// What is told of each pair's better answer less what is told of its worse one, `[P,1]` of `[2P]`.
fn margins(g: &mut Graph, of: Value, pairs: usize) -> Result<Value> {
    let signs = constant(g, "signs", [2, 1], &[1.0, -1.0]);
    let by_pair = g.reshape(of, [pairs, 2])?;
    g.apply1(MatMul::new(false, false), &[by_pair, signs])
}

/// The expression c - x.
fn less(c: f64) -> Expr {
    Expr::binary(Binary::Sub, Expr::Const(c as f32), Expr::Input(0))
}

/// Of log-probabilities `[2P,T]` of tokens, 0 for those that are not of an answer; rows 2n and 2n + 1 are the better and the
/// worse of a pair. Where ranks have some of each row's tokens `along` an axis, all get the same.
///
/// # Errors
/// If the rows are odd in number, or what is told of answers has not one number a row.
pub fn preference(
    g: &mut Graph,
    log_probs: Value,
    of: PairInputs,
    config: &DpoConfig,
    along: Option<Along>,
) -> Result<Preference> {
    let &[rows, t] = g.dims(log_probs) else { return Err(Error::Graph("log-probabilities must be [2P,T]".into())) };
    if rows % 2 == 1 {
        return Err(Error::Graph(format!("{rows} rows are no pairs")));
    }
    let (pairs, beta) = (rows / 2, config.beta);
    g.scope("preference", |g| {
        let product = |g: &mut Graph, x, y| g.apply1(MatMul::new(false, false), &[x, y]);
        let ones = constant(g, "ones", [t, 1], &vec![1.0; t]);
        let answers = product(g, log_probs, ones)?;
        let mut answers = g.reshape(answers, [rows])?;
        if let Some(along) = along {
            // Each rank has a loss of its own, and all of them are the pairs': what it does to an answer counts as often.
            answers = g.apply1(AllReduce(along), &[answers])?;
            answers = g.apply1(Spread(along), &[answers])?;
        }
        let difference = Expr::binary(Binary::Sub, Expr::Input(0), Expr::Input(1));
        let scaled = |by| Expr::binary(Binary::Mul, by, difference.clone());
        let rewards = g.apply1(Map { expr: scaled(Expr::Const(beta as f32)) }, &[answers, of.reference])?;
        let margin = margins(g, rewards, pairs)?;
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
                let loss = g.apply(LinearCrossEntropy::new(64), &[margin, two, first])?[0];
                match config.label_smoothing {
                    0.0 => loss,
                    smoothing => {
                        let more = mean(g, margin, smoothing)?;
                        g.add(loss, more)?
                    }
                }
            }
            PreferenceLoss::Ipo => {
                let token =
                    of.token.ok_or_else(|| Error::Graph("IPO is of answers whose tokens are counted".into()))?;
                let likelier = g.apply1(Map { expr: scaled(Expr::Input(2)) }, &[answers, of.reference, token])?;
                let likelier = margins(g, likelier, pairs)?;
                let off = g.apply1(Map { expr: less(0.5 / beta) }, &[likelier])?;
                let squares = g.mul(off, off)?;
                mean(g, squares, 1.0)?
            }
            PreferenceLoss::Hinge => {
                let over = Expr::binary(Binary::Mul, less(1.0), Expr::unary(Unary::Step, less(1.0)));
                let over = g.apply1(Map { expr: over }, &[margin])?;
                mean(g, over, 1.0)?
            }
        };
        Ok(Preference { loss, answers, rewards })
    })
}
