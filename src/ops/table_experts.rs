//! Rows of the table for mixtures of experts: routing, sorting, the experts' products, and sums over slots.

use super::table::{Case, Draw, below, normal, positive};
use super::{
    ExpertLinear, ExpertLinearGrad, ExpertOrder, Route, RouteGrad, SlotDot, SlotPlaces, SlotScale, SlotSum, Softmax,
    SoftmaxGrad, TakeRows,
};
use crate::base::{Array, DType, TensorType};
use crate::graph::Op;

type Input = (TensorType, Draw);

/// These rows.
pub(super) fn rows() -> Vec<Case> {
    [route(), order(), linear(), linear_grad(), slots(), softmax(), places()].concat()
}

/// Logits of R rows and E experts of which many are equal, in no order.
fn ties(r: usize, e: usize) -> Input {
    let logit = |i: usize| ((i * 7919 + 3) % 5) as f64 * 0.5;
    (TensorType::f32([r, e]), Draw::Given((0..r * e).map(logit).collect()))
}

/// Ids of k different experts in each row: those from i·i on in row i.
fn ids(r: usize, k: usize, e: usize) -> Input {
    let id = |slot: usize| ((slot / k * (slot / k) + slot % k) % e) as f64;
    (TensorType::u32([r, k]), Draw::Given((0..r * k).map(id).collect()))
}

fn route() -> Vec<Case> {
    let op = |choices, normalise| Route { choices, normalise };
    let grad = |normalise, r, e, k| {
        let inputs = [normal([r, e]), positive([r, k]), ids(r, k, e), normal([r, k])];
        Case::new(if normalise { "normalised" } else { "" }, RouteGrad { normalise }, &inputs)
    };
    vec![
        Case::new("normalised", op(2, true), &[normal([7, 8])]).wrt(&[0]),
        Case::new("", op(3, false), &[normal([5, 13])]).wrt(&[0]),
        Case::new("all", op(4, true), &[normal([3, 4])]).wrt(&[0]),
        Case::new("one", op(1, false), &[normal([3, 6])]).wrt(&[0]),
        Case::new("ties", op(4, false), &[ties(9, 11)]),
        Case::new("wide", op(8, true), &[normal([33, 128])]),
        Case::new("wide, ties", op(8, true), &[ties(3, 160)]),
        grad(true, 33, 67, 4),
        grad(false, 70, 35, 2),
    ]
}

fn order() -> Vec<Case> {
    vec![
        Case::new("", ExpertOrder { experts: 5, together: 1 }, &[below([9, 2], 5)]),
        Case::new("out of range", ExpertOrder { experts: 5, together: 1 }, &[below([31, 3], 8)]),
        Case::new("one slot", ExpertOrder { experts: 3, together: 1 }, &[below([1, 1], 3)]),
        Case::new("many", ExpertOrder { experts: 128, together: 1 }, &[below([200, 8], 128)]),
        Case::new("by rank", ExpertOrder { experts: 3, together: 4 }, &[below([70, 3], 13)]),
        Case::new("one expert", ExpertOrder { experts: 1, together: 1 }, &[below([300, 1], 1)]),
    ]
}

/// Ids of R rows and k choices below `below`, and what [`ExpertOrder`] makes of them for E experts.
fn sorted(r: usize, k: usize, e: usize, below: usize) -> [Input; 3] {
    let id = |slot: usize| ((slot / k * (slot / k) + slot % k * 3) % below) as f64;
    let ids = Array::new(TensorType::u32([r, k]), (0..r * k).map(id).collect());
    let sorted = ExpertOrder { experts: e, together: 1 }.reference(std::slice::from_ref(&ids));
    let given = |a: &Array| (a.ty.clone(), Draw::Given(a.data.clone()));
    [given(&ids), given(&sorted[0]), given(&sorted[1])]
}

fn linear() -> Vec<Case> {
    let case = |note: &str, back, x, [e, n, k]: [usize; 3], [r, choices]: [usize; 2], below| {
        let inputs = [&[x, normal([e, n, k])][..], &sorted(r, choices, e, below)].concat();
        Case::new(note, ExpertLinear { back }, &inputs)
    };
    let mut rows = vec![
        case("few", false, normal([3, 7]), [4, 9, 7], [3, 2], 4).wrt(&[0, 1]),
        case("few, a row a slot", false, normal([5, 3, 12]), [4, 20, 12], [5, 3], 4).wrt(&[0, 1]),
        case("few, out of range", false, normal([5, 48]), [3, 70, 48], [5, 2], 5),
        case("many", false, normal([12, 7]), [3, 9, 7], [12, 2], 3).wrt(&[0, 1]),
        case("many, a row a slot", false, normal([19, 2, 8]), [5, 12, 8], [19, 2], 5).wrt(&[0, 1]),
        case("out of range", false, normal([40, 12]), [3, 20, 12], [40, 2], 5),
        case("wide", false, normal([70, 36]), [3, 68, 36], [70, 2], 3),
        case("odd", false, normal([67, 35]), [2, 71, 35], [67, 1], 2),
        case("many experts", false, normal([67, 20]), [24, 12, 20], [67, 4], 23),
        case("back", true, normal([12, 2, 9]), [3, 9, 7], [12, 2], 3).wrt(&[0, 1]),
        case("back, out of range", true, normal([40, 2, 20]), [3, 20, 12], [40, 2], 5),
        case("back, wide", true, normal([70, 2, 68]), [3, 68, 36], [70, 2], 3),
        case("back, odd", true, normal([67, 1, 71]), [2, 71, 35], [67, 1], 2),
        case("back, long rows", true, normal([12, 2, 8]), [3, 8, 320], [12, 2], 3),
        case("back, few", true, normal([3, 2, 40]), [4, 40, 16], [3, 2], 4),
    ];
    // How a dtype is decoded is tested with the linear layer: here some of each form suffice.
    let few = [DType::F16, DType::Q5_0, DType::Q6K].map(|dtype| ("few", 3, false, dtype));
    let many = [DType::BF16, DType::Q8_0, DType::Q4K].map(|dtype| ("many", 21, false, dtype));
    for (note, r, back, dtype) in few.into_iter().chain(many).chain([("back", 21, true, DType::Q4_1)]) {
        let k = dtype.block().elements.max(32);
        let w = (TensorType { shape: [3, 20, k].into(), dtype }, Draw::Normal);
        let x = if back { normal([r, 2, 20]) } else { normal([r, k]) };
        let inputs = [&[x, w][..], &sorted(r, 2, 3, 3)].concat();
        rows.push(Case::new(&format!("{note}, {dtype}"), ExpertLinear { back }, &inputs));
    }
    rows
}

fn linear_grad() -> Vec<Case> {
    let case = |note: &str, x, dy, e, [r, choices]: [usize; 2], below| {
        Case::new(note, ExpertLinearGrad, &[&[x, dy][..], &sorted(r, choices, e, below)].concat())
    };
    vec![
        case("", normal([9, 7]), normal([9, 2, 5]), 3, [9, 2], 3),
        case("a row a slot", normal([9, 2, 8]), normal([9, 2, 12]), 3, [9, 2], 3),
        case("wide", normal([70, 36]), normal([70, 2, 68]), 3, [70, 2], 3),
        case("odd", normal([67, 35]), normal([67, 1, 71]), 2, [67, 1], 2),
        case("out of range", normal([33, 2, 20]), normal([33, 2, 24]), 5, [33, 2], 8),
        case("long rows", normal([9, 2, 320]), normal([9, 2, 8]), 3, [9, 2], 3),
        case("idle experts", normal([5, 12]), normal([5, 1, 8]), 9, [5, 1], 4),
    ]
}

fn slots() -> Vec<Case> {
    vec![
        Case::new("", SlotSum, &[normal([5, 3, 7]), normal([5, 3])]).wrt(&[0, 1]),
        Case::new("plain", SlotSum, &[normal([5, 2, 8])]).wrt(&[0]),
        Case::new("wide", SlotSum, &[normal([33, 4, 200]), normal([33, 4])]),
        Case::new("", SlotScale, &[normal([5, 7]), normal([5, 3])]),
        Case::new("wide", SlotScale, &[normal([33, 200]), normal([33, 4])]),
        Case::new("", SlotDot, &[normal([5, 3, 7]), normal([5, 7])]),
        Case::new("wide", SlotDot, &[normal([33, 4, 200]), normal([33, 200])]),
    ]
}

fn softmax() -> Vec<Case> {
    let grad = |dp, dlse| SoftmaxGrad { dp, dlse };
    vec![
        Case::new("", Softmax, &[normal([5, 7])]).wrt(&[0]),
        Case::new("wide", Softmax, &[normal([33, 130])]),
        Case::new("wider", Softmax, &[normal([3, 959])]),
        Case::new("both", grad(true, true), &[positive([5, 7]), normal([5, 7]), normal([5])]),
        Case::new("p", grad(true, false), &[positive([33, 130]), normal([33, 130])]),
        Case::new("lse", grad(false, true), &[positive([33, 130]), normal([33])]),
    ]
}

/// Slots of R rows and k choices on N ranks with e experts each, C of them at most, and rows that come to their places and home.
fn places() -> Vec<Case> {
    let case = |note: &str, [r, k]: [usize; 2], [ranks, experts, capacity]: [usize; 3], below| {
        let id = |slot: usize| ((slot / k * (slot / k) + slot % k * 3) % below) as f64;
        let ids = Array::new(TensorType::u32([r, k]), (0..r * k).map(id).collect());
        let sorted = ExpertOrder { experts: ranks, together: experts }.reference(std::slice::from_ref(&ids));
        let given = |a: &Array| (a.ty.clone(), Draw::Given(a.data.clone()));
        let inputs = [given(&ids), given(&sorted[0]), given(&sorted[1])];
        Case::new(note, SlotPlaces { ranks, experts, capacity }, &inputs)
    };
    let take = |note: &str, x: [usize; 2], take: Vec<f64>, give: (Vec<usize>, Vec<f64>)| {
        let u32s = |dims: Vec<usize>, data| (TensorType::u32(dims), Draw::Given(data));
        let inputs = [normal(x), u32s(vec![take.len()], take), u32s(give.0, give.1)];
        Case::new(note, TakeRows, &inputs).wrt(&[0])
    };
    vec![
        case("", [9, 2], [2, 3, 5], 6),
        case("room for all", [67, 3], [4, 2, 67 * 3], 8),
        case("one", [1, 1], [3, 1, 1], 3),
        case("out of range", [70, 2], [3, 2, 7], 8),
        take("", [5, 7], vec![3.0, 0.0, 5.0, 4.0], (vec![5], vec![1.0, 4.0, 4.0, 0.0, 3.0])),
        take("twice", [3, 4], vec![1.0, 3.0, 2.0, 1.0], (vec![3, 2], vec![4.0, 4.0, 0.0, 3.0, 2.0, 4.0])),
    ]
}
