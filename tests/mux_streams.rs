//! Streams of bytes, of records and of passed fds over one mux, in any order of events, from seeds.
//!
//! The model is the fuzzer's (tools/fuzz/src/world.rs): there the choices grow by coverage, here they are random and always
//! the same ones, so that this test says the same on every machine.

#[path = "../tools/fuzz/src/choices.rs"]
#[allow(dead_code, unreachable_pub, reason = "the fuzzer uses all of it")]
mod choices;
#[path = "../tools/fuzz/src/hostile.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's own")]
mod hostile;
#[path = "common/seeds.rs"]
mod seeds;
#[path = "../tools/fuzz/src/world.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's own")]
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use farside::limits::{EARLY_CONTROL_MAX, INITIAL_WINDOW, OPEN_MAX, RECORD_MAX, RECORD_WINDOW};
use farside::mux::{Batch, Event, Mux, Options};
use farside::wire::WireResult;
use farside::wire::frame::{FrameType, Header, flags};
use farside::wire::hello::Lane;
use seeds::for_seeds;

#[test]
fn whatever_happens_between_two_honest_ends_everything_arrives_and_nothing_is_left() {
    let met = Mutex::new((BTreeMap::new(), BTreeMap::new()));
    for_seeds(1..=60, |seed| {
        let world = world::run(&seed.bytes(12_000));
        let (kinds, events) = &mut *met.lock().unwrap();
        world.seen.into_iter().for_each(|(kind, count)| *kinds.entry(kind).or_insert(0) += count);
        world.met.into_iter().for_each(|(what, count)| *events.entry(what).or_insert(0) += count);
    });
    let (kinds, events) = met.into_inner().unwrap();
    println!("frames {kinds:?}; {events:?}");
    use FrameType::{Accept, Credit, Move, MoveBack, Open, Recipe, Reset};
    for kind in [Open, Accept, Credit, Recipe, Move, MoveBack, Reset] {
        assert!(kinds.get(&(kind as u8)).is_some_and(|n| *n > 50), "hardly any {kind:?}: this misses its subject");
    }
    for what in ["record", "fds", "announced", "unread", "read closed", "reset", "may read"] {
        assert!(events.get(what).is_some_and(|n| *n > 50), "hardly any '{what}': this misses its subject");
    }
}

#[test]
fn a_peer_that_says_anything_at_all_finds_no_panic_and_no_unbounded_queue() {
    for_seeds(1..=400, |seed| {
        let size = seed.up_to(3000);
        hostile::run(&seed.bytes(size));
    });
}

/// A mux whose peer is the test.
fn alone() -> Mux<Bytes> {
    let options = Options::new(false);
    let mut mux = Mux::new(options);
    Lane::ALL.into_iter().for_each(|lane| mux.on_link_up(lane));
    mux
}

fn open(mux: &mut Mux<Bytes>, id: u32) -> farside::mux::Key {
    let header = Header { credit: INITIAL_WINDOW, ..Header::new(FrameType::Open, id) };
    mux.on_control(Lane::Lat, header, b"", 0).expect("an OPEN");
    let Some(Event::Incoming { key, .. }) = mux.poll_event() else { panic!("no event") };
    key
}

#[test]
fn empty_frames_that_wait_are_bounded() {
    let mut mux = alone();
    open(&mut mux, 1);
    for _ in 0..1_000_000 {
        let parts = (true, true);
        if mux.on_data(Lane::Bulk, Header::new(FrameType::Data, 1), Bytes::new(), parts, 0).is_err() {
            return;
        }
    }
    let books = mux.books();
    assert!(books.early <= EARLY_CONTROL_MAX, "{} frames kept for 16 bytes each on the wire", books.early);
}

#[test]
fn the_largest_record_leaves_as_soon_as_the_window_was_widened() {
    let record = vec![5; RECORD_MAX as usize];
    let mut near: Mux<Bytes> = Mux::new(Options::new(true));
    let mut far = alone();
    Lane::ALL.into_iter().for_each(|lane| near.on_link_up(lane));
    let key = near.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
    near.wait_for_room(key, RECORD_MAX);
    carry(&mut near, &mut far);
    let Some(Event::Incoming { key: there, .. }) = far.poll_event() else { panic!("no OPEN") };
    far.accept(there, INITIAL_WINDOW, Vec::new());
    carry(&mut far, &mut near);
    assert_eq!(near.poll_event(), Some(Event::Accepted { key, said: Vec::new() }));
    assert_eq!(near.poll_event(), None, "64 KiB are no room for it");
    far.widen(there, RECORD_WINDOW);
    let mut waited = 0;
    for round in 0..20 {
        carry(&mut far, &mut near);
        if round == 0 || near.room(key) < RECORD_MAX {
            waited += 1;
            near.wait_for_room(key, RECORD_MAX);
            // All was consumed: the credit for it may not wait until more comes.
            carry(&mut far, &mut near);
        }
        while let Some(event) = near.poll_event() {
            assert_eq!(event, Event::MayRead { key });
        }
        assert!(near.room(key) >= RECORD_MAX, "round {round}: {} for a record of {RECORD_MAX}", near.room(key));
        near.on_read(key, record.clone().into(), true, None, 0);
        carry(&mut near, &mut far);
        let mut len = 0;
        while let Some(event) = far.poll_event() {
            let Event::Data { payload, record_end, overhead, .. } = event else { panic!("{event:?}") };
            len += payload.len();
            assert_eq!(record_end, len == record.len(), "the record's end is behind its last byte");
            far.on_consumed(there, u32::try_from(payload.len()).unwrap() + overhead, 0);
        }
        assert_eq!(len, record.len());
    }
    println!("waited {waited} times");
}

/// Everything that waits in `from` reaches `to`.
fn carry(from: &mut Mux<Bytes>, to: &mut Mux<Bytes>) {
    use farside::wire::parser::{Parser, Step};
    for lane in Lane::ALL {
        let mut batch = Batch::default();
        from.poll_transmit(lane, &mut batch, usize::MAX);
        let mut wire = Vec::new();
        for part in batch.parts {
            match part {
                farside::mux::Part::Heads(start, end) => wire.extend_from_slice(&batch.heads[start..end]),
                farside::mux::Part::Body(body) => wire.extend_from_slice(&body),
            }
        }
        let (mut parser, mut rest) = (Parser::default(), Bytes::from(wire));
        loop {
            match parser.step(&rest).unwrap() {
                Step::More => break,
                Step::Control { used, header, body } => {
                    let _ = rest.split_to(used);
                    to.on_control(lane, header, &body, 0).unwrap();
                }
                Step::Data { skip, take, header, first, last } => {
                    let _ = rest.split_to(skip);
                    to.on_data(lane, header, rest.split_to(take), (first, last), 0).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_stream_whose_announcement_is_refused_ends_at_the_announcer() {
    let mut near: Mux<Bytes> = Mux::new(Options::new(true));
    let mut far = alone();
    near.on_link_up(Lane::Lat);
    let key = near.announce(INITIAL_WINDOW).unwrap();
    far.refuse(key.id(), nix::errno::Errno::ECONNRESET);
    // Twice, and for a number of its own: nobody minds.
    far.refuse(key.id(), nix::errno::Errno::ECONNRESET);
    far.refuse(2, nix::errno::Errno::ECONNRESET);
    carry(&mut far, &mut near);
    assert_eq!(near.poll_event(), Some(Event::Reset { key, errno: nix::errno::Errno::ECONNRESET }));
    // The second one: nothing more will come of what that stream has announced.
    assert_eq!(near.poll_event(), Some(Event::Unheard { id: key.id() }));
    assert_eq!((near.poll_event(), near.books().streams), (None, 0));
}

#[test]
fn a_stream_that_was_dropped_before_it_was_taken_up_ends_where_it_is_taken_up() {
    let mut near: Mux<Bytes> = Mux::new(Options::new(true));
    let mut far = alone();
    near.on_link_up(Lane::Lat);
    let key = near.announce(INITIAL_WINDOW).unwrap();
    near.reset(key, nix::errno::Errno::ECONNRESET);
    carry(&mut near, &mut far);
    assert_eq!(far.poll_event(), Some(Event::Unheard { id: key.id() }));
    // Its recipe came all the same, by the other link.
    let there = far.adopt(key.id(), INITIAL_WINDOW).unwrap();
    far.accept(there, INITIAL_WINDOW, Vec::new());
    carry(&mut far, &mut near);
    carry(&mut near, &mut far);
    assert_eq!(far.poll_event(), Some(Event::Reset { key: there, errno: nix::errno::Errno::ECONNRESET }));
    assert_eq!((far.books().streams, near.books().streams), (0, 0));
}

#[test]
fn unread_reaches_the_other_program_once_and_only_if_it_was_said() {
    for unread in [true, false] {
        let mut near: Mux<Bytes> = Mux::new(Options::new(true));
        let mut far = alone();
        near.on_link_up(Lane::Lat);
        let key = near.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
        near.on_read(key, Bytes::from_static(b"never read"), false, None, 0);
        carry(&mut near, &mut far);
        let Some(Event::Incoming { key: there, .. }) = far.poll_event() else { panic!("no OPEN") };
        far.accept(there, INITIAL_WINDOW, Vec::new());
        far.on_sink_gone(there, unread);
        far.on_sink_gone(there, !unread);
        far.on_eof(there);
        carry(&mut far, &mut near);
        assert_eq!(near.poll_event(), Some(Event::Accepted { key, said: Vec::new() }));
        assert_eq!(near.poll_event(), Some(Event::ReadClosed { key, unread }));
        assert_eq!(near.poll_event(), Some(Event::Fin { key }));
        assert_eq!((near.books().streams, far.books().streams), (0, 0), "both directions are over");
    }
}

#[test]
fn what_no_honest_peer_says_is_an_error_and_never_a_panic() {
    fn data(flags: u8, aux: u16) -> Header {
        Header { flags, aux, ..Header::new(FrameType::Data, 1) }
    }
    fn recipe(flags: u8) -> Header {
        Header { flags, ..Header::new(FrameType::Recipe, 1) }
    }
    fn one(mux: &mut Mux<Bytes>, header: Header) -> WireResult<()> {
        mux.on_data(Lane::Lat, header, Bytes::new(), (true, true), 0)
    }
    type Wrong = fn(&mut Mux<Bytes>) -> WireResult<()>;
    let all: [(&str, Wrong); 12] = [
        ("fds without recipes", |m| one(m, data(flags::HAS_FDS, 1))),
        ("65535 fds", |m| one(m, data(flags::HAS_FDS, u16::MAX))),
        ("recipes twice", |m| {
            m.on_control(Lane::Lat, recipe(0), b"a", 0)?;
            m.on_control(Lane::Lat, recipe(0), b"b", 0)
        }),
        ("no recipes at all for fds", |m| {
            m.on_control(Lane::Lat, recipe(0), b"", 0)?;
            one(m, data(flags::HAS_FDS, 1))
        }),
        ("half of the recipes", |m| {
            m.on_control(Lane::Lat, recipe(flags::MORE), b"a", 0)?;
            one(m, data(flags::HAS_FDS, 1))
        }),
        ("a second HELLO", |m| m.on_control(Lane::Lat, Header::new(FrameType::Hello, 0), b"", 0)),
        ("a stream that never was", |m| m.on_control(Lane::Lat, Header::new(FrameType::Credit, 77), b"", 0)),
        ("OPEN of our own number", |m| m.on_control(Lane::Lat, Header::new(FrameType::Open, 2), b"", 0)),
        ("OPEN twice", |m| m.on_control(Lane::Lat, Header::new(FrameType::Open, 1), b"", 0)),
        ("a request too long", |m| {
            m.on_control(Lane::Lat, Header::new(FrameType::Open, 3), &vec![0; OPEN_MAX as usize + 1], 0)
        }),
        ("ACCEPT of its own stream", |m| m.on_control(Lane::Lat, Header::new(FrameType::Accept, 1), b"", 0)),
        ("MOVE_BACK from LAT", |m| m.on_control(Lane::Lat, Header::new(FrameType::MoveBack, 1), b"", 0)),
    ];
    for (what, wrong) in all {
        let mut mux = alone();
        open(&mut mux, 1);
        assert!(wrong(&mut mux).is_err(), "{what} is taken");
    }
}
