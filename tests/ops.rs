//! Every row of the operators' table: kernels against the f64 reference at several seeds and limits, translation for
//! every vendor, and gradients against central differences of the reference.

mod common;
#[path = "ops/rounding.rs"]
mod rounding;

use common::candidates::{COOPERATIVE, are_some, both, each, gpu, is_barred, passes_are_tried, rounds_natively};
use common::interpret::Interpreter;
use danlu::base::{Array, DType, Limits, TensorType};
use danlu::bench::{fused_attention, unfused_attention};
use danlu::gpu::Gpu;
use danlu::graph::{Graph, Kernel, SumRows, Value, gradients};
use danlu::ops::table::{Case, Draw, table};
use danlu::run::run_kernel;
use pollster::block_on;
use std::cell::LazyCell;
use std::collections::HashMap;

/// Set in the environment, only rows whose label contains this text are tried: for work on one operator.
const ROWS: &str = "DANLU_ROWS";
/// Each row is drawn twice.
const SEEDS: [u64; 2] = [1, 2];

/// The table's rows, or those that were asked for.
fn rows() -> Vec<Case> {
    let wanted = std::env::var(ROWS).unwrap_or_default();
    table().into_iter().filter(|case| case.label.contains(&wanted)).collect()
}

/// Limits so small that the table's larger rows must be split: each into some windows, not thousands, for a tile that stands over its
/// window's edge is computed whole.
fn small(limits: &Limits, case: &Case) -> Limits {
    let io = case.io().unwrap_or_else(|e| panic!("{}: {e}", case.label));
    let largest = io.inputs.iter().chain(&io.outputs).map(|ty| ty.bytes()).max().unwrap_or(0);
    // What an operator does not cut must fit: of a sum of rows a part.
    let least = limits.binding_alignment.max(256) * if case.op.name() == "sum_rows" { 64 } else { 16 };
    let max_binding_bytes = (largest / 8).next_multiple_of(limits.binding_alignment).max(least);
    Limits { max_binding_bytes, max_workgroups: 300, ..limits.clone() }
}

fn kernels(case: &Case, limits: &Limits) -> Vec<Kernel> {
    let kernels = case.kernels(limits).unwrap_or_else(|e| panic!("{}: {e}", case.label));
    let expands = case.expand().unwrap_or_else(|e| panic!("{}: {e}", case.label)).1.is_some();
    let is_beyond = case.wants_f16().unwrap() && !limits.has_f16;
    assert!(kernels.is_empty() == (expands || is_beyond), "{}: either kernels or an expansion", case.label);
    kernels
}

/// Dtypes of weights for which a CPU tries tiles of every size; for all others the smaller ones: where a lane's elements lie in a tile
/// has nothing to do with how they are decoded, and each pipeline of the larger takes its driver seconds to compile.
const EVERY_TILE: &[DType] = &[DType::F32, DType::BF16, DType::Q8_0, DType::Q4K];

/// Rows of products of f16 operands for which a CPU tries the larger tiles, too, and cooperative matrices of either rounding: every
/// transpose, panels, what is stored in f16 and what is decoded. Others try the smaller, whose text is the same but for constants.
const LARGE_HALVES: [&str; 9] = [
    "half nn odd",
    "half nt tall",
    "half tn batched",
    "half tt many",
    "input, half",
    "weights, half",
    "of halves many",
    "of halves, nf4",
    "of halves input",
];

/// The smallest tile of attention. Where there is a larger one, a CPU tries it only with its sums split: the two differ by
/// constants, and each takes its driver seconds to compile.
const SMALLEST_TILE: &str = "tile_8x32";

/// Rows whose tiles of attention with f16 operands a CPU tries, each of which takes its driver some twenty seconds to compile: masks,
/// documents and rings are in them the text that rows of f32 try.
const HALF_TILES: [&str; 4] = ["halves", "halves, five fourths", "halves, many heads", "halves, wide"];

/// Rows whose tiles of attention a CPU tries where they hand on from lane to lane, which subgroups of sixteen let them; what others differ
/// by has nothing to do with it.
const HANDED_ON: [&str; 3] = ["grouped", "long documents", "halves, five fourths"];

/// What the labels of rows begin with that are as large as they are for attention in passes: smaller ones try all other kernels,
/// which here would be compiled anew.
const PASSES: [&str; 2] = ["attention passes", "attention_grad passes"];

/// The row whose cooperative matrices of attention a CPU tries of every size and kind of rounding: others try the first size, whose
/// text is the same, but where sums are split, which those of one row are.
const EVERY_COOPERATIVE: &str = "halves";
const SPLIT_COOPERATIVE: &str = "halves documents";

/// Whether it is one of the larger tiles of a product.
fn is_large(kernel: &Kernel) -> bool {
    let variant = kernel.variant.trim_start_matches("panels_");
    kernel.shader.starts_with("matmul")
        && ["tile_64x64", "block", "coop_8_64x64"].iter().any(|large| variant.starts_with(large))
}

/// Whether a candidate is none whose parts other rows or candidates try, and none that is barred here.
fn is_tried(gpu: &Gpu, case: &Case, kernel: &Kernel) -> bool {
    if is_barred(gpu, kernel) {
        return false;
    }
    let weights = case.inputs.get(1).map_or(DType::F32, |(ty, _)| ty.dtype);
    let limits = Limits { is_cpu: false, ..gpu.limits().clone() };
    let all = kernels(case, &limits);
    let first = all.first().map_or(String::new(), |kernel| kernel.variant.clone());
    let row = case.label.split_once(' ').map_or("", |(_, row)| row);
    let is_product = kernel.shader.starts_with("matmul");
    let variant = kernel.variant.trim_start_matches("panels_");
    let is_coop_product = is_product && variant.starts_with("coop");
    let is_skipped = is_large(kernel)
        && !LARGE_HALVES.contains(&row)
        && (weights.is_packed() && !EVERY_TILE.contains(&weights) || is_coop_product || variant.contains("half"));
    let is_rounded_again = is_coop_product && kernel.constants.contains(&("NATIVE", 1)) && !LARGE_HALVES.contains(&row);
    let is_beside = kernel.variant.starts_with(SMALLEST_TILE)
        && !kernel.variant.contains("split")
        && first.starts_with("tile")
        && !first.starts_with(SMALLEST_TILE);
    let is_half_tile =
        kernel.shader.starts_with("attention") && kernel.shader.ends_with("_tile") && kernel.variant.contains("half");
    let is_again = is_half_tile && !HALF_TILES.contains(&row);
    let is_handed_on_again =
        kernel.shader == "attention_tile" && kernel.constants.contains(&("SHUFFLE", 1)) && !HANDED_ON.contains(&row);
    let is_other = PASSES.iter().any(|label| case.label.starts_with(label)) && !kernel.variant.starts_with("passes");
    let is_coop = |kernel: &Kernel| kernel.shader.starts_with("attention") && kernel.shader.ends_with("_coop");
    let is_coop_again = is_coop(kernel)
        && row != EVERY_COOPERATIVE
        && !(row == SPLIT_COOPERATIVE && kernel.variant.contains("split"))
        && all.iter().find(|kernel| is_coop(kernel)).is_some_and(|first| first != kernel);
    !gpu.limits().is_cpu
        || !(is_skipped || is_rounded_again || is_beside || is_again || is_handed_on_again || is_other || is_coop_again)
}

/// A row's inputs, drawn, and what the reference makes of them.
struct Drawn {
    seed: u64,
    inputs: Vec<Array>,
    expected: Vec<Array>,
}

impl Drawn {
    fn of(case: &Case, seed: u64) -> Drawn {
        let inputs = case.draw(seed);
        Drawn { seed, expected: case.op.reference(&inputs), inputs }
    }

    fn check(&self, gpu: &Gpu, case: &Case, kernel: &Kernel) -> Result<(), String> {
        let io = case.io().map_err(|e| format!("{}: {e}", case.label))?;
        let label = format!("{}, variant {}, seed {}", case.label, kernel.variant, self.seed);
        let got = block_on(run_kernel(gpu, kernel, &io, &self.inputs, &case.op.writes()))
            .map_err(|e| format!("{label}: {e}"))?;
        assert_eq!(got.len(), self.expected.len(), "{label}: number of results");
        let bar = case.op.tolerance(&io);
        let mut results = got.iter().zip(&self.expected).enumerate();
        results.try_for_each(|(i, (y, r))| bar.check(y, r).map_err(|e| format!("{label}, result {i}: {e}")))
    }
}

#[test]
fn kernels_match_the_reference() {
    // What fails does not keep the next row from being tried: one run tells all that is wrong.
    let wrong = each(&rows(), |case| {
        let Some(gpu) = &gpu() else { return Vec::new() };
        let (mut done, mut wrong) = (Vec::<Kernel>::new(), Vec::new());
        let drawn = SEEDS.map(|seed| LazyCell::new(move || Drawn::of(case, seed)));
        for kernel in both(gpu.limits()).iter().flat_map(|l| kernels(case, l)) {
            if !done.contains(&kernel) && is_tried(gpu, case, &kernel) {
                println!("{}: {}", case.label, kernel.variant);
                wrong.extend(drawn.iter().filter_map(|drawn| drawn.check(gpu, case, &kernel).err()));
                done.push(kernel);
            }
        }
        let is_passes = PASSES.iter().any(|label| case.label.starts_with(label));
        if is_passes && done.is_empty() && passes_are_tried(gpu) {
            wrong.push(format!("{}: no kernel was tried", case.label));
        }
        // Of two of these rows cooperative matrices have no large tile.
        let is_listed = case.label.split_once(' ').is_some_and(|(_, row)| LARGE_HALVES.contains(&row)) && !are_some();
        if is_listed && !done.is_empty() && !done.iter().any(is_large) {
            wrong.push(format!("{}: no large tile was tried", case.label));
        }
        wrong
    });
    let wrong = wrong.concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Kernels of cooperative matrices are written for the largest subgroup that a driver may make: where it makes smaller ones,
/// several make the same matrices, and what they make is right.
#[test]
fn subgroups_may_be_smaller_than_the_largest() {
    let Some(first) = gpu() else { return };
    let known = first.limits();
    if known.cooperative.is_empty() {
        println!("skipped: no cooperative matrices");
        return;
    }
    // Of many heads, for subgroups that are large enough, tiles with two rows of matrices to a subgroup.
    let labels = [
        "matmul half nt odd",
        "matmul half tn even",
        "panel_matmul input, half",
        "attention halves",
        "attention_grad_query halves",
        "attention_grad_key_value halves",
        "attention halves, many heads",
        "attention_grad_query halves, many heads",
        "attention_grad_key_value halves, many heads",
    ];
    let cases = rows().into_iter().filter(|case| labels.contains(&case.label.as_str()));
    let wanted: Vec<(Case, u32)> = cases.flat_map(|case| [2, 4].map(|larger| (case.clone(), larger))).collect();
    let is_high = |kernel: &Kernel| kernel.constants.contains(&("HIGH", 2));
    let tried = each(&wanted, |(case, larger)| {
        let limits = Limits { max_subgroup: larger * known.max_subgroup, is_cpu: false, ..known.clone() };
        // How they round has nothing to do with subgroups.
        let of_subgroups = |k: &Kernel| {
            let lanes = |&(name, lanes): &(&str, u32)| name == "SUBGROUP" && lanes == limits.max_subgroup;
            k.constants.iter().any(lanes) && !k.constants.contains(&("NATIVE", 1))
        };
        let mut some: Vec<Kernel> = kernels(case, &limits).into_iter().filter(of_subgroups).collect();
        if known.is_cpu {
            // One of each height: its driver takes long, and what else they differ by has nothing to do with subgroups, either.
            some.sort_by_key(is_high);
            some.dedup_by_key(|kernel| is_high(kernel));
        }
        let gpu = gpu().expect("as before");
        for kernel in &some {
            Drawn::of(case, SEEDS[0]).check(&gpu, case, kernel).unwrap_or_else(|e| panic!("{e}"));
        }
        some.iter().map(is_high).collect::<Vec<_>>()
    });
    let [high, low] = [true, false].map(|high| tried.iter().flatten().filter(|&&h| h == high).count());
    assert!(high > 0 && low > 0 || std::env::var_os(ROWS).is_some(), "{low} such kernels, {high} high ones");
}

/// Where a lane has few registers, which no adapter here says, attention's tiles stream fewer of the others at a time: what they make is
/// right as well.
#[test]
fn tiles_for_few_registers_match_the_reference() {
    let Some(first) = gpu() else { return };
    let limits = Limits { min_subgroup: 8, max_subgroup: 32, is_cpu: false, ..first.limits().clone() };
    let labels = ["long documents", "halves, five fourths", "nt large", "weights, half", "of halves input"];
    let wanted = |case: &Case| labels.iter().any(|row| case.label.ends_with(row));
    let rows: Vec<Case> = rows().into_iter().filter(wanted).collect();
    // Tiles of attention, and blocks of products.
    for told in [("KEYS", 16), ("NARROW", 1)] {
        let tried = each(&rows, |case| {
            let all = kernels(case, &limits);
            let one = all.iter().find(|kernel| kernel.constants.contains(&told));
            let check = |kernel| Drawn::of(case, SEEDS[0]).check(&gpu().expect("as before"), case, kernel);
            one.map(|kernel| check(kernel).unwrap_or_else(|e| panic!("{e}")))
        });
        let tried = tried.iter().flatten().count();
        assert!(tried > 2 || std::env::var_os(ROWS).is_some(), "{tried} kernels with {told:?}");
    }
}

/// Every dispatch within the limits, every binding within its tensor.
fn assert_within(case: &Case, kernel: &Kernel, limits: &Limits) {
    let io = case.io().expect("checked by the caller");
    let label = format!("{}, variant {}", case.label, kernel.variant);
    let reserved = case.op.scratch(&io, limits);
    assert!(kernel.scratch <= reserved, "{label}: {} bytes of scratch, reserved are {reserved}", kernel.scratch);
    let scratch = TensorType::f32([kernel.scratch as usize / 4]);
    for d in kernel.stages().flat_map(|stage| &stage.dispatches) {
        assert!(d.workgroups.iter().all(|&n| n > 0 && n <= limits.max_workgroups), "{label}: {:?}", d.workgroups);
        for b in &d.bindings {
            let ty = match b.operand {
                danlu::graph::Operand::Input(i) => &io.inputs[i],
                danlu::graph::Operand::Output(i) => &io.outputs[i],
                danlu::graph::Operand::Scratch => &scratch,
            };
            assert!(b.offset % limits.binding_alignment == 0 && b.offset + b.bytes <= ty.bytes(), "{label}: {b:?}");
            assert!(b.bytes <= limits.max_binding_bytes, "{label}: {b:?} is beyond the binding limit");
        }
    }
}

/// Operators that split what no binding holds.
const SPLITTING: &[&str] = &[
    "matmul",
    "rms_norm",
    "rms_norm_grad",
    "rope",
    "embedding",
    "embedding_grad",
    "put_rows",
    "route",
    "route_grad",
    "softmax",
    "softmax_grad",
    "sum_rows",
    "slot_sum",
    "slot_scale",
    "slot_dot",
    "expert_linear",
    "expert_linear_grad",
];

#[test]
fn splits_match_the_reference() {
    if gpu().is_none() {
        return;
    }
    let wanted: Vec<Case> = rows().into_iter().filter(|c| SPLITTING.contains(&c.op.name())).collect();
    let all = each(&wanted, |case| {
        let gpu = &gpu().expect("as before");
        // What small limits change nothing of is tried above.
        let mut done: Vec<Kernel> = both(gpu.limits()).iter().flat_map(|limits| kernels(case, limits)).collect();
        let drawn = LazyCell::new(|| Drawn::of(case, SEEDS[0]));
        let mut splits = 0;
        for limits in both(&small(gpu.limits(), case)) {
            for kernel in kernels(case, &limits).into_iter().filter(|kernel| is_tried(gpu, case, kernel)) {
                assert_within(case, &kernel, &limits);
                if !done.contains(&kernel) {
                    splits += kernel.dispatches.len() - 1;
                    println!("{}: {}, {} dispatches", case.label, kernel.variant, kernel.dispatches.len());
                    drawn.check(gpu, case, &kernel).unwrap_or_else(|e| panic!("{e}"));
                    done.push(kernel);
                }
            }
        }
        (case.op.name(), splits)
    });
    // Of cooperative matrices there are products alone.
    let is_there = |name: &str| std::env::var_os(COOPERATIVE).is_none() || name == "matmul";
    for name in SPLITTING.iter().filter(|name| is_there(name) && std::env::var_os(ROWS).is_none()) {
        let splits: usize = all.iter().filter(|(of, _)| of == name).map(|(_, splits)| splits).sum();
        assert!(splits > 0, "no row of {name} is large enough to be split");
    }
}

#[test]
fn kernels_translate_for_every_vendor() {
    each(&rows(), |case| {
        // Every tier, also those that this machine would not pick.
        let all = Limits { has_f16: true, cooperative: vec![8, 16], ..Limits::default() };
        let eight = Limits { min_subgroup: 8, max_subgroup: 8, ..all };
        let wide = Limits { min_subgroup: 32, max_subgroup: 32, max_shared_bytes: 48 << 10, ..eight.clone() };
        let wider = Limits { max_subgroup: 64, ..wide.clone() };
        // As NVIDIA's, with room for every candidate, and as Qualcomm's, whose subgroups are the largest.
        let most = Limits { max_invocations: 1024, ..wide.clone() };
        let widest = Limits { min_subgroup: 64, max_subgroup: 128, max_shared_bytes: 32 << 10, ..most.clone() };
        for limits in [both(&Limits::default()), both(&eight), [wide, wider], [most, widest]].concat() {
            let all = kernels(case, &limits);
            if case.op.name() == "matmul" || case.op.name().starts_with("attention") {
                let wanted = all.iter().map(|kernel| kernel.scratch).max().unwrap_or(0);
                assert_eq!(case.op.scratch(&case.io().unwrap(), &limits), wanted, "{}: scratch", case.label);
            }
            for (i, kernel) in all.into_iter().enumerate() {
                assert_within(case, &kernel, &limits);
                // The first is right for every subgroup, and within what every adapter has.
                let least = Limits::default();
                let held_to = if i == 0 && !limits.is_cpu { &least } else { &limits };
                kernel.stages().for_each(|stage| common::check_kernel(stage, held_to));
                let told = |k: &Kernel| k.constants.iter().any(|&(n, v)| ["SHUFFLE", "SUBGROUP"].contains(&n) && v > 0);
                assert!(i > 0 || limits.is_cpu || !kernel.stages().any(told), "{}: {}", case.label, kernel.variant);
                if limits.is_cpu {
                    kernel.stages().for_each(common::check_wide);
                }
            }
        }
    });
    // No operator's: they measure the device's peak.
    let subgroups =
        Limits { has_f16: true, cooperative: vec![8, 16], min_subgroup: 32, max_subgroup: 32, ..Limits::default() };
    let ceilings = danlu::run::ceiling_kernels(&subgroups);
    assert_eq!(ceilings.len(), 8);
    ceilings.iter().for_each(|kernel| common::check_kernel(kernel, &subgroups));
}

#[test]
fn expansions_match_the_operator() {
    let mut tried = 0;
    for case in rows() {
        let (g, Some([outputs, expanded])) = case.expand().unwrap_or_else(|e| panic!("{}: {e}", case.label)) else {
            continue;
        };
        let sources = case.draw(SEEDS[0]).into_iter().enumerate().map(|(i, x)| (format!("x{i}"), x)).collect();
        let run = Interpreter::run(&g, &sources);
        for (&whole, &parts) in outputs.iter().zip(&expanded) {
            let (whole, parts) = (run.get(whole), run.get(parts));
            assert_eq!(whole.ty, parts.ty, "{}", case.label);
            for (i, (x, y)) in whole.data.iter().zip(&parts.data).enumerate() {
                assert!(
                    (x - y).abs() <= 1e-10 * (x.abs() + whole.rms()),
                    "{}, element {i}: {x}, expanded {y}",
                    case.label
                );
            }
        }
        tried += 1;
    }
    assert!(tried > 0 || std::env::var_os(ROWS).is_some(), "no row of the table expands");
}

/// loss = sum(w · y) over output 0 and its gradients towards the row's `wrt`.
fn with_loss(case: &Case) -> (Graph, Value, Vec<Value>) {
    let mut g = Graph::new();
    let inputs: Vec<Value> =
        case.inputs.iter().enumerate().map(|(i, (ty, _))| g.input(&format!("x{i}"), ty.clone())).collect();
    let y = g.apply_arc(case.op.clone(), &inputs).unwrap()[0];
    let ty = g.ty(y).clone();
    let w = g.input("w", ty);
    let product = g.mul(y, w).unwrap();
    // In one part: parts of a sum have no gradient.
    let sum = SumRows { shape: [1].into(), rows_per_part: g.ty(product).shape.elements() };
    let loss = g.apply1(sum, &[product]).unwrap();
    let wrt: Vec<Value> = case.wrt.iter().map(|&i| inputs[i]).collect();
    let grads = gradients(&mut g, loss, &wrt).unwrap_or_else(|e| panic!("{}: {e}", case.label));
    (g, loss, grads)
}

/// Elements of an input that are moved: all of them, of larger ones so many all over it.
const MOVED: usize = 500;
/// From one of these to the next, round and round: a prime, so that all columns have their turn.
const STRIDE: usize = 7919;

#[test]
fn gradients_match_central_differences() {
    let wanted: Vec<Case> = rows().into_iter().filter(|c| !c.wrt.is_empty()).collect();
    each(&wanted, |case| {
        let seed = SEEDS[0];
        let (g, _, grads) = with_loss(case);
        let inputs = case.draw(seed);
        let out = case.io().unwrap().outputs[0].clone();
        let w = Case::new("w", danlu::graph::Map::scale(1.0), &[(out, Draw::Normal)]).draw(seed + 100).remove(0);
        let mut sources: HashMap<String, Array> =
            inputs.iter().enumerate().map(|(i, x)| (format!("x{i}"), x.clone())).collect();
        sources.insert("w".into(), w.clone());
        let run = Interpreter::run(&g, &sources);
        let loss = |inputs: &[Array]| -> f64 {
            case.op.reference(inputs)[0].data.iter().zip(&w.data).map(|(y, w)| y * w).sum()
        };
        for (&input, &grad) in case.wrt.iter().zip(&grads) {
            let grad = run.get(grad);
            assert_eq!(grad.ty, inputs[input].ty, "{}: type of the gradient towards input {input}", case.label);
            let scale = grad.rms().max(1e-3);
            let all = grad.data.len();
            let stride = if all <= MOVED { 1 } else { STRIDE };
            let mut moved = inputs.clone();
            for i in (0..all.min(MOVED)).map(|n| n * stride % all) {
                let mut at = |x: f64| {
                    moved[input].data[i] = inputs[input].data[i] + x;
                    loss(&moved)
                };
                let step = 1e-5;
                let difference = (at(step) - at(-step)) / (2.0 * step);
                moved[input].data[i] = inputs[input].data[i];
                let error = (difference - grad.data[i]).abs();
                // Truncation grows with step², rounding with 2^-52/step; 1e-6 leaves both a decade or more.
                assert!(
                    error <= 1e-6 * scale,
                    "{}, seed {seed}: towards input {input}, element {i}: {} by gradient, {difference} by differences",
                    case.label,
                    grad.data[i]
                );
            }
        }
    });
}

/// What `danlu bench` divides is the same work: attention fused, and as the products, mask and softmax that it is made of.
#[test]
fn fused_and_unfused_attention_are_the_same() {
    let (heads, seq, width) = (9, 12, 64);
    let mut rng = danlu::base::Rng::new(11, 0);
    let mut sources = [HashMap::new(), HashMap::new()];
    for name in ["q", "k", "v"] {
        let x: Vec<f64> = (0..heads * seq * width).map(|_| rng.normal()).collect();
        let turned = (0..x.len()).map(|i| x[(i / width % seq * heads + i / width / seq) * width + i % width]).collect();
        let shapes = [vec![1, seq, heads, width], vec![heads, seq, width]];
        for ((sources, shape), data) in sources.iter_mut().zip(shapes).zip([x, turned]) {
            sources.insert(name.to_string(), Array::new(TensorType::f32(shape), data));
        }
    }
    sources[0].insert("position".into(), Array::new(TensorType::u32([1]), vec![0.0]));
    let graphs = [fused_attention(seq).unwrap(), unfused_attention(seq).unwrap()];
    let runs = [0, 1].map(|i| Interpreter::run(&graphs[i], &sources[i]));
    for output in 0..3 {
        // What is summed, for some of the sums are zero whatever is computed.
        let [fused, unfused] = [0, 1].map(|i| {
            let sum = graphs[i].outputs()[output].1;
            runs[i].get(graphs[i].node(sum.node).inputs[0])
        });
        let (name, size) = (&graphs[0].outputs()[output].0, fused.rms());
        assert!(size > 1e-3 && fused.data.len() == heads * seq * width, "{name}: nothing is compared");
        for (i, b) in unfused.data.iter().enumerate() {
            let a = fused.data[(i / width % seq * heads + i / width / seq) * width + i % width];
            assert!((a - b).abs() <= 1e-10 * (size + a.abs()), "{name}, element {i}: {a} fused, {b}");
        }
    }
}
