//! Holding an answer to stretches of the passages, byte by byte, whatever the tokenizer.
//!
//! The constraint keeps every place in the passages where the answer so far could stand. A token is
//! allowed when its bytes go on at one of these places. Working on bytes rather than on the passage's own
//! tokens matters: a tokenizer may write the same word differently after an opening bracket than after
//! `Answer:`.

use std::collections::{BTreeSet, HashMap};

/// After `Answer:` the first token of an answer carries the space between them.
const LEAD: u8 = b' ';

/// The bytes that each token stands for.
#[derive(Debug)]
pub struct Vocabulary {
    /// Several tokens may stand for the same bytes: SentencePiece has `A` and `<0x41>`, and a model writes the former.
    by_bytes: HashMap<Box<[u8]>, Vec<u32>>,
    by_id: Vec<Box<[u8]>>,
    longest: usize,
}

impl Vocabulary {
    /// From the bytes of each token in id order; tokens without bytes (special ones) are empty.
    pub fn new(tokens: Vec<Vec<u8>>) -> Self {
        let mut by_bytes = HashMap::<Box<[u8]>, Vec<u32>>::with_capacity(tokens.len());
        let mut longest = 0;
        let by_id: Vec<Box<[u8]>> = tokens.into_iter().map(Vec::into_boxed_slice).collect();
        for (id, bytes) in by_id.iter().enumerate() {
            if !bytes.is_empty() {
                longest = longest.max(bytes.len());
                by_bytes.entry(bytes.clone()).or_default().push(id as u32);
            }
        }
        Self { by_bytes, by_id, longest }
    }

    /// The bytes of a token; empty for special and unknown ones.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.by_id.get(token as usize).map_or(&[], |b| b)
    }

    /// Tokens that begin with this byte.
    pub fn beginning_with(&self, byte: u8) -> Vec<u32> {
        (0u32..).zip(&self.by_id).filter(|(_, b)| b.first() == Some(&byte)).map(|(id, _)| id).collect()
    }

    /// Tokens whose bytes are a prefix of `text`.
    fn prefixes_of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        (1..=self.longest.min(text.len())).filter_map(|n| self.by_bytes.get(&text[..n])).flatten().copied()
    }
}

/// A stretch of one of the passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Which passage, in the order given.
    pub passage: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// The places where the answer so far could stand.
#[derive(Debug)]
pub struct SpanConstraint<'a> {
    vocabulary: &'a Vocabulary,
    passages: Vec<&'a str>,
    live: Vec<Span>,
    lead_taken: bool,
}

impl<'a> SpanConstraint<'a> {
    /// Any word of any of the passages may begin the answer; with `lead`, its first token begins with a
    /// space that is not part of it.
    pub fn new(vocabulary: &'a Vocabulary, passages: Vec<&'a str>, lead: bool) -> Self {
        let live = passages
            .iter()
            .enumerate()
            .flat_map(|(passage, text)| word_starts(text).map(move |start| Span { passage, start, end: start }))
            .collect();
        Self { vocabulary, passages, live, lead_taken: !lead }
    }

    /// Tokens that keep the answer inside a passage, each once, by id.
    pub fn allowed(&self) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        let mut tokens = BTreeSet::new();
        let mut with_lead = Vec::new();
        for span in &self.live {
            let rest = self.rest(span);
            let near = &rest[..rest.len().min(self.vocabulary.longest)];
            if !seen.insert(near) {
                continue;
            }
            if self.lead_taken {
                tokens.extend(self.vocabulary.prefixes_of(near));
            } else {
                with_lead.clear();
                with_lead.push(LEAD);
                with_lead.extend_from_slice(near);
                tokens.extend(self.vocabulary.prefixes_of(&with_lead));
            }
        }
        tokens.into_iter().collect()
    }

    /// Go on with this token. Places where its bytes do not stand are given up.
    pub fn advance(&mut self, token: u32) {
        let mut bytes = self.vocabulary.bytes(token);
        if !self.lead_taken && bytes.first() == Some(&LEAD) {
            bytes = &bytes[1..];
        }
        self.lead_taken = true;
        let passages = &self.passages;
        self.live.retain_mut(|span| {
            let stands = line_rest(passages[span.passage], span.end).starts_with(bytes);
            span.end += bytes.len();
            stands
        });
    }

    /// Whether the answer so far is made of whole words.
    pub fn may_end(&self) -> bool {
        self.live.iter().any(|s| self.is_whole(s))
    }

    /// The answer so far where it first stands, cut back to whole words if it stops inside one.
    pub fn span(&self) -> Option<Span> {
        if let Some(span) = self.live.iter().find(|s| self.is_whole(s)) {
            return Some(*span);
        }
        let span = *self.live.first()?;
        let text = self.passages.get(span.passage)?;
        let end = (span.start + 1..=span.end).rev().find(|&end| is_word_end(text, end))?;
        Some(Span { end, ..span })
    }

    fn rest(&self, span: &Span) -> &'a [u8] {
        line_rest(self.passages[span.passage], span.end)
    }

    fn is_whole(&self, span: &Span) -> bool {
        span.end > span.start && is_word_end(self.passages[span.passage], span.end)
    }
}

/// What follows on the same line: an answer never runs across a line end.
fn line_rest(text: &str, from: usize) -> &[u8] {
    let rest = text.as_bytes().get(from..).unwrap_or(&[]);
    let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    &rest[..end]
}

/// Bytes at which a word, a number or a sum of money begins.
fn word_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut before = ' ';
    text.char_indices().filter_map(move |(i, c)| {
        let starts = (c.is_alphanumeric() && !before.is_alphanumeric() && !is_joiner(before))
            || (matches!(c, '$' | '£' | '€') && !before.is_alphanumeric());
        before = c;
        starts.then_some(i)
    })
}

/// Marks that do not part a word: an answer does not begin behind them.
fn is_joiner(c: char) -> bool {
    matches!(c, '\'' | '’' | '$' | '£' | '€')
}

/// Whether a word may end before this byte.
fn is_word_end(text: &str, at: usize) -> bool {
    if !text.is_char_boundary(at) {
        return false;
    }
    let before = text[..at].chars().next_back();
    let after = text[at..].chars().next();
    before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '%' | '°' | ')' | '"' | '”' | '.' | '!' | '?'))
        && after.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '\'' | '’'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vocabulary() -> Vocabulary {
        let mut tokens: Vec<Vec<u8>> = (0u8..=255).map(|b| vec![b]).collect();
        for word in [" the", " ice", "ice", " cap", "cap", " 19", "19", "12", " ("] {
            tokens.push(word.as_bytes().to_vec());
        }
        tokens.push(Vec::new());
        Vocabulary::new(tokens)
    }

    fn id(vocabulary: &Vocabulary, text: &str) -> u32 {
        vocabulary.by_bytes[text.as_bytes()][0]
    }

    #[test]
    fn an_answer_is_a_slice_of_a_passage_even_behind_a_bracket() {
        let vocabulary = vocabulary();
        let passages = vec!["the ice (1912)", "an ice cap"];
        let mut c = SpanConstraint::new(&vocabulary, passages.clone(), true);
        assert!(!c.may_end());
        assert!(c.allowed().contains(&id(&vocabulary, " 19")));
        c.advance(id(&vocabulary, " 19"));
        assert!(!c.may_end());
        assert_eq!(c.allowed(), [id(&vocabulary, "1"), id(&vocabulary, "12")]);
        c.advance(id(&vocabulary, "12"));
        assert!(c.may_end());
        let span = c.span().unwrap();
        assert_eq!(&passages[span.passage][span.start..span.end], "1912");
    }

    #[test]
    fn every_token_of_the_same_bytes_is_allowed() {
        let vocabulary = Vocabulary::new(["7", " ", "x", "7"].map(|text| text.as_bytes().to_vec()).to_vec());
        let mut c = SpanConstraint::new(&vocabulary, vec!["7"], false);
        assert_eq!(c.allowed(), [0, 3]);
        c.advance(3);
        assert_eq!(c.span(), Some(Span { passage: 0, start: 0, end: 1 }));
    }

    #[test]
    fn all_places_stay_open_until_the_bytes_part() {
        let vocabulary = vocabulary();
        let mut c = SpanConstraint::new(&vocabulary, vec!["the ice (1912)", "an ice cap"], true);
        c.advance(id(&vocabulary, " ice"));
        assert_eq!(c.span().unwrap().passage, 0);
        assert!(c.allowed().contains(&id(&vocabulary, " cap")));
        c.advance(id(&vocabulary, " cap"));
        assert_eq!(c.span(), Some(Span { passage: 1, start: 3, end: 10 }));
        assert!(c.allowed().is_empty());
    }

    #[test]
    fn a_half_word_is_cut_back() {
        let vocabulary = vocabulary();
        let mut c = SpanConstraint::new(&vocabulary, vec!["ice capable"], true);
        c.advance(id(&vocabulary, " ice"));
        c.advance(id(&vocabulary, " cap"));
        assert!(!c.may_end());
        assert_eq!(c.span(), Some(Span { passage: 0, start: 0, end: 3 }));
    }

    proptest! {
        #[test]
        fn any_path_of_allowed_tokens_is_a_span(text in "[a-c é1(\\n'.]{0,40}", choices in prop::collection::vec(any::<u16>(), 1..30)) {
            let vocabulary = vocabulary();
            let mut c = SpanConstraint::new(&vocabulary, vec![&text], true);
            let mut written = Vec::new();
            for choice in choices {
                let allowed = c.allowed();
                if allowed.is_empty() { break; }
                let token = allowed[choice as usize % allowed.len()];
                written.extend_from_slice(vocabulary.bytes(token));
                c.advance(token);
                if c.may_end() {
                    let span = c.span().unwrap();
                    let slice = &text[span.start..span.end];
                    prop_assert_eq!(slice.as_bytes(), &written[1..]);
                    prop_assert!(!slice.contains('\n'));
                }
            }
        }
    }
}
