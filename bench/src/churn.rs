//! Connections a second: connect, one byte there and back, close. Under LD_PRELOAD=libudsproxy.so the connect is the
//! shim's.

use std::io::{Read, Write};

use clap::Args;

use crate::load::{Common, Window, all_threads};
use crate::outcome::{Outcome, float, histogram};
use crate::serve::BYTE;
use crate::target::{Stream, Target};

#[derive(Debug, Clone, Args)]
pub(crate) struct Churn {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How many at once, a thread each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) connections: u16,
}

pub(crate) fn once(args: &Churn, target: &Target) -> Result<Outcome, String> {
    let window = Window::starting(&args.common)?;
    let one = |_| {
        let (window, target) = (window.clone(), target.clone());
        move || {
            let mut times = histogram();
            loop {
                let begun = window.now();
                if window.is_over(begun) {
                    return Ok(times);
                }
                visit(&target)?;
                if window.counts(begun) {
                    times.saturating_record(window.since(begun));
                }
            }
        }
    };
    let (all, seen) = all_threads(&args.common, &window, (0..args.connections).map(one))?;
    let mut times = histogram();
    all.iter().for_each(|part| times.add(part).expect("the same bounds"));
    let mut outcome = Outcome::new("churn", target);
    outcome.set("connections_per_s", float(times.len()) / window.seconds());
    outcome.set_times("", &times);
    seen.put(&mut outcome, times.len());
    Ok(outcome)
}

/// One connection's life.
///
/// # Errors
/// One line.
pub(crate) fn visit(target: &Target) -> Result<(), String> {
    let mut stream = Stream::connect(target).map_err(|e| format!("connect to {target}: {e}"))?;
    stream.be_impatient().map_err(|e| format!("{target}: {e}"))?;
    stream.write_all(&[BYTE]).map_err(|e| format!("write: {e}"))?;
    let mut got = [0; 2];
    match stream.read(&mut got).map_err(|e| format!("read: {e}"))? {
        0 => Err("a connection ended before its byte came back".into()),
        1 if got[0] == BYTE => Ok(()),
        count => Err(format!("{count} bytes came back, {:?}", &got[..count])),
    }
}

pub(crate) fn text(args: &Churn, outcome: &Outcome) -> String {
    let f = |name| outcome.shown(name);
    format!(
        "churn: {} at once: {:.0} connections/s, p50 {:.1} us, p99 {:.1} us",
        args.connections,
        f("connections_per_s"),
        f("p50_us"),
        f("p99_us")
    )
}
