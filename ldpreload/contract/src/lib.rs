//! The bytes between libudsproxy.so and udsproxyd, and which paths they are about.
//!
//! ```text
//!   asker                                    daemon
//!     connect(SOCKET_PATH), SEQPACKET  ─────▶
//!     one record: Request + fds        ─────▶  op Connect: fd 0 = the caller's socket,
//!                                                          fd 1 = its cwd, with CWD only
//!                                              op SendTo:  as Connect
//!                                              op Adopt:   fd 0 = a connected socket
//!                                      ◀─────  one record: Verdict, then the end
//!                                              SendTo, yes: fd 0 = O_PATH of a socket, to be sent to as
//!                                                           /proc/thread-self/fd/N
//! ```
//!
//! Who asks is SO_PEERCRED of the asking socket. The socket's type and its O_NONBLOCK are not in the request: the
//! daemon holds the socket itself, and asks the kernel, which can't be lied to.
//!
//! Pure: no allocation, no system call, no panic; both ends compile these very lines.
#![cfg_attr(not(test), no_std)]

mod request;
mod route;

pub use request::{HEADER_LEN, Malformed, Op, REQUEST_MAX, Request, VERDICT_LEN, Verdict, flags};
pub use route::{NEVER, Route, Rules, below, never_remote, route};

/// Where the daemon listens unless told otherwise, and where the shim asks.
pub const SOCKET_PATH: &str = "/run/farside/uds.sock";
/// Another place to ask; ignored in set-user-ID programs, as are the other two.
pub const SOCKET_ENV: &core::ffi::CStr = c"FARSIDE_UDS_SOCKET";
/// Colon list of path prefixes that are remote: the daemon is asked before the local kernel.
pub const REMOTE_ENV: &core::ffi::CStr = c"FARSIDE_UDS_REMOTE";
/// Colon list of path prefixes: only what is below one of them may go remote.
pub const ONLY_ENV: &core::ffi::CStr = c"FARSIDE_UDS_ONLY";

/// `sizeof(sun_path)`: the longest name that an address can hold.
pub const ADDRESS_MAX: usize = 108;
/// PATH_MAX without its NUL: the longest host path that Adopt can be given.
pub const HOST_PATH_MAX: usize = 4095;
/// How long the shim waits for a verdict; then connect is ETIMEDOUT.
pub const VERDICT_WAIT_S: u32 = 5;
