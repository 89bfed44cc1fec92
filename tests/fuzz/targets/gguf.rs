//! GGUF files: metadata, every tensor, and the tokenizer that is rebuilt from them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nunatak::export::gguf::Gguf;
use nunatak::export::gguf_tokenizer::tokenizer_json;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::open(&nunatak_fuzz::file("model.gguf", bytes)) else { return };
    for name in gguf.names() {
        if let Ok(tensor) = gguf.tensor(name) {
            let shape = gguf.shape(name).expect("a tensor that it names");
            assert_eq!(tensor.len(), shape.iter().product::<usize>());
        }
    }
    let _ = tokenizer_json(&gguf);
});
