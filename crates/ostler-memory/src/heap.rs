//! The allocator's own memory.

/// Gives what the allocator keeps for later back to the host, after work that needed much of it once: takes a few ms.
pub fn give_back() {
    // SAFETY: it may be called at any time, on any thread. Whether there was something to give back does not matter.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
