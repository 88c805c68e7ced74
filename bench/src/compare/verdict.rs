//! Statistics of rounds: a median's interval, a verdict, and whether two builds differ.
//!
//! The interval is of order statistics: it says nothing about how values are distributed. Of n rounds the median lies
//! between the k-th lowest and the k-th highest with a chance of 1 - 2 P(Binomial(n, 1/2) < k); k is the largest one
//! that keeps it at 95 % or above. With 7 rounds that is the lowest and the highest, at 98.4 %; below 6 there is none.

use crate::outcome::{float, median};

use super::targets::Bound;

const CHANCE: f64 = 0.95;
/// Exact up to so many pairs: a million signs.
const EXACT_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) median: f64,
    /// `None`: too few rounds.
    pub(super) bounds: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Fail,
    Undecided,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Undecided => "UNDECIDED",
        }
    }
}

/// P(Binomial(n, 1/2) < k).
fn below(n: usize, k: usize) -> f64 {
    let (mut ways, mut sum) = (1.0, 0.0);
    for i in 0..k {
        sum += ways;
        ways *= float((n - i) as u64) / float(i as u64 + 1);
    }
    sum * 0.5_f64.powi(i32::try_from(n).expect("rounds are few"))
}

/// # Panics
/// Without a value.
pub(super) fn interval(values: &[f64]) -> Interval {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let k = (1..=n / 2).take_while(|k| 1.0 - 2.0 * below(n, *k) >= CHANCE).last();
    Interval { median: median(values), bounds: k.map(|k| (sorted[k - 1], sorted[n - k])) }
}

pub(super) fn verdict(interval: &Interval, bound: Bound) -> Verdict {
    let Some((low, high)) = interval.bounds else { return Verdict::Undecided };
    let (inside, outside) = match bound {
        Bound::AtMost(limit) => (high <= limit, low > limit),
        Bound::AtLeast(limit) => (low >= limit, high < limit),
    };
    match (inside, outside) {
        (true, _) => Verdict::Pass,
        (_, true) => Verdict::Fail,
        _ => Verdict::Undecided,
    }
}

/// The chance that pairs with no difference between them would show one at least this large: the share of all ways to
/// swap the two within pairs whose summed log ratio is as far from zero. Exact up to 20 pairs, sampled above.
pub(super) fn chance_of_no_difference(pairs: &[(f64, f64)]) -> f64 {
    let logs: Vec<f64> = pairs.iter().map(|(a, b)| (a / b).ln()).collect();
    let seen: f64 = logs.iter().sum::<f64>().abs();
    // Sums in another order differ in the last bits.
    let as_far = |signs: u64| {
        let sum: f64 = logs.iter().enumerate().map(|(i, l)| if signs >> (i % 64) & 1 == 1 { -l } else { *l }).sum();
        sum.abs() >= seen - 1e-12
    };
    if logs.len() <= EXACT_MAX {
        let ways = 1_u64 << logs.len();
        let count = (0..ways).filter(|signs| as_far(*signs)).count();
        return float(count as u64) / float(ways);
    }
    let (mut state, samples) = (0x9e37_79b9_7f4a_7c15_u64, 200_000_u64);
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let count = (0..samples).filter(|_| as_far(random())).count();
    float(count as u64 + 1) / float(samples + 1)
}

/// Holm's: each chance as if it had been the only one asked about, in the order given.
pub(super) fn for_many(chances: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut adjusted = vec![0.0; chances.len()];
    let mut highest = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        highest = highest.max((chances[index] * float((chances.len() - rank) as u64)).min(1.0));
        adjusted[index] = highest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_needs_six_rounds_and_then_narrows() {
        let upto = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        assert_eq!(interval(&upto(5)).bounds, None);
        assert_eq!(interval(&upto(6)).bounds, Some((1.0, 6.0)));
        assert_eq!(interval(&upto(7)), Interval { median: 4.0, bounds: Some((1.0, 7.0)) });
        assert_eq!(interval(&upto(9)).bounds, Some((2.0, 8.0)));
        // The usual table: 20 values, the 6th and the 15th.
        assert_eq!(interval(&upto(20)).bounds, Some((6.0, 15.0)));
    }

    #[test]
    fn a_verdict_needs_the_whole_interval_on_one_side() {
        let of = |low, high| Interval { median: low, bounds: Some((low, high)) };
        assert_eq!(verdict(&of(0.8, 1.0), Bound::AtMost(1.0)), Verdict::Pass);
        assert_eq!(verdict(&of(0.8, 1.1), Bound::AtMost(1.0)), Verdict::Undecided);
        assert_eq!(verdict(&of(1.01, 1.1), Bound::AtMost(1.0)), Verdict::Fail);
        assert_eq!(verdict(&of(2.0, 2.5), Bound::AtLeast(2.0)), Verdict::Pass);
        assert_eq!(verdict(&of(1.0, 1.9), Bound::AtLeast(2.0)), Verdict::Fail);
        assert_eq!(verdict(&Interval { median: 9.0, bounds: None }, Bound::AtLeast(2.0)), Verdict::Undecided);
    }

    #[test]
    fn a_difference_in_every_pair_is_no_chance_and_none_is() {
        let all: Vec<(f64, f64)> = (0..8).map(|i| (110.0 + f64::from(i), 100.0)).collect();
        assert!((chance_of_no_difference(&all) - 2.0 / 256.0).abs() < 1e-9);
        let none: Vec<(f64, f64)> = (0..8).map(|i| if i % 2 == 0 { (110.0, 100.0) } else { (100.0, 110.0) }).collect();
        assert!(chance_of_no_difference(&none) > 0.9);
        let many: Vec<(f64, f64)> = (0..40).map(|i| (110.0 + f64::from(i), 100.0)).collect();
        assert!(chance_of_no_difference(&many) < 0.001);
    }

    #[test]
    fn many_questions_make_each_answer_weaker() {
        let adjusted = for_many(&[0.01, 0.5, 0.02]);
        assert!(
            (adjusted[0] - 0.03).abs() < 1e-9 && (adjusted[2] - 0.04).abs() < 1e-9 && (adjusted[1] - 0.5).abs() < 1e-9
        );
    }
}
