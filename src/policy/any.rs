//! Whether a peer may do anything at all: asked before anything is spent on what it wants.

use super::Policy;
use super::verdict::{Denied, Service};

impl Policy {
    /// Whether some rule of that service allows something. Looks at the rules alone.
    ///
    /// # Errors
    /// None does: whatever is asked for, the answer would be no.
    pub fn admits(&self, service: Service) -> Result<(), Denied> {
        let some = match service {
            Service::Exec => self.exec.iter().any(|rule| rule.allow),
            Service::Uds => self.uds.iter().any(|rule| rule.allow),
            Service::Fs => self.fs.iter().any(|rule| rule.allow.is_some()),
        };
        some.then_some(()).ok_or_else(|| Denied::NoRule { file: self.file.clone(), service, nearly: None })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::PeerFile;
    use super::*;
    use crate::auth::{KeyLine, SecretKey};

    #[test]
    fn a_service_without_an_allow_rule_admits_nobody() {
        let key = KeyLine { key: SecretKey::generate().public(), name: "dpu".into() };
        let text = format!("keys = [\"{key}\"]\n[[exec]]\ndeny = '/x'\n[[uds]]\ndeny = '/y'\n[[uds]]\nallow = '/z'\n");
        let policy = PeerFile::parse(Path::new("/f"), &text).unwrap().policy;
        assert!(policy.admits(Service::Uds).is_ok());
        for service in [Service::Exec, Service::Fs] {
            let no = policy.admits(service).unwrap_err().to_string();
            assert_eq!(no, format!("denied: no {service} rule of /f allows it"));
        }
    }
}
