//! How the system's allocator treats what a step frees.

/// Asks glibc's allocator to keep freed memory of up to 256 MB for what comes next; for the
/// program, since the allocator belongs to the whole process. Other systems' allocators are left
/// alone.
///
/// A step frees its activations and the next one wants them again. Left to itself the allocator
/// gives pages back in between, which the kernel then has to clear anew: 3 % of a step of 14M
/// parameters. Blocks above 32 MiB still come from the system one by one, so that a phase that is
/// over leaves little behind.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two integers of the allocator, which takes its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}
