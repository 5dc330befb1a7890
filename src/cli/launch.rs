//! `danlu launch`: starts a run on many ranks, says what it starts and why, and starts it again where it failed.

mod script;
mod starter;
mod supervisor;

use super::ranks::shared_by;
use crate::base::count;
use crate::error::Error;
use crate::parallel::Mesh;
use crate::store::atomic::{create_folder, write_file};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use script::{Batch, TimeLimit};
use starter::{Starter, quoted};
use std::path::PathBuf;
use std::process::Command;
use supervisor::{Attempts, supervise};

/// Flags of `danlu launch`; behind `--` stands the command that all ranks work on.
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Ranks in all [default: those of the mesh; without one, --ranks-per-node on each node].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// Machines.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Ranks of each machine, one an adapter [default: an equal part of all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks_per_node: Option<u32>,
    /// What starts them: `threads` of one process; `mpirun`; `srun` within what Slurm has given; `slurm`, which writes a batch
    /// script and submits it [default: mpirun, or slurm for several nodes].
    #[arg(long, value_enum)]
    with: Option<With>,
    /// How often a run that failed is taken up again from its last checkpoint.
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    restarts: u32,
    /// Take it up with fewer ranks: the next number by which its batch can be dealt.
    #[arg(long)]
    fewer: bool,
    /// Print what would be started, and why, and start nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    slurm: SlurmArgs,
    /// `train`, `finetune` or `dpo`, with its flags.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What Slurm is asked for.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Slurm")]
pub struct SlurmArgs {
    /// Name of the job.
    #[arg(long, value_name = "NAME", default_value = "danlu")]
    job_name: String,
    /// Time limit of a job, as Slurm writes it, such as 24:00:00; a run that is longer is queued again [default: the
    /// partition's].
    #[arg(long, value_name = "TIME")]
    time: Option<TimeLimit>,
    /// Seconds before the limit at which the run is told to save and leave.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=65535))]
    save_ahead: u32,
    /// Partition.
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Whom it is charged to.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Cores of a rank.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus_per_rank: Option<u32>,
    /// GPUs of each machine to ask for, one for each of its ranks.
    #[arg(long, value_name = "N")]
    gpus_per_node: Option<u32>,
    /// How srun tells ranks of each other (`srun --mpi=list`).
    #[arg(long, value_name = "NAME", default_value = "pmix")]
    mpi: String,
    /// Further words for sbatch, such as --constraint=h100; may be repeated.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    sbatch: Vec<String>,
}

/// What starts ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum With {
    Threads,
    Mpirun,
    Srun,
    Slurm,
}

/// How many ranks there are, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    ranks: u32,
    nodes: u32,
    per_node: u32,
}

impl LaunchArgs {
    /// As the flags say, and where they do not, the mesh that is asked for.
    fn layout(&self, mesh: Mesh) -> Result<Layout> {
        let nodes = self.nodes;
        // A recipe without a mesh is for any number of ranks.
        let of_mesh = self.ranks_per_node.is_none() && (mesh != Mesh::ONE || nodes == 1);
        let ranks = self.ranks.or(of_mesh.then_some(mesh.ranks() as u32));
        let per_node = match (ranks, self.ranks_per_node) {
            (_, Some(per_node)) => per_node,
            (Some(ranks), None) if ranks.is_multiple_of(nodes) => ranks / nodes,
            (Some(ranks), None) => bail!(Error::Invalid(format!(
                "{}{} cannot be dealt to {nodes} nodes in equal parts; {}",
                count(ranks as usize, "rank"),
                if self.ranks.is_none() { format!(", those of the mesh {mesh},") } else { String::new() },
                if ranks < nodes { "take fewer --nodes" } else { "say --ranks-per-node" }
            ))),
            (None, None) => 1,
        };
        let held = nodes.saturating_mul(per_node);
        let ranks = ranks.unwrap_or(held);
        if ranks > held || ranks <= (nodes - 1).saturating_mul(per_node) {
            bail!(Error::Invalid(format!(
                "{} are not what {} of {per_node} hold; leave one of the three out",
                count(ranks as usize, "rank"),
                count(nodes as usize, "node")
            )));
        }
        Ok(Layout { ranks, nodes, per_node })
    }
}

impl SlurmArgs {
    /// What is asked of Slurm's queue, by its flag: nothing else heeds it.
    fn asked(&self) -> Option<&'static str> {
        let asked = [
            ("--time", self.time.is_some()),
            ("--partition", self.partition.is_some()),
            ("--account", self.account.is_some()),
            ("--cpus-per-rank", self.cpus_per_rank.is_some()),
            ("--gpus-per-node", self.gpus_per_node.is_some()),
            ("--sbatch", !self.sbatch.is_empty()),
        ];
        asked.into_iter().find(|(_, is_asked)| *is_asked).map(|(flag, _)| flag)
    }

    /// Refuses GPUs that are too few for a machine's ranks, of which each takes one; more of them than ranks are said, since whole
    /// machines may be all that there is.
    fn check_gpus(&self, Layout { per_node, .. }: Layout, are_shared: bool) -> Result<()> {
        match self.gpus_per_node {
            Some(gpus) if gpus > 0 && gpus < per_node && !are_shared => bail!(Error::Invalid(format!(
                "{per_node} ranks are to be on each machine, and --gpus-per-node asks for {gpus}: each rank takes a GPU of its own; ask \
                 for {per_node}, start fewer ranks, or say --share-adapter behind the --"
            ))),
            Some(gpus) if gpus > per_node => tell!(
                "of the {gpus} GPUs that --gpus-per-node asks of each machine {} are left idle: its ranks are {per_node}",
                gpus - per_node
            ),
            _ => {}
        }
        Ok(())
    }

    /// Refuses words that would end a script's line, and a limit that leaves no time to train before it is time to save.
    fn check(&self) -> Result<()> {
        let words = [("--job-name", Some(&self.job_name)), ("--mpi", Some(&self.mpi))];
        let words =
            words.into_iter().chain([("--partition", self.partition.as_ref()), ("--account", self.account.as_ref())]);
        let words = words.filter_map(|(flag, word)| Some((flag, word?)));
        for (flag, word) in words.chain(self.sbatch.iter().map(|word| ("--sbatch", word))) {
            if word.is_empty() || word.chars().any(char::is_control) || flag == "--sbatch" && !word.starts_with('-') {
                let wanted = if flag == "--sbatch" {
                    "an option of sbatch on one line, such as --constraint=h100"
                } else {
                    "one line"
                };
                bail!(Error::Invalid(format!("{flag} is {word:?}; it must be {wanted}")));
            }
        }
        match self.time.as_ref().and_then(|limit| Some((limit, limit.seconds()?))) {
            Some((limit, seconds)) if seconds <= u64::from(self.save_ahead) => bail!(Error::Invalid(format!(
                "--time {limit} is {seconds} s, and {} s before its end the run is told to leave; choose a longer limit, or a \
                 smaller --save-ahead",
                self.save_ahead
            ))),
            _ => Ok(()),
        }
    }
}

/// Starts what is asked for; gives the exit code.
pub fn launch(mut args: LaunchArgs) -> Result<u8> {
    let (train, kind) = super::training(&args.command)?;
    if train.is_auto() {
        args.ranks = args.ranks.or(train.ranks().filter(|_| args.ranks_per_node.is_none()));
        if args.ranks.is_none() && args.ranks_per_node.is_none() {
            bail!(Error::Invalid(
                "--mesh auto chooses a mesh for the ranks that are started: say how many, by --ranks or --ranks-per-node".into()
            ));
        }
    }
    let recipe = train.aim(&kind)?;
    let with = args.with.unwrap_or(if args.nodes > 1 { With::Slurm } else { With::Mpirun });
    let layout = args.layout(recipe.mesh)?;
    agree(layout, recipe.mesh, train.mesh(), train.is_resumed(), with)?;
    if let Some(flag) = args.slurm.asked().filter(|_| with != With::Slurm) {
        bail!(Error::Invalid(format!("{flag} is asked of Slurm's queue; add --with slurm, or leave it out")));
    }
    args.slurm.check()?;
    args.slurm.check_gpus(layout, train.shares_adapters())?;
    let ranks = layout.ranks as usize;
    if let Some(other) = train.ranks().filter(|&n| n != layout.ranks) {
        bail!(Error::Invalid(format!(
            "{} to be started, and --ranks behind the -- is {other}: leave one of the two out",
            are(layout.ranks)
        )));
    }
    // What the ranks would refuse after a wait in the queue.
    let asked = match train.is_auto() {
        true => train.foreseen(&recipe, ranks, layout.per_node as usize),
        false => shared_by(ranks, recipe.clone(), train.mesh().is_some()).map(|_| None),
    };
    match asked {
        Ok(Some(why)) if args.dry_run => tell!("{why}"),
        Err(error) if args.dry_run && !train.is_resumed() => tell!("the ranks would refuse this: {error}"),
        Err(error) if with == With::Slurm && !train.is_resumed() => return Err(error),
        // Ranks that start at once say it at once.
        _ => {}
    }
    if with != With::Threads && layout.ranks > 1 && !args.dry_run {
        super::mpi::check_built(layout.ranks as usize)?;
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let program = program.display().to_string();
    if with == With::Slurm {
        let batch = Batch { args: &args.slurm, layout, restarts: args.restarts, fewer: args.fewer };
        if !args.dry_run {
            train.check_free(&recipe.out)?;
        }
        return submit(&batch.script(&program, &recipe.out, &args.command), &recipe.out, args.dry_run);
    }
    let starter = match with {
        With::Threads => Starter::Threads,
        With::Srun => Starter::Srun { mpi: args.slurm.mpi.clone() },
        _ => Starter::mpirun()?,
    };
    if with == With::Threads && layout.nodes > 1 {
        bail!(Error::Invalid(format!("threads of one process are on one node, and {} are asked for", layout.nodes)));
    }
    let attempts = Attempts {
        starter,
        layout,
        program,
        command: args.command.clone(),
        out: recipe.out.clone(),
        batch: recipe.batch as u32,
        mesh: if train.is_auto() { Mesh::ONE } else { recipe.mesh },
        is_auto: train.is_auto(),
        restarts: args.restarts,
        fewer: args.fewer,
        silence: train.silence(),
    };
    if args.dry_run {
        say!("{}", attempts.explain().trim_end());
        return Ok(0);
    }
    supervise(&attempts, &|| train.make_free(&recipe), &|| train.is_done(&recipe.out))
}

/// `1 rank is`, `2 ranks are`.
fn are(ranks: u32) -> String {
    format!("{} {}", count(ranks as usize, "rank"), if ranks == 1 { "is" } else { "are" })
}

/// Refuses ranks that are not the mesh's: processes share the batch beside the axes of a recipe's mesh, but a flag says what it says,
/// and threads have the mesh that a recipe gives. A run that is taken up goes on with any other.
fn agree(layout: Layout, mesh: Mesh, flag: Option<Mesh>, is_resumed: bool, with: With) -> Result<()> {
    let given = flag.or_else(|| (with == With::Threads && !is_resumed && mesh != Mesh::ONE).then_some(mesh));
    match given.filter(|mesh| mesh.ranks() != layout.ranks as usize) {
        None => Ok(()),
        Some(mesh) => bail!(Error::Invalid(format!(
            "{} to be started, and the mesh {mesh} {} is of {}: let the two agree, or leave one of them out",
            are(layout.ranks),
            if flag.is_some() { "of --mesh" } else { "of the recipe" },
            mesh.ranks()
        ))),
    }
}

/// Writes a batch script beside the run and submits it.
fn submit(script: &str, out: &std::path::Path, dry_run: bool) -> Result<u8> {
    if dry_run {
        say!("{}", script.trim_end());
        return Ok(0);
    }
    create_folder(out)?;
    let file: PathBuf = out.join("job.sh");
    write_file(&file, script.as_bytes())?;
    let done = Command::new("sbatch").arg(&file).status().context("cannot run sbatch, which submits jobs to Slurm")?;
    if !done.success() {
        bail!(Error::Invalid(format!("sbatch did not take {}: its words stand above", file.display())));
    }
    tell!("submitted {}; the ranks' words go to {}/slurm-*.log", file.display(), out.display());
    Ok(0)
}

#[cfg(all(test, unix, feature = "mpi"))]
mod mpi_tests;
#[cfg(test)]
mod tests;
