//! The metrics that change seldom: ordinary Prometheus types, with their names, help texts and buckets.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Seconds: a fan-out of a few keys takes one round trip, one that has to scan takes many.
const FANOUT_SECONDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// Keys deleted by one fan-out.
const FANOUT_KEYS: [f64; 13] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6];

/// What happens to the keys of a family other than reads.
#[derive(Clone, Debug)]
pub(super) struct FamilyEvents {
    pub evictions: IntCounterVec,
    pub expirations: IntCounterVec,
    pub invalidated_keys: IntCounterVec,
    pub stale_fills: IntCounterVec,
    pub coalesced: IntCounterVec,
    pub coalesce_timeouts: IntCounterVec,
}

impl FamilyEvents {
    fn new(registry: &Registry) -> prometheus::Result<FamilyEvents> {
        Ok(FamilyEvents {
            evictions: counters(
                registry,
                "rescind_evictions_total",
                "Keys that Redis evicted because its memory was full, by family. \
                 A family that is evicted while it is still read needs more memory.",
                "family",
            )?,
            expirations: counters(
                registry,
                "rescind_expirations_total",
                "Keys that expired, by family.",
                "family",
            )?,
            invalidated_keys: counters(
                registry,
                "rescind_invalidated_keys_total",
                "Keys that invalidations deleted (with --dry-run: would have deleted), by family.",
                "family",
            )?,
            stale_fills: counters(
                registry,
                "rescind_stale_fills_total",
                "Values that were computed before an invalidation, written to the cache after it, \
                 and removed at once, by family. Each would or might have been stale data.",
                "family",
            )?,
            coalesced: counters(
                registry,
                "rescind_coalesced_total",
                "Reads that waited while another client computed their key, and then found it, by family. \
                 Each is a computation saved.",
                "family",
            )?,
            coalesce_timeouts: counters(
                registry,
                "rescind_coalesce_timeouts_total",
                "Reads that waited while another client computed their key, and did not find it all the same, \
                 by family.",
                "family",
            )?,
        })
    }

    /// Makes the series of a family appear with 0.
    pub fn register(&self, family: &str) {
        let keys = [&self.evictions, &self.expirations, &self.invalidated_keys, &self.stale_fills];
        let waits = [&self.coalesced, &self.coalesce_timeouts];
        for vector in keys.into_iter().chain(waits) {
            vector.with_label_values(&[family]);
        }
    }
}

#[derive(Debug)]
pub(super) struct Rare {
    pub families: FamilyEvents,
    pub invalidations: IntCounterVec,
    pub fanout_duration: Histogram,
    pub fanout_keys: Histogram,
    pub upstream_connections: IntGaugeVec,
    pub pinned_refused: IntCounter,
    pub upstream_up: IntGaugeVec,
    pub upstream_reconnects: IntCounterVec,
    pub feed_connected: IntGaugeVec,
    pub feed_gaps: IntCounterVec,
    pub config_reloads: IntCounterVec,
}

impl Rare {
    /// Makes them all and adds them to the registry.
    pub fn register(registry: &Registry) -> prometheus::Result<Rare> {
        build_info(registry)?;
        let config_reloads = counters(
            registry,
            "rescind_config_reloads_total",
            "Reloads of the configuration (SIGHUP). error: the new file was wrong and the old rules stay.",
            "result",
        )?;
        for result in ["ok", "error"] {
            config_reloads.with_label_values(&[result]);
        }
        let invalidations = counters(
            registry,
            "rescind_invalidations_total",
            "Invalidations, by the trigger that caused them.",
            "trigger",
        )?;
        let (fanout_duration, fanout_keys) = fanout(registry)?;
        Ok(Rare {
            families: FamilyEvents::new(registry)?,
            invalidations,
            fanout_duration,
            fanout_keys,
            config_reloads,
            upstream_connections: gauges(
                registry,
                "rescind_upstream_connections",
                "Connections to Redis that are open now. shared: carries many clients; \
                 pinned: belongs to one client (transactions, subscriptions, blocking commands); \
                 control: the proxy's own.",
                "mode",
            )?,
            pinned_refused: register(
                registry,
                IntCounter::new(
                    "rescind_upstream_pinned_refused_total",
                    "Clients that needed a connection to Redis of their own and were disconnected, because there \
                     were upstream.max_pinned already.",
                )?,
            )?,
            upstream_up: gauges(
                registry,
                "rescind_upstream_up",
                "1 while this Redis can be reached, else 0.",
                "node",
            )?,
            upstream_reconnects: counters(
                registry,
                "rescind_upstream_reconnects_total",
                "Connections to this Redis that were lost and made again.",
                "node",
            )?,
            feed_connected: gauges(
                registry,
                "rescind_feed_connected",
                "1 while this Redis reports its key changes to the proxy, else 0.",
                "node",
            )?,
            feed_gaps: counters(
                registry,
                "rescind_feed_gaps_total",
                "Times that reports of key changes may have been missed and the index was rebuilt.",
                "node",
            )?,
        })
    }
}

/// Adds a metric to the registry and hands it back.
pub(super) fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), &[label])?)
}

fn fanout(registry: &Registry) -> prometheus::Result<(Histogram, Histogram)> {
    let duration = HistogramOpts::new(
        "rescind_fanout_duration_seconds",
        "Time that an invalidation took, in seconds: until the journal had it, and from its trigger until every dependent \
         key was deleted. The writer waits for it.",
    );
    let keys = HistogramOpts::new("rescind_fanout_keys", "Keys that one invalidation deleted.");
    Ok((
        register(registry, Histogram::with_opts(duration.buckets(FANOUT_SECONDS.to_vec()))?)?,
        register(registry, Histogram::with_opts(keys.buckets(FANOUT_KEYS.to_vec()))?)?,
    ))
}

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let opts = Opts::new("rescind_build_info", "Always 1; the label says which version runs.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    register(registry, IntGauge::with_opts(opts)?)?.set(1);
    Ok(())
}
