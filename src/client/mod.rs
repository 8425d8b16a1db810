//! One client's task: reads requests, forwards them, waits where a request demands it.
//!
//! `input` keeps what has been read and not used, `forward` sends requests upstream, `trigger` finds out
//! what a request reads, writes and fires, `tag` answers the commands that the proxy adds, `labels` keeps the labels
//! of writes that are under way.

mod forward;
mod input;
mod labels;
mod stream;
mod tag;
mod trigger;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use crate::accounting::Verdict;
use crate::command::{FireCondition, TagCommand};
use crate::context::Context;
use crate::index::{Generation, KeyId};
use crate::net::ReadHalf;
use crate::outbox::Outbox;
use crate::resp::stream::Streamed;
use crate::resp::{Head, Limits, OwnedArgs, Parsed, encode};
use crate::rules::Tag;
use crate::session::{Identity, Local};
use crate::upstream::{Conn, Pool};
use input::Input;

/// How long a client may refuse to take bytes while more than [`crate::outbox::SOFT_LIMIT`] wait for it.
const STUCK: Duration = Duration::from_secs(60);
/// How long a fan-out may hold up the reply of the write that caused it. After that the client is disconnected,
/// since what it was promised cannot be kept yet; the fan-out goes on.
const FANOUT_PATIENCE: Duration = Duration::from_secs(10);

/// One client connection.
pub struct Client {
    context: Rc<Context>,
    pool: Rc<Pool>,
    outbox: Rc<Outbox>,
    input: Input,
    /// The shared connection for the session's key, looked up once.
    shared: Option<Rc<Conn>>,
    pinned: Option<Rc<Conn>>,
    read: ReadHalf,
    /// A request that is too big to be kept and has not arrived whole.
    passing: Option<Streamed>,
    timer: RefCell<Pin<Box<Sleep>>>,
    /// TAG.NEXT: labels for what the next command writes.
    next: Vec<Tag>,
    /// SWAPDB is among what was queued since MULTI.
    swap_queued: bool,
    /// Labels given to keys since MULTI, which EXEC makes good.
    labels_queued: Vec<labels::Labelled>,
    last_read: Instant,
}

/// What must happen before the next request can be looked at.
enum Pause {
    /// All replies have arrived.
    Idle,
    /// There is room upstream and in the client's output.
    Room,
    /// The verdict on the request that was just sent.
    Verdict(After),
    /// A command of the proxy's own.
    Tag(TagCommand, OwnedArgs),
    /// The connection ends once what is unsent is written.
    End,
}

/// What to do once a held reply has arrived, besides the fan-out.
#[derive(Default)]
struct After {
    /// The databases were swapped: the index must be rebuilt.
    swapped: bool,
    /// Keys that are gone if the command succeeded: their labels go too.
    deleted: Vec<Deleted>,
    /// Labels that are good if the command succeeded.
    labelled: Vec<labels::Labelled>,
}

/// A labelled key that a command removes, and where it was in the index when the command was sent.
struct Deleted {
    db: u32,
    key: Box<[u8]>,
    id: KeyId,
    generation: Generation,
    /// When it is gone: MOVE and RENAMENX answer 0 if they left it where it was.
    condition: FireCondition,
}

/// What became of one request.
enum Step {
    /// It is dealt with.
    Done,
    /// It must be looked at again after the pause.
    Again(Pause),
    /// It is dealt with; the next one waits.
    Then(Pause),
}

impl Client {
    /// A client that has just connected.
    pub fn new(context: Rc<Context>, pool: Rc<Pool>, outbox: Rc<Outbox>, read: ReadHalf) -> Self {
        let last_read = context.now();
        let period = timer_period(&context);
        Self {
            context,
            pool,
            outbox,
            input: Input::default(),
            shared: None,
            pinned: None,
            read,
            passing: None,
            timer: RefCell::new(Box::pin(tokio::time::sleep(period))),
            next: Vec::new(),
            swap_queued: false,
            labels_queued: Vec::new(),
            last_read,
        }
    }

    /// Serves the client until it goes.
    pub async fn run(mut self) {
        loop {
            let pause = std::future::poll_fn(|cx| self.poll(cx)).await;
            if !self.rest(pause).await {
                break;
            }
        }
        self.leave().await;
    }

    /// Waits as `pause` says. False: the connection ends.
    async fn rest(&mut self, pause: Pause) -> bool {
        self.context.flush_dirty();
        match pause {
            Pause::End => return false,
            Pause::Idle => {
                self.until(|o| (o.pending() == 0).then_some(())).await;
            }
            Pause::Room => {
                let conn = self.conn();
                self.until(|o| (o.has_room() && conn.has_room(o)).then_some(())).await;
            }
            Pause::Verdict(after) => self.verdict(after).await,
            Pause::Tag(command, args) => {
                self.outbox.set_muted(self.outbox.session.borrow().was_silenced());
                tag::run(self, command, args).await;
                self.outbox.set_muted(false);
            }
        }
        self.context.mark_dirty(&self.outbox);
        self.context.flush_dirty();
        self.input.look_again();
        !self.outbox.is_closing()
    }

    /// Waits until `ready` finds something in the outbox, writing what the client takes meanwhile. `None`: the
    /// connection is to be closed.
    async fn until<T>(&self, ready: impl Fn(&Rc<Outbox>) -> Option<T>) -> Option<T> {
        self.outbox.set_paused(true);
        let result = std::future::poll_fn(|cx| {
            self.outbox.set_waker(cx.waker());
            self.write(cx);
            if let Some(found) = ready(&self.outbox) {
                return Poll::Ready(Some(found));
            }
            if self.outbox.session.borrow().is_blocked() && self.read.poll_gone(cx).is_ready() {
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

    /// Waits for the reply that is held, fans out what it fired, and lets it go.
    async fn verdict(&mut self, after: After) {
        // A verdict comes in any case, also when the client or the upstream is gone; a trigger that took
        // effect must not be forgotten.
        let Some(verdict) = self.next_verdict().await else { return };
        if after.swapped {
            // Whatever came of it: the index has been declared incomplete.
            self.context.process.fanout.rebuild("SWAPDB");
        }
        if !verdict.error {
            self.index_after(&after, &verdict.head);
        }
        // Without a reply, because the upstream is gone, the write may have taken place.
        let unknown = verdict.error && self.outbox.is_closing();
        labels::settle(&self.context, after.labelled, &verdict, unknown).await;
        trigger::not_fired(self, verdict.idle);
        if !verdict.fired.is_empty() && !trigger::fan_out(self, verdict.fired).await {
            return self.outbox.close();
        }
        self.outbox.release();
    }

    /// The verdict on the request that was just sent; `None`: there will be none.
    async fn next_verdict(&mut self) -> Option<Verdict> {
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

    fn index_after(&self, after: &After, reply: &Head<'_>) {
        let process = &self.context.process;
        for gone in after.deleted.iter().filter(|gone| gone.condition.fired(reply)) {
            let dropped = process.index.lock().drop_if(gone.id, gone.generation);
            process.fanout.forget(gone.db, &gone.key, dropped.explicit);
        }
    }

    /// Reads and works until something is in the way.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Pause> {
        self.outbox.set_waker(cx.waker());
        self.write(cx);
        let context = Rc::clone(&self.context);
        loop {
            if self.outbox.is_closing() || self.times_out(cx) || self.is_dismissed() {
                return Poll::Ready(Pause::End);
            }
            if !self.input.is_empty() {
                let pending = self.input.take();
                let pause = self.work(&pending);
                self.input.put_back(pending);
                if let Some(pause) = pause {
                    return Poll::Ready(pause);
                }
            }
            let mut scratch = context.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.read).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    drop(scratch);
                    context.flush_dirty();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Pause::End),
            }
            let filled = buf.filled().len();
            context.tick();
            self.last_read = context.now();
            context.metrics.bytes_in(filled as u64);
            if self.input.has_partial() {
                self.input.append(&scratch[..filled]);
                continue;
            }
            let pause = self.work(&scratch[..filled]);
            self.input.keep(&scratch[..filled]);
            drop(scratch);
            if let Some(pause) = pause {
                return Poll::Ready(pause);
            }
        }
    }

    /// Deals with the requests in `buf` from the input's offset on, which moves.
    fn work(&mut self, buf: &[u8]) -> Option<Pause> {
        let limits = self.limits();
        loop {
            let start = self.input.offset();
            if self.passing.is_some() {
                if start == buf.len() {
                    return None;
                }
                if let Some(pause) = self.pass(&buf[start..]) {
                    return Some(pause);
                }
                continue;
            }
            match self.input.parser.parse(&buf[start..], &limits) {
                Parsed::Incomplete => return self.incomplete(&buf[start..]),
                Parsed::Nothing { len } => self.input.advance(len),
                Parsed::Error(error) => {
                    if self.outbox.pending() > 0 {
                        return Some(Pause::Idle);
                    }
                    if self.outbox.session.borrow().takes_replies() {
                        self.outbox.with_buffer(|out| encode::error(out, error.text()));
                        self.context.mark_dirty(&self.outbox);
                    }
                    return Some(Pause::End);
                }
                Parsed::Request { len, inline } => {
                    let parser = std::mem::take(&mut self.input.parser);
                    let request = &buf[start..start + len];
                    let step = self.request(parser.args(request, inline), (!inline).then_some(request));
                    self.input.parser = parser;
                    match step {
                        Step::Done => self.input.advance(len),
                        Step::Again(pause) => return Some(pause),
                        Step::Then(pause) => {
                            self.input.advance(len);
                            return Some(pause);
                        }
                    }
                }
            }
        }
    }

    fn limits(&self) -> Limits {
        let anonymous = self.outbox.session.borrow().identity == Identity::Anonymous;
        if anonymous && self.context.process.auth_required.load(Ordering::Relaxed) {
            Limits::UNAUTHENTICATED
        } else {
            Limits::NORMAL
        }
    }

    /// Writes what the client's socket takes, if it refused before.
    fn write(&self, cx: &mut TaskContext<'_>) {
        while self.outbox.poll_writable(cx).is_ready() {
            self.context.metrics.bytes_out(self.outbox.flush());
            if self.outbox.is_closing() {
                return;
            }
        }
        if self.outbox.unsent() < crate::outbox::SOFT_LIMIT / 2
            && let Some(conn) = &self.pinned
        {
            conn.resume();
        }
    }

    /// The proxy is going down and owes the client nothing.
    fn is_dismissed(&self) -> bool {
        self.context.process.draining.load(Ordering::Relaxed) && self.outbox.pending() == 0
    }

    /// Whether the client was silent for too long, or does not take its replies.
    fn times_out(&self, cx: &mut TaskContext<'_>) -> bool {
        let mut timer = self.timer.borrow_mut();
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        timer.as_mut().reset(tokio::time::Instant::now() + timer_period(&self.context));
        // Polled again so that it is registered for the next period.
        let _ = timer.as_mut().poll(cx);
        let (outbox, now) = (&self.outbox, Instant::now());
        let stuck = outbox.unsent() >= crate::outbox::SOFT_LIMIT
            && outbox.stuck_since().is_some_and(|since| now - since > STUCK);
        let session = outbox.session.borrow();
        let silent = self.context.process.idle_timeout.is_some_and(|limit| {
            !session.is_listening()
                && !session.is_blocked()
                && outbox.pending() == 0
                && now - self.last_read > limit
        });
        stuck || silent
    }

    /// The proxy's own answers.
    fn local(&mut self, local: Local) -> Option<Pause> {
        let resp3 = self.outbox.session.borrow().resp == 3;
        let mut pause = None;
        self.outbox.with_buffer(|out| match &local {
            Local::Ok | Local::Quit => encode::simple(out, "OK"),
            Local::Reset => encode::simple(out, "RESET"),
            Local::Error(text) => encode::error(out, text),
            Local::GetName => match &self.outbox.session.borrow().name {
                Some(name) => encode::bulk(out, name),
                None => encode::null(out, resp3),
            },
            Local::Tag(_) => {}
        });
        match local {
            Local::Quit => pause = Some(Pause::End),
            Local::Reset => self.reset(),
            _ => {}
        }
        self.context.mark_dirty(&self.outbox);
        pause
    }

    fn reset(&mut self) {
        let tainted = self.outbox.session.borrow().needs_own();
        self.outbox.session.borrow_mut().reset();
        self.outbox.queued.borrow_mut().clear();
        self.abandon_labels();
        self.next.clear();
        self.set_shared(None);
        if let Some(conn) = self.pinned.take() {
            self.pool.unpin(conn, !tainted);
        }
    }

    /// How the log names the client.
    fn who(&self) -> String {
        match &self.outbox.session.borrow().name {
            Some(name) => format!("{} {}", self.outbox.peer, String::from_utf8_lossy(name)),
            None => self.outbox.peer.clone(),
        }
    }

    /// The client has gone, or must go: what it left upstream is cleaned up.
    async fn leave(&mut self) {
        let blocked = self.outbox.session.borrow().is_blocked();
        if !self.outbox.is_closing() && !blocked {
            // What it sent before it hung up still runs, and its replies are still written.
            let patience =
                tokio::time::timeout(FANOUT_PATIENCE, self.until(|o| (o.pending() == 0).then_some(())));
            let _ = patience.await;
        }
        self.outbox.flush();
        if self.outbox.unsent() > 0 && !self.outbox.is_closing() {
            let sent = self.until(|o| (o.unsent() == 0).then_some(()));
            let _ = tokio::time::timeout(FANOUT_PATIENCE, sent).await;
        }
        self.outbox.close();
        self.abandon_labels();
        if let Some(conn) = self.pinned.take() {
            let tainted = self.outbox.session.borrow().needs_own();
            if tainted || self.passing.is_some() || self.outbox.pending() > 0 {
                // Ends what Redis still does for it: nothing is popped for a dead client.
                conn.set_owner(None);
                conn.retire();
            } else {
                self.pool.unpin(conn, true);
            }
        }
    }

    fn abandon_labels(&mut self) {
        let labels = std::mem::take(&mut self.labels_queued);
        labels::undo(&self.context, labels);
    }
}

/// How often a client is looked at for being silent or stuck.
fn timer_period(context: &Context) -> Duration {
    context.process.idle_timeout.unwrap_or(STUCK).clamp(Duration::from_millis(100), STUCK)
}

impl Drop for Client {
    fn drop(&mut self) {
        self.set_shared(None);
    }
}
