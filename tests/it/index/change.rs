//! Documents that come, change and go, and indexes put together: the result is what a build of the same passages gives.

use std::collections::BTreeMap;

use nunatak::index::change::{Known, add, delete, merge};
use nunatak::index::manifest::FileEntry;

use super::*;

/// A source of these passages.
fn source(passages: Vec<Passage>) -> impl FnMut(&mut dyn FnMut(Passage) -> Result<()>) -> Result<()> {
    move |sink| passages.iter().cloned().try_for_each(sink)
}

/// The files of an index, but for its manifest: equal when the indexes are.
fn files(dir: &Path) -> BTreeMap<String, FileEntry> {
    Index::open(dir).unwrap().manifest().files.clone()
}

/// The files of an index built of these passages.
fn files_of(passages: Vec<Passage>) -> BTreeMap<String, FileEntry> {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    build(&dir, &mut source(passages), Some(&mut encode), &options(), &Quiet).unwrap();
    files(&dir)
}

/// A document of two pieces.
fn pieces(n: u64) -> [Passage; 2] {
    [1, 2].map(|piece| Passage { key: format!("d{n}#{piece}"), ..passage(n * 10 + piece) })
}

/// Fails when it is asked, as nothing is new.
fn nothing_new(_: &[String]) -> Result<Vec<f32>> {
    Err(Error::Internal { doing: "testing", message: "something was encoded".into() })
}

#[test]
fn what_is_added_is_found_and_what_was_there_keeps_its_vectors() {
    let (_parent, dir) = built(600);
    let old = Index::open(&dir).unwrap();
    let mut asked = 0;
    let mut encode_new = |texts: &[String]| {
        asked += texts.len();
        encode(texts)
    };
    let new: Vec<Passage> = (600..700).map(passage).collect();
    let report = add(&dir, &mut source(new), Known::Refuse, Some(&mut encode_new), &options(), &Quiet).unwrap();
    assert_eq!((report.added, report.removed, report.build.passages), (100, 0, 700));
    assert_eq!((report.build.reused, asked), (600, 100));
    let index = Index::open(&dir).unwrap();
    assert_eq!(ids(&index.lexical().search("unique650", 3, None).unwrap()), [650]);
    assert_eq!(index.dense().unwrap().search(&vector_of(650), 1, 0, None).unwrap()[0].passage, PassageId(650));
    assert_eq!(files(&dir), files_of((0..700).map(passage).collect()));
    assert!(verify::verify(&dir, &Quiet).unwrap().damage.is_empty());
    assert_eq!(
        (old.len(), old.passage(PassageId(599)).unwrap()),
        (600, passage(599)),
        "who reads keeps what there was"
    );
}

#[test]
fn a_document_is_replaced_when_asked_with_all_its_pieces() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let before: Vec<Passage> = [vec![passage(1)], pieces(7).to_vec(), vec![passage(2)]].concat();
    build(&dir, &mut source(before.clone()), Some(&mut encode), &options(), &Quiet).unwrap();
    let shorter = Passage { key: "d7".into(), ..passage(70) };
    let change = |known| add(&dir, &mut source(vec![shorter.clone()]), known, Some(&mut encode), &options(), &Quiet);
    let error = change(Known::Refuse).unwrap_err();
    assert!(error.to_string().contains("\"d7\" already") && error.hint().unwrap().contains("--update"), "{error}");
    assert_eq!(files(&dir), files_of(before));
    let report = change(Known::Replace).unwrap();
    assert_eq!((report.added, report.removed, report.build.reused), (1, 2, 2));
    assert_eq!(files(&dir), files_of(vec![passage(1), passage(2), shorter]));
    assert_eq!(Index::open(&dir).unwrap().pieces_of("d7").unwrap(), [PassageId(2)]);
}

#[test]
fn documents_and_single_passages_go() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let all: Vec<Passage> = [pieces(1).to_vec(), pieces(2).to_vec(), vec![passage(5)]].concat();
    build(&dir, &mut source(all.clone()), Some(&mut encode), &options(), &Quiet).unwrap();
    let go = |ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        delete(&dir, &ids, &options(), &Quiet)
    };
    assert!(go(&["d1", "nobody"]).unwrap_err().to_string().contains("\"nobody\"; nothing was deleted"));
    assert!(go(&["d1", "d2", "p5"]).unwrap_err().to_string().contains("no passage"));
    assert!(go(&[]).unwrap_err().to_string().contains("no ids"));
    assert_eq!(files(&dir), files_of(all.clone()));
    assert_eq!(go(&["d1", "d2#2", "d1#1"]).unwrap().removed, 3);
    assert_eq!(files(&dir), files_of(vec![all[2].clone(), all[4].clone()]));
}

#[test]
fn indexes_put_together_are_one_index() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    let part = |name: &str, numbers: std::ops::Range<u64>| {
        let passages = numbers.map(passage).collect();
        build(&at(name), &mut source(passages), Some(&mut encode), &options(), &Quiet).unwrap();
    };
    part("a", 0..300);
    part("b", 300..500);
    let report = merge(&at("both"), &[at("a"), at("b")], &options(), &Quiet).unwrap();
    assert_eq!((report.added, report.build.reused), (500, 500));
    assert_eq!(files(&at("both")), files_of((0..500).map(passage).collect()));
    part("twin", 499..501);
    let error = merge(&at("more"), &[at("b"), at("twin")], &options(), &Quiet).unwrap_err();
    assert!(error.to_string().contains("\"p499\"") && !at("more").exists(), "{error}");
    let words = BuildOptions { encoder: None, ..options() };
    build(&at("words"), &mut source(vec![passage(900)]), None, &words, &Quiet).unwrap();
    let error = merge(&at("more"), &[at("a"), at("words")], &options(), &Quiet).unwrap_err();
    assert!(error.to_string().contains("another encoder (none)"), "{error}");
    merge(&at("more"), &[at("words")], &options(), &Quiet).unwrap();
    assert!(Index::open(&at("more")).unwrap().dense().is_none());
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let (_parent, dir) = built(100);
    let before = files(&dir);
    let new = || source(vec![passage(100)]);
    let error = add(&dir, &mut new(), Known::Refuse, Some(&mut nothing_new), &options(), &Quiet).unwrap_err();
    assert!(error.to_string().contains("something was encoded"), "{error}");
    let mut stops = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
        sink(passage(100))?;
        Err(Error::Interrupted { kept: "nothing".into() })
    };
    assert!(add(&dir, &mut stops, Known::Refuse, Some(&mut encode), &options(), &Quiet).is_err());
    assert_eq!(files(&dir), before);
    assert!(verify::verify(&dir, &Quiet).unwrap().damage.is_empty());
}

/// What an index should be, in the plainest form: the passages by document, in order.
#[derive(Default)]
struct Model(Vec<(String, Vec<Passage>)>);

impl Model {
    fn passages(&self) -> Vec<Passage> {
        self.0.iter().flat_map(|(_, pieces)| pieces.iter().cloned()).collect()
    }

    fn take(&mut self, document: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(name, _)| name != document);
        self.0.len() < before
    }
}

/// Random changes, and questions after each, against the plain model. `NUNATAK_TEST_OPERATIONS` says how many,
/// `NUNATAK_TEST_SEED` which.
#[test]
fn any_run_of_changes_ends_as_the_plain_model_says() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (operations, seed) = (number("NUNATAK_TEST_OPERATIONS", 5000), number("NUNATAK_TEST_SEED", 1));
    println!("NUNATAK_TEST_SEED={seed}");
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut model = Model::default();
    let mut next = 0;
    let mut fresh = |name: String, pieces: u64| {
        let text = |i: u64| passage(next + i);
        let made: Vec<Passage> = match pieces {
            1 => vec![Passage { key: name.clone(), ..text(0) }],
            _ => (1..=pieces).map(|i| Passage { key: format!("{name}#{i}"), ..text(i) }).collect(),
        };
        next += pieces + 1;
        (name, made)
    };
    model.0.extend((0..20).map(|n| fresh(format!("d{n}"), 1 + n % 3)));
    build(&dir, &mut source(model.passages()), Some(&mut encode), &options(), &Quiet).unwrap();
    let mut index = Index::open(&dir).unwrap();
    for operation in 0..operations {
        let draw = |what: u64, below: usize| (mix(seed, operation * 8 + what) % below.max(1) as u64) as usize;
        let document = format!("d{}", draw(0, 60));
        let known = model.0.iter().any(|(name, _)| *name == document);
        match draw(1, 40) {
            // A document comes, or comes again.
            0 => {
                let (name, made) = fresh(document, 1 + draw(2, 3) as u64);
                let how = if draw(3, 2) == 0 { Known::Refuse } else { Known::Replace };
                let mut new = source(made.clone());
                let done = add(&dir, &mut new, how, Some(&mut encode), &options(), &Quiet);
                assert_eq!(done.is_err(), known && how == Known::Refuse, "operation {operation}");
                if done.is_ok() {
                    model.take(&name);
                    model.0.push((name, made));
                }
            }
            1 if model.0.len() > 1 => {
                let done = delete(&dir, std::slice::from_ref(&document), &options(), &Quiet);
                assert_eq!(done.is_ok(), model.take(&document), "operation {operation}");
            }
            // A restart, which every change is followed by, too.
            2 => {}
            // A question about one passage, by its own word and by its vector, and a look at one that may be gone.
            _ => {
                let now = model.passages();
                let wanted = &now[draw(4, now.len())];
                let row = PassageId(now.iter().position(|p| p == wanted).unwrap() as u32);
                let n = number_of(&wanted.text);
                assert_eq!(index.len(), now.len(), "operation {operation}");
                assert_eq!(index.passage(row).unwrap(), *wanted, "operation {operation}");
                assert_eq!(ids(&index.lexical().search(&format!("unique{n}"), 2, None).unwrap()), [row.0]);
                let nearest = index.dense().unwrap().search(&vector_of(n), 1, 0, None).unwrap();
                assert_eq!(nearest[0].passage, row, "operation {operation}");
                assert_eq!(!index.pieces_of(&document).unwrap().is_empty(), known, "operation {operation}");
                continue;
            }
        }
        index = Index::open(&dir).unwrap();
    }
    assert!(verify::verify(&dir, &Quiet).unwrap().damage.is_empty());
    assert_eq!(files(&dir), files_of(model.passages()));
}
