//! Measurement: does the pipeline find what it should, answer what it should, and how sure is that number?
//!
//! [`dataset`] reads questions; [`run`] puts each to a pipeline and keeps what came back as a
//! [`prediction`]; [`normalise`], [`has_answer`] and [`ranking`] hold the field's metrics as pure
//! functions; [`bootstrap`] says how far a mean can be trusted; [`report`] writes it down with everything
//! needed to do it again; [`compare`] puts two runs side by side, question by question.

pub mod bootstrap;
mod characters;
pub mod compare;
pub mod dataset;
pub mod has_answer;
mod judgements;
pub mod normalise;
pub mod out_dir;
pub mod prediction;
pub mod provenance;
pub mod ranking;
pub mod report;
pub mod run;
mod table;
pub mod trec;
