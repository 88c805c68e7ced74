//! A worker's way to the kernel: operations in, completions out. The only room that names io_uring.
//!
//! ```text
//!                    ┌── uring: a ring; `Features` says what of Linux 6.1 is missing ── watches: the ring's own epoll
//!   probe: Wish ──▶ Engine                                                        └──┐
//!                    └── epoll: readiness ───────────────────────────────────── calls: one that never waits
//! ```

mod buf;
mod calls;
mod envelope;
mod epoll;
#[cfg(test)]
pub(crate) mod faulty;
mod op;
mod pages;
mod probe;
#[cfg(test)]
mod quiet_tests;
mod slots;
#[cfg(test)]
mod tests;
mod uring;
mod watches;

pub use buf::{Chunk, Filling, Pool, Size};
pub use op::{Done, Engine, Fd, Message, Op, OpId};
pub use probe::{Opened, WISH_ENV, Wish, open};
