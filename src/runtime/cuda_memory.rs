//! Copies between the processor's memory and a GPU's, and within the latter, row by row.
//!
//! ONNX Runtime allocates tensors on a GPU and copies whole ones; a KV cache needs parts of them. What does that is CUDA's
//! own runtime library, which the provider has loaded by then.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::error::{Error, Result};

/// Names of CUDA's runtime library, newest first.
const LIBRARIES: [&str; 3] = ["libcudart.so.13", "libcudart.so.12", "cudart64_13.dll"];
/// `cudaMemcpyDefault`: the driver sees from the addresses where they lie.
const BY_ADDRESS: c_int = 4;

type Copy2d = unsafe extern "C" fn(*mut c_void, usize, *const c_void, usize, usize, usize, c_int) -> c_int;
type Call = unsafe extern "C" fn() -> c_int;
type Fill = unsafe extern "C" fn(*mut c_void, c_int, usize) -> c_int;
type WithInt = unsafe extern "C" fn(c_int) -> c_int;

/// CUDA's functions that copy.
#[derive(Debug)]
pub(in crate::runtime) struct CudaMemory {
    copy: Copy2d,
    fill: Fill,
    wait: Call,
    take: WithInt,
    device: c_int,
}

/// CUDA's runtime library, loaded on the first call.
fn library(number: u32) -> Result<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    #[expect(unsafe_code, reason = "loading a library runs what it does at its start")]
    let library = LIBRARY.get_or_init(|| {
        // SAFETY: CUDA's runtime has no initialisation of its own but what every program that links it runs.
        LIBRARIES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok())
    });
    let hint = "`nunatak doctor --device cuda` lists the libraries that it needs";
    library.as_ref().ok_or_else(|| Error::Device {
        device: format!("cuda:{number}"),
        problem: format!("the library {} is missing", LIBRARIES[0]),
        hint: Some(hint.to_owned()),
    })
}

fn lacks(number: u32, error: &libloading::Error) -> Error {
    let problem = format!("CUDA's runtime library lacks a function: {error}");
    Error::Device { device: format!("cuda:{number}"), problem, hint: Some("install CUDA 12 or 13".to_owned()) }
}

/// Rows of bytes somewhere: where the first begins, and how far it is from one to the next.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Rows {
    pub(in crate::runtime) first: *mut c_void,
    pub(in crate::runtime) pitch: usize,
}

impl Rows {
    /// The same rows, so many bytes further on.
    pub(in crate::runtime) fn after(self, bytes: usize) -> Self {
        Self { first: self.first.wrapping_byte_add(bytes), ..self }
    }
}

impl CudaMemory {
    /// For the GPU of this number.
    ///
    /// # Errors
    /// [`Error::Device`] when CUDA's runtime library cannot be loaded.
    pub(in crate::runtime) fn open(number: u32) -> Result<Self> {
        let library = library(number)?;
        #[expect(unsafe_code, reason = "functions of a C library have the types that its documentation gives")]
        // SAFETY: the types are those of CUDA's documentation, the same in versions 12 and 13.
        let found = unsafe {
            (|| {
                Ok::<_, libloading::Error>((
                    *library.get::<Copy2d>(b"cudaMemcpy2D\0")?,
                    *library.get::<Fill>(b"cudaMemset\0")?,
                    *library.get::<Call>(b"cudaDeviceSynchronize\0")?,
                    *library.get::<WithInt>(b"cudaSetDevice\0")?,
                ))
            })()
        };
        let (copy, fill, wait, take) = found.map_err(|e| lacks(number, &e))?;
        Ok(Self { copy, fill, wait, take, device: c_int::try_from(number).unwrap_or(c_int::MAX) })
    }

    /// Copy `height` rows of `width` bytes.
    ///
    /// # Safety
    /// Both sides must hold that many rows, and nobody may use them meanwhile.
    #[expect(unsafe_code, reason = "raw memory of a GPU")]
    pub(in crate::runtime) unsafe fn copy(&self, to: Rows, from: Rows, width: usize, height: usize) -> Result<()> {
        if width == 0 || height == 0 {
            return Ok(());
        }
        // SAFETY: what the caller promises.
        let status = unsafe {
            (self.take)(self.device);
            (self.copy)(to.first, to.pitch, from.first.cast_const(), from.pitch, width, height, BY_ADDRESS)
        };
        self.check(status)
    }

    /// Make so many bytes 0.
    ///
    /// # Safety
    /// There must be so many, and nobody may use them meanwhile.
    #[expect(unsafe_code, reason = "raw memory of a GPU")]
    pub(in crate::runtime) unsafe fn clear(&self, first: *mut c_void, bytes: usize) -> Result<()> {
        // SAFETY: what the caller promises.
        let status = unsafe {
            (self.take)(self.device);
            (self.fill)(first, 0, bytes)
        };
        self.check(status)
    }

    /// Wait until all copies are done: ONNX Runtime's own work does not wait for them.
    #[expect(unsafe_code, reason = "a function of a C library")]
    pub(in crate::runtime) fn wait(&self) -> Result<()> {
        // SAFETY: it takes nothing and touches no memory of ours.
        self.check(unsafe { (self.wait)() })
    }

    fn check(&self, status: c_int) -> Result<()> {
        match status {
            0 => Ok(()),
            _ => Err(Error::Internal {
                doing: "copying to or from a GPU",
                message: format!("CUDA's error {status} on cuda:{}", self.device),
            }),
        }
    }
}

/// Ask CUDA to keep what is freed, as [`crate::runtime::memory`] does of the processor's memory: without it the pool that
/// tensors come from is emptied whenever the program waits for the GPU, and gigabytes are mapped anew for every step.
///
/// # Errors
/// [`Error::Device`] when CUDA's runtime library cannot be loaded or does not do it.
#[cfg(feature = "cuda")]
pub fn keep_freed_memory(number: u32) -> Result<()> {
    /// `cudaMemPoolAttrReleaseThreshold`, in bytes.
    const THRESHOLD: c_int = 4;
    type PoolOf = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
    type SetOfPool = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void) -> c_int;
    let (library, device) = (library(number)?, c_int::try_from(number).unwrap_or(c_int::MAX));
    let (mut pool, mut bytes) = (std::ptr::null_mut(), u64::MAX);
    #[expect(unsafe_code, reason = "functions of a C library")]
    // SAFETY: the types are those of CUDA's documentation; both pointers are to numbers that outlive the calls.
    let status = unsafe {
        let pool_of = library.get::<PoolOf>(b"cudaDeviceGetDefaultMemPool\0").map_err(|e| lacks(number, &e))?;
        let set = library.get::<SetOfPool>(b"cudaMemPoolSetAttribute\0").map_err(|e| lacks(number, &e))?;
        match pool_of(&raw mut pool, device) {
            0 => set(pool, THRESHOLD, (&raw mut bytes).cast()),
            error => error,
        }
    };
    if status == 0 {
        return Ok(());
    }
    let problem = format!("CUDA's error {status} when asked to keep freed memory");
    Err(Error::Device { device: format!("cuda:{number}"), problem, hint: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_the_missing_library_is_named() {
        if let Err(error) = CudaMemory::open(1) {
            assert_eq!(error.to_string(), "device cuda:1: the library libcudart.so.13 is missing");
        }
    }
}
