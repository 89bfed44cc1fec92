//! The operations that training spends its time in, each with its gradient written by hand.
//!
//! candle's own operations would do, one by one, but on a CPU its elementwise ones run on one thread, keep every
//! intermediate result for the way back, and its matrix product computes a gradient for a weight that is frozen. Here
//! each is one pass over the data on all threads. On a GPU the same formulas, forward and back, are composed of candle's
//! kernels. The tests compare both with what candle makes of the forward formula.
//!
//! Sequences of a batch lie one behind another, `[tokens, width]`, without padding; [`Packed`] says where each begins,
//! and which of them go on from another one.

mod batched_attention;
mod bfloat;
mod causal_attention;
pub(in crate::train) mod gemm;
mod given;
mod linear;
mod rms_norm;
mod swiglu;

pub use causal_attention::{Attention, causal_attention};
pub use gemm::{Precision, set_precision};
pub use linear::FrozenLinear;
pub use rms_norm::rms_norm;
pub use swiglu::swiglu;

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// Where the sequences of a packed batch lie.
///
/// A sequence may go on from an earlier one, as several questions do from one passage: its tokens see all of that one
/// and their own, and nothing of its other continuations. What they have in common is computed once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    sequences: Vec<Sequence>,
}

/// Rows of a packed batch that see each other, each those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Rows that all of them see besides: another sequence's, which they go on from.
    pub context: Range<usize>,
    /// The rows.
    pub rows: Range<usize>,
}

impl Packed {
    /// Sequences of these lengths, in this order, each on its own.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut packed = Self::default();
        for length in lengths {
            packed.push(length, 0..0);
        }
        packed
    }

    /// Add a sequence of so many rows, which goes on from the rows `context` of one before it; gives its rows.
    pub fn push(&mut self, length: usize, context: Range<usize>) -> Range<usize> {
        let rows = self.tokens()..self.tokens() + length;
        self.sequences.push(Sequence { context, rows: rows.clone() });
        rows
    }

    /// Rows of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.last().map_or(0, |s| s.rows.end)
    }

    /// The sequences.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }
}

/// The numbers of a contiguous f32 storage.
pub(in crate::train) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets().and_then(|(from, to)| all.get(from..to)) {
        Some(floats) => Ok(floats),
        None => candle_core::bail!("expected a contiguous tensor"),
    }
}

/// Give the numbers of CPU tensors, in the order of their shapes, to `work`.
pub(in crate::train) fn with_floats<const N: usize, T>(
    tensors: [&Tensor; N],
    work: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let tensors = tensors.into_iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(cpu) = &**storage else { candle_core::bail!("expected a tensor on the CPU") };
        *slice = floats(cpu, layout)?;
    }
    Ok(work(slices))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Random numbers between -1 and 1 as a trainable tensor.
    pub(in crate::train) fn random(shape: &[usize], seed: u64) -> Var {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| random.random::<f32>() * 2.0 - 1.0).collect();
        Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Both ways give the same result and the same gradients of a weighted sum of it.
    pub(in crate::train) fn same(inputs: &[&Var], a: &Tensor, b: &Tensor) {
        close(a, b);
        let weights = random(a.dims(), 99);
        let loss = |x: &Tensor| (x * weights.as_detached_tensor()).unwrap().sum_all().unwrap();
        let (ga, gb) = (loss(a).backward().unwrap(), loss(b).backward().unwrap());
        for input in inputs {
            close(ga.get(input).unwrap(), gb.get(input).unwrap());
        }
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (x, y) in flat(a).iter().zip(flat(b)) {
            assert!((x - y).abs() < 2e-5 * (1.0 + y.abs()), "{x} {y}");
        }
    }
}
