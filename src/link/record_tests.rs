//! Records over two real nodes: their bounds, their fds, their end.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::SockType;

use super::tests::{World, pattern};
use crate::errno::Errno;
use crate::limits::RECORD_MAX;
use crate::sys::scm;

fn receive(from: &UnixStream) -> (Vec<u8>, usize) {
    let mut room = vec![0; RECORD_MAX as usize + 1];
    let record = scm::receive_waiting(from.as_fd(), &mut room).unwrap();
    assert!(!record.truncated);
    room.truncate(record.len);
    (room, record.fds.len())
}

const LENGTHS: [usize; 10] = [0, 1, 0, 64, 4096, 4097, 65_536, 200 << 10, 0, 1 << 20];

#[test]
fn records_keep_their_bounds_both_ways() {
    for kind in [SockType::SeqPacket, SockType::Datagram] {
        let world = World::new(1);
        let (near, far) = world.connect_as(kind);
        for (from, to) in [(&near, &far), (&far, &near)] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for (seed, len) in LENGTHS.into_iter().enumerate() {
                        scm::send(from.as_fd(), &pattern(len, seed), &[]).unwrap();
                    }
                });
                for (seed, len) in LENGTHS.into_iter().enumerate() {
                    let (got, fds) = receive(to);
                    assert!(got == pattern(len, seed), "{kind:?}: a record of {len} bytes came as {}", got.len());
                    assert_eq!(fds, 0);
                }
            });
        }
    }
}

#[test]
fn fds_come_with_their_record_even_an_empty_one() {
    let world = World::new(1);
    let (near, far) = world.connect_as(SockType::SeqPacket);
    let null = std::fs::File::open("/dev/null").unwrap();
    for (len, fds) in [(5, 0), (0, 2), (7, 1), (100_000, 253), (0, 0), (3, 1)] {
        scm::send(near.as_fd(), &pattern(len, len), &vec![null.as_fd(); fds]).unwrap();
    }
    for (len, fds) in [(5, 0), (0, 2), (7, 1), (100_000, 253), (0, 0), (3, 1)] {
        assert_eq!(receive(&far), (pattern(len, len), fds));
    }
}

#[test]
fn an_empty_record_is_no_end_and_an_end_is_one() {
    let world = World::new(1);
    let (near, far) = world.connect_as(SockType::SeqPacket);
    scm::send(near.as_fd(), b"", &[]).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&far), (Vec::new(), 0));
    scm::send(far.as_fd(), b"still heard", &[]).unwrap();
    assert_eq!(receive(&near).0, b"still heard");
    // recvmsg(2) gives nothing for ever now; an empty record would have been taken.
    for _ in 0..3 {
        assert_eq!(receive(&far), (Vec::new(), 0));
    }
    drop(far);
    assert_eq!(receive(&near).0, b"");
}

#[test]
fn a_reader_that_stops_delays_nobody_and_loses_nothing() {
    let world = World::new(1);
    let (near, far) = world.connect_as(SockType::SeqPacket);
    near.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // What two sockets and a window hold is bounded; then the sender is told to wait.
    while scm::send(near.as_fd(), &pattern(100_000, sent), &[]).is_ok() || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        scm::send(near.as_fd(), &pattern(100_000, sent), &[]).is_ok()
    } {
        sent += 1;
        assert!(sent < 200, "20 MB are nowhere to be held");
    }
    let (mut other, mut answer) = world.connect();
    other.write_all(b"x").unwrap();
    std::io::Read::read_exact(&mut answer, &mut [0]).unwrap();
    for seed in 0..sent {
        assert!(receive(&far).0 == pattern(100_000, seed), "record {seed}");
    }
}

#[test]
fn a_datagram_nobody_can_get_ends_its_stream() {
    let world = World::new(1);
    let (near, far) = world.connect_as(SockType::Datagram);
    drop(far);
    let mut last = Ok(());
    for _ in 0..100 {
        last = scm::send(near.as_fd(), b"x", &[]);
        if last.is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(last, Err(Errno::ECONNREFUSED));
}

#[test]
fn a_thousand_streams_of_small_records_work_at_once_and_those_who_hoard_large_ones_are_cut_off() {
    crate::sys::nofile::raise().unwrap();
    let world = World::new(1);
    let small: Vec<_> = (0..800).map(|_| world.connect_as(SockType::SeqPacket)).collect();
    for (n, (near, _)) in small.iter().enumerate() {
        scm::send(near.as_fd(), &pattern(100, n), &[]).unwrap();
    }
    // Nobody reads these: 2.2 MiB each are here before their senders wait.
    let stuck: Vec<_> = (0..60).map(|_| world.connect_as(SockType::SeqPacket)).collect();
    for (near, _) in &stuck {
        near.set_nonblocking(true).unwrap();
    }
    let large = pattern(1 << 20, 0);
    let is_cut =
        |near: &UnixStream| matches!(scm::send(near.as_fd(), &large, &[]), Err(Errno::EPIPE | Errno::ECONNRESET));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut cut = 0;
    while cut < 20 && std::time::Instant::now() < deadline {
        cut = stuck.iter().filter(|(near, _)| is_cut(near)).count();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!((20..60).contains(&cut), "{cut} of 60 that hold 130 MiB were cut off for 64");
    for (n, (near, far)) in small.iter().enumerate() {
        assert_eq!(receive(far), (pattern(100, n), 0));
        scm::send(far.as_fd(), &pattern(50, n), &[]).unwrap();
        assert_eq!(receive(near), (pattern(50, n), 0));
    }
}
