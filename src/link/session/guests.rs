//! Connections that are nobody's yet, and who goes when there are too many.
//!
//! ```text
//!   Shaking ──both keys proven──▶ Greeting ──whole HELLO──▶ admitted
//!      │                             ├── a stranger ──▶ Awaiting: trust is read anew ──▶ admitted
//!      │                             └── a no ──▶ Leaving: told why, closed ◀──┘
//!      └── deadline, garbage, no room ──▶ closed
//! ```
//!
//! Whoever floods the door must not shut out those who are trusted, also from the same address: who has said nothing goes
//! first, then whoever comes from where most guests come from, and an address whose handshakes keep failing is heard
//! after all others. Nobody is refused for an address alone.
//!
//! Pure but for the stream that a guest carries: no clock of its own, no call that waits.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::access::{Ends, Stranger};
use crate::auth::{Binding, Handshake, PublicKey};
use crate::limits::{
    FAILED_ADDRESSES_MAX, FAILED_BURST, FAILED_FORGET_S, FAILED_SAID_EVERY_S, HELLO_DEADLINE_MS, HELLO_PENDING_MAX,
};
use crate::link::worker::guard::Guard;
use crate::link::worker::peer::Known;
use crate::wire::hello::Hello;

/// How far a guest is.
pub(super) enum Stage {
    Shaking(Box<Handshake>),
    /// Its key is proven; its HELLO is on its way.
    Greeting(Box<Greeting>),
    /// A stranger by what was known: the files are being looked at once more.
    Awaiting(Box<Awaiting>),
    /// It was told no: what it still sends is dropped until it closes, so that our words are not lost in a reset.
    Leaving,
    /// Only between two stages.
    Nothing,
}

pub(super) struct Greeting {
    pub(super) guard: Guard,
    pub(super) binding: Binding,
    /// What it has proven; none in plaintext.
    pub(super) key: Option<PublicKey>,
    /// As judged when that was proven. A stranger may still have a voucher in its HELLO.
    pub(super) who: Result<Known, Stranger>,
    /// When it was judged.
    pub(super) judged: Instant,
    /// Received, and not opened yet.
    pub(super) raw: Vec<u8>,
    /// The HELLO as far as it has come.
    pub(super) plain: Vec<u8>,
}

pub(super) struct Awaiting {
    pub(super) greeting: Greeting,
    pub(super) hello: Hello,
    /// What it is told if nothing has changed.
    pub(super) no: Stranger,
}

pub(super) struct Guest<S> {
    pub(super) stream: S,
    pub(super) ends: Ends,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    /// It has said something.
    pub(super) spoke: bool,
}

/// Everybody at the door, in the order they came.
pub(super) struct Guests<S> {
    all: VecDeque<Guest<S>>,
}

impl<S> Default for Guests<S> {
    fn default() -> Self {
        Self { all: VecDeque::new() }
    }
}

impl<S> Guests<S> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Guest<S>> {
        self.all.iter()
    }

    /// Lets one in; when there is no room, another one goes. Returns where that one's ends were.
    pub(super) fn enter(&mut self, stream: S, ends: Ends, stage: Stage, now: Instant) -> Option<Ends> {
        let gone = (self.all.len() >= HELLO_PENDING_MAX).then(|| self.least_wanted());
        let gone = gone.and_then(|at| self.all.remove(at)).map(|guest| guest.ends);
        let deadline = now + Duration::from_millis(HELLO_DEADLINE_MS);
        self.all.push_back(Guest { stream, ends, deadline, stage, spoke: false });
        gone
    }

    /// Of those who have said nothing, or else of all: the oldest one from where most of them come from.
    fn least_wanted(&self) -> usize {
        let silent = self.all.iter().any(|g| !g.spoke);
        let among = || self.all.iter().enumerate().filter(|(_, g)| !(silent && g.spoke));
        let mut from: HashMap<IpAddr, usize> = HashMap::new();
        for (_, guest) in among() {
            *from.entry(network(guest.ends.there.ip())).or_default() += 1;
        }
        let most = from.values().max().copied().unwrap_or_default();
        among().find(|(_, g)| from[&network(g.ends.there.ip())] == most).map_or(0, |(at, _)| at)
    }

    /// Those whose time is over.
    pub(super) fn late(&mut self, now: Instant) -> VecDeque<Guest<S>> {
        let (late, rest) = std::mem::take(&mut self.all).into_iter().partition(|g| g.deadline <= now);
        self.all = rest;
        late
    }

    /// Calls `hear` for each guest that `ready` names, those of noisy addresses last; who does not stay goes.
    pub(super) fn hear(
        &mut self,
        ready: &[bool],
        failed: &mut Failed,
        now: Instant,
        mut hear: impl FnMut(&mut Guest<S>, &mut Failed) -> bool,
    ) {
        let mut stays = vec![true; self.all.len()];
        for noisy in [false, true] {
            for (at, guest) in self.all.iter_mut().enumerate() {
                let its_turn = ready.get(at) == Some(&true) && failed.is_noisy(guest.ends.there.ip(), now) == noisy;
                if stays[at] && its_turn {
                    guest.spoke = true;
                    stays[at] = hear(guest, failed);
                }
            }
        }
        let mut at = 0;
        self.all.retain(|_| {
            at += 1;
            stays[at - 1]
        });
    }
}

/// One machine's addresses: an IPv6 host usually has a whole /64 to itself.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Failed handshakes, by where they came from.
#[derive(Default)]
pub(super) struct Failed {
    by: HashMap<IpAddr, Record>,
    /// All there ever were.
    pub(super) total: u64,
}

struct Record {
    count: u64,
    /// Failures that no line of the log has told.
    untold: u64,
    last: Instant,
    told: Option<Instant>,
}

impl Failed {
    /// Counts one. Returns whether it is to be said, and how many of that address's were not said before it.
    pub(super) fn count(&mut self, ip: IpAddr, now: Instant) -> Option<u64> {
        self.total += 1;
        if self.by.len() >= FAILED_ADDRESSES_MAX {
            let forget = Duration::from_secs(FAILED_FORGET_S);
            self.by.retain(|_, record| now.duration_since(record.last) < forget);
            if self.by.len() >= FAILED_ADDRESSES_MAX {
                self.by.clear();
            }
        }
        let record = self.by.entry(network(ip)).or_insert(Record { count: 0, untold: 0, last: now, told: None });
        if now.duration_since(record.last) >= Duration::from_secs(FAILED_FORGET_S) {
            record.count = 0;
        }
        record.count += 1;
        record.last = now;
        let often = record.count > FAILED_BURST;
        let lately =
            record.told.is_some_and(|told| now.duration_since(told) < Duration::from_secs(FAILED_SAID_EVERY_S));
        if often && lately {
            record.untold += 1;
            return None;
        }
        record.told = Some(now);
        Some(std::mem::take(&mut record.untold))
    }

    fn is_noisy(&self, ip: IpAddr, now: Instant) -> bool {
        let forget = Duration::from_secs(FAILED_FORGET_S);
        self.by.get(&network(ip)).is_some_and(|r| r.count > FAILED_BURST && now.duration_since(r.last) < forget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(there: &str) -> Ends {
        Ends { here: "192.168.10.10:1".parse().unwrap(), there: format!("{there}:1").parse().unwrap() }
    }

    fn full(of: &str) -> (Guests<()>, Instant) {
        let (mut guests, now) = (Guests::default(), Instant::now());
        for _ in 0..HELLO_PENDING_MAX {
            assert_eq!(guests.enter((), ends(of), Stage::Nothing, now), None);
        }
        (guests, now)
    }

    #[test]
    fn who_has_said_nothing_makes_room_first() {
        let (mut guests, now) = full("10.0.0.1");
        guests.all[0].spoke = true;
        guests.all[2].spoke = true;
        assert!(guests.enter((), ends("10.0.0.1"), Stage::Nothing, now).is_some());
        assert!(guests.all[0].spoke && guests.all[1].spoke, "the first and the third stayed");
        assert_eq!(guests.all.len(), HELLO_PENDING_MAX);
    }

    #[test]
    fn one_guest_from_elsewhere_is_not_pushed_out_by_many() {
        let (mut guests, now) = full("10.0.0.1");
        guests.enter((), ends("10.0.0.2"), Stage::Nothing, now);
        for _ in 0..10 * HELLO_PENDING_MAX {
            guests.enter((), ends("10.0.0.1"), Stage::Nothing, now);
        }
        assert_eq!(guests.iter().filter(|g| g.ends == ends("10.0.0.2")).count(), 1);
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let [a, b, c] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|ip| network(ip.parse().unwrap()));
        assert!(a == b && a != c);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn many_failures_are_one_line_now_and_then_with_their_number() {
        let (mut failed, start, ip) = (Failed::default(), Instant::now(), "10.0.0.1".parse().unwrap());
        let said = (0..1000).filter_map(|_| failed.count(ip, start)).count();
        assert_eq!(said as u64, FAILED_BURST);
        assert!(failed.is_noisy(ip, start) && !failed.is_noisy("10.0.0.2".parse().unwrap(), start));
        let later = start + Duration::from_secs(FAILED_SAID_EVERY_S);
        assert_eq!(failed.count(ip, later), Some(1000 - FAILED_BURST));
        assert_eq!(failed.total, 1001);
        assert!(!failed.is_noisy(ip, later + Duration::from_secs(FAILED_FORGET_S)));
    }

    #[test]
    fn noisy_addresses_are_heard_after_all_others() {
        const COUNT: usize = 48;
        let now = Instant::now();
        let (mut guests, mut failed) = (Guests::default(), Failed::default());
        for n in 0..COUNT {
            guests.enter((), ends(if n % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" }), Stage::Nothing, now);
        }
        (0..=FAILED_BURST).for_each(|_| _ = failed.count("10.0.0.1".parse().unwrap(), now));
        let mut heard = Vec::new();
        guests.hear(&[true; COUNT], &mut failed, now, |guest, _| {
            heard.push(guest.ends == ends("10.0.0.1"));
            true
        });
        let others = COUNT / 2;
        assert_eq!(heard.len(), COUNT);
        assert!(heard[..others].iter().all(|noisy| !noisy) && heard[others..].iter().all(|noisy| *noisy));
    }
}
