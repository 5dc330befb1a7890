//! The best mesh of a machine for a step: all that fit are predicted, and why the others lose is said.

use super::machine_file::MachineFile;
use super::part::Parts;
use super::scale::{Prediction, predict};
use super::setup::{Recompute, Setup};
use super::shards::Params;
use super::{Mesh, Usage};
use crate::base::count;
use crate::compile::human_bytes;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::optim::Shard;
use crate::train::Recipe;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is left open; nothing means that it is looked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// The axes.
    pub mesh: Option<Mesh>,
    /// What is sharded.
    pub shard: Option<Shard>,
    /// What is computed again.
    pub recompute: Option<Recompute>,
    /// Sequences at a time.
    pub micro_batch: Option<usize>,
    /// Micro-batches of a step.
    pub batches: Option<usize>,
    /// Stages of a pipeline rank.
    pub interleave: Option<usize>,
}

/// Why a mesh is not the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loser {
    /// The axes.
    pub mesh: Mesh,
    /// Seconds of a step by the best setup on it; nothing where none fits.
    pub seconds: Option<f64>,
    /// A sentence.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The best; nothing where none fits.
    pub best: Option<Prediction>,
    /// The others, the fastest first, and then those that do not fit, the smallest first; of each mesh its best setup.
    pub losers: Vec<Loser>,
    /// How many ways were predicted.
    pub tried: usize,
}

/// Predicts every way that is left open on so many ranks, and that a run of `recipe` may go: what its ranks would refuse is not
/// tried.
///
/// # Errors
/// If none may, or the one that was asked for may not.
pub fn search(
    config: &ModelConfig,
    recipe: &Recipe,
    setup: Setup,
    asked: Asked,
    ranks: usize,
    machine: &MachineFile,
) -> Result<Found> {
    let memory = machine.memory.map_or(u64::MAX, |m| m.0);
    let mut parts: HashMap<[usize; 3], Option<Parts>> = HashMap::new();
    let mut best: BTreeMap<Mesh, Prediction> = BTreeMap::new();
    let mut smallest: BTreeMap<Mesh, Usage> = BTreeMap::new();
    let (mut tried, mut refused) = (0, Refused::default());
    for mesh in asked.mesh.map_or_else(|| meshes(config, setup, ranks, machine), |mesh| vec![mesh]) {
        let setups = setups(config, recipe, mesh, setup, asked, &mut refused);
        if setups.is_empty() {
            continue;
        }
        let params = Params::of(config, mesh);
        for setup in setups {
            let key = [setup.micro_batch, mesh.sequence, mesh.tensor];
            let sizes = [setup.micro_batch, setup.seq / mesh.sequence, setup.seq];
            let own = *parts.entry(key).or_insert_with(|| match Parts::of(config, sizes, mesh.tensor) {
                Ok(parts) => Some(parts),
                Err(e) => {
                    refused.add(mesh, e);
                    None
                }
            });
            let Some(own) = own else { continue };
            let predicted = match predict(config, &own, &params, mesh, setup, machine) {
                Ok(predicted) => predicted,
                Err(e) => {
                    refused.add(mesh, e);
                    continue;
                }
            };
            tried += 1;
            if predicted.usage.total() > memory {
                let least = smallest.entry(mesh).or_insert(predicted.usage);
                if predicted.usage.total() < least.total() {
                    *least = predicted.usage;
                }
            } else if best.get(&mesh).is_none_or(|b| predicted.seconds.total() < b.seconds.total()) {
                best.insert(mesh, predicted);
            }
        }
    }
    if tried == 0 {
        let Setup { batch, seq, .. } = setup;
        let (ranks, why) = (count(ranks, "rank"), refused.words());
        return Err(refused.last.filter(|_| asked.mesh.is_some()).unwrap_or_else(|| {
            Error::Invalid(format!(
                "no mesh of {ranks} goes with a step of {batch} x {seq} tokens; choose another --batch, or fewer ranks{why}"
            ))
        }));
    }
    Ok(judge(best, &smallest, memory, tried))
}

/// Why meshes may not be had.
#[derive(Default)]
struct Refused {
    reasons: Vec<Reason>,
    last: Option<Error>,
}

/// One kind of reason.
struct Reason {
    /// Its words without numbers, by which the same is known again.
    words: String,
    /// The first of its kind that was met.
    first: String,
    /// Whose it is.
    meshes: BTreeSet<Mesh>,
}

impl Refused {
    fn add(&mut self, mesh: Mesh, error: Error) {
        let text = error.to_string();
        // Advice stands behind the reason.
        let first = text.split("; ").next().unwrap_or_default().to_string();
        let is_word = |part: &&str| !part.contains(|c: char| c.is_ascii_digit());
        let words = first.split(' ').filter(is_word).collect::<Vec<_>>().join(" ");
        match self.reasons.iter_mut().find(|known| known.words == words) {
            Some(known) => drop(known.meshes.insert(mesh)),
            None => self.reasons.push(Reason { words, first, meshes: [mesh].into() }),
        }
        self.last = Some(error);
    }

    /// Of each kind of reason one, and of how many other meshes it is.
    fn words(&self) -> String {
        let more = |n: usize| if n == 0 { String::new() } else { format!(" (so with {n} more)") };
        let said = self.reasons.iter().map(|Reason { first, meshes, .. }| format!("{first}{}", more(meshes.len() - 1)));
        match said.collect::<Vec<_>>() {
            said if said.is_empty() => String::new(),
            said => format!(": {}", said.join("; ")),
        }
    }
}

fn judge(all: BTreeMap<Mesh, Prediction>, smallest: &BTreeMap<Mesh, Usage>, memory: u64, tried: usize) -> Found {
    let mut all: Vec<Prediction> = all.into_values().collect();
    all.sort_by(|a, b| a.seconds.total().total_cmp(&b.seconds.total()));
    let mut losers: Vec<Loser> = Vec::new();
    for other in all.iter().skip(1) {
        // What it spends most on beyond the best.
        let more = other.seconds.parts().into_iter().zip(all[0].seconds.parts());
        let more = more.map(|((name, mine), (_, best))| (name, mine - best));
        let (name, seconds) = more.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are parts");
        let share = (other.seconds.total() / all[0].seconds.total() - 1.0) * 100.0;
        let why = format!("{share:.0} % slower, most of it {name}: {seconds:.3} s more");
        losers.push(Loser { mesh: other.mesh, seconds: Some(other.seconds.total()), why });
    }
    let mut larger: Vec<_> = smallest.iter().filter(|(mesh, _)| !all.iter().any(|p| p.mesh == **mesh)).collect();
    larger.sort_by_key(|(_, usage)| usage.total());
    for (mesh, usage) in larger {
        let (name, bytes) = usage.kinds().into_iter().max_by_key(|(_, bytes)| *bytes).expect("there are kinds");
        let [total, bytes, memory] = [usage.total(), bytes, memory].map(human_bytes);
        let why = format!("takes {total} at least, {bytes} of them {name}, and a rank has {memory}");
        losers.push(Loser { mesh: *mesh, seconds: None, why });
    }
    Found { best: all.into_iter().next(), losers, tried }
}

/// Every mesh of so many ranks that a model and a machine allow.
fn meshes(config: &ModelConfig, setup: Setup, ranks: usize, machine: &MachineFile) -> Vec<Mesh> {
    // Nobody's tensor parallelism leaves the first level twice: its messages are hidden by nothing.
    let node = machine.levels.first().and_then(|l| l.ranks).unwrap_or(1).clamp(1, 64);
    let divisors = |n: usize, most: usize| (1..=most.min(n)).filter(move |d| n.is_multiple_of(*d));
    let mut found = Vec::new();
    for tensor in divisors(ranks, 2 * node) {
        for pipeline in divisors(ranks / tensor, config.num_hidden_layers) {
            for sequence in divisors(ranks / tensor / pipeline, 64).filter(|s| setup.seq / s >= 512 || *s == 1) {
                let data = ranks / tensor / pipeline / sequence;
                if data > setup.batch {
                    continue;
                }
                let experts = config.experts.map_or(1, |e| e.count);
                for expert in divisors(data, experts).filter(|n| experts.is_multiple_of(*n)) {
                    found.push(Mesh { data, tensor, pipeline, expert, sequence });
                }
            }
        }
    }
    found
}

/// Every setup that is left open on a mesh, and that a run may have; why others are `refused`.
fn setups(
    config: &ModelConfig,
    recipe: &Recipe,
    mesh: Mesh,
    setup: Setup,
    asked: Asked,
    refused: &mut Refused,
) -> Vec<Setup> {
    let each = setup.batch / mesh.data;
    let sizes: Vec<usize> = match (asked.micro_batch, asked.batches) {
        (Some(n), _) => vec![n],
        (None, Some(batches)) => (1..=each).filter(|n| n * batches == each).collect(),
        (None, None) => [1, 2, 4, 8, 16].into_iter().filter(|n| each.is_multiple_of(*n)).collect(),
    };
    let interleaves: Vec<usize> = match (asked.interleave, mesh.pipeline) {
        (Some(n), _) => vec![n],
        (None, 1) => vec![1],
        (None, p) => [1, 2, 4].into_iter().filter(|v| v * p <= config.num_hidden_layers).collect(),
    };
    let shards = asked.shard.map_or_else(|| Shard::ALL.map(|(_, shard)| shard).to_vec(), |shard| vec![shard]);
    let kept = asked.recompute.map_or_else(|| Recompute::ALL.to_vec(), |r| vec![r]);
    let mut found = Vec::new();
    for &micro_batch in &sizes {
        for &interleave in &interleaves {
            for &shard in &shards {
                let setup = Setup { micro_batch, interleave, shard, ..setup };
                let run = setup.over(recipe, mesh);
                match run.check().and_then(|()| run.check_split(config)) {
                    Ok(()) => found.extend(kept.iter().map(|&recompute| Setup { recompute, ..setup })),
                    Err(error) => refused.add(mesh, error),
                }
            }
        }
    }
    found
}
