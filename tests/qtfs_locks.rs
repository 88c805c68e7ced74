//! Locks of open files (F_OFD_SETLK), taken by real processes on a mount. Needs root, /dev/fuse and mount namespaces.

#[path = "common/far.rs"]
mod far;
#[path = "common/lab.rs"]
mod lab;
#[path = "common/own_key.rs"]
mod own_key;
#[path = "common/scratch.rs"]
mod scratch;
#[path = "common/shell.rs"]
mod shell;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use farside::sys::file::ofd_lock;
use lab::{Backing, Lab};
use shell::{has, shell};

/// A Python process that runs one line after the other.
struct Program {
    child: Child,
    lines: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const SHELL: &str = r#"
import errno, fcntl, os, struct, sys
def lock(fd, start=0, length=0, kind=fcntl.F_WRLCK, command=fcntl.F_OFD_SETLK):
    fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, 0, start, length, 0))
def opened(path):
    return os.open(path, os.O_RDWR)
for line in sys.stdin:
    try:
        exec(line)
        print('done', flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
"#;

impl Program {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", SHELL]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, lines, answers }
    }

    /// "done", or the name of the errno.
    fn runs(&mut self, line: &str) -> String {
        writeln!(self.lines, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().into()
    }

    #[track_caller]
    fn does(&mut self, line: &str) {
        assert_eq!(self.runs(line), "done", "{line}");
    }

    fn killed(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a host process is told about `start`..`start + 1` of the file.
fn is_free_on_the_host(path: &Path, start: i64) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut lock = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap(),
        l_whence: 0,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    ofd_lock(file.as_fd(), libc::F_OFD_GETLK, &mut lock).unwrap();
    i32::from(lock.l_type) == libc::F_UNLCK
}

/// The kernel tells of a last close after it has let the program go.
#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Files {
    lab: Lab,
    /// The file as programs of the near side open it.
    open: String,
}

impl Files {
    fn new() -> Option<Self> {
        if !has("python3") {
            return None;
        }
        let lab = Lab::new(Backing::Tmpfs);
        fs::write(lab.src.join("f"), b"0123456789").unwrap();
        let open = format!("opened({:?})", lab.dst.join("f"));
        Some(Self { lab, open })
    }

    fn is_free(&self, start: i64) -> bool {
        is_free_on_the_host(&self.lab.src.join("f"), start)
    }
}

#[test]
fn an_open_files_lock_ends_with_its_killed_holder() {
    let Some(files) = Files::new() else { return };
    let (mut holder, mut other) = (Program::start(), Program::start());
    holder.does(&format!("fd = {}; lock(fd)", files.open));
    other.does(&format!("fd = {}", files.open));
    assert_eq!(other.runs("lock(fd)"), "EAGAIN");
    assert!(!files.is_free(0), "a host process meets the lock");
    holder.killed();
    soon("the host's file is free", || files.is_free(0));
    other.does("lock(fd)");
    // A lock that waits is woken by the death too.
    let mut third = Program::start();
    third.does(&format!("fd = {}", files.open));
    std::thread::scope(|s| {
        let waiter = s.spawn(move || third.runs("lock(fd, command=fcntl.F_OFD_SETLKW)"));
        other.killed();
        assert_eq!(waiter.join().unwrap(), "done");
    });
    soon("the host's file is free", || files.is_free(0));
}

#[test]
fn an_open_files_lock_ends_with_its_last_close_and_not_before() {
    let Some(files) = Files::new() else { return };
    let mut program = Program::start();
    program.does(&format!("fd = {}; lock(fd); copy = os.dup(fd); os.close(fd)", files.open));
    // Opening and closing the file once more, which would end a POSIX lock.
    program.does(&format!("os.close({})", files.open));
    assert!(!files.is_free(0), "the copy keeps it");
    program.does("os.close(copy)");
    soon("the last close gave it back", || files.is_free(0));
    // An unlocked file that stays open is free as well.
    program.does(&format!("fd = {}; lock(fd); lock(fd, kind=fcntl.F_UNLCK)", files.open));
    assert!(files.is_free(0));
}

#[test]
fn an_open_files_lock_that_was_inherited_lives_with_the_heir() {
    let Some(files) = Files::new() else { return };
    let mut parent = Program::start();
    parent.does(&format!("r, w = os.pipe(); fd = {}; lock(fd)", files.open));
    parent.does("child = os.fork() or (os.close(w), os.read(r, 1), os._exit(0))");
    parent.does("os.close(fd)");
    assert!(!files.is_free(0), "the child has the file open");
    parent.does("os.write(w, b'x'); os.waitpid(child, 0)");
    soon("the child's end gave it back", || files.is_free(0));
}

#[test]
fn two_open_files_of_one_process_have_locks_of_their_own() {
    let Some(files) = Files::new() else { return };
    let mut program = Program::start();
    program.does(&format!("a = {0}; b = {0}; lock(a, 0, 2); lock(b, 4, 2)", files.open));
    assert_eq!(program.runs("lock(b, 1, 1)"), "EAGAIN", "they meet each other's");
    program.does("os.close(a)");
    soon("what the first had is free", || files.is_free(0) && files.is_free(1));
    assert!(!files.is_free(4) && !files.is_free(5), "the second's lock stays");
    program.does("lock(b, 1, 1)");
    // Another process's handle goes, and takes nothing with it.
    let mut other = Program::start();
    other.does(&format!("c = {}; lock(c, 8, 1)", files.open));
    other.killed();
    soon("what the other had is free", || files.is_free(8));
    assert!(!files.is_free(1) && !files.is_free(4));
    program.killed();
    soon("all is free", || files.is_free(1) && files.is_free(4));
}

#[test]
fn a_posix_lock_outlives_the_open_file_that_another_process_closes() {
    let Some(files) = Files::new() else { return };
    let mut program = Program::start();
    // The parent closes what it locked through; the child's lock came through the same open file.
    program.does(&format!("r, w = os.pipe(); s, t = os.pipe(); fd = {}", files.open));
    let child = "(lock(fd, 2, 1, command=fcntl.F_SETLK), os.write(t, b'x'), os.close(w), os.read(r, 1), os._exit(0))";
    program.does(&format!("child = os.fork() or {child}"));
    program.does("os.read(s, 1); lock(fd, 0, 1, command=fcntl.F_SETLK); os.close(fd)");
    assert!(files.is_free(0), "close(2) gave the parent's back before it returned");
    assert!(!files.is_free(2), "the child's stays");
    program.does("os.write(w, b'x'); os.waitpid(child, 0)");
    soon("the child's end gave its own back", || files.is_free(2));
    // One owner, two open files: one set of locks, whichever it came through.
    program.does(&format!("a = {0}; b = {0}; lock(a, 0, 4, command=fcntl.F_SETLK)", files.open));
    program.does("lock(b, 2, 4, command=fcntl.F_SETLK); lock(b, 0, 1, fcntl.F_UNLCK, fcntl.F_SETLK)");
    assert!(files.is_free(0) && !files.is_free(1) && !files.is_free(5));
    program.does("os.close(a)");
    assert!(files.is_free(1) && files.is_free(5), "closing any of them gives all back");
}

/// More deaths than a link has room for locks (`LOCK_FILES_MAX`).
#[test]
fn thousands_of_killed_holders_leave_room_for_the_next() {
    let Some(files) = Files::new() else { return };
    let dst = &files.lab.dst;
    shell(&files.lab.src, "for n in $(seq 0 99); do : > g$n; done");
    let mut program = Program::start();
    program.does(&format!("names = [{:?} + '/g' + str(n) for n in range(100)]", dst));
    program.does("all = lambda: [lock(opened(name)) for name in names] and os.kill(os.getpid(), 9)");
    for round in 0..60 {
        // Each takes a hundred and dies; the next begins when the kernel has told the last one's end.
        program.does("child = os.fork() or all()");
        program.does("status = os.waitpid(child, 0)[1]; status == 9 or os.abort()");
        soon(&format!("round {round} is free"), || {
            (0..100).all(|n| is_free_on_the_host(&files.lab.src.join(format!("g{n}")), 0))
        });
    }
    program.does(&format!("fd = {}; lock(fd)", files.open));
}

#[test]
fn an_image_that_a_killed_qemu_had_open_can_be_used_again() {
    if !["qemu-img", "qemu-io"].iter().all(|program| has(program)) {
        return;
    }
    let lab = Lab::new(Backing::Tmpfs);
    let image = lab.dst.join("disk.qcow2");
    shell(&lab.dst, "qemu-img create -q -f qcow2 disk.qcow2 16M");
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2"]).arg(&image).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = command.spawn().unwrap();
    let mut answers = BufReader::new(qemu.stdout.take().unwrap());
    writeln!(qemu.stdin.as_ref().unwrap(), "length").unwrap();
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    assert!(line.contains("16"), "{line}");
    let resize = |dir: &Path| {
        let mut command = Command::new("qemu-img");
        command.args(["resize", "-q", "disk.qcow2", "+1M"]).current_dir(dir).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(!resize(&lab.src) && !resize(&lab.dst), "it is in use");
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    soon("the host resizes it", || resize(&lab.src));
    soon("so does another program here", || resize(&lab.dst));
}
