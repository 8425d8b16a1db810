//! Labels of writes that are under way: given before the write is sent, made good or taken back by its reply.

use std::rc::Rc;

use super::Client;
use super::carry::Carried;
use super::tag::{Answer, ask, may_write};
use crate::accounting::Verdict;
use crate::command::{Command, FireCondition};
use crate::context::Context;
use crate::fanout::{Order, label_set};
use crate::index::LabelState;
use crate::news::{Labels, Verb};
use crate::resp::Args;
use crate::rules::Tag;

/// Labels given to one key by a write that is under way.
pub(super) struct Labelled {
    pub labels: Labels,
    /// Those that were not in Redis before.
    pub added: Vec<Tag>,
    /// When the write counts as done.
    pub condition: FireCondition,
    /// Inside MULTI: which of the queued commands it is, counted from 0.
    pub element: Option<usize>,
}

impl Labelled {
    /// Its value is gone already: all of its labels are to go from Redis, also those that it had before.
    fn void(mut self) -> Self {
        self.added.clone_from(&self.labels.tags);
        self
    }

    /// Whether the write took place. `unknown`: there was no reply; a label too many costs a deletion too many, one too
    /// few is stale data.
    pub fn holds(&self, verdict: &Verdict, unknown: bool) -> bool {
        match self.element {
            _ if unknown => true,
            Some(element) => verdict.labelled.contains(&element),
            None => self.condition.fired(&verdict.head),
        }
    }
}

/// Labels one key, in the index first and then in Redis. Also returns how many of the tags the index did not know.
pub(super) async fn give(
    client: &mut Client,
    db: u32,
    key: &[u8],
    tags: &[Tag],
    condition: FireCondition,
) -> Answer<(Labelled, usize)> {
    let new = client.context.process.index.lock().label(db, key, tags, LabelState::InFlight);
    let labels = Labels::new(db, key, tags.to_vec());
    let mut labelled = Labelled { labels, added: vec![], condition, element: None };
    for tag in tags {
        match ask(client, &[b"ZADD", &label_set(tag), b"NX", b"inf", key]).await {
            Ok(reply) if reply.is(1) => labelled.added.push(Tag::clone(tag)),
            Ok(_) => {}
            Err(refusal) => {
                undo(&client.context, vec![labelled]);
                return Err(refusal);
            }
        }
    }
    Ok((labelled, new))
}

/// Labels the keys that `inner` writes; only then it may be sent.
pub(super) async fn label_writes(
    client: &mut Client,
    command: Option<&Command>,
    inner: Args<'_>,
    tags: &[Tag],
) -> Answer<Vec<Labelled>> {
    let own_db = client.outbox.session.borrow().current_db();
    let mut keys: Vec<Box<[u8]>> = vec![];
    if let Some(command) = command.filter(|c| c.is_write()) {
        command.keys(inner, |used| {
            if used.writes && !used.deletes {
                keys.push(used.key.into());
            }
        });
    }
    if keys.is_empty() {
        may_write(client, tags).await?;
    }
    let condition = command.map_or(FireCondition::NoError, |c| c.fire_condition(inner));
    let db = command.and_then(|c| c.other_db(inner)).and_then(|db| u32::try_from(db).ok()).unwrap_or(own_db);
    let mut all: Vec<Labelled> = vec![];
    for key in keys {
        match give(client, db, &key, tags, condition).await {
            Ok((labelled, _)) => all.push(labelled),
            Err(refusal) => {
                undo(&client.context, all);
                return Err(refusal);
            }
        }
    }
    Ok(all)
}

/// The labelled writes are done, with this reply: their labels are good, or are taken back; those of values that were
/// moved or overwritten have followed them or are gone.
pub(super) async fn settle(
    context: &Rc<Context>,
    labelled: Vec<Labelled>,
    carried: Vec<Carried>,
    verdict: &Verdict,
    unknown: bool,
) {
    if labelled.is_empty() && carried.is_empty() {
        return;
    }
    let (mut carried, stayed): (Vec<_>, Vec<_>) =
        carried.into_iter().partition(|one| one.given.holds(verdict, unknown));
    // Within one transaction a later command may have done away with the value that an earlier one labelled.
    let overwritten = |one: &Labelled| !unknown && carried.iter().any(|later| later.ends(one));
    let holds = |one: &Labelled| one.holds(verdict, unknown) && !overwritten(one);
    let (good, bad): (Vec<_>, Vec<_>) = labelled.into_iter().partition(holds);
    let ended: Vec<bool> = carried.iter().map(|one| overwritten(&one.given)).collect();
    let void = |one: Labelled| if overwritten(&one) { one.void() } else { one };
    undo(context, bad.into_iter().map(void).collect());
    stayed.into_iter().for_each(|one| one.undo(context));
    if !unknown {
        carried.iter_mut().for_each(|one| one.catch_up(context));
    }
    let mut given: Vec<Labels> = good.into_iter().map(|one| one.labels).collect();
    let mut changes = vec![];
    let mut ends = vec![];
    for (mut one, ended) in carried.into_iter().zip(ended) {
        let labelled = one.take_given();
        if ended {
            undo(context, vec![labelled.void()]);
        } else {
            given.push(labelled.labels);
        }
        ends.push(one);
    }
    changes.extend(given.iter().cloned().map(|labels| (Verb::Given, labels)));
    let verb = if unknown { Verb::Stayed } else { Verb::Left };
    changes.extend(ends.iter().filter_map(Carried::news).map(|labels| (verb, labels)));
    make_good(context, given, changes).await;
    ends.into_iter().for_each(|one| one.end(context, unknown));
}

/// These labels are good.
async fn make_good(context: &Rc<Context>, given: Vec<Labels>, changes: Vec<(Verb, Labels)>) {
    // The events of these writes have been seen behind the barrier; later ones mean that the key was deleted.
    context.process.fanout.ask(|reply| Order::Settle(changes, reply)).await;
    let mut index = context.process.index.lock();
    given.iter().for_each(|one| index.settle(one.db, &one.key, &one.tags));
    drop(index);
    let keys = given.into_iter().map(|one| (one.db, one.key)).collect();
    context.process.fanout.order(Order::Retimed(keys));
}

/// This label of a key that exists is good.
pub(super) async fn make_one_good(context: &Rc<Context>, labelled: Labelled) {
    let labels = labelled.labels;
    make_good(context, vec![labels.clone()], vec![(Verb::Given, labels)]).await;
}

/// Takes labels back whose write did not take place.
pub(super) fn undo(context: &Rc<Context>, labelled: Vec<Labelled>) {
    for Labelled { labels: Labels { db, key, tags }, added, .. } in labelled {
        context.process.index.lock().cancel(db, &key, &tags);
        context.process.fanout.forget(db, &key, added);
    }
}
