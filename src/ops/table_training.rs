//! Rows of the table for what is special to training: the loss and the optimizer.

use super::table::{Case, Draw, below, normal, positive};
use super::{
    Accumulate, AdamW, AdamW8, Along, Cast, CrossEntropyGrad, CrossEntropyLoss, CrossEntropyMerge, CrossEntropyUpdate,
    Dropout, Ema, GlobalNorm, IGNORE, Judge, LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropyPart,
    LinearLogProbs, LinearLogProbsGrad, LinearLogProbsPart, LogProbs, LogProbsGrad, MuonMomentum, MuonUpdate, Operands,
    Part, PutRows, Sgd, SumParts, SumSquares, Words,
};
use crate::base::{Axis, DType, TensorType};

type Input = (TensorType, Draw);

/// These rows.
pub(super) fn rows() -> Vec<Case> {
    [cross_entropy(), linear_cross_entropy(), log_probs(), dropout(), optimizer()].concat()
}

fn given<const N: usize>(dims: [usize; N], values: &[f64]) -> Input {
    (TensorType::f32(dims), Draw::Given(values.to_vec()))
}

/// Targets below `n`, every third of them ignored.
pub(super) fn targets(rows: usize, n: usize) -> Input {
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
            &[normal([70, 2100]), targets(70, 2164), positive([70, 3])],
        ),
        Case::new("one word", CrossEntropyUpdate { start: 3 }, &[normal([9, 1]), targets(9, 9), positive([9, 3])]),
        Case::new("", CrossEntropyLoss, &[positive([9, 3]), targets(9, 5)]),
        Case::new("many", CrossEntropyLoss, &[positive([1500, 3]), targets(1500, 5)]),
        Case::new("none counts", CrossEntropyLoss, &[positive([4, 3]), all]),
        Case::new(
            "",
            CrossEntropyGrad { start: 64 },
            &[normal([7, 75]), targets(7, 139), positive([7]), given([1], &[5.0]), one()],
        ),
        Case::new(
            "first",
            CrossEntropyGrad { start: 0 },
            &[normal([33, 1100]), targets(33, 1100), positive([33]), given([1], &[22.0]), one()],
        ),
    ]
}

/// Ranks that the words of a vocabulary are spread over.
const OTHERS: Along = Along { axis: Axis::Tensor, ranks: 3 };

/// Words that a part of 133 from word 40 on has, and one row that does not count.
fn own_words() -> Input {
    (TensorType::u32([5]), Draw::Given(vec![40.0, 172.0, f64::from(IGNORE), 100.0, 41.0]))
}

fn linear_cross_entropy() -> Vec<Case> {
    let op = LinearCrossEntropy::new(64);
    let grad = |operands| LinearCrossEntropyGrad { chunk: Some(64), operands, first: 0 };
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
        Case::new("part", LinearCrossEntropyGrad { first: 40, ..grad(Operands::F32) }, &parts),
        Case::new(
            "",
            LinearCrossEntropyPart { whole: LinearCrossEntropy::new(64), words: Words { along: OTHERS, first: 40 } },
            &[normal([5, 6]), normal([133, 6]), own_words()],
        ),
        Case::new("", CrossEntropyMerge { parts: 3 }, &[positive([3 * 67, 3])]),
        Case::new("one", CrossEntropyMerge { parts: 1 }, &[positive([5, 3])]),
    ]
}

fn log_probs() -> Vec<Case> {
    let op = LinearLogProbs { chunk: Some(64), operands: Operands::F32 };
    let half = Operands::F16;
    let grad = |operands| LinearLogProbsGrad { chunk: Some(64), operands, first: 0 };
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
            LinearLogProbs { operands: half, ..op.clone() },
            &[normal([5, 6]), normal([133, 6]), targets(5, 133)],
        ),
        Case::new("half", grad(half), &parts),
        Case::new("part", LinearLogProbsGrad { first: 40, ..grad(Operands::F32) }, &parts),
        Case::new(
            "",
            LinearLogProbsPart { whole: op, words: Words { along: OTHERS, first: 40 } },
            &[normal([5, 6]), normal([133, 6]), own_words()],
        ),
    ]
}

fn dropout() -> Vec<Case> {
    let seed = |part| (TensorType::u32([3]), Draw::Given(vec![4e9, 17.0, part]));
    let op = |share| Dropout { share, stream: 5 };
    vec![
        Case::new("", op(0.1), &[normal([3, 7, 11]), seed(0.0)]).wrt(&[0]),
        Case::new("half", op(0.5), &[normal([129, 64]), seed(3.0)]),
        Case::new("none", op(0.0), &[normal([5]), seed(1.0)]),
    ]
}

fn optimizer() -> Vec<Case> {
    let part = |end, rate, decay| Part { end, rate, decay };
    let two = |middle, end| vec![part(middle, 1.0, 0.1), part(end, 0.5, 0.0)];
    let adamw = |parts| AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, start: 0, parts, copied: None };
    let sgd = |momentum, nesterov, parts| Sgd { momentum, nesterov, start: 0, parts, copied: None };
    let momentum = |start, nesterov| MuonMomentum { start, momentum: 0.95, nesterov };
    let muon = |start| MuonUpdate { start, rate: 0.5, decay: 0.1, adjusted: 0.75, copied: None };
    let page = |n: usize| [normal([n]), normal([n]), positive([n]), normal([n])];
    let told = |factor| given([4], &[0.125, 2.5, 5.25, factor]);
    let gaps = || (TensorType::u32([3, 2]), Draw::Given([5, 9, 64, 128, 190, 200].map(f64::from).to_vec()));
    let inputs = |n, factor| [&page(n)[..], &[told(factor)]].concat();
    let plain = |n, factor| vec![normal([n]), normal([n]), told(factor)];
    let heavy = |n, factor| vec![normal([n]), normal([n]), normal([n]), told(factor)];
    let adamw8 = |parts| AdamW8 { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, start: 0, parts, copied: None };
    let codes = || given([512], &AdamW8::codes().iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let bytes = |n: usize, factor| {
        let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9);
        let moments = (AdamW8::codes_type(n), Draw::Given((0..n.div_ceil(2)).map(|i| f64::from(word(i))).collect()));
        let scales = AdamW8::scales_type(n);
        let scales = (scales.clone(), positive([scales.shape.elements()]).1);
        vec![normal([n]), moments, scales, normal([n]), codes(), told(factor)]
    };
    // The same with a gradient of n elements only.
    let part_of = |mut inputs: Vec<(TensorType, Draw)>, gradient: usize, n: usize| {
        inputs[gradient] = normal([n]);
        inputs
    };
    // The same with parameters of a longer page, of which moments are kept for some elements only.
    let own = |mut inputs: Vec<(TensorType, Draw)>, whole: usize| {
        inputs[0] = normal([whole]);
        inputs
    };
    let judge = Judge { interval: 11, rest1: 0.1, rest2: 0.01, max_norm: 1.0, outlier: 4.0 };
    let strict = Judge { interval: 0, ..judge.clone() };
    let state = |good, weights| given([8], &[8.0, good, 3.0, 0.25, 0.125, 60.0, weights, 1.0]);
    let rest = |norm| [given([1], &[norm]), given([1], &[0.125])];
    let judged = |good, norm: f64| [&[state(good, 40.0)], &rest(norm)[..]].concat();
    let infinite = f64::INFINITY;
    let tokens = |ids: &[u32]| (TensorType::u32([ids.len()]), Draw::Given(ids.iter().map(|&id| id.into()).collect()));
    let scattered: Vec<u32> = (0..33).map(|i| i * 7 % 48).collect();
    let half = |n: usize| (TensorType { shape: [n].into(), dtype: DType::F16 }, Draw::Normal);
    let adamw_copy = |first, parts| AdamW { copied: Some(first), ..adamw(parts) };
    let copied = |op: AdamW8| AdamW8 { copied: Some(128), ..op };
    vec![
        Case::new("", SumSquares, &[normal([1000])]),
        Case::new("parts", SumSquares, &[normal([40_000])]),
        Case::new("gaps", SumSquares, &[normal([300]), gaps()]),
        Case::new("parts, one with gaps", SumSquares, &[normal([40_000]), gaps()]),
        Case::new("", SumParts { root: false }, &[positive([3]), positive([700])]),
        Case::new("root", SumParts { root: true }, &[positive([1000])]),
        Case::new("seven", SumParts { root: true }, &std::array::from_fn::<_, 7, _>(|i| positive([i + 1]))),
        Case::new("many pages", GlobalNorm, &std::array::from_fn::<_, 9, _>(|i| positive([i + 1]))),
        Case::new("", judge.clone(), &judged(9.0, 6.0)),
        Case::new("doubles", judge.clone(), &judged(10.0, 6.0)),
        Case::new("overflow", judge.clone(), &judged(9.0, infinite)),
        Case::new("no clipping", Judge { max_norm: f32::INFINITY, ..judge.clone() }, &judged(9.0, 6.0)),
        Case::new("outlier", judge.clone(), &judged(9.0, 49.0)),
        Case::new("large, of few", judge.clone(), &[&[state(9.0, 31.5)], &rest(4900.0)[..]].concat()),
        Case::new("any size", Judge { outlier: 0.0, ..judge }, &judged(9.0, 4900.0)),
        Case::new("not scaled", strict.clone(), &judged(10.0, 5.0)),
        Case::new("not scaled, overflow", strict.clone(), &judged(10.0, infinite)),
        Case::new(
            "sums",
            strict.clone(),
            &[&judged(10.0, 5.0)[..], &[given([1], &[3.5]), given([1], &[7.5])]].concat(),
        ),
        Case::new(
            "sums of nothing",
            strict,
            &[&judged(10.0, 0.0)[..], &[given([1], &[0.0]), given([1], &[0.0])]].concat(),
        ),
        Case::new("", Accumulate { start: 64 }, &[normal([200]), normal([5, 12]), given([1], &[1.0])]),
        Case::new("first", Accumulate { start: 0 }, &[normal([200]), normal([3, 5]), given([1], &[0.0])]),
        Case::new("", PutRows { first: 0 }, &[normal([40, 7]), normal([4, 7]), tokens(&[3, 0, 45, 39])]),
        // Each token once, some of them of other tables.
        Case::new("rows", PutRows { first: 5 }, &[normal([40, 200]), normal([33, 200]), tokens(&scattered)]),
        Case::new("", adamw(two(128, 777)), &inputs(777, 0.25)),
        Case::new("wide", adamw(vec![part(132, 1.0, 0.0)]), &inputs(132, 1.0)),
        Case::new("left out", adamw(two(64, 777)), &inputs(777, 0.0)),
        Case::new("gaps", adamw(two(128, 300)), &[&inputs(300, 0.5)[..], &[gaps()]].concat()),
        Case::new("rows", AdamW { start: 64, ..adamw(two(128, 264)) }, &part_of(inputs(777, 0.5), 3, 200)),
        Case::new("", adamw8(two(256, 777)), &bytes(777, 0.5)),
        Case::new("left out", adamw8(two(256, 300)), &bytes(300, 0.0)),
        Case::new("gaps", adamw8(two(256, 300)), &[&bytes(300, 0.5)[..], &[gaps()]].concat()),
        Case::new("own rows", AdamW { start: 256, ..adamw(two(384, 512)) }, &own(inputs(256, 0.5), 777)),
        Case::new("own rows", AdamW8 { start: 256, ..adamw8(two(512, 768)) }, &own(bytes(512, 0.5), 1024)),
        Case::new("own rows", Sgd { start: 64, ..sgd(0.9, true, two(128, 264)) }, &own(heavy(200, 0.5), 777)),
        Case::new("rows", AdamW8 { start: 256, ..adamw8(two(512, 768)) }, &part_of(bytes(1024, 0.5), 3, 512)),
        Case::new("last rows", AdamW8 { start: 256, ..adamw8(two(512, 777)) }, &part_of(bytes(777, 0.5), 3, 521)),
        // One element has no others to be measured by: its parameter must not be one that the update nearly takes away.
        Case::new("one", adamw8(vec![part(1, 1.0, 0.0)]), &[&[given([1], &[1.5])], &bytes(1, 0.5)[1..]].concat()),
        Case::new("", sgd(0.0, false, two(128, 300)), &plain(300, 0.5)),
        Case::new("left out", sgd(0.0, false, two(128, 300)), &plain(300, 0.0)),
        Case::new("momentum", sgd(0.9, false, two(64, 777)), &heavy(777, 0.5)),
        Case::new("nesterov", sgd(0.9, true, two(64, 768)), &heavy(768, 0.5)),
        Case::new("rows", Sgd { start: 64, ..sgd(0.9, true, two(128, 264)) }, &part_of(heavy(777, 0.5), 1, 200)),
        Case::new("", Ema { rest: 0.01, elements: 777 }, &plain(777, 0.5)),
        Case::new("left out", Ema { rest: 0.01, elements: 128 }, &plain(128, 0.0)),
        Case::new("gaps", Ema { rest: 0.01, elements: 300 }, &[&plain(300, 0.5)[..], &[gaps()]].concat()),
        Case::new("", momentum(64, true), &[normal([200]), normal([5, 12]), told(0.5)]),
        Case::new("plain", momentum(0, false), &[normal([200]), normal([3, 5]), told(0.5)]),
        Case::new("left out", momentum(64, true), &[normal([700]), normal([25, 24]), told(0.0)]),
        Case::new("", muon(64), &[normal([200]), normal([5, 12]), told(0.5)]),
        Case::new("odd", muon(0), &[normal([200]), normal([3, 5]), told(0.5)]),
        Case::new("left out", muon(0), &[normal([700]), normal([25, 24]), told(0.0)]),
        Case::new("gaps", sgd(0.9, true, two(128, 300)), &[&heavy(300, 0.5)[..], &[gaps()]].concat()),
        // With a copy of some elements in f16: from within a part, over two, to the end, of none that are updated.
        Case::new(
            "copy",
            adamw_copy(128, vec![part(20_000, 1.0, 0.1)]),
            &[&inputs(20_000, 0.25)[..], &[half(9_000)]].concat(),
        ),
        Case::new(
            "copy of two parts",
            adamw_copy(128, two(512, 778)),
            &[&inputs(778, 0.25)[..], &[half(632)]].concat(),
        ),
        Case::new("copy, left out", adamw_copy(0, two(256, 777)), &[&inputs(777, 0.0)[..], &[half(512)]].concat()),
        Case::new(
            "copy, gaps",
            adamw_copy(128, two(128, 300)),
            &[&inputs(300, 0.5)[..], &[half(168), gaps()]].concat(),
        ),
        Case::new("copy", copied(adamw8(two(256, 777))), &[&bytes(777, 0.5)[..], &[half(384)]].concat()),
        Case::new("copy, left out", copied(adamw8(two(256, 300))), &[&bytes(300, 0.0)[..], &[half(128)]].concat()),
        Case::new(
            "copy",
            Sgd { copied: Some(0), ..sgd(0.9, true, two(128, 264)) },
            &[&heavy(264, 0.5)[..], &[half(64)]].concat(),
        ),
        Case::new(
            "copy, odd",
            Sgd { copied: Some(0), ..sgd(0.0, false, two(128, 263)) },
            &[&plain(263, 0.5)[..], &[half(260)]].concat(),
        ),
        Case::new(
            "copy",
            MuonUpdate { copied: Some(128), ..muon(256) },
            &[normal([700]), normal([5, 12]), told(0.5), half(320)],
        ),
        Case::new(
            "copy, odd",
            MuonUpdate { copied: Some(0), ..muon(256) },
            &[normal([700]), normal([3, 6]), told(0.5), half(700)],
        ),
        Case::new(
            "copy, left out",
            MuonUpdate { copied: Some(0), ..muon(0) },
            &[normal([700]), normal([25, 24]), told(0.0), half(700)],
        ),
        Case::new("", Cast { start: 128 }, &[half(20_000), normal([20_200])]),
        Case::new("all", Cast { start: 0 }, &[half(700), normal([700])]),
    ]
}
