//! Signs of life: each process tells the next one, from a thread of its own, that it is there, however long it computes. Who
//! is not heard of for too long ends all ranks; so a process that was stopped, or whose machine is gone, costs seconds.

use super::requests::own;
use super::world::{Handle, World};
use ::mpi::Rank;
use ::mpi::point_to_point::MatchedReceiveVec as _;
use ::mpi::request::StaticScope;
use ::mpi::topology::Communicator as _;
use ::mpi::traits::{Destination as _, Source as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most time between two signs; a quarter of the patience, where that is less.
const EVERY: Duration = Duration::from_millis(500);
/// How long those that hear of a silent rank have to say so themselves before all are ended.
const GRACE: Duration = Duration::from_secs(3);

/// What is sent: a sign of life.
const BEAT: i32 = 1;
/// The last one: its sender leaves, and is not missed.
const LEAVES: i32 = 2;

/// The thread that gives signs and waits for them.
pub(super) struct Beats {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Beats {
    /// From now on the rank before this one is missed when it is silent for so long. All ranks call this.
    pub(super) fn start(world: &Arc<World>, silence: Duration) -> Beats {
        let stop = Arc::new(AtomicBool::new(false));
        let ring = Ring { comm: Handle::new(world.all.duplicate()), silence, stop: stop.clone() };
        let world = Arc::downgrade(world);
        Beats { stop, thread: Some(std::thread::spawn(move || ring.run(&world))) }
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

struct Ring {
    comm: Handle,
    silence: Duration,
    stop: Arc<AtomicBool>,
}

impl Ring {
    fn run(&self, world: &Weak<World>) {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let every = EVERY.min(self.silence / 4);
        let mut sent: Vec<own::Sent> = Vec::new();
        let (mut heard, mut looked) = (Instant::now(), Instant::now());
        let (mut is_there, mut leaves) = (true, false);
        loop {
            if !leaves {
                leaves = self.stop.load(Ordering::Relaxed);
                sent.push(self.send(next, if leaves { LEAVES } else { BEAT }));
            }
            sent = sent.drain(..).filter_map(|sent| sent.test().err()).collect();
            // Who was away itself has missed signs that may be on their way.
            if looked.elapsed() > self.silence / 2 {
                heard = Instant::now();
            }
            looked = Instant::now();
            while let Some(message) = self.comm.process_at_rank(before).immediate_matched_probe() {
                is_there &= message.1.tag() != LEAVES;
                drop(message.matched_receive_vec::<u8>());
                heard = Instant::now();
            }
            if leaves && ((!is_there && sent.is_empty()) || heard.elapsed() > self.silence) {
                // What never arrived is MPI's to keep.
                sent.into_iter().for_each(std::mem::forget);
                return;
            }
            if is_there && heard.elapsed() > self.silence {
                return self.miss(world, before);
            }
            std::thread::park_timeout(if leaves { Duration::from_millis(1) } else { every });
        }
    }

    fn send(&self, to: Rank, tag: i32) -> own::Sent {
        let process = self.comm.process_at_rank(to);
        own::Sent::new(&[0], |word| process.immediate_send_with_tag(StaticScope, word, tag))
    }

    /// Says to all who is missed, and ends all where they do not end themselves.
    fn miss(&self, world: &Weak<World>, rank: Rank) {
        let Some(world) = world.upgrade() else { return };
        let seconds = self.silence.as_secs_f64();
        let text = format!(
            "rank {rank} has given no sign of life for {seconds} s: its process is stopped, or its machine cannot be reached"
        );
        let all: Vec<usize> = (0..self.comm.size() as usize).collect();
        let error = world.fail(&all, text);
        std::thread::sleep(GRACE);
        world.end(&error.to_string());
    }
}
