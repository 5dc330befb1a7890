//! Parameters: what they are, and where each lies in the few flat pages that the device keeps. The optimizer works on
//! whole pages; layers see one view for each parameter.

use super::shared::Shared;
use super::{Adapter, DROPOUT, Linear, Parts};
use crate::base::{DType, Rng, Shape, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Graph, Slice, Value, aligned};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Parameters begin at multiples of this many elements, as views may.
const ALIGN: usize = aligned(DType::F32);

/// Groups begin at multiples of this many elements: no block of an optimizer's packed state (`ops::AdamW8`) is of two.
pub(super) const GROUP_ALIGN: usize = 256;

/// The states `param.<page>` hold the parameters.
pub const PARAMETERS: &str = "param";

/// What a fresh parameter holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Ones: the gains of norms.
    Ones,
    /// Zeros: biases.
    Zeros,
    /// Normal with mean 0 and this standard deviation, cut at three of them (which lowers it by 1.3 %).
    Normal(f64),
    /// Uniform between minus and plus this.
    Uniform(f64),
}

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Hugging Face's name for it.
    pub name: String,
    /// Its shape; the elements are f32.
    pub shape: Shape,
    /// True if weight decay applies.
    pub decay: bool,
    /// What it holds before training.
    pub init: Init,
}

impl ParamSpec {
    /// Whether it is of the experts of a layer: its first dim is their number.
    pub fn is_expert(&self) -> bool {
        self.name.contains(".experts.")
    }
}

/// What the optimizer makes one difference of: parameters that are treated alike lie side by side, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// 0 for matrices that are updated as matrices, 2 for experts, 1 for all else: no two kinds share a page.
    pub kind: u8,
    /// 0 where weight decay applies, else 1.
    pub rest: u8,
    /// Which of the optimizer's own settings; 0 for those that all have.
    pub settings: u16,
}

/// The kind of experts: ranks may hold others of them, while they hold all else alike.
const EXPERTS: u8 = 2;

impl Group {
    /// Of experts or not, decayed or not, and nothing else.
    pub fn of(spec: &ParamSpec) -> Group {
        Group { kind: if spec.is_expert() { EXPERTS } else { 1 }, rest: u8::from(!spec.decay), settings: 0 }
    }

    /// True if weight decay applies.
    pub fn decays(&self) -> bool {
        self.rest == 0
    }
}

/// One flat f32 tensor that holds several parameters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Elements, a multiple of 64.
    pub elements: usize,
    /// Groups in their order, each with the first element after it.
    pub groups: Vec<(Group, usize)>,
    /// Which parameters lie in it, ascending, as indices into [`ParamLayout::specs`].
    pub params: Range<usize>,
    /// First element of each of them.
    pub starts: Vec<usize>,
    /// Ranges that belong to no parameter: first element, and the first after.
    pub gaps: Vec<(usize, usize)>,
}

impl Page {
    /// Whether it holds experts, and then nothing else.
    pub fn is_of_experts(&self) -> bool {
        self.groups.first().is_some_and(|(group, _)| group.kind == EXPERTS)
    }

    /// Where a parameter of this group would begin, which ranks hold as they do the one before it, or not.
    fn start_of(&self, group: Group, is_alike: bool) -> usize {
        let goes_on = self.groups.last().is_none_or(|(last, _)| *last == group && is_alike);
        if goes_on { self.elements } else { self.elements.next_multiple_of(GROUP_ALIGN) }
    }

    /// Its gaps within some of its elements, counted from the first of those.
    pub fn gaps_in(&self, elements: &Range<usize>) -> Vec<(usize, usize)> {
        let Range { start, end } = *elements;
        let inside = self.gaps.iter().map(|&(a, b)| (a.max(start), b.min(end))).filter(|(a, b)| a < b);
        inside.map(|(a, b)| (a - start, b - start)).collect()
    }

    /// Some of its elements as a page of their own, which has groups and gaps, and no parameter whole.
    pub fn part(&self, elements: &Range<usize>) -> Page {
        let inside = |&(group, end): &(Group, usize)| (group, end.min(elements.end).saturating_sub(elements.start));
        let mut groups: Vec<(Group, usize)> = self.groups.iter().map(inside).filter(|(_, end)| *end > 0).collect();
        // Groups after the last element are none.
        groups.dedup_by_key(|(_, end)| *end);
        Page { elements: elements.len(), groups, gaps: self.gaps_in(elements), ..Page::default() }
    }

    fn push(&mut self, group: Group, start: usize, size: usize, padded: usize) {
        let before = self.elements;
        if start > before {
            match self.gaps.last_mut() {
                Some((_, end)) if *end == before => *end = start,
                _ => self.gaps.push((before, start)),
            }
        }
        self.elements = start + padded;
        match self.groups.last_mut() {
            Some((last, end)) if *last == group => *end = self.elements,
            last => {
                last.into_iter().for_each(|(_, end)| *end = start);
                self.groups.push((group, self.elements));
            }
        }
        self.starts.push(start);
        if padded > size {
            self.gaps.push((start + size, self.elements));
        }
        self.params.end += 1;
    }
}

/// Where every parameter lies. Moments of the optimizer have the same layout.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamLayout {
    pub(super) specs: Vec<ParamSpec>,
    pub(super) pages: Vec<Page>,
    pub(super) places: HashMap<String, (usize, usize)>,
    pub(super) parts: Option<Arc<Parts>>,
    /// Where ranks share pages out: who.
    pub(super) shared: Option<Shared>,
}

/// The parameters in one graph.
#[derive(Debug, Clone)]
pub struct Params {
    /// The states that are trained, one for each page; none where all parameters are frozen.
    pub pages: Vec<Value>,
    /// A view of each parameter that is trained, in the order of [`ParamLayout::specs`]; of frozen ones their values.
    pub views: Vec<Value>,
    /// True where the model's own parameters stay as they are, whatever is trained beside them.
    pub frozen: bool,
    pub(super) by_name: HashMap<String, Value>,
    /// By the name of the linear layer.
    pub(super) adapters: HashMap<String, Adapter>,
}

impl Params {
    /// Parameters that are states themselves, and lie in no pages.
    pub(super) fn frozen(values: Vec<(String, Value)>) -> Params {
        Params {
            pages: Vec::new(),
            views: values.iter().map(|(_, v)| *v).collect(),
            frozen: true,
            by_name: values.into_iter().collect(),
            adapters: HashMap::new(),
        }
    }

    /// The parameter of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Value> {
        self.by_name.get(name).copied().ok_or_else(|| Error::Graph(format!("there is no parameter {name}")))
    }

    /// All that was declared, by name: parameters, what adapters have, and what dropout wants.
    pub fn named(&self) -> Vec<(String, Value)> {
        let mut all: Vec<(String, Value)> = self.by_name.iter().map(|(name, value)| (name.clone(), *value)).collect();
        for (layer, adapter) in &self.adapters {
            all.extend(adapter.named().into_iter().map(|(part, value)| (format!("{layer}.{part}"), value)));
            all.extend(adapter.dropout.map(|(seed, _)| (DROPOUT.to_string(), seed)));
        }
        all
    }

    /// The linear layer of this name, with its bias and its adapter where it has them.
    ///
    /// # Errors
    /// If there is none.
    pub fn linear(&self, name: &str, bias: bool) -> Result<Linear> {
        let bias = bias.then(|| self.get(&format!("{name}.bias"))).transpose()?;
        Ok(Linear { weight: self.get(&format!("{name}.weight"))?, bias, adapter: self.adapters.get(name).copied() })
    }
}

impl ParamLayout {
    /// Lays parameters out: decayed ones first, in the order given, in pages of at most `page_bytes`. A parameter never
    /// crosses a page; one that is larger than a page gets one of its own size.
    ///
    /// # Panics
    /// If two parameters share a name, or one is empty.
    pub fn new(specs: Vec<ParamSpec>, page_bytes: u64) -> Self {
        ParamLayout::grouped(specs, page_bytes, None, Group::of)
    }

    /// [`ParamLayout::new`] with other groups, in their order; of a rank's parts of a model's parameters, where these are such
    /// ([`Parts::specs`]). No block of 256 elements is of parameters that lie otherwise over the ranks: what they hold alike they also
    /// update alike, by moments that have a scale a block.
    ///
    /// # Panics
    /// As [`ParamLayout::new`].
    pub fn grouped(
        specs: Vec<ParamSpec>,
        page_bytes: u64,
        parts: Option<Arc<Parts>>,
        group: impl Fn(&ParamSpec) -> Group,
    ) -> Self {
        let mut ordered = specs;
        ordered.sort_by_key(&group);
        ParamLayout::in_order(ordered, page_bytes, parts, group, |_, _, _| true)
    }

    /// [`ParamLayout::grouped`] by block: no page holds parameters of two layers, nor of both attention and MLP of one; a
    /// parameter that belongs to no layer has a page of its own.
    ///
    /// # Panics
    /// As [`ParamLayout::new`].
    pub fn by_block(
        specs: Vec<ParamSpec>,
        page_bytes: u64,
        parts: Option<Arc<Parts>>,
        group: impl Fn(&ParamSpec) -> Group,
    ) -> Self {
        let mut blocks: HashMap<String, usize> = HashMap::new();
        for spec in &specs {
            let next = blocks.len();
            blocks.entry(block(&spec.name).to_string()).or_insert(next);
        }
        let mut ordered = specs;
        ordered.sort_by_key(|spec| (blocks[block(&spec.name)], group(spec)));
        ParamLayout::in_order(ordered, page_bytes, parts, group, |_, last, next| block(&last.name) == block(&next.name))
    }

    pub(super) fn in_order(
        ordered: Vec<ParamSpec>,
        page_bytes: u64,
        parts: Option<Arc<Parts>>,
        group: impl Fn(&ParamSpec) -> Group,
        together: impl Fn(&Page, &ParamSpec, &ParamSpec) -> bool,
    ) -> Self {
        let limit = (page_bytes / 4) as usize;
        let mut pages: Vec<Page> = Vec::new();
        for (i, spec) in ordered.iter().enumerate() {
            let size = spec.shape.elements();
            assert!(size > 0, "parameter {} is empty", spec.name);
            let padded = size.next_multiple_of(ALIGN);
            let group = group(spec);
            let start = |page: &Page| {
                let last = ordered[..i].last().map_or(&spec.name, |last| &last.name);
                page.start_of(group, parts.as_ref().is_none_or(|parts| parts.lie_alike(last, &spec.name)))
            };
            let fits = |page: &Page| {
                together(page, &ordered[page.params.end - 1], spec)
                    && start(page) + padded <= limit
                    && page.groups.iter().all(|(other, _)| other.kind == group.kind)
            };
            if !pages.last().is_some_and(fits) {
                pages.push(Page { params: i..i, ..Page::default() });
            }
            let page = pages.last_mut().expect("pushed above");
            let first = start(page);
            page.push(group, first, size, padded);
        }
        let place = |(p, page): (usize, &Page)| -> Vec<(String, (usize, usize))> {
            page.params.clone().zip(&page.starts).map(|(i, &start)| (ordered[i].name.clone(), (p, start))).collect()
        };
        let places: HashMap<_, _> = pages.iter().enumerate().flat_map(place).collect();
        assert_eq!(places.len(), ordered.len(), "two parameters share a name");
        ParamLayout { specs: ordered, pages, places, parts, shared: None }
    }

    /// The same layout, of a rank's parts of a model's parameters: its specs are [`Parts::specs`].
    pub fn of_parts(self, parts: Parts) -> Self {
        ParamLayout { parts: Some(Arc::new(parts)), ..self }
    }

    /// Where these are a rank's parts of the parameters of a model: which.
    pub fn parts(&self) -> Option<&Parts> {
        self.parts.as_deref()
    }

    /// The parameters, decayed ones first.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The pages.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// Parameters whose gradients are finished at about one time: neighbours in a page that are of one block of a layer, and
    /// a page's gains and biases.
    pub fn units(&self) -> Vec<Range<usize>> {
        let mut units: Vec<Range<usize>> = Vec::new();
        for page in &self.pages {
            for n in page.params.clone() {
                let (spec, last) = (&self.specs[n], units.last().filter(|u| u.start >= page.params.start));
                let alike = |first: &ParamSpec| {
                    first.decay == spec.decay && (!spec.decay || block(&first.name) == block(&spec.name))
                };
                match last.is_some_and(|unit| alike(&self.specs[unit.start])) {
                    true => units.last_mut().expect("it is alike").end = n + 1,
                    false => units.push(n..n + 1),
                }
            }
        }
        units
    }

    /// The page that a state `<name>.<page>` is of, if it is of one.
    pub fn page_of(&self, state: &str) -> Option<&Page> {
        self.pages.get(state.rsplit_once('.')?.1.parse::<usize>().ok()?)
    }

    /// Elements of all parameters, padding left out.
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|s| s.shape.elements() as u64).sum()
    }

    /// Page and first element of a parameter.
    pub fn place(&self, name: &str) -> Option<(usize, usize)> {
        self.places.get(name).copied()
    }

    /// Declares one state for each page, named `<name>.<page>`: `param` for the parameters, `adam_m` and `adam_v` for
    /// the moments.
    pub fn states(&self, g: &mut Graph, name: &str) -> Vec<Value> {
        let declare = |(i, page): (usize, &Page)| g.state(&format!("{name}.{i}"), TensorType::f32([page.elements]));
        self.pages.iter().enumerate().map(declare).collect()
    }

    /// Declares the parameters in a graph: their pages as states `param.0`, `param.1`, …, and a view of each, named
    /// after it.
    ///
    /// # Errors
    /// If a view does not fit, which would be a bug of the layout.
    pub fn declare(&self, g: &mut Graph) -> Result<Params> {
        let pages = self.states(g, PARAMETERS);
        let views = self.views(g, &pages)?;
        let by_name = self.specs.iter().map(|spec| spec.name.clone()).zip(views.iter().copied()).collect();
        Ok(Params { pages, views, frozen: false, by_name, adapters: HashMap::new() })
    }

    /// A view of every parameter's range in these pages, named after it, in the order of [`ParamLayout::specs`].
    ///
    /// # Errors
    /// If a view does not fit, which would be a bug of the layout.
    pub fn views(&self, g: &mut Graph, pages: &[Value]) -> Result<Vec<Value>> {
        let mut views = Vec::new();
        for (page, state) in self.pages.iter().zip(pages) {
            for (spec, &start) in self.specs[page.params.clone()].iter().zip(&page.starts) {
                let slice = Arc::new(Slice { start, shape: spec.shape.clone() });
                views.push(g.apply_named(slice, &[*state], spec.name.clone())?[0]);
            }
        }
        Ok(views)
    }

    /// Pages of zeros, such as fresh moments.
    pub fn zeros(&self) -> Vec<Vec<f32>> {
        self.pages.iter().map(|page| vec![0.0; page.elements]).collect()
    }

    /// Fresh parameters. Each is a function of the seed and its own name, whatever the layout; of a part, the part of that.
    pub fn init(&self, seed: u64) -> Vec<Vec<f32>> {
        let mut pages = self.zeros();
        let all: Vec<_> = self.tensors_mut(&mut pages);
        let whole = |spec: &ParamSpec| self.parts().and_then(|parts| Some((parts, parts.spec(&spec.name)?)));
        all.into_par_iter().for_each(|(spec, data)| match whole(spec) {
            Some((parts, whole)) if whole.shape != spec.shape => {
                let mut all = vec![0.0; whole.shape.elements()];
                fill(whole, seed, &mut all);
                data.copy_from_slice(&parts.cut(whole, &all));
            }
            _ => fill(spec, seed, data),
        });
        pages
    }

    /// One parameter's elements in pages on the host.
    pub fn tensor<'a>(&self, pages: &'a [Vec<f32>], name: &str) -> Option<&'a [f32]> {
        let (page, start) = self.place(name)?;
        let spec = self.pages[page].starts.binary_search(&start).ok()? + self.pages[page].params.start;
        Some(&pages[page][start..start + self.specs[spec].shape.elements()])
    }

    /// Every parameter with its elements in pages on the host, in the order of [`ParamLayout::specs`].
    pub fn tensors<'a>(&'a self, pages: &'a [Vec<f32>]) -> impl Iterator<Item = (&'a ParamSpec, &'a [f32])> {
        self.pages.iter().zip(pages).flat_map(move |(page, data)| {
            let specs = &self.specs[page.params.clone()];
            specs.iter().zip(&page.starts).map(move |(s, &start)| (s, &data[start..start + s.shape.elements()]))
        })
    }

    /// As [`ParamLayout::tensors`], to be written.
    pub fn tensors_mut<'a>(&'a self, pages: &'a mut [Vec<f32>]) -> Vec<(&'a ParamSpec, &'a mut [f32])> {
        let mut all = Vec::new();
        for (page, data) in self.pages.iter().zip(pages) {
            let (mut rest, mut at) = (data.as_mut_slice(), 0);
            for (spec, &start) in self.specs[page.params.clone()].iter().zip(&page.starts) {
                let end = start + spec.shape.elements();
                let (own, after) = rest.split_at_mut(end - at);
                all.push((spec, &mut own[start - at..]));
                (rest, at) = (after, end);
            }
        }
        all
    }
}

/// What a name says of its layer and of the block of products in it, such as `model.layers.3.mlp`; without a block as of
/// norms the layer; all of a name that has no number.
pub(super) fn block(name: &str) -> &str {
    let parts: Vec<&str> = name.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let Some(number) = parts.iter().position(is_number) else { return name };
    let count = if parts.len() > number + 3 { number + 2 } else { number + 1 };
    &name[..parts[..count].iter().map(|part| part.len()).sum::<usize>() + count - 1]
}

fn fill(spec: &ParamSpec, seed: u64, data: &mut [f32]) {
    match spec.init {
        Init::Ones => data.fill(1.0),
        Init::Zeros => data.fill(0.0),
        Init::Normal(std) => {
            let mut rng = Rng::named(seed, &spec.name);
            data.fill_with(|| (std * rng.truncated_normal(3.0)) as f32);
        }
        Init::Uniform(bound) => {
            let mut rng = Rng::named(seed, &spec.name);
            data.fill_with(|| (bound * (2.0 * rng.uniform() - 1.0)) as f32);
        }
    }
}

#[cfg(test)]
#[path = "params_tests.rs"]
mod tests;
