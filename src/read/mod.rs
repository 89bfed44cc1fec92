//! The frozen language model as a reader: prompt in, short answer out, and what the answer rests on.

pub mod choose;
pub mod decode;
mod frozen;
pub mod ground;
pub mod lm;
pub mod prefix;
pub mod prompt_generator;
pub mod prompts;
pub mod reader;
pub mod reading_prompt;
pub mod recursion;
pub mod remote;
mod remote_reading;
mod rows;
mod second_pass;
pub mod soft_prompt;
pub mod spans;
pub mod state_folder;
pub mod states;
pub mod template;
