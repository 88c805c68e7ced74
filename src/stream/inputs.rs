//! What a stream is told.

use super::kind::{Kind, WhenDeaf};
use super::pieces::Arrival;
use super::sink::Progress;
use super::source::Parting;
use super::{ForcedReset, Hangup, Stream};
use crate::errno::Errno;
use crate::mux::Payload;

impl<P: Payload> Stream<P> {
    // ---- by the mux ----------------------------------------------------------------------------------------------

    /// The peer's yes.
    pub fn on_accepted(&mut self) {
        self.source.on_accepted();
    }

    /// A fragment for the local end, which must not be deaf.
    ///
    /// # Errors
    /// EMSGSIZE: a record longer than any may be. EPROTO: fds for something that is no socket, bytes for a listener.
    pub fn on_data(&mut self, arrival: Arrival<P>) -> Result<(), Errno> {
        self.used = true;
        self.sink.take_in(self.kind, arrival)
    }

    /// The peer sends no more.
    pub fn on_fin(&mut self) {
        self.sink.on_fin();
    }

    /// The peer's program does not read what this source gives. If it closed with something unread, this program's next
    /// read must say ECONNRESET, as a local socket's would.
    pub fn on_read_closed(&mut self, unread: bool) {
        let ours = self.is(Kind::is_socket) && !self.shared;
        if unread && ours && !self.source.is_ended() {
            let helped = self.source.is_with_helper();
            self.reset = if helped { ForcedReset::AfterHelper } else { ForcedReset::AfterRead };
            return self.source.end(Parting::Nothing);
        }
        self.source.end(Parting::ShutReads);
    }

    /// There is room for what was to be read.
    pub fn on_room(&mut self) {
        self.source.on_room();
    }

    // ---- by the driver -------------------------------------------------------------------------------------------

    /// The source's operation is over. `false`: nobody wants what it brought.
    pub fn on_source_done(&mut self) -> bool {
        self.source.on_done()
    }

    pub fn on_ready(&mut self) {
        self.source.on_ready();
    }

    /// Nothing was there to be read, or the operation was cancelled.
    pub fn on_nothing(&mut self) {
        self.source.on_nothing();
    }

    /// A peek found nothing where there is something.
    pub fn on_unseen(&mut self) {
        self.source.on_unseen();
    }

    /// A peek saw so many bytes, and no fds.
    pub fn on_seen(&mut self, count: u32) {
        self.source.on_seen(count);
    }

    /// The next record is so long.
    pub fn on_measured(&mut self, len: u32) {
        self.source.on_measured(len);
    }

    /// A read of at most `max` brought `count` bytes, which the mux has got. `filled`: its buffer has no room left.
    pub fn on_bytes(&mut self, count: usize, max: usize, filled: bool) {
        self.used = true;
        self.source.on_bytes(count, max, filled);
    }

    /// There are fds in the next message, or came with it: a helper is at it, and `on_brought` follows.
    pub fn on_fds(&mut self) {
        self.source.on_fds();
    }

    /// A client came, or a helper has brought what the source waited for.
    pub fn on_brought(&mut self) {
        self.used = true;
        self.source.on_brought();
    }

    /// No fd was to be had for a client.
    pub fn on_want_of_fds(&mut self) {
        self.source.on_want_of_fds();
    }

    /// A read of records said that their program closed with something unread. `false`: it has said so before.
    pub fn on_reset_records(&mut self) -> bool {
        self.source.on_reset_records()
    }

    /// Something is left to be read, of a source that is to finish.
    pub fn on_left(&mut self) {
        self.source.on_left();
    }

    /// The source has ended. `unread`: its program left something unread. `gone`: it is gone altogether, not only half
    /// of it.
    pub fn on_eof(&mut self, unread: bool, gone: bool) {
        let unread = unread || self.source.was_reset();
        // A master reads its end when nobody has the slave open: nothing can be written to it either.
        let hung_up = self.kind == Some(Kind::Master) || unread || gone;
        let finishes = self.source.is_finishing() && self.is(Kind::is_socket);
        self.source.end(Parting::SayEof);
        if hung_up || finishes {
            self.sink.close(Some(unread));
        } else if self.is(Kind::is_socket) && !self.sink.is_closed() && self.hangup == Hangup::Off {
            self.hangup = Hangup::Wanted;
        }
    }

    /// What `WatchHangup` waited for has come, or was cancelled. `true`: the program is gone, `on_hung_up` is to follow.
    pub fn on_hangup_done(&mut self, gone: bool) -> bool {
        assert!(matches!(self.hangup, Hangup::Watching | Hangup::Cancelled), "one completion for each wait");
        self.hangup = Hangup::Off;
        gone && !self.sink.is_closed()
    }

    /// A program that had ended its half is gone. `unread`: it left something unread.
    pub fn on_hung_up(&mut self, unread: bool) {
        self.sink.close(Some(unread));
    }

    /// Bytes were written. Returns how much left, with the charges, if anybody still counts.
    pub fn on_written(&mut self, count: u32, progress: Progress) -> Option<u32> {
        self.sink.on_written(count, progress)
    }

    /// A helper has written to the file.
    pub fn on_file_written(&mut self) -> Option<u32> {
        self.sink.on_file_written()
    }

    /// A write failed. `false`: nobody asks any more.
    pub fn on_write_failed(&mut self) -> bool {
        self.sink.on_failed()
    }

    /// Nobody takes what comes. `gone`: the program is gone altogether, and a read in flight is about to tell how.
    ///
    /// # Errors
    /// The stream is to be reset.
    pub fn on_deaf(&mut self, errno: Errno, gone: impl FnOnce() -> bool) -> Result<(), Errno> {
        if self.is(|kind| kind.row().when_deaf == WhenDeaf::Reset) {
            return Err(errno);
        }
        let says = if self.source.is_reading() && gone() { None } else { Some(false) };
        self.sink.close(says);
        Ok(())
    }

    /// A helper has made the fds of the message in front. `fills`: so much memory must be whole first. `false`: nobody
    /// wants them any more.
    pub fn on_made(&mut self, fills: u32) -> bool {
        self.sink.on_made(fills)
    }

    /// Whether a helper makes fds, and they are wanted.
    pub fn awaits_fds(&self) -> bool {
        self.sink.is_rebuilding()
    }

    /// Memory that the message in front names is whole.
    pub fn on_filled(&mut self) {
        self.sink.on_filled();
    }

    /// The helper that looked for fds is through. `true`: only that was waited for.
    pub fn on_helper_done(&mut self) -> bool {
        let waited = self.reset == ForcedReset::AfterHelper;
        if waited {
            self.reset = ForcedReset::AfterRead;
        }
        waited
    }

    /// What could be done to make the close a reset has been done.
    pub fn on_reset_forced(&mut self) {
        if self.reset == ForcedReset::Working {
            self.reset = ForcedReset::Done;
            self.source.end(Parting::ShutReads);
        }
    }

    /// Read what is there, then end, whoever still holds the other end.
    pub fn finish(&mut self) {
        self.source.finish();
    }

    /// Both directions end at once.
    pub fn abort(&mut self) {
        self.aborted = true;
        self.source.end(Parting::Nothing);
        self.sink.close(None);
    }

    /// Returns whether something is to be done.
    pub fn tick(&mut self) -> bool {
        self.kind.is_some_and(|kind| self.source.tick(kind))
    }
}
