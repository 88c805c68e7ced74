//! Where a measurement goes: a unix socket, or a TCP address to compare with.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// An answer that takes longer is an error: no measurement hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may wait to be accepted: as many as any measurement opens at once.
const BACKLOG: i32 = 4096;

#[derive(Debug, Clone)]
pub(crate) enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Target {
    type Err = Infallible;

    /// `ADDR:PORT` is an address, anything else a path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::Unix(text.into()), Self::Tcp))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(addr) => write!(f, "{addr}"),
        }
    }
}

pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn bind(target: &Target) -> io::Result<Self> {
        let socket = |domain, address: socket2::SockAddr| {
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            if domain != socket2::Domain::UNIX {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&address)?;
            socket.listen(BACKLOG)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(match target {
            Target::Unix(path) => Self::Unix(socket(socket2::Domain::UNIX, socket2::SockAddr::unix(path)?)?.into()),
            Target::Tcp(addr) => Self::Tcp(socket(socket2::Domain::for_address(*addr), (*addr).into())?.into()),
        })
    }

    pub(crate) fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0)?,
        })
    }

    pub(crate) fn set_nonblocking(&self, yes: bool) -> io::Result<()> {
        match self {
            Self::Unix(listener) => listener.set_nonblocking(yes),
            Self::Tcp(listener) => listener.set_nonblocking(yes),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn connect(target: &Target) -> io::Result<Self> {
        Ok(match target {
            Target::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Target::Tcp(addr) => Self::tcp(TcpStream::connect(addr)?)?,
        })
    }

    /// A request must not wait for the acknowledgement of the one before it.
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Reads and writes that take longer than anything should are errors.
    pub(crate) fn be_impatient(&self) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(Some(PATIENCE)).and_then(|()| s.set_write_timeout(Some(PATIENCE))),
            Self::Tcp(s) => s.set_read_timeout(Some(PATIENCE)).and_then(|()| s.set_write_timeout(Some(PATIENCE))),
        }
    }

    pub(crate) fn set_nonblocking(&self, yes: bool) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(yes),
            Self::Tcp(stream) => stream.set_nonblocking(yes),
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
