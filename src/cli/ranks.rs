//! How ranks share a recipe and are waited for, and the ranks of a run as threads of this process.

use crate::base::count;
use crate::comm::LocalComm;
use crate::error::Error;
use crate::parallel::Mesh;
use crate::train::{Recipe, World};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long ranks have to leave once one has failed.
const LEAVING: Duration = Duration::from_secs(3);

/// Flags that say how the processes of a run go about it.
#[derive(Debug, Args)]
pub struct RankArgs {
    /// Let several ranks share an adapter, also where that is a GPU.
    #[arg(long)]
    pub share_adapter: bool,
    /// Ranks that --mesh auto finds a mesh for [default: the processes that a launcher started; without one, as many as there are
    /// adapters like the one that is chosen].
    #[arg(long = "ranks", id = "ranks", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub count: Option<u32>,
    /// The machine that --mesh auto reckons with: h100, h100-500w, h200, a100, mi300x, sunway, cpu, a TOML file like those of
    /// machines/, or what `danlu bench --json` wrote [default: what is remembered of the adapter, or measured, where it computes on
    /// the CPU].
    #[arg(long, value_name = "NAME|FILE")]
    pub machine: Option<String>,
    /// A rank that the others wait for longer than this has failed, be its process alive; 0 for never, when only a process that
    /// gives no sign of life is missed.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    rank_timeout: u64,
    /// A process that gives no sign of life for longer than this, as when it was stopped or its machine is gone, has failed,
    /// however long others compute; 0 for never.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    beat_timeout: u64,
}

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// For what another is to do.
    pub work: Option<Duration>,
    /// For a sign that its process lives.
    pub silence: Option<Duration>,
}

impl RankArgs {
    /// As the flags say.
    pub fn patience(&self) -> Patience {
        let unless_never = |seconds: u64| (seconds > 0).then_some(Duration::from_secs(seconds));
        Patience { work: unless_never(self.rank_timeout), silence: unless_never(self.beat_timeout) }
    }
}

/// The recipe as so many processes share it: its mesh must be of their number, where a flag has `asked` for it; else they share the
/// batch beside its other axes, by which the model is in as many parts as it was. What will be started is asked the same before it
/// waits for anything.
///
/// # Errors
/// A sentence, if they cannot share it, or what they would share is refused.
pub fn shared_by(processes: usize, recipe: Recipe, asked: bool) -> Result<Recipe> {
    recipe.check()?;
    let mesh = recipe.mesh;
    if mesh.ranks() == processes {
        return Ok(recipe);
    }
    if asked {
        bail!(Error::Invalid(format!(
            "the mesh {mesh} is of {}, and processes there are {processes}: let the two agree, or leave --mesh out",
            count(mesh.ranks(), "rank")
        )));
    }
    let parts = mesh.ranks() / mesh.data;
    if !processes.is_multiple_of(parts) {
        bail!(Error::Invalid(format!(
            "the mesh {mesh} splits the model into {parts} parts, and processes there are {processes}: start a multiple of {parts}"
        )));
    }
    let recipe = Recipe { mesh: Mesh { data: processes / parts, ..mesh }, ..recipe };
    recipe.check()?;
    Ok(recipe)
}

/// Has so many ranks do something, and waits until all have done it; gives the first one's exit code. Where one fails, all end,
/// and one that does not notice ends with the program.
///
/// # Errors
/// That of the rank that failed, by its number.
pub fn all(
    ranks: usize,
    patience: Option<Duration>,
    work: impl Fn(World) -> Result<u8> + Send + Sync + 'static,
) -> Result<u8> {
    let work = Arc::new(work);
    let (tell, told) = channel();
    let mut threads = Vec::new();
    for (rank, comm) in LocalComm::group(ranks, patience).into_iter().enumerate() {
        let (work, tell) = (work.clone(), tell.clone());
        let run = move || {
            let world = World::of(Arc::new(comm));
            let ended = catch_unwind(AssertUnwindSafe(|| work(world.clone())));
            let ended = ended.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", said(&*panic))));
            if let Err(error) = &ended {
                world.abort(&format!("{error:#}"));
            }
            // Who waits here is gone only where another rank has failed.
            drop((world, work));
            let _ = tell.send((rank, ended));
        };
        let named = std::thread::Builder::new().name(format!("rank {rank}"));
        threads.push(Some(named.spawn(run).with_context(|| format!("cannot start rank {rank}"))?));
    }
    drop(tell);
    let (mut code, mut failed, mut until) = (0, Vec::new(), None);
    loop {
        let left = until.map_or(Duration::MAX, |until: Instant| until.saturating_duration_since(Instant::now()));
        match told.recv_timeout(left) {
            Ok((rank, ended)) => {
                // It is at its end; no driver may be at work when the program leaves.
                threads[rank].take().map(JoinHandle::join);
                match ended {
                    Ok(own) if rank == 0 => code = own,
                    Ok(_) => {}
                    Err(error) => {
                        until = until.or(Some(Instant::now() + LEAVING));
                        failed.push((rank, error));
                    }
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    match cause(failed) {
        Some(error) => Err(error),
        None => Ok(code),
    }
}

/// What a thread that panicked said last.
pub(super) fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason was given".into())
}

/// Of what several ranks say the one that the others only heard of.
fn cause(mut failed: Vec<(usize, anyhow::Error)>) -> Option<anyhow::Error> {
    let heard = |error: &anyhow::Error| error.downcast_ref().is_some_and(Error::is_heard);
    let own = failed.iter().position(|(_, error)| !heard(error));
    let all_same = failed.windows(2).all(|pair| pair[0].1.to_string() == pair[1].1.to_string());
    if failed.is_empty() {
        return None;
    }
    let (rank, error) = failed.swap_remove(own.unwrap_or(0));
    let plain = own.is_none() || (all_same && !failed.is_empty());
    Some(if plain { error } else { error.context(format!("rank {rank}")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks that meet for ever, of which one does something else.
    fn run(patience: Option<Duration>, odd: impl Fn(&World) -> Result<u8> + Send + Sync + 'static) -> String {
        let began = Instant::now();
        let meet = |world: &World| -> Result<u8> {
            loop {
                world.gather(0)?;
            }
        };
        let ended = all(3, patience, move |world| if world.rank() == 1 { odd(&world) } else { meet(&world) });
        // One that hangs does so for longer.
        assert!(began.elapsed() < Duration::from_secs(50));
        format!("{:#}", ended.unwrap_err())
    }

    #[test]
    fn the_rank_that_failed_is_named_with_its_reason() {
        assert_eq!(run(None, |_| Err(Error::Device("it is lost".into()).into())), "rank 1: device: it is lost");
        assert_eq!(run(None, |_| panic!("no such {}", "luck")), "rank 1: panicked: no such luck");
        let left = "ranks: rank 1 has left, and the others wait for all_gather";
        assert_eq!(run(None, |_| Ok(0)), left);
        let hangs = |_: &World| {
            std::thread::sleep(Duration::from_secs(60));
            Ok(0)
        };
        let said = run(Some(Duration::from_millis(300)), hangs);
        assert_eq!(said, "ranks: rank 1 did nothing for 0.3 s, and the others wait for all_gather");
    }

    #[test]
    fn all_end_with_the_code_of_the_first() {
        let work = |world: World| Ok(world.gather(u64::from(world.rank() == 0) * 130)?[world.rank()] as u8);
        assert_eq!(all(3, None, work).unwrap(), 130);
    }

    #[test]
    fn what_all_say_is_said_plainly() {
        let text = "training diverged".to_string();
        let ended = all(2, None, move |_| Err(Error::Invalid(text.clone()).into()));
        assert_eq!(format!("{:#}", ended.unwrap_err()), "training diverged");
    }
}
