//! A peer's file: its keys, where it may come from, and its rules.
//!
//! ```text
//! keys = ["farside-ed25519 BASE64 dpu"]
//! addresses = ["192.168.10.11", "10.0.0.0/8"]     # optional
//! [[exec]]
//! allow = "/usr/bin/qemu-*"                       # or deny
//! args = ["-name", "*", "**"]                     # optional, and so are the others
//! users = ["libvirt-qemu", "64055"]
//! env = ["PATH", "LC_*"]
//! capabilities = ["CAP_NET_ADMIN"]                # or "caller", "none"
//! [[uds]]
//! allow = "/var/lib/libvirt/qemu/**"              # or "@abstract-*"
//! [[fs]]
//! allow = "/var/lib/libvirt"
//! access = "ro"                                   # or "rw"
//! ```
//!
//! A word that is not known is an error and not a rule less: whoever misspells `deny` must hear of it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::address::Network;
use super::capabilities::CapabilityMask;
use super::environment::Environment;
use super::exec::{Args, ExecGrant, ExecRule, User};
use super::fs::{Dir, FsAccess, FsRule};
use super::glob::{GlobError, PathGlob, TextGlob};
use super::uds::{Names, UdsRule};
use super::verdict::{Allowed, Denied, Place, Service, Verdict};
use crate::auth::KeyLine;
use crate::limits::{PEER_ADDRESSES_MAX, PEER_KEYS_MAX, POLICY_LIST_MAX, POLICY_RULES_MAX};

/// What is wrong with a file: where, and what to do, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    pub file: Arc<Path>,
    /// From 1; 0 when it is about the whole file.
    pub line: usize,
    pub what: String,
}

impl FileError {
    pub fn at(file: &Path, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.into(), line, what: what.into() }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.what),
        }
    }
}

impl std::error::Error for FileError {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFile {
    /// At least one; with several each is as good.
    pub keys: Vec<KeyLine>,
    /// Where it may come from and be found; empty: anywhere.
    pub addresses: Vec<Network>,
    pub policy: Policy,
}

/// What the peer may do. Asked in `exec.rs`, `uds.rs` and `fs.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(super) file: Arc<Path>,
    pub(super) exec: Vec<ExecRule>,
    pub(super) uds: Vec<UdsRule>,
    pub(super) fs: Vec<FsRule>,
}

pub(super) fn deciding<T>(place: &Place, allow: bool, grant: T) -> Verdict<T> {
    if allow { Ok(Allowed { by: place.clone(), grant }) } else { Err(Denied::Rule(place.clone())) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    keys: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    exec: Vec<Spanned<RawExec>>,
    #[serde(default)]
    uds: Vec<Spanned<RawUds>>,
    #[serde(default)]
    fs: Vec<Spanned<RawFs>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExec {
    allow: Option<Spanned<String>>,
    deny: Option<Spanned<String>>,
    args: Option<Vec<Spanned<String>>>,
    users: Option<Spanned<Vec<Spanned<String>>>>,
    env: Option<Vec<Spanned<String>>>,
    capabilities: Option<Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUds {
    allow: Option<Spanned<String>>,
    deny: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFs {
    allow: Option<Spanned<String>>,
    deny: Option<Spanned<String>>,
    access: Option<Spanned<String>>,
}

/// Where the strings of `keys` are in a file, and the whole array: for who writes another array in its place.
pub(super) fn keys_span(text: &str) -> Option<Range<usize>> {
    toml::from_str::<RawFile>(text).ok().map(|raw| raw.keys.span())
}

/// One rule's head: allowed or denied, what, and where that is written.
struct Head {
    allow: bool,
    pattern: Spanned<String>,
    place: Place,
}

/// The file under the reader's finger.
struct Reader<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl PeerFile {
    /// # Errors
    /// The first thing that is wrong, by line.
    pub fn parse(file: &Path, text: &str) -> Result<Self, FileError> {
        let reader = Reader { file: file.into(), text };
        let raw: RawFile = toml::from_str(text).map_err(|e| {
            let what = e.message().replace('\n', "; ");
            reader.error(e.span().unwrap_or(0..0), what)
        })?;
        reader.bounded(&raw)?;
        let key = |text: &Spanned<String>| reader.value(text, str::parse::<KeyLine>);
        let keys = raw.keys.get_ref().iter().map(key).collect::<Result<Vec<_>, _>>()?;
        let addresses = raw.addresses.iter().map(|text| reader.value(text, str::parse::<Network>));
        Ok(Self {
            keys,
            addresses: addresses.collect::<Result<_, _>>()?,
            policy: Policy {
                exec: reader.rules(&raw.exec, Reader::exec)?,
                uds: reader.rules(&raw.uds, Reader::uds)?,
                fs: reader.rules(&raw.fs, Reader::fs)?,
                file: reader.file,
            },
        })
    }
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1
    }

    fn error(&self, span: Range<usize>, what: impl Into<String>) -> FileError {
        FileError { file: self.file.clone(), line: self.line(span.start), what: what.into() }
    }

    /// One string as what it stands for.
    fn value<T, E: fmt::Display>(
        &self,
        text: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, FileError> {
        parse(text.get_ref()).map_err(|e| self.error(text.span(), format!("{:?}: {e}", shortened(text.get_ref()))))
    }

    fn bounded(&self, raw: &RawFile) -> Result<(), FileError> {
        let keys = raw.keys.get_ref();
        if keys.is_empty() {
            return Err(self.error(raw.keys.span(), "no key: a peer has one; `farside revoke` takes a peer away"));
        }
        let counts = [
            (keys.len(), PEER_KEYS_MAX, "keys"),
            (raw.addresses.len(), PEER_ADDRESSES_MAX, "addresses"),
            (raw.exec.len(), POLICY_RULES_MAX, "exec rules"),
            (raw.uds.len(), POLICY_RULES_MAX, "uds rules"),
            (raw.fs.len(), POLICY_RULES_MAX, "fs rules"),
        ];
        match counts.into_iter().find(|(count, max, _)| count > max) {
            Some((count, max, what)) => Err(FileError::at(&self.file, 0, format!("{count} {what}; at most {max}"))),
            None => Ok(()),
        }
    }

    fn rules<R, T>(
        &self,
        all: &[Spanned<R>],
        read: impl Fn(&Self, &Spanned<R>, usize) -> Result<T, FileError>,
    ) -> Result<Vec<T>, FileError> {
        all.iter().enumerate().map(|(at, raw)| read(self, raw, at + 1)).collect()
    }

    fn head(
        &self,
        table: Range<usize>,
        (allow, deny): (&Option<Spanned<String>>, &Option<Spanned<String>>),
        service: Service,
        number: usize,
    ) -> Result<Head, FileError> {
        let (allow, pattern) = match (allow, deny) {
            (Some(pattern), None) => (true, pattern.clone()),
            (None, Some(pattern)) => (false, pattern.clone()),
            (Some(_), Some(deny)) => {
                return Err(self.error(deny.span(), "a rule has either allow or deny; write two rules"));
            }
            (None, None) => {
                let what = format!("{service} rule {number} has neither allow nor deny; add allow = \"...\"");
                return Err(self.error(table, what));
            }
        };
        let line = self.line(pattern.span().start);
        Ok(Head { allow, pattern, place: Place { file: self.file.clone(), line, service, number } })
    }

    fn list<T, E: fmt::Display>(
        &self,
        all: &[Spanned<String>],
        parse: impl Fn(&str) -> Result<T, E> + Copy,
    ) -> Result<Vec<T>, FileError> {
        if let Some(first) = all.get(POLICY_LIST_MAX) {
            return Err(self.error(first.span(), format!("more than {POLICY_LIST_MAX} in one list; use patterns")));
        }
        all.iter().map(|text| self.value(text, parse)).collect()
    }

    fn exec(&self, raw: &Spanned<RawExec>, number: usize) -> Result<ExecRule, FileError> {
        let (table, raw) = (raw.span(), raw.get_ref());
        let Head { allow, pattern, place } = self.head(table, (&raw.allow, &raw.deny), Service::Exec, number)?;
        let path = self.value(&pattern, PathGlob::parse)?;
        if !allow && (raw.env.is_some() || raw.capabilities.is_some()) {
            return Err(self.error(pattern.span(), "what is denied gets no env and no capabilities; leave them out"));
        }
        let args = raw.args.as_deref().map(|all| self.args(all)).transpose()?;
        let users = raw.users.as_ref().map(|all| self.users(all)).transpose()?;
        let unlimited = path.is_everything() && args.is_none();
        let environment = match &raw.env {
            Some(names) if args.is_none() => Environment::Named(self.list(names, TextGlob::parse)?),
            Some(names) => Environment::Plain(self.list(names, TextGlob::parse)?),
            None if args.is_some() => Environment::Plain(Vec::new()),
            None if unlimited => Environment::All,
            None => Environment::Harmless,
        };
        let rootly = |all: &Vec<User>| all.iter().any(|u| *u == User::Id(0) || *u == User::Name("root".into()));
        let (capabilities, bounding) = match &raw.capabilities {
            Some(value) => self.capabilities(value).map(|mask| (mask, mask))?,
            None if users.as_ref().is_none_or(rootly) => (CapabilityMask::CALLER, CapabilityMask::CALLER),
            None => (CapabilityMask::NONE, CapabilityMask::CALLER),
        };
        let grant = ExecGrant { environment, capabilities, bounding, any_file: false };
        Ok(ExecRule { place, allow, paths: vec![path], args, users, grant })
    }

    fn args(&self, all: &[Spanned<String>]) -> Result<Args, FileError> {
        let (each, rest) = match all.split_last() {
            Some((last, each)) if last.get_ref() == "**" => (each, true),
            _ => (all, false),
        };
        Ok(Args { each: self.list(each, TextGlob::parse)?, rest })
    }

    fn users(&self, all: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<User>, FileError> {
        if all.get_ref().is_empty() {
            return Err(self.error(all.span(), "no user: name some, or leave users out to allow any"));
        }
        let parse = |text: &str| User::parse(text).ok_or("not the name or number of a user");
        self.list(all.get_ref(), parse)
    }

    fn capabilities(&self, value: &Spanned<toml::Value>) -> Result<CapabilityMask, FileError> {
        let wrong = |what: String| self.error(value.span(), what);
        match value.get_ref() {
            toml::Value::String(word) if word == "caller" => Ok(CapabilityMask::CALLER),
            toml::Value::String(word) if word == "none" => Ok(CapabilityMask::NONE),
            toml::Value::Array(all) => {
                let names = all.iter().map(|v| v.as_str().ok_or_else(|| wrong(format!("{v} is no string"))));
                CapabilityMask::of_names(names.collect::<Result<Vec<_>, _>>()?).map_err(wrong)
            }
            other => Err(wrong(format!("{other}: capabilities are \"caller\", \"none\", or a list of CAP_ names"))),
        }
    }

    fn uds(&self, raw: &Spanned<RawUds>, number: usize) -> Result<UdsRule, FileError> {
        let (table, raw) = (raw.span(), raw.get_ref());
        let Head { allow, pattern, place } = self.head(table, (&raw.allow, &raw.deny), Service::Uds, number)?;
        let parse = |text: &str| match Names::parse(text) {
            Err(GlobError::Relative) => Err("a socket is an absolute path, or @ and an abstract name".to_string()),
            other => other.map_err(|e| e.to_string()),
        };
        Ok(UdsRule { place, allow, names: self.value(&pattern, parse)? })
    }

    fn fs(&self, raw: &Spanned<RawFs>, number: usize) -> Result<FsRule, FileError> {
        let (table, raw) = (raw.span(), raw.get_ref());
        let Head { allow, pattern, place } = self.head(table, (&raw.allow, &raw.deny), Service::Fs, number)?;
        let access = match (&raw.access, allow) {
            (None, true) => return Err(self.error(pattern.span(), "say how: access = \"ro\" or access = \"rw\"")),
            (Some(access), false) => {
                return Err(self.error(access.span(), "what is denied has no access; leave it out"));
            }
            (None, false) => None,
            (Some(access), true) => Some(self.value(access, |word| match word {
                "ro" => Ok(FsAccess::Ro),
                "rw" => Ok(FsAccess::Rw),
                _ => Err("access is \"ro\" or \"rw\""),
            })?),
        };
        let dir = |text: &str| {
            let plain = !text.contains(['*', '?', '\0']);
            plain.then(|| Dir::new(text.as_bytes())).flatten().ok_or(
                "a directory is an absolute path without .., patterns or a / at its end; it stands for all below it",
            )
        };
        Ok(FsRule { place, allow: access, dirs: vec![self.value(&pattern, dir)?] })
    }
}

/// What a message quotes: a file may hold anything.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    let cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}
