//! Streams without a kernel: what is to be done, and when.

use bytes::Bytes;

use super::*;
use crate::limits::{INITIAL_WINDOW, PEEKS_A_TICK, RECORD_WINDOW};
use crate::mux::{Mux, Options, Recipes};
use crate::wire::frame::{FrameType, Header};
use crate::wire::hello::Lane;

struct World {
    mux: Mux<Bytes>,
    stream: Stream<Bytes>,
    budget: Budget,
}

/// A stream that the peer has taken up, with a local end of that kind.
fn world(kind: Option<Kind>) -> World {
    let options = Options::new(true);
    let mut mux = Mux::new(options);
    let key = mux.open(1, Vec::new(), INITIAL_WINDOW).unwrap();
    let accept = Header { credit: RECORD_WINDOW, ..Header::new(FrameType::Accept, key.id()) };
    mux.on_control(Lane::Lat, accept, &[], 0).unwrap();
    let (mut stream, budget) = (Stream::new(key), Budget::default());
    if let Some(kind) = kind {
        stream.attach(kind, &budget).unwrap();
    }
    World { mux, stream, budget }
}

impl World {
    fn next(&mut self) -> Option<Action<Bytes>> {
        self.stream.poll(&self.mux, false, false)
    }

    /// Until there is nothing more to be done.
    fn all(&mut self) -> Vec<Action<Bytes>> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn arrives(&mut self, bytes: &'static [u8]) {
        self.stream.sink.take_in(arrival(bytes, None)).unwrap();
    }

    fn source(&mut self) -> SourceAction {
        match self.next() {
            Some(Action::Source(action)) => action,
            other => panic!("{other:?}"),
        }
    }
}

fn arrival(bytes: &'static [u8], recipes: Option<Recipes>) -> Arrival<Bytes> {
    Arrival { payload: Bytes::from_static(bytes), record_end: true, recipes, overhead: 0 }
}

fn written(actions: &[Action<Bytes>]) -> Vec<&[u8]> {
    let payloads = actions.iter().filter_map(|action| match action {
        Action::Sink(SinkAction::Write { payloads: Payloads::One(one), .. }) => Some(vec![one.as_ref()]),
        Action::Sink(SinkAction::Write { payloads: Payloads::Message(all), .. }) => {
            Some(all.iter().map(AsRef::as_ref).collect())
        }
        _ => None,
    });
    payloads.flatten().collect()
}

#[test]
fn a_stream_socket_is_peeked_at_and_a_busy_one_no_more() {
    let mut world = world(Some(Kind::Socket));
    for _ in 0..PEEKS_A_TICK {
        assert!(matches!(world.source(), SourceAction::Peek { .. }));
        assert!(world.stream.source.on_done());
        world.stream.source.on_seen(5);
        assert_eq!(world.source(), SourceAction::Recv { max: 5, into: Buffer::Small, dry: false });
        assert!(world.stream.source.on_done());
        world.stream.source.on_bytes(5, 5, false);
    }
    assert!(matches!(world.source(), SourceAction::Recv { .. }));
    assert!(world.stream.source.on_done());
    world.stream.source.on_fds();
    assert_eq!(world.all(), []);
    world.stream.source.on_brought();
    assert!(matches!(world.source(), SourceAction::Peek { .. }), "it has passed fds");
}

#[test]
fn a_record_is_measured_and_then_read_whole() {
    let mut world = world(Some(Kind::SeqPacket));
    assert_eq!(world.source(), SourceAction::Measure);
    world.stream.source.on_done();
    world.stream.source.on_measured(70_000);
    assert_eq!(world.source(), SourceAction::Recv { max: 70_000, into: Buffer::Whole, dry: false });
}

#[test]
fn urgent_data_is_passed_by_one_byte_and_only_once_it_is_waited_for() {
    let mut world = world(Some(Kind::Socket));
    world.source();
    world.stream.source.on_done();
    world.stream.source.on_unseen();
    assert_eq!(world.source(), SourceAction::Poll);
    world.stream.source.on_done();
    world.stream.source.on_ready();
    assert_eq!(world.source(), SourceAction::Recv { max: 1, into: Buffer::Small, dry: false });
}

#[test]
fn a_read_that_waits_gives_its_buffer_back_at_the_second_tick() {
    let mut world = world(Some(Kind::Source));
    assert!(matches!(world.source(), SourceAction::Read { .. }));
    world.all();
    assert!(!world.stream.tick());
    assert_eq!(world.all(), []);
    assert!(world.stream.tick());
    assert_eq!(world.all(), [Action::Source(SourceAction::Cancel)]);
    world.stream.source.on_done();
    world.stream.source.on_nothing();
    assert_eq!(world.all(), [Action::Source(SourceAction::Poll)]);
}

#[test]
fn one_write_is_in_flight_and_small_pieces_leave_together() {
    let mut world = world(Some(Kind::Socket));
    world.arrives(b"a");
    assert_eq!(written(&world.all()), [b"a"]);
    world.arrives(b"b");
    world.arrives(b"c");
    assert!(written(&world.all()).is_empty());
    assert_eq!(world.stream.sink.on_written(1, Progress::All), Some(1));
    assert_eq!(written(&world.all()), [b"b", b"c"]);
}

#[test]
fn a_message_with_fds_waits_for_them_and_for_the_memory_that_they_name() {
    let mut world = world(Some(Kind::Socket));
    let recipes = Recipes::new(vec![1], 1);
    world.stream.sink.take_in(arrival(b"m", Some(recipes.clone()))).unwrap();
    assert!(world.all().contains(&Action::Sink(SinkAction::Rebuild(recipes))));
    assert!(world.stream.sink.on_made(1));
    assert_eq!(world.all(), []);
    world.stream.sink.on_filled();
    assert_eq!(written(&world.all()), [b"m"]);
}

#[test]
fn what_was_never_delivered_is_refused_once_and_the_peer_hears_that_nobody_reads() {
    let mut world = world(Some(Kind::Socket));
    let recipes = |n| Recipes::new(vec![n], 1);
    world.arrives(b"first");
    world.all();
    world.stream.sink.take_in(arrival(b"m", Some(recipes(1)))).unwrap();
    world.stream.sink.take_in(arrival(b"n", Some(recipes(2)))).unwrap();
    assert!(world.stream.sink.on_failed());
    world.stream.on_deaf(Errno::EPIPE, || false).unwrap();
    let refused = [1, 2].map(|n| Action::Sink(SinkAction::Refuse(recipes(n))));
    let said = Action::Sink(SinkAction::SayReadClosed { unread: false });
    let [one, two] = refused;
    assert_eq!(world.all(), [said, one, two, Action::Sink(SinkAction::Closed)]);
}

#[test]
fn the_last_end_of_a_socket_is_its_close() {
    let shut = |unless_alone| Action::ShutWrites { unless_alone };
    let mut first = world(Some(Kind::Socket));
    first.next();
    first.stream.sink.on_fin();
    assert!(first.all().contains(&shut(false)), "its program writes on");
    assert!(!first.stream.is_closed());
    let mut last = world(Some(Kind::Socket));
    last.next();
    last.stream.source.on_done();
    last.stream.on_eof(false, false);
    assert!(last.all().contains(&Action::Source(SourceAction::SayEof)));
    last.stream.sink.on_fin();
    let end = last.all();
    assert!(end.contains(&shut(true)) && end.contains(&Action::CancelHangup), "{end:?}");
    assert!(last.stream.is_closed() && !last.stream.is_over(), "the wait for its program is in flight");
    last.stream.on_hangup_done(false);
    assert!(last.stream.is_over());
}

#[test]
fn a_shared_socket_is_never_shut() {
    let mut world = world(None);
    world.stream.share();
    world.stream.attach(Kind::Socket, &world.budget).unwrap();
    world.next();
    world.stream.on_read_closed(true);
    world.stream.sink.on_fin();
    let shuts = |action: &Action<Bytes>| {
        matches!(action, Action::ShutWrites { .. } | Action::Source(SourceAction::ShutReads) | Action::ForceReset)
    };
    assert!(!world.all().iter().any(shuts));
}

#[test]
fn a_stream_that_is_closed_asks_nothing_of_its_local_end() {
    let mut world = world(Some(Kind::Socket));
    world.next();
    world.arrives(b"a");
    world.all();
    world.stream.source.on_done();
    world.stream.on_eof(true, true);
    world.all();
    assert!(world.stream.is_closed() && !world.stream.is_over(), "the cancelled write is in flight");
    // The driver has given the fd up. The peer says that nobody reads, and that nothing follows.
    world.stream.on_read_closed(false);
    world.stream.on_read_closed(true);
    world.stream.sink.on_fin();
    assert_eq!(world.all(), []);
}

#[test]
fn a_close_that_is_to_be_a_reset_waits_for_the_read_and_for_the_helper() {
    let mut world = world(Some(Kind::Socket));
    world.next();
    world.stream.on_read_closed(true);
    world.stream.sink.on_fin();
    assert_eq!(world.all(), [Action::Source(SourceAction::Cancel)]);
    assert!(!world.stream.source.on_done());
    assert_eq!(world.all(), [Action::ForceReset]);
    world.stream.on_reset_forced();
    let end = world.all();
    assert!(!end.iter().any(|action| matches!(action, Action::ShutWrites { .. })), "{end:?}");
    assert!(world.stream.is_over());
}

#[test]
fn a_source_that_is_to_finish_reads_what_is_left() {
    let mut world = world(Some(Kind::Source));
    world.all();
    world.stream.source.finish();
    assert_eq!(world.all(), [Action::Source(SourceAction::Cancel)]);
    world.stream.source.on_done();
    world.stream.source.on_nothing();
    assert_eq!(world.source(), SourceAction::SeeWhatIsLeft);
    world.stream.source.on_left();
    assert!(matches!(world.source(), SourceAction::Read { .. }));
    world.stream.source.on_done();
    world.stream.source.on_bytes(3, 10, false);
    assert_eq!(world.source(), SourceAction::SeeWhatIsLeft);
    world.stream.on_eof(false, false);
    assert_eq!(world.all(), [Action::Source(SourceAction::SayEof)]);
    assert!(world.stream.is_over());
}

#[test]
fn what_came_before_it_was_known_to_keep_records_counts_too() {
    let mut world = world(None);
    world.stream.sink.take_in(Arrival { overhead: 64, ..arrival(&[0; 100], None) }).unwrap();
    assert_eq!(world.budget.held(), 0);
    world.stream.attach(Kind::SeqPacket, &world.budget).unwrap();
    assert_eq!(world.budget.held(), 164);
    world.stream.abort();
    world.all();
    assert_eq!(world.budget.held(), 0);
}

#[test]
fn a_sink_says_its_eof_at_once_and_a_source_is_deaf_from_the_start() {
    let mut sink = world(Some(Kind::Sink));
    assert_eq!(sink.all(), [Action::Source(SourceAction::SayEof)]);
    let mut source = world(Some(Kind::Source));
    source.all();
    assert!(source.stream.sink.is_closed() && !source.stream.source.is_ended());
}

#[test]
fn what_is_aborted_before_it_has_a_local_end_is_over_at_once() {
    let mut world = world(None);
    let recipes = Recipes::new(vec![7], 1);
    world.stream.sink.take_in(arrival(b"m", Some(recipes.clone()))).unwrap();
    world.stream.abort();
    assert!(world.all().contains(&Action::Sink(SinkAction::Refuse(recipes))));
    assert!(world.stream.is_over());
}

#[test]
fn a_quiet_write_is_told_of_when_something_waits_for_it() {
    let mut world = world(Some(Kind::Socket));
    world.next();
    world.arrives(b"a");
    assert!(matches!(world.all()[..], [Action::Sink(SinkAction::Write { quiet: true, .. })]));
    world.arrives(b"b");
    assert_eq!(world.all(), [Action::Sink(SinkAction::Hurry)]);
    world.stream.sink.on_written(1, Progress::All);
    assert_eq!(written(&world.all()), [b"b"]);
}
