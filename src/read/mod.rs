//! The frozen language model as a reader: prompt in, short answer out, and what the answer rests on.

pub mod decode;
pub mod ground;
pub mod lm;
pub mod reader;
pub mod spans;
pub mod template;
