//! Is Redis still the one that it was? One that restarted from an old snapshot, or a replica in its place, holds values
//! that were deleted since. What was invalidated lately is invalidated again before it is served.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Engine;
use super::wire::{self, Credentials, Wire};
use crate::accounting::Firing;
use crate::doubt::Scope;
use crate::process::Process;
use crate::rules::Tag;

/// What the journal has behind the name of a Redis that other proxies served as well.
const WITH_OTHERS: &str = " others";
/// The pause before Redis is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked where new connections lead, at most, and how long that may take.
const LOOKS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// What Redis is asked to find out who it is, and what was done to it.
const QUESTION: [&str; 4] = ["INFO", "server", "replication", "commandstats"];

/// What tells one life of one Redis from another, and one load of its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// Run id, replication id and role.
    name: String,
    /// How often `DEBUG` was called, which may load other data: known to grow only.
    reloads: u64,
    /// How often `SWAPDB` was called, likewise.
    pub swaps: u64,
}

impl Identity {
    /// As the journal keeps it.
    pub fn named(name: &str) -> Self {
        let name = name.strip_suffix(WITH_OTHERS).unwrap_or(name).to_owned();
        Self { name, ..Self::default() }
    }

    /// What `INFO` says.
    fn of(info: &str) -> Self {
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim()
        };
        let name = format!("{} {} {}", value("run_id"), value("master_replid"), value("role"));
        Self { name, reloads: calls(info, "debug"), swaps: calls(info, "swapdb") }
    }

    /// Whether the data may have been replaced in between.
    fn is_another(&self, before: &Identity) -> bool {
        self.name != before.name || self.reloads > before.reloads
    }
}

/// `cmdstat_swapdb:calls=2,usec=…`
fn calls(info: &str, command: &str) -> u64 {
    let prefix = format!("cmdstat_{command}:calls=");
    let calls = |line: &str| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok();
    info.lines().find_map(calls).unwrap_or(0)
}

/// A connection, and where it leads.
pub(super) struct Dialled {
    pub wire: Wire,
    pub era: u64,
    /// What Redis is, if it may be asked.
    pub identity: Option<Identity>,
}

/// Connects to the Redis in use. New connections may lead to another one: then that is in use.
pub(super) async fn dial(process: &Process, credentials: &Credentials) -> Result<Dialled, String> {
    let created = Instant::now();
    let mut wire = Wire::connect(&process.upstream, credentials).await?;
    let info = wire.call(&QUESTION).await.ok().map(|info| wire::text_of(&info));
    let era = process.leads_to(info.as_deref().map(str::as_bytes), created);
    let identity = info.as_deref().map(Identity::of);
    era.map(|era| Dialled { wire, era, identity }).ok_or_else(|| "it is not the Redis in use".to_owned())
}

/// Looks where a new connection leads.
pub(super) async fn look(engine: Rc<Engine>) {
    if let Some(last) = engine.looked.get() {
        tokio::time::sleep_until((last + LOOKS).into()).await;
    }
    engine.looked.set(Some(Instant::now()));
    engine.process.looks_for_another();
    let _ = tokio::time::timeout(PATIENCE, dial(&engine.process, &engine.credentials)).await;
}

/// Asks Redis who it is.
pub(super) async fn ask(engine: &Engine) -> Result<Identity, String> {
    let info = engine.scans.one(0, QUESTION).await?;
    Ok(Identity::of(&wire::text_of(&info)))
}

/// How often `SWAPDB` was called; `None`: it may not be asked.
pub(super) async fn swaps(engine: &Engine) -> Option<u64> {
    ask(engine).await.ok().map(|identity| identity.swaps)
}

/// Asks Redis who it is, and invalidates again if it is not the one that it was; ends when it is trusted.
pub(super) async fn compare(engine: Rc<Engine>) {
    loop {
        let doubts = engine.process.doubts_of_redis();
        match ask(&engine).await {
            Ok(identity) => settle(&engine, identity).await,
            // Nothing is known about it: it may be another one each time.
            Err(error) if error.starts_with("NOPERM") || error.starts_with("ERR unknown command") => {
                engine.process.lost_epochs(engine.moment());
                again(&engine, "Redis may be another one").await;
            }
            Err(error) => {
                tracing::debug!(%error, "Redis does not say who it is");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        if engine.process.trust_redis(doubts) {
            return;
        }
    }
}

/// `SWAPDB` shows in no event; but Redis tells how often it was called. Until that was noticed, fan-outs may have deleted in
/// the wrong database.
pub(super) fn counted_swaps(engine: &Rc<Engine>, swaps: u64) {
    let Some(before) = engine.feed.has_swapped(swaps, engine.moment()) else { return };
    engine.rebuild("SWAPDB");
    let tags: Vec<Tag> = engine.process.epochs.since(before).into_iter().map(|(tag, _)| tag).collect();
    if !tags.is_empty() {
        let firing = Firing::again("SWAPDB".to_owned());
        drop(engine.process.fanout.repeat(firing, Scope::Tags(tags), None));
    }
}

/// Whether this is not the Redis that was seen last.
pub(super) fn is_another(engine: &Engine, identity: &Identity) -> bool {
    engine.known.borrow().as_ref().is_some_and(|known| identity.is_another(known))
}

/// Redis is this one now.
async fn settle(engine: &Rc<Engine>, identity: Identity) {
    let before = engine.known.replace(Some(identity.clone()));
    let changed = before.as_ref().is_some_and(|before| identity.is_another(before));
    if changed {
        tracing::warn!(now = %identity.name, "Redis is not the one that it was: what was invalidated lately is invalidated again");
        engine.process.doubt_redis();
        engine.process.lost_epochs(engine.moment());
        engine.rebuild("Redis is another one");
        again(engine, "Redis came back with other data").await;
    }
    if before.is_none_or(|before| before.name != identity.name) {
        note(engine);
    }
}

/// The journal is to know which Redis this is, and whether there are other proxies.
pub(super) fn note(engine: &Engine) {
    if let Some(known) = &*engine.known.borrow() {
        let others = if engine.process.is_alone() { "" } else { WITH_OTHERS };
        engine.process.journal.saw(format!("{}{others}", known.name));
    }
}

/// Whether the process before this one was not alone: what others have invalidated its journal does not know.
pub fn had_others(noted: &str) -> bool {
    noted.ends_with(WITH_OTHERS)
}

/// The run id in what the journal has noted.
pub fn run_of(noted: &str) -> &str {
    noted.split(' ').next().unwrap_or_default()
}

/// Invalidates what was invalidated lately; returns when that is done.
async fn again(engine: &Rc<Engine>, why: &str) {
    let scope = engine.process.journal.recent();
    if !scope.is_empty() {
        // Its own: somebody else may find in the meantime that Redis has not changed again.
        let doubt = engine.process.doubt.enter(scope.clone());
        let done = engine.process.fanout.repeat(Firing::again(why.to_owned()), scope, Some(doubt));
        let _ = done.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nrun_id:abc\r\n# Replication\r\nrole:master\r\nmaster_replid:def\r\n\
                        # Commandstats\r\ncmdstat_swapdb:calls=2,usec=1\r\ncmdstat_debug:calls=1,usec=9\r\n";

    #[test]
    fn another_run_or_other_data_is_another_redis() {
        let first = Identity::of(INFO);
        assert_eq!((first.name.as_str(), first.reloads, first.swaps), ("abc def master", 1, 2));
        for (from, to) in [("abc", "xyz"), ("def", "xyz"), ("master", "slave"), ("calls=1", "calls=3")] {
            assert!(Identity::of(&INFO.replace(from, to)).is_another(&first), "{from}");
        }
        assert!(!Identity::of(&INFO.replace("calls=2", "calls=5")).is_another(&first));
        assert!(
            !Identity::of(&INFO.replace("calls=1", "calls=0")).is_another(&first),
            "statistics were reset"
        );
        assert!(!first.is_another(&Identity::of(INFO)));
    }
}
