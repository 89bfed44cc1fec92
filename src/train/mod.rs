//! Small modules trained beside a frozen language model, on candle.

pub mod bert;
pub mod mine;
