//! What any text at all may do to the readers of files that people write: give a value or an error of one line, never a
//! panic; and what they accept means the same when it is written out and read again.

use std::net::IpAddr;
use std::path::Path;

use farside::auth::KeyLine;
use farside::errno::Errno;
use farside::policy::{
    Accounts, AsWritten, ExecList, ExecQuery, FsList, FsOp, Machine, Network, PathGlob, PeerFile, TextGlob, Within,
    with_keys,
};
use farside::trust::HostKey;

/// The first byte says which reader gets the rest.
pub fn try_text(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match which % 8 {
        0 => key_line(text),
        1 => host_key(text),
        2 | 3 => peer_file(text),
        4 => exec_list(text),
        5 => fs_list(text),
        6 => globs(text),
        _ => network(text),
    }
}

fn one_line(error: impl std::fmt::Display) {
    let said = error.to_string();
    assert!(!said.is_empty() && !said.contains('\n'), "{said:?}");
}

fn key_line(text: &str) {
    match text.parse::<KeyLine>() {
        Ok(line) => assert_eq!(line.to_string().parse(), Ok(line)),
        Err(e) => one_line(e),
    }
}

fn host_key(text: &str) {
    match HostKey::parse(text) {
        Ok(key) => {
            let again = HostKey::parse(&key.text()).expect("our own text");
            assert_eq!((again.line(), again.machine), (key.line(), key.machine));
        }
        Err(e) => one_line(e),
    }
}

/// Every name is user 7, who is in no group.
struct Nobody;

impl Accounts for Nobody {
    fn uid_of(&self, _: &str) -> Result<Option<u32>, Errno> {
        Ok(Some(7))
    }

    fn is_member(&self, _: u32, _: u32) -> Result<bool, Errno> {
        Ok(false)
    }
}

/// Paths that the kernel never gives, and that no rule may therefore allow.
const IMPOSSIBLE: [&[u8]; 6] = [b"", b"x", b"/a/../b", b"/a//b", b"/./a", b"/a/"];

fn peer_file(text: &str) {
    let path = Path::new("/p");
    let file = match PeerFile::parse(path, text) {
        Ok(file) => file,
        Err(e) => return one_line(e),
    };
    assert!(!file.keys.is_empty());
    let machine = Machine::default();
    for path in IMPOSSIBLE {
        let query = ExecQuery { path, args: &[], uid: 7, gid: 7, groups: &[] };
        assert!(file.policy.exec(&machine, &Nobody, &AsWritten, &query).is_err());
        assert!(file.policy.uds(&AsWritten, path).is_err() && file.policy.mount(&machine, &AsWritten, path).is_err());
        assert!(file.policy.fs(&machine, &AsWritten, path, false).is_err());
    }
    for path in [&b"/"[..], b"/a", b"/a/b", b"/usr/bin/x"] {
        // What may be mounted may be read, and what may be mounted for writing may be written.
        if let Ok(mount) = file.policy.mount(&machine, &AsWritten, path) {
            assert!(file.policy.fs(&machine, &AsWritten, path, !mount.grant.read_only).is_ok());
        }
        if file.policy.fs(&machine, &AsWritten, path, true).is_ok() {
            assert!(file.policy.fs(&machine, &AsWritten, path, false).is_ok());
        }
    }
    // A line in a key's place never changes what people wrote about anything else.
    if let Ok(after) = with_keys(path, text, &file.keys) {
        assert_eq!(PeerFile::parse(path, &after).expect("it was parsed").keys, file.keys);
    }
}

fn exec_list(text: &str) {
    if let Err(e) = ExecList::parse(Path::new("/w"), text, &|_| None) {
        one_line(e);
    }
}

fn fs_list(text: &str) {
    match FsList::parse(Path::new("/w"), text) {
        Ok(list) => {
            for op in FsOp::ALL {
                assert_eq!(list.within(op, b"/a/../b"), list.within(op, b"relative"));
                if list.within(op, b"/a") == Within::All {
                    assert_eq!(list.within(op, b"/a/b"), Within::All, "{op:?}");
                }
            }
        }
        Err(e) => one_line(e),
    }
}

/// The pattern, a newline, and a text for it.
fn globs(text: &str) {
    let (pattern, text) = text.split_once('\n').unwrap_or((text, ""));
    match TextGlob::parse(pattern) {
        Ok(glob) => assert_eq!(glob.matches(text.as_bytes()), plainly(pattern.as_bytes(), text.as_bytes())),
        Err(e) => one_line(e),
    }
    if let Ok(glob) = PathGlob::parse(pattern) {
        assert!(IMPOSSIBLE.iter().all(|path| !glob.matches(path)));
        assert!(!glob.is_everything() || glob.matches(b"/a") && glob.matches(b"/a/b/c"));
        let _ = glob.matches(text.as_bytes());
    }
}

/// Matching as one would explain it, too slow for long texts: a table instead of going back.
fn plainly(pattern: &[u8], text: &[u8]) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    let mut rest = pattern.iter();
    while let Some(byte) = rest.next() {
        let mut next = vec![false; text.len() + 1];
        let literal = if *byte == b'\\' { rest.next() } else { None };
        for at in 0..=text.len() {
            next[at] = match (literal, byte) {
                (None, b'*') => row[at] || at > 0 && next[at - 1],
                (None, b'?') => at > 0 && row[at - 1],
                (literal, byte) => at > 0 && row[at - 1] && text[at - 1] == *literal.unwrap_or(byte),
            };
        }
        row = next;
    }
    row[text.len()]
}

fn network(text: &str) {
    match text.parse::<Network>() {
        Ok(network) => {
            assert_eq!(network.to_string().parse(), Ok(network));
            if let Some(ip) = network.single() {
                assert!(network.holds(ip));
            }
            let _ = network.holds(IpAddr::from([127, 0, 0, 1]));
        }
        Err(e) => one_line(e),
    }
}
