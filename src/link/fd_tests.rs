//! fds of every kind over two real nodes, by SCM_RIGHTS.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::SockType;

use super::tests::{World, pattern};
use crate::errno::Errno;
use crate::limits::MEMFD_MAX;
use crate::sys::{scm, terminal};

/// Passes fds from one end to the other.
fn pass(from: &UnixStream, to: &UnixStream, fds: &[&dyn AsFd]) -> Vec<OwnedFd> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    scm::send(from.as_fd(), b"here", &fds).unwrap();
    let record = scm::receive_waiting(to.as_fd(), &mut [0; 10]).unwrap();
    assert_eq!(record.len, 4);
    record.fds
}

#[test]
fn a_sealed_memfd_crosses_whole_and_sealed() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let made = memfd_create(c"keymap", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let mut file = File::from(made);
    file.write_all(&pattern(3 << 20, 5)).unwrap();
    file.seek(std::io::SeekFrom::Start(17)).unwrap();
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let [got, twin] = <[OwnedFd; 2]>::try_from(pass(&near, &far, &[&file, &file])).unwrap();
    let mut got = File::from(got);
    assert_eq!(fcntl(&got, FcntlArg::F_GET_SEALS), Ok(seals.bits()));
    assert_eq!(got.stream_position().unwrap(), 17);
    assert_eq!(file.stream_position().unwrap(), 17, "the sender's own offset stays");
    let mut bytes = vec![0; 3 << 20];
    got.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(3 << 20, 5));
    got.seek(std::io::SeekFrom::Start(99)).unwrap();
    assert_eq!(File::from(twin).stream_position().unwrap(), 99, "one open file, twice");
}

#[test]
fn an_empty_memfd_and_253_small_ones_cross_either_way() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let empty = File::from(memfd_create(c"empty", MFdFlags::empty()).unwrap());
    for (from, to) in [(&near, &far), (&far, &near)] {
        assert_eq!(File::from(pass(from, to, &[&empty]).pop().unwrap()).metadata().unwrap().len(), 0);
        let many: Vec<File> = (0..253)
            .map(|n| {
                let mut file = File::from(memfd_create(c"many", MFdFlags::empty()).unwrap());
                file.write_all(&pattern(100, n)).unwrap();
                file
            })
            .collect();
        let refs: Vec<&dyn AsFd> = many.iter().map(|f| f as &dyn AsFd).collect();
        for (n, got) in pass(from, to, &refs).into_iter().enumerate() {
            let mut bytes = vec![0; 100];
            File::from(got).read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, pattern(100, n));
        }
    }
}

#[test]
fn a_terminal_is_a_terminal_there_and_put_back_here() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let characters = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let state = terminal::State { modes: [0, 0, 0xbf, 0], characters, rows: 40, columns: 132 };
    let (master, slave) = terminal::open(&state).unwrap();
    let got = pass(&near, &far, &[&slave]).pop().unwrap();
    assert_eq!(terminal::state(&got).unwrap(), state);
    let (mut here, mut there) = (File::from(master), File::from(got));
    let mut room = [0; 10];
    there.write_all(b"to the user").unwrap();
    here.read_exact(&mut [0; 11]).unwrap();
    here.write_all(b"typed").unwrap();
    there.read_exact(&mut room[..5]).unwrap();
    assert_eq!(&room[..5], b"typed");
    assert_ne!(terminal::state(&slave).unwrap(), state, "raw meanwhile");
    drop(there);
    for _ in 0..200 {
        if terminal::state(&slave).unwrap() == state {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the terminal was not put back");
}

/// A program that reads some bytes by read(2) drops the fds that come with them. Here every fd lies behind more bytes than
/// one look ahead takes in, and the kernel tells of it before its time.
#[test]
fn fds_stay_behind_the_bytes_in_front_of_them_however_often() {
    const FRONT: usize = 10_003;
    let world = World::new(1);
    let (near, mut far) = world.connect();
    for turn in 0..100 {
        let (reader, mut writer) = std::io::pipe().unwrap();
        (&near).write_all(&[b'.'; FRONT]).unwrap();
        scm::send(near.as_fd(), b"F", &[reader.as_fd()]).unwrap();
        drop(reader);
        writer.write_all(&[turn]).unwrap();
        far.read_exact(&mut [0; FRONT]).unwrap();
        let mut record = scm::receive_waiting(far.as_fd(), &mut [0; 10]).unwrap();
        assert_eq!((record.len, record.fds.len()), (1, 1), "in turn {turn}");
        let mut got = [0];
        File::from(record.fds.pop().unwrap()).read_exact(&mut got).unwrap();
        assert_eq!(got, [turn]);
    }
}

#[test]
fn a_seqpacket_socket_inside_a_socket_keeps_its_records() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let (fd, mine, _) = super::tests::pair_of(SockType::SeqPacket);
    let there = UnixStream::from(pass(&near, &far, &[&fd]).pop().unwrap());
    drop(fd);
    for len in [0, 10, 100_000] {
        scm::send(mine.as_fd(), &pattern(len, 1), &[mine.as_fd()]).unwrap();
        let mut room = vec![0; 200_000];
        let record = scm::receive_waiting(there.as_fd(), &mut room).unwrap();
        assert_eq!((record.len, record.fds.len()), (len, 1));
        assert!(room[..len] == pattern(len, 1));
    }
}

#[test]
fn the_conversation_of_a_listener_that_crossed_outlives_a_refused_fd() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let dir = crate::sys::tempdir::PrivateDir::new("refused").unwrap();
    let path = dir.path().join("monitor");
    let ours = UnixListener::bind(&path).unwrap();
    let theirs = UnixListener::from(pass(&near, &far, &[&ours]).pop().unwrap());
    drop(ours);
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = theirs.accept().unwrap();
    let event = File::from(OwnedFd::from(nix::sys::eventfd::EventFd::new().unwrap()));
    for (from, to) in [(&client, &server), (&server, &client), (&client, &server)] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let [refused, pipe, again] = <[OwnedFd; 3]>::try_from(pass(from, to, &[&event, &reader, &event])).unwrap();
        for refused in [refused, again] {
            assert_eq!(nix::unistd::read(&refused, &mut [0; 8]), Err(Errno::EBADF));
        }
        writer.write_all(b"x").unwrap();
        File::from(pipe).read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn what_cannot_cross_ends_the_stream_and_nothing_is_delivered() {
    let event = File::from(OwnedFd::from(nix::sys::eventfd::EventFd::new().unwrap()));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let directory = File::open("/").unwrap();
    let file = File::open("/etc/passwd").unwrap();
    let large = File::from(memfd_create(c"large", MFdFlags::empty()).unwrap());
    large.set_len(MEMFD_MAX + 1).unwrap();
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
    let refused: [&dyn AsFd; 8] = [&event, &tcp, &client, &datagram, &directory, &file, &large, &epoll.0];
    for fd in refused {
        let world = World::new(1);
        let (near, far) = world.connect();
        scm::send(near.as_fd(), b"with", &[fd.as_fd()]).unwrap();
        let got = scm::receive_waiting(far.as_fd(), &mut [0; 10]);
        assert!(matches!(got, Ok(scm::Record { len: 0, .. }) | Err(Errno::ECONNRESET)), "{}", fd.as_fd().as_raw_fd());
        assert_eq!((&near).read(&mut [0]).unwrap_or(0), 0);
    }
}
