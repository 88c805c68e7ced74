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
    /// Bytes of frames handed out since the session began: where a resumed link would go on.
    pub(super) sent_bytes: u64,
    /// Bytes of frames taken in since the session began.
    pub(super) received_bytes: u64,
}

impl<P> LaneOut<P> {
    pub(super) fn new() -> Self {
        Self { up: false, control: VecDeque::new(), ready: VecDeque::new(), sent_bytes: 0, received_bytes: 0 }
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
