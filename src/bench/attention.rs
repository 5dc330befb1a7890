//! Attention forward and backward as it is computed here, and as the products, mask and softmax that it is made of: what
//! fusing them saves in time and memory.
//!
//! B = 1 sequence, H = 9 heads, T tokens, C = 64 head width.

use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Binary, Expr, Graph, Map, Value, gradients};
use crate::ops::{Attention, Mask, MatMul, Operands, Softmax};

const HEADS: usize = 9;
const WIDTH: usize = 64;
/// What is added to the score of a key that a query does not see.
const UNSEEN: f32 = -1e9;

/// Causal attention and its gradients towards states `q`, `k` and `v` of `[1,T,H,C]`, of the loss Σ o. Outputs `dq`, `dk`
/// and `dv` are sums over all elements but those of a head's width, `[C]`.
///
/// # Errors
/// None where `seq` is positive.
pub fn fused_attention(seq: usize) -> Result<Graph> {
    fused(seq, Operands::F32)
}

/// The same with operands rounded to f16, as mixed precision has it.
///
/// # Errors
/// None where `seq` is positive.
pub fn mixed_attention(seq: usize) -> Result<Graph> {
    fused(seq, Operands::F16)
}

fn fused(seq: usize, operands: Operands) -> Result<Graph> {
    let mut g = Graph::new();
    let [q, k, v] = ["q", "k", "v"].map(|name| g.state(name, TensorType::f32([1, seq, HEADS, WIDTH])));
    let first = g.input("position", TensorType::u32([1]));
    let attention = Attention { operands, ..Attention::new(Mask::default()) };
    let o = g.apply(attention, &[q, k, v, first])?[0];
    close(&mut g, o, &[q, k, v])?;
    Ok(g)
}

/// [`fused_attention`] by matrices of T×T, kept for the backward pass. States are `[H,T,C]`, as products want them: nothing is
/// transposed.
///
/// # Errors
/// None where `seq` is positive.
pub fn unfused_attention(seq: usize) -> Result<Graph> {
    let mut g = Graph::new();
    let [q, k, v] = ["q", "k", "v"].map(|name| g.state(name, TensorType::f32([HEADS, seq, WIDTH])));
    let mask: Vec<u8> =
        (0..seq * seq).map(|i| if i % seq <= i / seq { 0.0 } else { UNSEEN }).flat_map(f32::to_le_bytes).collect();
    let mask = g.constant("mask", TensorType::f32([seq, seq]), mask);
    let scores = g.apply1(MatMul::linear(), &[q, k])?;
    let scaled = Expr::binary(Binary::Mul, Expr::Const(1.0 / (WIDTH as f32).sqrt()), Expr::Input(0));
    let expr = Expr::binary(Binary::Add, scaled, Expr::Input(1));
    let seen = g.apply1(Map { expr }, &[scores, mask])?;
    let rows = g.reshape(seen, [HEADS * seq, seq])?;
    let p = g.apply(Softmax, &[rows])?[0];
    let p = g.reshape(p, [HEADS, seq, seq])?;
    let o = g.apply1(MatMul::new(false, false), &[p, v])?;
    close(&mut g, o, &[q, k, v])?;
    Ok(g)
}

/// The loss, its gradients, and their sums as outputs.
fn close(g: &mut Graph, o: Value, wrt: &[Value]) -> Result<()> {
    let loss = g.sum_to(o, &TensorType::f32([1]))?;
    for (name, dx) in ["dq", "dk", "dv"].into_iter().zip(gradients(g, loss, wrt)?) {
        let sum = g.sum_to(dx, &TensorType::f32([WIDTH]))?;
        g.output(name, sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Limits;
    use crate::compile::{First, compile};

    /// Of tensors, not of states: q, k and v are linear in T anyway.
    fn arena(graph: Graph) -> u64 {
        let limits = Limits { max_binding_bytes: 1 << 31, max_buffer_bytes: 1 << 32, ..Limits::default() };
        compile(&graph, &limits, &mut First).unwrap().totals().arena_bytes
    }

    #[test]
    fn memory_of_attention_is_linear_in_its_tokens() {
        for seq in [256, 1024, 4096] {
            let [one, two] = [seq, 2 * seq].map(|seq| arena(fused_attention(seq).unwrap()));
            // A few numbers stay the same, such as sums.
            assert!(two <= 2 * one, "{one} bytes for {seq} tokens, {two} for twice as many");
            // All that lives at one time: o, dy, dq, dk, dv of H·C floats a token, lse and stats of three a head; and where there are
            // few tiles of 64 keys, parts of dk and dv for 256 workgroups at most, whatever T.
            let parts = 2 * 256 * 64 * WIDTH;
            let most = 4 * (seq * HEADS * (5 * WIDTH + 3) + parts) as u64 + 65_536;
            assert!(one <= most, "{one} bytes for {seq} tokens, where {most} are enough");
        }
        let [one, two] = [256, 512].map(|seq| arena(unfused_attention(seq).unwrap()));
        assert!(two > 3 * one, "the other way is not: {one}, {two}");
    }
}
