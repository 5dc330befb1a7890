//! This process among those that `mpirun` or `srun` started: how long it waits, and what becomes of a fault.
//!
//! Whoever has waited too long calls the roll: the ranks that it waits for answer what they wait for themselves, those that
//! do not answer are named, and what was found is told to all. These words travel on a communicator of their own.

use super::beats::Beats;
use super::requests::own;
use crate::error::{Error, Result};
use ::mpi::collective::Root as _;
use ::mpi::environment::Universe;
use ::mpi::point_to_point::MatchedReceiveVec;
use ::mpi::request::StaticScope;
use ::mpi::topology::{Communicator as _, SimpleCommunicator};
use ::mpi::traits::{Destination as _, Source as _};
use ::mpi::{Rank, Threading};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// How long those that are called have to answer.
const ROLL: Duration = Duration::from_secs(1);

/// What is told on the communicator of faults: a roll is called.
const CALL: i32 = 1;
/// Somebody answers.
const ANSWER: i32 = 2;
/// Something was found.
const VERDICT: i32 = 3;

/// A communicator of MPI that any thread may use: [`World::start`] refuses an MPI that does not allow it.
pub(super) struct Handle(SimpleCommunicator);

// SAFETY: the handle is a number or a pointer into MPI, which was started with MPI_THREAD_MULTIPLE: any thread may call it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) fn new(comm: SimpleCommunicator) -> Handle {
        Handle(comm)
    }
}

impl Deref for Handle {
    type Target = SimpleCommunicator;

    fn deref(&self) -> &SimpleCommunicator {
        &self.0
    }
}

/// What all communicators of a process share. The order of fields is that in which they must end.
pub(super) struct World {
    /// Signs of life, which end before MPI does.
    beats: OnceLock<Beats>,
    /// For what is said of faults.
    words: Handle,
    /// All ranks, for the calls of whoever started it.
    pub(super) all: Handle,
    pub(super) rank: usize,
    pub(super) local: (usize, usize),
    /// The first rank of this machine.
    pub(super) machine: usize,
    patience: Option<Duration>,
    last_words: Box<dyn Fn(&str) + Send + Sync>,
    heard: Mutex<Heard>,
    /// Ends MPI.
    _universe: Universe,
}

#[derive(Default)]
struct Heard {
    fault: Option<String>,
    /// What ranks of the world said that they wait for.
    answers: BTreeMap<usize, String>,
}

/// What a rank waits for, and whom it wants to hear of it.
pub(super) struct Wait<'a> {
    /// What it is, for whom else waits.
    pub(super) what: &'a str,
    /// The group's ranks in the world.
    pub(super) members: &'a [usize],
    /// Which of them are waited for.
    pub(super) of: &'a [usize],
}

impl World {
    pub(super) fn start(
        patience: Option<Duration>,
        silence: Option<Duration>,
        last_words: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Arc<World>> {
        let Some((universe, threads)) = ::mpi::initialize_with_threading(Threading::Multiple) else {
            return Err(Error::Rank("MPI has been started in this process before; it starts once".into()));
        };
        if threads != Threading::Multiple {
            let library = ::mpi::environment::library_version().unwrap_or_default();
            let library = library.lines().next().unwrap_or_default();
            return Err(Error::Rank(format!(
                "this MPI ({library}) allows no calls from several threads at once, which is how ranks talk while they \
                 compute; take one that was built with MPI_THREAD_MULTIPLE"
            )));
        }
        let all = universe.world();
        let near = all.split_shared(all.rank());
        let mut machine = all.rank() as u64;
        near.process_at_rank(0).broadcast_into(&mut machine);
        let world = Arc::new(World {
            beats: OnceLock::new(),
            words: Handle(all.duplicate()),
            rank: all.rank() as usize,
            machine: machine as usize,
            local: (near.rank() as usize, near.size() as usize),
            all: Handle(all),
            patience,
            last_words,
            heard: Mutex::default(),
            _universe: universe,
        });
        if let Some(silence) = silence.filter(|_| world.all.size() > 1) {
            let _ = world.beats.set(Beats::start(&world, silence));
        }
        Ok(world)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Fails if anything has failed before.
    pub(super) fn check(&self) -> Result<()> {
        self.heard().fault.clone().map_or(Ok(()), |text| Err(Error::Rank(text)))
    }

    /// Says something to ranks of the world. Nobody waits for its arrival: the buffer stays for ever.
    fn tell(&self, ranks: &[usize], tag: i32, text: &str) {
        for &rank in ranks.iter().filter(|&&rank| rank != self.rank) {
            let words: &'static [u8] = Box::leak(text.as_bytes().into());
            let process = self.words.process_at_rank(rank as Rank);
            std::mem::forget(process.immediate_send_with_tag(StaticScope, words, tag));
        }
    }

    /// From now on nothing succeeds in this process, nor in those ranks of the world, which hear of it.
    pub(super) fn fail(&self, others: &[usize], text: String) -> Error {
        let first = self.heard().fault.replace(text.clone()).is_none();
        if first {
            self.tell(others, VERDICT, &text);
        }
        Error::Rank(text)
    }

    /// Takes what others said, and answers.
    fn listen(&self, what: &str) {
        while let Some(message) = self.words.any_process().immediate_matched_probe() {
            let (from, tag) = (message.1.source_rank() as usize, message.1.tag());
            let text = String::from_utf8_lossy(&message.matched_receive_vec::<u8>().0).into_owned();
            match tag {
                CALL => self.tell(&[from], ANSWER, what),
                ANSWER => drop(self.heard().answers.insert(from, text)),
                _ => drop(self.heard().fault.get_or_insert(text)),
            }
        }
    }

    /// Waits until something is done, which `poll` says and may say more than once.
    pub(super) fn wait(&self, wait: &Wait<'_>, mut poll: impl FnMut() -> Step) -> Result<()> {
        let (mut moved, mut listened) = (Instant::now(), Instant::now());
        for turn in 0u64.. {
            match poll() {
                Step::Done => break,
                Step::Moved => moved = Instant::now(),
                Step::Still => {}
            }
            if !turn.is_multiple_of(16) {
                std::thread::yield_now();
                continue;
            }
            let waited = moved.elapsed();
            // At first it may be a matter of microseconds; later the core is worth more to somebody else.
            if waited > Duration::from_millis(2) {
                std::thread::sleep(Duration::from_micros(50));
            }
            if listened.elapsed() > Duration::from_millis(20) {
                listened = Instant::now();
                self.listen(wait.what);
                self.check()?;
            }
            if self.patience.is_some_and(|patience| waited > patience) {
                let text = self.call_roll(wait)?;
                return Err(self.fail(wait.members, text));
            }
        }
        Ok(())
    }

    /// Who does not answer, in a sentence.
    fn call_roll(&self, wait: &Wait<'_>) -> Result<String> {
        let of = |answers: &BTreeMap<usize, String>| -> Vec<usize> {
            let silent = wait.of.iter().filter(|&&rank| rank != self.rank && !answers.contains_key(&rank));
            silent.copied().collect()
        };
        self.heard().answers.clear();
        self.tell(wait.members, CALL, "");
        let began = Instant::now();
        while began.elapsed() < ROLL && !of(&self.heard().answers).is_empty() {
            self.listen(wait.what);
            self.check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let heard = self.heard();
        let (silent, seconds) = (of(&heard.answers), self.patience.unwrap_or_default().as_secs_f64());
        if !silent.is_empty() {
            let ranks: Vec<String> = silent.iter().map(|rank| format!("rank {rank}")).collect();
            // Who gives no signs of life is missed before that.
            let alive = if self.beats.get().is_some() { ", though its process is alive" } else { "" };
            return Ok(format!("{} did nothing for {seconds} s{alive}, and {}", ranks.join(", "), wait.what));
        }
        let others = heard.answers.iter().map(|(rank, what)| format!("; rank {rank}: {what}"));
        let others: String = others.collect();
        Ok(format!("nothing moved for {seconds} s, rank {}: {}{others}", self.rank, wait.what))
    }

    /// Waits for a small call whose buffers are the call's own; what came of it.
    pub(super) fn small<T: Clone + Default>(&self, wait: &Wait<'_>, begun: own::Begun<T>) -> Result<Vec<T>> {
        let mut begun = Some(begun);
        let mut came = Vec::new();
        let waited = self.wait(wait, || match begun.take().map(own::Begun::test) {
            Some(Ok(words)) => {
                came = words;
                Step::Done
            }
            Some(Err(still)) => {
                begun = Some(still);
                Step::Still
            }
            None => Step::Done,
        });
        // MPI may still write there.
        std::mem::forget(begun);
        waited.map(|()| came)
    }

    /// Ends all ranks, of which some may hold on to memory that MPI writes to.
    pub(super) fn end(&self, text: &str) -> ! {
        (self.last_words)(text);
        self.words.abort(1)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        if panics || self.heard().fault.is_some() {
            // MPI would wait for those that are gone.
            self.words.abort(1)
        }
        self.beats.take();
    }
}

/// What polling found.
pub(super) enum Step {
    /// What was waited for is there.
    Done,
    /// A part of it is.
    Moved,
    /// Nothing new.
    Still,
}
