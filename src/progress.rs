//! How long work tells how far it is, and how it learns that it should stop.
//!
//! Library code reports to a [`Progress`] and asks [`check_interrupt`] between units of work; the command
//! line draws bars and turns Ctrl-C into [`interrupt`].

use std::cell::RefCell;
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

/// Whether a stop was asked for at all.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether work under way may go on to its end all the same.
static LET_END: AtomicBool = AtomicBool::new(false);

/// Ask this process to stop: long work at its next safe point, unless it is [let end](let_end).
pub fn interrupt() {
    STOP.store(true, Ordering::SeqCst);
}

/// Whether a stop was asked for, be work under way let end or not.
pub fn stop_asked() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Whether from here on work under way may end although a stop was asked for: a server's answers do.
pub fn let_end(may: bool) {
    LET_END.store(may, Ordering::SeqCst);
}

/// Whether work under way should stop.
pub fn interrupted() -> bool {
    stop_asked() && !LET_END.load(Ordering::Relaxed)
        || WANTED.with_borrow(|wanted| wanted.as_ref().is_some_and(|w| !w()))
}

thread_local! {
    /// Whether what this thread does is still wanted.
    static WANTED: RefCell<Option<Box<dyn Fn() -> bool>>> = const { RefCell::new(None) };
}

/// While it lives, work of this thread stops at its next safe point, too, when nobody wants it any more.
#[derive(Debug)]
pub struct While(());

/// Have work of this thread go on only while it is `wanted`.
pub fn only_while(wanted: impl Fn() -> bool + 'static) -> While {
    WANTED.set(Some(Box::new(wanted)));
    While(())
}

impl Drop for While {
    fn drop(&mut self) {
        WANTED.set(None);
    }
}

/// An [`Error::Interrupted`] saying what is `kept`, if work under way should stop.
pub fn check_interrupt(kept: impl FnOnce() -> String) -> Result<()> {
    if interrupted() { Err(Error::Interrupted { kept: kept() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn work_stops_when_nobody_wants_it_and_other_threads_go_on() {
        let wanted = Rc::new(Cell::new(true));
        let asked = wanted.clone();
        let work = only_while(move || asked.get());
        let check = || check_interrupt(|| "nothing".into()).is_ok();
        assert!(check());
        wanted.set(false);
        assert!(!check() && std::thread::spawn(check).join().unwrap());
        drop(work);
        assert!(check());
    }
}
