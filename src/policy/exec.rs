//! Rules about commands: which, with which arguments, as whom, and with what of the caller's.
//!
//! A rule without `users` lets the peer be anybody here, root included, with the groups and capabilities that it
//! states. With `users`, and root not among them, a command has no group that its user does not have on this machine,
//! and no capability unless the rule gives some: either would be a way to be root all the same. What setuid programs of
//! this machine give to its users they give to such a command too, unless `capabilities` says what there is at most.

use super::capabilities::CapabilityMask;
use super::environment::Environment;
use super::glob::{PathGlob, TextGlob};
use super::verdict::{Allowed, Denied, Place, Service, Verdict};
use super::whitelist::{ExecList, Machine};
use super::{Policy, peer_file::deciding};

/// What is asked of this machine's users and groups.
pub trait Accounts {
    fn uid_of(&self, name: &str) -> Option<u32>;
    /// Whether this is the user's own group, or one that lists the user.
    fn is_member(&self, uid: u32, gid: u32) -> bool;
}

#[derive(Debug, Clone, Copy)]
pub struct ExecQuery<'a> {
    /// The file that is executed, as the kernel names it; of a script, the script.
    pub path: &'a [u8],
    /// Without the command's own name.
    pub args: &'a [Vec<u8>],
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

/// With what an allowed command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecGrant {
    /// Asked of each variable.
    pub environment: Environment,
    /// Put over the caller's permitted, inheritable and ambient sets.
    pub capabilities: CapabilityMask,
    /// Put over the caller's bounding set: what a program that is setuid, or has capabilities of its own, may get.
    pub bounding: CapabilityMask,
    /// Any other file would have been allowed too: it does not matter which one a path leads to in the end.
    pub any_file: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    Name(String),
    Id(u32),
}

impl User {
    /// `None`: neither a number nor a possible name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(id) = text.parse() {
            return Some(Self::Id(id));
        }
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-$".contains(&b);
        (!text.is_empty() && text.len() <= 256 && !text.starts_with('-') && text.bytes().all(fine))
            .then(|| Self::Name(text.into()))
    }

    fn id(&self, accounts: &dyn Accounts) -> Option<u32> {
        match self {
            Self::Name(name) => accounts.uid_of(name),
            Self::Id(id) => Some(*id),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Args {
    pub(super) each: Vec<TextGlob>,
    /// Any more may follow.
    pub(super) rest: bool,
}

impl Args {
    fn matches(&self, args: &[Vec<u8>]) -> bool {
        let enough = if self.rest { args.len() >= self.each.len() } else { args.len() == self.each.len() };
        enough && self.each.iter().zip(args).all(|(glob, arg)| glob.matches(arg))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExecRule {
    pub(super) place: Place,
    pub(super) allow: bool,
    /// More than one when a deny rule's path leads through symbolic links.
    pub(super) paths: Vec<PathGlob>,
    pub(super) args: Option<Args>,
    pub(super) users: Option<Vec<User>>,
    pub(super) grant: ExecGrant,
}

impl ExecRule {
    fn matches_path(&self, path: &[u8]) -> bool {
        self.paths.iter().any(|glob| glob.matches(path))
    }

    /// Why the rule does not match, when it is not for the path.
    fn unmatched(&self, query: &ExecQuery<'_>, accounts: &dyn Accounts) -> Option<String> {
        if self.args.as_ref().is_some_and(|args| !args.matches(query.args)) {
            return Some("not with these arguments".into());
        }
        let users: Vec<u32> = self.users.as_ref()?.iter().filter_map(|user| user.id(accounts)).collect();
        if !users.contains(&query.uid) {
            return Some(format!("not as user {}", query.uid));
        }
        // Who may be root gains nothing by a group; a deny rule is not escaped by one.
        if users.contains(&0) || !self.allow {
            return None;
        }
        let mut groups = std::iter::once(&query.gid).chain(query.groups);
        let foreign = groups.find(|gid| !accounts.is_member(query.uid, **gid))?;
        Some(format!("user {} is not in group {foreign} on this machine", query.uid))
    }
}

impl Policy {
    pub fn exec(&self, machine: &Machine, accounts: &dyn Accounts, query: &ExecQuery<'_>) -> Verdict<ExecGrant> {
        machine.exec.allows(query.path)?;
        let mut nearly = None;
        for rule in self.exec.iter().filter(|rule| rule.matches_path(query.path)) {
            match rule.unmatched(query, accounts) {
                None => {
                    let any_file = machine.exec == ExecList::Absent && self.lets_any_file(&rule.place);
                    return deciding(&rule.place, rule.allow, ExecGrant { any_file, ..rule.grant.clone() });
                }
                Some(but) if rule.allow && nearly.is_none() => nearly = Some((rule.place.clone(), but)),
                Some(_) => {}
            }
        }
        Err(Denied::NoRule { file: self.file.clone(), service: Service::Exec, nearly })
    }

    /// Whether that rule is the first one, and about every file and any arguments.
    fn lets_any_file(&self, place: &Place) -> bool {
        self.exec.first().is_some_and(|rule| {
            rule.place == *place && rule.args.is_none() && rule.paths.iter().any(PathGlob::is_everything)
        })
    }

    /// How an allowed command runs, for people.
    pub fn describe(allowed: &Allowed<ExecGrant>) -> String {
        let environment = match &allowed.grant.environment {
            Environment::All => "the whole environment",
            Environment::Harmless => "the environment without LD_* and its like",
            Environment::Named(_) => "the variables that `env` names",
        };
        format!("with {environment}; capabilities: {}", allowed.grant.capabilities)
    }
}
