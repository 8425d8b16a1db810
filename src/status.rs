//! What the admin address asks of the proxy.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::accounting::{Firing, TriggerLabel};
use crate::admin::{self, Control, Invalidation};
use crate::control::Knowledge;
use crate::doubt::Scope;
use crate::fanout::Cause;
use crate::journal::Wanted;
use crate::process::Process;
use crate::rules::{Tag, unique};

/// How long an HTTP client waits for its fan-out.
const PATIENCE: Duration = Duration::from_secs(10);

/// The proxy behind the admin address.
pub struct Status {
    process: Arc<Process>,
    knowledge: watch::Receiver<Knowledge>,
}

impl Status {
    /// The status of this process.
    pub fn new(process: Arc<Process>, knowledge: watch::Receiver<Knowledge>) -> Self {
        Self { process, knowledge }
    }

    fn families(&self) -> Vec<admin::Family> {
        let snapshot = self.process.metrics.snapshot();
        let rules = Arc::clone(&self.knowledge.borrow().rules);
        let current = |name: &str| rules.families().iter().any(|family| family.name == name);
        let families = snapshot.families.into_iter().filter(|family| current(&family.name));
        families
            .map(|family| admin::Family {
                hit_ratio: admin::hit_ratio(family.hits, family.misses),
                name: family.name,
                hits: family.hits,
                misses: family.misses,
                evictions: family.evictions,
                expirations: family.expirations,
                invalidated_keys: family.invalidated_keys,
            })
            .collect()
    }
}

impl Control for Status {
    fn status(&self) -> admin::Status {
        let snapshot = self.process.metrics.snapshot();
        let index = self.process.index.lock();
        let (keys, tags, bytes) = (index.len() as u64, index.tag_count() as u64, index.bytes() as u64);
        drop(index);
        let nodes = snapshot.nodes.into_iter();
        let feeds = snapshot.feeds.into_iter();
        admin::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.process.born.elapsed().as_secs(),
            dry_run: self.process.dry_run,
            clients: snapshot.clients,
            upstream: admin::Upstream {
                connections: admin::Connections {
                    shared: snapshot.shared_connections,
                    pinned: snapshot.pinned_connections,
                },
                nodes: nodes
                    .map(|n| admin::Node { node: n.node, up: n.up, reconnects: n.reconnects })
                    .collect(),
            },
            feed: admin::Feed {
                mode: if self.process.own_writes() { "own writes" } else { "keyspace events" }.to_owned(),
                nodes: feeds
                    .map(|f| admin::FeedNode { node: f.node, connected: f.connected, gaps: f.gaps })
                    .collect(),
            },
            index: admin::Index { keys, tags, bytes, complete: self.process.index.is_complete() },
            journal: admin::Journal { pending: snapshot.journal_pending },
            families: self.families(),
        }
    }

    /// Where Redis sends no events the index is never complete, and fan-outs always scan: slow, but ready.
    fn readiness(&self) -> Result<Vec<String>, Vec<String>> {
        let mut reasons = vec![];
        let error = self.process.feed_error();
        let why = if error.is_empty() { error } else { format!(": {error}") };
        let is_connected = self.process.metrics.snapshot().feeds.iter().any(|feed| feed.connected);
        if !is_connected {
            reasons.push(format!("the feed is not connected{why}"));
        }
        let warm = self.process.warmed.load(Ordering::Acquire);
        let ready = self.process.index.is_complete() || (warm && self.process.own_writes());
        if !ready {
            let why = if is_connected { &*why } else { "" };
            reasons.push(format!("the index is not complete: {}{why}", self.process.index.reason()));
        }
        if self.process.draining.load(Ordering::Relaxed) {
            reasons.push("the proxy is going down".to_owned());
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let mut notes = vec![];
        if !self.process.index.is_complete() {
            let scans = "the index has only what is written through this proxy: every fan-out also scans";
            notes.push(scans.to_owned());
        }
        if self.process.journal.describe().failing {
            notes.push("the journal cannot be written: triggers are refused".to_owned());
        }
        let error = self.process.fanout_error();
        if !error.is_empty() {
            notes.push(format!(
                "fan-outs fail, and reads of their keys are misses until they succeed: {error}"
            ));
        }
        Ok(notes)
    }

    fn invalidate(&self, tags: Vec<Vec<u8>>, client: String) -> Invalidation {
        let tags: Vec<Tag> = tags.into_iter().map(Tag::from).collect();
        // All that is in doubt if it is not finished.
        let mut all = tags.clone();
        unique(&mut all);
        let rules = Arc::clone(&self.knowledge.borrow().rules);
        rules.cascade(&mut all);
        let (scope, what) = (Scope::Tags(all), "POST /api/invalidate".to_owned());
        let wanted = Wanted { scope, rules: Some(rules.fingerprint()), what: what.clone() };
        let mut fired = vec![Firing::unconditional(TriggerLabel::Http, tags, rules, what)];
        let process = Arc::clone(&self.process);
        Box::pin(async move {
            let intent = process.journal.intend(wanted).await?;
            fired[0].intents.push(intent);
            let done = process.fanout.request(Cause::of(&client, &fired), fired);
            match tokio::time::timeout(PATIENCE, done).await {
                Ok(done) => done.map_err(|_| "the proxy is going down".to_owned()),
                Err(_) => Err(match process.fanout_error() {
                    error if error.is_empty() => {
                        "Redis does not answer; the invalidation goes on until it is done".to_owned()
                    }
                    error => {
                        format!("the keys cannot be deleted yet, which is tried until it is done: {error}")
                    }
                }),
            }
        })
    }

    fn log(&self, n: usize) -> Vec<admin::LogEntry> {
        let entries = self.process.log.latest(n).into_iter();
        entries
            .map(|entry| admin::LogEntry {
                unix_ms: entry.unix_ms,
                client: format!("{} {}", entry.cause.client, entry.cause.what),
                trigger: entry.trigger.clone(),
                tags: entry.tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect(),
                keys: entry.keys,
                families: entry.families.iter().cloned().collect(),
                duration_us: entry.duration.as_micros() as u64,
                phases_us: entry
                    .phases
                    .named()
                    .map(|(name, time)| (name.to_owned(), time.as_micros() as u64))
                    .into_iter()
                    .collect(),
            })
            .collect()
    }

    fn metrics(&self) -> String {
        let index = self.process.index.lock();
        let (keys, bytes) = (index.len(), index.bytes());
        drop(index);
        let metrics = &self.process.metrics;
        metrics.index_keys.set(keys as i64);
        metrics.index_bytes.set(bytes as i64);
        metrics.index_complete.set(i64::from(self.process.index.is_complete()));
        metrics.journal_failures(self.process.journal.describe().failures);
        metrics.render()
    }
}
