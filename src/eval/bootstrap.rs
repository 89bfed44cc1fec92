//! How far a mean can be trusted, and whether two runs differ: resampling over questions, and exact tests.
//!
//! Everything here is a pure function of its numbers and a seed: resample i draws from stream i of a ChaCha
//! generator, so the number of threads changes nothing. Questions are taken as drawn independently from a
//! population of questions; what a fixed question set cannot tell (another corpus, another domain) no
//! interval tells either.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap interval: 2,000 keep the ends of a 95% interval to about a twentieth of its width.
pub const RESAMPLES: u64 = 2_000;

/// Sign flips of a permutation test: the smallest p-value it can give is 1/10,001.
pub const PERMUTATIONS: u64 = 10_000;

/// A 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// The `q`-quantile (0 to 1) of ascending numbers, interpolated linearly between neighbours; `None` of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let below = *sorted.get(at.floor() as usize)?;
    let above = *sorted.get(at.ceil() as usize)?;
    // Equal neighbours are given back as they are: 0.7a + 0.3a need not be a.
    Some(if below == above { below } else { below + (above - below) * at.fract() })
}

/// 95% percentile bootstrap interval of the mean of `values`, one value a question; `None` of nothing.
///
/// Efron & Tibshirani 1993, chapter 13.
pub fn interval(values: &[f64], seed: u64) -> Option<Interval> {
    // Draws are 32 bits wide; a set of questions is far below.
    let n = u32::try_from(values.len()).ok()?;
    let mut means = (0..RESAMPLES)
        .into_par_iter()
        .map(|resample| {
            let mut random = stream(seed, resample);
            let sum: f64 = (0..n).filter_map(|_| values.get(draw(&mut random, n))).sum();
            sum / f64::from(n)
        })
        .collect::<Vec<f64>>();
    means.sort_by(f64::total_cmp);
    mean(values)?;
    Some(Interval { low: quantile(&means, 0.025)?, high: quantile(&means, 0.975)? })
}

/// 95% percentile bootstrap interval of a statistic that is no mean, over `n` questions: `statistic` is given how often
/// each question was drawn. Resamples where it has no value are left out; `None` when none has one.
pub fn interval_of(n: usize, seed: u64, statistic: impl Fn(&[u32]) -> Option<f64> + Sync) -> Option<Interval> {
    ends(resamples_of(n, seed, statistic)?)
}

fn ends(sorted: Vec<f64>) -> Option<Interval> {
    Some(Interval { low: quantile(&sorted, 0.025)?, high: quantile(&sorted, 0.975)? })
}

/// The statistic of every resample, ascending.
fn resamples_of(n: usize, seed: u64, statistic: impl Fn(&[u32]) -> Option<f64> + Sync) -> Option<Vec<f64>> {
    let draws = u32::try_from(n).ok().filter(|n| *n > 0)?;
    let mut values: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .filter_map(|resample| {
            let mut random = stream(seed, resample);
            let mut counts = vec![0; n];
            for _ in 0..draws {
                if let Some(count) = counts.get_mut(draw(&mut random, draws)) {
                    *count += 1;
                }
            }
            statistic(&counts)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    Some(values)
}

/// Test a statistic that is no mean, over the same `n` questions in both runs: `difference` gives that of B less that of
/// A for how often each question was drawn. The p-value is twice the share of resamples on the far side of zero
/// (Efron & Tibshirani 1993, section 16.4, for the percentile interval): coarser than the exact tests above.
pub fn paired_of(n: usize, seed: u64, difference: impl Fn(&[u32]) -> Option<f64> + Sync) -> Option<Paired> {
    let observed = difference(&vec![1; n])?;
    let resampled = resamples_of(n, seed, &difference)?;
    let side = |on: fn(&f64) -> bool| resampled.iter().filter(|d| on(d)).count() as f64;
    let least = f64::min(side(|d| *d <= 0.0), side(|d| *d >= 0.0));
    let p = f64::min(1.0, 2.0 * (least + 1.0) / (resampled.len() as f64 + 1.0));
    Some(Paired { difference: observed, interval: ends(resampled)?, p, test: PairedTest::Bootstrap, n })
}

/// What a paired test says of B against A.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Mean of B less mean of A.
    pub difference: f64,
    /// 95% bootstrap interval of the difference, questions resampled as pairs.
    pub interval: Interval,
    /// Two-sided p-value for "A and B are equally good".
    pub p: f64,
    /// Where the p-value is from.
    pub test: PairedTest,
    /// Questions.
    pub n: usize,
}

/// A paired test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairedTest {
    /// Exact McNemar test (binomial), for values that are all 0 or 1.
    #[serde(rename = "mcnemar")]
    McNemar,
    /// Random sign flips of the differences, for all others.
    Permutation,
    /// Questions resampled as pairs, for what is no mean over questions.
    Bootstrap,
}

/// Test B against A, question by question: `pairs` holds (A, B). `None` of nothing.
pub fn paired(pairs: &[(f64, f64)], seed: u64) -> Option<Paired> {
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
    let difference = mean(&differences)?;
    let interval = interval(&differences, seed)?;
    let binary = pairs.iter().all(|(a, b)| [a, b].into_iter().all(|x| *x == 0.0 || *x == 1.0));
    let (p, test) = if binary {
        let gained = differences.iter().filter(|d| **d > 0.0).count();
        let lost = differences.iter().filter(|d| **d < 0.0).count();
        (mcnemar_exact(gained, lost), PairedTest::McNemar)
    } else {
        (sign_flips(&differences, seed), PairedTest::Permutation)
    };
    Some(Paired { difference, interval, p, test, n: pairs.len() })
}

/// Exact two-sided McNemar test: the chance that of `gained + lost` fair coins so uneven a number, or a more
/// uneven one, shows heads. Questions on which both agree say nothing.
pub fn mcnemar_exact(gained: usize, lost: usize) -> f64 {
    let n = (gained + lost) as f64;
    // The terms C(n, i) / 2^n one after another, as logarithms: 2^-n alone is 0 from n = 1,075 on.
    let mut log_term = -n * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=gained.min(lost) {
        tail += log_term.exp();
        log_term += (n - i as f64).ln() - (i as f64 + 1.0).ln();
    }
    f64::min(1.0, 2.0 * tail)
}

/// Two-sided p-value of the mean difference under random sign flips (Fisher's randomisation test), the
/// observed signs counted as one of the flips.
fn sign_flips(differences: &[f64], seed: u64) -> f64 {
    let moved: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let observed = moved.iter().sum::<f64>().abs();
    // Sums in another order differ in the last bits; an equal one must not count as smaller for that.
    let as_far = observed - 1e-9 * moved.iter().map(|d| d.abs()).sum::<f64>();
    let extreme = (0..PERMUTATIONS)
        .into_par_iter()
        .filter(|&flip| {
            let mut random = stream(seed, flip);
            let flipped: f64 = moved
                .chunks(64)
                .map(|chunk| {
                    let mut signs = random.next_u64();
                    let signed = |d: &f64| {
                        let positive = signs & 1 == 1;
                        signs >>= 1;
                        if positive { *d } else { -*d }
                    };
                    chunk.iter().map(signed).sum::<f64>()
                })
                .sum();
            flipped.abs() >= as_far
        })
        .count();
    (extreme as f64 + 1.0) / (PERMUTATIONS as f64 + 1.0)
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

/// A number below `n`, by multiplication (Lemire 2019) without the rejection step, whose bias of n / 2^32
/// is far below what resampling can see. Written out so that no library version moves the draws.
fn draw(random: &mut ChaCha8Rng, n: u32) -> usize {
    ((u64::from(random.next_u32()) * u64::from(n)) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        // numpy.quantile([1, 2, 4, 8], [0.5, 0.95]) = 3.0, 7.4
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0], 0.5), Some(3.0));
        assert!((quantile(&[1.0, 2.0, 4.0, 8.0], 0.95).unwrap() - 7.4).abs() < 1e-12);
        assert_eq!(quantile(&[5.0], 0.95), Some(5.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn mcnemar_equals_the_binomial_test() {
        // scipy.stats.binomtest(min(b, c), b + c).pvalue
        for (gained, lost, p) in [(10, 2, 0.03857421875), (0, 0, 1.0), (5, 5, 1.0), (0, 6, 0.03125), (1, 0, 1.0)] {
            assert!((mcnemar_exact(gained, lost) - p).abs() < 1e-12, "{gained} {lost}");
            assert!((mcnemar_exact(lost, gained) - p).abs() < 1e-12);
        }
        // 2^-n is no number any more: sum(comb(2000, i) for i in range(951)) * 2 / 2**2000, in Python's integers
        assert!((mcnemar_exact(1050, 950) - 0.026_824_146_240_280_695).abs() < 1e-9, "{}", mcnemar_exact(1050, 950));
    }

    #[test]
    fn the_interval_of_a_proportion_is_about_the_normal_one() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        let Interval { low, high } = interval(&values, 1).unwrap();
        // 0.25 +- 1.96 sqrt(0.25 * 0.75 / 400) = 0.2076, 0.2924
        assert!((low - 0.2076).abs() < 0.006 && (high - 0.2924).abs() < 0.006, "{low} {high}");
        assert_eq!(interval(&values, 1), interval(&values, 1));
        assert_ne!(interval(&values, 1), interval(&values, 2));
    }

    #[test]
    fn sign_flips_are_near_the_full_enumeration() {
        // Differences 1, 2, 3, 4, -1.5: of the 32 sign patterns 6 reach |sum| >= 8.5
        // (python: sum(abs(sum(s*d for s,d in zip(S,D))) >= 8.5 for S in itertools.product([1,-1], repeat=5))).
        let p = sign_flips(&[1.0, 2.0, 3.0, 4.0, -1.5], 3);
        assert!((p - 6.0 / 32.0).abs() < 0.015, "{p}");
        assert_eq!(sign_flips(&[0.0; 8], 3), 1.0);
    }

    #[test]
    fn a_clear_gain_is_found_and_a_tie_is_not() {
        let gain: Vec<(f64, f64)> =
            (0..200).map(|i| (f64::from(i % 2), f64::from(u8::from(i % 2 == 1 || i % 5 == 0)))).collect();
        let found = paired(&gain, 5).unwrap();
        assert_eq!((found.n, found.test), (200, PairedTest::McNemar));
        assert!((found.difference - 0.1).abs() < 1e-12 && found.p < 1e-4 && found.interval.low > 0.0, "{found:?}");
        let tie: Vec<(f64, f64)> = (0..200).map(|i| (0.5, 0.5 + if i % 2 == 0 { 0.1 } else { -0.1 })).collect();
        let found = paired(&tie, 5).unwrap();
        assert_eq!(found.test, PairedTest::Permutation);
        assert!(found.p > 0.9 && found.interval.low < 0.0 && found.interval.high > 0.0, "{found:?}");
        assert_eq!(paired(&[], 5), None);
    }

    #[test]
    fn a_mean_by_counts_has_the_interval_of_the_mean() {
        let values: Vec<f64> = (0..300).map(|i| f64::from(i % 7)).collect();
        let by_counts = |counts: &[u32]| {
            let sum: f64 = values.iter().zip(counts).map(|(v, c)| v * f64::from(*c)).sum();
            Some(sum / f64::from(counts.iter().sum::<u32>()))
        };
        let (ours, direct) = (interval_of(300, 4, by_counts).unwrap(), interval(&values, 4).unwrap());
        assert!((ours.low - direct.low).abs() < 1e-9 && (ours.high - direct.high).abs() < 1e-9, "{ours:?} {direct:?}");
        assert_eq!(interval_of(0, 4, |_| Some(1.0)), None);
        assert_eq!(interval_of(5, 4, |_| None), None);
        let none = paired_of(300, 4, |_| Some(0.0)).unwrap();
        assert_eq!((none.p, none.test, none.difference), (1.0, PairedTest::Bootstrap, 0.0));
        let sure = paired_of(300, 4, |counts| Some(by_counts(counts)? - 1.0)).unwrap();
        assert!(sure.p < 0.002 && sure.interval.low > 1.0, "{sure:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_interval_of_a_constant_is_the_constant(value in -1e3f64..1e3, n in 1usize..200, seed: u64) {
            let values = vec![value; n];
            let mean = mean(&values).unwrap();
            let Interval { low, high } = interval(&values, seed).unwrap();
            prop_assert!(low <= mean && mean <= high && high - low < 1e-9, "{} {} {}", low, mean, high);
        }

        #[test]
        fn intervals_lie_within_the_data(values in prop::collection::vec(0.0f64..1.0, 1..60), seed: u64) {
            let Interval { low, high } = interval(&values, seed).unwrap();
            let smallest = values.iter().copied().fold(f64::MAX, f64::min);
            let largest = values.iter().copied().fold(f64::MIN, f64::max);
            prop_assert!(smallest - 1e-12 <= low && low <= high && high <= largest + 1e-12);
        }

        #[test]
        fn exchanging_the_runs_changes_only_the_sign(pairs in prop::collection::vec((0.0f64..1.0, 0.0f64..1.0), 1..40), seed: u64) {
            let there = paired(&pairs, seed).unwrap();
            let back = paired(&pairs.iter().map(|(a, b)| (*b, *a)).collect::<Vec<_>>(), seed).unwrap();
            prop_assert!((there.difference + back.difference).abs() < 1e-12);
            prop_assert_eq!(there.p, back.p);
        }
    }
}
