//! One fan-out: barrier, collect, delete, answer.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot};

use super::announcement::{self, Announcement, Note};
use super::deletion::Deletion;
use super::link::Batch;
use super::{Engine, known, labels};
use crate::accounting::{Firing, Noted, TriggerLabel};
use crate::doubt::{Reason, Scope};
use crate::failpoint;
use crate::fanout::{Cause, LogEntry, Outstanding, Phases, Request};
use crate::journal::Wanted;
use crate::peers::Message;
use crate::relay;
use crate::rules::{Rules, Tag};

/// The pause before a fan-out that failed is tried again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tags that are looked at under one lock of the index.
const TAGS: usize = 1000;

/// How long a fan-out may take before reads of its keys are answered as misses.
const DOUBTFUL: Duration = Duration::from_secs(2);

/// What is complete in this turn.
#[derive(Default)]
pub(super) struct Answers {
    waiting: RefCell<Vec<Answer>>,
    wake: Notify,
}

struct Answer {
    done: oneshot::Sender<u64>,
    keys: u64,
    _outstanding: Outstanding,
}

impl Answers {
    fn add(&self, answer: Answer) {
        self.waiting.borrow_mut().push(answer);
        self.wake.notify_one();
    }

    /// Gives those of a turn at its end, so that a worker is woken once for all of its clients. Runs for ever.
    pub async fn give(&self) {
        loop {
            self.wake.notified().await;
            let answers = self.waiting.take();
            relay::together(|| {
                for answer in answers {
                    // The writer may be gone.
                    let _ = answer.done.send(answer.keys);
                }
            });
        }
    }
}

/// Does one fan-out; it does not end before everything is deleted.
pub(super) async fn run(engine: Rc<Engine>, mut request: Request) {
    let started = Instant::now();
    let intents: Vec<Noted> = request.fired.iter().flat_map(|firing| firing.intents.clone()).collect();
    if !request.everything && request.fired.iter().all(Firing::only_covers) {
        engine.feed.barrier(request.fired, &engine).await;
        engine.done(&intents);
        let _ = request.done.send(0);
        return;
    }
    engine.process.metrics.journal_pending.inc();
    let mut named_by = named_by(&engine, &request.fired);
    let (mut tags, names) = closure(&engine, &request, &named_by);
    let mut phases = Phases::default();
    let mut pressing = Pressing { by: started + DOUBTFUL, doubt: None };
    let intents = match intents.is_empty() {
        false => intents,
        true => {
            let noted = engine.intend(&tags, &named_by, &request);
            pressing.on(&engine, &tags, &named_by, noted).await
        }
    };
    // Whoever noted it waited for that before the trigger was sent.
    phases.journal = intents.iter().map(|noted| noted.took).fold(started.elapsed(), Duration::max);
    let noted = Instant::now();
    failpoint::pass("fan-out begun");
    if request.everything {
        let (all, rules) = engine.all_tags().await;
        tags = all;
        add_rules(&mut named_by, &rules);
    }
    let tags: Arc<[Tag]> = tags.into();
    let invalidating = labels::Invalidating::begin(&engine, &tags, &named_by);
    let mut deletion = Deletion::new(&engine, &tags, &named_by);
    {
        let own = std::mem::take(&mut request.fired);
        let work = attempts(&engine, &request.cause, &tags, own, &mut deletion, &mut phases);
        let epoch = pressing.on(&engine, &tags, &named_by, work).await;
        if let Some(connection) = request.cause.connection {
            engine.process.epochs.tell(&tags, &epoch, connection);
        }
    }
    drop((invalidating, pressing));
    let duration = phases.journal + noted.elapsed();
    phases.delete = duration.saturating_sub(phases.journal + phases.barrier);
    let (keys, families) = (deletion.total, std::mem::take(&mut deletion.by_family));
    let gone = std::mem::take(&mut deletion.gone);
    drop(deletion);
    failpoint::pass("all deleted");
    engine.done(&intents);
    failpoint::pass_after("noted as done", Duration::from_secs(1));
    engine.process.metrics.journal_pending.dec();
    engine.process.metrics.fanout(duration, keys);
    names.iter().for_each(|label| engine.process.metrics.invalidations(label));
    let entry = LogEntry {
        unix_ms: unix_ms().saturating_sub(duration.as_millis() as u64),
        cause: request.cause,
        trigger: names.join(", "),
        tags: tags.to_vec(),
        keys,
        families: families.into_iter().collect(),
        duration,
        phases,
    };
    let entry = Arc::new(entry);
    engine.process.log.push(Arc::clone(&entry));
    drop(request.doubt);
    engine.answers.add(Answer { done: request.done, keys, _outstanding: request.outstanding });
    // First it is answered, with all others that end in the same turn.
    tokio::task::yield_now().await;
    log(&entry, engine.process.dry_run);
    for entries in gone {
        entries.drop_from(&engine);
        tokio::task::yield_now().await;
    }
}

/// What a fan-out still has to do: from some time on, whatever that is, reads of its keys are answered as misses.
struct Pressing {
    by: Instant,
    doubt: Option<Reason>,
}

impl Pressing {
    async fn on<T>(
        &mut self,
        engine: &Engine,
        tags: &[Tag],
        named_by: &[Arc<Rules>],
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        if self.doubt.is_none() {
            if let Ok(done) = tokio::time::timeout_at(self.by.into(), &mut work).await {
                return done;
            }
            self.doubt = Some(engine.doubt(tags, named_by));
        }
        work.await
    }
}

/// The tags that a line of the log shows.
const MOST_SHOWN: usize = 100;

/// Shows tags as texts, and how many more there are.
struct Names<'a>(&'a [Tag]);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        list.entries(self.0.iter().take(MOST_SHOWN).map(|tag| String::from_utf8_lossy(tag)));
        if let Some(more @ 1..) = self.0.len().checked_sub(MOST_SHOWN) {
            list.entry(&format_args!("and {more} more"));
        }
        list.finish()
    }
}

fn log(entry: &LogEntry, dry_run: bool) {
    tracing::info!(
        // Quoted: names of keys and clients hold what they like.
        client = ?entry.cause.client,
        cause = ?entry.cause.what,
        trigger = ?entry.trigger,
        tags = ?Names(&entry.tags),
        keys = entry.keys,
        families = ?entry.families,
        journal_us = entry.phases.journal.as_micros() as u64,
        barrier_us = entry.phases.barrier.as_micros() as u64,
        delete_us = entry.phases.delete.as_micros() as u64,
        duration_us = entry.duration.as_micros() as u64,
        dry_run,
        "invalidated"
    );
}

/// Tries until everything is deleted; the epoch of the last attempt. Each has one of its own: set again, an earlier one would
/// take the place of another proxy's later one, and stale fills would pass that have seen it. After a failure reads of the
/// keys are answered as misses.
async fn attempts(
    engine: &Rc<Engine>,
    cause: &Cause,
    tags: &Arc<[Tag]>,
    mut own: Vec<Firing>,
    deletion: &mut Deletion<'_>,
    phases: &mut Phases,
) -> Box<[u8]> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut doubt = None;
    let follows = own.iter().any(|firing| firing.triggers.contains(&TriggerLabel::Followed));
    let mut epoch = engine.next_name();
    loop {
        let begun = engine.begun(tags, &epoch, follows);
        engine.feed.say(begun.clone());
        // Nothing written before the trigger is missing in the index behind the barrier.
        let passed = engine.feed.barrier(std::mem::take(&mut own), engine).await;
        let told = if passed { Ok(()) } else { engine.tell_without_feed(&begun).await };
        if !passed || !engine.others.has_echoed(&epoch) {
            engine.heard_itself(&begun);
        }
        if phases.barrier.is_zero() {
            phases.barrier = began.elapsed();
        }
        failpoint::pass("announced");
        let result = match told {
            Ok(()) => delete(engine, deletion, passed).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(Deleted::All) => break,
            // Nothing has failed.
            Ok(Deleted::Perhaps(why)) => {
                tracing::debug!(why, "a fan-out looks once more");
                tokio::time::sleep(FIRST_PAUSE).await;
            }
            Err(error) => {
                engine.process.set_fanout_error(&error);
                if doubt.is_none() {
                    let (client, cause) = (&cause.client, &cause.what);
                    tracing::warn!(%error, ?client, ?cause, tags = ?Names(tags), "a fan-out failed; it is tried again");
                    doubt = Some(engine.doubt(tags, deletion.named_by));
                    engine.failing.set(engine.failing.get() + 1);
                } else {
                    tracing::debug!(%error, tags = ?Names(tags), "a fan-out failed again");
                }
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        epoch = engine.next_attempt(&epoch);
    }
    if doubt.is_some() {
        engine.failing.set(engine.failing.get() - 1);
        if engine.failing.get() == 0 {
            engine.process.set_fanout_error("");
        }
    }
    if !engine.process.is_alone() {
        let done = Message::Done { proxy: engine.process.id.clone(), epoch: epoch.clone() };
        engine.feed.say_soon(Announcement::Message(done), engine);
    }
    epoch
}

/// What a deletion has come to.
enum Deleted {
    All,
    /// What it has deleted may not have been where it is now.
    Perhaps(&'static str),
}

/// Deletes once. `passed`: behind the barrier the index has all that was written before, if it is complete.
async fn delete(engine: &Rc<Engine>, deletion: &mut Deletion<'_>, passed: bool) -> Result<Deleted, String> {
    let index = &engine.process.index;
    if let Some(version) = index.complete_version().filter(|_| passed && deletion.is_in_index()) {
        deletion.run(false).await?;
        // Its databases may have been swapped ahead of the deletions.
        let holds = index.complete_version() == Some(version);
        return Ok(if holds { Deleted::All } else { Deleted::Perhaps("the index is incomplete now") });
    }
    // One that began before may be under way.
    let before = known::counts(engine).await;
    deletion.run(true).await?;
    let holds = match (before, known::counts(engine).await) {
        (Some(before), Some(now)) => !now.may_hide_a_swap(&before),
        (before, now) => before.is_none() && now.is_none(),
    };
    Ok(if holds { Deleted::All } else { Deleted::Perhaps("SWAPDB was called meanwhile") })
}

impl Engine {
    /// Notes in the journal what nobody has noted yet. Where that cannot be done the fan-out happens all the same: its
    /// trigger has taken effect.
    async fn intend(&self, tags: &[Tag], named_by: &[Arc<Rules>], request: &Request) -> Vec<Noted> {
        let is_all = request.everything || self.has_renamed(named_by);
        let scope = if is_all { Scope::Everything } else { Scope::Tags(tags.to_vec()) };
        let (rules, what) = (Some(self.fingerprint()), request.cause.what.clone());
        match self.process.journal.intend(Wanted { scope, rules, what }).await {
            Ok(intent) => vec![intent],
            Err(error) => {
                tracing::error!(%error, "an invalidation would be lost in a crash");
                vec![]
            }
        }
    }

    /// Reads of the keys of these tags are answered as misses as long as this is kept.
    fn doubt(&self, tags: &[Tag], named_by: &[Arc<Rules>]) -> Reason {
        let mut scope = Scope::Tags(if self.process.dry_run { vec![] } else { tags.to_vec() });
        if self.has_renamed(named_by) {
            scope.generalize();
        }
        self.process.doubt.enter(scope)
    }

    /// Whether tags are names of other keys now than by one of these rules.
    pub(super) fn has_renamed(&self, named_by: &[Arc<Rules>]) -> bool {
        named_by.iter().any(|rules| rules.fingerprint() != self.fingerprint())
    }

    /// These invalidations are complete.
    fn done(&self, intents: &[Noted]) {
        intents.iter().for_each(|intent| self.process.journal.done(intent.id));
    }

    /// What tells everybody that these tags are invalidated. The new epoch is set first: whoever has heard of it finds it.
    fn begun(&self, tags: &Arc<[Tag]>, epoch: &[u8], follows: bool) -> Announcement {
        // A dry run invalidates nothing.
        let tags = if self.process.dry_run { [].into() } else { Arc::clone(tags) };
        let (proxy, lifetime) = (self.process.id.clone(), self.epoch_lifetime());
        Announcement::Begun { proxy, epoch: epoch.into(), tags, lifetime, follows }
    }

    /// Where the feed is lost.
    async fn tell_without_feed(&self, begun: &Announcement) -> Result<(), String> {
        let (begun, mut batch) = (std::slice::from_ref(begun), Batch::default());
        if announcement::is_noted(begun) {
            let note = Note { mark: &self.next_name(), lifetime: Some(self.epoch_lifetime()) };
            announcement::queue(begun, Some(&note), |words| batch.push(words));
            self.deletes.call(0, batch).await?;
        }
        Ok(())
    }

    /// What it has said itself counts, although the feed has not told.
    fn heard_itself(&self, begun: &Announcement) {
        if let Announcement::Begun { tags, epoch, .. } = begun {
            tags.iter().for_each(|tag| self.process.epochs.found(tag, epoch, self.moment()));
        }
    }

    /// Every tag that some key has, and by which rules. Takes as long as it takes to find them.
    async fn all_tags(&self) -> (Vec<Tag>, Arc<Rules>) {
        loop {
            let rules = self.present_rules();
            let tags = self.find_tags().await;
            // A reload gives the keys other tags, one after the other.
            if Arc::ptr_eq(&rules, &self.rules.borrow()) {
                return (tags, rules);
            }
        }
    }

    async fn find_tags(&self) -> Vec<Tag> {
        let mut pause = FIRST_PAUSE;
        while !self.process.index.is_complete() {
            match self.fill(self.rebuild.get()).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "the tags cannot be found yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let (mut tags, mut cursor) = (vec![], Some(0));
        while let Some(at) = cursor {
            cursor = self.process.index.lock().tags(at, TAGS, &mut tags);
            tokio::task::yield_now().await;
        }
        tags
    }
}

/// Adds rules to others if they do not name the same keys.
pub(super) fn add_rules(all: &mut Vec<Arc<Rules>>, more: &Arc<Rules>) {
    if !all.iter().any(|rules| rules.fingerprint() == more.fingerprint()) {
        all.push(Arc::clone(more));
    }
}

/// The rules that say what these stand for: the present ones, and those that they were matched by.
fn named_by(engine: &Engine, fired: &[Firing]) -> Vec<Arc<Rules>> {
    let mut all = vec![engine.present_rules()];
    fired.iter().for_each(|firing| add_rules(&mut all, &firing.rules));
    all
}

/// What writes of the same keys invalidate by other rules, among those in force now and lately: by these names fills are
/// compared that are sent then.
fn named_otherwise(engine: &Engine, fired: &[Firing]) -> Vec<Tag> {
    let mut rules = vec![engine.present_rules()];
    add_rules(&mut rules, &engine.rules_since(engine.moment().saturating_sub(engine.longest_window())));
    let mut found = vec![];
    for firing in fired.iter().filter(|firing| matches!(firing.triggers[..], [TriggerLabel::Rule(_), ..])) {
        let others = rules.iter().filter(|rules| rules.fingerprint() != firing.rules.fingerprint());
        for mut matcher in others.map(Rules::matcher) {
            firing.keys.iter().for_each(|(db, key)| _ = matcher.fired(*db, key, None, &mut found));
        }
    }
    found.into_iter().flat_map(|fired| fired.tags).collect()
}

/// All tags to invalidate, cascades included, and the labels of what fired.
fn closure(engine: &Engine, request: &Request, named_by: &[Arc<Rules>]) -> (Vec<Tag>, Vec<String>) {
    let mut tags: Vec<Tag> = vec![];
    let mut seen = HashSet::new();
    let mut labels: Vec<String> = vec![];
    let mut label = |text: &str| {
        if !labels.iter().any(|known| known == text) {
            labels.push(text.to_owned());
        }
    };
    for firing in &request.fired {
        tags.extend(firing.tags.iter().filter(|tag| seen.insert(Tag::clone(tag))).cloned());
        for trigger in &firing.triggers {
            match trigger {
                TriggerLabel::Rule(id) => {
                    let trigger = firing.rules.triggers().get(usize::from(id.0));
                    label(trigger.map_or("", |t| t.label.as_str()));
                }
                other => label(other.name().unwrap_or_default()),
            }
        }
    }
    let others = named_otherwise(engine, &request.fired).into_iter();
    tags.extend(others.filter(|tag| seen.insert(Tag::clone(tag))));
    for rules in named_by {
        let cascaded = rules.cascade(&mut tags);
        if cascaded.cut_short {
            tracing::warn!(cause = ?request.cause.what, "a cascade of tags would never end and was cut short");
        }
        for id in cascaded.triggers {
            label(&rules.triggers()[usize::from(id.0)].label);
        }
    }
    (tags, labels)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
