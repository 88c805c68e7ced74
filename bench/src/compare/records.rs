//! What a run found, round by round, and its file: a line of JSON for the run, and one for each measurement.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

pub(crate) const FILE: &str = "compare.jsonl";

/// The first line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    /// Of a minute, before the run: what else the machine did.
    pub(crate) load: String,
    #[serde(default)]
    pub(crate) load_after: String,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    /// Of a proxy of others.
    pub(crate) threads: usize,
    #[serde(default)]
    pub(crate) our_threads: usize,
    /// Who did not take part, and why.
    pub(crate) missing: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) cell: String,
    pub(crate) entrant: String,
    pub(crate) round: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// A row of the table of targets, as the page shows it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Judged {
    pub(crate) what: String,
    pub(crate) target: String,
    pub(crate) measured: String,
    pub(crate) interval: String,
    pub(crate) verdict: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Run(Head),
    Measured(Record),
    Judged(Judged),
}

#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) head: Head,
    pub(crate) all: Vec<Record>,
    pub(crate) judged: Vec<Judged>,
}

impl Records {
    /// The figure of each round in which it was measured.
    pub(crate) fn values(&self, cell: &str, entrant: &str, figure: &str) -> BTreeMap<u32, f64> {
        let of = |r: &&Record| r.cell == cell && r.entrant == entrant;
        self.all.iter().filter(of).filter_map(|r| Some((r.round, r.outcome.as_ref()?.figure(figure)?))).collect()
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        let said =
            |r: &Record| Some(format!("{}, {}, round {}: {}", r.cell, r.entrant, r.round + 1, r.error.as_ref()?));
        self.all.iter().filter_map(said).collect()
    }

    /// # Errors
    /// One line.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), String> {
        let path = dir.join(FILE);
        let said = |e: std::io::Error| format!("{}: {e}", path.display());
        fs::create_dir_all(dir).map_err(said)?;
        let mut file = std::io::BufWriter::new(fs::File::create(&path).map_err(said)?);
        let lines = std::iter::once(Line::Run(self.head.clone()))
            .chain(self.all.iter().cloned().map(Line::Measured))
            .chain(self.judged.iter().cloned().map(Line::Judged));
        for line in lines {
            writeln!(file, "{}", serde_json::to_string(&line).expect("names and numbers")).map_err(said)?;
        }
        file.flush().map_err(said)
    }

    /// # Errors
    /// One line: which file, which line.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut records = Self::default();
        for (number, line) in text.lines().enumerate() {
            // A measurement's own `--json`, without a run around it.
            if let Ok(outcome) = serde_json::from_str::<Outcome>(line) {
                let (cell, entrant) = (outcome.what.clone(), outcome.on.clone());
                let round = records.all.iter().filter(|r| r.cell == cell && r.entrant == entrant).count();
                let round = u32::try_from(round).unwrap_or(u32::MAX);
                records.all.push(Record { cell, entrant, round, outcome: Some(outcome), error: None });
                continue;
            }
            match serde_json::from_str(line).map_err(|e| format!("{}:{}: {e}", path.display(), number + 1))? {
                Line::Run(head) => records.head = head,
                Line::Measured(record) => records.all.push(record),
                Line::Judged(judged) => records.judged.push(judged),
            }
        }
        Ok(records)
    }
}
