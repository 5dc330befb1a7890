//! Has a job run to its end: what failed is taken up from its last checkpoint, and what is told to end saves first.

use super::super::alive::Watch;
#[cfg(unix)]
use super::super::signals::hears_hangup;
use super::Layout;
use super::starter::{Starter, quoted};
use crate::base::count;
use crate::error::Error;
use crate::parallel::Mesh;
use crate::train::{Resumption, RunLock};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What is to be brought to its end.
pub struct Attempts {
    /// What starts ranks.
    pub starter: Starter,
    /// How many at first.
    pub layout: Layout,
    /// This program.
    pub program: String,
    /// Its command and flags.
    pub command: Vec<String>,
    /// The run's folder.
    pub out: PathBuf,
    /// Rows of its batches.
    pub batch: u32,
    /// The mesh of its recipe.
    pub mesh: Mesh,
    /// Whether the ranks choose it: once for each number of them.
    pub is_auto: bool,
    /// How often it is taken up.
    pub restarts: u32,
    /// Whether with fewer ranks.
    pub fewer: bool,
    /// How long they may give no sign of life.
    pub silence: Option<Duration>,
}

impl Attempts {
    /// The words of an attempt.
    pub fn words(&self, layout: Layout, resumed: bool) -> Vec<String> {
        let mut words: Vec<String> = self.starter.words(layout).into_iter().flat_map(|(words, _)| words).collect();
        words.push(self.program.clone());
        words.extend(self.command(layout, resumed));
        words
    }

    /// What a rank is told.
    fn command(&self, layout: Layout, resumed: bool) -> Vec<String> {
        let mut words = Vec::new();
        let (is_other, is_threads) = (layout.ranks != self.layout.ranks, self.starter == Starter::Threads);
        let mut given = self.command.iter().peekable();
        while let Some(word) = given.next() {
            // A run that is taken up brings its recipe, and a mesh of another size is not what was asked for.
            let left_out = match word.split('=').next().unwrap_or_default() {
                "--force" | "--resume" if resumed => true,
                "--recipe" => resumed,
                // The run has recorded what was chosen for as many ranks.
                "--mesh" if self.is_auto => resumed && !is_other,
                "--mesh" => is_other,
                "--machine" if self.is_auto => resumed && !is_other,
                "--ranks" => self.is_auto,
                // Fewer threads are on the data axis alone.
                "--interleave" | "--expert-capacity" => is_other && is_threads && !self.is_auto,
                _ => false,
            };
            // Open MPI's mpirun has a `--tune` of its own, which it also finds among the words of what it starts.
            let tune = given.next_if(|_| word == "--tune");
            if let Some(mode) = tune {
                words.push(format!("--tune={mode}"));
            } else if !left_out {
                words.push(word.clone());
            } else if !word.contains('=') && word != "--force" {
                given.next_if(|next| !next.starts_with('-'));
            }
        }
        if self.is_auto {
            // Processes see how many they are.
            if is_threads && (is_other || !resumed) {
                words.extend(["--ranks".into(), layout.ranks.to_string()]);
            }
        } else if is_threads && !words.iter().any(|w| w.starts_with("--mesh")) {
            let of_recipe = self.mesh.ranks() == layout.ranks as usize;
            let mesh = if of_recipe { self.mesh } else { Mesh { data: layout.ranks as usize, ..Mesh::ONE } };
            words.extend(["--mesh".into(), mesh.to_string()]);
        }
        if resumed {
            words.extend(["--resume".into(), self.out.display().to_string()]);
        }
        words
    }

    /// What would be started, and why.
    pub fn explain(&self) -> String {
        let words = self.words(self.layout, false);
        let mut text = format!("{}\n", quoted(words.iter().map(String::as_str)));
        let reasons = self.starter.words(self.layout);
        let width = reasons.iter().map(|(words, _)| words.join(" ").len()).max().unwrap_or_default();
        for (words, why) in reasons {
            text.push_str(&format!("    {:width$}   {why}\n", words.join(" ")));
        }
        let fewer = if self.fewer { ", each time with fewer ranks by which the batch can be dealt" } else { "" };
        let out = self.out.display();
        text.push_str(&match self.restarts {
            0 => "If it fails, it is not taken up.\n".to_string(),
            n => format!(
                "If it fails, it is taken up from its last checkpoint in {out}, {} at most{fewer}.\n",
                count(n as usize, "time")
            ),
        });
        text.push_str("Told to end (SIGTERM, Ctrl-C), it saves first.\n");
        text
    }

    fn start(&self, layout: Layout, resumed: bool, watch: &Watch) -> Result<Child> {
        let words = self.words(layout, resumed);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        watch.tell(&mut command);
        // Ctrl-C at a terminal comes to this program alone, which passes it on as what lets the ranks save.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", words[0]))?;
        watch.greet(&mut child);
        Ok(child)
    }

    /// The next lower number of ranks that share the batch in equal parts: threads along the data axis alone, processes beside
    /// the recipe's other axes.
    pub fn lower(&self, layout: Layout) -> Layout {
        let mesh = if self.starter == Starter::Threads { Mesh::ONE } else { self.mesh };
        let (parts, expert) = ((mesh.ranks() / mesh.data) as u32, mesh.expert as u32);
        let fits = |n: &u32| {
            let data = n / parts;
            n.is_multiple_of(parts) && self.batch.is_multiple_of(data) && data.is_multiple_of(expert)
        };
        let ranks = (1..layout.ranks).rev().find(fits).unwrap_or(layout.ranks);
        let nodes = ranks.div_ceil(layout.per_node);
        Layout { ranks, nodes, per_node: layout.per_node.min(ranks) }
    }

    /// Steps done of the run, if there is one that can be taken up.
    fn done(&self) -> Option<u64> {
        Resumption::find(&self.out, &mut |_| ()).ok().map(|resumption| resumption.step())
    }
}

/// What asks the whole job to end.
struct Told(Arc<AtomicUsize>);

impl Told {
    fn listen() -> Result<Told> {
        let told = Arc::new(AtomicUsize::new(0));
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
            let hangup = Some(SIGHUP).filter(|_| hears_hangup());
            for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
                signal_hook::flag::register_usize(signal, told.clone(), signal as usize)
                    .context("cannot listen for signals")?;
            }
        }
        Ok(Told(told))
    }

    /// The signal's number.
    fn take(&self) -> Option<u8> {
        Some(self.0.swap(0, Ordering::Relaxed) as u8).filter(|signal| *signal > 0)
    }
}

/// Starts, waits, and starts again, as long as no other run has the folder; gives the exit code. `free` makes the folder ready, or
/// refuses it: what a run that begins finds there would be taken up in its place where it fails before it has begun. `is_done` says
/// whether the run came to its end: launchers have left with exit code 0 whose ranks had failed, or had never been started.
pub fn supervise(attempts: &Attempts, free: &dyn Fn() -> Result<()>, is_done: &dyn Fn() -> bool) -> Result<u8> {
    let told = Told::listen()?;
    let mut layout = attempts.layout;
    // A job that Slurm queued again goes on.
    let requeued = std::env::var("SLURM_RESTART_COUNT").is_ok_and(|n| n != "0");
    let mut resumed = requeued && attempts.done().is_some();
    if !resumed {
        free()?;
    }
    let (mut failures, mut refusals) = (0, 0);
    loop {
        // Processes miss each other first, and say which of them it is.
        let first = if attempts.starter == Starter::Threads { Duration::ZERO } else { 2 * GRACE };
        let mut watch = Watch::new(attempts.silence.map(|silence| silence + first));
        RunLock::forget(&attempts.out)?;
        let mut child = attempts.start(layout, resumed, &watch)?;
        let (ended, asked) = wait(&mut child, &told, &mut watch)?;
        if let Some(signal) = asked {
            return Ok(128 + signal);
        }
        let how = match (ended.success(), is_done()) {
            (true, true) => return Ok(0),
            (false, true) => {
                // An MPI that fails as it ends, say: there is nothing to take up.
                tell!(
                    "danlu launch: the ranks {}, but the run in {} came to its end",
                    said(ended),
                    attempts.out.display()
                );
                return Ok(0);
            }
            (true, false) => "ended before the run did, though exit code 0 says that all went well".into(),
            (false, false) => said(ended),
        };
        failures += 1;
        if let Some(signal) = free_again(&attempts.out, watch.first(), &told)? {
            return Ok(128 + signal);
        }
        let Some(done) = attempts.done() else {
            bail!(Error::Invalid(format!(
                "before there was anything in {} to take up, the ranks {how}; what they said stands above",
                attempts.out.display()
            )));
        };
        let next = if attempts.fewer { attempts.lower(layout) } else { layout };
        refusals = if next == layout && RunLock::is_refused(&attempts.out) { refusals + 1 } else { 0 };
        // Once may be what a disk or a file server did.
        if refusals == 2 {
            bail!(Error::Invalid(format!(
                "what the ranks have refused twice stands above: the run in {} has done {}, and is left as it is",
                attempts.out.display(),
                count(done as usize, "step")
            )));
        }
        if failures > attempts.restarts {
            bail!(Error::Invalid(format!(
                "the ranks {how}, {} in all; the run in {} has done {}, and `--resume` takes it up",
                count(failures as usize, "time"),
                attempts.out.display(),
                count(done as usize, "step")
            )));
        }
        (layout, resumed) = (next, true);
        let (ranks, left) = (attempts.starter.counted(layout.ranks), attempts.restarts - failures);
        tell!(
            "danlu launch: the ranks {how}; taken up after step {done} by {ranks} ({} at most)",
            count(left as usize, "more time")
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// For so long a file server may keep what a machine locked that is gone: NFS does for 90 s.
const LEASE: Duration = Duration::from_secs(120);

/// Waits until what the ranks of an attempt have locked is free: the first one, `own`, may be slow to leave, or gone with its
/// machine. After that the next attempt tries itself. Gives the signal that asks to end meanwhile.
///
/// # Errors
/// If another run has the folder by now: no attempt of this one gets it.
fn free_again(out: &Path, own: Option<u32>, told: &Told) -> Result<Option<u8>> {
    let until = Instant::now() + LEASE;
    let mut is_said = false;
    while let Some(refusal) = RunLock::left(out, own)?.filter(|_| Instant::now() < until) {
        if let Some(signal) = told.take() {
            return Ok(Some(signal));
        }
        if !is_said {
            let most = LEASE.as_secs();
            tell!(
                "danlu launch: that may be what the ranks have left, which is waited for, {most} s at most: {refusal}"
            );
            is_said = true;
        }
    }
    Ok(None)
}

/// How long ranks that are silent have to end once they are asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Waits for the ranks' end, and ends those that give no sign of life; passes on what asks for it, and says by which signal that
/// was.
fn wait(child: &mut Child, told: &Told, watch: &mut Watch) -> Result<(ExitStatus, Option<u8>)> {
    let (mut asked, mut until) = (None, None);
    loop {
        if let Some(ended) = child.try_wait().context("cannot wait for the ranks")? {
            return Ok((ended, asked));
        }
        if let Some(number) = told.take() {
            // Launchers pass SIGUSR1 on to the ranks, and end them a moment after a SIGTERM. Asked twice, all ends at once.
            let name = if asked.is_none() { "-USR1" } else { "-TERM" };
            asked = Some(number);
            signal(name, &child.id().to_string());
        }
        match (until, watch.silent()) {
            (None, Some(silence)) => {
                tell!(
                    "danlu launch: the ranks have given no sign of life for {} s and are ended",
                    silence.as_secs_f64()
                );
                // A launcher ends its ranks; a process that is stopped hears nothing.
                signal("-TERM", &child.id().to_string());
                until = Some(Instant::now() + GRACE);
            }
            (Some(at), _) if Instant::now() > at => signal("-KILL", &format!("-{}", child.id())),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends a signal to a process, or with a `-` before its number to its group.
fn signal(name: &str, process: &str) {
    let _ = Command::new("kill").args([name, "--", process]).stderr(Stdio::null()).status();
}

/// How they ended, as the end of a sentence.
fn said(ended: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&ended) {
        return format!("were ended by signal {signal}");
    }
    match ended.code() {
        Some(code) => format!("failed with exit code {code}"),
        None => "failed".into(),
    }
}
