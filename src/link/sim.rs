//! Two workers against each other, from a seed: whole pairs, with their streams, muxes and lanes, over a wire that splits,
//! delays and is cut, on an engine that promises nothing (`ring::faulty`).
//!
//! ```text
//!   programs ══ real unix sockets ══ Worker ── wire (bytes, held as long as the seed likes) ── Worker ══ programs
//!                                      └─ helpers' jobs: done when, and in the order that, the seed likes
//! ```
//!
//! The model knows what each program has sent: bytes, records, and which fd belongs to which byte. At every step what has
//! come out must be a beginning of that; at the end, if nothing was cut, killed or refused, all of it; and nothing may be
//! left in either worker.
//!
//! A failure prints its seed. `FARSIDE_SIM_SEED=N cargo test --lib link::sim` replays that one alone;
//! `FARSIDE_SIM_SECONDS=N` runs fresh seeds for so long (`inf`: until one fails).

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::worker::Worker;
use super::worker::ctx::Shared;
use super::worker::guard::Guard;
use super::worker::helpers::Helpers;
use super::worker::inbox::{Cmd, Inbox, Pending};
use super::worker::pair::Pair;
use super::worker::peer::{Handler, Incoming, Known, Peer};
use crate::errno::Errno;
use crate::fdpass::{Maker, Pump};
use crate::limits::RECORDS_HELD_MAX;
use crate::mux::Options;
use crate::mux::sim::Rng;
use crate::ring::faulty::FaultyEngine;
use crate::stream::Kind;
use crate::sys::pool::Job;
use crate::wire::hello::{Lane, Role};
use crate::wire::service;

mod program;
mod wire;

use program::Conn;
use wire::Wire;

/// A stream that the near side has opened, or the far side has been asked for, and its local end is still to come.
type Waiting = Arc<Mutex<Vec<(u32, Pending)>>>;

/// Streams that come in wait in a list until the seed decides.
struct Door(Waiting);

impl Handler for Door {
    fn on_open(&self, incoming: Incoming) {
        let number = u32::from_le_bytes(incoming.request.try_into().expect("the simulation's own request"));
        self.0.lock().unwrap().push((number, incoming.stream));
    }
}

struct Side {
    worker: Worker,
    inbox: Arc<Inbox>,
    jobs: Arc<Mutex<Vec<Job>>>,
    asked: Waiting,
    ended: Arc<Mutex<Option<String>>>,
}

const PAIR: u64 = 1;
/// Longer than any run.
const GRACE_US: u64 = 1 << 50;

impl Side {
    fn new(rng: &Rc<RefCell<Rng>>, clock: &Rc<Cell<Duration>>, faults: u64) -> Self {
        let (jobs, asked, ended) = (Arc::default(), Waiting::default(), Arc::new(Mutex::new(None)));
        let inbox = super::worker::inbox().unwrap();
        let shared = Shared {
            inbox: Arc::clone(&inbox),
            helpers: Helpers::later(&jobs),
            handler: Arc::new(Door(Arc::clone(&asked))),
            maker: Arc::new(Maker::default()),
            grace_us: GRACE_US,
        };
        let (clock, told) = (Rc::clone(clock), Arc::clone(&ended));
        let on_news = Box::new(move |_, news: super::worker::News| {
            if let super::worker::News::Ended(why) = news {
                *told.lock().unwrap() = Some(why.to_string());
            }
        });
        let engine = Box::new(FaultyEngine::new(rng, faults));
        let worker = Worker::with(engine, Box::new(move || clock.get()), shared, on_news).unwrap();
        Self { worker, inbox, jobs, asked, ended }
    }

    fn link(&self, lane: Lane, fd: OwnedFd, dialer: bool, resumes: bool) {
        let here = "127.0.0.1:1".parse().expect("an address");
        let known = Known { name: "sim".into(), key: None, bearer: None };
        let peer = Arc::new(Peer { known, addr: here, node: [0; 16], role: Role::Peer });
        let options = Options::new(dialer);
        let begins = lane == Lane::Lat && !resumes;
        self.inbox.push(Cmd::Link { pair: PAIR, lane, fd, guard: Guard::Plain, options, peer, begins, resumes });
    }

    /// Streams and local ends that are still there.
    fn left(&self) -> usize {
        self.worker.pairs().map(|pair| pair.mux.streams() + pair.locals.len()).sum()
    }
}

struct World {
    seed: u64,
    rng: Rc<RefCell<Rng>>,
    clock: Rc<Cell<Duration>>,
    sides: [Side; 2],
    wires: Option<[Wire; 2]>,
    conns: Vec<Conn>,
    next: u32,
    /// Streams of the near side that have been accepted, and have no local end yet.
    accepted: Waiting,
    /// And those that were refused.
    refused: Arc<Mutex<Vec<u32>>>,
    steps: u64,
    /// How likely a link is lost, in a hundred chances.
    losses: u64,
}

/// So many are opened by the near side; with those that are passed as fds there are so many.
const CONNS: usize = 5;
const CONVERSATIONS: usize = 16;

impl World {
    fn new(seed: u64) -> Self {
        let rng = Rc::new(RefCell::new(Rng::new(seed)));
        let clock = Rc::new(Cell::new(Duration::ZERO));
        let faults = [0, 5, 20, 50][rng.borrow_mut().below(4)];
        let sides = [(), ()].map(|()| Side::new(&rng, &clock, faults));
        let wires = Lane::ALL.map(|lane| {
            let (wire, [near, far]) = Wire::new();
            sides[0].link(lane, near, true, false);
            sides[1].link(lane, far, false, false);
            wire
        });
        let (accepted, refused, conns) = Default::default();
        let losses = [0, 0, 10, 60][rng.borrow_mut().below(4)];
        Self { seed, rng, clock, sides, wires: Some(wires), conns, next: 0, accepted, refused, steps: 0, losses }
    }

    fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().below(n)
    }

    fn step(&mut self) {
        self.steps += 1;
        match self.below(100) {
            0..=1 if self.conns.len() < CONNS => self.open(),
            2 if self.rng.borrow_mut().chance(self.losses) => self.lose(),
            0..=29 => self.act(),
            30..=69 => {
                let side = self.below(2);
                self.sides[side].worker.turn().expect("the engine never fails");
            }
            70..=84 => self.carry(),
            85..=91 => self.help(),
            92..=95 => self.decide(),
            _ => {
                let us = if self.rng.borrow_mut().chance(2) { 90_000 } else { self.below(400) as u64 };
                self.clock.set(self.clock.get() + Duration::from_micros(us));
            }
        }
        self.check();
    }

    fn open(&mut self) {
        let number = self.next;
        self.next += 1;
        let kind = [Kind::Socket, Kind::Socket, Kind::Socket, Kind::SeqPacket][self.below(4)];
        self.conns.push(Conn::new(number, kind));
        let (accepted, refused) = (Arc::clone(&self.accepted), Arc::clone(&self.refused));
        let verdict = Box::new(move |said: Result<Pending, Errno>| match said {
            Ok(stream) => accepted.lock().unwrap().push((number, stream)),
            Err(_) => refused.lock().unwrap().push(number),
        });
        let request = number.to_le_bytes().to_vec();
        self.sides[0].inbox.push(Cmd::Open { pair: PAIR, service: service::UDS, request, verdict });
    }

    /// A stream that waits for its local end gets one, or a no.
    fn decide(&mut self) {
        let side = self.below(2);
        let waiting = if side == 0 { Arc::clone(&self.accepted) } else { Arc::clone(&self.sides[1].asked) };
        let mut waiting = waiting.lock().unwrap();
        if waiting.is_empty() {
            return;
        }
        let at = self.below(waiting.len());
        let (number, stream) = waiting.swap_remove(at);
        let conn = self.conns.iter_mut().find(|conn| conn.number == number).expect("opened here");
        if self.rng.borrow_mut().chance(3) {
            conn.is_broken = true;
            return stream.refuse(Errno::ECONNREFUSED);
        }
        let (ours, theirs) = local_end(conn.kind);
        conn.ends[side].attach(theirs);
        drop(stream.attach(Pump::new(ours, conn.kind)));
    }

    /// A program does something.
    fn act(&mut self) {
        if self.conns.is_empty() {
            return;
        }
        self.hand_out();
        let at = self.below(self.conns.len());
        let side = self.below(2);
        let may_pass = self.conns.len() < CONVERSATIONS;
        let born = self.conns[at].act(side, &mut self.rng.borrow_mut(), &mut self.next, may_pass);
        self.conns.extend(born);
        self.hand_out();
    }

    /// Sockets that were passed are the other ends of conversations; a conversation whose socket can't come any more is
    /// broken, as its carrier must be.
    fn hand_out(&mut self) {
        let come: Vec<_> = self.conns.iter_mut().flat_map(|conn| std::mem::take(&mut conn.come)).collect();
        for (number, side, socket) in come {
            let conn = self.conns.iter_mut().find(|conn| conn.number == number).expect("passed here");
            conn.ends[side].attach(socket);
        }
        // In the order in which they were begun, so that what was passed inside what was passed is found too.
        for at in 0..self.conns.len() {
            let carrier =
                self.conns[at].carrier.and_then(|number| self.conns.iter().find(|conn| conn.number == number));
            if let Some((broken, deaf)) = carrier.map(|carrier| (carrier.is_broken, carrier.is_deaf())) {
                let conn = &mut self.conns[at];
                conn.is_broken |= broken;
                conn.carrier = conn.carrier.filter(|_| conn.is_fresh() && !(broken && deaf));
            }
        }
    }

    fn carry(&mut self) {
        let lane = self.below(2);
        if let Some(wires) = &mut self.wires {
            wires[lane].carry(&mut self.rng.borrow_mut());
        }
    }

    fn help(&mut self) {
        let side = self.below(2);
        let mut jobs = self.sides[side].jobs.lock().unwrap();
        if !jobs.is_empty() {
            let at = self.rng.borrow_mut().below(jobs.len());
            let job = jobs.swap_remove(at);
            drop(jobs);
            job();
        }
    }

    /// Both links, and nothing is dialled again: the session ends.
    fn cut(&mut self) {
        self.wires = None;
        self.sides.iter().for_each(|side| side.inbox.push(Cmd::End { pair: PAIR, reason: "cut".into() }));
        self.conns.iter_mut().for_each(|conn| conn.is_broken = true);
    }

    /// One link is lost, with all that is on its way, and another one comes. One side may hear of that much later than
    /// the other, even of a whole link in between.
    fn lose(&mut self) {
        let lane = Lane::ALL[self.below(2)];
        let (wire, [near, far]) = Wire::new();
        if let Some(wires) = &mut self.wires {
            wires[lane.index()] = wire;
            self.sides[0].link(lane, near, true, true);
            self.sides[1].link(lane, far, false, true);
        }
    }

    /// What must hold at any time.
    fn check(&mut self) {
        for number in self.refused.lock().unwrap().drain(..) {
            let conn = self.conns.iter_mut().find(|conn| conn.number == number).expect("opened here");
            assert!(conn.is_broken || self.wires.is_none(), "seed {}: refused by nobody", self.seed);
            conn.is_broken = true;
        }
        for side in &self.sides {
            for pair in side.worker.pairs() {
                pair.mux.books();
                assert!(pair.records.held() <= 2 * RECORDS_HELD_MAX, "seed {}: records", self.seed);
            }
            let why = side.ended.lock().unwrap();
            let cut = self.wires.is_none();
            assert!(why.is_none() || cut, "seed {}: the session ended: {why:?}", self.seed);
        }
    }

    /// What is not over.
    fn picture(&self) -> String {
        let conns: Vec<_> = self.conns.iter().filter(|conn| !conn.is_over()).collect();
        let ports: Vec<_> =
            self.sides.iter().map(|side| side.worker.pairs().map(Pair::picture).collect::<String>()).collect();
        format!("{conns:?}\n{}", ports.join("\n---\n"))
    }

    /// Nobody begins anything new: everybody reads to the end, and ends. Then nothing is left.
    fn settle(&mut self) {
        self.conns.iter_mut().for_each(Conn::begin_to_end);
        let losing = self.losses > 0;
        let mut quiet = 0;
        for round in 0.. {
            let left: usize = self.sides.iter().map(Side::left).sum();
            let open = self.conns.iter().filter(|conn| !conn.is_over()).count();
            quiet = if left + open == 0 { quiet + 1 } else { 0 };
            if quiet > 20 {
                break;
            }
            assert!(round < 20_000, "seed {}: {left} streams and local ends are left: {}", self.seed, self.picture());
            if losing && round < 2_000 && self.rng.borrow_mut().chance(1) {
                self.lose();
            }
            // A stream whose program waits for nothing more still gets its verdict.
            self.decide();
            for side in 0..2 {
                self.help();
                self.sides[side].worker.turn().expect("the engine never fails");
            }
            self.carry();
            for at in 0..self.conns.len() {
                for side in 0..2 {
                    self.conns[at].finish(side, &mut self.rng.borrow_mut());
                }
            }
            self.hand_out();
            self.clock.set(self.clock.get() + Duration::from_micros(if round % 50 == 0 { 90_000 } else { 200 }));
            self.check();
        }
        self.conns.iter().for_each(|conn| conn.check_end(self.seed));
    }
}

/// This worker's end, and its program's.
fn local_end(kind: Kind) -> (OwnedFd, UnixStream) {
    let socket = if kind == Kind::Socket { SockType::Stream } else { SockType::SeqPacket };
    let (ours, theirs) = socketpair(AddressFamily::Unix, socket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    if kind == Kind::Socket {
        // Little room, so that writes are cut short.
        setsockopt(&ours, sockopt::SndBuf, &4096).unwrap();
    }
    let theirs = UnixStream::from(theirs);
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// Returns how many steps it took.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    let steps = 300 + world.below(2500);
    let cut = world.rng.borrow_mut().chance(30);
    let cut_at = cut.then(|| world.below(steps));
    for step in 0..steps {
        if cut_at == Some(step) {
            world.cut();
        }
        world.step();
    }
    world.settle();
    world.steps
}

/// So many in every run of the tests, always the same ones.
const FIXED: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(if text == "inf" { u64::MAX } else { text.parse().expect("a number") })
}

#[test]
fn streams_records_and_fds_arrive_once_and_in_order_whatever_happens_when() {
    if let Some(seed) = number("FARSIDE_SIM_SEED") {
        // With what the workers say of it.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).try_init();
        run(seed);
        return;
    }
    let begun = Instant::now();
    let fresh = number("FARSIDE_SIM_SECONDS").map(Duration::from_secs);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let first = u64::try_from(now.as_millis()).expect("some years are left") << 16;
    let (mut seeds, mut steps) = (0, 0);
    for seed in (1..=FIXED).chain(first..) {
        if seeds >= FIXED && fresh.is_none_or(|most| begun.elapsed() > most) {
            break;
        }
        let ran = std::panic::catch_unwind(|| run(seed));
        steps +=
            ran.unwrap_or_else(|_| panic!("FARSIDE_SIM_SEED={seed} cargo test --lib link::sim replays this alone"));
        seeds += 1;
    }
    println!("{seeds} seeds, {steps} steps in {:?}, fresh ones from {first}", begun.elapsed());
}
