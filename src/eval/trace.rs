//! What every stage did with one question, short enough to be kept for all of them: for people who want to know why
//! an answer is wrong.

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Trace};
use crate::error::Result;
use crate::index::passages::Passages;
use crate::pipeline::Found;
use crate::read::choose::WindowAnswer;
use crate::read::recursion::SecondPass;
use crate::types::{Evidence, Hit};

/// Most entries of each list.
pub const KEPT: usize = 10;
/// Most bytes of text around a piece of evidence, on either side, and of a packed passage.
const EXCERPT: usize = 160;

/// The bounded trace of a question.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QuestionTrace {
    /// The first stage's list, best first.
    pub retrieved: Vec<Ranked>,
    /// The cross-encoder's; empty without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reranked: Vec<Ranked>,
    /// What the reader saw.
    pub packed: Vec<InWindow>,
    /// What the reader said to each window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<WindowAnswer>,
    /// What became of that when it was read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<SecondPass>,
    /// What did not get in whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Left>,
    /// What the answer, or the withheld one, rests on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Cited>,
}

/// A ranked passage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its corpus id.
    pub key: String,
    /// Its title.
    pub title: String,
    /// Its score in this list.
    pub score: f32,
    /// Its rank, from 1, before re-ranking; absent in the first stage's list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<usize>,
}

/// A passage in a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InWindow {
    /// Its corpus id.
    pub key: String,
    /// Its title.
    pub title: String,
    /// The window, from 1.
    pub window: usize,
    /// Its tokens there.
    pub tokens: usize,
    /// How its text begins.
    pub excerpt: String,
}

/// A passage that is not in a window, or not in whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Its corpus id.
    pub key: String,
    /// Tokens that did not get in.
    pub tokens: usize,
    /// Why.
    pub reason: String,
}

/// Evidence with what stands around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cited {
    /// The corpus id of its passage.
    pub key: String,
    /// The passage's title.
    pub title: String,
    /// Text before it.
    pub before: String,
    /// The evidence.
    pub text: String,
    /// Text after it.
    pub after: String,
}

impl QuestionTrace {
    /// The short form of what was found and, if somebody read, of what was made of it; texts are looked up in
    /// `passages`.
    pub fn of(found: &Found, answer: Option<&Answer>, passages: &dyn Passages) -> Result<Self> {
        let trace = answer.and_then(|a| a.trace.as_ref());
        let withheld = trace.and_then(|t| t.withheld.as_ref()).map(|w| &w.evidence);
        let evidence = withheld.or(answer.map(|a| &a.evidence)).into_iter().flatten();
        let left_out = trace.iter().flat_map(|t| &t.left_out);
        Ok(Self {
            retrieved: ranked(&found.retrieved, None, passages)?,
            reranked: ranked(&found.reranked, Some(&found.retrieved), passages)?,
            packed: trace.map(packed).unwrap_or_default(),
            said: trace.map(|t| t.said.clone()).unwrap_or_default(),
            second: trace.and_then(|t| t.second.clone()),
            left_out: left_out
                .take(KEPT)
                .map(|left| Left { key: left.key.clone(), tokens: left.tokens, reason: left.reason.clone() })
                .collect(),
            evidence: evidence.take(KEPT).map(|e| cited(e, passages)).collect::<Result<_>>()?,
        })
    }
}

fn ranked(hits: &[Hit], before: Option<&[Hit]>, passages: &dyn Passages) -> Result<Vec<Ranked>> {
    let one = |hit: &Hit| {
        let passage = passages.passage(hit.passage)?;
        let from = before.and_then(|list| list.iter().position(|b| b.passage == hit.passage)).map(|i| i + 1);
        let score = if hit.score.is_finite() { hit.score } else { f32::MIN };
        Ok(Ranked { key: passage.key, title: passage.title, score, from })
    };
    hits.iter().take(KEPT).map(one).collect()
}

fn packed(trace: &Trace) -> Vec<InWindow> {
    let all = (1..).zip(&trace.windows).flat_map(|(window, passages)| passages.iter().map(move |p| (window, p)));
    all.take(KEPT)
        .map(|(window, passage)| InWindow {
            key: passage.key.clone(),
            title: passage.title.clone(),
            window,
            tokens: passage.tokens,
            excerpt: begin(&passage.text).to_owned(),
        })
        .collect()
}

fn cited(evidence: &Evidence, passages: &dyn Passages) -> Result<Cited> {
    let text = match passages.row_of(&evidence.passage_id)? {
        Some(row) => passages.passage(row)?.text,
        None => String::new(),
    };
    Ok(Cited {
        key: evidence.passage_id.clone(),
        title: evidence.title.clone(),
        before: end(text.get(..evidence.start).unwrap_or_default()).to_owned(),
        text: evidence.text.clone(),
        after: begin(text.get(evidence.end..).unwrap_or_default()).to_owned(),
    })
}

/// The beginning of a text, at most [`EXCERPT`] bytes.
fn begin(text: &str) -> &str {
    text.get(..text.floor_char_boundary(EXCERPT)).unwrap_or_default()
}

/// The end of a text, at most [`EXCERPT`] bytes.
fn end(text: &str) -> &str {
    text.get(text.ceil_char_boundary(text.len().saturating_sub(EXCERPT))..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_bounded_and_end_between_characters() {
        let long = "é".repeat(200);
        assert_eq!((begin(&long).len(), end(&long).len()), (160, 160));
        let odd = format!("a{long}");
        assert_eq!((begin(&odd).len(), end(&format!("{long}a")).len()), (159, 159));
        assert_eq!((begin("ice"), end("ice"), end("")), ("ice", "ice", ""));
    }
}
