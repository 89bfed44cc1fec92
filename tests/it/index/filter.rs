//! Passages found by their metadata, compared with going through all of them.

use std::sync::Arc;

use nunatak::filter::Filter;
use nunatak::index::allowed::Allowed;
use serde_json::{Map, Value, json};

use super::*;

/// The n-th passage with fields of every type; some passages lack some.
pub fn with_metadata(n: u64) -> Passage {
    let colours = ["red", "green", "blue grey"];
    let mut fields = json!({
        "n": n,
        "signed": n as i64 - 50,
        "half": n as f64 / 2.0,
        "even": n.is_multiple_of(2),
        "colour": colours[(mix(n, 1) % 3) as usize],
        "date": format!("20{:02}-0{}-01", n % 30, 1 + n % 9),
        "tags": (0..n % 4).map(|i| format!("t{i}")).collect::<Vec<_>>(),
        "of": {"who": {"name": word(mix(n, 2))}, "dotted.name": n % 3},
        "mixed": if n.is_multiple_of(3) { json!(n) } else { json!(n.to_string()) },
        "big": u64::MAX - n,
        "stamp": "2026-11-24T10:00:00Z",
    });
    if n.is_multiple_of(7) {
        fields.as_object_mut().unwrap().remove("colour");
    }
    let metadata = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    Passage { metadata, ..passage(n) }
}

fn built_with_metadata(count: u64) -> (tempfile::TempDir, Index) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut source = |sink: &mut dyn FnMut(Passage) -> Result<()>| (0..count).try_for_each(|n| sink(with_metadata(n)));
    build(&dir, &mut source, Some(&mut encode), &options(), &Quiet).unwrap();
    assert!(verify::verify(&dir, &Quiet).unwrap().damage.is_empty());
    let index = Index::open(&dir).unwrap();
    (parent, index)
}

fn allowed(index: &Index, filter: &str) -> Result<Arc<Allowed>> {
    index.allowed(&filter.parse::<Filter>()?)
}

#[test]
fn a_filter_gives_what_going_through_all_gives() {
    let (_parent, index) = built_with_metadata(400);
    let text = |p: &Passage, field: &str| p.metadata.get(field).and_then(Value::as_str).map(str::to_owned);
    let check = |filter: &str, holds: &dyn Fn(u64, &Passage) -> bool| {
        let expected: Vec<u32> = (0..400).filter(|&n| holds(n, &with_metadata(n))).map(|n| n as u32).collect();
        assert_eq!(allowed(&index, filter).unwrap().iter().map(|p| p.0).collect::<Vec<_>>(), expected, "{filter}");
    };
    check("n=17", &|n, _| n == 17);
    check("n=17.0", &|n, _| n == 17);
    check("n=17,18,500", &|n, _| n == 17 || n == 18);
    check("n>=100 n<102.5", &|n, _| (100..=102).contains(&n));
    check("n!=3,4", &|n, _| n != 3 && n != 4);
    check("n=seventeen", &|_, _| false);
    check("n!=seventeen", &|_, _| true);
    check("signed<-48", &|n, _| n < 2);
    check("half>1.5 half<=2.5", &|n, _| n == 4 || n == 5);
    check("big=18446744073709551613", &|n, _| n == 2);
    check("even=true", &|n, _| n % 2 == 0);
    check("even=false n<5", &|n, _| n == 1 || n == 3);
    check("colour=red", &|_, p| text(p, "colour").as_deref() == Some("red"));
    check("colour=\"blue grey\",red", &|_, p| text(p, "colour").is_some_and(|c| c != "green"));
    check("colour!=red", &|_, p| text(p, "colour").as_deref() != Some("red"));
    check("colour>blue", &|_, p| text(p, "colour").is_some());
    check("colour<green", &|_, p| text(p, "colour").is_some_and(|c| c.as_str() < "green"));
    check("colour<=green", &|_, p| text(p, "colour").is_some_and(|c| c.as_str() <= "green"));
    check("colour>=zebra", &|_, _| false);
    check("date>=2010-01-01 date<2012", &|_, p| {
        text(p, "date").is_some_and(|d| d.as_str() >= "2010-01-01" && d.as_str() < "2012")
    });
    check("tags=t2", &|n, _| n % 4 == 3);
    check("tags!=t0", &|n, _| n % 4 == 0);
    check("of.who.name=ice", &|n, _| word(mix(n, 2)) == "ice");
    check("of.dotted.name=2", &|n, _| n % 3 == 2);
    check("mixed=9", &|n, _| n == 9);
    check("mixed=10", &|n, _| n == 10);
    check("stamp=2026-11-24T10:00:00Z", &|_, _| true);
    check("source_file=corpus.jsonl", &|_, _| true);
    check("source_file!=corpus.jsonl", &|_, _| false);
    for n in [0, 7, 399] {
        assert_eq!(index.passage(PassageId(n as u32)).unwrap(), with_metadata(n));
    }
    let fields = index.fields().unwrap();
    for field in ["n", "of.who.name", "of.dotted.name", "source_file", "tags"] {
        assert!(fields.iter().any(|f| f == field), "{field}: {fields:?}");
    }
    let error = allowed(&index, "year=3").unwrap_err();
    assert!(error.to_string().contains("\"year\"") && error.hint().unwrap().contains("colour"), "{error}");
}

#[test]
fn both_retrievers_find_the_best_of_what_is_allowed() {
    let (_parent, index) = built_with_metadata(6000);
    let dense = index.dense().unwrap();
    // 1 of 6,000; 1%; 10%; 50%; all.
    for (filter, count) in [("n=77", 1), ("n<60", 60), ("n<600", 600), ("even=true", 3000), ("n>=0", 6000)] {
        let only = allowed(&index, filter).unwrap();
        assert_eq!(only.len(), count);
        let (mut found, mut wanted) = (0, 0);
        for n in 0..60 {
            let words = format!("{} {} unique{n}", word(n), word(n + 5));
            let all = index.lexical().search(&words, 6000, None).unwrap();
            let mut expected: Vec<Hit> = all.into_iter().filter(|hit| only.contains(hit.passage)).collect();
            expected.truncate(20);
            let hits = index.lexical().search(&words, 20, Some(&only)).unwrap();
            // The terms are added up in another order, so that the last bit of a score may differ, and ties with it.
            assert_eq!(hits.len(), expected.len());
            assert!(hits.iter().all(|hit| only.contains(hit.passage)));
            assert!(hits.iter().zip(&expected).all(|(a, b)| (a.score - b.score).abs() < 1e-5), "{filter}");

            let question = vector_of(1_000_000 + n);
            let all = dense.search_exact(&question, 6000, None).unwrap();
            let mut expected: Vec<Hit> = all.into_iter().filter(|hit| only.contains(hit.passage)).collect();
            expected.truncate(10);
            assert_eq!(dense.search_exact(&question, 10, Some(&only)).unwrap(), expected, "{filter}");
            let hits = dense.search(&question, 10, 0, Some(&only)).unwrap();
            assert!(hits.iter().all(|hit| only.contains(hit.passage)));
            assert_eq!(hits.len(), expected.len());
            found += expected.iter().filter(|hit| hits.contains(hit)).count();
            wanted += expected.len();
        }
        assert!(found * 100 >= wanted * 97, "recall@10 with {filter} is {found} of {wanted}");
    }
}

#[test]
fn metadata_stays_with_its_passage_when_others_go() {
    let (_parent, index) = built_with_metadata(100);
    let dir = index.path().to_path_buf();
    nunatak::index::change::delete(&dir, &["p3".into(), "p50".into()], &options(), &Quiet).unwrap();
    let after = Index::open(&dir).unwrap();
    let only = allowed(&after, "n=2,3,51").unwrap();
    let found: Vec<Passage> = only.iter().map(|id| after.passage(id).unwrap()).collect();
    assert_eq!(found, [with_metadata(2), with_metadata(51)]);
}
