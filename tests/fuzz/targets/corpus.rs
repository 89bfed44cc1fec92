//! Files of a corpus, of every format, compressed or not: passages whose offsets make sense, or a sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nunatak::corpus::{CorpusOptions, read};

const ENDINGS: [&str; 9] = ["jsonl", "tsv", "md", "txt", "html", "parquet", "arrow", "jsonl.gz", "html.zst"];

fuzz_target!(|input: (u8, u8, &[u8])| {
    nunatak_fuzz::only_uncaught_panics();
    let (ending, options, bytes) = input;
    let ending = ENDINGS[usize::from(ending) % ENDINGS.len()];
    let path = nunatak_fuzz::file(&format!("corpus.{ending}"), bytes);
    let options = CorpusOptions { passage_words: usize::from(options & 1) * 100, skip_bad: u64::from(options >> 1) };
    let is_whole_file = ["md", "txt", "html"].contains(&ending);
    let mut passages = 0;
    let report = read(&[path], &options, &mut |passage| {
        passages += 1;
        assert!(!passage.text.trim().is_empty() && !passage.key.is_empty());
        assert!(passage.source.start <= passage.source.end);
        assert!(!is_whole_file || passage.source.end <= bytes.len() as u64);
        Ok(())
    });
    match report {
        Ok(report) => assert_eq!(report.passages, passages),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
