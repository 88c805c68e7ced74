//! What keeps a peer or a user from filling a server's log: each source has its measure at each place that logs.
//!
//! One filter for all lines of info and above, so that no place has to think of it. The source is the line's field
//! `peer`, else `addr`, else `uid`; a line without one has a measure for all. Ports and connections are no source of
//! their own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::errno::{OsResult, Step as _};
use crate::limits::LOG_WINDOW;
use crate::lograte::Rate;

/// Of the lines that tell what was left out.
const TOLD: &str = "farside::left_out";
const LOOK: Duration = Duration::from_secs(1);
/// Of a line that was left out so much is quoted.
const QUOTED: usize = 200;

static MEASURED: OnceLock<Arc<Mutex<State>>> = OnceLock::new();

type Key = (Identifier, String);

#[derive(Default)]
struct State {
    rate: Rate<Key>,
    /// The first line that each source has lost.
    lost: HashMap<Key, String>,
}

pub(super) struct Measured(Arc<Mutex<State>>);

impl Measured {
    pub(super) fn new() -> Self {
        Self(Arc::clone(MEASURED.get_or_init(Arc::default)))
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder panics: panic is abort")
}

impl<S: Subscriber> Layer<S> for Measured {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        // Debug and trace are for whoever has asked for them.
        if *about.level() > Level::INFO || about.target() == TOLD {
            return true;
        }
        let mut source = Source::default();
        event.record(&mut source);
        let key = (about.callsite(), source.text());
        let mut state = locked(&self.0);
        let may = state.rate.may_say(key.clone(), Instant::now());
        if !may && state.lost.len() < crate::limits::LOG_SOURCES_MAX {
            state.lost.entry(key).or_insert_with(|| {
                let mut quoted = Quoted(String::new());
                event.record(&mut quoted);
                quoted.0
            });
        }
        may
    }
}

/// Starts the thread that tells what was left out. After signals are taken.
pub(super) fn tell_what_is_left_out() -> OsResult<()> {
    let Some(state) = MEASURED.get() else { return Ok(()) };
    let tell = move || {
        loop {
            std::thread::sleep(LOOK);
            tell(state);
        }
    };
    std::thread::Builder::new().name("log-counts".into()).spawn(tell).step("start a thread")?;
    Ok(())
}

fn tell(state: &Mutex<State>) {
    let (due, lost) = {
        let mut state = locked(state);
        let due = state.rate.due(Instant::now());
        let lost: Vec<String> =
            due.left_out.iter().map(|(key, _)| state.lost.remove(key).unwrap_or_default()).collect();
        if due.crowd > 0 {
            state.lost.clear();
        }
        (due, lost)
    };
    let seconds = LOG_WINDOW.as_secs();
    for (((_, source), count), first) in due.left_out.iter().zip(lost) {
        tracing::warn!(target: TOLD, "{source}{count} more lines were left out in {seconds} s, as this: {first}");
    }
    if due.crowd > 0 {
        tracing::warn!(target: TOLD, "{} lines of many sources were left out in {seconds} s", due.crowd);
    }
}

/// Whom a line is about.
#[derive(Default)]
struct Source {
    peer: Option<String>,
    addr: Option<String>,
    uid: Option<u64>,
}

impl Source {
    fn text(self) -> String {
        match (self.peer, self.addr, self.uid) {
            (Some(peer), ..) => format!("peer {peer}: "),
            (_, Some(addr), _) => format!("{addr}: "),
            (_, _, Some(uid)) => format!("uid {uid}: "),
            _ => String::new(),
        }
    }

    fn take(&mut self, field: &Field, text: &str) {
        match field.name() {
            // `NAME (ADDR:PORT)`: each connection has another port.
            "peer" => self.peer = Some(text.split(" (").next().unwrap_or(text).to_owned()),
            "addr" => self.addr = Some(text.rsplit_once(':').map_or(text, |(ip, _)| ip).to_owned()),
            _ => {}
        }
    }
}

impl Visit for Source {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if matches!(field.name(), "peer" | "addr") {
            self.take(field, &format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "uid" {
            self.uid = Some(value);
        }
    }
}

/// A line's words.
struct Quoted(String);

impl Visit for Quoted {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}").chars().take(QUOTED).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::limits::LOG_BURST;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_peer_that_comes_by_many_ports_is_one_source_and_silences_no_other() {
        let log = Log::default();
        let ours = log.clone();
        let writer = tracing_subscriber::fmt::layer().with_writer(move || ours.clone());
        let measured = Measured(Arc::default());
        let refuse = |peer: &str, port: u32| tracing::warn!(peer = %format!("{peer} (10.0.0.1:{port})"), "refused");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(writer).with(measured), || {
            (0..200).for_each(|port| refuse("dpu", port));
            refuse("other", 1);
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let of = |peer: &str| text.lines().filter(|line| line.contains(peer)).count();
        assert_eq!((of("dpu ("), of("other (")), (LOG_BURST as usize, 1));
    }
}
