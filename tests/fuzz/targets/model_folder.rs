//! A model folder of somebody's: nunatak.json, or a graph with config.json and the files beside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nunatak::runtime::model_dir::ModelDir;

fuzz_target!(|input: (&[u8], &[u8], &[u8], bool)| {
    let (description, config, graph, described) = input;
    let folder = nunatak_fuzz::folder();
    nunatak_fuzz::file("model.onnx", graph);
    nunatak_fuzz::file("config.json", config);
    nunatak_fuzz::file("tokenizer.json", b"{}");
    nunatak_fuzz::file("sentence_bert_config.json", config);
    if described {
        nunatak_fuzz::file("nunatak.json", description);
    } else {
        let _ = std::fs::remove_file(folder.join("nunatak.json"));
    }
    if let Ok(model) = ModelDir::open(&folder) {
        let _ = (model.fingerprint(), model.size(), model.verify());
    }
});
