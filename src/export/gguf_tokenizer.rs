//! The tokenizer inside a GGUF file, rebuilt as the `tokenizer.json` that the `tokenizers` crate reads.
//!
//! A GGUF holds the vocabulary and the merges, but names its pre-tokenizer by one word; what the word means
//! is written down here, after each model's published tokenizer. Two kinds are known: byte-level BPE
//! (`gpt2`) and SentencePiece BPE with scores (`llama`). A word that is not known is refused, since a
//! near miss would change tokens, and so answers, in silence.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::export::gguf::Gguf;

/// Split of Llama 3: contractions, words with one leading character, numbers of up to three digits,
/// punctuation, line ends, spaces.
const LLAMA_3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with every digit on its own.
const QWEN_2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// SentencePiece writes a space as this.
const SPACE_MARK: &str = "\u{2581}";

/// Kinds of token in `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer of `gguf` as the content of a `tokenizer.json`.
///
/// # Errors
/// [`Error::BadFile`] when the file holds no tokenizer, one of a kind that is not known, or one whose parts
/// contradict each other.
pub fn tokenizer_json(gguf: &Gguf) -> Result<String> {
    let tokens = gguf.texts("tokenizer.ggml.tokens").ok_or_else(|| refuse(gguf, "it holds no vocabulary"))?;
    let model = gguf.text("tokenizer.ggml.model").unwrap_or_default();
    let parts = match model {
        "gpt2" => byte_level(gguf, &tokens)?,
        "llama" => sentence_piece(gguf, &tokens)?,
        other => return Err(refuse(gguf, &format!("its tokenizer is of the kind `{other}`; known: gpt2, llama"))),
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(gguf, &tokens),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(gguf, &tokens),
        "decoder": parts.decoder,
        "model": parts.model,
    })
    .to_string();
    // What else may be wrong, the crate says.
    Tokenizer::from_str(&json).map_err(|e| refuse(gguf, &format!("its tokenizer contradicts itself: {e}")))?;
    Ok(json)
}

/// What differs between the kinds.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

fn refuse(gguf: &Gguf, problem: &str) -> Error {
    Error::bad_file(gguf.path(), problem, "use a model folder with a tokenizer.json instead of this file")
}

/// BPE over bytes, each byte written as a printable character.
fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<Parts> {
    let merges =
        gguf.texts("tokenizer.ggml.merges").ok_or_else(|| refuse(gguf, "its vocabulary comes without merges"))?;
    let merges = merges
        .iter()
        .map(|merge| merge.split_once(' ').map(|(left, right)| [left, right]))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| refuse(gguf, "one of its merges is not a pair"))?;
    // tokenizers 0.23 panics on a merge that makes more than the longest token, so all are checked first.
    let known: HashSet<&str> = tokens.iter().copied().collect();
    let stray = merges.iter().find(|[left, right]| {
        !known.contains(left) || !known.contains(right) || !known.contains([*left, *right].concat().as_str())
    });
    if let Some([left, right]) = stray {
        return Err(refuse(gguf, &format!("its merge of `{left}` and `{right}` is not in its vocabulary")));
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]})
    };
    // Old converters wrote nothing, or `default`, whatever the model's was.
    let pre = gguf.text("tokenizer.ggml.pre").filter(|pre| *pre != "default");
    let unnamed = || refuse(gguf, "it does not name its pre-tokenizer: it was converted by an old program");
    // (pre-tokenizer, normalizer, whether a word that is in the vocabulary skips the merges)
    let (pre_tokenizer, normalizer, ignore_merges) = match pre.ok_or_else(unnamed)? {
        "gpt-2" => (byte_level(true), Value::Null, false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}), Value::Null, false)
        }
        "llama-bpe" => (split(LLAMA_3_SPLIT), Value::Null, true),
        "qwen2" => (split(QWEN_2_SPLIT), json!({"type": "NFC"}), false),
        other => {
            let problem = format!("its pre-tokenizer `{other}` is not known; known: gpt-2, smollm, llama-bpe, qwen2");
            return Err(refuse(gguf, &problem));
        }
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
        "vocab": vocabulary(tokens), "merges": merges,
    });
    Ok(Parts { normalizer, pre_tokenizer, decoder: byte_level(true), model })
}

/// SentencePiece's BPE: the pair whose union has the highest score is merged first; characters that are not
/// in the vocabulary become bytes.
fn sentence_piece(gguf: &Gguf, tokens: &[&str]) -> Result<Parts> {
    let scores = gguf
        .floats("tokenizer.ggml.scores")
        .filter(|scores| scores.len() == tokens.len())
        .ok_or_else(|| refuse(gguf, "its vocabulary comes without a score for each token"))?;
    let unknown = gguf.count("tokenizer.ggml.unknown_token_id").and_then(|id| tokens.get(id)).copied();
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        steps.insert(0, json!({"type": "Prepend", "prepend": SPACE_MARK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary(tokens), "merges": merges_by_score(tokens, &scores),
    });
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": steps}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    })
}

/// Every way to put a token together from two others, best score first; equal scores by the ids of the
/// parts, so that the list never depends on a hash map's order.
fn merges_by_score<'a>(tokens: &[&'a str], scores: &[f64]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, l, r, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(_, _, _, pair)| pair).collect()
}

fn vocabulary(tokens: &[&str]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
}

/// Tokens that are found in the text before anything else: control tokens (hidden from decoded text) and
/// tokens that somebody added (kept in it).
fn added_tokens(gguf: &Gguf, tokens: &[&str]) -> Vec<Value> {
    let kinds = gguf.ints("tokenizer.ggml.token_type").unwrap_or_default();
    kinds
        .iter()
        .zip(tokens)
        .enumerate()
        .filter(|(_, (kind, _))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
        .map(|(id, (kind, content))| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED,
            })
        })
        .collect()
}

/// The token that llama.cpp would put before every text.
fn bos(gguf: &Gguf) -> Option<usize> {
    // Without a word in the file it does so for SentencePiece and for Llama 3.
    let wanted = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or_else(|| {
        gguf.text("tokenizer.ggml.model") == Some("llama") || gguf.text("tokenizer.ggml.pre") == Some("llama-bpe")
    });
    gguf.count("tokenizer.ggml.bos_token_id").filter(|_| wanted)
}

fn post_processor(gguf: &Gguf, tokens: &[&str]) -> Value {
    let Some((id, token)) = bos(gguf).and_then(|id| Some((id, *tokens.get(id)?))) else {
        return Value::Null;
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let first = json!({"Sequence": {"id": "A", "type_id": 0}});
    let second = json!({"Sequence": {"id": "B", "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file;
    use candle_core::quantized::gguf_file::Value as Meta;
    use proptest::prelude::*;

    use super::*;

    fn texts(list: &[&str]) -> Meta {
        Meta::Array(list.iter().map(|t| Meta::String((*t).to_owned())).collect())
    }

    fn kinds(list: &[i32]) -> Meta {
        Meta::Array(list.iter().map(|k| Meta::I32(*k)).collect())
    }

    fn word(text: &str) -> Meta {
        Meta::String(text.to_owned())
    }

    /// A GGUF of metadata alone; the keys without their `tokenizer.ggml.`.
    fn gguf(metadata: &[(&str, Meta)]) -> Gguf {
        let keys: Vec<String> = metadata.iter().map(|(key, _)| format!("tokenizer.ggml.{key}")).collect();
        let metadata: Vec<(&str, &Meta)> =
            keys.iter().map(String::as_str).zip(metadata.iter().map(|(_, v)| v)).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        gguf_file::write(file.as_file_mut(), &metadata, &[]).unwrap();
        Gguf::open(file.path()).unwrap()
    }

    fn tokenizer(gguf: &Gguf) -> Tokenizer {
        Tokenizer::from_str(&tokenizer_json(gguf).unwrap()).unwrap()
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    fn byte_level_gguf(pre: &str) -> Gguf {
        gguf(&[
            ("model", word("gpt2")),
            ("pre", word(pre)),
            (
                "tokens",
                texts(&[
                    "<|end|>",
                    "h",
                    "e",
                    "l",
                    "o",
                    "\u{120}",
                    "ll",
                    "he",
                    "hell",
                    "\u{120}hell",
                    "1",
                    "2",
                    "12",
                    "<added>",
                ]),
            ),
            ("token_type", kinds(&[3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4])),
            ("merges", texts(&["l l", "h e", "he ll", "\u{120} hell", "1 2"])),
        ])
    }

    #[test]
    fn byte_level_merges_go_by_rank() {
        let tokenizer = tokenizer(&byte_level_gguf("gpt-2"));
        // h e l l o: "l l" first, then "h e", then "he ll"; "o" finds nobody.
        assert_eq!(ids(&tokenizer, "hello hell"), [8, 4, 9]);
        assert_eq!(tokenizer.decode(&[8, 4, 9], false).unwrap(), "hello hell");
    }

    #[test]
    fn pretokenizers_differ_in_numbers() {
        assert_eq!(ids(&tokenizer(&byte_level_gguf("gpt-2")), "1212"), [12, 12]);
        assert_eq!(ids(&tokenizer(&byte_level_gguf("smollm")), "1212"), [10, 11, 10, 11]);
        assert_eq!(ids(&tokenizer(&byte_level_gguf("qwen2")), "1212"), [10, 11, 10, 11]);
        // Groups of three: 121, 2.
        assert_eq!(ids(&tokenizer(&byte_level_gguf("llama-bpe")), "1212"), [12, 10, 11]);
    }

    #[test]
    fn added_tokens_are_found_first_and_only_control_tokens_are_hidden() {
        let tokenizer = tokenizer(&byte_level_gguf("smollm"));
        assert_eq!(ids(&tokenizer, "he<|end|>he<added>"), [7, 0, 7, 13]);
        assert_eq!(tokenizer.decode(&[7, 0, 7, 13], true).unwrap(), "hehe<added>");
    }

    /// `<unk> <s> </s>`, the 256 bytes, then pieces with scores.
    fn sentence_piece_gguf() -> Gguf {
        let pieces =
            [("\u{2581}", -9.0), ("a", -8.0), ("b", -7.0), ("ab", -1.0), ("\u{2581}a", -0.5), ("\u{2581}ab", -3.0)];
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
        let mut kinds = vec![2, 3, 3];
        kinds.resize(3 + 256, 6);
        kinds.resize(tokens.len(), 1);
        let mut scores = vec![0f32; 3 + 256];
        scores.extend(pieces.iter().map(|(_, score)| *score));
        gguf(&[
            ("model", word("llama")),
            ("tokens", Meta::Array(tokens.into_iter().map(Meta::String).collect())),
            ("token_type", self::kinds(&kinds)),
            ("scores", Meta::Array(scores.into_iter().map(Meta::F32).collect())),
            ("bos_token_id", Meta::U32(1)),
            ("unknown_token_id", Meta::U32(0)),
        ])
    }

    #[test]
    fn sentence_piece_merges_go_by_score() {
        let tokenizer = tokenizer(&sentence_piece_gguf());
        let [mark_a, mark_ab] = [3 + 256 + 4, 3 + 256 + 5];
        let b = 3 + 256 + 2;
        // "_a" scores best and leaves b; then "_a b" makes "_ab".
        assert_eq!(ids(&tokenizer, "ab ab"), [mark_ab, mark_ab]);
        assert_eq!(ids(&tokenizer, "a bb"), [mark_a, 3 + 256, b, b]);
        let with_bos = tokenizer.encode("ab", true).unwrap().get_ids().to_vec();
        assert_eq!(with_bos, [1, mark_ab]);
    }

    #[test]
    fn characters_outside_the_vocabulary_become_bytes() {
        let tokenizer = tokenizer(&sentence_piece_gguf());
        let found = ids(&tokenizer, "a\u{e9}");
        assert_eq!(found[1..], [3 + 0xc3, 3 + 0xa9]);
        assert_eq!(tokenizer.decode(&found, false).unwrap(), "a\u{e9}");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let problem = |metadata: &[(&str, Meta)]| tokenizer_json(&gguf(metadata)).unwrap_err().to_string();
        assert!(problem(&[("model", word("gpt2"))]).contains("no vocabulary"));
        let tokens = || ("tokens", texts(&["a", "b"]));
        assert!(problem(&[("model", word("t5")), tokens()]).contains("`t5`"));
        assert!(problem(&[("model", word("gpt2")), tokens()]).contains("without merges"));
        assert!(problem(&[("model", word("llama")), tokens()]).contains("without a score"));
        let merges = |list: &[&str]| ("merges", texts(list));
        assert!(problem(&[("model", word("gpt2")), tokens(), merges(&["ab"])]).contains("not a pair"));
        assert!(problem(&[("model", word("gpt2")), tokens(), merges(&["a b"])]).contains("not in its vocabulary"));
        let pre = |name: &str| ("pre", word(name));
        assert!(problem(&[("model", word("gpt2")), tokens(), merges(&[]), pre("tekken")]).contains("`tekken`"));
        let unnamed = "does not name its pre-tokenizer";
        assert!(problem(&[("model", word("gpt2")), tokens(), merges(&[])]).contains(unnamed));
        assert!(problem(&[("model", word("gpt2")), tokens(), merges(&[]), pre("default")]).contains(unnamed));
    }

    proptest! {
        #[test]
        fn sentence_piece_text_comes_back(text in "\\PC{0,40}") {
            let tokenizer = tokenizer(&sentence_piece_gguf());
            // The space put before every text goes away again, and so does one that was there.
            prop_assume!(!text.starts_with(' ') && !text.contains(['<', '\u{2581}']));
            prop_assert_eq!(tokenizer.decode(&ids(&tokenizer, &text), false).unwrap(), text);
        }
    }
}
