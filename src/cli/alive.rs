//! Signs of life between a run and the program that supervises it. From the run: a file of which the process of the first rank
//! changes a word every second, whatever its threads compute or wait for; a process that was stopped, or that a driver holds, does
//! not. To the run: the other end of its standard input, which the system closes when the supervisor is gone, however that ended.

use crate::store::atomic::abandon;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where the supervisor looks for it.
const VARIABLE: &str = "DANLU_ALIVE";
/// Most time between two words; a quarter of the patience, where that is less.
const EVERY: Duration = Duration::from_secs(1);

/// The thread that writes, until this is dropped.
pub struct Alive {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Alive {
    /// Begins, where a supervisor looks.
    pub fn give(silence: Option<Duration>) -> Option<Alive> {
        let (file, every) = (PathBuf::from(std::env::var_os(VARIABLE)?), EVERY.min(silence? / 4));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let write = move || {
            let mut word = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                word += 1;
                // Where it cannot be written nobody looks.
                let _ = fs::write(&file, format!("{} {word}", std::process::id()));
                std::thread::park_timeout(every);
            }
            let _ = fs::remove_file(&file);
        };
        Some(Alive { stop, thread: Some(std::thread::spawn(write)) })
    }
}

/// Ends this process when its supervisor is gone, where it has one: nobody would know of this run, and of the next one in its folder
/// this one would be in the way. Of several processes the first rank's does so, to which launchers hand standard input on; they end
/// the others when it has left. What is not on disk yet is lost, as when it is killed. Where what stands between hands nothing on,
/// the supervisor's greeting does not come, and the end of the input tells nothing.
pub fn leave_with_supervisor() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        let mut is_greeted = false;
        // What cannot be read tells nothing, too.
        while let Ok(read) = input.read(&mut [0; 64]) {
            match (read, is_greeted) {
                (0, false) => return,
                (0, true) => {
                    tell!(
                        "danlu: the danlu launch that started this run is gone, and the run ends; --resume takes it up"
                    );
                    abandon();
                    exit();
                }
                _ => is_greeted = true,
            }
        }
    });
}

/// At once: threads are at work in the driver, which must not be taken down below them.
fn exit() -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(1);
    #[cfg(not(unix))]
    std::process::exit(1);
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The supervisor's side.
pub struct Watch {
    file: PathBuf,
    silence: Option<Duration>,
    word: Vec<u8>,
    heard: Instant,
    looked: Instant,
}

impl Watch {
    /// For ranks that are to be started, which may be silent for so long.
    pub fn new(silence: Option<Duration>) -> Watch {
        let file = std::env::temp_dir().join(format!("danlu-alive-{}", std::process::id()));
        let _ = fs::remove_file(&file);
        Watch { file, silence, word: Vec::new(), heard: Instant::now(), looked: Instant::now() }
    }

    /// Tells what is to be started where to write, and holds the other end of its standard input, until who started it is gone.
    pub fn tell(&self, command: &mut Command) {
        command.env(VARIABLE, &self.file).stdin(Stdio::piped());
    }

    /// Says on what was started's standard input that this end of it is held.
    pub fn greet(&self, child: &mut Child) {
        // Who has ended already hears nothing.
        let _ = child.stdin.as_mut().map(|input| input.write_all(b"\n"));
    }

    /// The process of the first rank, where it has said so.
    pub fn first(&self) -> Option<u32> {
        let word = fs::read(&self.file).ok().filter(|word| !word.is_empty());
        let word = word.unwrap_or_else(|| self.word.clone());
        String::from_utf8(word).ok()?.split_whitespace().next()?.parse().ok()
    }

    /// For how long they have been silent, if that is too long. Who has never written, or has left, is not missed: the first
    /// rank may be on a machine whose files are not seen here.
    pub fn silent(&mut self) -> Option<Duration> {
        let silence = self.silence?;
        let word = fs::read(&self.file).unwrap_or_default();
        // Who was stopped itself has missed words.
        let was_away = self.looked.elapsed() > silence / 2;
        self.looked = Instant::now();
        if word.is_empty() || word != self.word || was_away {
            (self.word, self.heard) = (word, Instant::now());
        }
        (self.heard.elapsed() > silence).then_some(silence)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}
