//! Indexes: built, opened, searched, replaced and stopped, on a generated corpus with random vectors.

#![allow(clippy::unwrap_used, reason = "a helper that fails should say where")]

use std::path::Path;

use nunatak::error::{Error, Result};
use nunatak::index::change::{Known, add, delete};
use nunatak::index::lexical::{Bm25, Stems};
use nunatak::index::manifest::EncoderIdentity;
use nunatak::index::writer::{BuildOptions, BuildReport, build};
use nunatak::index::{Index, verify};
use nunatak::progress::Quiet;
use nunatak::retrieve::{Bm25Retriever, Candidates, DenseRetriever, Fusion, HybridRetriever, Pairs, Parts, Retriever};
use nunatak::types::{Hit, Passage, PassageId, SourceSpan};

mod change;
mod damage;
mod faults;
pub(crate) mod filter;
mod recall;
mod words;

pub(crate) const DIM: usize = 32;

/// A number that looks random, from two numbers.
pub(crate) fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(n.wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 29)
}

/// A standard normal number, near enough: the sum of twelve uniform ones.
fn normal(seed: u64, n: u64) -> f32 {
    (0..12).map(|i| (mix(seed, n * 12 + i) >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

/// A unit vector near one of 40 centres.
pub(crate) fn vector_of(n: u64) -> Vec<f32> {
    let centre = mix(5, n) % 40;
    let raw: Vec<f32> = (0..DIM as u64).map(|d| normal(6, centre * 1000 + d) + 0.7 * normal(7, n * 1000 + d)).collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    raw.iter().map(|x| x / length).collect()
}

fn word(n: u64) -> &'static str {
    const WORDS: [&str; 24] = [
        "glacier",
        "ice",
        "snow",
        "moraine",
        "summit",
        "ridge",
        "crevasse",
        "sledge",
        "expedition",
        "polar",
        "fjord",
        "iceberg",
        "penguin",
        "whale",
        "storm",
        "winter",
        "north",
        "south",
        "ship",
        "captain",
        "camp",
        "dog",
        "rope",
        "axe",
    ];
    WORDS[(n % 24) as usize]
}

/// The n-th passage; its text ends in a word that no other has.
pub(crate) fn passage(n: u64) -> Passage {
    let words: Vec<&str> = (0..20).map(|i| word(mix(n, i))).collect();
    Passage {
        key: format!("p{n}"),
        title: format!("{} of {}", word(mix(n, 77)), word(mix(n, 78))),
        text: format!("{} unique{n}.", words.join(" ")),
        source: SourceSpan { file: "corpus.jsonl".into(), start: 0, end: 9 },
        metadata: serde_json::Map::new(),
    }
}

/// The number that a text was made from.
fn number_of(text: &str) -> u64 {
    text.rsplit_once("unique").unwrap().1.trim_end_matches('.').parse().unwrap()
}

pub(crate) fn encode(texts: &[String]) -> Result<Vec<f32>> {
    Ok(texts.iter().flat_map(|text| vector_of(number_of(text))).collect())
}

pub(crate) fn options() -> BuildOptions {
    let encoder = EncoderIdentity { name: "random".into(), fingerprint: "f".into(), dim: DIM };
    BuildOptions { encoder: Some(encoder), ..BuildOptions::default() }
}

fn build_with(dir: &Path, count: u64, options: &BuildOptions) -> Result<BuildReport> {
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| (0..count).try_for_each(|n| sink(passage(n)));
    build(dir, &mut source, Some(&mut encode), options, &Quiet)
}

/// Build an index of the passages of these numbers.
fn build_of(dir: &Path, numbers: std::ops::Range<u64>) {
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| numbers.clone().try_for_each(|n| sink(passage(n)));
    build(dir, &mut source, Some(&mut encode), &options(), &Quiet).unwrap();
}

/// The n-th passage with another text, which comes in its place by an update.
fn renewed(n: u64) -> Passage {
    Passage { key: format!("p{n}"), ..passage(n + 1000) }
}

/// A built index of so many passages, in a folder that goes with it.
fn built(count: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    build_with(&dir, count, &options()).unwrap();
    (parent, dir)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|e| (e.path(), to.join(e.file_name()))).unwrap();
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

fn ids(hits: &[Hit]) -> Vec<u32> {
    hits.iter().map(|hit| hit.passage.0).collect()
}

#[test]
fn what_was_built_is_found_by_words_by_vector_and_by_id() {
    let (_parent, dir) = built(3000);
    let index = Index::open(&dir).unwrap();
    assert_eq!(index.len(), 3000);
    for n in [0, 1, 255, 256, 1234, 2999] {
        let id = PassageId(n as u32);
        assert_eq!(index.passage(id).unwrap(), passage(n));
        assert_eq!(index.row_of(&format!("p{n}")).unwrap(), Some(id));
        let hits = index.lexical().search(&format!("What is unique{n}?"), 5, None).unwrap();
        assert_eq!(ids(&hits), [n as u32]);
        let hits = index.dense().unwrap().search(&vector_of(n), 5, 0, None).unwrap();
        assert_eq!(hits[0].passage, id);
        assert!((hits[0].score - 1.0).abs() < 1e-3, "{hits:?}");
    }
    assert!(index.passage(PassageId(3000)).is_err());
    assert_eq!(index.row_of("p3000").unwrap(), None);
    let report = verify::verify(&dir, &Quiet).unwrap();
    assert_eq!((report.passages, report.damage), (3000, Vec::new()));
}

/// Fail unless the graphs find 97% of the ten nearest.
fn expect_recall(index: &Index) {
    let dense = index.dense().unwrap();
    let (mut found, mut wanted) = (0, 0);
    for n in 0..200 {
        let question = vector_of(1_000_000 + n);
        let exact = ids(&dense.search_exact(&question, 10, None).unwrap());
        let hits = ids(&dense.search(&question, 10, 0, None).unwrap());
        found += exact.iter().filter(|id| hits.contains(id)).count();
        wanted += exact.len();
    }
    assert!(found * 100 >= wanted * 97, "recall@10 is {found} of {wanted}");
}

#[test]
fn graph_search_finds_what_exact_search_finds() {
    let (_parent, dir) = built(6000);
    expect_recall(&Index::open(&dir).unwrap());
}

#[test]
fn any_text_is_a_question_and_any_vector_but_a_wrong_one() {
    let (_parent, dir) = built(300);
    let index = Index::open(&dir).unwrap();
    let lexical = index.lexical();
    for question in
        ["", "?!*", "title:x AND (", "\"glacier", "the of a", "body:* OR -ice", "\0", &"ice storm ".repeat(20_000)]
    {
        lexical.search(question, 10, None).unwrap();
    }
    assert!(lexical.search("of the", 10, None).unwrap().is_empty());
    assert!(lexical.search("ice", 0, None).unwrap().is_empty());
    assert!(lexical.search("ice", usize::MAX, None).unwrap().len() <= 300);
    let dense = index.dense().unwrap();
    assert!(dense.search(&vector_of(1), 0, 0, None).unwrap().is_empty());
    assert_eq!(dense.search(&vector_of(1), usize::MAX, 7, None).unwrap().len(), 300);
    assert_eq!(dense.search_exact(&vector_of(1), usize::MAX, None).unwrap().len(), 300);
    assert!(dense.search(&[0.0; DIM], 5, 0, None).is_ok());
    assert!(dense.search(&[0.5; 3], 5, 0, None).is_err());
    assert!(dense.search(&[f32::NAN; DIM], 5, 0, None).is_err());
}

#[test]
fn the_same_corpus_gives_the_same_bytes_whatever_the_threads() {
    let parent = tempfile::tempdir().unwrap();
    let build = |name: &str, threads| {
        build_with(&parent.path().join(name), 2500, &BuildOptions { threads, ..options() }).unwrap().checksum
    };
    assert_eq!(build("one", 1), build("three", 3));
}

#[test]
fn an_index_that_is_there_is_replaced_only_when_asked() {
    let (_parent, dir) = built(20);
    let old = Index::open(&dir).unwrap();
    let error = build_with(&dir, 30, &options()).unwrap_err();
    assert!(error.to_string().contains("already") && error.hint().unwrap().contains("--overwrite"), "{error}");
    build_with(&dir, 30, &BuildOptions { overwrite: true, ..options() }).unwrap();
    assert_eq!(Index::open(&dir).unwrap().len(), 30);
    // Who had the old one open still has it.
    assert_eq!(old.len(), 20);
    assert_eq!(old.passage(PassageId(19)).unwrap(), passage(19));
    assert_eq!(ids(&old.lexical().search("unique7", 3, None).unwrap()), [7]);
    let mut names: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["gen-000002", "manifest.json", "writer.lock"]);
}

#[test]
fn retrievers_find_by_words_by_meaning_and_by_both() {
    let (_parent, dir) = built(2000);
    let index = std::sync::Arc::new(Index::open(&dir).unwrap());
    // A question's words say one passage, its vector another.
    let encode = |question: &str| Ok(vector_of(number_of(question) + 500));
    let question = "where is unique123";
    let dense = |fingerprint| DenseRetriever::new(index.clone(), encode, fingerprint, 0, false);
    let by_words = Bm25Retriever::new(index.clone()).retrieve(question, 10, None).unwrap();
    assert_eq!(ids(&by_words), [123]);
    let by_meaning = dense("f").unwrap().retrieve(question, 10, None).unwrap();
    assert_eq!((ids(&by_meaning)[0], by_meaning.len()), (623, 10));
    let convex = |dense| Fusion::Convex { dense, pairs: 1.0 };
    for fusion in [Fusion::Rrf, convex(0.8), convex(0.0), convex(1.0)] {
        let mut hybrid = HybridRetriever::new(index.clone(), dense("f").unwrap(), fusion, 100);
        let both = hybrid.retrieve(question, 10, None).unwrap();
        assert_eq!(both.len(), 10);
        match fusion {
            Fusion::Rrf => assert_eq!(ids(&both)[..2], [123, 623]),
            Fusion::Convex { dense: 0.0, .. } => assert_eq!(ids(&both)[0], 123),
            Fusion::Convex { dense: 1.0, .. } => assert_eq!(both, by_meaning),
            Fusion::Convex { .. } => {
                // The cosine of the passage that only words found is the true one.
                let vector = encode(question).unwrap();
                let cosine = index.dense().unwrap().cosines(&vector, &[PassageId(123)]).unwrap()[0].score;
                let score = both.iter().find(|hit| hit.passage.0 == 123).map(|hit| hit.score);
                assert!(score.is_none_or(|score| (score - (0.8 * cosine + 0.2)).abs() < 1e-5), "{score:?}");
            }
        }
    }
    let error = dense("another").err().unwrap();
    assert!(error.to_string().contains("another encoder") && error.hint().unwrap().contains("random"), "{error}");
}

#[test]
fn each_side_of_hybrid_search_gives_as_many_candidates_as_it_is_told() {
    let (_parent, dir) = built(500);
    let index = std::sync::Arc::new(Index::open(&dir).unwrap());
    let encode = |question: &str| Ok(vector_of(number_of(question) + 500));
    let question = passage(123).text;
    let found = |candidates: Candidates, depth| {
        let dense = DenseRetriever::new(index.clone(), encode, "f", 0, false).unwrap();
        let mut hybrid = HybridRetriever::new(index.clone(), dense, Fusion::default(), candidates);
        let hits = hybrid.retrieve(&question, depth, None).unwrap();
        (hits, hybrid.take_parts())
    };
    let sizes = |(hits, parts): (Vec<Hit>, Parts)| (hits.len(), parts.words.len(), parts.meaning.len());
    let both = Candidates { least: 100, words: None, meaning: None };
    assert_eq!(sizes(found(both, 10)), (10, 100, 100));
    assert_eq!(sizes(found(both, 200)), (200, 200, 200));
    assert_eq!(sizes(found(Candidates { words: Some(7), ..both }, 10)), (10, 7, 100));
    assert_eq!(sizes(found(Candidates { meaning: Some(150), ..both }, 10)), (10, 100, 150));
    // Fewer than are wanted: there are no more.
    let (hits, parts) = found(Candidates { words: Some(2), meaning: Some(3), ..both }, 100);
    assert_eq!((parts.words.len(), parts.meaning.len()), (2, 3));
    assert!((3..=5).contains(&hits.len()), "{hits:?}");
    // As many as there would be are what is found without saying so.
    let said = Candidates { words: Some(100), meaning: Some(100), ..both };
    assert_eq!(found(said, 10), found(both, 10));
}

#[test]
fn a_passage_that_one_side_found_is_scored_by_the_other_too() {
    let (_parent, dir) = built(2000);
    let index = std::sync::Arc::new(Index::open(&dir).unwrap());
    let encode = |question: &str| Ok(vector_of(number_of(question) + 500));
    let dense = DenseRetriever::new(index.clone(), encode, "f", 0, false).unwrap();
    let mut hybrid = HybridRetriever::new(index.clone(), dense, Fusion::Convex { dense: 0.5, pairs: 0.8 }, 0);
    // The words of a whole passage: most passages have some of them.
    let question = passage(123).text;
    let found = hybrid.retrieve(&question, 20, None).unwrap();
    let parts = hybrid.take_parts();
    let lexical = index.lexical().search_by(&question, 2000, None, Bm25::BESIDE_VECTORS).unwrap();
    let cosines = index.dense().unwrap().search_exact(&encode(&question).unwrap(), 2000, None).unwrap();
    let score = |hits: &[Hit], of: PassageId| hits.iter().find(|hit| hit.passage == of).map(|hit| hit.score);
    assert!(parts.words.len() == 20 && !parts.bm25.is_empty() && !parts.cosines.is_empty());
    for hit in parts.words.iter().chain(&parts.bm25) {
        assert_eq!(score(&lexical, hit.passage), Some(hit.score));
    }
    for hit in parts.meaning.iter().chain(&parts.cosines) {
        assert!((score(&cosines, hit.passage).unwrap() - hit.score).abs() < 1e-6);
    }
    // All pairs are in the passage that the question is; others have some of them, as their words come in the same order.
    let mut stems = Stems::new(&index.manifest().analyser);
    let asked = Pairs::of(&question, &mut stems);
    let mut words = |id: PassageId| {
        let Passage { title, text, .. } = index.passage(id).unwrap();
        score(&lexical, id).unwrap_or(0.0) / lexical[0].score + 0.8 * asked.share(&title, &text, &mut stems)
    };
    let most = words(PassageId(123));
    assert!(parts.pairs.len() > 1);
    for hit in &found {
        let sum = 0.5 * score(&cosines, hit.passage).unwrap() + 0.5 * words(hit.passage) / most;
        assert!((sum - hit.score).abs() < 1e-5, "{hit:?} is not {sum}");
    }
}

fn read_fixture(version: u32, expected: fn(u64) -> Passage) -> Index {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/compat/index_v{version}"));
    let index = Index::open(&dir).unwrap();
    assert_eq!(index.manifest().format, version);
    assert_eq!(verify::verify(&dir, &Quiet).unwrap().damage, []);
    for n in 0..60 {
        let id = PassageId(n as u32);
        assert_eq!(index.passage(id).unwrap(), expected(n));
        assert_eq!(index.row_of(&format!("p{n}")).unwrap(), Some(id));
        assert_eq!(ids(&index.lexical().search(&format!("unique{n}"), 3, None).unwrap()), [n as u32]);
        assert_eq!(index.dense().unwrap().search(&vector_of(n), 1, 0, None).unwrap()[0].passage, id);
    }
    index
}

#[test]
fn the_kept_fixture_of_format_1_is_read_but_for_filters() {
    let index = read_fixture(1, passage);
    let error = index.allowed(&"n=3".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("first format") && error.hint().is_some(), "{error}");
    assert!(index.fields().unwrap().is_empty());
}

#[test]
fn the_kept_fixture_of_format_2_is_read() {
    let index = read_fixture(2, filter::with_metadata);
    assert_eq!(index.allowed(&"n=3 colour!=pink".parse().unwrap()).unwrap().len(), 1);
}

/// As version 0.1.0 writes it: `NUNATAK_TEST_WRITE_FIXTURE=1 cargo test --test it fixture`. It has two segments, and a
/// passage was deleted.
#[test]
fn the_kept_fixture_of_format_3_is_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/index_v3");
    if std::env::var_os("NUNATAK_TEST_WRITE_FIXTURE").is_some() {
        let some = |numbers: std::ops::Range<u64>| {
            move |sink: &mut dyn FnMut(Passage) -> Result<()>| {
                numbers.clone().try_for_each(|n| sink(filter::with_metadata(n)))
            }
        };
        let overwrite = BuildOptions { overwrite: true, ..options() };
        build(&dir, &mut some(0..55), Some(&mut encode), &overwrite, &Quiet).unwrap();
        add(&dir, &mut some(55..61), Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
        delete(&dir, &["p60".to_owned()], &options(), &Quiet).unwrap();
        std::fs::remove_file(dir.join("writer.lock")).unwrap();
    }
    let index = read_fixture(3, filter::with_metadata);
    assert_eq!((index.manifest().segments.len(), index.len(), index.row_of("p60").unwrap()), (2, 60, None));
    assert_eq!(index.allowed(&"n>=50".parse().unwrap()).unwrap().len(), 10);
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = build_with(dir.path(), 3, &BuildOptions { overwrite: true, ..options() }).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_corpus_without_passages_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let error = build_with(&dir, 0, &options()).unwrap_err().to_string();
    assert!(error.contains("no passages"), "{error}");
    assert!(!dir.exists());
}

#[test]
fn two_passages_with_one_id_are_refused_by_name() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut source =
        |sink: &mut dyn FnMut(Passage) -> Result<()>| [1, 2, 1].into_iter().try_for_each(|n| sink(passage(n)));
    let error = build(&dir, &mut source, Some(&mut encode), &options(), &Quiet).unwrap_err().to_string();
    assert!(error.contains("\"p1\""), "{error}");
    assert!(!dir.exists());
}

#[test]
fn two_writers_do_not_meet() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut inner = None;
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
        inner = Some(build_with(&dir, 3, &options()));
        (0..5).try_for_each(|n| sink(passage(n)))
    };
    build(&dir, &mut source, Some(&mut encode), &options(), &Quiet).unwrap();
    let error = inner.unwrap().unwrap_err().to_string();
    assert!(error.contains("another process is writing it"), "{error}");
    assert_eq!(Index::open(&dir).unwrap().len(), 5);
}

#[test]
fn a_failed_build_keeps_the_old_index_and_the_vectors_so_far() {
    let (_parent, dir) = built(10);
    let overwrite = BuildOptions { overwrite: true, ..options() };
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| (0..5000).try_for_each(|n| sink(passage(n)));
    let mut calls = 0;
    let mut stops = |texts: &[String]| {
        calls += 1;
        if calls == 3 { Err(Error::Interrupted { kept: "test".into() }) } else { encode(texts) }
    };
    build(&dir, &mut source, Some(&mut stops), &overwrite, &Quiet).unwrap_err();
    assert_eq!(Index::open(&dir).unwrap().len(), 10);
    let report = build_with(&dir, 5000, &overwrite).unwrap();
    assert_eq!((report.passages, report.resumed), (5000, 4096));
    assert!(!dir.join("encode-cache").exists());
    // A build that was not stopped gives the same bytes.
    let parent = tempfile::tempdir().unwrap();
    let straight = build_with(&parent.path().join("index"), 5000, &options()).unwrap();
    let generation = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    for name in straight.files.keys() {
        assert!(
            generation(&dir.join("gen-000002"), name) == generation(&parent.path().join("index/gen-000001"), name),
            "{name} differs"
        );
    }
}

#[test]
fn an_index_without_vectors_is_searched_by_words_only() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| (0..50).try_for_each(|n| sink(passage(n)));
    build(&dir, &mut source, None, &BuildOptions::default(), &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    assert!(index.dense().is_none());
    assert_eq!(ids(&index.lexical().search("unique7", 3, None).unwrap()), [7]);
}
