//! Direct preference optimisation (Rafailov et al., 2023): the loss of pairs of answers, of which one is the better, from the
//! log-probabilities of their tokens.
//! Legend: P pairs, T tokens a row.

use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Binary, Expr, Graph, Map, Value};
use crate::ops::{LinearCrossEntropy, MatMul};

/// What a graph says of pairs.
#[derive(Debug, Clone, Copy)]
pub struct Preference {
    /// Mean of -log σ(margin) over the pairs, `[1]` (equation 7).
    pub loss: Value,
    /// β((log π(better) - log π(worse)) - reference), `[P]`: how much more than the reference the model prefers the better
    /// answer, that is the difference of the implicit rewards.
    pub margins: Value,
    /// log π(better) - log π(worse), `[P]`: of the model that training begins with it is the reference.
    pub ratios: Value,
}

fn constant(g: &mut Graph, name: &str, dims: [usize; 2], values: &[f32]) -> Value {
    g.constant(name, TensorType::f32(dims), values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Of log-probabilities `[2P,T]` of tokens, 0 for those that are not of an answer; rows 2n and 2n + 1 are the better and the
/// worse of a pair. `reference` `[P]` holds the ratios of the model that training began with.
///
/// # Errors
/// If the rows are odd in number, or `reference` has not one number a pair.
pub fn preference(g: &mut Graph, log_probs: Value, reference: Value, beta: f64) -> Result<Preference> {
    let &[rows, t] = g.dims(log_probs) else { return Err(Error::Graph("log-probabilities must be [2P,T]".into())) };
    if rows % 2 == 1 {
        return Err(Error::Graph(format!("{rows} rows are no pairs")));
    }
    let pairs = rows / 2;
    g.scope("preference", |g| {
        let product = |g: &mut Graph, x, y| g.apply1(MatMul::new(false, false), &[x, y]);
        let ones = constant(g, "ones", [t, 1], &vec![1.0; t]);
        let sums = product(g, log_probs, ones)?;
        let sums = g.reshape(sums, [pairs, 2])?;
        let signs = constant(g, "signs", [2, 1], &[1.0, -1.0]);
        let ratios = product(g, sums, signs)?;
        let ratios = g.reshape(ratios, [pairs])?;
        let difference = Expr::binary(Binary::Sub, Expr::Input(0), Expr::Input(1));
        let expr = Expr::binary(Binary::Mul, Expr::Const(beta as f32), difference);
        let margins = g.apply1(Map { expr }, &[ratios, reference])?;
        // -log σ(z) is the cross entropy of the logits (z, 0) against the first, computed without overflow.
        let x = g.reshape(margins, [pairs, 1])?;
        let two = constant(g, "two", [2, 1], &[1.0, 0.0]);
        let first = g.constant("first", TensorType::u32([pairs]), vec![0; 4 * pairs]);
        let loss = g.apply(LinearCrossEntropy::new(64), &[x, two, first])?[0];
        Ok(Preference { loss, margins, ratios })
    })
}
