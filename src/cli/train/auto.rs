//! `danlu train --mesh auto`: the planner's mesh for the ranks that there are.

use super::super::mpi::Process;
use super::super::{paths, plan, selector, sentence};
use super::TrainArgs;
use crate::base::{Bytes, count};
use crate::error::Error;
use crate::estimate::{Asked, Found, MachineFile, Rate, Recompute, Setup, Storage, search};
use crate::gpu::{Gpu, Selector, list};
use crate::model::ModelConfig;
use crate::parallel::Mesh;
use crate::run::Tuner;
use crate::train::{Precision, Recipe, World};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// A mesh that was chosen.
pub struct Chosen {
    pub mesh: Mesh,
    /// A sentence for whoever reads the run.
    pub why: String,
}

/// Chooses the mesh of a recipe that has none; where processes are the ranks the first one does, for all of them.
pub async fn choose(args: &TrainArgs, recipe: &Recipe, process: Option<&Process>) -> Result<Chosen> {
    /// What the others are told.
    #[derive(Serialize, Deserialize)]
    struct Told {
        mesh: String,
        why: String,
    }
    let world = process.map_or_else(World::alone, Process::world);
    let mut mine = None;
    if world.is_first() {
        let found = find(args, recipe, process).await;
        let told = found.map(|chosen| Told { mesh: chosen.mesh.to_string(), why: chosen.why });
        mine = Some(told.map_err(|error| error.downcast().unwrap_or_else(|error| Error::Invalid(sentence(&error)))));
    }
    let Told { mesh, why } = world.first(mine)?;
    Ok(Chosen { mesh: mesh.parse()?, why })
}

/// What will be chosen for so many ranks, so many of them on a machine, where a flag names that: no device is asked.
pub fn foreseen(args: &TrainArgs, recipe: &Recipe, ranks: usize, near: usize) -> Result<Option<Chosen>> {
    let config = config(recipe)?;
    let machine = args.ranks.machine.as_ref().map(|name| MachineFile::find(name)).transpose()?;
    if let Some(machine) = &machine {
        check_levels(machine, ranks, near)?;
    }
    machine.map(|machine| best(&config, recipe, ranks, &machine.among(near))).transpose()
}

/// Refuses a machine of which it is not known what messages cost: that is known of ranks that are one processor only, unless its
/// file says it.
fn check_levels(machine: &MachineFile, ranks: usize, near: usize) -> Result<()> {
    if machine.knows_messages(ranks, near) {
        return Ok(());
    }
    let between = if near == ranks { format!("adapters such as {}", machine.name) } else { "machines".into() };
    bail!(
        "--mesh auto has to know what messages between {between} cost: add --machine, such as h100, or a TOML file like those of \
         machines/ with its [[levels]]; or write axes, such as --mesh data={ranks}"
    );
}

/// The model that is trained.
fn config(recipe: &Recipe) -> Result<ModelConfig> {
    if recipe.lora.is_some() {
        bail!(
            "--mesh auto reckons with all parameters, and this run trains adapters, for which ranks have little to say to each other: \
             write axes, such as --mesh data=4"
        );
    }
    if recipe.dpo.is_some() {
        bail!(
            "--mesh auto reckons with one row of tokens at a time, and this run has pairs of them: write axes, such as --mesh data=4"
        );
    }
    Ok(plan::model(recipe)?.0)
}

async fn find(args: &TrainArgs, recipe: &Recipe, process: Option<&Process>) -> Result<Chosen> {
    let wanted = selector(recipe.adapter.as_deref());
    let asked = args.ranks.count.map(|n| n as usize);
    // How many there are, and how many of them on this machine.
    let (ranks, near) = match (process, asked) {
        (Some(process), Some(n)) if n != process.size() => {
            bail!("--ranks is {n}, and there are {} processes: let the two agree, or leave --ranks out", process.size())
        }
        (Some(process), _) => (process.size(), process.local().1),
        (None, Some(n)) => (n, n),
        (None, None) => wanted.alike(&list().await).map(|all| (all.len(), all.len()))?,
    };
    if let Some(chosen) = foreseen(args, recipe, ranks, near)? {
        return Ok(chosen);
    }
    let machine = remembered(recipe, &wanted, ranks, near).await?;
    best(&config(recipe)?, recipe, ranks, &machine.among(near))
}

/// This machine by what is remembered of its adapter, or measured.
async fn remembered(recipe: &Recipe, wanted: &Selector, ranks: usize, near: usize) -> Result<MachineFile> {
    let gpu = Gpu::open(wanted).await?;
    let name = gpu.report().name.clone();
    let mut tuner = Tuner::new(&gpu, recipe.tune, Some(&paths::cache()));
    tuner.roofline(recipe.precision == Precision::Mixed).await?;
    // A cache that cannot be written costs the next start half a second; the run itself will say it.
    let _ = tuner.save();
    let Some(machine) = MachineFile::remembered(tuner.records(), gpu.limits().is_cpu) else {
        bail!("{name} could not be measured: add --machine, or write axes, such as --mesh data={ranks}");
    };
    check_levels(&machine, ranks, near)?;
    // Ranks of a CPU share it by the machine's own account.
    let adapters = wanted.alike(&list().await).map_or(1, |all| all.len());
    let sharers = if machine.shared { 1 } else { near.div_ceil(adapters) as u64 };
    Ok(MachineFile { memory: gpu.limits().memory_bytes.map(|all| Bytes(all / sharers)), ..machine })
}

/// The best mesh for a recipe, which has the last word on all else.
fn best(config: &ModelConfig, recipe: &Recipe, ranks: usize, machine: &MachineFile) -> Result<Chosen> {
    let memory = recipe.memory.into_iter().chain(machine.memory).min_by_key(|Bytes(bytes)| *bytes);
    let machine = MachineFile { memory, ..machine.clone() };
    let setup = Setup {
        batch: recipe.batch * recipe.accumulate as usize,
        seq: recipe.seq,
        micro_batch: 1,
        interleave: recipe.interleave,
        shard: recipe.shard,
        recompute: Recompute::None,
        storage: Storage::F32,
        products: if recipe.precision == Precision::Mixed { Rate::F16 } else { Rate::F32 },
    };
    let asked = Asked {
        shard: Some(setup.shard),
        batches: Some(recipe.accumulate as usize),
        interleave: Some(setup.interleave),
        ..Asked::default()
    };
    let Found { best, losers, .. } = search(config, recipe, setup, asked, ranks, &machine)?;
    let Some(best) = best else {
        let why = losers.first().map_or(String::new(), |loser| format!(": {} {}", loser.mesh, loser.why));
        bail!(
            "of {} no mesh fits the memory of {}{why}; take more ranks, a smaller --batch or --seq, or --shard",
            count(ranks, "rank"),
            machine.name
        );
    };
    let next = match losers.first() {
        Some(loser) if loser.seconds.is_some() => format!("the next, {}, is expected to be {}", loser.mesh, loser.why),
        Some(loser) => format!("no other fits: {} {}", loser.mesh, loser.why),
        None => "no other goes with this run".into(),
    };
    let mesh = best.mesh;
    Ok(Chosen { mesh, why: format!("--mesh auto takes {mesh} for {}; {next}", count(ranks, "rank")) })
}
