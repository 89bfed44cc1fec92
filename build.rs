//! Puts the commit into the program, so that every report says what made it. Outside a git checkout there
//! is none, and the program says so by saying nothing.

use std::path::Path;
use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A package unpacked inside somebody else's repository must not take that one's commit for its own.
    let at_root = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    if !at_root {
        return;
    }
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(hash) = git(&["rev-parse", "HEAD"]) {
        println!("cargo::rustc-env=NUNATAK_GIT_HASH={hash}");
    }
}
