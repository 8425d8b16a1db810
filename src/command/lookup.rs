//! From a command's name, as a client wrote it, to its index: a small open-addressing hash table.
//!
//! A top-level name of up to eight letters, as nearly all frequent ones are, is its own key: one word compared
//! decides. Of other names the key only spreads well, and the whole name is compared.

/// A slot that holds nothing.
const EMPTY: u16 = u16::MAX;

/// The parent of a top-level command.
pub(super) const TOP: u16 = u16::MAX;

/// The bit that tells `A` from `a`, in every byte.
const CASE: u64 = 0x2020_2020_2020_2020;

/// What a name is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    word: u64,
    /// No other name has this word, unless it differs in bytes that are no letters.
    short: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    word: u64,
    id: u16,
    /// The word is short and of letters only: whatever short name has it is the same name.
    exact: bool,
}

/// Names to indices.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    slots: Box<[Slot]>,
    mask: usize,
}

impl Lookup {
    /// A table of all `entries`: name, parent and index of each.
    pub(super) fn new<'a>(entries: impl ExactSizeIterator<Item = (&'a [u8], u16, u16)>) -> Lookup {
        // At most half full, so that most names sit where their hash points.
        let size = (entries.len() * 2).next_power_of_two().max(16);
        let mut slots = vec![Slot { word: 0, id: EMPTY, exact: false }; size].into_boxed_slice();
        let mask = size - 1;
        for (name, parent, id) in entries {
            let Key { word, short } = key(name, parent);
            let mut at = spread(word) & mask;
            while slots[at].id != EMPTY {
                at = (at + 1) & mask;
            }
            slots[at] = Slot { word, id, exact: short && name.iter().all(u8::is_ascii_alphabetic) };
        }
        Lookup { slots, mask }
    }

    /// The index under `key` that `is_it` agrees to.
    #[inline]
    pub(super) fn find(&self, key: Key, is_it: impl Fn(u16) -> bool) -> Option<u16> {
        let mut at = spread(key.word) & self.mask;
        loop {
            let slot = self.slots[at];
            if slot.word == key.word && slot.id != EMPTY && ((key.short && slot.exact) || is_it(slot.id)) {
                return Some(slot.id);
            }
            if slot.id == EMPTY {
                return None;
            }
            at = (at + 1) & self.mask;
        }
    }
}

/// The key of `name`, whatever its case, below the command `parent`.
#[inline]
pub(super) fn key(name: &[u8], parent: u16) -> Key {
    let length = name.len() as u64;
    let word = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(first), _) if length == 8 => u64::from_le_bytes(*first) | CASE,
        (Some(first), Some(last)) => {
            let (first, last) = (u64::from_le_bytes(*first) | CASE, u64::from_le_bytes(*last) | CASE);
            first ^ last.rotate_left(29) ^ length
        }
        // The length stands in the byte that is left, so that NUL bytes at the end are not lost.
        _ => packed(name) | length << 56,
    };
    match parent {
        TOP => Key { word, short: length <= 8 },
        parent => Key { word: word ^ u64::from(parent).wrapping_mul(0xC2B2_AE3D_27D4_EB4F), short: false },
    }
}

/// Up to seven bytes as one word with the case bits set; loads may overlap, they agree where they do.
#[inline]
fn packed(name: &[u8]) -> u64 {
    let n = name.len();
    if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        (u64::from(first) | u64::from(last) << (8 * (n - 4))) | CASE >> (8 * (8 - n))
    } else if let (Some(first), Some(last)) = (name.first(), name.last()) {
        let middle = u64::from(name[n / 2]) << (8 * (n / 2));
        (u64::from(*first) | middle | u64::from(*last) << (8 * (n - 1))) | CASE >> (8 * (8 - n))
    } else {
        0
    }
}

/// Where the search for `word` begins.
#[inline]
fn spread(word: u64) -> usize {
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_does_not_matter_and_parents_do() {
        assert_eq!(key(b"GeoRadiusByMember_RO", TOP), key(b"georadiusbymember_ro", TOP));
        assert_eq!(key(b"Get", TOP), key(b"gET", TOP));
        assert_ne!(key(b"get", TOP), key(b"get", 3));
        assert_ne!(key(b"get", TOP), key(b"set", TOP));
        assert_ne!(key(b"get", TOP), key(b"get\0", TOP));
    }

    #[test]
    fn short_names_have_words_of_their_own() {
        let name = b"abcdefgh";
        let mut words: Vec<u64> = (0..=8).map(|n| key(&name[..n], TOP).word).collect();
        for at in 0..8 {
            let mut other = *name;
            other[at] = b'z';
            words.extend((at + 1..=8).map(|n| key(&other[..n], TOP).word));
        }
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
    }

    #[test]
    fn what_is_no_letter_is_compared() {
        let lookup = Lookup::new([(&b"sort_ro"[..], TOP, 1), (&b"get"[..], TOP, 2)].into_iter());
        assert_eq!(key(b"sort_ro", TOP), key(b"sort\x7fro", TOP));
        assert_eq!(lookup.find(key(b"sort\x7fro", TOP), |_| false), None);
        assert_eq!(lookup.find(key(b"GET", TOP), |_| false), Some(2));
        assert_eq!(lookup.find(key(b"nosuch", TOP), |_| true), None);
    }
}
