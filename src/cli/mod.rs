//! Words typed.

pub mod eval;
