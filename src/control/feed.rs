//! The feed: the connection on which Redis reports key changes and proxies speak, and the barrier that orders it.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::announcement::{self, Announcement, Note};
use super::known::{self, Counts};
use super::push::{self, Received};
use super::watched::{Watched, enable_events};
use super::wire::{self, Wire};
use super::{Engine, events};
use crate::accounting::Firing;
use crate::fanout::{CHANNEL, OwnTriggers};
use crate::lease::Moment;
use crate::metrics::ConnectionMode;
use crate::resp::is_error_of_redis;

/// How long Redis may take to answer a barrier before the feed counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long something is kept that need not be told at once, for others to go with it.
const SOON: Duration = Duration::from_millis(20);
/// How often the list of what was invalidated lately gets a longer life, at most, in milliseconds.
const RENEWAL: Moment = 1000;
/// How often it is asked for key changes where that was refused: with each so many of the garbage collection's turns.
const SELDOM: u64 = 10;
/// How long that may take.
pub(super) const SHORT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Those who wait for a barrier, and the triggers that it ends.
#[derive(Default)]
struct Barrier {
    waiters: Vec<oneshot::Sender<()>>,
    own: Vec<Firing>,
}

/// What a reply on the feed's connection answers.
enum Expected {
    /// The `PING` of a barrier.
    Barrier(Barrier),
    /// Something that need not succeed.
    Anything,
    /// An addition to what is watched.
    Watching,
}

/// The feed's state, as the rest of the control thread sees it.
#[derive(Default)]
pub(super) struct Feed {
    connected: Cell<bool>,
    /// Since when it is not, if it ever was.
    lost: Cell<Option<Instant>>,
    /// Counts connections: what was true of an earlier one is not of this one.
    session: Cell<u64>,
    /// In which era it was made, or is being made.
    era: Cell<u64>,
    /// What is to be told other proxies before the next barrier.
    unsaid: RefCell<Vec<Announcement>>,
    unsent: RefCell<Barrier>,
    expected: RefCell<VecDeque<Expected>>,
    watched: RefCell<Watched>,
    /// Redis lets the proxy hear of key changes.
    hears_events: Cell<bool>,
    /// Other channels that Redis does not let the proxy listen to, those together that it asks for together.
    refused: RefCell<Vec<Vec<Vec<u8>>>>,
    /// The rules have changed: more may have to be watched.
    changed: Cell<bool>,
    wake: Notify,
    /// The canary's event has been seen since it was last asked for.
    canary: Cell<bool>,
    /// Trigger keys that have just expired or been evicted, and whose change is still to be reported: in the same
    /// turn of Redis's loop, behind that event. A key written anew in between is not among them.
    pub(super) ended: RefCell<HashSet<Box<[u8]>>>,
    /// Trigger keys that have just come to exist, likewise: if one ends before its change is reported, it was written.
    pub(super) made: RefCell<HashSet<Box<[u8]>>>,
    /// When the list of what was invalidated lately was last given a longer life.
    renewed: Cell<Option<Moment>>,
    /// What Redis had counted when it was last asked, and when that was: first ahead of the index's rebuild.
    counts: RefCell<Option<(Counts, Moment)>>,
    /// The connection of which it was said that it refuses announcements.
    complained: Cell<u64>,
    /// Set to end the connection.
    drop: RefCell<Option<&'static str>>,
}

impl Feed {
    /// Whether events flow.
    pub fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// Since when events have not flowed, if they do not and ever did.
    pub fn lost_since(&self) -> Option<Instant> {
        self.lost.get().filter(|_| !self.connected.get())
    }

    /// The number of the present connection.
    pub fn session(&self) -> u64 {
        self.session.get()
    }

    /// Whether Redis lets the proxy hear of key changes, if there are any.
    pub fn hears_events(&self) -> bool {
        self.hears_events.get()
    }

    /// Subscribes to these channels. `Some`: why Redis does not let the proxy; it is asked again now and then.
    pub async fn subscribe_to(&self, wire: &mut Wire, channels: &[&[u8]]) -> Result<Option<String>, String> {
        let refused = wire.subscribe(&subscription_to(channels)).await?.err();
        if refused.is_some() {
            self.refused.borrow_mut().push(channels.iter().map(|channel| channel.to_vec()).collect());
        }
        Ok(refused)
    }

    /// The canary's event has arrived.
    pub fn sing(&self) {
        self.canary.set(true);
    }

    /// Whether the canary's event arrived; asks anew.
    pub fn take_canary(&self) -> bool {
        self.canary.replace(false)
    }

    /// What was to be reported long ago will not be any more; called now and then.
    pub fn forget_ended(&self) {
        self.ended.borrow_mut().clear();
        self.made.borrow_mut().clear();
    }

    /// Redis had counted this at `asked`. Returns what it had when it was asked before, and when that was.
    pub fn has_counted(&self, counts: Counts, asked: Moment) -> Option<(Counts, Moment)> {
        self.counts.replace(Some((counts, asked)))
    }

    /// The proxy itself has called `CONFIG SET` so often since.
    fn expect_settings(&self, calls: u64) {
        if let Some((counts, _)) = &mut *self.counts.borrow_mut() {
            counts.expect_settings(calls);
        }
    }

    /// Ends the connection, so that everything is set up anew.
    pub fn reconnect(&self, why: &'static str) {
        *self.drop.borrow_mut() = Some(why);
        self.wake.notify_one();
    }

    /// Ends the connection if it is not of this era.
    pub fn follow(&self, era: u64) {
        if self.era.get() != era {
            self.reconnect("new connections lead to another Redis");
        }
    }

    /// Tells other proxies, behind what was told before and ahead of the next barrier. False: nobody can be told.
    pub fn say(&self, announcement: Announcement) -> bool {
        let connected = self.connected.get();
        if connected {
            self.unsaid.borrow_mut().push(announcement);
            self.wake.notify_one();
        }
        connected
    }

    /// As [`Feed::say`], with the next that is said, or soon.
    pub fn say_soon(&self, announcement: Announcement, engine: &Rc<Engine>) {
        if !self.connected.get() {
            return;
        }
        let is_first = {
            let mut unsaid = self.unsaid.borrow_mut();
            unsaid.push(announcement);
            unsaid.len() == 1
        };
        if is_first {
            let engine = Rc::clone(engine);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(SOON).await;
                engine.feed.wake.notify_one();
            });
        }
    }

    /// Resolves once the index reflects every write that Redis executed before the call; false: the feed was
    /// lost. `own` are triggers of our clients that the feed need not cover from then on.
    pub async fn barrier(&self, own: Vec<Firing>, engine: &Engine) -> bool {
        if !engine.has_feed() {
            engine.process.own_triggers.leave_all(&own);
            return false;
        }
        match tokio::time::timeout(PATIENCE, self.ask(own)).await {
            Ok(passed) => passed.is_ok(),
            Err(_) => {
                self.reconnect("the feed does not answer");
                false
            }
        }
    }

    /// Asks for a barrier.
    fn ask(&self, own: Vec<Firing>) -> oneshot::Receiver<()> {
        let (done, passed) = oneshot::channel();
        let mut unsent = self.unsent.borrow_mut();
        unsent.waiters.push(done);
        unsent.own.extend(own);
        self.wake.notify_one();
        passed
    }

    /// The rules have changed.
    pub fn follow_rules(&self) {
        self.changed.set(true);
        self.wake.notify_one();
    }

    /// Sends what waits.
    fn send(&self, engine: &Engine, wire: &mut Wire) {
        let mark = announcement::is_noted(&self.unsaid.borrow()).then(|| engine.next_name());
        let note = mark.as_ref().map(|mark| Note { mark, lifetime: self.renewed_lifetime(engine) });
        self.queue(note.as_ref(), |words| wire.queue(words));
    }

    /// Queues what waits: announcements first, so that whoever sees a barrier pass knows that they are out.
    fn queue(&self, note: Option<&Note<'_>>, mut queue: impl FnMut(&[&[u8]])) {
        let mut expected = self.expected.borrow_mut();
        let commands = announcement::queue(&self.unsaid.take(), note, &mut queue);
        expected.extend((0..commands).map(|_| Expected::Anything));
        let unsent = self.unsent.take();
        if !unsent.waiters.is_empty() {
            queue(&[b"PING"]);
            expected.push_back(Expected::Barrier(unsent));
        }
    }

    /// How long the list of what was invalidated lately is to live from now on, if it is time to say so.
    fn renewed_lifetime(&self, engine: &Engine) -> Option<Moment> {
        let now = engine.moment();
        if self.renewed.get().is_some_and(|renewed| now < renewed + RENEWAL) {
            return None;
        }
        self.renewed.set(Some(now));
        // Until it is renewed again it must not end too early for what comes to it.
        Some(engine.epoch_lifetime() + RENEWAL)
    }

    /// Takes a reply. The error is why the connection cannot go on.
    fn answered(&self, own: &OwnTriggers, reply: Result<(), &[u8]>) -> Result<(), String> {
        let expected = self.expected.borrow_mut().pop_front();
        let mut reply = reply.map_err(String::from_utf8_lossy);
        if matches!(expected, Some(Expected::Barrier(_))) {
            reply = wire::is_there(reply);
        }
        match (expected, &reply) {
            // Memory is full, or this is a replica now: fan-outs and fills meet the same.
            (Some(Expected::Anything), Err(error)) => {
                self.complain(error);
                return Ok(());
            }
            (Some(Expected::Barrier(barrier)), _) => end(barrier, own, reply.is_ok()),
            _ => {}
        }
        reply.map_err(Cow::into_owned)
    }

    /// Once for each connection.
    fn complain(&self, error: &str) {
        if self.complained.replace(self.session()) != self.session() {
            tracing::warn!(%error, "an announcement was refused: other proxies may keep stale fills");
        }
    }

    fn lost(&self, own: &OwnTriggers) {
        self.connected.set(false);
        self.lost.set(Some(Instant::now()));
        self.unsaid.borrow_mut().clear();
        for expected in self.expected.take() {
            if let Expected::Barrier(barrier) = expected {
                end(barrier, own, false);
            }
        }
        end(self.unsent.take(), own, false);
    }
}

/// Within the same step as the reply to the PING: a write that the feed shows later is not covered any more.
fn end(barrier: Barrier, own: &OwnTriggers, passed: bool) {
    own.leave_all(&barrier.own);
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
    let connections = metrics.upstream_connections(ConnectionMode::Control);
    let mut pause = FIRST_PAUSE;
    // Of what: that Redis refuses, or cannot be reached.
    let mut complained = None;
    let mut was_connected = false;
    loop {
        // What was asked for up to here is served by a new connection.
        engine.feed.changed.set(false);
        match connect(&engine).await {
            Ok(Connected { wire, counts, calls }) => {
                (pause, complained) = (FIRST_PAUSE, None);
                if was_connected {
                    reconnects.inc();
                    engine.process.epochs.gap();
                }
                was_connected = true;
                up.set(1);
                connected.set(1);
                connections.inc();
                engine.process.set_feed_error("");
                engine.feed.session.set(engine.feed.session.get() + 1);
                engine.feed.connected.set(true);
                engine.feed.renewed.set(None);
                engine.listens();
                engine.say_hello();
                // A fan-out must not find that Redis takes no more connections.
                engine.deletes.connect();
                if let Some((counts, asked)) = counts {
                    known::counted(&engine, &counts, asked);
                    engine.feed.expect_settings(calls);
                }
                engine.rebuild("the feed was connected");
                let greeting = Rc::clone(&engine);
                tokio::task::spawn_local(async move { super::label_news::greet(&greeting).await });
                let error = listen(&engine, wire).await;
                connections.dec();
                engine.process.set_feed_error(&error);
                engine.process.index.set_incomplete("the feed was lost");
                super::label_news::lost(&engine);
                engine.process.doubt_redis();
                engine.feed.lost(&engine.process.own_triggers);
                engine.lost_track_of_peers();
                engine.fear_for_others();
                up.set(0);
                connected.set(0);
                gaps.inc();
                tracing::warn!(%node, %error, "feed lost: fan-outs also scan until the index is rebuilt");
            }
            Err(error) => {
                let is_there = is_error_of_redis(&error);
                let is_news = complained.replace(is_there) != Some(is_there);
                if is_news && is_there {
                    tracing::warn!(%node, %error, "upstream refuses the feed: fan-outs also scan; retrying");
                } else if is_news {
                    tracing::warn!(%node, %error, "upstream cannot be reached; retrying");
                }
                up.set(i64::from(is_there));
                engine.process.set_feed_error(&error);
            }
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What a new connection comes with.
struct Connected {
    wire: Wire,
    /// What Redis had counted, and when it was asked, ahead of all else; `None`: it may not be asked.
    counts: Option<(Counts, Moment)>,
    /// The proxy has called `CONFIG SET` since.
    calls: u64,
}

async fn connect(engine: &Engine) -> Result<Connected, String> {
    let setting_up = async {
        let asked = engine.moment();
        let known::Dialled { mut wire, era, identity } =
            known::dial(&engine.process, &engine.credentials).await?;
        engine.feed.era.set(era);
        // What was asked for up to here is served by this connection.
        engine.feed.drop.borrow_mut().take();
        // Without the right to this there is no barrier.
        wire.ping().await?;
        let heard = subscribe(engine, &mut wire).await?;
        engine.feed.hears_events.set(heard.is_ok());
        // After subscribing, so that whoever changes the settings and cuts the feed in one step is overruled.
        let enabled = match heard {
            Ok(()) => enable_events(engine, &mut wire).await,
            Err(error) => Err(error),
        };
        wire.ping().await?;
        super::described::learn_commands(engine).await;
        let calls = enabled.clone().unwrap_or(0);
        engine.events_enabled(enabled.map(drop));
        let counts = identity.map(|identity| (identity.counts, asked));
        Ok(Connected { wire, counts, calls })
    };
    let patience = Duration::from_secs(10);
    let result = tokio::time::timeout(patience, setting_up).await;
    engine.process.set_silent(result.is_err());
    result.unwrap_or_else(|_| Err("no answer within 10 s".to_owned()))
}

/// Asks for events, announcements, and invalidations of trigger keys (and thereby of flushes). Without the right
/// to the last, direct writes of triggers and flushes are not seen; everything else works. Given back: whether events may be
/// heard of.
async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<Result<(), String>, String> {
    let watched = Watched::by(&engine.rules.borrow());
    let heard = wire.subscribe(&watched.subscription()).await?;
    engine.feed.refused.borrow_mut().clear();
    if let Some(error) = engine.feed.subscribe_to(wire, &[CHANNEL]).await? {
        tracing::warn!(%error, "SUBSCRIBE rescind:invalidate is not possible: what is sent there past the proxy is not seen");
    }
    super::announce::subscribe(engine, wire).await?;
    super::label_news::subscribe(engine, wire).await?;
    if let Err(error) = wire.call(&watched.tracking()).await {
        tracing::warn!(
            %error,
            "CLIENT TRACKING is not possible: trigger keys written past the proxy are not seen, and every fan-out \
             looks for labels that other proxies gave"
        );
        engine.label_changes.lose_track();
    }
    *engine.feed.watched.borrow_mut() = watched;
    Ok(heard)
}

fn subscription_to<C: AsRef<[u8]>>(channels: &[C]) -> Vec<&[u8]> {
    std::iter::once(b"SUBSCRIBE".as_slice()).chain(channels.iter().map(AsRef::as_ref)).collect()
}

/// Where Redis did not let the proxy hear of key changes, or of what other proxies tell: now and then it is asked again, on a
/// connection of its own.
pub(super) async fn hear_again(engine: &Engine, tick: u64) {
    if !tick.is_multiple_of(SELDOM) {
        return;
    }
    let refused: Vec<Vec<Vec<u8>>> = engine.feed.refused.borrow().clone();
    if refused.is_empty() && engine.feed.hears_events() {
        return;
    }
    let asking = async {
        let mut wire = known::dial(&engine.process, &engine.credentials).await?.wire;
        let watched = Watched::by(&engine.rules.borrow());
        let mut may = !engine.feed.hears_events() && wire.subscribe(&watched.subscription()).await?.is_ok();
        for channels in &refused {
            may |= wire.subscribe(&subscription_to(channels)).await?.is_ok();
        }
        Ok::<_, String>(may)
    };
    // Should no new connection get through, the feed that there is goes on.
    if tokio::time::timeout(SHORT, asking).await == Ok(Ok(true)) {
        engine.feed.reconnect("the proxy may hear more now");
    }
}

/// Adds what new rules need to what is watched already. False: only a new connection can.
fn watch_more(engine: &Engine, wire: &mut Wire) -> bool {
    let wanted = Watched::by(&engine.rules.borrow());
    let mut watched = engine.feed.watched.borrow_mut();
    let Some(missing) = watched.missing(&wanted) else { return false };
    if !missing.databases.is_empty() && engine.feed.hears_events() {
        // Whether it may hear of them shows when it subscribes.
        return false;
    }
    if !missing.prefixes.is_empty() {
        wire.queue(&missing.tracking());
        engine.feed.expected.borrow_mut().push_back(Expected::Watching);
    }
    watched.prefixes.extend(missing.prefixes);
    true
}

async fn listen(engine: &Rc<Engine>, mut wire: Wire) -> String {
    let feed = &engine.feed;
    loop {
        if let Err(error) = take(engine, &mut wire) {
            return error;
        }
        tokio::select! {
            progress = wire.progress() => if let Err(error) = progress {
                return error;
            },
            () = feed.wake.notified() => {
                if let Some(why) = feed.drop.take() {
                    return why.to_owned();
                }
                if feed.changed.take() && !watch_more(engine, &mut wire) {
                    return "the rules were reloaded".to_owned();
                }
                feed.send(engine, &mut wire);
            }
        }
    }
}

/// Takes what has arrived.
fn take(engine: &Rc<Engine>, wire: &mut Wire) -> Result<(), String> {
    let mut at = 0;
    while let Some((received, length)) =
        push::read(&wire.received()[at..]).map_err(|error| error.to_string())?
    {
        match received {
            Received::Push(push) => events::pushed(engine, &push),
            Received::Reply(reply) => engine.feed.answered(&engine.process.own_triggers, reply)?,
        }
        at += length;
    }
    wire.consume(at);
    Ok(())
}

impl Engine {
    /// Whether events flow from the Redis in use.
    pub(super) fn has_feed(&self) -> bool {
        self.feed.is_connected() && self.feed.era.get() == self.process.era()
    }
}

#[cfg(test)]
mod tests;
