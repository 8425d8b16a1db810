//! The tags in use: their names, each stored once, and the entries that have them.
//!
//! A tag exists as long as an entry has it. Tags of one entry are common (`post:42`), so such a tag takes one slot
//! and no allocation of its own unless its name is long.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::links::Link;
use super::slab::Slab;
use super::{allocated, shrink_table};

/// Names up to this length are stored in place.
const INLINE: usize = 22;

enum Name {
    Inline(u8, [u8; INLINE]),
    Heap(Box<[u8]>),
}

impl Name {
    fn new(name: &[u8]) -> Name {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..name.len()) {
            Some(place) => {
                place.copy_from_slice(name);
                Name::Inline(name.len() as u8, bytes)
            }
            None => Name::Heap(name.into()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Name::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Name::Heap(bytes) => bytes,
        }
    }

    fn heap(&self) -> usize {
        match self {
            Name::Inline(..) => 0,
            Name::Heap(bytes) => allocated(bytes.len()),
        }
    }
}

/// The entries of a tag.
enum Members {
    One(u32),
    /// The number of the list.
    Many(u32),
}

struct TagEntry {
    name: Name,
    members: Members,
}

/// All tags in use.
pub(super) struct TagTable {
    tags: Slab<TagEntry>,
    lists: Slab<Vec<u32>>,
    by_name: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Bytes of names and lists.
    heap: usize,
}

impl TagTable {
    pub(super) fn new() -> TagTable {
        TagTable {
            tags: Slab::new(),
            lists: Slab::new(),
            by_name: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            heap: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tags.len()
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.by_name.find(hash, |&tag| self.tags[tag].name.as_slice() == name).copied()
    }

    pub(super) fn name(&self, tag: u32) -> &[u8] {
        self.tags[tag].name.as_slice()
    }

    /// Above all numbers.
    pub(super) fn end(&self) -> usize {
        self.tags.end()
    }

    /// The names of those with the numbers from `start` up to `end`.
    pub(super) fn names(&self, start: usize, end: usize) -> impl Iterator<Item = &[u8]> {
        let numbers = start as u32..end as u32;
        numbers.filter_map(|number| self.tags.get(number)).map(|tag| tag.name.as_slice())
    }

    /// The entries that have the tag.
    pub(super) fn members(&self, tag: u32) -> &[u32] {
        match &self.tags[tag].members {
            Members::One(entry) => std::slice::from_ref(entry),
            Members::Many(list) => &self.lists[*list],
        }
    }

    /// Gives the tag of that name to an entry that does not have it.
    pub(super) fn link(&mut self, name: &[u8], entry: u32) -> Link {
        let Some(tag) = self.find(name) else {
            let name = Name::new(name);
            self.heap += name.heap();
            let hash = self.hasher.hash_one(name.as_slice());
            let tag = self.tags.insert(TagEntry { name, members: Members::One(entry) });
            let (tags, hasher) = (&self.tags, &self.hasher);
            self.by_name.insert_unique(hash, tag, |&tag| hasher.hash_one(tags[tag].name.as_slice()));
            return Link { tag, place: 0 };
        };
        let members = &mut self.tags[tag].members;
        let place = match *members {
            Members::One(first) => {
                let list = vec![first, entry];
                self.heap += list_heap(&list);
                *members = Members::Many(self.lists.insert(list));
                1
            }
            Members::Many(list) => {
                let list = &mut self.lists[list];
                self.heap -= list_heap(list);
                list.push(entry);
                self.heap += list_heap(list);
                list.len() as u32 - 1
            }
        };
        Link { tag, place }
    }

    /// Takes a link away. Returns the entry that took its place in the tag's list, if one did.
    pub(super) fn unlink(&mut self, link: Link) -> Option<u32> {
        let Members::Many(number) = self.tags[link.tag].members else {
            self.remove(link.tag);
            return None;
        };
        let list = &mut self.lists[number];
        self.heap -= list_heap(list);
        list.swap_remove(link.place as usize);
        let moved = list.get(link.place as usize).copied();
        if let [last] = list[..] {
            self.lists.remove(number);
            self.tags[link.tag].members = Members::One(last);
            return moved;
        }
        if list.capacity() > 16 && list.len() < list.capacity() / 4 {
            list.shrink_to(list.len() * 2);
        }
        self.heap += list_heap(list);
        moved
    }

    fn remove(&mut self, tag: u32) {
        let hash = self.hasher.hash_one(self.name(tag));
        if let Ok(found) = self.by_name.find_entry(hash, |&known| known == tag) {
            found.remove();
        }
        if let Some(entry) = self.tags.remove(tag) {
            self.heap -= entry.name.heap();
        }
        let (tags, hasher) = (&self.tags, &self.hasher);
        shrink_table(&mut self.by_name, |&tag| hasher.hash_one(tags[tag].name.as_slice()));
    }

    pub(super) fn bytes(&self) -> usize {
        self.tags.bytes() + self.lists.bytes() + self.by_name.allocation_size() + self.heap
    }
}

fn list_heap(list: &Vec<u32>) -> usize {
    allocated(list.capacity() * size_of::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_one_entry_is_small() {
        assert_eq!(size_of::<TagEntry>(), 32);
    }

    #[test]
    fn lists_come_and_go() {
        let mut table = TagTable::new();
        let links: Vec<Link> = (0..100).map(|entry| table.link(b"tag", entry)).collect();
        assert_eq!(links[99], Link { tag: 0, place: 99 });
        // Always the first: the last takes its place.
        assert_eq!(table.unlink(links[0]), Some(99));
        for last in (1..99).rev() {
            assert_eq!(table.unlink(Link { tag: 0, place: last }), None);
        }
        assert_eq!((table.members(0), table.name(0)), (&[99][..], &b"tag"[..]));
        assert_eq!(table.unlink(Link { tag: 0, place: 0 }), None);
        assert_eq!((table.len(), table.find(b"tag"), table.heap), (0, None, 0));
    }
}
