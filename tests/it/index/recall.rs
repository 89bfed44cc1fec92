//! A wanted recall, and the beam that follows.

use std::sync::Arc;

use nunatak::error::Error;
use nunatak::index::Index;
use nunatak::index::change::{self, Known};
use nunatak::index::recall::{Ladder, known, ladder};
use nunatak::progress::Quiet;
use nunatak::retrieve::{DenseRetriever, Retriever};

use super::{built, copy, mix, options, passage, vector_of};

/// Where no passage of the tests has its vector.
const QUESTIONS: u64 = 1_000_000;

/// The vector of a text that is no passage, as of a question: near the centres where passages are.
fn of_text(text: &str) -> Result<Vec<f32>, Error> {
    Ok(vector_of(QUESTIONS + text.bytes().fold(7, |seed, byte| mix(seed, byte.into())) % QUESTIONS))
}

fn measured(index: &Index, depth: usize) -> Ladder {
    ladder(index, index.dense().unwrap(), depth, &mut of_text, &Quiet).unwrap()
}

#[test]
fn other_questions_get_the_recall_that_was_wanted() {
    let (_folder, dir) = built(4000);
    let index = Arc::new(Index::open(&dir).unwrap());
    let mut widths = Vec::new();
    for wanted in [0.5, 0.9, 0.97, 0.999] {
        let mut retriever = DenseRetriever::new(Arc::clone(&index), of_text, "f", 0, false)
            .unwrap()
            .with_recall(wanted, 10, &Quiet)
            .unwrap();
        let beam = retriever.wanted_beam().unwrap();
        assert!(beam.recall.unwrap() >= wanted);
        widths.push(beam.ef);
        let mut same = 0;
        for n in 0..300 {
            let question = format!("question {n}");
            let exact = index.dense().unwrap().search_exact(&of_text(&question).unwrap(), 10, None).unwrap();
            let hits = retriever.retrieve(&question, 10, None).unwrap();
            assert_eq!(retriever.take_parts().beam, Some(beam));
            same += hits.iter().filter(|hit| exact.iter().any(|e| e.passage == hit.passage)).count();
        }
        // The sample has 200 questions of 10 neighbours, these are 300: both have an error of their own.
        assert!(same as f32 / 3000.0 >= wanted - 0.02, "{wanted}: {same} of 3000, {beam}");
        // Of more neighbours than were looked for, a beam that grows with them.
        retriever.retrieve("question", 30, None).unwrap();
        assert_eq!(retriever.take_parts().beam.unwrap().ef, 3 * beam.ef);
    }
    assert!(widths.is_sorted() && widths[0] < widths[3], "{widths:?}");
}

#[test]
fn what_was_measured_is_kept_for_its_graph_and_a_damaged_file_is_measured_again() {
    let (folder, dir) = built(1500);
    let (index, file) = (Index::open(&dir).unwrap(), dir.join("recall.json"));
    assert!(known(&index).is_empty() && !file.exists(), "nobody asked");
    let first = measured(&index, 10);
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(known(&index), std::slice::from_ref(&first));
    let mut never = |_: &str| -> Result<Vec<f32>, Error> { panic!("it is known") };
    assert_eq!(ladder(&index, index.dense().unwrap(), 10, &mut never, &Quiet).unwrap(), first);

    std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    assert!(known(&index).is_empty());
    assert_eq!(measured(&index, 10), first);
    assert_eq!(std::fs::read(&file).unwrap(), kept, "the same texts, the same file");

    // An addition is measured by itself, and the file is in nobody's way.
    let copied = folder.path().join("copy");
    copy(&dir, &copied);
    let mut more = |sink: &mut dyn FnMut(nunatak::types::Passage) -> Result<(), Error>| {
        (1500..1800).try_for_each(|n| sink(passage(n)))
    };
    change::add(&copied, &mut more, Known::Refuse, Some(&mut super::encode), &options(), &Quiet).unwrap();
    let changed = Index::open(&copied).unwrap();
    assert_eq!(changed.manifest().segments.len(), 2);
    assert!(known(&changed).is_empty(), "one segment is not known");
    let mut asked = 0;
    let mut count = |text: &str| {
        asked += 1;
        of_text(text)
    };
    let both = ladder(&changed, changed.dense().unwrap(), 10, &mut count, &Quiet).unwrap();
    assert_eq!((asked, known(&changed)), (200, vec![both]));
}

#[test]
fn a_recall_that_cannot_be_had_is_refused_with_what_can() {
    let (_folder, dir) = built(1500);
    let index = Arc::new(Index::open(&dir).unwrap());
    let wanting = |recall| {
        DenseRetriever::new(Arc::clone(&index), of_text, "f", 0, false).unwrap().with_recall(recall, 1, &Quiet)
    };
    for recall in [0.0, 1.01, f32::NAN] {
        let error = wanting(recall).err().unwrap().to_string();
        assert!(error.contains("above 0 and at most 1"), "{error}");
    }
    // An index that is no larger than the depth is always seen whole.
    let (_small, dir) = built(60);
    let small = Arc::new(Index::open(&dir).unwrap());
    let retriever = DenseRetriever::new(Arc::clone(&small), of_text, "f", 0, false).unwrap();
    let beam = retriever.with_recall(1.0, 100, &Quiet).unwrap().wanted_beam().unwrap();
    assert_eq!((beam.ef, beam.recall), (100, Some(1.0)));
    assert!(!small.path().join("recall.json").exists(), "there was nothing to measure");
}
