//! Whose key may have a connection with this node.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::auth::{Binding, PublicKey, Tls};
use crate::wire::hello::Role;

/// Whoever keeps the keys of this machine. Asked by the door and by dialling threads, for each connection; workers and the
/// door never wait for it.
pub trait Authority: Send + Sync {
    /// This machine's key, for a handshake that begins now.
    ///
    /// # Errors
    /// One line: the key can't be read, and what to do.
    fn tls(&self) -> Result<Tls, String>;

    /// Whether who has shown that key may have that connection. May wait for files: for a thread that dials.
    ///
    /// # Errors
    /// It is nobody's that may.
    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger>;

    /// The same by what is known now, without waiting: for the acceptor.
    ///
    /// # Errors
    /// As `judge`; a look at the files may say otherwise.
    fn judge_now(&self, shown: &Shown) -> Result<Judged, Stranger> {
        self.judge(shown)
    }

    /// Has the files looked at once more, on another thread. False: that would change nothing.
    fn look_again(&self) -> bool {
        false
    }

    /// Whether a look at the files that began after that moment has ended.
    fn has_looked_since(&self, _moment: Instant) -> bool {
        true
    }

    /// Another number when keys or trust have changed.
    fn version(&self) -> u64 {
        0
    }

    /// Whether a key that was let in would still be.
    fn still_trusts(&self, _key: &PublicKey) -> bool {
        true
    }

    /// A link of that peer has come up.
    fn seen(&self, _name: &str, _key: &PublicKey, _ip: IpAddr) {}
}

/// A key that was proven, and on which connection.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub key: PublicKey,
    pub ends: Ends,
    pub binding: Binding,
    /// This end has dialled.
    pub dialled: bool,
    /// What the other end has asked for, where it has said so: at an acceptor, once its HELLO has come.
    pub role: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The name under which the key is trusted here.
    pub name: String,
    /// For a dialler whose own key nobody knows: its machine's word for it.
    pub voucher: Vec<u8>,
}

impl Judged {
    pub fn known_as(name: impl Into<String>) -> Self {
        Self { name: name.into(), voucher: Vec::new() }
    }
}

/// Where a connection's two ends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub here: SocketAddr,
    pub there: SocketAddr,
}

impl Ends {
    /// Both are of one network namespace: loopback, or one address with itself. No packet from outside can claim that:
    /// such are martians to the kernel (ip-sysctl, `accept_local` and `route_localnet` off).
    pub fn are_one_machine(self) -> bool {
        let [here, there] = [self.here, self.there].map(|end| end.ip().to_canonical());
        let loopback = |ip: IpAddr| ip.is_loopback();
        here == there || loopback(here) && loopback(there)
    }
}

/// Why a key that was proven is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// For this machine's log: with what would let it in.
    pub log: String,
    /// For the other machine's: nothing that it does not know.
    pub told: String,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log)
    }
}

/// How a node knows who is at the other end of a link.
#[derive(Clone)]
pub enum Access {
    Keys(Arc<dyn Authority>),
    /// For comparisons of speed: nobody is known, and only loopback and the lab's addresses may have a link.
    #[cfg(feature = "plaintext")]
    Plain,
}

impl Access {
    /// Whom to ask; nobody in plaintext.
    pub(super) fn authority(&self) -> Option<&dyn Authority> {
        match self {
            Self::Keys(authority) => Some(authority.as_ref()),
            #[cfg(feature = "plaintext")]
            Self::Plain => None,
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys(_) => "Keys",
            #[cfg(feature = "plaintext")]
            Self::Plain => "Plain",
        })
    }
}

/// One key, which is trusted by itself on its own machine, and perhaps one other.
#[cfg(test)]
pub(crate) mod twins {
    use super::*;
    use crate::auth::SecretKey;

    pub(crate) struct Twin {
        pub(crate) key: SecretKey,
        pub(crate) trusts: Vec<PublicKey>,
    }

    impl Authority for Twin {
        fn tls(&self) -> Result<Tls, String> {
            Tls::new(&self.key).map_err(|e| e.to_string())
        }

        fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
            let key = shown.key;
            if key == self.key.public() && shown.ends.are_one_machine() || self.trusts.contains(&key) {
                return Ok(Judged::known_as(format!("twin-{key}")));
            }
            Err(Stranger { log: format!("{key} is a stranger"), told: "you are a stranger".into() })
        }
    }

    /// The key of this test process.
    pub(crate) fn own() -> Arc<Twin> {
        static KEY: std::sync::OnceLock<Arc<Twin>> = std::sync::OnceLock::new();
        Arc::clone(KEY.get_or_init(|| Arc::new(Twin { key: SecretKey::generate(), trusts: Vec::new() })))
    }

    pub(crate) fn access() -> Access {
        Access::Keys(own())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_is_loopback_or_an_address_with_itself() {
        for (here, there, one) in [
            ("127.0.0.1:1", "127.0.0.1:2", true),
            ("127.0.0.1:1", "127.9.9.9:2", true),
            ("[::1]:1", "[::1]:2", true),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:2", true),
            ("192.168.10.10:1", "192.168.10.10:2", true),
            ("192.168.10.10:1", "192.168.10.11:2", false),
            ("127.0.0.1:1", "192.168.10.11:2", false),
            ("[fe80::1]:1", "[fe80::2]:2", false),
        ] {
            let ends = Ends { here: here.parse().unwrap(), there: there.parse().unwrap() };
            assert_eq!(ends.are_one_machine(), one, "{here} {there}");
        }
    }
}
