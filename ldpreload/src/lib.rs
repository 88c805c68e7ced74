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

mod ask;
mod hooks;
mod kernel;
mod no_unwind;
mod real;
mod settings;
