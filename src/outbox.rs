//! What a client is still to get: the bytes of replies, in order, bounded; and what its task waits for.

use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::{Buf, BytesMut};

use crate::accounting::{Queued, Verdict};
use crate::net::WriteHalf;
use crate::session::Session;

/// Unsent bytes beyond which no more of the client's requests are read, and its own upstream connection is
/// not read either.
pub const SOFT_LIMIT: usize = 1024 * 1024;
/// Unsent bytes beyond which the client is cut: it asks on a shared connection and does not read.
pub const HARD_LIMIT: usize = 256 * 1024 * 1024;
/// Replies that may be on their way to a client of which nothing is known, and at most. How big replies are shows
/// only when they arrive, and what has been asked for on a shared connection cannot be stopped.
const FIRST_WINDOW: u32 = 32;
const LAST_WINDOW: u32 = 128;
/// Buffers above this are given back once they are empty.
const KEEP: usize = 16 * 1024;

/// One client as the upstream side sees it. Lives on one thread.
#[derive(Debug)]
pub struct Outbox {
    /// Unique in the process.
    pub id: u64,
    /// Its address.
    pub peer: String,
    /// Its protocol state.
    pub session: RefCell<Session>,
    /// What it has queued since MULTI.
    pub queued: RefCell<Vec<Queued>>,
    /// Listed to be flushed.
    pub dirty: Cell<bool>,
    writer: WriteHalf,
    out: RefCell<BytesMut>,
    /// Replies that wait for a fan-out, and what follows them.
    held: RefCell<Option<BytesMut>>,
    verdict: RefCell<Option<Verdict>>,
    /// The reply to what the proxy asked on the client's behalf.
    captured: RefCell<BytesMut>,
    pending: Cell<u32>,
    closing: Cell<bool>,
    blocked_since: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
    average: Cell<usize>,
    muted: Cell<bool>,
    /// Replies that may be on their way at once: grows as replies arrive.
    window: Cell<u32>,
    /// The task waits; how many replies may be left when it is to look again.
    paused: Cell<Option<u32>>,
}

impl Outbox {
    /// The outbox of a client that has just connected.
    pub fn new(id: u64, peer: String, writer: WriteHalf) -> Self {
        Self {
            id,
            peer,
            session: RefCell::default(),
            queued: RefCell::default(),
            dirty: Cell::new(false),
            writer,
            out: RefCell::default(),
            held: RefCell::default(),
            verdict: RefCell::default(),
            captured: RefCell::default(),
            pending: Cell::new(0),
            closing: Cell::new(false),
            blocked_since: Cell::new(None),
            waker: RefCell::default(),
            average: Cell::new(64),
            muted: Cell::new(false),
            window: Cell::new(FIRST_WINDOW),
            paused: Cell::new(None),
        }
    }

    /// Whether the client is to get nothing until further notice: it wants no reply to what is being done.
    pub fn set_muted(&self, muted: bool) {
        self.muted.set(muted);
    }

    /// Whether the client is to get nothing now.
    pub fn is_muted(&self) -> bool {
        self.muted.get()
    }

    /// Appends bytes of a reply. A client that does not read is cut at [`HARD_LIMIT`].
    pub fn push(&self, bytes: &[u8]) {
        self.push_reply(bytes, 0);
    }

    /// As [`Outbox::push`] of a part of a reply that is `length` bytes long so far: one reply may be longer than
    /// the limit.
    pub fn push_reply(&self, bytes: &[u8], length: usize) {
        let limit = HARD_LIMIT.max(length + SOFT_LIMIT);
        let waiting = self.out.borrow().len() + self.held.borrow().as_ref().map_or(0, BytesMut::len);
        // Looked at before the buffer grows: growing doubles it.
        if waiting + bytes.len() > limit && !self.closing.get() {
            tracing::warn!(client = %self.peer, bytes = waiting, "client reads too slowly: output limit reached");
            self.held.replace(None);
            self.out.replace(BytesMut::new());
            self.close();
        }
        self.with_buffer(|out| out.extend_from_slice(bytes));
    }

    /// Lets `write` append to what the client is to get.
    pub fn with_buffer(&self, write: impl FnOnce(&mut BytesMut)) {
        if self.closing.get() || self.muted.get() {
            return;
        }
        let mut held = self.held.borrow_mut();
        let mut out = self.out.borrow_mut();
        write(held.as_mut().unwrap_or(&mut out));
    }

    /// From here on replies are kept back until [`Outbox::release`].
    pub fn hold(&self) {
        self.held.borrow_mut().get_or_insert_default();
    }

    /// Lets go what was held back.
    pub fn release(&self) {
        if let Some(held) = self.held.take() {
            self.push(&held);
        }
    }

    /// Appends to the reply that is for the client's task.
    pub fn capture(&self, bytes: &[u8]) {
        self.captured.borrow_mut().extend_from_slice(bytes);
    }

    /// Takes the reply that is for the client's task.
    pub fn take_captured(&self) -> BytesMut {
        self.captured.take()
    }

    /// What a held reply told; there is at most one at a time that matters.
    pub fn judge(&self, verdict: Verdict) {
        let mut slot = self.verdict.borrow_mut();
        match &mut *slot {
            Some(earlier) => {
                earlier.fired.extend(verdict.fired);
                earlier.idle.extend(verdict.idle);
            }
            None => *slot = Some(verdict),
        }
        drop(slot);
        self.wake();
    }

    /// The verdict on a held reply, if it has arrived.
    pub fn take_verdict(&self) -> Option<Verdict> {
        self.verdict.take()
    }

    /// Writes as much as the kernel takes; returns how many bytes that were. What remains is written by the
    /// client's task once the socket is writable.
    pub fn flush(&self) -> u64 {
        let mut out = self.out.borrow_mut();
        let mut written = 0;
        while !out.is_empty() {
            match self.writer.try_write(&out) {
                Ok(n) => {
                    out.advance(n);
                    written += n as u64;
                    self.blocked_since.set(None);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.blocked_since.get().is_none() {
                        self.blocked_since.set(Some(Instant::now()));
                    }
                    self.wake();
                    return written;
                }
                Err(_) => {
                    drop(out);
                    self.close();
                    return written;
                }
            }
        }
        // What has been written no longer counts as capacity unless it is reclaimed.
        if out.try_reclaim(KEEP + 1) {
            *out = BytesMut::new();
        } else {
            out.clear();
        }
        written
    }

    /// Gives back the buffer of a client that has nothing to say.
    pub fn shrink(&self) {
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            *out = BytesMut::new();
        }
    }

    /// Unsent bytes.
    pub fn unsent(&self) -> usize {
        self.out.borrow().len()
    }

    /// Since when the client has taken no byte although there were some.
    pub fn stuck_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Ready once the socket takes bytes, if there are any.
    pub fn poll_writable(&self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.out.borrow().is_empty() {
            return Poll::Pending;
        }
        match self.writer.poll_write_ready(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(_)) => {
                self.close();
                Poll::Ready(())
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

    /// Replies that are expected.
    pub fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// How many replies may be on their way at once: fewer where they are big, so that a client that does not
    /// read cannot have much more than [`SOFT_LIMIT`] sent to it.
    pub fn most_pending(&self) -> u32 {
        (SOFT_LIMIT / self.average.get().max(1)).clamp(4, self.window.get() as usize) as u32
    }

    /// Whether the client may send more.
    pub fn has_room(&self) -> bool {
        self.pending.get() < self.most_pending() && self.out.borrow().len() < SOFT_LIMIT
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
