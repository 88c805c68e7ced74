//! Without io_uring: what a program does and says where a seccomp filter refuses it, as a container's does.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::OnceLock;

#[path = "common/scratch.rs"]
mod scratch;

const SETUP: u32 = 425; // io_uring_setup, the same on every architecture.

/// A key and a /run of this test's own: the machine's stay as they are.
fn own_directories() -> [(&'static str, PathBuf); 2] {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("farside-engine-{}", std::process::id()));
        scratch::remove_at_exit(&dir);
        std::fs::DirBuilder::new().mode(0o755).recursive(true).create(dir.join("run")).unwrap();
        dir
    });
    [("FARSIDE_CONFIG_DIR", dir.join("etc")), ("FARSIDE_RUN_DIR", dir.join("run"))]
}

/// The program's io_uring_setup fails with `errno`.
fn refusing(program: &str, errno: i32) -> Command {
    let mut command = Command::new(program);
    command.envs(own_directories()).env_remove("FARSIDE_ENGINE").env_remove("RUST_LOG");
    let answer = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let word = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let mut filter = [
        // seccomp_data begins with the call's number.
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SETUP),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let len = u16::try_from(filter.len()).expect("four");
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        // SAFETY: the program points to `filter`, which outlives the calls; they copy it.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: two system calls, no allocation.
    unsafe { command.pre_exec(install) };
    command
}

fn server(mut command: Command) -> Server {
    command.env("CMD_NET_ADDR", "tcp://127.0.0.1:0").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start rexec_server");
    let lines = BufReader::new(child.stderr.take().expect("a pipe"));
    Server { child, lines }
}

struct Server {
    child: Child,
    lines: BufReader<ChildStderr>,
}

impl Server {
    fn says(&mut self, word: &str) -> String {
        let mut all = String::new();
        loop {
            let before = all.len();
            assert!(self.lines.read_line(&mut all).unwrap() > 0, "'{word}' was never said:\n{all}");
            if all[before..].contains(word) {
                return all[before..].trim_end().into();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn refused(errno: i32, wish: &str) -> String {
    let mut command = refusing(env!("CARGO_BIN_EXE_rexec_server"), errno);
    let Output { status, stderr, .. } =
        command.args(["--engine", wish]).env("CMD_NET_ADDR", "tcp://127.0.0.1:0").output().expect("run rexec_server");
    assert!(!status.success());
    let said = String::from_utf8(stderr).unwrap();
    said.lines().last().unwrap().to_owned()
}

#[test]
fn without_io_uring_a_server_serves_by_epoll_and_says_why() {
    for (errno, why) in [(libc::EPERM, "not permitted"), (libc::ENOSYS, "not in this kernel"), (libc::ENOMEM, "locked")]
    {
        let mut server = server(refusing(env!("CARGO_BIN_EXE_rexec_server"), errno));
        let line = server.says("engine: ");
        assert!(line.contains("engine: epoll (io_uring: ") && line.contains(why), "{line}");
        let line = server.says("serving on");
        let port = line.rsplit(':').next().unwrap().trim_end_matches(']');
        let mut rexec = refusing(env!("CARGO_BIN_EXE_rexec"), errno);
        rexec.env("CMD_NET_ADDR", format!("tcp://127.0.0.1:{port}"));
        let ran = rexec.args(["/bin/sh", "-c", "cat; exit 7"]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(ran.status.code(), Some(7), "{}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn who_wants_io_uring_and_gets_none_hears_why_in_one_line() {
    let words = [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS"), (libc::ENOMEM, "ENOMEM")];
    let advices = [(libc::EPERM, "seccomp filter"), (libc::ENOSYS, "5.10"), (libc::ENOMEM, "ulimit -l")];
    for wish in ["io_uring", "io_uring-basic"] {
        for ((errno, word), (_, advice)) in words.into_iter().zip(advices) {
            let line = refused(errno, wish);
            let whole = line.starts_with("rexec_server: ") && line.contains(word) && line.contains(advice);
            // The machine's own sysctl is named where it is what refuses.
            let whole = whole || (errno == libc::EPERM && line.contains("kernel.io_uring_disabled"));
            assert!(whole && line.contains("--engine auto"), "{line}");
        }
    }
}

#[test]
fn a_wish_that_nobody_knows_is_refused() {
    let mut rexec = Command::new(env!("CARGO_BIN_EXE_rexec"));
    rexec.env("FARSIDE_ENGINE", "fast").env("CMD_NET_ADDR", "tcp://127.0.0.1:1");
    let ran = rexec.arg("true").output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(255) && said.contains("FARSIDE_ENGINE=fast: write auto"), "{said}");
    let mut server = Command::new(env!("CARGO_BIN_EXE_rexec_server"));
    let ran = server.args(["--engine", "fast"]).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(!ran.status.success() && said.contains("write auto, io_uring"), "{said}");
}

#[test]
fn a_server_says_which_engine_it_has() {
    for (wish, line) in
        [("auto", "io_uring"), ("io_uring", "io_uring"), ("io_uring-basic", "5.10 operations"), ("epoll", "epoll")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rexec_server"));
        command.envs(own_directories()).env("FARSIDE_ENGINE", wish).env_remove("RUST_LOG");
        let said = server(command).says("engine: ");
        assert!(said.contains(line), "{wish}: {said}");
    }
}
