//! Rows of the table for what is special to training and decoding: attention, the loss, the optimizer, the cache.

use super::table::{Case, Draw, below, normal, positive};
use super::{
    AdamW, Attention, AttentionDelta, AttentionGradKeyValue, AttentionGradQuery, CacheWrite, CrossEntropyGrad,
    CrossEntropyLoss, CrossEntropyUpdate, GlobalNorm, IGNORE, LinearCrossEntropy, LinearCrossEntropyGrad, SumParts,
    SumSquares,
};
use crate::base::TensorType;

type Input = (TensorType, Draw);

/// These rows.
pub(super) fn rows() -> Vec<Case> {
    [attention(), attention_grad(), cache(), cross_entropy(), linear_cross_entropy(), optimizer()].concat()
}

fn at(position: usize) -> Input {
    (TensorType::u32([1]), Draw::Given(vec![position as f64]))
}

fn given<const N: usize>(dims: [usize; N], values: &[f64]) -> Input {
    (TensorType::f32(dims), Draw::Given(values.to_vec()))
}

/// Inputs of an attention of T queries from `position` on and S keys.
fn qkv([b, t, s, h, k, c]: [usize; 6], position: usize) -> [Input; 4] {
    [normal([b, t, h, c]), normal([b, s, k, c]), normal([b, s, k, c]), at(position)]
}

fn attention() -> Vec<Case> {
    let case = |note, sizes, position| Case::new(note, Attention::default(), &qkv(sizes, position));
    vec![
        case("one token", [2, 1, 1, 3, 1, 8], 0),
        case("", [2, 7, 7, 4, 4, 8], 0).wrt(&[0, 1, 2]),
        case("grouped", [1, 9, 9, 6, 2, 16], 0).wrt(&[0, 1, 2]),
        case("two tiles", [2, 33, 33, 3, 1, 16], 0),
        case("long", [1, 65, 65, 3, 1, 32], 0),
        case("wide", [1, 17, 17, 4, 1, 80], 0),
        case("widest", [1, 9, 9, 2, 1, 256], 0),
        case("decoding", [2, 1, 65, 9, 3, 64], 40),
        case("decoding, full", [1, 1, 33, 4, 4, 8], 32),
        case("prefill", [2, 7, 33, 3, 1, 8], 11),
        case("beyond the cache", [1, 5, 7, 2, 1, 8], 5),
    ]
}

fn attention_grad() -> Vec<Case> {
    let inputs = |[b, t, s, h, k, c]: [usize; 6], position: usize| {
        let [q, k, v, position] = qkv([b, t, s, h, k, c], position);
        // lse is drawn, not computed: only then probabilities do not sum to one, which no kernel may rely on.
        let stats = (TensorType::f32([b, h, t, 2]), Draw::Normal);
        [q, k, v, normal([b, t, h, c]), stats, position]
    };
    let mut cases = vec![
        Case::new("", AttentionDelta, &[normal([2, 5, 3, 12]), normal([2, 5, 3, 12]), normal([2, 3, 5])]),
        Case::new("wide", AttentionDelta, &[normal([1, 33, 2, 80]), normal([1, 33, 2, 80]), normal([1, 2, 33])]),
    ];
    for (note, sizes, position) in [
        ("one token", [2, 1, 1, 3, 1, 8], 0),
        ("", [2, 7, 7, 4, 4, 8], 0),
        ("two tiles", [2, 33, 33, 3, 1, 16], 0),
        ("long", [1, 65, 65, 3, 1, 32], 0),
        ("prefill", [2, 7, 33, 3, 1, 8], 11),
    ] {
        cases.push(Case::new(note, AttentionGradQuery::default(), &inputs(sizes, position)));
        cases.push(Case::new(note, AttentionGradKeyValue::default(), &inputs(sizes, position)));
    }
    cases
}

fn cache() -> Vec<Case> {
    let inputs = |position| [normal([2, 3, 2, 5]), normal([2, 9, 2, 5]), at(position)];
    vec![
        Case::new("", CacheWrite, &inputs(4)),
        Case::new("over the end", CacheWrite, &inputs(7)),
        Case::new("beyond the end", CacheWrite, &inputs(9)),
        Case::new("one token", CacheWrite, &[normal([1, 1, 3, 64]), normal([1, 33, 3, 64]), at(32)]),
    ]
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
    let op = LinearCrossEntropy { chunk: 64 };
    let grad = LinearCrossEntropyGrad { chunk: 64 };
    let shaped = |b, t, n| (TensorType::u32([b, t]), targets(b * t, n).1);
    vec![
        Case::new("", op.clone(), &[normal([2, 3, 8]), normal([40, 8]), shaped(2, 3, 40)]).wrt(&[0, 1]),
        Case::new("chunks", op.clone(), &[normal([5, 6]), normal([133, 6]), targets(5, 133)]).wrt(&[0, 1]),
        Case::new("none ignored", op, &[normal([3, 12]), normal([64, 12]), below([3], 64)]).wrt(&[0, 1]),
        Case::new(
            "chunks",
            grad,
            &[normal([5, 6]), normal([133, 6]), targets(5, 133), positive([5]), given([1], &[3.0]), positive([1])],
        ),
    ]
}

fn optimizer() -> Vec<Case> {
    let step =
        |decay_end, max_norm| AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, decay_end, max_norm };
    let page = |n: usize| [normal([n]), normal([n]), positive([n]), normal([n])];
    let rest = |norm: f64| [given([1], &[norm]), given([4], &[0.125, 2.5, 5.25, 0.0])];
    let gaps = (TensorType::u32([3, 2]), Draw::Given([5, 9, 64, 128, 190, 200].map(f64::from).to_vec()));
    let inputs = |n, norm, gap: Option<&Input>| {
        [&page(n)[..], &rest(norm)[..], gap.map_or(&[][..], std::slice::from_ref)].concat()
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
        Case::new("gaps", step(150, 1.0), &inputs(300, 2.0, Some(&gaps))),
    ]
}
