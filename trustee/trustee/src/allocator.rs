//! The allocator's setting: few arenas, since each thread's own keeps what others could use.
#![allow(unsafe_code)]

/// Has all threads share two arenas. Without it a Trustee under load holds twice the memory.
pub fn share() {
    // SAFETY: it sets a number, before any other thread exists.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
