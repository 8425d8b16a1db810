//! Which tags were invalidated within the window. Pure: what time it is comes from outside.

use std::hash::BuildHasher;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::Scope;

/// With more tags than this within the window, everything counts as invalidated.
pub(super) const MOST_TAGS: usize = 100_000;
/// Likewise with more bytes of them.
const MOST_BYTES: usize = 64 << 20;
/// Bytes that a tag takes in a file besides its own, about.
const OVERHEAD: usize = 38;

/// Each tag with the time of its latest invalidation, in milliseconds of a clock that only moves forward.
#[derive(Debug)]
pub(super) struct Recent {
    window: i64,
    tags: HashTable<Entry>,
    hasher: DefaultHashBuilder,
    /// The tags, one behind the other. They stay long after all that was allocated together with them, so as allocations
    /// of their own they would keep the pages of a burst.
    text: Vec<u8>,
    everything: Option<i64>,
}

/// A tag, and when it was invalidated.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    length: usize,
    at: i64,
}

impl Entry {
    fn tag(self, text: &[u8]) -> &[u8] {
        &text[self.start..self.start + self.length]
    }
}

impl Recent {
    pub fn new(window: Duration) -> Self {
        let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let (tags, hasher, text, everything) = Default::default();
        Self { window, tags, hasher, text, everything }
    }

    /// Remembers an invalidation at the time `at`. What is too old by `now` is forgotten, now and then.
    pub fn add(&mut self, scope: &Scope, at: i64, now: i64) {
        if !self.is_within(at, now) {
            return;
        }
        match scope {
            Scope::Everything => self.everything = self.everything.max(Some(at)),
            Scope::Tags(tags) => tags.iter().for_each(|tag| self.add_tag(tag, at)),
        }
        // Twice as many, so that tidying up, which looks at all of them, is rare.
        if self.tags.len() > 2 * MOST_TAGS || self.bytes() > 2 * MOST_BYTES {
            self.tidy(now);
        }
    }

    fn add_tag(&mut self, tag: &[u8], at: i64) {
        let Self { tags, hasher, text, .. } = self;
        let hash = hasher.hash_one(tag);
        if let Some(known) = tags.find_mut(hash, |entry| entry.tag(text) == tag) {
            known.at = at.max(known.at);
            return;
        }
        let entry = Entry { start: text.len(), length: tag.len(), at };
        text.extend_from_slice(tag);
        tags.insert_unique(hash, entry, |entry| hasher.hash_one(entry.tag(text)));
    }

    fn is_within(&self, at: i64, now: i64) -> bool {
        self.window > 0 && now.saturating_sub(at) <= self.window
    }

    /// Forgets what is too old. If too much is left, it becomes everything, for as long as its latest counts.
    pub fn tidy(&mut self, now: i64) {
        let (window, before) = (self.window, self.tags.len());
        self.tags.retain(|entry| now.saturating_sub(entry.at) <= window);
        self.everything = self.everything.filter(|at| now.saturating_sub(*at) <= window);
        if self.tags.len() < before {
            self.compact();
        }
        if self.tags.len() > MOST_TAGS || self.bytes() > MOST_BYTES {
            self.generalize();
        }
    }

    /// The tags become everything, for as long as the latest of them counts.
    pub fn generalize(&mut self) {
        self.everything = self.everything.max(self.tags.iter().map(|entry| entry.at).max());
        (self.tags, self.text) = Default::default();
    }

    /// Gives the room of what was forgotten back.
    fn compact(&mut self) {
        let Self { tags, hasher, text, .. } = self;
        let mut kept = Vec::with_capacity(tags.iter().map(|entry| entry.length).sum());
        for entry in tags.iter_mut() {
            let start = kept.len();
            kept.extend_from_slice(entry.tag(text));
            entry.start = start;
        }
        *text = kept;
        tags.shrink_to(2 * tags.len(), |entry| hasher.hash_one(entry.tag(text)));
    }

    /// Whether anything is within the window.
    pub fn has_any(&self, now: i64) -> bool {
        self.has_everything(now) || self.tags.iter().any(|entry| self.is_within(entry.at, now))
    }

    /// Whether everything is.
    pub fn has_everything(&self, now: i64) -> bool {
        self.everything.is_some_and(|at| self.is_within(at, now))
    }

    /// The tags with their times, and since when everything counts, as after [`Recent::tidy`].
    pub fn entries(&self) -> (Option<i64>, impl Iterator<Item = (&[u8], i64)>) {
        (self.everything, self.tags.iter().map(|entry| (entry.tag(&self.text), entry.at)))
    }

    /// Bytes that all of it takes in a file, about.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.tags.len() * OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Tag;

    fn tag(number: usize) -> Tag {
        number.to_string().into_bytes().into()
    }

    fn tags(recent: &mut Recent, now: i64) -> (Option<i64>, Vec<(Tag, i64)>) {
        recent.tidy(now);
        let (everything, entries) = recent.entries();
        let mut found: Vec<_> = entries.map(|(tag, at)| (Tag::from(tag), at)).collect();
        found.sort_unstable();
        (everything, found)
    }

    #[test]
    fn each_tag_once_with_its_latest_time_until_the_window_is_over() {
        let mut recent = Recent::new(Duration::from_millis(100));
        recent.add(&Scope::Tags(vec![tag(1), tag(2)]), 10, 10);
        recent.add(&Scope::Tags(vec![tag(1)]), 30, 30);
        recent.add(&Scope::Tags(vec![tag(1)]), 20, 30);
        assert!(recent.has_any(130) && !recent.has_any(131));
        assert_eq!(tags(&mut recent, 110), (None, vec![(tag(1), 30), (tag(2), 10)]));
        assert_eq!(recent.bytes(), 2 * (1 + OVERHEAD));
        assert_eq!(tags(&mut recent, 111), (None, vec![(tag(1), 30)]));
        assert_eq!(tags(&mut recent, 131), (None, vec![]));
        assert_eq!(recent.bytes(), 0);
    }

    #[test]
    fn everything_is_forgotten_like_a_tag() {
        let mut recent = Recent::new(Duration::from_millis(100));
        recent.add(&Scope::Everything, 20, 20);
        recent.add(&Scope::Everything, 10, 20);
        recent.add(&Scope::Tags(vec![tag(1)]), 60, 60);
        assert!(recent.has_everything(120) && !recent.has_everything(121));
        assert!(recent.has_any(160) && !recent.has_any(161));
        assert_eq!(tags(&mut recent, 120), (Some(20), vec![(tag(1), 60)]));
        assert_eq!(tags(&mut recent, 121), (None, vec![(tag(1), 60)]));
    }

    #[test]
    fn too_many_tags_become_everything() {
        let mut recent = Recent::new(Duration::from_millis(100));
        (0..MOST_TAGS).for_each(|n| recent.add(&Scope::Tags(vec![tag(n)]), 10, 10));
        assert_eq!(tags(&mut recent, 10).1.len(), MOST_TAGS);
        recent.add(&Scope::Tags(vec![tag(MOST_TAGS)]), 50, 50);
        assert_eq!(tags(&mut recent, 50), (Some(50), vec![]));
        recent.add(&Scope::Tags(vec![tag(7)]), 100, 100);
        assert_eq!(tags(&mut recent, 151), (None, vec![(tag(7), 100)]));
    }

    #[test]
    fn memory_is_bounded_without_anybody_asking() {
        let mut recent = Recent::new(Duration::from_millis(100));
        let long =
            |n: usize| Scope::Tags(vec![[vec![b'x'; 1 << 20], n.to_le_bytes().to_vec()].concat().into()]);
        for n in 0..200 {
            recent.add(&long(n), 10, 10);
            assert!(recent.bytes() <= 2 * MOST_BYTES + (2 << 20));
        }
        assert_eq!(tags(&mut recent, 10).0, Some(10));
    }

    #[test]
    fn no_window_remembers_nothing() {
        let mut recent = Recent::new(Duration::ZERO);
        recent.add(&Scope::Everything, 10, 10);
        recent.add(&Scope::Tags(vec![tag(1)]), 10, 10);
        assert_eq!(tags(&mut recent, 10), (None, vec![]));
    }
}
