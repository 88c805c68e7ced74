//! A peer that wants too much: `crowd ADDR:PORT exec|files|sessions COUNT`. Prints what it got, and holds that until it is killed.
//!
//! `exec`: so many OPENs of the exec service on one session, and no request. `files`: so many file links that mount nothing.
//! `sessions`: so many sessions of commands.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use farside::auth::Tls;
use farside::link::conn::{Conn, dial};
use farside::link::{Access, Authority, Judged, Shown, Stranger};
use farside::trust::{HostKey, Store};
use farside::wire::frame::{FrameType, HEADER_LEN, Header};
use farside::wire::hello::{Hello, Lane, Role, Verdict};
use farside::wire::service;

/// Whoever answers will do.
struct Anybody(HostKey);

impl Authority for Anybody {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.0.secret).map_err(|e| e.to_string())
    }

    fn judge(&self, _shown: &Shown) -> Result<Judged, Stranger> {
        Ok(Judged::known_as("host"))
    }
}

fn hello(role: Role, session: u64) -> Hello {
    Hello {
        role,
        lane: if role == Role::Files { Lane::Bulk } else { Lane::Lat },
        verdict: Verdict::Ok,
        node: [7; 16],
        session,
        index: 0,
        workers: 1,
        initial_window: 65536,
        record_max: 1 << 20,
        features: 0,
        name: "crowd".into(),
        reason: String::new(),
        voucher: Vec::new(),
    }
}

fn many(addr: &str, access: &Access, count: u64, role: Role) -> Vec<Conn> {
    let (mut held, mut refused) = (Vec::new(), BTreeMap::<String, u32>::new());
    for session in 0..count {
        match dial(addr, &hello(role, session), Duration::from_secs(10), access) {
            Ok(conn) => held.push(conn),
            Err(e) => *refused.entry(e.text).or_default() += 1,
        }
    }
    println!("HELD {} REFUSED {} {refused:?}", held.len(), count - held.len() as u64);
    held
}

/// Counts the answers until there has been one to each OPEN, or none for two seconds.
fn commands(addr: &str, access: &Access, count: u32) {
    let conn = dial(addr, &hello(Role::Client, 1), Duration::from_secs(10), access).expect("a session");
    let (mut reader, mut writer, closer) = conn.split().expect("a split connection");
    let opens: Vec<u8> = (0..count)
        .flat_map(|n| Header { aux: service::EXEC, credit: 65536, ..Header::new(FrameType::Open, 1 + 2 * n) }.encode())
        .collect();
    writer.write_all(&opens).expect("to be heard");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut head = [0; HEADER_LEN];
        while reader.read_exact(&mut head).is_ok() {
            let header = Header::decode(&head).expect("a frame");
            std::io::copy(&mut (&mut reader).take(header.len.into()), &mut std::io::sink()).expect("its payload");
            let _ = tell.send(header);
        }
    });
    let (mut accepted, mut refused) = (0, BTreeMap::<u16, u32>::new());
    while let Ok(header) = told.recv_timeout(Duration::from_secs(2)) {
        match header.kind {
            FrameType::Accept => accepted += 1,
            FrameType::Reset => *refused.entry(header.aux).or_default() += 1,
            _ => {}
        }
    }
    println!("HELD {accepted} REFUSED {} {refused:?}", count - accepted);
    // Held until this process ends.
    std::mem::forget((writer, closer));
}

fn main() {
    let [addr, what, count] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("ADDR:PORT WHAT COUNT");
    let access = Access::Keys(Arc::new(Anybody(Store::of_this_machine().host_key().expect("a key"))));
    let count: u32 = count.parse().expect("a number");
    let _held = match what.as_str() {
        "exec" => {
            commands(&addr, &access, count);
            Vec::new()
        }
        "files" => many(&addr, &access, count.into(), Role::Files),
        _ => many(&addr, &access, count.into(), Role::Client),
    };
    std::thread::sleep(Duration::from_secs(600));
}
