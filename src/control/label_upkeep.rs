//! What keeps explicit labels in Redis right as time goes by: scores follow the expiry of keys, and what Redis has lost
//! is written back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use redis_protocol::resp3::types::BytesFrame;
use tokio::sync::Notify;

use super::Engine;
use super::gc::{Entries, Entry, drop_entries};
use super::labels::{PAUSE, TRIES, add};
use super::link::Batch;
use super::wire::{int_of, into_result};
use crate::news::label_set;
use crate::rules::Tag;

/// Keys whose expiry is asked for at once, and the pause in between: what changes often is asked for once.
const RETIMED: usize = 1000;
const RETIMING: Duration = Duration::from_millis(100);
/// Keys that may wait to be asked for. What is beyond is left to the sweep, which asks Redis itself.
const MOST_RETIMED: usize = 100_000;

/// Labelled keys whose expiry may have changed.
#[derive(Default)]
pub(super) struct Retimed {
    keys: RefCell<HashSet<(u32, Box<[u8]>)>>,
    wake: Notify,
}

impl Retimed {
    /// These, too.
    pub fn add(&self, more: Vec<(u32, Box<[u8]>)>) {
        let mut keys = self.keys.borrow_mut();
        let room = MOST_RETIMED.saturating_sub(keys.len());
        keys.extend(more.into_iter().take(room));
        self.wake.notify_one();
    }

    async fn some(&self) -> Vec<(u32, Box<[u8]>)> {
        while self.keys.borrow().is_empty() {
            self.wake.notified().await;
        }
        self.keys.borrow_mut().extract_if(|_| true).take(RETIMED).collect()
    }
}

/// Lets the scores of labels follow the expiry of their keys, for ever.
pub(super) async fn keep_scores(engine: Rc<Engine>) {
    loop {
        tokio::time::sleep(RETIMING).await;
        let mut by_db: BTreeMap<u32, Entries> = BTreeMap::new();
        for (db, key) in engine.retimed.some().await {
            let place = engine.process.index.lock().with_labels(db, &key);
            if place.is_some() {
                by_db.entry(db).or_default().0.push(Entry { place, db, key });
            }
        }
        for (db, entries) in by_db {
            score(&engine, db, entries).await;
        }
    }
}

async fn score(engine: &Engine, db: u32, entries: Entries) {
    let mut batch = Batch::default();
    entries.0.iter().for_each(|entry| batch.push([b"PEXPIRETIME".as_slice(), &entry.key]));
    let Ok(replies) = engine.scans.call(db, batch).await else { return };
    let (mut batch, mut dead) = (Batch::default(), Entries::default());
    for (entry, reply) in entries.0.into_iter().zip(replies) {
        let expiry = match int_of(&reply) {
            Some(-1) => "inf".to_owned(),
            Some(-2) => {
                dead.0.push(entry);
                continue;
            }
            Some(expiry) => expiry.to_string(),
            None => continue,
        };
        // Only changed: what is not there any more has been taken out on purpose, or is about to be written back. One that is
        // being handed on keeps its mark.
        for tag in engine.process.index.lock().at_rest(db, &entry.key) {
            batch.push([b"ZADD".as_slice(), &label_set(&tag), b"XX", expiry.as_bytes(), &entry.key]);
        }
    }
    drop_entries(engine, dead);
    let _ = engine.scans.call(db, batch).await;
}

/// Label sets that are being written back; true: evicted once more meanwhile.
pub(super) type Restoring = RefCell<HashMap<(u32, Tag), bool>>;

/// Redis evicted the set of a tag: what the index knows of it is written back.
pub(super) async fn restore(engine: Rc<Engine>, db: u32, tag: Tag) {
    let place = (db, tag);
    if let Some(again) = engine.restoring.borrow_mut().get_mut(&place) {
        *again = true;
        return;
    }
    engine.restoring.borrow_mut().insert(place.clone(), false);
    loop {
        write_back(&engine, db, &place.1).await;
        let mut restoring = engine.restoring.borrow_mut();
        match restoring.get_mut(&place) {
            Some(again) if *again => *again = false,
            _ => {
                restoring.remove(&place);
                return;
            }
        }
    }
}

async fn write_back(engine: &Engine, db: u32, tag: &Tag) {
    let (mut cursor, mut tries) = (Some(usize::MAX), 0);
    while let Some(at) = cursor {
        let mut batch = Batch::default();
        {
            let index = engine.process.index.lock();
            cursor = index.collect(tag, at, 512, &mut |one| {
                if one.db == db && index.explicit_of(db, one.key).contains(tag) {
                    add(&mut batch, tag, one.key);
                }
            });
        }
        if !batch.is_empty() && !is_done(engine.scans.call(db, batch).await) {
            // Where memory is still short: the same keys again, a little later.
            cursor = (tries < TRIES).then_some(at);
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// These keys exist: should Redis have lost labels of theirs unseen, as while the feed was lost, they are written back.
pub(super) async fn assure(engine: &Engine, db: u32, keys: &[Vec<u8>]) {
    let mut asked = vec![];
    {
        let index = engine.process.index.lock();
        for key in keys {
            asked.extend(index.explicit_of(db, key).into_iter().map(|tag| (key, tag)));
        }
    }
    let mut batch = Batch::default();
    asked.iter().for_each(|(key, tag)| batch.push([b"ZSCORE".as_slice(), &label_set(tag), key]));
    if asked.is_empty() || engine.process.dry_run {
        return;
    }
    let Ok(scores) = engine.scans.call(db, batch).await else { return };
    // Or it may not be asked.
    let is_missing = |score| into_result(score).map_or(true, |score| matches!(score, BytesFrame::Null));
    let missing = asked.into_iter().zip(scores).filter_map(|(one, score)| is_missing(score).then_some(one));
    let missing: Vec<_> = missing.collect();
    // One that was taken away a moment ago is not in the index either, once that has heard of it.
    if missing.is_empty() || (engine.has_feed() && !engine.feed.barrier(vec![], engine).await) {
        return;
    }
    let mut batch = Batch::default();
    {
        let index = engine.process.index.lock();
        let lost = missing.iter().filter(|(key, tag)| index.explicit_of(db, key).contains(tag));
        lost.for_each(|(key, tag)| add(&mut batch, tag, key));
    }
    let _ = engine.scans.call(db, batch).await;
}

fn is_done(reply: Result<Vec<BytesFrame>, String>) -> bool {
    reply.is_ok_and(|frames| frames.into_iter().all(|frame| into_result(frame).is_ok()))
}
