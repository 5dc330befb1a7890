//! What asks a program to end: Ctrl-C, and on Unix SIGTERM and SIGHUP. While a text is made the first Ctrl-C ends that; a training run
//! saves before it ends.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The exit code of a program that Ctrl-C ended.
pub(super) const INTERRUPTED: i32 = 130;

/// Has whatever asks this program to end told to `heard`, on a thread of its own, as the exit code by which shells know it: 128 and the
/// signal's number. SIGHUP is left alone where it is ignored.
pub(super) fn listen(mut heard: impl FnMut(i32) + Send + 'static) -> Result<()> {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let hangup = Some(SIGHUP).filter(|_| hears_hangup());
        let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup));
        let mut signals = signals.context("cannot listen for signals")?;
        std::thread::spawn(move || signals.forever().for_each(|signal| heard(128 + signal)));
        Ok(())
    }
    #[cfg(not(unix))]
    ctrlc::set_handler(move || heard(INTERRUPTED)).context("cannot listen for Ctrl-C")
}

/// Ctrl-C: during an answer it stops that, and a second one, or one while nothing is being said, ends the program, as other signals
/// always do.
#[derive(Default)]
pub(super) struct Signals {
    answering: AtomicBool,
    asked: AtomicBool,
}

impl Signals {
    /// Listens from now on. `idle` is said where the program ends while nothing is being made.
    pub(super) fn listen(idle: Option<&'static str>) -> Result<Arc<Signals>> {
        let signals = Arc::new(Signals::default());
        let heard = signals.clone();
        listen(move |code| {
            let answering = heard.answering.load(Ordering::Relaxed);
            if code != INTERRUPTED || !answering || heard.asked.swap(true, Ordering::Relaxed) {
                if let Some(idle) = idle.filter(|_| !answering) {
                    tell!("danlu: {idle}");
                }
                std::process::exit(code);
            }
        })?;
        Ok(signals)
    }

    /// An answer begins.
    pub(super) fn begin(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    /// True once it is to stop.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A training run asked to end, which it does after saving; with the exit code that tells by which signal, as shells do:
/// 128 and its number.
#[derive(Clone)]
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    code: Arc<AtomicUsize>,
}

impl Stop {
    /// Listens from now on to Ctrl-C, and on Unix to SIGTERM, SIGUSR1 and, where it is to hear that, SIGHUP. A second Ctrl-C leaves at once.
    /// `asked` is set by the first.
    pub(super) fn listen(asked: Arc<AtomicBool>) -> Result<Stop> {
        let stop = Stop { asked, code: Arc::new(AtomicUsize::new(INTERRUPTED as usize)) };
        stop.register().context("cannot listen for signals")?;
        Ok(stop)
    }

    #[cfg(unix)]
    fn register(&self) -> Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        use signal_hook::flag;
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, self.asked.clone())?;
        // Launchers of ranks pass SIGUSR1 on to them, and leave them no time after a SIGTERM.
        let hangup = Some(SIGHUP).filter(|_| hears_hangup());
        for signal in [SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup) {
            flag::register_usize(signal, self.code.clone(), 128 + signal as usize)?;
            flag::register(signal, self.asked.clone())?;
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn register(&self) -> Result<()> {
        let asked = self.asked.clone();
        listen(move |code| {
            if asked.swap(true, Ordering::Relaxed) {
                crate::store::atomic::abandon();
                std::process::exit(code);
            }
        })
    }

    /// Set once it is asked to end.
    pub(super) fn asked(&self) -> &AtomicBool {
        &self.asked
    }

    /// The exit code of what ends because it was asked to.
    pub(super) fn code(&self) -> u8 {
        self.code.load(Ordering::Relaxed) as u8
    }
}

/// Whether the end of its terminal is to end this process: not where it was started so that it ignores SIGHUP, as by nohup.
/// Only Linux says that without being asked by unsafe code.
#[cfg(unix)]
pub(super) fn hears_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored >> (signal_hook::consts::SIGHUP - 1) & 1 == 0
}
