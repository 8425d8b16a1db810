//! One connection to Redis: an output buffer, and the queue of the replies that are expected on it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};

use super::Key;
use super::expected::{Expected, Pending, Setup};
use super::replies::Incoming;
use crate::accounting::Verdict;
use crate::context::Context;
use crate::metrics::ConnectionMode;
use crate::net::{ReadHalf, WriteHalf};
use crate::outbox::Outbox;
use crate::resp::{Head, encode};
use crate::rules::FamilyId;
use crate::session::Identity;

/// Unsent bytes beyond which clients must wait before they add more.
const MOST_UNSENT: usize = 1024 * 1024;
/// Expected replies beyond which clients must wait before they add more.
const MOST_EXPECTED: usize = 32 * 1024;
/// Buffers above this are given back once they are empty.
const KEEP: usize = 256 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has been heard of Redis yet: commands in the queue have certainly not run.
    Starting,
    /// Redis has answered the set-up.
    Open,
    /// Gone.
    Dead,
}

/// One connection to Redis. Lives on one thread; its task is `Conn::drive`.
#[derive(Debug)]
pub struct Conn {
    pub(super) context: Rc<Context>,
    pub(super) key: RefCell<Key>,
    pub(super) queue: RefCell<VecDeque<Expected>>,
    /// The client that it belongs to, if it is pinned and in use.
    pub(super) owner: RefCell<Option<Rc<Outbox>>>,
    /// Replies are passed on as they are.
    pub(super) raw: Cell<bool>,
    /// The proxy knows what state it is in.
    known: Cell<bool>,
    incoming: RefCell<Incoming>,
    out: RefCell<BytesMut>,
    phase: RefCell<Phase>,
    mode: ConnectionMode,
    waker: RefCell<Option<Waker>>,
    /// Clients that wait for room.
    waiting: RefCell<Vec<Rc<Outbox>>>,
    retired: Cell<bool>,
    /// Replies are not read, because the owner does not take them.
    throttled: Cell<bool>,
    /// Clients that have it as their shared connection.
    users: Cell<u32>,
    /// When Redis last said something, or the first reply began to be waited for.
    heard: Cell<Instant>,
    /// Redis is silent: clients are told so.
    stalled: Cell<bool>,
    /// The last command of a client answered with an error.
    pub(super) failed: Cell<bool>,
    /// Set-up commands without an answer.
    setting_up: Cell<u32>,
    /// Clients' requests that wait until the set-up has succeeded: sent behind a failed AUTH they would run as
    /// somebody else.
    behind: RefCell<BytesMut>,
}

impl Conn {
    /// A connection that will be in the state `key` once its set-up commands, already queued, have run.
    pub fn new(context: &Rc<Context>, key: &Key, mode: ConnectionMode) -> Rc<Self> {
        context.upstream_gauge(mode).inc();
        let conn = Rc::new(Self {
            context: Rc::clone(context),
            key: RefCell::new(Key::fresh()),
            queue: RefCell::default(),
            owner: RefCell::default(),
            raw: Cell::new(false),
            known: Cell::new(true),
            incoming: RefCell::default(),
            out: RefCell::default(),
            phase: RefCell::new(Phase::Starting),
            mode,
            waker: RefCell::default(),
            waiting: RefCell::default(),
            retired: Cell::new(false),
            throttled: Cell::new(false),
            users: Cell::new(0),
            heard: Cell::new(context.now()),
            stalled: Cell::new(false),
            failed: Cell::new(false),
            setting_up: Cell::new(0),
            behind: RefCell::default(),
        });
        conn.own(Setup::Probe, &[b"PING"]);
        conn.move_to(key);
        conn
    }

    /// Queues the commands that bring a fresh connection into the state `key`.
    pub(super) fn move_to(&self, key: &Key) {
        match &key.identity {
            Identity::User(user) => match &user.0 {
                Some(name) => self.own(Setup::Must, &[b"AUTH", name, &user.1]),
                None => self.own(Setup::Must, &[b"AUTH", &user.1]),
            },
            Identity::Anonymous => {}
        }
        if key.resp == 3 {
            // Redis refuses HELLO before AUTH where it wants one; a client in RESP3 has passed that.
            self.own(Setup::Must, &[b"HELLO", b"3"]);
        }
        if key.db != 0 {
            self.own(Setup::Must, &[b"SELECT", key.db.to_string().as_bytes()]);
        }
        *self.key.borrow_mut() = key.clone();
    }

    /// Queues a command of the proxy's own.
    pub(super) fn own(&self, setup: Setup, args: &[&[u8]]) {
        let blocks = setup != Setup::Ignore;
        self.setting_up.set(self.setting_up.get() + u32::from(blocks));
        // What need not succeed keeps its place among the clients' requests.
        let buffer = if blocks || self.setting_up.get() == 0 { &self.out } else { &self.behind };
        encode::request(&mut buffer.borrow_mut(), args);
        self.queue.borrow_mut().push_back(Expected::Setup(setup));
        self.wake();
    }

    /// Queues a client's request; `pending` is `None` where no reply will come.
    #[inline]
    pub fn send(&self, request: &[u8], pending: Option<Pending>) {
        let mut out =
            if self.setting_up.get() == 0 { self.out.borrow_mut() } else { self.behind.borrow_mut() };
        // Only the first one of a turn wakes the task, which runs after all clients that are readable now.
        let idle = out.is_empty();
        out.extend_from_slice(request);
        drop(out);
        if let Some(pending) = pending {
            pending.client.expect();
            let mut queue = self.queue.borrow_mut();
            if queue.is_empty() {
                self.heard.set(self.context.now());
            }
            queue.push_back(Expected::Client(pending));
        }
        if idle {
            self.wake();
        }
    }

    /// Asks whether `key` exists, for the count of hits and misses of its family; nobody gets the reply.
    pub fn probe(&self, family: FamilyId, key: &[u8]) {
        let mut request = BytesMut::new();
        encode::request(&mut request, [b"EXISTS".as_slice(), key]);
        self.send(&request, None);
        self.queue.borrow_mut().push_back(Expected::Probe(family));
    }

    /// One of the set-up commands has been answered well.
    pub(super) fn set_up(&self) {
        let left = self.setting_up.get().saturating_sub(1);
        self.setting_up.set(left);
        if left == 0 {
            let behind = std::mem::take(&mut *self.behind.borrow_mut());
            self.out.borrow_mut().extend_from_slice(&behind);
            self.wake();
        }
    }

    /// Whether another request may be queued, or nothing can be any more. If not, the client is woken once there
    /// is room.
    pub fn has_room(&self, client: &Rc<Outbox>) -> bool {
        let unsent = self.out.borrow().len() + self.behind.borrow().len();
        if !self.is_alive() || (unsent < MOST_UNSENT && self.queue.borrow().len() < MOST_EXPECTED) {
            return true;
        }
        self.waiting.borrow_mut().push(Rc::clone(client));
        false
    }

    /// Whether it still can carry requests.
    pub fn is_alive(&self) -> bool {
        *self.phase.borrow() != Phase::Dead && !self.retired.get()
    }

    /// Whether nothing is expected on it.
    pub fn is_idle(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// What commands on it run as.
    pub fn key(&self) -> Key {
        self.key.borrow().clone()
    }

    /// Gives it to a client, or to nobody.
    pub fn set_owner(&self, owner: Option<Rc<Outbox>>) {
        *self.owner.borrow_mut() = owner;
    }

    /// From the next byte on, replies are passed on unframed.
    pub fn set_raw(&self) {
        self.raw.set(true);
    }

    /// Whether bytes pass unframed.
    pub fn is_raw(&self) -> bool {
        self.raw.get()
    }

    /// The proxy has lost track of its state.
    pub fn set_unknown(&self) {
        self.known.set(false);
    }

    /// Whether the proxy knows its state.
    pub fn is_known(&self) -> bool {
        self.known.get() && !self.raw.get()
    }

    /// A client takes it as its shared connection (+1), or lets it go (-1).
    pub fn count_user(&self, change: i32) {
        self.users.set(self.users.get().saturating_add_signed(change));
    }

    /// Whether some client has it as its shared connection.
    pub(super) fn has_users(&self) -> bool {
        self.users.get() > 0
    }

    /// Ends it unless replies are expected on it; whether it goes on.
    pub(super) fn retire_if_idle(&self) -> bool {
        let busy = !self.is_idle();
        if !busy {
            self.retire();
        }
        busy
    }

    /// Queues a PING whose reply nobody gets.
    pub fn send_probe(&self) {
        self.own(Setup::Ignore, &[b"PING"]);
    }

    /// Ends it as soon as its task runs. Whatever Redis still does on it (a blocked command) ends with it.
    pub fn retire(&self) {
        self.retired.set(true);
        self.wake();
    }

    /// Whether it was ended on purpose.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Redis answers nobody: ends it if a reply has been waited for that long.
    pub(super) fn give_up_after(&self, patience: Duration) {
        if !self.is_idle() && self.heard.get().elapsed() >= patience {
            self.stalled.set(true);
            self.retire();
        }
    }

    /// Its client has read something: replies may flow again, if they were stopped.
    pub fn resume(&self) {
        if self.throttled.replace(false) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn opened(&self) {
        *self.phase.borrow_mut() = Phase::Open;
    }

    pub(super) fn is_open(&self) -> bool {
        *self.phase.borrow() == Phase::Open
    }

    /// Moves bytes until the connection ends; resolves with the reason.
    pub(super) async fn drive(&self, mut read: ReadHalf, write: WriteHalf) -> String {
        std::future::poll_fn(|cx| self.poll(cx, &mut read, &write)).await
    }

    fn poll(&self, cx: &mut TaskContext<'_>, read: &mut ReadHalf, write: &WriteHalf) -> Poll<String> {
        {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if self.retired.get() {
            return Poll::Ready("retired".to_owned());
        }
        if let Poll::Ready(error) = self.poll_flush(cx, write) {
            return Poll::Ready(error);
        }
        let read = self.poll_replies(cx, read);
        // Replies may have made new requests possible at once.
        match self.poll_flush(cx, write) {
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => read,
        }
    }

    /// Writes what is queued; ready only with an error.
    fn poll_flush(&self, cx: &mut TaskContext<'_>, write: &WriteHalf) -> Poll<String> {
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            return Poll::Pending;
        }
        while !out.is_empty() {
            match write.try_write(&out) {
                Ok(n) => out.advance(n),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    match write.poll_write_ready(cx) {
                        Poll::Ready(Ok(())) => continue,
                        Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                        Poll::Pending => break,
                    }
                }
                Err(error) => return Poll::Ready(error.to_string()),
            }
        }
        let room = out.len() < MOST_UNSENT / 2;
        if out.is_empty() {
            // What has been written no longer counts as capacity unless it is reclaimed.
            if out.try_reclaim(KEEP + 1) {
                *out = BytesMut::new();
            } else {
                out.clear();
            }
        }
        drop(out);
        if room {
            self.make_room();
        }
        Poll::Pending
    }

    fn make_room(&self) {
        for client in self.waiting.borrow_mut().drain(..) {
            client.wake();
        }
    }

    /// Reads and passes on what has arrived; ready only with an error.
    fn poll_replies(&self, cx: &mut TaskContext<'_>, read: &mut ReadHalf) -> Poll<String> {
        loop {
            if self.owner_is_slow() {
                // Its client does not read: let Redis feel it. Conn::resume goes on.
                self.throttled.set(true);
                return Poll::Pending;
            }
            let mut incoming = self.incoming.borrow_mut();
            let got = {
                let mut scratch = self.context.scratch.borrow_mut();
                match incoming.poll_read(cx, read, &mut scratch) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                    Poll::Ready(Ok(0)) => return Poll::Ready("the connection was closed".to_owned()),
                    Poll::Ready(Ok(n)) => {
                        self.context.tick();
                        self.heard.set(self.context.now());
                        incoming.process(self, &scratch[..n])
                    }
                }
            };
            drop(incoming);
            self.context.flush_dirty();
            if self.queue.borrow().len() < MOST_EXPECTED / 2 {
                self.make_room();
            }
            if let Err(error) = got {
                return Poll::Ready(error);
            }
        }
    }

    /// Whether its client should read before more is read for it. Not while a trigger's reply is awaited: others must
    /// not see stale values because the writer is slow. Nor when the client is gone.
    fn owner_is_slow(&self) -> bool {
        let slow = |owner: &Rc<Outbox>| owner.unsent() >= crate::outbox::SOFT_LIMIT && !owner.is_closing();
        let held = |expected: &Expected| matches!(expected, Expected::Client(pending) if pending.hold);
        self.owner.borrow().as_ref().is_some_and(slow) && !self.queue.borrow().iter().any(held)
    }

    /// The connection is gone. Clients whose commands certainly did not run get an error; the others are
    /// disconnected, as Redis would have done, since nobody knows what has run. Nothing is sent again.
    pub(super) fn fail(&self, reason: &str) {
        let was_open = self.is_open();
        // Before the set-up has succeeded nothing of a client is sent.
        let sent = was_open && self.setting_up.get() == 0;
        *self.phase.borrow_mut() = Phase::Dead;
        self.context.upstream_gauge(self.mode).dec();
        *self.out.borrow_mut() = BytesMut::new();
        *self.behind.borrow_mut() = BytesMut::new();
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        for expected in queue {
            if let Expected::Client(pending) = expected {
                self.fail_pending(pending, sent, reason);
            }
        }
        if let Some(owner) = self.owner.take() {
            // What the client had there is lost.
            if sent || owner.session.borrow().needs_own() {
                owner.close();
            }
        }
        self.context.flush_dirty();
        self.make_room();
    }

    fn fail_pending(&self, pending: Pending, sent: bool, reason: &str) {
        let client = pending.client;
        if pending.hold && !sent {
            client.hold();
        }
        let mut verdict = Verdict::failed();
        if sent {
            // It may have run: a fan-out too many is harmless.
            let fired = pending.account.may_have_fired();
            if self.stalled.get() && !pending.silent {
                client.with_buffer(|out| {
                    encode::error(out, "ERR upstream does not answer; what was sent may or may not run");
                });
            }
            client.close();
            self.context.fan_out_detached(&client.peer, fired);
        } else {
            let mut error = BytesMut::new();
            // Redis's own errors begin with a word in capitals.
            let own =
                reason.split(' ').next().is_some_and(|word| word.bytes().all(|b| b.is_ascii_uppercase()));
            if own {
                encode::error(&mut error, reason);
            } else {
                encode::error(&mut error, format!("ERR upstream: {reason}"));
            }
            if pending.capture {
                client.capture(&error)
            } else {
                client.push(&error)
            }
            self.context.command_done(pending.metric, pending.started, true);
            if let Some(effect) = pending.effect {
                client.session.borrow_mut().replied(*effect, &Head::Error(b""));
            }
            verdict.idle = pending.account.may_have_fired();
            self.context.mark_dirty(&client);
        }
        if pending.hold || pending.capture {
            client.judge(verdict);
        }
        client.arrived(0);
    }
}
