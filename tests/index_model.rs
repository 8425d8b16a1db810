//! The index against a naive model, its chunked walk under mutation, and the safety of generations.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use rescind::index::{Dropped, Generation, Index, KeyId, LabelState};
use rescind::rules::Tag;

/// Some names are too long to be stored in place.
const TAGS: [&str; 5] = ["a", "b", "c", "a name of more than twenty-two bytes", "another name of many bytes"];

fn tag(n: u8) -> Tag {
    Tag::from(TAGS[usize::from(n) % TAGS.len()].as_bytes())
}

fn tags(set: &BTreeSet<u8>) -> Vec<Tag> {
    set.iter().map(|&n| tag(n)).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Add(u8, BTreeSet<u8>),
    Created(u8, BTreeSet<u8>),
    Gone(u8),
    Label(u8, BTreeSet<u8>, bool),
    Settle(u8, BTreeSet<u8>),
    Cancel(u8, BTreeSet<u8>),
    Unlabel(u8, BTreeSet<u8>),
    Leaving(u8, BTreeSet<u8>),
    Left(u8, BTreeSet<u8>),
    Stayed(u8, BTreeSet<u8>),
    Remember(u8),
    DropRemembered(usize),
    Retag(usize),
    Clear,
}

fn ops(keys: u8) -> impl Strategy<Value = Vec<Op>> {
    let set = || prop::collection::btree_set(0..TAGS.len() as u8, 0..TAGS.len());
    let key = move || 0..keys;
    let op = prop_oneof![
        6 => (key(), set()).prop_map(|(key, set)| Op::Add(key, set)),
        3 => (key(), set()).prop_map(|(key, set)| Op::Created(key, set)),
        3 => key().prop_map(Op::Gone),
        4 => (key(), set(), any::<bool>()).prop_map(|(key, set, settled)| Op::Label(key, set, settled)),
        3 => (key(), set()).prop_map(|(key, set)| Op::Settle(key, set)),
        2 => (key(), set()).prop_map(|(key, set)| Op::Cancel(key, set)),
        3 => (key(), set()).prop_map(|(key, set)| Op::Unlabel(key, set)),
        3 => (key(), set()).prop_map(|(key, set)| Op::Leaving(key, set)),
        2 => (key(), set()).prop_map(|(key, set)| Op::Left(key, set)),
        2 => (key(), set()).prop_map(|(key, set)| Op::Stayed(key, set)),
        4 => key().prop_map(Op::Remember),
        4 => any::<usize>().prop_map(Op::DropRemembered),
        1 => (1..5_usize).prop_map(Op::Retag),
        1 => Just(Op::Clear),
    ];
    prop::collection::vec(op, 1..120)
}

#[derive(Clone, Debug, Default)]
struct Label {
    in_flight: u32,
    settled: bool,
    leaving: bool,
    removed: bool,
}

impl Label {
    fn unsettle(&mut self) {
        (self.settled, self.leaving) = (false, false);
    }
}

#[derive(Clone, Debug, Default)]
struct Entry {
    ruled: BTreeSet<u8>,
    labels: BTreeMap<u8, Label>,
    /// Counts signs of life; a remembered pair is good only for the same count.
    moment: u64,
}

#[derive(Default)]
struct Model {
    entries: HashMap<u8, Entry>,
    moments: u64,
    remembered: Vec<(KeyId, Generation, u8, u64)>,
}

/// Two databases share the names of keys.
fn name(key: u8) -> (u32, Vec<u8>) {
    (u32::from(key % 2), format!("key-{}", key / 2).into_bytes())
}

impl Model {
    fn touch(&mut self, key: u8) -> &mut Entry {
        self.moments += 1;
        let entry = self.entries.entry(key).or_default();
        entry.moment = self.moments;
        entry
    }

    /// Drops labels that are over and entries without tags; the names of labels that went.
    fn tidy(&mut self, key: u8) -> BTreeSet<u8> {
        let Some(entry) = self.entries.get_mut(&key) else { return BTreeSet::new() };
        let over =
            |label: &Label| label.in_flight == 0 && (label.removed || !label.settled && !label.leaving);
        let went: BTreeSet<u8> =
            entry.labels.iter().filter(|(_, label)| over(label) && !label.removed).map(|(n, _)| *n).collect();
        entry.labels.retain(|_, label| !over(label));
        if entry.ruled.is_empty() && entry.labels.is_empty() {
            self.entries.remove(&key);
        }
        went
    }

    fn add(&mut self, key: u8, set: &BTreeSet<u8>) {
        if !set.is_empty() || self.entries.contains_key(&key) {
            self.touch(key).ruled.extend(set);
        }
    }

    fn forget(&mut self, key: u8) -> (bool, BTreeSet<u8>) {
        let Some(entry) = self.entries.get_mut(&key) else { return (false, BTreeSet::new()) };
        entry.ruled.clear();
        entry.labels.values_mut().for_each(Label::unsettle);
        let went = self.tidy(key);
        let kept = self.entries.contains_key(&key);
        if kept {
            self.touch(key);
        }
        (!kept, went)
    }

    fn labels(&mut self, key: u8, set: &BTreeSet<u8>, mut change: impl FnMut(&mut Label)) -> BTreeSet<u8> {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.labels.iter_mut().filter(|(n, _)| set.contains(n)).for_each(|(_, label)| change(label));
        }
        self.tidy(key)
    }

    fn label(&mut self, key: u8, set: &BTreeSet<u8>, settled: bool) -> usize {
        let mut added = 0;
        for &n in set {
            let label =
                self.touch(key).labels.entry(n).or_insert(Label { removed: true, ..Label::default() });
            added += usize::from(label.removed);
            label.removed = false;
            label.settled |= settled;
            label.in_flight += u32::from(!settled);
        }
        added
    }

    fn tags_of(&self, key: u8) -> BTreeSet<Tag> {
        let Some(entry) = self.entries.get(&key) else { return BTreeSet::new() };
        let shown = entry.labels.iter().filter(|(_, label)| !label.removed).map(|(n, _)| n);
        entry.ruled.iter().chain(shown).map(|&n| tag(n)).collect()
    }
}

fn dropped(entry: bool, explicit: &BTreeSet<u8>) -> (bool, BTreeSet<Tag>) {
    (entry, tags(explicit).into_iter().collect())
}

fn got(dropped: Dropped) -> (bool, BTreeSet<Tag>) {
    (dropped.entry, dropped.explicit.into_iter().collect())
}

fn new_rules(db: u32, key: &[u8]) -> BTreeSet<u8> {
    let n = key[key.len() - 1] % 4;
    if db == 1 && n == 0 { BTreeSet::new() } else { [n, 4].into() }
}

fn apply(op: &Op, index: &mut Index, model: &mut Model) {
    match op {
        Op::Add(key, set) => {
            let (db, name) = name(*key);
            model.add(*key, set);
            let id = index.add(db, &name, &tags(set));
            assert_eq!(id, index.get(db, &name).map(|(id, _)| id));
        }
        Op::Created(key, set) => {
            let (db, name) = name(*key);
            model.add(*key, set);
            if let Some(entry) = model.entries.get_mut(key) {
                entry.labels.values_mut().for_each(Label::unsettle);
            }
            let went = model.tidy(*key);
            let lost: BTreeSet<Tag> = index.created(db, &name, &tags(set)).into_iter().collect();
            assert_eq!(lost, tags(&went).into_iter().collect());
        }
        Op::Gone(key) => {
            let (db, name) = name(*key);
            let (entry, explicit) = model.forget(*key);
            assert_eq!(got(index.gone(db, &name)), dropped(entry, &explicit));
        }
        Op::Label(key, set, settled) => {
            let (db, name) = name(*key);
            let state = if *settled { LabelState::Settled } else { LabelState::InFlight };
            let mut names = tags(set);
            names.extend(tags(set));
            assert_eq!(index.label(db, &name, &names, state), model.label(*key, set, *settled));
        }
        Op::Settle(key, set) => {
            let (db, name) = name(*key);
            model.labels(*key, set, |label| {
                label.in_flight = label.in_flight.saturating_sub(1);
                label.settled = !label.removed;
            });
            index.settle(db, &name, &tags(set));
            if model.entries.contains_key(key) {
                model.touch(*key);
            }
        }
        Op::Cancel(key, set) => {
            let (db, name) = name(*key);
            model.labels(*key, set, |label| label.in_flight = label.in_flight.saturating_sub(1));
            index.cancel(db, &name, &tags(set));
        }
        Op::Unlabel(key, set) => {
            let (db, name) = name(*key);
            let mut had = 0;
            model.labels(*key, set, |label| {
                had += usize::from(!label.removed);
                label.removed = true;
                label.unsettle();
            });
            assert_eq!(index.unlabel(db, &name, &tags(set)), had);
        }
        _ => apply_more(op, index, model),
    }
}

fn apply_more(op: &Op, index: &mut Index, model: &mut Model) {
    match op {
        Op::Leaving(key, set) => {
            let (db, name) = name(*key);
            model.labels(*key, set, |label| {
                label.leaving |= label.settled;
                label.settled = false;
            });
            index.leaving(db, &name, &tags(set));
        }
        Op::Left(key, set) => {
            let (db, name) = name(*key);
            let went = model.labels(*key, set, |label| label.leaving = false);
            let lost: BTreeSet<Tag> = index.left(db, &name, &tags(set)).into_iter().collect();
            assert_eq!(lost, tags(&went).into_iter().collect());
        }
        Op::Stayed(key, set) => {
            let (db, name) = name(*key);
            model.labels(*key, set, |label| {
                label.settled |= label.leaving;
                label.leaving = false;
            });
            index.stayed(db, &name, &tags(set));
        }
        Op::Remember(key) => {
            let (db, name) = name(*key);
            if let Some((id, generation)) = index.get(db, &name) {
                model.remembered.push((id, generation, *key, model.entries[key].moment));
            }
        }
        Op::DropRemembered(n) if !model.remembered.is_empty() => {
            let (id, generation, key, moment) = model.remembered[n % model.remembered.len()];
            let current = model.entries.get(&key).is_some_and(|entry| entry.moment == moment);
            let (entry, explicit) = if current { model.forget(key) } else { (false, BTreeSet::new()) };
            assert_eq!(got(index.drop_if(id, generation)), dropped(entry, &explicit));
        }
        Op::Retag(max) => {
            let keys: Vec<u8> = model.entries.keys().copied().collect();
            for key in keys {
                let (db, name) = name(key);
                model.entries.get_mut(&key).unwrap().ruled = new_rules(db, &name);
                model.tidy(key);
            }
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                cursor = index.retag(at, *max, |db, key, out| out.extend(tags(&new_rules(db, key))));
            }
        }
        Op::Clear => {
            index.clear();
            model.entries.clear();
        }
        _ => {}
    }
}

fn agree(index: &Index, model: &Model, keys: u8) {
    let mut in_use = BTreeSet::new();
    let mut keys_of: HashMap<(u32, Tag), BTreeSet<Vec<u8>>> = HashMap::new();
    for key in 0..keys {
        let (db, name) = name(key);
        let expected = model.tags_of(key);
        let found = index.tags_of(db, &name);
        assert_eq!(found.len(), expected.len(), "no duplicates");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(index.get(db, &name).is_some(), model.entries.contains_key(&key));
        for tag in expected {
            keys_of.entry((db, tag)).or_default().insert(name.clone());
        }
        if let Some(entry) = model.entries.get(&key) {
            in_use.extend(entry.ruled.iter().chain(entry.labels.keys()).copied());
        }
    }
    for (db, n) in (0..2).flat_map(|db| (0..TAGS.len() as u8).map(move |n| (db, n))) {
        let found: BTreeSet<_> = index.keys_of(db, &tag(n), usize::MAX).into_iter().collect();
        assert_eq!(found, keys_of.remove(&(db, tag(n))).unwrap_or_default());
        assert_eq!(index.keys_of(db, &tag(n), 2).len(), found.len().min(2));
    }
    assert_eq!((index.len(), index.tag_count()), (model.entries.len(), in_use.len()));
    let shown = model.entries.values().flat_map(|entry| entry.labels.values()).filter(|label| !label.removed);
    assert_eq!(index.explicit_count(), shown.count());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_does_what_the_model_does(ops in ops(10)) {
        let (mut index, mut model) = (Index::new(), Model::default());
        for op in &ops {
            apply(op, &mut index, &mut model);
            agree(&index, &model, 10);
        }
        index.retag(0, usize::MAX, |_, _, _| {});
        let all: Vec<u8> = model.entries.keys().copied().collect();
        for key in all {
            let (db, name) = name(key);
            TAGS.iter().for_each(|tag| { index.unlabel(db, &name, &[Tag::from(tag.as_bytes())]); });
            // Removed labels of writes in flight hold on until those have settled.
            (0..200).for_each(|_| TAGS.iter().for_each(|tag| index.settle(db, &name, &[Tag::from(tag.as_bytes())])));
        }
        prop_assert_eq!((index.len(), index.tag_count(), index.explicit_count()), (0, 0, 0));
        prop_assert!(index.bytes() < 4096, "{}", index.bytes());
    }

    #[test]
    fn a_walk_in_chunks_misses_nothing_that_stays(
        before in ops(60), during in prop::collection::vec(ops(60), 1..20), max in 1..6_usize, n in 0..5_u8,
    ) {
        let (mut index, mut model) = (Index::new(), Model::default());
        let whole = |op: &&Op| !matches!(op, Op::Retag(_) | Op::Clear);
        before.iter().filter(whole).for_each(|op| apply(op, &mut index, &mut model));
        let has = |index: &Index| -> BTreeSet<(u32, Vec<u8>)> {
            (0..2).flat_map(|db| index.keys_of(db, &tag(n), usize::MAX).into_iter().map(move |key| (db, key))).collect()
        };
        let mut stayed = has(&index);
        let mut visited = BTreeSet::new();
        let (mut cursor, mut between) = (Some(usize::MAX), during.iter());
        while let Some(at) = cursor {
            let mut count = 0;
            cursor = index.collect(&tag(n), at, max, &mut |found| {
                count += 1;
                visited.insert((found.db, found.key.to_vec()));
                assert_eq!(index.get(found.db, found.key), Some((found.id, found.generation)));
            });
            prop_assert!(count <= max);
            for op in between.next().into_iter().flatten().filter(whole) {
                apply(op, &mut index, &mut model);
                let now = has(&index);
                stayed.retain(|key| now.contains(key));
            }
        }
        prop_assert!(stayed.is_subset(&visited));
    }
}

#[test]
fn a_reused_slot_is_not_mistaken() {
    let mut index = Index::new();
    let tags = [tag(0)];
    let first = index.add(0, b"first", &tags).unwrap();
    let (_, generation) = index.get(0, b"first").unwrap();
    assert!(index.gone(0, b"first").entry);
    // The index was empty in between and gave all its memory back.
    let second = index.add(0, b"second", &tags).unwrap();
    assert_eq!(first, second);
    assert_eq!(index.drop_if(first, generation), Dropped::default());
    index.clear();
    index.add(0, b"third", &tags);
    assert_eq!(index.drop_if(first, generation), Dropped::default());
    assert_eq!(index.len(), 1);
}

#[test]
fn a_label_in_flight_survives_what_old_replies_and_events_say() {
    let mut index = Index::new();
    let label = [tag(3)];
    assert_eq!(index.label(0, b"k", &label, LabelState::InFlight), 1);
    let (id, generation) = index.get(0, b"k").unwrap();
    // The UNLINK of an earlier fan-out is answered before the labelled write is executed.
    assert_eq!(index.drop_if(id, generation), Dropped::default());
    assert!(!index.gone(0, b"k").entry);
    assert!(index.created(0, b"k", &[tag(0)]).is_empty());
    index.settle(0, b"k", &label);
    assert_eq!(index.tags_of(0, b"k").len(), 2);
    assert_eq!(index.explicit_of(0, b"k"), label);
    // Deleted and made again by somebody: the label is not that of the new key.
    assert_eq!(index.created(0, b"k", &[tag(0)]), label);
    assert_eq!(index.tags_of(0, b"k"), [tag(0)]);
}

#[test]
fn a_removed_label_does_not_take_a_later_one_along() {
    let mut index = Index::new();
    let label = [tag(0)];
    index.label(0, b"k", &label, LabelState::InFlight);
    assert_eq!(index.unlabel(0, b"k", &label), 1);
    assert!(index.tags_of(0, b"k").is_empty() && index.explicit_count() == 0);
    // Another client labels it while the first write has not settled.
    assert_eq!(index.label(0, b"k", &label, LabelState::InFlight), 1);
    index.settle(0, b"k", &label);
    assert!(index.created(0, b"k", &[]).is_empty());
    index.settle(0, b"k", &label);
    assert_eq!(index.tags_of(0, b"k"), label);
}

#[test]
fn samples_go_round() {
    let mut index = Index::new();
    for n in 0..5000 {
        index.add(0, format!("key-{n}").as_bytes(), &[tag(0)]);
    }
    (1000..4000).for_each(|n| drop(index.gone(0, format!("key-{n}").as_bytes())));
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    for _ in 0..100 {
        let mut count = 0;
        index.sample(100, &mut |found| {
            count += 1;
            *seen.entry(found.key.to_vec()).or_default() += 1;
        });
        assert!(count <= 100);
    }
    assert_eq!(seen.len(), 2000);
    assert!(seen.values().all(|times| (4..=5).contains(times)));
    index.clear();
    index.sample(10, &mut |_| unreachable!());
}
