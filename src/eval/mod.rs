//! Measurement: does the pipeline find what it should, answer what it should, and how sure is that number?
//!
//! [`dataset`] reads questions; [`run`] puts each to a pipeline and keeps what came back as a
//! [`prediction`]; [`normalise`], [`has_answer`] and [`ranking`] hold the field's metrics as pure
//! functions; [`selective`] and [`calibration`] judge how well a pipeline knows when it is wrong, and [`fit`] teaches
//! it; [`bootstrap`] says how far a number can be trusted; [`report`] writes it down with everything needed to do it
//! again, and [`page`] as a page for people; [`compare`] puts two runs side by side, question by question.

pub mod bootstrap;
pub mod calibration;
pub mod candidates;
mod characters;
pub mod compare;
pub mod dataset;
pub mod fit;
pub mod gate;
pub mod has_answer;
mod judgements;
pub mod load;
pub mod logistic;
pub mod normalise;
pub mod out_dir;
pub mod page;
mod pairing;
pub mod patience;
pub mod prediction;
pub mod provenance;
pub mod ranking;
pub mod report;
pub mod rouge;
pub mod run;
pub mod selective;
mod skips;
pub mod sweep;
mod table;
pub mod task_set;
pub mod tasks;
pub mod trace;
pub mod trec;
