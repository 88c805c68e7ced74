//! A helper program that says words on stdout and waits for a line on stdin: how a test acts at the right moment.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longer than any promise takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Talk {
    name: String,
    child: Child,
    lines: Receiver<String>,
    errors: Option<std::thread::JoinHandle<String>>,
    heard: Vec<String>,
}

impl Talk {
    pub fn start(mut command: Command, name: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run tools/lab");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut err = child.stderr.take().expect("a pipe");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in out.split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let errors = std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = err.read_to_end(&mut all);
            String::from_utf8_lossy(&all).into_owned()
        });
        Self { name: name.into(), child, lines, errors: Some(errors), heard: Vec::new() }
    }

    /// The next line that begins with `word`.
    #[track_caller]
    pub fn hear(&mut self, word: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(word) => return line,
                Ok(line) => self.heard.push(line),
                Err(e) => {
                    let report = self.report();
                    panic!("{}: '{word}' was never said: {e}\n{report}", self.name)
                }
            }
        }
    }

    pub fn say(&mut self, line: &str) {
        // One that has ended shows it at the next `hear` or at `ends`.
        let _ = writeln!(self.child.stdin.as_mut().expect("a pipe"), "{line}");
    }

    /// It ends, and by itself, and with success. Returns its other lines.
    #[track_caller]
    pub fn ends(mut self) -> String {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().expect("wait for a helper") {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let report = self.report();
        match status {
            Some(status) => assert!(status.success(), "{}: {status}\n{report}", self.name),
            None => panic!("{}: did not end within {DEADLINE:?}\n{report}", self.name),
        }
        println!("{}: {report}", self.name);
        report
    }

    fn report(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a process of the promise keeps open must not keep the test.
        let deadline = Instant::now() + Duration::from_secs(2);
        let errors = self.errors.take();
        while errors.as_ref().is_some_and(|e| !e.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.heard.extend(self.lines.try_iter());
        let errors = errors.filter(|e| e.is_finished()).and_then(|e| e.join().ok()).unwrap_or_default();
        format!("{}\n{errors}", self.heard.join("\n"))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
