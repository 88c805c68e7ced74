//! What is to be done for a stream.

use super::kind::{Kind, Reads};
use super::source::SourceAction;
use super::{Action, ForcedReset, Hangup, Stream};
use crate::mux::{Mux, Payload};

impl<P: Payload> Stream<P> {
    /// The next thing to be done, until there is none. `choked`: no fds may be taken. `speaks`: what is written goes out
    /// under its sender's name.
    pub fn poll(&mut self, mux: &Mux<P>, choked: bool, speaks: bool) -> Option<Action<P>> {
        if let Some(kind) = self.kind
            && let Some(action) = self.poll_source(kind, mux, choked)
        {
            return Some(Action::Source(action));
        }
        if self.reset == ForcedReset::AfterRead && !self.source.is_in_flight() {
            self.reset = ForcedReset::Working;
            return Some(Action::ForceReset);
        }
        let key = self.key;
        if let Some(action) = self.sink.poll(self.kind, |count| mux.tells_of(key, count), speaks) {
            return Some(Action::Sink(action));
        }
        self.poll_close().or_else(|| self.poll_hangup())
    }

    fn poll_source(&mut self, kind: Kind, mux: &Mux<P>, choked: bool) -> Option<SourceAction> {
        let room = match kind.row().reads {
            Reads::Clients => u32::from(mux.is_open(self.key)),
            _ => mux.room(self.key),
        };
        match self.source.poll(kind, room, choked)? {
            SourceAction::ShutReads if !kind.is_socket() || self.shared => None,
            action => Some(action),
        }
    }

    /// After FIN, when all is written: the program sees the end.
    fn poll_close(&mut self) -> Option<Action<P>> {
        use ForcedReset::{AfterHelper, AfterRead, Working};
        if !self.sink.is_done() || matches!(self.reset, AfterHelper | AfterRead | Working) {
            return None;
        }
        self.sink.close(None);
        if self.kind == Some(Kind::Fill) {
            return Some(Action::FinishFill);
        }
        // When both directions have ended over there, it was a close: other holders of a shared socket must not feel it.
        let ended = self.source.is_ended();
        let closes = self.reset == ForcedReset::Done || (ended && self.shared);
        if self.is(Kind::is_socket) && !closes {
            // One that nobody else holds is shut down by its close; a helper that takes fds out of it holds another number
            // of it.
            return Some(Action::ShutWrites { unless_alone: ended && !self.source.has_seen_fds() });
        }
        self.poll_closed()
    }

    /// The sink has just been closed.
    fn poll_closed(&mut self) -> Option<Action<P>> {
        self.sink.poll(self.kind, |_| true, false).map(Action::Sink)
    }

    fn poll_hangup(&mut self) -> Option<Action<P>> {
        match self.hangup {
            Hangup::Wanted if self.sink.is_closed() => {
                self.hangup = Hangup::Off;
                None
            }
            Hangup::Wanted => {
                self.hangup = Hangup::Watching;
                Some(Action::WatchHangup)
            }
            Hangup::Watching if self.sink.is_closed() => {
                self.hangup = Hangup::Cancelled;
                Some(Action::CancelHangup)
            }
            _ => None,
        }
    }
}
