//! What the parts of one worker thread share: counters, rules, clock, the clients to be flushed.

mod coalesce;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::accounting::{Firing, Noted, ReadKey, Seen, Watch};
use crate::command::Commands;
use crate::failpoint;
use crate::fanout;
use crate::journal::{Intents, Wanted};
use crate::lease::{Clock, KeyHash, Moment};
use crate::metrics::{CommandCounters, ConnectionMode, FamilyCounters, WorkerMetrics};
use crate::outbox::Outbox;
use crate::process::Process;
use crate::relay::Relay;
use crate::resp::RequestParser;
use crate::rules::spec::StaleFill;
use crate::rules::{Family, FamilyId, Matcher, Rules};
use crate::session::Identity;
use crate::standing::Standing;

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
    /// How long fills of each family are watched after their miss; 0: they are not.
    windows: RefCell<Vec<Moment>>,
    /// The longest of them, and the shortest; 0 if there are none.
    longest_window: Cell<Moment>,
    shortest_window: Cell<Moment>,
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
    nanos: Cell<u64>,
    /// Until when `may_retime` has used up what it grants.
    retimed_until: Cell<Moment>,
    /// Look-ups that found nothing, see `retimes_in_vain`.
    retimed_in_vain: Cell<u32>,
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

/// See [`Context::retiming_is_due`].
const RETIMING: Moment = 4;
const RETIMINGS: Moment = 1000;
/// So many keys without labels may be looked up in place of one score.
const IN_VAIN: u32 = 64;

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
            windows: RefCell::default(),
            longest_window: Cell::new(0),
            shortest_window: Cell::new(0),
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
            nanos: Cell::new(0),
            retimed_until: Cell::new(0),
            retimed_in_vain: Cell::new(0),
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
        let moment = |time: Duration| time.as_millis() as Moment;
        let is_strict = |family: &Family| family.stale_fill == StaleFill::Strict;
        *self.strict.borrow_mut() = rules.families().iter().map(is_strict).collect();
        *self.windows.borrow_mut() = rules.families().iter().map(|family| moment(family.watched())).collect();
        self.longest_window.set(moment(rules.longest_window()));
        self.shortest_window.set(moment(rules.shortest_window()));
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

    /// Counts one finished command that came at `started` ([`Context::nanos`]). `metric` is its label's index in the
    /// table, or beyond for an unknown one; `None` for what the proxy asks itself.
    #[inline]
    pub fn command_done(&self, metric: Option<u16>, started: u64, error: bool) {
        let Some(metric) = metric else { return };
        let counters = self.command_counters.borrow();
        if let Some(counter) = counters.get(usize::from(metric)).or(counters.last()) {
            counter.done(self.nanos.get().saturating_sub(started), error);
        }
    }

    /// Counts the error of a command that was counted when it was queued.
    pub fn command_failed(&self, metric: u16) {
        if let Some(counter) = self.command_counters.borrow().get(usize::from(metric)) {
            counter.failed();
        }
    }

    /// Counts one key of a client's read, if it counts, and remembers a miss: the client may fill the key.
    pub fn count_read(&self, client: &Outbox, key: ReadKey, seen: Seen) {
        // After a reload an old family may be gone; its last reads are not worth an entry.
        if let Some(counter) = self.family_counters.borrow().get(usize::from(key.family.0))
            && key.counts
        {
            if seen == Seen::Miss { counter.miss(1) } else { counter.hit(1) }
        }
        match seen {
            Seen::Hit if key.watch == Watch::Tagged => {
                let clock = self.process.epochs.clock();
                client.hits.borrow_mut().found(key.hash, clock, self.moment());
                self.read(client, None);
            }
            Seen::Miss | Seen::Part if key.watch != Watch::No => self.missed(client, key),
            _ => {}
        }
    }

    /// Requests of several connections from the client's host are under way at the same time.
    pub fn busy(&self, client: &Outbox) {
        let host = client.lessee().host;
        if self.process.leases.busy(host, self.moment()) {
            self.process.fanout.order(fanout::Order::Busy(host));
        }
    }

    /// A client has read something; `missed`: what was not there.
    #[inline]
    fn read(&self, client: &Outbox, missed: Option<KeyHash>) {
        let alone = client.hits.borrow_mut().read(missed, self.moment());
        if alone > 0 {
            self.process.leases.went_alone(client.lessee().host, alone, self.moment());
        }
    }

    fn missed(&self, client: &Outbox, key: ReadKey) {
        let (clock, now, window) = (self.process.epochs.clock(), self.moment(), self.fill_window(key.family));
        match key.watch {
            Watch::Tagged => {
                self.read(client, Some(key.hash));
                self.process.leases.missed(key.hash, client.lessee(), clock, now, window);
            }
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

    /// These fills of the client did nothing, since others had filled their keys.
    pub fn outdone(&self, client: &Outbox, fills: &[(KeyHash, Clock)]) {
        self.process.leases.outdone(fills.iter().map(|(key, _)| *key), client.lessee());
    }

    /// Stale fills of keys of these families were undone.
    pub fn undone(&self, stale: &[FamilyId]) {
        let matcher = self.matcher.borrow();
        stale.iter().for_each(|id| self.process.metrics.stale_fills(&matcher.rules().family(*id).name));
    }

    /// Whether a write may be a fill that matters.
    #[inline]
    pub fn may_fill(&self) -> bool {
        let process = &self.process;
        !process.leases.is_idle(self.moment()) || process.tells_fills()
    }

    /// Whether the client's request may have waited here for so long that the miss which it fills is over.
    #[inline]
    pub fn may_fill_late(&self, client: &Outbox) -> bool {
        client.has_waited(self.moment()) > self.shortest_window.get() / 2
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
        self.longest_window.get()
    }

    /// The time in milliseconds since the process started, as of the last event of this thread.
    #[inline]
    pub fn moment(&self) -> Moment {
        self.moment.get()
    }

    /// The same in nanoseconds.
    #[inline]
    pub fn nanos(&self) -> u64 {
        self.nanos.get()
    }

    /// The time, as of the last event of this thread.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Asks the journal to note an intent, together with all others that are asked for in this turn.
    pub fn intend(&self, wanted: Wanted) -> impl Future<Output = Result<Noted, String>> + use<> {
        let noted = self.process.journal.prepare(wanted, &mut self.intents.borrow_mut());
        self.turn.notify_one();
        let relay = self.relay.clone();
        async move {
            let noted = relay.wait(noted).await;
            failpoint::pass("intent noted");
            noted
        }
    }

    /// Asks for a fan-out, together with all others that are asked for in this turn. `None`: the process ends.
    pub fn fan_out(
        &self,
        cause: fanout::Cause,
        fired: Vec<Firing>,
    ) -> impl Future<Output = Option<u64>> + use<> {
        let (order, done) = self.process.fanout.prepare(cause, fired);
        self.orders.borrow_mut().push(order);
        self.turn.notify_one();
        let relay = self.relay.clone();
        async move { relay.wait(done).await.ok() }
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
        let (moment, nanos) = self.process.moment_and_nanos(now);
        self.moment.set(moment);
        self.nanos.set(nanos);
        let shortest = self.shortest_window.get();
        if self.process.leases.stood_still(moment, shortest) {
            self.process.runs(moment, shortest, self.longest_window.get());
        }
    }

    /// Whether the score of one more labelled key may follow a change of its expiry: one in each four milliseconds, and as
    /// many at once as were not used in the last second. Scores are hints for the sweep, which asks Redis itself, and
    /// asking for each expiry and writing it costs more than the write that may have changed it.
    #[inline]
    pub fn retiming_is_due(&self) -> bool {
        self.retimed_until.get() < self.moment()
    }

    /// Takes one of these. False: there is none.
    pub fn may_retime(&self) -> bool {
        let may = self.retiming_is_due();
        if may {
            let oldest = self.moment().saturating_sub(RETIMINGS);
            self.retimed_until.set(self.retimed_until.get().max(oldest) + RETIMING);
        }
        may
    }

    /// A key was looked up for it that has no labels: that takes part of one, for a look-up costs a cache miss.
    pub fn retimes_in_vain(&self) {
        self.retimed_in_vain.set(self.retimed_in_vain.get() + 1);
        if self.retimed_in_vain.get() == IN_VAIN {
            self.retimed_in_vain.set(0);
            self.may_retime();
        }
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
