//! The keys of this process, for its links.

use std::sync::Arc;

use crate::auth::{SecretKey, Tls};
use crate::link::{Access, Authority, Judged, Shown, Stranger};

struct Keys {
    key: SecretKey,
}

impl Authority for Keys {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.key).map_err(|e| e.to_string())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        if shown.key == self.key.public() {
            return Ok(Judged::known_as("this machine"));
        }
        Err(Stranger { log: format!("{}", shown.key), told: "unknown".into() })
    }
}

/// How this process knows who is at the other end of a link.
pub(super) fn access() -> Result<Access, String> {
    let path = crate::config::config_dir().join("host.key.tmp");
    let _ = std::fs::create_dir_all(crate::config::config_dir());
    if !path.exists() {
        std::fs::write(&path, SecretKey::generate().pkcs8_der()).map_err(|e| e.to_string())?;
    }
    let key = SecretKey::from_pkcs8(&std::fs::read(&path).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    Ok(Access::Keys(Arc::new(Keys { key })))
}

/// As `access`, for a program without options of its own for it.
pub(super) fn client_access() -> Result<Access, String> {
    #[cfg(feature = "plaintext")]
    if plaintext_wanted(false) {
        return Ok(Access::Plain);
    }
    access()
}

/// Whether unencrypted links were asked for, by option or by `FARSIDE_INSECURE_PLAINTEXT=1`.
#[cfg(feature = "plaintext")]
pub(super) fn plaintext_wanted(option: bool) -> bool {
    option || std::env::var_os(crate::config::PLAINTEXT_ENV).is_some_and(|v| v == "1")
}
