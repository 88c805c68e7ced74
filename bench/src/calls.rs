//! System calls of threads, counted by the kernel's tracepoint raw_syscalls:sys_enter through perf_event_open(2).
//!
//! While it counts, every system call of the machine takes the slow way in: the counts are exact, times beside them are
//! not to be used.

use std::collections::HashSet;
use std::fs;

use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

/// Where tracefs is, and where it was once.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

pub(crate) struct Calls {
    counters: Vec<Counter>,
    before: u64,
}

impl Calls {
    /// Counts from now on, for these threads and all that they start.
    ///
    /// # Errors
    /// One line: why this kernel, or this user, cannot.
    pub(crate) fn count(threads: &HashSet<i32>) -> Result<Self, String> {
        let event = Tracepoint::with_id(tracepoint()?);
        let mut counters = Vec::new();
        for thread in threads {
            let mut builder = Builder::new(event);
            builder.observe_pid(*thread).any_cpu().inherit(true).include_kernel().enabled(true);
            match builder.build() {
                Ok(counter) => counters.push(counter),
                // It has just ended.
                Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(e) => return Err(format!("perf_event_open: {e}")),
            }
        }
        Ok(Self { counters, before: 0 })
    }

    /// What was until now does not count.
    ///
    /// # Errors
    /// The kernel's no.
    pub(crate) fn begin(&mut self) -> Result<(), String> {
        self.before = self.read()?;
        Ok(())
    }

    /// # Errors
    /// The kernel's no.
    pub(crate) fn stop(mut self) -> Result<u64, String> {
        Ok(self.read()? - self.before)
    }

    fn read(&mut self) -> Result<u64, String> {
        let mut all = 0;
        for counter in &mut self.counters {
            all += counter.read().map_err(|e| format!("read a counter of system calls: {e}"))?;
        }
        Ok(all)
    }
}

fn tracepoint() -> Result<u64, String> {
    for dir in TRACEFS {
        if let Ok(text) = fs::read_to_string(format!("{dir}/events/raw_syscalls/sys_enter/id")) {
            return text.trim().parse().map_err(|_| format!("{text:?} is no tracepoint's number"));
        }
    }
    Err(format!("no tracefs at {} (root, and a kernel with CONFIG_FTRACE_SYSCALLS)", TRACEFS[0]))
}
