//! A set of passages that may be found: one bit a passage.

use crate::types::PassageId;

/// Passages of one index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    words: Vec<u64>,
    count: usize,
}

impl Allowed {
    /// Of `passages` rows those that `holds` says.
    pub fn of(passages: usize, holds: impl Fn(PassageId) -> bool) -> Self {
        let bit = |word: usize, bit: usize| {
            let row = word * 64 + bit;
            u64::from(row < passages && holds(PassageId(row as u32))) << bit
        };
        let words: Vec<u64> =
            (0..passages.div_ceil(64)).map(|word| (0..64).fold(0, |all, at| all | bit(word, at))).collect();
        Self::from_words(words)
    }

    fn from_words(words: Vec<u64>) -> Self {
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        Self { words, count }
    }

    /// Those in both.
    pub fn and(&self, other: &Self) -> Self {
        Self::from_words(self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether this one is among them.
    #[inline]
    pub fn contains(&self, passage: PassageId) -> bool {
        self.words.get(passage.row() / 64).is_some_and(|word| word >> (passage.row() % 64) & 1 == 1)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = PassageId> {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < 64).then(|| PassageId(at as u32 * 64 + bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_it_was_made_of(rows in prop::collection::btree_set(0..300_u32, 0..300), passages in 0..301_usize) {
            let allowed = Allowed::of(passages, |passage| rows.contains(&passage.0));
            let expected: Vec<u32> = rows.iter().copied().filter(|&row| (row as usize) < passages).collect();
            prop_assert_eq!(allowed.iter().map(|p| p.0).collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(allowed.len(), expected.len());
            prop_assert!((0..400).all(|row| allowed.contains(PassageId(row)) == expected.contains(&row)));
            let even = Allowed::of(passages, |passage| passage.0 % 2 == 0);
            prop_assert!(allowed.and(&even).iter().map(|p| p.0).eq(expected.into_iter().filter(|row| row % 2 == 0)));
        }
    }
}
