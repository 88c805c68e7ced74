//! `farside key`, `trust`, `peers`, `revoke` and `rotate`: what was typed, and what is said about it.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use super::daemon;
use crate::auth::{KeyLine, check_name};
use crate::policy::{Grants, Network, Policy};
use crate::trust::seen::{self, Seen};
use crate::trust::{Added, Revoked, Store, TrustOrder, TrustedPeer};

/// How services are granted as a whole.
const ALLOW_HELP: &str = "What it may do here: exec, uds, fs, with commas; without it nothing, but it can be dialled";

pub(super) const TRUST_EXAMPLES: &str = "\
Examples:
  It may be dialled, and may do nothing here:
    farside trust host 'farside-ed25519 AAAA... host'
  It may use this machine, from one address:
    farside trust dpu 'farside-ed25519 AAAA... dpu' --allow exec,uds,fs --address 192.168.10.11
  Its next key, after `farside rotate` there:
    farside trust dpu 'farside-ed25519 BBBB... dpu' --add

The line is what `farside key` prints there. What is allowed as a whole is narrowed in the file
that is named then; `farside policy check` tells what that means.";

pub(super) const ROTATE_EXAMPLES: &str = "\
  farside rotate             1. makes the next key, and says what to type on each peer
  (on the peers)             2. farside trust NAME 'LINE' --add
  farside rotate --finish    3. presents the next key from now on
  (on the peers)             4. farside revoke NAME --key OLD";

#[derive(Debug, Args)]
pub(crate) struct Trust {
    /// What the other machine is called here
    name: String,
    /// The line that `farside key` prints there
    #[arg(required = true, num_args = 1..=3, value_name = "LINE")]
    line: Vec<String>,
    #[arg(long, value_name = "SERVICES", help = ALLOW_HELP)]
    allow: Option<Grants>,
    /// It may come from here alone: an address, or a network as 10.0.0.0/8; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<Network>,
    /// Trust this key beside the ones that NAME has; its policy stays
    #[arg(long, conflicts_with = "replace")]
    add: bool,
    /// Trust this key and no other one of NAME's; its policy stays, unless --allow or --address has it written anew
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Peers {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// What the other machine is called here
    name: String,
    /// Only this one of its keys; at least the first 19 letters, as logs show it
    #[arg(long, value_name = "FINGERPRINT")]
    key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Make the next key the key
    #[arg(long, conflicts_with = "abort")]
    finish: bool,
    /// Drop the next key
    #[arg(long)]
    abort: bool,
}

/// A command's end, with its name in front of what went wrong.
pub(super) fn ends(command: &str, result: Result<(), impl std::fmt::Display>) -> ExitCode {
    daemon::exit(result.map_err(|e| format!("farside {command}: {e}")))
}

pub(crate) fn key() -> ExitCode {
    daemon::init_command_logs();
    ends("key", Store::of_this_machine().host_key().map(|key| println!("{}", key.line())))
}

pub(crate) fn trust(typed: Trust) -> ExitCode {
    ends("trust", trust_typed(typed))
}

fn trust_typed(typed: Trust) -> Result<(), String> {
    check_name(&typed.name).map_err(|e| e.to_string())?;
    let line: KeyLine = typed.line.join(" ").parse().map_err(|e| format!("{e}"))?;
    let order = TrustOrder {
        grants: typed.allow,
        add: typed.add,
        replace: typed.replace,
        addresses: typed.address,
        own_services: own_services(),
    };
    let store = Store::of_this_machine();
    let added = store.trust(&typed.name, &line, &order).map_err(|e| e.to_string())?;
    say_added(&store, &typed.name, &line, added);
    Ok(())
}

pub(super) fn say_added(store: &Store, name: &str, line: &KeyLine, added: Added) {
    let (path, fingerprint) = (store.peer_path(name), line.key.fingerprint());
    let path = path.display();
    match added {
        Added::New => println!("{name} is trusted: {fingerprint}; written: {path}"),
        Added::Rewritten => println!("{name} is trusted: {fingerprint}; written anew: {path}"),
        Added::Key => println!("{name} is trusted: {fingerprint}; its policy is what it was: {path}"),
        Added::Nothing => println!("{name} is trusted already: {fingerprint}; nothing changed in {path}"),
    }
}

/// What a machine keeps to itself also where it lets a peer have all sockets: as patterns of a deny rule.
pub(super) fn own_services() -> Vec<String> {
    let paths = farside_contract::NEVER.iter().map(|name| String::from_utf8_lossy(name).into_owned());
    let patterns = paths.map(|path| if path == "/dev/log" { path } else { format!("{path}/**") });
    patterns.chain(["@*/*".into()]).collect()
}

pub(crate) fn peers(typed: Peers) -> ExitCode {
    ends("peers", list(typed.json))
}

fn list(json: bool) -> Result<(), crate::trust::TrustError> {
    let trusted = Store::of_this_machine().load()?;
    let dir = seen::dir();
    let rows = trusted.peers().iter().map(|peer| (peer, seen::last(&dir, &peer.name)));
    if json {
        let all: Vec<String> = rows.map(|(peer, seen)| as_json(peer, seen.as_ref())).collect();
        println!("[{}]", all.join(",\n "));
        return Ok(());
    }
    if trusted.peers().is_empty() {
        println!("nobody is trusted yet; `farside trust --help` says how");
        return Ok(());
    }
    let now = SystemTime::now();
    let head = ["NAME", "KEY", "MAY", "ADDRESSES", "LAST SEEN"].map(String::from);
    let mut table = vec![head];
    for (peer, seen) in rows {
        let seen = seen.map_or_else(|| "-".into(), |s| format!("{} ago, {}", age(now, s.at), s.address));
        table.push([
            peer.name.clone(),
            fingerprints(peer).join(" "),
            summary(&peer.policy),
            addresses(peer, " "),
            seen,
        ]);
    }
    print_table(&table);
    Ok(())
}

fn fingerprints(peer: &TrustedPeer) -> Vec<String> {
    peer.keys.iter().map(|line| line.key.fingerprint()).collect()
}

fn addresses(peer: &TrustedPeer, between: &str) -> String {
    let all: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() { "any".into() } else { all.join(between) }
}

fn summary(policy: &Policy) -> String {
    let counts = policy.rule_counts().into_iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = counts
        .map(|(service, count)| format!("{service} ({count} rule{})", if count == 1 { "" } else { "s" }))
        .collect();
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn print_table(rows: &[[String; 5]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in rows {
        let cells = row.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at)));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Names, fingerprints and addresses have no letter that JSON would want escaped.
fn as_json(peer: &TrustedPeer, seen: Option<&Seen>) -> String {
    let strings =
        |all: Vec<String>| format!("[{}]", all.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", "));
    let rules = peer.policy.rule_counts().map(|(service, count)| format!("\"{service}\": {count}")).join(", ");
    let seen = seen.map_or("null".into(), |seen| {
        let at = seen.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("{{\"time\": {at}, \"address\": \"{}\"}}", seen.address)
    });
    format!(
        "{{\"name\": \"{}\", \"keys\": {}, \"rules\": {{{rules}}}, \"addresses\": {}, \"seen\": {seen}}}",
        peer.name,
        strings(fingerprints(peer)),
        strings(peer.addresses.iter().map(ToString::to_string).collect()),
    )
}

pub(crate) fn revoke(typed: Revoke) -> ExitCode {
    let done = Store::of_this_machine().revoke(&typed.name, typed.key.as_deref());
    let name = typed.name;
    ends(
        "revoke",
        done.map(|done| match done {
            Revoked::Peer { kept_as } => println!("{name} is trusted no more; its file is kept as peers.d/{kept_as}"),
            Revoked::Key { line, left } => {
                println!("{} is trusted no more; {name} has {left} other", line.key.fingerprint());
            }
        }),
    )
}

pub(crate) fn rotate(typed: Rotate) -> ExitCode {
    daemon::init_command_logs();
    let store = Store::of_this_machine();
    let done = match (typed.finish, typed.abort) {
        (true, _) => store.rotate_finish().map(|done| {
            println!("this machine now presents {}; the old key is kept as host.key.old", done.new.key.fingerprint());
            println!("on each machine that trusts this one:");
            println!("  farside revoke {} --key {}", done.new.name, done.old.key.fingerprint());
        }),
        (_, true) => {
            store.rotate_abort().map(|gone| println!("{} is dropped; nothing else changed", gone.key.fingerprint()))
        }
        _ => store.rotate().map(|begun| {
            let word = if begun.begun_before { "was made before" } else { "is made" };
            println!(
                "the next key {word}; {} is presented until `farside rotate --finish`",
                begun.old.key.fingerprint()
            );
            println!("on each machine that trusts this one, under the name that it has there:");
            println!("  farside trust {} '{}' --add", begun.new.name, begun.new);
        }),
    };
    ends("rotate", done)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_are_read_at_a_glance() {
        let then = SystemTime::UNIX_EPOCH;
        for (seconds, text) in [(5, "5 s"), (600, "10 min"), (7300, "2 h"), (400_000, "4 days")] {
            assert_eq!(age(then + Duration::from_secs(seconds), then), text);
        }
        assert_eq!(age(then, then + Duration::from_secs(9)), "0 s", "a clock that went back");
    }
}
