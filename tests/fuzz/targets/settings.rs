//! What whoever runs a server or a training keeps in files: keys, stop words, options, certificates, checkpoints.
#![no_main]

use std::ffi::OsString;

use candle_core::Device;
use clap::{Args, Command};
use libfuzzer_sys::fuzz_target;
use nunatak::cli::config;
use nunatak::cli::serve::ServeArgs;
use nunatak::index::lexical::StopWordList;
use nunatak::serve::{Keys, tls};
use nunatak::train::checkpoint;
use serde_json::Value;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 5 {
        0 => drop(Keys::parse(&String::from_utf8_lossy(bytes), "keys".as_ref())),
        1 => drop(StopWordList::read(&nunatak_fuzz::file("stop-words.txt", bytes))),
        2 => {
            let file = nunatak_fuzz::file("serve.toml", bytes);
            let words = ["nunatak".into(), "serve".into(), "--config".into(), file.into_os_string()];
            let words: Vec<OsString> = words.into();
            let command = Command::new("nunatak").subcommand(ServeArgs::augment_args(Command::new("serve")));
            if let Ok(words) = config::expand(words, &command) {
                // What a file may say, the command line takes or refuses.
                drop(command.try_get_matches_from(words));
            }
        }
        3 => {
            let file = nunatak_fuzz::file("certificate.pem", bytes);
            drop(tls::acceptor(&file, &file));
        }
        _ => drop(checkpoint::load::<Value>(&nunatak_fuzz::file("checkpoint.safetensors", bytes), &Device::Cpu)),
    }
});
