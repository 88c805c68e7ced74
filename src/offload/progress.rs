//! How far a long copy is: a bar on a terminal, a line every tenth elsewhere.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const BAR_CELLS: u64 = 24;
const REDRAW: Duration = Duration::from_millis(100);

pub struct Progress {
    name: &'static str,
    total: u64,
    done: u64,
    tenths: u64,
    drawn: Instant,
    terminal: bool,
}

impl Progress {
    pub fn new(name: &'static str, total: u64) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { name, total: total.max(1), done: 0, tenths: 0, drawn: Instant::now(), terminal }
    }

    pub fn advance(&mut self, bytes: u64, at: &Path) {
        self.done = (self.done + bytes).min(self.total);
        if self.terminal {
            if self.drawn.elapsed() >= REDRAW {
                self.drawn = Instant::now();
                self.draw(&at.display().to_string());
            }
        } else if self.done * 10 / self.total > self.tenths {
            self.tenths = self.done * 10 / self.total;
            println!("{}: {} of {} MB", self.name, self.done >> 20, self.total >> 20);
        }
    }

    pub fn end(&mut self) {
        if self.terminal {
            self.done = self.total;
            self.draw("");
            println!();
        }
    }

    fn draw(&self, at: &str) {
        let full = usize::try_from(self.done * BAR_CELLS / self.total).unwrap_or(0);
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(usize::try_from(BAR_CELLS).unwrap_or(0) - full));
        let tail: String = at.chars().take(60).collect();
        print!("\r\x1b[K{} [{bar}] {:3}% {tail}", self.name, self.done * 100 / self.total);
        // A terminal that has gone away does not end the copy.
        let _ = std::io::stdout().flush();
    }
}
