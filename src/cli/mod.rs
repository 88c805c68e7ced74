//! What was typed, and what it means.

pub mod mount;
