//! TLS records of a blocking connection, as std's Read and Write: for file links, whose threads wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use crate::auth::{Opened, Opener, RECORD_HEAD, RECORD_MAX, Sealer};
use crate::limits::FILE_IO_MAX;
use crate::wire::WireResult;

/// Several records a read, and always room for the whole of one.
const BUFFER: usize = 64 << 10;

pub(super) struct Reader {
    stream: TcpStream,
    opener: Opener,
    buffer: Box<[u8]>,
    /// Opened, and not read yet.
    plain: Range<usize>,
    /// Received, and not opened yet; behind `plain`.
    sealed: Range<usize>,
}

impl Reader {
    pub(super) fn new(stream: TcpStream, opener: Opener) -> Self {
        Self { stream, opener, buffer: vec![0; BUFFER].into(), plain: 0..0, sealed: 0..0 }
    }

    /// Opens the next record with data. False: the connection has ended.
    fn open_next(&mut self) -> io::Result<bool> {
        loop {
            let Range { start, end } = self.sealed.clone();
            match self.opener.open(&mut self.buffer[start..end]).map_err(broken)? {
                Opened::Record { used, plain } => {
                    self.plain = start + plain.start..start + plain.end;
                    self.sealed.start += used;
                    if !self.plain.is_empty() {
                        return Ok(true);
                    }
                }
                Opened::End => return Ok(false),
                Opened::Part { want } => {
                    if start + want > self.buffer.len() || start == end {
                        self.buffer.copy_within(start..end, 0);
                        self.sealed = 0..end - start;
                    }
                    let count = self.stream.read(&mut self.buffer[self.sealed.end..])?;
                    if count == 0 {
                        return if self.sealed.is_empty() { Ok(false) } else { Err(cut_short()) };
                    }
                    self.sealed.end += count;
                }
            }
        }
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.plain.is_empty() && !self.open_next()? {
            return Ok(0);
        }
        let count = into.len().min(self.plain.len());
        into[..count].copy_from_slice(&self.buffer[self.plain.start..self.plain.start + count]);
        self.plain.start += count;
        Ok(count)
    }
}

pub(super) struct Writer {
    stream: TcpStream,
    sealer: Sealer,
    /// What is sealed and on its way.
    records: Vec<u8>,
    /// A record that was sealed and not sent: the peer can open nothing that follows.
    broken: bool,
}

impl Writer {
    pub(super) fn new(stream: TcpStream, sealer: Sealer) -> Self {
        Self { stream, sealer, records: Vec::new(), broken: false }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.records.clear();
        self.sealer.seal([bytes], &mut self.records).map_err(broken)?;
        self.stream.write_all(&self.records)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Bounds what is sealed and waits; a file frame fits in two.
        let now = &bytes[..bytes.len().min(FILE_IO_MAX)];
        let sent = self.send(now);
        self.broken = sent.is_err();
        sent.map(|()| now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One record's data, and not a byte of the stream more. `read` brings at least one byte or fails.
pub(in crate::link) fn read_record<E>(
    opener: &mut Opener,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<WireResult<Vec<u8>>, E> {
    let mut bytes = Vec::new();
    let mut want = RECORD_HEAD;
    while bytes.len() < want {
        let got = bytes.len();
        bytes.resize(want.min(RECORD_MAX), 0);
        let count = read(&mut bytes[got..])?;
        bytes.truncate(got + count);
        match opener.open(&mut bytes) {
            Ok(Opened::Part { want: more }) => want = more,
            Ok(Opened::Record { plain, .. }) => return Ok(Ok(bytes[plain].to_vec())),
            Ok(Opened::End) => break,
            Err(e) => return Ok(Err(e)),
        }
    }
    Ok(Err(crate::wire::ProtocolError("the other end closed the connection".into())))
}

fn broken(e: crate::wire::ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.0)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a record")
}
