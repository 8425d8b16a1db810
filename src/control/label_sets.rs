//! Reading explicit labels as they are kept in Redis: per tag and database a sorted set `rescind:tag:<tag>`, whose
//! members are keys and whose scores are their expiry in milliseconds since 1970 (`inf`: none).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use redis_protocol::resp3::types::BytesFrame;

use super::Engine;
use super::link::{Batch, has_no_database};
use super::rebuild::Scan;
use super::wire::{array_of, bytes_of, int_of, into_result};
use crate::index::LabelState;
use crate::news::{LABEL_SETS, label_set};
use crate::rules::Tag;

/// Members read at once.
const COUNT: &str = "1000";

/// Sets of which the first members are read at once.
const SETS: usize = 100;

/// Keys that are looked up under one lock of the index.
const KEYS: usize = 1000;

/// Tags whose changes are remembered one by one; beyond, all count as changed.
const MOST_CHANGED: usize = 10_000;

/// Which label sets have been written by anybody, as far as the feed has shown, since they were last found to hold
/// nothing that the index has not.
#[derive(Default)]
pub(super) struct Changes {
    /// Each with the number of its latest change.
    tags: RefCell<HashMap<Tag, u64>>,
    seen: Cell<u64>,
    /// Changes are not seen, or were too many.
    lost_track: Cell<bool>,
}

impl Changes {
    /// The feed shows that the set of `tag` was written.
    pub fn seen_change(&self, tag: Tag) {
        self.seen.set(self.seen.get() + 1);
        let mut tags = self.tags.borrow_mut();
        tags.insert(tag, self.seen.get());
        if tags.len() > MOST_CHANGED {
            tags.clear();
            self.lost_track.set(true);
        }
    }

    /// From now on every set may have changed.
    pub fn lose_track(&self) {
        self.lost_track.set(true);
    }

    /// Whether the set of `tag` may hold something that the index has not.
    pub fn may_concern(&self, tag: &Tag) -> bool {
        self.lost_track.get() || self.tags.borrow().contains_key(tag)
    }

    /// How many changes have been seen.
    pub fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// The sets of `tags` were looked at after `before` changes, and the index has all of it.
    pub fn settled(&self, tags: &HashSet<&Tag>, before: u64) {
        self.tags.borrow_mut().retain(|tag, change| *change > before || !tags.contains(tag));
    }
}

/// Keys whose labels are in Redis and not in the index: another proxy gave them. With `all`, because the index has not been
/// filled yet or does not hear of labels, also those that are in the index: what it has of them may be of a value that is
/// gone, and go before it is read. The index stays as it is: these labels are not this proxy's to forget.
pub(super) async fn labelled_elsewhere(
    engine: &Engine,
    tags: &[Tag],
    all: bool,
) -> Result<Vec<(u32, Bytes)>, String> {
    let changes = &engine.label_changes;
    let tags: Vec<Tag> = tags.iter().filter(|tag| all || changes.may_concern(tag)).cloned().collect();
    if tags.is_empty() {
        return Ok(vec![]);
    }
    let before = changes.seen();
    let mut found = vec![];
    for db in engine.databases().await? {
        for tags in tags.chunks(SETS) {
            let mut walks: Vec<Walk> = tags.iter().map(|tag| Walk::new(db, label_set(tag))).collect();
            let begun = Walk::begin(engine, db, &mut walks).await?;
            for ((tag, mut walk), begun) in tags.iter().zip(walks).zip(begun) {
                let mut next = begun;
                while let Some(mut members) = next {
                    if !all {
                        let index = engine.process.index.lock();
                        members.retain(|key| !index.explicit_of(db, key).contains(tag));
                    }
                    found.extend(members.into_iter().map(|key| (db, key)));
                    next = walk.next(engine).await?;
                }
            }
        }
    }
    // As long as there is a member that the index does not have, the next one who asks must look again.
    let tags: HashSet<&Tag> = tags.iter().collect();
    if are_known(engine, &found, &tags).await {
        changes.settled(&tags, before);
    }
    Ok(found)
}

/// Whether the index has one of these labels for each of the keys.
async fn are_known(engine: &Engine, keys: &[(u32, Bytes)], tags: &HashSet<&Tag>) -> bool {
    for some in keys.chunks(KEYS) {
        let all = {
            let index = engine.process.index.lock();
            some.iter().all(|(db, key)| index.explicit_of(*db, key).iter().any(|tag| tags.contains(tag)))
        };
        if !all {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

/// A walk over the members of one set.
pub(super) struct Walk {
    db: u32,
    set: Vec<u8>,
    cursor: Option<Bytes>,
}

impl Walk {
    pub fn new(db: u32, set: Vec<u8>) -> Self {
        Self { db, set, cursor: Some(Bytes::from_static(b"0")) }
    }

    /// The first members of several sets, asked for at once.
    async fn begin(engine: &Engine, db: u32, walks: &mut [Walk]) -> Result<Vec<Option<Vec<Bytes>>>, String> {
        let mut batch = Batch::default();
        walks.iter().for_each(|walk| batch.push(walk.question(b"0")));
        let answers = match engine.scans.call(db, batch).await {
            Err(error) if has_no_database(&error) => return Ok(vec![]),
            answers => answers?,
        };
        walks.iter_mut().zip(answers).map(|(walk, answer)| walk.take_in(into_result(answer))).collect()
    }

    /// Some more members; `None` at the end.
    pub async fn next(&mut self, engine: &Engine) -> Result<Option<Vec<Bytes>>, String> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let answer = engine.scans.one(self.db, self.question(&cursor)).await;
        self.take_in(answer)
    }

    fn question<'a>(&'a self, cursor: &'a [u8]) -> [&'a [u8]; 5] {
        [b"ZSCAN", &self.set, cursor, b"COUNT", COUNT.as_bytes()]
    }

    fn take_in(&mut self, answer: Result<BytesFrame, String>) -> Result<Option<Vec<Bytes>>, String> {
        self.cursor = None;
        let mut parts = match answer {
            Ok(frame) => array_of(frame).into_iter(),
            // Somebody's key of another type that happens to have such a name.
            Err(error) if error.starts_with("WRONGTYPE") || has_no_database(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let next = parts.next().as_ref().and_then(bytes_of).cloned().unwrap_or_default();
        self.cursor = (*next != *b"0" && !next.is_empty()).then_some(next);
        let members = parts.next().map(array_of).unwrap_or_default();
        Ok(Some(members.chunks(2).filter_map(|pair| bytes_of(&pair[0])).cloned().collect()))
    }
}

/// Reads all label sets into the index.
pub(super) async fn load(engine: &Engine) -> Result<(), String> {
    let glob = [LABEL_SETS, b"*"].concat();
    for db in engine.databases().await? {
        let mut scan = Scan::new(db, &glob);
        while let Some(sets) = scan.next(&engine.scans).await? {
            for set in sets {
                load_set(engine, db, &set).await?;
            }
        }
    }
    Ok(())
}

async fn load_set(engine: &Engine, db: u32, set: &[u8]) -> Result<(), String> {
    let Some(tag) = set.strip_prefix(LABEL_SETS).map(Tag::from) else { return Ok(()) };
    let mut walk = Walk::new(db, set.to_vec());
    while let Some(keys) = walk.next(engine).await? {
        load_members(engine, db, &tag, &keys).await?;
    }
    Ok(())
}

async fn load_members(engine: &Engine, db: u32, tag: &Tag, keys: &[Bytes]) -> Result<(), String> {
    let mut batch = Batch::default();
    keys.iter().for_each(|key| batch.push([b"EXISTS".as_slice(), key]));
    if keys.is_empty() {
        return Ok(());
    }
    // Labelled before it is asked, so that a key made meanwhile keeps its label.
    for key in keys {
        engine.process.index.lock().label(db, key, std::slice::from_ref(tag), LabelState::Settled);
    }
    let places: Vec<_> = keys.iter().map(|key| engine.process.index.lock().get(db, key)).collect();
    let frames = engine.scans.call(db, batch).await?;
    for ((key, place), frame) in keys.iter().zip(places).zip(frames) {
        if let (Some((id, generation)), Some(0)) = (place, int_of(&frame)) {
            let dropped = engine.process.index.lock().drop_if(id, generation);
            engine.process.fanout.forget(db, key, dropped.explicit);
        }
    }
    Ok(())
}
