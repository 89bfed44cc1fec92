//! A collection in a cluster as the index, against a server of Milvus Lite that the tests start and stop.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nunatak::error::Result;
use nunatak::filter::Filter;
use nunatak::index::Index;
use nunatak::index::change::Known;
use nunatak::index::lexical::Analyser;
use nunatak::index::manifest::EncoderIdentity;
use nunatak::index::passages::Passages;
use nunatak::index::writer::build;
use nunatak::milvus::fill::{CorpusHash, FillOptions, FillReport, add, delete, fill};
use nunatak::milvus::{Address, Collection, VectorIndex};
use nunatak::progress::Quiet;
use nunatak::retrieve::{Bm25Retriever, DenseRetriever, Fusion, HybridRetriever, MilvusRetriever, Mode, Retriever};
use nunatak::types::{Hit, Passage};

use crate::index::filter::with_metadata;
use crate::index::{DIM, encode, mix, options, passage, vector_of};

mod commands;

/// Milvus Lite, from its package, in a folder of the tests' own.
fn packages() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("milvus-lite-3.2.2");
    if !folder.is_dir() {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", "--target"];
        let wanted = ["milvus-lite==3.2.2", "pymilvus==3.0.2"];
        let pip = Command::new("python3").args(install).arg(scratch.path()).args(wanted).output().unwrap();
        assert!(pip.status.success(), "{}", String::from_utf8_lossy(&pip.stderr));
        // Another process of tests may have been faster.
        let _ = std::fs::rename(scratch.path(), &folder);
        assert!(folder.is_dir());
    }
    folder
}

/// A server that is stopped when it is no longer of use.
struct Lite {
    child: Child,
    port: u16,
    data: tempfile::TempDir,
}

impl Lite {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::spawn(data.path(), port);
        let mut lite = Self { child, port, data };
        lite.wait();
        lite
    }

    fn spawn(data: &Path, port: u16) -> Child {
        Command::new("python3")
            .env("PYTHONPATH", packages())
            .args(["-m", "milvus_lite", "server", "--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"])
            .arg(data.join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "Milvus Lite ended before it listened: {ended:?}");
            assert!(began.elapsed() < Duration::from_secs(60), "Milvus Lite does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As a crash of its machine would.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.data.path(), self.port);
        self.wait();
    }

    fn place(&self, collection: &str) -> String {
        format!("milvus://127.0.0.1:{}/{collection}?consistency=strong&timeout=10", self.port)
    }

    fn address(&self, collection: &str) -> Address {
        self.place(collection).parse().unwrap()
    }
}

impl Drop for Lite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn encoder() -> Option<EncoderIdentity> {
    options().encoder
}

fn fill_options(passages: &[Passage], shard: (u64, u64)) -> FillOptions {
    let mut corpus = CorpusHash::default();
    passages.iter().for_each(|passage| corpus.add(passage));
    FillOptions {
        encoder: encoder(),
        analyser: Analyser::default(),
        passage_words: 0,
        corpus: corpus.finish(),
        passages: passages.len() as u64,
        shard,
        shard_passages: passages.len() as u64,
        m: 16,
        ef_construction: 200,
        vectors: VectorIndex::Hnsw,
        overwrite: false,
        vectors_from: Vec::new(),
    }
}

/// Run what the client of Python does.
fn python(script: &str) {
    let run = Command::new("python3").env("PYTHONPATH", packages()).args(["-c", script]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

fn filled(address: &Address, passages: &[Passage], options: &FillOptions) -> Result<FillReport> {
    let mut source =
        |sink: &mut dyn FnMut(Passage) -> Result<()>| passages.iter().try_for_each(|passage| sink(passage.clone()));
    fill(address, &mut source, Some(&mut encode), options, &Quiet)
}

fn passages(count: u64) -> Vec<Passage> {
    (0..count).map(with_metadata).collect()
}

/// The same passages as an index at home.
fn at_home(passages: &[Passage]) -> (tempfile::TempDir, Arc<Index>) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut source =
        |sink: &mut dyn FnMut(Passage) -> Result<()>| passages.iter().try_for_each(|passage| sink(passage.clone()));
    build(&dir, &mut source, Some(&mut encode), &options(), &Quiet).unwrap();
    let index = Arc::new(Index::open(&dir).unwrap());
    (parent, index)
}

/// Vectors of questions that are the numbers of passages, with some words around.
fn question_vector(question: &str) -> Result<Vec<f32>> {
    Ok(vector_of(question.split(' ').next_back().unwrap().parse().unwrap()))
}

fn keys(of: &dyn Passages, hits: &[Hit]) -> Vec<(String, f32)> {
    hits.iter().map(|hit| (of.passage(hit.passage).unwrap().key, hit.score)).collect()
}

fn common(a: &[(String, f32)], b: &[(String, f32)]) -> usize {
    let a: BTreeSet<&str> = a.iter().map(|(key, _)| key.as_str()).collect();
    b.iter().filter(|(key, _)| a.contains(key.as_str())).count()
}

#[test]
fn a_collection_finds_what_an_index_of_the_same_passages_finds() {
    let lite = Lite::start();
    let (address, passages) = (lite.address("same"), passages(500));
    let report = filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap();
    assert_eq!((report.passages, report.written, report.kept, report.total), (500, 500, 0, Some(500)));
    let again = filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap();
    assert_eq!((again.written, again.kept, again.total), (0, 500, Some(500)), "what is there is not written again");

    let (_parent, index) = at_home(&passages);
    let collection = Arc::new(Collection::open(&address).unwrap());
    let there = |mode, fusion| MilvusRetriever::new(Arc::clone(&collection), mode, fusion, 0, question_vector);
    let dense = || DenseRetriever::new(Arc::clone(&index), question_vector, "f", 0, true).unwrap();
    let pairs: [(Box<dyn Retriever>, Box<dyn Retriever>); 4] = [
        (Box::new(Bm25Retriever::new(Arc::clone(&index))), Box::new(there(Mode::Bm25, Fusion::Rrf))),
        (Box::new(dense()), Box::new(there(Mode::Dense, Fusion::Rrf))),
        (
            Box::new(HybridRetriever::new(Arc::clone(&index), dense(), Fusion::default(), 0)),
            Box::new(there(Mode::Hybrid, Fusion::default())),
        ),
        (
            Box::new(HybridRetriever::new(Arc::clone(&index), dense(), Fusion::Rrf, 0)),
            Box::new(there(Mode::Hybrid, Fusion::Rrf)),
        ),
    ];
    for (which, (mut home, mut cluster)) in pairs.into_iter().enumerate() {
        let (mut same, mut first) = (0, 0);
        for n in 0..20_u64 {
            let question = format!("the {} near {}", passage(mix(9, n) % 500).title, mix(9, n) % 500);
            let expected = keys(index.as_ref(), &home.retrieve(&question, 10, None).unwrap());
            let found = keys(collection.as_ref(), &cluster.retrieve(&question, 10, None).unwrap());
            assert_eq!(found.len(), expected.len());
            same += common(&found, &expected);
            // Two that change places in two rankings are even by their ranks.
            first += usize::from(found[0].0 == expected[0].0 || (found[0].1 - expected[0].1).abs() < 1e-6);
            if which == 1 {
                // Cosines are the numbers that fusing goes by; at home they are of 16-bit vectors.
                assert!((found[0].1 - expected[0].1).abs() < 2e-3, "{found:?} {expected:?}");
            }
        }
        // Lengths of passages are rounded at home and not there, so that near ties change places.
        assert!(same >= 185 && first >= 18, "pair {which}: {same} of 200 the same, {first} of 20 first");
    }
    let mut none = there(Mode::Bm25, Fusion::Rrf);
    assert!(none.retrieve("the of and", 10, None).unwrap().is_empty(), "stop words find nothing, as at home");
    assert!(none.retrieve("zyzzyva", 10, None).unwrap().is_empty());
}

#[test]
fn a_graph_over_bytes_finds_nearly_what_all_vectors_compared_find() {
    let lite = Lite::start();
    let (address, passages) = (lite.address("bytes"), passages(500));
    let bytes = FillOptions { vectors: VectorIndex::HnswSq8, ..fill_options(&passages, (1, 1)) };
    filled(&address, &passages, &bytes).unwrap();
    is_indexed_as(&lite, "bytes", "HNSW_SQ");
    let (_parent, index) = at_home(&passages);
    let collection = Arc::new(Collection::open(&address).unwrap());
    let mut home = DenseRetriever::new(Arc::clone(&index), question_vector, "f", 0, true).unwrap();
    let mut there = MilvusRetriever::new(Arc::clone(&collection), Mode::Dense, Fusion::default(), 0, question_vector);
    let mut same = 0;
    for n in 0..20_u64 {
        let question = format!("near {}", mix(9, n) % 500);
        let expected = keys(index.as_ref(), &home.retrieve(&question, 10, None).unwrap());
        same += common(&keys(collection.as_ref(), &there.retrieve(&question, 10, None).unwrap()), &expected);
    }
    assert!(same >= 190, "{same} of 200 the same");
    let error = filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap_err();
    assert!(error.to_string().contains("with vectors in hnsw-sq8, where hnsw is asked for"), "{error}");
    // Milvus Lite has none on the disk, and compares with all where it is told to build one; the words of the request are right.
    let disk = FillOptions { vectors: VectorIndex::Diskann, ..fill_options(&passages, (1, 1)) };
    filled(&lite.address("disk"), &passages, &disk).unwrap();
    is_indexed_as(&lite, "disk", "DISKANN");
    let collection = Arc::new(Collection::open(&lite.address("disk")).unwrap());
    let mut there = MilvusRetriever::new(collection, Mode::Dense, Fusion::default(), 0, question_vector);
    assert_eq!(there.retrieve("near 7", 10, None).unwrap().len(), 10);
}

/// Fail unless the server says that the vectors of a collection are indexed so.
fn is_indexed_as(lite: &Lite, collection: &str, kind: &str) {
    let client = format!("MilvusClient('http://127.0.0.1:{}')", lite.port);
    python(&format!(
        "from pymilvus import MilvusClient\nkind = {client}.describe_index('{collection}', 'vector')['index_type']\n\
         assert kind == '{kind}', kind"
    ));
}

#[test]
fn a_collection_that_is_built_anew_is_another() {
    let lite = Lite::start();
    let (address, passages) = (lite.address("anew"), passages(30));
    filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap();
    let collection = Collection::open(&address).unwrap();
    assert!(collection.is_current().unwrap());
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| sink(passage(100));
    add(&collection, &mut source, Known::Refuse, Some(&mut encode), &Quiet).unwrap();
    assert!(collection.is_current().unwrap(), "passages come and go");
    let other = Some(EncoderIdentity { name: "other".into(), fingerprint: "0123456789".into(), dim: DIM });
    let anew = FillOptions { encoder: other, overwrite: true, ..fill_options(&passages, (1, 1)) };
    filled(&address, &passages, &anew).unwrap();
    assert!(!collection.is_current().unwrap());
    assert!(Collection::open(&address).unwrap().is_current().unwrap());
}

#[test]
fn a_filter_means_there_what_it_means_at_home() {
    let lite = Lite::start();
    let (address, passages) = (lite.address("filters"), passages(300));
    filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap();
    let (_parent, index) = at_home(&passages);
    let collection = Arc::new(Collection::open(&address).unwrap());
    assert_eq!(collection.fields().iter().cloned().collect::<Vec<_>>(), index.fields().unwrap());
    let mut retriever =
        MilvusRetriever::new(Arc::clone(&collection), Mode::Hybrid, Fusion::default(), 0, question_vector);
    for text in [
        "n=17",
        "n=17,18,400",
        "n>=250 even=true",
        "colour=red,\"blue grey\"",
        "colour!=red",
        "signed<-10",
        "half<=20.5",
        "date<2005-03-01",
        "tags=t1",
        "tags!=t1",
        "of.who.name!=ice",
        "mixed=30",
        "stamp=2026-11-24T10:00:00Z",
    ] {
        let filter: Filter = text.parse().unwrap();
        let expected = index.allowed(&filter).unwrap();
        assert_eq!(collection.count(Some(&filter)).unwrap(), expected.len() as u64, "{text}");
        retriever.restrict(Some(&filter)).unwrap();
        let hits = retriever.retrieve("ice near 17", 400, None).unwrap();
        let found: BTreeSet<String> = keys(collection.as_ref(), &hits).into_iter().map(|(key, _)| key).collect();
        let all: BTreeSet<String> = expected.iter().map(|id| index.key(id).unwrap().to_owned()).collect();
        assert_eq!(found, all, "{text}: by meaning all of them are found");
    }
    let unknown: Filter = "year=1990".parse().unwrap();
    let error = collection.count(Some(&unknown)).unwrap_err();
    assert!(error.to_string().contains("no passage has a field \"year\""), "{error}");
    retriever.restrict(None).unwrap();
    assert_eq!(retriever.retrieve("ice near 17", 400, None).unwrap().len(), 300);
}

#[test]
fn documents_come_and_go() {
    let lite = Lite::start();
    let (address, passages) = (lite.address("living"), passages(50));
    filled(&address, &passages, &fill_options(&passages, (1, 1))).unwrap();
    let collection = Collection::open(&address).unwrap();
    let piece = |n: u64, of: u64| Passage { key: format!("d{n}#{of}"), ..passage(1000 + n * 10 + of) };
    let put = |new: &[Passage], known| {
        let mut source =
            |sink: &mut dyn FnMut(Passage) -> Result<()>| new.iter().try_for_each(|passage| sink(passage.clone()));
        add(&collection, &mut source, known, Some(&mut encode), &Quiet)
    };
    let report = put(&[piece(1, 1), piece(1, 2), piece(1, 3)], Known::Refuse).unwrap();
    assert_eq!((report.added, report.removed, report.passages), (3, 0, 53));
    let refused = put(&[piece(2, 1), piece(1, 1)], Known::Refuse).unwrap_err();
    assert!(refused.to_string().contains("has a document \"d1\" already"), "{refused}");
    assert_eq!(collection.count(None).unwrap(), 53, "nothing of what is refused comes in");
    // Shorter than before: the piece that is no longer is gone.
    let report = put(&[Passage { text: "Anew unique7.".into(), ..piece(1, 1) }, piece(1, 2)], Known::Replace).unwrap();
    assert_eq!((report.added, report.removed, report.passages), (2, 3, 52));
    let of = |document: &str| {
        let rows = collection.pieces_of(document).unwrap();
        rows.into_iter().map(|row| collection.passage(row).unwrap().text).collect::<Vec<_>>()
    };
    assert_eq!(of("d1"), ["Anew unique7.".to_owned(), piece(1, 2).text]);
    let stored = collection.row_of("p7").unwrap().map(|row| collection.passage(row).unwrap());
    assert_eq!(stored.as_ref(), Some(&with_metadata(7)), "text, source and metadata are as they were given");
    let unknown = delete(&collection, &["p1".into(), "nobody".into()]).unwrap_err();
    assert!(unknown.to_string().contains("no document or passage \"nobody\""), "{unknown}");
    let report = delete(&collection, &["d1".into(), "p1".into()]).unwrap();
    assert_eq!((report.removed, report.passages, of("d1").len()), (3, 49, 0));
}

#[test]
fn what_cannot_be_is_said() {
    let mut lite = Lite::start();
    let passages = passages(30);
    let address = lite.address("odd");
    let says = |result: Result<FillReport>, part: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(part) && error.hint().is_some(), "{error}");
    };
    let opened = |part: &str| {
        let error = Collection::open(&address).unwrap_err();
        assert!(error.to_string().contains(part) && error.hint().is_some(), "{error}");
    };
    opened("there is no such collection");
    // Half filled: a shard of two.
    let halves = fill_options(&passages, (2, 2));
    filled(&address, &passages[15..], &halves).unwrap();
    opened("half filled: 1 of 2 shards are complete, missing 1");
    says(filled(&address, &passages, &fill_options(&passages, (1, 1))), "built in 2 shards, not in 1");
    let report = filled(&address, &passages[..15], &fill_options(&passages, (1, 2))).unwrap();
    assert_eq!((report.complete, report.total), (2, Some(30)));
    assert_eq!(Collection::open(&address).unwrap().count(None).unwrap(), 30);

    let other = Some(EncoderIdentity { name: "other".into(), fingerprint: "0123456789".into(), dim: DIM });
    says(
        filled(&address, &passages, &FillOptions { encoder: other, ..halves.clone() }),
        "where other (01234567) is asked for",
    );
    says(filled(&address, &passages[1..], &fill_options(&passages[1..], (2, 2))), "built from another corpus");
    let words = Analyser { stemming: false, ..Analyser::default() };
    says(filled(&address, &passages, &FillOptions { analyser: words, ..halves }), "with other words");

    let twice = [passages[0].clone(), passages[0].clone()];
    says(filled(&lite.address("twice"), &twice, &fill_options(&twice, (1, 1))), "two passages have the id \"p0\"");
    let long = [Passage { text: "ice unique1.".repeat(6000), ..passage(1) }];
    says(filled(&lite.address("long"), &long, &fill_options(&long, (1, 1))), "passage p1: its text has 72000 bytes");
    // The shard that failed is not complete, and the next build goes on in its place.
    let error = Collection::open(&lite.address("twice")).unwrap_err();
    assert!(error.to_string().contains("half filled: 0 of 1"), "{error}");

    // Collections of somebody else's.
    let script = format!(
        "from pymilvus import MilvusClient\nMilvusClient('http://127.0.0.1:{}').create_collection('odd2', dimension=4)",
        lite.port
    );
    python(&script);
    let error = Collection::open(&lite.address("odd2")).unwrap_err();
    assert!(error.to_string().contains("nunatak did not make this collection"), "{error}");
    says(filled(&lite.address("odd2"), &passages, &fill_options(&passages, (1, 1))), "that nunatak did not make");

    lite.kill();
    opened("does not answer");
}

/// One that is stuck, or behind a firewall that swallows what is sent, is worse than one that is not there.
#[test]
fn a_server_that_takes_calls_and_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = format!("milvus://{}/x?timeout=1", listener.local_addr().unwrap()).parse().unwrap();
    // Connections are kept open until the test is over, and nothing is written to them.
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(Collection::open(&address).map(drop)));
    let error = receiver.recv_timeout(Duration::from_secs(120)).expect("it waits for ever").unwrap_err();
    assert!(error.to_string().contains("the Milvus server does not answer within 1 s"), "{error}");
    assert!(error.hint().unwrap().contains("?timeout=SECONDS"));
}

/// What 1,200 passages that are built in one go become when `trouble` happens while their batch `at` is encoded.
fn built_with(address: &Address, at: usize, mut trouble: impl FnMut()) -> FillReport {
    let passages = passages(1200);
    let mut batch = 0;
    let mut encode_with_trouble = |texts: &[String]| {
        batch += 1;
        if batch == at {
            trouble();
        }
        encode(texts)
    };
    let mut source =
        |sink: &mut dyn FnMut(Passage) -> Result<()>| passages.iter().try_for_each(|passage| sink(passage.clone()));
    let options = fill_options(&passages, (1, 1));
    let report = fill(address, &mut source, Some(&mut encode_with_trouble), &options, &Quiet).unwrap();
    assert_eq!(Collection::open(address).unwrap().count(None).unwrap(), 1200);
    report
}

#[test]
fn a_build_outlives_a_crash_of_the_server() {
    let mut lite = Lite::start();
    let address = lite.address("crash");
    let report = built_with(&address, 3, || {
        lite.kill();
        lite.restart();
    });
    assert_eq!((report.written, report.total), (1200, Some(1200)));
}

#[test]
fn what_a_server_took_and_lost_is_written_again() {
    let lite = Lite::start();
    let lose = |ids: &str| {
        let client = format!("MilvusClient('http://127.0.0.1:{}')", lite.port);
        python(&format!("from pymilvus import MilvusClient\n{client}.delete('lost', ids={ids})"));
    };
    // The fourth batch is encoded when the first is written: one of the two between them waits, the other is on its way.
    let report = built_with(&lite.address("lost"), 4, || lose("['p0', 'p7', 'p255']"));
    assert_eq!((report.passages, report.written, report.total), (1200, 1200, Some(1200)));

    let collection = Collection::open(&lite.address("lost")).unwrap();
    let new: Vec<Passage> = (2000..3000).map(with_metadata).collect();
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| new.iter().try_for_each(|p| sink(p.clone()));
    let mut batch = 0;
    let mut encode_and_lose = |texts: &[String]| {
        batch += 1;
        if batch == 4 {
            lose("['p2000', 'p2255']");
        }
        encode(texts)
    };
    let report = add(&collection, &mut source, Known::Refuse, Some(&mut encode_and_lose), &Quiet).unwrap();
    assert_eq!((report.added, report.passages), (1000, 2200));
}
