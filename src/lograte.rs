//! How often the log may say the same of one source, and when a condition that lasts begins and ends.
//!
//! ```text
//!   line ──▶ one of the first LOG_BURST of its source in LOG_WINDOW? ──yes──▶ said
//!                                                                    └─no──▶ counted; `due` tells how many when it is over
//! ```
//!
//! A source is whatever the caller says: here a place in the sources together with a peer or a user. Peers and users
//! choose how often they ask, so each has its own measure, and whoever is loud silences nobody else. Above
//! LOG_SOURCES_MAX further sources share one measure.
//!
//! Pure: no file, and the clock is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Instant;

use crate::limits::{CONDITION_OVER, LOG_BURST, LOG_SOURCES_MAX, LOG_WINDOW};

/// One source's lines since its window began.
#[derive(Debug, Clone, Copy)]
struct Measure {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Measure {
    fn new(now: Instant) -> Self {
        Self { since: now, said: 0, left_out: 0 }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LOG_WINDOW
    }

    fn may_say(&mut self, now: Instant) -> bool {
        // What is left out of an old window stays counted until `due` has told it.
        if self.is_over(now) && self.left_out == 0 {
            *self = Self::new(now);
        }
        let may = self.said < LOG_BURST;
        if may {
            self.said += 1;
        } else {
            self.left_out += 1;
        }
        may
    }
}

#[derive(Debug)]
pub struct Rate<K> {
    sources: HashMap<K, Measure>,
    /// All that have no place of their own.
    crowd: Option<Measure>,
}

/// Windows that are over.
#[derive(Debug, PartialEq, Eq)]
pub struct Due<K> {
    /// How many lines each source has lost.
    pub left_out: Vec<(K, u64)>,
    /// How many those without a place of their own have lost.
    pub crowd: u64,
}

impl<K> Default for Rate<K> {
    fn default() -> Self {
        Self { sources: HashMap::new(), crowd: None }
    }
}

impl<K: Eq + Hash> Rate<K> {
    /// Whether this line of the source is said.
    pub fn may_say(&mut self, source: K, now: Instant) -> bool {
        if self.sources.len() >= LOG_SOURCES_MAX && !self.sources.contains_key(&source) {
            return self.crowd.get_or_insert_with(|| Measure::new(now)).may_say(now);
        }
        self.sources.entry(source).or_insert_with(|| Measure::new(now)).may_say(now)
    }

    /// Ends the windows that are over, and tells what they have lost. To be asked once a second or so.
    pub fn due(&mut self, now: Instant) -> Due<K> {
        let over = self.sources.extract_if(|_, measure| measure.is_over(now));
        let left_out =
            over.map(|(source, measure)| (source, measure.left_out)).filter(|(_, count)| *count > 0).collect();
        crate::slack::map(&mut self.sources);
        let crowd = self.crowd.take_if(|crowd| crowd.is_over(now)).map_or(0, |crowd| crowd.left_out);
        Due { left_out, crowd }
    }
}

/// Something that lasts, as a want of fds: said when it begins and when it ends, however often it is met.
#[derive(Debug, Default)]
pub struct Condition(Mutex<Option<Instant>>);

impl Condition {
    /// It is met; `true`: for the first time, which is to be said.
    pub fn begins(&self, now: Instant) -> bool {
        self.0.lock().expect("no holder panics: panic is abort").replace(now).is_none()
    }

    /// It is not met just now; `true`: and has not been for CONDITION_OVER, so its end is to be said. Between its end and a
    /// moment of luck there is no other difference.
    pub fn ends(&self, now: Instant) -> bool {
        let mut last = self.0.lock().expect("no holder panics: panic is abort");
        last.take_if(|last| now.saturating_duration_since(*last) >= CONDITION_OVER).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said<K: Eq + Hash + Clone>(rate: &mut Rate<K>, source: &K, times: u32, now: Instant) -> u32 {
        (0..times).map(|_| u32::from(rate.may_say(source.clone(), now))).sum()
    }

    #[test]
    fn a_few_are_said_and_the_others_are_counted_and_told() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(said(&mut rate, &1, 1000, start), LOG_BURST);
        assert_eq!(said(&mut rate, &2, 1, start), 1, "another source is not silenced");
        assert_eq!(rate.due(start + LOG_WINDOW / 2), Due { left_out: Vec::new(), crowd: 0 });
        let later = start + LOG_WINDOW;
        assert!(!rate.may_say(1, later), "before it is told how many there were");
        assert_eq!(rate.due(later), Due { left_out: vec![(1, u64::from(1000 - LOG_BURST) + 1)], crowd: 0 });
        assert_eq!(said(&mut rate, &1, 1000, later), LOG_BURST, "and a new window begins");
    }

    #[test]
    fn sources_without_a_place_share_one_measure() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let all = LOG_SOURCES_MAX + 500;
        let said: u32 = (0..all).map(|source| u32::from(rate.may_say(source, now))).sum();
        assert_eq!(said as usize, LOG_SOURCES_MAX + LOG_BURST as usize);
        let due = rate.due(now + LOG_WINDOW);
        assert_eq!(due, Due { left_out: Vec::new(), crowd: 500 - u64::from(LOG_BURST) });
        assert!(rate.may_say(all, now + LOG_WINDOW), "there is room again");
    }

    #[test]
    fn a_condition_begins_once_and_ends_when_it_has_stayed_away() {
        let (condition, start) = (Condition::default(), Instant::now());
        assert!(!condition.ends(start));
        assert!(condition.begins(start) && !condition.begins(start));
        assert!(!condition.ends(start + Duration::from_millis(1)));
        assert!(!condition.begins(start + CONDITION_OVER / 2));
        assert!(!condition.ends(start + CONDITION_OVER), "it was met again meanwhile");
        assert!(condition.ends(start + CONDITION_OVER * 2) && !condition.ends(start + CONDITION_OVER * 3));
        assert!(condition.begins(start + CONDITION_OVER * 3));
    }
}
