//! The store in a directory of its own: what is refused, what is agreed on, what is kept.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::auth::{KeyLine, SecretKey};
use crate::policy::Grants;
use crate::sys::tempdir::PrivateDir;

struct Place {
    dir: PrivateDir,
    store: Store,
}

fn place() -> Place {
    let dir = PrivateDir::new("trust").unwrap();
    let store = Store::new(dir.path().join("farside"));
    Place { dir, store }
}

impl Place {
    fn file(&self, name: &str) -> std::path::PathBuf {
        self.store.dir().join(name)
    }

    fn trust(&self, name: &str, line: &KeyLine, order: &TrustOrder) -> Attempt<Added> {
        self.store.trust(name, line, order)
    }
}

fn line() -> KeyLine {
    KeyLine { key: SecretKey::generate().public(), name: "dpu".into() }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn said<T: fmt::Debug>(result: Attempt<T>, part: &str) {
    let said = result.expect_err("it should have been refused").to_string();
    assert!(said.contains(part) && !said.contains('\n'), "{said}");
}

#[test]
fn a_key_is_made_once_and_for_its_owner_alone() {
    let place = place();
    let key = place.store.host_key().unwrap();
    assert_eq!(place.store.host_key().unwrap().public(), key.public());
    assert_eq!(fs::metadata(place.file("host.key")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(place.store.load().unwrap().own, [key.public()]);
}

#[test]
fn starters_at_once_agree_on_one_key() {
    let place = place();
    let keys: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| place.store.host_key().unwrap().public())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn what_others_could_have_read_or_written_is_refused() {
    let place = place();
    place.store.host_key().unwrap();
    place.trust("dpu", &line(), &TrustOrder::default()).unwrap();
    for (name, bad, good, part) in [
        ("host.key", 0o640, 0o600, "host.key: is secret"),
        ("peers.d/dpu.toml", 0o620, 0o600, "dpu.toml: may be written by others"),
        ("peers.d", 0o770, 0o700, "peers.d: may be written by others"),
        (".", 0o777, 0o755, "may be written by others (mode 0777)"),
    ] {
        chmod(&place.file(name), bad);
        said(place.store.load(), part);
        chmod(&place.file(name), good);
        place.store.load().unwrap();
    }
    if nix::unistd::geteuid().is_root() {
        for name in ["host.key", "peers.d/dpu.toml", "peers.d", "."] {
            std::os::unix::fs::chown(place.file(name), Some(1), None).unwrap();
            said(place.store.load(), "belongs to user 1");
            std::os::unix::fs::chown(place.file(name), Some(0), None).unwrap();
        }
    }
}

#[test]
fn links_are_not_followed() {
    let place = place();
    place.store.host_key().unwrap();
    fs::rename(place.file("host.key"), place.dir.path().join("real")).unwrap();
    symlink(place.dir.path().join("real"), place.file("host.key")).unwrap();
    said(place.store.host_key(), "is a symbolic link");
    said(place.store.load(), "is a symbolic link");
}

#[test]
fn a_fifo_in_the_place_of_a_file_stops_nobody() {
    let place = place();
    place.store.host_key().unwrap();
    fs::create_dir(place.file("peers.d")).unwrap();
    chmod(&place.file("peers.d"), 0o700);
    nix::unistd::mkfifo(&place.file("peers.d/x.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    said(place.store.load(), "no regular file");
}

#[test]
fn a_key_from_another_machine_is_kept_aside_and_not_used() {
    let place = place();
    let first = place.store.host_key().unwrap();
    place.store.rotate().unwrap();
    if first.machine.is_empty() {
        crate::skip::skip("this machine has nothing to tell it by");
        return;
    }
    for name in ["host.key", "host.key.next"] {
        let text = fs::read_to_string(place.file(name)).unwrap();
        fs::write(place.file(name), text.replace(&first.machine, "machine-id:other/../x")).unwrap();
    }
    let second = place.store.host_key().unwrap();
    assert_ne!(second.public(), first.public());
    assert!(place.file("host.key.of-machine-id_other____x").exists(), "{:?}", fs::read_dir(place.store.dir()));
    assert!(!place.file("host.key.next").exists());
    assert_eq!(place.store.load().unwrap().own, [second.public()]);
}

#[test]
fn a_known_peers_other_key_needs_a_word() {
    let place = place();
    let (first, second, third) = (line(), line(), line());
    let order = |add, replace| TrustOrder { add, replace, ..TrustOrder::default() };
    assert_eq!(place.trust("dpu", &first, &order(false, false)), Ok(Added::New));
    assert_eq!(place.trust("dpu", &first, &order(false, false)), Ok(Added::Nothing));
    said(place.trust("dpu", &second, &order(false, false)), "--add");
    let path = place.store.peer_path("dpu");
    let mine = format!("{}\n[[uds]]\nallow = '/mine' # mine\n", fs::read_to_string(&path).unwrap());
    fs::write(&path, &mine).unwrap();
    assert_eq!(place.trust("dpu", &second, &order(true, false)), Ok(Added::Key));
    assert!(fs::read_to_string(&path).unwrap().ends_with("allow = '/mine' # mine\n"));
    assert_eq!(place.store.load().unwrap().named("dpu").unwrap().keys, [first.clone(), second.clone()]);
    let grants = TrustOrder { grants: Some(Grants::default()), add: true, ..TrustOrder::default() };
    said(place.trust("dpu", &third, &grants), "its policy stays");
    assert_eq!(place.trust("dpu", &third, &order(false, true)), Ok(Added::Key));
    let trusted = place.store.load().unwrap();
    assert_eq!(trusted.named("dpu").unwrap().keys, std::slice::from_ref(&third));
    assert!(trusted.named("dpu").unwrap().policy.uds(&super::SystemLinks, b"/mine").is_ok());
    let anew = TrustOrder { grants: Some(Grants::default()), replace: true, ..TrustOrder::default() };
    assert_eq!(place.trust("dpu", &third, &anew), Ok(Added::Rewritten));
    assert!(place.store.load().unwrap().named("dpu").unwrap().policy.uds(&super::SystemLinks, b"/mine").is_err());
}

#[test]
fn one_key_is_one_peer_and_never_this_machine() {
    let place = place();
    let own = place.store.host_key().unwrap().line();
    let shared = line();
    said(place.trust("me", &own, &TrustOrder::default()), "own key");
    place.trust("one", &shared, &TrustOrder::default()).unwrap();
    said(place.trust("two", &shared, &TrustOrder::default()), "one's key already");
    fs::copy(place.store.peer_path("one"), place.store.peer_path("two")).unwrap();
    let error = place.store.load().unwrap_err().to_string();
    assert!(error.contains("one.toml") && error.contains("two.toml"), "{error}");
    fs::write(place.store.peer_path("two"), format!("keys = ['{own}']")).unwrap();
    said(place.store.load(), "own key");
}

#[test]
fn a_mistake_is_named_by_file_and_line_and_can_still_be_revoked() {
    let place = place();
    place.trust("dpu", &line(), &TrustOrder::default()).unwrap();
    let path = place.store.peer_path("dpu");
    fs::write(&path, format!("{}\n[[exec]]\nalow = 1\n", fs::read_to_string(&path).unwrap())).unwrap();
    said(place.store.load(), &format!("{}:", path.display()));
    assert_eq!(place.store.revoke("dpu", None), Ok(Revoked::Peer { kept_as: "dpu.toml.revoked".into() }));
    assert!(place.store.load().unwrap().peers().is_empty());
    said(place.store.revoke("dpu", None), "not trusted");
    said(place.store.revoke("../dpu", None), "no name");
}

#[test]
fn one_key_of_several_is_revoked_by_its_fingerprint() {
    let place = place();
    let (first, second) = (line(), line());
    place.trust("dpu", &first, &TrustOrder::default()).unwrap();
    place.trust("dpu", &second, &TrustOrder { add: true, ..TrustOrder::default() }).unwrap();
    said(place.store.revoke("dpu", Some("SHA256:")), "no key");
    said(place.store.revoke("dpu", Some("SHA256:0000000000000")), "no key");
    let gone = place.store.revoke("dpu", Some(&first.key.to_string()));
    assert_eq!(gone, Ok(Revoked::Key { line: first.clone(), left: 1 }));
    assert!(place.store.load().unwrap().find(&first.key).is_none());
    said(place.store.revoke("dpu", Some(&second.key.fingerprint())), "only key");
}

#[test]
fn a_rotation_overlaps_and_can_be_dropped() {
    let place = place();
    let old = place.store.host_key().unwrap().public();
    said(place.store.rotate_finish(), "farside rotate");
    let begun = place.store.rotate().unwrap();
    assert_eq!((place.store.rotate().unwrap().new, begun.old.key), (begun.new.clone(), old));
    assert_eq!(place.store.host_key().unwrap().public(), old, "the old one is still presented");
    assert_eq!(place.store.load().unwrap().own, [old, begun.new.key]);
    assert_eq!(place.store.rotate_abort().unwrap(), begun.new);
    let begun = place.store.rotate().unwrap();
    let done = place.store.rotate_finish().unwrap();
    assert_eq!((done.old.key, done.new.clone()), (old, begun.new));
    assert_eq!(place.store.host_key().unwrap().public(), done.new.key);
    assert_eq!(fs::metadata(place.file("host.key.old")).unwrap().permissions().mode() & 0o7777, 0o600);
    said(place.store.rotate_abort(), "no rotation");
}

#[test]
fn a_stamp_shows_every_change() {
    let place = place();
    let mut last = place.store.stamp();
    let mut changed = |what: &str, now: Stamp| {
        assert_ne!(now, last, "{what}");
        last = now;
    };
    place.store.host_key().unwrap();
    changed("a key", place.store.stamp());
    place.trust("dpu", &line(), &TrustOrder::default()).unwrap();
    changed("a peer", place.store.stamp());
    chmod(&place.store.peer_path("dpu"), 0o644);
    changed("a mode", place.store.stamp());
    place.trust("dpu", &line(), &TrustOrder { add: true, ..TrustOrder::default() }).unwrap();
    changed("a peer's key", place.store.stamp());
    place.store.rotate().unwrap();
    changed("a rotation", place.store.stamp());
    place.store.revoke("dpu", None).unwrap();
    changed("a revocation", place.store.stamp());
    assert_eq!(place.store.stamp(), last, "nothing has changed");
}

#[test]
fn who_may_be_where() {
    let place = place();
    let at = |text: &str| TrustOrder { addresses: vec![text.parse().unwrap()], ..TrustOrder::default() };
    place.trust("one", &line(), &at("10.0.0.0/8")).unwrap();
    place.trust("two", &line(), &at("192.168.1.1")).unwrap();
    place.trust("any", &line(), &TrustOrder::default()).unwrap();
    let trusted = place.store.load().unwrap();
    let names = |ip: &str| trusted.at_address(ip.parse().unwrap()).iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(
        (names("10.1.1.1"), names("192.168.1.1")),
        (vec!["any".into(), "one".into()], vec!["any".into(), "two".into()])
    );
    assert_eq!(names("::1"), ["any"]);
}
