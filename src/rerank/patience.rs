//! When to stop reading candidates: those that are left are hopeless.
//!
//! Candidates are read in the first stage's order. Once so many in a row have not come among the best `keep`, the rest
//! is left unread. How many that must be is calibrated on questions whose whole lists were read, so that the loss is
//! bounded: by conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814) the expected loss of a question that
//! is exchangeable with the calibration questions is at most the bound, whatever their distribution.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Candidates that are read between two looks at the rule: batches that small keep the processor busy.
pub const BLOCK: usize = 16;
/// Rank at which the reciprocal rank is cut.
const MRR_DEPTH: usize = 10;

/// A rule for stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Candidates in a row that may disappoint.
    pub candidates: usize,
    /// Places that count: a candidate that comes among so many best is no disappointment.
    pub keep: usize,
}

impl Patience {
    /// The blocks in which `count` candidates are read, as `score` gives their scores; it is not called for a block
    /// that the rule leaves out. Returns how many were read.
    pub fn read<E>(self, count: usize, mut score: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>) -> Result<usize, E> {
        let mut best: Vec<f32> = Vec::with_capacity(self.keep + 1);
        let (mut read, mut disappointing) = (0, 0);
        while read < count && disappointing < self.candidates {
            let end = count.min(read + BLOCK);
            for score in score(read..end)? {
                // Equal scores keep the first stage's order, so the later one goes behind.
                let place = best.partition_point(|b| *b >= score);
                disappointing = if place < self.keep { 0 } else { disappointing + 1 };
                best.insert(place, score);
                best.truncate(self.keep);
            }
            read = end;
        }
        Ok(read)
    }

    /// How many of a list would be read, if these are its scores.
    pub fn depth(self, scores: &[f32]) -> usize {
        let slice =
            |range| Ok::<_, std::convert::Infallible>(scores.get::<Range<usize>>(range).unwrap_or(&[]).to_vec());
        self.read(scores.len(), slice).unwrap_or(scores.len())
    }
}

/// A calibration question: each candidate's score and whether it is relevant, in the first stage's order.
pub type List = Vec<(f32, bool)>;

/// What a rule costs and saves on calibration questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// The rule; none reads everything.
    pub patience: Patience,
    /// Candidates read, on average.
    pub read: f64,
    /// Share of questions with a relevant passage among the best `keep`.
    pub recall: f64,
    /// Mean reciprocal rank at 10.
    pub mrr10: f64,
    /// Mean loss: per question the larger of what recall and reciprocal rank lose against reading everything, and
    /// never less than under any more patient rule.
    pub loss: f64,
    /// What the loss of a new question is at most, in expectation.
    pub bound: f64,
}

/// What rules of every patience up to the longest list do, from the most patient, which reads everything, down.
pub fn outcomes(lists: &[List], keep: usize) -> Vec<Outcome> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let full: Vec<(f64, f64)> = lists.iter().map(|list| quality(list, list.len(), keep)).collect();
    let mut worst = vec![0.0f64; lists.len()];
    let count = lists.len().max(1) as f64;
    (1..=longest)
        .rev()
        .map(|candidates| {
            let patience = Patience { candidates, keep };
            let (mut read, mut recall, mut mrr10) = (0.0, 0.0, 0.0);
            for ((list, full), worst) in lists.iter().zip(&full).zip(&mut worst) {
                let scores: Vec<f32> = list.iter().map(|(score, _)| *score).collect();
                let depth = patience.depth(&scores);
                let (hit, reciprocal) = quality(list, depth, keep);
                *worst = worst.max(full.0 - hit).max(full.1 - reciprocal);
                read += depth as f64 / count;
                recall += hit / count;
                mrr10 += reciprocal / count;
            }
            let sum: f64 = worst.iter().sum();
            // A loss is at most 1, and the new question may have just that.
            Outcome { patience, read, recall, mrr10, loss: sum / count, bound: (sum + 1.0) / (count + 1.0) }
        })
        .collect()
}

/// The least patient rule whose bound, and that of every more patient one, is at most `limit`; `None` when there are
/// too few questions to promise that.
pub fn calibrate(outcomes: &[Outcome], limit: f64) -> Option<Outcome> {
    outcomes.iter().take_while(|o| o.bound <= limit).last().copied()
}

/// Whether a relevant passage is among the best `keep`, and the reciprocal rank of the first, when `depth` candidates
/// are read and the others follow in their order.
fn quality(list: &List, depth: usize, keep: usize) -> (f64, f64) {
    let (read, unread) = list.split_at(depth.min(list.len()));
    let mut order = read.to_vec();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rank = order.iter().chain(unread).position(|(_, relevant)| *relevant);
    let hit = rank.is_some_and(|r| r < keep);
    (f64::from(u8::from(hit)), rank.filter(|r| *r < MRR_DEPTH).map_or(0.0, |r| 1.0 / (r + 1) as f64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rest_is_left_when_nothing_comes_among_the_best() {
        let falling: Vec<f32> = (0..100).map(|i| -(i as f32)).collect();
        // 3 places fill with the first three, then 20 disappoint; the block in which that happens is read whole.
        assert_eq!(Patience { candidates: 20, keep: 3 }.depth(&falling), 32);
        assert_eq!(Patience { candidates: 1000, keep: 3 }.depth(&falling), 100);
        let rising: Vec<f32> = (0..100).map(|i| i as f32).collect();
        assert_eq!(Patience { candidates: 1, keep: 3 }.depth(&rising), 100);
        assert_eq!(Patience { candidates: 1, keep: 3 }.depth(&[]), 0);
    }

    #[test]
    fn what_a_rule_loses_is_counted() {
        // The only relevant passage is the best of all, but the first stage has it last.
        let late: List = (0..40).map(|i| if i == 39 { (9.0, true) } else { (-(i as f32), false) }).collect();
        let early: List = (0..40).map(|i| (-(i as f32), i == 0)).collect();
        let outcomes = outcomes(&[late, early], 5);
        let all = outcomes[0];
        assert_eq!((all.read, all.recall, all.mrr10, all.loss), (40.0, 1.0, 1.0, 0.0));
        assert!((all.bound - 1.0 / 3.0).abs() < 1e-12);
        let hasty = outcomes[39];
        assert_eq!((hasty.patience.candidates, hasty.read), (1, 16.0));
        assert_eq!((hasty.recall, hasty.mrr10, hasty.loss), (0.5, 0.5, 0.5));
        // 27 disappointments end with the second block, 28 need the third.
        let chosen = calibrate(&outcomes, 0.4).unwrap();
        assert_eq!((chosen.patience.candidates, chosen.read), (28, 40.0));
        assert_eq!(calibrate(&outcomes, 0.3), None);
    }

    proptest! {
        #[test]
        fn more_patience_never_costs_more(
            lists in prop::collection::vec(prop::collection::vec((-3i8..3, any::<bool>()), 0..60), 1..8),
            keep in 1usize..6,
        ) {
            let lists: Vec<List> =
                lists.into_iter().map(|l| l.into_iter().map(|(s, r)| (f32::from(s), r)).collect()).collect();
            let outcomes = outcomes(&lists, keep);
            for pair in outcomes.windows(2) {
                prop_assert!(pair[0].loss <= pair[1].loss && pair[0].read >= pair[1].read);
            }
            if let Some(all) = outcomes.first() {
                prop_assert_eq!(all.loss, 0.0);
            }
        }
    }
}
