//! Keys and values going in and out of a cache: those of a prefix or a passage taken out to be kept, put in again, and
//! sequences placed side by side in a batch. On a GPU they go row by row, without leaving it where both ends are there.

use std::borrow::Cow;

use half::f16;
use ort::value::DynTensor;

use crate::error::{Error, Result};
use crate::runtime::cuda_memory::Rows;
use crate::runtime::gpu_buffers::Gpu;
use crate::runtime::kv_session::{KvCache, KvSession};

/// Keys and values of some positions of one sequence: key and value of each layer in turn, each
/// `[kv_heads, positions, head_dim]`, as the graph holds them or in 16-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct States {
    positions: usize,
    data: Floats,
}

#[derive(Debug, Clone, PartialEq)]
enum Floats {
    F32(Vec<Vec<f32>>),
    F16(Vec<Vec<f16>>),
}

impl States {
    /// Positions they are of.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes they take.
    pub fn bytes(&self) -> u64 {
        let size = match &self.data {
            Floats::F32(tensors) => tensors.iter().map(|t| size_of_val(t.as_slice())).sum::<usize>(),
            Floats::F16(tensors) => tensors.iter().map(|t| size_of_val(t.as_slice())).sum(),
        };
        size as u64
    }

    /// States in 16-bit floats.
    pub fn short(tensors: Vec<Vec<f16>>, positions: usize) -> Self {
        Self { positions, data: Floats::F16(tensors) }
    }

    /// Their numbers in 16-bit floats, tensor by tensor.
    pub fn halves(&self) -> Cow<'_, [Vec<f16>]> {
        match &self.data {
            Floats::F16(tensors) => Cow::Borrowed(tensors),
            Floats::F32(tensors) => tensors.iter().map(|t| t.iter().map(|&x| short(x)).collect()).collect(),
        }
    }

    /// Some states that take this many bytes, an even number of them.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: usize) -> Self {
        Self { positions: 1, data: Floats::F16(vec![vec![f16::ZERO; bytes / 2]]) }
    }
}

impl KvSession {
    /// States from numbers in f32, in the order of [`States`].
    pub fn states_of(&self, tensors: Vec<Vec<f32>>, positions: usize) -> States {
        let data = if self.shape.kv_dtype == "f16" {
            Floats::F16(tensors.iter().map(|t| t.iter().map(|&x| f16::from_f32(x)).collect()).collect())
        } else {
            Floats::F32(tensors)
        };
        States { positions, data }
    }

    /// The states of the positions `from..` of the only sequence of a cache.
    pub fn states(&self, cache: &KvCache, from: usize) -> Result<States> {
        let length = cache.lengths.first().copied().unwrap_or(0);
        let slice = Slice { heads: self.shape.kv_heads, width: self.shape.head_dim, capacity: cache.capacity };
        let positions = length.saturating_sub(from);
        if let Some(gpu) = &self.gpu {
            let data = match self.is_short() {
                true => Floats::F16(gpu.taken(&cache.tensors, &slice, from, positions)?),
                false => Floats::F32(gpu.taken(&cache.tensors, &slice, from, positions)?),
            };
            return Ok(States { positions, data });
        }
        let data = if self.shape.kv_dtype == "f16" {
            Floats::F16(extracted(cache, |tensor: &[f16]| slice.take(tensor, from, positions))?)
        } else {
            Floats::F32(extracted(cache, |tensor: &[f32]| slice.take(tensor, from, positions))?)
        };
        Ok(States { positions, data })
    }

    /// The states of the positions `from..` of the only sequence of a cache in 16-bit floats, to which the cache is
    /// rounded with them: what is computed from the cache and what is computed from the states is the same, bit for
    /// bit, whoever kept them and wherever.
    pub fn rounded_states(&self, cache: &mut KvCache, from: usize) -> Result<States> {
        let exact = self.states(cache, from)?;
        let Floats::F32(_) = exact.data else { return Ok(exact) };
        let rounded = States::short(exact.halves().into_owned(), exact.positions);
        if let Some(length) = cache.lengths.first_mut() {
            *length = from;
        }
        self.append(&rounded, cache)?;
        Ok(rounded)
    }

    /// Append states to the only sequence of a cache.
    pub fn append(&self, states: &States, cache: &mut KvCache) -> Result<()> {
        let failed = "filling the KV cache";
        let from = cache.lengths.first().copied().unwrap_or(0);
        if from + states.positions > cache.capacity || cache.batch != 1 {
            return Err(Error::Internal {
                doing: failed,
                message: format!("{} more positions do not fit {} x {}", states.positions, cache.batch, cache.capacity),
            });
        }
        let slice = Slice { heads: self.shape.kv_heads, width: self.shape.head_dim, capacity: cache.capacity };
        if let Some(gpu) = &self.gpu {
            match (&states.data, self.is_short()) {
                (Floats::F16(data), false) => {
                    let wide: Vec<Vec<f32>> = data.iter().map(|t| t.iter().map(|x| x.to_f32()).collect()).collect();
                    gpu.put(&wide, &mut cache.tensors, &slice, from, states.positions)?;
                }
                (Floats::F16(data), true) => gpu.put(data, &mut cache.tensors, &slice, from, states.positions)?,
                (Floats::F32(data), false) => gpu.put(data, &mut cache.tensors, &slice, from, states.positions)?,
                (Floats::F32(_), true) => {
                    gpu.put(&states.halves(), &mut cache.tensors, &slice, from, states.positions)?;
                }
            }
            if let Some(length) = cache.lengths.first_mut() {
                *length += states.positions;
            }
            return Ok(());
        }
        match &states.data {
            Floats::F32(data) => {
                for (target, source) in cache.tensors.iter_mut().zip(data) {
                    let (_, target) = target.try_extract_tensor_mut::<f32>().map_err(Error::internal(failed))?;
                    slice.put(source, target, from, states.positions);
                }
            }
            Floats::F16(data) if self.shape.kv_dtype != "f16" => {
                for (target, source) in cache.tensors.iter_mut().zip(data) {
                    let (_, target) = target.try_extract_tensor_mut::<f32>().map_err(Error::internal(failed))?;
                    let source: Vec<f32> = source.iter().map(|x| x.to_f32()).collect();
                    slice.put(&source, target, from, states.positions);
                }
            }
            Floats::F16(data) => {
                for (target, source) in cache.tensors.iter_mut().zip(data) {
                    let (_, target) = target.try_extract_tensor_mut::<f16>().map_err(Error::internal(failed))?;
                    slice.put(source, target, from, states.positions);
                }
            }
        }
        if let Some(length) = cache.lengths.first_mut() {
            *length += states.positions;
        }
        Ok(())
    }

    /// Copy the one sequence of `source` into row `row` of a batch.
    ///
    /// The states of past positions do not depend on what follows them, so a common prefix is computed
    /// once and copied, and sequences of different lengths are prefilled apart (no padding, and ONNX Runtime
    /// takes several new positions behind a past for one sequence only) and put together for decoding.
    pub fn place(&self, source: &KvCache, cache: &mut KvCache, row: usize) -> Result<()> {
        let failed = "copying the KV cache";
        let length = source.lengths.first().copied().unwrap_or(0);
        if row >= cache.batch || length > cache.capacity {
            return Err(Error::Internal {
                doing: failed,
                message: format!("{length} positions do not fit row {row} of {} x {}", cache.batch, cache.capacity),
            });
        }
        let (heads, width) = (self.shape.kv_heads, self.shape.head_dim);
        let place = Placement { row, heads, width, length, from: source.capacity, to: cache.capacity };
        cache.lengths[row] = length;
        if let Some(gpu) = &self.gpu {
            return gpu.place(&source.tensors, &mut cache.tensors, &place, self.number_size());
        }
        for (from, to) in source.tensors.iter().zip(&mut cache.tensors) {
            if self.shape.kv_dtype == "f16" {
                let (_, source) = from.try_extract_tensor::<f16>().map_err(Error::internal(failed))?;
                let (_, target) = to.try_extract_tensor_mut::<f16>().map_err(Error::internal(failed))?;
                place.copy(source, target);
            } else {
                let (_, source) = from.try_extract_tensor::<f32>().map_err(Error::internal(failed))?;
                let (_, target) = to.try_extract_tensor_mut::<f32>().map_err(Error::internal(failed))?;
                place.copy(source, target);
            }
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "memory of a GPU is raw")]
impl Gpu {
    /// [`Slice::take`] of every tensor.
    fn taken<T: Copy + Default>(
        &self,
        tensors: &[DynTensor],
        slice: &Slice,
        from: usize,
        positions: usize,
    ) -> Result<Vec<Vec<T>>> {
        let mut taken = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let mut data = vec![T::default(); slice.heads * positions * slice.width];
            let to = Rows { first: data.as_mut_ptr().cast(), pitch: positions * slice.width * size_of::<T>() };
            // SAFETY: the tensor holds heads rows of capacity positions, of which those up to from + positions are filled,
            // and `data` holds as many rows; ONNX Runtime is done with the tensor when a run returns.
            unsafe { self.memory.copy(to, slice.rows::<T>(tensor, from), to.pitch, slice.heads)? };
            taken.push(data);
        }
        self.memory.wait()?;
        Ok(taken)
    }

    /// [`Slice::put`] into every tensor.
    fn put<T: Copy>(
        &self,
        sources: &[Vec<T>],
        tensors: &mut [DynTensor],
        slice: &Slice,
        from: usize,
        positions: usize,
    ) -> Result<()> {
        let pitch = positions * slice.width * size_of::<T>();
        for (source, tensor) in sources.iter().zip(tensors) {
            if size_of_val(source.as_slice()) != slice.heads * pitch {
                return Err(Error::Internal {
                    doing: "filling the KV cache",
                    message: "states of another size".into(),
                });
            }
            let source = Rows { first: source.as_ptr().cast_mut().cast(), pitch };
            // SAFETY: as the caller has checked, from + positions fit the capacity; `source` has just been measured.
            unsafe { self.memory.copy(slice.rows::<T>(tensor, from), source, pitch, slice.heads)? };
        }
        self.memory.wait()
    }

    /// [`Placement::copy`] of every tensor, whose numbers have `size` bytes.
    fn place(&self, from: &[DynTensor], to: &mut [DynTensor], place: &Placement, size: usize) -> Result<()> {
        let (source, target) = (place.from * place.width * size, place.to * place.width * size);
        for (from, to) in from.iter().zip(to) {
            let from = Rows { first: from.data_ptr().cast_mut(), pitch: source };
            let to = Rows { first: to.data_ptr_mut(), pitch: target }.after(place.row * place.heads * target);
            // SAFETY: as the caller has checked, the row is one of the batch, and the length fits both capacities.
            unsafe { self.memory.copy(to, from, place.length * place.width * size, place.heads)? };
        }
        self.memory.wait()
    }
}

/// The nearest 16-bit float; what is beyond their range becomes the last of them, as infinities would spoil all sums.
fn short(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// `take` of every tensor of a cache.
fn extracted<T: ort::value::PrimitiveTensorElementType>(
    cache: &KvCache,
    take: impl Fn(&[T]) -> Vec<T>,
) -> Result<Vec<Vec<T>>> {
    let one = |tensor: &DynTensor| -> Result<Vec<T>> {
        let (_, data) = tensor.try_extract_tensor::<T>().map_err(Error::internal("reading the KV cache"))?;
        Ok(take(data))
    };
    cache.tensors.iter().map(one).collect()
}

/// Some positions of a cache tensor `[1, heads, capacity, width]` of one sequence.
struct Slice {
    heads: usize,
    width: usize,
    capacity: usize,
}

impl Slice {
    /// Where the rows of a tensor's heads begin at a position.
    fn rows<T>(&self, tensor: &DynTensor, from: usize) -> Rows {
        let width = self.width * size_of::<T>();
        Rows { first: tensor.data_ptr().cast_mut(), pitch: self.capacity * width }.after(from * width)
    }

    fn take<T: Copy>(&self, tensor: &[T], from: usize, positions: usize) -> Vec<T> {
        let head = |head: usize| {
            let at = (head * self.capacity + from) * self.width;
            tensor[at..at + positions * self.width].iter().copied()
        };
        (0..self.heads).flat_map(head).collect()
    }

    fn put<T: Copy>(&self, source: &[T], tensor: &mut [T], from: usize, positions: usize) {
        let run = positions * self.width;
        for (head, source) in source.chunks_exact(run.max(1)).enumerate() {
            let at = (head * self.capacity + from) * self.width;
            tensor[at..at + run].copy_from_slice(source);
        }
    }
}

/// Where one sequence's states go in a batch: `[heads, from, width]` into row `row` of `[_, heads, to, width]`.
struct Placement {
    row: usize,
    heads: usize,
    width: usize,
    length: usize,
    from: usize,
    to: usize,
}

impl Placement {
    fn copy<T: Copy>(&self, source: &[T], target: &mut [T]) {
        let run = self.length * self.width;
        for head in 0..self.heads {
            let from = head * self.from * self.width;
            let to = (self.row * self.heads + head) * self.to * self.width;
            target[to..to + run].copy_from_slice(&source[from..from + run]);
        }
    }
}
