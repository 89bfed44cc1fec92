//! Tensors in a GPU's memory that outlive a run, and copies to and from them.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session as OrtSession;
use ort::value::DynTensor;

use crate::error::{Error, Result};
use crate::runtime::cuda_memory::{CudaMemory, Rows};
use crate::runtime::device::Device;
use crate::runtime::session::{RuntimeOptions, memory_session};

/// Where buffers are on a GPU.
#[derive(Debug)]
pub(in crate::runtime) struct Gpu {
    pub(in crate::runtime) allocator: Allocator,
    /// What the allocator takes from.
    _memory: OrtSession,
    pub(in crate::runtime) memory: CudaMemory,
}

#[expect(unsafe_code, reason = "memory of a GPU is raw")]
impl Gpu {
    /// Memory of the GPU of this number.
    ///
    /// # Errors
    /// [`Error::Device`] when it cannot be had.
    pub(in crate::runtime) fn open(device: Device, number: u32, options: &RuntimeOptions) -> Result<Self> {
        let failed = Error::internal("allocating on a GPU");
        let id = i32::try_from(number).unwrap_or(i32::MAX);
        let info = MemoryInfo::new(AllocationDevice::CUDA, id, AllocatorType::Device, MemoryType::Default);
        let memory = memory_session(&RuntimeOptions { device, ..options.clone() })?;
        let allocator = info.and_then(|info| Allocator::new(&memory, info)).map_err(failed)?;
        Ok(Self { allocator, _memory: memory, memory: CudaMemory::open(number)? })
    }

    /// Make new tensors of so many bytes each 0. What lies behind the end of a sequence is masked, but 0 times what was left
    /// there by others may be no number.
    pub(in crate::runtime) fn clear(&self, tensors: &mut [DynTensor], bytes: usize) -> Result<()> {
        for tensor in tensors {
            // SAFETY: the tensor has just been allocated with so many bytes, and nobody uses it yet.
            unsafe { self.memory.clear(tensor.data_ptr_mut(), bytes)? };
        }
        self.memory.wait()
    }

    /// Fill a tensor on the GPU, which must be of these numbers.
    pub(in crate::runtime) fn write<T: Copy>(&self, numbers: &[T], tensor: &mut DynTensor) -> Result<()> {
        let bytes = size_of_val(numbers);
        let from = Rows { first: numbers.as_ptr().cast_mut().cast(), pitch: bytes };
        // SAFETY: the callers allocated the tensor for as many numbers of this type, and no run uses it now.
        unsafe { self.memory.copy(Rows { first: tensor.data_ptr_mut(), pitch: bytes }, from, bytes, 1) }
    }

    /// The numbers of a tensor on the GPU, which must be of this type and at least so many.
    pub(in crate::runtime) fn read<T: Copy>(&self, tensor: &DynTensor, read: &mut [T]) -> Result<()> {
        // ONNX Runtime's own stream does not wait for copies, nor they for it.
        self.memory.wait()?;
        let bytes = size_of_val(read);
        let from = Rows { first: tensor.data_ptr().cast_mut(), pitch: bytes };
        // SAFETY: the callers allocated the tensor for as many numbers of this type, and the run that wrote it has returned.
        unsafe { self.memory.copy(Rows { first: read.as_mut_ptr().cast(), pitch: bytes }, from, bytes, 1)? };
        self.memory.wait()
    }
}
