//! Steps of decoding that a GPU records once and repeats.
//!
//! A step through a language model starts some hundreds of kernels, most of them done sooner than the next one is started. CUDA
//! records what a run starts (a CUDA graph) and starts all of it by one call, as long as every shape and every
//! address stays the same. So a recorded step has buffers of its own for what goes in and comes out, and an attention
//! mask as wide as the cache it belongs to: what is filled is said by the mask's ones, not by its width.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::session::{IoBinding, NoSelectedOutputs, RunOptions};
use ort::value::{DynTensor, TensorElementType};

use crate::error::{Error, Result};
use crate::runtime::gpu_buffers::Gpu;
use crate::runtime::kv_session::bind_cache;
use crate::runtime::session::Session;

/// The run option that names a recording; -1 is a run that is neither recorded nor repeated.
const RECORDING: &str = "gpu_graph_id";
const RUNNING: &str = "running the language model";

/// Options of a run, which name the recording it belongs to.
pub(in crate::runtime) struct Recording(pub(in crate::runtime) RunOptions<NoSelectedOutputs>);

impl Recording {
    /// That of a run which is not recorded, in a session that may record others.
    pub(in crate::runtime) fn none() -> Result<Self> {
        Self::numbered(-1)
    }

    fn numbered(id: i32) -> Result<Self> {
        let mut options = RunOptions::new().map_err(Error::internal("recording a step of decoding"))?;
        options.set(RECORDING, id.to_string()).map_err(Error::internal("recording a step of decoding"))?;
        Ok(Self(options))
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

/// A step of a batch in its cache.
#[derive(Debug)]
pub(in crate::runtime) struct StepGraph {
    recording: Recording,
    binding: IoBinding,
    /// `[batch, 1, hidden]`, f32.
    embeds: DynTensor,
    /// `[batch, capacity]`, i64.
    mask: DynTensor,
    /// `[batch, vocab]`.
    logits: DynTensor,
    /// Where logits of 16 bits land before they are widened; made once, as new memory costs as much as the copy.
    short: Option<Vec<f16>>,
    sizes: Sizes,
}

/// Sizes of a recorded step.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Sizes {
    pub(in crate::runtime) batch: usize,
    pub(in crate::runtime) capacity: usize,
    pub(in crate::runtime) hidden: usize,
    pub(in crate::runtime) vocab: usize,
}

impl StepGraph {
    /// Buffers for the steps of the cache whose tensors these are. The first run records; no other may have this number.
    pub(in crate::runtime) fn new(
        session: &mut Session,
        gpu: &Gpu,
        cache: &mut [DynTensor],
        sizes: Sizes,
        number: i32,
    ) -> Result<Self> {
        let Sizes { batch, capacity, hidden, vocab } = sizes;
        let is_short = session.gives_short("logits");
        let of_logits = if is_short { TensorElementType::Float16 } else { TensorElementType::Float32 };
        let buffer = |element, dims: &[usize]| {
            DynTensor::new(&gpu.allocator, element, dims).map_err(Error::internal("allocating buffers of a step"))
        };
        let embeds = buffer(TensorElementType::Float32, &[batch, 1, hidden])?;
        let mask = buffer(TensorElementType::Int64, &[batch, capacity])?;
        let mut rows = buffer(TensorElementType::Int64, &[batch])?;
        let mut logits = buffer(of_logits, &[batch, vocab])?;
        let every: Vec<i64> = (0..batch as i64).collect();
        gpu.write(&every, &mut rows)?;
        gpu.memory.wait()?;
        let failed = Error::internal("binding a step of decoding");
        let mut binding = session.ort().create_binding().map_err(failed)?;
        bind_cache(&mut binding, cache)
            .and_then(|()| binding.bind_input("inputs_embeds", &embeds))
            .and_then(|()| binding.bind_input("attention_mask", &mask))
            // The binding keeps it.
            .and_then(|()| binding.bind_input("logit_rows", &rows))
            .and_then(|()| binding.bind_output("logits", &mut logits))
            .map_err(Error::internal("binding a step of decoding"))?;
        let short = is_short.then(|| vec![f16::ZERO; batch * vocab]);
        Ok(Self { recording: Recording::numbered(number)?, binding, embeds, mask, logits, short, sizes })
    }

    /// One new position of every sequence, of which so many are filled then. Its logits `[batch, vocab]` go where they are asked to.
    pub(in crate::runtime) fn run(
        &mut self,
        session: &mut Session,
        gpu: &Gpu,
        embeds: &[f32],
        filled: &[usize],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let mut mask = vec![0i64; self.sizes.batch * self.sizes.capacity];
        for (row, &length) in mask.chunks_mut(self.sizes.capacity).zip(filled) {
            row[..length].fill(1);
        }
        gpu.write(embeds, &mut self.embeds)?;
        gpu.write(&mask, &mut self.mask)?;
        gpu.memory.wait()?;
        let outputs = session.ort().run_binding_with_options(&self.binding, &self.recording.0);
        drop(outputs.map_err(Error::internal(RUNNING))?);
        match &mut self.short {
            None => {
                logits.resize(self.sizes.batch * self.sizes.vocab, 0.0);
                gpu.read(&self.logits, logits)
            }
            Some(short) => {
                gpu.read(&self.logits, short)?;
                logits.resize(short.len(), 0.0);
                short.convert_to_f32_slice(logits);
                Ok(())
            }
        }
    }
}
