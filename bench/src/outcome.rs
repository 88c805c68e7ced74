//! What a measurement found: figures by name, as a line of JSON for machines and as a line of text for people.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The subcommand.
    pub(crate) what: String,
    /// What it was measured on.
    pub(crate) on: String,
    /// A name ends with its unit: `p50_us`, `requests_per_s`.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Percentiles and their microseconds, for a curve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) curve: Vec<(f64, f64)>,
    /// What was asked for and could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_measured: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(what: &str, on: impl ToString) -> Self {
        Self { what: what.into(), on: on.to_string(), ..Self::default() }
    }

    pub(crate) fn set(&mut self, name: &str, value: f64) {
        self.figures.insert(name.into(), value);
    }

    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// For text: a figure that every outcome of that kind has.
    pub(crate) fn shown(&self, name: &str) -> f64 {
        self.figure(name).unwrap_or(f64::NAN)
    }

    /// The usual percentiles in microseconds and the curve; `prefix` keeps two of them apart.
    pub(crate) fn set_times(&mut self, prefix: &str, times: &Histogram<u64>) {
        let us = |percent: f64| float(times.value_at_percentile(percent)) / 1000.0;
        for (name, percent) in [("p50_us", 50.0), ("p90_us", 90.0), ("p99_us", 99.0), ("p999_us", 99.9)] {
            self.set(&format!("{prefix}{name}"), us(percent));
        }
        self.set(&format!("{prefix}max_us"), float(times.max()) / 1000.0);
        self.curve = CURVE.iter().map(|percent| (*percent, us(*percent))).collect();
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers")
    }
}

/// Where a curve has its points: evenly at first, then nearer and nearer to 100.
const CURVE: [f64; 26] = [
    0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 96.5, 98.0, 99.0, 99.3,
    99.5, 99.7, 99.8, 99.9, 99.95, 99.99, 100.0,
];

/// Three digits, up to a minute, in nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constants")
}

/// A count as a number to divide by. Counts here are far below 2^53, where each is exact.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The middle one, or the mean of the two in the middle.
///
/// # Panics
/// With no value at all.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// A number that people read: three or four digits.
pub(crate) fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_is_read_again_as_it_was() {
        let mut outcome = Outcome::new("latency", "/x");
        let mut times = histogram();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        outcome.set_times("", &times);
        let again: Outcome = serde_json::from_str(&outcome.json()).unwrap();
        assert_eq!(again, outcome);
        assert!((again.shown("p50_us") - 500.0).abs() < 1.0 && (again.shown("p99_us") - 990.0).abs() < 1.0);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
