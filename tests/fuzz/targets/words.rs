//! What people type: any text is a question; filters, addresses and modes are understood or refused.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use nunatak::corpus::{sentences, split};
use nunatak::eval::has_answer::AnswerMatcher;
use nunatak::eval::normalise;
use nunatak::filter::Filter;
use nunatak::index::Index;
use nunatak::milvus::Address;
use nunatak::retrieve::Mode;

thread_local! {
    static INDEX: LazyCell<Index> = LazyCell::new(|| {
        Index::open(&nunatak_fuzz::Copied::new().path).expect("the example index")
    });
}

fuzz_target!(|text: &str| {
    let _ = (text.parse::<Mode>(), text.parse::<Address>());
    INDEX.with(|index| {
        let hits = index.lexical().search(text, 10, None).expect("any text is a question");
        assert!(hits.iter().all(|hit| hit.score.is_finite()) && hits.is_sorted_by(|a, b| a.score >= b.score));
        if let Ok(filter) = text.parse::<Filter>() {
            // There may be no such field.
            assert!(index.allowed(&filter).map_or(0, |allowed| allowed.len()) <= index.len());
        }
        assert!(index.pieces_of(text).expect("any text is a key").len() <= index.len());
    });
    assert!(sentences::sentences(text).iter().all(|range| text.get(range.clone()).is_some()));
    let _ = (normalise::normalise(text), AnswerMatcher::new(&[text.to_owned()]).matches(text));
    assert!(split::count_words(text) <= text.len());
    for piece in split::split(text, 20) {
        assert!(text.get(piece.range.clone()).is_some_and(|piece| !piece.trim().is_empty()));
    }
});
