//! Log lines that somebody else can cause as often as they like: each condition is said once, then once in a while with the
//! number of times that it was not said.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Instant;

use crate::limits::{REFUSED_SAID_EVERY, SELDOM_CONDITIONS_MAX};

/// What has been said about which condition, and when.
#[derive(Debug)]
pub struct Seldom<K>(Mutex<HashMap<K, Condition>>);

#[derive(Debug)]
struct Condition {
    said: Instant,
    unsaid: u64,
}

impl<K> Default for Seldom<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Whether that condition is to be said now, and how many times it was not since it was said last.
    pub fn due(&self, condition: K, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().expect("no holder panics: panic is abort");
        if all.len() >= SELDOM_CONDITIONS_MAX && !all.contains_key(&condition) {
            all.retain(|_, known| now.duration_since(known.said) < REFUSED_SAID_EVERY);
            if all.len() >= SELDOM_CONDITIONS_MAX {
                all.clear();
            }
        }
        let Some(known) = all.get_mut(&condition) else {
            all.insert(condition, Condition { said: now, unsaid: 0 });
            return Some(0);
        };
        if now.duration_since(known.said) < REFUSED_SAID_EVERY {
            known.unsaid += 1;
            return None;
        }
        known.said = now;
        Some(std::mem::take(&mut known.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_said_once_and_later_with_its_number() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.due("a", start), Some(0));
        assert_eq!(seldom.due("a", start), None);
        assert_eq!(seldom.due("b", start), Some(0));
        assert_eq!(seldom.due("a", start), None);
        assert_eq!(seldom.due("a", start + REFUSED_SAID_EVERY), Some(2));
        for n in 0..3 * SELDOM_CONDITIONS_MAX {
            seldom.due(String::leak(n.to_string()), start);
        }
        assert!(seldom.0.lock().unwrap().len() <= SELDOM_CONDITIONS_MAX);
    }
}
