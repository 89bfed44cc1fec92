//! Words typed.
