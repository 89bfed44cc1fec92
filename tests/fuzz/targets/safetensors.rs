//! safetensors files: weights of models, learned prompts, prompt generators, re-rankers.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nunatak::export::learned::Learned;
use nunatak::export::weights::Weights;
use nunatak::read::prompt_generator::GeneratorFile;
use nunatak::read::soft_prompt::SoftPrompt;

fuzz_target!(|bytes: &[u8]| {
    let path = nunatak_fuzz::file("model.safetensors", bytes);
    if let Ok(weights) = Weights::open(&path) {
        for name in weights.names() {
            if let Ok(tensor) = weights.tensor(name) {
                let shape = weights.shape(name).expect("a tensor that it names");
                assert_eq!(tensor.len(), shape.iter().product::<usize>());
            }
        }
    }
    let _ = (SoftPrompt::from_bytes(bytes, &path), GeneratorFile::from_bytes(bytes, &path));
    let _ = Learned::read(bytes, Path::new("learned"));
});
