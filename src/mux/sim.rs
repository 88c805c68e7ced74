//! Two muxes over a wire that splits, delays and reorders completions, from a seed.
//!
//! Each lane is a byte pipe of its own: bytes keep their order inside it, and nothing is promised between the two. The
//! model keeps, for each direction of each stream, what was read at one end and what came out at the other.

#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use std::collections::BTreeMap;

use bytes::Bytes;
use nix::errno::Errno;

use super::{Batch, Event, Key, Mux, Options, Part, Recipes};
use crate::limits::INITIAL_WINDOW;
use crate::wire::frame::FrameType;
use crate::wire::hello::Lane;
use crate::wire::parser::{Parser, Step};

/// xorshift64*: the same seed gives the same run everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    /// Not 0, whatever the seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// What one end knows of one stream.
#[derive(Default)]
struct Side {
    key: Option<Key>,
    sent: Vec<u8>,
    got: Vec<u8>,
    /// Byte offsets at which a record ended, or a message with so many fds began.
    sent_marks: Vec<(usize, usize)>,
    got_marks: Vec<(usize, usize)>,
    unconsumed: u32,
    eof_sent: bool,
    fin_got: bool,
    gone: bool,
    stopped: bool,
    sink_closed: bool,
    may_send: bool,
}

struct End {
    mux: Mux<Bytes>,
    parsers: [Parser; 2],
    streams: BTreeMap<u32, Side>,
}

struct World {
    rng: Rng,
    ends: [End; 2],
    /// wires[from][lane]
    wires: [[Vec<u8>; 2]; 2],
    now_us: u64,
    seed: u64,
    /// Frames seen, by type, so that the test can tell that it has met everything it is about.
    seen: BTreeMap<u8, usize>,
}

const RECORD: usize = usize::MAX;

impl World {
    fn new(seed: u64) -> Self {
        let end = |dialer| {
            let options = Options::new(dialer);
            let mut mux = Mux::new(options);
            Lane::ALL.into_iter().for_each(|lane| mux.on_link_up(lane));
            End { mux, parsers: Default::default(), streams: BTreeMap::new() }
        };
        let rng = Rng::new(seed);
        Self { rng, ends: [end(true), end(false)], wires: Default::default(), now_us: 0, seed, seen: BTreeMap::new() }
    }

    /// Something happens at a random end.
    fn act(&mut self) {
        let at = self.rng.below(2);
        self.now_us += if self.rng.next() % 1000 < 5 { 80_000 } else { self.rng.next() % 30 };
        match self.rng.below(14) {
            0 => self.open(at),
            1..=5 => self.read(at),
            6 => self.finish(at),
            7..=9 => self.transmit(at),
            10 | 11 => self.consume(at),
            _ => self.deliver(at),
        }
        self.deliver(1 - at);
        self.events(at);
        self.events(1 - at);
    }

    fn open(&mut self, at: usize) {
        if self.ends[at].streams.len() >= 5 {
            return;
        }
        let request = vec![7; self.rng.below(100)];
        let key = self.ends[at].mux.open(3, request, INITIAL_WINDOW).unwrap();
        self.ends[at].streams.insert(key.id(), Side { key: Some(key), may_send: true, ..Side::default() });
    }

    fn pick(&mut self, at: usize) -> Option<u32> {
        let ids: Vec<u32> = self.ends[at].streams.iter().filter(|(_, s)| !s.gone).map(|(id, _)| *id).collect();
        if ids.is_empty() { None } else { Some(ids[self.rng.below(ids.len())]) }
    }

    fn read(&mut self, at: usize) {
        let Some(id) = self.pick(at) else { return };
        let end = &mut self.ends[at];
        let side = end.streams.get_mut(&id).unwrap();
        let key = side.key.unwrap();
        let room = end.mux.room(key) as usize;
        if room == 0 || side.eof_sent || side.stopped || !side.may_send {
            return;
        }
        let small = self.rng.chance(40);
        let len = 1 + self.rng.below(room.min(if small { 200 } else { 90_000 }));
        // Whole blocks at a time, here and below: byte by byte an unoptimised build takes minutes.
        let block: [u8; 256] = std::array::from_fn(|i| (i as u8) ^ (self.rng.0 as u8));
        let mut bytes = block.repeat(len.div_ceil(256));
        bytes.truncate(len);
        let record = self.rng.chance(10);
        let recipes = self.rng.chance(4).then(|| {
            let count = 1 + self.rng.below(253);
            Recipes::new(vec![count as u8; count * (1 + self.rng.below(300))], count)
        });
        if let Some(r) = &recipes {
            side.sent_marks.push((side.sent.len(), r.count()));
        }
        side.sent.extend_from_slice(&bytes);
        if record {
            side.sent_marks.push((side.sent.len(), RECORD));
        }
        end.mux.on_read(key, bytes.into(), record, recipes, self.now_us);
    }

    fn finish(&mut self, at: usize) {
        let Some(id) = self.pick(at) else { return };
        let how = self.rng.below(400);
        let end = &mut self.ends[at];
        let side = end.streams.get_mut(&id).unwrap();
        let key = side.key.unwrap();
        match how {
            0..=8 if side.may_send => {
                side.eof_sent = true;
                end.mux.on_eof(key);
            }
            9 => {
                side.sink_closed = true;
                end.mux.on_sink_gone(key, false);
            }
            10 => {
                side.gone = true;
                end.mux.reset(key, Errno::EPIPE);
            }
            _ => {}
        }
    }

    fn consume(&mut self, at: usize) {
        let Some(id) = self.pick(at) else { return };
        let end = &mut self.ends[at];
        let side = end.streams.get_mut(&id).unwrap();
        let count = std::mem::take(&mut side.unconsumed);
        end.mux.on_consumed(side.key.unwrap(), count, self.now_us);
    }

    /// Puts one batch on a lane's wire.
    fn transmit(&mut self, at: usize) {
        for lane in Lane::ALL {
            let mut batch = Batch::default();
            let budget = 1 + self.rng.below(200_000);
            self.ends[at].mux.poll_transmit(lane, &mut batch, budget);
            let wire = &mut self.wires[at][lane.index()];
            for part in &batch.parts {
                match part {
                    Part::Heads(start, end) => wire.extend_from_slice(&batch.heads[*start..*end]),
                    Part::Body(body) => wire.extend_from_slice(body),
                }
            }
        }
    }

    /// Some bytes of one lane reach `at`.
    fn deliver(&mut self, at: usize) {
        let lane = Lane::ALL[self.rng.below(2)];
        let wire = &mut self.wires[1 - at][lane.index()];
        let count = self.rng.below(wire.len().min(150_000) + 1);
        let mut rest = Bytes::copy_from_slice(&wire[..count]);
        wire.drain(..count);
        let end = &mut self.ends[at];
        loop {
            match end.parsers[lane.index()].step(&rest).unwrap() {
                Step::More => return,
                Step::Control { used, header, body } => {
                    let _ = rest.split_to(used);
                    *self.seen.entry(header.kind as u8).or_default() += 1;
                    end.mux.on_control(lane, header, &body, self.now_us).unwrap();
                }
                Step::Data { skip, take, header, first, last } => {
                    let _ = rest.split_to(skip);
                    let payload = rest.split_to(take);
                    end.mux.on_data(lane, header, payload, (first, last), self.now_us).unwrap();
                }
            }
        }
    }

    fn events(&mut self, at: usize) {
        while let Some(event) = self.ends[at].mux.poll_event() {
            let end = &mut self.ends[at];
            match event {
                Event::Incoming { key, service, request } => {
                    assert_eq!((service, request.iter().all(|b| *b == 7)), (3, true));
                    let mut side = Side { key: Some(key), may_send: true, ..Side::default() };
                    if self.rng.chance(90) {
                        end.mux.accept(key, INITIAL_WINDOW, Vec::new());
                    } else {
                        end.mux.reset(key, Errno::ECONNREFUSED);
                        side.gone = true;
                    }
                    end.streams.insert(key.id(), side);
                }
                Event::Data { key, payload, record_end, recipes, overhead } => {
                    let side = end.streams.get_mut(&key.id()).unwrap();
                    assert!(!side.fin_got, "bytes after the end");
                    if let Some(r) = recipes {
                        assert!(r.bytes() == vec![r.count() as u8; r.bytes().len()], "another message's recipes");
                        side.got_marks.push((side.got.len(), r.count()));
                    }
                    side.got.extend_from_slice(&payload);
                    if record_end {
                        side.got_marks.push((side.got.len(), RECORD));
                    }
                    side.unconsumed += u32::try_from(payload.len()).unwrap() + overhead;
                }
                Event::Fin { key } => end.streams.get_mut(&key.id()).unwrap().fin_got = true,
                Event::ReadClosed { key, .. } => end.streams.get_mut(&key.id()).unwrap().stopped = true,
                Event::Reset { key, .. } => end.streams.get_mut(&key.id()).unwrap().gone = true,
                Event::Accepted { .. } | Event::MayRead { .. } | Event::Unheard { .. } | Event::GoingAway => {}
            }
        }
    }

    /// Lets everything arrive, ends every stream, and looks at the books.
    fn settle(&mut self) {
        for at in 0..2 {
            let open: Vec<u32> = self.ends[at].streams.iter().filter(|(_, s)| !s.gone).map(|(id, _)| *id).collect();
            for id in open {
                let end = &mut self.ends[at];
                let side = end.streams.get_mut(&id).unwrap();
                side.eof_sent = true;
                end.mux.on_eof(side.key.unwrap());
            }
        }
        for _ in 0..20_000 {
            self.now_us += 100;
            for at in 0..2 {
                self.transmit(at);
                self.deliver(at);
                self.events(at);
            }
            if self.wires.iter().flatten().all(Vec::is_empty) && self.ends.iter().all(|e| e.mux.streams() == 0) {
                break;
            }
        }
        let left: Vec<usize> = self.ends.iter().map(|e| e.mux.streams()).collect();
        assert_eq!(left, [0, 0], "seed {}: streams that never ended", self.seed);
        self.check();
    }

    fn check(&self) {
        for at in 0..2 {
            for (id, from) in &self.ends[at].streams {
                let Some(to) = self.ends[1 - at].streams.get(id) else {
                    assert!(from.gone, "seed {}: stream {id} never arrived", self.seed);
                    continue;
                };
                let context = format!("seed {}, stream {id}, from end {at}", self.seed);
                assert!(from.sent.starts_with(&to.got), "{context}: other bytes came out");
                assert!(from.sent_marks.starts_with(&to.got_marks), "{context}: records or fds moved");
                if !from.gone && !to.gone && !to.sink_closed {
                    assert!(to.fin_got, "{context}: no end");
                    assert_eq!(from.sent.len(), to.got.len(), "{context}: bytes lost");
                    assert_eq!(from.sent_marks, to.got_marks, "{context}");
                }
            }
        }
    }
}

#[test]
fn every_byte_record_and_fd_arrives_in_order_over_a_wire_that_splits_and_delays() {
    let mut seen = BTreeMap::new();
    for seed in 1..=150 {
        let mut world = World::new(seed);
        for _ in 0..8000 {
            world.act();
        }
        world.settle();
        for (kind, count) in world.seen {
            *seen.entry(kind).or_insert(0) += count;
        }
    }
    for kind in [FrameType::Credit, FrameType::Recipe, FrameType::Move, FrameType::MoveBack, FrameType::Reset] {
        let count = seen.get(&(kind as u8)).copied().unwrap_or(0);
        assert!(count > 50, "only {count} {kind:?} frames: the simulation misses its subject");
    }
}

fn pair() -> World {
    World::new(1)
}

fn settle_frames(world: &mut World) {
    for _ in 0..200 {
        for at in 0..2 {
            world.transmit(at);
            world.deliver(at);
        }
    }
}

#[test]
fn a_sender_that_ignores_credit_is_a_protocol_error() {
    let mut world = pair();
    let key = world.ends[0].mux.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
    // Past the window and the charges of one message.
    world.ends[0].mux.on_read(key, vec![0; 200_000].into(), false, None, 0);
    let mut batch = Batch::default();
    world.ends[0].mux.poll_transmit(Lane::Lat, &mut batch, usize::MAX);
    let mut bytes = Vec::new();
    for part in &batch.parts {
        match part {
            Part::Heads(s, e) => bytes.extend_from_slice(&batch.heads[*s..*e]),
            Part::Body(b) => bytes.extend_from_slice(b),
        }
    }
    let (far, mut rest) = (&mut world.ends[1], Bytes::from(bytes));
    let said = loop {
        match far.parsers[0].step(&rest).unwrap() {
            Step::More => panic!("over-credit was taken"),
            Step::Control { used, header, body } => {
                let _ = rest.split_to(used);
                far.mux.on_control(Lane::Lat, header, &body, 0).unwrap();
            }
            Step::Data { skip, take, header, first, last } => {
                let _ = rest.split_to(skip);
                if let Err(e) = far.mux.on_data(Lane::Lat, header, rest.split_to(take), (first, last), 0) {
                    break e;
                }
            }
        }
    };
    assert!(said.0.contains("past the credit"), "{said}");
}

#[test]
fn an_announced_stream_sends_nothing_before_its_verdict() {
    let mut world = pair();
    let key = world.ends[0].mux.announce(INITIAL_WINDOW).unwrap();
    assert_eq!(world.ends[0].mux.room(key), 0);
    world.ends[0].mux.on_eof(key);
    settle_frames(&mut world);
    assert_eq!(world.wires[0][0].len(), 0, "not even its end");
    let far = world.ends[1].mux.adopt(key.id(), INITIAL_WINDOW).unwrap();
    world.ends[1].mux.accept(far, INITIAL_WINDOW, Vec::new());
    settle_frames(&mut world);
    assert_eq!(world.ends[0].mux.poll_event(), Some(Event::Accepted { key, said: Vec::new() }));
    assert_eq!(world.ends[1].mux.poll_event(), Some(Event::Fin { key: far }));
}

#[test]
fn a_refusal_carries_its_errno_and_frees_both_ends() {
    let mut world = pair();
    let key = world.ends[0].mux.open(1, b"x".to_vec(), INITIAL_WINDOW).unwrap();
    settle_frames(&mut world);
    let Some(Event::Incoming { key: far, .. }) = world.ends[1].mux.poll_event() else { panic!("no OPEN came") };
    world.ends[1].mux.reset(far, Errno::ENOENT);
    settle_frames(&mut world);
    assert_eq!(world.ends[0].mux.poll_event(), Some(Event::Reset { key, errno: Errno::ENOENT }));
    assert_eq!((world.ends[0].mux.streams(), world.ends[1].mux.streams()), (0, 0));
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let mut world = pair();
    let mux = &mut world.ends[0].mux;
    mux.on_time(1_999_000).unwrap();
    assert_eq!(mux.poll_link_frame(), None);
    mux.on_time(2_000_000).unwrap();
    assert_eq!(mux.poll_link_frame().map(|header| header.kind), Some(FrameType::Ping));
    assert_eq!(mux.poll_link_frame(), None);
    assert!(mux.on_time(7_000_000).is_err());
}

#[test]
fn a_leaving_side_takes_no_new_streams_and_keeps_the_old() {
    let mut world = pair();
    let old = world.ends[0].mux.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
    settle_frames(&mut world);
    world.ends[1].mux.leave();
    assert!(matches!(world.ends[1].mux.poll_event(), Some(Event::Incoming { .. })));
    let late = world.ends[0].mux.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
    settle_frames(&mut world);
    assert_eq!(world.ends[0].mux.poll_event(), Some(Event::GoingAway));
    assert_eq!(world.ends[0].mux.poll_event(), Some(Event::Reset { key: late, errno: Errno::ECONNABORTED }));
    assert_eq!(world.ends[0].mux.open(1, Vec::new(), INITIAL_WINDOW), Err(Errno::ECONNABORTED));
    assert!(world.ends[0].mux.room(old) > 0);
}
