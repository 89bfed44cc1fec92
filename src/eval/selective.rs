//! What it is worth not to answer: risk against coverage, and SQuAD 2.0's threshold in hindsight.
//!
//! Answers are given in the order of their confidence, the surest first. *Coverage* is the share of questions that
//! are answered when one stops somewhere, *risk* the share of those answers that are wrong (1 less their exact
//! match). El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017, arXiv:1705.08500.
//!
//! Answers of equal confidence have no order. Each of them counts as the average of all of them, which is what a
//! random order gives on average; so no result depends on the order of the questions.

use serde::{Deserialize, Serialize};

/// An answer as it would be given without a threshold, with what there is to know about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Probability that it is right.
    pub confidence: f64,
    /// 1 or 0.
    pub exact_match: f64,
    /// Token F1.
    pub f1: f64,
    /// Whether the question has an answer.
    pub answerable: bool,
    /// Whether the answer is that there is none.
    pub empty: bool,
}

/// Confidences and outcomes (1 right, 0 wrong, or between), the surest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ordered {
    pairs: Vec<(f64, f64)>,
    /// Where each pair stood before it was sorted.
    places: Vec<usize>,
}

impl Ordered {
    /// Sort (confidence, outcome) pairs.
    pub fn new(pairs: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut placed: Vec<(usize, (f64, f64))> = pairs.into_iter().enumerate().collect();
        placed.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let (places, pairs) = placed.into_iter().unzip();
        Self { pairs, places }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// A resample: the pair that was given as the i-th taken `counts[i]` times. It is in order without being sorted.
    pub fn resampled(&self, counts: &[u32]) -> Self {
        let count = |place: &usize| counts.get(*place).map_or(0, |c| *c as usize);
        let taken =
            self.pairs.iter().zip(&self.places).flat_map(|(pair, at)| std::iter::repeat_n((*pair, *at), count(at)));
        let (pairs, places) = taken.unzip();
        Self { pairs, places }
    }

    /// The pairs, the outcomes of equal confidences averaged.
    pub fn smooth(&self) -> Vec<(f64, f64)> {
        let same = self.pairs.chunk_by(|a, b| a.0 == b.0);
        same.flat_map(|ties| {
            let mean = ties.iter().map(|t| t.1).sum::<f64>() / ties.len() as f64;
            ties.iter().map(move |t| (t.0, mean))
        })
        .collect()
    }

    /// Mean outcome of the first 1, 2, ... n answers: at index i the coverage is (i + 1) / n.
    pub fn selective(&self) -> Vec<f64> {
        let running = self.smooth().into_iter().scan((0.0, 0.0), |(sum, count), (_, outcome)| {
            *sum += outcome;
            *count += 1.0;
            Some(*sum / *count)
        });
        running.collect()
    }

    /// Area under the risk-coverage curve, in [0, 1], 0 is best: the mean, over all n coverages, of the risk there
    /// (Geifman et al. 2019, arXiv:1805.08206, eq. 3). It counts accuracy as well as order: compare it between runs of
    /// like accuracy, or beside it. `None` of nothing.
    pub fn aurc(&self) -> Option<f64> {
        let selective = self.selective();
        let risk: f64 = selective.iter().map(|value| 1.0 - value).sum();
        (!selective.is_empty()).then(|| risk / selective.len() as f64)
    }

    /// The same pairs in the best order there is: all that are right first.
    pub fn perfect(&self) -> Self {
        Self::new(self.pairs.iter().map(|(_, outcome)| (*outcome, *outcome)))
    }
}

/// A threshold that was chosen with the right answers at hand: what abstention could reach, not what it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InHindsight {
    /// The mean that it gives.
    pub score: f64,
    /// Answers below it are withheld; 0 withholds none.
    pub min_confidence: f64,
}

/// The threshold of the best mean `measure` (exact match or F1) if answers below it are withheld, and so are right
/// for the unanswerable questions and wrong for the others: SQuAD 2.0's `best_exact` and `best_f1` with 1 less the
/// confidence as its no-answer probability (Rajpurkar et al. 2018). Unlike the official script this does not
/// part answers of equal confidence, which no threshold can. Of equal means the lower threshold. `None` of nothing.
pub fn best_threshold(answers: &[Scored], measure: impl Fn(&Scored) -> f64) -> Option<InHindsight> {
    let mut sorted: Vec<&Scored> = answers.iter().collect();
    sorted.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let withheld = |a: &Scored| f64::from(u8::from(!a.answerable));
    let mut sum: f64 = answers.iter().map(withheld).sum();
    // Above every confidence: all withheld.
    let mut best = (sum, f64::MAX);
    for ties in sorted.chunk_by(|a, b| a.confidence == b.confidence) {
        sum += ties.iter().map(|a| measure(a) - withheld(a)).sum::<f64>();
        if let (true, Some(answer)) = (sum >= best.0 - 1e-9, ties.first()) {
            best = (sum.max(best.0), answer.confidence);
        }
    }
    let all_given = sorted.last().is_some_and(|least| best.1 <= least.confidence);
    let score = best.0 / answers.len() as f64;
    let min_confidence = if all_given { 0.0 } else { best.1.min(1.0) };
    (!answers.is_empty()).then_some(InHindsight { score, min_confidence })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_area_by_hand() {
        // Surest first: right, wrong, right. Risks 0, 1/2, 1/3; mean 5/18.
        let ordered = Ordered::new([(0.2, 1.0), (0.9, 1.0), (0.5, 0.0)]);
        assert_eq!(ordered.selective(), [1.0, 0.5, 2.0 / 3.0]);
        assert!((ordered.aurc().unwrap() - 5.0 / 18.0).abs() < 1e-12);
        // The best order: right, right, wrong: risks 0, 0, 1/3.
        assert!((ordered.perfect().aurc().unwrap() - 1.0 / 9.0).abs() < 1e-12);
        assert_eq!(Ordered::default().aurc(), None);
    }

    fn scored(confidence: f64, exact_match: f64, answerable: bool) -> Scored {
        Scored { confidence, exact_match, f1: exact_match, answerable, empty: false }
    }

    #[test]
    fn the_threshold_in_hindsight_by_hand() {
        // Withholding all: 2 of 4 right. Then 0.9 right: 3; 0.6 wrong on an unanswerable one: 2; 0.4 right: 3; 0.1: 2.
        let answers =
            [scored(0.1, 0.0, false), scored(0.4, 1.0, true), scored(0.9, 1.0, true), scored(0.6, 0.0, false)];
        let best = best_threshold(&answers, |a| a.exact_match).unwrap();
        assert_eq!(best, InHindsight { score: 0.75, min_confidence: 0.4 });
        let all_right = [scored(0.3, 1.0, true), scored(0.2, 1.0, true)];
        assert_eq!(best_threshold(&all_right, |a| a.f1), Some(InHindsight { score: 1.0, min_confidence: 0.0 }));
        let none = [scored(0.3, 0.0, false)];
        assert_eq!(best_threshold(&none, |a| a.f1), Some(InHindsight { score: 1.0, min_confidence: 1.0 }));
        assert_eq!(best_threshold(&[], |a| a.f1), None);
    }

    /// Few different confidences, so that there are ties.
    fn pairs() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((0u8..6, any::<bool>()), 1..60).prop_map(|all| {
            all.into_iter().map(|(c, right)| (f64::from(c) / 5.0, f64::from(u8::from(right)))).collect()
        })
    }

    proptest! {
        #[test]
        fn the_order_of_the_questions_changes_nothing(pairs in pairs(), turn in 0usize..60) {
            let mut turned = pairs.clone();
            let n = turned.len();
            turned.rotate_left(turn % n);
            let (a, b) = (Ordered::new(pairs), Ordered::new(turned));
            for (x, y) in a.selective().iter().zip(b.selective()) {
                prop_assert!((x - y).abs() < 1e-12);
            }
        }

        #[test]
        fn the_curve_ends_at_the_accuracy_and_no_order_beats_the_perfect_one(pairs in pairs()) {
            let accuracy = pairs.iter().map(|p| p.1).sum::<f64>() / pairs.len() as f64;
            let ordered = Ordered::new(pairs.iter().copied());
            let end = ordered.selective().last().copied().unwrap();
            prop_assert!((end - accuracy).abs() < 1e-12);
            let (aurc, perfect) = (ordered.aurc().unwrap(), ordered.perfect().aurc().unwrap());
            prop_assert!(0.0 <= perfect && perfect <= aurc + 1e-12 && aurc <= 1.0);
            // One confidence for all is no order: the risk is the same everywhere.
            let flat = Ordered::new(pairs.iter().map(|p| (0.5, p.1))).aurc().unwrap();
            prop_assert!((flat - (1.0 - accuracy)).abs() < 1e-12);
        }

        #[test]
        fn a_monotone_change_of_confidences_changes_nothing(pairs in pairs()) {
            let bent = Ordered::new(pairs.iter().map(|p| (p.0.powi(3) / 2.0, p.1)));
            prop_assert_eq!(bent.selective(), Ordered::new(pairs).selective());
        }

        #[test]
        fn ties_are_the_average_over_random_orders(pairs in pairs(), seed: u64) {
            // Breaking ties by chance, many times, by a small generator of its own.
            let mut state = seed | 1;
            let mut chance = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state as f64 / u64::MAX as f64 };
            let rounds = 3000;
            let mean = (0..rounds).map(|_| {
                Ordered::new(pairs.iter().map(|p| (p.0 + 1e-6 * chance(), p.1))).aurc().unwrap()
            }).sum::<f64>() / f64::from(rounds);
            prop_assert!((mean - Ordered::new(pairs).aurc().unwrap()).abs() < 0.03);
        }

        #[test]
        fn no_threshold_beats_the_best(
            answers in prop::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 1..40), at in 0.0f64..1.2,
        ) {
            let answers: Vec<Scored> = answers.into_iter()
                .map(|(c, right, answerable)| scored(f64::from(c) / 5.0, f64::from(u8::from(right && answerable)), answerable))
                .collect();
            let with = |threshold: f64| answers.iter()
                .map(|a| if a.confidence < threshold { f64::from(u8::from(!a.answerable)) } else { a.exact_match })
                .sum::<f64>() / answers.len() as f64;
            let best = best_threshold(&answers, |a| a.exact_match).unwrap();
            prop_assert!(with(at) <= best.score + 1e-12);
            // A threshold of 1 withholds all but the surest, and cannot say "withhold those too".
            prop_assert!(best.min_confidence == 1.0 || (with(best.min_confidence) - best.score).abs() < 1e-12);
        }
    }
}
