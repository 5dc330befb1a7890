//! Rows of the table for what is special to training: the loss and the optimizer.

use super::table::{Case, Draw, below, normal, positive};
use super::{
    AdamW, CrossEntropyGrad, CrossEntropyLoss, CrossEntropyUpdate, Dropout, GlobalNorm, IGNORE, LinearCrossEntropy,
    LinearCrossEntropyGrad, LinearLogProbs, LinearLogProbsGrad, LogProbs, LogProbsGrad, LossScale, Operands, SumParts,
    SumSquares,
};
use crate::base::TensorType;

type Input = (TensorType, Draw);

/// These rows.
pub(super) fn rows() -> Vec<Case> {
    [cross_entropy(), linear_cross_entropy(), log_probs(), dropout(), optimizer()].concat()
}

fn given<const N: usize>(dims: [usize; N], values: &[f64]) -> Input {
    (TensorType::f32(dims), Draw::Given(values.to_vec()))
}

/// Targets below `n`, every third of them ignored.
fn targets(rows: usize, n: usize) -> Input {
    let word = |i: usize| if i % 3 == 1 { f64::from(IGNORE) } else { ((i * 7919 + 13) % n) as f64 };
    (TensorType::u32([rows]), Draw::Given((0..rows).map(word).collect()))
}

fn cross_entropy() -> Vec<Case> {
    let one = || positive([1]);
    let all = (TensorType::u32([4]), Draw::Given(vec![f64::from(IGNORE); 4]));
    vec![
        Case::new("first", CrossEntropyUpdate { start: 0 }, &[normal([5, 37]), targets(5, 90)]),
        Case::new("next", CrossEntropyUpdate { start: 37 }, &[normal([5, 53]), targets(5, 90), positive([5, 3])]),
        Case::new(
            "wide",
            CrossEntropyUpdate { start: 64 },
            &[normal([70, 1000]), targets(70, 1064), positive([70, 3])],
        ),
        Case::new("one word", CrossEntropyUpdate { start: 3 }, &[normal([9, 1]), targets(9, 9), positive([9, 3])]),
        Case::new("", CrossEntropyLoss, &[positive([9, 3]), targets(9, 5)]),
        Case::new("many", CrossEntropyLoss, &[positive([700, 3]), targets(700, 5)]),
        Case::new("none counts", CrossEntropyLoss, &[positive([4, 3]), all]),
        Case::new(
            "",
            CrossEntropyGrad { start: 64 },
            &[normal([7, 75]), targets(7, 139), positive([7]), given([1], &[5.0]), one()],
        ),
        Case::new(
            "first",
            CrossEntropyGrad { start: 0 },
            &[normal([33, 300]), targets(33, 300), positive([33]), given([1], &[22.0]), one()],
        ),
    ]
}

fn linear_cross_entropy() -> Vec<Case> {
    let op = LinearCrossEntropy::new(64);
    let grad = |operands| LinearCrossEntropyGrad { chunk: Some(64), operands };
    let half = Operands::F16;
    let parts = [normal([5, 6]), normal([133, 6]), targets(5, 133), positive([5]), given([1], &[3.0]), positive([1])];
    let shaped = |b, t, n| (TensorType::u32([b, t]), targets(b * t, n).1);
    vec![
        Case::new("", op.clone(), &[normal([2, 3, 8]), normal([40, 8]), shaped(2, 3, 40)]).wrt(&[0, 1]),
        Case::new("chunks", op.clone(), &[normal([5, 6]), normal([133, 6]), targets(5, 133)]).wrt(&[0, 1]),
        Case::new("none ignored", op, &[normal([3, 12]), normal([64, 12]), below([3], 64)]).wrt(&[0, 1]),
        Case::new("chunks", grad(Operands::F32), &parts),
        Case::new(
            "half",
            LinearCrossEntropy { operands: half, ..LinearCrossEntropy::new(64) },
            &[normal([5, 6]), normal([133, 6]), targets(5, 133)],
        ),
        Case::new("half", grad(half), &parts),
    ]
}

fn log_probs() -> Vec<Case> {
    let op = LinearLogProbs { chunk: Some(64), operands: Operands::F32 };
    let half = Operands::F16;
    let grad = |operands| LinearLogProbsGrad { chunk: Some(64), operands };
    let parts = [normal([5, 6]), normal([133, 6]), targets(5, 133), positive([5]), normal([5])];
    let shaped = |b, t, n| (TensorType::u32([b, t]), targets(b * t, n).1);
    vec![
        Case::new("", LogProbs, &[positive([9, 3]), targets(9, 5)]),
        Case::new("many", LogProbs, &[positive([700, 3]), targets(700, 5)]),
        Case::new("", LogProbsGrad { start: 64 }, &[normal([7, 75]), targets(7, 139), positive([7]), normal([7])]),
        Case::new(
            "first",
            LogProbsGrad { start: 0 },
            &[normal([33, 300]), targets(33, 300), positive([33]), normal([33])],
        ),
        Case::new("", op.clone(), &[normal([2, 3, 8]), normal([40, 8]), shaped(2, 3, 40)]).wrt(&[0, 1]),
        Case::new("chunks", op.clone(), &[normal([5, 6]), normal([133, 6]), targets(5, 133)]).wrt(&[0, 1]),
        Case::new("chunks", grad(Operands::F32), &parts),
        Case::new(
            "half",
            LinearLogProbs { operands: half, ..op },
            &[normal([5, 6]), normal([133, 6]), targets(5, 133)],
        ),
        Case::new("half", grad(half), &parts),
    ]
}

fn dropout() -> Vec<Case> {
    let seed = (TensorType::u32([2]), Draw::Given(vec![4e9, 17.0]));
    let op = |share| Dropout { share, stream: 5 };
    vec![
        Case::new("", op(0.1), &[normal([3, 7, 11]), seed.clone()]).wrt(&[0]),
        Case::new("half", op(0.5), &[normal([129, 64]), seed.clone()]),
        Case::new("none", op(0.0), &[normal([5]), seed]),
    ]
}

fn optimizer() -> Vec<Case> {
    let step =
        |decay_end, max_norm| AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, decay_end, max_norm };
    let page = |n: usize| [normal([n]), normal([n]), positive([n]), normal([n])];
    let rest = |norm: f64, factor| [given([1], &[norm]), given([4], &[0.125, 2.5, 5.25, factor])];
    let gaps = (TensorType::u32([3, 2]), Draw::Given([5, 9, 64, 128, 190, 200].map(f64::from).to_vec()));
    let scale = LossScale { interval: 11, rest1: 0.1, rest2: 0.01 };
    let scaler = |good, norm| {
        [given([5], &[8.0, good, 3.0, 0.25, 0.125]), given([1], &[norm]), given([4], &[0.125, 0.0, 0.0, 1.0])]
    };
    let inputs = |n, norm, gap: Option<&Input>| {
        [&page(n)[..], &rest(norm, 1.0)[..], gap.map_or(&[][..], std::slice::from_ref)].concat()
    };
    vec![
        Case::new("", SumSquares, &[normal([1000])]),
        Case::new("parts", SumSquares, &[normal([40_000])]),
        Case::new("gaps", SumSquares, &[normal([300]), gaps.clone()]),
        Case::new("", SumParts { root: false }, &[positive([3]), positive([700])]),
        Case::new("root", SumParts { root: true }, &[positive([1000])]),
        Case::new("seven", SumParts { root: true }, &std::array::from_fn::<_, 7, _>(|i| positive([i + 1]))),
        Case::new("many pages", GlobalNorm, &std::array::from_fn::<_, 9, _>(|i| positive([i + 1]))),
        Case::new("", step(100, 1.0), &inputs(777, 3.5, None)),
        Case::new("no clipping", step(0, f32::INFINITY), &inputs(130, 3.5, None)),
        Case::new("small norm", step(130, 1.0), &inputs(130, 0.25, None)),
        Case::new("scaled", step(100, 1.0), &[&page(777)[..], &rest(3.5, 0.0078125)[..]].concat()),
        Case::new("left out", step(100, 1.0), &[&page(777)[..], &rest(f64::INFINITY, 0.0)[..]].concat()),
        Case::new("", scale.clone(), &scaler(9.0, 6.0)),
        Case::new("doubles", scale.clone(), &scaler(10.0, 6.0)),
        Case::new("overflow", scale, &scaler(9.0, f64::INFINITY)),
        Case::new("gaps", step(150, 1.0), &inputs(300, 2.0, Some(&gaps))),
    ]
}
