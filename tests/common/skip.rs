//! How a test says that this machine lacks what its promise would take: `tools/test` counts these lines and shows them.

use std::fmt::Display;
use std::io::Write;

/// The calling test shows nothing, and returns.
pub(crate) fn skip(why: impl Display) {
    let thread = std::thread::current();
    // At the start of a line, whatever the harness has written. Not by eprintln!, which it keeps when a test passes.
    let line = format!("\nSKIPPED: {}: {why}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).expect("a test's stderr is open");
}
