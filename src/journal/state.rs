//! What a journal has to remember, and how files of processes that are gone add to it. Pure: what time it is comes
//! from outside.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::decode::Decoded;
use super::recent::Recent;
use super::record::{self, Record};
use super::{Intent, IntentId, Scope};
use crate::rules::Tag;

/// A moment on two clocks, both in milliseconds.
///
/// Ages within one process are measured with the steady one, which nobody sets. The wall clock is for files: it means
/// the same to other processes, as long as nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// Moves forward only; what it counts from means nothing.
    pub steady: i64,
    /// Since 1970.
    pub wall: u64,
}

impl Now {
    /// The steady time of something in a file. What lies in the future happened now.
    fn steady_of(self, unix_ms: u64) -> i64 {
        let age = self.wall.saturating_sub(unix_ms);
        self.steady.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX))
    }

    fn wall_of(self, steady: i64) -> u64 {
        let age = self.steady.saturating_sub(steady).max(0);
        self.wall.saturating_sub(age.unsigned_abs())
    }

    /// By how much the clocks differ; it changes only when the wall clock is set.
    pub fn difference(self) -> i64 {
        i64::try_from(self.wall).unwrap_or(i64::MAX).saturating_sub(self.steady)
    }
}

/// Pending intents, recent tags, the identity of the Redis.
#[derive(Debug)]
pub(super) struct State {
    pending: BTreeMap<IntentId, Intent>,
    pending_bytes: usize,
    next: u64,
    recent: Recent,
    /// What other proxies have invalidated; no file has it.
    heard: Recent,
    redis: Option<(u64, String)>,
    /// The fingerprint of the rules by which tags are named. `None`: whatever they are, they have never been others.
    rules: Option<u32>,
    window: Duration,
    /// The latest time in the files that were taken over, in milliseconds since 1970.
    latest: u64,
    news: u64,
}

impl State {
    pub fn new(window: Duration) -> Self {
        let (pending, recent, heard) = (BTreeMap::new(), Recent::new(window), Recent::new(window));
        let (redis, rules) = Default::default();
        Self { pending, pending_bytes: 0, next: 1, recent, heard, redis, rules, window, latest: 0, news: 0 }
    }

    /// How often there has come to be more in [`State::recent`] than before.
    pub fn news(&self) -> u64 {
        self.news
    }

    /// From now on tags are named by rules of this fingerprint. By other ones they are names of other keys: what is known by them
    /// becomes everything.
    pub fn follow_rules(&mut self, rules: u32) {
        let before = self.rules.replace(rules);
        if before.is_some_and(|before| before != rules) {
            self.pending.values_mut().for_each(|intent| intent.scope.generalize());
            self.pending_bytes = self.pending.values().map(bytes).sum();
            self.news += 1;
            [&mut self.recent, &mut self.heard].into_iter().for_each(Recent::generalize);
        }
    }

    pub fn rules(&self) -> Option<u32> {
        self.rules
    }

    /// An id that no intent has had.
    pub fn next_id(&mut self) -> IntentId {
        self.next += 1;
        IntentId(self.next - 1)
    }

    pub fn begin(&mut self, intent: Intent) {
        self.news += 1;
        self.pending_bytes += bytes(&intent);
        self.pending.insert(intent.id, intent);
    }

    /// Whether there was such an intent. Its tags were invalidated just now.
    pub fn done(&mut self, id: IntentId, now: Now) -> bool {
        let Some(intent) = self.pending.remove(&id) else { return false };
        self.pending_bytes -= bytes(&intent);
        self.completed(&intent, now.steady, now);
        true
    }

    /// What happened under another upstream is only heard of, so that two upstreams do not tell each other of it for ever.
    fn completed(&mut self, intent: &Intent, at: i64, now: Now) {
        let recent = if is_from_elsewhere(intent) { &mut self.heard } else { &mut self.recent };
        recent.add(&intent.scope, at, now.steady);
    }

    /// Another proxy has invalidated this, so many milliseconds ago.
    pub fn heard(&mut self, scope: &Scope, age: i64, now: Now) {
        self.news += 1;
        self.heard.add(scope, now.steady.saturating_sub(age), now.steady);
    }

    /// Whether others have invalidated anything within the window, or may have.
    pub fn has_heard(&self, now: Now) -> bool {
        self.heard.has_any(now.steady)
    }

    /// Whether they may have invalidated what is not known here.
    pub fn has_missed(&self, now: Now) -> bool {
        self.heard.has_everything(now.steady)
    }

    /// Whether that is news.
    pub fn saw(&mut self, identity: &str, now: Now) -> bool {
        let known = self.redis().is_some_and(|known| known == identity);
        if !known {
            self.redis = Some((now.wall, identity.to_owned()));
        }
        !known
    }

    pub fn redis(&self) -> Option<&str> {
        self.redis.as_ref().map(|(_, identity)| identity.as_str())
    }

    pub fn pending(&self) -> impl ExactSizeIterator<Item = &Intent> {
        self.pending.values()
    }

    /// What was invalidated within the window, or may be at this moment.
    pub fn recent(&mut self, now: Now) -> Scope {
        let (mut all, mut is_everything): (HashSet<Tag>, bool) = Default::default();
        for recent in [&mut self.recent, &mut self.heard] {
            recent.tidy(now.steady);
            let (everything, tags) = recent.entries();
            all.extend(tags.map(|(tag, _)| Tag::from(tag)));
            is_everything |= everything.is_some();
        }
        for intent in self.pending.values() {
            match &intent.scope {
                Scope::Everything => is_everything = true,
                Scope::Tags(tags) => all.extend(tags.iter().cloned()),
            }
        }
        if is_everything { Scope::Everything } else { Scope::Tags(all.into_iter().collect()) }
    }

    /// Bytes that all this takes in a file, about.
    pub fn live_bytes(&mut self, now: Now) -> usize {
        [&mut self.recent, &mut self.heard].into_iter().for_each(|recent| recent.tidy(now.steady));
        self.pending_bytes + self.recent.bytes() + self.redis().map_or(0, str::len) + 100
    }

    /// A whole file that says all this.
    pub fn snapshot(&mut self, mark: u64, upstream: &str, now: Now) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.live_bytes(now));
        record::header(mark, upstream, &mut out);
        if let Some((unix_ms, identity)) = self.redis.clone() {
            record::append(&Record::Redis { identity, unix_ms }, mark, &mut out);
        }
        if let Some(fingerprint) = self.rules {
            record::append(&Record::Rules { fingerprint, unix_ms: now.wall }, mark, &mut out);
        }
        let (everything, tags) = self.recent.entries();
        let everything = everything.map(|at| (Scope::Everything, at));
        let tags = tags.map(|(tag, at)| (Scope::Tags(vec![tag.into()]), at));
        for (scope, at) in everything.into_iter().chain(tags) {
            record::append(&Record::Recent { scope, unix_ms: now.wall_of(at) }, mark, &mut out);
        }
        for intent in self.pending.values() {
            record::append(&Record::Intent(intent.clone()), mark, &mut out);
        }
        out
    }

    /// Adds what another file says, with new ids: its process is gone. Whether that process stopped in order.
    ///
    /// Behind a damage nothing counts as done: what is missing may have been an intent of the same id, and it costs
    /// nothing more, since everything is to be invalidated anyway ([`State::suspect`]).
    pub fn take_over(&mut self, decoded: Decoded, now: Now) -> bool {
        let clean = decoded.damage.is_empty() && decoded.records.last() == Some(&Record::Closed);
        let mut pending: BTreeMap<IntentId, Intent> = BTreeMap::new();
        // Versions that do not tell have known no others.
        let mut rules = self.rules;
        for (position, mut record) in decoded.records.into_iter().enumerate() {
            if let Record::Intent(Intent { scope, .. }) | Record::Recent { scope, .. } = &mut record
                && rules != self.rules
            {
                scope.generalize();
            }
            self.latest = self.latest.max(record.unix_ms().unwrap_or(0).min(now.wall));
            match record {
                Record::Intent(intent) => {
                    // No file has an id twice; in one that does, both are pending.
                    let twice = pending.insert(intent.id, intent);
                    twice.into_iter().for_each(|intent| self.adopt(intent));
                }
                Record::Done { id, unix_ms } if position < decoded.certain => {
                    if let Some(intent) = pending.remove(&id) {
                        self.completed(&intent, now.steady_of(unix_ms), now);
                    }
                }
                Record::Done { .. } | Record::Closed => {}
                Record::Rules { fingerprint, .. } => rules = self.rules.and(Some(fingerprint)),
                Record::Redis { identity, unix_ms } => {
                    let unix_ms = unix_ms.min(now.wall);
                    if self.redis.as_ref().is_none_or(|(latest, _)| *latest <= unix_ms) {
                        self.redis = Some((unix_ms, identity));
                    }
                }
                Record::Recent { scope, unix_ms } => {
                    self.recent.add(&scope, now.steady_of(unix_ms), now.steady);
                }
            }
        }
        pending.into_values().for_each(|intent| self.adopt(intent));
        clean
    }

    /// Files of processes say this that live. What these have invalidated is heard of. Who begins with nothing compares Redis with
    /// the one that they trust, or with the one before, if one of them does not trust the present one yet.
    pub fn start_beside(&mut self, living: Vec<Decoded>, now: Now) {
        let mut trusted: Vec<(u64, String)> = vec![];
        for decoded in living {
            let mut other = State { rules: self.rules, ..State::new(self.window) };
            other.take_over(decoded, now);
            self.heard(&other.recent(now), 0, now);
            trusted.extend(other.redis);
        }
        if self.redis.is_none() {
            self.redis = trusted.into_iter().min();
        }
    }

    /// The file of another upstream says this, which may have been another name of the same data. What happened since the
    /// latest that is known here, and within the window, is begun here as well. Whether there is any. The Redis that was seen there
    /// since then is the one that was seen last: with what was noted of it, this one is compared with that.
    pub fn overhear(&mut self, mut decoded: Decoded, now: Now) -> bool {
        let unknown = Duration::from_millis(now.wall.saturating_sub(self.latest)).min(self.window);
        let since = now.wall.saturating_sub(u64::try_from(unknown.as_millis()).unwrap_or(u64::MAX));
        let what = format!("{ELSEWHERE}{}", decoded.upstream);
        decoded
            .records
            .retain(|record| !matches!(record, Record::Intent(intent) if is_from_elsewhere(intent)));
        let mut other = State { rules: self.rules, ..State::new(unknown) };
        other.take_over(decoded, now);
        let since_known = self.redis.as_ref().map_or(0, |(at, _)| *at).max(self.latest);
        if let Some(later) = other.redis.take().filter(|(at, _)| *at > since_known) {
            self.redis = Some(later);
        }
        other.pending.retain(|_, intent| intent.unix_ms >= since);
        let scope = super::bounded(other.recent(now));
        let is_news = !scope.is_empty();
        if is_news {
            self.adopt(Intent { id: IntentId(0), scope, what, unix_ms: now.wall });
        }
        is_news
    }

    fn adopt(&mut self, intent: Intent) {
        let id = self.next_id();
        self.begin(Intent { id, ..intent });
    }

    /// Something is missing: everything is to be invalidated.
    pub fn suspect(&mut self, what: String, now: Now) {
        let id = self.next_id();
        self.begin(Intent { id, scope: Scope::Everything, what, unix_ms: now.wall });
    }
}

/// How what is told of an invalidation under another upstream begins.
const ELSEWHERE: &str = "invalidated at ";

fn is_from_elsewhere(intent: &Intent) -> bool {
    intent.what.starts_with(ELSEWHERE)
}

/// Bytes that an intent takes in a file, about.
fn bytes(intent: &Intent) -> usize {
    record::FRAME + 32 + intent.what.len() + record::size(&intent.scope)
}

#[cfg(test)]
mod tests;
