//! tun and tap interfaces, Documentation/networking/tuntap.rst.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{fstat, stat};

use crate::errno::{Errno, OsError, OsResult, Step};

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr!(tunsetiff, b'T', 202, libc::c_int);
nix::ioctl_read!(tungetiff, b'T', 210, libc::c_uint);
nix::ioctl_read!(tungetvnethdrsz, b'T', 215, libc::c_int);
nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);

/// One queue of an interface: what must be the same on both machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    /// IFF_TUN or IFF_TAP with IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE.
    pub flags: i32,
    pub vnet_header_len: u8,
}

pub const FLAGS: i32 = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

nix::ioctl_none!(tungetdevnetns, b'T', 227);

/// Whether the interface is in this thread's network namespace. In one of their own any user may call theirs anything.
fn is_of_this_network(fd: &impl AsFd) -> OsResult<bool> {
    // SAFETY: TUNGETDEVNETNS (kernel 5.11) takes nothing and returns a new fd.
    let got = unsafe { tungetdevnetns(fd.as_fd().as_raw_fd()) }.step("TUNGETDEVNETNS")?;
    // SAFETY: the kernel has just made this fd for us.
    let theirs = fstat(unsafe { OwnedFd::from_raw_fd(got) }).step("fstat")?;
    let ours = stat("/proc/thread-self/ns/net").step("stat /proc/thread-self/ns/net")?;
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}

/// The interface behind an open /dev/net/tun; `None` when it has none yet.
///
/// # Errors
/// EXDEV: it is in another network namespace.
pub fn of(fd: &impl AsFd) -> OsResult<Option<Queue>> {
    let raw = fd.as_fd().as_raw_fd();
    let mut found = request("");
    // SAFETY: TUNGETIFF writes one ifreq, whatever its number says of the size.
    match unsafe { tungetiff(raw, (&raw mut found).cast()) } {
        Ok(_) => {}
        Err(Errno::EBADFD) => return Ok(None),
        Err(errno) => return Err(OsError::new("TUNGETIFF", errno)),
    }
    if !is_of_this_network(fd)? {
        return Err(OsError::on("carry", "a tap of another network namespace", Errno::EXDEV));
    }
    let name: Vec<u8> = found.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|b| *b != 0).collect();
    // SAFETY: TUNGETIFF has filled the flags.
    let flags = i32::from(unsafe { found.ifr_ifru.ifru_flags }) & FLAGS;
    let mut len = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    unsafe { tungetvnethdrsz(raw, &raw mut len) }.step("TUNGETVNETHDRSZ")?;
    let vnet_header_len = u8::try_from(len).map_err(|_| OsError::new("TUNGETVNETHDRSZ", Errno::EOVERFLOW))?;
    Ok(Some(Queue { name: String::from_utf8_lossy(&name).into_owned(), flags, vnet_header_len }))
}

/// Opens a queue of the interface, which is made if it is not there, brought up, and put on the bridge if one is named.
pub fn open(queue: &Queue, bridge: Option<&str>, nonblock: bool) -> OsResult<OwnedFd> {
    let flags = if nonblock { libc::O_NONBLOCK } else { 0 };
    let fd = OpenOptions::new().read(true).write(true).custom_flags(flags).open(DEVICE).step_on("open", DEVICE)?;
    let mut wanted = request(&queue.name);
    wanted.ifr_ifru.ifru_flags = libc::c_short::try_from(queue.flags & FLAGS).expect("16 bits");
    // SAFETY: TUNSETIFF reads one ifreq.
    unsafe { tunsetiff(fd.as_raw_fd(), (&raw const wanted).cast()) }.step_on("make the interface", &queue.name)?;
    if queue.flags & libc::IFF_VNET_HDR != 0 {
        let len = libc::c_int::from(queue.vnet_header_len);
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        unsafe { tunsetvnethdrsz(fd.as_raw_fd(), &raw const len) }.step("TUNSETVNETHDRSZ")?;
    }
    if let Some(bridge) = bridge {
        join(&queue.name, bridge)?;
    }
    bring_up(&queue.name)?;
    Ok(fd.into())
}

fn ask(request_number: libc::Ioctl, on: &mut libc::ifreq, what: &'static str, name: &str) -> OsResult<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).step("socket")?;
    // SAFETY: each of these requests reads and writes one ifreq, netdevice(7).
    let done = unsafe { libc::ioctl(any.as_raw_fd(), request_number, on) };
    Errno::result(done).map(drop).step_on(what, name)
}

fn join(name: &str, bridge: &str) -> OsResult<()> {
    let mut port = request(name);
    ask(libc::SIOCGIFINDEX, &mut port, "find the interface", name)?;
    let mut on = request(bridge);
    // SAFETY: SIOCGIFINDEX has filled the index.
    on.ifr_ifru.ifru_ifindex = unsafe { port.ifr_ifru.ifru_ifindex };
    match ask(SIOCBRADDIF, &mut on, "put the interface on the bridge", bridge) {
        // It is a port of a bridge already.
        Err(e) if e.errno == Errno::EBUSY => Ok(()),
        done => done,
    }
}

/// linux/sockios.h; the libc crate has no name for it.
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

fn bring_up(name: &str) -> OsResult<()> {
    let mut link = request(name);
    ask(libc::SIOCGIFFLAGS, &mut link, "read the flags of", name)?;
    let up = libc::c_short::try_from(libc::IFF_UP).expect("1");
    // SAFETY: SIOCGIFFLAGS has filled the flags.
    link.ifr_ifru.ifru_flags = unsafe { link.ifr_ifru.ifru_flags } | up;
    ask(libc::SIOCSIFFLAGS, &mut link, "bring up", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_queue_is_described_as_it_was_opened() {
        if !nix::unistd::geteuid().is_root() {
            crate::skip::skip("a network namespace needs root");
            return;
        }
        let in_its_own_network = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
            let wanted = Queue { name: "vnet7".into(), flags, vnet_header_len: 12 };
            let one = open(&wanted, None, true).unwrap();
            assert_eq!(of(&one).unwrap(), Some(wanted.clone()));
            let other = open(&wanted, None, false).unwrap();
            assert_eq!(of(&other).unwrap(), Some(wanted));
            let up = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(up.contains("vnet7"), "{up}");
            let none = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
            assert_eq!(of(&none).unwrap(), None);
        };
        std::thread::spawn(in_its_own_network).join().unwrap();
    }
}
