//! A key that a test process has for itself alone, and trusts on its own machine.

use std::sync::{Arc, OnceLock};

use farside::auth::{SecretKey, Tls};
use farside::link::{Access, Authority, Judged, Shown, Stranger};

struct Own(SecretKey);

impl Authority for Own {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.0).map_err(|e| e.to_string())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        if shown.key == self.0.public() && shown.ends.are_one_machine() {
            return Ok(Judged::known_as("this test"));
        }
        Err(Stranger { log: format!("{} is a stranger", shown.key), told: "you are a stranger".into() })
    }
}

pub(crate) fn access() -> Access {
    static OWN: OnceLock<Arc<Own>> = OnceLock::new();
    Access::Keys(Arc::clone(OWN.get_or_init(|| Arc::new(Own(SecretKey::generate())))) as Arc<dyn Authority>)
}
