//! One mux whose peer says whatever it likes: well-formed frames in any order, with any numbers in them.
//!
//! The mux may call it a protocol error, which ends the session; it may not panic, and what it holds stays bounded. The
//! driver's side does what drivers do, in any order too.

use bytes::Bytes;
use farside::errno::Errno;
use farside::limits::{
    CONTROL_QUEUE_MAX, EARLY_CONTROL_MAX, INITIAL_WINDOW, RECIPES_PENDING_MAX, RECORD_WINDOW, SESSION_GROWTH_MAX,
    STREAMS_MAX, WINDOW_MAX,
};
use farside::mux::{Batch, Event, Key, Mux, Options, Recipes};
use farside::wire::WireResult;
use farside::wire::frame::{FrameType, Header, flags};
use farside::wire::hello::Lane;

use crate::choices::Choices;

const KINDS: [FrameType; 15] = [
    FrameType::Open,
    FrameType::Open,
    FrameType::Data,
    FrameType::Data,
    FrameType::Data,
    FrameType::Recipe,
    FrameType::Recipe,
    FrameType::Move,
    FrameType::MoveBack,
    FrameType::Credit,
    FrameType::Accept,
    FrameType::Reset,
    FrameType::Ping,
    FrameType::Pong,
    FrameType::GoAway,
];

struct Victim {
    mux: Mux<Bytes>,
    /// Every stream there ever was: a driver may name one that is gone.
    keys: Vec<Key>,
    /// What Data events brought and is not consumed.
    unconsumed: Vec<(Key, u32)>,
    now_us: u64,
}

pub fn run(input: &[u8]) {
    let mut choices = Choices::new(input);
    let peer_window = choices.one_of(&[INITIAL_WINDOW, 0, 1, u32::MAX]);
    let options = Options { peer_window, ..Options::new(choices.flag()) };
    let mut victim = Victim { mux: Mux::new(options), keys: Vec::new(), unconsumed: Vec::new(), now_us: 0 };
    Lane::ALL.into_iter().for_each(|lane| victim.mux.on_link_up(lane));
    let mut free_frames = 0;
    while !choices.is_empty() {
        victim.now_us += choices.one_of(&[0, 10, 1000, 60_000]);
        if choices.byte() % 8 < 5 {
            let before = victim.mux.books();
            if victim.hear(&mut choices).is_err() {
                // The session ends here; its sums are not looked at any more.
                victim.end();
                return;
            }
            free_frames += victim.mux.books().early_free.saturating_sub(before.early_free);
        } else {
            victim.drive(&mut choices);
        }
        victim.is_bounded(free_frames);
    }
    victim.end();
    let books = victim.mux.books();
    assert_eq!((books.streams, books.recipes, books.growth, books.queued), (0, 0, 0, 0), "{books:?}");
}

impl Victim {
    /// As a driver ends a session: nothing may be left of it.
    fn end(&mut self) {
        self.mux.reset_all(Errno::ECONNRESET);
        while self.mux.poll_event().is_some() {}
        assert_eq!(self.mux.streams(), 0);
    }

    /// A frame from the peer, perhaps many times over.
    fn hear(&mut self, choices: &mut Choices) -> WireResult<()> {
        let header = Header {
            flags: choices.one_of(&[
                0,
                0,
                flags::FIN,
                flags::EOR,
                flags::MORE,
                flags::HAS_FDS,
                flags::READ_CLOSED,
                0xff,
            ]) & flags::ALL,
            aux: choices.one_of(&[0, 0, 1, 2, 253, 254, u16::MAX]),
            stream: self.number(choices),
            credit: choices.one_of(&[0, INITIAL_WINDOW, 1 << 20, WINDOW_MAX, 1 << 31, u32::MAX]),
            ..Header::new(choices.one_of(&KINDS), 0)
        };
        let lane = choices.one_of(&Lane::ALL);
        let len = choices.one_of(&[0, 0, 1, 100, 4000, 16 << 10, 64 << 10]);
        let header = Header { len: u32::try_from(len).expect("short"), ..header };
        for _ in 0..choices.one_of(&[1, 1, 1, 1, 2, 70, 300]) {
            if header.kind == FrameType::Data {
                self.hear_data(lane, header, choices.byte())?;
            } else {
                self.mux.on_control(lane, header, &vec![0; len], self.now_us)?;
            }
            self.take_events();
        }
        Ok(())
    }

    /// Whole, or in two parts.
    fn hear_data(&mut self, lane: Lane, header: Header, cut: u8) -> WireResult<()> {
        let mut payload = Bytes::from(vec![0; header.len as usize]);
        if cut > 200 && payload.len() > 1 {
            let front = payload.split_to(payload.len() / 2);
            self.mux.on_data(lane, header, front, (true, false), self.now_us)?;
            return self.mux.on_data(lane, header, payload, (false, true), self.now_us);
        }
        self.mux.on_data(lane, header, payload, (true, true), self.now_us)
    }

    /// Mostly a stream that is or was there, or the next one of either side.
    fn number(&self, choices: &mut Choices) -> u32 {
        let pick = choices.byte();
        match pick {
            0..=7 => u32::from(pick),
            8 => u32::MAX,
            9 => 1 << 31,
            _ if self.keys.is_empty() => u32::from(pick % 4),
            _ => self.keys[usize::from(pick) % self.keys.len()].id(),
        }
    }

    fn drive(&mut self, choices: &mut Choices) {
        let act = choices.byte() % 12;
        if act < 3 {
            let window = choices.one_of(&[INITIAL_WINDOW, RECORD_WINDOW]);
            let born = if act < 2 { self.mux.open(1, vec![1; 10], window) } else { self.mux.announce(window) };
            self.keys.extend(born);
            return;
        }
        if act == 3 {
            let id = self.number(choices);
            match choices.flag() {
                true => self.keys.extend(self.mux.adopt(id, INITIAL_WINDOW)),
                false => self.mux.refuse(id, Errno::ECONNRESET),
            }
            return;
        }
        if act == 4 {
            let mut batch = Batch::default();
            self.mux.poll_transmit(choices.one_of(&Lane::ALL), &mut batch, 1 + choices.below(300_000));
            return;
        }
        if self.keys.is_empty() {
            return;
        }
        let key = self.keys[choices.below(self.keys.len())];
        self.drive_stream(act, key, choices);
    }

    fn drive_stream(&mut self, act: u8, key: Key, choices: &mut Choices) {
        match act {
            5 if self.mux.waits_for_us(key) => {
                self.mux.accept(key, choices.one_of(&[INITIAL_WINDOW, RECORD_WINDOW]), Vec::new())
            }
            6 => {
                let room = self.mux.room(key) as usize;
                assert!(room <= WINDOW_MAX as usize, "more room than any window");
                let len = choices.below(100_000).min(room);
                let recipes = choices.flag().then(|| Recipes::new(vec![0; 1 + choices.below(40_000)], 10));
                if room > 0 {
                    self.mux.on_read(key, vec![0; len].into(), choices.flag(), recipes, self.now_us);
                }
            }
            7 => self.mux.on_eof(key),
            8 => self.mux.on_sink_gone(key, choices.flag()),
            9 => self.mux.reset(key, Errno::EPIPE),
            10 => {
                self.mux.widen(key, RECORD_WINDOW);
            }
            _ => {
                for (key, count) in std::mem::take(&mut self.unconsumed) {
                    self.mux.on_consumed(key, count, self.now_us);
                }
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Incoming { key, .. } => self.keys.push(key),
                Event::Data { key, payload, overhead, .. } => {
                    self.unconsumed.push((key, u32::try_from(payload.len()).expect("one frame") + overhead));
                }
                _ => {}
            }
        }
    }

    /// `free_frames`: early frames that cost nothing, which nothing bounds yet; see tests/mux_streams.rs.
    fn is_bounded(&self, free_frames: usize) {
        let books = self.mux.books();
        assert!(books.streams <= STREAMS_MAX, "{books:?}");
        // The driver's own words are bounded by its streams; the peer's are refused above the limit.
        assert!(books.control <= CONTROL_QUEUE_MAX + 2 * self.keys.len() + 2, "{books:?}");
        assert!(books.recipes <= RECIPES_PENDING_MAX, "{books:?}");
        assert!(books.growth <= SESSION_GROWTH_MAX, "{books:?}");
        let charged = books.streams * (WINDOW_MAX as usize / 32);
        assert!(books.early <= books.streams * EARLY_CONTROL_MAX + charged + free_frames, "{books:?}");
    }
}
