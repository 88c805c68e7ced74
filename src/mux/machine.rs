//! The streams of one link pair: frames in, frames out, events for the driver.
//!
//! ```text
//!            open ──OPEN──▶           announce (its recipe travels in another stream)
//!   opener:  Opening ──ACCEPT──▶ Open ◀──ACCEPT── Announced        both halves done ──▶ gone
//!   acceptor: Incoming ──accept()──▶ Open ◀──adopt()+accept()      RESET, either way ──▶ gone
//! ```
//!
//! DATA may follow OPEN at once; on an announced stream the opener waits for ACCEPT, because its recipe and its data
//! might take different links. A frame for a stream that is gone is dropped: the two ends forget at different times.

use std::collections::{HashMap, VecDeque};

use nix::errno::Errno;
use slab::Slab;

use super::lane::{LaneOut, frame_max, quantum};
use super::recv::{self, RecvHalf};
use super::send::{Piece, SendHalf, Turn};
use super::types::{Event, Key, Options, Recipes};
use super::{Batch, Payload, reaches};
use crate::limits::{ACCEPT_MAX, DEAD_AFTER_MS, OPEN_MAX, PING_AFTER_MS, RECORD_STREAMS_MAX, STREAMS_MAX};
use crate::slack;
use crate::wire::features::Agreed;
use crate::wire::frame::{FrameType, Header, flags};
use crate::wire::hello::Lane;
use crate::wire::{ProtocolError, WireResult, bad};

#[derive(Debug)]
pub(super) struct Stream<P> {
    pub(super) id: u32,
    /// How many streams were before it, here; never given again.
    pub(super) birth: u64,
    pub(super) send: SendHalf<P>,
    pub(super) recv: RecvHalf<P>,
    /// The verdict, given or received.
    pub(super) accepted: bool,
}

#[derive(Debug)]
pub struct Mux<P> {
    pub(super) options: Options,
    pub(super) next_id: u32,
    births: u64,
    /// Streams that were widened.
    wide: usize,
    pub(super) peer_highest: Option<u32>,
    pub(super) streams: Slab<Stream<P>>,
    pub(super) by_id: HashMap<u32, usize>,
    pub(super) lanes: [LaneOut<P>; 2],
    pub(super) credit_due: VecDeque<usize>,
    pub(super) events: VecDeque<Event<P>>,
    /// About the LAT link; they leave before all else.
    pub(super) link_frames: VecDeque<Header>,
    pub(super) growth: u64,
    pub(super) recipes_pending: usize,
    /// Bytes of record streams' frames that came before their turn.
    pub(super) early_records: u64,
    pub(super) leaving: bool,
    pub(super) peer_leaving: bool,
    pub(super) heard_us: u64,
    /// Its silence up to then is excused.
    excused_us: Option<u64>,
    pub(super) ping_at_us: Option<u64>,
    pub(super) rtt_us: u64,
}

impl<P: Payload> Mux<P> {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            next_id: u32::from(options.dialer),
            births: 0,
            wide: 0,
            peer_highest: None,
            streams: Slab::new(),
            by_id: HashMap::new(),
            lanes: [LaneOut::new(), LaneOut::new()],
            credit_due: VecDeque::new(),
            events: VecDeque::new(),
            link_frames: VecDeque::new(),
            growth: 0,
            recipes_pending: 0,
            early_records: 0,
            leaving: false,
            peer_leaving: false,
            heard_us: options.now_us,
            excused_us: None,
            ping_at_us: None,
            rtt_us: 0,
        }
    }

    pub fn on_link_up(&mut self, lane: Lane) {
        self.lanes[lane.index()].up = true;
    }

    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// What the two nodes agreed on.
    pub fn agreed(&self) -> Agreed {
        self.options.agreed
    }

    // ---- what the driver asks for --------------------------------------------------------------------------------

    /// Opens a stream to the peer's `service`.
    ///
    /// # Errors
    /// EMFILE at the limit of streams, EAGAIN when as many wait to be said, ECONNABORTED when either side is leaving, EMSGSIZE for a request above OPEN_MAX.
    pub fn open(&mut self, service: u16, request: Vec<u8>, window: u32) -> Result<Key, Errno> {
        if request.len() > OPEN_MAX as usize {
            return Err(Errno::EMSGSIZE);
        }
        // While no link takes them: the other half of the queue is for the ends of those that are there.
        if self.lanes[Lane::Lat.index()].control.len() >= STREAMS_MAX {
            return Err(Errno::EAGAIN);
        }
        let key = self.birth(window, false)?;
        let header = Header { aux: service, credit: window, ..Header::new(FrameType::Open, key.id) };
        self.queue_control(header, Some(P::from_vec(request)));
        Ok(key)
    }

    /// A stream that a recipe will mention; nothing is sent on it before the peer's `accept`.
    ///
    /// # Errors
    /// As `open`.
    pub fn announce(&mut self, window: u32) -> Result<Key, Errno> {
        let key = self.birth(self.options.window, true)?;
        if self.widen(key, window) {
            return Ok(key);
        }
        self.remove(key.slot());
        Err(Errno::ENOBUFS)
    }

    fn birth(&mut self, window: u32, held: bool) -> Result<Key, Errno> {
        if self.leaving || self.peer_leaving {
            return Err(Errno::ECONNABORTED);
        }
        if self.is_full() {
            return Err(Errno::EMFILE);
        }
        while self.by_id.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(2);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(2);
        let limit = if held { 0 } else { self.options.peer_window };
        Ok(self.insert(id, SendHalf::new(held, limit), window))
    }

    pub(super) fn insert(&mut self, id: u32, send: SendHalf<P>, window: u32) -> Key {
        let slot =
            self.streams.insert(Stream { id, birth: self.births, send, recv: RecvHalf::new(window), accepted: false });
        self.births += 1;
        self.by_id.insert(id, slot);
        self.key_at(slot)
    }

    /// Whether there is no room for another stream.
    pub fn is_full(&self) -> bool {
        self.streams.len() >= STREAMS_MAX
    }

    /// Takes up a stream that the peer announced by a recipe; then `accept` or `reset` it.
    ///
    /// # Errors
    /// A number that cannot be the peer's, or is in use.
    ///
    /// # Panics
    /// If it `is_full`.
    pub fn adopt(&mut self, id: u32, window: u32) -> WireResult<Key> {
        if self.is_ours(id) || self.by_id.contains_key(&id) {
            bad!("a recipe announces stream {id}, which it may not");
        }
        assert!(!self.is_full(), "whoever adopts has looked");
        self.saw(id);
        // The announcer has granted a new stream's window, as for an OPEN, and need not say so.
        Ok(self.insert(id, SendHalf::new(true, self.options.peer_window), window))
    }

    /// Says yes to an incoming or adopted stream, and what its service says with that, ACCEPT_MAX bytes at most.
    pub fn accept(&mut self, key: Key, window: u32, said: Vec<u8>) {
        assert!(said.len() <= ACCEPT_MAX as usize, "{} bytes with a yes", said.len());
        let Some(stream) = self.stream(key) else { return };
        assert!(!stream.accepted, "one verdict a stream");
        stream.accepted = true;
        stream.send.on_accept();
        let grant = stream.recv.widen(window);
        let said = (!said.is_empty()).then(|| P::from_vec(said));
        self.queue_control(Header { credit: grant, ..Header::new(FrameType::Accept, key.id) }, said);
        self.schedule(key.slot());
    }

    /// Whether the peer waits for our verdict on this stream.
    pub fn waits_for_us(&self, key: Key) -> bool {
        !self.is_ours(key.id) && self.look(key).is_some_and(|s| !s.accepted)
    }

    /// Whether we wait for the peer's verdict on this stream.
    pub fn waits_for_peer(&self, key: Key) -> bool {
        self.is_ours(key.id) && self.look(key).is_some_and(|s| !s.accepted)
    }

    /// Whether the verdict has been given or received.
    pub fn is_open(&self, key: Key) -> bool {
        self.look(key).is_some_and(|s| s.accepted)
    }

    /// Ends the stream now, both ways; also the verdict no.
    pub fn reset(&mut self, key: Key, errno: Errno) {
        if self.stream(key).is_some() {
            self.remove(key.slot());
            self.queue_control(reset_frame(key.id, errno), None);
        }
    }

    /// Bytes of record streams that wait for the other lane: of all, and of one.
    pub fn early_records(&self) -> u64 {
        self.early_records
    }

    pub fn early_records_of(&self, key: Key) -> u64 {
        self.look(key).map_or(0, |s| s.recv.early_records())
    }

    /// How many bytes the source may give now.
    pub fn room(&self, key: Key) -> u32 {
        self.look(key).map_or(0, |s| s.send.room())
    }

    /// Asks for `MayRead` once there is room for `need` bytes.
    pub fn wait_for_room(&mut self, key: Key, need: u32) {
        if let Some(s) = self.stream(key) {
            s.send.wait_for_room(need);
        }
    }

    /// Lets the peer send more than a new stream's window: what comes here must be whole before it can be consumed.
    /// `false`: RECORD_STREAMS_MAX streams have that already.
    pub fn widen(&mut self, key: Key, window: u32) -> bool {
        let (usual, wide) = (self.options.window, self.wide);
        let Some(stream) = self.stream(key) else { return true };
        if window <= usual || stream.recv.is_wide {
            return true;
        }
        if wide >= RECORD_STREAMS_MAX {
            return false;
        }
        stream.recv.is_wide = true;
        stream.recv.widen(window);
        let early = stream.recv.early_records();
        // Before the verdict the peer may not know the stream; ACCEPT, or what follows it, tells it then.
        if stream.accepted && stream.recv.state == recv::State::Open && !stream.recv.credit_due {
            stream.recv.credit_due = true;
            self.credit_due.push_back(key.slot());
        }
        self.early_records += early;
        self.wide += 1;
        true
    }

    /// The stream of this number, if there is one.
    pub fn find(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).map(|&slot| self.key_at(slot))
    }

    /// Says no to a stream that the peer announced by a recipe which nobody will follow.
    pub fn refuse(&mut self, id: u32, errno: Errno) {
        if !self.is_ours(id) && !self.by_id.contains_key(&id) {
            self.saw(id);
            self.queue_control(reset_frame(id, errno), None);
        }
    }

    /// The source gave bytes (at most `room`), or a whole record, or fds with them.
    pub fn on_read(&mut self, key: Key, payload: P, record_end: bool, recipes: Option<Recipes>, now_us: u64) {
        let bulk_up = self.lanes[Lane::Bulk.index()].up;
        let Some(stream) = self.stream(key) else { return };
        if stream.send.is_done() {
            return;
        }
        stream.send.on_read(Piece { payload, record_end, recipes }, bulk_up, now_us);
        self.schedule(key.slot());
    }

    /// The source has ended.
    pub fn on_eof(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.send.on_eof();
            self.schedule(key.slot());
        }
    }

    /// The sink took `count` of what `Event::Data` brought.
    pub fn on_consumed(&mut self, key: Key, count: u32, now_us: u64) {
        let (rtt_us, mut growth) = (self.rtt_us, self.growth);
        let Some(stream) = self.stream(key) else { return };
        let open = stream.recv.state == recv::State::Open;
        let was_due = stream.recv.credit_due;
        let due = stream.recv.on_consumed(count, &mut growth, rtt_us, now_us);
        self.growth = growth;
        if open && due && !was_due {
            self.credit_due.push_back(key.slot());
        }
    }

    /// Whether the peer is to hear something once the sink has taken `count` more.
    pub fn tells_of(&self, key: Key, count: u32) -> bool {
        self.look(key).is_none_or(|s| s.recv.is_due_after(count))
    }

    /// The sink takes no more: the peer's program gets EPIPE. `unread`: its program left something unread, so that the
    /// peer's gets ECONNRESET too, as from a local socket.
    pub fn on_sink_gone(&mut self, key: Key, unread: bool) {
        let Some(stream) = self.stream(key) else { return };
        if stream.recv.state != recv::State::Open {
            return;
        }
        stream.recv.state = recv::State::Closed;
        let records = stream.recv.early_records();
        let early = stream.recv.drop_early();
        let credit = stream.recv.granted();
        let flags = flags::READ_CLOSED | if unread { flags::UNREAD } else { 0 };
        let header = Header { flags, credit, ..Header::new(FrameType::Credit, key.id) };
        self.recipes_pending -= early;
        self.early_records -= records;
        self.queue_control(header, None);
        self.bury_if_done(key.slot());
    }

    /// No new streams from now on; the peer is told.
    pub fn leave(&mut self) {
        if !std::mem::replace(&mut self.leaving, true) {
            self.queue_control(Header::new(FrameType::GoAway, 0), None);
        }
    }

    /// Every stream ends with `errno`: the session is over.
    pub fn reset_all(&mut self, errno: Errno) {
        let all: Vec<Key> = self.streams.iter().map(|(slot, _)| self.key_at(slot)).collect();
        for key in all {
            self.remove(key.slot());
            self.events.push_back(Event::Reset { key, errno });
        }
    }

    /// When the peer was last heard.
    pub fn heard_us(&self) -> u64 {
        self.heard_us
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Both sides have said that they open no new streams: once the last one has ended, nothing more comes.
    pub fn is_left(&self) -> bool {
        self.leaving && self.peer_leaving
    }

    pub fn poll_event(&mut self) -> Option<Event<P>> {
        self.events.pop_front()
    }

    /// Keeps the link awake. An error is a peer that has been silent for too long.
    pub fn on_time(&mut self, now_us: u64) -> WireResult<()> {
        if self.is_excused() {
            return Ok(());
        }
        let silent_ms = now_us.saturating_sub(self.heard_us) / 1000;
        if silent_ms >= DEAD_AFTER_MS {
            bad!("nothing heard for {} s", silent_ms / 1000);
        }
        let asked_ms = self.ping_at_us.map(|at| now_us.saturating_sub(at) / 1000);
        if silent_ms >= PING_AFTER_MS && asked_ms.is_none_or(|ms| ms >= PING_AFTER_MS) {
            self.ping(now_us);
        }
        Ok(())
    }

    /// The peer is silent and not dead, as the driver knows: it is not asked again before it has said something.
    pub fn excuse(&mut self, now_us: u64) {
        self.excused_us = Some(now_us);
    }

    pub fn is_excused(&self) -> bool {
        self.excused_us.is_some_and(|at| at >= self.heard_us)
    }

    /// This process has not run for a while: what the peer said meanwhile is still to be read.
    pub fn was_away(&mut self, now_us: u64) {
        self.heard_us = now_us;
    }

    /// The stream's queues are empty, and what they grew to is not needed for a while.
    pub fn relax(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.send.relax();
            stream.recv.relax();
        }
    }

    /// Now and then: memory that a burst of streams needed is given back.
    pub fn rest(&mut self) {
        slack::slab(&mut self.streams);
        slack::map(&mut self.by_id);
        slack::queue(&mut self.credit_due);
        slack::queue(&mut self.events);
        for lane in &mut self.lanes {
            slack::queue(&mut lane.control);
            slack::queue(&mut lane.ready);
        }
    }

    /// Asks the peer for a sign of life, which also measures the round trip.
    pub fn ping(&mut self, now_us: u64) {
        self.ping_at_us = Some(now_us);
        self.link_frames.push_back(Header { credit: low32(now_us), ..Header::new(FrameType::Ping, 0) });
    }

    /// A frame that is about the LAT link, and not of its lane: the driver sends it before all others.
    pub fn poll_link_frame(&mut self) -> Option<Header> {
        self.link_frames.pop_front()
    }

    /// The LAT link is lost, and with it what was said about it. Nobody is heard until another one is there.
    pub fn on_link_lost(&mut self) {
        self.link_frames.clear();
        self.ping_at_us = None;
        self.excused_us = None;
    }

    // ---- frames that leave ---------------------------------------------------------------------------------------

    /// Fills `batch` with the next frames for `lane`, up to about `budget` bytes. The driver calls it when the last
    /// send on that lane has completed, so that the choice is made as late as possible.
    pub fn poll_transmit(&mut self, lane: Lane, batch: &mut Batch<P>, budget: usize) {
        if !self.lanes[lane.index()].up {
            return;
        }
        if lane == Lane::Lat {
            self.transmit_control(batch, budget);
        }
        while batch.bytes() < budget
            && let Some(slot) = self.lanes[lane.index()].ready.pop_front()
        {
            self.transmit_stream(lane, slot, batch, budget);
        }
    }

    /// Whether `poll_transmit` would find something on that lane.
    pub fn has_more(&self, lane: Lane) -> bool {
        let control = lane == Lane::Lat && !(self.lanes[lane.index()].control.is_empty() && self.credit_due.is_empty());
        let link = lane == Lane::Lat && !self.link_frames.is_empty();
        link || control || !self.lanes[lane.index()].ready.is_empty()
    }

    fn transmit_control(&mut self, batch: &mut Batch<P>, budget: usize) {
        while batch.bytes() < budget {
            if let Some((header, body)) = self.lanes[Lane::Lat.index()].control.pop_front() {
                batch.push(header, body);
            } else if let Some(slot) = self.credit_due.pop_front() {
                let Some(stream) = self.streams.get_mut(slot) else { continue };
                if std::mem::take(&mut stream.recv.credit_due) && stream.recv.state == recv::State::Open {
                    let credit = stream.recv.granted();
                    batch.push(Header { credit, ..Header::new(FrameType::Credit, stream.id) }, None);
                }
            } else {
                break;
            }
        }
    }

    /// One stream's turn.
    fn transmit_stream(&mut self, lane: Lane, slot: usize, batch: &mut Batch<P>, budget: usize) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if !stream.send.scheduled || stream.send.lane() != lane {
            return;
        }
        stream.send.scheduled = false;
        let turn_end = (batch.bytes() + quantum(lane)).min(budget.max(batch.bytes() + 1));
        let id = stream.id;
        while batch.bytes() < turn_end {
            let mut header = Header::new(FrameType::Data, id);
            match stream.send.turn(frame_max(lane)) {
                Turn::Nothing => break,
                Turn::Move { to } => {
                    header.kind = if to == Lane::Bulk { FrameType::Move } else { FrameType::MoveBack };
                    batch.push(header, None);
                    break;
                }
                Turn::Recipe { part, more } => {
                    header.kind = FrameType::Recipe;
                    header.flags = if more { flags::MORE } else { 0 };
                    batch.push(header, Some(part));
                }
                Turn::Data { payload, record_end, fds, fin } => {
                    header.credit = stream.recv.granted();
                    stream.recv.credit_due = false;
                    header.aux = fds;
                    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
                    header.flags = flag(fin, flags::FIN) | flag(record_end, flags::EOR) | flag(fds > 0, flags::HAS_FDS);
                    batch.push(header, Some(payload));
                }
            }
        }
        self.schedule(slot);
        self.bury_if_done(slot);
    }

    /// Puts the stream in its lane's queue if it has something to send and is not there yet.
    pub(super) fn schedule(&mut self, slot: usize) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if stream.send.has_turn() && !std::mem::replace(&mut stream.send.scheduled, true) {
            self.lanes[stream.send.lane().index()].ready.push_back(slot);
        }
    }

    pub(super) fn queue_control(&mut self, header: Header, body: Option<P>) {
        self.lanes[Lane::Lat.index()].control.push_back((header, body));
    }

    // ---- bookkeeping ---------------------------------------------------------------------------------------------

    fn look(&self, key: Key) -> Option<&Stream<P>> {
        self.streams.get(key.slot()).filter(|s| s.birth == key.birth)
    }

    fn stream(&mut self, key: Key) -> Option<&mut Stream<P>> {
        self.streams.get_mut(key.slot()).filter(|s| s.birth == key.birth)
    }

    /// The stream in this slot, which is there.
    pub(super) fn key_at(&self, slot: usize) -> Key {
        let Stream { id, birth, .. } = self.streams[slot];
        Key { slot: u32::try_from(slot).expect("far fewer streams"), id, birth }
    }

    pub fn is_ours(&self, id: u32) -> bool {
        id % 2 == u32::from(self.options.dialer)
    }

    pub(super) fn saw(&mut self, id: u32) {
        if self.peer_highest.is_none_or(|highest| reaches(id, highest)) {
            self.peer_highest = Some(id);
        }
    }

    /// The stream's slot; `None` for one that is gone. A number that was never used is the peer's mistake.
    pub(super) fn known(&self, id: u32) -> WireResult<Option<usize>> {
        if let Some(&slot) = self.by_id.get(&id) {
            return Ok(Some(slot));
        }
        let used = if self.is_ours(id) {
            reaches(self.next_id.wrapping_sub(2), id)
        } else {
            self.peer_highest.is_some_and(|highest| reaches(highest, id))
        };
        if used { Ok(None) } else { Err(ProtocolError(format!("a frame for stream {id}, which was never opened"))) }
    }

    pub(super) fn fail(&mut self, key: Key, errno: Errno) {
        self.reset(key, errno);
        self.events.push_back(Event::Reset { key, errno });
    }

    pub(super) fn bury_if_done(&mut self, slot: usize) {
        if self.streams.get(slot).is_some_and(|s| s.send.is_done() && s.recv.state != recv::State::Open) {
            self.remove(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: usize) {
        let stream = self.streams.remove(slot);
        self.by_id.remove(&stream.id);
        self.growth -= stream.recv.growth();
        self.wide -= usize::from(stream.recv.is_wide);
        self.recipes_pending -= stream.recv.recipes_len();
        self.early_records -= stream.recv.early_records();
    }
}

pub(super) fn reset_frame(id: u32, errno: Errno) -> Header {
    let aux = u16::try_from(errno as i32).expect("an errno is below 4096");
    Header { aux, ..Header::new(FrameType::Reset, id) }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) fn low32(v: u64) -> u32 {
    v as u32
}
