//! What a worker lends a pair, and a pair its ports, for one step.

use std::sync::Arc;

use super::helpers::Helpers;
use super::inbox::Inbox;
use super::peer::Handler;
use crate::fdpass::Maker;
use crate::ring::{Engine, Pool};

/// What all pairs of a worker share with other threads.
pub(in crate::link) struct Shared {
    pub(in crate::link) inbox: Arc<Inbox>,
    pub(in crate::link) helpers: Helpers,
    pub(in crate::link) handler: Arc<dyn Handler>,
    pub(in crate::link) maker: Arc<Maker>,
    /// How long a session without links waits for others.
    pub(in crate::link) grace_us: u64,
}

pub(in crate::link) struct Ctx<'a> {
    pub(in crate::link) engine: &'a mut dyn Engine,
    pub(in crate::link) pool: &'a Pool,
    pub(in crate::link) shared: &'a Shared,
    /// When the worker's turn began, on its own clock.
    pub(in crate::link) now_us: u64,
}
