//! Ctrl-C while a text is made: the first one ends the text, a second one the program.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a program that Ctrl-C ended.
pub(super) const INTERRUPTED: i32 = 130;

/// Ctrl-C: during an answer it stops that, and a second one, or one while nothing is being said, ends the program.
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
        ctrlc::set_handler(move || {
            let answering = heard.answering.load(Ordering::Relaxed);
            if !answering || heard.asked.swap(true, Ordering::Relaxed) {
                if let Some(idle) = idle.filter(|_| !answering) {
                    tell!("danlu: {idle}");
                }
                std::process::exit(INTERRUPTED);
            }
        })
        .context("cannot listen for Ctrl-C")?;
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
