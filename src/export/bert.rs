//! BERT-family graphs: encoders and cross-encoders.
