//! The next definition of each interposed function: usually libc's, or another preloaded library's.

use core::ffi::CStr;
use core::mem;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_uint, c_void, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::kernel;

/// A function looked up once. Threads that race find the same one.
struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(core::ptr::null_mut()) }
    }

    fn resolve(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: the name ends with a NUL; RTLD_NEXT is looked up from this library, which makes the call.
        let found = unsafe { farside_dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

static CONNECT: Next = Next::new(c"connect");
static SENDTO: Next = Next::new(c"sendto");
static SENDMSG: Next = Next::new(c"sendmsg");
static SENDMMSG: Next = Next::new(c"sendmmsg");

/// Looks every function up while the library is loaded, so that no signal handler has to: dlsym takes a lock.
pub(crate) fn resolve_all() {
    for function in [&CONNECT, &SENDTO, &SENDMSG, &SENDMMSG] {
        function.resolve();
    }
}

/// # Safety
/// As for `connect(2)`.
pub(crate) unsafe fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    type Connect = unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int;
    let next = CONNECT.resolve();
    if next.is_null() {
        return kernel::connect(fd, address.cast(), len);
    }
    // SAFETY: dlsym found this under connect's name, so it has connect's type; the arguments are the caller's.
    unsafe { mem::transmute::<*mut c_void, Connect>(next)(fd, address, len) }
}

/// # Safety
/// As for `sendto(2)`.
pub(crate) unsafe fn sendto(
    fd: c_int,
    bytes: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    type SendTo = unsafe extern "C" fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
    let next = SENDTO.resolve();
    // SAFETY: the kernel checks the caller's arguments; what dlsym found under a name has that function's type.
    unsafe {
        if next.is_null() {
            let sent = libc::syscall(libc::SYS_sendto, fd, bytes, len, flags, address, address_len);
            return ssize_t::try_from(sent).unwrap_or(-1);
        }
        mem::transmute::<*mut c_void, SendTo>(next)(fd, bytes, len, flags, address, address_len)
    }
}

/// # Safety
/// As for `sendmsg(2)`.
pub(crate) unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    type SendMsg = unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t;
    let next = SENDMSG.resolve();
    // SAFETY: as for sendto.
    unsafe {
        if next.is_null() {
            return ssize_t::try_from(libc::syscall(libc::SYS_sendmsg, fd, message, flags)).unwrap_or(-1);
        }
        mem::transmute::<*mut c_void, SendMsg>(next)(fd, message, flags)
    }
}

/// # Safety
/// As for `sendmmsg(2)`.
pub(crate) unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    type SendMMsg = unsafe extern "C" fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int;
    let next = SENDMMSG.resolve();
    // SAFETY: as for sendto.
    unsafe {
        if next.is_null() {
            return c_int::try_from(libc::syscall(libc::SYS_sendmmsg, fd, messages, count, flags)).unwrap_or(-1);
        }
        mem::transmute::<*mut c_void, SendMMsg>(next)(fd, messages, count, flags)
    }
}

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_env = "gnu")))]
use libc::dlsym as farside_dlsym;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_env = "gnu"))]
unsafe extern "C" {
    fn farside_dlsym(handle: *mut c_void, name: *const core::ffi::c_char) -> *mut c_void;
}

// dlsym moved from libdl to libc in glibc 2.34 and got a new version there. The old version is still served by every
// glibc, so the jump below lets a library built on a new system load on an old one.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
core::arch::global_asm!(
    ".symver farside_old_dlsym, dlsym@GLIBC_2.2.5",
    ".hidden farside_dlsym",
    ".globl farside_dlsym",
    ".type farside_dlsym, @function",
    "farside_dlsym:",
    "jmp farside_old_dlsym@PLT",
    ".size farside_dlsym, . - farside_dlsym",
);

#[cfg(all(target_arch = "aarch64", target_env = "gnu"))]
core::arch::global_asm!(
    ".symver farside_old_dlsym, dlsym@GLIBC_2.17",
    ".hidden farside_dlsym",
    ".globl farside_dlsym",
    ".type farside_dlsym, %function",
    "farside_dlsym:",
    "b farside_old_dlsym",
    ".size farside_dlsym, . - farside_dlsym",
);
