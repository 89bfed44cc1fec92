//! Passages that say the same twice: the reader's windows are too few for that.
//!
//! A passage repeats another when its runs of five words stand, nearly all, in the other (containment of
//! w-shingles: Broder 1997, "On the resemblance and containment of documents"). The few passages that reach the reader are
//! compared with each other exactly and at the time, so that an index need not know them: no signature errs, and what is
//! added or merged later is compared as well.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Words of a run.
const RUN: usize = 5;
/// Share of a passage's runs by which it repeats another.
const SHARE: f64 = 0.8;

/// The runs of words of a text, as a sorted set of hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs(Vec<u64>);

impl Runs {
    /// Of a text; one of less than five words is one run. Case, punctuation and spaces do not count.
    pub fn of(text: &str) -> Self {
        let words: Vec<String> =
            text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
        let hash = |run: &[String]| {
            let mut hasher = DefaultHasher::new();
            run.hash(&mut hasher);
            hasher.finish()
        };
        let mut runs: Vec<u64> = match words.len() {
            0 => Vec::new(),
            1..RUN => vec![hash(&words)],
            _ => words.windows(RUN).map(hash).collect(),
        };
        runs.sort_unstable();
        runs.dedup();
        Self(runs)
    }

    /// Whether this says hardly anything that the other does not. A stub is repeated by every passage that has its words, and
    /// repeats none.
    pub fn repeats(&self, other: &Self) -> bool {
        let shared = self.0.iter().filter(|run| other.0.binary_search(run).is_ok()).count();
        !self.0.is_empty() && shared as f64 >= SHARE * self.0.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "A nunatak is a ridge of bare rock that rises above an ice sheet, ice cap or glacier. The word was \
                        borrowed from the language of the Inuit of Greenland.";

    fn repeats(a: &str, b: &str) -> bool {
        Runs::of(a).repeats(&Runs::of(b))
    }

    #[test]
    fn an_edited_copy_and_a_part_repeat_and_another_text_does_not() {
        assert!(repeats(TEXT, &TEXT.replace("Inuit of Greenland", "Greenlanders").replace(',', " ;").to_uppercase()));
        let part = TEXT.split_once(". ").unwrap().0;
        assert!(repeats(part, TEXT) && !repeats(TEXT, part));
        assert!(!repeats(
            TEXT,
            "A nunatak is a ridge of bare rock. Moraines are what glaciers leave behind when they melt."
        ));
        assert!(repeats("Ice caps", "ice  caps!") && !repeats("Ice caps", "Ice sheets") && !repeats("", TEXT));
    }

    proptest! {
        #[test]
        fn a_text_repeats_itself_and_what_begins_with_it(a in "[a-d ]{0,60}", more in "[a-d ]{0,60}") {
            let is_text = a.contains(|c: char| c != ' ');
            prop_assert_eq!(repeats(&a, &a), is_text);
            let longer = format!("{a} {more}");
            prop_assert!(!is_text || a.split_whitespace().count() < RUN || repeats(&a, &longer));
        }
    }
}
