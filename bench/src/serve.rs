//! The server: its client's first bytes say what it wants.
//!
//! ```text
//!   'E' + u32 size   echo records of that size          'S'   take everything, then answer with the count (u64)
//! ```

use std::io::{self, Read, Write};

use crate::target::{Listener, Stream, Target};

pub(crate) const ECHO: u8 = b'E';
pub(crate) const SINK: u8 = b'S';

pub(crate) fn run(target: &Target) -> Result<(), String> {
    let listener = Listener::bind(target).map_err(|e| format!("{target}: {e}"))?;
    println!("serving on {target}");
    loop {
        let client = listener.accept().map_err(|e| format!("accept: {e}"))?;
        std::thread::spawn(move || {
            // A client that goes away ends its own measurement, and says so itself.
            let _ = answer(client);
        });
    }
}

fn answer(mut client: Stream) -> io::Result<()> {
    let mut wish = [0; 5];
    client.read_exact(&mut wish)?;
    let size = u32::from_le_bytes([wish[1], wish[2], wish[3], wish[4]]) as usize;
    let mut buffer = vec![0; size.clamp(1, 16 << 20)];
    match wish[0] {
        ECHO => loop {
            client.read_exact(&mut buffer)?;
            client.write_all(&buffer)?;
        },
        SINK => {
            let mut total: u64 = 0;
            loop {
                match client.read(&mut buffer)? {
                    0 => return client.write_all(&total.to_le_bytes()),
                    count => total += count as u64,
                }
            }
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("wish {other}"))),
    }
}

/// A connection that has said its wish.
pub(crate) fn connect(target: &Target, wish: u8, size: u32) -> Result<Stream, String> {
    let mut stream = Stream::connect(target).map_err(|e| format!("connect to {target}: {e}"))?;
    let size = size.to_le_bytes();
    stream.write_all(&[wish, size[0], size[1], size[2], size[3]]).map_err(|e| format!("{target}: {e}"))?;
    Ok(stream)
}
