//! What a reply means beyond its bytes: hits and misses, and whether a trigger fired.
//!
//! Made from a request when it is sent, kept in the queue of expected replies, fed with the reply's heads.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use smallvec::SmallVec;

use crate::command::{
    FireCondition, NOT_BEGUN, Outcome, Reads, Tally, is_there, reads_need_elements, says_nothing_ran,
};
use crate::lease::KeyHash;
use crate::lease::trouble::is_of_rights;
use crate::resp::Head;
use crate::rules::{FamilyId, Rules, Tag, TriggerId};
use crate::session::Effect;

/// What the error begins with that tells of missing rights.
pub const NOPERM: &[u8] = b"NOPERM";
/// What the error of a replica begins with that was asked to write.
pub const READONLY: &[u8] = b"READONLY";

/// What a miss of a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nothing.
    No,
    /// The client may fill it, and give it labels.
    Unlabelled,
    /// The client may fill it, and it has tags.
    Tagged,
}

/// A key that a read names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadKey {
    /// For which family it counts.
    pub family: FamilyId,
    /// Whether it does: not for a command that writes what it has read.
    pub counts: bool,
    /// What follows if it is missed.
    pub watch: Watch,
    /// What it is then remembered as.
    pub hash: KeyHash,
}

/// What a read has seen of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there.
    Hit,
    /// It is there, as it seems, but not all of what was asked for: it counts as a hit, and the client may add the rest.
    Part,
    /// It is not.
    Miss,
}

/// The keys that a read names, in order.
pub type ReadKeys = SmallVec<[ReadKey; 1]>;

/// A read whose reply shows hits and misses.
#[derive(Clone, Debug)]
pub struct Reading {
    /// How its reply shows them.
    pub reads: Reads,
    /// The keys.
    pub keys: ReadKeys,
    /// It fetches the value of its only key, and others may wait for that.
    pub fetches: bool,
    /// It has waited until somebody else filled its key, or in vain.
    pub waited: bool,
}

/// What a reply told about a key that others may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The key.
    pub key: ReadKey,
    /// Whether it is there.
    pub found: bool,
    /// The read has waited for it.
    pub waited: bool,
}

/// What a write makes of a key that others may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It is there.
    Filled,
    /// It is not, and who computes it may have begun too early.
    Gone,
}

/// Keys that others may wait for, and that a write decides about.
#[derive(Clone, Debug)]
pub struct Settled {
    /// When the write counts as done.
    pub condition: FireCondition,
    /// The keys.
    pub keys: Vec<(KeyHash, Became)>,
}

impl Reading {
    fn tally(&self) -> Tally {
        Tally::new(self.reads, self.keys.len())
    }

    /// Whether the reply may not tell which of the keys are there: `EXISTS a b` of two families answered 1.
    pub fn is_ambiguous(&self) -> bool {
        self.reads == Reads::Count && self.keys.windows(2).any(|pair| pair[0].family != pair[1].family)
    }

    /// Tells `count` every key and whether it was there, if the reply is a single value.
    #[inline]
    pub fn settle_value(&self, head: &Head<'_>, mut count: impl FnMut(ReadKey, Seen)) {
        if let (Reads::Value, [key]) = (self.reads, &self.keys[..])
            && !head.is_error()
        {
            return count(*key, if is_there(head) { Seen::Hit } else { Seen::Miss });
        }
        let mut tally = self.tally();
        tally.on(0, head);
        self.settle(&tally, count);
    }

    /// Tells `count` every key and whether it was there.
    fn settle(&self, tally: &Tally, mut count: impl FnMut(ReadKey, Seen)) {
        let seen = |hit: bool| if hit { Seen::Hit } else { Seen::Miss };
        match tally.finish() {
            Outcome::Uncounted => {}
            // Of several keys one may be missing all the same.
            Outcome::All(true)
                if tally.lacks_some() || (self.keys.len() > 1 && self.reads == Reads::Union) =>
            {
                self.keys.iter().for_each(|key| count(*key, Seen::Part));
            }
            Outcome::All(hit) => self.keys.iter().for_each(|key| count(*key, seen(hit))),
            Outcome::PerKey(hits) => {
                self.keys.iter().zip(hits).for_each(|(key, hit)| count(*key, seen(*hit)));
            }
            // The counts are exact where the keys are of one family. Others are asked for one by one, except inside MULTI,
            // where the first ones are taken to be there. Any of them may be the missing one.
            Outcome::Some(hits) => {
                let seen = |i: usize| if (i as u64) < hits { Seen::Part } else { Seen::Miss };
                self.keys.iter().enumerate().for_each(|(i, key)| count(*key, seen(i)));
            }
        }
    }
}

/// The number under which the journal knows an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntentId(pub u64);

/// An invalidation that the journal has noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its number.
    pub id: IntentId,
    /// How long that took, for whoever waited for it.
    pub took: Duration,
}

/// What fires if a write succeeds.
#[derive(Clone, Debug)]
pub struct Firing {
    /// When the write counts as done.
    pub condition: FireCondition,
    /// The triggers.
    pub triggers: SmallVec<[TriggerLabel; 1]>,
    /// The tags that they invalidate.
    pub tags: Vec<Tag>,
    /// The rules by which these are named: there may be others before it is done.
    pub rules: Arc<Rules>,
    /// The keys that made them fire, with their database.
    pub keys: Vec<(u32, Box<[u8]>)>,
    /// Another command would fire more of these keys' triggers.
    pub partial: bool,
    /// The command and the keys that made them fire, for the log.
    pub what: String,
    /// The journal has noted that it may fire.
    pub intents: SmallVec<[Noted; 1]>,
}

impl Firing {
    /// Tags to be invalidated, not because a client's command succeeded.
    pub fn unconditional(label: TriggerLabel, tags: Vec<Tag>, rules: Arc<Rules>, what: String) -> Self {
        Self {
            condition: FireCondition::NoError,
            triggers: SmallVec::from_slice(&[label]),
            tags,
            rules,
            keys: vec![],
            partial: false,
            what,
            intents: SmallVec::new(),
        }
    }

    /// What has to be done once more.
    pub fn again(rules: Arc<Rules>, what: String) -> Self {
        Self::unconditional(TriggerLabel::Again, vec![], rules, what)
    }

    /// It fires nothing: the feed will show a write that is ours and no trigger, because of the command or the
    /// database, both of which the feed does not tell.
    pub fn only_covers(&self) -> bool {
        self.triggers.is_empty()
    }

    /// Not all triggers of its keys fire.
    pub fn is_limited(&self) -> bool {
        self.only_covers() || self.partial
    }

    /// It is a message on the channel for that; its key is the payload.
    pub fn is_message(&self) -> bool {
        self.triggers.contains(&TriggerLabel::Publish)
    }
}

/// What fired: the label of `rescind_invalidations_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerLabel {
    /// A `[[trigger]]` of the configuration.
    Rule(TriggerId),
    /// A message on the invalidation channel.
    Publish,
    /// `TAG.INVALIDATE`.
    Command,
    /// `POST /api/invalidate`.
    Http,
    /// Another proxy began it and died.
    TakenOver,
    /// Another proxy did it, by other rules.
    Followed,
    /// It was not finished, or has to be done once more: after a crash, or because Redis came back with old data.
    Again,
}

impl TriggerLabel {
    /// What it is called, unless it is of the configuration: one of [`OTHER_TRIGGERS`](crate::rules::OTHER_TRIGGERS).
    pub fn name(self) -> Option<&'static str> {
        match self {
            TriggerLabel::Rule(_) => None,
            TriggerLabel::Publish => Some("publish"),
            TriggerLabel::Command => Some("TAG.INVALIDATE"),
            TriggerLabel::Http => Some("http"),
            TriggerLabel::TakenOver => Some("taken over"),
            TriggerLabel::Followed => Some("other rules"),
            TriggerLabel::Again => Some("again"),
        }
    }
}

/// What EXEC's reply tells about one queued request.
#[derive(Clone, Debug, Default)]
pub struct Queued {
    /// Hits and misses to count.
    pub reading: Option<Reading>,
    /// What fires if it succeeds.
    pub firing: Option<Firing>,
    /// It gives labels, which hold on this condition.
    pub labels: Option<FireCondition>,
    /// What it changes in the client's session if it succeeds.
    pub effect: Option<Box<Effect>>,
    /// Where it is counted if it fails.
    pub metric: Option<u16>,
}

/// What to look for in one reply.
#[derive(Debug, Default)]
pub enum Account {
    /// Nothing.
    #[default]
    Nothing,
    /// Hits and misses.
    Read(Reading),
    /// Whether a trigger fired.
    Write(Box<Firing>),
    /// `QUEUED`, unless the client was not inside MULTI after all.
    Queued(Box<Queued>),
    /// What was queued, element by element.
    Exec(Vec<Queued>),
}

impl Account {
    /// Whether triggers may fire, so that the reply waits for a fan-out.
    pub fn may_fire(&self) -> bool {
        match self {
            Self::Nothing | Self::Read(_) | Self::Queued(_) => false,
            Self::Write(_) => true,
            Self::Exec(queued) => queued.iter().any(|q| q.firing.is_some()),
        }
    }

    /// What may fire.
    pub fn firings(&self) -> impl Iterator<Item = &Firing> {
        let (write, exec) = match self {
            Self::Write(firing) => (Some(&**firing), &[][..]),
            Self::Exec(queued) => (None, &queued[..]),
            Self::Nothing | Self::Read(_) | Self::Queued(_) => (None, &[][..]),
        };
        write.into_iter().chain(exec.iter().filter_map(|queued| queued.firing.as_ref()))
    }

    /// The journal has noted that it may fire.
    pub fn set_intent(&mut self, intent: Noted) {
        let firing = match self {
            Self::Write(firing) => Some(&mut **firing),
            Self::Exec(queued) => queued.iter_mut().find_map(|queued| queued.firing.as_mut()),
            Self::Nothing | Self::Read(_) | Self::Queued(_) => None,
        };
        firing.into_iter().for_each(|firing| firing.intents.push(intent));
    }

    /// Takes the keys out of a read whose reply may not tell which keys are there: they are to be asked for
    /// one by one.
    pub fn take_ambiguous(&mut self) -> Option<ReadKeys> {
        match self {
            Self::Read(reading) if reading.is_ambiguous() => {
                let keys = std::mem::take(&mut reading.keys);
                *self = Self::Nothing;
                Some(keys)
            }
            _ => None,
        }
    }

    /// What a reply with this head tells about a key that others may wait for.
    #[inline]
    pub fn fetched(&self, head: &Head<'_>) -> Option<Fetched> {
        match self {
            Self::Read(Reading { keys, fetches: true, waited, .. }) if !head.is_error() => {
                // An empty string is a value.
                let found =
                    !matches!(head, Head::Null | Head::Int(0) | Head::Array(0) | Head::Map(0) | Head::Set(0));
                Some(Fetched { key: *keys.first()?, found, waited: *waited })
            }
            _ => None,
        }
    }

    /// All that may fire, whatever the reply: for a reply that will never arrive.
    pub fn may_have_fired(self) -> Vec<Firing> {
        match self {
            Self::Nothing | Self::Read(_) | Self::Queued(_) => vec![],
            Self::Write(firing) => vec![*firing],
            Self::Exec(queued) => queued.into_iter().filter_map(|q| q.firing).collect(),
        }
    }
}

/// The reply that is being read.
#[derive(Debug, Default)]
pub struct Reader {
    /// The head of the reply itself, without its text.
    head: Option<Head<'static>>,
    text_is_queued: bool,
    /// Heads deeper than this describe the value that follows and are not part of the reply.
    attribute: Option<u32>,
    /// The last number at depth 1.
    number: i64,
    tally: Option<Tally>,
    /// What is inside the reply matters, too.
    looks_inside: bool,
    /// Within EXEC: the element, counted from 1.
    element: usize,
    /// The keys that were missed there: a transaction is one task's, so whatever it asks of a key, it misses that once.
    missed: Option<HashSet<KeyHash>>,
    /// The elements that fired, counted from 0, in ascending order.
    fired: SmallVec<[usize; 2]>,
    /// The elements whose labels hold, counted likewise.
    labelled: SmallVec<[usize; 2]>,
    /// Some element of EXEC is an error.
    has_failures: bool,
    /// Some is one about rights.
    has_refusals: bool,
    /// Where these are counted.
    failed: SmallVec<[u16; 2]>,
    /// The elements whose effects are good, counted likewise.
    effective: SmallVec<[usize; 2]>,
}

/// What a whole reply told.
#[derive(Debug)]
pub struct Verdict {
    /// It was an error reply.
    pub error: bool,
    /// The reply itself, as far as conditions look at it.
    pub head: Head<'static>,
    /// What fired.
    pub fired: Vec<Firing>,
    /// What did not.
    pub idle: Vec<Firing>,
    /// The elements of EXEC, counted from 0, whose labels hold.
    pub labelled: SmallVec<[usize; 2]>,
    /// Some element of EXEC is an error.
    pub has_failures: bool,
    /// Some is one about rights.
    pub has_refusals: bool,
    /// Where these are counted.
    pub failed: SmallVec<[u16; 2]>,
    /// What the elements of EXEC change in the client's session, in order.
    pub effects: Vec<Effect>,
}

impl Verdict {
    /// There was no reply, or one that means nothing.
    pub fn failed() -> Self {
        Self::of(Head::Error(b""))
    }

    fn of(head: Head<'static>) -> Self {
        let labelled = SmallVec::new();
        Self {
            error: head.is_error(),
            head,
            fired: vec![],
            idle: vec![],
            labelled,
            has_failures: false,
            has_refusals: false,
            failed: SmallVec::new(),
            effects: vec![],
        }
    }
}

impl Reader {
    /// Starts with a new reply.
    pub fn begin(&mut self, account: &Account) {
        let (tally, looks_inside) = match account {
            Account::Read(reading) => (Some(reading.tally()), reads_need_elements(reading.reads)),
            Account::Exec(_) => (None, true),
            _ => (None, false),
        };
        *self = Reader { tally, looks_inside, ..Reader::default() };
    }

    /// Takes one head of the reply to a client's request.
    #[inline]
    pub fn on_reply(
        &mut self,
        depth: u32,
        head: &Head<'_>,
        account: &Account,
        count: &mut impl FnMut(ReadKey, Seen),
    ) {
        // The elements of a long array say nothing to most.
        if depth == 0 || self.looks_inside {
            self.on(depth, head, account, count);
        }
    }

    /// The head of the reply itself, as far as later decisions need it: its text is left out, except for [`NOPERM`],
    /// [`READONLY`] and that nothing has run.
    pub fn head(&self) -> Head<'static> {
        self.head.unwrap_or(Head::Null)
    }

    /// The last number at depth 1: how many subscriptions a confirmation leaves.
    pub fn number(&self) -> u32 {
        u32::try_from(self.number).unwrap_or(0)
    }

    /// Takes one head of the reply.
    #[inline]
    pub fn on(
        &mut self,
        depth: u32,
        head: &Head<'_>,
        account: &Account,
        count: &mut impl FnMut(ReadKey, Seen),
    ) {
        if self.describes(depth, head) {
            return;
        }
        match (depth, head) {
            (0, _) => {
                self.head = Some(without_text(head));
                self.text_is_queued = matches!(head, Head::Simple(b"QUEUED"));
            }
            (1, Head::Int(n)) => self.number = *n,
            _ => {}
        }
        if let Account::Exec(queued) = account {
            self.on_exec(depth, head, queued, count);
        } else if let Some(tally) = &mut self.tally {
            tally.on(depth, head);
        }
    }

    /// Whether the head belongs to an attribute (RESP3), which says something about the reply and is none of it.
    fn describes(&mut self, depth: u32, head: &Head<'_>) -> bool {
        match (self.attribute, head) {
            (Some(outer), _) if depth > outer => true,
            (_, Head::Attribute(_)) => {
                self.attribute = Some(depth);
                true
            }
            _ => {
                self.attribute = None;
                false
            }
        }
    }

    fn on_exec(
        &mut self,
        depth: u32,
        head: &Head<'_>,
        queued: &[Queued],
        count: &mut impl FnMut(ReadKey, Seen),
    ) {
        if depth == 1 {
            self.end_of_element(queued, count);
            self.element += 1;
            self.has_refusals |= matches!(head, Head::Error(text) if is_refusal(text));
            let entry = queued.get(self.element - 1);
            if head.is_error() {
                self.has_failures = true;
                self.failed.extend(entry.and_then(|q| q.metric));
            }
            self.tally = entry.and_then(|q| q.reading.as_ref()).map(Reading::tally);
            if entry.and_then(|q| q.firing.as_ref()).is_some_and(|f| f.condition.fired(head)) {
                self.fired.push(self.element - 1);
            }
            if entry.and_then(|q| q.labels).is_some_and(|condition| condition.fired(head)) {
                self.labelled.push(self.element - 1);
            }
            if entry.is_some_and(|q| q.effect.is_some()) && !head.is_error() {
                self.effective.push(self.element - 1);
            }
        }
        if let Some(tally) = &mut self.tally
            && depth > 0
        {
            tally.on(depth - 1, head);
        }
    }

    fn end_of_element(&mut self, queued: &[Queued], count: &mut impl FnMut(ReadKey, Seen)) {
        if let Some(tally) = self.tally.take()
            && let Some(reading) = queued.get(self.element.wrapping_sub(1)).and_then(|q| q.reading.as_ref())
        {
            let missed = &mut self.missed;
            reading.settle(&tally, |mut key, seen| {
                if seen != Seen::Hit && !missed.get_or_insert_default().insert(key.hash) {
                    key.watch = Watch::No;
                }
                count(key, seen);
            });
        }
    }

    /// The reply to a read outside MULTI is complete.
    #[inline]
    pub fn settle(&self, reading: &Reading, count: impl FnMut(ReadKey, Seen)) {
        if let Some(tally) = &self.tally {
            reading.settle(tally, count);
        }
    }

    /// The reply is complete.
    pub fn finish(&mut self, account: Account, count: &mut impl FnMut(ReadKey, Seen)) -> Verdict {
        let head = self.head();
        let mut verdict = Verdict::of(head);
        match account {
            Account::Nothing => {}
            Account::Read(reading) => self.settle(&reading, count),
            Account::Write(firing) => {
                let fired = firing.condition.fired(&head);
                if fired { verdict.fired.push(*firing) } else { verdict.idle.push(*firing) }
            }
            Account::Queued(queued) => {
                // MULTI had failed, so this ran at once.
                if !self.text_is_queued {
                    verdict.fired.extend(queued.firing.filter(|f| f.condition.fired(&head)));
                }
            }
            Account::Exec(queued) => {
                self.end_of_element(&queued, count);
                verdict.labelled = std::mem::take(&mut self.labelled);
                verdict.has_failures = self.has_failures;
                verdict.has_refusals = self.has_refusals;
                verdict.failed = std::mem::take(&mut self.failed);
                self.judge_exec(queued, &mut verdict);
            }
        }
        verdict
    }

    fn judge_exec(&self, queued: Vec<Queued>, verdict: &mut Verdict) {
        let ran = !verdict.error && verdict.head != Head::Null;
        // A server that queued something else than was thought: take everything as done.
        let mut surprised = ran && verdict.head != Head::Array(queued.len() as u64);
        for (i, mut entry) in queued.into_iter().enumerate() {
            let effect =
                entry.effect.take().filter(|_| !surprised && self.effective.binary_search(&i).is_ok());
            // Redis sends as many elements as there are names, and does not count them.
            let several = |effect: &Effect| matches!(effect, Effect::Subscription { confirms, .. } if *confirms != Some(1));
            let shifted = ran && effect.as_deref().is_some_and(several);
            verdict.effects.extend(effect.map(|effect| *effect));
            if ran && (surprised || self.fired.binary_search(&i).is_ok()) {
                verdict.fired.extend(entry.firing);
            } else {
                verdict.idle.extend(entry.firing);
            }
            surprised |= shifted;
        }
    }
}

/// Whether an error is about rights, in a script or not.
fn is_refusal(text: &[u8]) -> bool {
    text.starts_with(NOPERM) || is_of_rights(text)
}

/// A copy of the head that outlives its buffer.
fn without_text(head: &Head<'_>) -> Head<'static> {
    match *head {
        Head::Simple(_) => Head::Simple(b""),
        // That rights have changed is news for whoever relied on them.
        Head::Error(text) if text.starts_with(NOPERM) => Head::Error(NOPERM),
        // That the master has become a replica, too.
        Head::Error(text) if text.starts_with(READONLY) => Head::Error(READONLY),
        Head::Error(text) if says_nothing_ran(text) => Head::Error(NOT_BEGUN),
        Head::Error(_) => Head::Error(b""),
        Head::Int(n) => Head::Int(n),
        Head::Bulk(n) => Head::Bulk(n),
        Head::Null => Head::Null,
        Head::Array(n) => Head::Array(n),
        Head::Map(n) => Head::Map(n),
        Head::Set(n) => Head::Set(n),
        Head::Push(n) => Head::Push(n),
        Head::Attribute(n) => Head::Attribute(n),
        Head::Bool(yes) => Head::Bool(yes),
        Head::Double => Head::Double,
        Head::BigNumber => Head::BigNumber,
        Head::BlobError(n) => Head::BlobError(n),
        Head::Verbatim(n) => Head::Verbatim(n),
    }
}

#[cfg(test)]
mod tests;
