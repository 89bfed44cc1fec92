//! An index whose files somebody else made: one of them is changed, every checksum is made to fit, and the index is opened,
//! searched, read and verified. tantivy's files are left as they are: what is in them is tantivy's to check, and here
//! the checksums guard them.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use nunatak_fuzz::Copied;

thread_local! {
    static COPIED: LazyCell<Copied> = LazyCell::new(Copied::new);
}

/// Files of our own formats, and arrow's.
fn ours(name: &str) -> bool {
    let own = ["passages.arrow", "keys.", "vectors.", "graph.", "sums.crc", "deleted.bits"];
    own.iter().any(|own| name.rsplit('/').next().is_some_and(|name| name.starts_with(own)))
}

fuzz_target!(|input: (u8, Option<u16>, Vec<(u16, u8)>)| {
    let (which, length, changes) = input;
    COPIED.with(|copied| {
        let names: Vec<&String> = copied.files.keys().filter(|name| ours(name)).collect();
        let name = names[usize::from(which) % names.len()];
        let mut bytes = copied.files[name].clone();
        if let Some(length) = length {
            bytes.resize(usize::from(length), 0);
        }
        for (at, byte) in changes {
            if let Some(there) = bytes.get_mut(usize::from(at)) {
                *there = byte;
            }
        }
        copied.replace(name, &bytes);
        nunatak_fuzz::use_index(&copied.path);
        copied.restore(name);
    });
});
