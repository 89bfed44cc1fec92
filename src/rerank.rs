//! The cross-encoder: question and passage read together, one score.
