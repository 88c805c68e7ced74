//! Names that stand for several addresses, some of which are of no use.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::dial_any;
use super::*;
use crate::errno::Errno;
use crate::fdpass::Maker;
use crate::link::session::access::twins::access;
use crate::link::tests::Nobody;
use crate::ring::Wish;
use crate::wire::hello::{Lane, Role};

fn node() -> Node {
    let (handler, files, fds) = (Arc::new(Nobody), None, Maker::default());
    Node::start(NodeOptions {
        workers: 1,
        engine: Wish::Auto,
        access: access(),
        handler,
        files,
        grace: Duration::ZERO,
        fds,
    })
    .unwrap()
}

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn an_address_that_does_not_answer_leaves_time_to_the_next() {
    let (near, far) = (node(), node());
    let silent = TcpListener::bind(free()).unwrap();
    let door = Door::bind_any([free()].into_iter(), far.clone()).unwrap().unwrap();
    let targets = [silent.local_addr().unwrap(), door.addresses()[0]];
    door.open().unwrap();
    let hello = near.hello(Role::Peer, Lane::Lat, 7, 0);
    let conn = dial_any(&targets, &hello, Instant::now() + Duration::from_secs(2), &access()).unwrap();
    assert_eq!(conn.peer_addr, targets[1]);
    for node in [near, far] {
        node.leave(Duration::ZERO);
    }
}

#[test]
fn a_door_opens_at_the_addresses_that_can_be_had() {
    let node = node();
    let taken = TcpListener::bind(free()).unwrap();
    let taken = taken.local_addr().unwrap();
    let strange = "8.8.8.8:0".parse().unwrap();
    let door = Door::bind_any([taken, free(), strange].into_iter(), node.clone()).unwrap().unwrap();
    assert_eq!(door.addresses().len(), 1);
    let error = |targets: &[SocketAddr]| Door::bind_any(targets.iter().copied(), node.clone()).unwrap_err().errno;
    assert_eq!(error(&[strange, taken]), Errno::EADDRINUSE);
    assert_eq!(error(&[strange]), Errno::EADDRNOTAVAIL);
    node.leave(Duration::ZERO);
}

/// Of two nodes that dial each other the one with the smaller id keeps the session that it has dialled: which one that is
/// differs from start to start.
#[test]
fn a_peer_that_dials_first_from_another_address_is_the_one_that_is_dialled() {
    for _ in 0..8 {
        let (near, far) = (node(), node());
        let door = |node: &Node, at: &str| {
            let door = Door::bind_any([at.parse().unwrap()].into_iter(), node.clone()).unwrap().unwrap();
            let addr = door.addresses()[0];
            door.open().unwrap();
            addr
        };
        let (near_at, far_at) = (door(&near, "127.0.0.1:0"), door(&far, "127.0.0.2:0"));
        // From 127.0.0.1, which near does not dial.
        keep_session(&far, near_at.to_string()).unwrap();
        let begun = Instant::now();
        while !near.has_session(None) {
            assert!(begun.elapsed() < Duration::from_secs(10), "far has dialled");
            std::thread::sleep(Duration::from_millis(2));
        }
        keep_session(&near, far_at.to_string()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while near.open(99, Vec::new(), deadline).unwrap_err() == Errno::ENOTCONN {
            assert!(Instant::now() < deadline, "near reaches the peer that it dials");
            std::thread::sleep(Duration::from_millis(10));
        }
        for node in [near, far] {
            node.leave(Duration::ZERO);
        }
    }
}
