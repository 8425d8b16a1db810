//! What a client's task waits for between requests, and for whom.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, ReadBuf};

use super::intent::take_intents;
use super::{After, Client, Deleted, FANOUT_PATIENCE, Pause, fill, labels, silence, tag, trigger, with};
use crate::accounting::{Firing, Verdict};
use crate::context::READ;
use crate::failpoint;
use crate::fanout::Order;
use crate::outbox::Outbox;
use crate::resp::Head;
use crate::standing::OVERDUE;
use crate::upstream::Way;

/// Whether the reply is that of EXEC: what its parts say is not looked at.
fn in_multi(reply: &Head<'_>) -> bool {
    matches!(reply, Head::Array(_))
}

impl Client {
    /// Waits as `pause` says. False: the connection ends.
    pub(super) async fn rest(&mut self, pause: Pause) -> bool {
        self.context.flush_dirty();
        self.outbox.waits(self.context.moment());
        if let Some(present) = &mut self.present {
            present.unaided = false;
        }
        if !self.held.is_empty() {
            // Whatever else is to come: what these have fired must be fanned out.
            self.judge().await;
        }
        match pause {
            Pause::End => return false,
            Pause::Idle => {
                self.until(|o| (o.pending() == 0).then_some(())).await;
            }
            Pause::Room => {
                let conn = self.conn();
                let own = self.pinned.is_some();
                self.until(|o| (o.has_room(own) && conn.has_room(o)).then_some(())).await;
            }
            Pause::Way => {
                let (pool, key) = (Rc::clone(&self.pool), self.key());
                self.until(|o| (!matches!(pool.clear_way(&key, o), Way::Wait)).then_some(())).await;
            }
            Pause::Standing => {
                let wanted = *self.present().asked.get_or_insert_with(Instant::now);
                let unknown = !self.outbox.session.borrow().is_vetted();
                let (pool, accepted) = (Rc::clone(&self.pool), if unknown { self.accepted } else { wanted });
                let known = |o: &Rc<Outbox>| pool.standing(o, accepted, wanted).map(|_| ());
                while tokio::time::timeout(OVERDUE, self.until(known)).await.is_err() {
                    self.context.tick();
                }
            }
            Pause::Fill(key, longest) => self.until_filled(key, longest).await,
            Pause::Intent(row) => self.note_row(row).await,
            Pause::Scripts => {
                let conn = self.conn();
                self.until(|o| conn.knows_scripts(o).then_some(())).await;
                self.present().unaided = !conn.is_alive() && !conn.has_led();
            }
            Pause::Database(db) => {
                let found = self.context.process.fanout.ask(|reply| Order::Database(db, reply)).await;
                self.present().database = Some(found.unwrap_or(true));
            }
            Pause::Doubt(places) => self.until_trusted(&places).await,
            Pause::Verdict => {}
            Pause::Silence(args) => silence::run(self, args.as_args()).await,
            Pause::Follow(args) => {
                with::follow(self, args.as_args()).await;
                self.end_present();
            }
            Pause::Tag(command, args) => {
                self.outbox.set_muted(self.outbox.session.borrow().was_silenced());
                tag::run(self, command, args).await;
                self.end_present();
                self.outbox.set_muted(false);
            }
        }
        self.context.mark_dirty(&self.outbox);
        self.context.flush_dirty();
        // It may have waited for another thread.
        self.context.tick();
        self.outbox.goes_on();
        self.input.look_again();
        !self.outbox.is_closing()
    }

    /// Waits until `ready` finds something in the outbox, writing what the client takes meanwhile. `None`: the
    /// connection is to be closed.
    pub(super) async fn until<T>(&mut self, ready: impl Fn(&Rc<Outbox>) -> Option<T>) -> Option<T> {
        self.outbox.set_paused(true);
        let result = std::future::poll_fn(|cx| {
            self.outbox.set_waker(cx.waker());
            self.write(cx);
            if let Some(found) = ready(&self.outbox) {
                return Poll::Ready(Some(found));
            }
            if self.outbox.session.borrow().is_blocked() && self.reads_ahead(cx) {
                // Nobody is left to take what the blocked command would give.
                self.outbox.close();
            }
            if self.times_out(cx) {
                self.outbox.close();
            }
            if self.outbox.is_closing() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        self.outbox.set_paused(false);
        result
    }

    /// Reads what the client sends while it waits. True: it has hung up, or is cut for sending too much.
    pub(super) fn reads_ahead(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let context = Rc::clone(&self.context);
        loop {
            let mut scratch = context.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch[..READ]);
            match Pin::new(&mut self.read).poll_read(cx, &mut buf) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return true,
            }
            context.metrics.bytes_in(buf.filled().len() as u64);
            if !self.input.read_ahead(buf.filled()) {
                tracing::warn!(client = %self.outbox.peer, "sends too much while it waits: disconnected");
                self.outbox.close();
                return true;
            }
        }
    }

    /// Waits for the replies that are held, fans out what they fired, and lets them go.
    pub(super) async fn judge(&mut self) {
        let mut fanouts = vec![];
        let (mut settled, mut counted) = (vec![], vec![]);
        let mut undone = true;
        for mut after in std::mem::take(&mut self.held) {
            // A verdict comes in any case, also when the client or the upstream is gone; a trigger that took
            // effect must not be forgotten.
            let Some(verdict) = self.next_verdict().await else { break };
            // What was cut off was not answered.
            let cut_off = verdict.error && self.outbox.is_closing();
            counted.extend(after.counted.filter(|_| !cut_off).map(|counted| (counted, verdict.error)));
            settled.extend(after.settled.take().map(|settled| (settled, verdict.head)));
            let (fired, is_clean) = self.verdict(verdict, after).await;
            undone &= is_clean;
            if !fired.is_empty() {
                fanouts.push(trigger::fan_out(self, fired));
            }
        }
        let patience = tokio::time::timeout(FANOUT_PATIENCE, async {
            let mut done = true;
            for fanout in fanouts {
                done &= fanout.await;
            }
            done
        });
        // Dropping it does not end the fan-outs.
        let done = patience.await.unwrap_or_else(|_| {
            let client = &self.outbox.peer;
            tracing::warn!(%client, "a fan-out takes long: its writer is answered, the fan-out goes on");
            true
        });
        self.context.tick();
        for ((metric, started), error) in counted {
            self.context.command_done(Some(metric), started, error);
        }
        if !undone || !done {
            return self.outbox.close();
        }
        settled.iter().for_each(|(settled, head)| self.context.settled(settled, head));
        self.outbox.release();
    }

    /// Does what follows the reply, except for the fan-out of what it has fired, which is given back. False: it could not all
    /// be done.
    async fn verdict(&mut self, mut verdict: Verdict, after: After) -> (Vec<Firing>, bool) {
        if !verdict.fired.is_empty() {
            failpoint::pass("trigger answered");
        }
        if after.swapped {
            // Whatever came of it: the index has been declared incomplete.
            self.context.process.fanout.rebuild("SWAPDB");
        }
        // Without a reply, because the upstream is gone, the write may have taken place.
        let unknown = verdict.error && self.outbox.is_closing();
        labels::settle(&self.context, after.labelled, after.carried, &verdict, unknown).await;
        if !verdict.error {
            // Labels have followed a value that was moved.
            self.index_after(&after.deleted, &verdict.head);
            self.forget_unseen(after.unseen).await;
        }
        let written =
            |one: &fill::Unwrapped| unknown || one.condition.fired(&verdict.head) || in_multi(&verdict.head);
        let unwrapped = after.unwrapped.into_iter().filter(written).collect();
        let is_clean = fill::undo_stale(&self.context, unwrapped).await;
        let intents = take_intents(&mut verdict.idle);
        match verdict.fired.first_mut() {
            Some(fired) => fired.intents.extend(intents),
            None => intents.into_iter().for_each(|intent| self.context.process.journal.done(intent.id)),
        }
        trigger::not_fired(self, verdict.idle);
        (verdict.fired, is_clean)
    }

    /// The verdict on the request that was just sent; `None`: there will be none.
    pub(super) async fn next_verdict(&mut self) -> Option<Verdict> {
        match self.until(|o| o.take_verdict()).await {
            Some(verdict) => Some(verdict),
            None => self.late_verdict().await,
        }
    }

    /// The verdict on a request whose client has gone; `None`: there will be none.
    async fn late_verdict(&self) -> Option<Verdict> {
        if let (true, Some(conn)) = (self.outbox.session.borrow().is_blocked(), &self.pinned) {
            // Redis shall not go on with it: nothing is popped for a dead client.
            conn.retire();
        }
        if let Some(conn) = &self.pinned {
            conn.resume();
        }
        self.outbox.set_paused(true);
        std::future::poll_fn(|cx| {
            self.outbox.set_waker(cx.waker());
            match self.outbox.take_verdict() {
                None if self.outbox.pending() > 0 => Poll::Pending,
                verdict => Poll::Ready(verdict),
            }
        })
        .await
    }

    /// Keys that may be gone, and whose labels the index may not know yet.
    async fn forget_unseen(&self, keys: Vec<(u32, Box<[u8]>)>) {
        if !keys.is_empty() {
            let known = self.context.process.fanout.ask(|reply| Order::Learn(keys, reply));
            let _ = tokio::time::timeout(FANOUT_PATIENCE, known).await;
        }
    }

    fn index_after(&self, deleted: &[Deleted], reply: &Head<'_>) {
        let process = &self.context.process;
        for gone in deleted.iter().filter(|gone| gone.condition.fired(reply)) {
            let dropped = process.index.lock().drop_if(gone.id, gone.generation);
            process.fanout.forget(gone.db, &gone.key, dropped.explicit);
        }
    }
}
