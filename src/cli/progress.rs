//! Bars on a terminal, an occasional plain line elsewhere; always on stderr.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::progress::Progress;

/// How often a bar without news moves.
const TICK: Duration = Duration::from_millis(120);
/// How often a plain line tells how far the work is.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// A stage that takes less than this is over before anybody can read its line.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// One bar a stage, cleared when the stage is over.
#[derive(Debug, Default)]
pub struct Bars(Mutex<Option<ProgressBar>>);

impl Bars {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned lock only means that another thread panicked while drawing.
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn start(&self, stage: &str, total: Option<u64>, unit: &'static str) {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = match (total, unit) {
            (None, "") => "{spinner} {msg} {elapsed}".to_owned(),
            (None, "B") => "{spinner} {msg} {bytes} {elapsed}".to_owned(),
            (None, unit) => format!("{{spinner}} {{msg}} {{human_pos}} {unit} {{per_sec}} {{elapsed}}"),
            (Some(_), "B") => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}".to_owned(),
            (Some(_), unit) => {
                format!("{{msg}} {{wide_bar}} {{prefix}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}}")
            }
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(stage.to_owned());
        bar.enable_steady_tick(TICK);
        self.with(|current| *current = Some(bar));
    }

    fn advance(&self, units: u64) {
        self.with(|current| {
            if let Some(bar) = current {
                bar.inc(units);
            }
        });
    }

    fn status(&self, text: &str) {
        self.with(|current| {
            if let Some(bar) = current {
                bar.set_prefix(text.to_owned());
            }
        });
    }

    fn finish(&self) {
        self.with(|current| {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn note(&self, text: &str) {
        self.with(|current| match current {
            Some(bar) => bar.println(text),
            None => line(text),
        });
    }
}

/// Lines for a log file: at most one a stage every ten seconds, and one when a stage is over.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Option<Stage>>);

#[derive(Debug)]
struct Stage {
    name: String,
    total: Option<u64>,
    unit: &'static str,
    status: String,
    done: u64,
    began: Instant,
    said: Instant,
}

impl Stage {
    fn amount(&self) -> String {
        let count = |n: u64| if self.unit == "B" { HumanBytes(n).to_string() } else { HumanCount(n).to_string() };
        let unit = if self.unit == "B" { "" } else { self.unit };
        let text = match self.total {
            Some(total) => format!("{} of {} {unit}", count(self.done), count(total)),
            None if self.done > 0 => format!("{} {unit}", count(self.done)),
            None => String::new(),
        };
        text.trim_end().to_owned()
    }

    fn say(&self) {
        let seconds = self.began.elapsed().as_secs();
        let amount = self.amount();
        let comma = if amount.is_empty() { "" } else { ", " };
        let (open, status, close) = if self.status.is_empty() { ("", "", "") } else { (" (", &*self.status, ")") };
        line(&format!("{}: {amount}{comma}{seconds} s{open}{status}{close}", self.name));
    }
}

impl Lines {
    fn with(&self, act: impl FnOnce(&mut Option<Stage>)) {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Lines {
    fn start(&self, stage: &str, total: Option<u64>, unit: &'static str) {
        let now = Instant::now();
        self.with(|current| {
            let (name, status) = (stage.to_owned(), String::new());
            *current = Some(Stage { name, total, unit, status, done: 0, began: now, said: now });
        });
    }

    fn advance(&self, units: u64) {
        self.with(|current| {
            if let Some(stage) = current {
                stage.done += units;
                if stage.said.elapsed() >= LINE_EVERY {
                    stage.said = Instant::now();
                    stage.say();
                }
            }
        });
    }

    fn status(&self, text: &str) {
        self.with(|current| {
            if let Some(stage) = current {
                text.clone_into(&mut stage.status);
            }
        });
    }

    fn finish(&self) {
        self.with(|current| {
            if let Some(stage) = current.take().filter(|s| s.began.elapsed() >= TOO_SHORT) {
                stage.say();
            }
        });
    }

    fn note(&self, text: &str) {
        line(text);
    }
}

/// A line on stderr. Nothing can be done when it is closed.
fn line(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(total: Option<u64>, unit: &'static str, done: u64) -> String {
        let now = Instant::now();
        Stage { name: "s".into(), total, unit, status: String::new(), done, began: now, said: now }.amount()
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!(stage(Some(223_320), "passages", 12_000), "12,000 of 223,320 passages");
        assert_eq!(stage(Some(2048), "B", 1024), "1.00 KiB of 2.00 KiB");
        assert_eq!(stage(None, "", 0), "");
        assert_eq!(stage(None, "lines", 7), "7 lines");
    }
}
