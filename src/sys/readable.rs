//! How many bytes a pipe or socket holds for its reader.

use std::os::fd::{AsFd, AsRawFd};

nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);

/// Bytes that a read would give now; 0 where the kernel cannot tell.
pub fn bytes(fd: &impl AsFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `count` is one.
    match unsafe { fionread(fd.as_fd().as_raw_fd(), &raw mut count) } {
        Ok(_) => usize::try_from(count).unwrap_or(0),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pipe_tells_what_it_holds() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(bytes(&reader), 0);
        writer.write_all(b"12345").unwrap();
        assert_eq!(bytes(&reader), 5);
    }
}
