//! Round trips: closed loop, or at even times.

use std::io::{Read, Write};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Load;
use crate::serve::{ECHO, connect};

/// Three digits, up to a minute, in nanoseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constants")
}

pub(crate) fn run(load: &Load) -> Result<(), String> {
    let (warm_up, counted) = load.times()?;
    let start = Arc::new(Barrier::new(usize::from(load.connections)));
    let one = |number: u16| {
        let (load, start) = (load.clone(), Arc::clone(&start));
        std::thread::spawn(move || -> Result<Histogram<u64>, String> {
            // Every thread meets the barrier, also one that could not connect: the others must not wait for ever.
            let stream = connect(&load.connect, ECHO, load.size);
            start.wait();
            let mut stream = stream?;
            let mut times = histogram();
            let size = load.size as usize;
            let mut asked: Vec<u8> =
                (0..size).map(|i| u8::try_from((i + usize::from(number)) % 251).expect("below 251")).collect();
            let mut got = vec![0; size];
            let begun = Instant::now();
            let mut due = Duration::ZERO;
            loop {
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                // A late answer delays what follows it, but nothing is made up for.
                due = begun.elapsed() + Duration::from_secs(1).checked_div(load.rate).unwrap_or_default();
                let asked_at = begun.elapsed();
                if asked_at >= warm_up + counted {
                    return Ok(times);
                }
                asked[0] = asked[0].wrapping_add(1);
                stream.write_all(&asked).map_err(|e| format!("write: {e}"))?;
                stream.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
                if got != asked {
                    return Err("another answer than was asked for came back".into());
                }
                if asked_at >= warm_up {
                    let took = u64::try_from((begun.elapsed() - asked_at).as_nanos()).unwrap_or(u64::MAX);
                    times.saturating_record(took);
                }
            }
        })
    };
    let threads: Vec<_> = (0..load.connections).map(one).collect();
    let mut all = histogram();
    for thread in threads {
        all.add(thread.join().map_err(|_| "a thread panicked")??).expect("the same bounds");
    }
    let us = |quantile: f64| {
        let ns = u32::try_from(all.value_at_quantile(quantile)).unwrap_or(u32::MAX);
        f64::from(ns) / 1000.0
    };
    let rate = f64::from(u32::try_from(all.len()).unwrap_or(u32::MAX)) / counted.as_secs_f64();
    println!(
        "latency: {} connections, {} B: p50 {:.1} us, p90 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, {rate:.0} requests/s",
        load.connections,
        load.size,
        us(0.5),
        us(0.9),
        us(0.99),
        us(0.999),
    );
    Ok(())
}
