//! Text to token ids and back, with byte offsets; nothing is truncated in silence.
