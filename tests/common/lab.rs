//! A directory of "the host" mounted by qtfs over loopback, in a mount namespace of the test's own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use farside::config::Access;
use farside::qtfs::far::Exports;
use farside::qtfs::near::{self, MountSpec, SocketCarrier};
use farside::qtfs::wire::SocketType;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::far::{Far, export};
use crate::own_key;

/// What file system the host's directory is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    Tmpfs,
    /// Whatever /tmp is on: ext4 as a rule.
    Disk,
    /// No file handles.
    Overlay,
}

pub(crate) struct Lab {
    top: PathBuf,
    /// The host's directory.
    pub(crate) src: PathBuf,
    /// The same, mounted.
    pub(crate) dst: PathBuf,
    /// A directory of the same file system type that nobody mounts, to compare with.
    pub(crate) twin: PathBuf,
    pub(crate) far: Far,
    served: Option<JoinHandle<()>>,
}

/// Connects what it is handed to the host's socket, on this machine.
struct LocalCarrier;

impl SocketCarrier for LocalCarrier {
    fn carry(&self, host_path: &Path, kind: SocketType, accepted: OwnedFd) {
        assert_eq!(kind, SocketType::Stream, "these tests use streams");
        let near = std::os::unix::net::UnixStream::from(accepted);
        let Ok(far) = std::os::unix::net::UnixStream::connect(host_path) else { return };
        let (mut a, mut b) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut a, &mut b);
            let _ = b.shutdown(std::net::Shutdown::Write);
        });
        std::thread::spawn(move || {
            let (mut a, mut b) = (far, near);
            let _ = std::io::copy(&mut a, &mut b);
            let _ = b.shutdown(std::net::Shutdown::Write);
        });
    }
}

pub(crate) fn private_namespace() {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace of our own");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private /");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

fn back(backing: Backing, at: &Path, layers: &Path) {
    let mounted = |kind: &str, data: Option<&str>| {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), data).unwrap_or_else(|e| panic!("{kind}: {e}"));
    };
    match backing {
        Backing::Disk => {}
        Backing::Tmpfs => mounted("tmpfs", None),
        Backing::Overlay => {
            std::fs::create_dir_all(layers).unwrap();
            mount(Some("tmpfs"), layers, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
            let part = |n: &str| layers.join(n);
            for n in ["lower", "upper", "work"] {
                std::fs::create_dir_all(part(n)).unwrap();
            }
            // Something to copy up.
            std::fs::write(part("lower/a"), b"from below").unwrap();
            std::fs::create_dir(part("lower/d0")).unwrap();
            std::fs::write(part("lower/d0/b"), b"also from below").unwrap();
            let dirs = [part("lower"), part("upper"), part("work")].map(|p| p.display().to_string());
            let data = format!("lowerdir={},upperdir={},workdir={}", dirs[0], dirs[1], dirs[2]);
            mounted("overlay", Some(&data));
        }
    }
}

impl Lab {
    pub(crate) fn new(backing: Backing) -> Self {
        Self::with(backing, Access::Rw, usize::MAX)
    }

    pub(crate) fn read_only() -> Self {
        Self::with(Backing::Tmpfs, Access::Ro, usize::MAX)
    }

    /// `node_fds`: with very few, nearly every request opens its inode again.
    pub(crate) fn with(backing: Backing, access: Access, node_fds: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        private_namespace();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("qtfs-test-{}-{number}", std::process::id()));
        let [src, dst, twin] = ["src", "dst", "twin"].map(|n| top.join(n));
        for dir in [&src, &dst, &twin] {
            std::fs::create_dir_all(dir).unwrap();
        }
        back(backing, &src, &top.join("src-layers"));
        back(backing, &twin, &top.join("twin-layers"));
        let far = Far::start("127.0.0.1:0", Exports::new(vec![export(&src, access)], None).with_node_fds(node_fds));
        let mut lab = Self { top, src, dst, twin, far, served: None };
        lab.mount();
        lab
    }

    pub(crate) fn spec(&self) -> MountSpec {
        MountSpec {
            source: self.src.clone(),
            target: self.dst.clone(),
            host: self.far.addr.to_string(),
            access: own_key::access(),
            read_only: false,
            flags: MsFlags::empty(),
        }
    }

    pub(crate) fn mount(&mut self) {
        let mounting = near::mount(self.spec(), Some(Arc::new(LocalCarrier))).unwrap_or_else(|e| panic!("{e}"));
        self.served = Some(std::thread::spawn(|| mounting.run()));
    }

    /// Unmounts, and waits until the mount has let go of everything.
    pub(crate) fn umount(&mut self, how: MntFlags) {
        let served = self.served.take().expect("it was mounted");
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(e) = umount2(&self.dst, how) {
            // Another test's fork holds this process's files for a moment.
            assert!(Instant::now() < end, "umount: {e}");
            std::thread::sleep(Duration::from_millis(10));
        }
        while !served.is_finished() {
            assert!(Instant::now() < end, "the mount's threads end with it");
            std::thread::sleep(Duration::from_millis(10));
        }
        served.join().unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for dir in [&self.dst, &self.src, &self.twin, &self.top.join("src-layers"), &self.top.join("twin-layers")] {
            let _ = umount2(dir, MntFlags::MNT_DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.top);
    }
}
