//! The index: which keys have a tag, and which tags a key has, in memory.
//!
//! It knows no sockets, no clock and no rules: it is told what came to exist, what is gone and what a reply taught.
//! Redis is the truth and news of it comes late, so nothing here is dropped on a reply alone: every entry carries a
//! [`Generation`] that each sign of life moves, and [`Index::drop_if`] compares it.
//!
//! - `entries`: the steps that every change consists of; `slab`: entries under numbers
//! - `links`: the tags of an entry, with its place among the keys of each; `tags`: names of tags and their keys
//! - `labels`: explicit labels, apart because few entries have them; `filter`: who has none, told without the lock;
//!   `expected`: who is about to get some; `sources`: whose labels are about to follow a value
//!
//! A key of 30 bytes with two tags takes about 115 bytes, or 180 if hardly any other key has these tags.

mod entries;
mod expected;
mod filter;
mod labels;
mod links;
mod shared;
mod slab;
mod sources;
mod tags;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::{SmallVec, smallvec};

use crate::rules::Tag;
use labels::{Label, Labels};
use links::Links;
use slab::Slab;
use sources::Sources;
use tags::TagTable;

pub use labels::LabelState;
pub use shared::{Guard, SharedIndex};

/// The number of an entry. Numbers are reused; together with the [`Generation`] they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(u32);

/// A moment in the life of an entry. No two moments of the index have the same, whatever the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

/// A key met by [`Index::collect`] or [`Index::sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected<'a> {
    /// For [`Index::drop_if`].
    pub id: KeyId,
    /// For [`Index::drop_if`].
    pub generation: Generation,
    /// Its database.
    pub db: u32,
    /// Its name.
    pub key: &'a [u8],
    /// See [`Index::unlinking`].
    pub unlinking: bool,
}

/// What went with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The entry is gone; false: there was none, it has moved on, or a labelled write in flight keeps it.
    pub entry: bool,
    /// The explicit labels that went; Redis has to forget them too.
    pub explicit: Vec<Tag>,
}

struct Entry {
    key: Box<[u8]>,
    generation: Generation,
    links: Links,
    db: u32,
    unlinking: bool,
}

/// Tag → keys and key → tags.
pub struct Index {
    entries: Slab<Entry>,
    by_key: HashTable<u32>,
    hasher: DefaultHashBuilder,
    tags: TagTable,
    labels: Labels,
    sources: Sources,
    /// The latest generation given out.
    clock: u64,
    /// Where the next sample begins.
    sampled: usize,
    /// Bytes of keys and of links beyond two.
    heap: usize,
}

impl Default for Index {
    fn default() -> Index {
        Index::new()
    }
}

impl Index {
    /// An empty index.
    pub fn new() -> Index {
        Index {
            entries: Slab::new(),
            by_key: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            tags: TagTable::new(),
            labels: Labels::default(),
            sources: Sources::default(),
            clock: 0,
            sampled: 0,
            heap: 0,
        }
    }

    /// A key exists (seen by a `SCAN`, or written through this proxy): makes sure that its entry has these tags of the
    /// rules, and moves its generation. Tags that it has already stay: [`Index::retag`] is what takes them away.
    ///
    /// `None`: without tags there is nothing to keep, and a key that is not in the index stays out of it.
    pub fn add(&mut self, db: u32, key: &[u8], tags: &[Tag]) -> Option<KeyId> {
        let entry = if tags.is_empty() { self.find(db, key)? } else { self.ensure(db, key) };
        self.touch(entry);
        self.add_ruled(entry, tags);
        Some(KeyId(entry))
    }

    /// The feed says that the key came to exist, so it did not before: as [`Index::add`], but explicit labels that had
    /// settled go, because they were those of the key that was deleted in between. Labels whose write is in flight
    /// stay. Returns the labels that went.
    pub fn created(&mut self, db: u32, key: &[u8], tags: &[Tag]) -> Vec<Tag> {
        let Some(KeyId(entry)) = self.add(db, key, tags) else { return Vec::new() };
        let mut labels = self.labels.take(entry);
        labels.iter_mut().for_each(Label::unsettle);
        self.keep_labels(entry, labels)
    }

    /// The feed says that the key expired or was evicted: its entry goes, except for explicit labels whose write is in
    /// flight.
    pub fn gone(&mut self, db: u32, key: &[u8]) -> Dropped {
        self.find(db, key).map_or_else(Dropped::default, |entry| self.forget(entry))
    }

    /// What a reply taught (`UNLINK` is done, `EXISTS` says 0): drops the entry as [`Index::gone`] does, but only if
    /// its generation has not moved since the request was sent.
    pub fn drop_if(&mut self, id: KeyId, generation: Generation) -> Dropped {
        match self.entries.get(id.0) {
            Some(entry) if entry.generation == generation => self.forget(id.0),
            _ => Dropped::default(),
        }
    }

    /// An `UNLINK` of the key is sent, or has failed (`false`). That is noted until there is another sign of life: up to then all
    /// that was written to the key is gone when that is answered.
    pub fn unlinking(&mut self, id: KeyId, generation: Generation, sent: bool) {
        if self.entries.get(id.0).is_some_and(|entry| entry.generation == generation) {
            self.entries[id.0].unlinking = sent;
        }
    }

    /// Puts explicit labels on a key, which need not be known, and moves its generation. Returns how many of them it
    /// did not have as explicit labels before.
    pub fn label(&mut self, db: u32, key: &[u8], tags: &[Tag], state: LabelState) -> usize {
        if tags.is_empty() {
            return 0;
        }
        let entry = self.ensure(db, key);
        self.touch(entry);
        let mut labels = self.labels.take(entry);
        let mut added = 0;
        let mut given: SmallVec<[u32; 8]> = smallvec![];
        for (turn, tag) in tags.iter().enumerate() {
            let (number, linked_now) = self.link(entry, tag, turn);
            if given.contains(&number) {
                continue;
            }
            given.push(number);
            let place = labels.iter().position(|label| label.tag == number).unwrap_or_else(|| {
                let mut label = Label::new(number, !linked_now);
                // To be counted below like one that comes back.
                label.removed = true;
                labels.push(label);
                labels.len() - 1
            });
            let label = &mut labels[place];
            added += usize::from(std::mem::take(&mut label.removed));
            match state {
                LabelState::InFlight => label.in_flight += 1,
                LabelState::Settled => label.settled = true,
            }
        }
        self.put_labels(entry, labels);
        added
    }

    /// A labelled write is done, and the events that it caused have been seen: ends one [`LabelState::InFlight`] of
    /// each of the labels.
    pub fn settle(&mut self, db: u32, key: &[u8], tags: &[Tag]) {
        self.change_labels(db, key, tags, |label| {
            label.in_flight = label.in_flight.saturating_sub(1);
            label.settled = !label.removed;
        });
        // The key was written a moment ago: what was asked about it before says nothing any more.
        if let Some(entry) = self.find(db, key) {
            self.touch(entry);
        }
    }

    /// A labelled write failed or did not write: as [`Index::settle`], but labels that nothing else holds go.
    pub fn cancel(&mut self, db: u32, key: &[u8], tags: &[Tag]) {
        self.change_labels(db, key, tags, |label| label.in_flight = label.in_flight.saturating_sub(1));
    }

    /// The value of the key is about to be moved away or overwritten: these labels stay until [`Index::left`] or
    /// [`Index::stayed`] follows. Those that are given anew until then belong to another value and are not concerned.
    pub fn leaving(&mut self, db: u32, key: &[u8], tags: &[Tag]) {
        self.change_labels(db, key, tags, |label| {
            if std::mem::take(&mut label.settled) {
                label.leaving = true;
            }
        });
    }

    /// The value is gone: of these labels, those that were [`Index::leaving`] and are not given anew go. Returns them;
    /// Redis has to forget them too.
    pub fn left(&mut self, db: u32, key: &[u8], tags: &[Tag]) -> Vec<Tag> {
        self.change_labels(db, key, tags, |label| label.leaving = false)
    }

    /// The value is still there: of these labels, those that were [`Index::leaving`] are as they were.
    pub fn stayed(&mut self, db: u32, key: &[u8], tags: &[Tag]) {
        self.change_labels(db, key, tags, |label| {
            label.settled |= std::mem::take(&mut label.leaving) && !label.removed;
        });
    }

    /// Takes explicit labels away; tags that the rules give stay. Returns how many it had.
    pub fn unlabel(&mut self, db: u32, key: &[u8], tags: &[Tag]) -> usize {
        let mut had = 0;
        self.change_labels(db, key, tags, |label| {
            had += usize::from(!label.removed);
            label.removed = true;
            label.unsettle();
        });
        had
    }

    /// How many explicit labels there are.
    pub fn explicit_count(&self) -> usize {
        self.labels.shown()
    }

    /// All tags of a key, those of the rules and the explicit ones.
    pub fn tags_of(&self, db: u32, key: &[u8]) -> Vec<Tag> {
        let Some(entry) = self.find(db, key) else { return Vec::new() };
        let links = self.entries[entry].links.as_slice().iter();
        let shown = links.filter(|link| !self.labels.hides(entry, link.tag));
        shown.map(|link| Tag::from(self.tags.name(link.tag))).collect()
    }

    /// The explicit labels of a key.
    pub fn explicit_of(&self, db: u32, key: &[u8]) -> Vec<Tag> {
        let Some(entry) = self.find(db, key) else { return Vec::new() };
        let shown = self.labels.of(entry).iter().filter(|label| !label.removed);
        shown.map(|label| Tag::from(self.tags.name(label.tag))).collect()
    }

    /// The explicit labels of a key without those whose write is in flight, or whose value is about to be overwritten.
    pub fn at_rest(&self, db: u32, key: &[u8]) -> Vec<Tag> {
        let Some(entry) = self.find(db, key) else { return Vec::new() };
        let shown = self.labels.of(entry).iter().filter(|label| label.settled && label.in_flight == 0);
        shown.map(|label| Tag::from(self.tags.name(label.tag))).collect()
    }

    /// At most `limit` keys of one database that have the tag.
    pub fn keys_of(&self, db: u32, tag: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let Some(number) = self.tags.find(tag) else { return Vec::new() };
        let members = self.tags.members(number).iter().filter(|&&entry| !self.labels.hides(entry, number));
        let entries = members.map(|&entry| &self.entries[entry]).filter(|entry| entry.db == db);
        entries.take(limit).map(|entry| entry.key.to_vec()).collect()
    }

    /// Whether the key is known, and since when.
    pub fn get(&self, db: u32, key: &[u8]) -> Option<(KeyId, Generation)> {
        self.find(db, key).map(|entry| (KeyId(entry), self.entries[entry].generation))
    }

    /// Visits at most `max` (at least one) of the keys that have the tag, in all databases. Begin with `usize::MAX`
    /// and go on with what is returned; `None`: that was the last chunk.
    ///
    /// The list is walked backwards. Between chunks it may change: additions go to its end, and a removal puts the last
    /// key in the place of the removed one, which is either not yet visited or visited before. So a key that was there
    /// at the start and still is at the end is never missed, though it may be visited twice.
    pub fn collect(
        &self,
        tag: &[u8],
        cursor: usize,
        max: usize,
        visit: &mut dyn FnMut(Collected<'_>),
    ) -> Option<usize> {
        let members = self.tags.members(self.tags.find(tag)?);
        let end = cursor.min(members.len());
        let start = end.saturating_sub(max.max(1));
        members[start..end].iter().rev().for_each(|&entry| visit(self.collected(entry)));
        (start > 0).then_some(start)
    }

    /// Visits at most `max` entries, going on where the last call ended and round again. Where entries are sparse it
    /// may visit fewer, to remain short.
    pub fn sample(&mut self, max: usize, visit: &mut dyn FnMut(Collected<'_>)) {
        let mut left = max.min(self.len());
        let mut steps = max.saturating_mul(16).saturating_add(1024).min(self.entries.end());
        while left > 0 && steps > 0 {
            if self.sampled >= self.entries.end() {
                self.sampled = 0;
            }
            let at = self.entries.skip_empty(self.sampled);
            if at == self.sampled {
                if self.entries.get(at as u32).is_some() {
                    visit(self.collected(at as u32));
                    left -= 1;
                }
                self.sampled += 1;
            } else {
                self.sampled = at;
            }
            steps -= 1;
        }
    }

    /// Gives the tags of new rules to the entries in the `max` slots from `cursor` on, and takes those of the old rules
    /// away; explicit labels stay, entries without any tag go. `tags_of` appends the tags of a key. Begin with 0 and go
    /// on with what is returned; `None`: all entries are done. Entries added in between must have the new rules' tags.
    pub fn retag(
        &mut self,
        cursor: usize,
        max: usize,
        mut tags_of: impl FnMut(u32, &[u8], &mut Vec<Tag>),
    ) -> Option<usize> {
        let end = cursor.saturating_add(max.max(1)).min(self.entries.end());
        let mut tags = Vec::new();
        for number in cursor..end {
            let number = number as u32;
            let Some(entry) = self.entries.get(number) else { continue };
            tags.clear();
            tags_of(entry.db, &entry.key, &mut tags);
            self.unlink_where(number, |index, tag| {
                let ruled = tags.iter().any(|known| **known == *index.tags.name(tag));
                !index.labels.set_ruled(number, tag, ruled) && !ruled
            });
            self.add_ruled(number, &tags);
            self.remove_if_bare(number);
        }
        (end < self.entries.end()).then_some(end)
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tags some key has.
    pub fn tag_count(&self) -> usize {
        self.tags.len()
    }

    /// Appends the tags that some key has, of the `max` numbers from `cursor` on. Begin with 0 and go on with what is returned;
    /// `None`: that was the last chunk. A tag that some key has all the time is not missed.
    pub fn tags(&self, cursor: usize, max: usize, out: &mut Vec<Tag>) -> Option<usize> {
        let end = cursor.saturating_add(max.max(1)).min(self.tags.end());
        out.extend(self.tags.names(cursor, end).map(Tag::from));
        (end < self.tags.end()).then_some(end)
    }

    /// About how much memory the index takes.
    pub fn bytes(&self) -> usize {
        size_of::<Index>()
            + self.entries.bytes()
            + self.by_key.allocation_size()
            + self.heap
            + self.tags.bytes()
            + self.labels.bytes()
    }

    /// Forgets everything. Generations given out before stay unequal to those that follow.
    pub fn clear(&mut self) {
        let (labels, sources) = (self.labels.cleared(), std::mem::take(&mut self.sources));
        *self = Index { clock: self.clock, labels, sources, ..Index::new() };
    }
}

/// What an allocation of that many bytes takes, about.
fn allocated(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

/// Gives memory back when a table has become much too large.
fn shrink_table(table: &mut HashTable<u32>, hash: impl Fn(&u32) -> u64) {
    if table.capacity() > 64 && table.len() < table.capacity() / 8 {
        table.shrink_to(table.len() * 2, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_entry_is_small() {
        assert_eq!(size_of::<Option<Entry>>(), 56);
    }

    #[test]
    fn an_unlink_that_is_sent_is_noted_until_the_next_sign_of_life() {
        let (mut index, tags) = (Index::new(), [Tag::from(b"t".as_slice())]);
        let is_noted = |index: &Index| {
            let mut noted = None;
            index.collect(b"t", usize::MAX, 1, &mut |one| noted = Some(one.unlinking));
            noted
        };
        index.add(0, b"k", &tags);
        let (id, first) = index.get(0, b"k").unwrap();
        assert_eq!(is_noted(&index), Some(false));
        index.unlinking(id, first, true);
        assert_eq!(is_noted(&index), Some(true));
        index.unlinking(id, first, false);
        assert_eq!(is_noted(&index), Some(false), "it has failed");
        index.unlinking(id, first, true);
        index.created(0, b"k", &tags);
        assert_eq!(is_noted(&index), Some(false), "it is there anew");
        index.unlinking(id, first, true);
        assert_eq!(is_noted(&index), Some(false), "that was before");
    }

    #[test]
    fn tags_come_in_chunks() {
        let mut index = Index::new();
        let tag = |n: u8| Tag::from([n].as_slice());
        (0..10).for_each(|n| _ = index.add(0, &[n], &[tag(n)]));
        assert!(index.gone(0, &[3]).entry);
        let mut tags = vec![];
        let mut cursor = index.tags(0, 4, &mut tags);
        assert_eq!(tags.len(), 3);
        while let Some(at) = cursor {
            cursor = index.tags(at, 4, &mut tags);
        }
        tags.sort_unstable();
        assert_eq!(tags, (0..10).filter(|n| *n != 3).map(tag).collect::<Vec<_>>());
    }
}
