//! How long work tells how far it is, and how it learns that it should stop.
//!
//! Library code reports to a [`Progress`] and asks [`check_interrupt`] between units of work; the command
//! line draws bars and turns Ctrl-C into [`interrupt`].

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Somebody who wants to know how far the work is. The command line brings bars, a server brings logs.
pub trait Progress: Sync {
    /// A stage of the work begins: its name, how many units if known, and what a unit is called.
    fn start(&self, stage: &str, total: Option<u64>, unit: &'static str);
    /// So many more units are done.
    fn advance(&self, units: u64);
    /// What the stage is doing, beside its amount: the loss of a training.
    fn status(&self, _text: &str) {}
    /// The stage is over.
    fn finish(&self);
    /// A remark worth keeping on the screen.
    fn note(&self, text: &str);
}

/// Nobody is watching.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn start(&self, _: &str, _: Option<u64>, _: &'static str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ask all long work in this process to stop at the next safe point.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether a stop was asked for.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An [`Error::Interrupted`] saying what is `kept`, if a stop was asked for.
pub fn check_interrupt(kept: impl FnOnce() -> String) -> Result<()> {
    if interrupted() { Err(Error::Interrupted { kept: kept() }) } else { Ok(()) }
}
