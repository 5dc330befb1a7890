//! Small versions of a node, to time a kernel in milliseconds and to prove it right.

use super::ceilings::Class;
use super::machine::Machine;
use super::records::KernelId;
use super::{roofline, run_kernel};
use crate::base::{Array, DType, Limits, Rng, TensorType, packed};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::{Cost, Io, Kernel, Op};

/// Seconds of a measured run that reaches the machine's limits.
const SECONDS: f64 = 3e-3;
/// What it may cost on any machine: a busy one looks slow, and what takes microseconds cannot be told apart.
pub(super) const LEAST: Cost = Cost { flops: 50_000_000, bytes: 32 << 20 };

/// What one measured run of such candidates may cost: what the machine does at most in [`SECONDS`], by the fastest class of
/// arithmetic among them, and no more bytes than the copy that its bandwidth is known by. So sums are as long, and operands as
/// far beyond caches, as in the node itself or nearly.
pub(super) fn measured(kernels: &[Kernel], machine: &Machine, limits: &Limits) -> Cost {
    // A class that was not measured computes in f32.
    let rate = |k: &Kernel| machine.rate(Class::of(k.shader, &k.constants)).or_else(|| machine.rate(Class::F32));
    let flops = SECONDS * kernels.iter().filter_map(rate).fold(0.0, f64::max);
    let bytes = (SECONDS * machine.bytes_per_second) as u64;
    Cost { flops: (flops as u64).max(LEAST.flops), bytes: bytes.max(LEAST.bytes).min(2 * roofline::copied(limits)) }
}

/// What a run in a proof may cost: several tiles in each dim, and milliseconds for the reference on the host.
const PROOF: Cost = Cost { flops: 1 << 24, bytes: 1 << 20 };
/// Operations beyond which nobody waits for the reference: some kernels are candidates of large nodes only.
const REFERENCE: u64 = 1 << 27;

/// A node like `io` that costs at most `most`, or as little as its operator allows. Dims are halved, the largest first,
/// as long as the candidates stay the same; where they would be others, sums alone are made shorter.
pub(super) fn shrink_further(op: &dyn Op, io: &Io, limits: &Limits, most: Cost) -> Io {
    let wanted = ids(op, io, limits);
    shrink_by(&[halved, shortened], op, io, most, &|io| ids(op, io, limits) == wanted)
}

/// The same as long as this candidate is one: proofs want sums long.
fn shrink(op: &dyn Op, io: &Io, limits: &Limits, wanted: &KernelId) -> Io {
    shrink_by(&[halved], op, io, PROOF, &|io| ids(op, io, limits).contains(wanted))
}

fn ids(op: &dyn Op, io: &Io, limits: &Limits) -> Vec<KernelId> {
    op.kernels(io, limits).iter().map(KernelId::of).collect()
}

fn shrink_by(ways: &[Way], op: &dyn Op, io: &Io, most: Cost, is_same: &dyn Fn(&Io) -> bool) -> Io {
    let mut now = io.clone();
    loop {
        let cost = op.cost(&now);
        if cost.flops <= most.flops && now.bytes() <= most.bytes {
            return now;
        }
        let mut places: Vec<Place> = Vec::new();
        for (i, ty) in now.inputs.iter().enumerate() {
            places.extend(ty.shape.dims().iter().enumerate().map(|(j, &d)| (d, i, j)));
        }
        places.sort_by_key(|p| std::cmp::Reverse(p.0));
        places.retain(|&(d, ..)| d > 16);
        let find = |way: &Way| {
            let same = |place: &Place| way(op, &now, *place).into_iter().find(is_same);
            places.iter().find_map(same)
        };
        match ways.iter().find_map(find) {
            Some(io) => now = io,
            None => return now,
        }
    }
}

/// A dim: its size, and of which input it is which.
type Place = (usize, usize, usize);
/// How a dim may be halved.
type Way = fn(&dyn Op, &Io, Place) -> Vec<Io>;

/// Ways to halve one dim of one input that the operator accepts.
fn halved(op: &dyn Op, io: &Io, place: Place) -> Vec<Io> {
    let (_, input, dim) = place;
    let shape = &io.inputs[input].shape;
    let alike = |i: usize, j: usize| j == dim && io.inputs[i].shape == *shape;
    let alone = |i: usize, j: usize| (i, j) == (input, dim);
    let all = |_: usize, _: usize| true;
    let tries: [&dyn Fn(usize, usize) -> bool; 3] = [&alike, &alone, &all];
    tries.into_iter().filter_map(|touched| with_half(op, io, place, touched)).collect()
}

/// Ways to halve one dim of one input together with one of another that the operator accepts: that which is summed may be as
/// large as those that are not.
fn shortened(op: &dyn Op, io: &Io, place: Place) -> Vec<Io> {
    let (_, input, dim) = place;
    let others = (0..io.inputs.len()).filter(|&i| i != input);
    let others = others.flat_map(|i| (0..io.inputs[i].shape.rank()).map(move |j| (i, j)));
    others.filter_map(|other| with_half(op, io, place, &|i, j| [(input, dim), other].contains(&(i, j)))).collect()
}

/// The node with half of a dim's size in all places that are touched and have it, if the operator accepts that.
fn with_half(op: &dyn Op, io: &Io, (d, ..): Place, touched: &dyn Fn(usize, usize) -> bool) -> Option<Io> {
    let half =
        if d.is_multiple_of(4) { (d / 2).next_multiple_of(4) } else { d / 2 + usize::from((d / 2).is_multiple_of(4)) };
    let change = |(i, ty): (usize, &TensorType)| {
        let dims = ty.shape.dims().iter().enumerate();
        let dims: Vec<usize> = dims.map(|(j, &n)| if touched(i, j) && n == d { half } else { n }).collect();
        TensorType { shape: dims.into(), dtype: ty.dtype }
    };
    let mut inputs: Vec<TensorType> = io.inputs.iter().enumerate().map(change).collect();
    let infer = |inputs: &[TensorType]| op.infer(&inputs.iter().collect::<Vec<_>>()).ok();
    let outputs = infer(&inputs)?;
    // Tensors that a fused expression reads beside output 0 follow it.
    for (ty, old) in inputs.iter_mut().zip(&io.inputs) {
        if ty == old && old.dtype == DType::F32 && old.shape == io.outputs[0].shape {
            ty.shape = outputs[0].shape.clone();
        }
    }
    (infer(&inputs)? == outputs).then_some(Io { inputs, outputs })
}

/// Runs a candidate on a small version of the node, and gives what is wrong with its results by the operator's reference, if anything;
/// by the first candidate's where the reference would take long: that one itself is then believed.
///
/// # Errors
/// If it cannot be run.
pub(super) async fn prove(gpu: &Gpu, op: &dyn Op, io: &Io, wanted: &KernelId) -> Result<Option<String>> {
    let limits = gpu.limits();
    let small = shrink(op, io, limits, wanted);
    let (kernels, writes) = (op.kernels(&small, limits), op.writes());
    let kernel =
        kernels.iter().find(|kernel| KernelId::of(kernel) == *wanted).expect("it is one of the smaller node's");
    let run = async |kernel: &Kernel, inputs: &[Array]| run_kernel(gpu, kernel, &small, inputs, &writes).await;
    let is_large = op.cost(&small).flops > REFERENCE;
    if is_large && *kernel == kernels[0] {
        return Ok(None);
    }
    let expect = async |inputs: &[Array]| {
        if is_large { run(&kernels[0], inputs).await } else { Ok(op.reference(inputs)) }
    };
    let mut inputs = draw(op, &small, false);
    let mut expected = expect(&inputs).await?;
    if !are_finite(&expected) {
        // Some operators take roots and logarithms.
        inputs = draw(op, &small, true);
        expected = expect(&inputs).await?;
    }
    let bar = op.tolerance(&small);
    for (k, (y, r)) in run(kernel, &inputs).await?.iter().zip(&expected).enumerate() {
        if let Err(e) = bar.check(y, r) {
            return Ok(Some(format!("result {k} of {:?}: {e}", small.inputs)));
        }
    }
    Ok(None)
}

fn are_finite(arrays: &[Array]) -> bool {
    arrays.iter().all(|array| array.data.iter().all(|x| x.is_finite()))
}

/// Random inputs; integers as the operator wants them, or single ones, which are positions, zero.
fn draw(op: &dyn Op, io: &Io, positive: bool) -> Vec<Array> {
    let one = |(k, ty): (usize, &TensorType)| {
        let mut rng = Rng::new(0x007E_57ED, k as u64);
        let n = ty.shape.elements();
        if ty.dtype.is_packed() {
            return Array::from_bytes(ty.clone(), &packed::random(ty.dtype, n, &mut rng));
        }
        if let Some(given) = op.integers(k, ty).filter(|_| ty.dtype == DType::U32) {
            return Array::new(ty.clone(), given.into_iter().map(f64::from).collect());
        }
        let mut next = || match ty.dtype {
            DType::U32 if n == 1 => 0.0,
            DType::U32 => rng.below(61) as f64,
            _ if positive => f64::from((0.5 + rng.uniform()) as f32),
            _ => f64::from(rng.normal() as f32),
        };
        Array::new(ty.clone(), (0..n).map(|_| next()).collect())
    };
    io.inputs.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::table::table;
    use crate::ops::{MatMul, Operands};
    use crate::run::forecast::tests::{limits, machine};
    use std::collections::BTreeSet;

    /// A product of n×n matrices, and what is measured of it on a made-up device.
    fn product(n: usize, operands: Operands, machine: &Machine, limits: &Limits) -> (MatMul, Cost, Io) {
        let op = MatMul::new(false, false).with(operands);
        let inputs = vec![TensorType::f32([n, n]), TensorType::f32([n, n])];
        let io = Io { outputs: op.infer(&[&inputs[0], &inputs[1]]).unwrap(), inputs };
        let most = measured(&op.kernels(&io, limits), machine, limits);
        let small = shrink_further(&op, &io, limits, most);
        (op, most, small)
    }

    /// 10 TFLOP/s of f32, ten times as much of matrices, 1 TB/s.
    #[test]
    fn what_is_measured_takes_milliseconds_of_the_machine() {
        let limits = Limits { max_buffer_bytes: 4 << 30, ..limits() };
        let fast = machine();
        let seconds = |n, operands, class, machine: &Machine| {
            let (op, _, small) = product(n, operands, machine, &limits);
            op.cost(&small).flops as f64 / machine.rate(class).unwrap()
        };
        // Dims are halved, two at a time where they are the same, so more than a quarter of it.
        let within = |s: f64| assert!(s > SECONDS / 4.0 && s <= SECONDS, "{s}");
        within(seconds(8192, Operands::F32, Class::F32, &fast));
        within(seconds(8192, Operands::F16, Class::Cooperative, &fast));
        // What takes less is measured as it is.
        let (.., whole) = product(4096, Operands::F16, &fast, &limits);
        assert_eq!(whole.inputs[0], TensorType::f32([4096, 4096]));
        // Strict kernels are not given what only matrices do in the time.
        let (_, most, strict) = product(4096, Operands::F32, &fast, &limits);
        assert_eq!((most.flops, &strict.inputs[0]), (30_000_000_000, &TensorType::f32([2048, 2048])));
        // What candidates forbid to make narrower has shorter sums.
        let mut old = machine();
        old.ceilings.iter_mut().for_each(|c| c.arithmetic = 1e11);
        within(seconds(4096, Operands::F32, Class::F32, &old));
        // A hundred times slower: a hundredth of the work, but never less than can be told apart.
        let mut slow = machine();
        slow.ceilings.iter_mut().for_each(|c| c.arithmetic /= 100.0);
        assert_eq!(product(4096, Operands::F32, &slow, &limits).1.flops, 300_000_000);
        slow.ceilings.iter_mut().for_each(|c| c.arithmetic = 1.0);
        slow.bytes_per_second = 1.0;
        assert_eq!(measured(&[], &slow, &limits), LEAST);
    }

    /// No kernel need be right where a document begins behind its tokens, or before an earlier one.
    #[test]
    fn documents_begin_where_they_may() {
        let mut seen = BTreeSet::new();
        let attention = table().into_iter().filter(|case| case.op.name().starts_with("attention"));
        for case in attention.filter(|case| case.label.contains("documents")) {
            let io = case.io().unwrap_or_else(|e| panic!("{}: {e}", case.label));
            let place = io.inputs.iter().position(|ty| ty.dtype == DType::U32 && ty.shape.rank() == 2);
            // A ring's kernels are those that it expands to.
            let Some(i) = place.filter(|_| !case.op.kernels(&io, &limits()).is_empty()) else { continue };
            let length = io.inputs[i].shape.last();
            for row in draw(&*case.op, &io, false).swap_remove(i).data.chunks(length) {
                let begins = row.iter().enumerate().all(|(t, &start)| start <= t as f64);
                assert!(begins && row.is_sorted() && row[0] == 0.0, "{}: {row:?}", case.label);
                if row[length - 1] > 0.0 {
                    seen.insert(case.op.name());
                }
            }
        }
        // Each operator that takes them was seen with rows of several.
        let forward = ["attention", "attention_block"];
        let parts = ["attention_grad_key_value", "attention_grad_query"];
        let blocks = ["attention_block_grad_key_value", "attention_block_grad_query"];
        let all = [&forward[..], &["attention_grad"], &parts, &blocks].concat();
        let missing: Vec<_> = all.into_iter().filter(|name| !seen.contains(name)).collect();
        assert!(missing.is_empty(), "no rows of documents: {missing:?}");
    }

    /// Every operator that leaves a choice says what the drawn inputs come to, in numbers that a kernel can be held against.
    #[test]
    fn proofs_expect_numbers() {
        let mut seen = BTreeSet::new();
        for case in table() {
            let io = case.io().unwrap_or_else(|e| panic!("{}: {e}", case.label));
            if case.op.kernels(&io, &limits()).len() < 2 {
                continue;
            }
            let first = ids(&*case.op, &io, &limits()).remove(0);
            let small = shrink(&*case.op, &io, &limits(), &first);
            let is_one = |positive| are_finite(&case.op.reference(&draw(&*case.op, &small, positive)));
            assert!(is_one(false) || is_one(true), "{}", case.label);
            seen.insert(case.op.name());
        }
        assert!(["matmul", "attention", "attention_grad_query"].iter().all(|name| seen.contains(name)), "{seen:?}");
    }

    #[test]
    fn operands_are_beyond_caches_and_within_the_memory() {
        let bytes = |machine: &Machine, limits: &Limits| measured(&[], machine, limits).bytes;
        let card = Limits { max_buffer_bytes: 4 << 30, memory_bytes: Some(24 << 30), ..limits() };
        assert_eq!(bytes(&machine(), &card), 1 << 30, "3 ms of 1 TB/s, but no more than the copy reads and writes");
        let slow = Machine { bytes_per_second: 1e11, ..machine() };
        assert_eq!(bytes(&slow, &card), 300_000_000);
        let small = Limits { memory_bytes: Some(1 << 30), ..card };
        assert_eq!(bytes(&machine(), &small), 256 << 20);
    }
}
