//! Explicit labels (`TAG.WITH`, `TAG.NEXT`, `TAG.ADD`), kept beside the entries: most entries have none.

use std::sync::Arc;

use hashbrown::HashMap;

use super::allocated;
use super::filter::LabelFilter;

/// What is known about the write that an explicit label belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelState {
    /// It is on its way; [`super::Index::settle`] or [`super::Index::cancel`] follows.
    InFlight,
    /// It is done and its events have been seen, or the label was added to a key that exists.
    Settled,
}

/// One explicit label of an entry.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub tag: u32,
    /// Labelled writes on their way.
    pub in_flight: u32,
    pub settled: bool,
    /// The value that it was given to is being moved away or overwritten: it stays until that is known to have taken
    /// place, unless it is given anew meanwhile.
    pub leaving: bool,
    /// Removed by `TAG.REM` while a write was in flight: not shown, but kept until that write has settled, so that
    /// the label of a later write is not taken for its.
    pub removed: bool,
    /// The rules give the key the same tag.
    pub ruled: bool,
}

impl Label {
    pub(super) fn new(tag: u32, ruled: bool) -> Label {
        Label { tag, in_flight: 0, settled: false, leaving: false, removed: false, ruled }
    }

    /// Nothing holds it any longer.
    pub(super) fn is_over(&self) -> bool {
        self.in_flight == 0 && (self.removed || !(self.settled || self.leaving))
    }

    /// The value that it was given to is gone.
    pub(super) fn unsettle(&mut self) {
        (self.settled, self.leaving) = (false, false);
    }
}

/// The explicit labels of all entries, by the entry's number.
///
/// They are changed between [`Labels::take`] and [`Labels::put`], which count them.
#[derive(Default)]
pub(super) struct Labels {
    by_entry: HashMap<u32, Vec<Label>>,
    len: usize,
    shown: usize,
    /// Whether the entry had labels whose are being changed.
    had: bool,
    filter: Arc<LabelFilter>,
}

fn shown(labels: &[Label]) -> usize {
    labels.iter().filter(|label| !label.removed).count()
}

impl Labels {
    /// How many there are, without the removed ones that are still kept.
    pub(super) fn shown(&self) -> usize {
        self.shown
    }

    /// The labels of an entry.
    pub(super) fn of(&self, entry: u32) -> &[Label] {
        // Without explicit labels, the usual case, no entry pays for the look-up.
        if self.len == 0 {
            return &[];
        }
        self.by_entry.get(&entry).map_or(&[], Vec::as_slice)
    }

    /// Whether the entry has the tag only by a label that was removed.
    pub(super) fn hides(&self, entry: u32, tag: u32) -> bool {
        self.of(entry).iter().any(|label| label.tag == tag && label.removed && !label.ruled)
    }

    /// Notes whether the rules give the entry this tag; false if it is no label of the entry.
    pub(super) fn set_ruled(&mut self, entry: u32, tag: u32, ruled: bool) -> bool {
        if self.len == 0 {
            return false;
        }
        let labels = self.by_entry.get_mut(&entry).into_iter().flatten();
        match labels.into_iter().find(|label| label.tag == tag) {
            Some(label) => {
                label.ruled = ruled;
                true
            }
            None => false,
        }
    }

    /// Who surely has none.
    pub(super) fn filter(&self) -> &Arc<LabelFilter> {
        &self.filter
    }

    /// None, with the same filter.
    pub(super) fn cleared(&self) -> Labels {
        self.filter.clear();
        Labels { filter: Arc::clone(&self.filter), ..Labels::default() }
    }

    pub(super) fn take(&mut self, entry: u32) -> Vec<Label> {
        if self.len == 0 {
            return Vec::new();
        }
        let labels = self.by_entry.remove(&entry).unwrap_or_default();
        self.had = !labels.is_empty();
        self.len -= labels.len();
        self.shown -= shown(&labels);
        if self.by_entry.capacity() > 64 && self.by_entry.len() < self.by_entry.capacity() / 8 {
            self.by_entry.shrink_to(self.by_entry.len() * 2);
        }
        labels
    }

    /// Ends what [`Labels::take`] began; `place`: the database and name of the entry's key.
    pub(super) fn put(&mut self, entry: u32, labels: Vec<Label>, place: (u32, &[u8])) {
        // Not in between: who looks without the lock must not find none.
        match (std::mem::take(&mut self.had), labels.is_empty()) {
            (false, false) => self.filter.add(place.0, place.1),
            (true, true) => self.filter.remove(place.0, place.1),
            _ => {}
        }
        if !labels.is_empty() {
            self.len += labels.len();
            self.shown += shown(&labels);
            self.by_entry.insert(entry, labels);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.by_entry.allocation_size() + self.len * allocated(size_of::<Label>())
    }
}
