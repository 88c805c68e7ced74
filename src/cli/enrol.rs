//! `farside enrol`: two machines that trust each other, over the trust that ssh has already.
//!
//! ```text
//!   ssh HOST farside key ──▶ trusted here ──▶ ssh HOST farside trust US 'OUR LINE' --allow ...
//! ```
//!
//! The system's own ssh, with its configuration, its questions and its check of the host's key: a stranger who answers
//! in the host's place would be enrolled in its place.

use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use super::{daemon, keys};
use crate::auth::line::KIND;
use crate::auth::{KeyLine, check_name};
use crate::policy::Grants;
use crate::trust::{Store, TrustOrder};

pub(super) const EXAMPLES: &str = "\
Examples:
  On the DPU, which may then use the host:
    farside enrol root@192.168.10.10 --name host --allow exec,uds,fs
  And the host may use sockets here:
    farside enrol root@192.168.10.10 --name host --allow exec,uds,fs --here uds

Both machines need farside, and the user over there must be root.";

#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// Where ssh goes: HOST or USER@HOST
    #[arg(value_name = "[USER@]HOST")]
    destination: String,
    /// What it is called here, otherwise as it calls itself
    #[arg(long)]
    name: Option<String>,
    /// What this machine may do there: exec, uds, fs, with commas; without it nothing
    #[arg(long, value_name = "SERVICES")]
    allow: Option<Grants>,
    /// What that machine may do here: exec, uds, fs, with commas; without it nothing
    #[arg(long, value_name = "SERVICES")]
    here: Option<Grants>,
    /// ssh's port, otherwise what its configuration says
    #[arg(long)]
    port: Option<u16>,
}

pub(crate) fn enrol(typed: Enrol) -> ExitCode {
    daemon::init_command_logs();
    keys::ends("enrol", run(&typed))
}

fn run(typed: &Enrol) -> Result<(), String> {
    let destination = &typed.destination;
    let strange = |c: char| c.is_whitespace() || c.is_control();
    if destination.is_empty() || destination.starts_with('-') || destination.contains(strange) {
        return Err(format!("{destination:?} is no destination for ssh; write HOST or USER@HOST"));
    }
    let store = Store::of_this_machine();
    let own = store.host_key().map_err(|e| e.to_string())?.line();
    let theirs = their_line(&ssh(typed, &["farside", "key"])?, destination)?;
    let name = typed.name.as_ref().unwrap_or(&theirs.name);
    check_name(name).map_err(|e| e.to_string())?;
    let order = TrustOrder { grants: typed.here.clone(), own_services: keys::own_services(), ..TrustOrder::default() };
    let added = store.trust(name, &theirs, &order).map_err(|e| e.to_string())?;
    keys::say_added(&store, name, &theirs, added);
    let line = own.to_string();
    let mut words = vec!["farside", "trust", own.name.as_str(), line.as_str()];
    let allow = typed.allow.as_ref().map(ToString::to_string);
    if let Some(allow) = &allow {
        words.extend(["--allow", allow]);
    }
    let said = ssh(typed, &words).map_err(|e| {
        format!("{e}; {name} is trusted here, but not this machine there: type there: {}", quoted(&words))
    })?;
    print!("{destination}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// What one command said there. Its questions and errors go to the terminal.
fn ssh(typed: &Enrol, words: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new("ssh");
    if let Some(port) = typed.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["-T", "--", &typed.destination, &quoted(words)]);
    command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let out = command.output().map_err(|e| format!("start ssh: {e}; install openssh-client"))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let what = words[..2].join(" ");
    Err(format!("ssh {}: `{what}` failed there ({}); see above", typed.destination, out.status))
}

/// As one line for the shell that ssh starts there.
fn quoted(words: &[&str]) -> String {
    let plain =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.,/".contains(&b));
    let one = |word: &&str| match plain(word) {
        true => (*word).to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A shell's start files may have said something too.
fn their_line(said: &[u8], destination: &str) -> Result<KeyLine, String> {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with(KIND)).collect();
    match lines[..] {
        [line] => line.parse().map_err(|e| format!("{destination}: `farside key` there: {e}")),
        _ => Err(format!("{destination}: `farside key` there did not print a key line; is it the same version?")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_other_shell_as_they_are() {
        assert_eq!(quoted(&["farside", "key"]), "farside key");
        assert_eq!(quoted(&["trust", "a b", "", "x'; rm -rf ~; '"]), r"trust 'a b' '' 'x'\''; rm -rf ~; '\'''");
    }

    #[test]
    fn a_line_is_found_among_what_a_login_says() {
        let line = "farside-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc= host";
        assert_eq!(their_line(format!("Welcome!\r\n{line}\r\n").as_bytes(), "h").unwrap().name, "host");
        for said in [String::new(), format!("{line}\n{line}"), "farside-ed25519 x".into()] {
            assert!(their_line(said.as_bytes(), "h").is_err(), "{said}");
        }
    }
}
