//! How to make an fd again on the other machine. No native number crosses: access modes and kinds are our own.
//!
//! A recipe that mentions a stream announces it: the receiver adopts that stream id and pumps its end of the new pipe
//! or socket over it.

use super::codec::{Decoder, Encoder};
use super::{WireResult, bad};
use crate::limits::{FDS_MAX, MEMFD_MAX, PATH_MAX, REFUSAL_MAX};

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

/// Devices that every machine has, or may have, by the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Null,
    Zero,
    Full,
    Random,
    Urandom,
    Kvm,
    VhostNet,
    Vfio,
    /// One IOMMU group of VFIO.
    VfioGroup(u32),
}

impl Device {
    /// All with a fixed number: (device, major, minor), Documentation/admin-guide/devices.txt.
    pub const NUMBERED: [(Device, u64, u64); 8] = [
        (Device::Null, 1, 3),
        (Device::Zero, 1, 5),
        (Device::Full, 1, 7),
        (Device::Random, 1, 8),
        (Device::Urandom, 1, 9),
        (Device::Vfio, 10, 196),
        (Device::Kvm, 10, 232),
        (Device::VhostNet, 10, 238),
    ];

    pub fn path(self) -> String {
        let name = match self {
            Self::Null => "null",
            Self::Zero => "zero",
            Self::Full => "full",
            Self::Random => "random",
            Self::Urandom => "urandom",
            Self::Kvm => "kvm",
            Self::VhostNet => "vhost-net",
            Self::Vfio => "vfio/vfio",
            Self::VfioGroup(group) => return format!("/dev/vfio/{group}"),
        };
        format!("/dev/{name}")
    }

    fn encode(self) -> (u8, u32) {
        match self {
            Self::Null => (0, 0),
            Self::Zero => (1, 0),
            Self::Full => (2, 0),
            Self::Random => (3, 0),
            Self::Urandom => (4, 0),
            Self::Kvm => (5, 0),
            Self::VhostNet => (6, 0),
            Self::Vfio => (7, 0),
            Self::VfioGroup(group) => (8, group),
        }
    }

    fn decode(kind: u8, group: u32) -> WireResult<Self> {
        Ok(match (kind, group) {
            (0, 0) => Self::Null,
            (1, 0) => Self::Zero,
            (2, 0) => Self::Full,
            (3, 0) => Self::Random,
            (4, 0) => Self::Urandom,
            (5, 0) => Self::Kvm,
            (6, 0) => Self::VhostNet,
            (7, 0) => Self::Vfio,
            (8, group) => Self::VfioGroup(group),
            _ => bad!("device {kind} {group}"),
        })
    }
}

/// A tun or tap interface's queue, tun.c's IFF_* flags by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// At most 15 bytes, netdevice(7).
    pub name: String,
    /// Ethernet frames (tap), or IP packets (tun).
    pub ethernet: bool,
    pub no_packet_info: bool,
    pub vnet_header: bool,
    pub multi_queue: bool,
    /// Length of the header in front of each packet, where there is one.
    pub vnet_header_len: u8,
    pub nonblock: bool,
}

/// A terminal's state: the values of asm-generic/termbits.h, which x86-64 and aarch64 share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalState {
    /// c_iflag, c_oflag, c_cflag, c_lflag: termios(3).
    pub modes: [u32; 4],
    /// c_cc.
    pub characters: [u8; 19],
    pub rows: u16,
    pub columns: u16,
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
    /// A file or directory of the sender's machine, by its path there: the receiver opens it on its mount of that path.
    HostFile { path: Vec<u8>, access: Access, offset: u64 },
    /// One end of a new pseudo-terminal, in this state.
    Terminal { stream: u32, access: Access, state: TerminalState },
    /// A new memfd: its bytes come on the stream, then it is sealed, and only then the message is delivered.
    Memfd { stream: u32, access: Access, len: u64, offset: u64, seals: Seals },
    /// A queue of the interface of the same name.
    Tap(Tap),
    /// The sender could not say how to make it, and why: for the receiver's log. The receiver's program gets a placeholder.
    Refused { reason: String },
}

/// That an fd of a stream's message could not be made: the request of `service::REFUSED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub stream: u32,
    pub reason: String,
}

impl Refused {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u32(self.stream).bytes(cut(&self.reason).as_bytes());
        e.finish()
    }

    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("refused fd", bytes);
        let refused = Self { stream: d.u32()?, reason: reason(&mut d)? };
        d.end()?;
        Ok(refused)
    }
}

/// What a log line may show of it: one line, and its beginning if it is long.
fn cut(reason: &str) -> String {
    let mut line: String = reason.chars().filter(|c| !c.is_control()).collect();
    let end = (0..=line.len().min(REFUSAL_MAX)).rev().find(|at| line.is_char_boundary(*at));
    line.truncate(end.expect("0 is a boundary"));
    line
}

fn reason(d: &mut Decoder) -> WireResult<String> {
    match std::str::from_utf8(d.bytes(REFUSAL_MAX)?) {
        Ok(line) if !line.contains(char::is_control) => Ok(line.to_owned()),
        _ => bad!("a reason that is no line of text"),
    }
}

/// fcntl(2)'s F_SEAL_*, by our own bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seals {
    pub seal: bool,
    pub shrink: bool,
    pub grow: bool,
    pub write: bool,
    pub future_write: bool,
}

impl Seals {
    fn encode(self) -> u8 {
        let bits = [self.seal, self.shrink, self.grow, self.write, self.future_write];
        bits.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit))
    }

    fn decode(b: u8) -> WireResult<Self> {
        if b >= 32 {
            bad!("seals {b:#x}");
        }
        let bit = |n: u8| b >> n & 1 != 0;
        Ok(Self { seal: bit(0), shrink: bit(1), grow: bit(2), write: bit(3), future_write: bit(4) })
    }
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
            Self::Pipe { stream, .. }
            | Self::Socket { stream, .. }
            | Self::Listener { stream, .. }
            | Self::Terminal { stream, .. }
            | Self::Memfd { stream, .. } => Some(*stream),
            Self::Device { .. }
            | Self::Same { .. }
            | Self::File { .. }
            | Self::HostFile { .. }
            | Self::Tap(_)
            | Self::Refused { .. } => None,
        }
    }

    pub fn set_stream(&mut self, id: u32) {
        match self {
            Self::Pipe { stream, .. }
            | Self::Socket { stream, .. }
            | Self::Listener { stream, .. }
            | Self::Terminal { stream, .. }
            | Self::Memfd { stream, .. } => *stream = id,
            Self::Device { .. }
            | Self::Same { .. }
            | Self::File { .. }
            | Self::HostFile { .. }
            | Self::Tap(_)
            | Self::Refused { .. } => {}
        }
    }

    fn encode(&self, e: &mut Encoder) {
        match self {
            Self::Pipe { stream, access } => e.u8(1).u32(*stream).u8(access.encode()),
            Self::Socket { stream, kind, nonblock } => e.u8(2).u32(*stream).u8(kind.encode()).u8(u8::from(*nonblock)),
            Self::Listener { stream, kind, backlog, nonblock } => {
                e.u8(3).u32(*stream).u8(kind.encode()).u32(*backlog).u8(u8::from(*nonblock))
            }
            Self::Device { device, access } => {
                let (kind, group) = device.encode();
                e.u8(4).u8(kind).u32(group).u8(access.encode())
            }
            Self::Same { index } => e.u8(5).u16(*index),
            Self::File { file, access, offset } => {
                e.u8(6).raw(&file.mount).u64(file.node).u8(access.encode()).u64(*offset)
            }
            Self::HostFile { path, access, offset } => e.u8(10).bytes(path).u8(access.encode()).u64(*offset),
            Self::Terminal { stream, access, state } => {
                let e = e.u8(7).u32(*stream).u8(access.encode());
                let e = state.modes.iter().fold(e, |e, mode| e.u32(*mode));
                e.raw(&state.characters).u16(state.rows).u16(state.columns)
            }
            Self::Memfd { stream, access, len, offset, seals } => {
                e.u8(8).u32(*stream).u8(access.encode()).u64(*len).u64(*offset).u8(seals.encode())
            }
            Self::Tap(tap) => {
                let flags = [tap.ethernet, tap.no_packet_info, tap.vnet_header, tap.multi_queue, tap.nonblock];
                e.u8(9).bytes(tap.name.as_bytes()).u8(tap.vnet_header_len);
                flags.iter().fold(e, |e, flag| e.u8(u8::from(*flag)))
            }
            Self::Refused { reason } => e.u8(11).bytes(cut(reason).as_bytes()),
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
                let device = Device::decode(d.u8()?, d.u32()?)?;
                Self::Device { device, access: Access::decode(d.u8()?)? }
            }
            5 => Self::Same { index: d.u16()? },
            6 => {
                let mount = d.raw(16)?.try_into().expect("16 bytes were asked");
                let file = FileId { mount, node: d.u64()? };
                Self::File { file, access: Access::decode(d.u8()?)?, offset: d.u64()? }
            }
            7 => {
                let (stream, access) = (d.u32()?, Access::decode(d.u8()?)?);
                let modes = [d.u32()?, d.u32()?, d.u32()?, d.u32()?];
                let characters = d.raw(19)?.try_into().expect("19 bytes were asked");
                let state = TerminalState { modes, characters, rows: d.u16()?, columns: d.u16()? };
                Self::Terminal { stream, access, state }
            }
            8 => {
                let (stream, access) = (d.u32()?, Access::decode(d.u8()?)?);
                let (len, offset) = (d.u64()?, d.u64()?);
                if len > MEMFD_MAX {
                    bad!("a memfd of {len} bytes, above {MEMFD_MAX}");
                }
                Self::Memfd { stream, access, len, offset, seals: Seals::decode(d.u8()?)? }
            }
            9 => Self::Tap(tap(d)?),
            10 => {
                let path = d.bytes(PATH_MAX)?.to_vec();
                let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
                let absolute = path.strip_prefix(b"/").is_some_and(|rest| rest.split(|b| *b == b'/').all(plain));
                if !absolute || path.contains(&0) {
                    bad!("a file at {}", path.escape_ascii());
                }
                Self::HostFile { path, access: Access::decode(d.u8()?)?, offset: d.u64()? }
            }
            11 => Self::Refused { reason: reason(d)? },
            n => bad!("a recipe of kind {n}"),
        })
    }
}

fn tap(d: &mut Decoder) -> WireResult<Tap> {
    let name = d.bytes(INTERFACE_NAME_MAX)?;
    // The name goes into a system call and into log lines.
    if name.is_empty() || !name.iter().all(|b| b.is_ascii_graphic() && !b"/%".contains(b)) {
        bad!("an interface named {}", name.escape_ascii());
    }
    let name = String::from_utf8(name.to_vec()).expect("ASCII");
    Ok(Tap {
        name,
        vnet_header_len: d.u8()?,
        ethernet: flag(d)?,
        no_packet_info: flag(d)?,
        vnet_header: flag(d)?,
        multi_queue: flag(d)?,
        nonblock: flag(d)?,
    })
}

/// IFNAMSIZ less its NUL, netdevice(7).
const INTERFACE_NAME_MAX: usize = 15;

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
            Recipe::Device { device: Device::VfioGroup(17), access: RW },
            Recipe::Same { index: 2 },
            Recipe::Terminal {
                stream: 13,
                access: RW,
                state: TerminalState { modes: [1, 2, 3, u32::MAX], characters: [7; 19], rows: 24, columns: 80 },
            },
            Recipe::Memfd {
                stream: 15,
                access: RW,
                len: MEMFD_MAX,
                offset: 3,
                seals: Seals { seal: true, write: true, ..Seals::default() },
            },
            Recipe::HostFile { path: b"/var/lib/x".to_vec(), access: RW, offset: 1 << 40 },
            Recipe::Tap(Tap {
                name: "vnet0".into(),
                ethernet: true,
                no_packet_info: true,
                vnet_header: true,
                multi_queue: false,
                vnet_header_len: 12,
                nonblock: true,
            }),
            Recipe::File { file: FileId { mount: [9; 16], node: 1 << 60 }, access: RW, offset: 4096 },
            Recipe::Refused { reason: "no eventfd".into() },
        ];
        let bytes = encode_all(&all);
        assert_eq!(decode_all(&bytes, all.len()).as_ref(), Ok(&all));
        for cut in 0..bytes.len() {
            assert!(decode_all(&bytes[..cut], all.len()).is_err(), "cut at {cut}");
        }
        assert!(decode_all(&bytes, all.len() - 1).is_err(), "one recipe too many");
    }

    #[test]
    fn a_reason_is_one_line_and_bounded() {
        let long = Refused { stream: 7, reason: format!("a\n\x1b[2J{}", "é".repeat(REFUSAL_MAX)) };
        let there = Refused::decode(&long.encode()).unwrap();
        assert!(there.reason.starts_with("a[2Jé") && !there.reason.contains(char::is_control));
        assert!((REFUSAL_MAX - 1..=REFUSAL_MAX).contains(&there.reason.len()), "cut between two letters");
        for wrong in [&b"a\nb"[..], b"\xff"] {
            let mut e = Encoder::new();
            e.u32(7).bytes(wrong);
            assert!(Refused::decode(&e.finish()).is_err(), "{wrong:?}");
        }
        let whole = [Refused { stream: 7, reason: "why".into() }.encode(), vec![0]].concat();
        assert!(Refused::decode(&whole).is_err() && Refused::decode(&whole[..6]).is_err());
    }

    #[test]
    fn an_fd_cannot_be_the_same_as_itself_or_a_later_one() {
        let bytes = encode_all(&[Recipe::Same { index: 0 }]);
        assert!(decode_all(&bytes, 1).is_err());
    }
}
