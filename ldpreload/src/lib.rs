#![no_std]
//! libudsproxy.so: unix sockets that reach the other machine, in programs that know nothing of it.
//!
//! ```text
//!   the program ── connect, sendto, sendmsg, sendmmsg ──▶ hooks ──▶ real (the next definition: libc's)
//!                                │ ENOENT, ECONNREFUSED on AF_UNIX
//!                                ▼
//!                               ask ──▶ udsproxyd, which connects the program's own socket
//! ```
//!
//! This code runs in other people's processes: in signal handlers, between vfork and exec, on 2 KiB stacks, in threads
//! that are being cancelled. So it takes no lock, allocates nothing, has no panic path, uses raw system calls (libc's
//! wrappers are cancellation points, and a cancelled thread must not leave an fd behind), leaves errno as a plain
//! `connect` would, and exports nothing but what it interposes. When anything at all is missing, the local kernel's
//! answer stands.

// A dev build unwinds, which on stable Rust only std can. It shows that the code compiles; what is installed, and what
// the tests load, is the release build.
#[cfg(panic = "unwind")]
extern crate std;

mod ask;
mod hooks;
mod kernel;
mod real;
mod settings;

/// Never reached: the release build has no panic path, and a test reads that `abort` is not imported.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}

// The prebuilt core names the routine that would unwind it. Nothing here unwinds, so it is a name and nothing behind it;
// hidden, because a program's own Rust must not find it.
#[cfg(panic = "abort")]
core::arch::global_asm!(
    ".pushsection .rodata",
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    ".quad 0",
    ".popsection",
);
