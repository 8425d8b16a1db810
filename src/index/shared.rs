//! The index as all threads share it, and what is known about its completeness.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::expected::ExpectedLabels;
use super::filter::LabelFilter;
use super::{Generation, Index, KeyId};
use crate::rules::Tag;

/// The one index of the process. The lock is held for microseconds: long walks go in chunks.
pub struct SharedIndex {
    index: Mutex<Index>,
    labelled: Arc<LabelFilter>,
    /// Made with the first of them.
    expected: OnceLock<ExpectedLabels>,
    /// A copy of the number of explicit labels, to be looked at without the lock.
    labels: AtomicUsize,
    /// There has been one at some time.
    used: AtomicBool,
    state: Mutex<State>,
}

impl Default for SharedIndex {
    fn default() -> Self {
        let index = Index::default();
        let labelled = Arc::clone(index.labels.filter());
        let (labels, used) = Default::default();
        let (expected, state) = Default::default();
        Self { index: Mutex::new(index), labelled, expected, labels, used, state }
    }
}

#[derive(Default)]
struct State {
    complete: bool,
    /// Counts the times that it was found incomplete.
    version: u64,
    why: &'static str,
}

impl std::fmt::Debug for SharedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedIndex").field("complete", &self.is_complete()).finish_non_exhaustive()
    }
}

/// The locked index; on release the copies are brought up to date.
pub struct Guard<'a> {
    index: MutexGuard<'a, Index>,
    shared: &'a SharedIndex,
}

impl std::ops::Deref for Guard<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Index {
        &mut self.index
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let count = self.index.explicit_count();
        self.shared.labels.store(count, Ordering::Release);
        if count > 0 && !self.shared.used.load(Ordering::Relaxed) {
            self.shared.used.store(true, Ordering::Release);
        }
    }
}

impl Guard<'_> {
    /// Where the key is, if it has explicit labels.
    pub fn with_labels(&self, db: u32, key: &[u8]) -> Option<(KeyId, Generation)> {
        if self.explicit_of(db, key).is_empty() { None } else { self.get(db, key) }
    }
}

impl SharedIndex {
    /// Locks it.
    pub fn lock(&self) -> Guard<'_> {
        Guard { index: self.index.lock().unwrap_or_else(PoisonError::into_inner), shared: self }
    }

    /// Whether there are explicit labels at all.
    pub fn has_labels(&self) -> bool {
        self.labels.load(Ordering::Acquire) > 0
    }

    /// Whether the key may have explicit labels. Mostly no for one that has none, and then without the lock.
    pub fn may_have_labels(&self, db: u32, key: &[u8]) -> bool {
        self.has_labels() && self.labelled.may_have(db, key)
    }

    /// The explicit labels of a key.
    pub fn explicit_of(&self, db: u32, key: &[u8]) -> Vec<Tag> {
        if self.may_have_labels(db, key) { self.lock().explicit_of(db, key) } else { vec![] }
    }

    /// Where the key is, if it has explicit labels.
    pub fn with_labels(&self, db: u32, key: &[u8]) -> Option<(KeyId, Generation)> {
        if self.may_have_labels(db, key) { self.lock().with_labels(db, key) } else { None }
    }

    /// A write is about to be sent with which Redis labels the key; `now`: milliseconds since some start.
    pub fn expect_labels(&self, db: u32, key: &[u8], now: u64) {
        self.expected.get_or_init(ExpectedLabels::default).note(db, key, now);
    }

    /// Whether labels of the key may be on their way.
    pub fn expects_labels(&self, db: u32, key: &[u8], now: u64) -> bool {
        self.expected.get().is_some_and(|expected| expected.has(db, key, now))
    }

    /// Whether there have ever been explicit labels.
    pub fn has_had_labels(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    /// Whether every dependent is known to be in it.
    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// The version in which every dependent is known to be in it, if that is so.
    pub fn complete_version(&self) -> Option<u64> {
        let state = self.state();
        state.complete.then_some(state.version)
    }

    /// Why it is not complete.
    pub fn reason(&self) -> &'static str {
        self.state().why
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on fan-outs must also scan. Returns the version of this finding, for [`Self::set_complete`].
    pub fn set_incomplete(&self, why: &'static str) -> u64 {
        let mut state = self.state();
        *state = State { complete: false, version: state.version + 1, why };
        state.version
    }

    /// Every dependent is in it, unless it was found incomplete again after `version`.
    pub fn set_complete(&self, version: u64) -> bool {
        let mut state = self.state();
        state.complete |= state.version == version;
        state.complete
    }
}
