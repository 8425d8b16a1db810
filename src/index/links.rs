//! The tags of one entry, and its place among the keys of each.

/// That an entry has a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The number of the tag.
    pub tag: u32,
    /// The entry's place in the tag's list of keys.
    pub place: u32,
}

impl Link {
    const NONE: Link = Link { tag: u32::MAX, place: 0 };
}

/// The links of an entry; two of them need no allocation.
#[derive(Debug)]
pub(super) enum Links {
    /// Unused places at the end are [`Link::NONE`].
    Few([Link; 2]),
    Many(Vec<Link>),
}

impl Links {
    pub(super) fn new() -> Links {
        Links::Few([Link::NONE; 2])
    }

    pub(super) fn as_slice(&self) -> &[Link] {
        match self {
            Links::Few(links) => {
                let len = links.iter().take_while(|link| **link != Link::NONE).count();
                &links[..len]
            }
            Links::Many(links) => links,
        }
    }

    /// The link of that tag, to change its place.
    pub(super) fn find_mut(&mut self, tag: u32) -> Option<&mut Link> {
        let links = match self {
            Links::Few(links) => links.as_mut_slice(),
            Links::Many(links) => links,
        };
        links.iter_mut().find(|link| link.tag == tag)
    }

    pub(super) fn push(&mut self, link: Link) {
        match self {
            Links::Few([first, _]) if *first == Link::NONE => *first = link,
            Links::Few([_, second]) if *second == Link::NONE => *second = link,
            Links::Few([first, second]) => *self = Links::Many(vec![*first, *second, link]),
            Links::Many(links) => {
                // Most keys never get another tag, so there is nothing to be gained by spare room.
                links.reserve_exact(1);
                links.push(link);
            }
        }
    }

    pub(super) fn swap_remove(&mut self, index: usize) -> Link {
        match self {
            Links::Few(links) => {
                let removed = links[index];
                if index == 0 {
                    links[0] = links[1];
                }
                links[1] = Link::NONE;
                removed
            }
            Links::Many(links) => {
                let removed = links.swap_remove(index);
                if let [first, second] = links[..] {
                    *self = Links::Few([first, second]);
                }
                removed
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn heap(&self) -> usize {
        match self {
            Links::Few(_) => 0,
            Links::Many(links) => super::allocated(links.capacity() * size_of::<Link>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks() {
        let link = |tag| Link { tag, place: tag + 10 };
        let mut links = Links::new();
        for tag in 0..5 {
            assert_eq!(links.as_slice(), (0..tag).map(link).collect::<Vec<_>>());
            links.push(link(tag));
        }
        assert_eq!(links.find_mut(3).map(|link| link.place), Some(13));
        for left in (0..5).rev() {
            let first = links.as_slice()[0];
            assert_eq!(links.swap_remove(0), first);
            assert_eq!(links.as_slice().len(), left);
        }
        assert_eq!(links.heap(), 0);
        assert_eq!(size_of::<Links>(), 24);
    }
}
