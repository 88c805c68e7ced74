//! Peers' files as `farside trust` writes them, and the one edit that it makes in a file which people write: its keys.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::str::FromStr;

use super::address::Network;
use super::peer_file::{FileError, PeerFile, keys_span};
use super::verdict::Service;
use crate::auth::KeyLine;

/// `exec,uds,fs`: services that are granted as a whole, to be narrowed by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    pub exec: bool,
    pub uds: bool,
    pub fs: bool,
}

impl Grants {
    fn any(&self) -> bool {
        self.exec || self.uds || self.fs
    }

    /// What both have.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        Self { exec: self.exec && other.exec, uds: self.uds && other.uds, fs: self.fs && other.fs }
    }

    /// How many services these are.
    pub fn count(&self) -> usize {
        [self.exec, self.uds, self.fs].into_iter().filter(|granted| *granted).count()
    }
}

impl FromStr for Grants {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut grants = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "exec" => grants.exec = true,
                "uds" => grants.uds = true,
                "fs" => grants.fs = true,
                "all" => grants = Self { exec: true, uds: true, fs: true },
                "none" => {}
                _ => return Err(format!("{word:?} is no service; there are exec, uds and fs")),
            }
        }
        Ok(grants)
    }
}

/// As it is typed.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.exec, "exec"), (self.uds, "uds"), (self.fs, "fs")];
        let words: Vec<&str> = words.into_iter().filter(|(granted, _)| *granted).map(|(_, word)| word).collect();
        f.write_str(&if words.is_empty() { "none".into() } else { words.join(",") })
    }
}

const EXEC: &str = r#"
# Any command, as any user. Narrow it: first match wins, and what no rule allows is denied.
#   allow = "/usr/bin/qemu-*"
#   args = ["-name", "*", "**"]
#   users = ["libvirt-qemu", "root"]
#   env = ["PATH", "LC_*"]
#   capabilities = "none"
[[exec]]
allow = "/**"
"#;

const FS: &str = r#"
# Every directory that node.toml exports; narrow it as above. "ro" is read-only.
[[fs]]
allow = "/"
access = "rw"
"#;

/// A new peer's file. `own_services`: socket paths and abstract names that are a machine's own, and stay so.
pub fn new_file(keys: &[KeyLine], addresses: &[Network], grants: &Grants, own_services: &[&str]) -> String {
    let mut out =
        String::from("# A machine that this one trusts, and what it may do here. The file's name is the peer's.\n");
    let _ = writeln!(out, "keys = {}", array(keys));
    if addresses.is_empty() {
        out.push_str("# addresses = [\"192.168.10.11\", \"10.0.0.0/8\"]   # it may come from these alone\n");
    } else {
        let quoted: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        let _ = writeln!(out, "addresses = [{}]", quoted.join(", "));
    }
    if !grants.any() {
        out.push_str(
            "\n# It may do nothing here; this machine may dial it. `farside trust --help` tells of --allow.\n",
        );
    }
    if grants.exec {
        out.push_str(EXEC);
    }
    if grants.uds {
        out.push_str("\n# Every socket but those of this machine's own services; narrow it as above.\n");
        for name in own_services {
            let _ = writeln!(out, "[[uds]]\ndeny = \"{name}\"");
        }
        out.push_str("[[uds]]\nallow = \"/**\"\n[[uds]]\nallow = \"@*\"\n");
    }
    if grants.fs {
        out.push_str(FS);
    }
    out
}

/// The same text with other keys; everything else in it stays as people wrote it.
///
/// # Errors
/// The file has a mistake, or its keys are written in a way that is not to be changed safely.
pub fn with_keys(file: &Path, text: &str, keys: &[KeyLine]) -> Result<String, FileError> {
    let before = PeerFile::parse(file, text)?;
    let unsure = || FileError::at(file, 0, "cannot change its keys; edit the line `keys = [...]` by hand");
    let span = keys_span(text).ok_or_else(unsure)?;
    let after = format!("{}{}{}", &text[..span.start], array(keys), &text[span.end..]);
    // The proof that nothing else has changed is what it now says.
    let parsed = PeerFile::parse(file, &after).map_err(|_| unsure())?;
    let names = |all: &[KeyLine]| all.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let kept = parsed.addresses == before.addresses && parsed.policy.says_the_same(&before.policy);
    if names(&parsed.keys) == names(keys) && kept { Ok(after) } else { Err(unsure()) }
}

fn array(keys: &[KeyLine]) -> String {
    let quoted = |key: &KeyLine| format!("\"{key}\"");
    match keys {
        [one] => format!("[{}]", quoted(one)),
        all => format!("[\n{}]", all.iter().map(|key| format!("    {},\n", quoted(key))).collect::<String>()),
    }
}

impl super::Policy {
    /// How many rules each service has.
    pub fn rule_counts(&self) -> [(Service, usize); 3] {
        [(Service::Exec, self.exec.len()), (Service::Uds, self.uds.len()), (Service::Fs, self.fs.len())]
    }

    /// Line numbers may differ.
    fn says_the_same(&self, other: &Self) -> bool {
        let unplaced = |policy: &Self| {
            let mut policy = policy.clone();
            let places = policy.exec.iter_mut().map(|r| &mut r.place);
            let places = places.chain(policy.uds.iter_mut().map(|r| &mut r.place));
            places.chain(policy.fs.iter_mut().map(|r| &mut r.place)).for_each(|place| place.line = 0);
            policy
        };
        unplaced(self) == unplaced(other)
    }
}
