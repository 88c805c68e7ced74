//! A relay on tokio-uring: a task a direction, one thread, nothing shared between connections.
//!
//!   tokio-uring-relay LISTEN CONNECT      each a path or ADDR:PORT, one of each kind

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream, UnixStream};

enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl From<String> for Target {
    /// `ADDR:PORT` is an address, anything else a path, as for proxy-bench.
    fn from(text: String) -> Self {
        text.parse().map_or_else(|_| Self::Unix(text.into()), Self::Tcp)
    }
}

const BUFFER: usize = 64 << 10;

/// Two socket types with the same words.
macro_rules! copy {
    ($from:expr, $to:expr) => {{
        let (from, to) = ($from, $to);
        let mut buffer = vec![0; BUFFER];
        loop {
            let (result, got) = from.read(buffer).await;
            let Ok(count @ 1..) = result else { break };
            let (result, sent) = to.write_all(got.slice(..count)).await;
            buffer = sent.into_inner();
            if result.is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    }};
}

macro_rules! both_ways {
    ($near:expr, $far:expr) => {{
        let (near, far) = (Rc::new($near), Rc::new($far));
        let (near_in, far_out) = (Rc::clone(&near), Rc::clone(&far));
        tokio_uring::spawn(async move { copy!(near_in, far_out) });
        copy!(far, near)
    }};
}

fn main() -> ExitCode {
    let targets: Vec<Target> = std::env::args().skip(1).map(Target::from).collect();
    let result = match &targets[..] {
        [listen, connect] => run(listen, connect),
        _ => Err("usage: tokio-uring-relay LISTEN CONNECT".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tokio-uring-relay: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(listen: &Target, connect: &Target) -> Result<(), String> {
    tokio_uring::start(async {
        match (listen, connect) {
            (Target::Unix(path), Target::Tcp(far)) => {
                // tokio-uring's own asks for SO_REUSEPORT, which newer kernels refuse on a unix socket.
                let listener = tokio::net::UnixListener::bind(path).map_err(|e| format!("{}: {e}", path.display()))?;
                loop {
                    let near = listener.accept().await.and_then(|(near, _)| near.into_std());
                    let near = near.map_err(|e| format!("accept: {e}"))?;
                    // A ring waits by itself.
                    near.set_nonblocking(false).map_err(|e| format!("accept: {e}"))?;
                    let (near, far) = (UnixStream::from_std(near), *far);
                    tokio_uring::spawn(async move {
                        let Ok(far) = TcpStream::connect(far).await else { return };
                        let _ = far.set_nodelay(true);
                        both_ways!(near, far);
                    });
                }
            }
            (Target::Tcp(addr), Target::Unix(path)) => {
                let listener = TcpListener::bind(*addr).map_err(|e| format!("{addr}: {e}"))?;
                loop {
                    let (near, _) = listener.accept().await.map_err(|e| format!("accept: {e}"))?;
                    let _ = near.set_nodelay(true);
                    let path = path.clone();
                    tokio_uring::spawn(async move {
                        let Ok(far) = UnixStream::connect(path).await else { return };
                        both_ways!(near, far);
                    });
                }
            }
            _ => Err("this relay goes from a unix socket to TCP, or back".into()),
        }
    })
}
