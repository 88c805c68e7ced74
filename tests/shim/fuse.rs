//! The smallest file system that the kernel takes for a qtfs mount: a root, a directory `qemu` in it, and in that a
//! socket of the host, `sock`, which nobody listens on here.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::skip::skip;

/// Mounted until dropped, in the mount namespace of the calling thread.
pub(crate) struct Mounted(std::path::PathBuf);

/// `None`: there is no /dev/fuse here.
pub(crate) fn mount_qtfs(source: &str, at: &Path) -> Option<Mounted> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(e) => {
            skip(format_args!("/dev/fuse: {e}"));
            return None;
        }
    };
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    mount(Some(source), at, Some("fuse.qtfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    std::thread::spawn(move || answer(device));
    Some(Mounted(at.to_owned()))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A mount namespace for the calling thread and those that it starts; nothing mounted in it is seen outside.
pub(crate) fn enter_namespace() {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

const ROOT: u64 = 1;
const QEMU: u64 = 2;
const SOCK: u64 = 3;

fn answer(mut device: File) {
    let mut request = vec![0; 1 << 20];
    // ENODEV: unmounted.
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (word(4), long(8), long(16));
        let name = request[40..len].split(|b| *b == 0).next().unwrap();
        let body = match (opcode, node, name) {
            (26, ..) => Ok(init()),
            (3, ..) => Ok([vec![0; 16], attributes(node)].concat()),
            (1, ROOT, b"qemu") => Ok(entry(QEMU)),
            (1, QEMU, b"sock") => Ok(entry(SOCK)),
            (1, ..) => Err(nix::libc::ENOENT),
            // FORGET, INTERRUPT and BATCH_FORGET have no answer.
            (2 | 36 | 42, ..) => continue,
            _ => Err(nix::libc::ENOSYS),
        };
        let (error, body) = body.map_or_else(|errno| (-errno, vec![]), |body| (0, body));
        let head = [u32::try_from(16 + body.len()).unwrap().to_le_bytes(), error.to_le_bytes()].concat();
        let _ = device.write(&[head, unique.to_le_bytes().to_vec(), body].concat());
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn init() -> Vec<u8> {
    let mut out = words(&[7, 31, 0, 0, 0, 4096, 1]);
    out.resize(64, 0);
    out
}

fn entry(node: u64) -> Vec<u8> {
    let mut out = node.to_le_bytes().to_vec();
    out.resize(40, 0);
    [out, attributes(node)].concat()
}

fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == SOCK { 0o140_666 } else { 0o040_755 };
    let mut out = node.to_le_bytes().to_vec();
    out.resize(60, 0);
    [out, words(&[mode, 1, 0, 0, 0, 4096, 0])].concat()
}
