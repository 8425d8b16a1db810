//! Asking for fan-outs from any thread, and what is remembered about them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{mpsc, oneshot};

use crate::accounting::Firing;
use crate::doubt::{Reason, Scope};
use crate::lease::script::Check;
use crate::news::{Labels, Verb};
use crate::rules::{Tag, unique};

/// The channel whose messages invalidate the tags in their payload.
pub const CHANNEL: &[u8] = b"rescind:invalidate";
/// How many invalidations TAG.LOG remembers.
const LOG_LENGTH: usize = 1000;
/// Bytes that it takes at most, but for the latest one.
const LOG_BYTES: usize = 4 * 1024 * 1024;

/// The tags in the payload of a message on [`CHANNEL`]: separated by white space.
pub fn tags_of_message(payload: &[u8]) -> Vec<Tag> {
    let words = payload.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut tags: Vec<Tag> = words.map(Tag::from).collect();
    unique(&mut tags);
    tags
}

/// Who and what caused a fan-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The client: address, and name if it has one; or where else it came from.
    pub client: String,
    /// The commands and the keys that made them fire.
    pub what: String,
    /// The number of the client's connection, if it is one of this proxy's.
    pub connection: Option<u64>,
}

/// Of so many commands, and of so many keys of each, the names are told.
pub const MOST_NAMED: usize = 8;

impl Cause {
    /// What `fired` says about it.
    pub fn of(client: &str, fired: &[Firing]) -> Self {
        let mut named: Vec<&str> = fired.iter().map(|fired| &*fired.what).collect();
        named.dedup();
        let more = if named.len() > MOST_NAMED { "; …" } else { "" };
        named.truncate(MOST_NAMED);
        let what = named.join("; ") + more;
        Self { client: client.to_owned(), what, connection: None }
    }

    /// The client is this one of the proxy's own.
    pub fn by(self, connection: u64) -> Self {
        Self { connection: Some(connection), ..self }
    }
}

/// One fan-out to do.
#[derive(Debug)]
pub struct Request {
    /// Counts it until it is done.
    pub outstanding: Outstanding,
    /// Who and what.
    pub cause: Cause,
    /// What fired.
    pub fired: Vec<Firing>,
    /// Every tag there is, besides.
    pub everything: bool,
    /// Reads of its keys are answered as misses until it is done.
    pub doubt: Option<Reason>,
    /// Gets the number of deleted keys once all are deleted.
    pub done: oneshot::Sender<u64>,
}

/// What the control thread is asked to do.
#[derive(Debug)]
pub enum Order {
    /// A fan-out.
    FanOut(Request),
    /// All these, of one turn.
    Together(Vec<Order>),
    /// The keys of a tag that exist: database, tag, most. The error is why that cannot be known.
    Keys(u32, Tag, usize, oneshot::Sender<Result<Vec<Vec<u8>>, String>>),
    /// Which of these keys of a database exist; no answer if Redis does not say.
    Exist(u32, Vec<Vec<u8>>, oneshot::Sender<Vec<Vec<u8>>>),
    /// The tags of a key, if it exists.
    Tags(u32, Vec<u8>, oneshot::Sender<Vec<Tag>>),
    /// Redis may have been replaced.
    Compare,
    /// The journal is to know what has changed about Redis and its clients.
    Note,
    /// New connections lead to another Redis than before: the control thread's own follow.
    Redial,
    /// New connections may lead to another Redis.
    Look,
    /// The other proxies are to know that requests of several connections of this host are under way at once.
    Busy(u64),
    /// The other proxies are to know that this one goes in order; resolves when they do.
    Bye(oneshot::Sender<()>),
    /// Resolves once the index knows all labels that were given before, through whatever proxy, and those of these keys
    /// only if they exist. False: that takes long.
    Learn(Vec<(u32, Box<[u8]>)>, oneshot::Sender<bool>),
    /// These labels are to be in Redis before a write that is about to be sent; answers those that were not there, or why Redis
    /// does not take them.
    Give(Labels, oneshot::Sender<Result<Vec<Tag>, String>>),
    /// What has become of labels: those given are put into Redis if they are not there, other proxies are told.
    /// Resolves once that is done and the index reflects every write executed before. The error is why others cannot be told of
    /// what they are to know ahead of a write.
    Settle(Vec<(Verb, Labels)>, oneshot::Sender<Result<(), String>>),
    /// Has Redis this database? Where that cannot be known, it is taken for granted.
    Database(u32, oneshot::Sender<bool>),
    /// Does Redis live? True only if it has lived ever since the question was asked.
    Alive(oneshot::Sender<bool>),
    /// The index must be rebuilt, because of this.
    Rebuild(&'static str),
    /// These explicit labels of a key are gone from the index: they must go from Redis.
    Forget(u32, Box<[u8]>, Vec<Tag>),
    /// A value was written that may be stale: it is looked at, and undone if it is.
    Check(u32, Vec<Check>, oneshot::Sender<()>),
    /// The expiry of these labelled keys may have changed: the scores of their labels in Redis are to follow.
    Retimed(Vec<(u32, Box<[u8]>)>),
}

/// Sends orders to the control thread. Most are waited for by the client that sends them; the others are done at once, or put into
/// bounded sets.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    outstanding: Arc<AtomicUsize>,
}

/// Counts a fan-out from when it is asked for until it is done.
#[derive(Debug)]
pub struct Outstanding(Arc<AtomicUsize>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Handle {
    /// A handle and where its orders arrive.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, received) = mpsc::unbounded_channel();
        (Self { orders, outstanding: Arc::default() }, received)
    }

    /// Gives an order. After the control thread has ended nothing happens: the process is going down.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// Asks for a fan-out; resolves with the number of deleted keys once all are deleted.
    pub fn request(&self, cause: Cause, fired: Vec<Firing>) -> oneshot::Receiver<u64> {
        self.ask_for(cause, fired, false, None)
    }

    /// As [`Handle::request`], for several that are asked for together: the order is still to be given.
    pub fn prepare(&self, cause: Cause, fired: Vec<Firing>) -> (Order, oneshot::Receiver<u64>) {
        self.order_for(cause, fired, false, None)
    }

    /// Asks for the fan-out of what `firing` stands for and has to be done once more: of these tags. Until it is done,
    /// `doubt` lasts.
    pub fn repeat(&self, mut firing: Firing, scope: Scope, doubt: Option<Reason>) -> oneshot::Receiver<u64> {
        let everything = scope == Scope::Everything;
        if let Scope::Tags(tags) = scope {
            firing.tags = tags;
        }
        let fired = vec![firing];
        self.ask_for(Cause::of("rescind", &fired), fired, everything, doubt)
    }

    fn ask_for(
        &self,
        cause: Cause,
        fired: Vec<Firing>,
        everything: bool,
        doubt: Option<Reason>,
    ) -> oneshot::Receiver<u64> {
        let (order, result) = self.order_for(cause, fired, everything, doubt);
        self.order(order);
        result
    }

    fn order_for(
        &self,
        cause: Cause,
        fired: Vec<Firing>,
        everything: bool,
        doubt: Option<Reason>,
    ) -> (Order, oneshot::Receiver<u64>) {
        let (done, result) = oneshot::channel();
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        let outstanding = Outstanding(Arc::clone(&self.outstanding));
        (Order::FanOut(Request { cause, fired, everything, doubt, done, outstanding }), result)
    }

    /// How many fan-outs have been asked for and are not done.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Asks for a fan-out that nobody waits for.
    pub fn detached(&self, cause: Cause, fired: Vec<Firing>) {
        drop(self.request(cause, fired));
    }

    /// The index must be rebuilt.
    pub fn rebuild(&self, why: &'static str) {
        self.order(Order::Rebuild(why));
    }

    /// Labels went with index entries.
    pub fn forget(&self, db: u32, key: &[u8], labels: Vec<Tag>) {
        if !labels.is_empty() {
            self.order(Order::Forget(db, key.into(), labels));
        }
    }

    /// Asks a question; `None` if the control thread has ended.
    pub async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, result) = oneshot::channel();
        self.order(order(reply));
        result.await.ok()
    }
}

/// Trigger writes that clients of this proxy have under way. The feed shows them too; without this, each would
/// be fanned out twice. A key counts from before its write is sent until the barrier of its fan-out: what the
/// feed shows of the key in between is covered by that fan-out, whoever wrote.
#[derive(Debug, Default)]
pub struct OwnTriggers {
    keys: DashMap<Box<[u8]>, OwnKey>,
    messages: DashMap<Box<[u8]>, OwnMessage>,
}

#[derive(Debug, Default)]
struct OwnKey {
    /// Writes under way whose fan-out is that of any write of the key: it covers whatever the feed shows before their barrier.
    whole: u32,
    /// Others under way, because triggers name commands: they fire nothing, or not all. Each covers one change that the feed shows;
    /// a further one is somebody else's.
    limited: u32,
    /// So many of the limited ones the feed need not have shown yet.
    unseen: u32,
    /// Changes that were taken for those of writes that are still under way.
    shown: u32,
}

impl OwnKey {
    fn count(&mut self, firing: &Firing) -> &mut u32 {
        if firing.is_limited() { &mut self.limited } else { &mut self.whole }
    }

    fn enter(&mut self, firing: &Firing) {
        *self.count(firing) += 1;
        self.unseen += u32::from(firing.is_limited());
    }

    /// True: somebody else's change was taken for this one's.
    fn leave(&mut self, firing: &Firing, took_place: bool) -> bool {
        let count = self.count(firing);
        *count = count.saturating_sub(1);
        self.unseen = self.unseen.min(self.limited);
        if took_place {
            self.shown = if firing.is_limited() { self.shown.saturating_sub(1) } else { 0 };
            return false;
        }
        // More than those can account for that are under way.
        let others = self.whole + self.limited;
        let is_others = self.shown > others;
        self.shown = self.shown.min(others);
        is_others
    }

    /// Whether a change that the feed shows is covered by a fan-out to come.
    fn covers(&mut self) -> bool {
        let covered = self.whole > 0 || self.unseen > 0;
        if self.whole == 0 {
            self.unseen = self.unseen.saturating_sub(1);
        }
        self.shown += u32::from(covered);
        covered
    }
}

#[derive(Debug, Default)]
struct OwnMessage {
    under_way: u32,
    unseen: u32,
}

impl OwnTriggers {
    /// The writes of `firing` are about to be sent.
    pub fn enter(&self, firing: &Firing) {
        for (_, key) in &firing.keys {
            if firing.is_message() {
                let mut message = self.messages.entry(key.clone()).or_default();
                message.under_way += 1;
                message.unseen += 1;
            } else {
                self.keys.entry(key.clone()).or_default().enter(firing);
            }
        }
    }

    /// The barrier of its fan-out has passed, or it did not take place. Those of its keys, or its message, of which something
    /// that the feed showed was taken for it, and is somebody else's.
    pub fn leave(&self, firing: &Firing, took_place: bool) -> Vec<(u32, Box<[u8]>)> {
        let mut others = vec![];
        for (db, key) in &firing.keys {
            let mut is_others = false;
            if firing.is_message() {
                self.messages.remove_if_mut(key, |_, message| {
                    // More than the others can account for.
                    is_others = message.unseen < message.under_way;
                    message.under_way = message.under_way.saturating_sub(1);
                    message.unseen = message.unseen.min(message.under_way);
                    message.under_way == 0
                });
            } else {
                self.keys.remove_if_mut(key, |_, own| {
                    is_others = own.leave(firing, took_place);
                    own.whole + own.limited == 0
                });
            }
            others.extend(is_others.then(|| (*db, key.clone())));
        }
        others
    }

    /// What the feed shows of the keys of these from now on is not theirs.
    pub fn leave_all(&self, firings: &[Firing]) {
        firings.iter().for_each(|firing| _ = self.leave(firing, true));
    }

    /// The feed shows a write of `key`: is it covered by a fan-out to come?
    pub fn covers_key(&self, key: &[u8]) -> bool {
        self.keys.get_mut(key).is_some_and(|mut own| own.covers())
    }

    /// The feed shows a message: is it one of our clients', and covered by a fan-out to come?
    pub fn covers_message(&self, payload: &[u8]) -> bool {
        match self.messages.get_mut(payload) {
            Some(mut own) if own.unseen > 0 => {
                own.unseen -= 1;
                true
            }
            _ => false,
        }
    }
}

/// One invalidation that has taken place.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// When it began, milliseconds since 1970.
    pub unix_ms: u64,
    /// Who and what.
    pub cause: Cause,
    /// The labels of its triggers, joined.
    pub trigger: String,
    /// The tags, cascades included.
    pub tags: Vec<Tag>,
    /// Keys deleted.
    pub keys: u64,
    /// The same by family.
    pub families: Vec<(String, u64)>,
    /// What it made the writer wait for: all but the trigger itself.
    pub duration: Duration,
    /// What it was spent on.
    pub phases: Phases,
}

/// How long each step of a fan-out took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phases {
    /// Until the journal had it: before the trigger was sent, if a client of this proxy sent it.
    pub journal: Duration,
    /// Until the index was known to have every dependent.
    pub barrier: Duration,
    /// Until every dependent was deleted.
    pub delete: Duration,
}

impl Phases {
    /// Each with its name, in order.
    pub fn named(&self) -> [(&'static str, Duration); 3] {
        [("journal", self.journal), ("barrier", self.barrier), ("delete", self.delete)]
    }
}

/// The latest invalidations, newest last.
#[derive(Debug, Default)]
pub struct Log(Mutex<Latest>);

#[derive(Debug, Default)]
struct Latest {
    entries: VecDeque<Arc<LogEntry>>,
    bytes: usize,
}

impl LogEntry {
    /// Bytes that it takes, about.
    fn bytes(&self) -> usize {
        const EACH: usize = 48;
        let tags: usize = self.tags.iter().map(|tag| tag.len() + EACH).sum();
        let families: usize = self.families.iter().map(|(name, _)| name.len() + EACH).sum();
        size_of::<Self>() + self.cause.client.len() + self.cause.what.len() + tags + families
    }
}

impl Log {
    /// Adds one.
    pub fn push(&self, entry: Arc<LogEntry>) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.bytes += entry.bytes();
        log.entries.push_back(entry);
        while log.entries.len() > LOG_LENGTH || (log.bytes > LOG_BYTES && log.entries.len() > 1) {
            log.bytes -= log.entries.pop_front().map_or(0, |oldest| oldest.bytes());
        }
    }

    /// At most the latest `n`, newest first.
    pub fn latest(&self, n: usize) -> Vec<Arc<LogEntry>> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.entries.iter().rev().take(n).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::TriggerLabel;
    use crate::command::FireCondition;

    fn firing(key: &[u8], label: TriggerLabel) -> Firing {
        Firing {
            condition: FireCondition::NoError,
            triggers: smallvec::smallvec![label],
            tags: vec![],
            rules: Arc::new(crate::rules::Rules::empty()),
            keys: vec![(0, key.into())],
            partial: false,
            what: String::new(),
            intents: Default::default(),
        }
    }

    #[test]
    fn the_log_is_bounded_in_length_and_bytes() {
        let entry = |tags: usize, length: usize| {
            Arc::new(LogEntry {
                unix_ms: 0,
                cause: Cause { client: String::new(), what: String::new(), connection: None },
                trigger: String::new(),
                tags: vec![vec![b'x'; length].into(); tags],
                keys: 0,
                families: vec![],
                duration: Duration::ZERO,
                phases: Phases::default(),
            })
        };
        let log = Log::default();
        (0..2 * LOG_LENGTH).for_each(|_| log.push(entry(1, 1)));
        assert_eq!(log.latest(usize::MAX).len(), LOG_LENGTH);
        (0..10).for_each(|_| log.push(entry(1, LOG_BYTES / 4)));
        assert_eq!(log.latest(usize::MAX).len(), 3);
        log.push(entry(LOG_BYTES / 16, 1));
        log.push(entry(2, LOG_BYTES));
        assert_eq!(log.latest(usize::MAX)[0].tags.len(), 2);
        assert_eq!(log.latest(usize::MAX).len(), 1, "the latest is always there");
        (0..LOG_LENGTH).for_each(|_| log.push(entry(1, 1)));
        assert_eq!(log.latest(usize::MAX).len(), LOG_LENGTH);
    }

    fn rule() -> TriggerLabel {
        TriggerLabel::Rule(crate::rules::TriggerId(0))
    }

    /// Whether somebody else's write was taken for one that did not take place.
    fn idle(own: &OwnTriggers, firing: &Firing) -> bool {
        !own.leave(firing, false).is_empty()
    }

    #[test]
    fn own_writes_are_covered_while_they_are_under_way() {
        let own = OwnTriggers::default();
        let one = firing(b"k", rule());
        assert!(!own.covers_key(b"k"));
        own.enter(&one);
        own.enter(&one);
        assert!(own.covers_key(b"k"));
        own.leave_all(std::slice::from_ref(&one));
        assert!(own.covers_key(b"k"), "the other one is still under way");
        own.leave_all(std::slice::from_ref(&one));
        assert!(!own.covers_key(b"k") && own.keys.is_empty());
    }

    #[test]
    fn a_write_that_others_would_fire_more_covers_one() {
        let own = OwnTriggers::default();
        let whole = firing(b"k", rule());
        let one = Firing { partial: true, ..whole.clone() };
        let quiet = Firing { triggers: Default::default(), ..whole.clone() };
        own.enter(&one);
        assert!(own.covers_key(b"k"));
        assert!(!own.covers_key(b"k"), "the second is somebody else's");
        own.enter(&quiet);
        assert!(own.covers_key(b"k") && !own.covers_key(b"k"), "each covers one");
        own.enter(&whole);
        assert!(own.covers_key(b"k") && own.covers_key(b"k"));
        own.leave_all(&[whole, quiet, one]);
        assert!(own.keys.is_empty());
    }

    #[test]
    fn of_what_did_not_take_place_only_more_than_others_account_for_is_somebody_elses() {
        let own = OwnTriggers::default();
        let whole = firing(b"k", rule());
        let limited = Firing { partial: true, ..whole.clone() };
        own.enter(&whole);
        assert!(own.covers_key(b"k"));
        assert!(idle(&own, &whole), "nobody else was there");
        for other in [&whole, &limited] {
            own.enter(&limited);
            own.enter(other);
            assert!(own.covers_key(b"k"));
            assert!(!idle(&own, &limited), "it was the other one");
            own.leave_all(std::slice::from_ref(other));
            own.enter(&limited);
            own.enter(other);
            assert!(own.covers_key(b"k") && own.covers_key(b"k"));
            assert!(idle(&own, &limited), "there were two");
            own.leave_all(std::slice::from_ref(other));
            assert!(own.keys.is_empty());
        }
        own.enter(&limited);
        own.enter(&whole);
        assert!(own.covers_key(b"k"));
        own.leave_all(std::slice::from_ref(&whole));
        assert!(!idle(&own, &limited), "its fan-out has covered it");
    }

    #[test]
    fn each_own_message_covers_one() {
        let own = OwnTriggers::default();
        let one = firing(b"a b", TriggerLabel::Publish);
        own.enter(&one);
        assert!(own.covers_message(b"a b"));
        assert!(!own.covers_message(b"a b"), "the second is somebody else's");
        own.leave_all(std::slice::from_ref(&one));
        assert!(!own.covers_message(b"a b"));
    }

    #[test]
    fn payloads() {
        let tags = tags_of_message(b" post:42  Post\npost:42 ");
        assert_eq!(tags, [Tag::from(b"post:42".as_slice()), Tag::from(b"Post".as_slice())]);
    }
}
