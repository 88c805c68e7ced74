//! How to make an fd again on the other machine. No native number crosses: access modes and kinds are our own.
//!
//! A recipe that mentions a stream announces it: the receiver adopts that stream id and pumps its end of the new pipe
//! or socket over it.

use super::codec::{Decoder, Encoder};
use super::{WireResult, bad};
use crate::limits::FDS_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    Stream,
    SeqPacket,
    Datagram,
}

impl SocketKind {
    pub fn encode(self) -> u8 {
        self as u8
    }

    pub fn decode(byte: u8) -> WireResult<Self> {
        Ok(match byte {
            0 => Self::Stream,
            1 => Self::SeqPacket,
            2 => Self::Datagram,
            n => bad!("socket kind {n}"),
        })
    }
}

/// Devices that are the same thing on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Null,
    Zero,
    Full,
    Random,
    Urandom,
}

impl Device {
    pub const ALL: [Device; 5] = [Device::Null, Device::Zero, Device::Full, Device::Random, Device::Urandom];

    pub fn path(self) -> &'static str {
        match self {
            Self::Null => "/dev/null",
            Self::Zero => "/dev/zero",
            Self::Full => "/dev/full",
            Self::Random => "/dev/random",
            Self::Urandom => "/dev/urandom",
        }
    }

    /// The minor number below major 1: devices.txt, Documentation/admin-guide.
    pub fn minor(self) -> u64 {
        match self {
            Self::Null => 3,
            Self::Zero => 5,
            Self::Full => 7,
            Self::Random => 8,
            Self::Urandom => 9,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub nonblock: bool,
}

impl Access {
    fn encode(self) -> u8 {
        u8::from(self.read) | u8::from(self.write) << 1 | u8::from(self.append) << 2 | u8::from(self.nonblock) << 3
    }

    fn decode(b: u8) -> WireResult<Self> {
        if b >= 16 {
            bad!("access bits {b:#x}");
        }
        Ok(Self { read: b & 1 != 0, write: b & 2 != 0, append: b & 4 != 0, nonblock: b & 8 != 0 })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// One end of a new pipe. `access` is what the program gets: read or write.
    Pipe { stream: u32, access: Access },
    /// One end of a new socket pair.
    Socket { stream: u32, kind: SocketKind, nonblock: bool },
    /// A new listening unix socket; each client of the near one becomes a client of it.
    Listener { stream: u32, kind: SocketKind, backlog: u32, nonblock: bool },
    /// The same device, opened there.
    Device { device: Device, access: Access },
    /// The same open file as an earlier fd of this message.
    Same { index: u16 },
    /// A file or directory of a mount of the receiver's own: it opens its node again, at the same offset.
    File { file: FileId, access: Access, offset: u64 },
}

/// A file as the machine that serves it knows it: which mount, which node. Not a path: a rename changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Random, one for each file link; only its two ends know it.
    pub mount: [u8; 16],
    pub node: u64,
}

impl Recipe {
    /// The stream it announces.
    pub fn stream(&self) -> Option<u32> {
        match self {
            Self::Pipe { stream, .. } | Self::Socket { stream, .. } | Self::Listener { stream, .. } => Some(*stream),
            Self::Device { .. } | Self::Same { .. } | Self::File { .. } => None,
        }
    }

    pub fn set_stream(&mut self, id: u32) {
        match self {
            Self::Pipe { stream, .. } | Self::Socket { stream, .. } | Self::Listener { stream, .. } => *stream = id,
            Self::Device { .. } | Self::Same { .. } | Self::File { .. } => {}
        }
    }

    fn encode(&self, e: &mut Encoder) {
        match self {
            Self::Pipe { stream, access } => e.u8(1).u32(*stream).u8(access.encode()),
            Self::Socket { stream, kind, nonblock } => e.u8(2).u32(*stream).u8(kind.encode()).u8(u8::from(*nonblock)),
            Self::Listener { stream, kind, backlog, nonblock } => {
                e.u8(3).u32(*stream).u8(kind.encode()).u32(*backlog).u8(u8::from(*nonblock))
            }
            Self::Device { device, access } => e.u8(4).u8(*device as u8).u8(access.encode()),
            Self::Same { index } => e.u8(5).u16(*index),
            Self::File { file, access, offset } => {
                e.u8(6).raw(&file.mount).u64(file.node).u8(access.encode()).u64(*offset)
            }
        };
    }

    fn decode(d: &mut Decoder) -> WireResult<Self> {
        Ok(match d.u8()? {
            1 => Self::Pipe { stream: d.u32()?, access: Access::decode(d.u8()?)? },
            2 => {
                let (stream, kind) = (d.u32()?, SocketKind::decode(d.u8()?)?);
                Self::Socket { stream, kind, nonblock: flag(d)? }
            }
            3 => {
                let (stream, kind, backlog) = (d.u32()?, SocketKind::decode(d.u8()?)?, d.u32()?);
                Self::Listener { stream, kind, backlog, nonblock: flag(d)? }
            }
            4 => {
                let number = usize::from(d.u8()?);
                let Some(device) = Device::ALL.get(number) else { bad!("device {number}") };
                Self::Device { device: *device, access: Access::decode(d.u8()?)? }
            }
            5 => Self::Same { index: d.u16()? },
            6 => {
                let mount = d.raw(16)?.try_into().expect("16 bytes were asked");
                let file = FileId { mount, node: d.u64()? };
                Self::File { file, access: Access::decode(d.u8()?)?, offset: d.u64()? }
            }
            n => bad!("a recipe of kind {n}"),
        })
    }
}

fn flag(d: &mut Decoder) -> WireResult<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        n => bad!("flag {n}"),
    }
}

/// The recipes of one message, in the order of its fds.
pub fn encode_all(recipes: &[Recipe]) -> Vec<u8> {
    let mut e = Encoder::new();
    for recipe in recipes {
        recipe.encode(&mut e);
    }
    e.finish()
}

/// # Errors
/// Another number of recipes than `count`, or one that cannot be.
pub fn decode_all(bytes: &[u8], count: usize) -> WireResult<Vec<Recipe>> {
    if count > FDS_MAX {
        bad!("{count} fds in one message");
    }
    let mut d = Decoder::new("recipes", bytes);
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        let recipe = Recipe::decode(&mut d)?;
        if let Recipe::Same { index } = recipe
            && usize::from(index) >= at
        {
            bad!("fd {at} is the same as fd {index}, which comes later");
        }
        all.push(recipe);
    }
    d.end()?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Access = Access { read: true, write: true, append: true, nonblock: false };

    #[test]
    fn every_kind_survives_the_way_there_and_back() {
        let all = vec![
            Recipe::Pipe { stream: 7, access: RW },
            Recipe::Socket { stream: 9, kind: SocketKind::SeqPacket, nonblock: true },
            Recipe::Listener { stream: 11, kind: SocketKind::Stream, backlog: 128, nonblock: false },
            Recipe::Device { device: Device::Urandom, access: RW },
            Recipe::Same { index: 2 },
            Recipe::File { file: FileId { mount: [9; 16], node: 1 << 60 }, access: RW, offset: 4096 },
        ];
        let bytes = encode_all(&all);
        assert_eq!(decode_all(&bytes, 6), Ok(all));
        for cut in 0..bytes.len() {
            assert!(decode_all(&bytes[..cut], 6).is_err(), "cut at {cut}");
        }
        assert!(decode_all(&bytes, 5).is_err(), "one recipe too many");
    }

    #[test]
    fn an_fd_cannot_be_the_same_as_itself_or_a_later_one() {
        let bytes = encode_all(&[Recipe::Same { index: 0 }]);
        assert!(decode_all(&bytes, 1).is_err());
    }
}
