//! Who a machine is: its key, and how people pass it on.
//!
//!   SecretKey ── public() ──▶ PublicKey ── fingerprint() ──▶ "SHA256:..."      what people compare
//!                                 └─ KeyLine ──────────────▶ "farside-ed25519 BASE64 NAME"   what they copy
//!
//! Pure: no file, no socket, no clock. A secret key never shows itself, and its memory is cleared when it goes.

mod handshake;
pub mod key;
pub mod line;
mod record;
pub mod voucher;

pub use handshake::{Established, Handshake, HandshakeError, Progress, Tls};
pub use key::{KeyError, PublicKey, SecretKey};
pub use line::{KeyLine, LineError, check_name};
pub use record::{Opened, Opener, RECORD_HEAD, RECORD_MAX, Room, Sealer};
pub use voucher::{Bearer, Binding, VOUCHER_MAX};
