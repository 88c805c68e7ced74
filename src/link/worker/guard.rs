//! What protects the bytes of one connection.

use crate::auth::{Opener, Sealer};
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
