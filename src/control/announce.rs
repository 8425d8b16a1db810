//! What this proxy tells the others, and what it makes of what they tell.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::Notify;

use super::Engine;
use super::announcement::{Announcement, epoch_anew, epoch_named, number_of};
use super::fills;
use super::link::Batch;
use super::wire::{Wire, array_of, bytes_of, int_of};
use crate::accounting::{Firing, TriggerLabel};
use crate::doubt::Scope;
use crate::fanout::Cause;
use crate::lease::Moment;
use crate::peers::{self, Duty, Message, Peers, lifeline};
use crate::rules::Tag;

/// How often it is asked whether the others live. A client whose proxy dies may be here at once.
const PERIOD: Duration = Duration::from_millis(100);
/// How long Redis may take to answer that before the others are feared for.
const PATIENCE: Duration = Duration::from_secs(1);
/// For how long nobody listens on the lifeline of a proxy that is dead, and not connecting anew.
const SILENCE: Duration = Duration::from_secs(1);

/// The other proxies, and when to look again what is left to this one.
pub(super) struct Others {
    peers: RefCell<Peers<Firing>>,
    wake: Notify,
    /// One has come.
    company: Notify,
    /// On whose lifelines nobody has listened lately, and since when.
    silent: RefCell<HashMap<peers::ProxyId, Instant>>,
    /// Since when the feed shows all that they say.
    listens: Cell<Instant>,
    /// What they said before that has not been noted as missed yet.
    missed: Cell<bool>,
    /// The last fan-out of this proxy that the feed has shown.
    echo: Cell<u64>,
    /// The longest time for which any of them has watched fills.
    window: Cell<Moment>,
    /// There were others when this one began to listen: one of them will tell what a newcomer has to know, unless it stands still.
    expected: Cell<bool>,
    /// At which data this one has last repeated all that it knew.
    repeated: RefCell<Vec<u8>>,
}

impl Others {
    pub fn new(me: peers::ProxyId) -> Self {
        let peers = RefCell::new(Peers::new(me));
        let (wake, company, silent, missed, echo, window, expected, repeated) = Default::default();
        let listens = Cell::new(Instant::now());
        Self { peers, wake, company, silent, listens, missed, echo, window, expected, repeated }
    }

    /// Those that are known.
    pub fn all(&self) -> Vec<peers::ProxyId> {
        self.peers.borrow().others().cloned().collect()
    }

    /// The feed shows a fan-out of this proxy.
    fn echo(&self, epoch: &[u8]) {
        if let Some(number) = number_of(epoch) {
            self.echo.set(number);
        }
    }

    /// One of them, or this one, watches fills for so long: those of its clients may come as late, even if it is gone by then.
    fn watches(&self, window: Moment) {
        self.window.set(self.window.get().max(window));
    }

    /// Whether the feed has shown this fan-out of this proxy.
    pub fn has_echoed(&self, epoch: &[u8]) -> bool {
        number_of(epoch).is_some_and(|number| number <= self.echo.get())
    }
}

/// Whether others listen to what proxies say, than the one with that lifeline. Of its own there may be a connection from before.
async fn has_company(wire: &mut Wire, own: &[u8]) -> bool {
    let counted = wire.call(&[b"PUBSUB".as_slice(), b"NUMSUB", peers::CHANNEL, own]).await.map(array_of);
    let count = |counted: &[_], at: usize| counted.get(at).and_then(int_of).unwrap_or_default();
    counted.is_ok_and(|counted| count(&counted, 1) > count(&counted, 3))
}

/// Listens to the other proxies, and shows them that this one lives. Without the right to it this one can only be alone.
pub(super) async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<(), String> {
    let lifeline = lifeline(&engine.process.id);
    if let Some(error) = engine.feed.subscribe_to(wire, &[peers::CHANNEL, &lifeline]).await? {
        tracing::warn!(
            %error,
            "SUBSCRIBE rescind:proxies is not possible: with other proxies on this Redis stale data may be served"
        );
    }
    engine.others.expected.set(has_company(wire, &lifeline).await);
    Ok(())
}

/// Does what others have left undone; runs for ever.
pub(super) async fn run(engine: Rc<Engine>) {
    loop {
        let next = engine.others.peers.borrow().next_due();
        let left = next.map_or(60_000, |due| due.saturating_sub(engine.moment()));
        let _ = tokio::time::timeout(Duration::from_millis(left), engine.others.wake.notified()).await;
        let due = engine.others.peers.borrow_mut().due(engine.moment());
        due.into_iter().for_each(|duty| engine.fan_out_direct(duty.what));
    }
}

/// Asks whether the others still live, and fears for them as long as nobody can say; runs for ever.
pub(super) async fn watch(engine: Rc<Engine>) {
    loop {
        if engine.process.is_alone() {
            engine.others.company.notified().await;
        }
        tokio::time::sleep(PERIOD).await;
        if engine.feed.is_connected() {
            look_for_dead(&engine).await;
        } else {
            engine.fear_for_others();
        }
    }
}

/// On whose lifelines nobody listens; `None`: Redis does not say.
async fn silent(engine: &Engine, others: &[peers::ProxyId]) -> Option<Vec<peers::ProxyId>> {
    let channels: Vec<_> = others.iter().map(|other| lifeline(other)).collect();
    let mut batch = Batch::default();
    let words = [b"PUBSUB".as_slice(), b"NUMSUB"];
    batch.push(words.into_iter().chain(channels.iter().map(Vec::as_slice)).collect::<Vec<_>>());
    let asked = tokio::time::timeout(PATIENCE, engine.scans.call(0, batch)).await;
    let Ok(Ok(frames)) = asked else { return None };
    let counts = frames.into_iter().next().map(array_of).unwrap_or_default();
    if counts.len() != 2 * others.len() {
        return None;
    }
    let nobody = counts.chunks(2).filter(|pair| pair.get(1).and_then(int_of) == Some(0));
    let silent: Vec<_> = nobody.filter_map(|pair| bytes_of(&pair[0])).collect();
    Some(others.iter().filter(|other| silent.iter().any(|one| lifeline(other) == **one)).cloned().collect())
}

async fn look_for_dead(engine: &Rc<Engine>) {
    let others = engine.others.all();
    if others.is_empty() {
        return;
    }
    let Some(silent) = silent(engine, &others).await else { return engine.fear_for_others() };
    engine.others.silent.borrow_mut().retain(|other, _| silent.contains(other));
    for dead in &silent {
        // Perhaps it only connects anew; its clients may be here all the same.
        engine.fear_for_others();
        let since = *engine.others.silent.borrow_mut().entry(dead.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= SILENCE {
            engine.others.silent.borrow_mut().remove(dead);
            tracing::warn!(proxy = %String::from_utf8_lossy(dead), "another proxy is gone without a word");
            // What it did last it may not have told.
            engine.process.journal.heard(&Scope::Everything, Duration::ZERO);
            engine.process.leases.suspect(engine.moment() + engine.longest_window());
            engine.gone_for_ever(dead);
        }
    }
}

/// Whether all of these have repeated at these data what they knew, now or a moment later: there are pauses between their tries to
/// connect. None can say so where Redis may not be asked who it is.
pub(super) async fn have_repeated(engine: &Engine, others: &[peers::ProxyId], data: Option<&[u8]>) -> bool {
    let Some(data) = data else { return others.is_empty() };
    let since = Instant::now();
    let has = |other: &peers::ProxyId| engine.others.peers.borrow().has_repeated(other, data);
    while !others.iter().all(has) {
        if since.elapsed() >= 2 * SILENCE {
            return false;
        }
        tokio::time::sleep(PERIOD).await;
    }
    true
}

/// Milliseconds, as they are told.
fn in_message(time: Moment) -> u32 {
    u32::try_from(time).unwrap_or(u32::MAX)
}

impl Engine {
    /// Milliseconds since the start.
    pub(super) fn moment(&self) -> Moment {
        self.process.moment_of(Instant::now())
    }

    /// The longest time that a fill of any family is watched.
    pub(super) fn longest_window(&self) -> Moment {
        self.rules.borrow().longest_window().as_millis() as Moment
    }

    /// The shortest time that a fill of any family is watched that is watched at all.
    pub(super) fn shortest_window(&self) -> Moment {
        self.rules.borrow().shortest_window().as_millis() as Moment
    }

    /// How long Redis is to tell of an invalidation: twice as long as any proxy watches fills.
    pub(super) fn epoch_lifetime(&self) -> Moment {
        2 * self.longest_window().max(self.others.window.get())
    }

    /// A name for a fan-out, or a mark, that none ever had.
    pub(super) fn next_name(&self) -> Box<[u8]> {
        epoch_named(&self.process.id, self.next_number())
    }

    /// Likewise, for the next attempt of the fan-out with that name.
    pub(super) fn next_attempt(&self, epoch: &[u8]) -> Box<[u8]> {
        epoch_anew(epoch, self.next_number())
    }

    fn next_number(&self) -> u64 {
        self.named.set(self.named.get() + 1);
        self.named.get()
    }

    /// Another proxy, or this one, has said something.
    pub(super) fn told(self: &Rc<Self>, message: Message) {
        let now = self.moment();
        match message {
            Message::Begun { proxy, epoch, tags, follows } => {
                self.process.epochs.announced(&tags, &epoch, now);
                self.heard(&proxy);
                // One that fails is announced again each time that it is tried.
                let new = match follows {
                    true => vec![],
                    false => self.others.peers.borrow_mut().begun(&proxy, &epoch, &tags, now),
                };
                if proxy == self.process.id {
                    self.others.echo(&epoch);
                } else {
                    if !new.is_empty() && self.others.peers.borrow().may_differ(&proxy, self.fingerprint()) {
                        self.follow(&proxy, &new);
                    }
                    self.process.journal.heard(&Scope::Tags(tags), Duration::ZERO);
                }
            }
            Message::Mark(mark) => self.process.epochs.marked(&mark, now),
            Message::Done { proxy, epoch } => {
                self.heard(&proxy);
                self.others.peers.borrow_mut().done(&epoch);
            }
            Message::Hello(proxy, rules, window) => {
                self.others.watches(window.into());
                if proxy != self.process.id {
                    self.heard(&proxy);
                    self.compare_rules(&proxy, rules);
                    self.say_here();
                } else if !self.others.expected.get() {
                    self.process.is_known.store(true, Ordering::Release);
                }
            }
            Message::Here { proxy, shared, rules, window, suspects, others } => {
                self.others.watches(window.into());
                self.heard(&proxy);
                self.compare_rules(&proxy, rules);
                if proxy != self.process.id {
                    if shared {
                        self.process.leases.assume_sharing(now);
                    }
                    self.learn_from_others(now + Moment::from(suspects), &others);
                }
            }
            Message::Repeated(proxy, data) => {
                self.heard(&proxy);
                self.others.peers.borrow_mut().says_repeated(&proxy, &data);
            }
            Message::Busy(proxy, host) => {
                if proxy != self.process.id {
                    self.process.leases.busy(host, now);
                    self.heard(&proxy);
                }
            }
            Message::Bye(proxy, open) => {
                if proxy != self.process.id {
                    if open {
                        self.process.leases.suspect(now + self.longest_window());
                    }
                    self.missed();
                }
                self.gone_for_ever(&proxy);
            }
            Message::Undone { proxy, db, key } => {
                if proxy == self.process.id {
                    fills::undone(self, db, &key);
                }
            }
            Message::Unsure { proxy, db, key, since } => {
                if proxy == self.process.id {
                    tokio::task::spawn_local(fills::look_again(Rc::clone(self), db, key, since));
                }
            }
        }
    }

    /// From now on the feed shows all that the others say.
    pub(super) fn listens(&self) {
        self.others.listens.set(Instant::now());
        // Who does not answer may stand still.
        if !self.process.is_alone() || self.others.expected.get() {
            self.others.missed.set(true);
        }
        self.note_missed();
    }

    /// What others invalidated before this proxy listened may be known to none that is there when Redis comes back with old data.
    /// Not while it is found out whether it just has: they lost the one before at the same time, and are waited for.
    pub(super) fn note_missed(&self) {
        if !self.process.compares() && self.others.missed.replace(false) {
            self.missed();
        }
    }

    fn missed(&self) {
        self.process.journal.heard(&Scope::Everything, self.others.listens.get().elapsed());
        super::known::note(self);
    }

    /// At these data all is invalidated again that this proxy knows to have been invalidated lately: the others may wait for that.
    pub(super) fn has_repeated(&self, data: &[u8]) {
        if *self.others.repeated.borrow() != data {
            self.others.repeated.replace(data.to_owned());
            self.say_repeated();
        }
    }

    fn say_repeated(&self) {
        let data: Box<[u8]> = self.others.repeated.borrow().as_slice().into();
        if !data.is_empty() {
            self.feed.say(Announcement::Message(Message::Repeated(self.process.id.clone(), data)));
        }
    }

    /// One of them may die unnoticed, whose clients come here with what they missed there.
    pub(super) fn fear_for_others(&self) {
        if !self.process.is_alone() {
            self.process.leases.fear(self.moment() + self.longest_window());
        }
    }

    /// Tells the others that requests of several connections of a host are under way at once: less of it shows there.
    pub(super) fn say_busy(&self, host: u64) {
        if !self.process.is_alone() {
            self.feed.say(Announcement::Message(Message::Busy(self.process.id.clone(), host)));
        }
    }

    /// Tells the others that this proxy goes in order.
    pub(super) async fn say_bye(&self) {
        let open = self.process.leases.has_open(self.moment());
        if self.feed.say(Announcement::Message(Message::Bye(self.process.id.clone(), open))) {
            self.feed.barrier(vec![], self).await;
        }
    }

    /// Whether other proxies may give labels of which this one hears a moment later, with events of their keys in between.
    pub(super) fn others_label(&self) -> bool {
        !self.process.is_alone() && self.process.index.has_had_labels()
    }

    pub(super) fn fingerprint(&self) -> u32 {
        self.rules.borrow().fingerprint()
    }

    /// Tells the others that this proxy is there, and by what rules.
    pub(super) fn say_here(&self) {
        let (leases, now) = (&self.process.leases, self.moment());
        let here = Message::Here {
            proxy: self.process.id.clone(),
            shared: leases.knows_sharing(now),
            rules: self.fingerprint(),
            window: in_message(self.longest_window()),
            suspects: in_message(leases.suspects_for(now)),
            others: self.others.all(),
        };
        self.feed.say(Announcement::Message(here));
        self.say_repeated();
    }

    /// What a newcomer has to know: clients may come here with what a proxy has shown them that went right before, or is about to
    /// be found dead.
    fn learn_from_others(&self, suspected_until: Moment, others: &[peers::ProxyId]) {
        if !self.process.is_known.load(Ordering::Acquire) {
            self.process.leases.suspect_fills(suspected_until);
            others.iter().for_each(|other| self.heard(other));
            self.process.is_known.store(true, Ordering::Release);
        }
    }

    /// Tells the others that this proxy has come, and wants to know what they know.
    pub(super) fn say_hello(&self) {
        let window = in_message(self.longest_window());
        let hello = Message::Hello(self.process.id.clone(), self.fingerprint(), window);
        self.feed.say(Announcement::Message(hello));
        self.say_repeated();
    }

    fn compare_rules(&self, proxy: &peers::ProxyId, rules: u32) {
        if self.others.peers.borrow_mut().says_rules(proxy, rules) && rules != self.fingerprint() {
            tracing::warn!(
                proxy = %String::from_utf8_lossy(proxy),
                "another proxy has other [tags], cascades, prefix or databases: dependents that only one of them names are \
                 deleted a moment after the other has answered, and stale fills of them through it stay"
            );
        }
    }

    /// Another proxy invalidates these tags, perhaps by other rules: what these name besides is deleted, too.
    fn follow(&self, proxy: &peers::ProxyId, tags: &[Tag]) {
        let mut all = tags.to_vec();
        self.rules.borrow().cascade(&mut all);
        let index = &self.process.index;
        let has_keys = |tag: &Tag| {
            let mut found = false;
            index.lock().collect(tag, usize::MAX, 1, &mut |_| found = true);
            found
        };
        // What was written before the announcement the index has, and what is filled after it is compared with its epochs.
        if all.len() == tags.len() && index.is_complete() && !tags.iter().any(has_keys) {
            return;
        }
        let what = format!("begun by {}", String::from_utf8_lossy(proxy));
        let fired = vec![Firing::unconditional(TriggerLabel::Followed, all, self.present_rules(), what)];
        self.process.fanout.detached(Cause::of("rescind", &fired), fired);
    }

    fn heard(&self, proxy: &peers::ProxyId) {
        if self.others.peers.borrow_mut().heard(proxy) {
            tracing::info!(proxy = %String::from_utf8_lossy(proxy), "another proxy is there");
            self.others.missed.set(true);
            self.note_missed();
            self.tell_workers();
            self.others.company.notify_one();
            super::known::note(self);
        }
    }

    fn gone_for_ever(&self, proxy: &peers::ProxyId) {
        super::label_news::all_have_come(self);
        let taken_over = |tags: &[Tag], since: Moment| {
            let what = format!("begun by {}", String::from_utf8_lossy(proxy));
            Firing::unconditional(TriggerLabel::TakenOver, tags.to_vec(), self.rules_since(since), what)
        };
        self.others.peers.borrow_mut().gone(proxy, self.moment(), taken_over);
        self.tell_workers();
        self.others.wake.notify_one();
    }

    /// The workers must know whether this proxy is alone, and on which channels to look for life.
    fn tell_workers(&self) {
        let peers = self.others.peers.borrow();
        let channels: Arc<[_]> = peers.others().map(|other| lifeline(other).into_boxed_slice()).collect();
        let some = !channels.is_empty();
        *self.process.lifelines.write().unwrap_or_else(PoisonError::into_inner) = channels;
        self.process.has_peers.store(some, Ordering::Release);
    }

    /// What others said in the meantime is not known: what was left to them is done here.
    pub(super) fn lost_track_of_peers(&self) {
        self.others.peers.borrow_mut().lost_track(self.moment());
        self.others.wake.notify_one();
    }

    /// The feed shows a trigger that all proxies see: one of them fans it out.
    pub(super) fn seen_by_all(self: &Rc<Self>, firing: Firing) {
        let duty = Duty { tags: firing.tags.clone(), what: firing };
        match self.others.peers.borrow_mut().seen(duty, self.moment()) {
            Some(duty) => self.fan_out_direct(duty.what),
            None => self.others.wake.notify_one(),
        }
    }

    /// Fans out for somebody who wrote straight to Redis.
    fn fan_out_direct(self: &Rc<Self>, firing: Firing) {
        let fired = vec![firing];
        self.process.fanout.detached(Cause::of("direct", &fired), fired);
    }
}
