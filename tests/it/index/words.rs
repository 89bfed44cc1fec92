//! BM25 with other numbers, other languages, and titles that count more or not at all.

use std::sync::Arc;

use nunatak::index::allowed::Allowed;
use nunatak::index::lexical::{Analyser, Bm25};

use super::*;

#[test]
fn numbers_of_bm25_and_filters_do_what_they_say() {
    let (_parent, dir) = built(2000);
    let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| (2000..2300).try_for_each(|n| sink(passage(n)));
    add(&dir, &mut more, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
    delete(&dir, &["p5".to_owned(), "p2100".to_owned()], &options(), &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    assert_eq!(index.manifest().segments.len(), 2);
    let only = Arc::new(Allowed::of(index.rows(), |row| index.is_alive(row) && row.0.is_multiple_of(3)));
    for n in 0..100 {
        let question = format!("{} {} {}", word(mix(n, 1)), word(mix(n, 2)), word(mix(n, 2)));
        // The best of all are those that are allowed among all of them.
        let all = index.lexical().search(&question, 2300, None).unwrap();
        let allowed: Vec<Hit> = all.into_iter().filter(|hit| only.contains(hit.passage)).take(40).collect();
        assert_eq!(index.lexical().search(&question, 40, Some(&only)).unwrap(), allowed);
        // With k1 = 0 it does not matter how often a word is there, or how long the passage is.
        let flat = index.lexical().search_by(word(n), 2300, None, Bm25 { k1: 0.0, b: 0.5 }).unwrap();
        assert!(flat.iter().all(|hit| index.is_alive(hit.passage)));
        assert!(flat.iter().all(|hit| hit.score == flat[0].score), "{}: {flat:?}", word(n));
    }
}

fn index_of(texts: &[(&str, &str)], analyser: Analyser) -> (tempfile::TempDir, Index) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let passages: Vec<Passage> = texts
        .iter()
        .enumerate()
        .map(|(n, (title, text))| Passage {
            key: format!("p{n}"),
            title: (*title).to_owned(),
            text: (*text).to_owned(),
            ..passage(0)
        })
        .collect();
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| passages.iter().cloned().try_for_each(sink);
    build(&dir, &mut source, None, &BuildOptions { analyser, ..BuildOptions::default() }, &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    (parent, index)
}

#[test]
fn a_language_of_its_own_and_weights_of_titles_stay_with_the_index() {
    let german = Analyser { language: Some("german".parse().unwrap()), ..Analyser::default() };
    let texts = [("", "Die Gletscherspalten der Alpen"), ("", "Ein Schiff im Eis")];
    let (_german, index) = index_of(&texts, german.clone());
    assert_eq!(index.manifest().analyser, german);
    let found = |index: &Index, question: &str| ids(&index.lexical().search(question, 5, None).unwrap());
    assert_eq!(found(&index, "eine Gletscherspalte"), [0]);
    let (_english, index) = index_of(&texts, Analyser::default());
    assert_eq!(found(&index, "Gletscherspalte"), [0; 0]);

    let titled =
        [("Nansen", "He went north. Fram Fram."), ("Fram", "A ship, and Nansen went with her. Nansen Nansen.")];
    let heavy = Analyser { title_weight: 8, ..Analyser::default() };
    assert_eq!(found(&index_of(&titled, heavy).1, "Nansen"), [0, 1]);
    let none = Analyser { title_weight: 0, ..Analyser::default() };
    assert_eq!(found(&index_of(&titled, none.clone()).1, "Nansen"), [1]);
    assert_eq!(found(&index_of(&titled, Analyser::default()).1, "Nansen")[0], 1);
    // What is added goes the same way.
    let (parent, _) = index_of(&titled, none);
    let dir = parent.path().join("index");
    let mut new = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
        sink(Passage { key: "n".into(), title: "Amundsen".into(), text: "South.".into(), ..passage(0) })
    };
    add(&dir, &mut new, Known::Refuse, None, &BuildOptions::default(), &Quiet).unwrap();
    let index = Index::open(&dir).unwrap();
    assert_eq!((found(&index, "Amundsen"), found(&index, "south")), (vec![], vec![2]));
}
