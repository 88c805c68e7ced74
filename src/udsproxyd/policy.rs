//! Which socket names may cross: rules in order, the first that matches wins.
//!
//! Used on both sides: near, so that a program does not land on the other machine's services by accident; far, on the
//! path as it really is, because the near side's word is not enough.
//!
//! A deny rule's path is followed through its symbolic links at each use, so that it counts for what it really is also
//! after a link was switched. Whoever judges may therefore wait for a file system: a thread that serves one request,
//! never a worker. An allow rule's path is followed once, when there first is something at it, and until rules are read
//! again: a link that is switched later allows nothing new.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use farside_contract::{below, never_remote};

use super::wire::printable;
use crate::policy::Links as _;
use crate::trust::SystemLinks;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    /// `/path`: it and all below it. `@name`: the abstract names that begin so.
    names: Vec<u8>,
    /// Of an allow rule: the path without symbolic links, once there is something at it.
    real: OnceLock<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub rules: Vec<Rule>,
    /// The verdict on a name that no rule matches and that is not one of the machine's own services (D-Bus, journal,
    /// nscd, udev, X11 ...), which need a rule.
    pub otherwise: bool,
}

impl Policy {
    /// Everything but the machine's own services.
    pub fn open() -> Self {
        Self { rules: Vec::new(), otherwise: true }
    }

    /// Nothing but what the rules allow.
    pub fn only(rules: Vec<Rule>) -> Self {
        Self { rules, otherwise: false }
    }

    /// The verdict on a path without symbolic links and `..`, or on an abstract name.
    pub fn allows(&self, name: &[u8]) -> bool {
        if name.first() == Some(&b'/') && name.split(|b| *b == b'/').any(|part| part == b"..") {
            return false;
        }
        match self.rules.iter().find(|rule| rule.matches(name)) {
            Some(rule) => rule.allow,
            None => self.otherwise && never_remote(name).is_none(),
        }
    }

    /// The verdict on a socket of this machine that the other one asks for. The same rules, but none opens a service of
    /// the machine's own: who lets programs here ask for the other machine's has not offered this one's.
    pub fn serves(&self, name: &[u8]) -> bool {
        self.allows(name) && never_remote(name).is_none()
    }
}

impl Rule {
    fn matches(&self, name: &[u8]) -> bool {
        match (&self.names[..], name) {
            ([b'@', prefix @ ..], [0, rest @ ..]) => rest.starts_with(prefix),
            ([b'/', ..], [b'/', ..]) => {
                below(name, &self.names).is_some()
                    || if self.allow { self.allowed_really(name) } else { self.denied_really(name) }
            }
            _ => false,
        }
    }

    /// The rule's own path may lead through a symbolic link (/var/run and the like); the names judged never do. A path
    /// that cannot be followed may be any: then the rule is about every name.
    fn denied_really(&self, name: &[u8]) -> bool {
        match SystemLinks.without_any(&self.names) {
            Ok(real) => real != self.names && below(name, &real).is_some(),
            Err(errno) => {
                let why = errno.desc();
                tracing::warn!(name = printable(name), "denied by {self}: cannot follow its symbolic links: {why}");
                true
            }
        }
    }

    fn allowed_really(&self, name: &[u8]) -> bool {
        if self.real.get().is_none()
            && let Ok(real) = Path::new(OsStr::from_bytes(&self.names)).canonicalize()
        {
            // Another thread may have been first: then its answer stays.
            let _ = self.real.set(real.into_os_string().into_vec());
        }
        self.real.get().is_some_and(|real| below(name, real).is_some())
    }
}

/// A rule as it is typed: `allow:/path`, `deny:/path`, `allow:@abstract`.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, names) = text.split_once(':').ok_or("a rule is allow:NAME or deny:NAME")?;
        let allow = match word {
            "allow" => true,
            "deny" => false,
            _ => return Err(format!("{word}: a rule begins with allow: or deny:")),
        };
        if !names.starts_with(['/', '@']) {
            return Err(format!("{names}: a rule names an absolute path, or an abstract name as @NAME"));
        }
        Ok(Self { allow, names: names.as_bytes().to_vec(), real: OnceLock::new() })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allow { "allow" } else { "deny" };
        write!(f, "{word}:{}", String::from_utf8_lossy(&self.names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_deny_rule_that_cannot_be_followed_denies() {
        let dir = crate::sys::tempdir::PrivateDir::new("rule").unwrap();
        let link = dir.path().join("loop");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let rule = |word: &str| format!("{word}:{}/x", link.display()).parse::<Rule>().unwrap();
        assert!(!Policy { rules: vec![rule("deny")], otherwise: true }.allows(b"/srv/x"));
        assert!(!Policy::only(vec![rule("allow")]).allows(b"/srv/x"));
        assert!(Policy { rules: vec!["deny:/nonexistent/x".parse().unwrap()], otherwise: true }.allows(b"/srv/x"));
    }

    #[test]
    fn a_deny_rule_counts_for_what_it_is_at_each_use() {
        let dir = crate::sys::tempdir::PrivateDir::new("rule").unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (link, name) = (real.join("link"), |at: &str| real.join(at).into_os_string().into_vec());
        let policy = Policy { rules: rules(&[&format!("deny:{}", link.display())]), otherwise: true };
        for (there, other) in [("a", "b"), ("b", "a"), ("a", "b")] {
            let _ = std::fs::create_dir(real.join(there));
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(there, &link).unwrap();
            assert!(!policy.allows(&name(&format!("{there}/x"))) && policy.allows(&name(&format!("{other}/x"))));
            assert!(!policy.allows(&name("link/x")), "as it is written");
        }
    }

    #[test]
    fn the_first_match_wins() {
        let policy = Policy::only(rules(&["deny:/srv/private", "allow:/srv", "allow:@vm"]));
        for (name, allowed) in [
            (&b"/srv/x"[..], true),
            (b"/srv/private/x", false),
            (b"/srv/privateer", true),
            (b"/srvx", false),
            (b"/srv/../etc/x", false),
            (b"\0vm1", true),
            (b"\0other", false),
        ] {
            assert_eq!(policy.allows(name), allowed, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn services_of_the_machine_need_a_rule() {
        assert!(!Policy::open().allows(b"/run/dbus/system_bus_socket"));
        assert!(!Policy::open().allows(b"\0/tmp/.X11-unix/X0"));
        assert!(Policy::open().allows(b"/run/other"));
        let policy = Policy { rules: rules(&["allow:/run/dbus"]), otherwise: true };
        assert!(policy.allows(b"/var/run/dbus/system_bus_socket"));
    }

    #[test]
    fn a_rule_denies_the_other_machine_too_and_opens_nothing_of_this_ones_own() {
        let policy = Policy { rules: rules(&["allow:/run/dbus", "allow:/srv/x", "deny:/srv"]), otherwise: true };
        for (name, served) in
            [(&b"/srv/x/y"[..], true), (b"/srv/y", false), (b"/run/dbus/system_bus_socket", false), (b"/other", true)]
        {
            assert_eq!(policy.serves(name), served, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_rule_is_refused_by_what_is_wrong_with_it() {
        for (text, part) in [("/x", "allow:NAME"), ("permit:/x", "permit"), ("allow:x", "absolute")] {
            let said = text.parse::<Rule>().unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }
}
