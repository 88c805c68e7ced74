//! What the plan of `farside dpu up` is for a configuration.

use super::*;

pub fn offload() -> Offload {
    Offload {
        rootfs: "/another_rootfs".into(),
        mounts: vec!["/var/lib/libvirt".into(), "/home/VMs".into()],
        emulators: vec!["/usr/bin/qemu-system-x86_64".into(), "/usr/libexec/qemu-kvm".into()],
        kvm_placeholder: false,
    }
}

pub fn site() -> Site {
    Site {
        peer: "192.168.10.10:7777".into(),
        listen: "192.168.10.11:7777".into(),
        node_toml: b"peer='x'".to_vec(),
        rexec: "/usr/bin/rexec".into(),
        shim: "/usr/lib64/libudsproxy.so".into(),
        udsproxyd: "/usr/bin/udsproxyd".into(),
        mount_helper: "/usr/sbin/mount.qtfs".into(),
    }
}

fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(wanted).expect("a step of that kind")
}

#[test]
fn every_directory_of_the_configuration_is_mounted_from_the_peer_at_its_own_path() {
    let steps = steps(&offload(), &site()).unwrap();
    let mounts: Vec<_> =
        steps.iter().filter_map(|s| if let Step::Qtfs { command, .. } = s { Some(command) } else { None }).collect();
    assert_eq!(
        mounts,
        [
            &[
                "/usr/sbin/mount.qtfs",
                "/var/lib/libvirt",
                "/another_rootfs/var/lib/libvirt",
                "-o",
                "host=192.168.10.10:7777"
            ],
            &["/usr/sbin/mount.qtfs", "/home/VMs", "/another_rootfs/home/VMs", "-o", "host=192.168.10.10:7777"],
        ]
    );
}

#[test]
fn a_mount_point_below_a_local_tree_is_made_in_that_tree() {
    let rootfs = Path::new("/another_rootfs");
    assert_eq!(origin(rootfs, Path::new("/var/lib/libvirt")), Path::new("/var/lib/libvirt"));
    assert_eq!(origin(rootfs, Path::new("/etc/libvirt/qemu.conf")), Path::new("/etc/libvirt/qemu.conf"));
    assert_eq!(origin(rootfs, Path::new("/home/VMs")), Path::new("/another_rootfs/home/VMs"));
}

#[test]
fn local_trees_come_before_the_hosts_and_libvirtd_comes_last() {
    let steps = steps(&offload(), &site()).unwrap();
    let space = position(&steps, |s| matches!(s, Step::Space(_)));
    let etc = position(&steps, |s| matches!(s, Step::Bind { from, .. } if from == Path::new("/etc")));
    let hidden = position(&steps, |s| matches!(s, Step::Bind { to, .. } if to.ends_with("etc/farside")));
    let qtfs = position(&steps, |s| matches!(s, Step::Qtfs { .. }));
    let libvirtd = position(&steps, |s| matches!(s, Step::Start(p) if p.name == "libvirtd"));
    assert!(space < etc && etc < hidden && hidden < qtfs && qtfs < libvirtd);
    assert!(matches!(steps.last(), Some(Step::Ready { program: "libvirtd", .. })));
}

#[test]
fn libvirtd_may_reach_far_sockets_below_its_mounts_alone() {
    let steps = steps(&offload(), &site()).unwrap();
    let env =
        steps.iter().find_map(|s| if let Step::Start(p) = s { (p.name == "libvirtd").then_some(&p.env) } else { None });
    let only = env.unwrap().iter().find(|(key, _)| key == "FARSIDE_UDS_ONLY").unwrap();
    assert_eq!(only.1, "/var/lib/libvirt:/home/VMs");
}

#[test]
fn a_path_that_climbs_is_refused() {
    for bad in ["home/VMs", "/home/../etc", "/"] {
        let mut offload = offload();
        offload.mounts = vec![bad.into()];
        assert!(steps(&offload, &site()).is_err(), "{bad}");
    }
}
