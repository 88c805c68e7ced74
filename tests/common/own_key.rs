//! A key that a test process has for itself alone, and trusts on its own machine.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use farside::auth::Tls;
use farside::link::{Access, Authority, Judged, Shown, Stranger};
use farside::trust::{HostKey, Store};

use crate::scratch;

struct Own(HostKey);

impl Authority for Own {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.0.secret).map_err(|e| e.to_string())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        if shown.key == self.0.public() && shown.ends.are_one_machine() {
            return Ok(Judged::known_as("this test"));
        }
        Err(Stranger { log: format!("{} is a stranger", shown.key), told: "you are a stranger".into() })
    }
}

/// Where it is, for a program that the test runs: FARSIDE_CONFIG_DIR.
pub(crate) fn dir() -> PathBuf {
    std::env::temp_dir().join(format!("farside-key-{}", std::process::id()))
}

pub(crate) fn access() -> Access {
    static OWN: OnceLock<Arc<Own>> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        scratch::remove_at_exit(&dir());
        Arc::new(Own(Store::new(dir()).host_key().expect("a key")))
    });
    Access::Keys(Arc::clone(own) as Arc<dyn Authority>)
}
