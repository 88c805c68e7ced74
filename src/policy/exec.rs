//! Rules about commands: which, with which arguments, as whom, and with what of the caller's.
//!
//! A rule without `users` lets the peer be anybody here, root included, with the groups and capabilities that it
//! states. With `users`, and root not among them, a command has no group that its user does not have on this machine,
//! and no capability unless the rule gives some: either would be a way to be root all the same. What setuid programs of
//! this machine give to its users they give to such a command too, unless `capabilities` says what there is at most.
//!
//! The name service may fail to answer. Then nobody can tell whether the rule matches, and so which rule decides: the
//! command is denied, whether that rule denies or allows. A later rule could allow more than this one would.

use std::fmt;

use super::capabilities::CapabilityMask;
use super::environment::Environment;
use super::glob::{PathGlob, TextGlob};
use super::links::{Links, about};
use super::verdict::{Allowed, Denied, Place, Service, Verdict};
use super::whitelist::{ExecList, Machine};
use super::{Policy, peer_file::deciding};
use crate::errno::Errno;

/// What is asked of this machine's users and groups. An error is not a no: the name service could not answer.
pub trait Accounts {
    /// `None`: no user has this name.
    ///
    /// # Errors
    /// The name service could not answer.
    fn uid_of(&self, name: &str) -> Result<Option<u32>, Errno>;

    /// Whether this is the user's own group, or one that lists the user.
    ///
    /// # Errors
    /// As for `uid_of`.
    fn is_member(&self, uid: u32, gid: u32) -> Result<bool, Errno>;
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

    fn id(&self, accounts: &dyn Accounts) -> Result<Option<u32>, Errno> {
        match self {
            Self::Name(name) => accounts.uid_of(name),
            Self::Id(id) => Ok(Some(*id)),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// Whether a rule is about a command, once its path matches.
enum Match {
    Yes,
    /// Why not.
    No(String),
    /// The name service failed at this question.
    Unknown(String),
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
    /// As written, and for an allow rule without the machine's own links.
    pub(super) paths: Vec<PathGlob>,
    pub(super) args: Option<Args>,
    pub(super) users: Option<Vec<User>>,
    pub(super) grant: ExecGrant,
}

impl ExecRule {
    /// For a rule whose path matches.
    fn judge(&self, query: &ExecQuery<'_>, accounts: &dyn Accounts) -> Match {
        if self.args.as_ref().is_some_and(|args| !args.matches(query.args)) {
            return Match::No("not with these arguments".into());
        }
        let Some(users) = &self.users else { return Match::Yes };
        let (mut ids, mut unknown) = (Vec::new(), None);
        for user in users {
            match user.id(accounts) {
                Ok(id) => ids.extend(id),
                Err(errno) => unknown = unknown.or(Some(format!("who user {user} is: {}", errno.desc()))),
            }
        }
        match (ids.contains(&query.uid), unknown) {
            (true, _) => self.judge_groups(ids.contains(&0), query, accounts),
            (false, Some(why)) => Match::Unknown(why),
            (false, None) => Match::No(format!("not as user {}", query.uid)),
        }
    }

    /// For a rule whose `users` match. Who may be root gains nothing by a group; a deny rule is not escaped by one.
    fn judge_groups(&self, may_be_root: bool, query: &ExecQuery<'_>, accounts: &dyn Accounts) -> Match {
        if may_be_root || !self.allow {
            return Match::Yes;
        }
        let uid = query.uid;
        for gid in std::iter::once(&query.gid).chain(query.groups) {
            match accounts.is_member(uid, *gid) {
                Ok(true) => {}
                Ok(false) => return Match::No(format!("user {uid} is not in group {gid} on this machine")),
                Err(e) => return Match::Unknown(format!("whether user {uid} is in group {gid}: {}", e.desc())),
            }
        }
        Match::Yes
    }
}

impl Policy {
    pub fn exec(
        &self,
        machine: &Machine,
        accounts: &dyn Accounts,
        links: &dyn Links,
        query: &ExecQuery<'_>,
    ) -> Verdict<ExecGrant> {
        machine.exec.allows(query.path)?;
        let mut nearly = None;
        for rule in &self.exec {
            if !about((rule.allow, &rule.place), &rule.paths, query.path, links)? {
                continue;
            }
            match rule.judge(query, accounts) {
                Match::Yes => {
                    let any_file = machine.exec == ExecList::Absent && self.lets_any_file(&rule.place);
                    return deciding(&rule.place, rule.allow, ExecGrant { any_file, ..rule.grant.clone() });
                }
                Match::Unknown(what) => return Err(Denied::Unknown { place: rule.place.clone(), what }),
                Match::No(but) if rule.allow && nearly.is_none() => nearly = Some((rule.place.clone(), but)),
                Match::No(_) => {}
            }
        }
        Err(Denied::NoRule { file: self.file.clone(), service: Service::Exec, nearly })
    }

    /// What is wrong with the users that deny rules name, one line each. Nobody has such a name here, so nobody is
    /// denied by it: whoever misspells a name must hear of it. Asks the name service, which may take its time.
    pub fn doubts(&self, accounts: &dyn Accounts) -> Vec<String> {
        let deny = self.exec.iter().filter(|rule| !rule.allow);
        let named = deny.flat_map(|rule| rule.users.iter().flatten().map(move |user| (&rule.place, user)));
        let doubt = |(place, user): (&Place, &User)| match user.id(accounts) {
            Ok(Some(_)) => None,
            Ok(None) => {
                Some(format!("{place} denies user {user}, but this machine has no such user; correct the name"))
            }
            Err(errno) => Some(format!(
                "{place} denies user {user}, but the name service cannot say who that is: {}; until it can, the rule \
                 denies every user",
                errno.desc()
            )),
        };
        named.filter_map(doubt).collect()
    }

    /// Whether that rule is the first one, and about every file and any arguments.
    fn lets_any_file(&self, place: &Place) -> bool {
        self.exec.first().is_some_and(|rule| {
            rule.place == *place && rule.args.is_none() && rule.paths.iter().any(PathGlob::is_everything)
        })
    }

    /// How an allowed command runs, for people.
    pub fn describe(allowed: &Allowed<ExecGrant>) -> String {
        let ExecGrant { environment, capabilities, .. } = &allowed.grant;
        format!("with {environment}; capabilities: {capabilities}")
    }
}
