//! Exact match and token F1 as the SQuAD 2.0 evaluation defines them.
//!
//! An answer is compared after normalisation: lower case, ASCII punctuation removed, the articles a, an
//! and the removed, white space folded. SQuAD 1.1 and DPR define exact match the same way. Where SQuAD 1.1
//! and 2.0 differ (an answer of which nothing is left), 2.0 is followed, as it keeps exact match <= F1.
//!
//! Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar et al. 2018, arXiv:1806.03822.

use std::collections::HashMap;

use crate::eval::characters::{is_python_space, is_word};

/// An answer as it is compared: lower case, without ASCII punctuation and articles, single spaces.
pub fn normalise(answer: &str) -> String {
    let mut text = answer.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    let mut kept = String::with_capacity(text.len());
    // A run of word characters that spells an article goes, and leaves a gap; so "–a–" loses its letter, and
    // "a" before a combining accent does too: a mark is no word character to the official script.
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let word = is_word(first);
        let end = rest.find(|c| is_word(c) != word).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        kept.push_str(if word && matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    let words: Vec<&str> = kept.split(is_python_space).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

/// Exact match and F1 of a prediction: each the best over `answers`, in [0, 1].
///
/// No answers (or none of which normalisation leaves anything) means that the question has none: then
/// both are 1 for a prediction of which nothing is left either, and 0 for any other.
pub fn exact_match_and_f1(prediction: &str, answers: &[String]) -> (f64, f64) {
    let prediction = normalise(prediction);
    let mut answers: Vec<String> = answers.iter().map(|a| normalise(a)).filter(|a| !a.is_empty()).collect();
    if answers.is_empty() {
        answers.push(String::new());
    }
    let exact = answers.contains(&prediction);
    let f1 = answers.iter().map(|a| token_f1(&prediction, a)).fold(0.0, f64::max);
    (f64::from(u8::from(exact)), f1)
}

/// Harmonic mean of token precision and recall, tokens as multisets; both arguments are normalised.
/// Two empty strings agree (1); an empty and another do not (0).
fn token_f1(prediction: &str, answer: &str) -> f64 {
    if prediction.is_empty() || answer.is_empty() {
        return f64::from(u8::from(prediction == answer));
    }
    let mut unmatched: HashMap<&str, usize> = HashMap::new();
    let mut answer_tokens = 0;
    for token in answer.split(' ') {
        *unmatched.entry(token).or_default() += 1;
        answer_tokens += 1;
    }
    let mut common = 0;
    let mut prediction_tokens = 0;
    for token in prediction.split(' ') {
        prediction_tokens += 1;
        if let Some(left) = unmatched.get_mut(token).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = f64::from(common) / f64::from(prediction_tokens);
    let recall = f64::from(common) / f64::from(answer_tokens);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalisation_follows_the_official_script() {
        assert_eq!(normalise("The  Beatles!"), "beatles");
        assert_eq!(normalise("a.m."), "am");
        assert_eq!(normalise("An apple a day"), "apple day");
        assert_eq!(normalise("U.S.A. (the)"), "usa");
        assert_eq!(normalise("theory"), "theory");
        assert_eq!(normalise("the_end"), "theend");
        assert_eq!(normalise("$1,500.50"), "150050");
        assert_eq!(normalise("1985–a–1990"), "1985– –1990");
        assert_eq!(normalise("Ångström\u{A0}the\u{1F}unit"), "ångström unit");
        assert_eq!(normalise("a\u{301}b"), "\u{301}b");
        assert_eq!(normalise("The"), "");
    }

    #[test]
    fn the_best_answer_counts() {
        let answers = ["New York City".to_owned(), "NYC".to_owned()];
        assert_eq!(exact_match_and_f1("the nyc.", &answers), (1.0, 1.0));
        let (exact, f1) = exact_match_and_f1("New York", &answers);
        assert_eq!(exact, 0.0);
        assert!((f1 - 0.8).abs() < 1e-12, "precision 1, recall 2/3: {f1}");
        // Multisets: the second "new" has no partner. Precision 1/2, recall 1/3.
        let (_, f1) = exact_match_and_f1("new new", &answers);
        assert!((f1 - 0.4).abs() < 1e-12, "{f1}");
    }

    #[test]
    fn a_question_without_an_answer_is_met_by_silence_only() {
        assert_eq!(exact_match_and_f1("", &[]), (1.0, 1.0));
        assert_eq!(exact_match_and_f1("the", &[]), (1.0, 1.0));
        assert_eq!(exact_match_and_f1("1973", &[]), (0.0, 0.0));
        assert_eq!(exact_match_and_f1("", &["1973".to_owned()]), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "\\PC{0,40}|[aAtTnheE .,'–_\u{301}\u{1F}]{0,20}") {
            let once = normalise(&text);
            prop_assert_eq!(normalise(&once), once);
        }

        #[test]
        fn exact_match_never_exceeds_f1(
            prediction in "[abthe .]{0,12}",
            answers in prop::collection::vec("[abthe .]{0,12}", 0..4),
        ) {
            let (exact, f1) = exact_match_and_f1(&prediction, &answers);
            prop_assert!(exact <= f1 && f1 <= 1.0 && exact >= 0.0, "{} {}", exact, f1);
        }

        #[test]
        fn an_answer_matches_itself(answer in "\\PC{0,40}") {
            prop_assert_eq!(exact_match_and_f1(&answer, std::slice::from_ref(&answer)), (1.0, 1.0));
        }
    }
}
