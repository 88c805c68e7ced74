//! The other half of the model: what came out is what went in, and in the end nothing is left.

use farside::errno::Errno;
use farside::limits::INITIAL_WINDOW;
use farside::mux::{Books, Event, Key, Recipes};
use farside::wire::hello::Lane;

use super::{Mark, RECORDS, Side, World, pattern, window};

impl World {
    pub(super) fn events(&mut self, at: usize) {
        while let Some(event) = self.ends[at].mux.poll_event() {
            match event {
                Event::Incoming { key, service, request } => {
                    assert!(request.iter().all(|b| *b == 7), "another request");
                    self.ends[at].sides.insert(key.id(), Side::new(key, service == RECORDS, true));
                }
                Event::Data { key, payload, record_end, recipes, overhead } => {
                    self.on_bytes(at, key, &payload, record_end, recipes, overhead);
                }
                Event::Fin { key } => self.on_fin(at, key),
                Event::ReadClosed { key, unread } => {
                    assert_eq!(self.side(1 - at, key.id()).said.deaf, Some(unread), "what the other end said");
                    self.meet(if unread { "unread" } else { "read closed" });
                    self.side(at, key.id()).unheard = true;
                    self.drop_children(at, key.id());
                }
                Event::Reset { key, .. } => {
                    self.meet("reset");
                    self.side(at, key.id()).gone = true;
                    self.drop_children(at, key.id());
                }
                Event::Unheard { id } if self.ends[at].sides.contains_key(&id) => self.drop_children(at, id),
                Event::Unheard { .. } => {}
                Event::MayRead { key } => {
                    self.meet("may read");
                    let (mux, side) = self.of(at, key.id());
                    let wanted = side.wants.take().expect("it waited");
                    let room = mux.room(key);
                    // None at all: that nobody reads any more came right behind it.
                    assert!(room >= wanted || room == 0, "woken for {wanted} with {room}");
                }
                Event::Accepted { .. } | Event::GoingAway => {}
            }
        }
    }

    fn on_bytes(&mut self, at: usize, key: Key, bytes: &[u8], end: bool, recipes: Option<Recipes>, overhead: u32) {
        let id = key.id();
        if let Some(recipes) = recipes {
            self.expect(at, id, Mark::Fds(recipes.count()));
            self.meet("fds");
            self.take_fds(at, &recipes);
        }
        let side = self.side(at, id);
        assert!(!side.fin && !side.gone && side.said.deaf.is_none(), "stream {id}: bytes behind its end");
        let from = side.heard_bytes;
        let right = (from..).zip(bytes).all(|(n, byte)| pattern(id, n) == *byte);
        assert!(right, "stream {id}: other bytes than were said, somewhere behind byte {from}");
        side.heard_bytes += bytes.len() as u64;
        side.partial += u32::try_from(bytes.len()).expect("one frame") + overhead;
        if end || !side.records {
            side.unconsumed += std::mem::take(&mut side.partial);
        }
        let heard = side.heard_bytes;
        assert!(heard <= self.side(1 - at, id).said.bytes, "stream {id}: more than was said");
        if end {
            self.meet("record");
            self.expect(at, id, Mark::RecordEnd);
        }
    }

    /// The next mark of the stream is this one, and it is here.
    fn expect(&mut self, at: usize, id: u32, mark: Mark) {
        let heard = self.side(at, id).heard_bytes;
        assert_eq!(self.side(1 - at, id).said.marks.pop_front(), Some((heard, mark)), "stream {id}");
    }

    fn take_fds(&mut self, at: usize, recipes: &Recipes) {
        let (body, len) = recipes.bytes().split_last_chunk::<4>().expect("a length");
        assert_eq!(u32::from_le_bytes(*len) as usize, body.len(), "recipes that were cut or mixed");
        for one in body.chunks(body.len() / recipes.count()) {
            let id = u32::from_le_bytes([one[0], one[1], one[2], one[3]]);
            if id == 0 {
                continue;
            }
            let (id, records) = (id - 1, one[4] == 1);
            self.meet("announced");
            // One in four is refused, as if its message could not be delivered.
            if (id >> 1) % 4 == 3 {
                self.ends[at].mux.refuse(id, Errno::ECONNRESET);
            } else {
                let key = self.ends[at].mux.adopt(id, INITIAL_WINDOW).expect("an honest peer's number");
                self.ends[at].sides.insert(id, Side::new(key, records, true));
            }
        }
    }

    fn on_fin(&mut self, at: usize, key: Key) {
        let id = key.id();
        let said = &self.side(1 - at, id).said;
        assert!(said.eof && said.marks.is_empty(), "stream {id}: an end before the end");
        let all = said.bytes;
        let side = self.side(at, id);
        assert!(!std::mem::replace(&mut side.fin, true), "one end a direction");
        assert_eq!(side.heard_bytes, all, "stream {id}: bytes lost before the end");
    }

    /// Everything arrives and is read; then every stream ends; then the books are empty.
    pub(super) fn settle(&mut self) {
        self.quiet();
        for at in 0..2 {
            for (id, side) in &self.ends[at].sides {
                let Some(other) = self.ends[1 - at].sides.get(id) else { continue };
                if side.gone || other.gone || side.unheard || other.said.deaf.is_some() {
                    continue;
                }
                assert_eq!(side.said.bytes, other.heard_bytes, "stream {id}: something was held back");
                let room = self.ends[at].mux.room(side.key);
                let waits = side.wants.is_some_and(|need| room >= need);
                assert!(!waits, "end {at}, stream {id}: it waits for {:?} where {room} are free", side.wants);
                assert!(
                    side.wants.is_none() || side.said.eof,
                    "end {at}, stream {id}: no room comes: {side:?}\n{other:?}"
                );
            }
        }
        for at in 0..2 {
            for id in self.alive(at) {
                let (mux, side) = self.of(at, id);
                side.said.eof = true;
                mux.on_eof(side.key);
            }
        }
        self.quiet();
        for end in &self.ends {
            assert_eq!(end.mux.books(), Books::default(), "streams that never ended: {:?}", end.sides);
        }
    }

    fn alive(&self, at: usize) -> Vec<u32> {
        self.ends[at].sides.iter().filter(|(_, s)| !s.gone).map(|(id, _)| *id).collect()
    }

    /// Until nothing moves any more.
    fn quiet(&mut self) {
        loop {
            let before = self.moved;
            self.now_us += 100;
            for at in 0..2 {
                self.answer_all(at);
                for lane in Lane::ALL {
                    self.transmit(at, lane, 1 << 20);
                    self.deliver(1 - at, lane, usize::MAX);
                }
                self.events(0);
                self.events(1);
            }
            if before == self.moved {
                return;
            }
        }
    }

    /// Undecided streams are taken, what came is consumed.
    fn answer_all(&mut self, at: usize) {
        for id in self.alive(at) {
            let (mux, side) = self.of(at, id);
            if std::mem::take(&mut side.undecided) {
                mux.accept(side.key, INITIAL_WINDOW, Vec::new());
                mux.widen(side.key, window(side.records));
            }
            let count = self.side(at, id).unconsumed;
            self.consumed(at, id, count);
        }
    }
}
