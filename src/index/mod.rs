//! Passages on disk: text store, inverted index and vectors, published together by one manifest.

pub struct Index;
impl Index {
    pub fn passage(&self, _: crate::types::PassageId) -> crate::error::Result<crate::types::Passage> {
        todo!()
    }
}
