//! Labels follow their value: what RENAME, COPY and MOVE do to them. And they stay where RESTORE overwrites one.
//!
//! As with `TAG.WITH`, the labels are in the index and in Redis before the command is sent, and are taken back if it
//! did nothing. Those of the old place, and those of what was overwritten, go when it has succeeded.

use std::rc::Rc;
use std::sync::Arc;

use super::Client;
use super::labels::{self, Labelled, given_to};
use super::request::Request;
use super::tag::Answer;
use crate::command::{Carrying, Command};
use crate::context::Context;
use crate::fanout::Order;
use crate::index::LabelState;
use crate::lease::script::{Check, What};
use crate::lease::{Clock, Expected};
use crate::news::{Labels, Verb};
use crate::process::Process;
use crate::resp::Args;
use crate::rules::{Tag, unique};

const UNREAD: &str = "TRYAGAIN the labels in Redis are being read, which takes long";

/// Labels on their way from one key to another.
pub(super) struct Carried {
    /// What the destination gets.
    pub given: Labelled,
    /// Where they come from, and which were there.
    pub from: Labels,
    /// What its source had, or has got since, without what only commands of the same transaction give to it.
    pub had: Vec<Tag>,
    /// The value is not there any more afterwards.
    pub moves: bool,
    /// The labels of what is overwritten.
    old: Labels,
    /// How many invalidations had been seen before it was sent.
    clock: Clock,
    /// What the source loses until this is settled is remembered.
    _following: Following,
}

/// Labels to be handed on besides.
pub(super) struct Late {
    pub tags: Vec<Tag>,
    /// What the source has now, as in [`Carried::had`].
    had: Vec<Tag>,
}

/// A key of the index is followed as long as this lives.
struct Following {
    process: Arc<Process>,
    place: (u32, Box<[u8]>),
}

impl Drop for Following {
    fn drop(&mut self) {
        self.process.index.lock().unfollow(self.place.0, &self.place.1);
    }
}

/// Whether the request may have to do with labels that follow. Costs no lock where there are no labels.
pub(super) fn concerns(context: &Context, command: &Command, args: Args<'_>, db: u32) -> bool {
    let process = &context.process;
    if !command.carries || !process.may_have_labels() {
        return false;
    }
    let Some(carrying) = command.carrying(args, db) else { return false };
    !process.knows_labels() || {
        let index = process.index.lock();
        [carrying.from, carrying.to].iter().any(|(db, key)| index.with_labels(*db, key).is_some())
    }
}

/// What has to hold for the value that the request moves or copies: none of the tags that rules give it, there and here, and of
/// the labels that follow it, is invalidated meanwhile. Who deletes it here need not have heard of it there, nor be done there.
pub(super) fn checks(context: &Context, command: &Command, args: Args<'_>, db: u32) -> Vec<Check> {
    let process = &context.process;
    let Some(Carrying { from, to, .. }) = command.carrying(args, db) else { return vec![] };
    if from == to || process.dry_run {
        return vec![];
    }
    let (mut tags, mut there) = (vec![], vec![]);
    let mut matcher = context.matcher.borrow_mut();
    matcher.tags(from.0, from.1, &mut tags);
    matcher.tags(to.0, to.1, &mut there);
    drop(matcher);
    tags.retain(|tag| there.contains(tag));
    tags.extend(process.index.explicit_of(from.0, from.1));
    unique(&mut tags);
    // First what is known of those that are over, then whether others are under way: so none is missed that ends in between.
    let epochs = &process.epochs;
    let expected: Vec<_> = tags.iter().map(|tag| epochs.expected(tag, epochs.clock())).collect();
    if process.invalidating.concerns(&tags) {
        return vec![Check { key: to.1.into(), what: What::Never }];
    }
    let check =
        |(tag, expected): (Tag, Expected)| Check { key: to.1.into(), what: What::expected(&tag, expected) };
    tags.into_iter().zip(expected).map(check).collect()
}

/// Hands on the labels of the key that the request is about to move or copy; only then it may be sent. `None`: there
/// are none. The error is why they cannot be.
pub(super) async fn hand_on(client: &mut Client, request: Request<'_>) -> Answer<Option<Carried>> {
    let db = client.outbox.session.borrow().current_db();
    let Some(carrying) = request.command.and_then(|command| command.carrying(request.args, db)) else {
        return Ok(None);
    };
    learn(client, vec![carrying.from, carrying.to]).await?;
    let queued = client.outbox.session.borrow().in_multi();
    // Where labels are used, the source may get its first one while its command is under way.
    let always = queued || !client.context.process.knows_labels();
    let Some(mut carried) = begin(client, carrying, always) else { return Ok(None) };
    match carried.write_ahead(&client.context).await {
        Ok(()) => Ok(Some(carried)),
        Err(refusal) => {
            carried.undo(&client.context);
            Err(refusal)
        }
    }
}

/// Before the labels of these keys are asked of the index: it is to know what other proxies have given. Inside MULTI a
/// key that is gone may exist when its turn comes: then it must not have the labels of one that was there before.
/// The error: it takes long, and there are some.
pub(super) async fn learn(client: &Client, keys: Vec<(u32, &[u8])>) -> Answer<()> {
    let process = &client.context.process;
    let in_multi = client.outbox.session.borrow().in_multi();
    if process.may_have_labels() && (in_multi || !process.knows_labels()) {
        let keys = keys.into_iter().map(|(db, key)| (db, key.into())).collect();
        let known = process.fanout.ask(|reply| Order::Learn(keys, reply)).await;
        if known == Some(false) && process.has_left_labels() {
            return Err(UNREAD.into());
        }
    }
    Ok(())
}

/// In the index. With `always`, also where there is nothing to do yet: there may be when the command is done.
fn begin(client: &Client, carrying: Carrying<'_>, always: bool) -> Option<Carried> {
    let (context, Carrying { from, to, moves, condition }) = (&client.context, carrying);
    let mut index = context.process.index.lock();
    let (tags, old) = (index.explicit_of(from.0, from.1), index.explicit_of(to.0, to.1));
    if tags.is_empty() && old.is_empty() && !always {
        return None;
    }
    let [had, before] =
        [from, to].map(|at| index.explicit_besides(at.0, at.1, &given_to(at, client.given_in_multi())));
    index.follow(from.0, from.1);
    let _following = Following { process: Arc::clone(&context.process), place: (from.0, from.1.into()) };
    if moves {
        index.leaving(from.0, from.1, &tags);
    }
    index.leaving(to.0, to.1, &old);
    index.label(to.0, to.1, &tags, LabelState::InFlight);
    let labels = Labels::new(to.0, to.1, tags.clone());
    Some(Carried {
        given: Labelled { labels, before, added: vec![], told: vec![], condition, element: None },
        from: Labels::new(from.0, from.1, tags),
        had,
        moves,
        old: Labels::new(to.0, to.1, old),
        clock: context.process.epochs.clock(),
        _following,
    })
}

/// EXEC is about to be sent: labels that keys have got since their command was queued are handed on, or go, too. The error is why
/// they cannot be.
pub(super) async fn before_exec(client: &mut Client) -> Answer<()> {
    if client.context.process.may_have_labels() {
        let context = Rc::clone(&client.context);
        learn(client, vec![]).await?;
        for which in 0..client.transaction.carried.len() {
            let (one, given) = (&client.transaction.carried[which], || client.given_in_multi());
            let (late, late_old) = (one.late(&context, given()), one.late_old(&context, given()));
            let one = &mut client.transaction.carried[which];
            one.add(&context, late);
            context.process.index.lock().leaving(one.old.db, &one.old.key, &late_old);
            one.old.tags.extend(late_old);
            let added = std::mem::take(&mut one.given.added);
            let written = one.write_ahead(&context).await;
            one.given.added.extend(added);
            written?;
        }
    }
    if client.context.process.knows_labels() {
        client
            .transaction
            .carried
            .retain(|one| !one.given.labels.tags.is_empty() || !one.old.tags.is_empty());
    }
    Ok(())
}

impl Client {
    /// The labels that the transaction gives to keys, in any order.
    pub(super) fn given_in_multi(&self) -> impl Iterator<Item = &Labelled> {
        self.transaction.labelled.iter().chain(self.transaction.carried.iter().map(|one| &one.given))
    }
}

/// Other proxies are told what is about to be overwritten.
async fn tell_leaving(context: &Context, old: &Labels) -> Answer<()> {
    if old.tags.is_empty() || !context.process.labels.others_may_give() {
        return Ok(());
    }
    labels::tell_ahead(context, vec![(Verb::Leaving, old.clone())]).await
}

impl Carried {
    /// Its command is the queued one of this number.
    pub fn queued_as(mut self, element: usize) -> Self {
        self.given.element = Some(element);
        self
    }

    /// What Redis and the other proxies are to know before the command is sent.
    async fn write_ahead(&mut self, context: &Rc<Context>) -> Answer<()> {
        tell_leaving(context, &self.old).await?;
        if self.given.labels.tags.is_empty() {
            return Ok(());
        }
        let labels = self.given.labels.clone();
        let writing = context.process.fanout.ask(|reply| Order::Give(labels, reply));
        let (added, told) =
            tokio::join!(writing, labels::tell_coming(context, std::iter::once(&mut self.given)));
        let cannot = |error: String| labels::refused(&error, "labels cannot follow the value");
        self.given.added = added.unwrap_or(Ok(vec![])).map_err(cannot)?;
        told
    }

    /// Labels that its source has got meanwhile, also from those of the commands `given`, of the same transaction, that come
    /// before this one.
    pub fn late<'a>(&self, context: &Context, given: impl Iterator<Item = &'a Labelled>) -> Late {
        let from = (self.from.db, &*self.from.key);
        let given: Vec<_> = given.filter(|one| one.is_of(from)).collect();
        let own = given_to(from, given.iter().copied());
        let had = context.process.index.lock().explicit_or_lost(from.0, from.1, &own);
        let before = given.iter().filter(|one| one.element < self.given.element);
        let mut tags = had.clone();
        tags.extend(before.flat_map(|one| one.labels.tags.iter().cloned()));
        unique(&mut tags);
        tags.retain(|tag| !self.given.labels.tags.contains(tag));
        Late { tags, had }
    }

    /// Labels that what it overwrites has got meanwhile, without those of the same transaction.
    fn late_old<'a>(&self, context: &Context, given: impl Iterator<Item = &'a Labelled>) -> Vec<Tag> {
        let old = (self.old.db, &*self.old.key);
        let mut tags = context.process.index.lock().explicit_besides(old.0, old.1, &given_to(old, given));
        tags.retain(|tag| !self.old.tags.contains(tag));
        tags
    }

    /// What is to be done if one of these labels was invalidated while its value was on its way: the fan-out may have come
    /// too early for where it is now.
    pub fn missed(&self, context: &Context, tags: &[Tag]) -> Option<Check> {
        let epochs = &context.process.epochs;
        let missed = tags.iter().any(|tag| epochs.expected(tag, self.clock) == Expected::Stale);
        missed.then(|| Check { key: self.given.labels.key.clone(), what: What::Never })
    }

    /// These are handed on, too.
    pub fn add(&mut self, context: &Context, Late { tags, had }: Late) {
        let Labels { db, key, .. } = &self.given.labels;
        context.process.index.lock().label(*db, key, &tags, LabelState::InFlight);
        self.given.labels.tags.extend(tags);
        self.had.extend(had);
    }

    /// Labels that are marked as leaving. Other proxies know of a source what the feed shows, and of what is
    /// overwritten what they are told.
    pub fn marked(&self) -> impl Iterator<Item = Labels> {
        let from = Some(&self.from).filter(|_| self.moves);
        from.into_iter().chain([&self.old]).filter(|labels| !labels.tags.is_empty()).cloned()
    }

    /// Its command is not sent.
    pub fn undo(self, context: &Rc<Context>) {
        let marked: Vec<_> = self.marked().map(|labels| (Verb::Stayed, labels)).collect();
        marked.iter().for_each(|(verb, labels)| end(context, *verb, labels));
        let (reply, _) = tokio::sync::oneshot::channel();
        context.process.fanout.order(Order::Settle(marked, reply));
        labels::undo(context, vec![self.given]);
    }
}

/// The value that had these labels is gone, or not.
pub(super) fn end(context: &Context, verb: Verb, Labels { db, key, tags }: &Labels) {
    let process = &context.process;
    if verb == Verb::Left {
        let went = process.index.lock().left(*db, key, tags);
        process.fanout.forget(*db, key, went);
    } else {
        process.index.lock().stayed(*db, key, tags);
        process.fanout.order(Order::Retimed(vec![(*db, key.clone())]));
    }
}
