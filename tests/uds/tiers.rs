//! Every promise once on each engine, and one table of verdicts at the end.
//!
//! A test's thread knows its tier, so a promise is written once and does not mention it. An engine that this machine
//! cannot have fails all of its tests: the daemons are told which one, and must say that they have it.

use std::cell::Cell;
use std::io::Write;
use std::sync::Mutex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Linux 6.1 and later.
    Ring,
    /// What Linux 5.10 has.
    BasicRing,
    Epoll,
}

pub(crate) const TIERS: [Tier; 3] = [Tier::Ring, Tier::BasicRing, Tier::Epoll];

thread_local! {
    static TIER: Cell<Option<Tier>> = const { Cell::new(None) };
}

impl Tier {
    pub(crate) fn of_this_test() -> Self {
        TIER.get().expect("a promise runs in a tier: name it in in_every_tier!")
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ring => "io_uring",
            Self::BasicRing => "io_uring-basic",
            Self::Epoll => "epoll",
        }
    }

    /// What a daemon is told.
    pub(crate) fn wish(self) -> (&'static str, &'static str) {
        ("FARSIDE_ENGINE", self.word())
    }

    /// What it then says.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::Ring => "engine: io_uring (single issuer, deferred task work",
            Self::BasicRing => "engine: io_uring (5.10 operations)",
            Self::Epoll => "engine: epoll",
        }
    }
}

static VERDICTS: Mutex<Vec<(&'static str, Tier, bool)>> = Mutex::new(Vec::new());

/// Notes how a promise ends, by panic too.
struct Verdict {
    name: &'static str,
    tier: Tier,
    all: &'static [&'static str],
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let mut verdicts = VERDICTS.lock().expect("nobody panics with it");
        verdicts.push((self.name, self.tier, !std::thread::panicking()));
        if verdicts.len() == self.all.len() * TIERS.len() {
            // By the handle itself, which the test harness does not capture.
            let _ = std::io::stderr().write_all(table(&verdicts, self.all).as_bytes());
        }
    }
}

fn table(verdicts: &[(&str, Tier, bool)], all: &[&str]) -> String {
    let row = |name: &str| {
        let cells = TIERS.map(|tier| match verdicts.iter().find(|(n, t, _)| *n == name && *t == tier) {
            Some((.., true)) => format!(" {:>14}", "kept"),
            Some((.., false)) => format!(" {:>14}", "BROKEN"),
            None => format!(" {:>14}", "NOT SHOWN"),
        });
        format!("{name:<80}{}\n", cells.concat())
    };
    let head = TIERS.map(|tier| format!(" {:>14}", tier.word())).concat();
    format!("\n{:<80}{head}\n{}", "promise", all.iter().map(|name| row(name)).collect::<String>())
}

pub(crate) fn keep(tier: Tier, name: &'static str, all: &'static [&'static str], promise: fn()) {
    TIER.set(Some(tier));
    let _verdict = Verdict { name, tier, all };
    promise();
}

/// A test of each promise in each tier: `plain` ones are a function of near.py, `own` ones a function here. None can be
/// ignored, so none is missing from the table.
macro_rules! in_every_tier {
    (plain { $($plain:ident)+ } own { $($own:ident)+ }) => {
        $(fn $plain() {
            Proxied::up().keeps(stringify!($plain), &[]);
        })+
        in_every_tier! { @all $($plain)+ $($own)+ }
    };
    (@all $($name:ident)+) => {
        const PROMISES: &[&str] = &[$(stringify!($name)),+];
        in_every_tier! { @tier io_uring Ring $($name)+ }
        in_every_tier! { @tier io_uring_basic BasicRing $($name)+ }
        in_every_tier! { @tier epoll Epoll $($name)+ }
    };
    (@tier $module:ident $tier:ident $($name:ident)+) => {
        mod $module {
            $(#[test]
            fn $name() {
                let (tier, name) = (crate::tiers::Tier::$tier, stringify!($name));
                crate::tiers::keep(tier, name, crate::PROMISES, crate::$name);
            })+
        }
    };
}
pub(crate) use in_every_tier;
