//! One socket of the host seen through several paths: from inside the rootfs and from outside, through links, relative,
//! from another mount namespace. And a socket handed over by the mount helper.

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use farside::sys::scm;
use farside::sys::unix::{self, SocketKind};
use farside_contract::{Op, Request, VERDICT_LEN, Verdict};

use crate::fuse::{enter_namespace, mount_qtfs};
use crate::lab::{Answer, Lab, lab, lab_in, said, serve};

/// On a thread of its own, so that its mounts are its own too.
fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter_namespace();
            test();
        });
    });
}

/// A rootfs whose /var/lib is the host's /near/host, where qemu/sock is served.
fn rootfs(lab: &Lab) -> std::path::PathBuf {
    std::fs::create_dir_all(lab.far_path("host/qemu")).unwrap();
    let socket = lab.far_path("host/qemu/sock");
    serve(socket.as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Echo);
    let root = lab.dir.join("root");
    std::fs::create_dir_all(root.join("var/lib")).unwrap();
    symlink("lib", root.join("var/link")).unwrap();
    symlink("/var/lib/qemu/sock", root.join("var/direct")).unwrap();
    root
}

fn outside(lab: &Lab, path: &str, ok: &str) {
    let mut command = lab.client(&["whole", path, "stream"]);
    command.env("FARSIDE_UDS_SOCKET", lab.dir.join("root/ctl/uds.sock"));
    assert!(said(command).starts_with(&format!("connect {ok}\n")), "{path}");
}

fn inside(lab: &Lab, path: &str, ok: &str) {
    let mut command = lab.client(&["chroot", path, lab.dir.join("root").to_str().unwrap()]);
    command.env("FARSIDE_UDS_SOCKET", "/ctl/uds.sock");
    assert!(said(command).starts_with(&format!("connect {ok}\n")), "{path}");
}

fn all_views(lab: &Lab, root: &std::path::Path) {
    let text = root.to_str().unwrap();
    for path in [
        "/var/lib/qemu/sock",
        "/var/link/qemu/sock",
        "/var/direct",
        "/var/lib/qemu/../qemu/./sock",
        "/proc/self/root/var/lib/qemu/sock",
    ] {
        inside(lab, path, "OK");
    }
    inside(lab, "/var/lib/qemu/none", "ENOENT");
    outside(lab, &format!("{text}/var/lib/qemu/sock"), "OK");
    outside(lab, &format!("{text}/var/link/qemu/sock"), "OK");
    let mut command = lab.client(&["chdir", "sock", &format!("{text}/var/lib/qemu")]);
    command.env("FARSIDE_UDS_SOCKET", root.join("ctl/uds.sock"));
    assert!(said(command).contains("peer sock\n"));
}

#[test]
fn below_a_mount_the_host_is_asked_for_its_own_path() {
    apart(|| {
        let Some(lab) = lab_in("mount", |dir| dir.join("root/ctl/uds.sock")) else { return };
        let root = rootfs(&lab);
        let Some(_mounted) = mount_qtfs("/near/host", &root.join("var/lib")) else { return };
        all_views(&lab, &root);
        all_views(&lab, &root);
    });
}

#[test]
fn a_mount_that_only_the_caller_sees_is_understood() {
    let Some(lab) = lab_in("mount-ns", |dir| dir.join("root/ctl/uds.sock")) else { return };
    let root = rootfs(&lab);
    apart(|| {
        let Some(_mounted) = mount_qtfs("/near/host/", &root.join("var/lib")) else { return };
        all_views(&lab, &root);
    });
}

#[test]
fn a_bind_mount_of_a_part_of_a_mount_is_that_part() {
    apart(|| {
        let Some(lab) = lab_in("mount-bind", |dir| dir.join("root/ctl/uds.sock")) else { return };
        let root = rootfs(&lab);
        let Some(_mounted) = mount_qtfs("/near/host", &root.join("var/lib")) else { return };
        std::fs::create_dir(root.join("part")).unwrap();
        let none: Option<&str> = None;
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&root.join("var/lib/qemu")), &root.join("part"), none, bind, none).unwrap();
        inside(&lab, "/part/sock", "OK");
        nix::mount::umount2(&root.join("part"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

/// Asks as the mount helper does, with one end of a connection.
fn adopt(lab: &Lab, path: &str, local: &std::os::fd::OwnedFd) -> Verdict {
    let control = unix::socket(SocketKind::SeqPacket, false).unwrap();
    unix::connect(control.as_fd(), lab.dir.join("ctl/uds.sock").as_os_str().as_encoded_bytes()).unwrap();
    let mut bytes = [0; 200];
    let len = Request { op: Op::Adopt, flags: 0, name: path.as_bytes() }.encode(&mut bytes).unwrap();
    scm::send(control.as_fd(), &bytes[..len], &[local.as_fd()]).unwrap();
    let mut verdict = [0; VERDICT_LEN];
    crate::lab::soon("the verdict", || scm::receive(control.as_fd(), &mut verdict).is_ok());
    Verdict::decode(&verdict).unwrap()
}

#[test]
fn a_connection_of_the_mount_helper_is_carried_as_its_client() {
    let Some(lab) = lab("adopt") else { return };
    let path = lab.far_path("who");
    serve(path.as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Identity);
    let alias = lab.dir.join("alias");
    let listener = std::os::unix::net::UnixListener::bind(&alias).unwrap();
    std::fs::set_permissions(&alias, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    // A client without the shim, as somebody else.
    let script = "
import os, socket, sys
os.setgroups([7]); os.setgid(1234); os.setuid(1234)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(100).decode(), end='')";
    let client = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&alias)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let accepted = std::os::fd::OwnedFd::from(listener.accept().unwrap().0);
    assert_eq!(adopt(&lab, &lab.near("who"), &accepted), Verdict::Connected);
    drop(accepted);
    let said = crate::lab::ends_soon(client).stdout;
    assert_eq!(String::from_utf8(said).unwrap(), "uid 1234 gid 1234 groups [7]\n");
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(adopt(&lab, &lab.near("none"), &a.into()), Verdict::Refused(nix::libc::ENOENT));
    let unconnected = unix::socket(SocketKind::Stream, false).unwrap();
    assert_eq!(adopt(&lab, &lab.near("who"), &unconnected), Verdict::Refused(nix::libc::ENOTCONN));
}
