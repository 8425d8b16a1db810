//! The counters that one worker thread writes with every command.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::collect::Shared;

/// Upper bounds of the buckets of `rescind_command_duration_seconds`, in nanoseconds.
pub(super) const DURATION_BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// The number of buckets, with the one for everything slower than the last bound.
pub(super) const BUCKETS: usize = DURATION_BOUNDS.len() + 1;

/// The metrics of one worker thread. Only that thread may count; others only read, at a scrape.
#[derive(Debug)]
pub struct WorkerMetrics {
    bytes: Bytes,
    shared: Weak<Shared>,
    families: Mutex<BTreeMap<String, Arc<FamilyCounters>>>,
    commands: Mutex<BTreeMap<String, Arc<CommandCounters>>>,
}

impl WorkerMetrics {
    pub(super) fn new(shared: Weak<Shared>) -> WorkerMetrics {
        WorkerMetrics {
            bytes: Bytes::default(),
            shared,
            families: Mutex::default(),
            commands: Mutex::default(),
        }
    }

    /// Counters of the families, in the order of `names`. A name that was asked for before has the counters that
    /// it had, so nothing is lost when rules are reloaded. Not for the hot path: keep what it returns.
    pub fn families<S: AsRef<str>>(&self, names: &[S]) -> Vec<Arc<FamilyCounters>> {
        if let Some(shared) = self.shared.upgrade() {
            names.iter().for_each(|name| shared.register_family(name.as_ref()));
        }
        find_or_add(&self.families, names)
    }

    /// Counters of the commands, in the order of `labels` (lower-case command names). As with
    /// [`families`](Self::families), the same label has the same counters and the result is to be kept.
    pub fn commands<S: AsRef<str>>(&self, labels: &[S]) -> Vec<Arc<CommandCounters>> {
        find_or_add(&self.commands, labels)
    }

    /// Counts `n` bytes received from clients.
    #[inline]
    pub fn bytes_in(&self, n: u64) {
        self.bytes.received.add(n);
    }

    /// Counts `n` bytes sent to clients.
    #[inline]
    pub fn bytes_out(&self, n: u64) {
        self.bytes.sent.add(n);
    }

    /// Bytes received and sent so far.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.bytes.received.get(), self.bytes.sent.get())
    }

    pub(super) fn each_family(&self, mut visit: impl FnMut(&str, &FamilyCounters)) {
        lock(&self.families).iter().for_each(|(name, counters)| visit(name, counters));
    }

    pub(super) fn each_command(&self, mut visit: impl FnMut(&str, &CommandCounters)) {
        lock(&self.commands).iter().for_each(|(label, counters)| visit(label, counters));
    }
}

/// Hits and misses of one family in one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct FamilyCounters {
    hits: Single,
    misses: Single,
}

impl FamilyCounters {
    /// Counts `n` keys that a read found.
    #[inline]
    pub fn hit(&self, n: u64) {
        self.hits.add(n);
    }

    /// Counts `n` keys that a read did not find.
    #[inline]
    pub fn miss(&self, n: u64) {
        self.misses.add(n);
    }

    /// Hits and misses so far.
    pub(super) fn get(&self) -> (u64, u64) {
        (self.hits.get(), self.misses.get())
    }
}

/// Executions of one command in one worker: how many, how long, how many failed.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct CommandCounters {
    buckets: [Single; BUCKETS],
    nanoseconds: Single,
    errors: Single,
}

impl CommandCounters {
    /// Counts one command that was answered so many nanoseconds after it arrived, and whether the reply was an error.
    #[inline]
    pub fn done(&self, nanoseconds: u64, error: bool) {
        let bucket = DURATION_BOUNDS.partition_point(|bound| *bound < nanoseconds);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.nanoseconds.add(nanoseconds);
        self.errors.add(u64::from(error));
    }

    /// Counts the failure of one that was counted when it was queued.
    pub fn failed(&self) {
        self.errors.add(1);
    }

    /// What was counted so far. The number of commands is the sum of the buckets.
    pub(super) fn get(&self) -> CommandSums {
        CommandSums {
            buckets: std::array::from_fn(|i| self.buckets[i].get()),
            nanoseconds: self.nanoseconds.get(),
            errors: self.errors.get(),
        }
    }
}

/// A command's numbers as plain values, to be added up over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct CommandSums {
    /// Commands per bucket, not cumulative.
    pub buckets: [u64; BUCKETS],
    pub nanoseconds: u64,
    pub errors: u64,
}

impl CommandSums {
    pub fn add(&mut self, other: &CommandSums) {
        for (sum, n) in self.buckets.iter_mut().zip(other.buckets) {
            *sum = sum.wrapping_add(n);
        }
        self.nanoseconds = self.nanoseconds.wrapping_add(other.nanoseconds);
        self.errors = self.errors.wrapping_add(other.errors);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// On cache lines of their own: every read and write of a socket counts here.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bytes {
    received: Single,
    sent: Single,
}

/// A counter with a single writer: the load and the store need not be one step, which spares the locked
/// instruction. With two writers counts would be lost, nothing worse.
#[derive(Debug, Default)]
struct Single(AtomicU64);

impl Single {
    #[inline]
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn find_or_add<T: Default, S: AsRef<str>>(map: &Mutex<BTreeMap<String, Arc<T>>>, names: &[S]) -> Vec<Arc<T>> {
    let mut map = lock(map);
    let mut counters = |name: &str| match map.get(name) {
        Some(known) => Arc::clone(known),
        None => Arc::clone(map.entry(name.to_owned()).or_default()),
    };
    names.iter().map(|name| counters(name.as_ref())).collect()
}

/// Locks, also after a panic elsewhere: the maps are consistent between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> Arc<CommandCounters> {
        WorkerMetrics::new(Weak::new()).commands(&["get"]).remove(0)
    }

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        for (i, bound) in DURATION_BOUNDS.iter().enumerate() {
            let c = counters();
            c.done(*bound, false);
            c.done(*bound + 1, false);
            let mut expected = [0; BUCKETS];
            expected[i] = 1;
            expected[i + 1] = 1;
            assert_eq!(c.get().buckets, expected, "around {bound} ns");
        }
    }

    #[test]
    fn extreme_durations_count_too() {
        let c = counters();
        c.done(0, false);
        c.done(u64::MAX, true);
        let sums = c.get();
        assert_eq!((sums.buckets[0], sums.buckets[BUCKETS - 1]), (1, 1));
        assert_eq!((sums.count(), sums.errors), (2, 1));
    }

    #[test]
    fn the_same_name_has_the_same_counters() {
        let worker = WorkerMetrics::new(Weak::new());
        let before = worker.families(&["a", "b"]);
        before[1].hit(2);
        let after = worker.families(&["b", "c", "a"]);
        assert!(Arc::ptr_eq(&before[1], &after[0]) && Arc::ptr_eq(&before[0], &after[2]));
        assert_eq!(after[0].get(), (2, 0));
        assert!(Arc::ptr_eq(&worker.commands(&["get"])[0], &worker.commands(&["set", "get"])[1]));
    }

    #[test]
    fn bounds_ascend() {
        assert!(DURATION_BOUNDS.is_sorted());
    }
}
