//! Changes of an index on a disk that fails: every file operation in turn, once or from then on.
//!
//! The operations are those that the process really asks of the system, tantivy's and arrow's among them: a library that is
//! loaded before the C library (tests/fixtures/failing_io.rs) lets the n-th fail.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nunatak::error::{Error, Result};
use nunatak::index::change::{ChangeReport, Known, add, compact, delete, merge};
use nunatak::index::writer::BuildOptions;
use nunatak::index::{Index, verify};
use nunatak::progress::Quiet;
use nunatak::types::Passage;

use super::{build_of, build_with, built, copy, encode, options, passage, renewed};

/// Exit status of the child for an error that it got, as against a panic.
const REFUSED: i32 = 3;

const CHANGES: [&str; 6] = ["build", "add", "update", "delete", "compact", "merge"];

/// The indexes that are merged, beside the place: the disk under them is well.
const PARTS: [&str; 2] = ["first", "second"];

/// Make the change; how many passages there are then.
fn change(what: &str, dir: &Path) -> Result<u64> {
    let passages = |report: ChangeReport| report.build.passages;
    match what {
        "build" => {
            let overwrite = BuildOptions { overwrite: true, segment_passages: 60, ..options() };
            build_with(dir, 150, &overwrite).map(|report| report.passages)
        }
        "add" => {
            let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| (400..430).try_for_each(|n| sink(passage(n)));
            add(dir, &mut more, Known::Refuse, Some(&mut encode), &options(), &Quiet).map(passages)
        }
        // Some that came in with the build and some that were added.
        "update" => {
            let mut anew = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
                (290..310).try_for_each(|n| {
                    // This one was deleted, and is not to come back.
                    if n == 303 { Ok(()) } else { sink(renewed(n)) }
                })
            };
            add(dir, &mut anew, Known::Replace, Some(&mut encode), &options(), &Quiet).map(passages)
        }
        "merge" => {
            let overwrite = BuildOptions { overwrite: true, ..options() };
            merge(dir, &PARTS.map(|name| dir.with_file_name(name)), &overwrite, &Quiet).map(passages)
        }
        "delete" => delete(dir, &["p7".to_owned()], &options(), &Quiet).map(passages),
        _ => Ok(compact(dir, &options(), &Quiet)?.map_or(0, passages)),
    }
}

/// The child of the next test: one change, told by how the process ends.
#[test]
#[ignore = "runs as a child of `a_disk_that_fails_anywhere_leaves_the_old_index_or_the_new`"]
fn change_on_a_failing_disk() {
    let Some(dir) = std::env::var_os("FAIL_BELOW") else { return };
    let what = std::env::var("NUNATAK_TEST_CHANGE").unwrap();
    match change(&what, Path::new(&dir)) {
        Ok(_) => {}
        // The user is told what failed and where.
        Err(error @ (Error::File { .. } | Error::Index { .. })) => {
            eprintln!("refused: {error}");
            std::process::exit(REFUSED);
        }
        Err(error) => panic!("an error of another kind: {error:?}"),
    }
}

/// The library, built for these tests.
fn failing_io(folder: &Path) -> PathBuf {
    let library = folder.join("libfailing_io.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/failing_io.rs");
    let build = Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    library
}

/// Operations at the end of a change that are all tried: it is published in them.
const LAST: u64 = 20;

/// `NUNATAK_TEST_FAULTS` says of how many operations before the last one is tried: 1 tries each.
#[test]
fn a_disk_that_fails_anywhere_leaves_the_old_index_or_the_new() {
    let stride: u64 = std::env::var("NUNATAK_TEST_FAULTS").map_or(53, |n| n.parse().unwrap());
    let (parent, base) = built(300);
    let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| (300..340).try_for_each(|n| sink(passage(n)));
    add(&base, &mut more, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
    delete(&base, &["p3".to_owned(), "p303".to_owned()], &options(), &Quiet).unwrap();
    PARTS.iter().zip([500..530, 530..560]).for_each(|(name, numbers)| build_of(&parent.path().join(name), numbers));
    let library = failing_io(parent.path());
    let (mut refused, mut tolerated, mut late) = (0, 0, 0);
    for what in CHANGES {
        let attempt = |dir: &Path, at: u64, on: bool| {
            copy(&base, dir);
            let count = parent.path().join("count");
            let mut child = Command::new(std::env::current_exe().unwrap());
            child
                .args(["--exact", "index::faults::change_on_a_failing_disk", "--ignored", "--nocapture"])
                .env("LD_PRELOAD", &library)
                .env("NUNATAK_TEST_CHANGE", what)
                .env("FAIL_BELOW", dir)
                .env("FAIL_AT", at.to_string())
                .env("FAIL_COUNT", &count)
                .stdout(Stdio::null());
            if on {
                child.env("FAIL_ON", "1");
            }
            let ended = child.output().unwrap();
            let operations = std::fs::metadata(&count).unwrap().len();
            std::fs::remove_file(&count).unwrap();
            (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned(), operations)
        };
        let whole = parent.path().join("whole");
        let (code, said, operations) = attempt(&whole, u64::MAX, false);
        assert_eq!(code, Some(0), "{what}: {said}");
        let (old, new) = (state(&base), state(&whole));
        assert_ne!(old, new, "{what} changes nothing");
        std::fs::remove_dir_all(&whole).unwrap();
        println!("{what}: {operations} operations");
        for at in 1..=operations {
            let (is_last, is_drawn) = (at + LAST > operations, at % stride == 1 % stride);
            for on in [false, true] {
                if !is_drawn && (on || !is_last) {
                    continue;
                }
                let dir = parent.path().join("tried");
                let (code, said, seen) = attempt(&dir, at, on);
                let place = format!("{what}, operation {at}{}: {code:?} {said}", if on { " and on" } else { "" });
                // Threads do not take every run through the same operations.
                let fired = seen >= at;
                assert!(code == Some(0) || fired && code == Some(REFUSED), "{place}");
                let now = state(&dir);
                assert!(now == old || now == new, "{place}");
                assert!(code == Some(REFUSED) || now == new, "it said that it was done: {place}");
                match code {
                    Some(0) => tolerated += u32::from(fired),
                    // The manifest was renamed into place, and what came after it failed.
                    _ if now == new => late += 1,
                    _ => refused += 1,
                }
                // The disk is well again: the next change finds nothing in its way.
                let mut one = |sink: &mut dyn FnMut(Passage) -> Result<()>| sink(passage(900));
                add(&dir, &mut one, Known::Refuse, Some(&mut encode), &options(), &Quiet)
                    .unwrap_or_else(|error| panic!("{place}\n{error}"));
                std::fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
    println!("{refused} refused, {late} told although published, {tolerated} without harm");
    assert!(refused > 0 && late > 0);
}

/// What an index holds, all of it checked.
fn state(dir: &Path) -> Vec<String> {
    assert_eq!(verify::verify(dir, &Quiet).unwrap().damage, []);
    let index = Index::open(dir).unwrap();
    index.passages().map(|row| index.key(row).unwrap().to_owned()).chain([index.rows().to_string()]).collect()
}
