//! The feed: the stream of key changes that Redis itself sends, and the barrier that orders it.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use redis_protocol::resp3::types::BytesFrame;
use tokio::sync::{Notify, oneshot};

use super::Engine;
use super::wire::{Wire, array_of, bytes_of, into_result};
use crate::accounting::{Firing, TriggerLabel};
use crate::command::FireCondition;
use crate::fanout::{CHANNEL, Cause, tags_of_message};
use crate::news::NEWS;
use crate::rules::{Rules, without_overlaps};

/// What `notify-keyspace-events` must contain: keyevent channels, new keys, expired and evicted ones.
const FLAGS: &str = "Enxe";
/// How long Redis may take to answer a barrier before the feed counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Those who wait for a barrier, and the triggers that it ends.
#[derive(Default)]
struct Barrier {
    waiters: Vec<oneshot::Sender<()>>,
    own: Vec<Firing>,
}

/// The feed's state, as the rest of the control thread sees it.
#[derive(Default)]
pub(super) struct Feed {
    connected: Cell<bool>,
    /// Counts connections: what was true of an earlier one is not of this one.
    session: Cell<u64>,
    unsent: RefCell<Barrier>,
    /// What replies are expected to: a barrier, or (`None`) an addition to what is watched.
    sent: RefCell<VecDeque<Option<Barrier>>>,
    watched: RefCell<Watched>,
    /// The rules have changed: more may have to be watched.
    changed: Cell<bool>,
    wake: Notify,
    /// The canary's event has been seen since it was last asked for.
    canary: Cell<bool>,
    /// Trigger keys that have just expired or been evicted, and whose change is still to be reported: in the same
    /// turn of Redis's loop, behind that event. A key written anew in between is not among them.
    ended: RefCell<HashSet<Box<[u8]>>>,
    /// Set to end the connection.
    drop: RefCell<Option<&'static str>>,
}

impl Feed {
    /// Whether events flow.
    pub fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// The number of the present connection.
    pub fn session(&self) -> u64 {
        self.session.get()
    }

    /// Whether the canary's event arrived; asks anew.
    pub fn take_canary(&self) -> bool {
        self.canary.replace(false)
    }

    /// What was to be reported long ago will not be any more; called now and then.
    pub fn forget_ended(&self) {
        self.ended.borrow_mut().clear();
    }

    /// Ends the connection, so that everything is set up anew.
    pub fn reconnect(&self, why: &'static str) {
        *self.drop.borrow_mut() = Some(why);
        self.wake.notify_one();
    }

    /// Resolves once the index reflects every write that Redis executed before the call; false: the feed was
    /// lost. `own` are triggers of our clients that the feed need not cover from then on.
    pub async fn barrier(&self, own: Vec<Firing>, engine: &Engine) -> bool {
        if !self.connected.get() {
            engine.leave(&own);
            return false;
        }
        let (done, passed) = oneshot::channel();
        {
            let mut unsent = self.unsent.borrow_mut();
            unsent.waiters.push(done);
            unsent.own.extend(own);
        }
        self.wake.notify_one();
        match tokio::time::timeout(PATIENCE, passed).await {
            Ok(passed) => passed.is_ok(),
            Err(_) => {
                self.reconnect("the feed does not answer");
                false
            }
        }
    }

    /// The rules have changed.
    pub fn follow_rules(&self) {
        self.changed.set(true);
        self.wake.notify_one();
    }

    fn passed(&self, engine: &Engine) {
        let answered = self.sent.borrow_mut().pop_front();
        if let Some(Some(barrier)) = answered {
            end(barrier, engine, true);
        }
    }

    fn lost(&self, engine: &Engine) {
        self.connected.set(false);
        let sent = std::mem::take(&mut *self.sent.borrow_mut());
        sent.into_iter().flatten().for_each(|barrier| end(barrier, engine, false));
        end(std::mem::take(&mut *self.unsent.borrow_mut()), engine, false);
    }
}

/// Within the same step as the reply to the PING: a write that the feed shows later is not covered any more.
fn end(barrier: Barrier, engine: &Engine, passed: bool) {
    engine.leave(&barrier.own);
    if passed {
        for waiter in barrier.waiters {
            let _ = waiter.send(());
        }
    }
}

/// Keeps the feed connected for ever.
pub(super) async fn run(engine: Rc<Engine>) {
    let node = engine.process.upstream.to_string();
    let metrics = Rc::clone(&engine);
    let metrics = &metrics.process.metrics;
    let (up, connected) = (metrics.upstream_up(&node), metrics.feed_connected(&node));
    let (reconnects, gaps) = (metrics.upstream_reconnects(&node), metrics.feed_gaps(&node));
    let mut pause = FIRST_PAUSE;
    let mut complained = false;
    let mut was_connected = false;
    loop {
        // What was asked for up to here is served by a new connection.
        engine.feed.drop.borrow_mut().take();
        engine.feed.changed.set(false);
        match connect(&engine).await {
            Ok(wire) => {
                (pause, complained) = (FIRST_PAUSE, false);
                if was_connected {
                    reconnects.inc();
                }
                was_connected = true;
                up.set(1);
                connected.set(1);
                engine.feed.session.set(engine.feed.session.get() + 1);
                engine.feed.connected.set(true);
                engine.rebuild("the feed was connected");
                tokio::task::spawn_local(super::label_news::greet(Rc::clone(&engine)));
                let error = listen(&engine, wire).await;
                engine.process.index.set_incomplete("the feed was lost");
                engine.process.labels_known.store(false, std::sync::atomic::Ordering::Release);
                engine.feed.lost(&engine);
                up.set(0);
                connected.set(0);
                gaps.inc();
                tracing::warn!(%node, %error, "feed lost: fan-outs also scan until the index is rebuilt");
            }
            Err(error) => {
                if !complained {
                    tracing::warn!(%node, %error, "upstream cannot be reached; retrying");
                }
                complained = true;
            }
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(engine: &Engine) -> Result<Wire, String> {
    let setting_up = async {
        let mut wire = Wire::connect(&engine.process.upstream, &engine.credentials).await?;
        super::described::learn_commands(engine).await;
        subscribe(engine, &mut wire).await?;
        // After subscribing, so that whoever changes the settings and cuts the feed in one step is overruled.
        let enabled = enable_events(&mut wire).await;
        wire.call(&["PING"]).await?;
        engine.events_enabled(enabled);
        Ok(wire)
    };
    let patience = Duration::from_secs(10);
    let result = tokio::time::timeout(patience, setting_up).await;
    engine.process.set_silent(result.is_err());
    result.unwrap_or_else(|_| Err("no answer within 10 s".to_owned()))
}

/// Whether Redis is set to send the events that are needed. `None`: it may not be asked.
pub(super) async fn events_configured(engine: &Engine) -> Option<bool> {
    let frame = engine.scans.one(0, ["CONFIG", "GET", "notify-keyspace-events"]).await.ok()?;
    let current = value_of(frame);
    Some(!current.is_empty() && wanted_flags(&current) == current)
}

/// The value in the reply to CONFIG GET of one setting.
fn value_of(frame: BytesFrame) -> String {
    let value = match frame {
        BytesFrame::Map { data, .. } => data.values().next().and_then(bytes_of).cloned().unwrap_or_default(),
        other => array_of(other).get(1).and_then(bytes_of).cloned().unwrap_or_default(),
    };
    String::from_utf8_lossy(&value).into_owned()
}

/// Adds the flags that are needed to those that are set.
async fn enable_events(wire: &mut Wire) -> Result<(), String> {
    let current = value_of(wire.call(&["CONFIG", "GET", "notify-keyspace-events"]).await?);
    let wanted = wanted_flags(&current);
    if wanted != current {
        wire.call(&["CONFIG", "SET", "notify-keyspace-events", &wanted]).await?;
        tracing::info!(before = current, now = wanted, "notify-keyspace-events was extended");
    }
    Ok(())
}

/// `current` with what is missing of [`FLAGS`]; `A` stands for expired and evicted among others.
fn wanted_flags(current: &str) -> String {
    let covered = |flag| current.contains(flag) || (current.contains('A') && matches!(flag, 'x' | 'e'));
    let missing: String = FLAGS.chars().filter(|flag| !covered(*flag)).collect();
    format!("{current}{missing}")
}

/// What Redis has been asked to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Watched {
    /// Databases whose events are subscribed to; `*`: all.
    databases: Vec<String>,
    /// Prefixes of tracked keys.
    prefixes: Vec<Vec<u8>>,
}

impl Watched {
    /// What these rules need.
    fn by(rules: &Rules) -> Self {
        let databases = match rules.databases() {
            Some(databases) => databases.iter().map(u32::to_string).collect(),
            None => vec!["*".to_owned()],
        };
        let mut prefixes = rules.tracking_prefixes().prefixes;
        prefixes.push(b"rescind:".to_vec());
        Self { databases, prefixes: without_overlaps(prefixes) }
    }

    /// What `wanted` needs besides. `None`: it cannot be added, because it would overlap with what there is.
    fn missing(&self, wanted: &Watched) -> Option<Watched> {
        let all = |databases: &[String]| databases.iter().any(|db| db == "*");
        if all(&wanted.databases) && !all(&self.databases) {
            return None;
        }
        let overlaps = |new: &Vec<u8>| self.prefixes.iter().any(|old| old.starts_with(new) && old != new);
        if wanted.prefixes.iter().any(overlaps) {
            return None;
        }
        let known_db = |db: &&String| !all(&self.databases) && !self.databases.contains(db);
        let known_prefix = |new: &&Vec<u8>| !self.prefixes.iter().any(|old| new.starts_with(old));
        Some(Watched {
            databases: wanted.databases.iter().filter(known_db).cloned().collect(),
            prefixes: wanted.prefixes.iter().filter(known_prefix).cloned().collect(),
        })
    }

    fn subscription(&self) -> Vec<String> {
        let events =
            |db: &String| ["new", "expired", "evicted"].map(|event| format!("__keyevent@{db}__:{event}"));
        std::iter::once("PSUBSCRIBE".to_owned()).chain(self.databases.iter().flat_map(events)).collect()
    }

    fn tracking(&self) -> Vec<Vec<u8>> {
        let head = ["CLIENT", "TRACKING", "ON", "BCAST"].map(Into::into);
        let prefixes = self.prefixes.iter().flat_map(|prefix| [b"PREFIX".to_vec(), prefix.clone()]);
        head.into_iter().chain(prefixes).collect()
    }
}

/// Asks for events, announcements, and invalidations of trigger keys (and thereby of flushes). Without the right
/// to the last, direct writes of triggers and flushes are not seen; everything else works.
async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<(), String> {
    let watched = Watched::by(&engine.rules.borrow());
    // Their confirmations are pushes.
    wire.queue(&watched.subscription());
    wire.queue(&[b"SUBSCRIBE", CHANNEL]);
    wire.call(&["PING"]).await?;
    super::label_news::subscribe(wire).await?;
    if let Err(error) = wire.call(&watched.tracking()).await {
        tracing::warn!(
            %error,
            "CLIENT TRACKING is not possible: trigger keys written past the proxy are not seen, and every fan-out \
             looks for labels that other proxies gave"
        );
        engine.label_changes.lose_track();
    }
    *engine.feed.watched.borrow_mut() = watched;
    Ok(())
}

/// Adds what new rules need to what is watched already. False: only a new connection can.
fn watch_more(engine: &Engine, wire: &mut Wire) -> bool {
    let wanted = Watched::by(&engine.rules.borrow());
    let mut watched = engine.feed.watched.borrow_mut();
    let Some(missing) = watched.missing(&wanted) else { return false };
    if !missing.databases.is_empty() {
        wire.queue(&missing.subscription());
    }
    if !missing.prefixes.is_empty() {
        wire.queue(&missing.tracking());
        engine.feed.sent.borrow_mut().push_back(None);
    }
    watched.databases.extend(missing.databases);
    watched.prefixes.extend(missing.prefixes);
    true
}

async fn listen(engine: &Rc<Engine>, mut wire: Wire) -> String {
    let feed = &engine.feed;
    loop {
        let frame = tokio::select! {
            frame = wire.next() => frame,
            () = feed.wake.notified() => {
                if let Some(why) = feed.drop.take() {
                    return why.to_owned();
                }
                if feed.changed.take() && !watch_more(engine, &mut wire) {
                    return "the rules were reloaded".to_owned();
                }
                let unsent = std::mem::take(&mut *feed.unsent.borrow_mut());
                if !unsent.waiters.is_empty() {
                    wire.queue(&["PING"]);
                    feed.sent.borrow_mut().push_back(Some(unsent));
                }
                continue;
            }
        };
        match frame {
            Ok(BytesFrame::Push { data, .. }) => pushed(engine, &data),
            Ok(frame) => match into_result(frame) {
                Ok(_) => feed.passed(engine),
                Err(error) => return error,
            },
            Err(error) => return error,
        }
    }
}

fn pushed(engine: &Rc<Engine>, parts: &[BytesFrame]) {
    let part = |i: usize| parts.get(i).and_then(bytes_of);
    match part(0).map(|kind| &**kind) {
        Some(b"pmessage") => {
            if let (Some(channel), Some(key)) = (part(2), part(3)) {
                event(engine, channel, key);
            }
        }
        Some(b"message") => match (part(1).map(|channel| &**channel), part(2)) {
            (Some(NEWS), Some(payload)) => super::label_news::heard(engine, payload),
            (_, Some(payload)) => announced(engine, payload),
            _ => {}
        },
        Some(b"invalidate") => match parts.get(1) {
            Some(BytesFrame::Array { data, .. }) => {
                data.iter().filter_map(bytes_of).for_each(|key| written(engine, key));
            }
            _ => engine.flushed(),
        },
        _ => {}
    }
}

/// `__keyevent@<db>__:<event>`
fn event(engine: &Rc<Engine>, channel: &[u8], key: &[u8]) {
    let Some((db, event)) = split_channel(channel) else { return };
    if key.starts_with(super::gc::CANARY) {
        if event == b"new" {
            engine.feed.canary.set(true);
        }
        return;
    }
    match event {
        b"new" => {
            engine.feed.ended.borrow_mut().remove(key);
            engine.created(db, key);
        }
        b"expired" => {
            ended(engine, db, key);
            engine.gone(db, key);
            engine.process.metrics.expirations(&engine.family_of(db, key));
        }
        b"evicted" => {
            ended(engine, db, key);
            engine.gone(db, key);
            engine.process.metrics.evictions(&engine.family_of(db, key));
            if let Some(tag) = key.strip_prefix(crate::fanout::LABEL_SETS) {
                tokio::task::spawn_local(super::label_upkeep::restore(Rc::clone(engine), db, tag.into()));
            }
        }
        _ => {}
    }
}

/// Redis also reports the end of a key that nobody wrote as a change of it.
fn ended(engine: &Engine, db: u32, key: &[u8]) {
    if engine.matcher.borrow_mut().classify(db, key).has_triggers {
        engine.feed.ended.borrow_mut().insert(key.into());
    }
}

fn split_channel(channel: &[u8]) -> Option<(u32, &[u8])> {
    let rest = channel.strip_prefix(b"__keyevent@")?;
    let end = memchr::memchr(b'_', rest)?;
    let db = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((db, rest[end..].strip_prefix(b"__:")?))
}

/// A message on the invalidation channel.
fn announced(engine: &Rc<Engine>, payload: &[u8]) {
    if engine.process.own_triggers.covers_message(payload) {
        return;
    }
    let tags = tags_of_message(payload);
    if !tags.is_empty() {
        engine.fan_out_direct(Firing {
            condition: FireCondition::NoError,
            triggers: smallvec::smallvec![TriggerLabel::Publish],
            tags,
            keys: vec![],
            what: format!("PUBLISH {}", String::from_utf8_lossy(CHANNEL)),
        });
    }
}

/// A key under a tracked prefix was written, by us or past us.
fn written(engine: &Rc<Engine>, key: &[u8]) {
    if let Some(tag) = key.strip_prefix(crate::fanout::LABEL_SETS) {
        engine.label_changes.seen_change(tag.into());
    }
    let unwritten = engine.feed.ended.borrow_mut().remove(key);
    if unwritten || key.starts_with(b"rescind:") || engine.process.own_triggers.covers_key(key) {
        return;
    }
    // Redis does not say in which database.
    let db = engine.first_database();
    let mut fired = vec![];
    engine.matcher.borrow_mut().fired(db, key, None, &mut fired);
    for one in fired {
        engine.fan_out_direct(Firing {
            condition: FireCondition::NoError,
            triggers: smallvec::smallvec![TriggerLabel::Rule(one.trigger)],
            tags: one.tags,
            keys: vec![],
            what: format!("a write of {}", String::from_utf8_lossy(key)),
        });
    }
}

impl Engine {
    /// What the feed shows of these triggers' keys from now on is not theirs.
    fn leave(&self, own: &[Firing]) {
        for firing in own {
            self.process.own_triggers.leave(firing);
        }
    }

    /// Fans out for somebody who wrote straight to Redis.
    fn fan_out_direct(self: &Rc<Self>, firing: Firing) {
        let fired = vec![firing];
        self.process.fanout.detached(Cause::of("direct", &fired), fired);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_never_removed() {
        assert_eq!(wanted_flags(""), "Enxe");
        assert_eq!(wanted_flags("KA"), "KAEn");
        assert_eq!(wanted_flags("AKE"), "AKEn");
        assert_eq!(wanted_flags("xeEn"), "xeEn");
        assert_eq!(wanted_flags("Kg$"), "Kg$Enxe");
    }

    #[test]
    fn more_is_watched_without_a_new_connection_where_nothing_overlaps() {
        let watched = |databases: &[&str], prefixes: &[&str]| Watched {
            databases: databases.iter().map(|db| (*db).to_owned()).collect(),
            prefixes: prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect(),
        };
        let now = watched(&["1"], &["rescind:", "m:"]);
        assert_eq!(now.missing(&watched(&["1", "2"], &["m:x:", "t:"])), Some(watched(&["2"], &["t:"])));
        assert_eq!(now.missing(&watched(&["*"], &["m:"])), None);
        assert_eq!(now.missing(&watched(&["1"], &["m"])), None);
        assert_eq!(watched(&["*"], &["m:"]).missing(&watched(&["3"], &[])), Some(watched(&[], &[])));
    }

    #[test]
    fn channels() {
        assert_eq!(split_channel(b"__keyevent@12__:new"), Some((12, b"new".as_slice())));
        for bad in [b"__keyevent@__:new".as_slice(), b"x", b"__keyevent@1_:new", b"__keyspace@0__:k"] {
            assert_eq!(split_channel(bad), None);
        }
    }
}
