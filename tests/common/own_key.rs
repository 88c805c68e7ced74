//! A key that a test process has for itself alone, and trusts on its own machine.

use std::sync::{Arc, OnceLock};

use farside::auth::{PublicKey, SecretKey, Tls};
use farside::link::{Access, Authority, Ends, Stranger};

struct Own(SecretKey);

impl Authority for Own {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.0).map_err(|e| e.to_string())
    }

    fn judge(&self, key: &PublicKey, ends: Ends) -> Result<String, Stranger> {
        if *key == self.0.public() && ends.are_one_machine() {
            return Ok("this test".into());
        }
        Err(Stranger { log: format!("{key} is a stranger"), told: "you are a stranger".into() })
    }
}

pub(crate) fn access() -> Access {
    static OWN: OnceLock<Arc<Own>> = OnceLock::new();
    Access::Keys(Arc::clone(OWN.get_or_init(|| Arc::new(Own(SecretKey::generate())))) as Arc<dyn Authority>)
}
