//! What the acceptor answers a whole HELLO: who has said it, whether it may have what it asks for, and who serves it then.
//!
//! ```text
//!   HELLO ──▶ known? ──yes──▶ Node::admit ──▶ yes: worker, or a file server's thread
//!               │                   └──▶ no: told why
//!               └─no──▶ Awaiting: trust is read anew on another thread ──▶ known? (once more)
//! ```

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::access::{Ends, Shown, Stranger};
use super::conn::{self, Conn};
use super::door::Door;
use super::file_links::FilePlace;
use super::guests::{Awaiting, Greeting, Guest, Stage};
use super::node::admission::Admission;
use crate::auth::voucher;
use crate::link::worker::guard::Guard;
use crate::link::worker::peer::{Known, Peer};
use crate::wire::hello::{Hello, Role, Verdict};

impl Door {
    /// Who has said this HELLO, by what is known now: whose key it is, or whose word it has.
    fn known(&self, ends: Ends, greeting: &Greeting, hello: &Hello) -> Result<Known, Stranger> {
        let Some(key) = greeting.key else { return greeting.who.clone() };
        // Once more where it was a stranger's: what it asks for is known now, and the log names that.
        let shown = Shown { key, ends, binding: greeting.binding, dialled: false, role: Some(hello.role) };
        let who = self.judge(shown, None);
        if who.is_ok() || hello.role != Role::Client || hello.voucher.is_empty() {
            return who;
        }
        let (by, bearer) =
            voucher::redeem(&hello.voucher, &greeting.binding).map_err(|e| Stranger { log: e.0.clone(), told: e.0 })?;
        self.judge(Shown { key: by, ..shown }, Some(bearer))
    }

    /// # Errors
    /// One line for the log; with `Stage::Leaving` the guest has been told.
    pub(super) fn answer(
        &self,
        guest: &mut Guest<TcpStream>,
        greeting: Greeting,
        hello: Hello,
    ) -> Result<bool, String> {
        match self.known(guest.ends, &greeting, &hello) {
            Ok(known) => self.admit(guest, greeting.guard, hello, known),
            Err(no) if self.looks_again(greeting.judged) => {
                guest.stage = Stage::Awaiting(Box::new(Awaiting { greeting, hello, no }));
                Ok(true)
            }
            Err(no) => self.refuse(guest, greeting.guard, &hello, no),
        }
    }

    /// Whether trust is being read anew, and has not been since that moment.
    fn looks_again(&self, moment: Instant) -> bool {
        let Some(authority) = self.node.access().authority() else { return false };
        !authority.has_looked_since(moment) && authority.look_again()
    }

    /// Whether trust has been read anew since a waiting guest was judged.
    pub(super) fn can_answer(&self, guest: &Guest<TcpStream>) -> bool {
        let Stage::Awaiting(awaiting) = &guest.stage else { return false };
        let judged = awaiting.greeting.judged;
        self.node.access().authority().is_none_or(|authority| authority.has_looked_since(judged))
    }

    /// To one that waits: by what is known now.
    ///
    /// # Errors
    /// As `answer`.
    pub(super) fn answer_at_last(&self, guest: &mut Guest<TcpStream>) -> Result<bool, String> {
        let Stage::Awaiting(awaiting) = std::mem::replace(&mut guest.stage, Stage::Nothing) else { return Ok(false) };
        let Awaiting { greeting, hello, no } = *awaiting;
        match self.known(guest.ends, &greeting, &hello) {
            Ok(known) => self.admit(guest, greeting.guard, hello, known),
            Err(_) => self.refuse(guest, greeting.guard, &hello, no),
        }
    }

    fn refuse(
        &self,
        guest: &mut Guest<TcpStream>,
        mut guard: Guard,
        hello: &Hello,
        Stranger { log, told: reason }: Stranger,
    ) -> Result<bool, String> {
        let answer = self.node.hello(hello.role, hello.lane, hello.session, hello.index);
        see_off(guest, &mut guard, &Hello { verdict: Verdict::Refused, reason, ..answer });
        Err(log)
    }

    fn admit(
        &self,
        guest: &mut Guest<TcpStream>,
        mut guard: Guard,
        hello: Hello,
        mut known: Known,
    ) -> Result<bool, String> {
        let mut answer = self.node.hello(hello.role, hello.lane, hello.session, hello.index);
        if known.key.is_none() {
            known.name.clone_from(&hello.name);
        }
        let peer = Peer { known: known.clone(), addr: guest.ends.there, node: hello.node, role: hello.role };
        // Before the node counts the link: nobody would ever end one that no worker has.
        let stream = guest.stream.try_clone().map_err(|e| format!("{}: {e}", known.name))?;
        let admitted = match self.node.admit(&hello, peer) {
            Ok(admitted) => admitted,
            Err((verdict, reason)) => {
                let line = (verdict == Verdict::Refused).then(|| format!("{} refused: {reason}", known.name));
                see_off(guest, &mut guard, &Hello { verdict, reason, ..answer });
                return line.map_or(Ok(true), Err);
            }
        };
        if let (Some(authority), Some(key)) = (self.node.access().authority(), &known.key) {
            authority.seen(&known.name, key, guest.ends.there.ip());
        }
        answer.verdict = Verdict::Ok;
        // A HELLO's few bytes always fit an empty socket buffer.
        let said = say(guest, &mut guard, &answer);
        let tuned = stream.set_nonblocking(false).and_then(|()| conn::tune(&stream, hello.role, hello.lane));
        if hello.role == Role::Client {
            // One that is stopped reads nothing for as long as somebody likes: the pair tells that from a machine that is gone.
            let _ = SockRef::from(&stream).set_tcp_user_timeout(None);
        }
        match (admitted, said.and(tuned)) {
            (Admission::Files(place), Ok(())) => {
                self.serve_files(Conn::new(stream, guard, known, hello, guest.ends.there), place);
            }
            // Even a connection that has just failed goes to its worker: the session must learn of its end there.
            (link @ Admission::Link { .. }, _) => self.node.hand_over(link, stream.into(), guard),
            _ => {}
        }
        Ok(false)
    }

    fn serve_files(&self, conn: Conn, place: FilePlace) {
        let Some(files) = self.node.files() else { return };
        let node = self.node.clone();
        let serve = move || {
            // Without a handle on it nobody could end it.
            let Ok(number) = node.file_links().begun(&conn) else { return };
            files.serve(conn);
            node.file_links().ended(number);
            drop(place);
        };
        let spawned = std::thread::Builder::new().name("files".into()).spawn(serve);
        if let Err(e) = spawned {
            tracing::warn!("start a file server: {e}");
        }
    }
}

fn say(guest: &Guest<TcpStream>, guard: &mut Guard, hello: &Hello) -> io::Result<()> {
    let mut out = Vec::new();
    guard.seal(&hello.encode(), &mut out).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.0))?;
    (&guest.stream).write_all(&out)
}

/// Says no, and gives the guest a moment to read it.
fn see_off(guest: &mut Guest<TcpStream>, guard: &mut Guard, hello: &Hello) {
    // Who does not take our words has lost them.
    let _ = say(guest, guard, hello);
    let _ = guest.stream.shutdown(std::net::Shutdown::Write);
    guest.stage = Stage::Leaving;
    guest.deadline = guest.deadline.min(Instant::now() + Duration::from_millis(LEAVE_MS));
}

/// How long a guest that was refused may take to read why.
const LEAVE_MS: u64 = 1_000;
