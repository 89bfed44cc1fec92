//! TREC run files: `qid Q0 docid rank score tag`, a line a document.
//!
//! `trec_eval` ignores the rank column, sorts by score as a 32-bit float and breaks ties by id, backwards. So
//! that it sees the ranking we made, scores are written strictly falling: one that is not below its
//! predecessor's becomes the next float below that. A document stands where its first passage stands.

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::eval::ranking::unit;

/// The last column of the runs written here.
pub const TAG: &str = "nunatak";

/// A line of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunLine {
    /// The question.
    pub question: String,
    /// The document.
    pub document: String,
    /// Its rank, counted from 1.
    pub rank: usize,
    /// Its score.
    pub score: f32,
    /// Who made the run.
    pub tag: String,
}

/// The lines of one question's passage ranking, best first; of passages where gold ids name such ([`names_passages`]).
///
/// [`names_passages`]: crate::eval::ranking::names_passages
pub fn lines<'a>(question: &str, ranking: impl IntoIterator<Item = (&'a str, f32)>, of_passages: bool) -> Vec<RunLine> {
    let mut seen = HashSet::new();
    let mut lines: Vec<RunLine> = Vec::new();
    for (key, score) in ranking {
        let document = unit(key, of_passages);
        if !seen.insert(document) {
            continue;
        }
        let highest = lines.last().map_or(f32::MAX, |above| above.score.next_down());
        // `f32::min` also turns a score that is not a number into the highest one possible here.
        let score = score.min(highest).max(f32::MIN);
        let (question, tag) = (question.to_owned(), TAG.to_owned());
        lines.push(RunLine { question, document: one_word(document), rank: lines.len() + 1, score, tag });
    }
    lines
}

/// An id as one word: white space, which the format cannot carry, is percent-encoded. Other ids stay as they are.
fn one_word(id: &str) -> String {
    if !id.contains(char::is_whitespace) {
        return id.to_owned();
    }
    let mut word = String::with_capacity(id.len() + 8);
    for c in id.chars() {
        if c.is_whitespace() || c == '%' {
            let mut bytes = [0; 4];
            word.extend(c.encode_utf8(&mut bytes).bytes().map(|b| format!("%{b:02X}")));
        } else {
            word.push(c);
        }
    }
    word
}

/// Write lines. Scores are written as the shortest decimal that gives the same float back.
pub fn write(lines: &[RunLine], to: &mut dyn Write) -> std::io::Result<()> {
    for RunLine { question, document, rank, score, tag } in lines {
        writeln!(to, "{question} Q0 {document} {rank} {score} {tag}")?;
    }
    Ok(())
}

/// Read a run; `path` is for messages.
///
/// # Errors
/// [`Error::BadLine`] at the first line that is none of a run.
pub fn read(from: impl BufRead, path: &Path) -> Result<Vec<RunLine>> {
    let mut run = Vec::new();
    for (number, line) in (1..).zip(from.lines()) {
        let bad = |problem: String| Error::BadLine { path: path.to_path_buf(), line: number, problem };
        let line = line.map_err(|e| bad(e.to_string()))?;
        let columns: Vec<&str> = line.split_whitespace().collect();
        match columns.as_slice() {
            [] => {}
            [question, _, document, rank, score, tag] => run.push(RunLine {
                question: (*question).to_owned(),
                document: (*document).to_owned(),
                rank: rank.parse().map_err(|_| bad(format!("the rank is no whole number: {rank}")))?,
                score: score.parse().map_err(|_| bad(format!("the score is no number: {score}")))?,
                tag: (*tag).to_owned(),
            }),
            other => return Err(bad(format!("a run has six columns, this line has {}", other.len()))),
        }
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(lines: &[RunLine]) -> String {
        let mut out = Vec::new();
        write(lines, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_document_stands_once_and_scores_fall() {
        let run = lines("q1", [("a#2", 1.5), ("b", 1.5), ("a#1", 1.0), ("c d", 2.0), ("50%", 0.25)], false);
        let pieces = lines("q1", [("a#2", 1.5), ("a#1", 1.0)], true);
        assert_eq!(text(&pieces), "q1 Q0 a#2 1 1.5 nunatak\nq1 Q0 a#1 2 1 nunatak\n");
        assert_eq!(
            text(&run),
            "q1 Q0 a 1 1.5 nunatak\nq1 Q0 b 2 1.4999999 nunatak\nq1 Q0 c%20d 3 1.4999998 nunatak\nq1 Q0 50% 4 0.25 nunatak\n"
        );
    }

    #[test]
    fn bad_lines_are_named() {
        let problem = |text: &str| read(text.as_bytes(), Path::new("run.trec")).unwrap_err().to_string();
        assert_eq!(problem("q Q0 d 1 0.5 t\nq d 1\n"), "run.trec:2: a run has six columns, this line has 3");
        assert_eq!(problem("q Q0 d one 0.5 t"), "run.trec:1: the rank is no whole number: one");
        assert_eq!(problem("q Q0 d 1 high t"), "run.trec:1: the score is no number: high");
    }

    proptest! {
        #[test]
        fn a_run_comes_back_as_it_was_written(
            ranking in prop::collection::vec(("[a-z%][a-zé%/_#0-9]{0,7}", prop::num::f32::ANY), 0..30),
        ) {
            let run = lines("q", ranking.iter().map(|(key, score)| (key.as_str(), *score)), false);
            prop_assert_eq!(&read(text(&run).as_bytes(), Path::new("run")).unwrap(), &run);
        }

        #[test]
        fn no_run_is_too_bad_to_be_refused(text in "([a-d0-9.eE+-]{0,4}[ \\t\n]){0,40}", bytes: Vec<u8>) {
            for bytes in [text.as_bytes(), &bytes] {
                if let Err(error) = read(bytes, Path::new("run")) {
                    prop_assert!(error.to_string().starts_with("run:"), "{}", error);
                }
            }
        }

        #[test]
        fn sorting_by_score_gives_the_ranking_back(
            scores in prop::collection::vec(-1e6f32..1e6, 1..30),
        ) {
            let keys: Vec<String> = (0..scores.len()).map(|i| format!("d{i}")).collect();
            let run = lines("q", keys.iter().map(String::as_str).zip(scores), false);
            prop_assert!(run.windows(2).all(|pair| pair[0].score > pair[1].score));
            prop_assert!(run.iter().map(|line| &line.document).eq(&keys));
        }
    }
}
