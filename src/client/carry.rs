//! Labels follow their value: what RENAME, COPY and MOVE do to them.
//!
//! As with `TAG.WITH`, the labels are in the index and in Redis before the command is sent, and are taken back if it
//! did nothing. Those of the old place, and those of what was overwritten, go when it has succeeded.

use std::rc::Rc;

use super::Client;
use super::labels::{self, Labelled};
use crate::command::{Carrying, Command};
use crate::context::Context;
use crate::fanout::Order;
use crate::index::LabelState;
use crate::news::{Labels, Verb};
use crate::resp::Args;
use crate::rules::Tag;

/// Labels on their way from one key to another.
pub(super) struct Carried {
    /// What the destination gets.
    pub given: Labelled,
    /// Where they come from, with those that are known to be on their way.
    from: Labels,
    /// The value is not there any more afterwards.
    moves: bool,
    /// The labels of what is overwritten.
    old: Labels,
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

/// Hands on the labels of the key that the request is about to move or copy; only then it may be sent. `None`: there
/// are none.
pub(super) async fn hand_on(
    client: &mut Client,
    command: Option<&Command>,
    args: Args<'_>,
) -> Option<Carried> {
    let process = std::sync::Arc::clone(&client.context.process);
    let db = client.outbox.session.borrow().current_db();
    let carrying = command.filter(|_| process.may_have_labels())?.carrying(args, db)?;
    if !process.knows_labels() {
        process.fanout.ask(Order::Learn).await;
    }
    let mut carried = begin(&client.context, carrying)?;
    if let Some(labels) = carried.news().filter(|_| process.others.load(std::sync::atomic::Ordering::Acquire))
    {
        process.fanout.ask(|reply| Order::Settle(vec![(Verb::Leaving, labels)], reply)).await;
    }
    carried.write_given(&client.context).await;
    Some(carried)
}

/// In the index.
fn begin(context: &Context, carrying: Carrying<'_>) -> Option<Carried> {
    let Carrying { from, to, moves, condition } = carrying;
    let mut index = context.process.index.lock();
    let (tags, old) = (index.explicit_of(from.0, from.1), index.explicit_of(to.0, to.1));
    if tags.is_empty() && old.is_empty() {
        return None;
    }
    if moves {
        index.leaving(from.0, from.1, &tags);
    }
    index.leaving(to.0, to.1, &old);
    index.label(to.0, to.1, &tags, LabelState::InFlight);
    let labels = Labels::new(to.0, to.1, tags.clone());
    Some(Carried {
        given: Labelled { labels, added: vec![], condition, element: None },
        from: Labels::new(from.0, from.1, tags),
        moves,
        old: Labels::new(to.0, to.1, old),
    })
}

/// EXEC is about to be sent: labels that sources have got since their command was queued are handed on, too.
pub(super) async fn before_exec(client: &mut Client) {
    let context = Rc::clone(&client.context);
    if !context.process.knows_labels() {
        context.process.fanout.ask(Order::Learn).await;
    }
    for place in 0..client.carried_queued.len() {
        let one = &client.carried_queued[place];
        // Not those that the same transaction gives to what is there afterwards.
        let others = client.carried_queued.iter().map(|other| &other.given);
        let later = client.labels_queued.iter().chain(others).filter(|other| {
            other.element > one.given.element
                && other.labels.db == one.from.db
                && other.labels.key == one.from.key
        });
        let later: Vec<Tag> = later.flat_map(|other| other.labels.tags.iter().cloned()).collect();
        let new = one.late(&context, &later);
        let one = &mut client.carried_queued[place];
        one.add(&context, new);
        let all = std::mem::take(&mut one.given.added);
        one.write_given(&context).await;
        one.given.added.extend(all);
    }
}

impl Carried {
    /// Its command is the queued one of this number.
    pub fn queued_as(mut self, element: usize) -> Self {
        self.given.element = Some(element);
        self
    }

    async fn write_given(&mut self, context: &Context) {
        let labels = self.given.labels.clone();
        let added = context.process.fanout.ask(|reply| Order::Give(labels, reply)).await;
        self.given.added = added.unwrap_or_default();
    }

    /// Labels that its source has got meanwhile.
    fn late(&self, context: &Context, except: &[Tag]) -> Vec<Tag> {
        let mut tags = context.process.index.lock().explicit_of(self.from.db, &self.from.key);
        tags.retain(|tag| !self.from.tags.contains(tag) && !except.contains(tag));
        tags
    }

    fn add(&mut self, context: &Context, tags: Vec<Tag>) {
        let Labels { db, key, .. } = &self.given.labels;
        context.process.index.lock().label(*db, key, &tags, LabelState::InFlight);
        self.given.labels.tags.extend(tags.iter().cloned());
        self.from.tags.extend(tags);
    }

    /// The command has succeeded. A label that its source got while it was under way may have come before it.
    pub fn catch_up(&mut self, context: &Context) {
        if self.given.element.is_none() {
            let late = self.late(context, &[]);
            self.add(context, late);
        }
    }

    /// Whether this one, later in the same transaction, has done away with the value that `one` labelled.
    pub fn ends(&self, one: &Labelled) -> bool {
        let is = |place: &Labels| place.db == one.labels.db && place.key == one.labels.key;
        self.given.element > one.element && (is(&self.old) || (self.moves && is(&self.from)))
    }

    /// What the destination has got.
    pub fn take_given(&mut self) -> Labelled {
        let nothing = Labels { tags: vec![], ..self.given.labels.clone() };
        let (condition, element) = (self.given.condition, self.given.element);
        std::mem::replace(&mut self.given, Labelled { labels: nothing, added: vec![], condition, element })
    }

    /// What other proxies must be told of: they know of the source what the feed shows.
    pub fn news(&self) -> Option<Labels> {
        (!self.old.tags.is_empty()).then(|| self.old.clone())
    }

    /// The old labels go; `unknown`: they stay, since nobody knows whether their value has gone.
    pub fn end(self, context: &Context, unknown: bool) {
        let process = &context.process;
        let from = Some(&self.from).filter(|_| self.moves);
        for Labels { db, key, tags } in from.into_iter().chain([&self.old]) {
            if unknown {
                process.index.lock().stayed(*db, key, tags);
            } else {
                let went = process.index.lock().left(*db, key, tags);
                process.fanout.forget(*db, key, went);
            }
        }
    }

    /// Its command did nothing.
    pub fn undo(mut self, context: &Rc<Context>) {
        labels::undo(context, vec![self.take_given()]);
        if let Some(labels) = self.news() {
            let (reply, _) = tokio::sync::oneshot::channel();
            context.process.fanout.order(Order::Settle(vec![(Verb::Stayed, labels)], reply));
        }
        self.end(context, true);
    }
}
