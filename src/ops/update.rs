//! What updates of parameters share: a page is updated in place, part by part, of which each has its own rates; and what says how
//! far that went, of every run of elements the sum of the squares of what was added.

use super::gaps;
use super::windows::{item, ranges, reduce_lanes};
use crate::base::{Array, DType, Limits, TensorType};
use crate::graph::{Dispatch, Io, Kernel, Operand, spread};

/// A part of a page whose parameters are updated alike: those before `end` that belong to no part before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The first element after it; a multiple of 64, or the page's end.
    pub end: usize,
    /// Times the learning rate.
    pub rate: f32,
    /// Weight decay; AdamW's, Muon's and their like take it times this part's learning rate.
    pub decay: f32,
}

/// The part in which element `i` lies.
pub(super) fn part_of(parts: &[Part], i: usize) -> &Part {
    parts.iter().find(|part| i < part.end).expect("parts cover the page")
}

/// Elements of a run: what a workgroup updates, and says how far. A page has few enough runs for one workgroup to sum them up.
pub(super) const RUN: usize = 4096;

/// How many runs each part has that is updated from element `start` on.
fn runs(parts: &[Part], start: usize, run: usize) -> impl Iterator<Item = usize> {
    let starts = [start].into_iter().chain(parts.iter().map(|part| part.end));
    starts.zip(parts).map(move |(start, part)| (part.end - start).div_ceil(run))
}

/// What an update of such parts says of its runs of so many elements, those of each part by themselves: sums of squares, f32 `[runs]`.
pub(super) fn added_type(parts: &[Part], start: usize, run: usize) -> TensorType {
    TensorType::f32([runs(parts, start, run).sum()])
}

/// Those sums by the parameters `before` and `after`.
pub(super) fn added([before, after]: [&Array; 2], parts: &[Part], start: usize, run: usize) -> Array {
    let mut sums = Vec::new();
    let mut first = start;
    for part in parts {
        for elements in ranges(part.end - first, run) {
            let squares = elements.map(|i| (after.data[first + i] - before.data[first + i]).powi(2));
            sums.push(squares.sum());
        }
        first = part.end;
    }
    Array::new(added_type(parts, start, run), sums)
}

/// Which input of an update is the gradient, and of which elements of the page it is: those from `start` on.
#[derive(Clone, Copy)]
pub(super) struct Gradient {
    pub(super) input: usize,
    pub(super) start: usize,
}

impl Gradient {
    /// The first element of the page that an input of so many elements is of: 0 for a whole page.
    pub(super) fn first(self, elements: usize, whole: usize) -> usize {
        if elements == whole { 0 } else { self.start }
    }
}

/// Checks the inputs of an update: `pages` f32 tensors, the parameters and what is updated with them, which is of the whole page or
/// of the gradient's elements; what the judge tells; perhaps the table of gaps.
pub(super) fn check(inputs: &[&TensorType], pages: usize, gradient: Gradient, parts: &[Part]) -> Result<(), String> {
    if inputs.len() < pages + 1 {
        return Err(format!("takes {pages} pages, what it is told, and the table of gaps if there are any"));
    }
    gaps::check(&inputs[pages + 1..])?;
    let whole = inputs[0].shape.elements();
    let alike = |(i, x): (usize, &&TensorType)| {
        i == gradient.input || *x == inputs[0] || (i > 0 && *x == inputs[gradient.input])
    };
    if inputs[0].dtype != DType::F32 || !inputs[..pages].iter().enumerate().all(alike) {
        return Err("the pages must be f32 of one shape, or of the gradient's".into());
    }
    let (g, Gradient { start, .. }) = (inputs[gradient.input], gradient);
    let n = start + g.shape.elements();
    if g.dtype != DType::F32 || !start.is_multiple_of(64) || n > whole || g.shape.rank() != 1 {
        return Err(format!("the gradient must be f32 of elements from {start}, a multiple of 64, to at most {whole}"));
    }
    if *inputs[pages] != TensorType::f32([4]) {
        return Err("what it is told must be f32[4]".into());
    }
    let aligned = parts.windows(2).all(|w| w[0].end < w[1].end && w[0].end.is_multiple_of(64));
    let aligned = aligned && parts.first().is_some_and(|first| first.end > start);
    if parts.last().is_none_or(|last| last.end != n) || !aligned {
        return Err(format!("the parts must ascend in steps of 64 elements up to {n}"));
    }
    Ok(())
}

/// The kernel of an update over its parts, each in windows that fit a binding. Inputs are the pages under `names`, then
/// `told` and perhaps `gaps`; `params` are those of every dispatch. Where the
/// operator has an output, it is of [`added_type`].
pub(super) fn kernel(
    shader: &'static str,
    io: &Io,
    limits: &Limits,
    names: &[&'static str],
    gradient: Gradient,
    parts: &[Part],
    params: &[(&'static str, f32)],
) -> Kernel {
    let (n, pages) = (io.inputs[gradient.input].shape.elements(), names.len());
    let [workgroup, _] = reduce_lanes(limits);
    let has_gaps = io.inputs.len() > pages + 1;
    // Padding begins at any element.
    let item = if has_gaps { 1 } else { item(n) };
    let mut kernel = Kernel::new(shader, format!("lanes_{workgroup}"))
        .constant("WORKGROUP", workgroup)
        .constant("VECTOR", usize::from(item == 4))
        .constant("GAPS", usize::from(has_gaps))
        .constant("ADDED", io.outputs.len())
        .constant("PART", RUN);
    // A window is a whole number of runs.
    let window = (limits.max_binding_bytes as usize / 4 / RUN).max(1) * RUN;
    let (mut first, mut run) = (gradient.start, 0);
    for part in parts {
        for start in (first..part.end).step_by(window) {
            let count = window.min(part.end - start);
            let mut d = Dispatch::new(spread(count.div_ceil(RUN), limits))
                .param("start", start / item)
                .param("count", count / item)
                .param("rate", part.rate)
                .param("decay", part.decay);
            for &(name, value) in params {
                d = d.param(name, value);
            }
            for (i, name) in names.iter().enumerate() {
                let first = gradient.first(io.inputs[i].shape.elements(), io.inputs[0].shape.elements());
                let at = start - first;
                d = d.bind(*name, Operand::Input(i), at as u64 * 4, count as u64 * 4);
            }
            for (name, i) in ["told", "gaps"].into_iter().zip(pages..io.inputs.len()) {
                d = d.bind(name, Operand::Input(i), 0, io.inputs[i].bytes());
            }
            if let Some(ty) = io.outputs.first() {
                d = d.param("run", run).bind("y", Operand::Output(0), 0, ty.bytes());
            }
            kernel = kernel.dispatch(d);
            run += count.div_ceil(RUN);
        }
        first = part.end;
    }
    kernel
}
