//! The kinds of local ends and their properties, in one table.

use crate::limits::{INITIAL_WINDOW, RECORD_WINDOW};
use crate::wire::recipe::SocketKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stream socket: both ways, half-close each; fds may be passed inside.
    Socket,
    /// A SEQPACKET socket: as a stream socket, and records stay apart.
    SeqPacket,
    /// A DGRAM socket with one peer: records both ways, and no end that the other side could see.
    Datagram,
    /// Bytes come out of it: a pipe's read end, a terminal.
    Source,
    /// Bytes go into it.
    Sink,
    /// A regular file: bytes come out of it, up to its end.
    FileSource,
    /// A regular file: bytes go into it.
    FileSink,
    /// A terminal: both ways, and back as it was when it ends.
    Terminal,
    /// The master of a pseudo-terminal that was made here.
    Master,
    /// Memory: bytes go into it, and when they have ended it is made whole.
    Fill,
    /// A listening socket of a near program: each client becomes a stream.
    Listener(SocketKind),
    /// A listening socket made here for a far program: no bytes, and it lives as long as its stream.
    Listening,
}

/// How bytes come out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    Nothing,
    /// recvmsg(2) of a stream, in which fds may be passed.
    Socket,
    /// recvmsg(2) of records.
    Records,
    /// read(2).
    Bytes,
    /// read(2) by a helper, for it may take long.
    File,
    /// accept(2).
    Clients,
}

/// How bytes go into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    Nothing,
    /// sendmsg(2), fds and all.
    Socket,
    Records,
    /// write(2).
    Bytes,
    /// write(2) by a helper, for it may take long.
    File,
    /// write(2), up to a length that was said before.
    Memory,
}

/// What happens to it when the command that received it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtCommandEnd {
    /// Read what it holds, then end.
    Drain,
    /// Reset it, because nobody can read or accept any more.
    Reset,
}

/// What the peer is told when writing to it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenDeaf {
    ReadClosed,
    /// A datagram sender only notices its socket's end, and memory that cannot be filled is useless.
    Reset,
}

#[derive(Debug)]
pub struct Row {
    pub reads: Reads,
    pub writes: Writes,
    pub window: u32,
    pub at_command_end: AtCommandEnd,
    pub when_deaf: WhenDeaf,
}

const fn row(reads: Reads, writes: Writes, at_command_end: AtCommandEnd, when_deaf: WhenDeaf) -> Row {
    // A record must be whole before it can be written.
    let window = if matches!(writes, Writes::Records) { RECORD_WINDOW } else { INITIAL_WINDOW };
    Row { reads, writes, window, at_command_end, when_deaf }
}

impl Kind {
    /// The table.
    #[rustfmt::skip]
    pub fn row(self) -> &'static Row {
        use AtCommandEnd::{Drain, Reset as End};
        use WhenDeaf::{ReadClosed, Reset};
        match self {
            Self::Socket      => &const { row(Reads::Socket,  Writes::Socket,  Drain, ReadClosed) },
            Self::SeqPacket   => &const { row(Reads::Records, Writes::Records, Drain, ReadClosed) },
            Self::Datagram    => &const { row(Reads::Records, Writes::Records, Drain, Reset) },
            Self::Source      => &const { row(Reads::Bytes,   Writes::Nothing, Drain, ReadClosed) },
            Self::Sink        => &const { row(Reads::Nothing, Writes::Bytes,   End,   ReadClosed) },
            Self::FileSource  => &const { row(Reads::File,    Writes::Nothing, Drain, ReadClosed) },
            Self::FileSink    => &const { row(Reads::Nothing, Writes::File,    End,   ReadClosed) },
            Self::Terminal    => &const { row(Reads::Bytes,   Writes::Bytes,   Drain, ReadClosed) },
            Self::Master      => &const { row(Reads::Bytes,   Writes::Bytes,   Drain, ReadClosed) },
            Self::Fill        => &const { row(Reads::Nothing, Writes::Memory,  End,   Reset) },
            Self::Listener(_) => &const { row(Reads::Clients, Writes::Nothing, End,   ReadClosed) },
            Self::Listening   => &const { row(Reads::Nothing, Writes::Nothing, End,   ReadClosed) },
        }
    }

    /// A connected unix socket.
    pub fn of_socket(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Stream => Self::Socket,
            SocketKind::SeqPacket => Self::SeqPacket,
            SocketKind::Datagram => Self::Datagram,
        }
    }

    pub fn writes(self) -> bool {
        self.row().writes != Writes::Nothing
    }

    pub fn is_socket(self) -> bool {
        matches!(self.row().writes, Writes::Socket | Writes::Records)
    }

    pub fn keeps_records(self) -> bool {
        self.row().writes == Writes::Records
    }

    pub fn is_listener(self) -> bool {
        matches!(self, Self::Listener(_))
    }

    /// It is only read from here, such as the stdin of a delegated command.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Source | Self::FileSource)
    }

    /// It is only written to here, such as the stdout of a delegated command.
    pub fn only_writes(self) -> bool {
        matches!(self, Self::Sink | Self::FileSink)
    }
}
