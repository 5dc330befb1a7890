//! What a training step computes, and validation, as graphs.

use super::Recipe;
use super::load::Load;
use super::stages::Stages;
use super::trainer::make_copies;
use crate::base::{Axis, Limits, Rng, TensorType};
use crate::compile::{Chooser, Plan, compile};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::model::{DpoConfig, Llama, ModelConfig, PairInputs, PreferenceLoss, Said, Share, preference};
use crate::nn::{Declare, ParamLayout, Params};
use crate::ops::{AllReduce, Along, LinearCrossEntropy};
use crate::optim::{MicroBatch, Optimizer, Update};
use crate::parallel::{Mesh, Pipeline, SequenceAxis};
use crate::run::{Executor, States};

/// Where the documents of packed rows begin.
pub(super) const STARTS: &str = "starts";
/// Of each answer of preference pairs, its log-probability by the model that training began with: an input.
pub(super) const REFERENCE: &str = "reference";
/// One over the number of its tokens, an input where the loss is of means over tokens.
pub(super) const TOKEN: &str = "token";
/// Outputs: of each answer its reward; and in validation its log-probability.
pub(super) const REWARDS: &str = "rewards";
pub(super) const ANSWERS: &str = "answers";

/// What a graph of training is for.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// A step of one batch, which trains these pages.
    Step(&'a Optimizer, &'a ParamLayout),
    /// The same by layers, gradients of the vocabulary for so many words at a time.
    Layers(&'a Optimizer, &'a ParamLayout, usize),
    /// One of several batches of a step.
    Batch(&'a Optimizer, &'a ParamLayout),
    /// Validation.
    Validation,
}

/// What the rows of a batch are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// How many there are.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Whether they hold several documents.
    pub packed: bool,
    /// Which tokens of them are a rank's, where it has not all.
    pub sequence: Option<SequenceAxis>,
    /// Where they are preference pairs: how these are trained on.
    pub dpo: Option<&'a DpoConfig>,
    /// The ranks that have rows each.
    pub mesh: Mesh,
    /// How much room ranks have for each other's slots.
    pub capacity: Option<f64>,
    /// The pipeline that they go through as one of several micro-batches.
    pub pipeline: Option<Pipeline>,
}

impl Rows<'_> {
    /// Those of a rank of a recipe's mesh.
    pub fn of(recipe: &Recipe, rank: usize) -> Rows<'_> {
        let Recipe { seq, pack: packed, dpo, mesh, expert_capacity: capacity, .. } = recipe;
        let (batch, pipeline, sequence) = (recipe.rows(), recipe.pipeline(), SequenceAxis::of(*mesh, rank));
        let (dpo, mesh, capacity) = (dpo.as_ref(), *mesh, *capacity);
        Rows { batch, seq: *seq, packed: *packed, sequence, dpo, mesh, capacity, pipeline }
    }
}

/// The graph of a batch.
pub(super) fn graph(model: &Llama, params: &dyn Declare, rows: Rows, work: Work) -> Result<Graph> {
    let Rows { batch, seq, packed, sequence, dpo, mesh, capacity, pipeline } = rows;
    // Every size and sum of the plan is then far from the end of 64 bits.
    let token = model.config().train_flops_per_token(seq);
    let flops = token.saturating_mul(batch as u128).saturating_mul(seq as u128);
    if flops > 1 << 62 {
        let message = format!("a step of {batch} sequences of {seq} tokens takes {flops} operations with this model");
        return Err(Error::Invalid(format!("{message}, more than can be counted; choose a smaller --batch or --seq")));
    }
    let mut g = Graph::new();
    // On a pipeline the graph of all layers is cut into stages in the end.
    let own = params;
    let staged = pipeline.map(|pipeline| Stages::of(model, own, pipeline)).transpose()?.flatten();
    let layers: &dyn Declare = staged.as_ref().map_or(own, |staged| &*staged.layers);
    let params: Params = layers.declare(&mut g)?;
    let seq = sequence.map_or(Ok(seq), |axis| axis.tokens(seq))?;
    let tokens = g.input("tokens", TensorType::u32([batch, seq]));
    let targets = g.input("targets", TensorType::u32([batch, seq]));
    let starts = packed.then(|| g.input(STARTS, TensorType::u32([batch, seq])));
    let mut asked = None;
    // Validation tells of the model as it is: nothing is dropped, and nothing added to the loss.
    let is_step = !matches!(work, Work::Validation);
    let share = Share { mesh, sequence, capacity: capacity.filter(|_| is_step) };
    let mut experts: Option<Said> = None;
    // Of pairs, numbers of each answer.
    let mut told: Vec<(&str, Value)> = Vec::new();
    let along = (mesh.replicas() > 1).then_some(Along { axis: Axis::Data, ranks: mesh.replicas() });
    let mut loss = |g: &mut Graph| -> Result<[Value; 2]> {
        let before = g.nodes().len();
        let both = match dpo {
            None => {
                let said = model.said_by_rank(g, &params, layers, share, [tokens, targets], starts)?;
                let both = [if is_step { said.loss } else { said.cross_entropy }, said.count];
                experts = Some(said);
                both
            }
            Some(_) => [model.log_probs_by_rank(g, &params, layers, share, [tokens, targets], starts)?; 2],
        };
        // Before the sums over answers, which f16 would not hold.
        if work.is_narrow() {
            g.narrow_from(before);
        }
        let Some(dpo) = dpo else { return Ok(both) };
        let of = *asked.get_or_insert_with(|| {
            let mut each = |name| g.input(name, TensorType::f32([batch]));
            let token = (dpo.loss == PreferenceLoss::Ipo).then(|| each(TOKEN));
            PairInputs { reference: each(REFERENCE), token }
        });
        let said = preference(g, both[0], of, dpo, sequence.map(|axis| axis.along))?;
        // By layers the loss may be made twice.
        told = vec![(REWARDS, said.rewards)];
        if !is_step {
            told.push((ANSWERS, said.answers));
        }
        let pairs = (batch / 2) as f32;
        Ok([said.loss, g.constant("pairs", TensorType::f32([1]), pairs.to_le_bytes().to_vec())])
    };
    match work {
        Work::Step(optimizer, layout) => {
            let [loss, _] = loss(&mut g)?;
            optimizer.train_step(&mut g, layout, &params, loss)?;
        }
        Work::Layers(optimizer, layout, words) => {
            optimizer.layered_step(&mut g, layout, &params, words, along, &mut loss)?;
        }
        Work::Batch(optimizer, layout) => {
            let both = loss(&mut g)?;
            if let Some(staged) = staged {
                let load = Load::of_model(model.config()).zip(experts);
                let tallies = load.map(|(load, said)| load.tallies(&said)).unwrap_or_default();
                let told = told.iter().map(|(name, value)| (name.to_string(), *value)).collect();
                return staged.step(g, &params, both, optimizer, layout, &MicroBatch { rows: batch, tallies, told });
            }
            optimizer.accumulate_step(&mut g, layout, &params, both, batch)?;
        }
        Work::Validation => {
            let [loss, _] = loss(&mut g)?;
            told.push(("loss", loss));
            if let Some(staged) = staged {
                return staged.validation(g, &params, &told);
            }
        }
    }
    told.iter().for_each(|(name, value)| g.output(name, *value));
    if let (Some(load), Some(mut said), true) = (Load::of_model(model.config()), experts, is_step) {
        if let (Work::Layers(..), Some(along)) = (work, along) {
            // No update follows, before which ranks would sum what all of them count.
            for number in said.counts.iter_mut().chain(&mut said.dropped) {
                *number = g.scope("ranks", |g| g.apply1(AllReduce(along), &[*number]))?;
            }
        }
        load.gather(&mut g, &said)?;
        if !matches!(work, Work::Batch(..)) {
            load.tell(&mut g)?;
        }
    }
    Ok(g)
}

impl<'a> Work<'a> {
    /// A step of rows of a model, as its optimizer has it.
    pub(super) fn step(
        optimizer: &'a Optimizer,
        layout: &'a ParamLayout,
        model: &ModelConfig,
        rows: Rows,
        limits: &Limits,
    ) -> Work<'a> {
        match optimizer.update {
            Update::Step => Work::Step(optimizer, layout),
            // As many words as the loss takes at a time, whose kernels then are the same.
            Update::Layer => {
                let words = LinearCrossEntropy::chunk_for(rows.batch * rows.seq, model.hidden_size, limits);
                Work::Layers(optimizer, layout, words)
            }
        }
    }

    /// Whether products round their operands. Validation tells of the model that is saved, whose parameters are f32.
    fn is_narrow(&self) -> bool {
        match self {
            Work::Step(o, _) | Work::Batch(o, _) | Work::Layers(o, ..) => o.loss_scaling.is_some(),
            Work::Validation => false,
        }
    }
}

/// The plan of one training step, without touching a device.
///
/// # Errors
/// If the model fits no buffer of an adapter with these limits.
pub fn train_plan(
    config: &ModelConfig,
    batch: usize,
    seq: usize,
    optimizer: &Optimizer,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plan> {
    compile(&train_graph(config, batch, seq, optimizer, limits)?, limits, chooser)
}

/// The graph that [`train_plan`] compiles.
///
/// # Errors
/// If a step would take more operations than can be counted.
pub fn train_graph(
    config: &ModelConfig,
    batch: usize,
    seq: usize,
    optimizer: &Optimizer,
    limits: &Limits,
) -> Result<Graph> {
    let model = Llama::new(config.clone());
    let layout = optimizer.layout(model.param_specs(), limits.max_buffer_bytes)?;
    let rows =
        Rows { batch, seq, packed: false, sequence: None, dpo: None, mesh: Mesh::ONE, capacity: None, pipeline: None };
    let graph = graph(&model, &layout, rows, Work::step(optimizer, &layout, config, rows, limits))?;
    optimizer.read_copies(&graph, &layout, limits)
}

/// Gives a plan of [`train_plan`] fresh parameters and some tokens, so that it can be timed: how long experts take
/// depends on which tokens choose them.
///
/// # Errors
/// If the device fails.
pub async fn fill(
    config: &ModelConfig,
    optimizer: &Optimizer,
    executor: &mut Executor,
    states: &mut States,
) -> Result<()> {
    let layout = optimizer.layout(Llama::new(config.clone()).param_specs(), states.gpu().limits().max_buffer_bytes)?;
    for (i, page) in layout.init(0).iter().enumerate() {
        states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page)).await?;
    }
    make_copies(states, optimizer, &layout).await?;
    let count = executor.input("tokens").map_or(0, |ty| ty.shape.elements());
    let mut rng = Rng::new(0, 0);
    let tokens: Vec<u32> = (0..count).map(|_| rng.below(config.vocab_size) as u32).collect();
    executor.set("tokens", &tokens)?;
    executor.set("targets", &tokens)
}
