//! What the proxy tells about itself: the JSON of `/api/status` and `/api/log`.

use std::collections::BTreeMap;

use serde::Serialize;

/// The state of the proxy.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// Since the process started.
    pub uptime_seconds: u64,
    /// Whether invalidations are only reported, not carried out.
    pub dry_run: bool,
    /// Clients connected now.
    pub clients: u64,
    /// The Redis behind the proxy.
    pub upstream: Upstream,
    /// The stream of key changes from Redis.
    pub feed: Feed,
    /// What depends on what.
    pub index: Index,
    /// The durable log of invalidations.
    pub journal: Journal,
    /// In the order of the configuration.
    pub families: Vec<Family>,
}

/// The Redis behind the proxy: one node, or several in a cluster.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Upstream {
    /// Open now, to all nodes together.
    pub connections: Connections,
    /// Every node that is known.
    pub nodes: Vec<Node>,
}

/// Connections to Redis by use.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Connections {
    /// Each carries many clients.
    pub shared: u64,
    /// Each belongs to one client at a time.
    pub pinned: u64,
}

/// One Redis.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Node {
    /// Its address.
    pub node: String,
    /// Whether it can be reached.
    pub up: bool,
    /// Connections lost and made again.
    pub reconnects: u64,
}

/// How the proxy learns of key changes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Feed {
    /// In a few words, such as `keyspace events`.
    pub mode: String,
    /// One per Redis.
    pub nodes: Vec<FeedNode>,
}

/// The feed of one Redis.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FeedNode {
    /// Its address.
    pub node: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Times that events may have been missed.
    pub gaps: u64,
}

/// The index of tags and keys.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Index {
    /// Keys that depend on some tag.
    pub keys: u64,
    /// Tags that some key depends on.
    pub tags: u64,
    /// Memory, in bytes.
    pub bytes: u64,
    /// Whether every dependent is known; if not, fan-outs scan Redis as well.
    pub complete: bool,
}

/// The journal of invalidations.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Journal {
    /// Invalidations whose keys are not all deleted.
    pub pending: u64,
}

/// The counters of one family since the process started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Family {
    /// As configured.
    pub name: String,
    /// Keys read and found.
    pub hits: u64,
    /// Keys read and not found.
    pub misses: u64,
    /// From [`hit_ratio`]: 0 to 1, or nothing while nothing was read.
    pub hit_ratio: Option<f64>,
    /// Keys evicted by Redis.
    pub evictions: u64,
    /// Keys that expired.
    pub expirations: u64,
    /// Keys deleted by fan-outs.
    pub invalidated_keys: u64,
}

/// The share of reads that found their key, 0 to 1; nothing if there were none.
pub fn hit_ratio(hits: u64, misses: u64) -> Option<f64> {
    let reads = hits.saturating_add(misses);
    (reads > 0).then(|| hits as f64 / reads as f64)
}

/// One invalidation: when, why, what and how long.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogEntry {
    /// When it began, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who caused it, such as an address or a client name.
    pub client: String,
    /// What caused it, as in the label of `rescind_invalidations_total`.
    pub trigger: String,
    /// The tags that were invalidated; bytes that are not UTF-8 are replaced.
    pub tags: Vec<String>,
    /// Keys deleted.
    pub keys: u64,
    /// The same by family.
    pub families: BTreeMap<String, u64>,
    /// What the writer waited for, the trigger itself left out, in microseconds.
    pub duration_us: u64,
    /// What it was spent on, in microseconds: `journal`, `barrier`, `delete`.
    pub phases_us: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::hit_ratio;

    #[test]
    fn the_hit_ratio_of_nothing_is_nothing() {
        assert_eq!(hit_ratio(0, 0), None);
        assert_eq!(hit_ratio(3, 1), Some(0.75));
        assert_eq!(hit_ratio(0, 1), Some(0.0));
    }
}
