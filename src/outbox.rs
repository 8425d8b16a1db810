//! What a client is still to get: the bytes of replies, in order, bounded; and what its task waits for.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::task::{Poll, Waker};

use bytes::BytesMut;

use crate::accounting::{Queued, Verdict};
use crate::backlog::{Backlog, MOST_IN_MEMORY};
use crate::lease::{Client, Hits, Moment};
use crate::net::WriteHalf;
use crate::session::Session;

/// Unsent bytes beyond which the client's own upstream connection is not read.
pub const SOFT_LIMIT: usize = 1024 * 1024;
/// Replies that may be on their way to a client of which nothing is known, and at most. How big replies are shows
/// only when they arrive, and what has been asked for on a shared connection cannot be stopped.
const FIRST_WINDOW: u32 = 32;
const LAST_WINDOW: u32 = 128;
/// Replies that may be on their way to a client with a connection of its own.
const MOST_PENDING: u32 = 16 * 1024;
/// Buffers above this are given back once they are empty.
const KEEP: usize = 16 * 1024;

/// One client as the upstream side sees it. Lives on one thread.
#[derive(Debug)]
pub struct Outbox {
    /// Unique in the process.
    pub id: u64,
    /// Its address.
    pub peer: String,
    /// Where it comes from, without the port.
    host: u64,
    /// Its protocol state.
    pub session: RefCell<Session>,
    /// What it has queued since MULTI.
    pub queued: RefCell<Vec<Queued>>,
    /// Listed to be flushed.
    pub dirty: Cell<bool>,
    writer: WriteHalf,
    out: RefCell<Backlog>,
    /// How many bytes of `out` may go: what follows waits for a fan-out. `None`: all.
    free: Cell<Option<usize>>,
    /// Unsent bytes beyond which the client is cut.
    limit: usize,
    verdicts: RefCell<VecDeque<Verdict>>,
    /// The reply to what the proxy asked on the client's behalf.
    captured: RefCell<BytesMut>,
    /// A request that has not run.
    taken_back: RefCell<Option<BytesMut>>,
    pending: Cell<u32>,
    closing: Cell<bool>,
    /// It takes nothing any more. What it has sent still runs, as it would at Redis.
    gone: Cell<bool>,
    /// It has been given something since [`Outbox::shrink`] was last called.
    used: Cell<bool>,
    /// The kernel has taken something since [`Outbox::has_sent`] was last called.
    sent: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    average: Cell<usize>,
    /// Keys that it has read and that were there.
    pub hits: RefCell<Hits>,
    /// How many replies have arrived, counted round and round.
    answered: Cell<u32>,
    /// Since when its task may not have looked at what has come.
    waiting_since: Cell<Option<Moment>>,
    /// Since when its task deals with one request that it cannot just send on.
    resting_since: Cell<Option<Moment>>,
    muted: Cell<bool>,
    /// Replies that may be on their way at once: grows as replies arrive.
    window: Cell<u32>,
    /// The task waits; how many replies may be left when it is to look again.
    paused: Cell<Option<u32>>,
}

impl Outbox {
    /// The outbox of a client that has just connected.
    pub fn new(id: u64, peer: String, writer: WriteHalf, limit: usize) -> Self {
        let host = peer.rsplit_once(':').map_or(&*peer, |(host, _)| host);
        let host = BuildHasherDefault::<DefaultHasher>::default().hash_one(host);
        Self {
            id,
            host,
            peer,
            session: RefCell::default(),
            queued: RefCell::default(),
            dirty: Cell::new(false),
            writer,
            out: RefCell::default(),
            free: Cell::new(None),
            limit,
            verdicts: RefCell::default(),
            captured: RefCell::default(),
            taken_back: RefCell::default(),
            pending: Cell::new(0),
            closing: Cell::new(false),
            gone: Cell::new(false),
            used: Cell::new(false),
            sent: Cell::new(false),
            waker: RefCell::default(),
            average: Cell::new(64),
            hits: RefCell::default(),
            answered: Cell::new(0),
            waiting_since: Cell::new(None),
            resting_since: Cell::new(None),
            muted: Cell::new(false),
            window: Cell::new(FIRST_WINDOW),
            paused: Cell::new(None),
        }
    }

    /// Who it is when it misses and fills keys.
    pub fn lessee(&self) -> Client {
        Client { id: self.id, host: self.host }
    }

    /// Its task begins to wait for something else than requests, or to deal with one that it cannot just send on.
    pub fn waits(&self, now: Moment) {
        self.waiting_since.set(self.waiting_since.get().or(Some(now)));
        self.resting_since.set(Some(now));
    }

    /// It has ended that.
    pub fn goes_on(&self) {
        self.resting_since.set(None);
    }

    /// Its task has looked at all that has come.
    #[inline]
    pub fn has_looked(&self) {
        self.waiting_since.set(None);
    }

    /// How long its present request may have waited for its task, in milliseconds.
    #[inline]
    pub fn has_waited(&self, now: Moment) -> Moment {
        self.waiting_since.get().map_or(0, |since| now.saturating_sub(since))
    }

    /// How long its present request has been dealt with, in milliseconds, if it cannot just be sent on.
    pub fn has_rested(&self, now: Moment) -> Moment {
        self.resting_since.get().map_or(0, |since| now.saturating_sub(since))
    }

    /// Whether the client is to get nothing until further notice: it wants no reply to what is being done.
    pub fn set_muted(&self, muted: bool) {
        self.muted.set(muted);
    }

    /// Whether the client is to get nothing now.
    pub fn is_muted(&self) -> bool {
        self.muted.get()
    }

    /// Appends bytes of a reply. A client that does not read is cut at the limit.
    pub fn push(&self, bytes: &[u8]) {
        self.push_reply(bytes, 0);
    }

    /// As [`Outbox::push`] of a part of a reply that is `length` bytes long so far: one reply may be longer than
    /// the limit.
    pub fn push_reply(&self, bytes: &[u8], length: usize) {
        let (waiting, in_memory) = {
            let out = self.out.borrow();
            (out.len(), out.in_memory())
        };
        let beyond = |unsent: usize, limit: usize| unsent + bytes.len() > limit.max(length + SOFT_LIMIT);
        if (beyond(waiting, self.limit) || beyond(in_memory, MOST_IN_MEMORY)) && !self.closing.get() {
            tracing::warn!(client = %self.peer, bytes = waiting, "client reads too slowly: output limit reached");
            self.out.borrow_mut().clear();
            self.free.set(None);
            self.close();
        }
        self.with_buffer(|out| out.extend_from_slice(bytes));
    }

    /// Writes bytes of a reply at once, if nothing has to go before them and the kernel takes them; returns how many. The
    /// others are to be pushed.
    pub fn write_past(&self, bytes: &[u8]) -> usize {
        let is_free = self.free.get().is_none() && self.is_given();
        if !is_free || !self.out.borrow().is_empty() {
            return 0;
        }
        // What is wrong with the socket shows when the bytes are flushed.
        let written = self.writer.try_write(bytes).unwrap_or(0);
        self.sent.set(self.sent.get() || written > 0);
        written
    }

    /// Lets `write` append to what the client is to get.
    pub fn with_buffer(&self, write: impl FnOnce(&mut BytesMut)) {
        if self.is_given() {
            self.used.set(true);
            self.out.borrow_mut().append(write);
        }
    }

    /// Whether it gets what is written for it.
    fn is_given(&self) -> bool {
        !self.closing.get() && !self.gone.get() && !self.muted.get()
    }

    /// From here on replies are kept back until [`Outbox::release`].
    pub fn hold(&self) {
        self.free.set(Some(self.unsent()));
    }

    /// Lets go what was held back.
    pub fn release(&self) {
        self.free.set(None);
    }

    /// Appends to the reply that is for the client's task.
    pub fn capture(&self, bytes: &[u8]) {
        self.captured.borrow_mut().extend_from_slice(bytes);
    }

    /// Takes the reply that is for the client's task.
    pub fn take_captured(&self) -> BytesMut {
        self.captured.take()
    }

    /// Its latest request has not run: its task is to deal with it once more, as if it had just come.
    pub fn take_back(&self, request: BytesMut) {
        *self.taken_back.borrow_mut() = Some(request);
        self.wake();
    }

    /// The request to be dealt with once more.
    pub fn taken_back(&self) -> Option<BytesMut> {
        self.taken_back.take()
    }

    /// What a held reply told.
    pub fn judge(&self, verdict: Verdict) {
        self.verdicts.borrow_mut().push_back(verdict);
        self.wake();
    }

    /// The verdict on the first held reply that was not asked about yet, if it has arrived.
    pub fn take_verdict(&self) -> Option<Verdict> {
        self.verdicts.borrow_mut().pop_front()
    }

    /// Writes as much as the kernel takes; returns how many bytes that were. What remains is written by the
    /// client's task once the socket is writable.
    pub fn flush(&self) -> u64 {
        let mut out = self.out.borrow_mut();
        let mut written = 0;
        while self.free.get() != Some(0) && !out.is_empty() {
            let sent = out.front().and_then(|bytes| {
                let most = self.free.get().map_or(bytes.len(), |free| free.min(bytes.len()));
                self.writer.try_write(&bytes[..most])
            });
            match sent {
                Ok(n) => {
                    out.advance(n);
                    self.free.set(self.free.get().map(|free| free - n));
                    self.sent.set(true);
                    written += n as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.wake();
                    return written;
                }
                Err(_) => {
                    drop(out);
                    self.lose();
                    return written;
                }
            }
        }
        out.reclaim(KEEP);
        written
    }

    /// Whether the kernel has taken bytes for the client since this was last asked.
    pub fn has_sent(&self) -> bool {
        self.sent.replace(false)
    }

    /// Gives back the buffer of a client that has been given nothing since the last call.
    pub fn shrink(&self) {
        if !self.used.replace(false) {
            self.out.borrow_mut().reclaim(0);
        }
    }

    /// Unsent bytes that may go.
    pub fn unsent(&self) -> usize {
        self.free.get().unwrap_or_else(|| self.out.borrow().len())
    }

    /// Ready once the socket takes bytes, if there are any.
    pub fn poll_writable(&self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.unsent() == 0 {
            return Poll::Pending;
        }
        match self.writer.poll_write_ready(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(_)) => {
                self.lose();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// One more reply is expected.
    pub fn expect(&self) {
        self.pending.set(self.pending.get() + 1);
    }

    /// One of `bytes` has arrived whole.
    pub fn arrived(&self, bytes: usize) {
        let left = self.pending.get().saturating_sub(1);
        self.pending.set(left);
        self.answered.set(self.answered.get().wrapping_add(1));
        self.average.set((self.average.get() * 7 + bytes) / 8);
        self.window.set((self.window.get() + 1).min(LAST_WINDOW));
        if self.paused.get().is_some_and(|resume_at| left == 0 || left == resume_at) {
            self.wake();
        }
    }

    /// Whether the client's task waits for replies before it goes on: until there is room for half of what may be
    /// on its way, or, for a change of connection, until there is none.
    pub fn set_paused(&self, paused: bool) {
        self.paused.set(paused.then(|| self.most_pending() / 2));
    }

    /// A number that [`Outbox::has_answered`] knows once all that is expected now has arrived.
    pub fn last_expected(&self) -> u32 {
        self.answered.get().wrapping_add(self.pending.get())
    }

    /// Whether all has arrived that was expected when [`Outbox::last_expected`] gave this number.
    pub fn has_answered(&self, number: u32) -> bool {
        self.answered.get().wrapping_sub(number) <= u32::MAX / 2
    }

    /// Replies that are expected.
    pub fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// How many replies may be on their way at once: fewer where they are big, so that a client that does not
    /// read cannot have much more than [`SOFT_LIMIT`] sent to it.
    pub fn most_pending(&self) -> u32 {
        (SOFT_LIMIT / self.average.get().max(1)).clamp(4, self.window.get() as usize) as u32
    }

    /// How many requests more may be sent on a shared connection.
    pub fn room(&self) -> u32 {
        if self.has_room(false) { self.most_pending() - self.pending.get() } else { 0 }
    }

    /// Whether the client may send more. It may go on although it does not read, as with Redis itself: many a client
    /// sends all its requests first. `own`: on a connection of its own Redis keeps the replies.
    pub fn has_room(&self, own: bool) -> bool {
        let most = if own { MOST_PENDING } else { self.most_pending() };
        self.pending.get() < most && self.out.borrow().len() < self.limit / 2
    }

    /// It cannot be written to. Its task ends once it has dealt with what can still be read.
    fn lose(&self) {
        self.gone.set(true);
        self.out.borrow_mut().clear();
        self.free.set(None);
        self.wake();
    }

    /// Whether it may not have got all replies that were written.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// The connection is to be closed; its task does it.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// Whether [`Outbox::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Wakes the client's task.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whom [`Outbox::wake`] wakes.
    pub fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}
