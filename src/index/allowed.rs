//! A set of passages that may be found: one bit a passage.

use std::ops::Range;

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

    /// All rows but those whose bits are set in `gone`.
    pub(super) fn but(passages: usize, gone: &[u64]) -> Self {
        let word = |at: usize| {
            let rows = passages.saturating_sub(at * 64).min(64);
            let all = if rows == 64 { u64::MAX } else { (1 << rows) - 1 };
            all & !gone.get(at).copied().unwrap_or(0)
        };
        Self::from_words((0..passages.div_ceil(64)).map(word).collect())
    }

    /// Sets over runs of rows, put one after the other: each with how many rows it is over.
    pub(super) fn concat(parts: &[(usize, Self)]) -> Self {
        let rows: usize = parts.iter().map(|(rows, _)| rows).sum();
        let mut words = vec![0; rows.div_ceil(64)];
        let mut first = 0;
        for (rows, part) in parts {
            for row in part.iter().map(|passage| first + passage.row()) {
                if let Some(word) = words.get_mut(row / 64) {
                    *word |= 1_u64 << (row % 64);
                }
            }
            first += rows;
        }
        Self::from_words(words)
    }

    /// How many are among these rows.
    pub fn count(&self, rows: Range<usize>) -> usize {
        let (first, last) = (rows.start / 64, rows.end.div_ceil(64));
        let words = self.words.get(first..last.min(self.words.len())).unwrap_or_default();
        let inside = |at: usize, word: u64| {
            let begin = (first + at) * 64;
            let (low, high) = (rows.start.saturating_sub(begin), rows.end.saturating_sub(begin).min(64));
            let below = |bits: usize| if bits >= 64 { u64::MAX } else { (1_u64 << bits) - 1 };
            (word & below(high) & !below(low)).count_ones() as usize
        };
        words.iter().enumerate().map(|(at, &word)| inside(at, word)).sum()
    }

    /// Those in both.
    pub fn and(&self, other: &Self) -> Self {
        Self::from_words(self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect())
    }

    /// The bits, the first row in the lowest of the first word.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
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
            for range in [0..passages, 7..passages.max(7), 63..64.max(passages / 2), 64..128, 250..900] {
                let expected = expected.iter().filter(|&&row| range.contains(&(row as usize))).count();
                prop_assert_eq!(allowed.count(range.clone()), expected, "{:?}", range);
            }
            let mut gone = vec![0_u64; 5];
            rows.iter().for_each(|&row| gone[row as usize / 64] |= 1 << (row % 64));
            prop_assert_eq!(Allowed::but(passages, &gone), Allowed::of(passages, |p| !rows.contains(&p.0)));
            let twice = Allowed::concat(&[(passages, allowed.clone()), (passages, allowed.clone())]);
            let n = passages as u32;
            prop_assert!(twice.iter().map(|p| p.0).eq(expected.iter().copied().chain(expected.iter().map(|r| r + n))));
            prop_assert!(allowed.and(&even).iter().map(|p| p.0).eq(expected.into_iter().filter(|row| row % 2 == 0)));
        }
    }
}
