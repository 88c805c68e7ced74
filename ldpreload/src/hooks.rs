//! What the program calls instead of libc. Each hook only converts, delegates and keeps errno.
//!
//! All go the same way: the kernel first, so that a wrong pointer is EFAULT here too and a local socket costs nothing;
//! the daemon when that knows no such name. Only names that the environment calls remote are asked for before, and then
//! read before the kernel has looked.

use core::slice;

use farside_contract::{ADDRESS_MAX, Route};
use libc::{c_int, c_uint, c_void, mmsghdr, msghdr, sa_family_t, size_t, sockaddr, sockaddr_un, socklen_t, ssize_t};

use crate::ask::{self, Answer};
use crate::{kernel, real, settings};

const FAMILY_LEN: usize = size_of::<sa_family_t>();

/// `connect(2)`.
///
/// # Safety
/// As for the libc function: `address` points to `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    let name = || unsafe { unix_name(address.cast(), len) };
    // SAFETY: the arguments are the caller's own.
    let local = || unsafe { real::connect(fd, address, len) } as ssize_t;
    let remote = |name: &[u8], before| match ask::connect(fd, name) {
        Answer::Yes(()) => {
            kernel::set_errno(before);
            Some(0)
        }
        Answer::Refused(errno) => fail(errno),
        Answer::Local => None,
    };
    c_int::try_from(call(name, local, remote)).unwrap_or(-1)
}

/// `sendto(2)`.
///
/// # Safety
/// As for the libc function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendto(
    fd: c_int,
    bytes: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    let name = || unsafe { unix_name(address.cast(), address_len) };
    // SAFETY: the arguments are the caller's own.
    let local = || unsafe { real::sendto(fd, bytes, len, flags, address, address_len) };
    // SAFETY: the caller's own bytes.
    let again = |to: &sockaddr_un| unsafe { kernel::send_to(fd, bytes, len, flags, to) };
    call(name, local, |name, before| send_there(fd, name, before, again))
}

/// `sendmsg(2)`.
///
/// # Safety
/// As for the libc function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let name = || unsafe { addressee(message) };
    // SAFETY: the arguments are the caller's own.
    let local = || unsafe { real::sendmsg(fd, message, flags) };
    // SAFETY: a message that has an addressee is readable.
    let again = |to: &sockaddr_un| unsafe { kernel::send_message(fd, message, flags, to) };
    call(name, local, |name, before| send_there(fd, name, before, again))
}

/// `sendmmsg(2)`. Where the first message is for the other machine, it alone is sent: a short count is what a caller
/// must reckon with, and it comes again with the rest.
///
/// # Safety
/// As for the libc function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    let first = || if count == 0 || messages.is_null() { core::ptr::null() } else { messages.cast_const().cast() };
    // SAFETY: a mmsghdr begins with its msghdr; the caller's promise is that there are `count` of them.
    let name = || unsafe { addressee(first()) };
    // SAFETY: the arguments are the caller's own.
    let local = || unsafe { real::sendmmsg(fd, messages, count, flags) } as ssize_t;
    // SAFETY: a message that has an addressee is readable.
    let again = |to: &sockaddr_un| unsafe { kernel::send_message(fd, first(), flags, to) };
    let remote = |name: &[u8], before| {
        let sent = send_there(fd, name, before, again)?;
        let Ok(len) = c_uint::try_from(sent) else { return Some(-1) };
        // SAFETY: the first message is there, and its length is for the kernel or us to write.
        unsafe { (*messages).msg_len = len };
        Some(1)
    };
    c_int::try_from(call(name, local, remote)).unwrap_or(-1)
}

/// The way of every hook. `remote` is told the errno to leave behind if all is well, and says `None` when the local
/// kernel's answer stands.
#[inline(always)]
fn call<'a>(
    name: impl Fn() -> Option<&'a [u8]>,
    local: impl FnOnce() -> ssize_t,
    remote: impl Fn(&[u8], c_int) -> Option<ssize_t>,
) -> ssize_t {
    let before = kernel::errno();
    let mut asked = false;
    if settings::names_remote()
        && let Some(name) = name()
        && settings::route(name) == Route::RemoteFirst
    {
        asked = true;
        if let Some(done) = remote(name, before) {
            return done;
        }
    }
    let result = local();
    if result >= 0 || asked {
        return result;
    }
    let errno = kernel::errno();
    if errno != libc::ENOENT && errno != libc::ECONNREFUSED {
        return result;
    }
    // The kernel has just read the whole address: neither errno comes before that.
    if let Some(name) = name()
        && settings::route(name) != Route::Local
        && let Some(done) = remote(name, before)
    {
        return done;
    }
    kernel::set_errno(errno);
    result
}

/// Sends by the socket that the daemon has for this name.
#[inline(always)]
fn send_there(fd: c_int, name: &[u8], before: c_int, again: impl Fn(&sockaddr_un) -> ssize_t) -> Option<ssize_t> {
    let outlet = match ask::outlet(fd, name) {
        Answer::Yes(outlet) => outlet,
        Answer::Refused(errno) => return fail(errno),
        Answer::Local => return None,
    };
    let sent = again(&ask::address_of_fd(outlet.raw()));
    let errno = if sent >= 0 { before } else { kernel::errno() };
    drop(outlet);
    // Without /proc that name leads nowhere, and the first answer stands.
    if sent < 0 && matches!(errno, libc::ENOENT | libc::ENOTDIR) {
        return None;
    }
    kernel::set_errno(errno);
    Some(sent)
}

fn fail(errno: c_int) -> Option<ssize_t> {
    kernel::set_errno(errno);
    Some(-1)
}

/// Whom a message is addressed to, if that is a unix socket.
///
/// # Safety
/// `message` is null or readable, and so is its address.
unsafe fn addressee<'a>(message: *const msghdr) -> Option<&'a [u8]> {
    if message.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; a program may give a message at any alignment.
    unsafe {
        let message = message.read_unaligned();
        unix_name(message.msg_name.cast(), message.msg_namelen)
    }
}

/// The name inside a `sockaddr_un`: a path up to its NUL, or an abstract name with its NUL in front and all its bytes.
/// `None` for another family and for an address that the kernel refuses.
///
/// # Safety
/// `address` is null, or points to `len` readable bytes.
unsafe fn unix_name<'a>(address: *const u8, len: socklen_t) -> Option<&'a [u8]> {
    let len = usize::try_from(len).ok()?;
    if address.is_null() || len <= FAMILY_LEN || len > FAMILY_LEN + ADDRESS_MAX {
        return None;
    }
    // SAFETY: `len` bytes are readable, as the caller promises; a program may give them at any alignment.
    let (family, bytes) = unsafe {
        let family = address.cast::<sa_family_t>().read_unaligned();
        (family, slice::from_raw_parts(address.add(FAMILY_LEN), len - FAMILY_LEN))
    };
    if c_int::from(family) != libc::AF_UNIX {
        return None;
    }
    match bytes {
        [0, ..] => Some(bytes),
        path => path.split(|b| *b == 0).next(),
    }
}
