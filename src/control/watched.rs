//! What Redis is asked to report: which events are set to be sent, and what of them the feed subscribes to.

use redis_protocol::resp3::types::BytesFrame;

use super::wire::{Wire, array_of, bytes_of, into_result, is_there};
use super::{Engine, gc};
use crate::news::LABEL_SETS;
use crate::rules::{Rules, without_overlaps};

/// What `notify-keyspace-events` must contain: keyevent channels, new keys, expired and evicted ones.
const FLAGS: &str = "Enxe";

/// Whether Redis is set to send the events that are needed. `None`: it may not be asked, or does not say.
pub(super) async fn events_configured(engine: &Engine) -> Option<bool> {
    let frame = engine.scans.one(0, ["CONFIG", "GET", "notify-keyspace-events"]).await.ok()?;
    is_enough(&value_of(frame))
}

/// Whether these flags are what is needed. `None`: beside `A` Redis does not tell of `n`, see `keyspaceEventsFlagsToString` in its
/// `notify.c`.
fn is_enough(current: &str) -> Option<bool> {
    let missing = &wanted_flags(current)[current.len()..];
    match missing {
        "" => Some(true),
        "n" if current.contains('A') => None,
        _ => Some(false),
    }
}

/// The value in the reply to CONFIG GET of one setting.
fn value_of(frame: BytesFrame) -> String {
    let value = match frame {
        BytesFrame::Map { data, .. } => data.values().next().and_then(bytes_of).cloned().unwrap_or_default(),
        other => array_of(other).get(1).and_then(bytes_of).cloned().unwrap_or_default(),
    };
    String::from_utf8_lossy(&value).into_owned()
}

/// Adds the flags that are needed to those that are set. Given back: how often it has called `CONFIG SET`.
pub(super) async fn enable_events(engine: &Engine, wire: &mut Wire) -> Result<u64, String> {
    let current = value_of(wire.call(&["CONFIG", "GET", "notify-keyspace-events"]).await?);
    let is_there = match is_enough(&current) {
        Some(enough) => enough,
        None => sings(engine, wire).await?,
    };
    if is_there {
        return Ok(0);
    }
    let mut wanted = wanted_flags(&current);
    // What of these is set Redis 8.2 does not show beside `A` either; older ones do not know them.
    let kept = format!("{wanted}oc");
    let set = ["CONFIG", "SET", "notify-keyspace-events"];
    let hides = current.contains('A');
    let mut calls = 1;
    if hides && wire.call(&[set.as_slice(), &[&kept]].concat()).await.is_ok() {
        wanted = kept;
    } else {
        calls += u64::from(hides);
        wire.call(&[set.as_slice(), &[&wanted]].concat()).await?;
    }
    tracing::info!(before = current, now = wanted, "notify-keyspace-events was extended");
    Ok(calls)
}

/// Whether the event of a key that is made for this comes on the feed that is being set up.
async fn sings(engine: &Engine, wire: &mut Wire) -> Result<bool, String> {
    if let Err(error) = gc::flash(engine, engine.first_database(), &gc::canary_named("feed")).await {
        tracing::debug!(%error, "the canary key cannot be written");
        return Ok(false);
    }
    wire.queue(&["PING"]);
    let mut sung = false;
    loop {
        match wire.next().await? {
            BytesFrame::Push { data, .. } => {
                sung |= data.get(3).and_then(bytes_of).is_some_and(|key| key.starts_with(gc::CANARY));
            }
            reply => return is_there(into_result(reply).map(drop)).map(|()| sung),
        }
    }
}

/// `current` with what is missing of [`FLAGS`]; `A` stands for expired and evicted among others.
fn wanted_flags(current: &str) -> String {
    let covered = |flag| current.contains(flag) || (current.contains('A') && matches!(flag, 'x' | 'e'));
    let missing: String = FLAGS.chars().filter(|flag| !covered(*flag)).collect();
    format!("{current}{missing}")
}

/// What Redis has been asked to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    /// Databases whose events are subscribed to; `*`: all.
    pub databases: Vec<String>,
    /// Prefixes of tracked keys.
    pub prefixes: Vec<Vec<u8>>,
}

impl Watched {
    /// What these rules need.
    pub fn by(rules: &Rules) -> Self {
        let databases = match rules.databases() {
            Some(databases) => databases.iter().map(u32::to_string).collect(),
            None => vec!["*".to_owned()],
        };
        let mut prefixes = rules.tracking_prefixes().prefixes;
        prefixes.push(LABEL_SETS.to_vec());
        Self { databases, prefixes: without_overlaps(prefixes) }
    }

    /// What `wanted` needs besides. `None`: it cannot be added, because it would overlap with what there is.
    pub fn missing(&self, wanted: &Watched) -> Option<Watched> {
        let all = |databases: &[String]| databases.iter().any(|db| db == "*");
        if all(&wanted.databases) && !all(&self.databases) {
            return None;
        }
        let overlaps = |new: &Vec<u8>| self.prefixes.iter().any(|old| old.starts_with(new) && old != new);
        if wanted.prefixes.iter().any(overlaps) {
            return None;
        }
        let known_db = |db: &&String| !all(&self.databases) && !self.databases.contains(db);
        let known_prefix = |new: &&Vec<u8>| !self.prefixes.iter().any(|old| new.starts_with(old));
        Some(Watched {
            databases: wanted.databases.iter().filter(known_db).cloned().collect(),
            prefixes: wanted.prefixes.iter().filter(known_prefix).cloned().collect(),
        })
    }

    pub fn subscription(&self) -> Vec<String> {
        let events =
            |db: &String| ["new", "expired", "evicted"].map(|event| format!("__keyevent@{db}__:{event}"));
        std::iter::once("PSUBSCRIBE".to_owned()).chain(self.databases.iter().flat_map(events)).collect()
    }

    pub fn tracking(&self) -> Vec<Vec<u8>> {
        let head = ["CLIENT", "TRACKING", "ON", "BCAST"].map(Into::into);
        let prefixes = self.prefixes.iter().flat_map(|prefix| [b"PREFIX".to_vec(), prefix.clone()]);
        head.into_iter().chain(prefixes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_never_removed() {
        assert_eq!(wanted_flags(""), "Enxe");
        assert_eq!(wanted_flags("KA"), "KAEn");
        assert_eq!(wanted_flags("AKE"), "AKEn");
        assert_eq!(wanted_flags("xeEn"), "xeEn");
        assert_eq!(wanted_flags("Kg$"), "Kg$Enxe");
    }

    #[test]
    fn what_redis_does_not_show_is_not_taken_for_missing() {
        for (current, enough) in [("AKE", None), ("AE", None), ("AKEn", Some(true)), ("Enxe", Some(true))] {
            assert_eq!(is_enough(current), enough, "{current}");
        }
        for current in ["", "AK", "A", "KEg$", "nE"] {
            assert_eq!(is_enough(current), Some(false), "{current}");
        }
    }

    #[test]
    fn more_is_watched_without_a_new_connection_where_nothing_overlaps() {
        let watched = |databases: &[&str], prefixes: &[&str]| Watched {
            databases: databases.iter().map(|db| (*db).to_owned()).collect(),
            prefixes: prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect(),
        };
        let now = watched(&["1"], &["rescind:", "m:"]);
        assert_eq!(now.missing(&watched(&["1", "2"], &["m:x:", "t:"])), Some(watched(&["2"], &["t:"])));
        assert_eq!(now.missing(&watched(&["*"], &["m:"])), None);
        assert_eq!(now.missing(&watched(&["1"], &["m"])), None);
        assert_eq!(watched(&["*"], &["m:"]).missing(&watched(&["3"], &[])), Some(watched(&[], &[])));
    }
}
