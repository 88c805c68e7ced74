//! The pool: threads that wait in accept, each serving one asker at a time.
//!
//! ```text
//!   accept ──▶ whose is it? ──under its user's share──▶ serve ──▶ the next one of that user that waits
//!                    └── at its share ──▶ waits, and holds no thread
//! ```
//!
//! A few threads stay. When the last idle one takes an asker, another is started; those beyond the first few end after
//! a while of idleness.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use tracing::{info, warn};

use super::abstract_name::Names;
use super::ask::Desk;
use super::control::Control;
use super::exports::Exports;
use super::outlets::Outlets;
use super::private::Private;
use super::view::Proc;
use super::{FarSide, Options};
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{ASK_STACK_BYTES, ASK_THREADS_KEPT, ASKS_A_USER, ASKS_MAX, ASKS_WAITING_A_USER};
use crate::lograte::Condition;
use crate::sys::fair::{Fair, Share, Turn};
use crate::sys::seldom::Seldom;
use crate::sys::{peer, unix};

/// The daemon's local side, listening.
pub struct Server {
    shared: Arc<Shared>,
}

/// Tells a `Server` from another thread what to do.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    /// Dropped before what it asks.
    exports: Exports,
    desk: Arc<Desk>,
    /// Dropped after the desk, whose listeners are in its directory.
    control: Control,
    /// Askers by their users.
    turns: Fair<u32, OwnedFd>,
    counts: Mutex<Counts>,
    ended: Condvar,
    starved: Condition,
}

#[derive(Default)]
struct Counts {
    threads: usize,
    idle: usize,
    stopping: bool,
}

impl Server {
    /// Listens; nobody is served before `run`. One server a socket: a second one gets EADDRINUSE.
    pub fn bind(options: Options, far: Arc<dyn FarSide>) -> OsResult<Self> {
        let control = Control::bind(&options)?;
        let desk = Arc::new(Desk {
            far,
            policy: RwLock::new(Arc::new(options.policy)),
            users: RwLock::new(options.users),
            proc: Proc::open()?,
            names: Names::new()?,
            private: Private::start(&control.private)?,
            outlets: Outlets::start()?,
            exhausted: Seldom::default(),
        });
        let exports = Exports::new(desk.clone());
        exports.set(&options.exports)?;
        let turns = Fair::new(Share { each: ASKS_A_USER, waiting: ASKS_WAITING_A_USER });
        let shared = Shared {
            exports,
            desk,
            control,
            turns,
            counts: Mutex::default(),
            ended: Condvar::new(),
            starved: Condition::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Serves until stopped; askers under way then still get their verdict.
    pub fn run(self) -> OsResult<()> {
        let mut counts = self.shared.counts();
        for _ in 0..ASK_THREADS_KEPT {
            spawn(&self.shared, &mut counts).step("start a thread")?;
        }
        while counts.threads > 0 {
            counts = self.shared.ended.wait(counts).expect("a panic ends the process");
        }
        self.shared.exports.set(&[])?;
        self.shared.control.clear();
        Ok(())
    }
}

impl Handle {
    /// Other rules and exports; connections that are open stay.
    ///
    /// # Errors
    /// The first export that can't be opened; everything else is done.
    pub fn reload(&self, options: Options) -> OsResult<()> {
        self.0.control.share(options.users.are_more_than_root())?;
        self.0.desk.set_policy(options.policy, options.users);
        self.0.exports.set(&options.exports)
    }

    /// Ends the datagram streams, which have no end of their own that a drain could wait for.
    pub fn end_datagrams(&self) {
        self.0.desk.outlets.end_all();
    }

    pub fn stop(&self) {
        self.0.counts().stopping = true;
        // Wakes every accept; askers in the backlog see the end of their connection, and their local errno stands.
        let _ = shutdown(self.0.control.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl Shared {
    /// An asker whose user is below its share, and those of the same user that wait; or it waits for them.
    fn serve(&self, control: OwnedFd) {
        // One that has gone already.
        let Ok(asker) = peer::peer(control.as_fd()) else { return };
        let mut turn = match self.turns.enter(asker.uid, control) {
            Turn::Now(control) => Some(control),
            Turn::Later => None,
            Turn::Full(control) => return self.desk.turn_away(&control),
        };
        while let Some(control) = turn {
            self.desk.serve(control);
            turn = self.turns.leave(&asker.uid);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("a panic ends the process")
    }
}

fn spawn(shared: &Arc<Shared>, counts: &mut Counts) -> std::io::Result<()> {
    let theirs = shared.clone();
    thread::Builder::new().name("uds-near".into()).stack_size(ASK_STACK_BYTES).spawn(move || {
        serve(&theirs);
        theirs.counts().threads -= 1;
        theirs.ended.notify_all();
    })?;
    counts.threads += 1;
    Ok(())
}

fn serve(shared: &Arc<Shared>) {
    loop {
        shared.counts().idle += 1;
        let accepted = unix::accept(shared.control.listener.as_fd());
        if after_accept(shared, accepted.is_ok()) {
            return;
        }
        match accepted {
            Ok(control) => {
                if shared.starved.ends(Instant::now()) {
                    info!("programs that ask are accepted again");
                }
                shared.serve(control);
            }
            Err(Errno::EAGAIN) => shared.desk.private.forget(),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => {
                shared.desk.say_exhausted(errno);
                if shared.starved.begins(Instant::now()) {
                    warn!(%errno, "programs that ask wait: they cannot be accepted");
                }
                // EMFILE and the like: the asker stays in the backlog; trying at once would only spin.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Keeps an idle thread in accept; `true` when the calling one is to end.
fn after_accept(shared: &Arc<Shared>, busy: bool) -> bool {
    let mut counts = shared.counts();
    counts.idle -= 1;
    if !busy {
        return counts.stopping || counts.threads > ASK_THREADS_KEPT && counts.idle >= ASK_THREADS_KEPT;
    }
    if counts.idle == 0
        && counts.threads < ASKS_MAX
        && !counts.stopping
        && let Err(e) = spawn(shared, &mut counts)
    {
        warn!("no thread for the next asker, which waits: {e}");
    }
    false
}
