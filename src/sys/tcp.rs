//! What the kernel knows of a TCP connection.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How long ago the other machine's kernel acknowledged something, keepalive probes included, in milliseconds: it does
/// also while the program there is stopped. `None`: no TCP connection.
pub fn acknowledged_ms_ago(fd: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: a tcp_info is integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a few hundred bytes");
    let at = (&raw mut info).cast();
    // SAFETY: the kernel writes at most `len` bytes to `info`.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) };
    (done == 0).then_some(info.tcpi_last_ack_recv)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_connection_tells_when_its_peer_was_last_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        assert!(acknowledged_ms_ago(near.as_fd()).unwrap() < 5_000);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(acknowledged_ms_ago(socket.as_fd()), None);
    }
}
