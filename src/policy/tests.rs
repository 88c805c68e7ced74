//! What a file says is what is judged: whole files, and questions about them.

use std::path::Path;

use super::*;
use crate::auth::{KeyLine, SecretKey};
use crate::errno::Errno;

const KEY: &str = "farside-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc= dpu";

/// 64055 is libvirt-qemu, of group 108. The name service fails when it is asked for `far` or for group 999.
struct Few;

impl Accounts for Few {
    fn uid_of(&self, name: &str) -> Result<Option<u32>, Errno> {
        match name {
            "root" => Ok(Some(0)),
            "libvirt-qemu" => Ok(Some(64055)),
            "far" => Err(Errno::EIO),
            _ => Ok(None),
        }
    }

    fn is_member(&self, uid: u32, gid: u32) -> Result<bool, Errno> {
        if gid == 999 { Err(Errno::EIO) } else { Ok((uid, gid) == (64055, 108)) }
    }
}

fn parse(rules: &str) -> Result<PeerFile, FileError> {
    PeerFile::parse(Path::new("/p/dpu.toml"), &format!("keys = [\"{KEY}\"]\n{rules}"))
}

fn policy(rules: &str) -> Policy {
    parse(rules).unwrap_or_else(|e| panic!("{e}")).policy
}

fn run(policy: &Policy, uid: u32, gid: u32, words: &[&str]) -> Verdict<ExecGrant> {
    let args: Vec<Vec<u8>> = words[1..].iter().map(|w| w.as_bytes().to_vec()).collect();
    let query = ExecQuery { path: words[0].as_bytes(), args: &args, uid, gid, groups: &[] };
    policy.exec(&Machine::default(), &Few, &AsWritten, &query)
}

#[test]
fn nothing_is_allowed_that_no_rule_allows() {
    let policy = policy("");
    let machine = Machine::default();
    assert_eq!(
        run(&policy, 0, 0, &["/bin/true"]).unwrap_err().to_string(),
        "denied: no exec rule of /p/dpu.toml allows it"
    );
    assert!(policy.uds(&AsWritten, b"/run/x").is_err() && policy.uds(&AsWritten, b"\0x").is_err());
    assert!(policy.fs(&machine, &AsWritten, b"/", false).is_err() && policy.mount(&machine, &AsWritten, b"/").is_err());
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(
        "[[exec]]\ndeny = '/usr/bin/qemu-img'\n[[exec]]\nallow = '/usr/bin/qemu-*'\n[[exec]]\ndeny = '/usr/bin/qemu-kvm'",
    );
    let denied = run(&policy, 0, 0, &["/usr/bin/qemu-img"]).unwrap_err();
    assert_eq!(denied.to_string(), "denied by /p/dpu.toml:3 (exec rule 1)");
    let allowed = run(&policy, 0, 0, &["/usr/bin/qemu-kvm", "any", "thing"]).unwrap();
    assert_eq!(allowed.to_string(), "allowed by /p/dpu.toml:5 (exec rule 2)");
    assert!(run(&policy, 0, 0, &["/usr/bin/../bin/qemu-kvm"]).is_err());
}

#[test]
fn arguments_are_counted_unless_the_last_pattern_is_two_stars() {
    let policy = policy(
        "[[exec]]\nallow='/a'\nargs=['-name', '*', '**']\n[[exec]]\nallow='/b'\nargs=[]\n[[exec]]\nallow='/c'\nargs=['-f']",
    );
    for (words, is) in [
        (&["/a", "-name", "x"][..], true),
        (&["/a", "-name", "x/y", "more", "and more"], true),
        (&["/a", "-name"], false),
        (&["/a", "-eman", "x"], false),
        (&["/b"], true),
        (&["/b", "x"], false),
        (&["/c", "-f"], true),
        (&["/c", "-f", "x"], false),
    ] {
        assert_eq!(run(&policy, 0, 0, words).is_ok(), is, "{words:?}");
    }
    let said = run(&policy, 0, 0, &["/b", "x"]).unwrap_err().to_string();
    assert_eq!(said, "denied: /p/dpu.toml:6 (exec rule 2) would allow it, but not with these arguments");
}

#[test]
fn who_may_not_be_root_is_not_by_a_group_or_a_capability_either() {
    let policy = policy("[[exec]]\nallow='/a'\nusers=['libvirt-qemu']\n[[exec]]\nallow='/b'\nusers=['64055', 'root']");
    let allowed = run(&policy, 64055, 108, &["/a"]).unwrap();
    assert_eq!(allowed.grant.capabilities, CapabilityMask::NONE);
    assert_eq!(allowed.grant.bounding, CapabilityMask::CALLER, "setuid programs work for it as for any user");
    for (uid, gid, but) in [(0, 0, "not as user 0"), (1, 108, "not as user 1"), (64055, 0, "not in group 0")] {
        let said = run(&policy, uid, gid, &["/a"]).unwrap_err().to_string();
        assert!(said.contains(but), "{said}");
    }
    let args = Vec::new();
    let query = ExecQuery { path: b"/a", args: &args, uid: 64055, gid: 108, groups: &[108, 6] };
    assert!(policy.exec(&Machine::default(), &Few, &AsWritten, &query).is_err(), "nor by a further group");
    assert_eq!(run(&policy, 64055, 0, &["/b"]).unwrap().grant.capabilities, CapabilityMask::CALLER);
}

#[test]
fn a_deny_rule_for_a_user_is_not_escaped_by_a_group() {
    let policy = policy("[[exec]]\ndeny='/a'\nusers=['64055']\n[[exec]]\nallow='/a'");
    assert!(run(&policy, 64055, 7, &["/a"]).is_err());
    assert!(run(&policy, 0, 0, &["/a"]).is_ok());
}

#[test]
fn a_name_that_nobody_has_here_is_nobody() {
    let policy =
        policy("[[exec]]\nallow='/a'\nusers=['nosuch']\n[[exec]]\ndeny='/b'\nusers=['nosuch']\n[[exec]]\nallow='/b'");
    assert!(run(&policy, 0, 0, &["/a"]).is_err());
    assert!(run(&policy, 0, 0, &["/b"]).is_ok());
}

#[test]
fn a_rule_that_the_name_service_cannot_judge_denies() {
    let policy = policy(
        "[[exec]]\ndeny='/a'\nusers=['far', '7']\n[[exec]]\nallow='/a'\n\
         [[exec]]\nallow='/b'\nusers=['far', 'root']\n[[exec]]\nallow='/b'\n\
         [[exec]]\nallow='/c'\nusers=['64055']\n[[exec]]\nallow='/c'\n\
         [[exec]]\ndeny='/d'\nargs=['-x']\nusers=['far']\n[[exec]]\nallow='/d'",
    );
    let unknown = "denied: /p/dpu.toml:3 (exec rule 1) may be about it, but the name service cannot say who user far \
                   is: I/O error";
    assert_eq!(run(&policy, 64055, 108, &["/a"]).unwrap_err().to_string(), unknown);
    assert!(matches!(run(&policy, 7, 7, &["/a"]), Err(Denied::Rule(_))), "it is certain of this one");
    assert!(matches!(run(&policy, 64055, 108, &["/b"]), Err(Denied::Unknown { .. })), "not by the wider rule either");
    assert!(run(&policy, 0, 0, &["/b"]).is_ok(), "it is certain of root");
    let said = run(&policy, 64055, 999, &["/c"]).unwrap_err().to_string();
    assert!(said.contains("whether user 64055 is in group 999"), "{said}");
    assert!(run(&policy, 64055, 108, &["/d"]).is_ok(), "the rule is about other arguments");
}

#[test]
fn deny_rules_with_names_that_deny_nobody_are_told_of() {
    let policy = policy(
        "[[exec]]\ndeny='/a'\nusers=['nosuch', 'root', '7']\n[[exec]]\ndeny='/a'\nusers=['far']\n\
         [[exec]]\nallow='/a'\nusers=['nosuch']",
    );
    let [nobody, unknown] = &policy.doubts(&Few)[..] else { panic!("{:?}", policy.doubts(&Few)) };
    assert!(nobody.starts_with("/p/dpu.toml:3 (exec rule 1) denies user nosuch, but"), "{nobody}");
    assert!(unknown.starts_with("/p/dpu.toml:6 (exec rule 2) denies user far, but") && unknown.contains("every user"));
}

fn handed_on_by(grant: &ExecGrant, variable: &str) -> bool {
    let mut variables = vec![variable.as_bytes().to_vec()];
    grant.environment.narrow(&mut variables);
    variables.iter().any(|left| left == variable.as_bytes())
}

#[test]
fn a_rule_with_arguments_is_not_escaped_by_a_variable() {
    let policy = policy(
        "[[exec]]\nallow='/a'\nargs=[]\n[[exec]]\nallow='/b'\nargs=['**']\nenv=['TAR_*']\n\
         [[exec]]\nallow='/**'\nargs=['-x']\n[[exec]]\nallow='/d'",
    );
    for (words, named, plain, others) in [
        (&["/a"][..], false, true, false),
        (&["/b", "x"], true, true, false),
        (&["/c", "-x"], false, true, false),
        (&["/d"], true, true, true),
    ] {
        let allowed = run(&policy, 0, 0, words).unwrap();
        for (variable, is) in [("TAR_OPTIONS=x", named), ("LANG=C", plain), ("HOME=/x", others), ("PATH=/x", others)] {
            assert_eq!(handed_on_by(&allowed.grant, variable), is, "{words:?} {variable}");
        }
        let said = Policy::describe(&allowed);
        assert_eq!(said.contains("and PATH=/usr/sbin:"), !others, "{said}");
        assert_eq!(said.contains("TAR_*, plain values of LANG"), named && !others, "{said}");
    }
}

#[test]
fn what_leads_a_program_astray_is_handed_on_where_any_program_may_run() {
    let policy = policy(
        "[[exec]]\nallow='/a'\n[[exec]]\nallow='/b'\nenv=['LD_*']\ncapabilities=['CAP_KILL']\n[[exec]]\nallow='/**'",
    );
    for (command, handed_on) in [("/a", false), ("/b", true), ("/c", true)] {
        let grant = run(&policy, 0, 0, &[command]).unwrap().grant;
        assert_eq!(handed_on_by(&grant, "LD_PRELOAD=/x"), handed_on, "{command}");
    }
    let grant = run(&policy, 0, 0, &["/b"]).unwrap().grant;
    assert_eq!((grant.capabilities, grant.bounding), (CapabilityMask(1 << 5), CapabilityMask(1 << 5)));
}

#[test]
fn sockets_are_named_by_path_or_abstract_name() {
    let policy = policy(
        "[[uds]]\ndeny='/srv/private/**'\n[[uds]]\nallow='/srv/**'\n[[uds]]\nallow='@vm-*'\n[[uds]]\nallow='/run/one'",
    );
    for (name, is) in [
        (&b"/srv/x"[..], true),
        (b"/srv/private/x", false),
        (b"/srv/../etc/x", false),
        (b"/run/one", true),
        (b"/run/one/two", false),
        (b"\0vm-1/2", true),
        (b"\0srv", false),
        (b"\0/srv/x", false),
        (b"@vm-1", false),
        (b"", false),
    ] {
        assert_eq!(policy.uds(&AsWritten, name).is_ok(), is, "{}", String::from_utf8_lossy(name));
    }
}

#[test]
fn a_directory_stands_for_what_is_below_it() {
    let policy = policy(
        "[[fs]]\nallow='/a/ro'\naccess='ro'\n[[fs]]\ndeny='/b/secret'\n[[fs]]\nallow='/a'\naccess='rw'\n[[fs]]\nallow='/b'\naccess='rw'",
    );
    let machine = Machine::default();
    for (path, write, is) in [
        ("/a", true, true),
        ("/a/x/y", true, true),
        ("/ab", false, false),
        ("/a/ro/x", false, true),
        ("/a/ro/x", true, false),
        ("/b/secret/x", false, false),
        ("/b/x", true, true),
        ("/a/../b", false, false),
        ("/", false, false),
    ] {
        assert_eq!(policy.fs(&machine, &AsWritten, path.as_bytes(), write).is_ok(), is, "{path}");
    }
    let mount = |path: &str| policy.mount(&machine, &AsWritten, path.as_bytes());
    assert!(mount("/a").unwrap().grant.read_only, "something in it is");
    assert!(mount("/a/ro").unwrap().grant.read_only && !mount("/a/x").unwrap().grant.read_only);
    assert_eq!(mount("/b").unwrap_err().to_string(), "denied by /p/dpu.toml:6 (fs rule 2)", "it holds what is denied");
    assert!(mount("/b/x").is_ok() && mount("/").is_err());
}

#[test]
fn the_machines_lists_take_away_and_never_give() {
    let policy = policy("[[exec]]\nallow='/usr/bin/*'\n[[fs]]\nallow='/var'\naccess='rw'");
    let none = |_: &[u8]| None;
    let machine = Machine {
        exec: ExecList::parse(Path::new("/w"), "/usr/bin/one\n/opt/two\n", &none).unwrap(),
        fs: FsList::parse(Path::new("/q"), "[Mount]\nPath=/var/lib\n[Open]\nPath=/var/lib/x\n[Write]\nPath=/nowhere\n")
            .unwrap(),
    };
    let ask = |path: &str| {
        let args = Vec::new();
        let query = ExecQuery { path: path.as_bytes(), args: &args, uid: 0, gid: 0, groups: &[] };
        policy.exec(&machine, &Few, &AsWritten, &query)
    };
    assert!(ask("/usr/bin/one").is_ok() && ask("/opt/two").is_err());
    assert_eq!(ask("/usr/bin/two").unwrap_err().to_string(), "denied: /w does not list it");
    let grant = policy.mount(&machine, &AsWritten, b"/var/lib").unwrap().grant;
    assert!(grant.partly.contains(FsOp::Open) && grant.without.contains(FsOp::Write));
    assert!(!grant.without.contains(FsOp::Read) && policy.mount(&machine, &AsWritten, b"/var").is_err());
    let refused = Machine { exec: ExecList::Refused("why".into()), fs: FsList::Refused("why".into()) };
    assert!(policy.mount(&refused, &AsWritten, b"/var").is_err());
}

/// `/var/run` is a link to `/run`, `/srv/link` to what is said here, and `/broken` cannot be followed.
struct Moved(&'static str);

impl Links for Moved {
    fn without_any(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let path = String::from_utf8(path.to_vec()).unwrap();
        if path.starts_with("/broken") {
            return Err(Errno::ELOOP);
        }
        Ok(path.replace("/var/run", "/run").replace("/srv/link", self.0).into_bytes())
    }

    fn without_top(&self, path: &[u8]) -> Option<Vec<u8>> {
        Some(String::from_utf8(path.to_vec()).unwrap().replace("/var/run", "/run").into_bytes())
    }
}

#[test]
fn deny_rules_follow_links_at_each_use_and_allow_rules_only_the_machines_own() {
    let policy = policy(
        "[[uds]]\ndeny='/srv/link/*'\n[[uds]]\nallow='/var/run/**'\n[[uds]]\nallow='/srv/link/**'\n\
         [[uds]]\nallow='/etc/**'\n[[fs]]\ndeny='/srv/link'\n[[fs]]\nallow='/etc'\naccess='ro'\n\
         [[exec]]\ndeny='/srv/link/x'\n[[exec]]\nallow='/etc/*'",
    );
    let policy = policy.following(&Moved("/etc"));
    let machine = Machine::default();
    let command = ExecQuery { path: b"/etc/x", args: &[], uid: 0, gid: 0, groups: &[] };
    assert!(policy.uds(&AsWritten, b"/run/x").is_ok() && policy.uds(&AsWritten, b"/var/run/x").is_ok());
    for (there, denied) in [("/etc", true), ("/opt", false), ("/etc", true)] {
        let links = Moved(there);
        let verdicts = [
            policy.uds(&links, b"/etc/x").err(),
            policy.fs(&machine, &links, b"/etc/x", false).err(),
            policy.mount(&machine, &links, b"/etc").err(),
            policy.exec(&machine, &Few, &links, &command).err(),
        ];
        for verdict in verdicts {
            assert_eq!(matches!(verdict, Some(Denied::Rule(_))), denied, "{there}: {verdict:?}");
        }
        assert!(policy.uds(&links, b"/srv/link/x").is_err(), "as it is written");
    }
}

#[test]
fn a_deny_rule_that_cannot_be_followed_denies() {
    let rules = |kind: &str, how: &str| format!("[[{kind}]]\ndeny='/broken/x'\n[[{kind}]]\nallow='/a'\n{how}");
    let policy = policy(&[rules("exec", ""), rules("uds", ""), rules("fs", "access='ro'")].join("\n"));
    let (machine, links) = (Machine::default(), Moved(""));
    let command = ExecQuery { path: b"/a", args: &[], uid: 0, gid: 0, groups: &[] };
    let verdicts = [
        policy.exec(&machine, &Few, &links, &command).unwrap_err(),
        policy.uds(&links, b"/a").unwrap_err(),
        policy.fs(&machine, &links, b"/a", false).unwrap_err(),
        policy.mount(&machine, &links, b"/a").unwrap_err(),
    ];
    for denied in verdicts {
        let said = denied.to_string();
        assert!(said.contains("the symbolic links of \"/broken/x\" cannot be followed: Too many"), "{said}");
    }
    assert!(policy.uds(&AsWritten, b"/a").is_ok());
}

#[test]
fn a_mistake_is_said_by_its_line_with_what_to_do() {
    for (rules, line, part) in [
        ("[[exec]]\nalow = '/x'", 3, "alow"),
        ("\n[[exec]]\nusers = ['root']", 3, "neither allow nor deny"),
        ("[[exec]]\nallow='/x'\ndeny='/y'", 4, "two rules"),
        ("[[exec]]\nallow='x'", 3, "begin with /"),
        ("[[exec]]\nallow='/x['", 3, "no meaning here"),
        ("[[exec]]\ndeny='/x'\nenv=['A']", 3, "leave them out"),
        ("[[exec]]\nallow='/x'\nusers=[]", 4, "leave users out"),
        ("[[exec]]\nallow='/x'\nusers=['a b']", 4, "a user"),
        ("[[exec]]\nallow='/x'\ncapabilities='all'", 4, "\"caller\", \"none\""),
        ("[[exec]]\nallow='/x'\ncapabilities=['CAP_ROOT']", 4, "CAP_ROOT"),
        ("[[exec]]\nallow='/x'\nargs=['a**']", 4, "stars"),
        ("[[uds]]\nallow='x'", 3, "@ and an abstract name"),
        ("[[fs]]\nallow='/x'", 3, "access = \"ro\""),
        ("[[fs]]\nallow='/x'\naccess='w'", 4, "access is"),
        ("[[fs]]\ndeny='/x'\naccess='ro'", 4, "leave it out"),
        ("[[fs]]\nallow='/x/*'\naccess='ro'", 3, "below it"),
        ("addresses = ['host']", 2, "no address"),
        ("[[pids]]\nallow='1'", 2, "pids"),
        ("[exec", 2, ""),
    ] {
        let error = parse(rules).unwrap_err();
        assert_eq!((error.line, error.to_string().contains(part)), (line, true), "{rules:?}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let whole = |text: &str| PeerFile::parse(Path::new("/p"), text).unwrap_err().to_string();
    assert!(whole("").contains("keys"), "{}", whole(""));
    assert!(whole("keys = []").contains("farside revoke"));
    assert!(whole("keys = ['farside-ed25519 x y']").contains("/p:1: "));
}

fn line(name: &str) -> KeyLine {
    KeyLine { key: SecretKey::generate().public(), name: name.into() }
}

#[test]
fn a_new_file_says_what_was_granted() {
    let all = Grants { exec: true, uds: true, fs: true };
    let keys = [line("a"), line("b")];
    let networks = ["10.0.0.0/8".parse().unwrap()];
    let text = new_file(&keys, &networks, &all, &["/run/dbus/**", "@*/*"]);
    let file = PeerFile::parse(Path::new("/p"), &text).unwrap();
    assert_eq!((&file.keys[..], &file.addresses[..]), (&keys[..], &networks[..]));
    assert!(run(&file.policy, 0, 0, &["/bin/sh", "-c", "x"]).is_ok());
    assert!(file.policy.uds(&AsWritten, b"/run/x").is_ok() && file.policy.uds(&AsWritten, b"/run/dbus/x").is_err());
    assert!(file.policy.uds(&AsWritten, b"\0x").is_ok() && file.policy.uds(&AsWritten, b"\0/tmp/x").is_err());
    assert!(!file.policy.mount(&Machine::default(), &AsWritten, b"/srv").unwrap().grant.read_only);
    let text = new_file(&keys[..1], &[], &Grants::default(), &["/run/dbus/**"]);
    let file = PeerFile::parse(Path::new("/p"), &text).unwrap();
    assert!(file.policy.rule_counts().iter().all(|(_, count)| *count == 0) && file.addresses.is_empty());
}

#[test]
fn keys_change_and_what_people_wrote_stays() {
    let old = line("dpu");
    let text = format!(
        "# mine\nkeys = [ # here ]\n  '{old}', # the old one\n]\n# then\n[[exec]] # rule\nallow = '/x' # ] \"keys = []\n"
    );
    let path = Path::new("/p");
    let both = [old.clone(), line("new")];
    let after = with_keys(path, &text, &both).unwrap();
    assert!(
        after.starts_with("# mine\nkeys = [\n")
            && after.ends_with("# then\n[[exec]] # rule\nallow = '/x' # ] \"keys = []\n")
    );
    assert_eq!(PeerFile::parse(path, &after).unwrap().keys, both);
    let back = with_keys(path, &after, &both[1..]).unwrap();
    assert_eq!(PeerFile::parse(path, &back).unwrap().keys, both[1..]);
    assert!(with_keys(path, "keys = 1", &both).is_err() && with_keys(path, &text, &[]).is_err());
}
