//! Coalesced misses: a read of a key that somebody else computes waits for the fill, for a bounded time.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::request::Request;
use super::{Client, Pause, Step, fill};
use crate::accounting::{Account, Became, Settled};
use crate::command::{Command, FireCondition};
use crate::context::Context;
use crate::lease::script::{Check, What};
use crate::lease::{Expected, Fill, KeyHash, Moment, Turn, Waiter};
use crate::resp::Args;
use crate::session::{Effect, Forward};

/// A read that has waited, or has found that it need not.
#[derive(Clone, Copy)]
pub(super) struct Ripe {
    key: KeyHash,
    waited: bool,
}

impl Client {
    /// Whether the request waits for a key that another client computes.
    #[inline]
    pub(super) fn awaits_fill(&self, Request { command, args, .. }: Request<'_>) -> Option<Step> {
        let context = &self.context;
        let process = &context.process;
        if !context.coalesces() || process.computations.is_empty() {
            return None;
        }
        // In doubt it is answered as a miss, whatever others fill.
        command.filter(|command| command.fetches(args) && !process.doubt.any())?;
        let session = self.outbox.session.borrow();
        let (db, key) = (session.current_db(), args.get(1).filter(|_| session.may_wait())?);
        let family = context.matcher.borrow_mut().classify(db, key).family;
        let longest = context.longest_wait(family);
        let hash = process.leases.hash(db, key);
        if longest == 0
            || self.present.as_ref().and_then(|present| present.ripe).is_some_and(|ripe| ripe.key == hash)
        {
            return None;
        }
        let began = process.computations.begun(hash, self.outbox.id, context.moment())?;
        let tags = fill::tags(context, db, key);
        if tags.iter().any(|tag| process.epochs.expected(tag, began) == Expected::Stale) {
            // It would not be let in, or be worth little.
            process.computations.given_up(hash);
        }
        Some(Step::Again(Pause::Fill(hash, longest)))
    }

    /// Waits until the key is filled or it is this client's turn to compute it, but not longer than that.
    pub(super) async fn until_filled(&mut self, key: KeyHash, longest: Moment) {
        let process = Arc::clone(&self.context.process);
        let now = || process.moment_of(Instant::now());
        let (client, deadline, mut waited) = (self.outbox.id, now() + longest, false);
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(|cx| {
            self.outbox.set_waker(cx.waker());
            self.write(cx);
            loop {
                // Who has hung up computes nothing. What it has sent still runs.
                let goes = self.outbox.is_closing() || process.draining.load(Ordering::Relaxed);
                if goes || self.reads_ahead(cx) {
                    return Poll::Ready(());
                }
                let waiter = Waiter { client, deadline, clock: process.epochs.clock(), longest };
                let Turn::Later(at) = process.computations.wait(key, waiter, cx.waker(), now()) else {
                    return Poll::Ready(());
                };
                waited = true;
                timer.as_mut().reset((process.born + Duration::from_millis(at)).into());
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
        process.computations.leave(key, client);
        self.context.tick();
        // It was not silent for want of anything to say.
        self.active = self.context.now();
        self.present().ripe = Some(Ripe { key, waited });
    }

    /// Notes with a read that it has waited.
    pub(super) fn mark_waited(&self, account: &mut Account) {
        let ripe = self.present.as_ref().and_then(|present| present.ripe);
        if let (Some(ripe), Account::Read(reading)) = (ripe, account) {
            reading.waited = ripe.waited && reading.keys.iter().any(|key| key.hash == ripe.key);
        }
    }

    /// What a write settles when it is answered; of what is queued, EXEC.
    pub(super) fn settles(
        &mut self,
        Request { command, args, .. }: Request<'_>,
        checks: &[Check],
        forward: &Forward,
    ) -> Option<Box<Settled>> {
        let (condition, keys) = if matches!(forward.effect, Effect::Exec) {
            (FireCondition::NotNil, std::mem::take(&mut self.transaction.settled))
        } else {
            let command = command.filter(|command| command.is_write())?;
            let db = self.outbox.session.borrow().current_db();
            (command.fire_condition(args), written(&self.context, db, command, args, checks))
        };
        if forward.queued {
            self.transaction.settled.extend(keys);
            return None;
        }
        (!keys.is_empty()).then(|| Box::new(Settled { condition, keys }))
    }
}

/// The keys of a write that others may wait for, and what it makes of them.
fn written(
    context: &Context,
    own: u32,
    command: &Command,
    args: Args<'_>,
    checks: &[Check],
) -> Vec<(KeyHash, Became)> {
    let other = command.target_db(args, own);
    let mut matcher = context.matcher.borrow_mut();
    let mut keys = vec![];
    command.keys(args, |used| {
        if !used.deletes && (!used.writes || command.fill.is_none()) {
            return;
        }
        let db = if used.deletes { own } else { other };
        if context.longest_wait(matcher.classify(db, used.key).family) == 0 {
            return;
        }
        let undone = || checks.iter().any(|check| check.what == What::Never && *check.key == *used.key);
        // Of a script that may only have read it, one of those who wait finds out.
        let is_gone = used.deletes || command.fill == Some(Fill::Perhaps) || undone();
        let became = if is_gone { Became::Gone } else { Became::Filled };
        keys.push((context.process.leases.hash(db, used.key), became));
    });
    keys
}
