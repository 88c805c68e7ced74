//! What the program calls instead of libc. Each hook only converts, delegates and keeps errno.

use core::slice;

use farside_contract::{ADDRESS_MAX, Route};
use libc::{c_int, sa_family_t, sockaddr, socklen_t};

use crate::ask::{self, Answer};
use crate::{kernel, real, settings};

const FAMILY_LEN: usize = size_of::<sa_family_t>();

/// `connect(2)`.
///
/// # Safety
/// As for the libc function: `address` points to `len` bytes. The kernel looks first, so that a wrong pointer is
/// EFAULT here too; only where the environment names remote paths is it read before.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    let before = kernel::errno();
    let mut asked = false;
    if settings::names_remote() {
        // SAFETY: the caller's promise.
        if let Some(name) = unsafe { unix_name(address, len) }
            && settings::route(name) == Route::RemoteFirst
        {
            asked = true;
            if let Some(done) = finish(ask::connect(fd, name), before) {
                return done;
            }
        }
    }
    // SAFETY: the arguments are the caller's own.
    let result = unsafe { real::connect(fd, address, len) };
    if result == 0 || asked {
        return result;
    }
    let local = kernel::errno();
    if local != libc::ENOENT && local != libc::ECONNREFUSED {
        return result;
    }
    // SAFETY: the kernel has just read the whole address: neither errno comes before that.
    if let Some(name) = unsafe { unix_name(address, len) }
        && settings::route(name) != Route::Local
        && let Some(done) = finish(ask::connect(fd, name), before)
    {
        return done;
    }
    kernel::set_errno(local);
    result
}

/// The result of a call whose verdict has come; `None` when the local kernel's answer stands.
fn finish(answer: Answer, before: c_int) -> Option<c_int> {
    match answer {
        Answer::Connected => {
            kernel::set_errno(before);
            Some(0)
        }
        Answer::Refused(errno) => {
            kernel::set_errno(errno);
            Some(-1)
        }
        Answer::Local => None,
    }
}

/// The name inside a `sockaddr_un`: a path up to its NUL, or an abstract name with its NUL in front and all its bytes.
/// `None` for another family and for an address that the kernel refuses.
///
/// # Safety
/// `address` points to `len` readable bytes.
unsafe fn unix_name<'a>(address: *const sockaddr, len: socklen_t) -> Option<&'a [u8]> {
    let len = usize::try_from(len).ok()?;
    if address.is_null() || len <= FAMILY_LEN || len > FAMILY_LEN + ADDRESS_MAX {
        return None;
    }
    // SAFETY: `len` bytes are readable, as the caller promises; a program may give them at any alignment.
    let (family, bytes) = unsafe {
        let family = address.cast::<sa_family_t>().read_unaligned();
        (family, slice::from_raw_parts(address.cast::<u8>().add(FAMILY_LEN), len - FAMILY_LEN))
    };
    if c_int::from(family) != libc::AF_UNIX {
        return None;
    }
    match bytes {
        [0, ..] => Some(bytes),
        path => path.split(|b| *b == 0).next(),
    }
}
