//! Keys whose labels are on their way to the index: Redis gives them with the write, and the feed shows them a moment
//! later. Who deletes such a key meanwhile has to wait for them, or they would come to stay behind it.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::DefaultHashBuilder;

/// How long a key is remembered, in milliseconds, at least; at most twice as long. News come sooner; what comes later all
/// the same is found dead by the sampling of the index.
const PERIOD: u64 = 2000;
/// A power of two. With 10,000 labelled writes a second, another key is taken for one of them in one case of seven.
const BITS: usize = 1 << 18;

/// A Bloom filter that forgets: of two halves the older one is emptied and used anew, period by period.
#[derive(Debug, Default)]
pub(super) struct ExpectedLabels {
    hasher: DefaultHashBuilder,
    halves: [Half; 2],
}

#[derive(Debug)]
struct Half {
    /// The period that it is of, counted from 1; 0: none yet.
    period: AtomicU64,
    bits: Box<[AtomicU64]>,
}

impl Default for Half {
    fn default() -> Self {
        Self { period: AtomicU64::new(0), bits: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Half {
    /// Empties it where it is of an earlier period. Another thread may note a key at that very moment, which is then
    /// forgotten; see [`PERIOD`].
    fn begin(&self, period: u64) {
        let before = self.period.load(Ordering::Acquire);
        let change = || self.period.compare_exchange(before, period, Ordering::AcqRel, Ordering::Relaxed);
        if before < period && change().is_ok() {
            self.bits.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
        }
    }
}

fn period(now: u64) -> u64 {
    now / PERIOD + 1
}

impl ExpectedLabels {
    fn place(&self, db: u32, key: &[u8]) -> (usize, u64) {
        let place = self.hasher.hash_one((db, key)) as usize % BITS;
        (place / 64, 1 << (place % 64))
    }

    /// The key is about to be labelled.
    pub fn note(&self, db: u32, key: &[u8], now: u64) {
        let half = &self.halves[(period(now) % 2) as usize];
        half.begin(period(now));
        let (word, bit) = self.place(db, key);
        half.bits[word].fetch_or(bit, Ordering::Release);
    }

    /// False: it was not labelled lately.
    pub fn has(&self, db: u32, key: &[u8], now: u64) -> bool {
        let (word, bit) = self.place(db, key);
        let recent = |half: &&Half| half.period.load(Ordering::Acquire) + 1 >= period(now);
        self.halves.iter().filter(recent).any(|half| half.bits[word].load(Ordering::Acquire) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_for_one_period_at_least_and_two_at_most() {
        for at in [0, 1, PERIOD - 1, PERIOD, 7 * PERIOD + 3] {
            let expected = ExpectedLabels::default();
            assert!(!expected.has(0, b"k", at));
            expected.note(0, b"k", at);
            for later in [0, 1, PERIOD - 1, PERIOD] {
                assert!(expected.has(0, b"k", at + later), "{at} {later}");
                assert!(!expected.has(1, b"k", at + later) && !expected.has(0, b"l", at + later));
            }
            assert!(!expected.has(0, b"k", at + 2 * PERIOD));
        }
    }

    #[test]
    fn a_half_is_emptied_before_it_is_used_anew() {
        let expected = ExpectedLabels::default();
        expected.note(0, b"old", 0);
        expected.note(0, b"new", 2 * PERIOD);
        assert!(expected.has(0, b"new", 2 * PERIOD) && !expected.has(0, b"old", 2 * PERIOD));
        expected.note(0, b"newer", 3 * PERIOD);
        assert!(expected.has(0, b"new", 3 * PERIOD) && expected.has(0, b"newer", 3 * PERIOD));
    }
}
