//! Memory for intermediate results that is used again.
//!
//! A step of training needs a few hundred megabytes and the next one needs them again. Given back to the system in
//! between, every page is cleared and mapped anew: a sixth of the processor time of a step, measured.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers that wait for their next use.
static STORE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Numbers whose memory goes back to the store.
#[derive(Debug)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// So many numbers, of no particular value: every user writes them before reading.
    pub(super) fn new(len: usize) -> Self {
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |v: &&Vec<f32>| v.capacity() >= len;
        let best = store.iter().filter(fits).map(Vec::capacity).min();
        // When none fits, the largest makes room for the new one, so that the store never holds more buffers than
        // were in use at once.
        let wanted = best.or_else(|| store.iter().map(Vec::capacity).max());
        let found = wanted.and_then(|c| store.iter().position(|v| v.capacity() == c)).map(|i| store.swap_remove(i));
        drop(store);
        let mut data = match found {
            Some(data) if data.capacity() >= len => data,
            // A little more than asked, because the next batch may be a little longer.
            _ => Vec::with_capacity(len + len / 8),
        };
        data.resize(len, 0.0);
        Self(data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        STORE.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_its_length_whatever_was_there_before() {
        for len in [5, 3, 0, 1000, 7] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(1.0);
        }
    }
}
