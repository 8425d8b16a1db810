//! The steps that every change of the index consists of: entries made and dropped, links and labels put on and taken
//! off. Each keeps the two directions of the index, key → tags and tag → keys, in agreement.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use super::labels::Label;
use super::links::{Link, Links};
use super::{Collected, Dropped, Entry, Generation, Index, KeyId, allocated, shrink_table};
use crate::rules::Tag;

/// So many tags are compared by name; to find the numbers of more is faster.
const FEW: usize = 16;

impl Index {
    pub(super) fn hash(hasher: &DefaultHashBuilder, db: u32, key: &[u8]) -> u64 {
        hasher.hash_one((db, key))
    }

    pub(super) fn find(&self, db: u32, key: &[u8]) -> Option<u32> {
        let hash = Index::hash(&self.hasher, db, key);
        let same = |&number: &u32| {
            let entry = &self.entries[number];
            entry.db == db && *entry.key == *key
        };
        self.by_key.find(hash, same).copied()
    }

    pub(super) fn ensure(&mut self, db: u32, key: &[u8]) -> u32 {
        if let Some(number) = self.find(db, key) {
            return number;
        }
        let entry =
            Entry { key: key.into(), generation: Generation(0), links: Links::new(), db, unlinking: false };
        self.heap += allocated(key.len());
        let number = self.entries.insert(entry);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.by_key.insert_unique(Index::hash(hasher, db, key), number, |&number| {
            let entry = &entries[number];
            Index::hash(hasher, entry.db, &entry.key)
        });
        number
    }

    pub(super) fn touch(&mut self, entry: u32) {
        self.clock += 1;
        let entry = &mut self.entries[entry];
        (entry.generation, entry.unlinking) = (Generation(self.clock), false);
    }

    pub(super) fn collected(&self, number: u32) -> Collected<'_> {
        let entry = &self.entries[number];
        let Entry { key, generation, db, unlinking, .. } = entry;
        Collected { id: KeyId(number), generation: *generation, db: *db, key, unlinking: *unlinking }
    }

    pub(super) fn add_ruled(&mut self, entry: u32, tags: &[Tag]) {
        for (turn, tag) in tags.iter().enumerate() {
            let (number, linked_now) = self.link(entry, tag, turn);
            if !linked_now {
                self.labels.set_ruled(entry, number, true);
            }
        }
    }

    /// Makes sure that the entry has the tag. Returns its number, and whether it is new to the entry.
    ///
    /// `turn` is where the link is found if the entry got its tags in the same order before, as keys mostly do.
    pub(super) fn link(&mut self, entry: u32, tag: &Tag, turn: usize) -> (u32, bool) {
        let links = self.entries[entry].links.as_slice();
        let is_same = |link: &&Link| *self.tags.name(link.tag) == **tag;
        let found = links.get(turn).filter(is_same).or_else(|| match links.len() {
            ..=FEW => links.iter().find(is_same),
            // Numbers are compared faster than names.
            _ => self.tags.find(tag).and_then(|number| links.iter().find(|link| link.tag == number)),
        });
        if let Some(link) = found {
            return (link.tag, false);
        }
        let link = self.tags.link(tag, entry);
        let links = &mut self.entries[entry].links;
        self.heap -= links.heap();
        links.push(link);
        self.heap += links.heap();
        (link.tag, true)
    }

    /// Takes away the links whose tag `goes`.
    pub(super) fn unlink_where(&mut self, entry: u32, mut goes: impl FnMut(&mut Index, u32) -> bool) {
        for index in (0..self.entries[entry].links.as_slice().len()).rev() {
            let tag = self.entries[entry].links.as_slice()[index].tag;
            if !goes(self, tag) {
                continue;
            }
            let links = &mut self.entries[entry].links;
            self.heap -= links.heap();
            let link = links.swap_remove(index);
            self.heap += links.heap();
            let Some(moved) = self.tags.unlink(link) else { continue };
            if let Some(moved) = self.entries[moved].links.find_mut(tag) {
                moved.place = link.place;
            }
        }
    }

    /// Changes those of a key's labels that are among `tags`. Returns the names of those that went.
    pub(super) fn change_labels(
        &mut self,
        db: u32,
        key: &[u8],
        tags: &[Tag],
        change: impl FnMut(&mut Label),
    ) -> Vec<Tag> {
        let Some(entry) = self.find(db, key) else { return Vec::new() };
        let mut labels = self.labels.take(entry);
        let numbers: SmallVec<[u32; FEW]> = tags.iter().filter_map(|tag| self.tags.find(tag)).collect();
        labels.iter_mut().filter(|label| numbers.contains(&label.tag)).for_each(change);
        self.keep_labels(entry, labels)
    }

    /// Puts back the labels of an entry.
    pub(super) fn put_labels(&mut self, number: u32, labels: Vec<Label>) {
        let entry = &self.entries[number];
        self.labels.put(number, labels, (entry.db, &entry.key));
    }

    /// Puts back the labels of an entry without those that are over, and drops the entry if it has no tag left.
    /// Returns the names of those that went, without the ones removed before.
    pub(super) fn keep_labels(&mut self, entry: u32, mut labels: Vec<Label>) -> Vec<Tag> {
        let over: Vec<Label> = labels.extract_if(.., |label| label.is_over()).collect();
        let went = over.iter().filter(|label| !label.removed);
        let names: Vec<Tag> = went.map(|label| Tag::from(self.tags.name(label.tag))).collect();
        let place = &self.entries[entry];
        self.sources.lost(place.db, &place.key, &names);
        self.put_labels(entry, labels);
        if !over.is_empty() {
            self.unlink_where(entry, |_, tag| over.iter().any(|label| label.tag == tag && !label.ruled));
            self.remove_if_bare(entry);
        }
        names
    }

    /// Drops an entry, except for the explicit labels whose write is in flight.
    pub(super) fn forget(&mut self, entry: u32) -> Dropped {
        let mut labels = self.labels.take(entry);
        for label in &mut labels {
            label.ruled = false;
            label.unsettle();
        }
        self.unlink_where(entry, |_, tag| !labels.iter().any(|label| label.tag == tag));
        let explicit = self.keep_labels(entry, labels);
        // With labels that are over the entry may have gone right there.
        let dropped = self.entries.get(entry).is_none() || self.remove_if_bare(entry);
        if !dropped {
            self.touch(entry);
        }
        Dropped { entry: dropped, explicit }
    }

    pub(super) fn remove_if_bare(&mut self, number: u32) -> bool {
        if !self.entries[number].links.as_slice().is_empty() {
            return false;
        }
        let Some(entry) = self.entries.remove(number) else { return false };
        self.heap -= allocated(entry.key.len());
        let hash = Index::hash(&self.hasher, entry.db, &entry.key);
        if let Ok(found) = self.by_key.find_entry(hash, |&known| known == number) {
            found.remove();
        }
        let (entries, hasher) = (&self.entries, &self.hasher);
        shrink_table(&mut self.by_key, |&number| {
            let entry = &entries[number];
            Index::hash(hasher, entry.db, &entry.key)
        });
        true
    }
}
