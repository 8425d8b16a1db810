//! Which tags were invalidated lately, as far as the feed has shown.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use hashbrown::HashMap;

use super::Moment;
use crate::rules::Tag;

/// A logical time: announcements advance it, and so does what was found or missed without one. What happened after reading n is not
/// among what had happened at n.
pub type Clock = u64;

/// The clock of a miss that is older than everything that is remembered.
pub const BEFORE_ALL: Clock = 0;

/// The latest invalidation of one tag.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Epoch {
    /// The number of its announcement.
    clock: Clock,
    /// What `rescind:epoch:<tag>` was set to.
    id: Box<[u8]>,
    at: Moment,
    /// Its announcement was seen: else it was invalidated some time before `at`.
    announced: bool,
    /// The connection that has been told that it is complete.
    told: Option<u64>,
}

/// All that stands behind it in [`RECENT`](super::script::RECENT) has been announced.
#[derive(Debug)]
struct Mark {
    /// How many announcements had been seen with it.
    clock: Clock,
    at: Moment,
    /// How much had been announced and marked with it.
    noted: u64,
    name: Box<[u8]>,
}

/// What a fill is to be compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The tag was invalidated after the miss: the fill is stale.
    Stale,
    /// It was not, as far as is known: `rescind:epoch:<tag>` must be this, or absent.
    Epoch(Box<[u8]>),
    /// It was not within memory: any epoch is news.
    NoEpoch,
}

/// The tags that were invalidated lately.
#[derive(Debug, Default)]
pub struct Epochs {
    clock: AtomicU64,
    /// Misses that are older were open while announcements were missed.
    gap: AtomicU64,
    len: AtomicUsize,
    /// How many tags have been announced, and how many marks.
    noted: AtomicU64,
    tags: RwLock<HashMap<Tag, Epoch>>,
    /// Oldest first.
    marks: RwLock<VecDeque<Mark>>,
}

impl Epochs {
    /// What time it is, from 1: it has advanced with each announcement seen, and with each gap.
    pub fn clock(&self) -> Clock {
        self.clock.load(Ordering::Acquire) + 1
    }

    /// The feed shows that these tags were invalidated.
    pub fn announced(&self, tags: &[Tag], id: &[u8], now: Moment) {
        self.insert(tags, id, now, true);
    }

    fn insert(&self, tags: &[Tag], id: &[u8], now: Moment, announced: bool) {
        let mut known = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        // A miss that is recorded meanwhile counts as older: that errs on the side of one more miss.
        let clock = self.clock() + 1;
        for tag in tags {
            known.insert(Tag::clone(tag), Epoch { clock, id: id.into(), at: now, announced, told: None });
        }
        self.len.store(known.len(), Ordering::Relaxed);
        self.noted.fetch_add(tags.len() as u64, Ordering::Relaxed);
        self.clock.fetch_add(1, Ordering::Release);
    }

    /// What was found in Redis although no announcement of it was seen: invalidated some time before now.
    pub fn found(&self, tag: &Tag, id: &[u8], now: Moment) {
        let same = |known: &Epoch| *known.id == *id;
        if !self.tags.read().unwrap_or_else(PoisonError::into_inner).get(tag).is_some_and(same) {
            self.insert(std::slice::from_ref(tag), id, now, false);
        }
    }

    /// The connection is about to be told that this invalidation is complete.
    pub fn tell(&self, tags: &[Tag], id: &[u8], connection: u64) {
        let mut known = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        for tag in tags {
            if let Some(epoch) = known.get_mut(tag).filter(|epoch| *epoch.id == *id) {
                epoch.told = Some(connection);
            }
        }
    }

    /// The epoch of the tag's latest invalidation, if that connection is the one that has been told that it is complete. What it
    /// writes without a miss is compared with that; what others write, with nothing: any epoch is news then.
    pub fn told(&self, tag: &Tag, connection: u64) -> Option<Box<[u8]>> {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(tag).filter(|epoch| epoch.told == Some(connection)).map(|epoch| epoch.id.clone())
    }

    /// Announcements may have been missed: all misses up to now are too old for any fill.
    pub fn gap(&self) {
        let clock = self.clock.fetch_add(1, Ordering::AcqRel) + 2;
        self.gap.store(clock, Ordering::Release);
    }

    /// What a fill of a key with this tag is to be compared with, if its miss is of `clock`.
    pub fn expected(&self, tag: &Tag, clock: Clock) -> Expected {
        if clock != BEFORE_ALL && clock < self.gap.load(Ordering::Acquire) {
            return Expected::Stale;
        }
        match self.tags.read().unwrap_or_else(PoisonError::into_inner).get(tag) {
            Some(epoch) if epoch.clock > clock => Expected::Stale,
            Some(epoch) => Expected::Epoch(epoch.id.clone()),
            None => Expected::NoEpoch,
        }
    }

    /// Whether the tag was invalidated since `moment`.
    pub fn invalidated_since(&self, tag: &Tag, moment: Moment) -> bool {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(tag).is_some_and(|epoch| epoch.at >= moment)
    }

    /// Whether it surely was: its announcement has come since.
    pub fn announced_since(&self, tag: &Tag, moment: Moment) -> bool {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(tag).is_some_and(|epoch| epoch.announced && epoch.at >= moment)
    }

    /// What was invalidated since `moment`, with the epochs and when that was.
    pub fn since(&self, moment: Moment) -> Vec<(Tag, Box<[u8]>, Moment)> {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        let recent = tags.iter().filter(|(_, epoch)| epoch.at >= moment);
        recent.map(|(tag, epoch)| (Tag::clone(tag), epoch.id.clone(), epoch.at)).collect()
    }

    /// Whether an announcement has been seen since `clock`.
    pub fn has_news(&self, clock: Clock) -> bool {
        self.clock() > clock
    }

    /// The feed has shown this mark.
    pub fn marked(&self, mark: &[u8], now: Moment) {
        let mut marks = self.marks_mut();
        let clock = self.clock();
        let noted = self.noted.fetch_add(1, Ordering::Relaxed) + 1;
        // Of a miss that was recorded in between it is not known on which side it is: for it the earlier one counts.
        if marks.back().is_none_or(|last| last.clock < clock) {
            marks.push_back(Mark { clock, at: now, noted, name: mark.into() });
        }
    }

    /// The latest mark that had been seen when a miss of `clock` was, or nothing, and how much came since.
    pub fn mark_at(&self, clock: Clock) -> (Box<[u8]>, usize) {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        let later = marks.partition_point(|mark| mark.clock <= clock);
        let mark = later.checked_sub(1).and_then(|last| marks.get(last));
        let since = self.noted.load(Ordering::Relaxed) - mark.map_or(0, |mark| mark.noted);
        (
            mark.map_or_else(Box::default, |mark| mark.name.clone()),
            usize::try_from(since).unwrap_or(usize::MAX),
        )
    }

    /// How many announcements had been seen with that mark, if it is remembered.
    pub fn clock_at(&self, mark: &[u8]) -> Clock {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.iter().rfind(|known| *known.name == *mark).map_or(BEFORE_ALL, |known| known.clock)
    }

    fn marks_mut(&self) -> RwLockWriteGuard<'_, VecDeque<Mark>> {
        self.marks.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is remembered.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// Forgets what happened before `moment`: all misses of that time are closed, and its epochs are gone from Redis.
    pub fn forget_before(&self, moment: Moment) {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        tags.retain(|_, epoch| epoch.at >= moment);
        let mut marks = self.marks_mut();
        // The last of them is what later misses have seen.
        while marks.get(1).is_some_and(|mark| mark.at < moment) {
            marks.pop_front();
        }
        if marks.capacity() > 1024 && marks.len() < marks.capacity() / 8 {
            marks.shrink_to_fit();
        }
        drop(marks);
        self.len.store(tags.len(), Ordering::Relaxed);
        if tags.capacity() > 1024 && tags.len() < tags.capacity() / 8 {
            tags.shrink_to_fit();
        }
    }
}
