//! Rows of the table for attention and its cache (masks, positions of each sequence, narrow caches) and for sampling.

use super::table::{Case, Draw, normal};
use super::{
    Along, Attention, AttentionBlock, AttentionBlockGradKeyValue, AttentionBlockGradQuery, AttentionCombine,
    AttentionDelta, AttentionGrad, AttentionGradKeyValue, AttentionGradQuery, AttentionPart, CacheWrite, Mask,
    Operands, Pieces, RingAttention, RingAttentionGrad, TopK,
};
use crate::base::{Axis, DType, TensorType};

type Input = (TensorType, Draw);

/// These rows.
pub(super) fn rows() -> Vec<Case> {
    [
        attention(),
        masked(),
        packed(),
        narrow(),
        halves(),
        parts(),
        attention_grad(),
        passes(),
        blocks(),
        cache(),
        largest(),
    ]
    .concat()
}

/// Positions: one, or one for each sequence.
fn at(positions: &[usize]) -> Input {
    (TensorType::u32([positions.len()]), Draw::Given(positions.iter().map(|&p| p as f64).collect()))
}

/// Inputs of an attention of T queries from their positions on and S keys.
fn qkv([b, t, s, h, k, c]: [usize; 6], positions: &[usize]) -> [Input; 4] {
    [normal([b, t, h, c]), normal([b, s, k, c]), normal([b, s, k, c]), at(positions)]
}

fn window(window: usize) -> Mask {
    Mask { window: Some(window), alibi: false }
}

const ALIBI: Mask = Mask { window: None, alibi: true };
const BOTH: Mask = Mask { window: Some(6), alibi: true };
/// So many rows that the largest tiles are tried, and more keys than one has.
const MANY_HEADS: [usize; 6] = [2, 66, 66, 32, 32, 64];

fn attention() -> Vec<Case> {
    let case = |note, sizes, position| Case::new(note, Attention::default(), &qkv(sizes, &[position]));
    vec![
        case("one token", [2, 1, 1, 3, 1, 8], 0),
        case("", [2, 7, 7, 4, 4, 8], 0).wrt(&[0, 1, 2]),
        case("grouped", [1, 9, 9, 6, 2, 16], 0).wrt(&[0, 1, 2]),
        case("two tiles", [2, 33, 33, 3, 1, 16], 0),
        case("long", [1, 65, 65, 3, 1, 32], 0),
        case("many heads", MANY_HEADS, 0),
        // So few rows that no tile is tall: with wide heads those take a CPU's driver a minute to compile.
        case("wide", [1, 7, 33, 4, 1, 80], 26),
        case("of 128", [1, 7, 33, 2, 1, 128], 26),
        case("widest", [1, 9, 9, 2, 1, 256], 0),
        case("decoding", [2, 1, 65, 9, 3, 64], 40),
        case("decoding, full", [1, 1, 33, 4, 4, 8], 32),
        case("prefill", [2, 7, 33, 3, 1, 8], 11),
        case("beyond the cache", [1, 5, 7, 2, 1, 8], 5),
        Case::new("positions", Attention::default(), &qkv([3, 2, 33, 4, 2, 8], &[0, 31, 12])),
    ]
}

/// What the masks are tried on: shorter and longer than a window of 6, over several tiles, heads that are no power of
/// two, queries beyond the last key, and sequences at positions of their own. One group and width: few pipelines.
fn places() -> Vec<(&'static str, [usize; 6], Vec<usize>)> {
    vec![
        ("short", [1, 5, 5, 3, 1, 8], vec![0]),
        ("", [2, 33, 33, 6, 2, 8], vec![0]),
        ("prefill", [2, 7, 41, 3, 1, 8], vec![29]),
        ("decoding", [2, 1, 65, 9, 3, 8], vec![40]),
        ("beyond", [1, 5, 7, 3, 1, 8], vec![5]),
        ("positions", [3, 70, 90, 3, 1, 8], vec![0, 19, 7]),
    ]
}

fn masked() -> Vec<Case> {
    let mut cases = vec![
        Case::new("window", Attention::new(window(3)), &qkv([2, 7, 7, 4, 4, 8], &[0])).wrt(&[0, 1, 2]),
        Case::new("alibi", Attention::new(ALIBI), &qkv([1, 9, 9, 6, 2, 16], &[0])).wrt(&[0, 1, 2]),
        Case::new("window of one", Attention::new(window(1)), &qkv([1, 9, 9, 2, 1, 8], &[0])),
        Case::new("wide window", Attention::new(window(100)), &qkv([1, 9, 9, 2, 1, 8], &[0])),
    ];
    for (name, mask) in [("window", window(6)), ("alibi", ALIBI), ("window and alibi", BOTH)] {
        for (note, sizes, positions) in places() {
            cases.push(Case::new(&format!("{name} {note}"), Attention::new(mask), &qkv(sizes, &positions)));
        }
    }
    cases
}

/// Rows of documents of some tokens each: shapes, the tokens, and the masks that they are tried with.
fn documents() -> Vec<(&'static str, [usize; 5], usize, Mask)> {
    vec![
        ("documents", [2, 33, 6, 2, 8], 5, Mask::default()),
        ("documents of one token", [1, 9, 3, 1, 8], 1, Mask::default()),
        ("long documents", [2, 130, 3, 1, 16], 40, Mask::default()),
        ("documents, window", [2, 70, 3, 1, 8], 20, window(6)),
        ("documents, window and alibi", [1, 70, 3, 1, 8], 20, BOTH),
    ]
}

/// q, k, v and the starts of documents.
fn packed_qkv([b, t, h, k, c]: [usize; 5], tokens: usize) -> [Input; 4] {
    let [q, key, v, _] = qkv([b, t, t, h, k, c], &[0]);
    [q, key, v, (TensorType::u32([b, t]), Draw::Starts(tokens))]
}

fn packed() -> Vec<Case> {
    let mut cases = vec![
        Case::new("packed", Attention::default(), &packed_qkv([2, 9, 4, 2, 8], 4)).wrt(&[0, 1, 2]),
        Case::new("packed, window", Attention::new(window(3)), &packed_qkv([1, 9, 2, 1, 8], 6)).wrt(&[0, 1, 2]),
    ];
    for (note, sizes, tokens, mask) in documents() {
        cases.push(Case::new(note, Attention::new(mask), &packed_qkv(sizes, tokens)));
    }
    cases
}

/// Keys and values of a narrow dtype, and heads that blocks of 32 elements do not respect.
fn narrow() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::Q8_0] {
        let mut case = |note: &str, mask, sizes, positions: &[usize]| {
            let mut inputs = qkv(sizes, positions);
            inputs[1].0.dtype = dtype;
            inputs[2].0.dtype = dtype;
            cases.push(Case::new(&format!("{dtype} {note}"), Attention::new(mask), &inputs));
        };
        case("decoding", Mask::default(), [2, 1, 65, 9, 3, 32], &[40, 64]);
        case("prefill", Mask::default(), [2, 17, 33, 8, 4, 8], &[11]);
        case("window", BOTH, [1, 9, 20, 4, 4, 24], &[8]);
    }
    cases
}

/// Factors of products rounded to f16: heads that no tile divides, every mask, and documents.
fn halves() -> Vec<Case> {
    let operands = Operands::F16;
    let mut cases = Vec::new();
    let mut all = |note: &str, mask, [q, k, v, at]: [Input; 4]| {
        cases.push(Case::new(note, Attention { mask, operands }, &[q.clone(), k.clone(), v.clone(), at.clone()]));
        let inputs = backward([q, k, v, at]);
        cases.push(Case::new(note, AttentionGradQuery { mask, operands }, &inputs));
        cases.push(Case::new(note, AttentionGradKeyValue { mask, operands }, &inputs));
    };
    all("halves", Mask::default(), qkv([2, 33, 33, 6, 2, 32], &[0]));
    all("halves prefill", Mask::default(), qkv([2, 7, 41, 3, 1, 8], &[11, 34]));
    all("halves masked", BOTH, qkv([1, 50, 50, 3, 1, 24], &[0]));
    // Scores rise from tile to tile, some by more than others.
    all("halves, alibi", ALIBI, qkv([1, 70, 70, 3, 1, 16], &[0]));
    all("halves documents", window(30), packed_qkv([1, 130, 3, 1, 16], 40));
    // As wide as heads of models are, and of so few rows that one or two tiles are tried.
    all("halves, five fourths", Mask::default(), qkv([1, 7, 33, 1, 1, 80], &[26]));
    all("halves, many heads", Mask::default(), qkv(MANY_HEADS, &[0]));
    all("halves, wide", window(30), qkv([1, 7, 33, 1, 1, 128], &[26]));
    // Of these a CPU tries no tiles, so there may be several of rows and of what streams by.
    all("halves, widest", Mask::default(), qkv([1, 19, 19, 2, 1, 256], &[0]));
    cases
}

fn parts() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |note: &str, mask, parts, dtype, sizes, positions: &[usize]| {
        let mut inputs = qkv(sizes, positions);
        inputs[1].0.dtype = dtype;
        inputs[2].0.dtype = dtype;
        cases.push(Case::new(note, AttentionPart { mask, parts }, &inputs));
    };
    let (plain, f32) = (Mask::default(), DType::F32);
    case("", plain, 3, f32, [1, 1, 100, 9, 3, 64], &[99]);
    case("first token", plain, 3, f32, [1, 1, 100, 9, 3, 64], &[0]);
    case("some empty", plain, 4, f32, [2, 2, 65, 2, 1, 80], &[17]);
    case("positions", plain, 2, f32, [3, 1, 300, 4, 4, 8], &[299, 0, 140]);
    case("widest", plain, 2, f32, [1, 1, 40, 2, 1, 256], &[39]);
    case("window", Mask { window: Some(50), alibi: true }, 3, f32, [1, 3, 100, 6, 2, 16], &[80]);
    case("f16", plain, 3, DType::F16, [1, 1, 100, 9, 3, 64], &[99]);
    case("q8_0", BOTH, 2, DType::Q8_0, [1, 1, 40, 8, 4, 8], &[39]);
    // Of the second row's parts two are empty.
    let stats = [0.5, 2.0, -1.0, 3.0, 4.0, 1.5, 0.0, 0.0, -9.0, 2.0, 0.0, 0.0];
    let stats = (TensorType::f32([1, 2, 1, 3, 2]), Draw::Given(stats.to_vec()));
    cases.push(Case::new("", AttentionCombine, &[normal([1, 2, 1, 3, 12]), stats]));
    cases
}

/// Inputs of the backward pass beside those of the forward one. lse is drawn, not computed: only then probabilities do not
/// sum to one, which no kernel may rely on. It is above the scores, as it always is: an exponential of a large argument has
/// that argument's error many times over, which no bar of sums knows of.
fn backward([q, k, v, position]: [Input; 4]) -> [Input; 6] {
    let &[b, t, h, _] = q.0.shape.dims() else { unreachable!("made above") };
    let dy = q.clone();
    [q, k, v, dy, (TensorType::f32([b, h, t, 2]), Draw::Statistics), position]
}

fn attention_grad() -> Vec<Case> {
    let (inputs, operands) = (|sizes, positions: &[usize]| backward(qkv(sizes, positions)), Operands::F32);
    let mut cases = vec![
        Case::new("", AttentionDelta, &[normal([2, 5, 3, 12]), normal([2, 5, 3, 12]), normal([2, 3, 5])]),
        Case::new("wide", AttentionDelta, &[normal([1, 33, 2, 80]), normal([1, 33, 2, 80]), normal([1, 2, 33])]),
    ];
    let mut both = |note: &str, mask, sizes, positions: &[usize]| {
        cases.push(Case::new(note, AttentionGradQuery { mask, operands }, &inputs(sizes, positions)));
        cases.push(Case::new(note, AttentionGradKeyValue { mask, operands }, &inputs(sizes, positions)));
    };
    for (note, sizes, position) in [
        ("one token", [2, 1, 1, 3, 1, 8], 0),
        ("", [2, 7, 7, 4, 4, 8], 0),
        ("two tiles", [2, 33, 33, 3, 1, 16], 0),
        ("long", [1, 65, 65, 3, 1, 32], 0),
        ("many heads", MANY_HEADS, 0),
        ("wide", [1, 7, 33, 1, 1, 80], 26),
        ("widest", [1, 9, 9, 2, 1, 256], 0),
        ("prefill", [2, 7, 33, 3, 1, 8], 11),
    ] {
        both(note, Mask::default(), sizes, &[position]);
    }
    for (name, mask) in [("window", window(6)), ("alibi", ALIBI), ("window and alibi", BOTH)] {
        for (note, sizes, positions) in places() {
            both(&format!("{name} {note}"), mask, sizes, &positions);
        }
    }
    for (note, [b, t, h, k, c], tokens, mask) in documents() {
        let inputs = backward(packed_qkv([b, t, h, k, c], tokens));
        cases.push(Case::new(note, AttentionGradQuery { mask, operands }, &inputs));
        cases.push(Case::new(note, AttentionGradKeyValue { mask, operands }, &inputs));
    }
    cases
}

/// Rows that are long and wide enough to be computed in passes: a block and a part of another one; heads that are wider than a
/// tile, or no multiple of eight; keys that no query sees; sequences at positions of their own; more heads than are taken at a
/// time; and every mask. What other kernels do is tried on smaller rows.
fn passes() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut all = |note: &str, mask, operands, inputs: [Input; 4]| {
        let note = format!("passes{note}");
        cases.push(Case::new(&note, Attention { mask, operands }, &inputs));
        let mut inputs = backward(inputs);
        // Of many keys lse is large. Among so many probabilities there would be some of thousands, whose error is all that is seen.
        inputs[4].1 = Draw::Positive;
        cases.push(Case::new(&note, AttentionGrad { mask, operands, whole: true }, &inputs));
    };
    let (plain, f32) = (Mask::default(), Operands::F32);
    all("", plain, f32, qkv([1, 324, 324, 3, 1, 32], &[0]));
    all(", five fourths", plain, f32, qkv([1, 72, 72, 2, 2, 80], &[0]));
    all(", positions", plain, f32, qkv([2, 68, 260, 4, 2, 36], &[21, 190]));
    all(", many heads", plain, f32, qkv([1, 64, 2048, 18, 6, 32], &[1984]));
    all(", window", window(70), f32, qkv([1, 260, 260, 3, 1, 32], &[0]));
    all(", window and alibi", BOTH, f32, qkv([1, 132, 132, 3, 1, 32], &[0]));
    all(", documents", window(150), f32, packed_qkv([2, 324, 3, 1, 32], 100));
    all(", halves", plain, Operands::F16, qkv([2, 132, 132, 3, 1, 32], &[0]));
    let both = backward(qkv([2, 7, 7, 4, 2, 8], &[0]));
    cases.push(Case::new("", AttentionGrad { whole: true, ..AttentionGrad::default() }, &both));
    cases.push(Case::new("in parts", AttentionGrad::default(), &both));
    cases
}

/// One of several ranks of a ring, as if all held the same.
fn rings() -> Vec<Case> {
    let mut cases = Vec::new();
    let ring = |rank, ranks, mask, packed: bool| {
        let op = RingAttention { mask, operands: Operands::F32, along: Along { axis: Axis::Sequence, ranks }, rank };
        let [q, k, v, mut position] = qkv([1, 6, 6, 2, 1, 8], &[0]);
        if packed {
            // Documents of five tokens, which begin anywhere in the row.
            let of = Pieces::starts(rank, ranks, 3);
            let starts = (0..6).map(|t| f64::from((t as u32).wrapping_sub(Pieces::place(of, 3, t) as u32 % 5)));
            position = (TensorType::u32([1, 6]), Draw::Given(starts.collect()));
        }
        (op, [q, k, v, position])
    };
    let rings = [
        ("", ring(0, 2, Mask::default(), false)),
        ("last", ring(2, 3, Mask::default(), false)),
        ("alone", ring(0, 1, Mask::default(), false)),
        ("window", ring(1, 3, window(4), false)),
        ("documents", ring(1, 3, Mask::default(), true)),
    ];
    for (note, (op, inputs)) in rings {
        let backward = backward(inputs.clone());
        cases.push(Case::new(note, op.clone(), &inputs).wrt(&[0, 1, 2]));
        cases.push(Case::new(note, RingAttentionGrad(op), &backward));
    }
    cases
}

/// Queries of one rank and keys of another, of three that have pieces of so many tokens each: its own, those of a rank before
/// and of one behind; one row without anything before, the others beside what others' keys gave. Documents begin anywhere in
/// the sequence: `starts` are their lengths.
fn blocks() -> Vec<Case> {
    let mut cases = rings();
    let mut all =
        |note: &str, [rank, from]: [usize; 2], (mask, operands), [b, piece, h, k, c]: [usize; 5], document| {
            let of = |rank| Pieces::starts(rank, 3, piece);
            let pieces = Pieces { tokens: piece, queries: of(rank), keys: of(from) };
            let op = AttentionBlock { mask, operands, pieces };
            let [q, key, v, mut position] = qkv([b, 2 * piece, 2 * piece, h, k, c], &[0]);
            if document > 0 {
                let within = |t| Pieces::place(of(rank), piece, t) % document;
                let starts = (0..2 * piece).map(|t| f64::from((t as u32).wrapping_sub(within(t) as u32)));
                position = (TensorType::u32([b, 2 * piece]), Draw::Given(starts.collect::<Vec<f64>>().repeat(b)));
            }
            let carry = [q.clone(), normal([b, h, 2 * piece])];
            let mut inputs = vec![q.clone(), key.clone(), v.clone()];
            if rank != from {
                inputs.extend(carry);
            }
            inputs.push(position.clone());
            cases.push(Case::new(note, op.clone(), &inputs));
            let inputs = backward([q, key, v, position]);
            cases.push(Case::new(note, AttentionBlockGradQuery(op.clone()), &inputs));
            cases.push(Case::new(note, AttentionBlockGradKeyValue(op), &inputs));
        };
    let (plain, f32) = (Mask::default(), Operands::F32);
    for (name, ranks) in [("own", [1, 1]), ("of one before", [1, 0]), ("of one behind", [0, 2])] {
        // Of one group and width: few pipelines.
        all(name, ranks, (plain, f32), [2, 5, 6, 2, 8], 0);
        all(&format!("long, {name}"), ranks, (plain, f32), [1, 40, 3, 1, 8], 0);
        all(&format!("window, {name}"), ranks, (window(50), f32), [1, 40, 3, 1, 8], 0);
        all(&format!("documents, {name}"), ranks, (plain, f32), [2, 40, 3, 1, 8], 33);
        all(&format!("halves, {name}"), ranks, (window(90), Operands::F16), [1, 40, 3, 1, 8], 100);
        // Wide enough for tiles.
        all(&format!("tiles, {name}"), ranks, (window(50), f32), [1, 40, 3, 1, 16], 33);
    }
    cases
}

fn cache() -> Vec<Case> {
    let inputs = |dtype, [b, t, s, k, c]: [usize; 5], positions: &[usize]| {
        let cache = (TensorType { shape: [b, s, k, c].into(), dtype }, Draw::Normal);
        [normal([b, t, k, c]), normal([b, t, k, c]), cache.clone(), cache, at(positions)]
    };
    let mut cases = Vec::new();
    let mut both = |note: &str, dtype, sizes: [usize; 5], turned: usize, positions: &[usize]| {
        let mut inputs = inputs(dtype, sizes, positions).to_vec();
        cases.push(Case::new(note, CacheWrite, &inputs));
        let [b, t, s, k, c] = sizes;
        inputs.extend([normal([s, turned / 2, 2]), normal([b, t, 2 * k, c])]);
        cases.push(Case::new(&format!("turned {note}"), CacheWrite, &inputs));
    };
    let small = [2, 3, 9, 2, 6];
    both("", DType::F32, small, 6, &[4]);
    both("over the end", DType::F32, small, 6, &[7]);
    both("beyond the end", DType::F32, small, 6, &[9]);
    both("positions", DType::F32, small, 4, &[1, 7]);
    both("one token", DType::F32, [1, 1, 33, 3, 64], 64, &[32]);
    for dtype in [DType::F16, DType::Q8_0] {
        both(&format!("{dtype}"), dtype, [2, 5, 9, 3, 64], 64, &[2]);
        both(&format!("{dtype} small heads"), dtype, [2, 3, 9, 4, 8], 4, &[1, 8]);
        both(&format!("{dtype} wide heads"), dtype, [1, 1, 4, 2, 80], 32, &[3]);
    }
    // Zeros have no scale, and half precision ends where these begin.
    for (note, dtype, value) in
        [("zeros", DType::Q8_0, 0.0), ("tiny", DType::Q8_0, 3e-7), ("huge", DType::F16, 65_000.0)]
    {
        let mut inputs = inputs(dtype, [1, 1, 2, 1, 32], &[1]);
        inputs[0].1 = Draw::Given(vec![value; 32]);
        inputs[1].1 = Draw::Given(vec![-value; 32]);
        cases.push(Case::new(note, CacheWrite, &inputs));
    }
    cases
}

fn largest() -> Vec<Case> {
    // Few values over many columns: the ids say how ties are broken, also between chunks and within one.
    let ties = (0..2 * 3000).map(|i: usize| (i * i % 7) as f64).collect();
    let ties = (TensorType::f32([2, 3000]), Draw::Given(ties));
    vec![
        Case::new("", TopK { k: 5 }, &[normal([3, 100])]),
        Case::new("all", TopK { k: 17 }, &[normal([2, 17])]),
        Case::new("one", TopK { k: 1 }, &[normal([1, 9000])]),
        Case::new("some of many", TopK { k: 9 }, &[normal([2, 5002])]),
        Case::new("ties", TopK { k: 40 }, &[ties]),
    ]
}
