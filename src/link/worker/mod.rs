//! One thread, one ring, its link pairs. A stream never leaves its worker, so nothing here is locked.

mod announced;
mod completions;
pub(super) mod ctx;
mod drive;
mod events;
pub(super) mod guard;
pub(super) mod helpers;
pub(super) mod inbox;
mod io;
mod lane;
pub(super) mod links;
mod local;
mod notices;
mod pace;
pub(super) mod pair;
mod passing;
pub(super) mod peer;
mod records;
mod replay;
mod resuming;
mod token;
mod track;

pub use passing::REFUSED_LOG;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use self::ctx::{Ctx, Shared};
use self::inbox::{Cmd, Inbox};
use self::links::End;
use self::pace::Pace;
use self::pair::Pair;
use self::token::{Token, What};
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{BURST_MIN, BURST_REST_TICKS, COOL_AFTER_MS, LISTENER_LOOK_TICKS, PING_AFTER_MS};
use crate::ring::{Done, Engine, Fd, Op, Opened, Pool, Size, Wish, open};
use crate::slack;
use crate::sys::{memory, sched};
use crate::wire::hello::Lane;

/// How often pings, cooling and deadlines are looked at: fine enough for limits of seconds. A read that still waits at a
/// second look has done so for about COOL_AFTER_MS.
const TICK: Duration = Duration::from_millis(COOL_AFTER_MS / 2);
/// Later than this a tick is not late: the process was stopped, or the machine.
const AWAY: Duration = Duration::from_millis(PING_AFTER_MS);

/// What the node hears of a pair.
pub(super) enum News<'a> {
    /// The peer takes no new streams on it.
    Leaving,
    /// The link of that lane is lost, and the pair waits for another one.
    Cut(Lane),
    /// It is over, and why.
    Ended(&'a End),
}

/// The time since the worker's start.
pub(super) type Clock = Box<dyn Fn() -> Duration>;

/// Told of a pair, by its number.
pub(super) type OnNews = Box<dyn Fn(u64, News<'_>) + Send>;

pub(super) struct Worker {
    engine: Box<dyn Engine>,
    pool: Pool,
    shared: Shared,
    pairs: Pairs,
    wake: Fd,
    clock: Clock,
    ticker: Ticker,
    done: Vec<Done>,
    stopping: bool,
    pace: Pace,
    on_news: OnNews,
}

/// By their places, which are named in the kernel's completions, and by their numbers.
#[derive(Default)]
struct Pairs {
    slots: Slab<Pair>,
    by_id: HashMap<u64, usize>,
    /// To be advanced at the end of the turn.
    dirty: Vec<usize>,
}

impl Pairs {
    fn begin(&mut self, id: u64, peer: &Arc<peer::Peer>, options: crate::mux::Options) -> usize {
        let entry = self.slots.vacant_entry();
        let slot = entry.key();
        entry.insert(Pair::new(id, slot, Arc::clone(peer), options));
        self.by_id.insert(id, slot);
        slot
    }

    fn touch(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.slots[slot].marks.touched, true) {
            self.dirty.push(slot);
        }
    }

    fn touch_all(&mut self) {
        for slot in self.slots.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.touch(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        let pair = self.slots.remove(slot);
        self.by_id.remove(&pair.id);
    }
}

struct Ticker {
    next: Duration,
    count: u64,
    /// Of streams, and of buffers that were in use at once.
    bursts: [Burst; 2],
}

/// Whether many of something have been here, and are gone for a while.
#[derive(Default)]
struct Burst {
    most: usize,
    quiet: u32,
}

impl Burst {
    /// So many are here now. `true` once a burst.
    fn is_over(&mut self, count: usize) -> bool {
        self.most = self.most.max(count);
        let fewer = count < self.most / 2 && self.most - count >= BURST_MIN;
        self.quiet = if fewer { self.quiet + 1 } else { 0 };
        let over = self.quiet >= BURST_REST_TICKS;
        if over {
            *self = Self { most: count, quiet: 0 };
        }
        over
    }
}

impl Worker {
    /// On the worker's own thread: the ring takes no other. Also returns which engine it is, for people.
    pub(super) fn new(shared: Shared, on_news: OnNews, wish: Wish) -> OsResult<(Self, String)> {
        let Opened { engine, line } = open(wish)?;
        let born = Instant::now();
        Ok((Self::with(engine, Box::new(move || born.elapsed()), shared, on_news)?, line))
    }

    pub(super) fn with(engine: Box<dyn Engine>, clock: Clock, shared: Shared, on_news: OnNews) -> OsResult<Self> {
        let wake = std::os::fd::AsFd::as_fd(&shared.inbox.event).try_clone_to_owned().step("dup")?;
        let mut worker = Self {
            engine,
            pool: Pool::default(),
            shared,
            pairs: Pairs::default(),
            wake: Rc::new(wake),
            clock,
            ticker: Ticker { next: TICK, count: 0, bursts: Default::default() },
            done: Vec::new(),
            stopping: false,
            pace: Pace::default(),
            on_news,
        };
        worker.listen_to_inbox();
        Ok(worker)
    }

    /// Runs until it was told to stop and its last pair is over.
    pub(super) fn run(mut self) -> OsResult<()> {
        while !(self.stopping && self.pairs.slots.is_empty()) {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits for completions, and does all that follows from them.
    pub(super) fn turn(&mut self) -> OsResult<()> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.wait(Some(self.ticker.next.saturating_sub((self.clock)())), &mut done)?;
        let now_us = self.now_us();
        self.pace.add(done.len()).into_iter().for_each(sched::defer);
        for one in done.drain(..) {
            self.on_done(one, now_us);
        }
        if (self.clock)() >= self.ticker.next {
            if (self.clock)() > self.ticker.next + AWAY {
                self.pairs.slots.iter_mut().for_each(|(_, pair)| pair.was_away(now_us));
            }
            self.ticker.next = (self.clock)() + TICK;
            self.on_tick(now_us);
            self.pace.tick().into_iter().for_each(sched::defer);
            slack::vec(&mut done);
        }
        self.done = done;
        self.advance(now_us);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.slots.iter().map(|(_, pair)| pair)
    }

    fn now_us(&self) -> u64 {
        u64::try_from((self.clock)().as_micros()).expect("half a million years")
    }

    fn listen_to_inbox(&mut self) {
        let into = self.pool.take(Size::Small);
        let token = Token { what: What::Wake, pair: 0, index: 0 }.pack();
        self.engine.submit(Op::Read { fd: Rc::clone(&self.wake), into, max: 8 }, token);
    }

    fn on_done(&mut self, done: Done, now_us: u64) {
        let Token { what, pair, index } = Token::unpack(done.token);
        if what == What::Wake {
            drop(done);
            self.listen_to_inbox();
            for cmd in self.shared.inbox.take() {
                self.on_cmd(cmd, now_us);
            }
            return;
        }
        let Self { engine, pool, pairs, shared, .. } = self;
        let mut ctx = Ctx { engine: engine.as_mut(), pool, shared, now_us };
        let pair_end = &mut pairs.slots[pair];
        match what {
            What::LinkRecv | What::LinkSend => pair_end.on_link_done(what, index, done, &mut ctx),
            _ => pair_end.on_local_done(what, index, done, &mut ctx),
        }
        // At once, not at the end of the turn: a stream that has ended gives its place in the mux to the next one, and
        // what is still to be done for it must not find the other there.
        pair_end.process_events(&mut ctx);
        self.pairs.touch(pair);
    }

    fn on_cmd(&mut self, cmd: Cmd, now_us: u64) {
        let (id, slot) = match &cmd {
            Cmd::Link { pair, peer, options, begins: true, .. } => {
                let options = crate::mux::Options { now_us, ..*options };
                (*pair, Some(self.pairs.begin(*pair, peer, options)))
            }
            Cmd::Link { pair, .. }
            | Cmd::Open { pair, .. }
            | Cmd::Attach { pair, .. }
            | Cmd::Reset { pair, .. }
            | Cmd::Answer { pair, .. }
            | Cmd::FinishChildren { pair, .. }
            | Cmd::WhenChildrenDone { pair, .. }
            | Cmd::Leave { pair }
            | Cmd::End { pair, .. } => (*pair, self.pairs.by_id.get(pair).copied()),
            Cmd::Stop => {
                self.stopping = true;
                return;
            }
        };
        let Some(slot) = slot else {
            tracing::debug!("pair {id} is over");
            // It never left, and its session is over or has not quite begun: another try tells.
            if let Cmd::Open { verdict, .. } = cmd {
                verdict(Err(Errno::ECONNABORTED));
            }
            return;
        };
        let Self { engine, pool, pairs, shared, .. } = self;
        let mut ctx = Ctx { engine: engine.as_mut(), pool, shared, now_us };
        let pair = &mut pairs.slots[slot];
        match cmd {
            Cmd::Link { lane, fd, guard, resumes, .. } => pair.add_link(lane, (fd, guard), resumes, &mut ctx),
            Cmd::Open { service, request, verdict, .. } => pair.open(service, request, verdict),
            Cmd::Attach { key, pump, first, terms, .. } => pair.attach(key, pump, (first, terms), &mut ctx),
            Cmd::Reset { key, errno, .. } => pair.reset(key, errno, &mut ctx),
            Cmd::Answer { local, answer, .. } => pair.on_answer(local, answer, &mut ctx),
            Cmd::FinishChildren { key, .. } => pair.finish_children(key, &mut ctx),
            Cmd::WhenChildrenDone { key, then, .. } => pair.outputs.when_done(key, then),
            Cmd::Leave { .. } => pair.mux.leave(),
            Cmd::End { reason, .. } => pair.end(End::Gone(reason), &mut ctx),
            Cmd::Stop => unreachable!("taken above"),
        }
        pair.process_events(&mut ctx);
        self.pairs.touch(slot);
    }

    fn on_tick(&mut self, now_us: u64) {
        let Self { engine, pool, pairs, shared, .. } = self;
        let mut ctx = Ctx { engine: engine.as_mut(), pool, shared, now_us };
        for (_, pair) in &mut pairs.slots {
            pair.on_time(&mut ctx);
            pair.rest();
        }
        self.ticker.count += 1;
        if self.ticker.count.is_multiple_of(LISTENER_LOOK_TICKS) {
            pairs.slots.iter().for_each(|(_, pair)| pair.look_at_homes(&ctx));
        }
        pool.rest();
        engine.rest();
        let streams = self.pairs.slots.iter().map(|(_, pair)| pair.locals.len()).sum();
        let mut over = false;
        for (burst, count) in self.ticker.bursts.iter_mut().zip([streams, self.pool.buffers()]) {
            over |= burst.is_over(count);
        }
        if over {
            let inbox = Arc::clone(&self.shared.inbox);
            self.shared.helpers.run(move || {
                memory::trim();
                // The read that waits for the inbox may have one of the last places of the burst: it moves on.
                inbox.poke();
            });
        }
        self.pairs.touch_all();
    }

    fn advance(&mut self, now_us: u64) {
        for slot in std::mem::take(&mut self.pairs.dirty) {
            let Self { engine, pool, pairs, shared, .. } = self;
            let mut ctx = Ctx { engine: engine.as_mut(), pool, shared, now_us };
            let Some(pair) = pairs.slots.get_mut(slot) else { continue };
            pair.marks.touched = false;
            pair.advance(&mut ctx);
            for lane in pair.links.take_lost() {
                (self.on_news)(pair.id, News::Cut(lane));
            }
            if pair.take_leaving() {
                (self.on_news)(pair.id, News::Leaving);
            }
            if pair.take_cut()
                && let Some(why) = &pair.ended
            {
                (self.on_news)(pair.id, News::Ended(why));
            }
            if pair.is_over() {
                pairs.remove(slot);
            }
        }
    }
}

/// A worker's inbox, made before its thread.
pub(super) fn inbox() -> OsResult<Arc<Inbox>> {
    Ok(Arc::new(Inbox::new()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_once_when_most_have_been_gone_for_a_while() {
        let mut burst = Burst::default();
        let waves = [1000, 10, 900, 10];
        assert!(!waves.into_iter().any(|count| burst.is_over(count)), "another wave may come");
        let told: Vec<u32> = (1..20).filter(|_| burst.is_over(10)).collect();
        assert_eq!(told, [BURST_REST_TICKS - 1]);
        assert!((0..20).all(|_| !burst.is_over(200)), "a few are no burst");
    }
}
