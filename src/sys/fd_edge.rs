//! Where in a byte stream passed fds belong.
//!
//! unix(7): fds arrive with the first byte of the message that carried them, but one read may return bytes of earlier
//! messages in front of it. A program that reads those by read(2) would lose fds that were moved forward to them.

use std::os::fd::{AsFd, OwnedFd};

use super::scm;
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
/// # Errors
/// The kernel's; EMSGSIZE when fds were lost.
pub fn take(fd: &impl AsFd, max: usize) -> Result<Taken, Errno> {
    let mut taken = Taken::default();
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
}
