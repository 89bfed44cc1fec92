//! A tokenizer.json of somebody's, and a text through it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nunatak::runtime::tokenizer::TextTokenizer;

fuzz_target!(|input: (&str, &[u8])| {
    nunatak_fuzz::only_uncaught_panics();
    let (text, bytes) = input;
    let Ok(tokenizer) = TextTokenizer::from_file(&nunatak_fuzz::file("tokenizer.json", bytes), "fuzzed") else {
        return;
    };
    let Ok(ids) = tokenizer.encode(text, true) else { return };
    let _ = (tokenizer.decode(&ids), tokenizer.token_bytes(), tokenizer.encode_within(text, 4));
});
