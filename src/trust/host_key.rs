//! host.key: a secret key, the machine that it was made on, and what that machine calls itself.
//!
//! The key is this machine's as long as the machine is the one that made it. In a golden image's copies it is
//! everybody's, and so each of them makes its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::auth::{KeyLine, PublicKey, SecretKey, check_name};

#[derive(Debug)]
pub struct HostKey {
    pub secret: SecretKey,
    /// Goes into the key line; whoever trusts this machine may call it otherwise.
    pub name: String,
    /// Of the machine that made it, as `machine::ids` writes it; empty where there is nothing to tell it by.
    pub machine: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "machine-id", default)]
    machine: String,
    name: String,
    key: String,
}

impl HostKey {
    pub fn new(machine: String, name: String) -> Self {
        Self { secret: SecretKey::generate(), name, machine }
    }

    pub fn public(&self) -> PublicKey {
        self.secret.public()
    }

    pub fn line(&self) -> KeyLine {
        KeyLine { key: self.public(), name: self.name.clone() }
    }

    /// # Errors
    /// What is wrong, without a word of what might be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "restore the file, or remove it to have a new key made";
        let raw: Raw = toml::from_str(text).map_err(|e| {
            // The message may quote the text.
            let line = e.span().map_or(1, |span| text.as_bytes()[..span.start].split(|b| *b == b'\n').count());
            format!("line {line} is not that of a key file; {REMEDY}")
        })?;
        let key = Zeroizing::new(raw.key);
        let der = Zeroizing::new(STANDARD.decode(key.as_bytes()).map_err(|_| format!("key is no base64; {REMEDY}"))?);
        let secret = SecretKey::from_pkcs8(&der).map_err(|e| format!("key is {e}; {REMEDY}"))?;
        check_name(&raw.name).map_err(|e| format!("name: {e}"))?;
        if raw.machine.len() > 256 || raw.machine.contains(|c: char| c.is_control()) {
            return Err(format!("machine-id is none; {REMEDY}"));
        }
        Ok(Self { secret, name: raw.name, machine: raw.machine })
    }

    pub fn text(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(STANDARD.encode(self.secret.pkcs8_der()));
        let machine = toml::Value::String(self.machine.clone());
        Zeroizing::new(format!(
            "# The secret key of this machine, made on it. Never copy it: every machine makes its own.\n\
             machine-id = {machine}\nname = \"{}\"\nkey = \"{}\"\n",
            self.name,
            key.as_str()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_there_and_back() {
        let key = HostKey::new("id:\"x\"".into(), "dpu".into());
        let again = HostKey::parse(&key.text()).unwrap();
        assert_eq!((again.public(), again.line(), again.machine), (key.public(), key.line(), key.machine));
    }

    #[test]
    fn an_error_shows_nothing_of_the_file() {
        let text = HostKey::new(String::new(), "dpu".into()).text();
        let key = text.split('"').rev().nth(1).unwrap();
        for wrong in [
            text.replace("key =", "kye ="),
            text.replace("name", "nmae"),
            text.replace(key, &key[4..]),
            text.replace(key, "%"),
            text.replace("\"dpu\"", "\"../dpu\""),
            text.replace("key = \"", "key = "),
            String::new(),
        ] {
            let said = HostKey::parse(&wrong).unwrap_err();
            assert!(!said.contains(&key[8..]) && !said.contains('\n'), "{said}");
        }
    }
}
