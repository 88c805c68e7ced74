//! A relay that copies between two sockets by blocking threads, one a direction: the least that any proxy does.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use clap::Args;

use crate::target::{Listener, Stream, Target};

#[derive(Debug, Args)]
pub(crate) struct Relay {
    listen: Target,
    connect: Target,
}

const BUFFER: usize = 64 << 10;

pub(crate) fn run(args: &Relay) -> Result<(), String> {
    let listener = Listener::bind(&args.listen).map_err(|e| format!("{}: {e}", args.listen))?;
    loop {
        let near = listener.accept().map_err(|e| format!("accept: {e}"))?;
        let connect = args.connect.clone();
        std::thread::spawn(move || {
            // The client of a far side that is not there sees its connection end.
            if let Ok(far) = Stream::connect(&connect) {
                let _ = both_ways(near, far);
            }
        });
    }
}

fn both_ways(near: Stream, far: Stream) -> io::Result<()> {
    let (near_in, far_out) = (near.try_clone()?, far.try_clone()?);
    let there = std::thread::spawn(move || copy(near_in, far_out));
    let _ = copy(far, near);
    let _ = there.join();
    Ok(())
}

fn copy(mut from: Stream, mut to: Stream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(count @ 1..) => to.write_all(&buffer[..count])?,
            _ => return to.shutdown(Shutdown::Write),
        }
    }
}
