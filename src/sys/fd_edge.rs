//! Where in a byte stream passed fds belong.
//!
//! unix(7): fds arrive with the first byte of the message that carried them, but one read may return bytes of earlier
//! messages in front of it. A program that reads those by read(2) would lose fds that were moved forward to them.

use std::os::fd::{AsFd, OwnedFd};

use super::{closer, scm};
use crate::errno::Errno;

/// Bytes up to the end of the first message with fds.
#[derive(Debug, Default)]
pub struct Taken {
    /// Without fds.
    pub before: Vec<u8>,
    /// Those of the message that carried `fds`; both are empty when there was none.
    pub with: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Takes at most `max` bytes, no further than the end of the first message with fds. `max` comes from a peek, which ends
/// there too. The kernel tells the start of that message only by giving the fds, so this reads byte by byte up to it;
/// a message usually begins at the first one.
///
/// There may be no fds at all, where a program has asked for other control data (SO_PASSCRED), of which a peek without
/// room for any cannot tell them: what a peek with room finds free of them is read at once.
///
/// # Errors
/// The kernel's; EMSGSIZE when fds were lost.
pub fn take(fd: &impl AsFd, max: usize) -> Result<Taken, Errno> {
    let mut taken = Taken::default();
    let mut seen = vec![0; max];
    if let Ok(ahead) = scm::peek(fd.as_fd(), &mut seen) {
        if ahead.fds.is_empty() && !ahead.truncated && ahead.len > 0 {
            let read = scm::receive(fd.as_fd(), &mut seen[..ahead.len])?;
            seen.truncate(read.len);
            taken.before = seen;
            return Ok(taken);
        }
        closer::close(ahead.fds);
    }
    let mut byte = [0];
    while taken.before.len() < max {
        let one = match scm::receive(fd.as_fd(), &mut byte) {
            Ok(one) => one,
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        if one.truncated {
            return Err(Errno::EMSGSIZE);
        }
        match (one.len, one.fds.is_empty()) {
            (0, _) => break,
            (_, true) => taken.before.push(byte[0]),
            (_, false) => {
                taken.fds = one.fds;
                taken.with = vec![0; max - taken.before.len()];
                taken.with[0] = byte[0];
                let rest = match taken.with.len() {
                    1 => 0,
                    _ => scm::receive(fd.as_fd(), &mut taken.with[1..]).map_or(0, |rest| rest.len),
                };
                taken.with.truncate(1 + rest);
                break;
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn fds_come_with_the_message_that_carried_them() {
        let (near, far) = UnixStream::pair().unwrap();
        for (bytes, fds) in [(&b"first"[..], &[][..]), (b"second", &[far.as_fd()]), (b"third", &[])] {
            scm::send(far.as_fd(), bytes, fds).unwrap();
        }
        let taken = take(&near, 11).unwrap();
        assert_eq!((&taken.before[..], &taken.with[..], taken.fds.len()), (&b"first"[..], &b"second"[..], 1));
        let taken = take(&near, 100).unwrap();
        assert_eq!((&taken.before[..], taken.fds.len()), (&b"third"[..], 0));
    }

    #[test]
    fn where_credentials_come_with_every_message_fds_are_found_all_the_same() {
        let (near, far) = UnixStream::pair().unwrap();
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::PassCred, &true).unwrap();
        for _ in 0..100 {
            scm::send(far.as_fd(), b"without", &[]).unwrap();
            let taken = take(&near, 100).unwrap();
            assert_eq!((&taken.before[..], taken.fds.len()), (&b"without"[..], 0));
        }
        scm::send(far.as_fd(), b"first", &[]).unwrap();
        scm::send(far.as_fd(), b"second", &[far.as_fd()]).unwrap();
        let taken = take(&near, 11).unwrap();
        assert_eq!((&taken.before[..], &taken.with[..], taken.fds.len()), (&b"first"[..], &b"second"[..], 1));
    }
}
