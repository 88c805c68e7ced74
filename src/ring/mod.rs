//! A worker's way to the kernel: operations in, completions out. The only room that names io_uring.

mod buf;
mod hangup;
mod op;
mod uring;

pub use buf::{Chunk, Filling, Pool, Size};
pub use op::{Done, Engine, Fd, Message, Op, OpId};
pub use uring::Uring;
