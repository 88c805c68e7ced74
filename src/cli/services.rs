//! A node with one service or another switched on: what `farside host`, `engine`, `udsproxyd` and `rexec_server` are.
//!
//! ```text
//!   peer's OPEN ──▶ Services ──▶ rexec::Server │ udsproxyd::far::Far        file link ──▶ qtfs::far::serve
//!   local asks ──▶ udsproxyd::near::Server ──▶ OnNode ──▶ Node::open
//! ```

use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::access::{OfDaemon, serve_programs};
use super::daemon;
use super::guide_link::GuideLink;
use super::incoming::{Files, Services};
use super::logs;
use super::notify::Notify;
use super::uds::UdsArgs;
use crate::audit;
use crate::config::{self, NodeConfig, Pass, PassedDevice, config_dir};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::fdpass::{Maker, OnRefusal, Pump};
use crate::limits::{ARENAS_BESIDE, CARRY_DEADLINE_MS, RECORD_MAX};
use crate::link::{Door, FileServer, First, Node, NodeOptions, Peer, Pending, Terms, keep_session};
use crate::qtfs::far::Exports;
use crate::qtfs::near::SeenMounts;
use crate::rexec;
use crate::ring::Wish;
use crate::stream::Kind;
use crate::sys::scm::Credentials;
use crate::sys::seldom::Seldom;
use crate::sys::unix::{self, SocketKind};
use crate::sys::{memory, nofile};
use crate::udsproxyd::far::Far;
use crate::udsproxyd::near::{self, End, FarSide, FarStream};
use crate::udsproxyd::wire::{ConnectRequest, Listener};
use crate::vouch::{Carriage, Command, Commands};
use crate::wire::service;

/// What a node is to do.
pub(super) struct Plan {
    pub(super) workers: usize,
    pub(super) engine: Wish,
    pub(super) access: OfDaemon,
    pub(super) listen: String,
    /// The other node, if this one is to dial it.
    pub(super) peer: Option<String>,
    pub(super) exec: bool,
    /// Both directions of the unix-socket service, and what node.toml says of it; `None`: neither.
    pub(super) uds: Option<(UdsArgs, config::Uds)>,
    pub(super) exports: Option<Exports>,
    /// What passed fds of the peer's may stand for here.
    pub(super) pass: Pass,
    pub(super) log: config::Log,
    pub(super) session: config::Session,
}

impl From<Pass> for Maker {
    fn from(pass: Pass) -> Self {
        let has = |device| pass.devices.contains(&device);
        let (kvm, vhost_net, vfio) = (has(PassedDevice::Kvm), has(PassedDevice::VhostNet), has(PassedDevice::Vfio));
        Self {
            files: None,
            mounted: None,
            kvm,
            vhost_net,
            vfio,
            taps: pass.taps || pass.bridge.is_some(),
            bridge: pass.bridge,
        }
    }
}

/// Whom a receiver with SO_PASSCRED is shown: a message is of whoever speaks over there. Only root may say another than
/// itself, and need not say so of root.
pub(super) fn speaks_as(uid: u32, gid: u32) -> Option<Credentials> {
    static ROOT: LazyLock<bool> = LazyLock::new(|| nix::unistd::geteuid().is_root());
    (*ROOT && (uid, gid) != (0, 0)).then_some(Credentials { uid, gid })
}

pub(super) fn pump(fd: OwnedFd, kind: SocketKind) -> Pump {
    if kind != SocketKind::Stream {
        // A record that the other kernel took from its sender must be one that this kernel takes from us.
        unix::raise_send_buffer(fd.as_fd(), RECORD_MAX);
    }
    let kind = match kind {
        SocketKind::Stream => Kind::Socket,
        SocketKind::SeqPacket => Kind::SeqPacket,
        SocketKind::Datagram => Kind::Datagram,
    };
    Pump::new(fd, kind)
}

/// The far side of the local socket's asks: this node's peer.
struct OnNode(Node);

impl FarSide for OnNode {
    fn connect(&self, request: &ConnectRequest, deadline: Instant) -> Result<Box<dyn FarStream>, Errno> {
        let stream = self.0.open(service::UDS, request.encode(), deadline)?;
        let listener = Listener::decode(stream.said()).unwrap_or_else(|e| {
            tracing::warn!("the peer says with its yes to a connect: {e}");
            None
        });
        Ok(Box::new(Connected { stream, listener }))
    }
}

struct Connected {
    stream: Pending,
    listener: Option<Listener>,
}

impl FarStream for Connected {
    fn attach(self: Box<Self>, local: OwnedFd, kind: SocketKind) -> OsResult<End> {
        let speaks_as = self.listener.and_then(|there| speaks_as(there.uid, there.gid));
        let attached = self.stream.attach_on(pump(local, kind), Terms { said: Vec::new(), speaks_as });
        Ok(Box::new(move |errno| attached.reset(errno)))
    }

    fn listener(&self) -> Option<Listener> {
        self.listener
    }
}

/// Carries commands of this machine's programs over this node's session.
struct Carrier {
    node: Node,
    /// The peer's address, as it was configured.
    dials: String,
}

impl Commands for Carrier {
    fn carry(&self, command: Command, give: &mut dyn FnMut(Carriage) -> bool) -> Result<(), String> {
        let Command { to, bearer, first, fds } = command;
        let there = self.dials.to_socket_addrs().is_ok_and(|mut all| all.any(|addr| addr == to));
        if !there {
            return Err(format!("no session with {to}, but with {}", self.dials));
        }
        let deadline = Instant::now() + Duration::from_millis(CARRY_DEADLINE_MS);
        let stream = self.node.open(service::EXEC, bearer.encode(), deadline).map_err(|e| e.desc().to_owned())?;
        let fds = Maker::default().describe(fds, OnRefusal::Fail).map_err(|e| e.to_string())?;
        let (control, theirs) = UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
        let (ended, tell) = std::io::pipe().map_err(|e| format!("pipe: {e}"))?;
        if !give(Carriage { control, ended: ended.into() }) {
            return Err("it has not waited".into());
        }
        let attached = stream.attach_sending(pump(theirs.into(), SocketKind::Stream), First { bytes: first, fds });
        attached.tell_children_done(tell);
        Ok(())
    }
}

/// Runs the node until SIGTERM or SIGINT.
///
/// # Errors
/// One line: an address that is taken, a local socket that another daemon has, no io_uring.
pub(super) fn run(plan: Plan) -> OsResult<()> {
    memory::limit_arenas(plan.workers + ARENAS_BESIDE);
    // Before anything is opened for peers: without it no command could run.
    let exec = plan.exec.then(rexec::Server::new).transpose()?;
    let taken = daemon::take_signals()?;
    // Threads, and so behind the signals.
    logs::tell_what_is_left_out()?;
    audit::keep(plan.log.audit.as_deref())?;
    if let Err(e) = nofile::raise() {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
    plan.access.watch()?;
    if let Some(keys) = plan.access.keys() {
        keys.check_names();
    }
    let exports = plan.exports.map(Arc::new);
    let rights = plan.access.rights();
    let files = exports.clone().map(|e| Arc::new(Files(e, Arc::clone(&rights))) as Arc<dyn FileServer>);
    let files_again = exports.map(|e| e as Arc<dyn crate::fdpass::Files>);
    let fds = Maker { files: files_again, mounted: Some(Arc::new(SeenMounts)), ..plan.pass.into() };
    let uds = plan.uds.map(|(args, file)| Uds::prepare(args, file, plan.access.clone())).transpose()?;
    let services = Services {
        files: files.is_some(),
        refused: Seldom::default(),
        exec,
        uds: uds.as_ref().map(|uds| Arc::clone(&uds.far)),
        rights: Arc::clone(&rights),
    };
    let (workers, engine, access, handler) = (plan.workers, plan.engine, plan.access.links(), Arc::new(services));
    let grace = Duration::from_secs(plan.session.grace);
    let node = Node::start(NodeOptions { workers, engine, access, handler, files, grace, fds })?;
    let door = Door::bind(&plan.listen, node.clone())?;
    let local = uds.map(|uds| uds.open(&node)).transpose()?;
    let commands = plan.peer.clone().map(|dials| Arc::new(Carrier { node: node.clone(), dials }) as Arc<dyn Commands>);
    let _programs = plan.access.keys().and_then(|keys| serve_programs(keys, commands));
    let status = Status { serving: format!("serving on {:?}", door.addresses()), dials: plan.peer.clone() };
    tracing::info!("{}", status.serving);
    door.open()?;
    if let Some(peer) = plan.peer {
        keep_session(&node, peer)?;
    }
    let notify = Notify::from_env();
    notify.ready(&status.with(&node.peers()));
    status.keep_told(&notify, &node)?;
    let reload = || {
        notify.reloading();
        if let Some(Err(e)) = plan.access.keys().map(|keys| keys.reload()) {
            tracing::error!("keys and peers stay as they were: {e}");
        }
        reload_audit();
        if let Some(local) = &local {
            local.reload();
        }
        notify.ready(&status.with(&node.peers()));
    };
    daemon::wait_for_the_end(&taken, reload)?;
    notify.stopping();
    if let Some(local) = &local {
        local.handle.end_datagrams();
    }
    daemon::leave(&node);
    local.map_or(Ok(()), Local::close)
}

/// Opens the audit log anew, where node.toml says now.
fn reload_audit() {
    let kept = NodeConfig::load(&config_dir()).map_err(|e| e.to_string());
    let kept = kept.and_then(|config| audit::keep(config.log.audit.as_deref()).map_err(|e| e.to_string()));
    if let Err(e) = kept {
        tracing::error!("the audit log stays as it was: {e}");
    }
}

/// What a server does, in a line.
#[derive(Clone)]
struct Status {
    serving: String,
    /// The peer's address, if this node dials it.
    dials: Option<String>,
}

impl Status {
    fn with(&self, peers: &[Arc<Peer>]) -> String {
        let serving = &self.serving;
        let names: Vec<String> = peers.iter().map(ToString::to_string).collect();
        match (&names[..], &self.dials) {
            ([], None) => serving.clone(),
            ([], Some(addr)) => format!("{serving}; connecting to {addr}"),
            _ => format!("{serving}; session up with {}", names.join(", ")),
        }
    }

    /// Tells systemd whenever a session comes or goes: a thread of its own, until the node leaves.
    fn keep_told(&self, notify: &Notify, node: &Node) -> OsResult<()> {
        let (status, notify, node) = (self.clone(), notify.clone(), node.clone());
        let run = move || {
            let mut peers = Vec::new();
            while let Some(now) = node.wait_for_other_peers(&peers) {
                notify.status(&status.with(&now));
                peers = now;
            }
        };
        std::thread::Builder::new().name("status".into()).spawn(run).step("start a thread")?;
        Ok(())
    }
}

/// Both sides of the unix-socket service, before the local one is open.
struct Uds {
    args: UdsArgs,
    access: OfDaemon,
    options: near::Options,
    far: Arc<Far>,
}

impl Uds {
    fn prepare(args: UdsArgs, file: config::Uds, access: OfDaemon) -> OsResult<Self> {
        let options =
            args.options(&file, access.users()).map_err(|e| OsError::on("configuration:", e, Errno::EINVAL))?;
        let far = Arc::new(Far::new(options.policy.clone())?);
        Ok(Self { args, access, options, far })
    }

    fn open(self, node: &Node) -> OsResult<Local> {
        let Self { args, access, options, far } = self;
        let server = near::Server::bind(options, Arc::new(OnNode(node.clone())))?;
        let handle = server.handle();
        let served = std::thread::spawn(move || server.run());
        Ok(Local { _link: GuideLink::make(&args.socket), args, access, far, handle, served })
    }
}

/// The doors for programs of this machine.
struct Local {
    args: UdsArgs,
    access: OfDaemon,
    far: Arc<Far>,
    handle: near::Handle,
    served: JoinHandle<OsResult<()>>,
    _link: Option<GuideLink>,
}

impl Local {
    /// What node.toml says now, or as before when it can't be read.
    fn reload(&self) {
        let file = config_dir().join("node.toml");
        let read = NodeConfig::load(&config_dir()).map_err(|e| e.to_string());
        let named = |e| format!("{}: {e}", file.display());
        match read.and_then(|config| self.args.options(&config.uds, self.access.users()).map_err(named)) {
            Ok(options) => {
                self.far.set_policy(options.policy.clone());
                match self.handle.reload(options) {
                    Ok(()) => tracing::info!("reloaded: rules and exports"),
                    Err(e) => tracing::error!("reloaded: rules, and exports but for some: {e}"),
                }
            }
            Err(e) => tracing::error!("not reloaded, all stays as it is: {e}"),
        }
    }

    fn close(self) -> OsResult<()> {
        self.handle.stop();
        self.served.join().expect("a panic ends the process")
    }
}
