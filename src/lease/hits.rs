//! What one connection has read lately.

use super::{Clock, Found, KeyHash, Moment};

/// How many are remembered: those of one task.
const MOST: usize = 32;

/// The keys that it has found, and what it has missed since. Who finds a value may all the same compute it anew and write it again,
/// because it is old, say: then it is as old as what the connection had read when it found it.
#[derive(Debug, Default)]
pub struct Hits {
    /// Most connections read nothing that matters.
    ring: Option<Box<[Hit; MOST]>>,
    next: usize,
    /// What it has missed, if that was its latest read.
    computes: Option<Computes>,
}

/// A key that a connection has missed, and has read nothing since.
#[derive(Clone, Copy, Debug)]
struct Computes {
    key: KeyHash,
    at: Moment,
    /// It has written it since.
    filled: bool,
    /// So many other keys it has written before that, which may have been meant to go along.
    ahead: u32,
}

/// Whether what a connection writes goes along with another key that it has missed, as Django's `cache_page` writes a page with its
/// header: then nobody need have missed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// It does not.
    No,
    /// If the connection writes that one as well, before it reads anything else.
    Perhaps,
    /// It has written that one just before.
    Yes,
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
    }

    /// It has read something, which was there unless it `missed` it. So many of the keys that it has written ([`Hits::went_ahead`])
    /// went along with nothing.
    pub fn read(&mut self, missed: Option<KeyHash>, now: Moment) -> u32 {
        let before = self.computes.take();
        self.computes = missed.map(|key| Computes { key, at: now, filled: false, ahead: 0 });
        before.map_or(0, |before| before.ahead)
    }

    /// It writes the key; `window` is how long fills are watched.
    pub fn writes(&mut self, key: KeyHash, now: Moment, window: Moment) -> Along {
        match &mut self.computes {
            Some(computes) if computes.key == key => {
                (computes.filled, computes.ahead) = (true, 0);
                Along::No
            }
            Some(computes) if computes.at + window > now => match computes.filled {
                true => Along::Yes,
                false => Along::Perhaps,
            },
            _ => Along::No,
        }
    }

    /// What it has just written, and was to go along with another key perhaps, would say something if it does not.
    pub fn went_ahead(&mut self) {
        self.computes.iter_mut().for_each(|computes| computes.ahead += 1);
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
    fn others_go_along_with_what_is_written_that_was_missed_last() {
        let mut hits = Hits::default();
        assert_eq!(hits.writes(7, 0, 10), Along::No);
        assert_eq!(hits.read(Some(8), 0), 0);
        assert_eq!([7, 8, 7].map(|key| hits.writes(key, 0, 10)), [Along::Perhaps, Along::No, Along::Yes]);
        assert_eq!(hits.writes(7, 10, 10), Along::No, "that was long ago");
        hits.read(Some(8), 10);
        hits.went_ahead();
        hits.went_ahead();
        assert_eq!(hits.writes(8, 10, 10), Along::No);
        assert_eq!(hits.read(Some(8), 10), 0, "they went along");
        hits.went_ahead();
        assert_eq!(hits.read(None, 10), 1, "it did not");
        assert_eq!((hits.read(None, 10), hits.writes(7, 10, 10)), (0, Along::No));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut hits = Hits::default();
        (1..=MOST as u64 + 1).for_each(|key| hits.found(key, key, 0));
        assert_eq!([1, 2].map(|key| hits.clock_of(key, 0, 10)), [None, Some(2)]);
    }
}
