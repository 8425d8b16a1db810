//! Which keys surely have no explicit labels, to be asked without the lock of the index.

use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use hashbrown::DefaultHashBuilder;

/// A power of two. Of the other keys' writes, 68 % do without the lock beside 100,000 labelled keys, and 2 % beside a
/// million.
const COUNTS: usize = 1 << 18;

/// A Bloom filter with one counter for each key. Changed by who holds the lock, read by all.
#[derive(Debug, Default)]
pub(super) struct LabelFilter {
    hasher: DefaultHashBuilder,
    /// How many labelled keys share a place; what has reached the highest number stays there. Made with the first label.
    counts: OnceLock<Box<[AtomicU8]>>,
}

impl LabelFilter {
    fn place(&self, db: u32, key: &[u8]) -> usize {
        self.hasher.hash_one((db, key)) as usize % COUNTS
    }

    /// The key has labels now.
    pub fn add(&self, db: u32, key: &[u8]) {
        let counts = self.counts.get_or_init(|| (0..COUNTS).map(|_| AtomicU8::new(0)).collect());
        let count = &counts[self.place(db, key)];
        count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Release);
    }

    /// A key that was added has no labels any more.
    pub fn remove(&self, db: u32, key: &[u8]) {
        let Some(counts) = self.counts.get() else { return };
        let count = &counts[self.place(db, key)];
        match count.load(Ordering::Relaxed) {
            u8::MAX => {}
            some => count.store(some.saturating_sub(1), Ordering::Release),
        }
    }

    /// No key has labels any more.
    pub fn clear(&self) {
        self.counts.get().into_iter().flatten().for_each(|count| count.store(0, Ordering::Release));
    }

    /// False: the key has no labels.
    pub fn may_have(&self, db: u32, key: &[u8]) -> bool {
        let counts = self.counts.get();
        counts.is_some_and(|counts| counts[self.place(db, key)].load(Ordering::Acquire) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_added_more_often_than_removed_is_there() {
        let filter = LabelFilter::default();
        assert!(!filter.may_have(0, b"k"));
        filter.add(0, b"k");
        assert!(filter.may_have(0, b"k"));
        assert!(!filter.may_have(1, b"k") && !filter.may_have(0, b"l"));
        (0..3).for_each(|_| filter.add(0, b"k"));
        (0..3).for_each(|_| filter.remove(0, b"k"));
        assert!(filter.may_have(0, b"k"));
        filter.remove(0, b"k");
        assert!(!filter.may_have(0, b"k"));
    }

    #[test]
    fn one_that_cannot_count_on_stays() {
        let filter = LabelFilter::default();
        (0..300).for_each(|_| filter.add(0, b"k"));
        (0..299).for_each(|_| filter.remove(0, b"k"));
        assert!(filter.may_have(0, b"k"));
        filter.clear();
        assert!(!filter.may_have(0, b"k"));
    }
}
