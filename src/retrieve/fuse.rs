//! Fusion of rankings: pure functions. Ties end with the passage id, as everywhere.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use crate::types::{Hit, PassageId, sort_hits};

/// The k of [`rrf`] in the paper that introduced it.
pub const RRF_K: f64 = 60.0;

/// Reciprocal rank fusion (Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and
/// individual rank learning methods", SIGIR 2009): score(d) = sum over the rankings that have d of
/// 1 / (k + rank of d), ranks counted from 1. The best `depth`.
pub fn rrf(rankings: &[&[Hit]], k: f64, depth: usize) -> Vec<Hit> {
    let ranked = rankings
        .iter()
        .flat_map(|ranking| ranking.iter().enumerate().map(move |(i, hit)| (hit.passage, 1.0 / (k + (i + 1) as f64))));
    best(ranked, depth)
}

/// A weighted sum of scores: score(d) = sum over the rankings of weight x score of d, 0 where d is missing.
/// Scores must be of the same scale: cosines as they are, BM25 after [`by_top`]. The best `depth`.
pub fn convex(rankings: &[(&[Hit], f32)], depth: usize) -> Vec<Hit> {
    let weighted = rankings.iter().flat_map(|&(ranking, weight)| {
        ranking.iter().map(move |hit| (hit.passage, f64::from(weight) * f64::from(hit.score)))
    });
    best(weighted, depth)
}

/// Scores divided by the best of the ranking, so that it is 1. Unchanged if no score is above 0.
pub fn by_top(ranking: &[Hit]) -> Vec<Hit> {
    let top = ranking.iter().map(|hit| hit.score).fold(0.0, f32::max);
    let divisor = if top > 0.0 { top } else { 1.0 };
    ranking.iter().map(|hit| Hit { score: hit.score / divisor, ..*hit }).collect()
}

/// What is among `these` and not among the `others`, in its order.
pub(super) fn beyond<T: Copy + Eq + Hash>(these: impl Iterator<Item = T>, others: impl Iterator<Item = T>) -> Vec<T> {
    let others: HashSet<T> = others.collect();
    these.filter(|one| !others.contains(one)).collect()
}

fn best(parts: impl Iterator<Item = (PassageId, f64)>, depth: usize) -> Vec<Hit> {
    let mut sums: BTreeMap<PassageId, f64> = BTreeMap::new();
    for (passage, part) in parts {
        *sums.entry(passage).or_default() += part;
    }
    let mut hits: Vec<Hit> = sums.into_iter().map(|(passage, sum)| Hit { passage, score: sum as f32 }).collect();
    sort_hits(&mut hits);
    hits.truncate(depth);
    hits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranking(ids: &[u32]) -> Vec<Hit> {
        ids.iter().enumerate().map(|(i, &id)| Hit { passage: PassageId(id), score: 9.0 - i as f32 }).collect()
    }

    fn ids(hits: &[Hit]) -> Vec<u32> {
        hits.iter().map(|hit| hit.passage.0).collect()
    }

    #[test]
    fn rrf_by_hand() {
        let fused = rrf(&[&ranking(&[7, 3, 5]), &ranking(&[3, 9])], 60.0, 10);
        // 3: 1/62 + 1/61; 7: 1/61; 9: 1/62; 5: 1/63.
        assert_eq!(ids(&fused), [3, 7, 9, 5]);
        let expected = [0.032_522_475, 0.016_393_442, 0.016_129_032, 0.015_873_016];
        for (hit, expected) in fused.iter().zip(expected) {
            assert!((hit.score - expected).abs() < 1e-8, "{hit:?} is not {expected}");
        }
        // 4 and 2 are first in one ranking each: a tie, which the smaller id wins.
        assert_eq!(ids(&rrf(&[&ranking(&[4]), &ranking(&[2])], 60.0, 1)), [2]);
    }

    #[test]
    fn convex_by_hand() {
        let dense = [(1, 0.5), (2, 0.4)].map(|(id, score)| Hit { passage: PassageId(id), score });
        let lexical = by_top(&[(2, 20.0), (3, 10.0)].map(|(id, score)| Hit { passage: PassageId(id), score }));
        let fused = convex(&[(&dense, 0.8), (&lexical, 0.2)], 10);
        // 2: 0.32 + 0.2; 1: 0.4; 3: 0.1.
        assert_eq!(ids(&fused), [2, 1, 3]);
        assert!((fused[0].score - 0.52).abs() < 1e-6 && (fused[2].score - 0.1).abs() < 1e-6);
    }

    fn some_ranking() -> impl Strategy<Value = Vec<Hit>> {
        prop::collection::btree_map(0..50_u32, 0.0_f32..30.0, 0..30).prop_map(|scores| {
            let mut hits: Vec<Hit> =
                scores.into_iter().map(|(id, score)| Hit { passage: PassageId(id), score }).collect();
            sort_hits(&mut hits);
            hits
        })
    }

    proptest! {
        #[test]
        fn fusing_keeps_every_passage_once_and_sorted(a in some_ranking(), b in some_ranking(), depth in 0..80_usize) {
            for fused in [rrf(&[&a, &b], RRF_K, depth), convex(&[(&a, 0.3), (&by_top(&b), 0.7)], depth)] {
                let mut sorted = fused.clone();
                sort_hits(&mut sorted);
                prop_assert_eq!(&sorted, &fused);
                let mut all = ids(&a);
                all.extend(ids(&b));
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(fused.len(), depth.min(all.len()));
                let mut found = ids(&fused);
                found.sort_unstable();
                found.dedup();
                prop_assert_eq!(found.len(), fused.len());
                prop_assert!(found.iter().all(|id| all.contains(id)));
            }
        }

        #[test]
        fn the_order_of_rankings_does_not_matter(a in some_ranking(), b in some_ranking()) {
            prop_assert_eq!(rrf(&[&a, &b], RRF_K, 60), rrf(&[&b, &a], RRF_K, 60));
        }

        #[test]
        fn fusing_a_ranking_with_nothing_keeps_its_order(a in some_ranking()) {
            prop_assert_eq!(ids(&rrf(&[&a, &[]], RRF_K, 60)), ids(&a));
        }

        #[test]
        fn the_best_score_becomes_one(a in some_ranking()) {
            let scaled = by_top(&a);
            prop_assert!(scaled.iter().all(|hit| hit.score <= 1.0));
            if a.iter().any(|hit| hit.score > 0.0) {
                prop_assert_eq!(scaled[0].score, 1.0);
            }
        }
    }
}
