//! What the proxy counts, and its Prometheus exposition.
//!
//! Two kinds of numbers. The *hot* ones (reads, commands, client bytes) change with every command: each worker
//! thread has its own [`WorkerMetrics`], the only writer of its counters, so counting needs no locked
//! instruction and shares no cache line; a scrape adds the workers up. The *rare* ones (fan-outs, evictions,
//! connections) are ordinary Prometheus types, shared by all threads.
//!
//! Label values come from the configuration or the command table, never from keys: whoever writes keys cannot
//! make series. This module knows no sockets and no configuration.
//!
//! - `worker`: the counters that a worker thread writes
//! - `collect`: adds the workers up for a scrape
//! - `process`: the process itself
//! - `rare`: the constructors of the rest, with names, help texts and buckets
//! - `snapshot`: the same numbers as plain values, for the status page

mod collect;
mod process;
mod rare;
mod snapshot;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};

use collect::{Shared, Workers};
use process::Process;
use rare::Rare;
pub use snapshot::{FamilySnapshot, FeedSnapshot, NodeSnapshot, Snapshot};
pub use worker::{CommandCounters, FamilyCounters, WorkerMetrics};

/// The family of the keys that no pattern names.
pub const OTHER: &str = "other";

/// What an upstream connection is used for: the label `mode` of `rescind_upstream_connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionMode {
    /// Carries the commands of many clients.
    Shared,
    /// Belongs to one client at a time.
    Pinned,
    /// The proxy's own: feed, fan-out, health checks.
    Control,
}

impl ConnectionMode {
    const ALL: [ConnectionMode; 3] =
        [ConnectionMode::Shared, ConnectionMode::Pinned, ConnectionMode::Control];

    fn label(self) -> &'static str {
        match self {
            ConnectionMode::Shared => "shared",
            ConnectionMode::Pinned => "pinned",
            ConnectionMode::Control => "control",
        }
    }
}

/// All metrics of the process. One per process, shared by every thread.
#[derive(Debug)]
pub struct Metrics {
    /// Clients connected now.
    pub clients: IntGauge,
    /// Keys in the index.
    pub index_keys: IntGauge,
    /// Memory of the index, in bytes.
    pub index_bytes: IntGauge,
    /// 1 while the index is known to be complete, else 0.
    pub index_complete: IntGauge,
    /// Invalidations in the journal whose fan-out has not completed.
    pub journal_pending: IntGauge,
    journal_failures: IntCounter,
    rare: Rare,
    shared: Arc<Shared>,
    registry: Registry,
}

impl Metrics {
    /// Metrics that are all zero, the series of [`OTHER`] and of every [`ConnectionMode`] already present.
    pub fn new() -> Arc<Metrics> {
        match Metrics::build() {
            Ok(metrics) => Arc::new(metrics),
            // Names, labels and buckets are constants of this module, so any test that gets here passes for good.
            Err(error) => unreachable!("a metric is defined wrongly: {error}"),
        }
    }

    fn build() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let rare = Rare::register(&registry)?;
        let shared = Arc::new(Shared::new(rare.families.clone()));
        registry.register(Box::new(Workers::new(Arc::clone(&shared))?))?;
        registry.register(Box::new(Process::new()))?;
        let gauge = |name: &str, help: &str| rare::register(&registry, IntGauge::new(name, help)?);
        let metrics = Metrics {
            clients: gauge("rescind_clients", "Clients connected to the proxy now.")?,
            index_keys: gauge(
                "rescind_index_keys",
                "Keys in the index, that is, existing keys that some tag invalidates.",
            )?,
            index_bytes: gauge(
                "rescind_index_bytes",
                "Memory that the index takes, in bytes (an estimate).",
            )?,
            index_complete: gauge(
                "rescind_index_complete",
                "1 while the index is known to have every dependent key. \
                 0: invalidations also scan Redis, which is slower but never wrong.",
            )?,
            journal_pending: gauge(
                "rescind_journal_pending",
                "Invalidations in the journal whose keys are not all deleted yet. \
                 Above 0 for long means that Redis cannot be reached.",
            )?,
            journal_failures: rare::register(
                &registry,
                IntCounter::new(
                    "rescind_journal_failures_total",
                    "Times that the journal could not be written or forced to the disk. Triggers are refused then.",
                )?,
            )?,
            rare,
            shared,
            registry,
        };
        for mode in ConnectionMode::ALL {
            metrics.upstream_connections(mode);
        }
        Ok(metrics)
    }

    /// The counters of one more worker thread; only that thread may write them.
    pub fn worker(&self) -> Arc<WorkerMetrics> {
        self.shared.add_worker()
    }

    /// All metrics in the Prometheus text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be rendered");
            String::new()
        })
    }

    /// The numbers of the status page, in one look.
    pub fn snapshot(&self) -> Snapshot {
        snapshot::take(self)
    }

    /// Makes the series of these families appear with 0, in the order in which the status page lists them.
    pub fn register_families<S: AsRef<str>>(&self, names: &[S]) {
        names.iter().for_each(|name| self.shared.register_family(name.as_ref()));
    }

    /// Makes the series of these triggers appear with 0.
    pub fn register_triggers<S: AsRef<str>>(&self, labels: &[S]) {
        for label in labels {
            self.rare.invalidations.with_label_values(&[label.as_ref()]);
        }
    }

    /// Counts one key that Redis evicted for want of memory.
    pub fn evictions(&self, family: &str) {
        self.rare.families.evictions.with_label_values(&[family]).inc();
    }

    /// Counts one key that expired.
    pub fn expirations(&self, family: &str) {
        self.rare.families.expirations.with_label_values(&[family]).inc();
    }

    /// Counts one invalidation, by what caused it.
    pub fn invalidations(&self, trigger: &str) {
        self.rare.invalidations.with_label_values(&[trigger]).inc();
    }

    /// Counts `n` keys that a fan-out deleted.
    pub fn invalidated_keys(&self, family: &str, n: u64) {
        self.rare.families.invalidated_keys.with_label_values(&[family]).inc_by(n);
    }

    /// Counts one fill that was undone because its value was read before an invalidation.
    pub fn stale_fills(&self, family: &str) {
        self.rare.families.stale_fills.with_label_values(&[family]).inc();
    }

    /// Counts one read that waited while another client computed its key, and whether it found it then.
    pub fn coalesced(&self, family: &str, found: bool) {
        let families = &self.rare.families;
        let counter = if found { &families.coalesced } else { &families.coalesce_timeouts };
        counter.with_label_values(&[family]).inc();
    }

    /// Records one finished fan-out: how long the writer waited for the journal and until every key was deleted, and how
    /// many those were.
    pub fn fanout(&self, duration: Duration, keys: u64) {
        self.rare.fanout_duration.observe(duration.as_secs_f64());
        self.rare.fanout_keys.observe(keys as f64);
    }

    /// Connections to Redis that are open now, by use. Keep the gauge: finding it costs a look-up.
    pub fn upstream_connections(&self, mode: ConnectionMode) -> IntGauge {
        self.rare.upstream_connections.with_label_values(&[mode.label()])
    }

    /// 1 while the Redis at `node` (host:port) can be reached, else 0.
    pub fn upstream_up(&self, node: &str) -> IntGauge {
        self.rare.upstream_up.with_label_values(&[node])
    }

    /// Connections to `node` that were lost and made again.
    pub fn upstream_reconnects(&self, node: &str) -> IntCounter {
        self.rare.upstream_reconnects.with_label_values(&[node])
    }

    /// 1 while the feed of `node` is connected, else 0.
    pub fn feed_connected(&self, node: &str) -> IntGauge {
        self.rare.feed_connected.with_label_values(&[node])
    }

    /// Times that the feed of `node` may have missed events.
    pub fn feed_gaps(&self, node: &str) -> IntCounter {
        self.rare.feed_gaps.with_label_values(&[node])
    }

    /// The journal has failed so often, all in all.
    pub fn journal_failures(&self, all: u64) {
        self.journal_failures.inc_by(all.saturating_sub(self.journal_failures.get()));
    }

    /// Counts a client for which there was no connection of its own.
    pub fn pinned_refused(&self) {
        self.rare.pinned_refused.inc();
    }

    /// Counts one reload of the configuration.
    pub fn config_reloads(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.rare.config_reloads.with_label_values(&[result]).inc();
    }
}

/// The values of a vector with one label, by the value of that label.
fn by_label(vector: &impl Collector) -> std::collections::BTreeMap<String, u64> {
    let mut values = std::collections::BTreeMap::new();
    for series in vector.collect().iter().flat_map(|family| family.get_metric()) {
        // A series is either a counter or a gauge; the other one reads as 0.
        let value = series.get_counter().get_value() + series.get_gauge().get_value();
        for label in series.get_label() {
            values.insert(label.value().to_owned(), value.max(0.0) as u64);
        }
    }
    values
}
