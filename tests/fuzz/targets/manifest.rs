//! Any manifest that ends with its right checksum, over the files of the example.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use nunatak::index::Index;
use nunatak::index::verify::verify;
use nunatak::progress::Quiet;
use nunatak_fuzz::Copied;

thread_local! {
    static COPIED: LazyCell<Copied> = LazyCell::new(Copied::new);
}

fuzz_target!(|head: &[u8]| {
    COPIED.with(|copied| {
        nunatak_fuzz::sign(&copied.path, head);
        if let Ok(index) = Index::open(&copied.path) {
            let vector = index.dense().map(|dense| vec![1.0 / (dense.encoder().dim as f32).sqrt(); dense.encoder().dim]);
            let _ = index.lexical().search("passage about ice", 10, None);
            let _ = index.dense().zip(vector).map(|(dense, vector)| dense.search(&vector, 10, 0, None));
            let _ = index.passages().take(100).map(|row| index.passage(row)).count();
        }
        let _ = verify(&copied.path, &Quiet);
    });
});
