//! Text to token ids and back, with byte offsets; nothing is truncated in silence.
//!
//! A tokenizer file may ask for truncation and padding of its own (the starter encoder's cuts at 128
//! tokens); both are switched off here, and who has a limit cuts with [`TextTokenizer::encode_within`],
//! which says what it left out.
//!
//! Control tokens (`[SEP]`, `<|im_end|>`) that stand in a text as words are words: a passage or a question
//! cannot close its own turn. Only [`TextTokenizer::encode_template`] reads them as control tokens.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection};

use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::runtime::model_dir::ModelDir;

/// Name of the tokenizer inside a model folder.
pub const TOKENIZER: &str = "tokenizer.json";

/// A model's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    plain: Tokenizer,
    /// The same, but reading control tokens in the text; made when first needed, because it doubles memory.
    template: OnceLock<Tokenizer>,
}

/// Tokens of a text or pair that fit a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// 0 for tokens of the first text, 1 for those of the second; special tokens as the model wants them.
    pub types: Vec<u32>,
    /// Tokens that did not fit.
    pub left_out: usize,
}

/// A text's own tokens, without special ones, as [`TextTokenizer::prepare`] makes them.
#[derive(Debug, Clone)]
pub struct Prepared(Encoding);

impl Prepared {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TextTokenizer {
    /// The tokenizer of a model folder.
    ///
    /// # Errors
    /// [`Error::Model`] when the folder has no `tokenizer.json` or it is not one.
    pub fn open(model: &ModelDir) -> Result<Self> {
        Self::from_file(&model.file(TOKENIZER), &model.name())
    }

    /// A tokenizer file; `name` is how messages call the model.
    pub fn from_file(path: &Path, name: &str) -> Result<Self> {
        let unreadable = |problem: String| {
            Error::model(
                name,
                format!("cannot read its tokenizer {}: {problem}", path.display()),
                "a model folder needs the tokenizer.json of the `tokenizers` library",
            )
        };
        // The library panics on some that are damaged (a decoder that is no JSON, a table of characters cut short).
        let read = guarded(|| Tokenizer::from_file(path)).ok_or_else(|| unreadable("it is damaged".to_owned()))?;
        let mut plain = read.map_err(|e| unreadable(e.to_string()))?;
        plain.with_truncation(None).map_err(Error::internal("opening a tokenizer"))?;
        plain.with_padding(None);
        plain.set_encode_special_tokens(true);
        Ok(Self { plain, template: OnceLock::new() })
    }

    /// Token ids of a text; with `special`, in the special tokens the model puts around a text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.plain.encode_fast(text, special).map_err(Error::internal("tokenising"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a prompt template, in which control tokens such as `<|im_start|>` are control tokens.
    /// Never to be used on text that is not ours.
    pub fn encode_template(&self, template: &str) -> Result<Vec<u32>> {
        let tokenizer = self.template.get_or_init(|| {
            let mut tokenizer = self.plain.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        });
        let encoding = tokenizer.encode_fast(template, false).map_err(Error::internal("tokenising"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text without special tokens, each with the bytes of the text it stands for. A
    /// character that takes several tokens gives each of them its whole range, and leading space may or may
    /// not be in the range, as the model's tokenizer has it; ranges always end on character boundaries.
    pub fn encode_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.plain.encode(text, false).map_err(Error::internal("tokenising"))?;
        let ranges = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
    }

    /// Token ids and types of a pair of texts, special tokens included, whatever the length.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let encoding = self.plain.encode_fast((first, second), true).map_err(Error::internal("tokenising"))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// Token ids of a text, special tokens included, cut at its end to at most `limit` tokens.
    pub fn encode_within(&self, text: &str, limit: usize) -> Result<Cut> {
        let mut tokens = self.prepare(text)?;
        let left_out = cut(&mut tokens, limit.saturating_sub(self.special_count(false)));
        self.assemble(tokens, None, left_out)
    }

    /// Like [`Self::encode_within`] for a pair, of which only the second text is cut.
    pub fn encode_pair_within(&self, first: &Prepared, second: &str, limit: usize) -> Result<Cut> {
        let mut tokens = self.prepare(second)?;
        let left_out = cut(&mut tokens, limit.saturating_sub(self.special_count(true) + first.len()));
        self.assemble(first.clone(), Some(tokens), left_out)
    }

    /// The tokens of a text that is going to be the first of many pairs, cut to at most `limit`; and how many
    /// were left out.
    pub fn prepare_within(&self, text: &str, limit: usize) -> Result<(Prepared, usize)> {
        let mut tokens = self.prepare(text)?;
        let left_out = cut(&mut tokens, limit);
        Ok((tokens, left_out))
    }

    /// Number of tokens of a text, without special ones.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.prepare(text)?.len())
    }

    /// The text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.plain.decode(ids, true).map_err(Error::internal("decoding tokens"))
    }

    /// The bytes that each token stands for, in id order; none for special tokens.
    pub fn token_bytes(&self) -> Vec<Vec<u8>> {
        crate::runtime::token_bytes::of(&self.plain)
    }

    /// The id of a token by its own spelling, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.plain.token_to_id(token)
    }

    /// The spelling of a token by its id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    /// Number of special tokens put around a text, or around a pair.
    pub fn special_count(&self, pair: bool) -> usize {
        self.plain.get_post_processor().map_or(0, |p| p.added_tokens(pair))
    }

    /// A text's own tokens.
    pub fn prepare(&self, text: &str) -> Result<Prepared> {
        self.plain.encode_fast(text, false).map(Prepared).map_err(Error::internal("tokenising"))
    }

    fn assemble(&self, first: Prepared, second: Option<Prepared>, left_out: usize) -> Result<Cut> {
        let encoding =
            self.plain.post_process(first.0, second.map(|s| s.0), true).map_err(Error::internal("tokenising"))?;
        Ok(Cut { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec(), left_out })
    }
}

/// Keep the first `limit` tokens; how many went.
fn cut(tokens: &mut Prepared, limit: usize) -> usize {
    let before = tokens.0.len();
    tokens.0.truncate(limit, 0, TruncationDirection::Right);
    // The library keeps what it cut, and every later step would copy it.
    tokens.0.take_overflowing();
    before - tokens.0.len()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A WordPiece tokenizer of a dozen words, with BERT's special tokens, and the truncation and padding that
    /// published files tend to carry. `[CLS]` is 1, `[SEP]` 2, the words from 4 on.
    pub(crate) const WORDS: &str = r###"{
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [
            {"id": 1, "content": "[CLS]", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 2, "content": "[SEP]", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "ice": 4, "berg": 5, "##berg": 6, "floats": 7,
                      "rock": 8, "sep": 9, "[": 10, "]": 11}}
    }"###;

    fn words() -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER);
        std::fs::write(&path, WORDS).unwrap();
        TextTokenizer::from_file(&path, "words").unwrap()
    }

    #[test]
    fn the_file_s_own_truncation_and_padding_are_off() {
        let ids = words().encode("ice ice ice ice ice", true).unwrap();
        assert_eq!(ids, [1, 4, 4, 4, 4, 4, 2]);
    }

    #[test]
    fn offsets_slice_the_text_as_it_was_given() {
        let text = "Iceberg  FLOATS é";
        let spans = words().encode_offsets(text).unwrap();
        let pieces: Vec<(u32, &str)> = spans.iter().map(|(id, range)| (*id, &text[range.clone()])).collect();
        assert_eq!(pieces, [(4, "Ice"), (6, "berg"), (7, "FLOATS"), (3, "é")]);
    }

    #[test]
    fn control_tokens_in_a_text_are_words() {
        let words = words();
        assert_eq!(words.encode("ice [SEP]", false).unwrap(), [4, 10, 9, 11]);
        assert_eq!(words.encode_template("ice [SEP]").unwrap(), [4, 2]);
        assert_eq!(words.token_id("[SEP]"), Some(2));
    }

    #[test]
    fn a_cut_keeps_the_special_tokens_and_says_what_it_left_out() {
        let words = words();
        let whole = words.encode_within("ice floats", 4).unwrap();
        assert_eq!(whole, Cut { ids: vec![1, 4, 7, 2], types: vec![0; 4], left_out: 0 });
        let cut = words.encode_within("ice floats rock ice", 4).unwrap();
        assert_eq!(cut, Cut { ids: vec![1, 4, 7, 2], types: vec![0; 4], left_out: 2 });
        assert_eq!(words.encode_within("ice", 2).unwrap().ids, [1, 2]);
    }

    #[test]
    fn of_a_pair_the_second_text_is_cut() {
        let words = words();
        let (question, left_out) = words.prepare_within("ice floats rock", 2).unwrap();
        assert_eq!((question.len(), left_out), (2, 1));
        let pair = words.encode_pair_within(&question, "rock rock rock", 7).unwrap();
        assert_eq!(pair, Cut { ids: vec![1, 4, 7, 2, 8, 8, 2], types: vec![0, 0, 0, 0, 1, 1, 1], left_out: 1 });
        let (ids, types) = words.encode_pair("ice floats", "rock rock").unwrap();
        assert_eq!((ids, types), (pair.ids, pair.types));
    }

    #[test]
    fn text_comes_back() {
        let words = words();
        let ids = words.encode("iceberg floats", true).unwrap();
        assert_eq!(words.decode(&ids).unwrap(), "iceberg floats");
        assert_eq!(words.count("iceberg floats").unwrap(), 3);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER);
        std::fs::write(&path, "{}").unwrap();
        let error = TextTokenizer::from_file(&path, "broken").unwrap_err();
        assert!(error.to_string().starts_with("model broken: cannot read its tokenizer"));
    }

    /// Found by the fuzz target `tokenizer`: the library panics on these.
    #[test]
    fn a_file_that_makes_the_library_panic_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER);
        let decoder = WORDS.replace(r#""decoder": {"#, r#""decoder": l, {"#);
        let normalizer = WORDS.replace(
            r#""normalizer": {"type": "BertNormalizer","#,
            r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA==","#,
        );
        for damaged in [decoder, normalizer] {
            assert_ne!(damaged, WORDS);
            std::fs::write(&path, damaged).unwrap();
            let error = TextTokenizer::from_file(&path, "broken").unwrap_err();
            assert!(error.to_string().ends_with("tokenizer.json: it is damaged"), "{error}");
        }
    }
}
