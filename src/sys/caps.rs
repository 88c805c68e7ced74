//! Capability sets, capabilities(7): read here; the supervisor there gives them to the command, so that it has what it
//! would have had here.
//!
//! execve computes a command's sets from the inheritable, bounding and ambient ones and the user; carrying these five
//! therefore gives the far command the sets that a local one would have got.

use crate::errno::{Errno, OsError, OsResult, Step};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub inheritable: u64,
    pub permitted: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// The calling process's sets, and whether no_new_privs is set: from /proc/self/status, proc_pid_status(5).
pub fn of_self() -> OsResult<(Sets, bool)> {
    read("self")
}

/// Another process's, as far as they mean anything here: one in a user namespace of its own has none (its sets are over
/// what belongs to that namespace, user_namespaces(7)). The caller holds the process, so that its number stays its own.
pub fn of(pid: i32) -> OsResult<(Sets, bool)> {
    let space = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user")).step_on("read the namespace of", who);
    let (sets, no_new_privs) = read(&pid.to_string())?;
    let ours = space("self")? == space(&pid.to_string())?;
    Ok((if ours { sets } else { Sets::default() }, no_new_privs))
}

fn read(who: &str) -> OsResult<(Sets, bool)> {
    let text = std::fs::read_to_string(format!("/proc/{who}/status")).step_on("read the status of", who)?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let mask = |name: &'static str| {
        let found = field(name).and_then(|v| u64::from_str_radix(v, 16).ok());
        found.ok_or_else(|| OsError::on("read a process's status", name, Errno::EINVAL))
    };
    let sets = Sets {
        inheritable: mask("CapInh:")?,
        permitted: mask("CapPrm:")?,
        bounding: mask("CapBnd:")?,
        ambient: mask("CapAmb:")?,
    };
    Ok((sets, field("NoNewPrivs:") == Some("1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_sets_can_be_read() {
        let (sets, _) = of_self().unwrap();
        assert_eq!(sets.permitted & !sets.bounding & sets.ambient, 0);
        assert_eq!(of(std::process::id().cast_signed()).unwrap().0, sets);
    }

    #[test]
    fn a_process_in_a_user_namespace_of_its_own_has_none_here() {
        let spawned = std::process::Command::new("unshare").args(["-U", "-r", "sleep", "60"]).spawn();
        let mut child = spawned.expect("unshare(1)");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let (pid, mut sets) = (child.id().cast_signed(), Sets { permitted: 1, ..Sets::default() });
        // Until it has made its namespace.
        while sets != Sets::default() && std::time::Instant::now() < until {
            sets = of(pid).unwrap().0;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(sets, Sets::default());
    }
}
