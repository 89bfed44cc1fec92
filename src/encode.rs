//! The bi-encoder: text to unit vector.
