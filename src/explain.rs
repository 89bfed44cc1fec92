//! What each part of the ranking gave a passage: for people who want to know why it stands where it stands.

use serde::Serialize;
use utoipa::ToSchema;

use crate::pipeline::Found;
use crate::types::{Hit, PassageId};

/// A place in a list, and what it was given for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Place {
    /// From 1; none if it is not in the list, and was scored all the same.
    pub rank: Option<usize>,
    /// Comparable within its list only.
    pub score: f32,
}

/// What each part of the ranking gave a passage.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Explanation {
    /// By words; none when it has none of the question's, or words took no part.
    pub bm25: Option<Place>,
    /// Pairs of the question's words that stand side by side in it, for each word of the question; none when there are none, or they
    /// took no part.
    pub pairs: Option<f32>,
    /// By meaning: the cosine of question and passage.
    pub cosine: Option<f32>,
    /// In the first stage's list.
    pub first_stage: Option<Place>,
    /// In the re-ranker's, with the first stage's share in it.
    pub reranker: Option<Place>,
}

impl Explanation {
    /// Of a passage among what was found.
    pub fn of(passage: PassageId, found: &Found) -> Self {
        let place = |list: &[Hit]| {
            let at = list.iter().position(|hit| hit.passage == passage)?;
            Some(Place { rank: Some(at + 1), score: list.get(at)?.score })
        };
        let beyond = |list: &[Hit]| {
            let hit = list.iter().find(|hit| hit.passage == passage)?;
            Some(Place { rank: None, score: hit.score })
        };
        let parts = &found.parts;
        let score = |list: &[Hit]| list.iter().find(|hit| hit.passage == passage).map(|hit| hit.score);
        Self {
            bm25: place(&parts.words).or_else(|| beyond(&parts.bm25)),
            pairs: score(&parts.pairs),
            cosine: score(&parts.meaning).or_else(|| score(&parts.cosines)),
            first_stage: place(&found.retrieved),
            reranker: place(&found.reranked),
        }
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let place = |name: &str, place: &Option<Place>| {
            let Place { rank, score } = (*place)?;
            let rank = rank.map_or_else(String::new, |rank| format!(" (place {rank})"));
            Some(format!("{name} {score:.3}{rank}"))
        };
        let parts = [
            place("words", &self.bm25),
            self.pairs.map(|pairs| format!("pairs {pairs:.3}")),
            self.cosine.map(|cosine| format!("meaning {cosine:.3}")),
            place("first stage", &self.first_stage),
            place("re-ranker", &self.reranker),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" · "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieve::Parts;

    #[test]
    fn a_passage_has_a_place_in_each_list_it_is_in() {
        let hit = |id, score| Hit { passage: PassageId(id), score };
        let found = Found {
            parts: Parts {
                words: vec![hit(1, 9.0), hit(2, 8.0)],
                meaning: vec![hit(3, 0.9)],
                cosines: vec![hit(2, 0.5)],
                bm25: vec![hit(4, 1.0)],
                pairs: vec![hit(2, 0.25)],
                beam: None,
            },
            retrieved: vec![hit(3, 0.7), hit(2, 0.6), hit(1, 0.4), hit(4, 0.3)],
            reranked: vec![hit(2, 3.0)],
            ..Found::default()
        };
        let place = |rank, score| Some(Place { rank: Some(rank), score });
        let second = Explanation::of(PassageId(2), &found);
        assert_eq!((second.bm25, second.cosine), (place(2, 8.0), Some(0.5)));
        assert_eq!((second.first_stage, second.reranker), (place(2, 0.6), place(1, 3.0)));
        assert_eq!(
            second.to_string(),
            "words 8.000 (place 2) · pairs 0.250 · meaning 0.500 · first stage 0.600 (place 2) · re-ranker 3.000 (place 1)"
        );
        let third = Explanation::of(PassageId(3), &found);
        assert_eq!((third.bm25, third.pairs, third.cosine, third.reranker), (None, None, Some(0.9), None));
        // Only meaning found it, and yet words count.
        let fourth = Explanation::of(PassageId(4), &found);
        assert_eq!(fourth.bm25, Some(Place { rank: None, score: 1.0 }));
        assert_eq!(fourth.to_string(), "words 1.000 · first stage 0.300 (place 4)");
    }
}
