//! Terminals: their state, and a raw one that is put back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::stat::fstat;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::errno::{OsResult, Step};

nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, libc::winsize);
nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_read_bad!(tiocgptn, libc::TIOCGPTN, libc::c_uint);

/// c_iflag, c_oflag, c_cflag, c_lflag; c_cc; rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub modes: [u32; 4],
    pub characters: [u8; 19],
    pub rows: u16,
    pub columns: u16,
}

/// Whether the fd is a terminal, and not a pseudo-terminal's master.
pub fn is_terminal(fd: &impl AsFd) -> bool {
    tcgetattr(fd).is_ok() && !is_master(fd)
}

pub fn is_master(fd: &impl AsFd) -> bool {
    let mut number = 0;
    // SAFETY: TIOCGPTN writes one unsigned int.
    unsafe { tiocgptn(fd.as_fd().as_raw_fd(), &raw mut number) }.is_ok()
}

pub fn state(fd: &impl AsFd) -> OsResult<State> {
    let termios: libc::termios = tcgetattr(fd).step("tcgetattr")?.into();
    // SAFETY: a winsize is four integers, for which zero is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize.
    unsafe { tiocgwinsz(fd.as_fd().as_raw_fd(), &raw mut size) }.step("TIOCGWINSZ")?;
    let mut characters = [0; 19];
    characters.copy_from_slice(&termios.c_cc[..19]);
    let modes = [termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag];
    Ok(State { modes, characters, rows: size.ws_row, columns: size.ws_col })
}

/// A new pseudo-terminal in this state: (master, slave).
pub fn open(state: &State) -> OsResult<(OwnedFd, OwnedFd)> {
    let OpenptyResult { master, slave } = openpty(None, None).step("openpty")?;
    let mut termios: libc::termios = tcgetattr(&slave).step("tcgetattr")?.into();
    [termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag] = state.modes;
    termios.c_cc[..19].copy_from_slice(&state.characters);
    tcsetattr(&slave, SetArg::TCSANOW, &Termios::from(termios)).step("tcsetattr")?;
    let size = libc::winsize { ws_row: state.rows, ws_col: state.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    unsafe { tiocswinsz(slave.as_raw_fd(), &raw const size) }.step("TIOCSWINSZ")?;
    for fd in [&master, &slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).step("FD_CLOEXEC")?;
    }
    Ok((master, slave))
}

/// What raw terminals were before, by device number, and how many hold each raw: one terminal may have crossed twice.
static BEFORE: Mutex<BTreeMap<u64, (Termios, OwnedFd, usize)>> = Mutex::new(BTreeMap::new());

/// A terminal that passes every byte on as it is, until this is dropped: what it did before is done by the other
/// machine's meanwhile.
#[derive(Debug)]
pub struct Raw {
    device: u64,
}

impl Raw {
    pub fn new(fd: &impl AsFd) -> OsResult<Self> {
        let fd = fd.as_fd().try_clone_to_owned().step("dup")?;
        let device = fstat(&fd).step("fstat")?.st_rdev;
        let mut all = BEFORE.lock().expect("a panic ends the process");
        if let Some((.., holders)) = all.get_mut(&device) {
            *holders += 1;
            return Ok(Self { device });
        }
        let before = tcgetattr(&fd).step("tcgetattr")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        set(&fd, &raw)?;
        all.insert(device, (before, fd, 1));
        Ok(Self { device })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut all = BEFORE.lock().expect("a panic ends the process");
        let Some((before, fd, holders)) = all.get_mut(&self.device) else { return };
        *holders -= 1;
        if *holders == 0 {
            // A terminal that has hung up needs nothing put back.
            let _ = set(fd, before);
            all.remove(&self.device);
        }
    }
}

/// Puts every terminal back as it was: for a process that ends without dropping what it holds.
pub fn put_back_all() {
    for (before, fd, _) in std::mem::take(&mut *BEFORE.lock().expect("a panic ends the process")).into_values() {
        // As above.
        let _ = set(&fd, &before);
    }
}

/// A background process would be stopped by SIGTTOU for this, tcsetattr(3), and blocks it instead.
fn set(fd: &OwnedFd, to: &Termios) -> OsResult<()> {
    let block: SigSet = [Signal::SIGTTOU].into_iter().collect();
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&block), Some(&mut before)).step("sigmask")?;
    let done = tcsetattr(fd, SetArg::TCSANOW, to).step("tcsetattr");
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).step("sigmask")?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_made_again_and_a_raw_one_put_back() {
        let characters = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let wanted = State { modes: [0x500, 5, 0xbf, 0x8a3b], characters, rows: 33, columns: 101 };
        let (master, slave) = open(&wanted).unwrap();
        assert_eq!(state(&slave).unwrap(), wanted);
        assert!(is_terminal(&slave) && !is_terminal(&master) && is_master(&master));
        let raw = Raw::new(&slave).unwrap();
        assert_ne!(state(&slave).unwrap(), wanted);
        drop(raw);
        assert_eq!(state(&slave).unwrap(), wanted);
        assert!(!is_terminal(&std::fs::File::open("/dev/null").unwrap()));
    }
}
