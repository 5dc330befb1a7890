//! What updates of parameters share: a page is updated in place, part by part, of which each has its own rates; and what says how
//! far that went, of every run of elements the sum of the squares of what was added.

use super::windows::{item, ranges, reduce_lanes};
use super::{Operands, gaps};
use crate::base::{Array, DType, Limits, TensorType};
use crate::graph::{Dispatch, Io, Kernel, Operand, aligned, spread};
use std::ops::Range;

/// A part of a page whose parameters are updated alike: those before `end` that belong to no part before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The first element after it, from which a view may begin, or the page's end.
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

/// What an update is given: of which elements of the page.
#[derive(Clone, Copy)]
pub(super) struct Given {
    /// Which input is the gradient.
    pub(super) gradient: usize,
    /// The first element of the page that it is of.
    pub(super) start: usize,
    /// The first that a copy in f16 is of, where there is one.
    pub(super) copied: Option<usize>,
}

/// Elements of a page whose first may begin a binding.
const STARTS: usize = aligned(DType::F32);
/// The same of a copy.
pub const COPIES: usize = aligned(DType::F16);

impl Given {
    /// The first element of the page that an input of so many elements is of: 0 for a whole page.
    pub(super) fn first(self, elements: usize, whole: usize) -> usize {
        if elements == whole { 0 } else { self.start }
    }

    /// The inputs that follow what the judge tells, which is input `told`: that of the copy, and that of the table of gaps.
    pub(super) fn rest(self, told: usize) -> (Option<usize>, usize) {
        (self.copied.map(|_| told + 1), told + 1 + usize::from(self.copied.is_some()))
    }

    /// Checks a copy of some elements of a page of `whole`, of which these parts are updated.
    pub(super) fn check_copy(self, copy: &TensorType, whole: usize, parts: &[Part]) -> Result<(), String> {
        let (first, n) = (self.copied.unwrap_or(0), copy.shape.elements());
        let fits = first.is_multiple_of(COPIES) && n > 0 && n.is_multiple_of(4) && first + n <= whole;
        if copy.dtype != DType::F16 || copy.shape.rank() != 1 || !fits {
            return Err(format!(
                "the copy must be f16 of fours of elements from {first}, a multiple of {COPIES}, to at most {whole}"
            ));
        }
        // Two elements are a word.
        if parts.last().is_some_and(|last| last.end.min(first + n) % 2 > 0) {
            return Err("the parts must end with a pair of elements of the copy".into());
        }
        let begins = parts[..parts.len() - 1].iter().map(|part| part.end).chain([self.start]);
        match begins.into_iter().all(|begin| begin.is_multiple_of(COPIES)) {
            true => Ok(()),
            false => Err(format!("parts must begin at multiples of {COPIES} where there is a copy")),
        }
    }

    /// What a copy holds once these elements of the page were updated.
    pub(super) fn copy(self, inputs: &[Array], told: usize, p: &Array, updated: Range<usize>) -> Option<Array> {
        let (first, mut copy) = (self.copied?, inputs[self.rest(told).0?].clone());
        for (i, half) in copy.data.iter_mut().enumerate().filter(|(i, _)| updated.contains(&(first + i))) {
            *half = Operands::F16.round(p.data[first + i]);
        }
        Some(Array::new(copy.ty.clone(), copy.data))
    }

    /// A dispatch over `count` elements of the page from `start` on, each lane's `item` of them, which writes what of them is in
    /// the copy, `elements` from the first on.
    pub(super) fn bind_copy(self, d: Dispatch, copy: (usize, usize), [start, count, item]: [usize; 3]) -> Dispatch {
        let ((input, elements), first) = (copy, self.copied.unwrap_or(0));
        let (from, to) = (start.max(first), (start + count).min(first + elements));
        // Where there is nothing to be written something is bound all the same.
        let (from, to, bound) = if from < to { (from, to, from - first) } else { (start, start, 0) };
        d.param("copied", (from - start) / item).param("copies", (to - from) / item).bind(
            "copy",
            Operand::Input(input),
            bound as u64 * 2,
            (to - from).max(4) as u64 * 2,
        )
    }
}

/// Checks the inputs of an update: `pages` f32 tensors, the parameters and what is updated with them, which is of the whole page or
/// of the gradient's elements; what the judge tells; a copy where there is one; perhaps the table of gaps.
pub(super) fn check(inputs: &[&TensorType], pages: usize, given: Given, parts: &[Part]) -> Result<(), String> {
    let (copy, table) = given.rest(pages);
    if inputs.len() < table {
        return Err(format!(
            "takes {pages} pages, what it is told, a copy where there is one, and the table of gaps if there are any"
        ));
    }
    gaps::check(&inputs[table..])?;
    let whole = inputs[0].shape.elements();
    let alike = |(i, x): (usize, &&TensorType)| {
        i == given.gradient || *x == inputs[0] || (i > 0 && *x == inputs[given.gradient])
    };
    if inputs[0].dtype != DType::F32 || !inputs[..pages].iter().enumerate().all(alike) {
        return Err("the pages must be f32 of one shape, or of the gradient's".into());
    }
    let (g, start) = (inputs[given.gradient], given.start);
    let n = start + g.shape.elements();
    if g.dtype != DType::F32 || !start.is_multiple_of(STARTS) || n > whole || g.shape.rank() != 1 {
        return Err(format!(
            "the gradient must be f32 of elements from {start}, a multiple of {STARTS}, to at most {whole}"
        ));
    }
    if *inputs[pages] != TensorType::f32([4]) {
        return Err("what it is told must be f32[4]".into());
    }
    let aligned = parts.windows(2).all(|w| w[0].end < w[1].end && w[0].end.is_multiple_of(STARTS));
    let aligned = aligned && parts.first().is_some_and(|first| first.end > start);
    if parts.last().is_none_or(|last| last.end != n) || !aligned {
        return Err(format!("the parts must ascend in steps of {STARTS} elements up to {n}"));
    }
    copy.map_or(Ok(()), |copy| given.check_copy(inputs[copy], whole, parts))
}

/// Bytes of a copy, which is written and not read.
pub(super) fn copy_bytes(io: &Io) -> u64 {
    io.inputs.iter().filter(|ty| ty.dtype == DType::F16).map(TensorType::bytes).sum()
}

/// The kernel of an update over its parts, each in windows that fit a binding. Inputs are the pages under `names`, then
/// `told`, a copy where there is one, and perhaps `gaps`; `params` are those of every dispatch. Where the
/// operator has an output, it is of [`added_type`].
pub(super) fn kernel(
    shader: &'static str,
    io: &Io,
    limits: &Limits,
    names: &[&'static str],
    given: Given,
    parts: &[Part],
    params: &[(&'static str, f32)],
) -> Kernel {
    let (n, pages) = (io.inputs[given.gradient].shape.elements(), names.len());
    let [workgroup, _] = reduce_lanes(limits);
    let (copy, table) = given.rest(pages);
    let has_gaps = io.inputs.len() > table;
    // Padding begins at any element.
    let item = if has_gaps { 1 } else { item(n) };
    let mut kernel = Kernel::new(shader, format!("lanes_{workgroup}"))
        .constant("WORKGROUP", workgroup)
        .constant("VECTOR", usize::from(item == 4))
        .constant("GAPS", usize::from(has_gaps))
        .constant("ADDED", io.outputs.len())
        .constant("PART", RUN);
    if copy.is_some() {
        kernel = kernel.constant("COPY", 1).constant("HALF", 1).constant("PAIRS", usize::from(item == 1));
    }
    // A window is a whole number of runs.
    let window = (limits.max_binding_bytes as usize / 4 / RUN).max(1) * RUN;
    let (mut first, mut run) = (given.start, 0);
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
                let first = given.first(io.inputs[i].shape.elements(), io.inputs[0].shape.elements());
                let at = start - first;
                d = d.bind(*name, Operand::Input(i), at as u64 * 4, count as u64 * 4);
            }
            for (name, i) in [("told", pages), ("gaps", table)] {
                if let Some(ty) = io.inputs.get(i) {
                    d = d.bind(name, Operand::Input(i), 0, ty.bytes());
                }
            }
            if let Some(ty) = io.outputs.first() {
                d = d.param("run", run).bind("y", Operand::Output(0), 0, ty.bytes());
                d = match copy {
                    Some(copy) => given.bind_copy(d, (copy, io.inputs[copy].shape.elements()), [start, count, item]),
                    None => d.param("copied", 0usize).param("copies", 0usize),
                };
            }
            kernel = kernel.dispatch(d);
            run += count.div_ceil(RUN);
        }
        first = part.end;
    }
    kernel
}
