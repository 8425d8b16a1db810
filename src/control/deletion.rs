//! The deletion of all dependents of some tags: collected from the index, from label sets and, if need be, by a scan.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use redis_protocol::resp3::types::BytesFrame;

use super::fanout::add_rules;
use super::gc::{Entries, Entry, SentEntries};
use super::link::{Batch, has_no_database};
use super::rebuild::Scan;
use super::unlinks::Unlink;
use super::{Engine, wire};
use crate::failpoint;
use crate::rules::spec::OnInvalidate;
use crate::rules::{FamilyId, Matcher, Rules, Tag};

/// Keys in one UNLINK. Bounded, so that Redis serves others in between.
const BATCH: usize = 1024;
/// Batches on their way at once.
const WINDOW: usize = 8;
/// Batches whose entries are kept until the writer has its answer; beyond, memory counts more.
const MOST_GONE: usize = 400;

/// The deletion of all dependents of some tags.
pub(super) struct Deletion<'a> {
    engine: &'a Rc<Engine>,
    tags: &'a [Tag],
    /// By these rules the tags were named.
    pub named_by: &'a [Arc<Rules>],
    /// By which keys were assigned to families.
    rules: Arc<Rules>,
    /// Collected and not sent.
    open: HashMap<(u32, FamilyId), Entries>,
    /// The one that is added to, and what is in it.
    slot: Option<(u32, FamilyId)>,
    current: Entries,
    /// The index knows all keys: what another fan-out is deleting is left to that one, and the other way round.
    shares: bool,
    /// Sent and not answered.
    sent: VecDeque<Sent>,
    /// Deleted, and still in the index: it is tidied up when the writer has its answer.
    pub gone: Vec<SentEntries>,
    pub total: u64,
    /// The same by family.
    pub by_family: BTreeMap<String, u64>,
    /// What a dry run has asked for: it stays, and may be found once more.
    asked: HashSet<(u32, Box<[u8]>)>,
}

struct Sent {
    family: String,
    /// The keys stay for now.
    stay: bool,
    entries: SentEntries,
    /// That others may wait for.
    unlink: Option<Unlink>,
    reply: Pin<Box<dyn Future<Output = Result<Vec<BytesFrame>, String>>>>,
}

impl<'a> Deletion<'a> {
    pub fn new(engine: &'a Rc<Engine>, tags: &'a [Tag], named_by: &'a [Arc<Rules>]) -> Self {
        Self {
            engine,
            tags,
            named_by,
            rules: Arc::clone(&engine.rules.borrow()),
            open: HashMap::new(),
            slot: None,
            current: Entries::default(),
            shares: false,
            sent: VecDeque::new(),
            gone: Vec::new(),
            total: 0,
            by_family: BTreeMap::new(),
            asked: HashSet::new(),
        }
    }

    /// Whether the index has all that the tags stand for, if it is complete: it knows one name of each.
    pub fn is_in_index(&self) -> bool {
        !self.engine.has_renamed(self.named_by)
    }

    /// Deletes what the index knows and, with `scan`, what a scan finds.
    pub async fn run(&mut self, scan: bool) -> Result<(), String> {
        self.shares = !scan;
        let result = self.once(scan).await;
        let process = &self.engine.process;
        for Sent { unlink, entries, .. } in self.sent.drain(..) {
            unlink
                .into_iter()
                .for_each(|unlink| self.engine.unlinks.failed(unlink, &process.index, &entries));
        }
        self.open.clear();
        self.slot = None;
        self.current = Entries::default();
        result
    }

    async fn once(&mut self, scan: bool) -> Result<(), String> {
        let failures = self.engine.unlinks.failures();
        let mut left_to_others = false;
        // Before the index is read: what a rebuild takes into it meanwhile would be in neither answer.
        self.labelled_elsewhere(scan || self.engine.others_label()).await?;
        for tag in self.tags {
            let mut cursor = Some(usize::MAX);
            while let Some(at) = cursor {
                let mut chunk = Entries::default();
                cursor =
                    self.engine.process.index.lock().collect(tag, at, BATCH, &mut |one| match self.shares
                        && one.unlinking
                    {
                        true => left_to_others = true,
                        false => chunk.push(one),
                    });
                for entry in chunk.0 {
                    self.add(entry).await?;
                }
            }
        }
        if scan {
            self.scan().await?;
        }
        failpoint::pass("collected");
        self.send_all().await?;
        while !self.sent.is_empty() {
            self.answered().await?;
        }
        // Not before: they may wait for this one.
        if left_to_others { self.engine.unlinks.wait(failures).await } else { Ok(()) }
    }

    /// Takes in keys whose labels the index does not have.
    async fn labelled_elsewhere(&mut self, all: bool) -> Result<(), String> {
        for (db, key) in super::label_sets::labelled_elsewhere(self.engine, self.tags, all).await? {
            self.add(Entry { place: None, db, key: key[..].into() }).await?;
        }
        Ok(())
    }

    /// Looks for dependents that the index does not know: those by the present rules, and those by the rules that it began by,
    /// whatever other ones there are meanwhile.
    async fn scan(&mut self) -> Result<(), String> {
        let wanted: HashSet<Tag> = self.tags.iter().cloned().collect();
        let mut present = self.engine.present_rules();
        let mut rules = self.named_by.to_vec();
        add_rules(&mut rules, &present);
        let mut globs: Vec<Vec<u8>> = rules.iter().filter_map(|rules| rules.scan_glob()).collect();
        globs.dedup();
        let Some(glob) = globs.pop() else { return Ok(()) };
        let glob = if globs.is_empty() { glob } else { b"*".to_vec() };
        let others = rules.iter().filter(|rules| rules.fingerprint() != present.fingerprint());
        let mut others: Vec<Matcher> = others.map(Rules::matcher).collect();
        for db in self.engine.databases_of(&rules).await? {
            let mut scan = Scan::new(db, &glob);
            while let Some(keys) = scan.next(&self.engine.scans).await? {
                for key in keys {
                    if !Arc::ptr_eq(&present, &self.engine.rules.borrow()) {
                        others.push(present.matcher());
                        present = self.engine.present_rules();
                    }
                    let mut tags = vec![];
                    self.engine.matcher.borrow_mut().tags(db, &key, &mut tags);
                    others.iter_mut().for_each(|matcher| _ = matcher.tags(db, &key, &mut tags));
                    if tags.iter().any(|tag| wanted.contains(tag)) {
                        self.add(Entry { place: None, db, key: key[..].into() }).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, entry: Entry) -> Result<(), String> {
        while !Arc::ptr_eq(&self.rules, &self.engine.rules.borrow()) {
            // A reload: from here on other numbers stand for the families.
            self.send_all().await?;
            self.rules = Arc::clone(&self.engine.rules.borrow());
        }
        let family = self.engine.matcher.borrow_mut().classify(entry.db, &entry.key).family;
        let slot = (entry.db, family);
        // Dependents of a tag mostly come in runs of one family.
        if self.slot != Some(slot) {
            if let Some(before) = self.slot.replace(slot) {
                self.open.insert(before, std::mem::take(&mut self.current));
            }
            self.current = self.open.remove(&slot).unwrap_or_default();
        }
        self.current.0.push(entry);
        if self.current.0.len() >= BATCH {
            let entries = std::mem::take(&mut self.current);
            self.send(slot.0, family, entries).await?;
        }
        Ok(())
    }

    /// Sends what has been collected.
    async fn send_all(&mut self) -> Result<(), String> {
        if let Some(slot) = self.slot.take() {
            self.open.insert(slot, std::mem::take(&mut self.current));
        }
        let open: Vec<_> = self.open.drain().filter(|(_, entries)| !entries.0.is_empty()).collect();
        for ((db, family), entries) in open {
            self.send(db, family, entries).await?;
        }
        Ok(())
    }

    async fn send(&mut self, db: u32, family: FamilyId, mut entries: Entries) -> Result<(), String> {
        let rules = Arc::clone(&self.rules);
        let family = rules.family(family);
        let expires = family.on_invalidate == OnInvalidate::Expire;
        let dry_run = self.engine.process.dry_run;
        let mut batch = Batch::default();
        if dry_run {
            entries.0.retain(|entry| self.asked.insert((db, entry.key.clone())));
            let keys: Vec<_> = entries.0.iter().map(|e| String::from_utf8_lossy(&e.key)).collect();
            tracing::info!(db, ?keys, "dry run: these would be deleted");
        }
        if entries.0.is_empty() {
            return Ok(());
        }
        let stay = expires || dry_run;
        if expires && !dry_run {
            let grace = family.grace.as_millis().to_string();
            for entry in &entries.0 {
                batch.push([b"PEXPIRE".as_slice(), &entry.key, grace.as_bytes(), b"LT"]);
            }
        } else {
            // A dry run reports as usual: it counts what is there.
            let mut request: Vec<&[u8]> = vec![if dry_run { b"EXISTS" } else { b"UNLINK" }];
            request.extend(entries.0.iter().map(|e| &*e.key));
            batch.push(request);
        }
        let reply = Box::pin(self.engine.deletes.call(db, batch));
        let index = &self.engine.process.index;
        let entries = entries.sent(index.has_labels());
        let unlink = (self.shares && !stay).then(|| self.engine.unlinks.begin(index, &entries));
        self.sent.push_back(Sent { family: family.name.clone(), stay, entries, unlink, reply });
        // Redis gets the batch now, not when this task next waits.
        tokio::task::yield_now().await;
        while self.sent.len() >= WINDOW {
            self.answered().await?;
        }
        Ok(())
    }

    /// Takes the oldest answer.
    async fn answered(&mut self) -> Result<(), String> {
        let Some(first) = self.sent.front_mut() else { return Ok(()) };
        let mut deleted = 0;
        let frames = match first.reply.as_mut().await {
            Err(error) if has_no_database(&error) => vec![],
            frames => frames?,
        };
        for frame in frames {
            let frame = wire::into_result(frame)?;
            deleted += wire::int_of(&frame).unwrap_or(0).max(0) as u64;
        }
        let Some(sent) = self.sent.pop_front() else { return Ok(()) };
        sent.unlink.into_iter().for_each(|unlink| self.engine.unlinks.done(unlink));
        self.engine.process.metrics.invalidated_keys(&sent.family, deleted);
        failpoint::pass("one deleted");
        self.total += deleted;
        if deleted > 0 {
            *self.by_family.entry(sent.family.clone()).or_default() += deleted;
        }
        if sent.stay {
            return Ok(());
        }
        if self.gone.len() < MOST_GONE {
            self.gone.push(sent.entries);
        } else {
            sent.entries.drop_from(self.engine);
        }
        Ok(())
    }
}
