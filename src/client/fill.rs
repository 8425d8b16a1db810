//! Writes that may fill a key with a value from before an invalidation.

use std::rc::Rc;

use super::forward::Extra;
use super::{Client, Pause, Step};
use crate::command::{Command, Fill, FireCondition, KeyUse};
use crate::context::Context;
use crate::fanout::Order;
use crate::lease::script::{Check, Unsure, What};
use crate::lease::{BEFORE_ALL, Clock, Expected, Filled, KeyHash, Moment, Write};
use crate::outbox::Outbox;
use crate::resp::Args;
use crate::rules::{FamilyId, KeyClass, Tag};

/// With so many fills it is looked which of them have been answered.
const MOST_FILLS: usize = 256;

/// A write whose keys have to be looked at behind it, because no script can do it with it.
#[derive(Clone, Debug)]
pub(super) struct Unwrapped {
    pub db: u32,
    pub condition: FireCondition,
    pub checks: Vec<Check>,
}

/// What has to hold for the keys that the request writes, with `labels` besides their own tags, not to become stale. Closes
/// the misses that it fills, so it is to be asked once for each request; `fills` gets what it has closed.
#[inline]
pub(super) fn checks(
    context: &Context,
    outbox: &Outbox,
    fills: &mut Vec<(KeyHash, Clock)>,
    command: &Command,
    args: Args<'_>,
    labels: &[Tag],
) -> Vec<Check> {
    let process = &context.process;
    let may_fill = context.may_fill() || context.may_fill_late(outbox) || !outbox.hits.borrow().is_empty();
    if !command.is_write() || (labels.is_empty() && !may_fill) || process.dry_run {
        return vec![];
    }
    let own = outbox.session.borrow().current_db();
    let db = command.target_db(args, own);
    let mut checks = vec![];
    // MOVE takes the key away here, and fills it there.
    let moves = &*command.name == "move";
    command.keys(args, |used: KeyUse<'_>| {
        if used.deletes && !moves {
            return process.leases.cleared(process.leases.hash(db, used.key), outbox.lessee());
        }
        if !used.writes {
            return;
        }
        let Some(fill) = command.fill else {
            // What brings no value fills nothing, unless it gives labels.
            if labels.is_empty() {
                return;
            }
            return checks.extend(checks_of_labels(context, outbox, db, used.key, labels));
        };
        let KeyClass { family, has_tags, .. } = context.matcher.borrow_mut().classify(db, used.key);
        let is_labelled = !labels.is_empty() || process.index.may_have_labels(db, used.key);
        if !(has_tags || is_labelled || process.may_use_labels()) || !context.protects(family) {
            return;
        }
        let hash = process.leases.hash(db, used.key);
        let written = Written { context, outbox, fill, db, key: used.key, hash, family };
        let found = match has_tags || is_labelled {
            true => written.with_tags(labels, is_labelled, fills),
            false => written.without_tags(fills).into_iter().collect(),
        };
        checks.extend(found.into_iter().map(|what| Check { key: used.key.into(), what }));
    });
    checks
}

/// The families of the keys that are known to become stale.
pub(super) fn stale(context: &Context, db: u32, checks: &[Check]) -> Vec<FamilyId> {
    let known = checks.iter().filter(|check| check.what == What::Never);
    let mut keys: Vec<&[u8]> = known.map(|check| &*check.key).collect();
    keys.dedup();
    keys.into_iter().map(|key| context.matcher.borrow_mut().classify(db, key).family).collect()
}

/// A key that a request writes, and may fill.
struct Written<'a> {
    context: &'a Context,
    outbox: &'a Outbox,
    fill: Fill,
    db: u32,
    key: &'a [u8],
    hash: KeyHash,
    family: FamilyId,
}

impl Written<'_> {
    /// What has to hold if no rule names the key and no label of it is known: whoever writes it may label it afterwards.
    fn without_tags(&self, fills: &mut Vec<(KeyHash, Clock)>) -> Option<What> {
        let (leases, now) = (&self.context.process.leases, self.context.moment());
        if !matches!(self.fill, Fill::Whole | Fill::Perhaps) {
            let clock = leases.oldest(self.hash, now)?;
            return self.unheard(clock, Unsure::Fresh);
        }
        let clock = leases.clock_of_labelled(self.filled(&[], now), self.hash, now);
        self.closes(clock, fills);
        // It may be the fill of a miss that somebody has seen elsewhere, or of one that is over.
        let is_suspect = self.is_late() || leases.is_feared(now);
        match is_suspect {
            true => self.unheard(BEFORE_ALL, Unsure::Fresh),
            false => self.unheard(clock?, Unsure::Asked),
        }
    }

    /// What has to hold if the key has tags, or gets `labels`; `fills` gets the miss that is closed.
    fn with_tags(&self, labels: &[Tag], is_labelled: bool, fills: &mut Vec<(KeyHash, Clock)>) -> Vec<What> {
        let (context, process) = (self.context, &self.context.process);
        let (now, is_late) = (context.moment(), self.is_late());
        let filled = self.filled(labels, now);
        let mut clock = match is_labelled {
            true => process.leases.clock_of_labelled(filled, self.hash, now),
            false => filled.clock,
        };
        if is_late && !filled.is_own {
            clock = Some(BEFORE_ALL);
        }
        // Without an open miss it may know better, or have read what it writes anew.
        let is_lone = filled.is_lone && clock == filled.clock;
        let window = context.fill_window(self.family);
        let may_share = process.leases.may_share(self.outbox.lessee().host, now);
        // What others have missed meanwhile makes it no newer, but where they may have read it over this connection.
        let looks = clock.is_none() || !(filled.is_own || may_share);
        let hit = looks.then(|| self.outbox.hits.borrow().clock_of(self.hash, now, window)).flatten();
        let hit = hit.filter(|hit| clock.is_none_or(|clock| *hit < clock));
        clock = hit.or(clock);
        let is_strict = context.is_strict(self.family);
        // Beside other proxies one of them may have seen another task's miss, wherever tasks share connections.
        let may_be_foreign = match process.is_alone() {
            true => is_strict && !filled.is_known,
            false => !filled.is_own,
        };
        let is_foreign = may_be_foreign && self.fill != Fill::Count;
        if clock.is_none() && !is_foreign {
            return vec![];
        }
        self.closes(clock, fills);
        let mut tags = tags(context, self.db, self.key);
        let new: Vec<&Tag> = labels.iter().filter(|tag| !tags.contains(tag)).collect();
        tags.extend(new.into_iter().cloned());
        let lacks =
            clock.is_none_or(|clock| clock == BEFORE_ALL) && lacks_epochs(context, self.outbox, window);
        let knows = match hit {
            // Another task of the connection may be the one that was told.
            Some(_) => !may_share,
            None => is_lone,
        };
        let comparison = Comparison {
            context,
            tags: &tags,
            told: (knows && !is_late).then_some(self.outbox.id),
            unsure: if lacks { Unsure::Stale } else { Unsure::Fresh },
        };
        let mut found = clock.map_or(vec![], |clock| comparison.since(clock));
        let unsure = if clock == Some(BEFORE_ALL) { Unsure::Stale } else { Unsure::Asked };
        found.extend(clock.and_then(|clock| self.unheard(clock, unsure)));
        if is_foreign {
            found.extend(comparison.elsewhere(is_strict));
        }
        found
    }

    /// Which miss it fills.
    fn filled(&self, labels: &[Tag], now: Moment) -> Filled {
        let (context, process) = (self.context, &self.context.process);
        let window = context.fill_window(self.family);
        let mut hits = self.outbox.hits.borrow_mut();
        let (found, along) = (hits.found_until(self.hash, window), hits.writes(self.hash, now, window));
        drop(hits);
        let is_told = |tag: &Tag| process.epochs.told(tag, self.outbox.id).is_some();
        let told = || tags(context, self.db, self.key).iter().chain(labels).any(is_told);
        let write = Write { client: self.outbox.lessee(), fill: self.fill, found, along, now };
        let filled = process.leases.filled(self.hash, write, told);
        if filled.is_ahead {
            self.outbox.hits.borrow_mut().went_ahead();
        }
        filled
    }

    /// Notes the miss that is closed. Those of what may only read stay open.
    fn closes(&self, clock: Option<Clock>, fills: &mut Vec<(KeyHash, Clock)>) {
        if self.fill != Fill::Perhaps {
            fills.extend(clock.map(|clock| (self.hash, clock)));
        }
    }

    /// Whether the request has waited here for so long that its miss may be over.
    fn is_late(&self) -> bool {
        self.outbox.has_waited(self.context.moment()) > self.context.fill_window(self.family) / 2
    }

    /// The key of a fill may have got labels that this proxy has not heard of yet: none of them must have been invalidated
    /// since the miss. Beside other proxies that may not have been heard of either.
    fn unheard(&self, clock: Clock, unsure: Unsure) -> Option<What> {
        let process = &self.context.process;
        let may_be_stale = process.may_use_labels()
            && (!process.is_alone()
                || process.epochs.has_news(clock)
                || process.fanout.outstanding() > 0
                || process.index.expects_labels(self.db, self.key, self.context.moment()));
        may_be_stale.then(|| {
            let (since, entries) = process.epochs.mark_at(clock);
            What::Unlabelled { since, entries, unsure }
        })
    }
}

/// Whether Redis may tell no more, or not yet, of an invalidation since the miss that the client's request fills, of which this
/// proxy need not have heard. It tells of each for twice the time for which fills are watched.
fn lacks_epochs(context: &Context, outbox: &Outbox, window: Moment) -> bool {
    let now = context.moment();
    outbox.has_rested(now) > window || context.process.may_lack_epochs(now, window)
}

/// A key gets labels behind its fill: what has to hold for it not to be stale.
pub(super) fn checks_of_labels(
    context: &Context,
    outbox: &Outbox,
    db: u32,
    key: &[u8],
    labels: &[Tag],
) -> Vec<Check> {
    let (process, now) = (&context.process, context.moment());
    let hash = process.leases.hash(db, key);
    let window = match context.may_fill_late(outbox) {
        true => context.fill_window(context.matcher.borrow_mut().classify(db, key).family),
        false => context.longest_window(),
    };
    // The fill may be forgotten.
    let is_late = window > 0 && outbox.has_waited(now) > window / 2;
    let Some(clock) = process.leases.labelled(hash, outbox.lessee(), is_late, now) else { return vec![] };
    let lacks = clock == BEFORE_ALL && lacks_epochs(context, outbox, window);
    let unsure = if lacks { Unsure::Stale } else { Unsure::Fresh };
    let found = Comparison { context, tags: labels, told: None, unsure }.since(clock);
    found.into_iter().map(|what| Check { key: key.into(), what }).collect()
}

/// The tags of a key, by rules and explicit ones, as far as they are known.
pub(super) fn tags(context: &Context, db: u32, key: &[u8]) -> Vec<Tag> {
    let mut tags = vec![];
    context.matcher.borrow_mut().tags(db, key, &mut tags);
    tags.extend(context.process.index.explicit_of(db, key));
    tags
}

/// Compares a fill with what has been invalidated.
struct Comparison<'a> {
    context: &'a Context,
    tags: &'a [Tag],
    /// The connection, if it knows better once it has been told of the latest invalidation: it writes something new then.
    told: Option<u64>,
    /// What counts of a tag without an epoch: Redis may have lost those of other proxies.
    unsure: Unsure,
}

impl Comparison<'_> {
    /// The fill of a miss, or of a read, of that clock.
    fn since(&self, clock: Clock) -> Vec<What> {
        let mut checks = vec![];
        for tag in self.tags {
            let expected = match self.known(tag) {
                None if self.unsure == Unsure::Stale => Expected::Stale,
                None => self.context.process.epochs.expected(tag, clock),
                Some(epoch) => Expected::Epoch(epoch),
            };
            match What::expected(tag, expected) {
                What::Never => return vec![What::Never],
                what => checks.push(what),
            }
        }
        checks
    }

    /// Where there are other proxies, a write without a miss may be the fill of a miss that one of them has seen: its client has
    /// come here because that one died. Whether it did, and whether there is anything new, is for Redis to say: news may be
    /// on their way to this proxy. `strict`: or by a load balancer, or it is written along with a key that was missed, by
    /// whichever proxy; then only who has just been told of the invalidation surely knows better.
    fn elsewhere(&self, strict: bool) -> Vec<What> {
        if strict || self.unsure == Unsure::Stale {
            let expected = |tag: &Tag| match (self.known(tag), self.unsure) {
                (Some(epoch), _) => What::Epoch((&**tag).into(), epoch),
                (None, Unsure::Stale) => What::Never,
                (None, _) => What::Epoch((&**tag).into(), Box::default()),
            };
            return self.tags.iter().map(expected).collect();
        }
        let lifelines = self.context.process.lifelines();
        let pairs = lifelines.iter().flat_map(|channel| self.tags.iter().map(move |tag| (channel, tag)));
        pairs.map(|(channel, tag)| What::Listener(channel.clone(), (&**tag).into())).collect()
    }

    /// The epoch of the tag's latest invalidation, if the connection has been told that it is complete.
    fn known(&self, tag: &Tag) -> Option<Box<[u8]>> {
        self.context.process.epochs.told(tag, self.told?)
    }
}

/// Looks at what was written and undoes what is stale; returns when that is done. False: it takes too long.
pub(super) async fn undo_stale(context: &Rc<Context>, unwrapped: Vec<Unwrapped>) -> bool {
    for one in unwrapped {
        let done = context.process.fanout.ask(|reply| Order::Check(one.db, one.checks, reply));
        if tokio::time::timeout(super::FANOUT_PATIENCE, done).await.is_err() {
            return false;
        }
    }
    true
}

impl Client {
    /// It goes on, so it has got the answers to what it has filled: to all of it, or, if it is never without a request under
    /// way, to what it filled some time ago.
    pub(super) fn forget_fills(&mut self) {
        if self.outbox.pending() == 0 {
            self.fills.clear();
            self.fills.shrink_to(MOST_FILLS);
            self.fills_answered = None;
        } else if let Some((fills, last)) = self.fills_answered {
            if self.outbox.has_answered(last) {
                self.fills.drain(..fills.min(self.fills.len()));
                self.fills_answered = None;
            }
        } else if self.fills.len() >= MOST_FILLS {
            self.fills_answered = Some((self.fills.len(), self.outbox.last_expected()));
        }
    }

    /// Whether nobody can say if the present request can be sent as a script.
    pub(super) fn is_unaided(&self) -> bool {
        self.present.as_ref().is_some_and(|present| present.unaided)
    }

    /// Whether the request may be a fill, and it is not known yet if it can be sent as a script.
    #[inline]
    pub(super) fn awaits_scripts(&mut self, command: Option<&Command>) -> Option<Step> {
        let fills = command.is_some_and(|command| command.fill.is_some() && command.is_write());
        if !fills || self.is_unaided() || !self.context.may_fill() || self.outbox.session.borrow().in_multi()
        {
            return None;
        }
        let conn = self.conn();
        (!conn.knows_scripts(&self.outbox)).then_some(Step::Again(Pause::Scripts))
    }

    /// What the request writes is looked at when it is done.
    pub(super) fn look_behind(
        &mut self,
        command: &Command,
        args: Args<'_>,
        checks: Vec<Check>,
        queued: bool,
        extra: &mut Extra,
    ) {
        let db = command.target_db(args, self.outbox.session.borrow().current_db());
        let unwrapped = Unwrapped { db, condition: command.fire_condition(args), checks };
        if queued {
            self.transaction.unwrapped.push(unwrapped);
        } else {
            extra.hold = true;
            extra.after.unwrapped.push(unwrapped);
        }
    }
}
