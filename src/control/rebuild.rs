//! Filling the index by SCAN, at the start and after every gap.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::link::{Batch, Link, has_no_database};
use super::wire::{array_of, bytes_of};
use super::{Engine, label_sets};
use crate::lease::script::EPOCHS;
use crate::rules::Tag;

/// Keys that Redis looks at in one call: it serves nobody else meanwhile, well below a millisecond.
const COUNT: &str = "1000";

/// A walk over the keys of one database.
pub(super) struct Scan<'a> {
    db: u32,
    glob: &'a [u8],
    cursor: Option<Bytes>,
}

impl<'a> Scan<'a> {
    pub fn new(db: u32, glob: &'a [u8]) -> Self {
        Self { db, glob, cursor: Some(Bytes::from_static(b"0")) }
    }

    /// Some more keys; `None` at the end. Keys that exist all the time are met at least once.
    pub async fn next(&mut self, link: &Link) -> Result<Option<Vec<Bytes>>, String> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let mut request: Vec<&[u8]> = vec![b"SCAN", &cursor, b"COUNT", COUNT.as_bytes()];
        if self.glob != b"*" {
            request.extend([b"MATCH".as_slice(), self.glob]);
        }
        let mut parts = match link.one(self.db, request).await {
            Err(error) if has_no_database(&error) => return Ok(None),
            found => array_of(found?).into_iter(),
        };
        let (cursor, keys) = (parts.next(), parts.next());
        let cursor = cursor.as_ref().and_then(bytes_of).ok_or("SCAN gave no cursor")?.clone();
        self.cursor = (*cursor != *b"0").then_some(cursor);
        let keys = keys.map(array_of).unwrap_or_default();
        Ok(Some(keys.iter().filter_map(bytes_of).cloned().collect()))
    }
}

impl Engine {
    /// Starts a rebuild; until it is done, fan-outs also scan. A later one makes it void.
    pub(super) fn rebuild(self: &Rc<Self>, why: &'static str) {
        let version = self.process.index.set_incomplete(why);
        self.process.labels.forget();
        self.process.metrics.index_complete.set(0);
        self.rebuild.set(self.rebuild.get() + 1);
        let (engine, number) = (Rc::clone(self), self.rebuild.get());
        tokio::task::spawn_local(async move { engine.rebuild_until_done(number, version, why).await });
    }

    async fn rebuild_until_done(self: Rc<Self>, number: u64, version: u64, why: &'static str) {
        let started = Instant::now();
        let mut pause = Duration::from_millis(50);
        while self.rebuild.get() == number {
            match self.fill(number).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "the index cannot be rebuilt yet");
                    if self.has_feed() {
                        self.process.set_feed_error(&error);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
        // A gap meanwhile has started another one.
        if self.rebuild.get() != number || !self.has_feed() {
            return;
        }
        self.process.set_feed_error("");
        self.process.warmed.store(true, Ordering::Release);
        if !self.process.own_writes() && self.process.index.set_complete(version) {
            self.process.metrics.index_complete.set(1);
        }
        let keys = self.process.index.lock().len();
        self.process.metrics.index_keys.set(keys as i64);
        tracing::info!(
            keys,
            why,
            seconds = started.elapsed().as_secs_f64(),
            complete = self.process.index.is_complete(),
            "index rebuilt"
        );
    }

    /// Takes in every key that exists. Events are flowing, so what comes to exist meanwhile is not missed. False: another
    /// rebuild has begun, and this one has not gone to the end.
    pub(super) async fn fill(&self, number: u64) -> Result<bool, String> {
        // What is watched by now shows everything from here on.
        self.feed.barrier(vec![], self).await;
        self.retag().await;
        label_sets::load(self).await?;
        self.labels_known(number);
        self.load_epochs().await?;
        let Some(glob) = self.rules.borrow().scan_glob() else { return Ok(true) };
        for db in self.databases().await? {
            let mut scan = Scan::new(db, &glob);
            while let Some(keys) = scan.next(&self.scans).await? {
                if self.rebuild.get() != number {
                    return Ok(false);
                }
                self.take_in(db, &keys);
                // Fan-outs and the feed share this thread.
                tokio::task::yield_now().await;
            }
        }
        Ok(true)
    }

    /// Learns what was invalidated while nobody told: misses from here on are younger.
    async fn load_epochs(&self) -> Result<(), String> {
        let glob = [EPOCHS, b"*"].concat();
        let mut scan = Scan::new(0, &glob);
        while let Some(keys) = scan.next(&self.scans).await? {
            let mut batch = Batch::default();
            keys.iter().for_each(|key| batch.push([b"GET".as_slice(), key]));
            if keys.is_empty() {
                continue;
            }
            for (key, epoch) in keys.iter().zip(self.scans.call(0, batch).await?) {
                if let (Some(tag), Some(epoch)) = (key.strip_prefix(EPOCHS), bytes_of(&epoch)) {
                    self.process.epochs.found(&tag.into(), epoch, self.moment());
                }
            }
        }
        Ok(())
    }

    /// What is known of labels is all there is, unless there has been another gap.
    fn labels_known(&self, number: u64) {
        if self.rebuild.get() == number && self.has_feed() {
            self.process.labels.read();
        }
    }

    fn take_in(&self, db: u32, keys: &[Bytes]) {
        let mut matcher = self.matcher.borrow_mut();
        let mut index = self.process.index.lock();
        let mut tags: Vec<Tag> = vec![];
        for key in keys {
            tags.clear();
            matcher.tags(db, key, &mut tags);
            if !tags.is_empty() {
                index.add(db, key, &tags);
            }
        }
    }

    fn retag_some(&self, cursor: usize) -> Option<usize> {
        let mut matcher = self.matcher.borrow_mut();
        let mut index = self.process.index.lock();
        index.retag(cursor, 1000, |db: u32, key: &[u8], tags: &mut Vec<Tag>| _ = matcher.tags(db, key, tags))
    }

    /// Gives the entries the tags of the present rules.
    async fn retag(&self) {
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.retag_some(at);
            tokio::task::yield_now().await;
        }
    }
}
