//! Which names may go to the other machine, decided without a system call.
//!
//! The shim asks this before it asks the daemon; the daemon asks it again about the path as it really is. A name is
//! compared by components, so that `//run/./dbus/x` is below `/run/dbus`; /var/run is /run.

use core::slice::Split;

/// Never remote unless a rule names them: the services of the machine that a program runs on. A libvirtd on the DPU
/// must not land on the host's D-Bus, journal or user database.
pub const NEVER: [&[u8]; 7] =
    [b"/run/systemd", b"/run/dbus", b"/run/nscd", b"/run/udev", b"/run/user", b"/dev/log", b"/tmp/.X11-unix"];

/// What an environment may say. Lists are separated by colons; `@name` is an abstract name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules<'a> {
    /// Remote before local.
    pub remote: &'a [u8],
    /// If given, nothing else goes remote.
    pub only: Option<&'a [u8]>,
    /// The daemon's own socket, which is never remote.
    pub daemon: &'a [u8],
}

/// Where a connect goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Local,
    /// To the daemon when the local kernel knows no listener.
    LocalFirst,
    RemoteFirst,
}

/// The route of `name`: a path, or an abstract name from its NUL on.
#[inline]
pub fn route(name: &[u8], rules: &Rules<'_>) -> Route {
    if name.is_empty() || name == rules.daemon {
        return Route::Local;
    }
    let remote = listed(rules.remote, name);
    let only = listed(rules.only.unwrap_or_default(), name);
    if rules.only.is_some() && remote.is_none() && only.is_none() {
        return Route::Local;
    }
    // A rule names a forbidden tree when it is at least as particular as the ban.
    if never_remote(name).is_some_and(|ban| remote.max(only).is_none_or(|rule| rule < ban)) {
        return Route::Local;
    }
    if remote.is_some() { Route::RemoteFirst } else { Route::LocalFirst }
}

/// How many components the ban on `name` has, if there is one. Abstract names with a '/' are desktop sockets that also
/// have a path (X11, D-Bus, ICE).
#[inline]
pub fn never_remote(name: &[u8]) -> Option<usize> {
    if let [0, rest @ ..] = name {
        return rest.contains(&b'/').then_some(1);
    }
    let mut longest = None;
    for ban in NEVER {
        longest = longest.max(below(name, ban));
    }
    longest
}

/// The longest entry of the colon list that `name` is below, in components.
#[inline]
fn listed(list: &[u8], name: &[u8]) -> Option<usize> {
    let mut longest = None;
    for entry in list.split(|b| *b == b':') {
        let found = match (entry, name) {
            ([], _) => None,
            ([b'@', prefix @ ..], [0, rest @ ..]) => rest.starts_with(prefix).then_some(1),
            _ => below(name, entry),
        };
        longest = longest.max(found);
    }
    longest
}

/// Whether the path `name` is `prefix` or below it, and how many components the prefix has. A path that climbs (`..`)
/// is below nothing: only the kernel knows where it ends.
#[inline]
pub fn below(name: &[u8], prefix: &[u8]) -> Option<usize> {
    if name.first() != Some(&b'/') || prefix.first() != Some(&b'/') {
        return None;
    }
    let mut have = components(name);
    if have.clone().any(|c| c == b"..") {
        return None;
    }
    let mut count = 0;
    for want in components(prefix) {
        if have.next() != Some(want) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

type Parts<'a> = Split<'a, u8, fn(&u8) -> bool>;

/// The components that count, /var/run taken for /run.
#[derive(Clone)]
struct Components<'a>(Parts<'a>);

#[inline]
fn components(path: &[u8]) -> Components<'_> {
    let slash: fn(&u8) -> bool = |b| *b == b'/';
    let mut all = Components(path.split(slash));
    let mut ahead = all.clone();
    if ahead.next() == Some(b"var") && ahead.clone().next() == Some(b"run") {
        all = ahead;
    }
    all
}

impl<'a> Iterator for Components<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.by_ref().find(|part| !part.is_empty() && *part != b".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_this_machine_never_go_remote() {
        for name in [
            &b"/run/systemd/journal/socket"[..],
            b"/var/run/dbus/system_bus_socket",
            b"//run/./dbus//system_bus_socket",
            b"/run/nscd/socket",
            b"/var/run/user/0/bus",
            b"/run/udev/control",
            b"/dev/log",
            b"/tmp/.X11-unix/X0",
            b"\0/tmp/dbus-xyz",
            b"/run/farside/uds.sock",
            b"",
        ] {
            let rules = Rules { daemon: b"/run/farside/uds.sock", ..Rules::default() };
            assert_eq!(route(name, &rules), Route::Local, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn other_names_are_tried_here_first() {
        for name in [&b"/run/systemdx"[..], b"/dev/logger", b"relative", b"\0plain", b"/run", b"/a/../run/dbus/x"] {
            assert_eq!(route(name, &Rules::default()), Route::LocalFirst, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn an_allow_list_shuts_everything_else_out() {
        let rules = Rules { only: Some(b"/var/lib/libvirt:@vm-"), ..Rules::default() };
        for (name, expected) in [
            (&b"/var/lib/libvirt/qemu/m.sock"[..], Route::LocalFirst),
            (b"/var/lib/libvirtx/m.sock", Route::Local),
            (b"/var/lib/libvirt/../x.sock", Route::Local),
            (b"relative", Route::Local),
            (b"\0vm-7", Route::LocalFirst),
            (b"\0xvm-7", Route::Local),
        ] {
            assert_eq!(route(name, &rules), expected, "{}", String::from_utf8_lossy(name));
        }
        let shut = Rules { only: Some(b""), ..Rules::default() };
        assert_eq!(route(b"/x", &shut), Route::Local, "an empty allow-list allows nothing");
    }

    #[test]
    fn a_ban_yields_to_a_rule_that_names_it() {
        let named = Rules { remote: b"/run/dbus", ..Rules::default() };
        assert_eq!(route(b"/var/run/dbus/system_bus_socket", &named), Route::RemoteFirst);
        let wider = Rules { remote: b"/run", ..Rules::default() };
        assert_eq!(route(b"/run/dbus/system_bus_socket", &wider), Route::Local, "/run does not name /run/dbus");
        assert_eq!(route(b"/run/other", &wider), Route::RemoteFirst);
        let root = Rules { remote: b"/", ..Rules::default() };
        assert_eq!(route(b"/other", &root), Route::RemoteFirst);
    }
}
