//! What the parts of one worker thread share: counters, rules, clock, the clients to be flushed.

mod coalesce;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::accounting::{Firing, IntentId, ReadKey, Seen, Watch};
use crate::command::Commands;
use crate::config;
use crate::doubt::{self, Doubt, Scope};
use crate::fanout;
use crate::index::SharedIndex;
use crate::journal::{Intents, Journal};
use crate::lease::{Clock, Computations, Epochs, KeyHash, Leases, Moment};
use crate::metrics::{CommandCounters, ConnectionMode, FamilyCounters, Metrics, WorkerMetrics};
use crate::net::Address;
use crate::outbox::Outbox;
use crate::peers;
use crate::relay::Relay;
use crate::resp::RequestParser;
use crate::rules::{Family, FamilyId, Matcher, Rules};
use crate::session::Identity;
use crate::standing::Standing;

/// The question whether Redis is the one that it was.
#[derive(Debug, Default)]
pub struct RedisDoubt {
    /// How often it was asked.
    count: u64,
    /// The control thread has been asked to find out and has not yet.
    comparing: bool,
    /// The doubt, if there is anything to doubt, and since when.
    reason: Option<(doubt::Reason, Instant)>,
}

/// What all threads share.
#[derive(Debug)]
pub struct Process {
    /// Address of the Redis behind the proxy.
    pub upstream: Address,
    /// Most clients at a time.
    pub max_clients: usize,
    /// Clients connected now.
    pub clients: AtomicUsize,
    /// How long a client is silent before the kernel asks whether it is still there.
    pub tcp_keepalive: Option<Duration>,
    /// Unsent bytes beyond which a client is cut.
    pub output_limit: usize,
    /// Clients are cut after this much silence; `None`: never.
    pub idle_timeout: Option<std::time::Duration>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Nothing is deleted, and nothing hidden.
    pub dry_run: bool,
    /// When it started: moments count from then.
    pub born: Instant,
    /// The name under which other proxies on the same Redis know it.
    pub id: peers::ProxyId,
    /// By this number it knows its own news of labels again.
    pub number: u64,
    /// There are other proxies on the same Redis.
    pub has_peers: AtomicBool,
    /// There were, before this process, and Redis has not been compared since.
    pub had_others: AtomicBool,
    /// The channels on which they listen as long as they live.
    pub lifelines: RwLock<Arc<[Box<[u8]>]>>,
    /// Misses that clients may fill.
    pub leases: Leases,
    /// Keys that clients compute and others wait for.
    pub computations: Computations,
    /// Which tags were invalidated lately.
    pub epochs: Epochs,
    /// The log of invalidations that outlives the process.
    pub journal: Journal,
    /// How far back invalidations are repeated when Redis comes back with old data.
    pub replay_window: Duration,
    /// Keys whose reads are answered as misses.
    pub doubt: Arc<Doubt>,
    /// Whether Redis is the one that it was.
    pub redis_doubted: Mutex<RedisDoubt>,
    /// Since then it may not know what was invalidated before it came. 0: never.
    pub epochs_lost: AtomicU64,
    /// Until that is known, also keys without tags may be stale: they may have had labels. Others are no cached values at
    /// all, so they are not hidden: their readers wait.
    pub doubts_untagged: AtomicBool,
    /// The run id of the Redis that was seen last.
    pub run: RwLock<Option<Arc<str>>>,
    /// The other proxies, if there are any, have heard of this one.
    pub is_known: AtomicBool,
    /// Clients give explicit labels: every miss may be that of a key to be labelled.
    pub labels_used: AtomicBool,
    /// Tags and their keys.
    pub index: SharedIndex,
    /// The labels in Redis have been read into the index, and the feed has not been lost since.
    pub labels_known: AtomicBool,
    /// The feed shows the news of labels, so that the index learns from there what scripts give.
    pub hears_labels: AtomicBool,
    /// There may be other proxies, which give labels that the feed tells of a moment later.
    pub others: AtomicBool,
    /// Whether the proxy's own writes must keep the index, because Redis sends no events.
    pub own_writes: AtomicBool,
    /// Upstream connections that belong to one client each, and idle ones that did.
    pub pinned: AtomicUsize,
    /// Most of them.
    pub max_pinned: usize,
    /// Redis wants authentication: clients without it get tighter limits.
    pub auth_required: AtomicBool,
    /// Trigger writes on their way, so that the feed does not take them for somebody else's.
    pub own_triggers: fanout::OwnTriggers,
    /// The latest invalidations.
    pub log: Arc<fanout::Log>,
    /// Where fan-outs are asked for.
    pub fanout: fanout::Handle,
    /// Since when Redis takes connections, or has them, and answers nothing.
    pub silence: Mutex<Option<Instant>>,
    /// The index has been built once: the proxy is warm.
    pub warmed: AtomicBool,
    /// The server is going down: clients are let go when they are idle.
    pub draining: AtomicBool,
}

impl Process {
    /// One that knows nothing yet, with the defaults of the configuration.
    pub fn new(upstream: Address, metrics: Arc<Metrics>, journal: Journal, fanout: fanout::Handle) -> Self {
        let (listen, upstream_defaults) = (config::Listen::default(), config::Upstream::default());
        Self {
            upstream,
            max_clients: listen.max_clients,
            clients: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            max_pinned: upstream_defaults.max_pinned,
            tcp_keepalive: listen.tcp_keepalive,
            output_limit: listen.client_output_limit,
            idle_timeout: listen.idle_timeout,
            metrics,
            dry_run: false,
            born: Instant::now(),
            id: format!("{:016x}", fastrand::u64(..)).into_bytes().into(),
            has_peers: AtomicBool::new(false),
            had_others: AtomicBool::new(false),
            lifelines: RwLock::new(Arc::new([])),
            leases: Leases::default(),
            computations: Computations::default(),
            epochs: Epochs::default(),
            journal,
            replay_window: config::Journal::default().replay_window,
            doubt: Arc::default(),
            redis_doubted: Mutex::default(),
            epochs_lost: AtomicU64::new(0),
            doubts_untagged: AtomicBool::new(false),
            run: RwLock::default(),
            is_known: AtomicBool::new(false),
            labels_used: AtomicBool::new(false),
            index: SharedIndex::default(),
            labels_known: AtomicBool::new(false),
            hears_labels: AtomicBool::new(false),
            number: fastrand::u64(..),
            others: AtomicBool::new(true),
            own_writes: AtomicBool::new(false),
            auth_required: AtomicBool::new(false),
            own_triggers: fanout::OwnTriggers::default(),
            log: Arc::default(),
            fanout,
            silence: Mutex::default(),
            warmed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Redis answers nothing, or does so again.
    pub fn set_silent(&self, silent: bool) {
        let mut since = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        *since = silent.then(|| since.unwrap_or_else(Instant::now));
    }

    /// For how long Redis has answered nothing.
    pub fn silent_for(&self) -> Duration {
        let since = *self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The time, in milliseconds since the start.
    pub fn moment_of(&self, time: Instant) -> Moment {
        time.saturating_duration_since(self.born).as_millis() as Moment
    }

    /// Whether a write without an open miss may be a fill: its client may come from another proxy, or its key may have
    /// got its labels only now.
    pub fn tells_fills(&self) -> bool {
        self.uses_labels() || !self.is_alone()
    }

    /// Redis may have been replaced: until that is known, what it holds of keys invalidated lately is not served.
    pub fn doubt_redis(&self) {
        let mut state = self.redis_doubted.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        // Who compares goes on until nothing was doubted meanwhile.
        if std::mem::replace(&mut state.comparing, true) {
            return;
        }
        if self.dry_run {
            state.comparing = false;
            return;
        }
        // Of what other proxies have invalidated not everything may have been heard.
        let recent = if self.is_alone() && !self.had_others.load(Ordering::Acquire) {
            self.journal.recent()
        } else {
            Scope::Everything
        };
        state.reason = (!recent.is_empty()).then(|| (self.doubt.enter(recent), Instant::now()));
        // Which keys had labels an old Redis knows, not the index.
        let labels = self.labels_used.load(Ordering::Acquire) || self.index.has_had_labels();
        self.doubts_untagged.store(state.reason.is_some() && labels, Ordering::Release);
        drop(state);
        self.fanout.order(fanout::Order::Compare);
    }

    /// Whether also keys without tags are in doubt.
    pub fn doubts_untagged(&self) -> bool {
        self.doubts_untagged.load(Ordering::Acquire)
    }

    /// Whether anything was invalidated lately that a Redis with old data would bring back.
    pub fn has_recent(&self) -> bool {
        self.journal.has_recent() || !self.is_alone()
    }

    /// Whether a new connection leads to the Redis that was seen last, as its `INFO server` says. If it does not, that is
    /// doubted from now on; the connection can be used if it was doubted before `created`, when requests were not yet sent
    /// to it.
    pub fn is_same_run(&self, info: &[u8], created: Instant) -> bool {
        let known = self.run.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(known) = known else { return true };
        if memchr::memmem::find(info, &[b"run_id:", known.as_bytes()].concat()).is_some() {
            return true;
        }
        let doubted = self.redis_doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let since = doubted.reason.as_ref().map(|(_, since)| *since);
        drop(doubted);
        self.fanout.order(fanout::Order::Redial);
        self.doubt_redis();
        since.is_some_and(|since| since < created)
    }

    /// The Redis that is seen now, by its run id.
    pub fn saw_run(&self, run: &str) {
        *self.run.write().unwrap_or_else(PoisonError::into_inner) = Some(run.into());
    }

    /// How often it was doubted.
    pub fn doubts_of_redis(&self) -> u64 {
        self.redis_doubted.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Redis is the one that it was, or what was invalidated lately is invalidated again. False: it was doubted again
    /// since it had been doubted that often.
    pub fn trust_redis(&self, doubts: u64) -> bool {
        let mut state = self.redis_doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = state.count == doubts;
        if holds {
            (state.reason, state.comparing) = (None, false);
            self.had_others.store(false, Ordering::Release);
            self.doubts_untagged.store(false, Ordering::Release);
        }
        holds
    }

    /// Redis is another one: what the one before it knew of invalidations it need not know.
    pub fn lost_epochs(&self, now: Moment) {
        self.epochs_lost.store(now + 1, Ordering::Release);
    }

    /// Whether Redis may lack the epochs of invalidations of which this proxy need not have heard: it was replaced within
    /// `window`, or that is being found out.
    pub fn may_lack_epochs(&self, now: Moment, window: Moment) -> bool {
        let comparing = self.redis_doubted.lock().unwrap_or_else(PoisonError::into_inner).comparing;
        let lost = self.epochs_lost.load(Ordering::Acquire);
        comparing || (lost > 0 && now < lost + window)
    }

    /// The channels of the other proxies.
    pub fn lifelines(&self) -> Arc<[Box<[u8]>]> {
        Arc::clone(&self.lifelines.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is no other proxy on the same Redis, as far as is known.
    #[inline]
    pub fn is_alone(&self) -> bool {
        !self.has_peers.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Whether any key may have explicit labels. Costs no lock. Beside other proxies always: one of them may just have given
    /// the first.
    pub fn may_have_labels(&self) -> bool {
        use std::sync::atomic::Ordering::Acquire;
        self.index.has_labels()
            || self.others.load(Acquire)
            || !self.labels_known.load(Acquire)
            || self.labels_used.load(Acquire)
    }

    /// Whether explicit labels have been used here, or have been heard of.
    #[inline]
    pub fn uses_labels(&self) -> bool {
        use std::sync::atomic::Ordering::Acquire;
        self.labels_used.load(Acquire) || self.index.has_had_labels()
    }

    /// Whether the index has all explicit labels at any moment, so that nobody need be asked.
    pub fn knows_labels(&self) -> bool {
        use std::sync::atomic::Ordering::Acquire;
        let told = self.others.load(Acquire) || self.labels_used.load(Acquire);
        self.labels_known.load(Acquire) && !told
    }

    /// Whether the index learns of keys only from what is written through this proxy.
    pub fn own_writes(&self) -> bool {
        self.own_writes.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// What one worker thread's clients and upstream connections share.
#[derive(Debug)]
pub struct Context {
    /// What all threads share.
    pub process: Arc<Process>,
    /// This thread's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// The command table.
    pub commands: RefCell<Arc<Commands>>,
    command_counters: RefCell<Vec<Arc<CommandCounters>>>,
    family_counters: RefCell<Vec<Arc<FamilyCounters>>>,
    /// The rules and this thread's cache of them.
    pub matcher: RefCell<Matcher>,
    /// Whether there are rules at all.
    pub has_rules: Cell<bool>,
    /// How long fills of each family are watched after their miss; 0: they are not.
    windows: RefCell<Vec<Moment>>,
    /// Whether what no proxy knows to be fresh is undone, likewise.
    strict: RefCell<Vec<bool>>,
    /// Whether the misses of any family are coalesced, and how long reads of each may wait.
    coalesces: Cell<bool>,
    longest_waits: RefCell<Vec<Moment>>,
    /// Whether Redis lets clients in without AUTH.
    pub standing: Standing,
    /// How tasks of this thread wait for other threads.
    pub relay: Relay,
    /// What is asked of the journal and of the control thread in this turn.
    intents: RefCell<Intents>,
    orders: RefCell<Vec<fanout::Order>>,
    turn: Notify,
    /// All clients of this thread, by their number.
    pub clients: RefCell<HashMap<u64, Rc<Outbox>>>,
    now: Cell<Instant>,
    moment: Cell<Moment>,
    /// Until when `may_retime` has used up what it grants.
    retimed_until: Cell<Moment>,
    dirty: RefCell<Vec<Rc<Outbox>>>,
    /// Looks at requests behind the one that is dealt with.
    pub ahead: RefCell<RequestParser>,
    /// What sockets are read into.
    pub scratch: RefCell<Vec<u8>>,
}

/// Bytes read from a socket at once: with more, what is done with them would miss the caches of the processor.
pub const READ: usize = 64 * 1024;
/// The same of big values, with which nothing is done but to pass them on: the other side is woken less often.
pub const READ_OF_BIG: usize = 128 * 1024;

/// Milliseconds.
const RETIMINGS: Moment = 5000;

impl Context {
    /// The context of one worker.
    pub fn new(process: Arc<Process>, commands: Arc<Commands>, rules: &Arc<Rules>, relay: Relay) -> Rc<Self> {
        let metrics = process.metrics.worker();
        let context = Self {
            process,
            metrics,
            commands: RefCell::new(Arc::clone(&commands)),
            command_counters: RefCell::default(),
            family_counters: RefCell::default(),
            matcher: RefCell::new(rules.matcher()),
            has_rules: Cell::new(false),
            windows: RefCell::default(),
            strict: RefCell::default(),
            coalesces: Cell::new(false),
            longest_waits: RefCell::default(),
            standing: Standing::default(),
            relay,
            intents: RefCell::default(),
            orders: RefCell::default(),
            turn: Notify::new(),
            clients: RefCell::default(),
            now: Cell::new(Instant::now()),
            moment: Cell::new(0),
            retimed_until: Cell::new(0),
            dirty: RefCell::default(),
            ahead: RefCell::default(),
            scratch: RefCell::new(vec![0; READ_OF_BIG]),
        };
        context.tick();
        context.set_commands(commands);
        context.set_rules(rules);
        Rc::new(context)
    }

    /// Takes over new rules.
    pub fn set_rules(&self, rules: &Arc<Rules>) {
        let names: Vec<&str> = rules.families().iter().map(|f| &*f.name).collect();
        *self.family_counters.borrow_mut() = self.metrics.families(&names);
        *self.matcher.borrow_mut() = rules.matcher();
        self.has_rules.set(rules.families().len() > 1);
        let window = |family: &Family| match family.protect_fills {
            true => family.fill_window.as_millis() as Moment,
            false => 0,
        };
        *self.strict.borrow_mut() = rules.families().iter().map(|family| family.strict_fills).collect();
        *self.windows.borrow_mut() = rules.families().iter().map(window).collect();
        self.set_coalesced(rules.families());
    }

    /// Takes over a command table that knows more.
    pub fn set_commands(&self, commands: Arc<Commands>) {
        let mut labels: Vec<&str> = commands.labels().collect();
        // Behind the labels of the table: what the table does not know.
        labels.push("unknown");
        *self.command_counters.borrow_mut() = self.metrics.commands(&labels);
        *self.commands.borrow_mut() = commands;
    }

    /// Counts one finished command. `metric` is its label's index in the table, or beyond for an unknown one;
    /// `None` for what the proxy asks itself.
    pub fn command_done(&self, metric: Option<u16>, started: Instant, error: bool) {
        let Some(metric) = metric else { return };
        let counters = self.command_counters.borrow();
        if let Some(counter) = counters.get(usize::from(metric)).or(counters.last()) {
            counter.done(self.now.get().saturating_duration_since(started), error);
        }
    }

    /// Counts one key of a client's read, and remembers a miss: the client may fill the key.
    pub fn count_read(&self, client: &Outbox, key: ReadKey, seen: Seen) {
        // After a reload an old family may be gone; its last reads are not worth an entry.
        if let Some(counter) = self.family_counters.borrow().get(usize::from(key.family.0)) {
            if seen == Seen::Miss { counter.miss(1) } else { counter.hit(1) }
        }
        if seen != Seen::Hit && key.watch != Watch::No {
            self.missed(client, key);
        }
    }

    /// Requests of several connections from the client's host are under way at the same time.
    pub fn busy(&self, client: &Outbox) {
        let host = client.lessee().host;
        if self.process.leases.busy(host, self.moment()) {
            self.process.fanout.order(fanout::Order::Busy(host));
        }
    }

    fn missed(&self, client: &Outbox, key: ReadKey) {
        let (clock, now, window) = (self.process.epochs.clock(), self.moment(), self.fill_window(key.family));
        match key.watch {
            Watch::Tagged => self.process.leases.missed(key.hash, client.lessee(), clock, now, window),
            _ => self.process.leases.missed_unlabelled(key.hash, clock, now, window),
        }
    }

    /// These fills of the client did not take place, or it may not know that they did: their misses are open again.
    pub fn give_back(&self, client: &Outbox, fills: &[(KeyHash, Clock)]) {
        if !fills.is_empty() {
            let window = self.longest_window();
            self.process.leases.give_back(fills, client.lessee().host, self.moment(), window);
        }
    }

    /// Whether a write may be a fill that matters.
    #[inline]
    pub fn may_fill(&self) -> bool {
        let process = &self.process;
        !process.leases.is_idle(self.moment()) || process.tells_fills()
    }

    /// Whether fills of this family are protected.
    #[inline]
    pub fn protects(&self, family: FamilyId) -> bool {
        self.fill_window(family) > 0
    }

    /// Whether fills of this family are undone unless they are known to be fresh.
    pub fn is_strict(&self, family: FamilyId) -> bool {
        self.strict.borrow().get(usize::from(family.0)).copied().unwrap_or(false)
    }

    /// How long after its miss a fill of this family is watched; 0: it is not.
    #[inline]
    pub fn fill_window(&self, family: FamilyId) -> Moment {
        self.windows.borrow().get(usize::from(family.0)).copied().unwrap_or(0)
    }

    /// The longest of these times.
    pub fn longest_window(&self) -> Moment {
        self.windows.borrow().iter().copied().max().unwrap_or(0)
    }

    /// The time in milliseconds since the process started, as of the last event of this thread.
    #[inline]
    pub fn moment(&self) -> Moment {
        self.moment.get()
    }

    /// The time, as of the last event of this thread.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Asks the journal to note an intent, together with all others that are asked for in this turn.
    pub async fn intend(&self, scope: Scope, what: String) -> Result<IntentId, String> {
        let noted = self.process.journal.prepare(scope, what, &mut self.intents.borrow_mut());
        self.turn.notify_one();
        self.relay.wait(noted).await
    }

    /// Asks for a fan-out, together with all others that are asked for in this turn. `None`: the process ends.
    pub async fn fan_out(&self, cause: fanout::Cause, fired: Vec<Firing>) -> Option<u64> {
        let (order, done) = self.process.fanout.prepare(cause, fired);
        self.orders.borrow_mut().push(order);
        self.turn.notify_one();
        self.relay.wait(done).await.ok()
    }

    /// Hands over what was asked for in a turn at its end: its task runs behind those of the clients that could be
    /// read. Runs for ever.
    pub async fn end_turns(self: Rc<Self>) {
        loop {
            self.turn.notified().await;
            let intents = self.intents.take();
            if !intents.is_empty() {
                self.process.journal.submit(intents);
            }
            let orders = self.orders.take();
            if !orders.is_empty() {
                self.process.fanout.order(fanout::Order::Together(orders));
            }
        }
    }

    /// Reads the clock: once per event, not once per command.
    pub fn tick(&self) {
        let now = Instant::now();
        self.now.set(now);
        self.moment.set(self.process.moment_of(now));
    }

    /// Whether the score of one more labelled key may follow a change of its expiry: one in each millisecond, and as many
    /// at once as were not used in the last five seconds. Scores are hints for the sweep, which asks Redis itself, and
    /// asking for each expiry and writing it costs more than the write that may have changed it.
    pub fn may_retime(&self) -> bool {
        let now = self.moment();
        let until = self.retimed_until.get().max(now.saturating_sub(RETIMINGS));
        let may = until < now;
        self.retimed_until.set(until + Moment::from(may));
        may
    }

    /// Remembers that `outbox` has bytes to write.
    pub fn mark_dirty(&self, outbox: &Rc<Outbox>) {
        if !outbox.dirty.replace(true) {
            self.dirty.borrow_mut().push(Rc::clone(outbox));
        }
    }

    /// Writes what clients are to get.
    pub fn flush_dirty(&self) {
        let mut dirty = self.dirty.take();
        for outbox in dirty.drain(..) {
            outbox.dirty.set(false);
            self.metrics.bytes_out(outbox.flush());
        }
        // Keeps the allocation, unless somebody was marked meanwhile.
        let mut slot = self.dirty.borrow_mut();
        if slot.is_empty() {
            *slot = dirty;
        }
    }

    /// Disconnects all clients that have authenticated as `identity`.
    pub fn disconnect(&self, identity: &Identity) {
        let clients = self.clients.borrow();
        clients.values().filter(|client| client.session.borrow().identity == *identity).for_each(|client| {
            tracing::debug!(client = %client.peer, user = ?identity, "disconnected: Redis does not know the user any more");
            client.close();
        });
    }

    /// Asks for fan-outs whose reply nobody waits for: the writer is gone, or its upstream connection is.
    pub fn fan_out_detached(&self, client: &str, fired: Vec<Firing>) {
        if !fired.is_empty() {
            self.process.fanout.detached(fanout::Cause::of(client, &fired), fired);
        }
    }

    /// The gauge of this worker's upstream connections.
    pub fn upstream_gauge(&self, mode: ConnectionMode) -> prometheus::IntGauge {
        self.process.metrics.upstream_connections(mode)
    }
}
