//! What a request reads, writes and fires.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::forward::Extra;
use super::{Client, Deleted, trust};
use crate::accounting::{Account, Firing, Queued, ReadKey, ReadKeys, Reading, TriggerLabel, Watch};
use crate::command::{Command, FireCondition, KeyUse, Kind, Reads};
use crate::context::Context;
use crate::fanout::{CHANNEL, Cause, MOST_NAMED};
use crate::outbox::Outbox;
use crate::resp::Args;
use crate::rules::{Fired, Matcher, Rules, Tag, unique};

/// Finds out what to look for in the reply to a request.
#[inline]
pub(super) fn account(
    context: &Rc<Context>,
    outbox: &Outbox,
    command: &Command,
    args: Args<'_>,
    queued: bool,
    extra: &mut Extra,
) -> Account {
    let publish = command.kind == Kind::Publish && args.get(1) == Some(CHANNEL);
    let nothing = !command.has_keys() && !publish;
    if nothing && !queued {
        return Account::Nothing;
    }
    let db = outbox.session.borrow().current_db();
    let mut reading = (command.reads != Reads::Uncounted).then(|| reading(context, db, command, args));
    if context.process.doubt.any() && !command.is_write() {
        extra.hidden = trust::hidden(context, db, command, args);
        if !extra.hidden.is_empty() {
            // That it is missed says nothing.
            reading.iter_mut().for_each(|reading| reading.fetches = false);
        }
    }
    let firing = match publish {
        true => published(context, args),
        false if command.is_write() && !command.only_reads(args) => {
            written(context, db, command, args, queued, extra)
        }
        false => None,
    };
    if queued {
        // Two of them: the reply `QUEUED` is checked, EXEC's element is counted.
        let entry = Queued { reading, firing, metric: Some(command.metric), ..Queued::default() };
        let check =
            entry.firing.is_some().then(|| Queued { firing: entry.firing.clone(), ..Queued::default() });
        outbox.queued.borrow_mut().push(entry);
        return check.map_or(Account::Nothing, |entry| Account::Queued(Box::new(entry)));
    }
    match (firing, reading) {
        (Some(firing), _) => Account::Write(Box::new(firing)),
        (None, Some(reading)) => Account::Read(reading),
        (None, None) => Account::Nothing,
    }
}

/// As [`account`] for a request outside MULTI, if nothing is to be looked for but hits and misses. `None`: ask
/// [`account`].
#[inline]
pub(super) fn account_plainly(
    context: &Context,
    outbox: &Outbox,
    command: &Command,
    args: Args<'_>,
) -> Option<Account> {
    if !command.has_keys() {
        return Some(Account::Nothing);
    }
    let db = outbox.session.borrow().current_db();
    if command.is_write() && !writes_plainly(context, outbox, db, command, args) {
        return None;
    }
    if command.reads == Reads::Uncounted {
        return Some(Account::Nothing);
    }
    let reading = reading(context, db, command, args);
    (!reading.is_ambiguous()).then_some(Account::Read(reading))
}

/// Whether writing the keys of the request fires nothing, fills nothing that was missed, and is nothing that the index must
/// be told.
#[inline]
fn writes_plainly(context: &Context, outbox: &Outbox, db: u32, command: &Command, args: Args<'_>) -> bool {
    let process = &context.process;
    let may_fill = command.fill.is_some() && context.may_fill();
    if process.own_writes() || (command.fill.is_some() && context.may_fill_late(outbox)) {
        return false;
    }
    // Keys without tags are filled with anything, as long as nobody gives labels.
    let may_fill_any = may_fill && process.may_use_labels();
    let (labels, now) = (process.index.has_labels(), context.moment());
    let mut matcher = context.matcher.borrow_mut();
    let hits = outbox.hits.borrow();
    let may_rewrite = command.fill.is_some() && !hits.is_empty();
    let feed_db = matcher.rules().feed_database().filter(|feed| *feed != db);
    let mut plainly = true;
    command.keys(args, |used| {
        if used.writes {
            let class = matcher.classify(db, used.key);
            let may_fill = may_fill_any || (may_fill && class.has_tags);
            // What has no miss here may have one at another proxy, or be as old as one of another key.
            let must_have_missed = may_fill && (!process.is_alone() || context.is_strict(class.family));
            plainly &= !class.has_triggers && !must_have_missed;
            plainly &= feed_db.is_none_or(|db| !matcher.classify(db, used.key).has_triggers);
            plainly &= !(used.deletes && process.index.expects_labels(db, used.key, now));
            if plainly && may_rewrite && (class.has_tags || labels) {
                let hash = process.leases.hash(db, used.key);
                plainly = hits.clock_of(hash, now, context.fill_window(class.family)).is_none();
            }
            if plainly && may_fill {
                plainly = !process.leases.may_be_filled(process.leases.hash(db, used.key), now);
            }
            let asks = used.deletes || (command.retimes && context.retiming_is_due());
            if plainly && labels && asks {
                plainly = !process.index.may_have_labels(db, used.key);
                if plainly && !used.deletes {
                    context.retimes_in_vain();
                }
            }
        }
    });
    plainly
}

fn reading(context: &Context, db: u32, command: &Command, args: Args<'_>) -> Reading {
    let mut matcher = context.matcher.borrow_mut();
    let (mut keys, mut writes) = (ReadKeys::new(), false);
    let labels_used = context.process.labels.are_used();
    command.keys(args, |used| {
        if used.reads {
            let class = matcher.classify(db, used.key);
            let watch = match context.protects(class.family) {
                false => Watch::No,
                true if class.has_tags || labels_used => Watch::Tagged,
                true => Watch::Unlabelled,
            };
            let hash = context.process.leases.hash(db, used.key);
            keys.push(ReadKey { family: class.family, counts: true, watch, hash });
        }
        writes |= used.writes;
    });
    // Not GETEX, which brings no value.
    if writes && command.fill.is_some() {
        keys.iter_mut().for_each(|key| key.counts = false);
    }
    let fetches = context.coalesces()
        && command.fetches(args)
        && keys.first().is_some_and(|key| context.longest_wait(key.family) > 0);
    Reading { reads: command.reads, keys, fetches, waited: false }
}

/// What writing the keys of the request fires. Also tells the index, where it has no other way to know.
fn written(
    context: &Context,
    db: u32,
    command: &Command,
    args: Args<'_>,
    queued: bool,
    extra: &mut Extra,
) -> Option<Firing> {
    let process = &context.process;
    let mut matcher = context.matcher.borrow_mut();
    let mut fired: Vec<Fired> = vec![];
    let (mut keys, mut partial) = (vec![], false);
    let labels = process.index.has_labels();
    let own_writes = process.own_writes();
    let databases = command.written_in(args, db);
    // Of writes in other databases the feed thinks that they were made in this one: it is not told.
    let feed_db = matcher.rules().feed_database();
    command.keys(args, |used: KeyUse<'_>| {
        if !used.writes {
            return;
        }
        let mut shown = false;
        for db in &databases {
            let class = matcher.classify(*db, used.key);
            shown |= class.has_triggers;
            if class.has_triggers {
                partial |= !matcher.fired(*db, used.key, command.name_to_fire(), &mut fired);
            }
            if own_writes && class.has_tags {
                index_write(context, &mut matcher, *db, used.key);
            }
        }
        if shown || feed_db.is_some_and(|db| matcher.classify(db, used.key).has_triggers) {
            keys.push((db, used.key.into()));
        }
        let retimes = labels && command.retimes && process.index.may_have_labels(databases[0], used.key);
        if retimes && context.retiming_is_due() {
            extra.retimed.push((databases[0], used.key.into()));
        }
        let goes = used.deletes && !queued && !command.stays_put(args);
        if goes && process.index.expects_labels(db, used.key, context.moment()) {
            extra.hold = true;
            extra.after.unseen.push((db, used.key.into()));
        }
        if labels && goes {
            let found = process.index.with_labels(db, used.key);
            extra.hold |= found.is_some();
            extra.after.deleted.extend(found.map(|(id, generation)| Deleted {
                db,
                key: used.key.into(),
                id,
                generation,
                condition: command.fire_condition(args),
            }));
        }
    });
    let rules = Arc::clone(matcher.rules());
    drop(matcher);
    if keys.is_empty() {
        return None;
    }
    let condition = command.fire_condition(args);
    let mut firing = Firing { partial, ..firing(command, condition, fired, rules, keys) };
    if command.blocks(args) {
        // Nil says that it did not write.
        firing.condition = FireCondition::NotNil;
        if !queued {
            // Nobody knows when it will: what the feed shows meanwhile may be anybody's, and is not covered.
            firing.keys.clear();
        }
    }
    (!firing.tags.is_empty() || !firing.keys.is_empty()).then_some(firing)
}

/// Where Redis sends no events, the index learns of a dependent from its write, before it happens.
fn index_write(context: &Context, matcher: &mut Matcher, db: u32, key: &[u8]) {
    let mut tags = vec![];
    matcher.tags(db, key, &mut tags);
    if !tags.is_empty() {
        context.process.index.lock().add(db, key, &tags);
    }
}

fn firing(
    command: &Command,
    condition: FireCondition,
    fired: Vec<Fired>,
    rules: Arc<Rules>,
    keys: Vec<(u32, Box<[u8]>)>,
) -> Firing {
    let (triggers, tags) = merged(fired);
    let mut what = command.name.to_ascii_uppercase();
    for (_, key) in keys.iter().take(MOST_NAMED) {
        what.push(' ');
        what.push_str(&String::from_utf8_lossy(key));
    }
    if keys.len() > MOST_NAMED {
        what.push_str(" …");
    }
    Firing { condition, triggers, tags, rules, keys, partial: false, what, intents: SmallVec::new() }
}

/// Each trigger and each tag once.
fn merged(fired: Vec<Fired>) -> (SmallVec<[TriggerLabel; 1]>, Vec<Tag>) {
    let (mut triggers, mut tags) = (SmallVec::new(), vec![]);
    for one in fired {
        if !triggers.contains(&TriggerLabel::Rule(one.trigger)) {
            triggers.push(TriggerLabel::Rule(one.trigger));
        }
        tags.extend(one.tags);
    }
    unique(&mut tags);
    (triggers, tags)
}

/// `PUBLISH rescind:invalidate "tag tag"`.
fn published(context: &Context, args: Args<'_>) -> Option<Firing> {
    let payload = args.get(2).filter(|_| args.len() == 3)?;
    let tags = crate::fanout::tags_of_message(payload);
    (!tags.is_empty()).then(|| Firing {
        condition: FireCondition::NoError,
        triggers: SmallVec::from_slice(&[TriggerLabel::Publish]),
        tags,
        rules: Arc::clone(context.matcher.borrow().rules()),
        keys: vec![(0, payload.into())],
        partial: false,
        what: format!("PUBLISH {}", String::from_utf8_lossy(CHANNEL)),
        intents: SmallVec::new(),
    })
}

/// Whether writing the keys of the request could fire something.
pub(super) fn may_fire(context: &Context, db: u32, command: &Command, args: Args<'_>) -> bool {
    let mut matcher = context.matcher.borrow_mut();
    let mut fires = false;
    if command.is_write() {
        let databases = command.written_in(args, db);
        command.keys(args, |used| {
            fires |= used.writes && databases.iter().any(|db| matcher.classify(*db, used.key).has_triggers);
        });
    }
    fires
}

/// The writes are about to be sent: what the feed shows of their keys is ours.
pub(super) fn enter(context: &Context, account: &Account) {
    let own = &context.process.own_triggers;
    match account {
        Account::Write(firing) => own.enter(firing),
        Account::Exec(queued) => queued.iter().filter_map(|q| q.firing.as_ref()).for_each(|f| own.enter(f)),
        _ => {}
    }
}

/// These writes did not take place. If the feed showed one all the same, it was somebody else's.
pub(super) fn not_fired(client: &Client, idle: Vec<Firing>) {
    let process = &client.context.process;
    let mut others = vec![];
    for firing in idle {
        let keys = process.own_triggers.leave(&firing, false);
        if keys.is_empty() {
            continue;
        }
        if firing.is_message() {
            process.own_triggers.enter(&firing);
            others.push(firing);
            continue;
        }
        // Whoever wrote them, his command is not known, so all triggers of the keys fire.
        let mut matcher = client.context.matcher.borrow_mut();
        let feed_db = matcher.rules().feed_database();
        let mut fired = vec![];
        for (db, key) in &keys {
            matcher.fired(feed_db.unwrap_or(*db), key, None, &mut fired);
        }
        let (triggers, tags) = merged(fired);
        let rules = Arc::clone(matcher.rules());
        let firing = Firing { triggers, tags, keys, rules, partial: false, ..firing };
        // Its fan-out leaves them.
        process.own_triggers.enter(&firing);
        others.push(firing);
    }
    client.context.fan_out_detached("direct", others);
}

/// Fans out what fired. False: it will not be done, because the process ends.
pub(super) fn fan_out(client: &Client, fired: Vec<Firing>) -> impl Future<Output = bool> + use<> {
    let process = &client.context.process;
    let cause = Cause::of(&client.who(), &fired).by(client.outbox.id);
    let done = if fired.iter().all(Firing::only_covers) {
        process.fanout.detached(cause, fired);
        None
    } else {
        Some(client.context.fan_out(cause, fired))
    };
    async move {
        match done {
            Some(done) => done.await.is_some(),
            None => true,
        }
    }
}
