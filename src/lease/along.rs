//! Keys that are written without having been read: as old as what their task has missed and filled besides.
//!
//! Who misses one key may write two: the headers of a page, which are looked for first, and the page. Which keys belong
//! together cannot be seen, but when they are written: while a connection has a miss open, or right behind a fill.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use hashbrown::DefaultHashBuilder;

use super::open::PAUSE;
use super::{Clock, KeyHash, Moment};

/// Tags of which it is remembered when they were filled.
const MOST_TAGS: usize = 100_000;

/// What one connection has missed and filled lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Task {
    pub(super) clock: Clock,
    /// When that was.
    pub began: Moment,
    /// When its miss is over.
    pub(super) until: Moment,
    /// Until then it is taken for granted that what the connection writes belongs to it.
    ends: Moment,
}

impl Task {
    /// A key was missed. What was missed before need not have to do with it.
    pub fn missed(&mut self, clock: Clock, now: Moment, window: Moment) {
        *self = Self { clock, began: now, until: now + window, ends: now + window };
    }

    /// A key was written as of that clock. Of several the oldest counts.
    pub fn filled(&mut self, clock: Clock, now: Moment, window: Moment) {
        if self.ends <= now {
            self.missed(clock, now, window);
        }
        self.clock = self.clock.min(clock);
        self.ends = self.until.min(now + PAUSE);
    }

    /// Whether a key that the connection writes without having missed it is as old as that.
    #[inline]
    pub fn goes_on(&self, now: Moment) -> bool {
        self.ends > now
    }
}

/// The oldest fills of one tag in two spans of time, one behind the other.
#[derive(Clone, Copy, Debug)]
struct Lately {
    since: Moment,
    clock: Clock,
    before: Clock,
}

impl Lately {
    fn clock(&self, now: Moment) -> Option<Clock> {
        match now.saturating_sub(self.since) / PAUSE {
            0 => Some(self.clock.min(self.before)),
            1 => Some(self.clock),
            _ => None,
        }
    }
}

/// What was filled lately from hosts whose tasks share connections: the next key of a task may come over any of them. Many tasks
/// write there at once, so only keys with the same tag are taken for one task's.
#[derive(Debug, Default)]
pub(super) struct Along {
    /// By host and tag.
    tags: DashMap<KeyHash, Lately, DefaultHashBuilder>,
    len: AtomicUsize,
    until: AtomicU64,
}

impl Along {
    /// A key with the tag was filled as of that clock. False: there are too many to remember, and all are forgotten.
    pub fn filled(&self, tag: KeyHash, clock: Clock, now: Moment) -> bool {
        self.until.fetch_max(now + 2 * PAUSE, Ordering::Relaxed);
        let mut is_new = false;
        let mut lately = self.tags.entry(tag).or_insert_with(|| {
            is_new = true;
            Lately { since: now, clock, before: clock }
        });
        match now.saturating_sub(lately.since) / PAUSE {
            0 => lately.clock = lately.clock.min(clock),
            1 => *lately = Lately { since: now, clock, before: lately.clock },
            _ => *lately = Lately { since: now, clock, before: clock },
        }
        drop(lately);
        let fits = !is_new || self.len.fetch_add(1, Ordering::Relaxed) < MOST_TAGS;
        if !fits {
            self.drop_where(|_| true);
        }
        fits
    }

    /// Whether anything was filled lately.
    #[inline]
    pub fn is_idle(&self, now: Moment) -> bool {
        self.until.load(Ordering::Relaxed) <= now
    }

    /// As old is a key with the tag that is written without having been missed.
    pub fn clock(&self, tag: KeyHash, now: Moment) -> Option<Clock> {
        self.tags.get(&tag)?.clock(now)
    }

    /// Forgets what was filled some time ago.
    pub fn expire(&self, now: Moment) {
        self.drop_where(|lately| lately.clock(now).is_none());
        if self.tags.capacity() > 4 * self.len.load(Ordering::Relaxed) + 4096 {
            self.tags.shrink_to_fit();
        }
    }

    fn drop_where(&self, goes: impl Fn(&Lately) -> bool) {
        let mut dropped = 0;
        self.tags.retain(|_, lately| {
            let goes = goes(lately);
            dropped += usize::from(goes);
            !goes
        });
        self.len.fetch_sub(dropped, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Moment = 5000;

    #[test]
    fn what_is_written_while_a_miss_is_open_or_right_behind_its_fill_is_as_old() {
        let mut task = Task::default();
        assert!(!task.goes_on(0));
        task.missed(3, 0, WINDOW);
        assert_eq!([0, WINDOW - 1, WINDOW].map(|now| task.goes_on(now)), [true, true, false]);
        task.filled(3, 1000, WINDOW);
        assert_eq!([1000, 999 + PAUSE, 1000 + PAUSE].map(|now| task.goes_on(now)), [true, true, false]);
    }

    #[test]
    fn the_latest_miss_counts_and_the_oldest_fill_behind_it() {
        let mut task = Task::default();
        // The page, and two parts of it.
        task.missed(3, 0, WINDOW);
        task.missed(5, 0, WINDOW);
        task.filled(5, 10, WINDOW);
        task.missed(6, 10, WINDOW);
        assert_eq!(task.clock, 6);
        task.filled(6, 20, WINDOW);
        task.filled(3, 20, WINDOW);
        assert_eq!(task.clock, 3);
        // The next one.
        task.missed(7, 30, WINDOW);
        assert_eq!(task.clock, 7);
    }

    #[test]
    fn what_follows_one_upon_the_other_comes_to_an_end_with_the_miss() {
        let mut task = Task::default();
        task.filled(3, 0, WINDOW);
        (0..WINDOW).step_by(100).for_each(|now| task.filled(4, now, WINDOW));
        assert_eq!((task.clock, task.goes_on(WINDOW - 1), task.goes_on(WINDOW)), (3, true, false));
        task.filled(4, WINDOW, WINDOW);
        assert_eq!((task.clock, task.goes_on(WINDOW)), (4, true));
    }

    #[test]
    fn of_hosts_the_oldest_fill_with_the_tag_counts_for_a_while() {
        let along = Along::default();
        assert!(along.is_idle(0));
        for (clock, now) in [(5, 0), (3, 1), (6, 2)] {
            assert!(along.filled(1, clock, now));
        }
        assert!(!along.is_idle(2 * PAUSE));
        assert_eq!([1, PAUSE, 2 * PAUSE].map(|now| along.clock(1, now)), [Some(3), Some(3), None]);
        assert_eq!(along.clock(2, 1), None);
        // Those that go on do not keep it.
        along.filled(1, 7, PAUSE);
        assert_eq!(along.clock(1, PAUSE), Some(3));
        along.filled(1, 8, 2 * PAUSE);
        assert_eq!(along.clock(1, 2 * PAUSE), Some(7));
        along.expire(4 * PAUSE);
        assert!(along.is_idle(4 * PAUSE) && along.tags.is_empty());
        assert_eq!(along.len.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn memory_is_bounded() {
        let along = Along::default();
        let lost = (0..=MOST_TAGS as u64).filter(|tag| !along.filled(*tag, 1, 0)).count();
        assert_eq!((lost, along.tags.len()), (1, 0));
    }
}
