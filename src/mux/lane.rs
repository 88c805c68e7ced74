//! One outgoing link of the pair: control frames first, then the streams in turn.

use std::collections::VecDeque;

use crate::limits::{BULK_FRAME_MAX, LAT_FRAME_MAX};
use crate::wire::frame::Header;
use crate::wire::hello::Lane;

#[derive(Debug)]
pub(super) struct LaneOut<P> {
    pub(super) up: bool,
    pub(super) control: VecDeque<(Header, Option<P>)>,
    /// Slots of streams with something to send; each at most once.
    pub(super) ready: VecDeque<usize>,
}

impl<P> LaneOut<P> {
    pub(super) fn new() -> Self {
        Self { up: false, control: VecDeque::new(), ready: VecDeque::new() }
    }
}

/// The largest payload of one frame on this lane.
pub(super) fn frame_max(lane: Lane) -> usize {
    match lane {
        Lane::Lat => LAT_FRAME_MAX as usize,
        Lane::Bulk => BULK_FRAME_MAX as usize,
    }
}

/// What one stream may send before the next one has its turn. On LAT one frame; on BULK so many bytes, in however
/// many frames, so that a stream of small pieces gets the same share as one of large pieces.
pub(super) fn quantum(lane: Lane) -> usize {
    frame_max(lane)
}
