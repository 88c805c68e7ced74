//! `farside policy check`: what a peer would be told, and by which line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nix::unistd::{Uid, User};

use crate::config::{NodeConfig, config_dir};
use crate::policy::{ExecQuery, Policy};
use crate::trust::{Store, SystemAccounts, SystemLinks, Trusted, TrustedPeer, real_path};

pub(super) const EXAMPLES: &str = "\
Examples:
  farside policy check dpu exec --user libvirt-qemu /usr/bin/qemu-system-x86_64 -name guest=vm1
  farside policy check dpu uds /var/lib/libvirt/qemu/domain-1-vm1/monitor.sock
  farside policy check dpu fs --write /var/lib/libvirt/images
Exit status: 0 allowed, 1 denied, 2 cannot tell.";

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// What the other machine is called here
    peer: String,
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// May it run this command here?
    Exec {
        /// As whom, by name or number
        #[arg(long, default_value = "root")]
        user: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// May it connect to this socket, a path or @NAME?
    Uds { name: OsString },
    /// May it read this file or directory?
    Fs {
        path: PathBuf,
        /// And write it
        #[arg(long)]
        write: bool,
    },
}

pub(crate) fn check(typed: Check) -> ExitCode {
    match answer(&typed) {
        Ok(Ok(line)) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Ok(Err(line)) => {
            println!("{line}");
            ExitCode::FAILURE
        }
        Err(line) => {
            eprintln!("farside policy check: {line}");
            ExitCode::from(2)
        }
    }
}

/// The verdict in words; the outer error is that there is none.
type Answer = Result<Result<String, String>, String>;

fn answer(typed: &Check) -> Answer {
    let trusted = Store::of_this_machine().load().map_err(|e| e.to_string())?;
    let name = &typed.peer;
    let peer = trusted.named(name).ok_or_else(|| format!("{name} is not trusted; `farside peers` lists who is"))?;
    match &typed.question {
        Question::Exec { user, command } => exec(&trusted, peer, user, command),
        Question::Uds { name } => uds(peer, name),
        Question::Fs { path, write } => fs(&trusted, peer, path, *write),
    }
}

fn exec(trusted: &Trusted, peer: &TrustedPeer, user: &str, command: &[OsString]) -> Answer {
    let who = ids_of(user)?;
    // What the daemons log when they read the file.
    peer.policy.doubts(&SystemAccounts).iter().for_each(|doubt| eprintln!("farside policy check: {doubt}"));
    let path = find(&command[0]).ok_or_else(|| format!("{} is not found on this machine", command[0].display()))?;
    let args: Vec<Vec<u8>> = command[1..].iter().map(|arg| arg.as_bytes().to_vec()).collect();
    let query = ExecQuery { path: path.as_os_str().as_bytes(), args: &args, uid: who.0, gid: who.1, groups: &[] };
    let verdict = peer.policy.exec(&trusted.machine, &SystemAccounts, &SystemLinks, &query);
    let verdict = verdict.map(|allowed| format!("{allowed}; {}", Policy::describe(&allowed)));
    Ok(worded(Path::new(&command[0]), &path, verdict.map_err(|e| e.to_string())))
}

/// User and group. A number needs no account: where there is none, or the name service cannot tell, the group has the
/// same number, and the rules are then asked as the daemons ask them.
fn ids_of(user: &str) -> Result<(u32, u32), String> {
    if let Ok(uid) = user.parse() {
        let account = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        return Ok((uid, account.map_or(uid, |account| account.gid.as_raw())));
    }
    match User::from_name(user) {
        Ok(Some(account)) => Ok((account.uid.as_raw(), account.gid.as_raw())),
        Ok(None) => Err(format!("there is no user {user} on this machine; say one of /etc/passwd, or a number")),
        Err(e) => Err(format!("the name service cannot say who user {user} is: {}; say a number", e.desc())),
    }
}

/// As the server finds it, in this process's PATH.
fn find(command: &OsString) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Path::new(command).canonicalize().ok();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).find_map(|dir| dir.join(command).canonicalize().ok().filter(|p| p.is_file()))
}

fn uds(peer: &TrustedPeer, name: &OsString) -> Answer {
    let said = |verdict: crate::policy::Verdict<()>| verdict.map(|a| a.to_string()).map_err(|d| d.to_string());
    if let Some(abstract_name) = name.as_bytes().strip_prefix(b"@") {
        return Ok(said(peer.policy.uds(&SystemLinks, &[&[0], abstract_name].concat())));
    }
    let path = real_path(Path::new(name)).map_err(|e| e.to_string())?;
    Ok(worded(Path::new(name), &path, said(peer.policy.uds(&SystemLinks, path.as_os_str().as_bytes()))))
}

fn fs(trusted: &Trusted, peer: &TrustedPeer, asked: &Path, write: bool) -> Answer {
    let path = real_path(asked).map_err(|e| e.to_string())?;
    let verdict = peer.policy.fs(&trusted.machine, &SystemLinks, path.as_os_str().as_bytes(), write);
    let exports = NodeConfig::load(&config_dir()).map_err(|e| e.to_string())?.exports;
    let exported = exports.iter().any(|export| real_path(&export.path).is_ok_and(|dir| path.starts_with(dir)));
    let verdict = match verdict {
        Ok(_) if !exported => {
            let file = config_dir().join("node.toml");
            Err(format!("denied: no [[export]] of {} holds it", file.display()))
        }
        Ok(allowed) => Ok(allowed.to_string()),
        Err(denied) => Err(denied.to_string()),
    };
    Ok(worded(asked, &path, verdict))
}

/// What was asked is judged by what it is.
fn worded(asked: &Path, path: &Path, verdict: Result<String, String>) -> Result<String, String> {
    let with =
        |line: String| if asked == path { line } else { format!("{line} ({} is {})", asked.display(), path.display()) };
    verdict.map(with).map_err(with)
}
