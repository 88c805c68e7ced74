//! What a program without std needs so that it links, in a build that aborts and in one that unwinds. Also of
//! rexec-supervisor.

// A dev build unwinds, which on stable Rust only std can. It shows that the code compiles; what is installed is a release
// build, and nothing here uses std.
#[cfg(panic = "unwind")]
extern crate std;

/// Never reached: the release build of the shim has no panic path, and a test reads that `abort` is not imported; the
/// daemon of a supervisor sees its socket's end.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}

// The prebuilt core names the routine that would unwind it. Nothing here unwinds, so it is a name and nothing behind it;
// hidden, because a program's own Rust must not find the shim's.
#[cfg(panic = "abort")]
core::arch::global_asm!(
    ".pushsection .rodata",
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    ".quad 0",
    ".popsection",
);
