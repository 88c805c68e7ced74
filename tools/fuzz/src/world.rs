//! Two honest ends over wires that split, delay and hold back, and a model that knows what must come out.
//!
//! ```text
//!   end 0: Mux ──LAT, BULK: a byte pipe each──▶ end 1: Mux      and back
//!      └── streams of bytes, streams of records, streams that a message's recipes announce
//! ```
//!
//! Byte `n` of a direction is a function of the stream and `n`, so that a byte which is lost, doubled or moved shows at
//! once. Whatever the choices, two ends of our own never call each other's frames an error.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use farside::errno::Errno;
use farside::limits::{INITIAL_WINDOW, RECORD_MAX, RECORD_WINDOW, WINDOW_MAX};
use farside::mux::{Batch, Key, Mux, Options, Part, Recipes};
use farside::wire::hello::Lane;
use farside::wire::parser::{Parser, Step};

use crate::choices::Choices;

#[path = "world_events.rs"]
mod events;

const STREAMS: usize = 8;
/// A stream's service says what it carries.
const BYTES: u16 = 1;
const RECORDS: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    RecordEnd,
    Fds(usize),
}

/// What one end has said on a stream: what the other end is to hear.
#[derive(Debug, Default)]
struct Said {
    bytes: u64,
    marks: VecDeque<(u64, Mark)>,
    eof: bool,
    /// That it reads no more, and whether something was unread.
    deaf: Option<bool>,
}

/// What one end knows of a stream.
#[derive(Debug)]
struct Side {
    key: Key,
    records: bool,
    said: Said,
    heard_bytes: u64,
    fin: bool,
    /// The verdict is ours to give.
    undecided: bool,
    wants: Option<u32>,
    /// Consumable now; with records, `partial` becomes so at the record's end.
    unconsumed: u32,
    partial: u32,
    unheard: bool,
    gone: bool,
    children: Vec<u32>,
}

struct End {
    mux: Mux<Bytes>,
    parsers: [Parser; 2],
    sides: BTreeMap<u32, Side>,
}

pub struct World {
    ends: [End; 2],
    /// wires[from][lane]
    wires: [[VecDeque<u8>; 2]; 2],
    /// Bytes that have left an end, and that have reached one.
    moved: u64,
    now_us: u64,
    /// Frames by type, so that a test can tell that it has met everything it is about.
    pub seen: BTreeMap<u8, usize>,
    /// Records, messages with fds, resets, ... that arrived.
    pub met: BTreeMap<&'static str, usize>,
}

/// Lets the choices happen, then ends everything and looks at what is left.
pub fn run(input: &[u8]) -> World {
    let mut choices = Choices::new(input);
    let mut world = World::new();
    while !choices.is_empty() {
        world.act(&mut choices);
    }
    world.settle();
    world
}

fn pattern(id: u32, at: u64) -> u8 {
    (at.wrapping_mul(167) ^ (at >> 9) ^ u64::from(id).wrapping_mul(29)).to_le_bytes()[0]
}

impl Side {
    fn new(key: Key, records: bool, undecided: bool) -> Self {
        Self {
            key,
            records,
            said: Said::default(),
            heard_bytes: 0,
            fin: false,
            undecided,
            wants: None,
            unconsumed: 0,
            partial: 0,
            unheard: false,
            gone: false,
            children: Vec::new(),
        }
    }
}

fn window(records: bool) -> u32 {
    if records { RECORD_WINDOW } else { INITIAL_WINDOW }
}

impl World {
    fn new() -> Self {
        let end = |dialer| {
            let options = Options::new(dialer);
            let mut mux = Mux::new(options);
            mux.on_link_up(Lane::Lat);
            End { mux, parsers: Default::default(), sides: BTreeMap::new() }
        };
        let ends = [end(true), end(false)];
        Self { ends, wires: Default::default(), moved: 0, now_us: 0, seen: BTreeMap::new(), met: BTreeMap::new() }
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn act(&mut self, choices: &mut Choices) {
        let at = choices.below(2);
        self.now_us += choices.one_of(&[0, 1, 20, 500]);
        match choices.byte() % 32 {
            0..=2 => self.open(at, choices),
            3..=10 => self.read(at, choices),
            11 => self.finish(at, choices),
            12..=17 => self.transmit(at, choices.one_of(&Lane::ALL), 1 + choices.below(300_000)),
            18..=23 => self.deliver(at, choices.one_of(&Lane::ALL), choices.below(200_000)),
            24..=26 => self.consume(at, choices),
            27 => self.decide(at, choices),
            28 => self.now_us += 60_000,
            29 => self.ends[at].mux.on_link_up(Lane::Bulk),
            30 => self.ends[at].mux.ping(self.now_us),
            _ => self.ends[at].mux.on_time(self.now_us).unwrap_or_default(),
        }
        self.events(0);
        self.events(1);
    }

    fn pick(&self, at: usize, choices: &mut Choices) -> Option<u32> {
        let ids: Vec<u32> = self.ends[at].sides.iter().filter(|(_, s)| !s.gone).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[choices.below(ids.len())])
    }

    fn side(&mut self, at: usize, id: u32) -> &mut Side {
        self.ends[at].sides.get_mut(&id).expect("a stream that was picked")
    }

    fn open(&mut self, at: usize, choices: &mut Choices) {
        if self.ends[at].sides.values().filter(|s| !s.gone).count() >= STREAMS {
            return;
        }
        let records = choices.flag();
        let mux = &mut self.ends[at].mux;
        let key = mux.open(if records { RECORDS } else { BYTES }, vec![7; choices.below(300)], INITIAL_WINDOW);
        let key = key.expect("few streams");
        // As a driver does: what it reads into is known only when the stream gets its fd.
        mux.widen(key, window(records));
        self.ends[at].sides.insert(key.id(), Side::new(key, records, false));
    }

    /// The program wrote something, perhaps with fds.
    fn read(&mut self, at: usize, choices: &mut Choices) {
        let Some(id) = self.pick(at, choices) else { return };
        let (mux, side) = self.of(at, id);
        let (key, records) = (side.key, side.records);
        let room = mux.room(key);
        assert!(room <= WINDOW_MAX, "more room than a window can be");
        // A driver has nothing to read from before it has said yes.
        if side.said.eof || side.unheard || side.undecided {
            return;
        }
        let most = choices.one_of(&[1, 200, 20_000, if records { RECORD_MAX } else { 100_000 }]) as usize;
        let mut len = choices.below(most + 1);
        let need = if records { u32::try_from(len).expect("below RECORD_MAX").max(1) } else { 1 };
        if room < need {
            side.wants = Some(need);
            mux.wait_for_room(key, need);
            return;
        }
        len = len.min(room as usize);
        if !records && len == 0 {
            len = 1;
        }
        let recipes = choices.byte().is_multiple_of(8).then(|| self.recipes(at, id, choices)).flatten();
        self.say(at, id, len, records, recipes);
    }

    fn say(&mut self, at: usize, id: u32, len: usize, record: bool, recipes: Option<Recipes>) {
        let now_us = self.now_us;
        let (mux, side) = self.of(at, id);
        let from = side.said.bytes;
        let bytes: Vec<u8> = (from..from + len as u64).map(|n| pattern(id, n)).collect();
        if let Some(recipes) = &recipes {
            side.said.marks.push_back((from, Mark::Fds(recipes.count())));
        }
        side.said.bytes += len as u64;
        if record {
            side.said.marks.push_back((side.said.bytes, Mark::RecordEnd));
        }
        mux.on_read(side.key, bytes.into(), record, recipes, now_us);
    }

    fn of(&mut self, at: usize, id: u32) -> (&mut Mux<Bytes>, &mut Side) {
        let End { mux, sides, .. } = &mut self.ends[at];
        (mux, sides.get_mut(&id).expect("a stream that was picked"))
    }

    /// Some fds; every second one is a stream of its own. A recipe here: which stream or 0, records or not, padding.
    fn recipes(&mut self, at: usize, carrier: u32, choices: &mut Choices) -> Option<Recipes> {
        let (count, padding) = (1 + choices.one_of(&[0, 1, 9, 252]), choices.one_of(&[0, 0, 100, 1500]));
        let mut bytes = Vec::new();
        for place in 0..count {
            let alive = self.ends[at].sides.values().filter(|s| !s.gone).count();
            let records = choices.flag();
            let mut id = 0;
            if place < 3 && alive < STREAMS && choices.flag() {
                let key = self.ends[at].mux.announce(window(records)).ok()?;
                id = key.id() + 1;
                self.ends[at].sides.insert(key.id(), Side::new(key, records, false));
                self.side(at, carrier).children.push(key.id());
            }
            bytes.extend(id.to_le_bytes());
            bytes.push(u8::from(records));
            bytes.resize(bytes.len() + padding, 0xfd);
        }
        bytes.extend(u32::try_from(bytes.len()).expect("RECIPES_MAX").to_le_bytes());
        Some(Recipes::new(bytes, count))
    }

    fn finish(&mut self, at: usize, choices: &mut Choices) {
        let Some(id) = self.pick(at, choices) else { return };
        let how = choices.byte() % 8;
        // A driver has nothing that could end before the peer has taken an announced stream up, but its reset.
        let key = self.side(at, id).key;
        let waits = self.ends[at].mux.waits_for_peer(key);
        let (mux, side) = self.of(at, id);
        match how {
            0..=3 => {
                side.said.eof = true;
                mux.on_eof(side.key);
            }
            4 | 5 if !side.undecided && !waits && !side.fin && side.said.deaf.is_none() => {
                side.said.deaf = Some(how == 4);
                mux.on_sink_gone(side.key, how == 4);
            }
            6 => self.reset(at, id),
            _ => {}
        }
    }

    /// As the driver does, a stream's end takes along what it announced and nobody has taken up.
    fn reset(&mut self, at: usize, id: u32) {
        let (mux, side) = self.of(at, id);
        side.gone = true;
        mux.reset(side.key, Errno::EPIPE);
        self.drop_children(at, id);
    }

    fn drop_children(&mut self, at: usize, id: u32) {
        for child in std::mem::take(&mut self.side(at, id).children) {
            let key = self.side(at, child).key;
            if self.ends[at].mux.waits_for_peer(key) {
                self.reset(at, child);
            }
        }
    }

    fn consume(&mut self, at: usize, choices: &mut Choices) {
        let Some(id) = self.pick(at, choices) else { return };
        let most = self.side(at, id).unconsumed as usize;
        let count = u32::try_from(choices.one_of(&[most, most / 2, 1]).min(most)).expect("a window");
        self.consumed(at, id, count);
    }

    fn consumed(&mut self, at: usize, id: u32, count: u32) {
        let now_us = self.now_us;
        let (mux, side) = self.of(at, id);
        side.unconsumed -= count;
        mux.on_consumed(side.key, count, now_us);
    }

    /// The verdict on what the peer has opened or announced.
    fn decide(&mut self, at: usize, choices: &mut Choices) {
        let Some(id) = self.pick(at, choices) else { return };
        let yes = !choices.byte().is_multiple_of(4);
        let (mux, side) = self.of(at, id);
        if !std::mem::take(&mut side.undecided) {
            return;
        }
        if yes {
            mux.accept(side.key, INITIAL_WINDOW, Vec::new());
            mux.widen(side.key, window(side.records));
        } else {
            self.reset(at, id);
        }
    }

    fn transmit(&mut self, at: usize, lane: Lane, budget: usize) {
        let mut batch = Batch::default();
        self.ends[at].mux.poll_transmit(lane, &mut batch, budget);
        let wire = &mut self.wires[at][lane.index()];
        let before = wire.len();
        for part in &batch.parts {
            match part {
                Part::Heads(start, end) => wire.extend(&batch.heads[*start..*end]),
                Part::Body(body) => wire.extend(body.iter()),
            }
        }
        assert_eq!(wire.len() - before, batch.bytes(), "a batch knows its length");
        self.moved += batch.bytes() as u64;
    }

    /// Some bytes of one lane reach `at`.
    fn deliver(&mut self, at: usize, lane: Lane, most: usize) {
        let wire = &mut self.wires[1 - at][lane.index()];
        let count = most.min(wire.len());
        self.moved += count as u64;
        let mut rest: Bytes = wire.drain(..count).collect::<Vec<u8>>().into();
        let End { mux, parsers, .. } = &mut self.ends[at];
        loop {
            match parsers[lane.index()].step(&rest).expect("frames of our own") {
                Step::More => return,
                Step::Control { used, header, body } => {
                    let _ = rest.split_to(used);
                    *self.seen.entry(header.kind as u8).or_default() += 1;
                    mux.on_control(lane, header, &body, self.now_us).expect("an honest peer");
                }
                Step::Data { skip, take, header, first, last } => {
                    let _ = rest.split_to(skip);
                    mux.on_data(lane, header, rest.split_to(take), (first, last), self.now_us).expect("an honest peer");
                }
            }
        }
    }
}
