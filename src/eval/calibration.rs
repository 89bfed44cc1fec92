//! Are confidences probabilities? Of answers given with a confidence of 0.7, seven in ten should be right.
//!
//! Both measures take *right* to be an exact match, and both are 0 at best. Neither sees whether the confidences
//! tell right from wrong answers: the same 0.4 for every answer is perfectly calibrated when 40% are right. The
//! order is [`crate::eval::selective`]'s matter; the Brier score takes both into account.

use serde::{Deserialize, Serialize};

use crate::eval::selective::Ordered;

/// Bins of the expected calibration error: as many as Guo et al. use.
pub const BINS: usize = 15;

/// Answers of like confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// How many.
    pub n: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that is right.
    pub accuracy: f64,
}

/// Up to `bins` bins of equal mass, from the least sure to the surest: n answers make bins of n / `bins` answers,
/// give or take one. Fewer answers than bins make a bin each.
///
/// Bins of equal width, the older way, leave most of them nearly empty when confidences crowd together, as they do.
/// Answers of equal confidence that fall into two bins count as their average in both.
pub fn bins(answers: &Ordered, bins: usize) -> Vec<Bin> {
    let smooth = answers.smooth();
    let n = smooth.len();
    let bins = bins.clamp(1, n.max(1));
    let edge = |bin: usize| n * bin / bins;
    let one = |bin: usize| {
        let inside = smooth.get(n - edge(bin + 1)..n - edge(bin)).filter(|slice| !slice.is_empty())?;
        let mean = |of: fn(&(f64, f64)) -> f64| inside.iter().map(of).sum::<f64>() / inside.len() as f64;
        Some(Bin { n: inside.len(), confidence: mean(|p| p.0), accuracy: mean(|p| p.1) })
    };
    (0..bins).filter_map(one).collect()
}

/// Expected calibration error: sum over bins b of n_b / n * |accuracy_b - confidence_b|, in [0, 1].
///
/// Naeini et al. 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599, eq. 3; with bins of equal mass as Nixon et al. 2019,
/// arXiv:1904.01685. It is never below what chance alone gives within the bins, about 0.4 sqrt(15 / n) for
/// perfect confidences around 0.5: 0.05 at n = 1,000. `None` of nothing.
pub fn expected_calibration_error(answers: &Ordered) -> Option<f64> {
    let n = answers.len() as f64;
    let gaps = bins(answers, BINS).into_iter().map(|b| b.n as f64 / n * (b.accuracy - b.confidence).abs());
    (!answers.is_empty()).then(|| gaps.sum())
}

/// Brier score of one answer: (confidence - right)^2; its mean is reported. Brier 1950.
pub fn brier(confidence: f64, right: f64) -> f64 {
    (confidence - right).powi(2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_error_by_hand() {
        // 30 answers in 15 pairs; pair i has confidences i/20 and one of two right.
        let pairs = (0..30).map(|i| (f64::from(i / 2) / 20.0, f64::from(i % 2)));
        let ordered = Ordered::new(pairs);
        // The mean of |i/20 - 1/2| for i = 0..15: (10+9+...+1+0+1+2+3+4)/20/15 = 65/300.
        assert!((expected_calibration_error(&ordered).unwrap() - 65.0 / 300.0).abs() < 1e-12);
        let bins = bins(&ordered, BINS);
        assert_eq!((bins.len(), bins[3]), (15, Bin { n: 2, confidence: 0.15, accuracy: 0.5 }));
        assert_eq!(expected_calibration_error(&Ordered::default()), None);
        assert_eq!(brier(0.25, 1.0), 0.5625);
    }

    proptest! {
        #[test]
        fn bins_take_every_answer_once_in_order(
            pairs in prop::collection::vec((0u8..9, any::<bool>()), 0..80), wanted in 1usize..20,
        ) {
            let pairs: Vec<(f64, f64)> =
                pairs.into_iter().map(|(c, right)| (f64::from(c) / 8.0, f64::from(u8::from(right)))).collect();
            let n = pairs.len();
            let right: f64 = pairs.iter().map(|p| p.1).sum();
            let made = bins(&Ordered::new(pairs.iter().copied()), wanted);
            prop_assert_eq!(made.iter().map(|b| b.n).sum::<usize>(), n);
            let sizes: Vec<usize> = made.iter().map(|b| b.n).collect();
            if let (Some(most), Some(least)) = (sizes.iter().max(), sizes.iter().min()) {
                prop_assert!(most - least <= 1, "{:?}", sizes);
            }
            prop_assert!(made.is_sorted_by(|a, b| a.confidence <= b.confidence + 1e-12));
            prop_assert!((made.iter().map(|b| b.n as f64 * b.accuracy).sum::<f64>() - right).abs() < 1e-9);
            let mut back = pairs.clone();
            back.reverse();
            let (there, back) = (Ordered::new(pairs), Ordered::new(back));
            let (a, b) = (expected_calibration_error(&there), expected_calibration_error(&back));
            prop_assert!(a.zip(b).is_none_or(|(a, b)| (a - b).abs() < 1e-12 && (0.0..=1.0).contains(&a)));
        }

        #[test]
        fn the_error_is_never_below_the_gap_of_the_means(
            pairs in prop::collection::vec((0.0f64..1.0, any::<bool>()), 1..80),
        ) {
            let pairs: Vec<(f64, f64)> = pairs.into_iter().map(|(c, right)| (c, f64::from(u8::from(right)))).collect();
            let gap = pairs.iter().map(|p| p.1 - p.0).sum::<f64>() / pairs.len() as f64;
            prop_assert!(expected_calibration_error(&Ordered::new(pairs)).unwrap() >= gap.abs() - 1e-12);
        }
    }
}
