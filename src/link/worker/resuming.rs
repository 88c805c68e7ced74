//! How a link goes on with a lane whose last link was lost.
//!
//! ```text
//!   RESUME: what has come here ─▶      ◀─ RESUME: what has come there
//!   RESUME, empty, and the lane behind it ─▶      ◀─ the same
//! ```
//!
//! The lane may go on in the middle of a frame, so what comes before it has a parser of its own.

use super::links::End;
use super::track::Track;
use crate::wire::frame::{FrameType, HEADER_LEN, Header};
use crate::wire::hello::Lane;
use crate::wire::parser::Parser;

#[derive(Default)]
pub(super) struct Resuming {
    parser: Parser,
    /// The peer has said what it has got: the lane may go on towards it.
    heard: bool,
    /// And does.
    sends: bool,
    /// The peer's lane has gone on.
    receives: bool,
}

impl Resuming {
    /// For what comes before the lane.
    pub(super) fn parser(&mut self) -> Option<&mut Parser> {
        (!self.receives).then_some(&mut self.parser)
    }

    pub(super) fn receives(&self) -> bool {
        self.receives
    }

    pub(super) fn sends(&self) -> bool {
        self.sends
    }

    /// Nothing is special about the link any more.
    pub(super) fn is_over(&self) -> bool {
        self.sends && self.receives
    }

    /// The peer's RESUME.
    ///
    /// # Errors
    /// One too many, or a count that cannot be.
    pub(super) fn on_resume(&mut self, lane: Lane, body: &[u8], track: &mut Track) -> Result<(), End> {
        match (self.heard, body.is_empty()) {
            (false, _) => {
                let again = track.on_resume(body)?;
                tracing::debug!("{lane:?} goes on; {again} bytes are said again");
                self.heard = true;
            }
            (true, true) if !self.receives => self.receives = true,
            _ => return Err(End::Broken("one RESUME too many".into())),
        }
        Ok(())
    }

    /// What is said in front of the lane, once it may go on.
    pub(super) fn begin_to_send(&mut self) -> Option<[u8; HEADER_LEN]> {
        let begins = self.heard && !self.sends;
        self.sends = self.heard;
        begins.then(|| Header::new(FrameType::Resume, 0).encode())
    }
}
