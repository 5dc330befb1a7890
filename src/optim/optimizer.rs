//! An optimizer appended to a graph that computes a loss: the backward pass, one judgement of the step, and an update of
//! every page of parameters.

use super::judge::{self, JUDGE, LossScaling};
use super::norm::{self, Squares};
use super::sharded::own_part;
use super::{Rule, Settings, Shard, Update};
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Concat, Graph, Map, Value, gradients, gradients_in_turn, scaled_gradients};
use crate::nn::{Group, PARAMETERS, Page, ParamLayout, ParamSpec, Params, Parts, names_match};
use crate::ops::{Accumulate, AdamW, AdamW8, Ema, GatherState, GlobalNorm, Part, Sgd, gap_table};
use crate::parallel::Peers;
use std::ops::Range;
use std::sync::Arc;

/// Name of the graph's input that holds [`Optimizer::hyper`].
pub const HYPER: &str = "hyper";

/// Name of the output, f32 `[1]`, that is the norm of what a step adds to the parameters, 0 where it is left out: as far as they
/// move, rounded as they are. Where ranks hold parts of the parameters there is none.
pub const UPDATE_NORM: &str = "update_norm";

/// The states `ema.<page>` hold the moving average of the parameters.
pub const EMA: &str = "ema";
/// The states of moments in eight bits: their codes and scales.
pub(super) const CODES: &str = "adam_codes";
pub(super) const SCALES: &str = "adam_scales";
/// The states `grad.<page>` hold sums of gradients.
pub(super) const GRADIENTS: &str = "grad";
/// The states `sum.<what>` hold sums of weights and of losses.
const SUMS: &str = "sum";

/// Settings that stay the same throughout a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// How parameters follow from gradients.
    pub rule: Rule,
    /// AdamW's decay of the first moment, β₁.
    pub beta1: f64,
    /// AdamW's decay of the second moment, β₂.
    pub beta2: f64,
    /// AdamW's addend to the root of the second moment.
    pub epsilon: f64,
    /// SGD's and Muon's momentum.
    pub momentum: f64,
    /// Whether that looks one step ahead.
    pub nesterov: bool,
    /// Weight decay of matrices; times the learning rate.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; infinite turns that off.
    pub max_norm: f64,
    /// A step whose norm is more than so many times the running mean is left out; 0 turns that off.
    pub outlier: f64,
    /// Where gradients are of f16 products: how the loss is scaled so that they neither vanish nor overflow.
    pub loss_scaling: Option<LossScaling>,
    /// There, too: whether copies in f16 of the weights that products round are kept ([`Optimizer::copied`]).
    pub copies: bool,
    /// Decay of a moving average of the parameters, which is kept beside them; 0 for none.
    pub ema: f64,
    /// Parameters with settings of their own.
    pub settings: Vec<Settings>,
    /// When parameters change.
    pub update: Update,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            rule: Rule::AdamW,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            momentum: 0.95,
            nesterov: true,
            weight_decay: 0.1,
            max_norm: 1.0,
            outlier: 0.0,
            loss_scaling: None,
            copies: false,
            ema: 0.0,
            settings: Vec::new(),
            update: Update::Step,
        }
    }
}

/// Name of the input, f32 `[1]`, of a graph that accumulates: 0 for the first batch of a step, else 1.
pub const KEEP: &str = "keep";

/// The gradients of one step: flat, one tensor a page, or of one that ranks share out for this rank's part; or by parameter.
struct Gradients {
    pages: Vec<Value>,
    views: Vec<Value>,
}

/// Targets of a row that weigh 1 together: about as many as a row has, so that sums over batches are about as large as what
/// is summed, which matters in f16.
const TARGETS: usize = 1024;

impl Optimizer {
    /// What the host writes to the input [`HYPER`], f32 `[1]`, before a step: its learning rate. All else is known on the
    /// device, where alone it is known which steps count.
    pub fn hyper(&self, lr: f64) -> [f32; 1] {
        [lr as f32]
    }

    /// Lays parameters out so that those that are updated alike adjoin.
    ///
    /// # Errors
    /// If settings fit no parameter.
    ///
    /// # Panics
    /// As [`ParamLayout::new`].
    pub fn layout(&self, specs: Vec<ParamSpec>, page_bytes: u64) -> Result<ParamLayout> {
        self.check_settings(&specs)?;
        Ok(self.lay_out(specs, page_bytes, None))
    }

    fn lay_out(&self, specs: Vec<ParamSpec>, page_bytes: u64, parts: Option<Arc<Parts>>) -> ParamLayout {
        match self.update {
            Update::Step => ParamLayout::grouped(specs, page_bytes, parts, |spec| self.group(spec)),
            Update::Layer => ParamLayout::by_block(specs, page_bytes, parts, |spec| self.group(spec)),
        }
    }

    /// The same of what a rank has of a model's parameters.
    ///
    /// # Errors
    /// If settings fit no parameter of the model.
    pub fn layout_of(&self, parts: Parts, page_bytes: u64) -> Result<ParamLayout> {
        self.check_settings(parts.whole())?;
        Ok(self.lay_out(parts.specs(), page_bytes, Some(Arc::new(parts))))
    }

    /// Refuses settings that are of no parameter.
    pub(super) fn check_settings(&self, specs: &[ParamSpec]) -> Result<()> {
        for own in &self.settings {
            if !specs.iter().any(|spec| names_match(&own.params, &spec.name)) {
                return Err(Error::Invalid(format!(
                    "a group is for the parameters `{}`, and none of that name is trained; name the last parts, such as \
                     {}, or write a pattern of whole names, such as model.layers.*.mlp.*",
                    own.params,
                    specs.first().map_or("", |spec| &spec.name)
                )));
            }
        }
        Ok(())
    }

    pub(super) fn group(&self, spec: &ParamSpec) -> Group {
        let own = self.settings.iter().position(|own| names_match(&own.params, &spec.name));
        let plain = Group::of(spec);
        Group {
            kind: if self.rule.is_orthogonal(spec) { 0 } else { plain.kind },
            settings: own.map_or(0, |i| i as u16 + 1),
            ..plain
        }
    }

    /// The parts of a page, with their rates.
    pub(super) fn parts(&self, page: &Page) -> Vec<Part> {
        let part = |&(group, end): &(Group, usize)| {
            let own = (group.settings as usize).checked_sub(1).and_then(|i| self.settings.get(i));
            let decay = own.and_then(|own| own.weight_decay).unwrap_or(self.weight_decay);
            Part {
                end,
                rate: own.map_or(1.0, |own| own.rate) as f32,
                decay: if group.decays() { decay as f32 } else { 0.0 },
            }
        };
        page.groups.iter().map(part).collect()
    }

    /// Appends the backward pass and one update. Reads the input [`HYPER`], which it declares; what belongs to the optimizer
    /// are the states [`JUDGE`], and those of its rule, one a page, as `adam_m.<page>` and `adam_v.<page>`; gives the
    /// outputs `loss`, `grad_norm` (before clipping) and [`UPDATE_NORM`], f32 `[1]` each, and [`JUDGE`], the state after the step.
    ///
    /// # Errors
    /// If the loss does not depend on every parameter.
    pub fn train_step(&self, g: &mut Graph, layout: &ParamLayout, params: &Params, loss: Value) -> Result<()> {
        let views = match &self.loss_scaling {
            None => gradients(g, loss, &params.views)?,
            Some(_) => {
                let scale = judge::scale(g)?;
                scaled_gradients(g, loss, scale, &params.views)?
            }
        };
        let mut pages = Vec::new();
        for (i, page) in layout.pages().iter().enumerate() {
            let concat = Concat { starts: page.starts.clone(), elements: page.elements };
            pages.push(g.scope(format!("optimizer.{i}"), |g| g.apply1(concat, &views[page.params.clone()]))?);
        }
        g.output("loss", loss);
        self.update(g, layout, &params.pages, &Gradients { pages, views }, &[]).map(|_| ())
    }

    /// Appends the backward pass of one of several batches that make a step, whose gradients are added up in the states
    /// `grad.<page>` unit by unit ([`ParamLayout::units`]) as they are finished, each target that counts weighing the same in all batches, however long the rows of each are: `count`,
    /// f32 `[1]`, of them in this batch of `rows`. Reads the input [`KEEP`], which it declares; gives the output
    /// `loss`. What the sums mean is [`Optimizer::apply`]'s.
    ///
    /// # Errors
    /// If the loss does not depend on every parameter.
    pub fn accumulate_step(
        &self,
        g: &mut Graph,
        layout: &ParamLayout,
        params: &Params,
        [loss, count]: [Value; 2],
        rows: usize,
    ) -> Result<()> {
        let [weight, scale] = self.weigh(g, count, rows)?;
        let keep = g.input(KEEP, TensorType::f32([1]));
        let pages = layout.states(g, GRADIENTS);
        let mut waiting: Vec<Option<Value>> = vec![None; layout.specs().len()];
        let units = layout.units();
        gradients_in_turn(g, loss, scale, &params.views, &mut |g, n, gradient| {
            waiting[n] = Some(gradient.whole());
            let unit = units.iter().find(|unit| unit.contains(&n)).expect("every parameter has one");
            let Some(all) = waiting[unit.clone()].iter().copied().collect::<Option<Vec<Value>>>() else {
                return Ok(());
            };
            for (spec, x) in layout.specs()[unit.clone()].iter().zip(all) {
                let (page, start) = layout.place(&spec.name).expect("it is of the layout");
                g.scope(&spec.name, |g| g.apply(Accumulate { start }, &[pages[page], x, keep]))?;
            }
            Ok(())
        })?;
        g.scope("accumulate", |g| {
            let part = g.mul(loss, weight)?;
            accumulate_sums(g, [weight, part], keep)
        })?;
        g.output("loss", loss);
        Ok(())
    }

    /// What the mean loss of a batch of `rows` weighs in the sum over several, by how many of its targets count; and its
    /// gradient towards itself.
    pub(super) fn weigh(&self, g: &mut Graph, count: Value, rows: usize) -> Result<[Value; 2]> {
        let target = 1.0 / (TARGETS * rows) as f32;
        let weight = g.scope("accumulate", |g| g.apply1(Map::scale(target), &[count]))?;
        let scale = match &self.loss_scaling {
            None => weight,
            Some(_) => {
                let scale = judge::scale(g)?;
                g.scope("accumulate", |g| g.mul(scale, weight))?
            }
        };
        Ok([weight, scale])
    }

    /// The graph of the update that follows batches of [`Optimizer::accumulate_step`]; inputs, states and outputs are those
    /// of [`Optimizer::train_step`], of the mean over all tokens that counted.
    ///
    /// # Errors
    /// If a view does not fit, which would be a bug of the layout.
    pub fn apply(&self, layout: &ParamLayout) -> Result<Graph> {
        self.apply_shared(layout, Shard::None)
    }

    /// The same of ranks that share out the layout's pages and what `shard` says of their states, which hold the rank's part of a
    /// page then; of gradients the part that is its own holds the sum over those who share it out.
    ///
    /// # Errors
    /// If a page cannot be shared out so.
    pub fn apply_shared(&self, layout: &ParamLayout, shard: Shard) -> Result<Graph> {
        let mut g = Graph::new();
        let states = |g: &mut Graph, name: &str| -> Vec<Value> {
            let state = |(i, page): (usize, &Page)| {
                let (name, part) = (format!("{name}.{i}"), layout.sharers_of(i).part(page.elements));
                let kept = if shard.divides(&name) { part.len() } else { page.elements };
                g.state(&name, TensorType::f32([kept]))
            };
            layout.pages().iter().enumerate().map(state).collect()
        };
        let params = states(&mut g, PARAMETERS);
        let sums = sums(&mut g);
        let flat = states(&mut g, GRADIENTS);
        // Matrices as such, where a rank has whole pages.
        let views = if shard == Shard::None { layout.views(&mut g, &flat)? } else { Vec::new() };
        let own = |(i, page): (usize, &Page)| own_part(&mut g, flat[i], &layout.sharers_of(i).part(page.elements));
        let pages = layout.pages().iter().enumerate().map(own).collect::<Result<_>>()?;
        let loss = self.update(&mut g, layout, &params, &Gradients { pages, views }, &sums)?;
        g.output("loss", loss.expect("there are sums"));
        Ok(g)
    }

    /// Whether a state of these graphs holds sums of gradients.
    pub fn is_gradient(state: &str) -> bool {
        state.split_once('.').is_some_and(|(name, _)| name == GRADIENTS)
    }

    /// Whether a state of these graphs is a sum over what a step is made of, which [`Optimizer::apply`] takes: over batches, and
    /// over ranks.
    pub fn is_sum(state: &str) -> bool {
        state.split_once('.').is_some_and(|(name, _)| name == GRADIENTS || name == SUMS)
    }

    /// Whether it is one of losses or of weights, which only ranks have that compute a loss.
    pub fn is_total(state: &str) -> bool {
        state.split_once('.').is_some_and(|(name, _)| name == SUMS)
    }

    /// The state that holds the sums of the gradients of a page.
    pub fn gradient_state(page: usize) -> String {
        format!("{GRADIENTS}.{page}")
    }

    /// Judges the gradients and updates the parameters; of sums of weights and losses, where they are given, the mean loss. Of
    /// pages that ranks share out each updates its part; where it keeps all of their parameters, it gets what others updated.
    fn update(
        &self,
        g: &mut Graph,
        layout: &ParamLayout,
        params: &[Value],
        gradients: &Gradients,
        totals: &[Value],
    ) -> Result<Option<Value>> {
        let hyper = g.input(HYPER, TensorType::f32([1]));
        let (mut owned, mut gaps) = (Vec::new(), Vec::new());
        for (i, page) in layout.pages().iter().enumerate() {
            let elements = layout.sharers_of(i).part(page.elements);
            let own = page.part(&elements);
            gaps.push(g.scope(format!("optimizer.{i}"), |g| gap_constant(g, &own.gaps)));
            owned.push((elements, own));
        }
        let judged = g.scope("optimizer", |g| {
            let mut squares = Squares::of(layout);
            for (i, (elements, _)) in owned.iter().enumerate() {
                squares.add(g, i, elements, gradients.pages[i], &gaps[i])?;
            }
            let norm = squares.norm(g)?;
            self.judge(g, &[&[norm, hyper], totals].concat())
        })?;
        g.output("grad_norm", judged[0]);
        let (told, loss) = (judged[1], judged.get(2).copied());
        let mut added = Vec::new();
        for (i, (page, (elements, own))) in layout.pages().iter().zip(&owned).enumerate() {
            let state = params[i];
            let is_part = own.elements < g.ty(state).shape.elements();
            g.scope(format!("optimizer.{i}"), |g| {
                if page.groups[0].0.kind == 0 && self.rule == Rule::Muon {
                    added.extend(self.orthogonal(g, layout, i, state, &gradients.views, told)?);
                } else {
                    let (stretch, gaps) = match is_part {
                        true => (Stretch::part(i, page, state, elements.clone()), gap_constant(g, &page.gaps)),
                        false => {
                            let copy = self.copy(g, layout, i);
                            (Stretch { copy, ..Stretch::whole(i, own, state) }, gaps[i].clone())
                        }
                    };
                    added.push(self.plain(g, stretch, &[&[gradients.pages[i], told], gaps.as_slice()].concat())?);
                }
                let updated = own_part(g, state, elements)?;
                self.average(g, i, own, updated, &[&[told], gaps[i].as_slice()].concat())
            })?;
            if is_part {
                let Peers { along, place: part } = layout.sharers_of(i);
                g.scope(format!("ranks.{i}"), |g| g.apply(GatherState { along, part }, &[state]))?;
            }
        }
        if layout.parts().is_none() {
            let added = g.scope("ranks.update", |g| norm::over_sharers(g, layout.sharers(false), added))?;
            output_norm(g, &added)?;
        }
        Ok(loss)
    }

    /// One update of a stretch of a page, whose gradient and what follows it `rest` is; gives sums of squares of what it adds.
    pub(super) fn plain(&self, g: &mut Graph, stretch: Stretch, rest: &[Value]) -> Result<Value> {
        let Stretch { index: i, page, state, elements, kept, copy } = stretch;
        let (copied, copy) = copy.unzip();
        let rest = [&rest[..2], copy.as_slice(), &rest[2..]].concat();
        let (ty, start) = (TensorType::f32([kept]), elements.start);
        let mut parts: Vec<Part> = self.parts(page).into_iter().filter(|part| part.end > start).collect();
        parts.iter_mut().for_each(|part| part.end = part.end.min(elements.end));
        // Parts after the last element are none.
        parts.dedup_by_key(|part| part.end);
        match self.rule {
            Rule::AdamW | Rule::Muon => {
                let [m, v] = ["adam_m", "adam_v"].map(|name| g.state(&format!("{name}.{i}"), ty.clone()));
                let [beta1, beta2, epsilon] = [self.beta1, self.beta2, self.epsilon].map(|x| x as f32);
                g.apply1(AdamW { beta1, beta2, epsilon, start, parts, copied }, &[&[state, m, v], &rest[..]].concat())
            }
            Rule::AdamW8bit => {
                let moments = g.state(&format!("{CODES}.{i}"), AdamW8::codes_type(kept));
                let scales = g.state(&format!("{SCALES}.{i}"), AdamW8::scales_type(kept));
                let codes = bytemuck::cast_slice(&AdamW8::codes()).to_vec();
                let codes = g.constant("codes", TensorType::f32([512]), codes);
                let [beta1, beta2, epsilon] = [self.beta1, self.beta2, self.epsilon].map(|x| x as f32);
                let inputs = [&[state, moments, scales, rest[0], codes], &rest[1..]].concat();
                let sums = g.apply1(AdamW8 { beta1, beta2, epsilon, start, parts, copied }, &inputs)?;
                // One of each block: many, of which one workgroup alone would take long.
                g.sum_to(sums, &TensorType::f32([1]))
            }
            Rule::Sgd => {
                let sgd = Sgd { momentum: self.momentum as f32, nesterov: self.nesterov, start, parts, copied };
                let m = (self.momentum != 0.0).then(|| g.state(&format!("momentum.{i}"), ty));
                let inputs = [&[state, rest[0]], m.as_slice(), &rest[1..]].concat();
                g.apply1(sgd, &inputs)
            }
        }
    }

    /// The moving average of a page, where one is kept.
    pub(super) fn average(&self, g: &mut Graph, i: usize, page: &Page, state: Value, rest: &[Value]) -> Result<()> {
        if self.ema != 0.0 {
            let average = g.state(&format!("{EMA}.{i}"), TensorType::f32([page.elements]));
            let ema = Ema { rest: (1.0 - self.ema) as f32, elements: page.elements };
            g.apply(ema, &[&[average, state], rest].concat())?;
        }
        Ok(())
    }

    /// From norm, hyper and perhaps sums: the norm before clipping, what updates are told, and of sums the mean loss.
    pub(super) fn judge(&self, g: &mut Graph, rest: &[Value]) -> Result<Vec<Value>> {
        let state = judge::state(g);
        let op = crate::ops::Judge {
            interval: self.loss_scaling.map_or(0, |scaling| scaling.interval),
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            max_norm: self.max_norm as f32,
            outlier: self.outlier as f32,
        };
        let judged = g.apply(op, &[&[state], rest].concat())?;
        g.output(JUDGE, state);
        Ok(judged)
    }
}

/// What of a page is updated.
pub(super) struct Stretch<'a> {
    /// Which page it is.
    pub(super) index: usize,
    pub(super) page: &'a Page,
    /// The page's parameters.
    pub(super) state: Value,
    pub(super) elements: Range<usize>,
    /// How many elements the moments have: the page's, or, where others keep the rest, these.
    pub(super) kept: usize,
    /// A copy in f16, and the page's first element that it is of.
    pub(super) copy: Option<(usize, Value)>,
}

impl<'a> Stretch<'a> {
    /// All of a page.
    pub(super) fn whole(index: usize, page: &'a Page, state: Value) -> Stretch<'a> {
        Stretch { index, page, state, elements: 0..page.elements, kept: page.elements, copy: None }
    }

    /// Some elements of one, of which alone there are moments.
    fn part(index: usize, page: &'a Page, state: Value, elements: Range<usize>) -> Stretch<'a> {
        Stretch { index, page, state, kept: elements.len(), elements, copy: None }
    }
}

/// Gives a graph the output [`UPDATE_NORM`], from all sums of squares of what is added.
pub(super) fn output_norm(g: &mut Graph, added: &[Value]) -> Result<()> {
    let norm = g.scope("optimizer.update", |g| g.apply1(GlobalNorm, added))?;
    g.output(UPDATE_NORM, norm);
    Ok(())
}

/// The table of gaps, where there are any, as updates and norms take it.
pub(super) fn gap_constant(g: &mut Graph, gaps: &[(usize, usize)]) -> Vec<Value> {
    gap_table(gaps).map(|(ty, bytes)| g.constant("gaps", ty, bytes)).into_iter().collect()
}

/// Adds a batch's weight, and its loss times that, to their sums.
pub(super) fn accumulate_sums(g: &mut Graph, all: [Value; 2], keep: Value) -> Result<()> {
    let sums = sums(g);
    all.into_iter().zip(sums).try_for_each(|(x, sum)| g.apply(Accumulate { start: 0 }, &[sum, x, keep]).map(|_| ()))
}

/// Sums of weights, and of losses times these.
pub(super) fn sums(g: &mut Graph) -> [Value; 2] {
    ["weight", "loss"].map(|what| g.state(&format!("{SUMS}.{what}"), TensorType::f32([1])))
}
