//! The integration tests, in one binary because linking it is the slow part. One module a subject.

mod common;
mod index; // building, opening, searching, damaging and killing an index
