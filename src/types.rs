//! The nouns that travel through the pipeline.
//!
//! Three of them are easily confused, so once and for all: a [`Passage`] is text that somebody stored; a
//! [`Hit`] is a passage that a retriever or the re-ranker scored for one question; a [`PackedPassage`] is
//! a hit that made it (whole or cut) into the language model's window.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Row of a passage in the index. Stable until its segment is written anew (`index compact`); every tie in a ranking ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PassageId(pub u32);

impl PassageId {
    /// The row as an index into per-passage arrays.
    pub fn row(self) -> usize {
        self.0 as usize
    }
}

/// The field of a passage that says on which page of its file it begins, if that has pages.
pub const PAGE: &str = "page";

/// A piece of text that can be found, read and cited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The corpus' own id; when a document was split, the n-th piece is `id#n`, counted from 1.
    pub key: String,
    /// Title of the document it came from; may be empty.
    pub title: String,
    /// The text itself, as stored and as cited.
    pub text: String,
    /// Where the text stood in the file it was read from.
    pub source: SourceSpan,
    /// Further fields of its record, which filters go by.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl Passage {
    /// The id of the document this passage is a piece of: the key without its `#n`.
    pub fn document(&self) -> &str {
        document_of(&self.key)
    }

    /// The page of its file on which it begins, if that has pages.
    pub fn page(&self) -> Option<u64> {
        self.metadata.get(PAGE).and_then(Value::as_u64)
    }

    /// What the encoders and the inverted index see: `title. text`, or the text alone without a title.
    pub fn titled_text(&self) -> String {
        if self.title.is_empty() { self.text.clone() } else { format!("{}. {}", self.title, self.text) }
    }
}

/// The document id of a passage key: `abc#2` is a piece of `abc`, and `abc` of itself.
pub fn document_of(key: &str) -> &str {
    match key.rsplit_once('#') {
        Some((document, piece)) if !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_digit()) => document,
        _ => key,
    }
}

/// A stretch of a source file or field, in bytes, or in pages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceSpan {
    /// The file, relative to the folder or file that was given as the corpus.
    pub file: String,
    /// First byte. For Markdown, text and HTML files it counts from the start of the file; for records
    /// (JSONL, TSV, Parquet, Arrow) from the start of the record's text field; for Word files from the start of their
    /// `word/document.xml`. For PDF files it is the first page, from 1, and `end` the page after the last.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A passage scored for one question. Higher is better, whatever the scorer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hit {
    /// Which passage.
    pub passage: PassageId,
    /// The score of the stage that made the list; comparable only within the list.
    pub score: f32,
}

/// Sort hits best first; equal scores by [`PassageId`], so that a ranking never depends on arrival order.
pub fn sort_hits(hits: &mut [Hit]) {
    hits.sort_by(better_first);
}

/// The order of [`sort_hits`].
pub fn better_first(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage))
}

/// A passage in the language model's window.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackedPassage {
    /// Which passage.
    pub passage: PassageId,
    /// Its corpus id.
    pub key: String,
    /// Its title.
    pub title: String,
    /// The text that is in the window: the whole stored text or, when cut, its beginning.
    pub text: String,
    /// Score of the last stage that ranked it.
    pub score: f32,
    /// Tokens it takes in the window, its title and separators included.
    pub tokens: usize,
    /// The page of its file on which it begins, if that has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
}

/// A stretch of a stored passage that an answer rests on.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Evidence {
    /// The corpus id of the passage.
    pub passage_id: String,
    /// Its title.
    pub title: String,
    /// First byte of the evidence in the stored passage text.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// The evidence itself: always the slice `start..end` of the stored text.
    pub text: String,
    /// The page of its file on which the passage begins, if that has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_knows_its_document() {
        assert_eq!(document_of("abc#2"), "abc");
        assert_eq!(document_of("abc"), "abc");
        assert_eq!(document_of("c#"), "c#");
        assert_eq!(document_of("a#b#12"), "a#b");
    }

    #[test]
    fn ties_end_with_the_passage_id() {
        let mut hits = vec![
            Hit { passage: PassageId(7), score: 1.0 },
            Hit { passage: PassageId(3), score: 1.0 },
            Hit { passage: PassageId(9), score: 2.0 },
        ];
        sort_hits(&mut hits);
        let order: Vec<u32> = hits.iter().map(|h| h.passage.0).collect();
        assert_eq!(order, [9, 3, 7]);
    }
}
