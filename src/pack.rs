//! The best passages into the language model's token budget.
