//! TAG.WITH and what TAG.NEXT makes of a write: commands that label what they write.
//!
//! Redis gives the labels in the step in which it writes, where a script can do that: then neither can be seen without the
//! other, and the index learns of the labels from the feed. Otherwise they are given first (`labels`).

use std::rc::Rc;

use bytes::BytesMut;

use super::carry::{self, Carried};
use super::forward::Extra;
use super::labels::{self, Labelled, label_writes};
use super::request::Request;
use super::tag::{self, Answer, Refusal, labels_of};
use super::{After, Client, Pause, Step, fill};
use crate::command::{Command, Commands, Kind, TagCommand, with_parts};
use crate::lease::script::{self, Labelling};
use crate::news::{self, News, Verb};
use crate::resp::{Args, OwnedArgs};
use crate::rules::{Tag, unique};
use crate::session::Route;

/// Labels that a write is given in the same step.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    pub tags: Vec<Tag>,
    /// The feed is to show them in that step, too; otherwise the index has them already.
    pub told: bool,
}

impl Labels {
    /// What the script for `inner`, sent in database `db`, has to do about them.
    pub fn of<'a>(&'a self, command: &Command, inner: Args<'a>, db: u32, number: u64) -> Labelling<'a> {
        if self.tags.is_empty() {
            return Labelling::default();
        }
        let keys = written(command, inner);
        let told = |key: &&[u8]| {
            let labels = news::Labels::new(db, key, self.tags.clone());
            News::payload(number, Verb::Written, &labels)
        };
        let news: Vec<BytesMut> = keys.iter().filter(|_| self.told).map(told).collect();
        Labelling { tags: &self.tags, keys, news }
    }
}

/// The keys that get a value, each once.
pub(super) fn written<'a>(command: &Command, args: Args<'a>) -> Vec<&'a [u8]> {
    let mut keys = vec![];
    command.keys(args, |used| {
        if used.writes && !used.deletes {
            keys.push(used.key);
        }
    });
    unique(&mut keys);
    keys
}

/// The command in a TAG.WITH.
pub(super) fn inner(args: Args<'_>) -> Option<Args<'_>> {
    with_parts(args).ok().map(|(_, inner)| inner)
}

/// Whether Redis can do the request and label what it writes in one step.
fn is_one_step(command: &Command, args: Args<'_>, tags: usize) -> bool {
    let labelled = command.kind == Kind::Plain && command.is_scripted && !command.carries;
    let keys = if labelled && command.arity_ok(args.len()) { written(command, args).len() } else { 0 };
    keys > 0 && script::fits(args.len() + 3 + tags + 2 * keys, 2 * keys * tags)
}

/// `TAG.WITH n tag… command arg…` for what TAG.NEXT announced.
pub(super) fn with_of(next: &[Tag], args: Args<'_>) -> OwnedArgs {
    let count = next.len().to_string();
    let head = [b"TAG.WITH".as_slice(), count.as_bytes()];
    head.into_iter().chain(next.iter().map(|tag| &**tag)).chain(args.iter()).collect()
}

impl Client {
    /// The write in a TAG.WITH, or behind a TAG.NEXT, and its labels, if they can be one step. `None`: it must be done in
    /// more, or is none.
    #[inline]
    pub(super) fn labelled<'a>(
        &self,
        commands: &Commands,
        command: Option<&Command>,
        args: Args<'a>,
    ) -> Option<(Args<'a>, Labels)> {
        let is_with = command.is_some_and(|c| c.kind == Kind::Tag(TagCommand::With));
        if is_with || !self.next.is_empty() { self.one_step(commands, command, args, is_with) } else { None }
    }

    fn one_step<'a>(
        &self,
        commands: &Commands,
        command: Option<&Command>,
        args: Args<'a>,
        is_with: bool,
    ) -> Option<(Args<'a>, Labels)> {
        let session = self.outbox.session.borrow();
        let hears = self.context.process.labels.are_heard();
        let is_apart = session.is_raw() || session.may_be_confined();
        if session.in_multi() || !session.has_standing() || is_apart || !hears {
            return None;
        }
        let announced = self.next.iter().map(|tag| &**tag);
        let (tags, inner, command) = if is_with {
            let (named, inner) = with_parts(args).ok()?;
            let named: Vec<&[u8]> = named.collect();
            (labels_of(named.into_iter().chain(announced)).ok()?, inner, commands.find(inner))
        } else {
            (labels_of(announced).ok()?, args, command)
        };
        command.filter(|command| is_one_step(command, inner, tags.len()))?;
        self.context.process.use_labels();
        Some((inner, Labels { tags, told: true }))
    }

    /// Whether the request with these labels has to wait, or must be done in more than one step after all.
    pub(super) fn awaits_labels(&mut self, labels: &Labels, args: Args<'_>) -> Option<Step> {
        if labels.tags.is_empty() {
            return None;
        }
        let conn = self.conn();
        if !self.is_unaided() && !conn.knows_scripts(&self.outbox) {
            return Some(Step::Again(Pause::Scripts));
        }
        if conn.takes_labels() {
            return None;
        }
        if self.outbox.pending() > 0 {
            return Some(Step::Again(Pause::Idle));
        }
        self.outbox.session.borrow_mut().answered_unrouted();
        Some(Step::Then(Pause::Tag(TagCommand::With, with_of(&labels.tags, args))))
    }
}

/// Labels what a command writes, with what TAG.NEXT has announced as well; then sends it.
pub(super) async fn run(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let (named, inner) = with_parts(args)?;
    let announced = std::mem::take(&mut client.next);
    let tags = labels_of(named.chain(announced.iter().map(|tag| &**tag)))?;
    let commands = client.context.commands.borrow().clone();
    let request = Request::new(&commands, inner, None);
    let command = request.command;
    if let Some(command) = command.filter(|c| !c.kind.may_be_labelled()) {
        return Err(format!("ERR '{}' cannot be labelled", command.name).as_str().into());
    }
    client.context.process.use_labels();
    if let Some(wanted) = client.may_invalidate(&Rc::clone(&client.context), request) {
        client.intend(wanted).await.map_err(|error| Refusal::from(&*format!("ERR {error}")))?;
    }
    let labelled = label_writes(client, command, inner, &tags).await?;
    let carried = match carry::hand_on(client, request).await {
        Ok(carried) => carried,
        Err(refusal) => {
            labels::undo(&client.context, labelled);
            return Err(refusal);
        }
    };
    dispatch(client, request, labelled, carried, tags).await;
    Ok(())
}

/// A command that takes labels along, or EXEC where there are some among what was queued.
pub(super) async fn follow(client: &mut Client, args: Args<'_>) {
    let commands = client.context.commands.borrow().clone();
    let request = Request::new(&commands, args, None);
    let carried = match request.kind() {
        Kind::Exec => carry::before_exec(client).await.map(|()| None),
        _ => carry::hand_on(client, request).await,
    };
    match carried {
        Ok(carried) => dispatch(client, request, vec![], carried, vec![]).await,
        Err(refusal) => fail(client, request, &refusal.text()),
    }
}

/// What is to be looked at behind a command that gives labels to what was written before.
fn unwrapped(client: &Client, given: &Labelled) -> Option<fill::Unwrapped> {
    let news::Labels { db, key, tags } = &given.labels;
    let checks = fill::checks_of_labels(&client.context, &client.outbox, *db, key, tags);
    (!checks.is_empty()).then_some(fill::Unwrapped { db: *db, condition: given.condition, checks })
}

/// Answers the request with an error in place of Redis. Inside MULTI the transaction is aborted.
fn fail(client: &mut Client, request: Request<'_>, error: &str) {
    if request.kind() == Kind::Exec {
        client.refuse_exec(request.command, &format!("EXECABORT Transaction discarded because of: {error}"));
        return;
    }
    client.refused(request.command);
    let mut session = client.outbox.session.borrow_mut();
    if session.in_multi() {
        // That Redis refuses the client may not be told.
        session.answered_unrouted();
        let muted = session.was_silenced();
        drop(session);
        client.outbox.set_muted(muted);
        tag::refuse(client, true, error);
        client.outbox.set_muted(false);
        return;
    }
    let route = session.local_error(error.to_owned());
    drop(session);
    if let Route::Local(error) = route {
        client.local(error);
    }
}

/// Sends the command whose labels have been given or handed on.
async fn dispatch(
    client: &mut Client,
    request: Request<'_>,
    labelled: Vec<Labelled>,
    carried: Option<Carried>,
    tags: Vec<Tag>,
) {
    let context = Rc::clone(&client.context);
    let (Request { command, args: inner, .. }, kind) = (request, request.kind());
    if let Err(error) = client.intend_anew(request).await {
        labels::undo(&context, labelled);
        carried.into_iter().for_each(|one| one.undo(&context));
        return fail(client, request, &format!("ERR {error}"));
    }
    // It may have waited for another thread.
    context.tick();
    let route = client.outbox.session.borrow_mut().route(kind, inner, request.blocks());
    let Route::Forward(mut forward) = route else { return };
    forward.silent |= client.outbox.is_muted();
    let mut extra = Extra::default();
    let queued = forward.queued.then(|| client.outbox.queued.borrow().len());
    let condition =
        labelled.iter().chain(carried.iter().map(|one| &one.given)).next().map(|one| one.condition);
    if let Some(element) = queued {
        if command.is_some_and(|c| is_one_step(c, inner, tags.len())) && client.conn().takes_labels() {
            // What was given above may be gone from Redis when EXEC comes, since there is no such key yet.
            extra.labels = Labels { tags, told: false };
        }
        let queued = labelled.into_iter().map(|one| Labelled { element: queued, ..one });
        client.transaction.labelled.extend(queued);
        client.transaction.carried.extend(carried.map(|one| one.queued_as(element)));
    } else {
        let hold = condition.is_some();
        let carried = carried.into_iter().collect();
        let unwrapped = match command.is_some_and(|command| command.fill.is_none()) {
            true => labelled.iter().filter_map(|one| unwrapped(client, one)).collect(),
            // The write itself is looked at.
            false => vec![],
        };
        let after = After { labelled, carried, unwrapped, ..After::default() };
        extra = Extra { hold, after, ..Extra::default() };
    }
    match client.forward(&context, request, forward, extra) {
        Step::Then(Pause::Verdict) => client.judge().await,
        Step::Then(Pause::Idle) => _ = client.until(|o| (o.pending() == 0).then_some(())).await,
        // There was no connection for it.
        Step::Then(Pause::End) => client.outbox.close(),
        _ => {}
    }
    if let Some(element) = queued
        && let Some(entry) = client.outbox.queued.borrow_mut().get_mut(element)
    {
        entry.labels = condition;
    }
}
