//! The tables for people: every cell with its medians, and the targets with their verdicts.

use std::fmt::Write;

use super::cells::CELLS;
use super::records::{Judged, Records};
use super::targets::{Bound, GOALS, Goal};
use super::verdict::{interval, verdict};
use crate::load::table;
use crate::outcome::{median, short};

/// A table a cell: a row an entrant, the median of each figure and its lowest and highest round.
pub(super) fn cells(found: &Records) -> String {
    let mut text = String::new();
    for cell in &CELLS {
        let mut entrants: Vec<&str> = Vec::new();
        for record in found.all.iter().filter(|r| r.cell == cell.name) {
            if !entrants.contains(&record.entrant.as_str()) {
                entrants.push(&record.entrant);
            }
        }
        if entrants.is_empty() {
            continue;
        }
        let mut rows = vec![vec![cell.title.to_string()]];
        rows[0].extend(cell.shown.iter().map(|(_, title)| (*title).to_string()));
        for entrant in entrants {
            let mut row = vec![format!("  {entrant}")];
            for (figure, _) in cell.shown {
                let values: Vec<f64> = found.values(cell.name, entrant, figure).into_values().collect();
                row.push(median_and_spread(&values));
            }
            rows.push(row);
        }
        writeln!(text, "{}", table(&rows)).expect("into a String");
    }
    let mut not_measured: Vec<&String> =
        found.all.iter().filter_map(|r| r.outcome.as_ref()).flat_map(|o| &o.not_measured).collect();
    not_measured.sort();
    not_measured.dedup();
    for why in found.head.missing.iter().chain(not_measured) {
        writeln!(text, "not measured: {why}").expect("into a String");
    }
    text
}

fn median_and_spread(values: &[f64]) -> String {
    match values {
        [] => "-".into(),
        [one] => short(*one),
        _ => {
            let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            format!("{} ({}..{})", short(median(values)), short(low), short(high))
        }
    }
}

/// Ours of each round, or its ratio to the other's of the same round.
fn values(found: &Records, goal: &Goal) -> Vec<f64> {
    let ours = found.values(goal.ours.cell, goal.ours.entrant, goal.ours.figure);
    let Some(beside) = goal.beside else { return ours.into_values().collect() };
    let beside = found.values(beside.cell, beside.entrant, beside.figure);
    ours.iter().filter_map(|(round, value)| Some(value / beside.get(round)?)).collect()
}

pub(super) fn judge(found: &Records) -> Vec<Judged> {
    let one = |goal: &Goal| {
        let target = match goal.bound {
            Bound::AtMost(limit) => format!("<= {limit}{}", goal.unit),
            Bound::AtLeast(limit) => format!(">= {limit}{}", goal.unit),
        };
        let values = values(found, goal);
        let blank = |verdict: &str| Judged {
            what: goal.what.into(),
            target: target.clone(),
            measured: "-".into(),
            interval: "-".into(),
            verdict: verdict.into(),
        };
        if values.is_empty() {
            return blank("not measured");
        }
        let seen = interval(&values);
        Judged {
            measured: format!("{}{}", short(seen.median), goal.unit),
            interval: seen.bounds.map_or("too few rounds".into(), |(l, h)| format!("{}..{}", short(l), short(h))),
            ..blank(verdict(&seen, goal.bound).word())
        }
    };
    GOALS.iter().map(one).collect()
}

pub(super) fn targets(found: &Records) -> String {
    let titles = ["target", "bound", "median", "95 % interval", "verdict"];
    let mut rows = vec![titles.map(String::from).to_vec()];
    rows.extend(
        found
            .judged
            .iter()
            .map(|j| vec![j.what.clone(), j.target.clone(), j.measured.clone(), j.interval.clone(), j.verdict.clone()]),
    );
    let head = &found.head;
    format!(
        "\n{} rounds of {} s, {} processors, {} threads a proxy (ours: {}), Linux {}; load before: {}, after: {}\n\n{}",
        head.rounds,
        head.seconds,
        head.processors,
        head.threads,
        head.our_threads,
        head.kernel,
        head.load,
        head.load_after,
        table(&rows)
    )
}
