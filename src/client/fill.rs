//! Writes that may fill a key with a value from before an invalidation.

use std::rc::Rc;

use super::{Client, Pause, Step};
use crate::command::{Command, Fill, FireCondition, KeyUse};
use crate::context::Context;
use crate::fanout::Order;
use crate::lease::script::{self, Check, What};
use crate::lease::{BEFORE_ALL, Clock, Expected, Filled, KeyHash};
use crate::outbox::Outbox;
use crate::resp::Args;
use crate::rules::{KeyClass, Tag};

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
    if !command.is_write() || (labels.is_empty() && !context.may_fill()) || process.dry_run {
        return vec![];
    }
    let Some(fill) = command.fill else { return vec![] };
    let own = outbox.session.borrow().current_db();
    let db = command.other_db(args).and_then(|db| u32::try_from(db).ok()).unwrap_or(own);
    let now = context.moment();
    let mut checks = vec![];
    command.keys(args, |used: KeyUse<'_>| {
        if !used.writes || used.deletes {
            return;
        }
        let KeyClass { family, has_tags, .. } = context.matcher.borrow_mut().classify(db, used.key);
        let labelled = !labels.is_empty() || process.index.may_have_labels(db, used.key);
        if !(has_tags || labelled || process.may_use_labels()) || !context.protects(family) {
            return;
        }
        let hash = process.leases.hash(db, used.key);
        let check = |what| Check { key: used.key.into(), what };
        if !has_tags && !labelled {
            let whole = fill == Fill::Whole;
            // Also a miss that somebody may have seen elsewhere.
            let suspect = (whole && process.leases.is_feared(now)).then_some(BEFORE_ALL);
            let clock = suspect.or_else(|| process.leases.oldest(hash, now));
            let sure = suspect.is_some() || !whole;
            let found = clock.and_then(|clock| unheard(context, db, used.key, clock, sure));
            return checks.extend(found.map(check));
        }
        let filled = process.leases.filled(hash, outbox.lessee(), fill, now);
        let Filled { mut clock, is_own, is_lone, .. } = filled;
        if labelled {
            clock = clock_of_labelled(context, filled, hash);
        }
        // Who only counts up does not fill.
        let is_foreign = !is_own && !process.is_alone() && (command.is_scripted || fill == Fill::Whole);
        if clock.is_none() && !is_foreign {
            return;
        }
        let mut tags = tags(context, db, used.key);
        let new: Vec<&Tag> = labels.iter().filter(|tag| !tags.contains(tag)).collect();
        tags.extend(new.into_iter().cloned());
        fills.extend(clock.map(|clock| (hash, clock)));
        let told = is_lone.then_some(outbox.id);
        let lacks = clock.is_none_or(|clock| clock == BEFORE_ALL)
            && process.may_lack_epochs(now, context.fill_window(family));
        let mut found = clock.map_or(vec![], |clock| compared(context, &tags, clock, told, lacks));
        found.extend(clock.and_then(|clock| unheard(context, db, used.key, clock, false)));
        if is_foreign {
            found.extend(elsewhere(context, &tags, told, context.is_strict(family), lacks));
        }
        if found.contains(&What::Never) {
            process.metrics.stale_fills(&context.matcher.borrow().rules().family(family).name);
        }
        checks.extend(found.into_iter().map(check));
    });
    checks
}

/// The key of a fill may have got labels that this proxy has not heard of yet: none of them must have been invalidated since
/// the miss. Beside other proxies that may not have been heard of either. `found`: what is not known does not count, since
/// nothing says that the key is a cached value.
fn unheard(context: &Context, db: u32, key: &[u8], clock: Clock, found: bool) -> Option<What> {
    let process = &context.process;
    let may_be_stale = process.may_use_labels()
        && (!process.is_alone()
            || process.epochs.has_news(clock)
            || process.fanout.outstanding() > 0
            || process.index.expects_labels(db, key, context.moment()));
    let since = || process.epochs.mark_at(clock).unwrap_or_default();
    may_be_stale.then(|| What::Unlabelled { since: since(), found })
}

/// A key gets labels behind its fill: what has to hold for it not to be stale.
pub(super) fn checks_of_labels(
    context: &Context,
    outbox: &Outbox,
    db: u32,
    key: &[u8],
    labels: &[Tag],
) -> Vec<Check> {
    let process = &context.process;
    let hash = process.leases.hash(db, key);
    let filled = process.leases.filled(hash, outbox.lessee(), Fill::Whole, context.moment());
    let clock = clock_of_labelled(context, filled, hash);
    let lacks =
        clock == Some(BEFORE_ALL) && process.may_lack_epochs(context.moment(), context.longest_window());
    let found = clock.map_or(vec![], |clock| compared(context, labels, clock, None, lacks));
    found.into_iter().map(|what| Check { key: key.into(), what }).collect()
}

/// When the miss was that decides about the fill of a key with labels. Until labels are used, misses of keys without tags are
/// kept apart: unless it is sure whose miss that is, the older one decides.
fn clock_of_labelled(context: &Context, filled: Filled, hash: KeyHash) -> Option<Clock> {
    if filled.is_sure {
        return filled.clock;
    }
    let unlabelled = context.process.leases.filled_unlabelled(hash, context.moment());
    filled.clock.into_iter().chain(unlabelled).min()
}

/// The tags of a key, by rules and explicit ones, as far as they are known.
pub(super) fn tags(context: &Context, db: u32, key: &[u8]) -> Vec<Tag> {
    let mut tags = vec![];
    context.matcher.borrow_mut().tags(db, key, &mut tags);
    tags.extend(context.process.index.explicit_of(db, key));
    tags
}

/// What a fill is compared with whose miss is of that clock. Where there was none, and misses have been lost, the connection
/// may know better: it has been told of the latest invalidation, and writes something new. `lacks`: else it is stale.
fn compared(context: &Context, tags: &[Tag], clock: Clock, told: Option<u64>, lacks: bool) -> Vec<What> {
    let epochs = &context.process.epochs;
    let mut checks = vec![];
    for tag in tags {
        let known = match clock {
            BEFORE_ALL => epochs.expected_without_miss(tag, told),
            _ => Expected::NoEpoch,
        };
        if lacks && known == Expected::NoEpoch {
            return vec![What::Never];
        }
        let expected = if known == Expected::NoEpoch { epochs.expected(tag, clock) } else { known };
        match expected {
            Expected::Stale => return vec![What::Never],
            Expected::Epoch(id) => checks.push(What::Epoch((&**tag).into(), id)),
            Expected::NoEpoch => checks.push(What::Epoch((&**tag).into(), Box::default())),
        }
    }
    checks
}

/// Where there are other proxies, a write without a miss may be the fill of a miss that one of them has seen: its client has
/// come here because that one died. Whether it did, and whether there is anything new, is for Redis to say: news may be on
/// their way to this proxy. `strict`: or by a load balancer; then only who has just been told of the invalidation surely
/// knows better. `lacks`: likewise, because Redis need not know what is new.
fn elsewhere(context: &Context, tags: &[Tag], told: Option<u64>, strict: bool, lacks: bool) -> Vec<What> {
    let process = &context.process;
    if strict || lacks {
        let expected = |tag: &Tag| match process.epochs.expected_without_miss(tag, told) {
            Expected::Epoch(id) => What::Epoch((&**tag).into(), id),
            Expected::Stale | Expected::NoEpoch if lacks => What::Never,
            Expected::Stale | Expected::NoEpoch => What::Epoch((&**tag).into(), Box::default()),
        };
        return tags.iter().map(expected).collect();
    }
    let lifelines = process.lifelines();
    let pairs = lifelines.iter().flat_map(|channel| tags.iter().map(move |tag| (channel, tag)));
    pairs.map(|(channel, tag)| What::Listener(channel.clone(), (&**tag).into())).collect()
}

/// Whether the request can be sent as a script, together with its checks.
pub(super) fn is_scripted(command: &Command, args: Args<'_>, checks: &[Check]) -> bool {
    // A script deletes what is stale in the client's own database.
    let here = command.other_db(args).is_none();
    let fits = script::fits(args.len(), checks.len()) && script::fits_in_a_step(checks);
    here && fits && command.is_scripted && command.arity_ok(args.len())
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
    /// Whether the request may be a fill, and it is not known yet if it can be sent as a script.
    #[inline]
    pub(super) fn awaits_scripts(&mut self, command: Option<&Command>) -> Option<Step> {
        let fills = command.is_some_and(|command| command.fill.is_some() && command.is_write());
        if !fills || !self.context.may_fill() || self.outbox.session.borrow().in_multi() {
            return None;
        }
        let conn = self.conn();
        (!conn.knows_scripts(&self.outbox)).then_some(Step::Again(Pause::Scripts))
    }
}
