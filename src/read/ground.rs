//! Whether an answer stands in the passages the reader saw, and exactly where.
//!
//! In grounded decoding this holds by construction; for a free answer it is checked here. Words are
//! compared as answers are scored (case, punctuation and articles do not count), the evidence is the
//! slice of the stored text from the first to the last matching word.

use unicode_segmentation::UnicodeSegmentation;

use crate::read::spans::Span;

/// Where the answer stands in each passage that has it: the first place in each, in the passages' order.
pub fn find(answer: &str, passages: &[&str]) -> Vec<Span> {
    let wanted: Vec<String> = words(answer).map(|(_, w)| w).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    passages
        .iter()
        .enumerate()
        .filter_map(|(passage, text)| {
            let (start, end) = find_words(&wanted, text)?;
            Some(Span { passage, start, end })
        })
        .collect()
}

/// Byte range of the first run of `wanted` words in `text`.
fn find_words(wanted: &[String], text: &str) -> Option<(usize, usize)> {
    let have: Vec<((usize, usize), String)> = words(text).collect();
    have.windows(wanted.len())
        .find(|run| run.iter().zip(wanted).all(|((_, word), w)| word == w))
        .and_then(|run| Some((run.first()?.0.0, run.last()?.0.1)))
}

/// Lower-case words with their byte ranges, articles left out.
fn words(text: &str) -> impl Iterator<Item = ((usize, usize), String)> + '_ {
    text.unicode_word_indices()
        .map(|(at, word)| ((at, at + word.len()), word.to_lowercase()))
        .filter(|(_, word)| !matches!(word.as_str(), "a" | "an" | "the"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_articles_and_punctuation_do_not_count() {
        let text = "In 1911 Roald Amundsen, of the Norwegian expedition, reached the South Pole.";
        let spans = find("the south pole", &["nothing here", text]);
        assert_eq!(spans.len(), 1);
        assert_eq!(&text[spans[0].start..spans[0].end], "South Pole");
        assert_eq!(spans[0].passage, 1);
        let spans = find("Roald Amundsen of Norwegian", &[text]);
        assert_eq!(&text[spans[0].start..spans[0].end], "Roald Amundsen, of the Norwegian");
    }

    #[test]
    fn half_words_and_empty_answers_are_not_found() {
        assert!(find("Amund", &["Amundsen"]).is_empty());
        assert!(find("the", &["the pole"]).is_empty());
        assert!(find("", &["the pole"]).is_empty());
    }

    proptest! {
        #[test]
        fn any_run_of_words_of_a_text_is_found_in_it(text in "\\PC{1,80}", from in 0usize..10, n in 1usize..5) {
            let all: Vec<&str> = text.unicode_words().collect();
            let run: Vec<&str> = all.iter().skip(from).take(n).copied().collect();
            let answer = run.join(" ");
            let countable = words(&answer).count();
            // Joining by a space may merge or part words in scripts without spaces; those are not claimed.
            prop_assume!(countable > 0 && answer.unicode_words().eq(run.iter().copied()));
            let spans = find(&answer, &[&text]);
            prop_assert_eq!(spans.len(), 1);
            let slice = &text[spans[0].start..spans[0].end];
            let found: Vec<String> = words(slice).map(|w| w.1).collect();
            let wanted: Vec<String> = words(&answer).map(|w| w.1).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
