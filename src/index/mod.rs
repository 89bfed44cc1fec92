//! Passages on disk: text store, inverted index and vectors, published together by one manifest.
