//! Bytes one way, as fast as they are taken. What counts is what the server says it got.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use crate::Load;
use crate::serve::{SINK, connect};

/// Larger writes than a request, unless a size was given: the default of 64 B measures system calls.
const WRITE_MIN: usize = 64 << 10;

pub(crate) fn run(load: &Load) -> Result<(), String> {
    let (_, counted) = load.times()?;
    let start = Arc::new(Barrier::new(usize::from(load.connections)));
    let one = |_| {
        let (load, start) = (load.clone(), Arc::clone(&start));
        std::thread::spawn(move || -> Result<(u64, f64), String> {
            let size = (load.size as usize).max(WRITE_MIN);
            let stream = connect(&load.connect, SINK, 1 << 20);
            start.wait();
            let mut stream = stream?;
            let buffer = vec![0x5a; size];
            let begun = Instant::now();
            let mut sent: u64 = 0;
            while begun.elapsed() < counted {
                stream.write_all(&buffer).map_err(|e| format!("write: {e}"))?;
                sent += size as u64;
            }
            stream.shutdown(Shutdown::Write).map_err(|e| format!("shutdown: {e}"))?;
            let mut got = [0; 8];
            stream.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
            let got = u64::from_le_bytes(got);
            if got != sent {
                return Err(format!("{sent} bytes were sent and {got} arrived"));
            }
            Ok((got, begun.elapsed().as_secs_f64()))
        })
    };
    let threads: Vec<_> = (0..load.connections).map(one).collect();
    let (mut bytes, mut seconds) = (0, 0.0_f64);
    for thread in threads {
        let (got, took) = thread.join().map_err(|_| "a thread panicked")??;
        bytes += got;
        seconds = seconds.max(took);
    }
    let megabytes = f64::from(u32::try_from(bytes / 1_000_000).unwrap_or(u32::MAX));
    println!("throughput: {} connections: {:.0} MB/s", load.connections, megabytes / seconds);
    Ok(())
}
