//! Values that cross the wire: each comes out as it went in, however its bytes are cut; from seeds.
//!
//! `FUZZ_SEEDS=DIR cargo test --test wire_frames` also leaves some encodings in DIR, for the corpus of the fuzz target
//! `frames`.

#[path = "../tools/fuzz/src/frames.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's own")]
mod frames;
#[path = "common/seeds.rs"]
mod seeds;

use farside::limits::{BULK_FRAME_MAX, CALLER_GROUPS_MAX, FDS_MAX, HOST_PATH_MAX};
use farside::qtfs::wire::{BASE_MAX, HostSocket, Mount, Mounted, SocketType};
use farside::sys::thread_identity::Identity;
use farside::udsproxyd::wire::ConnectRequest;
use farside::wire::frame::{FrameType, Header, flags};
use farside::wire::hello::{Hello, Lane, Role, Verdict};
use farside::wire::recipe::{
    Access, Device, FileId, Recipe, Seals, SocketKind, Tap, TerminalState, decode_all, encode_all,
};
use farside_contract::{Op, Request};
use farside_supervisor_contract::{Fixed, Lists, Plan};
use seeds::{Seed, for_seeds};

const KINDS: [FrameType; 12] = [
    FrameType::Hello,
    FrameType::Ping,
    FrameType::Pong,
    FrameType::GoAway,
    FrameType::Open,
    FrameType::Accept,
    FrameType::Reset,
    FrameType::Data,
    FrameType::Credit,
    FrameType::Recipe,
    FrameType::Move,
    FrameType::MoveBack,
];

fn header(seed: &mut Seed, len: usize) -> Header {
    Header {
        len: u32::try_from(len).unwrap(),
        kind: seed.one_of(&KINDS),
        flags: seed.number::<u8>() & flags::ALL,
        aux: seed.number(),
        stream: seed.number(),
        credit: seed.number(),
    }
}

fn text(seed: &mut Seed, max: usize) -> String {
    let mut out = String::new();
    let len = seed.up_to(max);
    while out.len() + 4 <= len {
        out.push(seed.one_of(&['a', 'ü', '🖧', ' ', '~']));
    }
    out
}

fn hello(seed: &mut Seed) -> Hello {
    Hello {
        role: seed.one_of(&[Role::Peer, Role::Client, Role::Files]),
        lane: seed.one_of(&Lane::ALL),
        verdict: seed.one_of(&[Verdict::Ok, Verdict::Duplicate, Verdict::Refused]),
        node: seed.bytes(16).try_into().unwrap(),
        session: seed.number(),
        index: seed.number(),
        workers: seed.number(),
        initial_window: seed.number(),
        record_max: seed.number(),
        features: seed.number(),
        name: text(seed, 64),
        reason: text(seed, 256),
        voucher: seed.bytes(200),
    }
}

fn recipe(seed: &mut Seed, place: usize) -> Recipe {
    let bits: u8 = seed.number();
    let access = Access { read: bits & 1 > 0, write: bits & 2 > 0, append: bits & 4 > 0, nonblock: bits & 8 > 0 };
    let (stream, nonblock) = (seed.number(), bits & 16 > 0);
    let kind = seed.one_of(&[SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram]);
    match seed.up_to(9) {
        0 => Recipe::Pipe { stream, access },
        1 => Recipe::Socket { stream, kind, nonblock },
        2 => Recipe::Listener { stream, kind, backlog: seed.number(), nonblock },
        3 => {
            let numbered = seed.one_of(&Device::NUMBERED).0;
            let group = Device::VfioGroup(seed.number());
            Recipe::Device { device: seed.one_of(&[numbered, group]), access }
        }
        4 if place > 0 => Recipe::Same { index: u16::try_from(seed.up_to(place - 1)).unwrap() },
        5 => {
            let modes = [seed.number(), seed.number(), seed.number(), seed.number()];
            let characters = seed.bytes(19).try_into().unwrap();
            let state = TerminalState { modes, characters, rows: seed.number(), columns: seed.number() };
            Recipe::Terminal { stream, access, state }
        }
        6 => {
            let seals = Seals { seal: nonblock, shrink: access.read, grow: access.write, ..Seals::default() };
            let len = u64::try_from(seed.up_to(16 << 20)).unwrap();
            Recipe::Memfd { stream, access, len, offset: seed.number(), seals }
        }
        7 => Recipe::HostFile { path: b"/var/lib/x y".to_vec(), access, offset: seed.number() },
        8 => Recipe::Tap(Tap {
            name: "vnet0".into(),
            ethernet: access.read,
            no_packet_info: access.write,
            vnet_header: access.append,
            multi_queue: access.nonblock,
            vnet_header_len: seed.number(),
            nonblock,
        }),
        _ => {
            let file = FileId { mount: seed.bytes(16).try_into().unwrap(), node: seed.number() };
            Recipe::File { file, access, offset: seed.number() }
        }
    }
}

fn connect(seed: &mut Seed) -> ConnectRequest {
    use farside::sys::unix::SocketKind;
    let count = seed.one_of(&[0, 1, 10, CALLER_GROUPS_MAX]);
    let groups = (0..count).map(|_| seed.number()).collect();
    let len = seed.one_of(&[0, 1, 20, HOST_PATH_MAX - 2]);
    let name = match seed.up_to(1) {
        0 => [b"/".to_vec(), vec![seed.number::<u8>().max(1); len]].concat(),
        _ => [b"\0".to_vec(), seed.bytes(1 + len.min(100))].concat(),
    };
    let kind = seed.one_of(&[SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram]);
    ConnectRequest {
        named: kind == SocketKind::Datagram && seed.up_to(1) == 1,
        kind,
        name,
        caller: Identity { uid: seed.number(), gid: seed.number(), groups },
        nonblocking: seed.up_to(1) == 1,
    }
}

#[test]
fn every_header_survives() {
    for_seeds(1..=5000, |seed| {
        let len = seed.up_to(BULK_FRAME_MAX as usize);
        let header = header(seed, len);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    });
}

#[test]
fn every_hello_survives_and_no_part_of_one_is_a_hello() {
    for_seeds(1..=500, |seed| {
        let said = hello(seed);
        let bytes = said.encode();
        assert_eq!(Hello::decode(&bytes), Ok(Some(said)));
        assert_eq!(Hello::decode(&bytes[..seed.up_to(bytes.len() - 1)]), Ok(None));
    });
}

#[test]
fn a_names_limit_never_cuts_a_character() {
    let seed = &mut Seed::new(1);
    for len in 0..300 {
        let long = Hello { name: "ü".repeat(len), reason: "a🖧".repeat(len), ..hello(seed) };
        let got = Hello::decode(&long.encode()).unwrap().unwrap();
        assert!(long.name.starts_with(&got.name) && long.reason.starts_with(&got.reason), "{got:?}");
    }
}

#[test]
fn the_recipes_of_every_message_survive_and_no_part_of_them_does() {
    for_seeds(1..=500, |seed| {
        let count = seed.one_of(&[0, 1, 2, 30, FDS_MAX]);
        let all: Vec<Recipe> = (0..count).map(|place| recipe(seed, place)).collect();
        let bytes = encode_all(&all);
        assert_eq!(decode_all(&bytes, count), Ok(all));
        if !bytes.is_empty() {
            assert!(decode_all(&bytes[..seed.up_to(bytes.len() - 1)], count).is_err());
        }
        assert!(decode_all(&[&bytes[..], &[9]].concat(), count).is_err(), "a byte too many");
    });
}

#[test]
fn every_connect_request_survives() {
    for_seeds(1..=500, |seed| {
        let asked = connect(seed);
        let bytes = asked.encode();
        assert_eq!(ConnectRequest::decode(&bytes), Ok(asked));
        assert!(ConnectRequest::decode(&bytes[..seed.up_to(bytes.len() - 1)]).is_err());
    });
}

#[test]
fn frames_are_the_same_however_their_bytes_are_cut() {
    for_seeds(1..=60, |seed| {
        let (mut bytes, mut said) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let len = seed.one_of(&[0, 0, 1, 17, 300, 5000]);
            let (header, body) = (header(seed, len), seed.bytes(len));
            bytes.extend_from_slice(&header.encode());
            bytes.extend_from_slice(&body);
            said.push((header, body));
        }
        for size in [1, 2, 3, 7, 15, 16, 17, 1 + seed.up_to(9000), bytes.len()] {
            assert_eq!(frames::cut(&bytes, size), (said.clone(), false), "in pieces of {size}");
        }
    });
}

#[test]
fn bytes_of_no_meaning_find_no_panic() {
    for_seeds(1..=3000, |seed| {
        let len = seed.up_to(600);
        frames::try_bytes(&seed.bytes(len));
        // Nearly right is more interesting: a sample with a byte changed.
        for mut sample in samples(seed) {
            let at = seed.up_to(sample.len() - 1).max(1);
            sample[at] ^= 1 << seed.up_to(7);
            frames::try_bytes(&sample);
        }
    });
}

/// What a supervisor is started with.
fn supervised(seed: &mut Seed) -> Vec<u8> {
    let fixed = Fixed { only: Some((seed.number(), seed.number())), umask: 0o22, ..Fixed::default() };
    let lists = Lists {
        fds: &[(3, 0), (7, 2)],
        groups: &[107, seed.number()],
        own_pid: c"LISTEN_PID",
        cwd: c"/",
        programs: &[c"/bin/true"],
        argv: &[c"true", c""],
        env: &[c"A=b"],
    };
    let mut plan = Vec::new();
    Plan::encode(&fixed, &lists, &mut plan).expect("a few entries");
    plan
}

/// One encoding of each kind, behind the byte that tells the fuzz target which decoder is meant.
fn samples(seed: &mut Seed) -> Vec<Vec<u8>> {
    let all: Vec<Recipe> = (0..6).map(|place| recipe(seed, place)).collect();
    let mut asked = vec![0; 200];
    let name = seed.bytes(20);
    let len = Request { op: seed.one_of(&[Op::Connect, Op::Adopt]), flags: 0, name: &name }.encode(&mut asked);
    asked.truncate(len.expect("it fits"));
    let mount = Mount { path: b"/srv/x".to_vec(), read_only: true, base: seed.number::<u64>() % BASE_MAX };
    let mounted = Mounted::Yes { read_only: false, inflight: 16, mode: seed.number(), token: [4; 16] };
    let socket = HostSocket { kind: SocketType::Stream, path: b"/run/x".to_vec() };
    let mut frames = Vec::new();
    for len in [0, 5, 40] {
        frames.extend(header(seed, len).encode());
        frames.extend(seed.bytes(len));
    }
    let with = |which: u8, bytes: Vec<u8>| [vec![which], bytes].concat();
    vec![
        with(0, hello(seed).encode()),
        with(1, [vec![6], encode_all(&all)].concat()),
        with(2, connect(seed).encode()),
        with(3, asked),
        with(3, supervised(seed)),
        with(4, mount.encode()),
        with(4, mounted.encode()),
        with(4, socket.encode(b"reply")),
        with(5, frames),
    ]
}

#[test]
fn the_samples_are_taken_by_the_fuzz_target() {
    let dir = std::env::var_os("FUZZ_SEEDS");
    for number in 1..=3 {
        for (place, sample) in samples(&mut Seed::new(number)).into_iter().enumerate() {
            frames::try_bytes(&sample);
            if let Some(dir) = &dir {
                std::fs::write(std::path::Path::new(dir).join(format!("sample-{number}-{place}")), sample).unwrap();
            }
        }
    }
}
