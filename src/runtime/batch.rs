//! Bounded batches: texts sorted by length, cut into batches of a token budget.
