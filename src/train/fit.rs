//! The plans of training, within the memory that there is: where activations do not fit, some are computed again.

use super::data_axis::DataAxis;
use super::graphs::{Rows, Work, graph};
use super::load::Load;
use super::{Base, Recipe, Subject, optimizer};
use crate::base::{Bytes, Limits};
use crate::compile::{
    BufferKind, BufferSpec, Chooser, Plan, Trade, compile, compile_steps, human_bytes, optimise, recompute,
};
use crate::error::{Error, Result};
use crate::graph::Kind;
use crate::model::{Llama, ModelConfig};
use crate::nn::Declare;
use crate::optim::Update;
use crate::run::{bytes_beside, device_bytes};

/// What a training run computes.
#[derive(Debug)]
pub struct Plans {
    /// A step, or one of several batches of one.
    pub train: Plan,
    /// The update that follows several batches, or those of several ranks.
    pub apply: Option<Plan>,
    /// Validation.
    pub eval: Plan,
    /// How they were made to fit, where the memory is limited or known.
    pub fit: Option<Fit>,
}

/// How training was made to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Bytes allowed: by the recipe, or by the adapter.
    pub allowed: u64,
    /// Bytes that validation, an update after several batches, and rows of other lengths take of them beside a step.
    pub beside: u64,
    /// What a step trades for the rest.
    pub trade: Trade,
    /// Operations of a step, without what is computed again.
    pub flops: u64,
    asked: bool,
}

impl Fit {
    /// Says aloud what is traded, if anything is.
    pub fn note(&self) -> Option<String> {
        let Trade { before, reached, again, .. } = &self.trade;
        if again.is_empty() {
            return None;
        }
        let copies: usize = again.iter().map(|a| a.copies).sum();
        Some(format!(
            "with every activation kept, training would take {}, and {} {}: {copies} operations of the forward pass are \
             repeated in the backward pass, which adds {:.1} % to a step's work and leaves {}",
            human_bytes(before + self.beside),
            human_bytes(self.allowed),
            if self.asked { "are allowed" } else { "are free" },
            100.0 * self.added(),
            human_bytes(reached + self.beside),
        ))
    }

    /// Work that is done twice, as a share of what a step would be without.
    pub fn added(&self) -> f64 {
        self.trade.flops() as f64 / self.flops.max(1) as f64
    }

    /// Refuses what was asked for and cannot be. What the adapter has is checked where memory is allocated.
    ///
    /// # Errors
    /// A sentence with the smallest number of bytes that would do.
    pub fn check(&self) -> Result<()> {
        let (least, allowed) = (self.bytes(), self.allowed);
        if !self.asked || least <= allowed {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "training takes at least {} ({least} bytes), with all activations recomputed where that helps, and {} \
             ({allowed} bytes) are allowed; allow more, or choose a smaller model, --batch or --seq",
            human_bytes(least),
            human_bytes(allowed),
        )))
    }

    /// Bytes that are taken in all.
    fn bytes(&self) -> u64 {
        self.trade.reached + self.beside
    }
}

/// Plans a step and validation for the memory that the recipe allows, or else that the adapter is known to have. What does
/// not fit even so is planned as small as possible: [`Fit::check`] and `run::check_memory` refuse it. Where adapters are
/// trained, `base` is what they are of; without it, a model in bf16.
///
/// # Errors
/// If a tensor fits no buffer of an adapter with these limits, or has no kernel there.
pub fn plans(
    config: &ModelConfig,
    recipe: &Recipe,
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plans> {
    plans_of_rank(0, config, recipe, base, limits, chooser)
}

/// Those of a rank of the recipe's mesh.
///
/// # Errors
/// As [`plans`].
pub fn plans_of_rank(
    rank: usize,
    config: &ModelConfig,
    recipe: &Recipe,
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plans> {
    let mut all = plans_of_lengths(rank, config, recipe, &[recipe.seq], base, limits, chooser)?;
    Ok(all.pop().expect("rows have a length"))
}

/// Those of a rank of the recipe's mesh, for rows of several lengths, the longest last: what shorter rows take beside the longest,
/// whose arenas they use, is within the memory, too.
///
/// # Errors
/// As [`plans`].
pub fn plans_of_lengths(
    rank: usize,
    config: &ModelConfig,
    recipe: &Recipe,
    lengths: &[usize],
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Vec<Plans>> {
    // Short rows train the function that long ones do.
    let config = &config.turned_for(recipe.seq);
    let mut of = |recipe: &Recipe| together(rank, config, recipe, lengths, base, limits, chooser);
    let all = of(recipe)?;
    let fit = |all: &[Plans]| all.last().and_then(|last| last.fit.clone());
    let is_beyond = |fit: &Fit| fit.bytes() > fit.allowed && !fit.trade.is_least;
    let Some(Fit { allowed, asked, trade, .. }) = fit(&all).filter(is_beyond) else {
        return Ok(all);
    };
    // What was found on the way to a budget depends on it; the least is that of the plans for none.
    let mut least = of(&Recipe { memory: Some(Bytes(0)), ..recipe.clone() })?;
    if let Some(fit) = least.last_mut().and_then(|last| last.fit.as_mut()) {
        (fit.allowed, fit.asked, fit.trade.budget) = (allowed, asked, trade.budget);
    }
    Ok(least)
}

/// The same, as small as is found on the way to the memory.
fn together(
    rank: usize,
    config: &ModelConfig,
    recipe: &Recipe,
    lengths: &[usize],
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Vec<Plans>> {
    let (&longest, shorter) = lengths.split_last().expect("rows have a length");
    let mut of = |seq, memory, beside| {
        let recipe = Recipe { seq, memory, ..recipe.clone() };
        plans_of(rank, config, &recipe, beside, base, limits, chooser)
    };
    // What short rows have room for is known once long ones are planned.
    let mut all = shorter.iter().map(|&seq| of(seq, None, 0)).collect::<Result<Vec<_>>>()?;
    // Of a plan beside itself: its inputs and constants.
    let beside = all.iter().map(|plans| plans.beside(plans)).sum();
    let mut last = of(longest, recipe.memory, beside)?;
    if last.fit.is_some() {
        let step = Bytes(last.train.totals().device_bytes());
        for (plans, &seq) in all.iter_mut().zip(shorter) {
            // Arenas that were made to fit for long rows may be smaller than those that short rows had all the memory for.
            if bytes_beside(&plans.train, &last.train) > bytes_beside(&plans.train, &plans.train) {
                *plans = of(seq, Some(step), 0)?;
            }
        }
    }
    let mut grown = 0;
    for plans in &all {
        grown += widen(&mut last.train, &plans.train) + widen(&mut last.eval, &plans.eval);
    }
    let taken = all.iter().map(|plans| plans.beside(&last)).sum::<u64>();
    if let Some(fit) = &mut last.fit {
        fit.beside += grown + taken.saturating_sub(beside);
    }
    all.push(last);
    Ok(all)
}

/// Makes the arenas of a plan as large as those of one that is to use them; gives by how many bytes.
fn widen(plan: &mut Plan, other: &Plan) -> u64 {
    fn is_arena(buffer: &BufferSpec) -> bool {
        buffer.kind == BufferKind::Arena
    }
    let wanted = other.buffers.iter().filter(|b| is_arena(b));
    let mut grown = 0;
    for (own, wanted) in plan.buffers.iter_mut().filter(|b| is_arena(b)).zip(wanted) {
        let bytes = own.bytes.max(wanted.bytes);
        grown += bytes - own.bytes;
        own.bytes = bytes;
    }
    grown
}

impl Plans {
    /// Bytes that these take beside those of other rows.
    pub fn beside(&self, other: &Plans) -> u64 {
        bytes_beside(&self.train, &other.train) + bytes_beside(&self.eval, &other.eval)
    }
}

/// Those of a rank of the recipe's mesh, where so many bytes are taken `beside` them.
///
/// # Errors
/// As [`plans`].
fn plans_of(
    rank: usize,
    config: &ModelConfig,
    recipe: &Recipe,
    beside: u64,
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plans> {
    let model = Llama::new(config.clone());
    let subject = Subject::of_rank(rank, &model, recipe, base, limits)?;
    subject.check_pages(limits)?;
    let optimizer = optimizer(recipe);
    let axis = DataAxis::of(recipe, rank, &subject.layout);
    let rows = Rows::of(recipe, rank);
    // What changes layer by layer is one plan, whoever shares the batch.
    let several =
        recipe.update == Update::Step && (recipe.accumulate > 1 || axis.is_split() || recipe.mesh.pipeline > 1);
    let (o, layout) = (&optimizer, &subject.layout);
    let step = || Work::step(o, layout, config, rows, limits);
    let work = if several { Work::Batch(o, layout) } else { step() };
    let graph_of = |params: &dyn Declare, work| graph(&model, params, rows, work);
    let graph = optimizer.read_copies(&axis.batch(&graph_of(&subject, work)?)?, layout, limits)?;
    let steps = optimise(&graph, limits)?;
    let eval = axis.validation(&optimise(&graph_of(&*subject.whole(), Work::Validation)?, limits)?)?;
    let eval = compile_steps(&eval, limits, chooser)?;
    let apply =
        several.then(|| compile(&axis.apply(&optimizer, Load::of(config, recipe))?, limits, chooser)).transpose()?;
    let asked = recipe.memory.map(|Bytes(bytes)| bytes);
    let Some(allowed) = asked.into_iter().chain(limits.memory_bytes).min() else {
        let train = compile_steps(&axis.gathered(&steps)?, limits, chooser)?;
        return Ok(Plans { train, apply, eval, fit: None });
    };
    let shared = |name: &str| graph.nodes().iter().any(|n| matches!(n.kind, Kind::State) && n.name == name);
    let beside = beside + device_bytes([&eval].into_iter().chain(&apply), &shared);
    // What is computed again is chosen where all parameters are there, and of these not all will be.
    let (absent, budget) = (axis.absent(), allowed.saturating_sub(beside));
    let (train, trade) = within(budget, absent, |room| {
        let (fitted, trade) = recompute(&steps, limits, room)?;
        let train = compile_steps(&axis.gathered(&fitted)?, limits, chooser)?;
        Ok((train.totals().device_bytes(), train, trade))
    })?;
    let flops = train.totals().flops - trade.flops();
    let fit = Some(Fit { allowed, beside, trade, flops, asked: asked == Some(allowed) });
    Ok(Plans { train, apply, eval, fit })
}

/// Plans that are made for one step at most.
const TRIES: usize = 8;

/// What comes of `plan`, given a room for a step whose parameters are all there, of which so many bytes will be `absent`: bytes that
/// are taken, within the budget where that can be.
fn within<P>(budget: u64, absent: u64, mut plan: impl FnMut(u64) -> Result<(u64, P, Trade)>) -> Result<(P, Trade)> {
    let (mut room, mut best) = (budget + absent, None::<(P, Trade)>);
    for _ in 0..TRIES {
        let (reached, made, trade) = plan(room)?;
        // Pages that come and go may leave holes between activations: then these must do with so much less.
        let next = trade.reached.saturating_sub(reached.saturating_sub(budget));
        let is_open = reached > budget && trade.reached <= room;
        if best.as_ref().is_none_or(|(_, best)| reached < best.reached) {
            best = Some((made, Trade { budget, before: trade.before.saturating_sub(absent), reached, ..trade }));
        }
        if !is_open {
            break;
        }
        room = next;
    }
    Ok(best.expect("one is made"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::First;

    /// Whatever was allowed, what no plan fits is told with one figure; also where the budget had a say in what was tried.
    #[test]
    fn the_least_is_the_same_for_every_budget() {
        let config = crate::model::find_config("story-1m").unwrap();
        let least = |memory| {
            let recipe = Recipe { batch: 4, seq: 64, memory: Some(Bytes(memory)), ..Recipe::default() };
            let fit = plans(&config, &recipe, None, &Limits::default(), &mut First).unwrap().fit.unwrap();
            (fit.bytes(), fit.trade.again)
        };
        let none = least(0);
        assert!(!none.1.is_empty());
        for memory in [none.0 - 1, none.0 / 2] {
            assert!(least(memory) == none, "{memory}");
        }
    }

    /// Positions of short rows turn as those of long ones where frequencies depend on the length, in training and validation.
    #[test]
    fn rows_of_every_length_train_one_function() {
        let map = serde_json::json!({
            "model_type": "phi3", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 64, "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
        });
        let config = ModelConfig::parse(&map.to_string(), std::path::Path::new("c.json")).unwrap();
        let recipe = Recipe { batch: 2, seq: 64, ..Recipe::default() };
        let limits = Limits::default();
        let plans = plans_of_lengths(0, &config, &recipe, &[8, 32], None, &limits, &mut First).unwrap();
        let table = |plan: &Plan| {
            let table = plan.constants.iter().find(|(wire, _)| wire.name.ends_with("rope.table"));
            table.map(|(_, bytes)| bytes.clone()).unwrap()
        };
        let long = table(&plans[1].train);
        assert_eq!(long.len(), 32 * 4 * 2 * 4);
        for plan in [&plans[0].train, &plans[0].eval, &plans[1].eval] {
            let own = table(plan);
            assert!(long.starts_with(&own) && own.len() >= 8 * 4 * 2 * 4);
        }
        // Rows of up to the original context turn otherwise by themselves.
        let short = Recipe { seq: 8, ..recipe };
        let alone = plans_of_lengths(0, &config, &short, &[8], None, &limits, &mut First).unwrap();
        assert!(!long.starts_with(&table(&alone[0].train)));
    }

    /// What is planned takes `hole` bytes more than recomputation reckons with, which cannot go below `least`.
    fn tried(budget: u64, hole: u64, least: u64) -> (Vec<u64>, u64) {
        let mut rooms = Vec::new();
        let made = within(budget, 0, |room| {
            rooms.push(room);
            let reached = room.max(least);
            Ok((reached + hole, (), Trade { budget: room, before: 1000, reached, again: Vec::new(), is_least: false }))
        });
        let ((), trade) = made.unwrap();
        (rooms, trade.reached)
    }

    #[test]
    fn plans_are_made_again_until_they_fit_nothing_can_or_it_is_enough() {
        assert_eq!(tried(100, 0, 50), (vec![100], 100));
        assert_eq!(tried(100, 10, 50), (vec![100, 90], 100));
        assert_eq!(tried(100, 10, 95), (vec![100, 90], 105), "nothing smaller can be");
        // Holes that grow as room shrinks.
        let mut tries = 0;
        let made = within(100, 0, |room| {
            tries += 1;
            Ok((
                101 + (100 - room) / 2,
                (),
                Trade { budget: room, before: 1000, reached: room, again: Vec::new(), is_least: false },
            ))
        });
        made.unwrap();
        assert_eq!(tries, TRIES);
    }
}
