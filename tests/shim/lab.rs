//! A daemon in this process whose far side is this machine: `DIR/near/x` is asked for, `DIR/far/x` is reached.

#[path = "../common/built_shim.rs"]
mod built_shim;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use farside::errno::{Errno, OsResult};
use farside::sys::unix::{self, SocketKind};
use farside::sys::{peer, scm};
use farside::udsproxyd::far::Far;
use farside::udsproxyd::near::{End, Export, FarSide, FarStream, Handle, Options, Server};
use farside::udsproxyd::policy::Policy;
use farside::udsproxyd::wire::{ConnectRequest, Listener};
use nix::sys::socket::Shutdown;

use crate::skip::skip;

/// One at a time: the tests count this process's fds and threads.
static TURN: Mutex<()> = Mutex::new(());

/// The client program, built once.
static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) far: Arc<Loopback>,
    pub(crate) handle: Handle,
    server: Option<JoinHandle<OsResult<()>>>,
    _turn: MutexGuard<'static, ()>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// Two threads carry its bytes.
    Pump,
    /// It is closed at once: for counting and timing the near side alone.
    Drop,
    /// The far side is not even asked.
    Nowhere,
}

pub(crate) struct Loopback {
    far: Far,
    dir: PathBuf,
    pub(crate) attach: Mutex<Attach>,
    pub(crate) delay: Mutex<Duration>,
    pub(crate) asked: AtomicUsize,
}

/// `None`, with a loud line, when this machine can't run these tests.
pub(crate) fn lab(name: &str) -> Option<Lab> {
    lab_in(name, |dir| dir.join("ctl/uds.sock"))
}

pub(crate) fn lab_in(name: &str, socket: impl FnOnce(&Path) -> PathBuf) -> Option<Lab> {
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !nix::unistd::geteuid().is_root() {
        skip("needs root (chroot, other identities)");
        return None;
    }
    if let Err(missing) = BUILT.get_or_init(build) {
        skip(missing);
        return None;
    }
    let dir = PathBuf::from(format!("/tmp/uds-test-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("near")).unwrap();
    std::fs::create_dir_all(dir.join("far")).unwrap();
    let socket = socket(&dir);
    std::fs::create_dir_all(socket.parent().unwrap().parent().unwrap()).unwrap();
    let far = Arc::new(Loopback {
        far: Far::new(Policy::open()).unwrap(),
        dir: dir.clone(),
        attach: Mutex::new(Attach::Pump),
        delay: Mutex::default(),
        asked: AtomicUsize::new(0),
    });
    let options = Options {
        socket,
        users: farside::trust::Users::default().with(&[65_534]),
        policy: Policy::open(),
        exports: Vec::new(),
    };
    let server = Server::bind(options, far.clone()).unwrap();
    let handle = server.handle();
    let server = Some(thread::spawn(|| server.run()));
    Some(Lab { dir, far, handle, server, _turn: turn })
}

fn build() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_BIN_EXE_farside")).ancestors().nth(2).expect("target/PROFILE/PROGRAM");
    let client = target.join("uds-test-client");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/client.c");
    // Bound at once: a lazy call saves the processor's whole vector state on the stack, which in a signal handler may be a
    // small one, and is no business of the shim's.
    let gcc = Command::new("gcc").args(["-O1", "-pthread", "-Wl,-z,now", "-o"]).arg(&client).arg(source).status();
    match gcc {
        Ok(status) if status.success() => Ok(client),
        Ok(_) => panic!("{source} does not compile"),
        Err(e) => Err(format!("gcc: {e}")),
    }
}

pub(crate) fn shim() -> PathBuf {
    built_shim::path()
}

pub(crate) fn client() -> PathBuf {
    BUILT.get_or_init(build).clone().expect("a lab was made")
}

impl Lab {
    pub(crate) fn near(&self, name: &str) -> String {
        format!("{}/near/{name}", self.dir.display())
    }

    pub(crate) fn far_path(&self, name: &str) -> PathBuf {
        self.dir.join("far").join(name)
    }

    pub(crate) fn asked(&self) -> usize {
        self.far.asked.load(Ordering::SeqCst)
    }

    /// A program under the shim.
    pub(crate) fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", shim()).env("FARSIDE_UDS_SOCKET", self.dir.join("ctl/uds.sock"));
        command
    }

    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = self.program(client());
        command.args(args);
        command
    }

    /// What the client prints, which must end well within 20 seconds.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        said(self.client(args))
    }

    /// From now on these alone, each a typed `--export`.
    pub(crate) fn export(&self, exports: &[String]) -> OsResult<()> {
        let exports: Vec<Export> = exports.iter().map(|text| text.parse().unwrap()).collect();
        self.handle.reload(Options { exports, ..Options::default() })
    }

    /// Stops the daemon; its socket is gone afterwards.
    pub(crate) fn stop(&mut self) {
        self.handle.stop();
        if let Some(server) = self.server.take() {
            server.join().unwrap().unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(crate) fn said(mut command: Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ends_soon(command.spawn().unwrap());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    assert!(errors.is_empty(), "{command:?}: {errors}");
    text
}

pub(crate) fn ends_soon(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a program hangs: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

impl FarSide for Loopback {
    fn connect(&self, request: &ConnectRequest, deadline: Instant) -> Result<Box<dyn FarStream>, Errno> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let attach = *self.attach.lock().unwrap();
        if attach == Attach::Nowhere {
            return Ok(Box::new(Stream { far: None, attach }));
        }
        let far =
            self.far.connect_as(&ConnectRequest { name: self.name(&request.name), ..request.clone() }, deadline)?;
        Ok(Box::new(Stream { far: Some(far), attach }))
    }
}

impl Loopback {
    fn name(&self, asked: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(asked).into_owned();
        match text.strip_prefix('\0') {
            Some(name) => format!("\0{}", name.replace("near", "far")).into_bytes(),
            None => {
                let (_, rest) = text.split_once("/near/").expect("only names of the lab reach the far side");
                format!("{}/far/{rest}", self.dir.display()).into_bytes()
            }
        }
    }
}

struct Stream {
    far: Option<OwnedFd>,
    attach: Attach,
}

impl FarStream for Stream {
    fn attach(self: Box<Self>, local: OwnedFd, kind: SocketKind) -> OsResult<End> {
        let Some(far) = self.far.filter(|_| self.attach == Attach::Pump) else { return Ok(Box::new(drop)) };
        let (local, far) = (Arc::new(local), Arc::new(far));
        for (from, to) in [(far.clone(), local.clone()), (local.clone(), far.clone())] {
            thread::spawn(move || carry(&from, &to, kind));
        }
        // The threads own the sockets: what has ended is closed.
        let sockets = [Arc::downgrade(&local), Arc::downgrade(&far)];
        Ok(Box::new(move |_| {
            for socket in sockets.iter().filter_map(std::sync::Weak::upgrade) {
                let _ = nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Both);
            }
        }))
    }

    fn listener(&self) -> Option<Listener> {
        let who = peer::peer(self.far.as_ref()?.as_fd()).ok()?;
        (who.pid != 0).then_some(Listener { uid: who.uid, gid: who.gid })
    }
}

/// Bytes or records of one direction. A datagram socket that can't be answered, or whose other end is gone, ends both.
fn carry(from: &OwnedFd, to: &OwnedFd, kind: SocketKind) {
    use nix::sys::socket::{MsgFlags, recv, send, shutdown};
    use std::os::fd::AsRawFd;
    let mut room = vec![0; 64 << 10];
    let mut ended = Shutdown::Write;
    loop {
        match recv(from.as_raw_fd(), &mut room, MsgFlags::empty()) {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if send(to.as_raw_fd(), &room[..n], MsgFlags::MSG_NOSIGNAL).is_err() {
                    ended = Shutdown::Both;
                    break;
                }
            }
        }
    }
    if kind == SocketKind::Datagram {
        let _ = shutdown(from.as_raw_fd(), Shutdown::Both);
        ended = Shutdown::Both;
    }
    let _ = shutdown(to.as_raw_fd(), ended);
}

/// A listener of the far side that echoes, or greets with who the caller is; ends with the test process.
pub(crate) fn serve(name: &[u8], kind: SocketKind, mode: u32, answer: Answer) {
    let listener = unix::socket(kind, false).unwrap();
    unix::bind(listener.as_fd(), name).unwrap();
    if name[0] != 0 {
        let path = std::str::from_utf8(name).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    if kind == SocketKind::Datagram {
        answer.datagrams(listener);
        return;
    }
    unix::listen(listener.as_fd(), 256).unwrap();
    thread::spawn(move || {
        while let Ok(accepted) = unix::accept(listener.as_fd()) {
            let answer = answer.clone();
            thread::spawn(move || answer.serve(accepted));
        }
    });
}

#[derive(Clone)]
pub(crate) enum Answer {
    Echo,
    Identity,
    /// Counts connections that have ended.
    Count(Arc<AtomicUsize>),
    /// Keeps what datagrams say.
    Keep(Arc<Mutex<Vec<u8>>>),
    /// Answers each datagram with itself.
    Reply,
}

impl Answer {
    fn serve(self, socket: OwnedFd) {
        let socket = Arc::new(socket);
        match self {
            Self::Identity => {
                let who = peer::peer(socket.as_fd()).unwrap();
                let groups = peer::groups(socket.as_fd(), 1000).unwrap();
                let text = format!("uid {} gid {} groups {groups:?}\n", who.uid, who.gid);
                let _ = scm::send(socket.as_fd(), text.as_bytes(), &[]);
            }
            Self::Echo | Self::Keep(_) | Self::Reply => carry(&socket, &socket, SocketKind::Stream),
            Self::Count(ended) => {
                carry(&socket, &socket, SocketKind::Stream);
                ended.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn datagrams(self, socket: OwnedFd) {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        thread::spawn(move || {
            let mut room = [0; 100];
            while let Ok((n, from)) = socket.recv_from(&mut room) {
                match &self {
                    Self::Keep(kept) => kept.lock().unwrap().extend_from_slice(&room[..n]),
                    Self::Reply => drop(socket.send_to_addr(&room[..n], &from)),
                    _ => panic!("not for datagrams"),
                }
            }
        });
    }
}

/// Waits for something that happens on another thread.
pub(crate) fn soon(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
