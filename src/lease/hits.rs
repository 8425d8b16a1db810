//! What one connection has read lately.

use super::{Clock, Found, KeyHash, Moment};

/// How many are remembered: those of one task.
const MOST: usize = 32;

/// The latest of them. Who finds a value may all the same compute it anew and write it again, because it is old, say: then it
/// is as old as what the connection had read when it found it.
#[derive(Debug, Default)]
pub struct Hits {
    /// Most connections read nothing that matters.
    ring: Option<Box<[Hit; MOST]>>,
    next: usize,
    /// What it has missed, if that was its latest read.
    computes: Option<KeyHash>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hit {
    key: KeyHash,
    /// How many invalidations had been seen.
    clock: Clock,
    at: Moment,
}

impl Hits {
    /// The key was there, when `clock` invalidations had been seen.
    pub fn found(&mut self, key: KeyHash, clock: Clock, now: Moment) {
        let ring = self.ring.get_or_insert_default();
        ring[self.next] = Hit { key, clock, at: now };
        self.next = (self.next + 1) % MOST;
        self.computes = None;
    }

    /// The key was not there.
    pub fn missed(&mut self, key: KeyHash) {
        self.computes = Some(key);
    }

    /// Whether it computes another key, as its latest read suggests, and may write this one along with it: Django's `cache_page`
    /// writes a page with its header.
    pub fn goes_along(&self, key: KeyHash) -> bool {
        self.computes.is_some_and(|computed| computed != key)
    }

    /// Whether there are any.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ring.is_none()
    }

    /// Until when a miss of the key would be open that came when it was last found there, if `window` is how long that is.
    pub fn found_until(&self, key: KeyHash, window: Moment) -> Found {
        let found =
            self.ring.iter().flat_map(|ring| ring.iter()).filter(|hit| hit.key == key && hit.clock > 0);
        found.map(|hit| hit.at + window).max()
    }

    /// How many invalidations had been seen when the key was last found there, if that was at most `window` ago.
    pub fn clock_of(&self, key: KeyHash, now: Moment, window: Moment) -> Option<Clock> {
        let lately = |hit: &&Hit| hit.key == key && hit.clock > 0 && hit.at + window > now;
        self.ring.iter().flat_map(|ring| ring.iter()).filter(lately).map(|hit| hit.clock).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_read_of_a_key_counts_for_as_long_as_the_window() {
        let mut hits = Hits::default();
        assert!(hits.is_empty());
        assert_eq!(hits.clock_of(0, 0, 10), None);
        hits.found(7, 1, 0);
        hits.found(7, 3, 5);
        hits.found(8, 4, 5);
        assert!(!hits.is_empty());
        assert_eq!([7, 8, 9, 0].map(|key| hits.clock_of(key, 14, 10)), [Some(3), Some(4), None, None]);
        assert_eq!(hits.clock_of(7, 15, 10), None);
        assert_eq!([7, 8, 9].map(|key| hits.found_until(key, 10)), [Some(15), Some(15), None]);
    }

    #[test]
    fn others_go_along_with_what_was_missed_last() {
        let mut hits = Hits::default();
        assert!(!hits.goes_along(7));
        hits.missed(8);
        assert!(hits.goes_along(7) && !hits.goes_along(8));
        hits.found(9, 1, 0);
        assert!(!hits.goes_along(7), "it may have been for nothing but that");
    }

    #[test]
    fn the_oldest_make_room() {
        let mut hits = Hits::default();
        (1..=MOST as u64 + 1).for_each(|key| hits.found(key, key, 0));
        assert_eq!([1, 2].map(|key| hits.clock_of(key, 0, 10)), [None, Some(2)]);
    }
}
