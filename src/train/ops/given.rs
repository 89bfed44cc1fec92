//! A result that candle's operations have already given, with a gradient composed by hand.
//!
//! On a GPU the operations of this folder are candle's, kernel by kernel. Left to candle, their gradients would keep every
//! intermediate result, and compute what nobody wants: a product's gradient for a weight that is frozen, for one.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor};

/// `value`, computed from `x` without candle's knowledge; `gradient` makes the gradient of `x` from that of `value`.
pub(super) fn with_gradient(
    x: &Tensor,
    value: Tensor,
    gradient: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Given { value: Mutex::new(Some(value)), gradient })
}

/// The same of two inputs.
pub(super) fn with_gradients(
    x: &Tensor,
    y: &Tensor,
    value: Tensor,
    gradient: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op2(y, Given { value: Mutex::new(Some(value)), gradient })
}

struct Given<F> {
    /// Given away on the way forward, so that it is not held twice.
    value: Mutex<Option<Tensor>>,
    gradient: F,
}

impl<F> Given<F> {
    fn take<S>(&self, copy: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(value) = value else { candle_core::bail!("a result that was given before") };
        let value = value.contiguous()?;
        let (storage, layout) = value.storage_and_layout();
        Ok((copy(&storage, layout)?, value.shape().clone()))
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => candle_core::bail!("the result of an operation on the CPU lies elsewhere"),
        })
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => candle_core::bail!("the result of an operation on a GPU lies elsewhere"),
        })
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for Given<F> {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.gradient)(&gradient.detach()).map(Some)
    }
}

impl<F: Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync> CustomOp2 for Given<F> {
    fn name(&self) -> &'static str {
        "given-of-two"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, y) = (self.gradient)(&gradient.detach())?;
        Ok((Some(x), Some(y)))
    }
}
