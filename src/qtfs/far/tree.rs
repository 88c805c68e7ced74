//! One mounted directory: its nodes, its open files, its locks, and the words that all requests share.

use std::ffi::CStr;
use std::sync::Arc;

use nix::errno::Errno;

use super::files::Files;
use super::locks::Locks;
use super::nodes::{Node, Nodes};
use crate::policy::FsOps;
use crate::qtfs::abi::{self, InHeader};
use crate::qtfs::wire::{HEADER_LEN, HostSocket};
use crate::sys::file::Stat;
use crate::wire::ProtocolError;
use crate::wire::codec::Encoder;

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Nodes,
    pub(super) files: Files,
    pub(super) locks: Arc<Locks>,
    /// Asked in `rights` alone.
    pub(super) read_only: bool,
    /// What /etc/qtfs/whitelist allows nowhere in it: EACCES.
    pub(super) without: FsOps,
}

/// Why a request is not served.
#[derive(Debug)]
pub(super) enum Fault {
    /// The caller's errno.
    Errno(Errno),
    /// Not something that a kernel says; ends the link.
    Protocol(ProtocolError),
}

impl From<Errno> for Fault {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

impl From<ProtocolError> for Fault {
    fn from(e: ProtocolError) -> Self {
        Self::Protocol(e)
    }
}

/// A request served.
#[derive(Debug)]
pub(super) enum Answer {
    /// A reply with `PREFIX` bytes free in front.
    Reply(Vec<u8>),
    /// The same, about a socket that a host process is bound to.
    Socket(Vec<u8>, HostSocket),
    /// Another thread answers.
    Later,
    /// The kernel wants none.
    Silent,
}

pub(super) type Served = Result<Answer, Fault>;

/// Room in front of a reply's body for both headers, so that it leaves in one write without a copy.
pub(super) const PREFIX: usize = HEADER_LEN + abi::OUT_HEADER;

/// An encoder whose first `PREFIX` bytes are room.
pub(super) fn body() -> Encoder {
    let mut e = Encoder::new();
    e.raw(&[0; PREFIX]);
    e
}

pub(super) fn empty() -> Served {
    Ok(Answer::Reply(body().finish()))
}

/// What a caller with these ids may create is theirs.
pub(super) fn acting_for(header: &InHeader, umask: u32) -> nix::Result<crate::sys::caller::ActingFor> {
    crate::sys::caller::ActingFor::enter(header.uid, header.gid, umask)
}

/// A name is one step down: whatever would be none, or more than one, is refused.
pub(super) fn checked(name: &CStr) -> Result<&CStr, Errno> {
    let bytes = name.to_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::EINVAL),
        _ if bytes.contains(&b'/') => Err(Errno::EINVAL),
        _ if bytes.len() > crate::limits::NAME_MAX => Err(Errno::ENAMETOOLONG),
        _ => Ok(name),
    }
}

impl Tree {
    /// For whatever changes anything: `permit` asks it for the requests of the link.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    pub(super) fn entry(&self, node: &Node, stat: &Stat) -> Answer {
        let mut e = body();
        abi::entry(&mut e, node.id, stat, node.ino);
        Answer::Reply(e.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_step_down_is_a_name() {
        for bad in [c"", c".", c"..", c"a/b", c"/", c"../x"] {
            assert_eq!(checked(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        for good in [c"a", c"...", c"..a", c" "] {
            assert_eq!(checked(good), Ok(good));
        }
        let long = std::ffi::CString::new(vec![b'a'; 256]).unwrap();
        assert_eq!(checked(&long), Err(Errno::ENAMETOOLONG));
    }
}
