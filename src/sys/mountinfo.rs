//! /proc/PID/mountinfo: what is mounted where, as that process sees it.

/// proc(5): `36 35 98:0 /root /mount/point rw,opts tags... - fstype source super-opts`.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// st_dev of its files: major, minor.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted here: `/`, or deeper for a bind mount.
    pub root: Vec<u8>,
    pub point: Vec<u8>,
    pub kind: Vec<u8>,
    pub source: Vec<u8>,
    /// The file system's own options.
    pub options: Vec<u8>,
}

impl Mount {
    /// Whether root has made this FUSE mount: any user may give theirs our type and any source, but not this.
    pub fn is_roots(&self) -> bool {
        self.options.split(|b| *b == b',').any(|option| option == b"user_id=0")
    }
}

/// The mount with this id, if the process sees it.
pub fn find(mountinfo: &[u8], id: u64) -> Option<Mount> {
    let id = id.to_string();
    mountinfo.split(|b| *b == b'\n').find_map(|line| {
        let first = line.split(|b| *b == b' ').next()?;
        if first == id.as_bytes() { parse(line) } else { None }
    })
}

/// Every mount that the process sees, in the order they were made.
pub fn all(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    mountinfo.split(|b| *b == b'\n').filter_map(parse)
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ').skip(2);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, point) = (fields.next()?, fields.next()?);
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let (kind, source, options) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Mount {
        device,
        root: plain(root),
        point: plain(point),
        kind: plain(kind),
        source: plain(source),
        options: plain(options),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: &[u8] = b"22 1 0:21 / /proc rw,relatime - proc proc rw\n\
        220 1 0:50 /sub /a\\040b rw shared:1 master:2 - fuse.qtfs /var/lib/lib\\134virt rw,user_id=0\n\
        2 1 0:9 / /short rw";

    #[test]
    fn a_mount_is_found_by_its_id_with_its_escapes_undone() {
        let mount = find(SEEN, 220).unwrap();
        assert_eq!(mount.root, b"/sub");
        assert_eq!(mount.point, b"/a b");
        assert_eq!(mount.kind, b"fuse.qtfs");
        assert_eq!(mount.source, b"/var/lib/lib\\virt");
        assert_eq!(find(SEEN, 22).unwrap().kind, b"proc");
        assert_eq!(plain(br"/a\040b\134c\x"), br"/a b\c\x");
        assert_eq!(all(SEEN).count(), 2, "the cut line is none");
    }

    #[test]
    fn unknown_ids_and_cut_lines_are_no_mounts() {
        for id in [0, 2, 1, 2200] {
            assert_eq!(find(SEEN, id), None, "{id}");
        }
    }
}
