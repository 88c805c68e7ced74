//! What a worker lends a pair, and a pair its ports, for one step.

use std::sync::Arc;

use super::helpers::Helpers;
use super::inbox::Inbox;
use super::node::Handler;
use crate::fdpass::Maker;
use crate::ring::{Engine, Pool};

/// What all pairs of a worker share with other threads.
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) helpers: Helpers,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) maker: Arc<Maker>,
}

pub(super) struct Ctx<'a> {
    pub(super) engine: &'a mut dyn Engine,
    pub(super) pool: &'a Pool,
    pub(super) shared: &'a Shared,
    /// When the worker's turn began, on its own clock.
    pub(super) now_us: u64,
}
