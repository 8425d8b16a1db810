//! A slab in chunks: stable numbers for values, no copying when it grows, memory given back when a chunk empties.

use std::ops::{Index, IndexMut};

/// Values per chunk.
const CHUNK: usize = 1024;
/// The end of a chunk's list of free slots.
const NONE: u32 = u32::MAX;

/// Values under numbers that are reused.
pub(super) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks that have room.
    open: Vec<u32>,
    len: usize,
}

struct Chunk<T> {
    slots: Vec<Slot<T>>,
    /// The first free slot; each names the next.
    free: u32,
    used: u32,
}

enum Slot<T> {
    Used(T),
    Free(u32),
}

fn split(number: u32) -> (usize, usize) {
    (number as usize / CHUNK, number as usize % CHUNK)
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { chunks: Vec::new(), open: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All numbers given out so far are below this.
    pub(super) fn end(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        let number = match self.open.last() {
            Some(&number) => number as usize,
            None => {
                let number = self.chunks.len();
                self.chunks.push(Chunk { slots: Vec::new(), free: NONE, used: 0 });
                self.open.push(number as u32);
                number
            }
        };
        let chunk = &mut self.chunks[number];
        chunk.used += 1;
        let place = match chunk.slots.get_mut(chunk.free as usize) {
            Some(slot) => {
                let place = chunk.free as usize;
                chunk.free = match slot {
                    Slot::Free(next) => *next,
                    Slot::Used(_) => NONE,
                };
                *slot = Slot::Used(value);
                place
            }
            None => {
                chunk.slots.push(Slot::Used(value));
                chunk.slots.len() - 1
            }
        };
        if chunk.used as usize == CHUNK {
            self.open.pop();
        }
        (number * CHUNK + place) as u32
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let (chunk_number, place) = split(number);
        let chunk = self.chunks.get_mut(chunk_number)?;
        let slot = chunk.slots.get_mut(place)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let Slot::Used(value) = std::mem::replace(slot, Slot::Free(chunk.free)) else { return None };
        chunk.free = place as u32;
        if chunk.used as usize == CHUNK {
            self.open.push(chunk_number as u32);
        }
        chunk.used -= 1;
        if chunk.used == 0 {
            chunk.slots = Vec::new();
            chunk.free = NONE;
        }
        self.len -= 1;
        if self.len == 0 {
            *self = Slab::new();
        }
        Some(value)
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        let (chunk, place) = split(number);
        match self.chunks.get(chunk)?.slots.get(place)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// Where to go on looking for values from `number`: at it, or behind an empty chunk.
    pub(super) fn skip_empty(&self, number: usize) -> usize {
        match self.chunks.get(number / CHUNK) {
            Some(chunk) if chunk.used == 0 => (number / CHUNK + 1) * CHUNK,
            _ => number,
        }
    }

    /// What the slab itself takes, without what its values own.
    pub(super) fn bytes(&self) -> usize {
        let slots: usize = self.chunks.iter().map(|chunk| chunk.slots.capacity()).sum();
        slots * size_of::<Slot<T>>()
            + self.chunks.capacity() * size_of::<Chunk<T>>()
            + self.open.capacity() * size_of::<u32>()
    }
}

/// For numbers that are known to be in use; anything else is a broken invariant of the index.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        let (chunk, place) = split(number);
        match &self.chunks[chunk].slots[place] {
            Slot::Used(value) => value,
            Slot::Free(_) => panic!("slot {number} is free"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        let (chunk, place) = split(number);
        match &mut self.chunks[chunk].slots[place] {
            Slot::Used(value) => value,
            Slot::Free(_) => panic!("slot {number} is free"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_and_memory_is_given_back() {
        let mut slab = Slab::new();
        let numbers: Vec<u32> = (0..5000_u64).map(|value| slab.insert(value)).collect();
        assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
        let full = slab.bytes();
        for &number in &numbers[1000..4000] {
            assert_eq!(slab.remove(number), Some(u64::from(number)));
            assert_eq!(slab.remove(number), None);
        }
        // The two chunks in the middle are empty now.
        assert!(slab.bytes() < full * 2 / 3 && slab.skip_empty(1100) == 2048);
        let again: Vec<u32> = (0..3000).map(|value| slab.insert(value)).collect();
        assert!(again.iter().all(|number| (1000..5120).contains(number)));
        assert_eq!((slab.len(), slab.end()), (5000, 5120));
        assert_eq!(slab[999], 999);
        assert!(numbers.iter().chain(&again).all(|&number| slab.remove(number).is_some() || number < 4000));
        assert_eq!((slab.len(), slab.end(), slab.bytes()), (0, 0, 0));
    }
}
