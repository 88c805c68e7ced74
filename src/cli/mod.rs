//! What was typed, and what it means.

pub mod farside;
mod node;
mod offload;
