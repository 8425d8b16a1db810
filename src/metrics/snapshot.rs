//! The metrics as plain values, for the status page.

use std::collections::BTreeMap;

use super::{ConnectionMode, Metrics, by_label};

/// What the metrics say now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// In the order of the configuration, `other` last.
    pub families: Vec<FamilySnapshot>,
    /// Clients connected now.
    pub clients: u64,
    /// Shared upstream connections open now.
    pub shared_connections: u64,
    /// Pinned upstream connections open now.
    pub pinned_connections: u64,
    /// Redis nodes, by name.
    pub nodes: Vec<NodeSnapshot>,
    /// Feeds of the nodes, by name.
    pub feeds: Vec<FeedSnapshot>,
    /// Keys in the index.
    pub index_keys: u64,
    /// Memory of the index, in bytes.
    pub index_bytes: u64,
    /// Whether the index is known to be complete.
    pub index_complete: bool,
    /// Invalidations whose fan-out has not completed.
    pub journal_pending: u64,
}

/// The counters of one family, since the start of the process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FamilySnapshot {
    /// As configured.
    pub name: String,
    /// Keys read and found.
    pub hits: u64,
    /// Keys read and not found.
    pub misses: u64,
    /// Keys evicted by Redis.
    pub evictions: u64,
    /// Keys that expired.
    pub expirations: u64,
    /// Keys deleted by fan-outs.
    pub invalidated_keys: u64,
    /// Fills undone because they were stale.
    pub stale_fills: u64,
}

/// One Redis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSnapshot {
    /// Its address.
    pub node: String,
    /// Whether it can be reached.
    pub up: bool,
    /// Connections lost and made again.
    pub reconnects: u64,
}

/// The feed of one Redis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedSnapshot {
    /// Its address.
    pub node: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Times that events may have been missed.
    pub gaps: u64,
}

/// Reads everything once. Counters go on meanwhile, so values may be apart by what happened in between.
pub(super) fn take(metrics: &Metrics) -> Snapshot {
    let rare = &metrics.rare;
    let reconnects = by_label(&rare.upstream_reconnects);
    let gaps = by_label(&rare.feed_gaps);
    let nodes = by_label(&rare.upstream_up).into_iter().map(|(node, up)| NodeSnapshot {
        up: up > 0,
        reconnects: value(&reconnects, &node),
        node,
    });
    let feeds = by_label(&rare.feed_connected).into_iter().map(|(node, connected)| FeedSnapshot {
        connected: connected > 0,
        gaps: value(&gaps, &node),
        node,
    });
    Snapshot {
        families: families(metrics),
        clients: unsigned(metrics.clients.get()),
        shared_connections: unsigned(metrics.upstream_connections(ConnectionMode::Shared).get()),
        pinned_connections: unsigned(metrics.upstream_connections(ConnectionMode::Pinned).get()),
        nodes: nodes.collect(),
        feeds: feeds.collect(),
        index_keys: unsigned(metrics.index_keys.get()),
        index_bytes: unsigned(metrics.index_bytes.get()),
        index_complete: metrics.index_complete.get() > 0,
        journal_pending: unsigned(metrics.journal_pending.get()),
    }
}

fn families(metrics: &Metrics) -> Vec<FamilySnapshot> {
    let events = &metrics.rare.families;
    let evictions = by_label(&events.evictions);
    let expirations = by_label(&events.expirations);
    let invalidated = by_label(&events.invalidated_keys);
    let stale = by_label(&events.stale_fills);
    let reads = metrics.shared.reads();
    let of = |name: String| {
        let (hits, misses) = reads.get(&name).copied().unwrap_or_default();
        FamilySnapshot {
            hits,
            misses,
            evictions: value(&evictions, &name),
            expirations: value(&expirations, &name),
            invalidated_keys: value(&invalidated, &name),
            stale_fills: value(&stale, &name),
            name,
        }
    };
    metrics.shared.family_names().into_iter().map(of).collect()
}

fn value(values: &BTreeMap<String, u64>, label: &str) -> u64 {
    values.get(label).copied().unwrap_or(0)
}

/// A gauge that threads count up and down can pass below zero for an instant.
fn unsigned(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or(0)
}
