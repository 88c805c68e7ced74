//! Whole frames off a blocking connection, into a buffer that is used again.

use std::io::{BufReader, ErrorKind, Read};

use super::wire::{HEADER_LEN, Header, Kind};
use crate::limits::FILE_FRAME_MAX;
use crate::wire::{WireResult, bad};

/// Small frames come many to a read; big ones go past the buffer.
const BUFFER: usize = 64 << 10;

pub(super) type FrameReader = BufReader<Box<dyn Read + Send>>;

pub(super) fn reader(from: Box<dyn Read + Send>) -> FrameReader {
    BufReader::with_capacity(BUFFER, from)
}

/// Room for the largest frame.
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; FILE_FRAME_MAX].into()
}

/// Reads one whole frame's payload to the front of `buf`; `None` at a clean end.
pub(super) fn read_frame(reader: &mut impl Read, buf: &mut [u8]) -> WireResult<Option<(Kind, usize)>> {
    let mut head = [0; HEADER_LEN];
    let mut got = 0;
    while got < HEADER_LEN {
        match reader.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => bad!("the link ended inside a frame"),
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => bad!("the link broke: {e}"),
        }
    }
    let header = Header::decode(&head)?;
    let Some(payload) = buf.get_mut(..header.len) else { bad!("a frame of {} bytes here", header.len) };
    if let Err(e) = reader.read_exact(payload) {
        bad!("the link broke inside a frame: {e}");
    }
    Ok(Some((header.kind, header.len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qtfs::wire::frame;

    #[test]
    fn frames_come_whole_or_not_at_all() {
        let bytes = [frame(Kind::Ping, b""), frame(Kind::Request, b"abc")].concat();
        let mut buf = [0; 16];
        for cut in 0..=bytes.len() {
            let mut from = &bytes[..cut];
            let first = read_frame(&mut from, &mut buf);
            match cut {
                0 => assert_eq!(first, Ok(None)),
                1..8 => assert!(first.is_err(), "cut at {cut}"),
                _ => assert_eq!(first, Ok(Some((Kind::Ping, 0)))),
            }
        }
        let mut from = &bytes[8..];
        assert_eq!(read_frame(&mut from, &mut buf), Ok(Some((Kind::Request, 3))));
        assert_eq!(&buf[..3], b"abc");
    }
}
