//! A language-model graph with its KV cache bound in place.
//!
//! Keys and values of past positions are the largest tensors in decoding. Here each is allocated once,
//! at the capacity the caller asks for, and bound to the graph as both `past` and `present`: the graph's
//! GroupQueryAttention then writes new positions behind the old ones and nothing is copied from step to
//! step. The attention mask says how much of the buffer is filled. On a GPU the buffers lie in its memory, and what
//! goes into them or comes out of them goes by `cuda_memory.rs`, row by row.

use std::borrow::Cow;

use half::f16;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session as OrtSession};
use ort::value::{DynTensor, Tensor, TensorElementType};

use crate::error::{Error, Result};
use crate::runtime::cuda_memory::{CudaMemory, Rows};
use crate::runtime::device::Device;
use crate::runtime::model_dir::{LmShape, ModelDir};
use crate::runtime::session::{RuntimeOptions, Session, floats, memory_session};
use crate::runtime::step_graph::{Recording, Sizes, StepGraph};

/// On a GPU that records steps, capacities are multiples of this, so that few sizes serve all prompts.
const CAPACITY_STEP: usize = 128;
/// Bytes of caches that are kept for the next batch of their size, with their recorded steps.
const MOST_IDLE: usize = 1 << 30;
/// Steps that are recorded in all, as ONNX Runtime forgets none; further ones run unrecorded.
const MOST_RECORDED: i32 = 64;

/// A language-model graph as documented at [`crate::runtime::model_dir::ModelKind::Lm`].
#[derive(Debug)]
pub struct KvSession {
    session: Session,
    shape: LmShape,
    hidden: usize,
    window: usize,
    gpu: Option<Gpu>,
    recorder: Option<Recorder>,
}

/// Where buffers are on a GPU.
#[derive(Debug)]
pub(in crate::runtime) struct Gpu {
    pub(in crate::runtime) allocator: Allocator,
    /// What the allocator takes from.
    _memory: OrtSession,
    pub(in crate::runtime) memory: CudaMemory,
}

/// What a session that records steps keeps.
#[derive(Debug)]
struct Recorder {
    /// Options of all other runs.
    unrecorded: Recording,
    /// Steps recorded so far.
    recorded: i32,
    /// Caches that nobody uses, the least recently used first.
    idle: Vec<KvCache>,
}

/// Keys and values of a batch of sequences, all in one buffer capacity.
#[derive(Debug)]
pub struct KvCache {
    batch: usize,
    capacity: usize,
    lengths: Vec<usize>,
    /// Key and value of each layer in turn, `[batch, kv_heads, capacity, head_dim]`.
    tensors: Vec<DynTensor>,
    binding: IoBinding,
    step: Option<StepGraph>,
}

/// Bind a cache's tensors to a graph as what is past and as what is present.
pub(in crate::runtime) fn bind_cache(binding: &mut IoBinding, tensors: &mut [DynTensor]) -> ort::Result<()> {
    for (i, tensor) in tensors.iter_mut().enumerate() {
        let (layer, part) = (i / 2, if i % 2 == 0 { "key" } else { "value" });
        binding.bind_input(format!("past_key_values.{layer}.{part}"), &*tensor)?;
        binding.bind_output(format!("present.{layer}.{part}"), tensor)?;
    }
    Ok(())
}

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

/// What one pass through the graph gives.
#[derive(Debug)]
pub struct Pass {
    /// Logits of the asked rows, `[rows, vocab]`.
    pub logits: Vec<f32>,
    /// Last hidden states of all positions `[batch, positions, hidden]`, if they were asked for.
    pub hidden_states: Option<Vec<f32>>,
}

impl KvSession {
    /// Load the graph of a language model's folder.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open(model: &ModelDir, shape: &LmShape, options: &RuntimeOptions) -> Result<Self> {
        let path = &model.graph();
        // A graph of which some runs on the processor cannot be recorded.
        let recording = match options.device {
            Device::Cuda(_) | Device::Auto if !options.unrecorded => Session::open_with(path, options, true).ok(),
            _ => None,
        };
        let recorder = match recording.as_ref().map(Session::device) {
            Some(Device::Cuda(_)) => Some(Recorder { unrecorded: Recording::none()?, recorded: 0, idle: Vec::new() }),
            _ => None,
        };
        let session = match recording {
            Some(session) => session,
            None => Session::open(path, options)?,
        };
        tracing::debug!(recorded = recorder.is_some(), "steps of the language model");
        let gpu = match session.device() {
            Device::Cpu | Device::Auto => None,
            Device::Cuda(number) | Device::TensorRt(number) => {
                let failed = Error::internal("allocating on a GPU");
                let id = i32::try_from(number).unwrap_or(i32::MAX);
                let info = MemoryInfo::new(AllocationDevice::CUDA, id, AllocatorType::Device, MemoryType::Default);
                let memory = memory_session(&RuntimeOptions { device: session.device(), ..options.clone() })?;
                let allocator = info.and_then(|info| Allocator::new(&memory, info)).map_err(failed)?;
                Some(Gpu { allocator, _memory: memory, memory: CudaMemory::open(number)? })
            }
        };
        let (hidden, window) = (model.description.hidden, model.description.max_tokens);
        Ok(Self { session, shape: shape.clone(), hidden, window, gpu, recorder })
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.session.device()
    }

    /// Whether its cache holds 16-bit floats.
    pub fn is_short(&self) -> bool {
        self.shape.kv_dtype == "f16"
    }

    /// Bytes of a number of the cache.
    fn number_size(&self) -> usize {
        if self.is_short() { size_of::<f16>() } else { size_of::<f32>() }
    }

    /// Empty buffers for `batch` sequences of at least up to `capacity` positions each.
    pub fn new_cache(&mut self, batch: usize, capacity: usize) -> Result<KvCache> {
        let mut capacity = capacity;
        if let Some(recorder) = &mut self.recorder {
            capacity = capacity.next_multiple_of(CAPACITY_STEP).min(self.window).max(capacity);
            if let Some(at) = recorder.idle.iter().position(|c| (c.batch, c.capacity) == (batch, capacity)) {
                // What it held before is behind the end of its sequences, and masked.
                let mut cache = recorder.idle.remove(at);
                cache.lengths.fill(0);
                return Ok(cache);
            }
        }
        let failed = Error::internal("allocating the KV cache");
        let dims = [batch, self.shape.kv_heads, capacity, self.shape.head_dim];
        let element =
            if self.shape.kv_dtype == "f16" { TensorElementType::Float16 } else { TensorElementType::Float32 };
        let of_cpu = Allocator::default();
        let allocator = self.gpu.as_ref().map_or(&of_cpu, |gpu| &gpu.allocator);
        let mut tensors = Vec::with_capacity(2 * self.shape.layers);
        for _ in 0..2 * self.shape.layers {
            tensors.push(DynTensor::new(allocator, element, dims).map_err(Error::internal("allocating the KV cache"))?);
        }
        if let Some(gpu) = &self.gpu {
            gpu.clear(&mut tensors, dims.iter().product::<usize>() * self.number_size())?;
        }
        let mut binding = self.session.ort().create_binding().map_err(failed)?;
        bind_cache(&mut binding, &mut tensors).map_err(Error::internal("binding the KV cache"))?;
        Ok(KvCache { batch, capacity, lengths: vec![0; batch], tensors, binding, step: None })
    }

    /// Take back a cache that is not needed any more: where steps are recorded, the next batch of its size gets it.
    pub fn give_back(&mut self, cache: KvCache) {
        let bytes = 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * self.number_size();
        let Some(recorder) = &mut self.recorder else { return };
        recorder.idle.push(cache);
        let mut all: usize = recorder.idle.iter().map(|c| c.batch * c.capacity * bytes).sum();
        while all > MOST_IDLE {
            let gone = recorder.idle.remove(0);
            all -= gone.batch * gone.capacity * bytes;
        }
    }

    /// Run one new position of every sequence through the graph and append them to the cache; `embeds` is
    /// `[batch, hidden]`, and the logits `[batch, vocab]` take the place of what is in `logits`.
    ///
    /// # Errors
    /// [`Error::Internal`] when a sequence has no room for it.
    pub fn step(&mut self, cache: &mut KvCache, embeds: Vec<f32>, logits: &mut Vec<f32>) -> Result<()> {
        let batch = cache.batch;
        let fits = cache.lengths.iter().all(|&length| length < cache.capacity) && embeds.len() == batch * self.hidden;
        if let (Some(gpu), Some(recorder), true) = (&self.gpu, &mut self.recorder, fits)
            && (cache.step.is_some() || recorder.recorded < MOST_RECORDED)
        {
            let step = match &mut cache.step {
                Some(step) => step,
                none => {
                    let (hidden, vocab) = (self.hidden, self.shape.vocab);
                    let sizes = Sizes { batch, capacity: cache.capacity, hidden, vocab };
                    let number = recorder.recorded;
                    recorder.recorded += 1;
                    none.insert(StepGraph::new(&mut self.session, gpu, &mut cache.tensors, sizes, number)?)
                }
            };
            let filled: Vec<usize> = cache.lengths.iter().map(|length| length + 1).collect();
            step.run(&mut self.session, gpu, &embeds, &filled, logits)?;
            cache.lengths = filled;
            return Ok(());
        }
        let every: Vec<usize> = (0..batch).collect();
        *logits = self.forward(cache, embeds, &vec![1; batch], &every, false)?.logits;
        Ok(())
    }

    /// Run `positions` new positions of every sequence through the graph and append them to the cache.
    ///
    /// `embeds` is `[batch, positions, hidden]`; `fresh[b]` says how many of the positions of sequence b
    /// are real (the rest is padding on the right and is forgotten). `logit_rows` are rows of the
    /// flattened `[batch * positions]` whose logits are wanted.
    pub fn forward(
        &mut self,
        cache: &mut KvCache,
        embeds: Vec<f32>,
        fresh: &[usize],
        logit_rows: &[usize],
        want_hidden: bool,
    ) -> Result<Pass> {
        let batch = cache.batch;
        let positions = embeds.len() / (batch * self.hidden).max(1);
        let filled: Vec<usize> = cache.lengths.iter().zip(fresh).map(|(a, b)| a + b).collect();
        let longest = filled.iter().copied().max().unwrap_or(0);
        if longest > cache.capacity || fresh.len() != batch || embeds.len() != batch * positions * self.hidden {
            return Err(Error::Internal {
                doing: "running the language model",
                message: format!(
                    "{longest} positions of {batch} sequences do not fit the cache of {} x {}",
                    cache.batch, cache.capacity
                ),
            });
        }
        let mut mask = vec![0i64; batch * longest];
        for (row, &length) in mask.chunks_mut(longest.max(1)).zip(&filled) {
            row[..length].fill(1);
        }
        let rows: Vec<i64> = logit_rows.iter().map(|&r| r as i64).collect();
        let bind = |binding: &mut IoBinding| -> ort::Result<()> {
            binding.bind_input("inputs_embeds", &Tensor::from_array(([batch, positions, self.hidden], embeds))?)?;
            binding.bind_input("attention_mask", &Tensor::from_array(([batch, longest], mask))?)?;
            binding.bind_input("logit_rows", &Tensor::from_array(([rows.len()], rows))?)?;
            let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
            binding.bind_output_to_device("logits", &cpu)?;
            if want_hidden {
                binding.bind_output_to_device("hidden_states", &cpu)?;
            }
            Ok(())
        };
        bind(&mut cache.binding)
            .and_then(|()| cache.binding.synchronize_inputs())
            .map_err(Error::internal("binding the language model's inputs"))?;
        let session = self.session.ort();
        let outputs = match &self.recorder {
            Some(recorder) => session.run_binding_with_options(&cache.binding, &recorder.unrecorded.0),
            None => session.run_binding(&cache.binding),
        };
        let outputs = outputs.map_err(Error::internal("running the language model"))?;
        let take = |name: &str| -> Result<Vec<f32>> {
            let value = outputs.get(name).ok_or_else(|| Error::Internal {
                doing: "running the language model",
                message: format!("the graph has no output {name}"),
            })?;
            Ok(floats(value)?.data)
        };
        let logits = take("logits")?;
        let hidden_states = if want_hidden { Some(take("hidden_states")?) } else { None };
        drop(outputs);
        cache.lengths = filled;
        Ok(Pass { logits, hidden_states })
    }

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
    /// Make new tensors of so many bytes each 0. What lies behind the end of a sequence is masked, but 0 times what was left
    /// there by others may be no number.
    fn clear(&self, tensors: &mut [DynTensor], bytes: usize) -> Result<()> {
        for tensor in tensors {
            // SAFETY: the tensor has just been allocated with so many bytes, and nobody uses it yet.
            unsafe { self.memory.clear(tensor.data_ptr_mut(), bytes)? };
        }
        self.memory.wait()
    }

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
