//! What protects the bytes of one connection.

use crate::auth::{Opener, Room, Sealer};
use crate::wire::WireResult;

/// What protects one connection's bytes.
#[derive(Debug)]
pub(in crate::link) enum Guard {
    Tls {
        sealer: Sealer,
        opener: Opener,
    },
    #[cfg(any(test, feature = "plaintext"))]
    Plain,
}

impl Guard {
    /// Seals `plain`, in order, into what is to be sent.
    ///
    /// # Errors
    /// Nothing may be sent any more.
    pub(super) fn seal_into<'a>(
        &mut self,
        plain: impl Iterator<Item = &'a [u8]>,
        out: &mut impl Room,
    ) -> WireResult<()> {
        match self {
            Self::Tls { sealer, .. } => sealer.seal(plain, out),
            #[cfg(any(test, feature = "plaintext"))]
            Self::Plain => {
                // No more at once than a buffer holds.
                plain
                    .flat_map(|part| part.chunks(16 << 10))
                    .for_each(|part| out.take(part.len()).copy_from_slice(part));
                Ok(())
            }
        }
    }

    /// Nothing follows: without TLS there are no words for that.
    ///
    /// # Errors
    /// As `seal_into`.
    pub(super) fn say_end(&mut self, out: &mut Vec<u8>) -> WireResult<()> {
        match self {
            Self::Tls { sealer, .. } => sealer.say_end(out),
            #[cfg(any(test, feature = "plaintext"))]
            Self::Plain => Ok(()),
        }
    }

    /// Appends what carries `bytes` to `out`.
    ///
    /// # Errors
    /// Nothing may be sent any more.
    pub(in crate::link) fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> WireResult<()> {
        match self {
            Self::Tls { sealer, .. } => sealer.seal([bytes], out),
            #[cfg(any(test, feature = "plaintext"))]
            Self::Plain => {
                out.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}
