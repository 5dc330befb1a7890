//! The batch script that Slurm is given.

use super::{Layout, SlurmArgs, quoted};
use std::fmt::Write;
use std::path::Path;

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
        time.iter().for_each(|time| ask("", format!("--time={}", quoted([time.as_str()]))));
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
        let (n, p) = (ranks.to_string(), per_node.to_string());
        let nodes = nodes.to_string();
        let mut words = vec![program, "launch", "--with", "srun", "--mpi", mpi];
        words.extend(["--ranks", &n, "--nodes", &nodes, "--ranks-per-node", &p, "--restarts", &restarts]);
        words.extend(self.fewer.then_some("--fewer"));
        words.push("--");
        words.extend(command.iter().map(String::as_str));
        let _ = write!(
            text,
            "\n# Takes the run up where there is one, and again when a rank fails, up to {restarts} times.\n\
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
