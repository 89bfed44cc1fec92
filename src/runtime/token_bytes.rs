//! The bytes that each token of a vocabulary stands for.
//!
//! Vocabularies spell their tokens in one of two ways: byte-level ones write every byte as a visible
//! character (a table published with GPT-2), SentencePiece ones write a space as `▁` and lone bytes as
//! `<0x0A>`. Special tokens stand for no bytes.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, Tokenizer};

/// Bytes of every token in id order; empty for special tokens and holes in the ids.
pub(in crate::runtime) fn of(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let byte_level = tokenizer.get_decoder().is_some_and(is_byte_level);
    let table = byte_of_char();
    let added = tokenizer.get_added_tokens_decoder();
    let size = tokenizer.get_vocab_size(true) as u32;
    (0..size)
        .map(|id| {
            let Some(token) = tokenizer.id_to_token(id) else { return Vec::new() };
            match added.get(&id) {
                Some(added) if added.special => Vec::new(),
                Some(_) => token.into_bytes(),
                None if byte_level => token.chars().filter_map(|c| table.get(&c).copied()).collect(),
                None => sentence_piece(&token),
            }
        })
        .collect()
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The byte-level alphabet: printable Latin-1 bytes are themselves, the other 68 follow from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100u32;
    (0..=255u8)
        .filter_map(|b| {
            let code = if printable(b) {
                u32::from(b)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).map(|c| (c, b))
        })
        .collect()
}

fn sentence_piece(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).and_then(|h| u8::from_str_radix(h, 16).ok());
    match byte {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_names_every_byte_once() {
        let table = byte_of_char();
        let mut bytes: Vec<u8> = table.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(table[&'Ġ'], b' ');
        assert_eq!(table[&'Ċ'], b'\n');
    }

    #[test]
    fn sentence_pieces_spell_spaces_and_bytes() {
        assert_eq!(sentence_piece("▁ice"), b" ice");
        assert_eq!(sentence_piece("<0x0A>"), b"\n");
    }
}
