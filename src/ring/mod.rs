//! io_uring: the only room that names it.
