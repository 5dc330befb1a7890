//! The batch script that Slurm is given.

use super::{Layout, SlurmArgs, quoted};
use crate::base::count;
use std::fmt::{self, Write};
use std::path::Path;
use std::str::FromStr;

/// A time limit in one of the forms that Slurm takes: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`, and a word for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeLimit(String);

impl TimeLimit {
    /// How long it is; nothing where there is no limit, which is also what 0 says.
    pub fn seconds(&self) -> Option<u64> {
        read(&self.0).flatten()
    }
}

/// Seconds, or that there is no limit; nothing where it is no time.
fn read(text: &str) -> Option<Option<u64>> {
    if ["infinite", "unlimited"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(None);
    }
    let (days, rest) = text.split_once('-').map_or((None, text), |(days, rest)| (Some(days), rest));
    let number = |word: &str| word.parse::<u64>().ok().filter(|n| word.len() < 8 && *n < 10_000_000);
    let parts: Vec<u64> = rest.split(':').map(number).collect::<Option<_>>()?;
    let days = days.map(number);
    let seconds = match (days, &parts[..]) {
        (None, [minutes]) => 60 * minutes,
        (None, [minutes, seconds]) => 60 * minutes + seconds,
        (None, [hours, minutes, seconds]) => 3600 * hours + 60 * minutes + seconds,
        (Some(days), [hours, rest @ ..]) if rest.len() < 3 => {
            let [minutes, seconds] = [0, 1].map(|i| rest.get(i).copied().unwrap_or(0));
            86400 * days? + 3600 * hours + 60 * minutes + seconds
        }
        _ => return None,
    };
    Some(Some(seconds).filter(|seconds| *seconds > 0))
}

impl FromStr for TimeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "minutes, hours:minutes:seconds, days-hours or days-hours:minutes:seconds, such as 24:00:00";
        match read(text) {
            Some(_) => Ok(TimeLimit(text.into())),
            None => Err(format!("no time limit that Slurm takes; write {forms}")),
        }
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job of Slurm.
pub struct Batch<'a> {
    /// What is asked for.
    pub args: &'a SlurmArgs,
    /// Ranks and nodes.
    pub layout: Layout,
    /// How often it is taken up within a job.
    pub restarts: u32,
    /// Whether with fewer ranks.
    pub fewer: bool,
}

impl Batch<'_> {
    /// The script, with a reason for each line.
    pub fn script(&self, program: &str, out: &Path, command: &[String]) -> String {
        let SlurmArgs { job_name, time, save_ahead, partition, account, cpus_per_rank, gpus_per_node, mpi, sbatch } =
            self.args;
        let Layout { ranks, nodes, per_node } = self.layout;
        let mut text = String::from("#!/bin/bash\n# Written by danlu launch.\n");
        let mut ask = |why: &str, option: String| {
            if !why.is_empty() {
                text.push_str(&format!("# {why}\n"));
            }
            text.push_str(&format!("#SBATCH {option}\n"));
        };
        ask("", format!("--job-name={}", quoted([job_name.as_str()])));
        ask(
            "A task is a rank, and a rank has an adapter: that of its number on its machine.",
            format!("--nodes={nodes}"),
        );
        ask("", format!("--ntasks={ranks}"));
        ask("", format!("--ntasks-per-node={per_node}"));
        cpus_per_rank.iter().for_each(|n| ask("", format!("--cpus-per-task={n}")));
        gpus_per_node.iter().for_each(|n| ask("", format!("--gpus-per-node={n}")));
        partition.iter().for_each(|name| ask("", format!("--partition={}", quoted([name.as_str()]))));
        account.iter().for_each(|name| ask("", format!("--account={}", quoted([name.as_str()]))));
        time.iter().for_each(|time| ask("", format!("--time={time}")));
        ask(
            "So long before the time limit this script is told to end (B: it alone), and passes that on.",
            format!("--signal=B:TERM@{save_ahead}"),
        );
        ask("A job whose machine is lost is queued again, and goes on from its last checkpoint.", "--requeue".into());
        ask("What was said before stays.", "--open-mode=append".into());
        let log = out.join("slurm-%j.log").display().to_string();
        ask("", format!("--output={}", quoted([log.as_str()])));
        sbatch.iter().for_each(|word| ask("", word.clone()));
        let restarts = self.restarts.to_string();
        let again = match self.restarts {
            0 => "and not again where a rank fails".to_string(),
            n => format!("and again when a rank fails, up to {}", count(n as usize, "time")),
        };
        let (n, p) = (ranks.to_string(), per_node.to_string());
        let nodes = nodes.to_string();
        let mut words = vec![program, "launch", "--with", "srun", "--mpi", mpi];
        words.extend(["--ranks", &n, "--nodes", &nodes, "--ranks-per-node", &p, "--restarts", &restarts]);
        words.extend(self.fewer.then_some("--fewer"));
        words.push("--");
        words.extend(command.iter().map(String::as_str));
        let _ = write!(
            text,
            "\n# Takes the run up where there is one, {again}.\n\
             {} &\nrun=$!\n\
             # Told to end: the ranks finish their step, save and leave.\n\
             trap 'kill -TERM \"$run\"' TERM\n\
             code=0\n\
             while kill -0 \"$run\" 2>/dev/null; do\n    wait \"$run\"\n    code=$?\ndone\n\
             # 143: it saved and left because it was told to. The job is queued again, and goes on from there.\n\
             if [ \"$code\" = 143 ]; then\n    scontrol requeue \"$SLURM_JOB_ID\"\nfi\n\
             exit \"$code\"\n",
            quoted(words)
        );
        text
    }
}
