//! Labels of writes that are under way: given before the write is sent, made good or taken back by its reply.

use std::rc::Rc;

use super::Client;
use super::tag::{Answer, ask, may_write};
use crate::accounting::Verdict;
use crate::command::{Command, FireCondition};
use crate::context::Context;
use crate::fanout::{Order, label_set};
use crate::index::LabelState;
use crate::resp::Args;
use crate::rules::Tag;

/// Labels given to one key by a write that is under way.
pub(super) struct Labelled {
    db: u32,
    key: Box<[u8]>,
    tags: Vec<Tag>,
    /// Those that were not in Redis before.
    added: Vec<Tag>,
    /// When the write counts as done.
    pub condition: FireCondition,
    /// Inside MULTI: which of the queued commands it is, counted from 0.
    pub element: Option<usize>,
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
    let mut labelled =
        Labelled { db, key: key.into(), tags: tags.to_vec(), added: vec![], condition, element: None };
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

/// The labelled writes are done, with this reply: their labels are good, or are taken back. `unknown`: there was
/// no reply; a label too many costs a deletion too many, one too few is stale data.
pub(super) async fn settle(context: &Rc<Context>, labelled: Vec<Labelled>, verdict: &Verdict, unknown: bool) {
    if labelled.is_empty() {
        return;
    }
    let holds = |one: &Labelled| match one.element {
        _ if unknown => true,
        Some(element) => verdict.labelled.contains(&element),
        None => one.condition.fired(&verdict.head),
    };
    let (good, bad): (Vec<_>, Vec<_>) = labelled.into_iter().partition(holds);
    undo(context, bad);
    make_good(context, good).await;
}

/// These labelled writes took place.
pub(super) async fn make_good(context: &Rc<Context>, good: Vec<Labelled>) {
    if good.is_empty() {
        return;
    }
    // The events of these writes have been seen behind the barrier; later ones mean that the key was deleted.
    context.process.fanout.ask(Order::Barrier).await;
    for one in good {
        context.process.index.lock().settle(one.db, &one.key, &one.tags);
        context.process.fanout.order(Order::Score(one.db, one.key.into_vec(), one.tags));
    }
}

/// Takes labels back whose write did not take place.
pub(super) fn undo(context: &Rc<Context>, labelled: Vec<Labelled>) {
    for one in labelled {
        context.process.index.lock().cancel(one.db, &one.key, &one.tags);
        context.process.fanout.forget(one.db, &one.key, one.added);
    }
}
