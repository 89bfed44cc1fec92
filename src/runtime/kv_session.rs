//! A language-model graph with its KV cache bound in place.
//!
//! Keys and values of past positions are the largest tensors in decoding. Here each is allocated once,
//! at the capacity the caller asks for, and bound to the graph as both `past` and `present`: the graph's
//! GroupQueryAttention then writes new positions behind the old ones and nothing is copied from step to
//! step. The attention mask says how much of the buffer is filled. What goes into the buffers and comes
//! out of them between runs is in `kv_states.rs`.

use half::f16;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{DynTensor, Tensor, TensorElementType};

use crate::error::{Error, Result};
use crate::runtime::device::{Device, check_precision};
use crate::runtime::gpu_buffers::Gpu;
use crate::runtime::model_dir::{LmShape, ModelDir};
use crate::runtime::session::{RuntimeOptions, Session, floats};
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
    pub(super) shape: LmShape,
    hidden: usize,
    window: usize,
    pub(super) gpu: Option<Gpu>,
    recorder: Option<Recorder>,
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
    pub(super) batch: usize,
    pub(super) capacity: usize,
    pub(super) lengths: Vec<usize>,
    /// Key and value of each layer in turn, `[batch, kv_heads, capacity, head_dim]`.
    pub(super) tensors: Vec<DynTensor>,
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
        check_precision(model, session.device())?;
        tracing::debug!(recorded = recorder.is_some(), "steps of the language model");
        let gpu = match session.device() {
            Device::Cpu | Device::Auto => None,
            device @ (Device::Cuda(number) | Device::TensorRt(number)) => Some(Gpu::open(device, number, options)?),
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
    pub(super) fn number_size(&self) -> usize {
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
}
