//! Keys whose value is about to be moved or copied: labels that they get and lose meanwhile must be known to whoever
//! hands them on, whatever else finds out first that the key is gone.

use std::collections::HashMap;

use super::Index;
use super::labels::Label;
use crate::rules::Tag;

/// By database and key.
#[derive(Default)]
pub(super) struct Sources(HashMap<(u32, Box<[u8]>), Source>);

#[derive(Default)]
struct Source {
    /// Commands under way.
    commands: usize,
    lost: Vec<Tag>,
}

impl Sources {
    /// These labels of the key are gone.
    pub fn lost(&mut self, db: u32, key: &[u8], tags: &[Tag]) {
        if !self.0.is_empty()
            && !tags.is_empty()
            && let Some(source) = self.0.get_mut(&(db, key.into()))
        {
            source.lost.extend(tags.iter().cloned());
        }
    }
}

impl Index {
    /// From now on labels that the key loses are remembered, until [`Index::unfollow`].
    pub fn follow(&mut self, db: u32, key: &[u8]) {
        self.sources.0.entry((db, key.into())).or_default().commands += 1;
    }

    /// Ends one [`Index::follow`].
    pub fn unfollow(&mut self, db: u32, key: &[u8]) {
        let place = (db, key.into());
        if let Some(source) = self.sources.0.get_mut(&place) {
            source.commands -= 1;
            if source.commands == 0 {
                self.sources.0.remove(&place);
            }
        }
    }

    /// Of the explicit labels of a key those that it has, besides, for another reason than these writes in flight, `own`: of each
    /// the labels that it gives to the key.
    pub fn explicit_besides(&self, db: u32, key: &[u8], own: &[&[Tag]]) -> Vec<Tag> {
        let Some(entry) = self.find(db, key) else { return Vec::new() };
        let shown = self.labels.of(entry).iter().filter(|label| !label.removed);
        let named = shown.map(|label| (label, Tag::from(self.tags.name(label.tag))));
        let others = |label: &Label, tag: &Tag| {
            let own = own.iter().filter(|tags| tags.contains(tag)).count();
            label.settled || label.leaving || label.in_flight as usize > own
        };
        named.filter(|(label, tag)| others(label, tag)).map(|(_, tag)| tag).collect()
    }

    /// Likewise, and those that the key has lost while it was followed; perhaps those of values that it had one after the other.
    pub fn explicit_or_lost(&self, db: u32, key: &[u8], own: &[&[Tag]]) -> Vec<Tag> {
        let mut tags = self.explicit_besides(db, key, own);
        let lost = self.sources.0.get(&(db, key.into())).map_or(&[] as &[Tag], |source| &source.lost);
        for tag in lost {
            if !tags.contains(tag) {
                tags.push(Tag::clone(tag));
            }
        }
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::LabelState;

    #[test]
    fn what_a_followed_key_loses_is_remembered_until_nobody_follows_it() {
        let (mut index, tags) = (Index::new(), [Tag::from(b"t".as_slice())]);
        let lose = |index: &mut Index| {
            index.label(0, b"k", &tags, LabelState::Settled);
            assert_eq!(index.gone(0, b"k").explicit, tags);
        };
        lose(&mut index);
        index.follow(0, b"k");
        index.follow(0, b"k");
        assert!(index.explicit_or_lost(0, b"k", &[]).is_empty());
        lose(&mut index);
        lose(&mut index);
        assert_eq!(index.explicit_or_lost(0, b"k", &[]), tags);
        assert!(index.explicit_or_lost(1, b"k", &[]).is_empty());
        index.unfollow(0, b"k");
        assert_eq!(index.explicit_or_lost(0, b"k", &[]), tags);
        index.unfollow(0, b"k");
        assert!(index.explicit_or_lost(0, b"k", &[]).is_empty());
    }

    #[test]
    fn a_label_is_there_besides_writes_in_flight_if_something_else_holds_it() {
        let (mut index, tags) = (Index::new(), [Tag::from(b"t".as_slice())]);
        let besides = |index: &Index, own: &[&[Tag]]| !index.explicit_besides(0, b"k", own).is_empty();
        index.label(0, b"k", &tags, LabelState::InFlight);
        assert!(besides(&index, &[]) && !besides(&index, &[&tags]));
        index.label(0, b"k", &tags, LabelState::InFlight);
        assert!(besides(&index, &[&tags]) && !besides(&index, &[&tags, &tags]), "of two writes");
        index.label(0, b"k", &tags, LabelState::Settled);
        assert!(besides(&index, &[&tags, &tags]), "given before");
        index.leaving(0, b"k", &tags);
        assert!(besides(&index, &[&tags, &tags]), "still there");
        index.unlabel(0, b"k", &tags);
        assert!(!besides(&index, &[]), "taken away");
    }
}
