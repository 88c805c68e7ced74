//! The allocator's own memory: glibc's, where it is that one.

/// At most so many arenas. Without a bound every thread that allocates beside others has one, eight a core, and each
/// keeps some 300 KiB of what its threads once needed. Called before there are threads.
pub fn limit_arenas(count: usize) {
    #[cfg(target_env = "gnu")]
    {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        // SAFETY: two numbers. A no changes nothing.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives back to the kernel what is free inside the allocator: malloc_trim(3). It walks every arena under its lock, so
/// not on a worker and not often.
pub fn trim() {
    // SAFETY: no argument but a number; it may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
