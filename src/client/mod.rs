//! One client's task: reads requests, forwards them, waits where a request demands it.
//!
//! `input` keeps what has been read and not used, `request` says what one is, `forward` sends requests upstream, `plain` those
//! about which nothing is remarkable, `connection` chooses on what, `wait` waits for replies and fan-outs, `trigger` finds out
//! what a request reads, writes and fires, `row` takes triggers together that arrive together, `tag` answers the commands that
//! the proxy adds, `with` those that label what they write, `queued` keeps what EXEC makes good, `labels` keeps the labels of
//! writes that are under way, `carry` those that follow their value, `outcome` finds out what became of them, `coalesce` lets
//! reads wait for what others compute, `silence` keeps replies back, `transaction` finds those that need no connection of
//! their own.

mod carry;
mod coalesce;
mod connection;
mod fill;
mod forward;
mod input;
mod intent;
mod labels;
mod outcome;
mod plain;
mod queued;
mod request;
mod rewrite;
mod row;
mod scripted;
mod silence;
mod stream;
mod tag;
mod transaction;
mod trigger;
mod trust;
mod wait;
mod with;

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use crate::accounting::{Noted, Settled};
use crate::command::{FireCondition, TagCommand};
use crate::context::{Context, READ, READ_OF_BIG};
use crate::index::{Generation, KeyId};
use crate::journal::Wanted;
use crate::lease::{Clock, KeyHash, Moment};
use crate::net::ReadHalf;
use crate::outbox::Outbox;
use crate::resp::stream::Streamed;
use crate::resp::{Limits, OwnedArgs, Parsed, RequestParser, encode};
use crate::rules::Tag;
use crate::session::{Identity, Local};
use crate::upstream::{Conn, Pool};
use input::Input;
use queued::Transaction;

/// How long a fan-out may hold up the reply of the write that caused it. It goes on after that, and what the client is
/// promised holds all the same: reads of the keys are answered as misses until it is done.
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
    /// How many requests are left of a transaction that has arrived whole and travels on the shared connection.
    burst: u32,
    /// A request that is too big to be kept and has not arrived whole.
    passing: Option<Streamed>,
    /// Its last bytes, which wait for the journal.
    last: Option<Vec<u8>>,
    /// When to look whether it has been silent for too long, if ever.
    timer: Option<Pin<Box<Sleep>>>,
    /// What it has filled, with the clocks of its misses, as long as it may not know that it has.
    fills: Vec<(KeyHash, Clock)>,
    /// How many of them have been answered for sure once the outbox has answered so far.
    fills_answered: Option<(usize, u32)>,
    /// What was queued since MULTI.
    transaction: Transaction,
    /// Its last request may have to be sent once more, ahead of the next one.
    may_be_resent: bool,
    /// It hung up without having read everything.
    broken: bool,
    /// What is known of its present request, of which something had to be found out.
    present: Option<Box<Present>>,
    /// The journal has noted what those behind it may invalidate.
    row: VecDeque<Noted>,
    /// What follows once the replies have arrived that are held.
    held: Vec<After>,
    /// TAG.NEXT: labels for what the next command writes.
    next: Vec<Tag>,
    /// When something was last read from it, or it was seen to wait for something or to take a reply.
    active: Instant,
    /// When it connected, or was reset.
    accepted: Instant,
    /// It is nobody, and AUTH was wanted when its present request came.
    stranger: bool,
}

/// What is known of a request that has waited, or is about to: it ends with the request, so that the next one does not go by it.
#[derive(Default)]
struct Present {
    /// The journal has noted what it may invalidate, or why it cannot.
    intent: Option<Result<Noted, String>>,
    /// Whether there is the database that it selects inside MULTI.
    database: Option<bool>,
    /// Since when it has waited for keys in doubt.
    doubted: Option<Instant>,
    /// It has waited for what somebody else computes, or need not.
    ripe: Option<coalesce::Ripe>,
    /// The connection could not be set up that was asked whether scripts are possible: it is told why.
    unaided: bool,
    /// Since when it has waited to be told whether its client needs AUTH.
    asked: Option<Instant>,
}

/// What must happen before the next request can be looked at.
enum Pause {
    /// All replies have arrived.
    Idle,
    /// There is room upstream and in the client's output.
    Room,
    /// Nothing of other clients is in the way upstream.
    Way,
    /// It is known whether the client needs AUTH.
    Standing,
    /// The key is filled, or this much time is over.
    Fill(KeyHash, Moment),
    /// The journal has noted what the next requests may invalidate, one behind the other.
    Intent(Vec<Wanted>),
    /// It is known whether fills can be sent as scripts.
    Scripts,
    /// It is known whether there is this database.
    Database(u32),
    /// These keys are not in doubt any more.
    Doubt(Vec<trust::Place>),
    /// The verdicts on what was sent whose replies are held.
    Verdict,
    /// A command of the proxy's own.
    Tag(TagCommand, OwnedArgs),
    /// CLIENT REPLY.
    Silence(OwnedArgs),
    /// A command that labels follow.
    Follow(OwnedArgs),
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
    /// Likewise, but their labels are still on their way to the index.
    unseen: Vec<(u32, Box<[u8]>)>,
    /// Labels that are good if the command succeeded.
    labelled: Vec<labels::Labelled>,
    /// Keys that may have got a stale value.
    unwrapped: Vec<fill::Unwrapped>,
    /// Labels that have followed their value if the command succeeded.
    carried: Vec<carry::Carried>,
    /// Keys that others may wait for.
    settled: Option<Box<Settled>>,
    /// The command and when it came, in nanoseconds: it is counted when its reply is let go.
    counted: Option<(u16, u64)>,
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
        let active = context.now();
        context.process.leases.connected(outbox.lessee().host);
        let period = context.process.idle_timeout.map(look_after);
        Self {
            context,
            pool,
            outbox,
            input: Input::default(),
            shared: None,
            pinned: None,
            read,
            burst: 0,
            passing: None,
            last: None,
            timer: period.map(|period| Box::pin(tokio::time::sleep(period))),
            fills: Vec::new(),
            fills_answered: None,
            transaction: Transaction::default(),
            may_be_resent: false,
            broken: false,
            present: None,
            row: VecDeque::new(),
            held: Vec::new(),
            next: Vec::new(),
            active,
            accepted: Instant::now(),
            stranger: false,
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

    /// Reads and works until something is in the way.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Pause> {
        self.outbox.set_waker(cx.waker());
        self.write(cx);
        self.unpin_if_free();
        if let Some(request) = self.outbox.taken_back() {
            self.input.put_before(&request);
        }
        let context = Rc::clone(&self.context);
        loop {
            let cut = self.pinned.is_none() && self.shared.as_ref().is_some_and(|conn| conn.was_cut());
            if cut || self.outbox.is_closing() || self.times_out(cx) || self.is_dismissed() {
                return Poll::Ready(Pause::End);
            }
            if !self.input.is_empty() || self.last.is_some() {
                let pending = self.input.take();
                let pause = self.work(&pending);
                self.input.put_back(pending);
                if let Some(pause) = pause {
                    return Poll::Ready(pause);
                }
            }
            match self.input.refill() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(client = %self.outbox.peer, %error, "what it has sent is lost: disconnected");
                    return Poll::Ready(Pause::End);
                }
            }
            let mut scratch = context.scratch.borrow_mut();
            let most = if self.passing.is_some() { READ_OF_BIG } else { READ };
            let mut buf = ReadBuf::new(&mut scratch[..most]);
            match Pin::new(&mut self.read).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    drop(scratch);
                    self.outbox.has_looked();
                    context.flush_dirty();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(end) => {
                    // The kernel tells of bytes that were not read.
                    self.broken = end.is_err();
                    return Poll::Ready(Pause::End);
                }
            }
            let filled = buf.filled().len();
            context.tick();
            self.active = context.now();
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
        loop {
            let limits = self.limits();
            let start = self.input.offset();
            if self.passing.is_some() {
                if start == buf.len() && self.last.is_none() {
                    return None;
                }
                if let Some(pause) = self.pass(&buf[start..]) {
                    return Some(pause);
                }
                continue;
            }
            match self.input.parser.parse(&buf[start..], &limits) {
                Parsed::Incomplete => return self.incomplete(&buf[start..]),
                Parsed::Nothing { len } => {
                    self.outbox.session.borrow_mut().sent_nothing();
                    self.input.advance(len);
                }
                Parsed::Error(error) => {
                    if self.outbox.pending() > 0 {
                        return Some(Pause::Idle);
                    }
                    if limits != Limits::NORMAL {
                        // Perhaps no AUTH is wanted any more.
                        match self.standing() {
                            None => {
                                self.input.parser = RequestParser::default();
                                return Some(Pause::Standing);
                            }
                            Some(Ok(true)) => {
                                self.input.parser = RequestParser::default();
                                continue;
                            }
                            _ => {}
                        }
                    }
                    if self.outbox.session.borrow().takes_replies() {
                        self.outbox.with_buffer(|out| encode::error(out, error.text()));
                        self.context.mark_dirty(&self.outbox);
                    }
                    return Some(Pause::End);
                }
                Parsed::Request { len, inline } => {
                    if self.awaits_resend() {
                        return Some(Pause::Idle);
                    }
                    let parser = std::mem::take(&mut self.input.parser);
                    let request = &buf[start..start + len];
                    if self.burst == 0 {
                        self.burst =
                            self.whole_transaction(parser.args(request, inline), &buf[start + len..]);
                    }
                    let is_last = start + len == buf.len();
                    let raw = parser.is_exact().then_some(request);
                    let step = self.request(parser.args(request, inline), raw, is_last);
                    self.input.parser = parser;
                    match step {
                        Step::Done => {
                            self.burst = self.burst.saturating_sub(1);
                            self.input.advance(len);
                            self.end_present();
                            if self.is_in_row() && !self.goes_on() {
                                return Some(Pause::Verdict);
                            }
                        }
                        Step::Then(Pause::Verdict) if self.goes_on() => {
                            self.burst = 0;
                            self.input.advance(len);
                        }
                        Step::Again(mut pause) => {
                            self.burst = 0;
                            if let Pause::Intent(row) = &mut pause {
                                row.extend(self.triggers_behind(&buf[start..]));
                            }
                            return Some(pause);
                        }
                        Step::Then(pause) => {
                            self.burst = 0;
                            if !matches!(pause, Pause::Follow(_)) {
                                self.end_present();
                            }
                            self.end_row();
                            self.input.advance(len);
                            return Some(pause);
                        }
                    }
                }
            }
        }
    }

    /// What is to be known of the present request.
    fn present(&mut self) -> &mut Present {
        self.present.get_or_insert_default()
    }

    /// The present request has been dealt with. What was noted for it and is left was not needed: it may have been refused.
    #[inline]
    fn end_present(&mut self) {
        if let Some(present) = self.present.take()
            && let Some(Ok(intent)) = present.intent
        {
            self.context.process.journal.done(intent.id);
        }
    }

    /// Whether the next request has to wait, because the last one may have to be sent once more.
    #[inline]
    fn awaits_resend(&mut self) -> bool {
        self.may_be_resent &= self.outbox.pending() > 0;
        self.may_be_resent
    }

    fn limits(&self) -> Limits {
        let anonymous = matches!(self.outbox.session.borrow().identity, Identity::Unknown | Identity::Nobody);
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
        self.context.process.draining.load(Ordering::Relaxed)
            && self.outbox.pending() == 0
            && self.input.is_empty()
    }

    /// Whether the client was silent for too long, as Redis sees it: who waits, or takes what it is given, is not.
    fn times_out(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let (Some(timer), Some(limit)) = (&mut self.timer, self.context.process.idle_timeout) else {
            return false;
        };
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        timer.as_mut().reset(tokio::time::Instant::now() + look_after(limit));
        // Polled again so that it is registered for the next period.
        let _ = timer.as_mut().poll(cx);
        let (outbox, now) = (&self.outbox, Instant::now());
        let session = outbox.session.borrow();
        if session.is_listening() || session.is_blocked() || outbox.pending() > 0 || outbox.has_sent() {
            self.active = now;
        }
        now - self.active > limit
    }

    /// The proxy's own answers.
    fn local(&mut self, local: Local) -> Option<Pause> {
        let mut pause = None;
        self.outbox.with_buffer(|out| match &local {
            Local::Ok | Local::Quit => encode::simple(out, "OK"),
            Local::Reset { silent: true } => {}
            Local::Reset { .. } => encode::simple(out, "RESET"),
            Local::Error(text) => encode::error(out, text),
            Local::Tag(_) => {}
        });
        match local {
            Local::Quit => pause = Some(Pause::End),
            Local::Reset { .. } => self.reset(),
            _ => {}
        }
        self.context.mark_dirty(&self.outbox);
        pause
    }

    fn reset(&mut self) {
        let tainted = self.outbox.session.borrow().needs_own();
        self.outbox.session.borrow_mut().reset();
        self.accepted = Instant::now();
        self.abandon();
        self.next.clear();
        self.set_shared(None);
        if let Some(conn) = self.pinned.take() {
            self.give_back(conn, !tainted);
        }
    }

    /// How the log names the client.
    fn who(&self) -> String {
        match &self.outbox.session.borrow().label {
            Some(label) if !label.name.is_empty() => {
                format!("{} {}", self.outbox.peer, String::from_utf8_lossy(&label.name))
            }
            _ => self.outbox.peer.clone(),
        }
    }

    /// The client has gone, or must go: what it left upstream is cleaned up.
    async fn leave(&mut self) {
        if self.broken || self.outbox.pending() > 0 || self.outbox.is_closing() || self.outbox.is_gone() {
            self.give_back_fills();
        }
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
        self.abandon();
        self.end_present();
        self.end_row();
        if let Some(conn) = self.pinned.take() {
            let tainted = self.outbox.session.borrow().needs_own();
            if tainted || self.passing.is_some() || self.outbox.pending() > 0 {
                // Ends what Redis still does for it: nothing is popped for a dead client.
                conn.set_owner(None);
                conn.retire();
            } else {
                self.give_back(conn, true);
            }
        }
    }

    /// It may fill again what it does not know it has filled.
    fn give_back_fills(&mut self) {
        let fills = std::mem::take(&mut self.fills);
        self.context.give_back(&self.outbox, &fills);
    }
}

/// How often a client is looked at that may be silent for `limit`.
fn look_after(limit: Duration) -> Duration {
    limit.clamp(Duration::from_millis(100), Duration::from_secs(60))
}

impl Drop for Client {
    fn drop(&mut self) {
        self.set_shared(None);
        self.context.process.leases.disconnected(self.outbox.lessee().host);
    }
}
