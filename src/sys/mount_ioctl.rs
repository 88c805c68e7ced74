//! The ioctl by which a file of a qtfs mount tells what the machine that serves it calls it.

use std::os::fd::{AsRawFd, BorrowedFd};

/// What the mount answers: the file link's token, then the node id, little-endian.
pub const ANSWER_LEN: usize = 24;
type Answer = [u8; ANSWER_LEN];

const TYPE: u8 = b'f';
const NUMBER: u8 = 0xfa;

/// The request as FUSE_IOCTL brings it: `_IOR('f', 0xfa, u8[24])`, ioctl(2). Direction and size are part of the number,
/// so a FUSE mount may answer it without more rights.
#[expect(clippy::cast_possible_truncation, reason = "24")]
pub const REQUEST: u32 = 2 << 30 | (ANSWER_LEN as u32) << 16 | (TYPE as u32) << 8 | NUMBER as u32;

nix::ioctl_read!(identify_raw, TYPE, NUMBER, Answer);

/// The answer of a mount.
pub fn answer(mount: [u8; 16], node: u64) -> Answer {
    let mut out = [0; ANSWER_LEN];
    out[..16].copy_from_slice(&mount);
    out[16..].copy_from_slice(&node.to_le_bytes());
    out
}

/// The mount's token and the node id of an open file or directory; `None` where it is not of a qtfs mount.
pub fn identify(fd: BorrowedFd<'_>) -> Option<([u8; 16], u64)> {
    let mut got: Answer = [0; ANSWER_LEN];
    // SAFETY: the kernel, or a FUSE server through it, writes at most the size that is part of the request's number.
    unsafe { identify_raw(fd.as_raw_fd(), &raw mut got) }.ok()?;
    let (mount, node) = got.split_first_chunk::<16>()?;
    Some((*mount, u64::from_le_bytes(node.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_of_another_kind_has_no_such_name() {
        assert_eq!(identify(std::fs::File::open("/proc/self/exe").unwrap().as_fd()), None);
    }

    #[test]
    fn the_number_is_what_ioctl_read_makes() {
        assert_eq!(u64::from(REQUEST), nix::request_code_read!(TYPE, NUMBER, ANSWER_LEN));
    }
}
