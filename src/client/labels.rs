//! Labels of writes that are under way: given before the write is sent, made good or taken back by its reply.

use std::rc::Rc;

use super::Client;
use super::carry::{self, Carried};
use super::outcome::Outcome;
use super::tag::{Answer, Refusal, ask_in, may_write};
use super::with;
use crate::accounting::Verdict;
use crate::command::{Command, FireCondition};
use crate::context::Context;
use crate::fanout::Order;
use crate::index::LabelState;
use crate::news::{Labels, Verb, label_set};
use crate::resp::Args;
use crate::rules::Tag;
use crate::upstream::error_text;

/// Labels given to one key by a write that is under way.
pub(super) struct Labelled {
    pub labels: Labels,
    /// The labels that the key had before, without those that only commands of the same transaction give to it.
    pub before: Vec<Tag>,
    /// Those that were not in Redis before.
    pub added: Vec<Tag>,
    /// Those of which the other proxies have heard that they are coming.
    pub told: Vec<Tag>,
    /// When the write counts as done.
    pub condition: FireCondition,
    /// Inside MULTI: which of the queued commands it is, counted from 0.
    pub element: Option<usize>,
}

impl Labelled {
    /// Whether it is this key that they are given to.
    pub fn is_of(&self, (db, key): Place<'_>) -> bool {
        (self.labels.db, &*self.labels.key) == (db, key)
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

/// A key of a database.
pub(super) type Place<'a> = (u32, &'a [u8]);

/// What of these labels is given to that key: by each of the commands.
pub(super) fn given_to<'a>(place: Place<'_>, given: impl Iterator<Item = &'a Labelled>) -> Vec<&'a [Tag]> {
    given.filter(|one| one.is_of(place)).map(|one| &*one.labels.tags).collect()
}

/// Labels one key, in the index first and then in Redis. Also returns how many of the tags the index did not know.
pub(super) async fn give(
    client: &mut Client,
    db: u32,
    key: &[u8],
    tags: &[Tag],
    condition: FireCondition,
) -> Answer<(Labelled, usize)> {
    let (before, new) = {
        let mut index = client.context.process.index.lock();
        let before = index.explicit_besides(db, key, &given_to((db, key), client.given_in_multi()));
        (before, index.label(db, key, tags, LabelState::InFlight))
    };
    let labels = Labels::new(db, key, tags.to_vec());
    let mut labelled = Labelled { labels, before, added: vec![], told: vec![], condition, element: None };
    for tag in tags {
        match ask_in(client, db, &[b"ZADD", &label_set(tag), b"NX", b"inf", key]).await {
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

/// Other proxies hear of these labels before the write may be seen: whoever moves the value right then is to know them, and
/// whoever saw its key go is not to take them for those of the old value. So where Redis refuses to tell them, it is not written.
pub(super) async fn tell_coming(
    context: &Rc<Context>,
    given: impl Iterator<Item = &mut Labelled>,
) -> Answer<()> {
    if !context.process.labels.others_may_give() {
        return Ok(());
    }
    let mut coming = vec![];
    for one in given {
        let mut labels = one.labels.clone();
        labels.tags.retain(|tag| !one.told.contains(tag));
        one.told.extend(labels.tags.iter().cloned());
        coming.extend(Some((Verb::Coming, labels)).filter(|(_, labels)| !labels.tags.is_empty()));
    }
    tell_ahead(context, coming).await
}

/// Tells the others what they are to know before a write is sent.
pub(super) async fn tell_ahead(context: &Context, news: Vec<(Verb, Labels)>) -> Answer<()> {
    if news.is_empty() {
        return Ok(());
    }
    let told = context.process.fanout.ask(|reply| Order::Settle(news, reply)).await;
    told.unwrap_or(Ok(())).map_err(|error| refused(&error, "other proxies cannot be told of labels"))
}

/// What Redis has refused to the proxy is refused to the client in the same words, which say why.
pub(super) fn refused(error: &str, why: &str) -> Refusal {
    Refusal::from(&*format!("{} ({why})", error_text(error)))
}

/// Labels the keys that `inner` writes; only then it may be sent.
pub(super) async fn label_writes(
    client: &mut Client,
    command: Option<&Command>,
    inner: Args<'_>,
    tags: &[Tag],
) -> Answer<Vec<Labelled>> {
    let own_db = client.outbox.session.borrow().current_db();
    let writing = command.filter(|command| command.is_write());
    let keys = writing.map_or(vec![], |command| with::written(command, inner));
    if keys.is_empty() {
        may_write(client, tags).await?;
    }
    let condition = command.map_or(FireCondition::NoError, |c| c.label_condition(inner));
    let db = command.map_or(own_db, |command| command.target_db(inner, own_db));
    if client.outbox.session.borrow().in_multi() {
        // What is not known yet of the keys is not needed.
        let _ = carry::learn(client, keys.iter().map(|key| (db, *key)).collect()).await;
    }
    let mut all: Vec<Labelled> = vec![];
    for key in keys {
        match give(client, db, key, tags, condition).await {
            Ok((labelled, _)) => all.push(labelled),
            Err(refusal) => {
                undo(&client.context, all);
                return Err(refusal);
            }
        }
    }
    if let Err(refusal) = tell_coming(&client.context, all.iter_mut()).await {
        undo(&client.context, all);
        return Err(refusal);
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
    let holds = |one: &Labelled| one.holds(verdict, unknown);
    let (good, bad): (Vec<_>, Vec<_>) = labelled.into_iter().partition(holds);
    let (mut done, failed): (Vec<_>, Vec<_>) = carried.into_iter().partition(|one| holds(&one.given));
    if !unknown && !done.is_empty() {
        // The news of one that it got in one step may still be on their way.
        context.process.fanout.ask(|reply| Order::Learn(vec![], reply)).await;
        // A label that a source got while its command was under way may have come before it.
        for which in 0..done.len() {
            let carried = done.iter().chain(&failed).map(|one| &one.given);
            let late = done[which].late(context, good.iter().chain(&bad).chain(carried));
            let one = &mut done[which];
            let (db, missed) = (one.given.labels.db, one.missed(context, &late.tags));
            one.add(context, late);
            if let Some(check) = missed {
                context.process.fanout.ask(|reply| Order::Check(db, vec![check], reply)).await;
            }
        }
    }
    let outcome = Outcome::new(&[&good, &bad], &[&done, &failed], unknown);
    let ends: Vec<Labels> = done.iter().chain(&failed).flat_map(Carried::marked).collect();
    let mut given = vec![];
    for one in good.into_iter().chain(done.into_iter().map(|one| one.given)) {
        let (kept, void) = outcome.split(one);
        given.push(kept);
        undo(context, vec![void]);
    }
    undo(context, bad);
    undo(context, failed.into_iter().map(|one| one.given).collect());
    let verb = |one: &Labels| if outcome.has_ended(one) { Verb::Left } else { Verb::Stayed };
    let ends: Vec<_> = ends.into_iter().map(|one| (verb(&one), one)).collect();
    // Who does not hear of it was not told before either.
    let told = if context.process.labels.others_may_give() { ends.as_slice() } else { &[] };
    let changes = given.iter().cloned().map(|one| (Verb::Given, one)).chain(told.iter().cloned()).collect();
    make_good(context, given, changes).await;
    ends.into_iter().for_each(|(verb, one)| carry::end(context, verb, &one));
}

/// These labels are good.
async fn make_good(context: &Rc<Context>, given: Vec<Labels>, changes: Vec<(Verb, Labels)>) {
    // The events of these writes have been seen behind the barrier; later ones mean that the key was deleted.
    context.process.fanout.ask(|reply| Order::Settle(changes, reply)).await;
    let mut index = context.process.index.lock();
    for one in &given {
        index.settle(one.db, &one.key, &one.tags);
        // Redis has them, also those that were taken away while the write was under way.
        index.label(one.db, &one.key, &one.tags, LabelState::Settled);
    }
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
    for Labelled { labels: Labels { db, key, tags }, added, told, .. } in labelled {
        context.process.index.lock().cancel(db, &key, &tags);
        if !told.is_empty() {
            // Ahead of the rest: who still has them puts them back.
            let withdrawn = vec![(Verb::Withdrawn, Labels { db, key: key.clone(), tags: told })];
            context.process.fanout.order(Order::Settle(withdrawn, tokio::sync::oneshot::channel().0));
        }
        context.process.fanout.forget(db, &key, added);
    }
}
