//! What the feed asks Redis to watch, and what a `SCAN` asks Redis to look for.

use super::automaton::common_prefix;
use super::pattern::escape_glob;
use super::{KeyPattern, Rules, TriggerId};

/// Literal prefixes of the trigger patterns, for `CLIENT TRACKING ON BCAST PREFIX …`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackingPrefixes {
    /// The prefixes to watch; none begins another.
    pub prefixes: Vec<Vec<u8>>,
    /// The trigger patterns that cannot be watched: writes past the proxy do not fire them.
    pub left_out: Vec<LeftOut>,
}

/// A trigger pattern whose literal prefix also begins cached keys, so that Redis would push every cache write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The trigger.
    pub trigger: TriggerId,
    /// The literal prefix of its pattern (empty: it begins with a wildcard).
    pub prefix: Vec<u8>,
}

/// Drops every prefix that another one begins: Redis refuses prefixes that overlap.
pub fn without_overlaps(mut prefixes: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    prefixes.sort_unstable();
    // In this order a prefix stands right before all that it begins.
    prefixes.dedup_by(|later, kept| later.starts_with(kept));
    prefixes
}

impl Rules {
    /// What to watch for writes to trigger keys made past the proxy.
    ///
    /// A literal prefix is left out when it is empty or begins the literal prefix of a pattern in `[tags]` or a
    /// `[[family]]`. Who adds prefixes of his own puts them all through [`without_overlaps`].
    pub fn tracking_prefixes(&self) -> TrackingPrefixes {
        let cached: Vec<&[u8]> =
            self.patterns.iter().filter(|key| key.cached).map(|key| key.pattern.literal_prefix()).collect();
        let mut tracking = TrackingPrefixes::default();
        for key in &self.patterns {
            let prefix = key.pattern.literal_prefix();
            let usable = !prefix.is_empty() && !cached.iter().any(|begun| begun.starts_with(prefix));
            if usable && !key.fires.is_empty() {
                tracking.prefixes.push(prefix.to_vec());
            } else {
                let left_out = |trigger| LeftOut { trigger, prefix: prefix.to_vec() };
                tracking.left_out.extend(key.fires.iter().map(|firing| left_out(firing.trigger)));
            }
        }
        tracking.prefixes = without_overlaps(tracking.prefixes);
        tracking.left_out.sort_by(|a, b| (a.trigger, &a.prefix).cmp(&(b.trigger, &b.prefix)));
        tracking.left_out.dedup();
        tracking
    }

    /// Globs for `SCAN MATCH` that together find every key with tags from rules.
    pub fn scan_patterns(&self) -> Vec<Vec<u8>> {
        let mut globs: Vec<_> = self.tagged().map(|key| key.pattern.to_glob()).collect();
        globs.sort_unstable();
        globs.dedup();
        globs
    }

    /// One glob that finds every key with tags from rules, for a single `SCAN`: what all their patterns begin with,
    /// and a star. `None` if no pattern carries tags.
    pub fn scan_glob(&self) -> Option<Vec<u8>> {
        let common = common_prefix(self.tagged().map(|key| key.pattern.literal_prefix()))?;
        let mut glob = Vec::with_capacity(common.len() + 1);
        escape_glob(common, &mut glob);
        glob.push(b'*');
        Some(glob)
    }

    fn tagged(&self) -> impl Iterator<Item = &KeyPattern> {
        self.patterns.iter().filter(|key| !key.tags.is_empty())
    }
}
