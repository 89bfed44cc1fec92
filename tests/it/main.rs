//! The integration tests, in one binary because linking it is the slow part. One module a subject.

mod common;
// Corpora of every format, whole and broken, through real files.
mod corpus;
