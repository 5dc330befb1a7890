//! Rows of several documents: loss and every gradient are those of the documents one by one, each weighted by its tokens
//! that count, in f64 to the last digits and on the device within the bars of tests/common/spread.rs.

mod common;

use common::golden::{Golden, Numbers, Sources, interpret, loss_and_gradients};
use common::spread::Spread;
use danlu::base::{Array, Limits, Rng, TensorType};
use danlu::compile::{First, compile};
use danlu::graph::{Graph, Io, Op};
use danlu::ops::{Attention, AttentionGrad, AttentionGradKeyValue, AttentionGradQuery, IGNORE, Mask, Operands};
use danlu::run::{Executor, States, f32s, run_kernel};
use pollster::block_on;

/// Lengths of the documents of each row: one alone, one of one token, several over a kernel's tiles.
const ROWS: [&[usize]; 3] = [&[40], &[1, 9, 17, 13], &[21, 3, 16]];

/// A document: its tokens, and what follows each; some do not count.
struct Document {
    tokens: Vec<f64>,
    targets: Vec<f64>,
}

impl Document {
    fn draw(length: usize, vocabulary: usize, rng: &mut Rng) -> Document {
        let mut ids = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.below(vocabulary) as f64).collect() };
        let (tokens, mut targets) = (ids(length), ids(length));
        for target in targets.iter_mut().skip(1).step_by(5) {
            *target = f64::from(IGNORE);
        }
        Document { tokens, targets }
    }

    fn counted(&self) -> f64 {
        self.targets.iter().filter(|&&target| target != f64::from(IGNORE)).count() as f64
    }
}

fn rows(vocabulary: usize) -> Vec<Vec<Document>> {
    let mut rng = Rng::new(3, 0);
    let mut row = |lengths: &&[usize]| lengths.iter().map(|&n| Document::draw(n, vocabulary, &mut rng)).collect();
    ROWS.iter().map(&mut row).collect()
}

fn ids(shape: [usize; 2], of: impl Iterator<Item = f64>) -> Array {
    Array::new(TensorType::u32(shape), of.collect())
}

/// All documents in their rows.
fn together(golden: &Golden, rows: &[Vec<Document>]) -> (Graph, Sources) {
    let shape = [ROWS.len(), ROWS[0].iter().sum()];
    let starts = |row: &Vec<Document>| {
        let mut start = 0;
        let mut starts = Vec::new();
        for document in row {
            starts.extend(vec![start as f64; document.tokens.len()]);
            start += document.tokens.len();
        }
        starts
    };
    let mut sources = golden.states();
    let documents = || rows.iter().flatten();
    sources.insert("tokens".into(), ids(shape, documents().flat_map(|d| d.tokens.clone())));
    sources.insert("targets".into(), ids(shape, documents().flat_map(|d| d.targets.clone())));
    sources.insert("starts".into(), ids(shape, rows.iter().flat_map(starts)));
    (loss_and_gradients(golden, &TensorType::u32(shape), true).0, sources)
}

/// The documents one by one, weighted by their tokens that count.
fn apart(golden: &Golden, rows: &[Vec<Document>]) -> Numbers {
    let all: f64 = rows.iter().flatten().map(Document::counted).sum();
    let mut sum = Numbers::new();
    for document in rows.iter().flatten() {
        let shape = [1, document.tokens.len()];
        let mut sources = golden.states();
        sources.insert("tokens".into(), ids(shape, document.tokens.iter().copied()));
        sources.insert("targets".into(), ids(shape, document.targets.iter().copied()));
        let (graph, ..) = loss_and_gradients(golden, &TensorType::u32(shape), false);
        for (name, numbers) in interpret(&graph, &sources, None) {
            let sum = sum.entry(name).or_insert_with(|| vec![0.0; numbers.len()]);
            for (sum, x) in sum.iter_mut().zip(numbers) {
                *sum += x * document.counted() / all;
            }
        }
    }
    sum
}

#[test]
fn packed_rows_are_their_documents() {
    let golden = Golden::open("gqa");
    let rows = rows(golden.config.vocab_size);
    let (graph, sources) = together(&golden, &rows);
    let expected = apart(&golden, &rows);

    let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
    for (name, expected) in &expected {
        let rms = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
        for (i, (x, y)) in spread.exact[name].iter().zip(expected).enumerate() {
            assert!((x - y).abs() <= 1e-10 * (rms + y.abs()), "{name}, element {i}: {x} packed, {y} apart");
        }
    }

    let gpu = common::gpu();
    let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
    let mut states = States::new(&gpu);
    let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    for input in ["tokens", "targets", "starts"] {
        run.set(input, &sources[input].to_bytes()).unwrap();
    }
    let outputs = block_on(run.run()).unwrap();
    for (name, expected) in &expected {
        let got: Vec<f64> = f32s(&outputs, name).into_iter().map(f64::from).collect();
        spread.check(name, &got, expected, 0.0);
    }
    println!("worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
}

/// Without packed rows a graph knows nothing of them: no input, and the kernels bind what they did.
#[test]
fn plain_rows_pay_nothing() {
    let golden = Golden::open("gqa");
    let tokens = TensorType::u32([2, 24]);
    let plan = |packed| {
        let (graph, ..) = loss_and_gradients(&golden, &tokens, packed);
        compile(&graph, &Limits::default(), &mut First).unwrap()
    };
    let (plain, packed) = (plan(false), plan(true));
    let packs = |plan: &danlu::compile::Plan| {
        let constants = plan.steps.iter().flat_map(|step| &step.constants);
        constants.filter(|(name, _)| *name == "STARTS").count()
    };
    assert_eq!(plain.steps.len(), packed.steps.len(), "and packing adds no dispatch");
    assert_eq!(packs(&plain), 0);
    assert!(packs(&packed) > 0);
    assert!(!plain.inputs.iter().any(|input| input.name == "starts"));
}

/// Tokens of each of two documents in one row: whole tiles of every kernel.
const HALF: usize = 128;

/// Every candidate of `op` whose name begins so, on a row of two documents of [`HALF`] tokens, where inputs `poisoned` hold no
/// numbers in the first or in the second (`first`): no output of the other document may have been touched by them.
fn reads_no_other_document(op: &dyn Op, name: &str, inputs: &[TensorType], poisoned: &[usize], first: bool) {
    let gpu = common::gpu();
    let outputs = op.infer(&inputs.iter().collect::<Vec<_>>()).unwrap();
    let io = Io { inputs: inputs.to_vec(), outputs };
    let mut rng = Rng::new(5, 0);
    let array = |(i, ty): (usize, &TensorType)| {
        let token = ty.shape.elements() / (2 * HALF);
        let at = |k: usize| {
            if ty.shape.dims().len() == 4 && ty.shape.dims()[3] == 2 { k / 2 % (2 * HALF) } else { k / token }
        };
        let value = |k: usize| {
            if ty.dtype == danlu::base::DType::U32 {
                return (k / HALF * HALF) as f64;
            }
            let poison = poisoned.contains(&i) && (at(k) < HALF) == first;
            if poison { f64::NAN } else { rng.normal() }
        };
        Array::new(ty.clone(), (0..ty.shape.elements()).map(value).collect())
    };
    let arrays: Vec<Array> = inputs.iter().enumerate().map(array).collect();
    let limits = [false, true].map(|is_cpu| Limits { is_cpu, ..gpu.limits().clone() });
    let kernels = limits.iter().flat_map(|limits| op.kernels(&io, limits));
    let mut tried = 0;
    for kernel in kernels.filter(|kernel| kernel.variant.starts_with(name)) {
        tried += 1;
        let results = block_on(run_kernel(&gpu, &kernel, &io, &arrays, &[])).unwrap();
        // Of the forward pass the second output lies otherwise, and depends on what the first does.
        let results = if op.name() == "attention" { &results[..1] } else { &results[..] };
        for y in results {
            let half = y.data.len() / 2;
            let (own, other) =
                if first { (&y.data[half..], &y.data[..half]) } else { (&y.data[..half], &y.data[half..]) };
            let label = format!("{} {}", op.name(), kernel.variant);
            assert!(own.iter().all(|x| x.is_finite()), "{label}: reads the other document");
            assert!(other.iter().any(|x| !x.is_finite()), "{label}: the test poisons nothing");
        }
    }
    let is_asked = name.is_empty() || common::candidates::passes_are_tried(&gpu);
    assert!(tried > 0 || !is_asked, "{}: no candidate {name} was tried", op.name());
}

/// A block of keys that no query of a block sees costs nothing, and the other way round: it is not even read.
#[test]
fn blocks_of_other_documents_are_not_read() {
    let inputs = |width| {
        let (heads, keys) = (TensorType::f32([1, 2 * HALF, 3, width]), TensorType::f32([1, 2 * HALF, 1, width]));
        let (starts, stats) = (TensorType::u32([1, 2 * HALF]), TensorType::f32([1, 3, 2 * HALF, 2]));
        let forward = [heads.clone(), keys.clone(), keys.clone(), starts.clone()];
        (forward, [heads.clone(), keys.clone(), keys, heads, stats, starts])
    };
    let (mask, operands) = (Mask::default(), Operands::F32);
    let (forward, backward) = inputs(16);
    reads_no_other_document(&Attention::new(mask), "", &forward, &[1, 2], true);
    reads_no_other_document(&AttentionGradQuery { mask, operands }, "", &backward, &[1, 2], true);
    reads_no_other_document(&AttentionGradKeyValue { mask, operands }, "", &backward, &[0, 3, 4], false);
    // What is made in passes has wider heads.
    let (forward, backward) = inputs(32);
    let gradient = AttentionGrad { mask, operands, whole: true };
    for first in [true, false] {
        reads_no_other_document(&Attention::new(mask), "passes", &forward, &[0, 1, 2], first);
        reads_no_other_document(&gradient, "passes", &backward, &[0, 1, 2, 3, 4], first);
    }
}
