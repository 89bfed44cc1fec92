//! BM25 with any k1 and b. tantivy's own has k1 = 1.2 and b = 0.75 and passes over blocks of passages that cannot come among the
//! best, by bounds that were made with these numbers; with others every passage that has a word is scored here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tantivy::fieldnorm::FieldNormReader;
use tantivy::postings::{Postings, SegmentPostings};
use tantivy::query::{EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::IndexRecordOption;
use tantivy::{DocId, DocSet, Score, Searcher, SegmentReader, Term};

use crate::error::{Error, Result};

/// The two numbers of BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bm25 {
    /// How much a word that is there again counts: 0 as nothing, high values nearly as the first.
    pub k1: f32,
    /// How much a passage's length is held against it, 0 to 1.
    pub b: f32,
}

impl Default for Bm25 {
    /// tantivy's.
    fn default() -> Self {
        Self { k1: 1.2, b: 0.75 }
    }
}

impl Bm25 {
    /// Numbers that make sense.
    ///
    /// # Errors
    /// [`Error::Request`] for others.
    pub fn new(k1: f32, b: f32) -> Result<Self> {
        if k1.is_finite() && k1 >= 0.0 && (0.0..=1.0).contains(&b) {
            return Ok(Self { k1, b });
        }
        Err(Error::request("BM25's k1 is 0 or more and its b between 0 and 1", "1.2 and 0.75 are the usual ones"))
    }

    /// The weight of a word that `found` of `all` passages have: ln(1 + (N - n + 0.5) / (n + 0.5)).
    fn idf(found: u64, all: u64) -> f32 {
        let rest = all.saturating_sub(found) as f32;
        (1.0 + (rest + 0.5) / (found as f32 + 0.5)).ln()
    }

    /// What length adds to the denominator, by the byte that stands for it: k1 (1 - b + b length / mean).
    fn lengths(self, mean: f32) -> [f32; 256] {
        std::array::from_fn(|id| {
            let length = FieldNormReader::id_to_fieldnorm(id as u8) as f32;
            self.k1 * (1.0 - self.b + self.b * length / mean.max(f32::MIN_POSITIVE))
        })
    }
}

/// One word, scored by BM25: idf (k1 + 1) tf / (tf + length).
#[derive(Debug, Clone)]
pub(super) struct WordQuery {
    term: Term,
    weight: f32,
    lengths: Arc<[f32; 256]>,
}

impl WordQuery {
    /// These words, each as often as it is asked for.
    pub fn of(searcher: &Searcher, words: Vec<(Term, usize)>, bm25: Bm25) -> tantivy::Result<Vec<Self>> {
        let Some((first, _)) = words.first() else { return Ok(Vec::new()) };
        let all: u64 = searcher.segment_readers().iter().map(|segment| u64::from(segment.max_doc())).sum();
        let mut tokens = 0;
        for segment in searcher.segment_readers() {
            tokens += segment.inverted_index(first.field())?.total_num_tokens();
        }
        let lengths = Arc::new(bm25.lengths(tokens as f32 / all.max(1) as f32));
        let word = |(term, count): (Term, usize)| {
            let found = searcher.doc_freq(&term)?;
            let weight = Bm25::idf(found, all) * (1.0 + bm25.k1) * count as f32;
            Ok(Self { term, weight, lengths: Arc::clone(&lengths) })
        };
        words.into_iter().map(word).collect()
    }
}

impl Query for WordQuery {
    fn weight(&self, _: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(WordWeight(self.clone())))
    }

    fn query_terms<'a>(&'a self, visitor: &mut dyn FnMut(&'a Term, bool)) {
        visitor(&self.term, false);
    }
}

struct WordWeight(WordQuery);

impl Weight for WordWeight {
    fn scorer(&self, segment: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let WordQuery { term, weight, lengths } = &self.0;
        let index = segment.inverted_index(term.field())?;
        let Some(postings) = index.read_postings(term, IndexRecordOption::WithFreqs)? else {
            return Ok(Box::new(EmptyScorer));
        };
        let norms = segment.get_fieldnorms_reader(term.field())?;
        Ok(Box::new(WordScorer { postings, norms, weight: weight * boost, lengths: Arc::clone(lengths) }))
    }

    fn explain(&self, segment: &SegmentReader, document: DocId) -> tantivy::Result<Explanation> {
        let mut scorer = self.scorer(segment, 1.0)?;
        let here = scorer.doc() <= document && scorer.seek(document) == document;
        Ok(Explanation::new("BM25 of a word", if here { scorer.score() } else { 0.0 }))
    }
}

struct WordScorer {
    postings: SegmentPostings,
    norms: FieldNormReader,
    weight: f32,
    lengths: Arc<[f32; 256]>,
}

impl DocSet for WordScorer {
    fn advance(&mut self) -> DocId {
        self.postings.advance()
    }

    fn seek(&mut self, target: DocId) -> DocId {
        self.postings.seek(target)
    }

    fn doc(&self) -> DocId {
        self.postings.doc()
    }

    fn size_hint(&self) -> u32 {
        self.postings.size_hint()
    }
}

impl Scorer for WordScorer {
    fn score(&mut self) -> Score {
        let often = self.postings.term_freq() as f32;
        let length = self.lengths[usize::from(self.norms.fieldnorm_id(self.doc()))];
        self.weight * (often / (often + length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_sense_are_refused() {
        for (k1, b) in [(-0.1, 0.5), (f32::NAN, 0.5), (f32::INFINITY, 0.5), (1.0, -0.1), (1.0, 1.1), (1.0, f32::NAN)] {
            assert!(Bm25::new(k1, b).is_err(), "{k1} {b}");
        }
        assert_eq!(Bm25::new(0.9, 0.4).unwrap(), Bm25 { k1: 0.9, b: 0.4 });
    }

    #[test]
    fn the_formula_by_hand() {
        // 1 of 3 passages has the word: ln(1 + 2.5 / 1.5).
        assert!((Bm25::idf(1, 3) - 0.980_829_3).abs() < 1e-6);
        // A passage of the mean length: k1; of twice the mean: k1 (0.25 + 1.5).
        let lengths = Bm25::default().lengths(10.0);
        let at = |length: u32| lengths[usize::from(FieldNormReader::fieldnorm_to_id(length))];
        assert!((at(10) - 1.2).abs() < 1e-6 && (at(20) - 2.1).abs() < 1e-6);
    }
}
