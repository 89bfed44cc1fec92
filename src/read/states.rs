//! States of passages, kept: the reader of `[prompt][passage][question]` computes the first two parts once.
//!
//! The keys and values that a passage leaves in every layer depend on what stands before it, and the language model is
//! frozen: they are the same for every question. The reader rounds them to 16-bit floats whether they are kept or not,
//! so an answer with them is the answer without them. What is kept is bounded in bytes; what was not used for longest
//! goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::runtime::kv_states::States;

/// How a cache has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheStatistics {
    /// Passages whose states were at hand.
    pub hits: u64,
    /// Tokens of these.
    pub hit_tokens: u64,
    /// Passages that had to be computed.
    pub misses: u64,
    /// Passages kept now.
    pub entries: u64,
    /// Bytes kept now.
    pub bytes: u64,
    /// Most bytes that are kept.
    pub limit: u64,
}

/// States by what they depend on: the prefix's key and the passages' tokens. Model and device are the owner's own.
#[derive(Debug, Default)]
pub struct StateCache {
    limit: u64,
    bytes: u64,
    entries: HashMap<Key, Entry>,
    /// Keys by when they were last used.
    order: BTreeMap<u64, Key>,
    clock: u64,
    hits: u64,
    hit_tokens: u64,
    misses: u64,
}

type Key = (Arc<str>, Arc<[u32]>);

#[derive(Debug)]
struct Entry {
    states: Arc<States>,
    used: u64,
}

impl StateCache {
    /// A cache of at most `limit` bytes; 0 keeps nothing.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether it keeps anything.
    pub fn keeps(&self) -> bool {
        self.limit > 0
    }

    /// The states of `passages` behind the prefix of this key, if they are kept.
    pub fn get(&mut self, prefix: &str, passages: &[u32]) -> Option<Arc<States>> {
        let key: Key = (prefix.into(), passages.into());
        let Some(entry) = self.entries.get_mut(&key) else {
            self.misses += 1;
            return None;
        };
        self.clock += 1;
        self.order.remove(&entry.used);
        entry.used = self.clock;
        let states = entry.states.clone();
        self.order.insert(self.clock, key);
        self.hit(passages);
        Some(states)
    }

    /// Count a passage whose states were at hand, here or elsewhere.
    fn hit(&mut self, passages: &[u32]) {
        self.hits += 1;
        self.hit_tokens += passages.len() as u64;
    }

    /// Count the last miss as a hit: its states were found elsewhere.
    pub fn found_elsewhere(&mut self, passages: &[u32]) {
        self.misses = self.misses.saturating_sub(1);
        self.hit(passages);
    }

    /// Keep states; those that alone pass the limit are not.
    pub fn put(&mut self, prefix: &str, passages: &[u32], states: Arc<States>) {
        let bytes = states.bytes();
        let key: Key = (prefix.into(), passages.into());
        self.remove(&key);
        if bytes > self.limit {
            return;
        }
        while self.bytes + bytes > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.remove(&oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { states, used: self.clock });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.states.bytes();
        }
    }

    /// How it has done.
    pub fn statistics(&self) -> CacheStatistics {
        let entries = self.entries.len() as u64;
        CacheStatistics {
            hits: self.hits,
            hit_tokens: self.hit_tokens,
            misses: self.misses,
            entries,
            bytes: self.bytes,
            limit: self.limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn states(bytes: usize) -> Arc<States> {
        Arc::new(States::of_bytes(bytes))
    }

    #[test]
    fn the_prefix_is_part_of_the_key() {
        let mut cache = StateCache::new(100);
        cache.put("a", &[1, 2], states(10));
        assert!(cache.get("b", &[1, 2]).is_none());
        assert!(cache.get("a", &[1]).is_none());
        assert!(cache.get("a", &[1, 2]).is_some());
        let expected = CacheStatistics { hits: 1, hit_tokens: 2, misses: 2, entries: 1, bytes: 10, limit: 100 };
        assert_eq!(cache.statistics(), expected);
        cache.found_elsewhere(&[1]);
        assert_eq!(cache.statistics(), CacheStatistics { hits: 2, hit_tokens: 3, misses: 1, ..expected });
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut cache = StateCache::new(30);
        for i in 0..3 {
            cache.put("p", &[i], states(10));
        }
        cache.get("p", &[0]);
        cache.put("p", &[3], states(10));
        assert!(cache.get("p", &[1]).is_none());
        assert!(cache.get("p", &[0]).is_some() && cache.get("p", &[2]).is_some() && cache.get("p", &[3]).is_some());
    }

    proptest! {
        #[test]
        fn the_limit_holds(puts in prop::collection::vec((0u32..8, 0usize..80), 0..60)) {
            let mut cache = StateCache::new(100);
            for (token, bytes) in puts {
                let bytes = 2 * bytes;
                cache.put("p", &[token], states(bytes));
                prop_assert!(cache.bytes <= 100);
                prop_assert_eq!(cache.bytes, cache.entries.values().map(|e| e.states.bytes()).sum::<u64>());
                prop_assert_eq!(cache.order.len(), cache.entries.len());
                prop_assert_eq!(cache.get("p", &[token]).is_some(), bytes <= 100);
            }
        }
    }
}
