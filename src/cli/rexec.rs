//! `CMD_NET_ADDR=tcp://HOST:PORT rexec COMMAND [ARG ...]`

use std::net::ToSocketAddrs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use super::address;
use crate::fdpass::Mode;
use crate::link::Access;
use crate::rexec::{Carried, Ways};
use crate::ring::Wish;
use crate::vouch;

const CARRY_ENV: &str = "FARSIDE_CARRY";

const HELP: &str = "\
Runs a command on the other machine as if it ran here.

Usage: CMD_NET_ADDR=tcp://HOST:PORT rexec COMMAND [ARG ...]

The command gets this process's stdin, stdout, stderr and other inherited fds
(pipes, sockets, listening unix sockets, files that are only read), its
arguments, environment, working directory, umask, user, groups and
capabilities, and what nohup, nice, chrt, taskset and ulimit say: ignored and
blocked signals, priority, processors and resource limits, those at most as the
server there has them. SIGHUP, INT, QUIT, TERM, USR1, USR2, ALRM, WINCH and CONT are
passed on; SIGKILL of rexec kills the command and all of its children.

Options (only before COMMAND):
  -h, --help                Print this
  -V, --version             Print the version

Where a daemon of this machine has a session with that address, and the fds are
pipes, unix sockets and /dev/null, the daemon carries the command, which then
ends with that session. FARSIDE_CARRY=no gives it a connection of its own.

FARSIDE_ENGINE says how rexec itself reaches the kernel: auto, io_uring,
io_uring-basic (only what Linux 5.10 has) or epoll.

Exit status: the command's; 128+N when signal N killed it; 127 when it was not
found there; 126 when it could not be run, or when the working directory does
not exist there; 255 and one line on stderr when the connection failed.
";

/// The exit status.
pub fn main() -> i32 {
    let mut args: Vec<Vec<u8>> = std::env::args_os().skip(1).map(OsStringExt::into_vec).collect();
    // Everything behind the first word belongs to the command, untouched.
    match args.first().map(Vec::as_slice) {
        Some(b"-h" | b"--help") => {
            print!("{HELP}");
            return 0;
        }
        Some(b"-V" | b"--version") => {
            println!("rexec {}", env!("CARGO_PKG_VERSION"));
            return 0;
        }
        Some(b"--") => drop(args.remove(0)),
        Some(word) if word.starts_with(b"-") => {
            return usage(&format!("unknown option {}", String::from_utf8_lossy(word)));
        }
        _ => {}
    }
    if args.is_empty() {
        return usage("no command");
    }
    let addr = match address::from_env() {
        Ok(Some(addr)) => addr,
        Ok(None) => return usage("CMD_NET_ADDR is not set; it names the other machine, tcp://HOST:PORT"),
        Err(e) => return usage(&e),
    };
    let engine = match Wish::from_env() {
        Ok(engine) => engine,
        Err(e) => return usage(&e),
    };
    super::daemon::init_client_logs();
    let status = crate::rexec::run(&addr, args, engine, &ByDaemon { addr: &addr });
    // The process ends without its worker, which may hold one.
    crate::sys::terminal::put_back_all();
    status
}

/// A daemon of this machine first, whose session needs no handshake; else a connection.
struct ByDaemon<'a> {
    addr: &'a str,
}

impl Ways for ByDaemon<'_> {
    fn carry(&self, first: &[u8], fds: &[(BorrowedFd<'_>, Mode)]) -> Option<Carried> {
        let wanted = std::env::var_os(CARRY_ENV).is_none_or(|word| word != "no");
        if !(wanted && fds.iter().all(|(fd, _)| vouch::goes(*fd))) {
            return None;
        }
        // A number, as a rule: then nobody is asked.
        let to = self.addr.to_socket_addrs().ok()?.next()?;
        let vouch::Carriage { control, ended } = vouch::carry(&vouch::dir(), to, first, fds)?;
        Some(Carried { control, ended })
    }

    fn access(&self) -> Result<Access, String> {
        super::access::of_program()
    }
}

fn usage(what: &str) -> i32 {
    eprintln!("rexec: {what}; see rexec --help");
    255
}
