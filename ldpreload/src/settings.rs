//! What the environment says, copied once while the library is loaded.
//!
//! Copied, because programs overwrite and free their environment (setproctitle, setenv). Until the constructor has run,
//! everything is as if the environment said nothing; a list that is too long to keep allows nothing.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU8, Ordering};

use farside_contract::{ADDRESS_MAX, ONLY_ENV, REMOTE_ENV, Route, Rules, SOCKET_ENV, SOCKET_PATH, route as decide};
use libc::sockaddr_un;

use crate::{ask, real};

const LIST_MAX: usize = 2048;

/// Bytes that are written once, before anybody else reads them.
struct Once<const N: usize>(UnsafeCell<([u8; N], usize)>);

// SAFETY: written by the constructor alone, before `STATE` says READY; readers look at `STATE` first.
unsafe impl<const N: usize> Sync for Once<N> {}

impl<const N: usize> Once<N> {
    const fn new() -> Self {
        Self(UnsafeCell::new(([0; N], 0)))
    }

    /// Keeps a copy of `value`; `false`, and nothing kept, when it is too long.
    ///
    /// # Safety
    /// Called by the constructor alone, before it stores READY.
    unsafe fn set(&self, value: &[u8]) -> bool {
        // SAFETY: no other reference exists: the caller is the only writer, and there is no reader yet.
        let (bytes, len) = unsafe { &mut *self.0.get() };
        let Some(room) = bytes.get_mut(..value.len()) else { return false };
        for (to, from) in room.iter_mut().zip(value) {
            *to = *from;
        }
        *len = value.len();
        true
    }

    /// The copy; empty before READY.
    fn read(&self) -> &[u8] {
        if STATE.load(Ordering::Acquire) & READY == 0 {
            return &[];
        }
        // SAFETY: after READY nobody writes.
        let (bytes, len) = unsafe { &*self.0.get() };
        bytes.get(..*len).unwrap_or_default()
    }
}

static SOCKET: Once<{ ADDRESS_MAX - 1 }> = Once::new();
static REMOTE: Once<LIST_MAX> = Once::new();
static ONLY: Once<LIST_MAX> = Once::new();

const READY: u8 = 1;
const HAS_REMOTE: u8 = 2;
const HAS_ONLY: u8 = 4;
static STATE: AtomicU8 = AtomicU8::new(0);

/// Run by the loader before any code of the program.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = load;

extern "C" fn load() {
    real::resolve_all();
    let mut state = READY;
    // SAFETY: this is the constructor, which runs once.
    unsafe {
        if let Some(path) = variable(SOCKET_ENV) {
            SOCKET.set(path);
        }
        if let Some(list) = variable(REMOTE_ENV)
            && REMOTE.set(list)
            && !list.is_empty()
        {
            state |= HAS_REMOTE;
        }
        if let Some(list) = variable(ONLY_ENV) {
            ONLY.set(list);
            state |= HAS_ONLY;
        }
    }
    STATE.store(state, Ordering::Release);
}

/// # Safety
/// Nobody changes the environment meanwhile, and the result is not kept.
unsafe fn variable<'a>(name: &CStr) -> Option<&'a [u8]> {
    // SAFETY: the name ends with a NUL; the value, if there is one, does too.
    unsafe {
        let value = secure_getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

unsafe extern "C" {
    /// glibc 2.17, musl 1.1; no binding in the libc crate.
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// Whether any path is remote before it is local.
pub(crate) fn names_remote() -> bool {
    STATE.load(Ordering::Acquire) & HAS_REMOTE != 0
}

pub(crate) fn route(name: &[u8]) -> Route {
    let only = STATE.load(Ordering::Acquire) & HAS_ONLY != 0;
    decide(name, &Rules { remote: REMOTE.read(), only: only.then(|| ONLY.read()), daemon: daemon_path() })
}

pub(crate) fn daemon_address() -> sockaddr_un {
    ask::address_of(daemon_path())
}

fn daemon_path() -> &'static [u8] {
    match SOCKET.read() {
        [] => SOCKET_PATH.as_bytes(),
        path => path,
    }
}
