//! How good a ranking is: hits at k, reciprocal rank, nDCG, average precision.
//!
//! Two things are ranked. *Passages* are what a reader gets, so [`first_gold_passage`] and [`hit_at`] count
//! them as they are: a passage is a hit when it is a piece of a gold document. *Documents* are what
//! relevance judgements are about, so [`Judged`] keeps each document's first passage only and computes what
//! `trec_eval` does.

use std::collections::{BTreeMap, HashSet};

use crate::types::document_of;

/// Gold documents of a question with their grades, all positive.
pub type Gold = BTreeMap<String, u32>;

/// The grade of a passage: that of its own key if it is gold itself, else that of its document.
fn grade(key: &str, gold: &Gold) -> Option<u32> {
    gold.get(key).or_else(|| gold.get(document_of(key))).copied()
}

/// Whether gold ids name passages, or documents that have such an id themselves (`issue#7`).
pub fn names_passages<'a>(mut gold: impl Iterator<Item = &'a String>) -> bool {
    gold.any(|key| document_of(key) != key)
}

/// What a passage is judged as: its document, or where gold ids name passages itself. A piece of a document whose own id looks
/// like a passage's (`issue#7#2`) is that document's all the same.
pub fn unit(key: &str, of_passages: bool) -> &str {
    let document = document_of(key);
    if of_passages && document_of(document) == document { key } else { document }
}

/// Rank, counted from 1, of the first passage that is a piece of a gold document.
pub fn first_gold_passage<'a>(keys: impl IntoIterator<Item = &'a str>, gold: &Gold) -> Option<usize> {
    keys.into_iter().position(|key| grade(key, gold).is_some_and(|grade| grade > 0)).map(|i| i + 1)
}

/// 1 when the first hit is among the top `k`, else 0: top-k accuracy, `trec_eval`'s `success_k`, and for a
/// question with one gold document its recall at k.
pub fn hit_at(first: Option<usize>, k: usize) -> f64 {
    f64::from(u8::from(first.is_some_and(|rank| rank <= k)))
}

/// A document ranking with the grades of its documents.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Grade of each retrieved document in ranked order; 0 = not relevant.
    grades: Vec<u32>,
    /// Grades of all gold documents, highest first.
    ideal: Vec<u32>,
}

impl Judged {
    /// Judge a passage ranking, best first: a document stands where its first passage stands.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>, gold: &Gold) -> Self {
        let (mut seen, of_passages) = (HashSet::new(), names_passages(gold.keys()));
        let judged = |key: &'a str| match (gold.get(key), gold.get(document_of(key))) {
            (Some(&grade), _) => (key, grade),
            (None, Some(&grade)) => (document_of(key), grade),
            (None, None) => (unit(key, of_passages), 0),
        };
        let grades =
            keys.into_iter().map(judged).filter(|(unit, _)| seen.insert(*unit)).map(|(_, grade)| grade).collect();
        let mut ideal: Vec<u32> = gold.values().copied().filter(|&g| g > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        Self { grades, ideal }
    }

    /// Reciprocal rank of the first relevant document among the top `k`, else 0.
    pub fn reciprocal_rank(&self, k: usize) -> f64 {
        self.grades.iter().take(k).position(|&g| g > 0).map_or(0.0, |i| 1.0 / (i + 1) as f64)
    }

    /// Normalised discounted cumulative gain at `k`: gain = grade, discount = log2(rank + 1), as
    /// `trec_eval`'s `ndcg_cut_k` (not the variant with gain 2^grade - 1).
    pub fn ndcg(&self, k: usize) -> f64 {
        let ideal = discounted_gain(&self.ideal, k);
        if ideal > 0.0 { discounted_gain(&self.grades, k) / ideal } else { 0.0 }
    }

    /// Share of the relevant documents that are among the top `k`: `trec_eval`'s `recall_k`.
    pub fn recall(&self, k: usize) -> f64 {
        let found = self.grades.iter().take(k).filter(|&&g| g > 0).count();
        if self.ideal.is_empty() { 0.0 } else { found as f64 / self.ideal.len() as f64 }
    }

    /// Mean of the precisions at each relevant document, over all relevant ones: `trec_eval`'s `map`.
    pub fn average_precision(&self) -> f64 {
        let mut found = 0.0;
        let mut sum = 0.0;
        for (i, _) in self.grades.iter().enumerate().filter(|(_, g)| **g > 0) {
            found += 1.0;
            sum += found / (i + 1) as f64;
        }
        if self.ideal.is_empty() { 0.0 } else { sum / self.ideal.len() as f64 }
    }
}

fn discounted_gain(grades: &[u32], k: usize) -> f64 {
    grades.iter().take(k).enumerate().map(|(i, &g)| f64::from(g) / (i as f64 + 2.0).log2()).sum()
}
