//! Small modules beside the frozen language model, trained by anyone on their own data.
//!
//! One loop ([`trainer`]) trains every kind; a kind says what its variables, its loss and its measure are
//! ([`trainer::Trainable`]). Models are computed on candle from the same weight files that the exporter reads, with
//! gradients for what is learned and none for the language model ([`llama`], [`ops`]).

pub mod bert;
pub mod checkpoint;
pub mod device;
pub mod encoder;
pub mod generator;
pub mod llama;
pub mod mine;
pub mod ops;
pub mod optimiser;
pub mod prompt;
pub mod prompt_run;
pub mod record;
pub mod reranker;
pub mod reranker_run;
pub mod t5;
mod targets;
pub mod task_prompt;
pub mod task_prompt_run;
pub mod texts;
pub mod trainer;
pub mod windows;
