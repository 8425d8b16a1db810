//! What has become of labels when commands have run one after the other, some of which gave labels to keys and some of
//! which took labels along: worked out from what there was before, in the order of the commands.
//!
//! More labels than that may have been given: inside MULTI nobody knew yet which commands would succeed.

use std::collections::HashMap;

use super::carry::Carried;
use super::labels::{Labelled, Place};
use crate::news::Labels;
use crate::rules::{Tag, unique};

/// The labels of the keys concerned, as they are afterwards.
pub(super) struct Outcome {
    tags: HashMap<(u32, Box<[u8]>), Vec<Tag>>,
    /// Keys whose value has been moved away or overwritten by another.
    ended: Vec<(u32, Box<[u8]>)>,
    /// Nothing is known: everything stays and everything is good.
    unknown: bool,
}

enum Command<'a> {
    Carries(&'a Carried),
    Labels(&'a Labelled),
}

impl<'a> Command<'a> {
    /// Which one it was, and the order of what is done for one command: what it labels itself, it labels last.
    fn order(&self) -> (Option<usize>, bool) {
        match self {
            Command::Carries(one) => (one.given.element, false),
            Command::Labels(one) => (one.element, true),
        }
    }

    /// What the keys that it names had before, without anything that these commands gave.
    fn before(&self) -> Vec<(Place<'a>, &'a [Tag])> {
        match *self {
            Command::Labels(one) => vec![(place(&one.labels), &one.before)],
            Command::Carries(one) => {
                vec![(place(&one.from), &one.had), (place(&one.given.labels), &one.given.before)]
            }
        }
    }
}

fn place(labels: &Labels) -> Place<'_> {
    (labels.db, &labels.key)
}

fn add(tags: &mut Vec<Tag>, more: &[Tag]) {
    tags.extend(more.iter().cloned());
    unique(tags);
}

impl Outcome {
    /// What these commands came to: those that labelled keys, and those that took labels along; of each first those that
    /// have succeeded, and then those that have not. `unknown`: nobody knows.
    pub fn new(labelled: &[&[Labelled]; 2], carried: &[&[Carried]; 2], unknown: bool) -> Outcome {
        let [mut commands, failed] = [0, 1].map(|which| {
            let carries = carried[which].iter().map(Command::Carries);
            carries.chain(labelled[which].iter().map(Command::Labels)).collect::<Vec<_>>()
        });
        commands.sort_by_key(Command::order);
        let mut tags: HashMap<Place<'_>, Vec<Tag>> = HashMap::new();
        // Each has looked when it was queued. What others gave until the next one did was there, too, when the first was run.
        for (place, before) in commands.iter().chain(&failed).flat_map(Command::before) {
            add(tags.entry(place).or_default(), before);
        }
        let mut ended = vec![];
        for command in &commands {
            match command {
                Command::Labels(one) => add(tags.entry(place(&one.labels)).or_default(), &one.labels.tags),
                Command::Carries(one) => {
                    let (from, to) = (place(&one.from), place(&one.given.labels));
                    let taken = tags.get(&from).cloned().unwrap_or_default();
                    tags.insert(to, taken);
                    ended.push(to);
                    if one.moves {
                        tags.insert(from, vec![]);
                        ended.push(from);
                    }
                }
            }
        }
        let owned = |(db, key): Place<'_>| (db, Box::from(key));
        let tags = tags.into_iter().map(|(place, tags)| (owned(place), tags)).collect();
        Outcome { tags, ended: ended.into_iter().map(owned).collect(), unknown }
    }

    /// What of the given labels is good, and what is to be taken back.
    pub fn split(&self, mut given: Labelled) -> (Labels, Labelled) {
        let Labels { db, key, tags } = given.labels;
        let right = self.tags.get(&(db, key.clone())).map_or(&[] as &[Tag], Vec::as_slice);
        let (kept, void): (Vec<Tag>, Vec<Tag>) =
            tags.into_iter().partition(|tag| self.unknown || right.contains(tag));
        // Also those that Redis had before: their value is gone.
        given.added.clone_from(&void);
        given.told.retain(|tag| void.contains(tag));
        given.labels = Labels { db, key: key.clone(), tags: void };
        (Labels { db, key, tags: kept }, given)
    }

    /// Whether the value that had these labels is gone.
    pub fn has_ended(&self, labels: &Labels) -> bool {
        !self.unknown && self.ended.iter().any(|(db, key)| *db == labels.db && *key == labels.key)
    }
}
