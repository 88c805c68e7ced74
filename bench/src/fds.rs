//! Messages that carry the writing end of a pipe, checked by use: the far program writes into it what the message said.
//!
//! One message of a connection is under way at a time; many connections, a thread each, make many at once.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use clap::Args;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::load::{Common, Window, all_threads};
use crate::outcome::{Outcome, float, histogram};
use crate::serve::{self, FDS};
use crate::target::{Stream, Target};

#[derive(Debug, Clone, Args)]
pub(crate) struct Fds {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections at once, a thread each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) connections: u16,
}

/// The server's side.
pub(crate) fn answer(client: Stream) -> io::Result<()> {
    let client = serve::into_fd(client);
    let mut name = Vec::new();
    let mut pipes = Vec::new();
    loop {
        let mut part = [0; 8];
        let missing = 8 - name.len();
        let count = receive(&client, &mut part[..missing], &mut pipes)?;
        if count == 0 {
            return Ok(());
        }
        name.extend(&part[..count]);
        if name.len() < 8 {
            continue;
        }
        // Another count than one is left to the client, who finds its pipe empty.
        if pipes.len() == 1
            && let Some(pipe) = pipes.pop()
        {
            std::fs::File::from(pipe).write_all(&name)?;
        }
        (name, pipes) = (Vec::new(), Vec::new());
    }
}

fn receive(from: &OwnedFd, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(got.bytes)
}

pub(crate) fn once(args: &Fds, target: &Target) -> Result<Outcome, String> {
    let Target::Unix(_) = target else { return Err(format!("{target}: only a unix socket carries fds")) };
    let streams: Vec<OwnedFd> =
        (0..args.connections).map(|_| serve::connect(target, FDS, 0).map(serve::into_fd)).collect::<Result<_, _>>()?;
    let window = Window::starting(&args.common)?;
    let one = |(number, stream): (usize, OwnedFd)| {
        let window = window.clone();
        move || -> Result<_, String> {
            let mut times = histogram();
            let mut name = (number as u64) << 40;
            loop {
                let asked_at = window.now();
                if window.is_over(asked_at) {
                    return Ok(times);
                }
                name += 1;
                pass(&stream, name)?;
                if window.counts(asked_at) {
                    times.saturating_record(window.since(asked_at));
                }
            }
        }
    };
    let (all, seen) = all_threads(&args.common, &window, streams.into_iter().enumerate().map(one))?;
    let mut times = histogram();
    for part in all {
        times.add(part).expect("the same bounds");
    }
    let mut outcome = Outcome::new("fds", target);
    outcome.set("messages_per_s", float(times.len()) / window.seconds());
    outcome.set_times("", &times);
    seen.put(&mut outcome, times.len());
    Ok(outcome)
}

/// One message with one pipe; the pipe must say the message's name, and then end.
fn pass(stream: &OwnedFd, name: u64) -> Result<(), String> {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    let bytes = name.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = [theirs.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)), "there is room for one");
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty());
    if sent.map_err(|e| format!("sendmsg: {e}"))? != bytes.len() {
        return Err("a message of 8 bytes was sent in part".into());
    }
    drop(theirs);
    wait_for(&ours, Duration::from_secs(10))?;
    let mut said = Vec::new();
    std::fs::File::from(ours).read_to_end(&mut said).map_err(|e| format!("read from a pipe: {e}"))?;
    if said != bytes { Err(format!("a pipe said {said:?} instead of {bytes:?}")) } else { Ok(()) }
}

fn wait_for(fd: &OwnedFd, patience: Duration) -> Result<(), String> {
    let mut polled = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
    let limit = nix::poll::PollTimeout::try_from(patience).expect("seconds");
    match nix::poll::poll(&mut polled, limit) {
        Ok(0) => Err(format!("a pipe that was passed says nothing within {patience:?}")),
        Ok(_) => Ok(()),
        Err(e) => Err(format!("poll: {e}")),
    }
}

pub(crate) fn text(args: &Fds, outcome: &Outcome) -> String {
    let f = |name| outcome.shown(name);
    format!(
        "fds: {} connections, a pipe a message: {:.0} messages/s, p50 {:.1} us, p99 {:.1} us",
        args.connections,
        f("messages_per_s"),
        f("p50_us"),
        f("p99_us")
    )
}
