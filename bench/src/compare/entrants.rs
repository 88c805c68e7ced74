//! Who is measured: floors, a bare chain, ours, and the proxies of others, each a near and a far process.
//!
//! ```text
//!   client ─ unix socket ─▶ near proxy ─ TCP over the veth ─▶ far proxy ─ unix socket ─▶ echo server
//! ```
//!
//! Every TCP connection has TCP_NODELAY, every proxy of others as many threads as there are processors if it has threads,
//! ours half as many, and no limit below what is asked of it. The configurations are part of what is compared: they are not for tuning.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::machines::{Machines, Service, Side, done};
use super::ours::{self, Build};
use super::records::Head;
use crate::target::Target;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Unix,
    Tcp,
    Bare,
    Ours { build: usize, plain: bool, engine: &'static str },
    Haproxy,
    Nginx,
    Socat,
    Ssh,
    TokioUring,
}

/// One of those that take part.
#[derive(Debug, Clone)]
pub(super) struct Entrant {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What of one run it can hold: idle connections.
    pub(super) idle_max: u32,
}

const HAPROXY: &str = "/usr/sbin/haproxy";
const NGINX: &str = "/usr/sbin/nginx";
const SOCAT: &str = "/usr/bin/socat";
const SSHD: &str = "/usr/sbin/sshd";
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The packages of the peers, and a file that proves each.
pub(super) const PACKAGES: [(&str, &str); 6] = [
    ("haproxy", HAPROXY),
    ("nginx", NGINX),
    ("libnginx-mod-stream", NGINX_STREAM),
    ("socat", SOCAT),
    ("openssh-server", SSHD),
    ("openssh-client", "/usr/bin/ssh"),
];

/// Everybody who can take part here, and a line for each who cannot.
pub(super) fn all(builds: &[Build]) -> (Vec<Entrant>, Vec<String>) {
    let mut all = vec![
        Entrant { name: "unix", kind: Kind::Unix, idle_max: 0 },
        Entrant { name: "tcp", kind: Kind::Tcp, idle_max: 0 },
        Entrant { name: "bare", kind: Kind::Bare, idle_max: 0 },
    ];
    let mut missing = Vec::new();
    for (number, build) in builds.iter().enumerate() {
        let engines: &[(&'static str, &'static str)] = build.entrants;
        all.extend(engines.iter().map(|(name, engine)| Entrant {
            name,
            kind: Kind::Ours { build: number, plain: build.plain, engine },
            idle_max: u32::MAX,
        }));
    }
    let mut peer = |name, kind, idle_max, needs: &[&str]| match needs.iter().find(|f| !Path::new(f).exists()) {
        None => all.push(Entrant { name, kind, idle_max }),
        Some(file) => missing.push(format!("{name}: {file} is not there (--install gets it)")),
    };
    peer("haproxy", Kind::Haproxy, 1000, &[HAPROXY]);
    peer("nginx", Kind::Nginx, 1000, &[NGINX, NGINX_STREAM]);
    peer("socat", Kind::Socat, 100, &[SOCAT]);
    peer("ssh", Kind::Ssh, 1000, &[SSHD, "/usr/bin/ssh"]);
    if uring_relay().is_ok_and(|relay| Path::new(&relay).exists()) {
        all.push(Entrant { name: "tokio-uring", kind: Kind::TokioUring, idle_max: 1000 });
    } else {
        missing.push(
            "tokio-uring: no tokio-uring-relay beside this program: bench/tokio-uring/Cargo.toml says how".into(),
        );
    }
    (all, missing)
}

fn own_path() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|e| format!("our own path: {e}"))
}

/// A program of a workspace of its own, which may have been built into our directory.
fn uring_relay() -> Result<String, String> {
    Ok(own_path()?.with_file_name("tokio-uring-relay").display().to_string())
}

/// What all entrants of a run share.
pub(super) struct Stage<'a> {
    pub(super) machines: &'a Machines,
    pub(super) builds: &'a [Build],
    pub(super) threads: usize,
    pub(super) our_threads: usize,
    /// The echo server's address over TCP.
    pub(super) tcp: String,
    next_port: std::cell::Cell<u16>,
}

/// An entrant that runs.
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) client: Side,
    sides: Vec<(Side, Service)>,
    /// The shim and the daemon's socket, for clients that connect by it.
    pub(super) shim: Option<(PathBuf, PathBuf)>,
}

impl Live {
    /// Its processes, as measurements want them named.
    pub(super) fn watch(&self) -> Vec<String> {
        self.sides.iter().map(|(side, service)| format!("{}={}", side.word(), service.pid())).collect()
    }

    /// What a program of it said that has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        let say = |(side, service): &mut (Side, Service)| {
            service.has_ended().then(|| format!("{}: {}", side.word(), service.said()))
        };
        self.sides.iter_mut().find_map(say)
    }
}

impl<'a> Stage<'a> {
    pub(super) fn new(machines: &'a Machines, builds: &'a [Build], head: &Head, tcp: String) -> Self {
        let (threads, our_threads) = (head.threads, head.our_threads);
        Self { machines, builds, threads, our_threads, tcp, next_port: std::cell::Cell::new(7100) }
    }

    pub(super) fn echo(&self) -> PathBuf {
        self.machines.work.join("far/echo.sock")
    }

    fn port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(port + 1);
        port
    }

    /// Starts it, and waits until a byte passes.
    ///
    /// # Errors
    /// One line, with what its programs said.
    pub(super) fn start(&self, entrant: &Entrant) -> Result<Live, String> {
        let port = self.port();
        let name = format!("{}-{port}", entrant.name);
        let mut live = match &entrant.kind {
            Kind::Unix => self.floor(Target::Unix(self.echo()), Side::Far),
            Kind::Tcp => {
                self.floor(Target::Tcp(self.tcp.parse().map_err(|e| format!("{}: {e}", self.tcp))?), Side::Near)
            }
            Kind::Bare => self.relay(&own_path()?.display().to_string(), &["relay"], &name, port)?,
            Kind::TokioUring => self.relay(&uring_relay()?, &[], &name, port)?,
            Kind::Ours { build, plain, engine } => {
                let (near, far, shim) = ours::start(self, &self.builds[*build], &name, port, *plain, engine)?;
                Live { shim: Some(shim), ..self.pair(&name, near, far) }
            }
            Kind::Haproxy => self.haproxy(&name, port)?,
            Kind::Nginx => self.nginx(&name, port)?,
            Kind::Socat => self.socat(&name, port)?,
            Kind::Ssh => self.ssh(&name, port)?,
        };
        self.wait(&mut live).map_err(|e| format!("{}: {e}", entrant.name))?;
        Ok(live)
    }

    fn floor(&self, target: Target, client: Side) -> Live {
        Live { target, client, sides: Vec::new(), shim: None }
    }

    fn pair(&self, name: &str, near: Service, far: Service) -> Live {
        let sides = vec![(Side::Near, near), (Side::Far, far)];
        Live { target: Target::Unix(self.socket(name)), client: Side::Near, sides, shim: None }
    }

    /// Where clients of that proxy connect.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.machines.work.join("near").join(format!("{name}.sock"))
    }

    fn file(&self, name: &str, text: &str) -> Result<String, String> {
        let path = self.machines.work.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// The same program on both machines, with words of its own on each.
    fn two(&self, name: &str, program: &str, near: &[String], far: &[String]) -> Result<Live, String> {
        let start = |side: Side, words: &[String]| {
            self.machines.start(&format!("{name}-{}", side.word()), self.machines.command(side, program).args(words))
        };
        // The far one first: the other may want to reach it at once.
        let far = start(Side::Far, far)?;
        Ok(self.pair(name, start(Side::Near, near)?, far))
    }

    fn relay(&self, program: &str, first: &[&str], name: &str, port: u16) -> Result<Live, String> {
        let tcp = format!("{}:{port}", Side::Far.address());
        let words = |from: &str, to: &str| first.iter().chain(&[from, to]).map(ToString::to_string).collect::<Vec<_>>();
        let (socket, echo) = (self.socket(name).display().to_string(), self.echo().display().to_string());
        self.two(name, program, &words(&socket, &tcp), &words(&tcp, &echo))
    }

    fn haproxy(&self, name: &str, port: u16) -> Result<Live, String> {
        let text = |bind: &str, server: &str| {
            format!(
                "global\n maxconn 4000\n nbthread {}\ndefaults\n mode tcp\n maxconn 4000\n timeout connect 5s\n \
                 timeout client 1h\n timeout server 1h\nlisten all\n bind {bind}\n server there {server}\n",
                self.threads
            )
        };
        let tcp = format!("{}:{port}", Side::Far.address());
        let near = self.file(&format!("{name}-near.cfg"), &text(&self.socket(name).display().to_string(), &tcp))?;
        let far = self.file(&format!("{name}-far.cfg"), &text(&tcp, &self.echo().display().to_string()))?;
        let words = |file: String| ["-db", "-f", &file].map(str::to_string);
        self.two(name, HAPROXY, &words(near), &words(far))
    }

    fn nginx(&self, name: &str, port: u16) -> Result<Live, String> {
        let work = self.machines.work.display();
        let text = |side: &str, listen: &str, pass: &str| {
            format!(
                "load_module {NGINX_STREAM};\nuser root;\ndaemon off;\nworker_processes {};\nworker_rlimit_nofile 20000;\n\
                 pid {work}/{name}-{side}.pid;\nerror_log stderr;\nevents {{ worker_connections 8000; }}\nstream {{\n \
                 tcp_nodelay on;\n proxy_timeout 1h;\n server {{ listen {listen} backlog=4096; proxy_pass {pass}; }}\n}}\n",
                self.threads
            )
        };
        let tcp = format!("{}:{port}", Side::Far.address());
        let socket = format!("unix:{}", self.socket(name).display());
        let near = self.file(&format!("{name}-near.conf"), &text("near", &socket, &tcp))?;
        let echo = format!("unix:{}", self.echo().display());
        let far = self.file(&format!("{name}-far.conf"), &text("far", &tcp, &echo))?;
        let words = |file: String| ["-c", &file].map(str::to_string);
        self.two(name, NGINX, &words(near), &words(far))
    }

    fn socat(&self, name: &str, port: u16) -> Result<Live, String> {
        let address = Side::Far.address();
        let near = [
            format!("UNIX-LISTEN:{},fork,backlog=4096", self.socket(name).display()),
            format!("TCP4:{address}:{port},nodelay"),
        ];
        let far = [
            format!("TCP4-LISTEN:{port},bind={address},fork,reuseaddr,nodelay,backlog=4096"),
            format!("UNIX-CONNECT:{}", self.echo().display()),
        ];
        self.two(name, SOCAT, &near, &far)
    }

    /// A server with keys made for the run, and one client that forwards the socket.
    fn ssh(&self, name: &str, port: u16) -> Result<Live, String> {
        let key = |who: &str| -> Result<(PathBuf, String), String> {
            let path = self.machines.work.join(format!("{name}-{who}"));
            let mut make = std::process::Command::new("ssh-keygen");
            done(make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path))?;
            let public = path.with_extension("pub");
            Ok((path, fs::read_to_string(&public).map_err(|e| format!("{}: {e}", public.display()))?))
        };
        let ((host, host_public), (user, user_public)) = (key("host")?, key("user")?);
        let address = Side::Far.address();
        let authorized = self.file(&format!("{name}-authorized"), &user_public)?;
        fs::set_permissions(&authorized, fs::Permissions::from_mode(0o600))
            .map_err(|e| format!("{authorized}: {e}"))?;
        let known = self.file(&format!("{name}-known"), &format!("[{address}]:{port} {host_public}"))?;
        let server = self.file(
            &format!("{name}-sshd"),
            &format!(
                "ListenAddress {address}:{port}\nHostKey {}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
                 PidFile none\nPermitRootLogin prohibit-password\nAllowStreamLocalForwarding yes\nUseDNS no\nLogLevel ERROR\n",
                host.display()
            ),
        )?;
        let far = self
            .machines
            .start(&format!("{name}-far"), self.machines.command(Side::Far, SSHD).args(["-D", "-e", "-f", &server]))?;
        wait_for_tcp(self.machines, &format!("{address}:{port}"))?;
        let forward = format!("{}:{}", self.socket(name).display(), self.echo().display());
        let mut client = self.machines.command(Side::Near, "ssh");
        client.args(["-F", "/dev/null", "-N", "-c", "aes128-gcm@openssh.com", "-p", &port.to_string(), "-L", &forward]);
        client.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ExitOnForwardFailure=yes"]);
        client.args(["-o", "Compression=no", "-o", "IdentitiesOnly=yes", "-o", &format!("UserKnownHostsFile={known}")]);
        client.arg("-i").arg(user).arg(format!("root@{address}"));
        let near = self.machines.start(&format!("{name}-near"), &mut client)?;
        Ok(self.pair(name, near, far))
    }

    /// Until a byte comes back by it.
    fn wait(&self, live: &mut Live) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let tried = match &live.target {
                // The veth is in other namespaces; the server has said that it listens.
                Target::Tcp(_) => return Ok(()),
                target => crate::churn::visit(target),
            };
            let Err(why) = tried else { return Ok(()) };
            let ended = live.sides.iter_mut().any(|(_, service)| service.has_ended());
            if ended || Instant::now() > end {
                let said: Vec<String> =
                    live.sides.iter().map(|(side, s)| format!("; {}: {}", side.word(), s.said())).collect();
                return Err(format!("{why}{}", said.concat()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn wait_for_tcp(machines: &Machines, address: &str) -> Result<(), String> {
    let (host, port) = address.rsplit_once(':').ok_or("ADDR:PORT")?;
    let script =
        format!("for i in $(seq 100); do (: </dev/tcp/{host}/{port}) 2>/dev/null && exit 0; sleep 0.05; done; exit 1");
    machines.run(Side::Far, &["bash", "-c", &script]).map_err(|_| format!("nobody listens at {address}"))
}
