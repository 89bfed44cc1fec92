//! The order in which the jobs of an index come to their turn.
//!
//! What is short would wait behind minutes of what is long if there were one line for both; so there are two, and the short
//! one goes first. Of the long one it is somebody's turn after a few short ones at the latest, however many of these come.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select};

/// Short jobs in a row while a long one waits.
const IN_A_ROW: usize = 4;

/// The two lines of an index, as one of its threads sees them.
#[derive(Debug)]
pub(super) struct Line<T> {
    short: Receiver<T>,
    long: Receiver<T>,
    /// Short jobs since the last long one.
    in_a_row: usize,
}

impl<T> Line<T> {
    pub(super) fn new(short: Receiver<T>, long: Receiver<T>) -> Self {
        Self { short, long, in_a_row: 0 }
    }

    /// The job whose turn it is; one that comes within `patience` if there is none.
    pub(super) fn next(&mut self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let waiting = if self.in_a_row < IN_A_ROW {
            self.next_short().or_else(|| self.next_long())
        } else {
            self.next_long().or_else(|| self.next_short())
        };
        waiting.map_or_else(|| self.first_to_come(patience), Ok)
    }

    fn next_short(&mut self) -> Option<T> {
        let job = self.short.try_recv().ok()?;
        self.in_a_row += 1;
        Some(job)
    }

    fn next_long(&mut self) -> Option<T> {
        let job = self.long.try_recv().ok()?;
        self.in_a_row = 0;
        Some(job)
    }

    fn first_to_come(&mut self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let mut either = Select::new();
        let short = either.recv(&self.short);
        either.recv(&self.long);
        let came = either.select_timeout(patience).map_err(|_| RecvTimeoutError::Timeout)?;
        // Both lines are closed together: one that is closed has ended, and so has the other.
        if came.index() == short {
            let job = came.recv(&self.short)?;
            self.in_a_row += 1;
            return Ok(job);
        }
        let job = came.recv(&self.long)?;
        self.in_a_row = 0;
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded};

    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    /// Longer than any of these tests waits if it goes well.
    const PATIENT: Duration = Duration::from_secs(60);

    fn line() -> (Sender<&'static str>, Sender<&'static str>, Line<&'static str>) {
        let ((short, shorts), (long, longs)) = (bounded(16), bounded(16));
        (short, long, Line::new(shorts, longs))
    }

    fn put(line: &Sender<&'static str>, job: &'static str, times: usize) {
        for _ in 0..times {
            line.try_send(job).unwrap();
        }
    }

    /// What comes until nothing more does.
    fn all(line: &mut Line<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| line.next(SOON).ok()).collect()
    }

    #[test]
    fn a_long_job_comes_after_four_short_ones() {
        let (short, long, mut line) = line();
        put(&long, "long", 2);
        put(&short, "short", 10);
        let came = all(&mut line);
        let places: Vec<usize> = (1..).zip(&came).filter(|(_, job)| **job == "long").map(|(place, _)| place).collect();
        assert_eq!((came.len(), places), (12, vec![5, 10]));
    }

    #[test]
    fn a_long_job_that_comes_late_need_not_wait_for_four_more() {
        let (short, long, mut line) = line();
        put(&short, "short", 8);
        for _ in 0..6 {
            assert_eq!(line.next(PATIENT), Ok("short"));
        }
        put(&long, "long", 1);
        assert_eq!(all(&mut line), ["long", "short", "short"]);
    }

    #[test]
    fn it_waits_for_either_and_not_for_ever() {
        let (short, long, mut line) = line();
        assert_eq!(line.next(SOON), Err(RecvTimeoutError::Timeout));
        for (to, job) in [(&short, "short"), (&long, "long")] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(SOON);
                    put(to, job, 1);
                });
                assert_eq!(line.next(PATIENT), Ok(job));
            });
        }
    }

    #[test]
    fn what_is_in_line_when_it_is_closed_still_comes() {
        let (short, long, mut line) = line();
        put(&short, "short", 1);
        put(&long, "long", 2);
        drop((short, long));
        assert_eq!(all(&mut line), ["short", "long", "long"]);
        assert_eq!(line.next(PATIENT), Err(RecvTimeoutError::Disconnected));
    }
}
