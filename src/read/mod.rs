//! The frozen language model as a reader.
