//! The handshake by which a new link takes over a lane whose previous link was lost.
//!
//! ```text
//!   RESUME(bytes received here) ─▶          ◀─ RESUME(bytes received there)
//!   RESUME(), then the lane's bytes ─▶      ◀─ RESUME(), then the lane's bytes
//! ```
//!
//! The lane may continue in the middle of a frame. Therefore frames before the empty RESUME have a parser of their own.

use super::links::End;
use super::track::Track;
use crate::wire::frame::{FrameType, HEADER_LEN, Header};
use crate::wire::parser::Parser;

#[derive(Default)]
pub(super) struct Resuming {
    parser: Parser,
    /// The peer's offset is known, so that this side can replay.
    heard: bool,
    /// This side has sent its empty RESUME.
    sends: bool,
    /// The peer has sent its empty RESUME.
    receives: bool,
}

impl Resuming {
    /// The parser to use until the peer's lane continues.
    pub(super) fn parser(&mut self) -> Option<&mut Parser> {
        (!self.receives).then_some(&mut self.parser)
    }

    pub(super) fn receives(&self) -> bool {
        self.receives
    }

    pub(super) fn sends(&self) -> bool {
        self.sends
    }

    /// Both directions continue; the handshake is complete.
    pub(super) fn is_over(&self) -> bool {
        self.sends && self.receives
    }

    /// The peer's RESUME.
    ///
    /// # Errors
    /// The frame is unexpected, or its count is impossible.
    pub(super) fn on_resume(&mut self, body: &[u8], track: &mut Track) -> Result<(), End> {
        match (self.heard, body.is_empty()) {
            (false, _) => {
                track.on_resume(body)?;
                self.heard = true;
            }
            (true, true) if !self.receives => self.receives = true,
            _ => return Err(End::Broken("unexpected RESUME".into())),
        }
        Ok(())
    }

    /// The empty RESUME, once, when this side may continue.
    pub(super) fn begin_to_send(&mut self) -> Option<[u8; HEADER_LEN]> {
        let begins = self.heard && !self.sends;
        self.sends = self.heard;
        begins.then(|| Header::new(FrameType::Resume, 0).encode())
    }
}
