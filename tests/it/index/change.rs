//! Documents that come, change and go, and indexes put together: what is found is what a build of the same passages would
//! find, and compacted it is that build.

use std::collections::BTreeMap;

use nunatak::index::allowed::Allowed;
use nunatak::index::change::{compact, merge};
use nunatak::index::export::export;
use nunatak::index::manifest::FileEntry;

use super::*;

/// A source of these passages.
fn source(passages: Vec<Passage>) -> impl FnMut(&mut dyn FnMut(Passage) -> Result<()>) -> Result<()> {
    move |sink| passages.iter().cloned().try_for_each(sink)
}

/// The files of an index, but for its manifest: equal when the indexes are.
fn files(dir: &Path) -> Vec<BTreeMap<String, FileEntry>> {
    let manifest = Index::open(dir).unwrap().manifest().clone();
    let deleted = manifest.deleted.map(|deleted| BTreeMap::from([("deleted".to_owned(), deleted.file)]));
    manifest.segments.into_iter().map(|segment| segment.files).chain(deleted).collect()
}

/// The rows of its segments.
fn sizes(dir: &Path) -> Vec<u64> {
    Index::open(dir).unwrap().manifest().segments.iter().map(|segment| segment.passages).collect()
}

/// The files of an index built of these passages.
fn files_of(passages: Vec<Passage>) -> Vec<BTreeMap<String, FileEntry>> {
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
    assert_eq!((report.build.reused, asked, report.build.segments), (0, 100, 2));
    let index = Index::open(&dir).unwrap();
    assert_eq!(ids(&index.lexical().search("unique650", 3, None).unwrap()), [650]);
    assert_eq!(index.dense().unwrap().search(&vector_of(650), 1, 0, None).unwrap()[0].passage, PassageId(650));
    assert_eq!(index.row_of("p650").unwrap(), Some(PassageId(650)));
    let report = compact(&dir, &options(), &Quiet).unwrap().unwrap();
    assert_eq!((report.build.reused, report.build.segments), (700, 1));
    assert_eq!(compact(&dir, &options(), &Quiet).unwrap(), None);
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
fn records_that_are_called_like_pieces_are_not_pieces_of_one_another() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let called = |number: u64, text: u64| Passage { key: format!("issue#{number}"), ..passage(text) };
    let before: Vec<Passage> = (1..=4).map(|n| called(n, n)).collect();
    build(&dir, &mut source(before), Some(&mut encode), &options(), &Quiet).unwrap();
    let change = |passages, known| add(&dir, &mut source(passages), known, Some(&mut encode), &options(), &Quiet);
    let report = change(vec![called(2, 20)], Known::Replace).unwrap();
    assert_eq!((report.added, report.removed), (1, 1));
    let report = change(vec![called(10, 30)], Known::Refuse).unwrap();
    assert_eq!((report.added, report.removed), (1, 0));
    assert!(change(vec![called(3, 40)], Known::Refuse).is_err());
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
    let report = go(&["d1", "d2#2", "d1#1"]).unwrap();
    assert_eq!((report.removed, report.build.passages, report.build.deleted), (3, 2, 3));
    let index = Index::open(&dir).unwrap();
    assert_eq!((index.len(), index.rows()), (2, 5));
    assert_eq!(
        index.passages().map(|row| index.passage(row).unwrap()).collect::<Vec<_>>(),
        [&all[2], &all[4]].map(Clone::clone)
    );
    let (words, vectors) = (index.lexical(), index.dense().unwrap());
    for gone in [&all[0], &all[1], &all[3]] {
        let n = number_of(&gone.text);
        assert_eq!(ids(&words.search(&format!("unique{n}"), 5, None).unwrap()), [0; 0]);
        assert_eq!(vectors.search(&vector_of(n), 5, 0, None).unwrap().len(), 2);
        assert_eq!(vectors.search_exact(&vector_of(n), 5, None).unwrap().len(), 2);
        assert_eq!(index.row_of(&gone.key).unwrap(), None);
    }
    assert!(go(&["d1"]).unwrap_err().to_string().contains("\"d1\"; nothing was deleted"));
    assert_eq!(index.pieces_of("d2").unwrap(), [PassageId(2)], "what is left of a document is still found by its name");
    compact(&dir, &options(), &Quiet).unwrap();
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
    let (mut most_segments, mut deleted) = (0, false);
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
        let most = [0, 7, 40][draw(5, 3)];
        let options = BuildOptions { segment_passages: most, ..options() };
        match draw(1, 42) {
            // A document comes, or comes again.
            0 => {
                let (name, made) = fresh(document, 1 + draw(2, 3) as u64);
                let how = if draw(3, 2) == 0 { Known::Refuse } else { Known::Replace };
                let mut new = source(made.clone());
                let done = add(&dir, &mut new, how, Some(&mut encode), &options, &Quiet);
                assert_eq!(done.is_err(), known && how == Known::Refuse, "operation {operation}");
                if done.is_ok() {
                    model.take(&name);
                    model.0.push((name, made));
                }
            }
            1 if model.0.len() > 1 => {
                let done = delete(&dir, std::slice::from_ref(&document), &options, &Quiet);
                assert_eq!(done.is_ok(), model.take(&document), "operation {operation}");
            }
            // A restart, which every change is followed by, too.
            2 => {}
            3 if draw(2, 4) == 0 => {
                let sizes = sizes(&dir);
                let (last, others) = sizes.split_last().unwrap();
                let cut = others.iter().all(|size| *size == most) && (most == 0 || *last <= most);
                let whole = cut && index.rows() == index.len();
                assert_eq!(compact(&dir, &options, &Quiet).unwrap().is_none(), whole, "operation {operation}");
            }
            // A question about one passage, by its own word and by its vector, and a look at one that may be gone.
            _ => {
                let now = model.passages();
                let wanted = &now[draw(4, now.len())];
                let row = index.passages().nth(now.iter().position(|p| p == wanted).unwrap()).unwrap();
                most_segments = most_segments.max(index.manifest().segments.len());
                deleted |= index.rows() > index.len();
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
    // The run met what it is for.
    assert!(operations < 1000 || most_segments > 1 && deleted, "{most_segments} segments");
    compact(&dir, &options(), &Quiet).unwrap();
    assert_eq!(files(&dir), files_of(model.passages()));
}

#[test]
fn a_build_that_may_not_take_more_memory_makes_segments() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let bounded = BuildOptions { segment_passages: 200, ..options() };
    let mut asked = 0;
    let mut stops = |texts: &[String]| {
        asked += texts.len();
        if asked > 400 { Err(Error::Internal { doing: "testing", message: "no more".into() }) } else { encode(texts) }
    };
    let all = || (0..700).map(passage).collect::<Vec<Passage>>();
    assert!(build(&dir, &mut source(all()), Some(&mut stops), &bounded, &Quiet).is_err());
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("gen-")), "{left:?}");
    let report = build(&dir, &mut source(all()), Some(&mut encode), &bounded, &Quiet).unwrap();
    assert_eq!((report.passages, report.resumed, report.segments), (700, 400, 4));
    assert_eq!(sizes(&dir), [200, 200, 200, 100]);
    let index = Index::open(&dir).unwrap();
    for n in (0..700).step_by(33) {
        let row = index.row_of(&format!("p{n}")).unwrap().unwrap();
        assert_eq!((row, index.passage(row).unwrap()), (PassageId(n as u32), passage(n)));
        assert_eq!(ids(&index.lexical().search(&format!("unique{n}"), 3, None).unwrap()), [n as u32]);
        assert_eq!(index.dense().unwrap().search(&vector_of(n), 1, 0, None).unwrap()[0].passage, row);
    }
    assert!(verify::verify(&dir, &Quiet).unwrap().damage.is_empty());
    assert_eq!(compact(&dir, &bounded, &Quiet).unwrap(), None);

    // Full segments stay as they are when more comes; the small one goes into the new.
    let mut more = source((700..760).map(passage).collect());
    add(&dir, &mut more, Known::Refuse, Some(&mut encode), &bounded, &Quiet).unwrap();
    assert_eq!(sizes(&dir), [200, 200, 200, 160]);
    assert_eq!(compact(&dir, &bounded, &Quiet).unwrap(), None);
    compact(&dir, &options(), &Quiet).unwrap().unwrap();
    assert_eq!(files(&dir), files_of((0..760).map(passage).collect()));
}

#[test]
fn an_id_that_is_in_two_segments_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let bounded = BuildOptions { segment_passages: 100, ..options() };
    let twice: Vec<Passage> = (0..250).chain([3]).map(passage).collect();
    let error = build(&dir, &mut source(twice), Some(&mut encode), &bounded, &Quiet).unwrap_err();
    assert!(error.to_string().contains("two passages with the id \"p3\""), "{error}");
    assert!(!dir.exists(), "what was written is gone");
}

/// Segments and deleted passages in all combinations give what one index of the same passages gives.
#[test]
fn what_is_found_does_not_depend_on_how_it_came_in() {
    let (_parent, dir) = built(2000);
    let more = |numbers: std::ops::Range<u64>| {
        let mut new = source(numbers.map(passage).collect());
        add(&dir, &mut new, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
    };
    more(2000..2400);
    more(2400..2480);
    more(2480..2496);
    assert_eq!(sizes(&dir), [2000, 400, 80, 16]);
    let (_parent, one) = built(2496);
    let (index, whole) = (Index::open(&dir).unwrap(), Index::open(&one).unwrap());
    let only = |index: &Index| std::sync::Arc::new(Allowed::of(index.rows(), |row| row.0 % 3 == 0));
    for n in 0..200 {
        let question = format!("{} {} unique{}", word(mix(n, 1)), word(mix(n, 2)), n * 12);
        for allowed in [None, Some(only(&index))] {
            let found = index.lexical().search(&question, 30, allowed.as_ref()).unwrap();
            let expected = whole.lexical().search(&question, 30, allowed.as_ref()).unwrap();
            assert_eq!(ids(&found), ids(&expected), "{question}");
            assert!(found.iter().zip(&expected).all(|(a, b)| (a.score - b.score).abs() < 1e-4), "{question}");
            let vector = vector_of(1_000_000 + n);
            let exact = |index: &Index| index.dense().unwrap().search_exact(&vector, 10, allowed.as_deref()).unwrap();
            assert_eq!(exact(&index), exact(&whole));
        }
    }
    // With every fifth passage deleted: what a deleted one would have been given for is given to the next.
    let gone: Vec<String> = (0..2496).step_by(5).map(|n| format!("p{n}")).collect();
    delete(&dir, &gone, &options(), &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    assert_eq!(index.len(), 2496 - gone.len());
    let is_gone = |hit: &Hit| hit.passage.0.is_multiple_of(5);
    for n in 0..100 {
        let question = format!("{} {}", word(mix(n, 1)), word(mix(n, 2)));
        let mut expected = whole.lexical().search(&question, 2496, None).unwrap();
        expected.retain(|hit| !is_gone(hit));
        for depth in [1, 10, 100, 2496] {
            let found = index.lexical().search(&question, depth, None).unwrap();
            assert_eq!(ids(&found), ids(&expected[..depth.min(expected.len())]), "{question}, {depth}");
        }
        assert!(!index.dense().unwrap().search(&vector_of(n), 50, 0, None).unwrap().iter().any(is_gone));
    }
}

#[test]
fn graphs_find_as_much_after_many_deletions_and_additions() {
    let (_parent, dir) = built(6000);
    let more = |numbers: std::ops::Range<u64>| {
        let mut new = source(numbers.map(passage).collect());
        add(&dir, &mut new, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
    };
    more(6000..7400);
    let gone: Vec<String> = (0..7400).filter(|n| mix(9, *n) % 10 < 3).map(|n| format!("p{n}")).collect();
    delete(&dir, &gone, &options(), &Quiet).unwrap();
    more(7400..7550);
    assert_eq!(sizes(&dir), [6000, 1400, 150]);
    let index = Index::open(&dir).unwrap();
    assert_eq!(index.len(), 7550 - gone.len());
    expect_recall(&index);
}

#[test]
fn an_index_of_an_older_format_is_changed_and_is_of_the_new_one_then() {
    for (version, deleted) in [(1, 0), (2, 1)] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("index");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/compat/index_v{version}")), &dir);
        delete(&dir, &["p7".to_owned()], &options(), &Quiet).unwrap();
        add(&dir, &mut source(vec![passage(90)]), Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
        let index = Index::open(&dir).unwrap();
        assert_eq!((index.manifest().format, index.len()), (3, 60));
        // A segment of format 1 does not go beside a new one, so it was written anew.
        assert_eq!((index.manifest().segments.len(), index.rows()), (2, 60 + deleted), "format {version}");
        assert_eq!(index.row_of("p7").unwrap(), None);
        for n in [6, 8, 90] {
            let row = index.row_of(&format!("p{n}")).unwrap().unwrap();
            assert_eq!(ids(&index.lexical().search(&format!("unique{n}"), 3, None).unwrap()), [row.0]);
            assert_eq!(index.dense().unwrap().search(&vector_of(n), 1, 0, None).unwrap()[0].passage, row);
        }
        assert_eq!(verify::verify(&dir, &Quiet).unwrap().damage, []);
    }
}

#[test]
fn an_exported_index_is_a_corpus_of_the_same_passages() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    build(&dir, &mut source((0..40).map(filter::with_metadata).collect()), Some(&mut encode), &options(), &Quiet)
        .unwrap();
    delete(&dir, &["p3".to_owned()], &options(), &Quiet).unwrap();
    let path = parent.path().join("corpus.jsonl");
    let index = Index::open(&dir).unwrap();
    let count = export(&index, &mut std::fs::File::create(&path).unwrap(), &path, &Quiet).unwrap();
    assert_eq!(count, 39);
    let whole = nunatak::corpus::CorpusOptions { passage_words: 0, skip_bad: 0 };
    let mut again = Vec::new();
    nunatak::corpus::read(&[path], &whole, &mut |passage| {
        again.push(passage);
        Ok(())
    })
    .unwrap();
    let expected: Vec<Passage> = index.passages().map(|row| index.passage(row).unwrap()).collect();
    assert_eq!(again.len(), expected.len());
    for (again, expected) in again.into_iter().zip(expected) {
        assert_eq!(Passage { source: expected.source.clone(), ..again }, expected);
    }
}
