//! Frames that came: checked, put in order, turned into events.

use super::machine::{low32, reset_frame};
use super::recv::{self, Early};
use super::send::{SendHalf, cost};
use super::{Event, Mux, Payload, Recipes};
use crate::errno::Errno;
use crate::limits::{ACCEPT_MAX, CONTROL_QUEUE_MAX, OPEN_MAX, RECIPES_PENDING_MAX};
use crate::wire::frame::{FrameType, Header, flags};
use crate::wire::hello::Lane;
use crate::wire::{WireResult, bad};

impl<P: Payload> Mux<P> {
    /// A whole frame of any type but DATA.
    ///
    /// # Errors
    /// The peer broke the protocol; the session must end.
    pub fn on_control(&mut self, lane: Lane, header: Header, body: &[u8], now_us: u64) -> WireResult<()> {
        self.hear(lane, now_us);
        match header.kind {
            FrameType::Hello => bad!("a second HELLO"),
            FrameType::Data => unreachable!("the parser sends DATA to on_data"),
            FrameType::Ack | FrameType::Resume => bad!("{:?} where it was not agreed", header.kind),
            FrameType::Ping => self.link_frames.push_back(Header { kind: FrameType::Pong, ..header }),
            FrameType::Pong => {
                let rtt = low32(now_us).wrapping_sub(header.credit);
                self.rtt_us = u64::from(rtt);
                self.ping_at_us = None;
            }
            FrameType::GoAway => {
                self.peer_leaving = true;
                self.events.push_back(Event::GoingAway);
            }
            FrameType::Open => self.on_open(header, body)?,
            FrameType::Accept => self.on_accept(header, body)?,
            FrameType::Reset => self.on_reset(header),
            FrameType::Credit => self.on_credit(header)?,
            FrameType::Recipe | FrameType::Move | FrameType::MoveBack => {
                let payload = P::from_vec(body.to_vec());
                self.on_ordered(lane, Early { header, payload, first: true, last: true })?;
            }
        }
        if self.lanes[Lane::Lat.index()].control.len() + self.link_frames.len() > CONTROL_QUEUE_MAX {
            bad!("{CONTROL_QUEUE_MAX} control frames wait and the peer reads none");
        }
        Ok(())
    }

    /// A DATA frame or a part of one: `first` and `last` tell which part. An empty frame is one part.
    ///
    /// # Errors
    /// As `on_control`.
    pub fn on_data(
        &mut self,
        lane: Lane,
        header: Header,
        payload: P,
        (first, last): (bool, bool),
        now_us: u64,
    ) -> WireResult<()> {
        self.hear(lane, now_us);
        let Some(slot) = self.known(header.stream)? else { return Ok(()) };
        let stream = &mut self.streams[slot];
        if first {
            stream.recv.charge(&header)?;
            self.note_credit(slot, header.credit);
        }
        self.on_ordered(lane, Early { header, payload, first, last })
    }

    /// BULK's life says nothing of LAT's, on which everything waits.
    fn hear(&mut self, lane: Lane, now_us: u64) {
        if lane == Lane::Lat {
            self.heard_us = now_us;
        }
    }

    fn on_open(&mut self, header: Header, body: &[u8]) -> WireResult<()> {
        let id = header.stream;
        if self.is_ours(id) || self.by_id.contains_key(&id) {
            bad!("OPEN of stream {id}, which is not the peer's to open");
        }
        if body.len() > OPEN_MAX as usize {
            bad!("OPEN with {} bytes", body.len());
        }
        self.saw(id);
        if self.leaving || self.is_full() {
            let errno = if self.leaving { Errno::ECONNABORTED } else { Errno::EMFILE };
            self.queue_control(reset_frame(id, errno), None);
            return Ok(());
        }
        let key = self.insert(id, SendHalf::new(true, header.credit), self.options.window);
        self.events.push_back(Event::Incoming { key, service: header.aux, request: body.to_vec() });
        Ok(())
    }

    fn on_accept(&mut self, header: Header, body: &[u8]) -> WireResult<()> {
        if body.len() > ACCEPT_MAX as usize {
            bad!("ACCEPT with {} bytes", body.len());
        }
        let ours = self.is_ours(header.stream);
        let Some(slot) = self.known(header.stream)? else {
            if ours {
                // Dropped here before the peer took it up: it must not keep its end.
                self.queue_control(reset_frame(header.stream, Errno::ECONNRESET), None);
            }
            return Ok(());
        };
        let key = self.key_at(slot);
        let stream = &mut self.streams[slot];
        if !ours || std::mem::replace(&mut stream.accepted, true) {
            bad!("ACCEPT for stream {}, which waits for none", header.stream);
        }
        stream.send.on_accept();
        if stream.recv.is_wide && !std::mem::replace(&mut stream.recv.credit_due, true) {
            self.credit_due.push_back(slot);
        }
        self.events.push_back(Event::Accepted { key, said: body.to_vec() });
        self.note_credit(slot, header.credit);
        self.schedule(slot);
        Ok(())
    }

    fn on_reset(&mut self, header: Header) {
        let Some(&slot) = self.by_id.get(&header.stream) else {
            return self.events.push_back(Event::Unheard { id: header.stream });
        };
        let key = self.key_at(slot);
        self.remove(slot);
        self.events.push_back(Event::Reset { key, errno: reset_errno(header.aux) });
    }

    fn on_credit(&mut self, header: Header) -> WireResult<()> {
        let read_closed = header.flags & flags::READ_CLOSED != 0;
        let id = header.stream;
        let Some(slot) = self.known(id)? else {
            if read_closed {
                self.events.push_back(Event::Unheard { id });
            }
            return Ok(());
        };
        self.note_credit(slot, header.credit);
        if read_closed {
            let key = self.key_at(slot);
            let stream = &mut self.streams[slot];
            if stream.send.is_done() {
                self.events.push_back(Event::Unheard { id });
            } else {
                stream.send.stop();
                let unread = header.flags & flags::UNREAD != 0;
                self.events.push_back(Event::ReadClosed { key, unread });
            }
            self.bury_if_done(slot);
        }
        Ok(())
    }

    fn note_credit(&mut self, slot: usize, credit: u32) {
        let stream = &mut self.streams[slot];
        stream.send.on_credit(credit);
        if stream.send.take_starved() {
            let key = self.key_at(slot);
            self.events.push_back(Event::MayRead { key });
        }
    }

    /// A frame whose place in the stream's order matters: deliver it, or keep it until the other lane is through.
    fn on_ordered(&mut self, lane: Lane, frame: Early<P>) -> WireResult<()> {
        let Some(slot) = self.known(frame.header.stream)? else { return Ok(()) };
        if self.streams[slot].recv.state != recv::State::Open {
            return Ok(());
        }
        // Counted where it waits: here until the other lane is through, then until its message has come.
        let recipe = frame.recipe_len();
        if self.recipes_pending + recipe > RECIPES_PENDING_MAX {
            self.fail(self.key_at(slot), Errno::ENOBUFS);
            return Ok(());
        }
        self.recipes_pending += recipe;
        if !self.streams[slot].recv.in_order(lane) {
            let recv = &mut self.streams[slot].recv;
            let before = recv.early_records();
            recv.keep(frame)?;
            self.early_records += recv.early_records() - before;
            return Ok(());
        }
        self.deliver(slot, frame)?;
        // What was early comes from the other lane; it is in order as soon as that lane is.
        while let Some(stream) = self.streams.get_mut(slot)
            && stream.recv.state == recv::State::Open
            && !stream.recv.in_order(lane)
            && let before = stream.recv.early_records()
            && let Some(frame) = stream.recv.take_early()
        {
            self.early_records -= before - stream.recv.early_records();
            self.deliver(slot, frame)?;
        }
        Ok(())
    }

    fn deliver(&mut self, slot: usize, frame: Early<P>) -> WireResult<()> {
        let Early { header, payload, first, last } = frame;
        let key = self.key_at(slot);
        let stream = &mut self.streams[slot];
        match header.kind {
            FrameType::Move | FrameType::MoveBack => return stream.recv.on_move(header.kind),
            FrameType::Recipe => return stream.recv.on_recipe(&header, payload.as_ref()),
            _ => {}
        }
        let recipes = if first && header.flags & flags::HAS_FDS != 0 {
            let taken = stream.recv.take_recipes(usize::from(header.aux))?;
            self.recipes_pending -= taken.bytes.len();
            Some(taken)
        } else {
            None
        };
        let stream = &mut self.streams[slot];
        let record_end = last && header.flags & flags::EOR != 0;
        let overhead = cost(0, record_end, recipes.as_ref().map_or(0, Recipes::count));
        if !payload.is_empty() || record_end || recipes.is_some() {
            self.events.push_back(Event::Data { key, payload, record_end, recipes, overhead });
        }
        if last && header.flags & flags::FIN != 0 {
            stream.recv.state = recv::State::Ended;
            self.events.push_back(Event::Fin { key });
            self.bury_if_done(slot);
        }
        Ok(())
    }
}

/// A reset's errno. 0 and numbers that no errno has would read as success somewhere: they are a reset all the same.
fn reset_errno(aux: u16) -> Errno {
    match Errno::from_raw(i32::from(aux)) {
        Errno::UnknownErrno => Errno::ECONNRESET,
        errno => errno,
    }
}
