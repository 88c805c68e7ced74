//! A command's files, on file systems of every kind: `rexec/files.py` says what is promised.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[path = "common/scratch.rs"]
mod scratch;

/// A node of this machine's, which runs its commands and has its files.
struct Node {
    dir: PathBuf,
    child: Child,
    addr: String,
}

impl Node {
    #[track_caller]
    fn start() -> Self {
        // On the disk: /tmp may be memory.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rexec-files-{}", std::process::id()));
        scratch::remove_at_exit(&dir);
        for made in ["etc", "run", "disk", "export", "qtfs", "memory", "overlay", "bindfs"] {
            std::fs::DirBuilder::new().mode(0o755).recursive(true).create(dir.join(made)).unwrap();
        }
        let toml = format!("listen = '127.0.0.1:0'\n[[export]]\npath = '{}/export'\naccess = 'rw'\n", dir.display());
        std::fs::write(dir.join("etc/node.toml"), toml).unwrap();
        let mut host = Self::command(&dir, env!("CARGO_BIN_EXE_farside"));
        let mut child = host.arg("host").stderr(Stdio::piped()).spawn().expect("start farside host");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let serving = lines.find_map(|line| Some(line.split_once("serving on [")?.1.split(']').next()?.to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        Self { dir, child, addr: serving.expect("farside host serves") }
    }

    fn command(dir: &Path, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("FARSIDE_CONFIG_DIR", dir.join("etc")).env("FARSIDE_RUN_DIR", dir.join("run"));
        command.env_remove("FARSIDE_ENGINE").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a mount namespace of its own, so that nothing is left of it.
const MOUNTS: &str = "
set -e
cd \"$1\"
mount -t tmpfs memory memory
mkdir memory/upper memory/work
mount -t overlay -o lowerdir=disk,upperdir=memory/upper,workdir=memory/work overlay overlay
\"$2\" \"$1/export\" \"$1/qtfs\" -o host=$3
bindfs -o direct_io disk bindfs
trap 'umount bindfs qtfs' EXIT
/usr/bin/python3 \"$4\" disk memory overlay qtfs bindfs
";

#[test]
fn a_file_is_read_once_and_written_where_it_would_be_on_every_engine_and_file_system() {
    let node = Node::start();
    let mut script = Node::command(&node.dir, "unshare");
    script.args(["-m", "--propagation", "private", "bash", "-c", MOUNTS, "mounts"]).arg(&node.dir);
    script.args([env!("CARGO_BIN_EXE_mount_qtfs"), &node.addr]);
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rexec/files.py"));
    script.env("REXEC", env!("CARGO_BIN_EXE_rexec")).env("CMD_NET_ADDR", format!("tcp://{}", node.addr));
    // Both machines are this one: its own directory is there.
    let done = script.current_dir("/").output().expect("run unshare");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(said(&done.stdout).ends_with("KEPT\n"), "{}\n{}", said(&done.stdout), said(&done.stderr));
}
