//! What every engine promises, shown on every engine. One that this machine cannot have is a failure.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::buf::{Chunk, Filling, Pool, Size};
use super::epoll::EpollEngine;
use super::op::{Done, Engine, Fd, Message, Op};
use super::uring::{Features, Uring};
use crate::errno::Errno;
use crate::limits::RING_SQ_ENTRIES;
use crate::mux::Payload;
use crate::sys::scm;

/// Runs a promise on one engine after the other, each with a name that a failure shows.
pub(super) fn each_engine(promise: impl Fn(&mut dyn Engine)) {
    let between = Features { deferred: false, ..Features::MODERN };
    for (name, features) in [("6.1", Features::MODERN), ("5.13", between), ("5.10", Features::BASIC)] {
        println!("io_uring as on Linux {name}");
        promise(&mut Uring::new(features).expect("this machine cannot show it"));
    }
    println!("epoll");
    promise(&mut EpollEngine::new().expect("this machine cannot show it"));
}

fn wait_for(count: usize, engine: &mut dyn Engine) -> Vec<Done> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut done = Vec::new();
    while done.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} have ended", done.len());
        engine.wait(Some(Duration::from_secs(1)), &mut done).unwrap();
    }
    assert_eq!(done.len(), count);
    done
}

fn wait_one(engine: &mut dyn Engine) -> Done {
    wait_for(1, engine).pop().unwrap()
}

fn nothing_comes(engine: &mut dyn Engine) {
    let mut done = Vec::new();
    let until = Instant::now() + Duration::from_millis(20);
    while Instant::now() < until {
        engine.wait(Some(until.saturating_duration_since(Instant::now())), &mut done).unwrap();
        assert!(done.is_empty(), "{done:?}");
    }
}

pub(super) fn shared(fd: impl Into<OwnedFd>) -> Fd {
    Rc::new(fd.into())
}

pub(super) fn pair() -> (Fd, Fd) {
    let (near, far) = UnixStream::pair().unwrap();
    (shared(near), shared(far))
}

fn seqpackets() -> (Fd, Fd) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
    (Rc::new(a), Rc::new(b))
}

fn recv(fd: &Fd) -> Op {
    Op::Recv { fd: Rc::clone(fd), into: Pool::default().take(Size::Large), max: 100, fds: true, dry: true }
}

fn bytes_of(done: Done) -> Vec<u8> {
    let count = done.result.unwrap() as usize;
    let (Op::Recv { mut into, .. } | Op::Read { mut into, .. } | Op::Peek { mut into, .. }) = done.op else {
        panic!("another operation came back")
    };
    into.cut(count).as_ref().to_vec()
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
}

// ---- messages -----------------------------------------------------------------------------------------------------

#[test]
fn bytes_and_253_fds_cross_a_socket_that_also_brings_credentials() {
    use nix::sys::socket::{setsockopt, sockopt};
    each_engine(|engine| {
        let (near, far) = pair();
        setsockopt(&far, sockopt::PassCred, &true).unwrap();
        let (probe, mut other) = UnixStream::pair().unwrap();
        // One that waits for its message, and one whose message waits for it.
        for waits in [true, false] {
            let mut message = Box::new(Message::from(vec![Chunk::from_vec(b"hello".to_vec())]));
            message.fds = (0..253).map(|_| probe.try_clone().unwrap().into()).collect();
            if waits {
                engine.submit(recv(&far), 2);
                nothing_comes(engine);
            }
            engine.submit(Op::Send { fd: Rc::clone(&near), message }, 1);
            if !waits {
                let sent = wait_one(engine);
                assert_eq!((sent.token, sent.result), (1, Ok(5)));
                engine.submit(recv(&far), 2);
            }
            let done = wait_for(if waits { 2 } else { 1 }, engine);
            let mut got = done.into_iter().find(|d| d.token == 2).unwrap();
            assert_eq!((got.fds.len(), got.control_lost, got.record_cut), (253, false, false));
            UnixStream::from(got.fds.pop().unwrap()).write_all(b"x").unwrap();
            let mut byte = [0];
            other.read_exact(&mut byte).unwrap();
            assert_eq!((bytes_of(got), &byte), (b"hello".to_vec(), b"x"));
        }
    });
}

#[test]
fn a_peek_tells_whether_fds_are_ahead() {
    each_engine(|engine| {
        let (near, far) = pair();
        for (bytes, fds, said) in [(&b"plain"[..], &[][..], (Ok(5), false)), (b"with", &[far.as_fd()], (Ok(9), true))] {
            scm::send(far.as_fd(), bytes, fds).unwrap();
            engine.submit(Op::Peek { fd: Rc::clone(&near), into: Pool::default().take(Size::Small), max: 100 }, 1);
            let done = wait_one(engine);
            assert_eq!((done.result, done.control_lost), said);
            assert!(done.fds.is_empty());
            assert!(bytes_of(done).starts_with(b"plain"));
        }
    });
}

/// Its program has ended its half and does not read: that is no room to write.
#[test]
fn a_half_closed_socket_without_room_is_waited_for() {
    each_engine(|engine| {
        for (near, far) in [pair(), seqpackets()] {
            nix::sys::socket::shutdown(far.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
            let fill =
                || nix::sys::socket::send(near.as_raw_fd(), &[0; 1000], nix::sys::socket::MsgFlags::MSG_DONTWAIT);
            while fill().is_ok() {}
            engine.submit(Op::Poll { fd: Rc::clone(&near), events: libc::POLLOUT }, 1);
            let mut message = Box::new(Message::from(vec![Chunk::from_vec(b"with".to_vec())]));
            message.fds.push(far.try_clone().unwrap());
            engine.submit(Op::Send { fd: Rc::clone(&near), message }, 2);
            nothing_comes(engine);
            let mut room = vec![0; 1 << 20];
            while scm::receive(far.as_fd(), &mut room).is_ok_and(|record| record.len > 0) {}
            let mut ended: Vec<u64> = wait_for(2, engine).into_iter().map(|done| done.token).collect();
            ended.sort_unstable();
            assert_eq!(ended, [1, 2]);
        }
    });
}

#[test]
fn a_record_is_measured_before_it_is_read() {
    each_engine(|engine| {
        let (near, far) = seqpackets();
        let long = pattern(100_000);
        scm::send(far.as_fd(), &long, &[far.as_fd()]).unwrap();
        scm::send(far.as_fd(), b"", &[]).unwrap();
        engine.submit(Op::Measure { fd: Rc::clone(&near) }, 1);
        assert_eq!(wait_one(engine).result, Ok(100_000));
        let into = Filling::of_its_own(100_000);
        engine.submit(Op::Recv { fd: Rc::clone(&near), into, max: 100_000, fds: true, dry: false }, 2);
        let done = wait_one(engine);
        assert_eq!((done.result, done.fds.len(), done.record_cut), (Ok(100_000), 1, false));
        assert!(bytes_of(done) == long);
        engine.submit(Op::Measure { fd: near }, 3);
        assert_eq!(wait_one(engine).result, Ok(0));
    });
}

#[test]
fn a_record_longer_than_its_buffer_says_so() {
    each_engine(|engine| {
        let (near, far) = seqpackets();
        scm::send(far.as_fd(), &[1; 101], &[]).unwrap();
        engine.submit(recv(&near), 1);
        let done = wait_one(engine);
        assert_eq!((done.result, done.record_cut), (Ok(100), true));
    });
}

/// 16 MiB each way through one fd, a read and a write of it in flight all the time.
#[test]
fn megabytes_cross_one_fd_both_ways_at_once() {
    const LEN: usize = 16 << 20;
    each_engine(|engine| {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let (mut writer, mut reader) = (far.try_clone().unwrap(), far);
        let writing = std::thread::spawn(move || {
            writer.write_all(&pattern(LEN)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let reading = std::thread::spawn(move || {
            let (mut got, mut part) = (Vec::new(), vec![0; 1 << 20]);
            while let count @ 1.. = reader.read(&mut part).unwrap() {
                got.extend_from_slice(&part[..count]);
                // Slower than the writer: sends must wait, and go on where they stopped.
                std::thread::sleep(Duration::from_millis(1));
            }
            got
        });
        let mut left = Box::new(Message::from(
            pattern(LEN).chunks(60_000).map(|c| Chunk::from_vec(c.to_vec())).collect::<Vec<_>>(),
        ));
        let mut got = Vec::new();
        let mut done = Vec::new();
        let read = |into| Op::Recv { fd: Rc::clone(&near), into, max: 64 << 10, fds: true, dry: true };
        engine.submit(read(Pool::default().take(Size::Large)), 1);
        engine.submit(Op::Send { fd: Rc::clone(&near), message: left }, 2);
        let mut halves = 2;
        let deadline = Instant::now() + Duration::from_secs(20);
        while halves > 0 {
            engine.wait(Some(Duration::from_secs(1)), &mut done).unwrap();
            assert!(Instant::now() < deadline, "stuck");
            for one in done.drain(..) {
                let count = one.result.unwrap() as usize;
                match one.op {
                    Op::Recv { .. } if count == 0 => halves -= 1,
                    Op::Recv { mut into, .. } => {
                        got.extend_from_slice(into.cut(count).as_ref());
                        engine.submit(read(Pool::default().take(Size::Large)), 1);
                    }
                    Op::Send { fd, message } => {
                        left = message;
                        left.advance(count);
                        if left.left() > 0 {
                            engine.submit(Op::Send { fd, message: left }, 2);
                        } else {
                            nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
                            halves -= 1;
                        }
                    }
                    other => panic!("{other:?} came back"),
                }
            }
        }
        writing.join().unwrap();
        assert!(got == pattern(LEN), "other bytes came in");
        assert!(reading.join().unwrap() == pattern(LEN), "other bytes went out");
    });
}

#[test]
fn a_send_to_nobody_fails() {
    each_engine(|engine| {
        let (near, far) = pair();
        drop(far);
        engine.submit(Op::SendChunk { fd: near, chunk: Chunk::from_vec(vec![1]) }, 1);
        assert_eq!(wait_one(engine).result, Err(Errno::EPIPE));
    });
}

#[test]
fn a_listener_gives_its_clients() {
    each_engine(|engine| {
        let dir = std::env::temp_dir().join(format!("farside-ring-{}", std::process::id()));
        let _ = std::fs::remove_file(&dir);
        let listener = shared(UnixListener::bind(&dir).unwrap());
        engine.submit(Op::Accept { fd: Rc::clone(&listener) }, 1);
        nothing_comes(engine);
        let mut client = UnixStream::connect(&dir).unwrap();
        let mut done = wait_one(engine);
        UnixStream::from(done.fds.pop().unwrap()).write_all(b"hi").unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "hi");
        std::fs::remove_file(&dir).unwrap();
    });
}

// ---- files --------------------------------------------------------------------------------------------------------

/// A pipe that blocks, and must not block the engine, whatever is in it.
#[test]
fn a_full_pipe_holds_up_nobody_and_gives_every_byte() {
    const LEN: usize = 1 << 20;
    each_engine(|engine| {
        let (reader, writer) = std::io::pipe().unwrap();
        let (reader, writer) = (shared(reader), shared(writer));
        let mut chunk = Chunk::from_vec(pattern(LEN));
        let write = |chunk| Op::Write { fd: Rc::clone(&writer), chunk, terminal: false };
        engine.submit(write(chunk.split_to(100_000)), 1);
        let mut done = Vec::new();
        engine.wait(Some(Duration::ZERO), &mut done).unwrap();
        let read = || Op::Read { fd: Rc::clone(&reader), into: Pool::default().take(Size::Large), max: 50_000 };
        engine.submit(read(), 2);
        let mut got = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while got.len() < LEN {
            engine.wait(Some(Duration::from_secs(1)), &mut done).unwrap();
            assert!(Instant::now() < deadline, "stuck");
            for one in done.drain(..) {
                match (one.token, one.result.unwrap() as usize) {
                    (1, count) => {
                        let Op::Write { chunk: mut rest, .. } = one.op else { panic!("another operation") };
                        rest.advance(count);
                        let rest = if rest.is_empty() { chunk.split_to(chunk.len().min(100_000)) } else { rest };
                        if !rest.is_empty() {
                            engine.submit(write(rest), 1);
                        }
                    }
                    (_, count) => {
                        let Op::Read { mut into, .. } = one.op else { panic!("another operation") };
                        got.extend_from_slice(into.cut(count).as_ref());
                        if got.len() < LEN {
                            engine.submit(read(), 2);
                        }
                    }
                }
            }
        }
        assert!(got == pattern(LEN), "other bytes came out");
    });
}

#[test]
fn a_pipe_without_a_writer_is_at_its_end() {
    each_engine(|engine| {
        let (reader, writer) = std::io::pipe().unwrap();
        let op = Op::Read { fd: shared(reader), into: Pool::default().take(Size::Small), max: 10 };
        engine.submit(op, 1);
        nothing_comes(engine);
        drop(writer);
        assert_eq!(wait_one(engine).result, Ok(0));
    });
}

#[test]
fn a_file_is_read_and_written_at_its_own_position() {
    each_engine(|engine| {
        let (name, text) = (std::env::temp_dir().join(format!("farside-file-{}", std::process::id())), b"0123456789");
        std::fs::write(&name, text).unwrap();
        let file = shared(std::fs::File::options().read(true).write(true).open(&name).unwrap());
        std::fs::remove_file(&name).unwrap();
        let read = || Op::Read { fd: Rc::clone(&file), into: Pool::default().take(Size::Small), max: 4 };
        engine.submit(read(), 1);
        assert_eq!(bytes_of(wait_one(engine)), b"0123");
        engine.submit(Op::Write { fd: Rc::clone(&file), chunk: Chunk::from_vec(b"ab".to_vec()), terminal: false }, 2);
        assert_eq!(wait_one(engine).result, Ok(2));
        for (wanted, count) in [(&b"6789"[..], 4), (b"", 0)] {
            engine.submit(read(), 3);
            let done = wait_one(engine);
            assert_eq!((done.result, &bytes_of(done)[..]), (Ok(count), wanted));
        }
        let null = shared(std::fs::File::options().write(true).open("/dev/null").unwrap());
        engine.submit(Op::Write { fd: null, chunk: Chunk::from_vec(vec![0; 100_000]), terminal: false }, 4);
        assert_eq!(wait_one(engine).result, Ok(100_000));
    });
}

/// A terminal that nobody reads takes what it can, and then its writer waits; not the engine.
#[test]
fn a_terminal_that_is_not_read_holds_up_nobody() {
    each_engine(|engine| {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (mut master, slave) = (std::fs::File::from(terminal.master), shared(terminal.slave));
        let (mut op, mut taken) =
            (Op::Write { fd: slave, chunk: Chunk::from_vec(vec![b'x'; 200_000]), terminal: true }, 0);
        let reading = loop {
            let id = engine.submit(op, 1);
            let mut done = Vec::new();
            let until = Instant::now() + Duration::from_millis(100);
            while done.is_empty() && Instant::now() < until {
                engine.wait(Some(Duration::from_millis(100)), &mut done).unwrap();
            }
            let Some(one) = done.pop() else { break id };
            taken += one.result.unwrap() as usize;
            let Op::Write { fd, mut chunk, terminal } = one.op else { panic!("another operation") };
            chunk.advance(one.result.unwrap() as usize);
            op = Op::Write { fd, chunk, terminal };
        };
        assert!(taken < 200_000);
        let mut part = [0; 1000];
        assert!(master.read(&mut part).unwrap() > 0);
        engine.cancel(reading);
        let last = wait_one(engine).result;
        assert!(matches!(last, Ok(_) | Err(Errno::ECANCELED | Errno::EINTR)), "{last:?}");
    });
}

// ---- ends ---------------------------------------------------------------------------------------------------------

#[test]
fn a_cancelled_read_completes_and_gives_its_buffer_back() {
    each_engine(|engine| {
        let (near, _far) = pair();
        let pool = Pool::default();
        for starts in [true, false] {
            let into = pool.take(Size::Large);
            let id = engine.submit(Op::Recv { fd: Rc::clone(&near), into, max: 100, fds: true, dry: false }, 7);
            if starts {
                engine.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
            }
            engine.cancel(id);
            let done = wait_one(engine);
            assert_eq!((done.token, done.result), (7, Err(Errno::ECANCELED)));
            drop(done);
            assert_eq!(pool.used(), 0);
            // It has ended: there is nothing to cancel any more.
            engine.cancel(id);
            nothing_comes(engine);
        }
    });
}

#[test]
fn an_fd_is_closed_when_its_last_operation_has_ended() {
    each_engine(|engine| {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let id = engine.submit(recv(&near), 1);
        engine.submit(Op::SendChunk { fd: near, chunk: Chunk::from_vec(b"bye".to_vec()) }, 2);
        drop(wait_one(engine));
        engine.cancel(id);
        drop(wait_one(engine));
        nothing_comes(engine);
        let mut got = String::new();
        far.read_to_string(&mut got).unwrap();
        assert_eq!(got, "bye");
    });
}

/// Another process may keep the socket: what is closed here must be over here.
#[test]
fn an_fd_that_lives_on_elsewhere_is_forgotten() {
    each_engine(|engine| {
        let (near, far) = pair();
        let kept = near.try_clone().unwrap();
        scm::send(far.as_fd(), b"x", &[]).unwrap();
        engine.submit(recv(&near), 1);
        drop((wait_one(engine), near));
        scm::send(far.as_fd(), b"y", &[]).unwrap();
        nothing_comes(engine);
        drop(kept);
    });
}

#[test]
fn a_wait_without_work_ends_at_its_timeout() {
    each_engine(|engine| {
        for whole in [0, 5, 30].map(Duration::from_millis) {
            let (begun, mut waits, mut done) = (Instant::now(), 0, Vec::new());
            // A signal may end one too early, but they must not spin.
            while waits == 0 || begun.elapsed() < whole {
                engine.wait(Some(whole.saturating_sub(begun.elapsed())), &mut done).unwrap();
                waits += 1;
            }
            assert!(done.is_empty());
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(1) && waits < 5, "{took:?} instead of {whole:?}, in {waits} waits");
        }
    });
}

#[test]
fn more_operations_than_the_queue_has_room_for_all_complete() {
    each_engine(|engine| {
        let (near, far) = pair();
        for token in 0..3 * u64::from(RING_SQ_ENTRIES) {
            engine.submit(Op::Poll { fd: Rc::clone(&near), events: libc::POLLIN }, token);
        }
        scm::send(far.as_fd(), b"x", &[]).unwrap();
        let done = wait_for(3 * RING_SQ_ENTRIES as usize, engine);
        assert!(done.iter().all(|d| d.result == Ok(1)));
    });
}

#[test]
fn a_hangup_is_not_a_half_close() {
    each_engine(|engine| {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        engine.submit(Op::Hangup { fd: Rc::clone(&near) }, 1);
        engine.submit(Op::Hangup { fd: Rc::clone(&near) }, 2);
        engine.submit(recv(&near), 3);
        nothing_comes(engine);
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(wait_one(engine).token, 3);
        nothing_comes(engine);
        drop(far);
        let hup = u32::from(libc::POLLHUP.cast_unsigned());
        assert!(wait_for(2, engine).iter().all(|d| d.result.unwrap() & hup == hup));
        // One that was before the question.
        engine.submit(Op::Hangup { fd: near }, 4);
        assert_eq!(wait_one(engine).token, 4);
    });
}

#[test]
fn a_record_sockets_and_a_tcp_peers_end_are_hangups() {
    each_engine(|engine| {
        let (near, far) = seqpackets();
        engine.submit(Op::Hangup { fd: near }, 1);
        nothing_comes(engine);
        drop(far);
        assert_eq!(wait_one(engine).token, 1);
        let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(door.local_addr().unwrap()).unwrap();
        let (mut far, _) = door.accept().unwrap();
        (&near).write_all(b"unread").unwrap();
        far.read_exact(&mut [0]).unwrap();
        engine.submit(Op::Hangup { fd: shared(near) }, 2);
        nothing_comes(engine);
        // With bytes unread: a reset.
        drop(far);
        assert_eq!(wait_one(engine).token, 2);
    });
}

#[test]
fn a_cancelled_hangup_gives_its_fd_back() {
    each_engine(|engine| {
        let (near, far) = pair();
        let kept = near.try_clone().unwrap();
        let ids = [1, 2].map(|token| engine.submit(Op::Hangup { fd: Rc::clone(&near) }, token));
        nothing_comes(engine);
        ids.into_iter().for_each(|id| engine.cancel(id));
        for done in wait_for(2, engine) {
            assert_eq!(done.result, Err(Errno::ECANCELED));
        }
        nothing_comes(engine);
        assert_eq!(Rc::strong_count(&near), 1);
        // The socket lives on in another fd: its end is nobody's business here.
        drop((near, far));
        nothing_comes(engine);
        drop(kept);
    });
}
