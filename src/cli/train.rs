//! `danlu train`: its flags, and the recipe that they make.

mod auto;
mod run;

pub use run::run;

use super::finetune::{Kind, LoraArgs};
use super::progress::LogFormat;
use super::ranks::RankArgs;
use super::{AdapterArgs, hub};
use crate::base::Bytes;
use crate::data::{DataSource, DataSources, LossOn, Overlong};
use crate::error::Error;
use crate::optim::{Rule, Shape, Shard, Update};
use crate::parallel::Mesh;
use crate::run::TuneMode;
use crate::store::HubPart;
use crate::train::{OnDivergence, Precision, Recipe, Resumption, RunLock, give_up, occupied};
use anyhow::{Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Flags of `danlu train`; each overrides the recipe's key of the same name.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A TOML recipe; flags override its keys.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// A preset, a config.json, a folder that holds one, or a name on the hub: org/model, whose weights are
    /// not taken; without --model [default: story-1m].
    #[arg(long, value_name = "PRESET|FILE|NAME")]
    config: Option<String>,
    /// A model to go on with, tokenizer and all: a folder, a GGUF file or a name on the hub.
    #[arg(long, value_name = "PATH|NAME", conflicts_with_all = ["config", "tokenizer"])]
    model: Option<String>,
    /// Text; examples as JSONL or JSON, also compressed (.gz, .zst), or as Parquet (text, messages, prompt/completion, Alpaca,
    /// ShareGPT); a folder of such files; or a data set on the hub: org/name. Several with the weights of their rows
    /// [default: embedded stories].
    #[arg(long, value_name = "FILE|FOLDER|NAME[=WEIGHT]")]
    data: Vec<DataSource>,
    /// Pack documents into full rows, of which each sees nothing of the others.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pack: Option<bool>,
    /// Rows of examples that are not packed have at most so many lengths, as their tokens suggest; 1: all have --seq
    /// [default: 4].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    lengths: Option<usize>,
    /// What to do with documents longer than a row [default: text is split, examples are truncated].
    #[arg(long, value_name = "truncate|drop|split")]
    overlong: Option<Overlong>,
    /// Which tokens of a conversation are to be predicted [default: assistant].
    #[arg(long, value_name = "assistant|all")]
    loss_on: Option<LossOn>,
    /// An existing tokenizer.json, a model's GGUF file, or a name on the hub [default: a BPE trained on the data].
    #[arg(long, value_name = "FILE|NAME")]
    tokenizer: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<u64>,
    /// Sequences that are computed at a time.
    #[arg(long, allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Batches of one step: gradients are added up, each token weighing the same [default: 1].
    #[arg(long, value_name = "BATCHES", allow_negative_numbers = true)]
    accumulate: Option<u32>,
    /// Tokens of one sequence.
    #[arg(long, allow_negative_numbers = true)]
    seq: Option<usize>,
    /// Most device memory of a step and of validation, such as 6GB: activations that do not fit are computed again
    /// [default: what the adapter has].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// `f32`, or `mixed`: products round their operands to f16, and the loss is scaled.
    #[arg(long, value_name = "f32|mixed")]
    precision: Option<Precision>,
    /// With mixed precision: whether weights are kept in f16 as well, as products read them, two bytes a parameter [default: true].
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    weight_copies: Option<bool>,
    /// How parameters follow from gradients [default: adamw].
    #[arg(long, value_name = "adamw|adamw8bit|muon|sgd")]
    optimizer: Option<Rule>,
    /// When parameters change: after the backward pass, or, to keep no gradients, layer by layer in it: with clipping that
    /// takes twice the time [default: step].
    #[arg(long, value_name = "step|layer")]
    update: Option<Update>,
    /// Highest learning rate.
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// The gradient is scaled down to this global norm, 0 for never [default: 1].
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    clip: Option<f64>,
    /// How it goes on after the warm-up [default: cosine].
    #[arg(long, value_name = "constant|linear|cosine|wsd")]
    schedule: Option<Shape>,
    /// Keep a moving average of the parameters with this decay, such as 0.999, and validate and write that.
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true)]
    ema: Option<f64>,
    /// Seed of weights, data order and samples.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Folder for the model [default: runs/model, of finetune runs/finetuned, of dpo runs/preferred].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Text that the samples go on from.
    #[arg(long)]
    prompt: Option<String>,
    /// Take up the run in this folder, or in --out, from its last checkpoint: as if it had never stopped.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, conflicts_with = "recipe")]
    resume: Option<Option<PathBuf>>,
    /// Start anew whatever the folder holds: a run, whose checkpoints and metrics go, a model, or something else.
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Steps between checkpoints, 0 for none [default: as often as validation].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    checkpoint_every: Option<u64>,
    /// How many of the last checkpoints stay, beside the best by validation; the last stays also with 0 [default: 2].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    keep: Option<usize>,
    /// Steps between validations [default: a tenth of all].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    eval_every: Option<u64>,
    /// Most sequences of one validation [default: 32, of finetune and dpo 16].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    val_sequences: Option<u64>,
    /// End after this many validations without a lower loss [default: never].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    patience: Option<u64>,
    /// A folder of each machine's own, such as /dev/shm: where ranks write parts of checkpoints (--shard), a neighbour keeps a
    /// copy of each there, from which a part that is lost is put back.
    #[arg(long, value_name = "FOLDER")]
    neighbour_copies: Option<PathBuf>,
    /// When training diverges: back to the last checkpoint and on with a lower rate, or stop [default: rollback].
    #[arg(long, value_name = "rollback|stop")]
    on_divergence: Option<OnDivergence>,
    /// Print the recipe that flags and files come to, as TOML, and train nothing.
    #[arg(long)]
    print_recipe: bool,
    /// Score these files of items, as `danlu eval --items` takes them, after each validation.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    eval_tasks: Option<Vec<PathBuf>>,
    /// Say nothing but where the model lies.
    #[arg(long)]
    quiet: bool,
    /// How the run is reported.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Which kernels: `full` measures candidates once and remembers, `cached` measures nothing, `off` takes the first
    /// [default: full].
    #[arg(long, value_name = "off|cached|full")]
    tune: Option<TuneMode>,
    /// Also write the initial model, tokens.bin and val.bin there, for comparison with another trainer.
    #[arg(long, value_name = "FOLDER")]
    dump: Option<PathBuf>,
    /// Record the ten steps after the first: a table of where their time goes at the end, and there a trace that
    /// ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Axes along which ranks share the work, each with an adapter of its own, such as data=4 or data=2,tensor=2; there are data,
    /// tensor, pipeline, expert and sequence. With `auto` the planner chooses them, and the run keeps them [default: one rank].
    #[arg(long, value_name = "auto|AXIS=N,...")]
    mesh: Option<Wanted>,
    /// With a pipeline=N in the mesh: stages of each rank; several interleave [default: 1].
    #[arg(long, value_name = "STAGES", allow_negative_numbers = true)]
    interleave: Option<usize>,
    /// What ranks share out among them, each keeping its part: the optimizer's moments, gradients too, or parameters too
    /// (ZeRO's stages 1, 2 and 3) [default: none].
    #[arg(long, value_name = "none|optimizer|gradients|parameters")]
    shard: Option<Shard>,
    /// Of ranks with other experts each: slots that one takes of another, in multiples of their mean, such as 1.25; others are
    /// dropped [default: all are taken].
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    expert_capacity: Option<f64>,
    /// Share of the experts' balance in the loss [default: the configuration's].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    router_aux_loss: Option<f64>,
    /// Share of the routers' z-loss in the loss [default: the configuration's].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    router_z_loss: Option<f64>,
    /// Steps after which ranks compare what must be the same on all, 0 for never [default: 100].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    compare_every: Option<u64>,
    #[command(flatten)]
    ranks: RankArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
}

/// What --mesh says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The planner is to choose.
    Auto,
    /// These axes.
    Axes(Mesh),
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "auto" { Ok(Wanted::Auto) } else { text.parse().map(Wanted::Axes) }
    }
}

impl TrainArgs {
    /// The recipe of a run that is to be started, or of that which is to be taken up.
    pub fn aim(&self, kind: &Kind) -> Result<Recipe> {
        let Some(folder) = self.taken_up(kind)? else {
            return Ok(self.put(kind.over(kind.recipe(self.recipe.as_deref())?)));
        };
        Ok(Resumption::find(&folder, &mut |_| ())?.recipe)
    }

    /// The folder of the run that is to be taken up, if one is.
    fn taken_up(&self, kind: &Kind) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.resume else { return Ok(None) };
        let folder = folder.clone().or(self.out.clone());
        Ok(Some(folder.map_or_else(|| Ok(kind.recipe(None)?.out), Ok::<_, anyhow::Error>)?))
    }

    /// The mesh that a flag gives.
    pub fn mesh(&self) -> Option<Mesh> {
        match self.mesh {
            Some(Wanted::Axes(mesh)) => Some(mesh),
            Some(Wanted::Auto) | None => None,
        }
    }

    /// Whether the planner is to choose the mesh.
    pub fn is_auto(&self) -> bool {
        self.mesh == Some(Wanted::Auto)
    }

    /// Ranks that it is to choose one for, where a flag says how many.
    pub fn ranks(&self) -> Option<u32> {
        self.ranks.count
    }

    /// What the planner will choose for so many ranks, so many of them on a machine, where a flag names that: a sentence.
    pub fn foreseen(&self, recipe: &Recipe, ranks: usize, near: usize) -> Result<Option<String>> {
        Ok(auto::foreseen(self, recipe, ranks, near)?.map(|chosen| chosen.why))
    }

    /// Whether ranks may share an adapter.
    pub fn shares_adapters(&self) -> bool {
        self.ranks.share_adapter
    }

    /// Whether a run is to be taken up.
    pub fn is_resumed(&self) -> bool {
        self.resume.is_some()
    }

    /// Refuses to begin a run in a folder that holds something of worth, unless told.
    pub fn check_free(&self, out: &Path) -> Result<()> {
        let is_told = self.force || self.print_recipe || self.resume.is_some();
        match occupied(out).filter(|_| !is_told) {
            Some(text) => bail!(text),
            None => Ok(()),
        }
    }

    /// Makes a folder ready for the run that these flags ask for, before anything is started that may fail without having begun it:
    /// what is taken up then is this run, and none that was there.
    pub fn make_free(&self, recipe: &Recipe) -> Result<()> {
        RunLock::check(&recipe.out)?;
        self.check_free(&recipe.out)?;
        if self.resume.is_none() && !self.print_recipe {
            // Nothing is given up for a run that cannot be.
            self.check(recipe)?;
            give_up(&recipe.out, self.recipe.as_deref())?;
        }
        Ok(())
    }

    /// Whether what these flags ask for was done: the run in `out` says itself that it came to its end.
    pub fn is_done(&self, out: &Path) -> bool {
        self.print_recipe || RunLock::has_ended(out)
    }

    /// How long a rank of the run that these flags ask for may give no sign of life.
    pub fn silence(&self) -> Option<Duration> {
        self.ranks.patience().silence
    }

    /// The recipe, and where the run is taken up, if it is; `note` hears of checkpoints that are damaged.
    fn recipe(&self, kind: &Kind, note: &mut dyn FnMut(String)) -> Result<(Recipe, Option<Resumption>)> {
        let Some(folder) = self.taken_up(kind)? else {
            let recipe = self.over(kind.over(kind.recipe(self.recipe.as_deref())?))?;
            kind.check(&recipe)?;
            RunLock::check(&recipe.out)?;
            self.check_free(&recipe.out)?;
            return Ok((recipe, None));
        };
        let mut resumption = Resumption::find(&folder, note)?;
        kind.check_resumed(&resumption.recipe)?;
        let wanted = self.over(kind.over(resumption.recipe.clone()))?;
        if let (Some(factor), None) = (resumption.recipe.expert_capacity, wanted.expert_capacity) {
            note(format!(
                "the run's expert_capacity of {factor} is left out: mesh is {}, where each rank has all experts, and nothing is dropped",
                wanted.mesh
            ));
        }
        resumption.change(Recipe { out: folder, ..wanted })?;
        Ok((resumption.recipe.clone(), Some(resumption)))
    }

    /// A recipe with the flags in place of its keys, checked, and with names on the hub resolved.
    fn over(&self, recipe: Recipe) -> Result<Recipe> {
        let mut r = self.put(recipe);
        self.check(&r)?;
        let place = |path: &Path| path.canonicalize().ok();
        if r.model.as_ref().and_then(|model| place(Path::new(model))).is_some_and(|model| place(&r.out) == Some(model))
        {
            bail!(
                "{} is the model that training goes on with, and what is trained would take its place: choose another --out",
                r.out.display()
            );
        }
        if r.model.is_none() {
            r.config = hub::resolve_config(&r.config)?;
        }
        for source in &mut r.data.0 {
            source.path = hub::resolve_data(&source.path)?;
        }
        r.tokenizer = r.tokenizer.map(|t| hub::resolve_part(&t, HubPart::Tokenizer)).transpose()?;
        Ok(r)
    }

    /// Refuses values that no run can use, and flags that are for a mesh that is chosen where none is; of one that is yet to be
    /// chosen not what goes with it.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        if !self.is_auto() {
            let unheard = [("--ranks", self.ranks.count.is_some()), ("--machine", self.ranks.machine.is_some())];
            if let Some((flag, _)) = unheard.into_iter().find(|(_, is_given)| *is_given) {
                bail!("{flag} is for the mesh that --mesh auto chooses; add that, or leave {flag} out");
            }
            return Ok(recipe.check()?);
        }
        let alone =
            Recipe { mesh: Mesh::ONE, interleave: 1, shard: Shard::None, expert_capacity: None, ..recipe.clone() };
        Ok(alone.check()?)
    }

    /// A recipe with the flags in place of its keys.
    fn put(&self, mut r: Recipe) -> Recipe {
        fn put<T: Clone>(flag: &Option<T>, key: &mut T) {
            if let Some(value) = flag {
                *key = value.clone();
            }
        }
        put(&self.config, &mut r.config);
        put(&self.steps, &mut r.steps);
        put(&self.batch, &mut r.batch);
        put(&self.seq, &mut r.seq);
        put(&self.precision, &mut r.precision);
        put(&self.weight_copies, &mut r.weight_copies);
        put(&self.accumulate, &mut r.accumulate);
        put(&self.optimizer, &mut r.optimizer);
        put(&self.update, &mut r.update);
        put(&self.lr, &mut r.lr);
        put(&self.clip, &mut r.clip);
        put(&self.schedule, &mut r.schedule);
        put(&self.ema, &mut r.ema);
        put(&self.seed, &mut r.seed);
        put(&self.out, &mut r.out);
        put(&self.prompt, &mut r.prompt);
        put(&self.keep, &mut r.checkpoint.keep);
        put(&self.patience, &mut r.patience);
        put(&self.on_divergence, &mut r.recovery.on_divergence);
        r.eval_every = self.eval_every.or(r.eval_every);
        put(&self.val_sequences, &mut r.val_sequences);
        r.checkpoint.every = self.checkpoint_every.or(r.checkpoint.every);
        r.checkpoint.neighbour_copies = self.neighbour_copies.clone().or(r.checkpoint.neighbour_copies);
        r.memory = self.memory.or(r.memory);
        r.model = self.model.clone().or(r.model);
        r.lora = self.lora.over(r.lora);
        put(&self.pack, &mut r.pack);
        put(&self.lengths, &mut r.lengths);
        put(&self.loss_on, &mut r.loss_on);
        r.overlong = self.overlong.or(r.overlong);
        if !self.data.is_empty() {
            r.data = DataSources(self.data.clone());
        }
        r.tokenizer = self.tokenizer.clone().or(r.tokenizer);
        r.adapter = self.adapter.adapter.clone().or(r.adapter);
        put(&self.tune, &mut r.tune);
        put(&self.mesh(), &mut r.mesh);
        if self.is_auto() {
            r.mesh = Mesh::ONE;
        }
        if self.mesh().is_some_and(|mesh| mesh.pipeline == 1) {
            // A run that is taken up without its pipeline.
            r.interleave = 1;
        }
        put(&self.interleave, &mut r.interleave);
        put(&self.shard, &mut r.shard);
        if self.mesh().is_some_and(|mesh| mesh.expert == 1) {
            // The same, without other experts on other ranks.
            r.expert_capacity = None;
        }
        r.expert_capacity = self.expert_capacity.or(r.expert_capacity);
        r.router_aux_loss = self.router_aux_loss.or(r.router_aux_loss);
        r.router_z_loss = self.router_z_loss.or(r.router_z_loss);
        put(&self.compare_every, &mut r.compare_every);
        put(&self.eval_tasks, &mut r.eval_tasks);
        r
    }
}

/// Trains a model and saves it; gives the exit code.
pub async fn train(args: TrainArgs) -> Result<u8> {
    run(args, Kind::Train).await
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
