//! Keeping memory between passes.
//!
//! A pass of a model allocates and frees the same large tensors again and again. glibc gives such blocks back to the
//! system at once, and the system clears every page when it hands them out anew: a third of the time of a training
//! step, and on one virtual machine half of the time of encoding.

/// Ask the allocator to keep what is freed. Costs nothing but the memory of the largest pass, held until the end.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt is a C function")]
pub fn keep_freed_memory() {
    /// The largest threshold that glibc takes: blocks below it come from the heap.
    const MMAP_THRESHOLD: libc::c_int = 32 << 20;
    // SAFETY: mallopt changes two numbers of the allocator and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Other allocators keep freed memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() {}
