//! Sends for whose success nobody wakes: what every engine promises of them, on every engine.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::buf::{Chunk, Pool, Size};
use super::op::{Done, Engine, Fd, Message, Op};
use super::tests::{each_engine, pair, pattern, shared};
use crate::errno::Errno;
use crate::mux::Payload;

fn chunk(fd: &Fd, bytes: &[u8]) -> Op {
    Op::SendChunk { fd: Rc::clone(fd), chunk: Chunk::from_vec(bytes.to_vec()) }
}

/// One wait, or more where a signal ended it with nothing.
fn turn(engine: &mut dyn Engine, limit: Duration) -> (Vec<Done>, Duration) {
    let (mut done, begun) = (Vec::new(), Instant::now());
    while done.is_empty() && begun.elapsed() < limit {
        engine.wait(Some(limit.saturating_sub(begun.elapsed())), &mut done).unwrap();
    }
    (done, begun.elapsed())
}

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(250);

#[test]
fn they_arrive_and_are_told_of_when_the_wait_is_over() {
    each_engine(|engine| {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let mut message = Box::new(Message::default());
        message.batch.push_body(Chunk::from_vec(b"batch".to_vec()));
        engine.submit_quietly(Op::Send { fd: Rc::clone(&near), message }, 1);
        engine.submit_quietly(chunk(&near, b"chunk"), 2);
        let (done, _) = turn(engine, SHORT);
        let told: Vec<_> = done.iter().map(|d| (d.token, d.result)).collect();
        assert_eq!(told, [(1, Ok(5)), (2, Ok(5))]);
        let mut got = [0; 10];
        (&far).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"batchchunk");
    });
}

#[test]
fn whoever_hurries_is_told_at_once_and_so_is_who_waits_for_something_else() {
    each_engine(|engine| {
        let (near, far) = pair();
        engine.submit_quietly(chunk(&near, b"1"), 1);
        engine.hurry();
        let (done, took) = turn(engine, LONG);
        assert!(done.len() == 1 && took < LONG / 2, "{done:?} after {took:?}");
        // Nothing is left of the hurry.
        assert!(turn(engine, SHORT).0.is_empty());
        engine.submit(Op::Recv { fd: far, into: Pool::default().take(Size::Small), max: 10, fds: true, dry: false }, 2);
        engine.submit_quietly(chunk(&near, b"2"), 3);
        let mut told = Vec::new();
        while told.len() < 2 {
            let (done, took) = turn(engine, LONG);
            assert!(took < LONG / 2);
            told.extend(done.into_iter().map(|d| d.token));
        }
        told.sort_unstable();
        assert_eq!(told, [2, 3]);
    });
}

#[test]
fn what_fails_or_is_cut_short_is_told_at_once_with_its_count() {
    let told = std::cell::Cell::new(0);
    each_engine(|engine| {
        let (near, far) = UnixStream::pair().unwrap();
        SockRef::from(&near).set_send_buffer_size(1).unwrap();
        let (near, sent) = (shared(near), pattern(300_000));
        engine.submit_quietly(chunk(&near, &sent), 1);
        let (mut done, took) = turn(engine, SHORT);
        if done.is_empty() {
            // A ring that cannot tell goes on by itself when there is room.
            let reader = std::thread::spawn(move || {
                let mut got = vec![0; 300_000];
                (&far).read_exact(&mut got).unwrap();
                got
            });
            (done, _) = turn(engine, LONG);
            assert_eq!(done[0].result, Ok(300_000));
            assert!(reader.join().unwrap() == sent);
            return;
        }
        assert!(took < SHORT);
        told.set(told.get() + 1);
        let count = done[0].result.unwrap() as usize;
        assert!(0 < count && count < sent.len());
        let mut got = vec![0; count];
        (&far).read_exact(&mut got).unwrap();
        assert!(got == sent[..count]);
        drop(far);
        engine.submit_quietly(chunk(&near, b"nobody"), 2);
        let (done, took) = turn(engine, LONG);
        assert_eq!((done.len(), done[0].result), (1, Err(Errno::EPIPE)));
        assert!(took < LONG / 2);
    });
    assert_eq!(told.get(), 3, "all but the ring of 5.10");
}

#[test]
fn more_of_them_than_the_queue_has_room_for_all_end() {
    each_engine(|engine| {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let many = 3 * crate::limits::RING_SQ_ENTRIES as usize;
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; many];
            (&far).read_exact(&mut got).unwrap();
        });
        // A unix socket has room for a few hundred messages of a byte.
        for at in (0..many).step_by(64) {
            let count = 64.min(many - at);
            for _ in 0..count {
                engine.submit_quietly(chunk(&near, b"x"), 1);
            }
            let mut ended = 0;
            while ended < count {
                engine.hurry();
                for one in turn(engine, LONG).0 {
                    match one.result {
                        Ok(1) => ended += 1,
                        Err(Errno::EAGAIN) => {
                            engine.submit(one.op, 1);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        reader.join().unwrap();
    });
}
