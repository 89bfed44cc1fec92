//! The integration tests, in one binary because linking it is the slow part. One module a subject.

mod common;
// Measurement: official values, whole runs, comparisons.
mod eval;
