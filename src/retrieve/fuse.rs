//! Fusion of rankings: pure functions.
