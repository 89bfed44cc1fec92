//! Any manifest that ends with its right checksum, over the files of the example.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use nunatak_fuzz::Copied;

thread_local! {
    static COPIED: LazyCell<Copied> = LazyCell::new(Copied::new);
}

fuzz_target!(|head: &[u8]| {
    COPIED.with(|copied| {
        nunatak_fuzz::sign(&copied.path, head);
        nunatak_fuzz::use_index(&copied.path);
    });
});
