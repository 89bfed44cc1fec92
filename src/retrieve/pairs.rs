//! Pairs of words: those that stand side by side in a question, found side by side in a passage. A bag of words does not see them, and
//! the vector of a whole passage hardly: "south pole" and "pole ... south" are one to both.
//!
//! The sequential dependence of Metzler and Croft ("A Markov random field model for term dependencies", SIGIR 2005) in its simplest
//! form: whether a pair is there counts, not how often nor how rare it is, so nothing has to be known but the question and
//! the passage, and an index in a folder and a cluster rank alike. Weighing pairs by the rarity of their words, counting them, wider
//! windows and pairs in either order were tried, and were not clearly better (benches/README.md).

use std::collections::BTreeSet;

use crate::index::lexical::{FirstLetters, Stems, composed, words};

/// The pairs of a question.
#[derive(Debug, Default)]
pub struct Pairs {
    /// How many different words it has.
    words: usize,
    /// Which words follow one another, by the numbers of their terms; each pair once, in order.
    pairs: Vec<(u32, u32)>,
    /// What its words begin with.
    letters: FirstLetters,
}

impl Pairs {
    /// Of a question. They are good until `stems` sees another.
    pub fn of(question: &str, stems: &mut Stems) -> Self {
        stems.begin();
        let terms = stems.of(question);
        let pairs: BTreeSet<_> = terms.iter().copied().zip(terms.iter().copied().skip(1)).collect();
        let words = terms.into_iter().collect::<BTreeSet<_>>().len();
        Self { words, pairs: pairs.into_iter().collect(), letters: FirstLetters::of(question, stems) }
    }

    /// Whether there are none: no passage can have one.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// How many of the pairs stand side by side in a passage, for each different word of the question: from 0 to nearly 1, or a
    /// little more where a question says a word again. Stop words are passed over; no pair goes from the title to the text.
    pub fn share(&self, title: &str, text: &str, stems: &mut Stems) -> f32 {
        let mut found = vec![false; self.pairs.len()];
        let title = stems.count_titles().then_some(title);
        for text in title.into_iter().chain([text]).map(composed) {
            // The word before, if it could be one of the question's.
            let mut before = None;
            for word in words(&text) {
                let could_be = self.letters.allow(word);
                if !could_be && before.is_none() {
                    continue;
                }
                let Some(term) = stems.number(word) else { continue };
                if let Some(first) = before
                    && let Ok(at) = self.pairs.binary_search(&(first, term))
                    && let Some(found) = found.get_mut(at)
                {
                    *found = true;
                }
                before = self.pairs.binary_search_by_key(&term, |&(first, _)| first).is_ok().then_some(term);
            }
        }
        found.iter().filter(|&&found| found).count() as f32 / self.words.max(1) as f32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::lexical::Analyser;

    fn share(question: &str, title: &str, text: &str) -> f32 {
        let mut stems = Stems::new(&Analyser::default());
        Pairs::of(question, &mut stems).share(title, text, &mut stems)
    }

    #[test]
    fn words_side_by_side_are_a_pair_in_their_order_only() {
        // Who, first, reach, south, pole: four pairs among five words.
        let question = "who first reached the South Pole";
        assert_eq!(share(question, "", "The South Pole was reached in 1911."), 0.2);
        assert_eq!(share(question, "", "the pole south of here"), 0.0);
        // Stop words between them do not part them, other words do.
        assert_eq!(share(question, "", "Amundsen first reached the south pole"), 0.6);
        assert_eq!(share(question, "", "the south magnetic pole"), 0.0);
        // Nor does a pair go from the title to the text.
        assert_eq!(share(question, "South", "Pole of cold"), 0.0);
        assert_eq!(share(question, "South Pole", "a pole to the south"), 0.2);
        // Once is as good as often.
        assert_eq!(share(question, "South Pole", "south pole, south pole, south pole"), 0.2);
    }

    #[test]
    fn dutch_pairs_are_found_though_stems_lose_their_beginning() {
        let mut stems = Stems::new(&Analyser { language: Some("dutch".parse().unwrap()), ..Analyser::default() });
        let pairs = Pairs::of("gesloten deur", &mut stems);
        assert_eq!(pairs.share("", "een gesloten deur", &mut stems), 0.5);
    }

    #[test]
    fn titles_that_were_left_out_have_no_pairs() {
        let mut stems = Stems::new(&Analyser { title_weight: 0, ..Analyser::default() });
        let pairs = Pairs::of("south pole", &mut stems);
        assert_eq!(pairs.share("South Pole", "the pole", &mut stems), 0.0);
    }

    #[test]
    fn questions_without_pairs_find_none() {
        for question in ["", "the of and", "glaciers"] {
            assert!(Pairs::of(question, &mut Stems::new(&Analyser::default())).is_empty());
            assert_eq!(share(question, "", "glaciers, glaciers"), 0.0, "{question}");
        }
        // New York and York New, of two words.
        assert_eq!(share("New York New York", "", "in New York"), 0.5);
    }

    proptest! {
        #[test]
        fn a_share_is_that_of_the_pairs_written_out(
            question in "[abc ]{0,12}", title in "[abcd ]{0,8}", text in "[abcd ]{0,20}",
        ) {
            // Without a language "a" is no stop word.
            let mut stems = Stems::new(&Analyser { language: None, ..Analyser::default() });
            let written = |text: &str| {
                let words: Vec<&str> = text.split_whitespace().collect();
                words.windows(2).map(|pair| pair.join(" ")).collect::<BTreeSet<String>>()
            };
            let there = &written(&title) | &written(&text);
            let different = question.split_whitespace().collect::<BTreeSet<_>>().len().max(1);
            let expected = (&written(&question) & &there).len() as f32 / different as f32;
            let pairs = Pairs::of(&question, &mut stems);
            prop_assert_eq!(pairs.share(&title, &text, &mut stems), expected);
        }
    }
}
