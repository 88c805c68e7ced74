//! What is said of a key that is not trusted here: one line for this machine's log, with what to type, and one for the
//! other machine.
//!
//! Never a right that the other machine may not need: where it is not known what that is, the line names no right as
//! part of the command, and says which ones there are.

use std::net::IpAddr;

use crate::auth::PublicKey;
use crate::link::{Shown, Stranger};
use crate::policy::Grants;
use crate::trust::trust_command;
use crate::wire::hello::Role;

/// `serves`: what this program gives to others.
pub(super) fn unknown_key(shown: &Shown, ip: IpAddr, serves: &Grants) -> Stranger {
    let key = shown.key;
    let log = if shown.dialled { of_acceptor(key, ip) } else { of_dialler(shown, ip, serves) };
    Stranger { log, told: format!("your key, {key}, is not trusted here; our log has the command to type here") }
}

/// This machine has dialled it, and needs no rule for that.
fn of_acceptor(key: PublicKey, ip: IpAddr) -> String {
    let command = trust_command(key, ip);
    format!("its key is not trusted here; if `farside key` prints the same key there, type here: {command}")
}

fn of_dialler(shown: &Shown, ip: IpAddr, serves: &Grants) -> String {
    let command = trust_command(shown.key, ip);
    let needs = shown.role.map_or_else(|| serves.clone(), |role| serves.both(&needed_by(role)));
    let what = match needs.count() {
        0 => command,
        1 => format!("{command} --allow {needs}"),
        _ => format!("{command}, with --allow and what it may do here, of {needs}"),
    };
    format!("its key is not trusted here; to let it in, type here: {what}")
}

/// What a connection of that role may ask for.
fn needed_by(role: Role) -> Grants {
    match role {
        Role::Client => Grants { exec: true, ..Grants::default() },
        Role::Files => Grants { fs: true, ..Grants::default() },
        Role::Peer => Grants { exec: true, uds: true, fs: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Ends;

    fn said(dialled: bool, role: Option<Role>, serves: &str) -> Stranger {
        let ends = Ends { here: "10.0.0.1:1".parse().unwrap(), there: "10.0.0.2:2".parse().unwrap() };
        let shown = Shown { key: PublicKey([7; 32]), ends, binding: [0; 32], dialled, role };
        unknown_key(&shown, "10.0.0.2".parse().unwrap(), &serves.parse().unwrap())
    }

    #[test]
    fn a_machine_that_dials_is_not_told_to_grant_anything() {
        for serves in ["none", "exec,uds,fs"] {
            let line = said(true, None, serves).log;
            assert!(line.ends_with("= peer-10-0-0-2'") && !line.contains("--allow"), "{line}");
        }
    }

    #[test]
    fn an_acceptor_names_what_was_asked_for_and_it_serves() {
        for (role, serves, end) in [
            (Some(Role::Client), "exec,uds,fs", "' --allow exec"),
            (Some(Role::Files), "exec,uds,fs", "' --allow fs"),
            (Some(Role::Files), "uds,fs", "' --allow fs"),
            (Some(Role::Peer), "uds,fs", "' --allow uds"),
            (Some(Role::Peer), "exec,uds,fs", "', with --allow and what it may do here, of exec,uds"),
            (Some(Role::Client), "uds", "'"),
            (None, "exec", "' --allow exec"),
            (None, "uds", "' --allow uds"),
            (None, "exec,uds,fs", "', with --allow and what it may do here, of exec,uds,fs"),
        ] {
            let line = said(false, role, serves).log;
            assert!(line.ends_with(&format!("= peer-10-0-0-2{end}")), "{role:?} {serves}: {line}");
            assert!(!line.contains('\n') && !said(false, role, serves).told.contains("--allow"));
        }
    }
}
