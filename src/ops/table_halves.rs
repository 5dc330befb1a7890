//! Rows of the operators' table whose results and activations are in f16, on adapters that compute in it: what products store and
//! read that round what they multiply.

use super::table::{Case, Draw, normal, positive};
use super::table_training::targets;
use super::table_weights::packed;
use super::{CrossEntropyGrad, LogProbsGrad, MatMul, Operands, PanelMatMul, Panelled, RmsNorm};
use crate::base::{DType, TensorType};
use crate::graph::{Halved, Map, MapPair, Op};
use std::sync::Arc;

/// Numbers in f16.
fn half<const N: usize>(dims: [usize; N]) -> (TensorType, Draw) {
    packed(DType::F16, dims)
}

/// The operator with these outputs in f16.
fn halved(base: impl Op, outputs: &[usize]) -> Halved {
    Halved { base: Arc::new(base), outputs: outputs.to_vec() }
}

pub(super) fn rows() -> Vec<Case> {
    [products(), others()].concat()
}

fn products() -> Vec<Case> {
    let op = |transpose_a, transpose_b| MatMul::new(transpose_a, transpose_b).with(Operands::F16);
    let in_a = |transpose_a| PanelMatMul {
        product: op(transpose_a, false),
        panelled: Panelled::A,
        widths: if transpose_a { vec![64, 128, 64] } else { vec![128, 64] },
    };
    let layers = PanelMatMul::linear(op(false, true), vec![128, 64]);
    vec![
        Case::new("of halves nt", op(false, true), &[half([67, 172]), normal([70, 172])]),
        Case::new("of halves nt odd", op(false, true), &[half([67, 134]), normal([70, 134])]),
        Case::new("of halves tn", op(true, false), &[half([132, 68]), half([132, 72])]),
        Case::new("of halves tt", op(true, true), &[half([130, 70]), normal([66, 130])]),
        Case::new("of halves many", op(false, false), &[half([132, 212]), half([212, 208])]),
        Case::new("of halves batch", op(false, true), &[half([2, 5, 38]), half([2, 9, 38])]),
        Case::new("of halves, nf4", op(false, true), &[half([67, 192]), packed(DType::Nf4, [140, 192])]),
        Case::new("of halves, nf4 back", op(false, false), &[half([67, 140]), packed(DType::Nf4, [140, 128])]),
        Case::new("of halves, bf16", op(false, true), &[half([67, 172]), packed(DType::BF16, [70, 172])]),
        Case::new("of halves layers", layers, &[half([2, 35, 36]), normal([192, 36])]),
        Case::new("of halves input", in_a(false), &[half([70 * 192]), half([192, 96])]),
        Case::new("of halves weights", in_a(true), &[half([37 * 256]), half([37, 44])]),
        Case::new("to halves", halved(op(false, true), &[0]), &[normal([67, 172]), normal([72, 172])]),
        Case::new("to halves, long", halved(op(true, false), &[0]), &[half([333, 8]), normal([333, 44])]),
        Case::new("to halves input", halved(in_a(false), &[0]), &[half([70 * 192]), half([192, 96])]),
    ]
}

fn others() -> Vec<Case> {
    let pair = MapPair { exprs: [Map::swiglu().expr, Map::mul().expr] };
    let norm = RmsNorm { eps: 1e-5 };
    let one = (TensorType::f32([1]), Draw::Given(vec![5.0]));
    let (grad, log_probs) = (CrossEntropyGrad { start: 64 }, LogProbsGrad { start: 0 });
    vec![
        Case::new("swiglu to halves", halved(Map::swiglu(), &[0]), &[normal([37, 12]), normal([37, 12])]),
        Case::new("to halves", halved(pair, &[0, 1]), &[normal([300, 12]), normal([300, 12])]),
        Case::new("to halves", halved(norm.clone(), &[0]), &[normal([2, 35, 48]), normal([48])]),
        Case::new("to halves, wide", halved(norm, &[0]), &[normal([5, 576]), normal([576])]),
        Case::new(
            "to halves",
            halved(grad, &[0]),
            &[normal([7, 76]), targets(7, 140), positive([7]), one, positive([1])],
        ),
        Case::new(
            "to halves",
            halved(log_probs, &[0]),
            &[normal([33, 1100]), targets(33, 1100), positive([33]), normal([33])],
        ),
    ]
}
