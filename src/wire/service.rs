//! The services that an OPEN may ask for: its `aux` field.

/// Connect to a unix socket of the other machine; the request is `udsproxyd`'s.
pub const UDS: u16 = 1;
/// Run a command. The request is empty, or says for whom (a `Bearer`) where the peer's daemon carries it for a program;
/// everything else is bytes of the stream.
pub const EXEC: u16 = 2;
/// A client of a listening socket that crossed as an fd; the request is the u32 stream id that its recipe announced.
pub const LISTENER_CLIENT: u16 = 3;
/// Tells the peer, for its log, that an fd which it passed could not be made here. The request is a `Refused`; the verdict is
/// always no, because nothing is to follow.
pub const REFUSED: u16 = 4;
