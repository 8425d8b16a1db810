//! Keeping explicit labels in Redis, and telling other proxies of them.
//!
//! A label that no script gives is in the index first, then in Redis and told to the other proxies, which may move the value as
//! soon as it is there, and only then the write is sent that it belongs to. Once that is answered the label is made sure of, and
//! told once more, before the client hears of it. So whoever takes a label out of Redis need not know of such writes that are
//! under way: they put theirs back.
//!
//! A label that is about to follow a value is marked, by a score below zero that says whose proxy hands it on. As long as it
//! is, no other takes it out: those see that there is a new value before they hear of its labels.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use super::gc::{Entries, Entry};
use super::link::{Batch, has_no_database};
use super::wire::{int_of, into_result};
use crate::doubt::{Reason, Scope, next_look};
use crate::news::{Labels, NEWS, News, Verb, label_set};
use crate::rules::{Rules, Tag};

/// How often labels are tried to be written that Redis does not take, and the pause in between.
pub(super) const TRIES: u32 = 60;
pub(super) const PAUSE: Duration = Duration::from_millis(500);
/// How long somebody waits until the labels in Redis have been read, if it is not known that there are any. Where that takes
/// longer, as where it is not allowed, nobody waits any more.
const PATIENCE: Duration = Duration::from_secs(3);
/// And how long if there are, or until the feed is back. Whoever comes when it has been away for as long does not wait.
const LOST_PATIENCE: Duration = Duration::from_secs(10);

/// Takes labels out of Redis whose key does not exist: whoever writes it gives it its labels in the same step, or makes sure
/// of them afterwards. Of a key that exists only if `ARGV[3]` says so and the others can be told of it: who has given it the same
/// label anew puts it back. Those that are marked stay, unless with the mark `ARGV[4]`, or that is empty. -1: the key exists. -2: some
/// are marked.
const FORGET: &str = "local n, marked = 0, false \
    if redis.call('EXISTS', KEYS[1]) == 1 and \
    (ARGV[3] == '' or type(redis.pcall('PUBLISH', ARGV[1], ARGV[2])) ~= 'number') then return -1 end \
    for i = 2, #KEYS do \
    local s = ARGV[4] ~= '' and redis.pcall('ZSCORE', KEYS[i], KEYS[1]) \
    if type(s) == 'string' and string.sub(s, 1, 1) == '-' and tonumber(s) ~= tonumber(ARGV[4]) then \
    marked = true \
    else \
    local r = redis.pcall('ZREM', KEYS[i], KEYS[1]) \
    if type(r) == 'number' then n = n + r end \
    end \
    end \
    return marked and -2 or n";

/// Resolves once the index knows all labels that were given before. False: nobody waits for that any longer.
pub(super) async fn learn(engine: &Engine) -> bool {
    let began = Instant::now();
    let patience = if engine.process.has_left_labels() { LOST_PATIENCE } else { PATIENCE };
    let (mut unread_since, waits_since) = (began, engine.feed.lost_since().unwrap_or(began));
    loop {
        let known = engine.process.labels.are_known();
        if known {
            engine.labels_given_up.set(false);
        }
        // What a feed did not show that is lost now, the sets in Redis tell when it is back.
        if (known || engine.labels_given_up.get()) && engine.feed.barrier(vec![], engine).await {
            return known;
        }
        if known || !engine.feed.is_connected() {
            unread_since = Instant::now();
        }
        if unread_since.elapsed() >= patience && !engine.labels_given_up.replace(true) {
            tracing::warn!(
                error = %engine.process.feed_error(),
                "labels in Redis have not been read yet: nobody waits for them any longer; RENAME, COPY and MOVE are refused if \
                 there are some"
            );
        }
        if waits_since.elapsed() >= LOST_PATIENCE {
            return false;
        }
        tokio::time::sleep(next_look(began.elapsed())).await;
    }
}

/// Of these keys, those that do not exist lose the labels that the index still has.
pub(super) async fn forget_dead(engine: &Engine, keys: Vec<(u32, Box<[u8]>)>) {
    let mut labelled = Entries::default();
    for (db, key) in keys {
        let place = engine.process.index.lock().with_labels(db, &key);
        labelled.0.extend(place.map(|place| Entry { place: Some(place), db, key }));
    }
    if !labelled.0.is_empty() {
        let _ = engine.check(labelled).await;
    }
}

/// The invalidation of some tags, until it is dropped.
pub(super) struct Invalidating<'a> {
    engine: &'a Engine,
    /// Of the tags, and of everything if they were named by other rules.
    reasons: Option<(Reason, Option<Reason>)>,
}

impl<'a> Invalidating<'a> {
    /// It begins.
    pub fn begin(engine: &'a Engine, tags: &[Tag], named_by: &[Arc<Rules>]) -> Self {
        let enter = |scope| engine.process.invalidating.enter(scope);
        let is_renamed = engine.has_renamed(named_by);
        let of_all = is_renamed.then(|| enter(Scope::Everything));
        Self { engine, reasons: Some((enter(Scope::Tags(tags.to_vec())), of_all)) }
    }
}

impl Drop for Invalidating<'_> {
    fn drop(&mut self) {
        self.reasons = None;
        self.engine.invalidated.notify_waiters();
    }
}

/// Puts labels of a value that is about to be moved into Redis; returns those that were not there, or why Redis does not take
/// them. Not while they are being
/// invalidated: the value must not get from a key that is still to be deleted to one that has been looked at.
pub(super) async fn hand_on(engine: &Engine, labels: &Labels) -> Result<Vec<Tag>, String> {
    loop {
        let ended = engine.invalidated.notified();
        if !engine.process.invalidating.names(&labels.tags) {
            break;
        }
        ended.await;
    }
    if !engine.process.labels.others_may_give() {
        return give(engine, labels).await;
    }
    let (mark, mut batch) = (mark(engine), Batch::default());
    labels.tags.iter().for_each(|tag| batch.push([b"ZADD".as_slice(), &label_set(tag), &mark, &labels.key]));
    // The value is compared with what is known of its tags: what others have been told of is to be among that.
    tokio::join!(added(engine, labels, batch), engine.feed.barrier(vec![], engine)).0
}

/// What stands in place of the score of labels that this proxy hands on. Exact as the number that it is in Redis.
fn mark(engine: &Engine) -> Vec<u8> {
    format!("-{}", (engine.process.number >> 12) + 1).into_bytes()
}

/// Puts labels into Redis. Returns those that were not there, or why Redis does not take them.
pub(super) async fn give(engine: &Engine, labels: &Labels) -> Result<Vec<Tag>, String> {
    let mut batch = Batch::default();
    labels.tags.iter().for_each(|tag| add(&mut batch, tag, &labels.key));
    added(engine, labels, batch).await
}

async fn added(engine: &Engine, labels: &Labels, batch: Batch) -> Result<Vec<Tag>, String> {
    let mut new = vec![];
    let replies = match engine.scans.call(labels.db, batch).await {
        // The command itself will fail, too.
        Err(error) if has_no_database(&error) => vec![],
        replies => replies?,
    };
    for (tag, reply) in labels.tags.iter().zip(replies) {
        match into_result(reply) {
            Ok(count) => new.extend((int_of(&count) == Some(1)).then(|| Tag::clone(tag))),
            Err(error) if is_of_another_type(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(new)
}

/// A key of another type that has the name of a set of labels is somebody else's.
fn is_of_another_type(error: &str) -> bool {
    error.starts_with("WRONGTYPE")
}

pub(super) fn add(batch: &mut Batch, tag: &Tag, key: &[u8]) {
    batch.push([b"ZADD".as_slice(), &label_set(tag), b"NX", b"inf", key]);
}

/// Makes sure of labels and tells the others; resolves once the events of all earlier writes have been seen, too. The error is
/// why others cannot be told of what they are to know ahead of a write.
pub(super) async fn settle(engine: &Rc<Engine>, changes: Vec<(Verb, Labels)>) -> Result<(), String> {
    let writing = write(Rc::clone(engine), changes);
    tokio::join!(engine.feed.barrier(vec![], engine), writing).1
}

/// Puts given labels into Redis if they are not there, and tells of all changes. What Redis does not take, as where
/// memory is short, is tried again and again in the background.
async fn write(engine: Rc<Engine>, mut changes: Vec<(Verb, Labels)>) -> Result<(), String> {
    changes.retain(|(verb, labels)| *verb == Verb::Hello || !labels.tags.is_empty());
    let mut failed = write_once(&engine, changes).await;
    // What is told ahead of a write is of no use behind it.
    let ahead = failed.extract_if(.., |failed| is_ahead(failed.change.0));
    let untold = ahead.filter_map(|failed| failed.untold).last();
    let mut changes: Vec<_> = failed.into_iter().map(|failed| failed.change).collect();
    if changes.is_empty() {
        return untold.map_or(Ok(()), Err);
    }
    tokio::task::spawn_local(async move {
        for _ in 0..TRIES {
            tokio::time::sleep(PAUSE).await;
            // What is out of the index by now is not wanted any more.
            for (_, labels) in &mut changes {
                let kept = engine.process.index.lock().explicit_of(labels.db, &labels.key);
                labels.tags.retain(|tag| kept.contains(tag));
            }
            changes = write_once(&engine, changes).await.into_iter().map(|failed| failed.change).collect();
            if changes.is_empty() {
                return;
            }
        }
    });
    untold.map_or(Ok(()), Err)
}

/// Whether that is told ahead of a write. What is told behind one, and is not heard, leaves others with a label too many at worst.
fn is_ahead(verb: Verb) -> bool {
    matches!(verb, Verb::Coming | Verb::Leaving | Verb::Hello)
}

/// A change that Redis did not take.
struct Failed {
    change: (Verb, Labels),
    /// Why the others could not be told, if Redis has said so.
    untold: Option<String>,
}

/// Returns what Redis did not take.
async fn write_once(engine: &Engine, changes: Vec<(Verb, Labels)>) -> Vec<Failed> {
    let mut by_db: BTreeMap<u32, Vec<(Verb, Labels)>> = BTreeMap::new();
    for change in changes {
        by_db.entry(change.1.db).or_default().push(change);
    }
    let mut failed = vec![];
    for (db, changes) in by_db {
        let mut batch = Batch::default();
        let mut sizes = vec![];
        for (verb, labels) in &changes {
            // Told first: whoever finds a label without its mark has heard of it.
            batch.push([b"PUBLISH".as_slice(), NEWS, &News::payload(engine.process.number, *verb, labels)]);
            let before = batch.len();
            for tag in &labels.tags {
                match verb {
                    Verb::Given => batch.push([b"ZADD".as_slice(), &label_set(tag), b"inf", &labels.key]),
                    // Its mark goes.
                    Verb::Stayed => {
                        batch.push([b"ZADD".as_slice(), &label_set(tag), b"XX", b"inf", &labels.key]);
                    }
                    _ => {}
                }
            }
            sizes.push(batch.len() - before);
        }
        let Ok(replies) = engine.scans.call(db, batch).await else {
            failed.extend(changes.into_iter().map(|change| Failed { change, untold: None }));
            continue;
        };
        let mut replies = replies.into_iter();
        for (change, size) in changes.into_iter().zip(sizes) {
            let told = replies.next().map(into_result);
            // Who may not hear of labels either is the only proxy, or has been warned.
            let matters = is_ahead(change.0) && engine.hears_labels.get();
            let untold = told.and_then(Result::err).filter(|_| matters);
            let results: Vec<_> = replies.by_ref().take(size).map(into_result).collect();
            let is_refused = |error: &String| !is_of_another_type(error);
            if untold.is_some() || results.iter().any(|result| result.as_ref().is_err_and(is_refused)) {
                failed.push(Failed { change, untold });
            }
        }
    }
    failed
}

/// Keys whose labels are taken out of Redis at the same time. Other questions on the same connection are to get through.
const TAKEN_OUT: usize = 200;
/// Keys that may wait for that. What is beyond is left to the sweep.
const MOST_FORGOTTEN: usize = 100_000;

/// Labels that are out of the index and still in Redis.
#[derive(Default)]
pub(super) struct Forgotten {
    waiting: RefCell<VecDeque<Labels>>,
    under_way: Cell<usize>,
}

/// Takes labels out of Redis that are out of the index. Nobody waits: a member too many is found dead by the sweep.
pub(super) fn forget(engine: &Rc<Engine>, db: u32, key: &[u8], tags: Vec<Tag>) {
    let (gone, forgotten) = (without_kept(engine, &Labels::new(db, key, tags)), &engine.forgotten);
    if gone.tags.is_empty() || engine.process.dry_run || forgotten.waiting.borrow().len() >= MOST_FORGOTTEN {
        return;
    }
    forgotten.waiting.borrow_mut().push_back(gone);
    if forgotten.under_way.get() < TAKEN_OUT {
        forgotten.under_way.set(forgotten.under_way.get() + 1);
        tokio::task::spawn_local(take_out_all(Rc::clone(engine)));
    }
}

async fn take_out_all(engine: Rc<Engine>) {
    while let Some(gone) = engine.forgotten.next() {
        let gone = without_kept(&engine, &gone);
        if !gone.tags.is_empty() {
            take_out(&engine, gone).await;
        }
    }
    engine.forgotten.under_way.set(engine.forgotten.under_way.get() - 1);
}

impl Forgotten {
    fn next(&self) -> Option<Labels> {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.pop_front();
        if waiting.is_empty() {
            waiting.shrink_to(TAKEN_OUT);
        }
        next
    }
}

/// A label given anew in the meantime stays.
fn without_kept(engine: &Engine, labels: &Labels) -> Labels {
    let kept = engine.process.index.lock().explicit_of(labels.db, &labels.key);
    let gone = labels.tags.iter().filter(|tag| !kept.contains(tag)).cloned().collect();
    Labels { tags: gone, ..labels.clone() }
}

async fn take_out(engine: &Engine, mut labels: Labels) {
    let mark = mark(engine);
    for _ in 0..TRIES {
        let mut left = take_out_once(engine, &labels, false, &mark).await;
        if left == Left::Exists {
            // Perhaps it was written anew with the same label, which the feed then shows. What it could not show is read back
            // before the labels are known again.
            learn(engine).await;
            let known = engine.process.labels.are_known();
            labels = without_kept(engine, &labels);
            // A label too many costs a deletion, one that is missing a stale key.
            if !known || labels.tags.is_empty() {
                return;
            }
            left = take_out_once(engine, &labels, true, &mark).await;
        }
        if left != Left::Marked {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        labels = without_kept(engine, &labels);
        if labels.tags.is_empty() {
            return;
        }
    }
}

/// Takes labels out of Redis that nobody has known for a while, with the marks of proxies that have died. Of a key that exists
/// they stay.
pub(super) async fn sweep_out(engine: &Engine, labels: &Labels) {
    let labels = without_kept(engine, labels);
    if !labels.tags.is_empty() {
        take_out_once(engine, &labels, false, b"").await;
    }
}

/// Why labels are still in Redis.
#[derive(PartialEq, Eq)]
enum Left {
    /// They are not.
    Nothing,
    /// The key exists.
    Exists,
    /// Another proxy is handing some of them on.
    Marked,
}

async fn take_out_once(engine: &Engine, labels: &Labels, always: bool, mark: &[u8]) -> Left {
    let news = News::payload(engine.process.number, Verb::Forgotten, labels);
    let sets: Vec<Vec<u8>> = labels.tags.iter().map(|tag| label_set(tag)).collect();
    let count = (sets.len() + 1).to_string();
    let mut request: Vec<&[u8]> = vec![b"EVAL", FORGET.as_bytes(), count.as_bytes(), &labels.key];
    request.extend(sets.iter().map(Vec::as_slice));
    // Who does not hear of labels does not know whose they are.
    let always = always && engine.hears_labels.get();
    let existing = if always { b"told".as_slice() } else { b"" };
    request.extend([NEWS, &news, existing, mark]);
    let error = match engine.scans.one(labels.db, request).await.as_ref().map(int_of) {
        Ok(Some(-1)) => return Left::Exists,
        Ok(Some(-2)) => return Left::Marked,
        Ok(_) => return Left::Nothing,
        Err(error) => error.clone(),
    };
    if error.starts_with("NOPERM") || error.starts_with("ERR unknown command") {
        let tell = [b"PUBLISH".as_slice(), NEWS, &news];
        let mut batch = Batch::default();
        batch.push([b"EXISTS".as_slice(), &labels.key]);
        batch.push(tell);
        let answers = engine.scans.call(labels.db, batch).await.unwrap_or_default();
        let [exists, told] = [0, 1].map(|at| answers.get(at).and_then(int_of));
        if exists != Some(0) && (!always || told.is_none()) {
            return Left::Exists;
        }
        let mut batch = Batch::default();
        sets.iter().for_each(|set| batch.push([b"ZREM".as_slice(), set, &labels.key]));
        // Once more: who was quick has put it back before it went.
        batch.push(tell);
        let _ = engine.scans.call(labels.db, batch).await;
    }
    Left::Nothing
}
