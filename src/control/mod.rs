//! The control thread: keeps the index by the feed, and does fan-outs.
//!
//! - `feed`: the connection on which Redis reports key changes, and the barrier; `watched`: what it is asked to report;
//!   `push`: reading it; `events`: what is made of it
//! - `fanout`: the life of an invalidation; `deletion`: of the keys; `unlinks`: what several have in common; `fills`: of values
//!   that came too late
//! - `announce`, `announcement`: what proxies tell each other; `known`: whether Redis is still the one that it was
//! - `rebuild`: filling the index by SCAN; `gc`: dropping dead entries, watching that events still come
//! - `labels`: keeping explicit labels in Redis, and telling other proxies of them; `label_news`: hearing of theirs;
//!   `label_sets`: reading them back; `label_upkeep`: keeping them right; `sweep`: throwing away those of keys that are gone
//! - `described`: commands that the server has and the table has not
//! - `link`, `wire`: the connections for all that

mod announce;
mod announcement;
mod deletion;
mod described;
mod events;
mod fanout;
mod feed;
mod fills;
mod gc;
mod known;
mod label_news;
mod label_sets;
mod label_upkeep;
mod labels;
mod link;
mod push;
mod rebuild;
mod sweep;
mod unlinks;
mod watched;
mod wire;

pub use known::{had_labels, had_others, run_of};
pub use wire::Credentials;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::command::Commands;
use crate::fanout::Order;
use crate::lease;
use crate::metrics::ConnectionMode;
use crate::process::Process;
use crate::rules::{Matcher, Rules, Tag};
use feed::Feed;
use link::Link;

/// What workers must know and what may change while they run.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// The rules.
    pub rules: Arc<Rules>,
    /// The command table.
    pub commands: Arc<Commands>,
}

/// What the control thread is made from.
pub struct Parts {
    /// What all threads share.
    pub process: Arc<Process>,
    /// The proxy's own user.
    pub credentials: Credentials,
    /// Tells the workers.
    pub knowledge: watch::Sender<Knowledge>,
    /// What it is asked for.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// The Redis that an earlier process saw last.
    pub known: Option<String>,
    /// New rules.
    pub reloads: mpsc::UnboundedReceiver<Arc<Rules>>,
}

struct Engine {
    process: Arc<Process>,
    credentials: Credentials,
    knowledge: watch::Sender<Knowledge>,
    rules: RefCell<Arc<Rules>>,
    matcher: RefCell<Matcher>,
    /// The rules before, if tags were names of other keys by them, and until when they were in force.
    former: RefCell<Option<(Arc<Rules>, lease::Moment)>>,
    feed: Feed,
    /// The other proxies.
    others: announce::Others,
    /// Counts the fan-outs of this proxy, and the messages that tell of them.
    named: Cell<u64>,
    /// The Redis that was seen last.
    known: RefCell<Option<known::Identity>>,
    /// When it was last looked where new connections lead.
    looked: Cell<Option<Instant>>,
    /// Deletions: nothing slow may stand before them.
    deletes: Link,
    /// Scans, samples, label sets.
    scans: Link,
    /// Tags whose label sets in Redis have changed since they were last looked at.
    label_changes: label_sets::Changes,
    /// The feed is subscribed to the news of labels.
    hears_labels: Cell<bool>,
    /// The other proxies have been told of this one since the feed was connected.
    greeted: Cell<bool>,
    /// How often others were heard on that channel.
    heard_others: Cell<u64>,
    /// What others are about to give.
    labels_coming: label_news::Coming,
    /// Labelled keys whose expiry may have changed.
    retimed: label_upkeep::Retimed,
    /// Labels to be taken out of Redis.
    forgotten: labels::Forgotten,
    /// Label sets that are being written back.
    restoring: label_upkeep::Restoring,
    /// To those who wait for fan-outs.
    answers: fanout::Answers,
    /// Flushes of Redis, and what follows them.
    flushes: gc::Flushes,
    /// Deletions that are on their way.
    unlinks: unlinks::Unlinks,
    /// Fan-outs that have failed and are tried again.
    failing: Cell<usize>,
    /// Tells whenever tags have been invalidated.
    invalidated: Notify,
    /// Those who asked for all labels have waited for them in vain.
    labels_given_up: Cell<bool>,
    /// The rebuild that counts: an older one must not declare the index complete.
    rebuild: Cell<u64>,
}

/// Runs the control thread until the process ends.
pub async fn run(parts: Parts) {
    let Parts { process, credentials, knowledge, mut orders, known, mut reloads } = parts;
    let rules = Arc::clone(&knowledge.borrow().rules);
    let connections = || process.metrics.upstream_connections(ConnectionMode::Control);
    let link = || Link::new(Arc::clone(&process), credentials.clone(), connections());
    let engine = Rc::new(Engine {
        deletes: link(),
        scans: link(),
        credentials: credentials.clone(),
        knowledge,
        matcher: RefCell::new(rules.matcher()),
        rules: RefCell::new(rules),
        former: RefCell::default(),
        feed: Feed::default(),
        others: announce::Others::new(process.id.clone()),
        named: Cell::new(0),
        known: RefCell::new(known.as_deref().map(known::Identity::named)),
        looked: Cell::new(None),
        label_changes: label_sets::Changes::default(),
        hears_labels: Cell::new(false),
        greeted: Cell::new(false),
        heard_others: Cell::new(0),
        labels_coming: label_news::Coming::default(),
        retimed: label_upkeep::Retimed::default(),
        forgotten: labels::Forgotten::default(),
        restoring: RefCell::default(),
        answers: fanout::Answers::default(),
        flushes: gc::Flushes::default(),
        unlinks: unlinks::Unlinks::default(),
        failing: Cell::new(0),
        invalidated: Notify::new(),
        labels_given_up: Cell::new(false),
        rebuild: Cell::new(0),
        process: Arc::clone(&process),
    });
    tokio::task::spawn_local(feed::run(Rc::clone(&engine)));
    let answering = Rc::clone(&engine);
    tokio::task::spawn_local(async move { answering.answers.give().await });
    tokio::task::spawn_local(gc::run(Rc::clone(&engine)));
    tokio::task::spawn_local(pulse(Rc::clone(&engine)));
    tokio::task::spawn_local(announce::run(Rc::clone(&engine)));
    tokio::task::spawn_local(announce::watch(Rc::clone(&engine)));
    tokio::task::spawn_local(label_upkeep::keep_scores(Rc::clone(&engine)));
    tokio::task::spawn_local(sweep::run(Rc::clone(&engine)));
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => engine.obey(order),
                None => return,
            },
            Some(rules) = reloads.recv() => engine.set_rules(rules),
        }
    }
}

/// Says that the process runs, or finds that it stood still; runs for ever.
async fn pulse(engine: Rc<Engine>) {
    loop {
        let (shortest, longest) = (engine.shortest_window(), engine.longest_window());
        engine.process.runs(engine.moment(), shortest, longest);
        tokio::time::sleep(Duration::from_millis(lease::pulse(shortest))).await;
    }
}

impl Engine {
    fn obey(self: &Rc<Self>, order: Order) {
        let engine = Rc::clone(self);
        match order {
            Order::FanOut(request) => {
                tokio::task::spawn_local(fanout::run(engine, request));
            }
            Order::Together(orders) => orders.into_iter().for_each(|order| self.obey(order)),
            Order::Keys(db, tag, most, reply) => {
                tokio::task::spawn_local(async move {
                    let _ = reply.send(engine.existing_keys(db, &tag, most).await);
                });
            }
            Order::Exist(db, keys, reply) => {
                tokio::task::spawn_local(async move {
                    let entry = |key: Vec<u8>| gc::Entry { place: None, db, key: key.into() };
                    let entries = gc::Entries(keys.into_iter().map(entry).collect());
                    if let Ok(alive) = engine.check(entries).await {
                        let _ = reply.send(alive);
                    }
                });
            }
            Order::Tags(db, key, reply) => {
                tokio::task::spawn_local(async move { engine.tags_of(db, key, reply).await });
            }
            Order::Learn(keys, reply) => {
                tokio::task::spawn_local(async move {
                    let known = labels::learn(&engine).await;
                    labels::forget_dead(&engine, keys).await;
                    let _ = reply.send(known);
                });
            }
            Order::Give(labels, reply) => {
                tokio::task::spawn_local(async move {
                    let _ = reply.send(labels::hand_on(&engine, &labels).await);
                });
            }
            Order::Settle(changes, reply) => {
                tokio::task::spawn_local(async move {
                    let _ = reply.send(labels::settle(&engine, changes).await);
                });
            }
            Order::Alive(reply) => {
                tokio::task::spawn_local(async move {
                    let _ = reply.send(engine.feed.barrier(vec![], &engine).await);
                });
            }
            Order::Database(db, reply) => {
                tokio::task::spawn_local(async move {
                    let found = engine.deletes.one(db, ["PING"]).await;
                    let _ = reply.send(!found.is_err_and(|error| link::has_no_database(&error)));
                });
            }
            Order::Rebuild(why) => self.rebuild(why),
            Order::Redial => {
                self.feed.follow(engine.process.era());
                self.deletes.follow();
                self.scans.follow();
            }
            Order::Look => {
                tokio::task::spawn_local(known::look(engine));
            }
            Order::Compare => {
                tokio::task::spawn_local(known::compare(engine));
            }
            Order::Note => known::note(self),
            Order::Check(db, checks, reply) => {
                tokio::task::spawn_local(async move {
                    fills::check(engine, db, checks).await;
                    let _ = reply.send(());
                });
            }
            Order::Busy(host) => self.say_busy(host),
            Order::Bye(reply) => {
                tokio::task::spawn_local(async move {
                    engine.say_bye().await;
                    let _ = reply.send(());
                });
            }
            Order::Forget(db, key, tags) => labels::forget(self, db, &key, tags),
            Order::Retimed(keys) => self.retimed.add(keys),
        }
    }

    /// New rules: the index has the old ones' tags until it is rebuilt.
    fn set_rules(self: &Rc<Self>, rules: Arc<Rules>) {
        self.process.index.set_incomplete("the rules were reloaded");
        let names: Vec<&str> = rules.families().iter().map(|f| f.name.as_str()).collect();
        self.process.metrics.register_families(&names);
        let labels: Vec<&str> = rules.triggers().iter().map(|t| t.label.as_str()).collect();
        self.process.metrics.register_triggers(&labels);
        *self.matcher.borrow_mut() = rules.matcher();
        let before = self.rules.replace(Arc::clone(&rules));
        // What was missed before may have got tags now. Ahead of the workers, who follow what comes next.
        if !rules.watches_like(&before) {
            self.process.leases.suspect_fills(self.moment() + self.longest_window());
        }
        if rules.fingerprint() != before.fingerprint() {
            self.rename_tags(before, &rules);
        }
        self.knowledge.send_modify(|knowledge| knowledge.rules = rules);
        self.feed.follow_rules();
        self.say_here();
        self.rebuild("the rules were reloaded");
    }

    /// From now on tags are names of other keys than by the rules before. Whoever knows of an invalidation by names must not
    /// look for these only. Fan-outs know the rules that they began by, and what those name.
    fn rename_tags(&self, before: Arc<Rules>, rules: &Rules) {
        self.process.journal.follow_rules(rules.fingerprint());
        [&self.process.doubt, &self.process.invalidating].into_iter().for_each(|doubt| doubt.generalize());
        // What is filled from a miss before is compared with the epochs of tags that its key did not have.
        self.process.epochs.gap();
        self.former.replace(Some((before, self.moment())));
    }

    fn present_rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.borrow())
    }

    /// The rules by which tags were named at that moment, or at some time since: of those that name them differently the last.
    fn rules_since(&self, moment: lease::Moment) -> Arc<Rules> {
        let former = self.former.borrow();
        let former = former.as_ref().filter(|(_, until)| *until >= moment);
        former.map_or_else(|| self.present_rules(), |(rules, _)| Arc::clone(rules))
    }

    /// Whether Redis sends events, as far as its settings say; the canary has the last word.
    fn events_enabled(&self, enabled: Result<(), String>) {
        let missing = enabled.is_err();
        if let Err(error) = enabled {
            tracing::warn!(
                %error,
                "Redis cannot be made to tell of key changes: unless it does all the same, the index has only what is \
                 written through this proxy, rescind_index_complete stays 0, and every fan-out scans"
            );
        }
        self.process.own_writes.store(missing, Ordering::Release);
    }

    /// The feed shows that a key came to exist. Whether its writes could fire a trigger.
    fn created(&self, db: u32, key: &[u8]) -> bool {
        let mut tags = vec![];
        let has_triggers = self.matcher.borrow_mut().tags(db, key, &mut tags);
        if !tags.is_empty() || self.process.index.has_labels() {
            let gone = self.process.index.lock().created(db, key, &tags);
            // Should they follow the value that it has now, they are in Redis only.
            gone.iter().for_each(|tag| self.label_changes.seen_change(Tag::clone(tag)));
            self.process.fanout.forget(db, key, gone);
        }
        has_triggers
    }

    /// The feed shows that a key expired or was evicted.
    fn gone(&self, db: u32, key: &[u8]) {
        let dropped = self.process.index.lock().gone(db, key);
        self.process.fanout.forget(db, key, dropped.explicit);
    }

    fn family_of(&self, db: u32, key: &[u8]) -> String {
        let family = self.matcher.borrow_mut().classify(db, key).family;
        self.rules.borrow().family(family).name.clone()
    }

    /// The first database that the rules apply to.
    fn first_database(&self) -> u32 {
        self.rules.borrow().first_database()
    }

    /// The databases that the rules apply to and that hold keys.
    async fn databases(&self) -> Result<Vec<u32>, String> {
        self.databases_of(&[self.present_rules()]).await
    }

    /// The databases that one of these applies to and that hold keys.
    async fn databases_of(&self, rules: &[Arc<Rules>]) -> Result<Vec<u32>, String> {
        let named: Option<Vec<&[u32]>> = rules.iter().map(|rules| rules.databases()).collect();
        if let Some(named) = named {
            let mut databases = named.concat();
            databases.sort_unstable();
            databases.dedup();
            return Ok(databases);
        }
        let info = self.scans.one(0, ["INFO", "keyspace"]).await?;
        let text = wire::text_of(&info);
        let number = |line: &str| line.strip_prefix("db")?.split_once(':')?.0.parse().ok();
        Ok(text.lines().filter_map(number).collect())
    }

    /// The keys of a tag that exist; those that do not are dropped from the index. The error is why that cannot be known.
    async fn existing_keys(&self, db: u32, tag: &Tag, most: usize) -> Result<Vec<Vec<u8>>, String> {
        labels::learn(self).await;
        let mut found = vec![];
        let mut cursor = Some(usize::MAX);
        while let Some(at) = cursor
            && found.len() < most
        {
            let mut entries = gc::Entries::default();
            cursor = self.process.index.lock().collect(tag, at, 512, &mut |one| {
                if one.db == db {
                    entries.push(one);
                }
            });
            found.extend(self.check(entries).await?);
        }
        if found.len() < most {
            found.extend(self.labelled_elsewhere(db, tag, &found).await?);
        }
        if found.is_empty() {
            // Perhaps nothing was asked.
            wire::is_there(self.scans.one(0, ["PING"]).await.map(drop))?;
        }
        found.truncate(most);
        Ok(found)
    }

    /// Keys with this label that exist, that the index does not know, and that are not among those found already.
    async fn labelled_elsewhere(
        &self,
        db: u32,
        tag: &Tag,
        found: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, String> {
        let all = label_sets::labelled_elsewhere(self, std::slice::from_ref(tag), false).await?;
        let here = all.into_iter().filter(|(other, _)| *other == db);
        let unknown = here.map(|(db, key)| gc::Entry { place: None, db, key: key[..].into() });
        let alive = self.check(gc::Entries(unknown.collect())).await?;
        let known: HashSet<&Vec<u8>> = found.iter().collect();
        Ok(alive.into_iter().filter(|key| !known.contains(key)).collect())
    }

    async fn tags_of(&self, db: u32, key: Vec<u8>, reply: oneshot::Sender<Vec<Tag>>) {
        labels::learn(self).await;
        let exists = self.scans.one(db, [b"EXISTS".as_slice(), &key]).await;
        let exists = !matches!(exists.as_ref().map(wire::int_of), Ok(Some(0)));
        let mut tags = vec![];
        if exists {
            // The rules say more than the index where the index is not complete.
            self.matcher.borrow_mut().tags(db, &key, &mut tags);
            let known: HashSet<Tag> = tags.iter().cloned().collect();
            let explicit = self.process.index.lock().explicit_of(db, &key);
            tags.extend(explicit.into_iter().filter(|tag| !known.contains(tag)));
        }
        let _ = reply.send(tags);
    }
}
