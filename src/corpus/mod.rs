//! Documents in, passages out: one file a format, and the splitter.
