//! Dropping entries of keys that are gone, and watching that events still come.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use redis_protocol::resp3::types::BytesFrame;

use super::link::{Batch, has_no_database};
use super::{Engine, known, label_upkeep, wire};
use crate::index::{Collected, Generation, KeyId};
use crate::lease::script::epoch_key;

/// The keys whose events show that the feed works. They expire by themselves.
pub(super) const CANARY: &[u8] = b"rescind:canary:";
/// How often the feed is tested and the index sampled.
const PERIOD: Duration = Duration::from_secs(1);
/// How long Redis may take to answer a canary.
const PATIENCE: Duration = Duration::from_secs(3);
/// With each so many of these turns it is said again that fan-outs fail.
const REMIND: u64 = 30;
/// Entries looked at in one go.
const SAMPLE: usize = 1000;
/// If more of a sample than one in this many is dead, the next sample follows at once.
const MANY_DEAD: usize = 8;
/// Keys that are asked for at once: mostly all or none of them are there.
const TOGETHER: usize = 50;
/// How long an entry must have stood still before EXISTS may drop it where Redis sends no events: its write
/// may still be under way.
const REST: Duration = Duration::from_secs(20);

/// A key and, if it comes from the index, where it is there.
pub(super) struct Entry {
    pub place: Option<(KeyId, Generation)>,
    pub db: u32,
    pub key: Box<[u8]>,
}

/// What follows a flush. One task does it, however many flushes come: those of a test suite come faster than it is done.
#[derive(Default)]
pub(super) struct Flushes {
    seen: Cell<u64>,
    /// Epochs are being set again: nothing slow may stand before that.
    restoring: Cell<bool>,
    collecting: Cell<bool>,
}

/// Keys to ask Redis about.
#[derive(Default)]
pub(super) struct Entries(pub Vec<Entry>);

impl Entries {
    pub fn push(&mut self, one: Collected<'_>) {
        self.0.push(Entry { place: Some((one.id, one.generation)), db: one.db, key: one.key.into() });
    }
}

/// Keys that have been sent to Redis. Their names are kept only where explicit labels may have to go with them: the
/// memory of big fan-outs is used again and again that way. A label given later moves the generation.
pub(super) enum SentEntries {
    Places(Vec<(KeyId, Generation)>),
    Named(Entries),
}

impl Entries {
    fn by_db(self) -> BTreeMap<u32, Entries> {
        let mut by_db: BTreeMap<u32, Entries> = BTreeMap::new();
        for entry in self.0 {
            by_db.entry(entry.db).or_default().0.push(entry);
        }
        by_db
    }

    /// What of them is still needed now that they have been sent.
    pub fn sent(self, labels: bool) -> SentEntries {
        match labels {
            true => SentEntries::Named(self),
            false => SentEntries::Places(self.0.iter().filter_map(|entry| entry.place).collect()),
        }
    }
}

impl SentEntries {
    /// Where they are in the index.
    pub fn each_place(&self, mut visit: impl FnMut(KeyId, Generation)) {
        match self {
            Self::Places(places) => places.iter().for_each(|(id, generation)| visit(*id, *generation)),
            Self::Named(entries) => {
                let places = entries.0.iter().filter_map(|entry| entry.place);
                places.for_each(|(id, generation)| visit(id, generation));
            }
        }
    }

    /// The keys are gone: their entries go, unless something has happened to them since.
    pub fn drop_from(self, engine: &Engine) {
        match self {
            Self::Named(entries) => drop_entries(engine, entries),
            Self::Places(places) => {
                let mut index = engine.process.index.lock();
                for (id, generation) in places {
                    index.drop_if(id, generation);
                }
            }
        }
    }
}

/// The keys are gone as of a reply: their entries go, unless something has happened to them since.
pub(super) fn drop_entries(engine: &Engine, entries: Entries) {
    let mut index = engine.process.index.lock();
    for entry in entries.0 {
        if let Some((id, generation)) = entry.place {
            let dropped = index.drop_if(id, generation);
            engine.process.fanout.forget(entry.db, &entry.key, dropped.explicit);
        }
    }
}

/// Runs for ever.
pub(super) async fn run(engine: Rc<Engine>) {
    let mut suspects: Option<(Instant, Entries)> = None;
    let mut tick = 0u64;
    loop {
        tokio::time::sleep(PERIOD).await;
        tick += 1;
        engine.feed.forget_ended();
        let now = engine.moment();
        engine.process.computations.expire(now);
        engine.process.leases.expire(now);
        engine.process.epochs.forget_before(now.saturating_sub(engine.epoch_lifetime() * 3 / 2));
        if engine.failing.get() > 0 && tick.is_multiple_of(REMIND) {
            tracing::warn!(
                fan_outs = engine.failing.get(),
                "fan-outs still fail; reads of their keys are misses"
            );
        }
        if !engine.feed.is_connected() {
            continue;
        }
        if tokio::time::timeout(PATIENCE, canary(&engine, tick)).await.is_err() {
            engine.process.set_silent(true);
            engine.feed.reconnect("Redis does not answer");
            continue;
        }
        look_at_redis(&engine).await;
        if engine.process.own_writes() {
            suspects = collect_slowly(&engine, suspects).await;
        } else {
            collect(&engine).await;
        }
    }
}

/// Do events still come? Somebody may have changed the settings. They are asked for; where that is not allowed, a key
/// is made and its event waited for.
async fn canary(engine: &Rc<Engine>, tick: u64) {
    if !engine.greeted.get() {
        // Others that cannot be told either are noticed by this only.
        let _ = tokio::time::timeout(super::feed::SHORT, super::label_news::greet(engine)).await;
    }
    super::feed::hear_again(engine, tick).await;
    if !engine.feed.hears_events() {
        // Whether it answers at all is asked all the same.
        let _ = engine.scans.one(0, ["PING"]).await;
        return;
    }
    let session = engine.feed.session();
    let come = match super::watched::events_configured(engine).await {
        Some(configured) => configured,
        None => match sings(engine, tick).await {
            Some(sung) => sung,
            None => return,
        },
    };
    if engine.feed.session() != session {
        return;
    }
    match (come, engine.process.own_writes()) {
        (false, false) => engine.feed.reconnect("keyspace events do not come any more"),
        (true, true) => {
            tracing::info!("keyspace events come although they cannot be configured");
            engine.process.own_writes.store(false, std::sync::atomic::Ordering::Release);
            engine.rebuild("keyspace events come");
        }
        _ => {}
    }
}

/// Whether the event of a key that is made for this came; `None`: that says nothing.
async fn sings(engine: &Rc<Engine>, tick: u64) -> Option<bool> {
    let db = engine.first_database();
    let key = canary_named(tick);
    engine.feed.take_canary();
    if let Err(error) = flash(engine, db, &key).await {
        // A full or read-only Redis says nothing about the feed.
        tracing::debug!(%error, "the canary key cannot be written");
        return None;
    }
    engine.feed.barrier(vec![], engine).await.then(|| engine.feed.take_canary())
}

/// The name of a canary. In containers others may have the same: whosever it is, its event shows that they come.
pub(super) fn canary_named(which: impl std::fmt::Display) -> String {
    format!("{}{}:{which}", String::from_utf8_lossy(CANARY), std::process::id())
}

/// Makes a key and deletes it in one step: nobody sees it, and where scripts are allowed neither replicas nor the
/// append-only file hear of it.
pub(super) async fn flash(engine: &Engine, db: u32, key: &str) -> Result<(), String> {
    const SCRIPT: &str =
        "redis.set_repl(redis.REPL_NONE); redis.call('SET', KEYS[1], ''); redis.call('DEL', KEYS[1])";
    let Err(error) = engine.scans.one(db, ["EVAL", SCRIPT, "1", key]).await else { return Ok(()) };
    if !error.starts_with("NOPERM") && !error.starts_with("ERR unknown command") {
        return Err(error);
    }
    let mut batch = super::link::Batch::default();
    batch.push(["MULTI"]);
    batch.push(["SET", key, ""]);
    batch.push(["DEL", key]);
    batch.push(["EXEC"]);
    let replies = engine.scans.call(db, batch).await?;
    replies.into_iter().try_for_each(|reply| wire::into_result(reply).map(|_| ()))
}

/// SWAPDB shows in no event, nor does a Redis that becomes a replica, nor that events were switched off for a moment; but
/// Redis tells when it is asked.
async fn look_at_redis(engine: &Rc<Engine>) {
    let asked = engine.moment();
    let Ok(identity) = known::ask(engine).await else { return };
    known::counted(engine, &identity.counts, asked);
    if known::is_another(engine, &identity) {
        engine.process.doubt_redis();
        // A master that became a replica has been followed by another one.
        engine.process.look_for_another();
    }
}

/// Samples until few of the entries are dead.
async fn collect(engine: &Rc<Engine>) {
    loop {
        let entries = sample(engine);
        let asked = entries.0.len();
        let Ok(alive) = engine.review(entries).await else { return };
        if asked == 0 || (asked - alive) * MANY_DEAD < asked {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Where writes are known before they happen, one that is under way looks like a dead entry: only what was
/// dead and has stood still for a while goes.
async fn collect_slowly(
    engine: &Rc<Engine>,
    suspects: Option<(Instant, Entries)>,
) -> Option<(Instant, Entries)> {
    match suspects {
        None => Some((Instant::now(), sample(engine))),
        Some((since, entries)) if since.elapsed() >= REST => {
            let _ = engine.review(entries).await;
            None
        }
        waiting => waiting,
    }
}

fn sample(engine: &Engine) -> Entries {
    let mut entries = Entries::default();
    engine.process.index.lock().sample(SAMPLE, &mut |one| entries.push(one));
    entries
}

/// A flush takes the epochs along by which Redis tells stale fills: they are set again.
async fn restore_epochs(engine: &Engine) {
    let lifetime = engine.epoch_lifetime();
    let now = engine.moment();
    let epochs = engine.process.epochs.since(now.saturating_sub(lifetime));
    if epochs.is_empty() || engine.process.dry_run {
        return;
    }
    let mut batch = Batch::default();
    for (tag, id, at) in epochs {
        // Not for longer than they are remembered here: one that nobody knows looks like news.
        let left = (at + lifetime).saturating_sub(now).max(1).to_string();
        batch.push([b"SET".as_slice(), &epoch_key(&tag), &id, b"NX", b"PX", left.as_bytes()]);
    }
    // Without memory or the right to it, epochs cannot be set by fan-outs either.
    let _ = engine.deletes.call(0, batch).await;
}

/// Perhaps Redis was flushed in order to load other data. Mostly it was not, so nothing is hidden on suspicion.
async fn look_and_collect(engine: &Rc<Engine>) {
    if known::ask(engine).await.is_ok_and(|identity| known::is_another(engine, &identity)) {
        engine.process.doubt_redis();
    }
    collect(engine).await;
}

impl Engine {
    /// As [`Engine::check`]; what is found alive is made sure of in Redis, too. Returns how many those are.
    async fn review(&self, entries: Entries) -> Result<usize, String> {
        let mut count = 0;
        for (db, entries) in entries.by_db() {
            let alive = self.check(entries).await?;
            count += alive.len();
            if self.process.index.has_labels() {
                label_upkeep::assure(self, db, &alive).await;
            }
        }
        Ok(count)
    }

    /// Asks Redis which of the keys exist; returns those, and drops the entries of the others.
    pub(super) async fn check(&self, entries: Entries) -> Result<Vec<Vec<u8>>, String> {
        let mut alive = vec![];
        for (db, entries) in entries.by_db() {
            let exist = match self.exist(db, &entries.0).await {
                Err(error) if has_no_database(&error) => {
                    drop_entries(self, entries);
                    continue;
                }
                exist => exist?,
            };
            let mut dead = Entries::default();
            for (entry, exists) in entries.0.into_iter().zip(exist) {
                match exists {
                    false => dead.0.push(entry),
                    true => alive.push(entry.key.into_vec()),
                }
            }
            drop_entries(self, dead);
        }
        Ok(alive)
    }

    /// Of each key, whether it exists. Those of which some are there and some not are asked for one by one.
    async fn exist(&self, db: u32, entries: &[Entry]) -> Result<Vec<bool>, String> {
        // Not allowed, or Redis is loading: nothing is known.
        let count = |frame: &BytesFrame| wire::int_of(frame).ok_or_else(|| "EXISTS was refused".to_owned());
        let (mut together, mut singly) = (Batch::default(), Batch::default());
        for some in entries.chunks(TOGETHER) {
            let keys = some.iter().map(|entry| &*entry.key);
            together.push(std::iter::once(b"EXISTS".as_slice()).chain(keys).collect::<Vec<_>>());
        }
        let counts: Vec<i64> =
            self.scans.call(db, together).await?.iter().map(count).collect::<Result<_, _>>()?;
        let is_mixed = |some: &[Entry], count: i64| count != 0 && count != some.len() as i64;
        for (some, count) in entries.chunks(TOGETHER).zip(&counts) {
            let asked = some.iter().filter(|_| is_mixed(some, *count));
            asked.for_each(|entry| singly.push([b"EXISTS".as_slice(), &entry.key]));
        }
        let mut singly = self.scans.call(db, singly).await?.into_iter();
        let mut exist = Vec::with_capacity(entries.len());
        for (some, all) in entries.chunks(TOGETHER).zip(counts) {
            for _ in some {
                let single = if is_mixed(some, all) { singly.next() } else { None };
                exist.push(single.as_ref().map_or(Ok(all), count)? > 0);
            }
        }
        Ok(exist)
    }

    /// Redis was flushed, as a whole or one database. Entries that stay too long are harmless; the sampling
    /// finds them.
    pub(super) fn flushed(self: &Rc<Self>) {
        self.flushes.seen.set(self.flushes.seen.get() + 1);
        if !self.flushes.restoring.replace(true) {
            let engine = Rc::clone(self);
            tokio::task::spawn_local(async move {
                engine.after_each(|| restore_epochs(&engine)).await;
                engine.flushes.restoring.set(false);
            });
        }
        if !self.flushes.collecting.replace(true) {
            let engine = Rc::clone(self);
            tokio::task::spawn_local(async move {
                engine.after_each(|| look_and_collect(&engine)).await;
                engine.flushes.collecting.set(false);
            });
        }
    }

    /// Does something until no flush came in between.
    async fn after_each<F: Future<Output = ()>>(&self, work: impl Fn() -> F) {
        loop {
            let seen = self.flushes.seen.get();
            work().await;
            if self.flushes.seen.get() == seen {
                return;
            }
        }
    }
}
