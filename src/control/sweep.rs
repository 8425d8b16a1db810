//! Throwing away labels in Redis that no proxy knows and whose keys are gone: keys that expired while no proxy was
//! there to see it, labels given by a proxy that died before its write.
//!
//! Labels that the index knows go with their entries. Of the others, a key that does not exist may be one that is just
//! being labelled: its label comes first. So it must be missing in two looks some time apart; should it come to exist at
//! that very moment, who has labelled it makes sure of the label (see `labels`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::gc::{Entries, Entry};
use super::label_sets::Walk;
use super::rebuild::Scan;
use super::wire::{array_of, bytes_of};
use super::{Engine, labels};
use crate::news::{LABEL_SETS, Labels};
use crate::rules::Tag;

const PERIOD: Duration = Duration::from_secs(1);
/// Between the two looks, and at least from the start of one round over all sets to that of the next.
const REST: Duration = Duration::from_secs(20);
/// What a second costs Redis at most: steps of SCAN, members looked at, and sets, of which each counts as so many.
const STEPS: usize = 10;
const MEMBERS: usize = 2000;
const SET: usize = 10;
/// Keys that were missing in one look. With more, no further ones are looked for.
const MOST_SUSPECTS: usize = 20_000;
/// How long a score must have passed to be looked at first. It is only a hint: clocks differ.
const MARGIN: Duration = Duration::from_secs(60);
const GLOB: &[u8] = b"rescind:tag:*";

/// A label: database, tag and key.
type Place = (u32, Tag, Box<[u8]>);

/// Sweeps for ever.
pub(super) async fn run(engine: Rc<Engine>) {
    let mut sweep = Sweep::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        if engine.process.dry_run || !engine.feed.is_connected() {
            continue;
        }
        if let Err(error) = sweep.step(&engine).await {
            tracing::debug!(%error, "labels are not swept");
            sweep = Sweep::default();
        }
    }
}

#[derive(Default)]
struct Sweep {
    /// When this round began.
    since: Option<Instant>,
    databases: Vec<u32>,
    scan: Option<(u32, Scan<'static>)>,
    /// Sets that were found and not looked at.
    sets: VecDeque<(u32, Bytes)>,
    current: Option<(u32, Tag, Walk)>,
    /// Missing in a first look, and when.
    suspects: HashMap<Place, Instant>,
}

impl Sweep {
    async fn step(&mut self, engine: &Rc<Engine>) -> Result<(), String> {
        self.look_again(engine).await?;
        let (mut steps, mut left) = (STEPS, MEMBERS);
        while left > 0 && self.suspects.len() < MOST_SUSPECTS {
            if let Some((db, tag, walk)) = &mut self.current {
                let (db, tag) = (*db, Tag::clone(tag));
                match walk.next(engine).await? {
                    Some(keys) => {
                        left = left.saturating_sub(keys.len().max(SET));
                        self.look(engine, db, &tag, &keys).await?;
                    }
                    None => self.current = None,
                }
            } else if let Some((db, set)) = self.sets.pop_front() {
                left = left.saturating_sub(SET);
                self.begin(engine, db, &set).await?;
            } else if steps == 0 || !self.find(engine).await? {
                return Ok(());
            } else {
                steps -= 1;
            }
        }
        Ok(())
    }

    /// Begins with a set: members whose keys should have expired come first.
    async fn begin(&mut self, engine: &Rc<Engine>, db: u32, set: &Bytes) -> Result<(), String> {
        let Some(tag) = set.strip_prefix(LABEL_SETS).map(Tag::from) else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let passed = now.saturating_sub(MARGIN).as_millis().to_string();
        let request = [b"ZRANGEBYSCORE".as_slice(), set, b"-inf", passed.as_bytes(), b"LIMIT", b"0", b"1000"];
        // Not allowed, or somebody else's key: the walk will tell.
        let expired = engine.scans.one(db, request).await.map(array_of).unwrap_or_default();
        let expired: Vec<Bytes> = expired.iter().filter_map(bytes_of).cloned().collect();
        self.look(engine, db, &tag, &expired).await?;
        self.current = Some((db, tag, Walk::new(db, set.to_vec())));
        Ok(())
    }

    /// Finds more sets; false: there are no more in this round, and the next one has not begun.
    async fn find(&mut self, engine: &Engine) -> Result<bool, String> {
        if let Some((db, scan)) = &mut self.scan {
            match scan.next(&engine.scans).await? {
                Some(sets) => self.sets.extend(sets.into_iter().map(|set| (*db, set))),
                None => self.scan = None,
            }
            return Ok(true);
        }
        if let Some(db) = self.databases.pop() {
            self.scan = Some((db, Scan::new(db, GLOB)));
            return Ok(true);
        }
        if self.since.is_some_and(|since| since.elapsed() < REST) {
            return Ok(false);
        }
        self.since = Some(Instant::now());
        self.databases = engine.databases().await?;
        Ok(!self.databases.is_empty())
    }

    /// The first look.
    async fn look(&mut self, engine: &Engine, db: u32, tag: &Tag, keys: &[Bytes]) -> Result<(), String> {
        let unknown: Vec<&Bytes> = {
            let index = engine.process.index.lock();
            keys.iter().filter(|key| !index.explicit_of(db, key).contains(tag)).collect()
        };
        for key in missing(engine, db, unknown.into_iter().map(|key| key[..].into())).await? {
            self.suspects.entry((db, Tag::clone(tag), key)).or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// The second look: what is still missing goes.
    async fn look_again(&mut self, engine: &Rc<Engine>) -> Result<(), String> {
        let due = self.suspects.extract_if(|_, since| since.elapsed() >= REST).take(MEMBERS);
        let mut by_db: HashMap<u32, Vec<Place>> = HashMap::new();
        due.for_each(|(place, _)| by_db.entry(place.0).or_default().push(place));
        for (db, places) in by_db {
            let gone = missing(engine, db, places.iter().map(|(.., key)| key.clone())).await?;
            let gone: HashSet<_> = gone.into_iter().collect();
            for (_, tag, key) in places.into_iter().filter(|(.., key)| gone.contains(key)) {
                labels::sweep_out(engine, &Labels { db, key, tags: vec![tag] }).await;
            }
        }
        Ok(())
    }
}

/// Which of the keys do not exist.
async fn missing(
    engine: &Engine,
    db: u32,
    keys: impl Iterator<Item = Box<[u8]>>,
) -> Result<Vec<Box<[u8]>>, String> {
    let asked: Vec<Box<[u8]>> = keys.collect();
    let entries = asked.iter().map(|key| Entry { place: None, db, key: key.clone() }).collect();
    let alive: HashSet<Vec<u8>> = engine.check(Entries(entries)).await?.into_iter().collect();
    Ok(asked.into_iter().filter(|key| !alive.contains(&key[..])).collect())
}
