//! The bytes between a daemon and the supervisor of one command.
//!
//! ```text
//!   daemon                                        rexec-supervisor
//!     sealed memfd: Plan                  ─────▶  fd 1, mapped and closed
//!     SOCK_SEQPACKET, a record at a time  ─────▶  fd 0: Order
//!                                         ◀─────        Report
//!     the command's fds                   ─────▶  at the numbers that the plan names
//! ```
//!
//! Both ends run on one machine and are of one build, so numbers are in the machine's own byte order. The reader checks
//! every byte all the same: the supervisor runs as root, and a program of another version may be installed beside it.
//!
//! Pure: no allocation, no system call, no panic; both ends compile these very lines.
#![cfg_attr(not(test), no_std)]

mod digits;
mod lists;
mod message;
mod plan;

pub use digits::{PID_DIGITS, write_pid};
pub use lists::{Fds, Strings};
pub use message::{Order, RECORD_LEN, Report, Step};
pub use plan::{Capabilities, Fixed, Identity, LIMITS, Lists, PROCESSOR_WORDS, Plan};

/// The program's file name. It is installed in the directory of the daemons.
pub const PROGRAM: &str = "rexec-supervisor";
/// What the supervisor has at these numbers when it starts.
pub const SOCKET_FD: i32 = 0;
pub const PLAN_FD: i32 = 1;
/// Below it no fd of the command comes: the daemon's standard fds were there.
pub const FIRST_FD: i32 = 3;

/// Bytes that no daemon or supervisor of this version sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;
