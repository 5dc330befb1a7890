//! Rows of the operators' table with weights in each dtype that a file may have.

use super::table::{Case, Draw, below, normal, positive};
use super::{
    Embedding, LinearCrossEntropy, LinearCrossEntropyGrad, MatMul, NormMatMul, Operands, PanelMatMul, Panelled,
};
use crate::base::{DType, TensorType};

/// Random blocks.
pub(super) fn packed<const N: usize>(dtype: DType, dims: [usize; N]) -> (TensorType, Draw) {
    (TensorType { shape: dims.into(), dtype }, Draw::Normal)
}

pub(super) fn rows() -> Vec<Case> {
    let each = DType::WEIGHTS.into_iter().filter(|d| d.is_packed());
    let decoded = each.clone().filter(|&dtype| dtype != DType::F16);
    each.flat_map(of).chain(decoded.flat_map(half)).chain(halves()).chain(panels()).collect()
}

/// What is rounded once it is decoded: a frozen layer of mixed precision, forward and back.
fn half(dtype: DType) -> [Case; 2] {
    let product = |transpose_b| MatMul::new(false, transpose_b).with(Operands::F16);
    let (row, some) =
        if dtype == DType::BF16 { (36, 172) } else { (dtype.block().elements, 3 * dtype.block().elements) };
    [
        Case::new(&format!("{dtype} half"), product(true), &[normal([35, some]), packed(dtype, [37, some])]),
        Case::new(&format!("{dtype} half back"), product(false), &[normal([35, 45]), packed(dtype, [45, row])]),
    ]
}

/// Copies in f16 of weights that products round, which kernels of every tier read: forward and back, odd and even, many rows and in
/// panels.
fn halves() -> Vec<Case> {
    let half = |transpose_b| MatMul::new(false, transpose_b).with(Operands::F16);
    let weight = |n, k| packed(DType::F16, [n, k]);
    let layers = PanelMatMul::linear(half(true), vec![128, 64]);
    let input = PanelMatMul { product: half(false), panelled: Panelled::A, widths: vec![128, 64] };
    vec![
        Case::new("f16 half", half(true), &[normal([67, 172]), weight(70, 172)]),
        Case::new("f16 half odd", half(true), &[normal([67, 134]), weight(70, 134)]),
        Case::new("f16 half batch", half(true), &[normal([2, 5, 38]), packed(DType::F16, [2, 9, 38])]),
        Case::new("f16 half many", half(true), &[normal([132, 136]), weight(140, 136)]),
        Case::new("f16 half back odd", half(false), &[normal([67, 131]), weight(131, 70)]),
        Case::new("f16 half back many", half(false), &[normal([132, 212]), weight(212, 208)]),
        Case::new("f16 half layers", layers, &[normal([2, 35, 36]), weight(192, 36)]),
        Case::new("f16 half input", input, &[normal([70 * 192]), weight(192, 96)]),
    ]
}

/// What a result or a gradient in panels has to do with the weight's dtype is the same for all.
fn panels() -> Vec<Case> {
    let input = PanelMatMul { product: MatMul::new(false, false), panelled: Panelled::A, widths: vec![128, 64] };
    let many = || PanelMatMul::linear(MatMul::linear(), vec![4096, 4160]);
    vec![
        Case::new(
            "q8_0 layers",
            PanelMatMul::linear(MatMul::linear(), vec![128, 64]),
            &[normal([19, 64]), packed(DType::Q8_0, [192, 64])],
        ),
        // So many columns that a GPU's lanes walk along two rows of the weight.
        Case::new("bf16 one row of many", many(), &[normal([1, 72]), packed(DType::BF16, [8256, 72])]),
        Case::new("q8_0 one row of many", many(), &[normal([1, 64]), packed(DType::Q8_0, [8256, 64])]),
        Case::new(
            "nf4 one row of many",
            NormMatMul::new(1e-5),
            &[normal([1, 64]), normal([64]), packed(DType::Nf4, [8193, 64])],
        ),
        Case::new("q8_0 many", MatMul::linear(), &[normal([67, 256]), packed(DType::Q8_0, [140, 256])]),
        Case::new("q4_k many", MatMul::new(false, false), &[normal([67, 132]), packed(DType::Q4K, [132, 256])]),
        Case::new("q8_0 input", input, &[normal([70 * 192]), packed(DType::Q8_0, [192, 96])]),
    ]
}

fn of(dtype: DType) -> Vec<Case> {
    let linear = MatMul::linear();
    let by_rows = MatMul { transpose_b: false, ..MatMul::linear() };
    // One block a row and several; in f16 also sizes that do not divide by four, whose kernels take long to compile.
    let one = dtype.block().elements;
    let (odd, some, k) = match dtype {
        DType::F16 => (38, 172, 13),
        DType::BF16 => (36, 172, 12),
        _ => (one, 3 * one, 12),
    };
    let note = |what: &str| format!("{dtype} {what}");
    // A frozen head, in chunks of a packed weight.
    let head = [normal([3, odd]), packed(dtype, [150, odd]), below([3], 150)];
    let rest = [positive([3]), (TensorType::f32([1]), Draw::Given(vec![3.0])), positive([1])];
    let grad = LinearCrossEntropyGrad { chunk: Some(64), operands: Operands::F32, first: 0 };
    vec![
        Case::new(&note("head"), LinearCrossEntropy::new(64), &head).wrt(&[0]),
        Case::new(&note("head"), grad, &[head.as_slice(), rest.as_slice()].concat()),
        Case::new(&note("one row"), linear.clone(), &[normal([1, some]), packed(dtype, [37, some])]),
        Case::new(
            &note("of a norm"),
            NormMatMul::new(1e-5),
            &[normal([1, some]), normal([some]), packed(dtype, [37, some])],
        ),
        Case::new(&note("linear"), linear.clone(), &[normal([3, 3, odd]), packed(dtype, [9, odd])]).wrt(&[0]),
        Case::new(&note("batched"), linear.clone(), &[normal([2, 3, odd]), packed(dtype, [2, 5, odd])]),
        Case::new(&note("many rows"), linear, &[normal([67, some]), packed(dtype, [70, some])]),
        Case::new(&note("by rows"), by_rows.clone(), &[normal([19, k]), packed(dtype, [k, odd])]).wrt(&[0]),
        // What flows back through a frozen layer: dy·W, with W as it is stored.
        Case::new(&note("back"), by_rows, &[normal([2, 35, 24]), packed(dtype, [24, some])]).wrt(&[0]),
        Case::new(&note("table"), Embedding, &[packed(dtype, [37, odd]), below([2, 9], 41)]),
    ]
}
