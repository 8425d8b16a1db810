//! What all threads share.

mod labels;
mod lead;
mod trust;

use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::config;
use crate::doubt::Doubt;
use crate::fanout;
use crate::index::SharedIndex;
use crate::journal::Journal;
use crate::lease::{Computations, Epochs, Leases, Moment};
use crate::metrics::Metrics;
use crate::net::Address;
use crate::peers;
use trust::Trust;

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
    /// Tags that this proxy is invalidating: of their keys nobody knows yet which have been deleted.
    pub invalidating: Arc<Doubt>,
    /// Whether Redis is the one that it was.
    pub trust: Trust,
    /// The other proxies, if there are any, have heard of this one, and have told it what they know.
    pub is_known: AtomicBool,
    /// What has been seen of explicit labels.
    pub labels: labels::Seen,
    /// Tags and their keys.
    pub index: SharedIndex,
    /// Why the feed is not connected, if it is not, or what keeps the index from being filled.
    pub feed_error: Mutex<String>,
    /// Why fan-outs failed last, as long as some do.
    pub fanout_error: Mutex<String>,
    /// Whether the proxy's own writes must keep the index, because Redis sends no events.
    pub own_writes: AtomicBool,
    /// Upstream connections that belong to one client each.
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
            lifelines: RwLock::new(Arc::new([])),
            leases: Leases::default(),
            computations: Computations::default(),
            epochs: Epochs::default(),
            journal,
            replay_window: config::Journal::default().replay_window,
            doubt: Arc::default(),
            invalidating: Arc::default(),
            trust: Trust::default(),
            is_known: AtomicBool::new(false),
            labels: labels::Seen::default(),
            index: SharedIndex::default(),
            number: fastrand::u64(..),
            feed_error: Mutex::default(),
            fanout_error: Mutex::default(),
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

    /// The feed is not connected because of this, or the index cannot be filled; empty: nothing is known to be wrong.
    pub fn set_feed_error(&self, error: &str) {
        error.clone_into(&mut text(&self.feed_error));
    }

    /// Why the feed is not connected, or what keeps the index from being filled; empty: nothing that is known.
    pub fn feed_error(&self) -> String {
        text(&self.feed_error).clone()
    }

    /// Fan-outs fail because of this; empty: none does any more.
    pub fn set_fanout_error(&self, error: &str) {
        error.clone_into(&mut text(&self.fanout_error));
    }

    /// Why fan-outs fail; empty: none does, as far as is known.
    pub fn fanout_error(&self) -> String {
        text(&self.fanout_error).clone()
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
        self.moment_and_nanos(time).0
    }

    /// Likewise in milliseconds and in nanoseconds, of which 64 bits are enough for 584 years.
    #[inline]
    pub fn moment_and_nanos(&self, time: Instant) -> (Moment, u64) {
        let age = time.saturating_duration_since(self.born);
        let nanos = age.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(age.subsec_nanos()));
        (nanos / 1_000_000, nanos)
    }

    /// The process runs. If it stood still for longer than fills are watched, fills of misses from before may come now, and Redis
    /// may tell no more of what was invalidated meanwhile, nor the feed yet.
    #[inline]
    pub fn runs(&self, now: Moment, shortest: Moment, longest: Moment) {
        if self.leases.stood_still(now, 2 * longest) {
            self.lost_epochs(now);
        }
        self.leases.runs(now, shortest, longest);
    }

    /// Whether a write without an open miss may be a fill: its client may come from another proxy, or its key may have
    /// got its labels only now.
    pub fn tells_fills(&self) -> bool {
        self.uses_labels() || !self.is_alone()
    }

    /// The channels of the other proxies.
    pub fn lifelines(&self) -> Arc<[Box<[u8]>]> {
        Arc::clone(&self.lifelines.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is no other proxy on the same Redis, as far as is known.
    #[inline]
    pub fn is_alone(&self) -> bool {
        !self.has_peers.load(Acquire)
    }

    /// Whether the index learns of keys only from what is written through this proxy.
    pub fn own_writes(&self) -> bool {
        self.own_writes.load(Acquire)
    }
}

fn text(of: &Mutex<String>) -> MutexGuard<'_, String> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
