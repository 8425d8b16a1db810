//! Is Redis still the one that it was? One that restarted from an old snapshot, or a replica in its place, holds values
//! that were deleted since. What was invalidated lately is invalidated again before it is served.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Engine;
use super::announce;
use super::wire::{self, Credentials, Wire};
use crate::accounting::Firing;
use crate::doubt::Scope;
use crate::lease::Moment;
use crate::process::Process;
use crate::rules::Tag;

/// What the journal has behind the name of a Redis that has had explicit labels lately, and of one that other proxies served as
/// well: one with old data may have those labels still.
const WITH_LABELS: &str = " labels";
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
    /// The run id of a master whose data were never another's: it gives itself a new replication id when its first replica
    /// comes.
    origin: Option<String>,
    pub counts: Counts,
}

/// How often each command was called, as Redis counts: what was done that shows in no event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    run: String,
    /// Calls, and the microseconds that they took, by a clock that may be set.
    commands: HashMap<String, (u64, i64)>,
}

/// How the question is counted.
const ASKED: &str = "info";
/// What makes Redis count anew; counts itself afterwards.
const RESET: &str = "config|resetstat";
/// May have switched events off and on again.
const SETTING: &str = "config|set";
const SWAP: &str = "swapdb";
/// May load other data.
const DEBUG: &str = "debug";

impl Counts {
    /// What `INFO` says: `cmdstat_swapdb:calls=2,usec=31,…`
    fn of(run: &str, info: &str) -> Self {
        let read = |line: &str| {
            let (command, counts) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let (calls, times) = counts.split_once(",usec=")?;
            let time = times.split(',').next()?;
            Some((command.to_owned(), (calls.parse().ok()?, time.parse().ok()?)))
        };
        Self { run: run.to_owned(), commands: info.lines().filter_map(read).collect() }
    }

    fn calls(&self, command: &str) -> u64 {
        self.commands.get(command).map_or(0, |(calls, _)| *calls)
    }

    /// The proxy itself has called `CONFIG SET` so often since.
    pub fn expect_settings(&mut self, calls: u64) {
        if calls > 0 {
            self.commands.entry(SETTING.to_owned()).or_default().0 += calls;
        }
    }

    /// Whether Redis has begun to count anew in between. A reset counts itself afterwards: once, with the microseconds that it
    /// took. Whatever else is counted grows, at least the question by which the counts `before` were asked for.
    fn began_anew_since(&self, before: &Counts) -> bool {
        let reset = self.commands.get(RESET);
        self.run != before.run
            || reset != before.commands.get(RESET)
            || before.commands.iter().any(|(command, (calls, _))| self.calls(command) < *calls)
            || (reset.is_some() && self.calls(ASKED) == before.calls(ASKED))
    }

    /// How often a command was called in between, as far as it is still counted.
    fn calls_since(&self, command: &str, before: &Counts) -> u64 {
        let calls = self.calls(command);
        if self.began_anew_since(before) { calls } else { calls - before.calls(command) }
    }

    /// Whether databases may have been swapped in between.
    pub fn may_hide_a_swap(&self, before: &Counts) -> bool {
        self.began_anew_since(before) || self.calls_since(SWAP, before) > 0
    }

    /// What was done in between that may have made the index incomplete, if something was.
    fn reason_since(&self, before: &Counts) -> Option<&'static str> {
        if self.run != before.run {
            // Of another Redis all that was invalidated lately is invalidated again.
            return None;
        }
        if self.began_anew_since(before) {
            return Some("CONFIG RESETSTAT");
        }
        let reasons = [(SWAP, "SWAPDB"), (SETTING, "CONFIG SET")];
        let reason = reasons.into_iter().find(|(command, _)| self.calls_since(command, before) > 0);
        reason.map(|(_, reason)| reason)
    }
}

impl Identity {
    /// As the journal keeps it.
    pub fn named(name: &str) -> Self {
        let name = name.strip_suffix(WITH_OTHERS).unwrap_or(name);
        Self { name: name.strip_suffix(WITH_LABELS).unwrap_or(name).to_owned(), ..Self::default() }
    }

    /// What `INFO` says.
    fn of(info: &str) -> Self {
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim()
        };
        let (run, role) = (value("run_id"), value("role"));
        let second = value("master_replid2");
        let is_origin = role == "master" && !second.is_empty() && second.bytes().all(|byte| byte == b'0');
        Self {
            name: format!("{run} {} {role}", value("master_replid")),
            origin: is_origin.then(|| run.to_owned()),
            counts: Counts::of(run, info),
        }
    }

    /// What tells these data from any others, to proxies that have asked at about the same time.
    fn data(&self) -> Vec<u8> {
        format!("{} {}", self.name, self.counts.calls(DEBUG)).into_bytes()
    }

    /// Whether the data may have been replaced in between.
    fn is_another(&self, before: &Identity) -> bool {
        let is_same = self.name == before.name || (self.origin.is_some() && self.origin == before.origin);
        !is_same || self.counts.calls_since(DEBUG, &before.counts) > 0
    }
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

/// What Redis has counted; `None`: it may not be asked.
pub(super) async fn counts(engine: &Engine) -> Option<Counts> {
    ask(engine).await.ok().map(|identity| identity.counts)
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
                again(&engine, "Redis may be another one", None).await;
            }
            Err(error) => {
                tracing::debug!(%error, "Redis does not say who it is");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        if engine.process.trust_redis(doubts) {
            engine.note_missed();
            note(&engine);
            return;
        }
    }
}

/// These were the counts at `asked`. Until what shows in no event was noticed, fan-outs may have deleted in the wrong database, or
/// missed keys of which no event told. What was done right before Redis began to count anew nobody knows.
pub(super) fn counted(engine: &Rc<Engine>, counts: &Counts, asked: Moment) {
    let Some((before, since)) = engine.feed.has_counted(counts.clone(), asked) else { return };
    let Some(why) = counts.reason_since(&before) else { return };
    engine.rebuild(why);
    let tags: Vec<Tag> = engine.process.epochs.since(since).into_iter().map(|(tag, ..)| tag).collect();
    if !tags.is_empty() {
        let firing = Firing::again(engine.rules_since(since), why.to_owned());
        drop(engine.process.fanout.repeat(firing, Scope::Tags(tags), None));
    }
}

/// Whether this is not the Redis that was seen last. If it is, this is what it is known by from now on.
pub(super) fn is_another(engine: &Engine, identity: &Identity) -> bool {
    let another = engine.known.borrow().as_ref().is_some_and(|before| identity.is_another(before));
    if !another && !engine.process.compares() {
        engine.known.replace(Some(identity.clone()));
        note(engine);
        engine.has_repeated(&identity.data());
    }
    another
}

/// Redis is this one now.
async fn settle(engine: &Rc<Engine>, identity: Identity) {
    let data = identity.data();
    let before = engine.known.replace(Some(identity.clone()));
    if before.is_some_and(|before| identity.is_another(&before)) {
        tracing::warn!(now = %identity.name, "Redis is not the one that it was: what was invalidated lately is invalidated again");
        engine.process.doubt_redis();
        engine.process.lost_epochs(engine.moment());
        engine.rebuild("Redis is another one");
        again(engine, "Redis came back with other data", Some(&data)).await;
    }
    engine.has_repeated(&data);
}

/// The journal is to know which Redis this is, and whether there have been explicit labels and other proxies lately. Not before it
/// is trusted: a process that starts after a crash would find the same Redis, and repeat nothing.
pub(super) fn note(engine: &Engine) {
    let process = &engine.process;
    if process.compares() {
        return;
    }
    if let Some(known) = &*engine.known.borrow() {
        let has_labels = process.has_left_labels();
        let labels = if has_labels { WITH_LABELS } else { "" };
        let has_others = !process.is_alone() || process.journal.has_heard();
        let others = if has_others { WITH_OTHERS } else { "" };
        process.journal.saw(format!("{}{labels}{others}", known.name));
    }
}

/// Whether the process before this one knew of explicit labels, which the index learns only from Redis.
pub fn had_labels(noted: &str) -> bool {
    noted.strip_suffix(WITH_OTHERS).unwrap_or(noted).ends_with(WITH_LABELS)
}

/// Whether the process before this one was not alone lately: what others have invalidated its journal does not know.
pub fn had_others(noted: &str) -> bool {
    noted.ends_with(WITH_OTHERS)
}

/// The run id in what the journal has noted.
pub fn run_of(noted: &str) -> &str {
    noted.split(' ').next().unwrap_or_default()
}

/// Invalidates what was invalidated lately; returns when that is done. What another proxy did last at the Redis before, and could
/// tell nobody any more, it repeats itself, and says so; of one that does not say so within a moment nobody knows what it was.
async fn again(engine: &Rc<Engine>, why: &str, data: Option<&[u8]>) {
    let (others, scope) = (engine.others.all(), engine.process.journal.recent());
    let is_everything = scope == Scope::Everything;
    repeat(engine, why, scope).await;
    // Ahead of waiting for the others, who wait for this.
    data.into_iter().for_each(|data| engine.has_repeated(data));
    if !is_everything && !announce::have_repeated(engine, &others, data).await {
        tracing::warn!("another proxy does not say that it is done: everything is invalidated again");
        repeat(engine, why, Scope::Everything).await;
    }
}

async fn repeat(engine: &Rc<Engine>, why: &str, scope: Scope) {
    if !scope.is_empty() {
        // Its own: somebody else may find in the meantime that Redis has not changed again. Which keys had a label that is
        // invalidated only Redis may know.
        let has_labels = engine.process.may_have_had_labels();
        let doubted = if has_labels { Scope::Everything } else { scope.clone() };
        let doubt = engine.process.doubt.enter(doubted);
        let firing = Firing::again(engine.present_rules(), why.to_owned());
        let done = engine.process.fanout.repeat(firing, scope, Some(doubt));
        let _ = done.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nrun_id:abc\r\n# Replication\r\nrole:master\r\nmaster_replid:def\r\n\
                        master_replid2:0000\r\n# Commandstats\r\ncmdstat_swapdb:calls=2,usec=1\r\n\
                        cmdstat_debug:calls=1,usec=9\r\ncmdstat_config|set:calls=7,usec=9,usec_per_call=1\r\n";

    #[test]
    fn another_run_or_other_data_is_another_redis() {
        let first = Identity::of(INFO);
        assert_eq!(first.name, "abc def master");
        assert_eq!([SWAP, DEBUG, SETTING, "get"].map(|name| first.counts.calls(name)), [2, 1, 7, 0]);
        for (from, to) in [("abc", "xyz"), ("master\r", "slave\r"), ("debug:calls=1", "debug:calls=3")] {
            assert!(Identity::of(&INFO.replace(from, to)).is_another(&first), "{from}");
        }
        assert!(!Identity::of(&INFO.replace("calls=2", "calls=5")).is_another(&first));
        assert!(!first.is_another(&Identity::of(INFO)));
    }

    #[test]
    fn proxies_call_data_the_same_until_others_may_have_been_loaded() {
        let first = Identity::of(INFO).data();
        assert_eq!(first, Identity::of(&INFO.replace("calls=2", "calls=5")).data());
        for (from, to) in [("abc", "xyz"), ("def", "xyz"), ("debug:calls=1", "debug:calls=2")] {
            assert_ne!(first, Identity::of(&INFO.replace(from, to)).data(), "{from}");
        }
    }

    /// Calls of each command, the reset's with its microseconds.
    fn counts(info: u64, swaps: u64, reset: Option<u64>) -> Counts {
        let reset = reset.map_or(String::new(), |usec| format!("cmdstat_{RESET}:calls=1,usec={usec}\r\n"));
        let swaps = format!("cmdstat_{SWAP}:calls={swaps},usec=7\r\n");
        Counts::of("abc", &format!("cmdstat_info:calls={info},usec=5\r\n{swaps}{reset}"))
    }

    #[test]
    fn what_shows_in_no_event_is_told_by_counts() {
        let before = counts(5, 1, Some(30));
        assert_eq!(counts(6, 1, Some(30)).reason_since(&before), None);
        assert_eq!(counts(6, 2, Some(30)).reason_since(&before), Some("SWAPDB"));
        assert!(counts(6, 2, Some(30)).may_hide_a_swap(&before));
        assert!(!counts(6, 1, Some(30)).may_hide_a_swap(&before));
        let mut expected = before.clone();
        expected.expect_settings(1);
        let mut now = counts(6, 1, Some(30));
        now.expect_settings(1);
        assert_eq!(now.reason_since(&before), Some("CONFIG SET"));
        assert_eq!(now.reason_since(&expected), None);
    }

    #[test]
    fn counts_that_begin_anew_are_noticed_although_they_look_as_before() {
        let anew = Some("CONFIG RESETSTAT");
        assert_eq!(counts(6, 1, Some(30)).reason_since(&counts(5, 1, None)), anew, "the first reset");
        let before = counts(5, 1, Some(30));
        assert_eq!(counts(6, 1, Some(31)).reason_since(&before), anew, "it took another time");
        assert_eq!(counts(6, 0, Some(30)).reason_since(&before), anew, "less swaps");
        assert_eq!(counts(4, 1, Some(30)).reason_since(&before), anew, "less questions");
        assert_eq!(counts(5, 1, Some(30)).reason_since(&before), anew, "not even this proxy's question");
        assert!(counts(5, 1, Some(30)).may_hide_a_swap(&before));
    }

    #[test]
    fn a_redis_that_counts_nothing_or_is_another_one_has_not_begun_anew() {
        assert_eq!(Counts::default().reason_since(&Counts::default()), None);
        let no_info = Counts::of("abc", "cmdstat_get:calls=5,usec=1\r\n");
        assert_eq!(no_info.reason_since(&no_info), None);
        let other = Counts { run: "xyz".to_owned(), ..counts(5, 1, Some(30)) };
        assert_eq!(counts(1, 1, None).reason_since(&other), None);
        assert!(counts(9, 1, Some(30)).may_hide_a_swap(&other));
    }

    #[test]
    fn what_the_journal_notes_besides_is_no_part_of_the_name() {
        for (noted, labels, others) in [
            ("abc def master", false, false),
            ("abc def master labels", true, false),
            ("abc def master others", false, true),
            ("abc def master labels others", true, true),
        ] {
            assert_eq!(Identity::named(noted).name, "abc def master", "{noted}");
            assert_eq!(
                (had_labels(noted), had_others(noted), run_of(noted)),
                (labels, others, "abc"),
                "{noted}"
            );
        }
    }

    #[test]
    fn what_was_loaded_is_noticed_although_counts_begin_anew() {
        let first = Identity::of(&format!("{INFO}cmdstat_{RESET}:calls=1,usec=30\r\n"));
        let again = format!("{INFO}cmdstat_{RESET}:calls=1,usec=31\r\n");
        assert!(Identity::of(&again).is_another(&first), "reset and called since");
        let none = again.replace("cmdstat_debug:calls=1,usec=9\r\n", "");
        assert!(!Identity::of(&none).is_another(&first));
    }

    #[test]
    fn a_master_that_gets_its_first_replica_is_the_same() {
        let first = Identity::of(INFO);
        let other_id = INFO.replace("def", "xyz");
        assert!(!Identity::of(&other_id).is_another(&first));
        assert!(
            Identity::of(&other_id.replace("0000", "00d0")).is_another(&first),
            "it was a replica in between"
        );
        assert!(Identity::of(&other_id).is_another(&Identity::of(&INFO.replace("0000", "00d0"))));
        assert!(
            Identity::of(&other_id).is_another(&Identity::named(&first.name)),
            "nobody has looked in between"
        );
        let silent = other_id.replace("master_replid2:0000\r\n", "");
        assert!(Identity::of(&silent).is_another(&first));
    }
}
