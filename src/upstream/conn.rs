//! One connection to Redis: an output buffer, and the queue of the replies that are expected on it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};

use super::Key;
use super::expected::{Expected, Pending, Setup};
use super::life::{Life, Phase, REPLACED};
use super::replies::Incoming;
use super::scripts::Scripts;
use crate::accounting::ReadKey;
use crate::context::Context;
use crate::descriptors::Place;
use crate::metrics::ConnectionMode;
use crate::net::{ReadHalf, WriteHalf};
use crate::outbox::Outbox;
use crate::resp::encode;
use crate::session::{Effect, Identity, Session};

/// Unsent bytes beyond which clients must wait before they add more.
const MOST_UNSENT: usize = 1024 * 1024;
/// The same of a connection of a client's own: what passes through it should not pile up here.
const MOST_UNSENT_PINNED: usize = 64 * 1024;
/// Unsent bytes that do not wait for the end of the turn. Redis reads half as many at once.
const EARLY: usize = 32 * 1024;
/// Unsent bytes that Redis is not woken for while others may have something to send.
const FEW: usize = 4 * 1024;
/// Expected replies beyond which clients must wait before they add more.
const MOST_EXPECTED: usize = 32 * 1024;
/// So many requests are looked at for one of another client.
const NEAR: usize = 16;
/// A reply that has been waited for this long is one that others should not wait behind.
const LONG: Duration = Duration::from_millis(20);
/// Bytes of replies that are read in one turn.
const TURN: usize = 256 * 1024;
/// Buffers above this are given back once they are empty.
const KEEP: usize = 256 * 1024;

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
    pub(super) writer: OnceCell<WriteHalf>,
    pub(super) out: RefCell<BytesMut>,
    pub(super) life: Life,
    pub(super) mode: Cell<ConnectionMode>,
    waker: RefCell<Option<Waker>>,
    /// What scripts can do for its user.
    pub(super) scripts: Cell<Scripts>,
    /// Clients that wait for room.
    pub(super) waiting: RefCell<Vec<Rc<Outbox>>>,
    /// Its place among all that is open, if there was one.
    _place: Option<Place>,
    /// Replies are not read, because the owner does not take them.
    throttled: Cell<bool>,
    /// Clients that have it as their shared connection.
    users: Cell<u32>,
    /// Requests wait until it has been looked once more who has sent some.
    gathering: Cell<bool>,
    /// A big reply is on its way.
    pub(super) big_reply: Cell<bool>,
    /// It is shared because another one with the same key was congested.
    detour: Cell<bool>,
    /// How long a reply may take before others should not wait behind it.
    patience: Cell<Duration>,
    /// When Redis last said something, or the first reply began to be waited for.
    pub(super) heard: Cell<Instant>,
    /// The last command of a client answered with an error.
    pub(super) failed: Cell<bool>,
    /// Set-up commands without an answer.
    pub(super) setting_up: Cell<u32>,
    /// Clients' requests that wait until the set-up has succeeded: sent behind a failed AUTH they would run as
    /// somebody else.
    pub(super) behind: RefCell<BytesMut>,
}

impl Conn {
    /// A connection that will be in the state `key` once its set-up commands, already queued, have run.
    pub fn new(context: &Rc<Context>, key: &Key, mode: ConnectionMode, place: Option<Place>) -> Rc<Self> {
        context.upstream_gauge(mode).inc();
        let conn = Rc::new(Self {
            context: Rc::clone(context),
            key: RefCell::new(Key::fresh()),
            queue: RefCell::default(),
            owner: RefCell::default(),
            raw: Cell::new(false),
            known: Cell::new(true),
            incoming: RefCell::default(),
            writer: OnceCell::new(),
            out: RefCell::default(),
            life: Life::new(),
            mode: Cell::new(mode),
            waker: RefCell::default(),
            scripts: Cell::new(Scripts::NEW),
            waiting: RefCell::default(),
            _place: place,
            throttled: Cell::new(false),
            users: Cell::new(0),
            gathering: Cell::new(false),
            big_reply: Cell::new(false),
            detour: Cell::new(false),
            patience: Cell::new(LONG),
            heard: Cell::new(context.now()),
            failed: Cell::new(false),
            setting_up: Cell::new(0),
            behind: RefCell::default(),
        });
        // Redis from 7.2 on says nothing of an AUTH that fails behind a reply which has not been sent yet: it goes first.
        conn.move_to(&Key { identity: key.identity.clone(), ..Key::fresh() });
        conn.own(Setup::Probe, &[b"PING"]);
        conn.move_to(key);
        conn.own(Setup::Run, &[b"INFO", b"server"]);
        conn.ask_for_scripts();
        conn
    }

    /// Whether a request of another client from the same host is under way, too, close behind the first one.
    pub(super) fn is_busy_for_others(&self, client: &Outbox) -> bool {
        let (me, queue) = (client.lessee(), self.queue.borrow());
        let mut next = queue.iter().take(NEAR).filter_map(|expected| match expected {
            Expected::Client(pending) => Some(pending.client.lessee()),
            Expected::Setup(_) | Expected::Probe(..) => None,
        });
        next.any(|other| other.id != me.id && other.host == me.host)
    }

    /// Queues the commands that bring it into the state `key`. False: there is no way.
    pub(super) fn move_to(&self, key: &Key) -> bool {
        let Some(way) = self.key.borrow().way_to(key) else { return false };
        if self.key.borrow().identity != key.identity {
            self.scripts.set(self.scripts.get().of_another_user());
        }
        for (setup, request) in way {
            let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            self.own(setup, &words);
        }
        let identity = match &key.identity {
            // Which one it is, it knows better.
            Identity::Unknown => self.key.borrow().identity.clone(),
            known => known.clone(),
        };
        *self.key.borrow_mut() = Key { identity, ..key.clone() };
        true
    }

    /// A request that has succeeded here has changed the connection.
    pub(super) fn follow(&self, effect: &Effect, session: &Session) {
        let mut key = self.key.borrow_mut();
        if let Effect::Auth(_) | Effect::Hello { identity: Some(_), .. } = effect {
            // Another user, who may have other rights.
            self.scripts.set(self.scripts.get().of_another_user());
        }
        match effect {
            Effect::Auth(identity) => key.identity = identity.clone(),
            Effect::Select(db) => key.db = *db,
            Effect::Label(..) => key.label = session.label.clone(),
            Effect::Hello { resp, identity, name, .. } => {
                key.resp = resp.unwrap_or(key.resp);
                if let Some(identity) = identity {
                    key.identity = identity.clone();
                }
                if name.is_some() {
                    key.label = session.label.clone();
                }
            }
            _ => {}
        }
    }

    /// A fresh connection has been greeted: is it let in without AUTH? The error is for the clients that wanted a
    /// connection of the other kind.
    pub(super) fn greeted(&self, open: bool) -> Result<(), String> {
        self.opened();
        // Where Redis is far away, or slow, everything takes longer.
        self.patience.set(LONG.max(self.life.created.elapsed() * 3));
        let mut key = self.key.borrow_mut();
        match (&key.identity, open) {
            (Identity::Unknown, true) => key.identity = Identity::Default,
            (Identity::Unknown, false) => key.identity = Identity::Nobody,
            (Identity::Default, false) => {
                return Err("NOAUTH Authentication required.".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// Queues a command of the proxy's own. Commands are sent in the order in which their replies are queued: what clients
    /// wait for goes before any of their requests, anything else keeps its place among them.
    pub(super) fn own(&self, setup: Setup, args: &[&[u8]]) {
        self.setting_up.set(self.setting_up.get() + u32::from(setup.blocks()));
        let is_next = self.behind.borrow().is_empty();
        debug_assert!(is_next || !setup.blocks(), "it would overtake requests of clients");
        let buffer = if is_next { &self.out } else { &self.behind };
        encode::request(&mut buffer.borrow_mut(), args);
        if self.is_idle() {
            self.heard.set(self.context.now());
        }
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
        if out.len() >= EARLY && self.is_usable() {
            self.write_early(&mut out);
        }
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
            self.wake_to_send();
        }
    }

    /// The first request of a turn is there. The connection may have been lost while the client's task waited for something
    /// else.
    fn wake_to_send(&self) {
        if self.life.phase.get() != Phase::Dead {
            return self.wake();
        }
        self.out.borrow_mut().clear();
        self.behind.borrow_mut().clear();
        for expected in std::mem::take(&mut *self.queue.borrow_mut()) {
            if let Expected::Client(pending) = expected {
                self.fail_pending(pending, false, "the connection was lost");
            }
        }
    }

    /// Redis need not wait until the turn ends when it can have much to do already.
    #[cold]
    fn write_early(&self, out: &mut BytesMut) {
        // What is wrong with the socket shows when the rest is written.
        if let Some(Ok(written)) = self.writer.get().map(|writer| writer.try_write(out)) {
            out.advance(written);
            self.reclaim(out);
        }
    }

    /// Makes a buffer that is empty ready for what comes next.
    fn reclaim(&self, out: &mut BytesMut) {
        if out.is_empty() {
            // What has been written no longer counts as capacity unless it is reclaimed.
            if out.try_reclaim(self.most_unsent().min(KEEP) + 1) {
                *out = BytesMut::new();
            } else {
                out.clear();
            }
        }
    }

    /// Passes on a part of a big request: at once and uncopied, as far as nothing has to go before it and the kernel takes
    /// it.
    pub fn pass(&self, part: &[u8]) {
        let is_free = self.is_usable() && self.is_alive() && self.out.borrow().is_empty();
        // What is wrong with the socket shows when the rest is written.
        let written = match self.writer.get().filter(|_| is_free) {
            Some(writer) => writer.try_write(part).unwrap_or(0),
            None => 0,
        };
        if written < part.len() {
            self.send(&part[written..], None);
        }
    }

    /// Asks whether `key` exists, for the count of hits and misses of its family; nobody gets the reply.
    pub fn probe(&self, client: &Rc<Outbox>, read: ReadKey, key: &[u8]) {
        let mut request = BytesMut::new();
        encode::request(&mut request, [b"EXISTS".as_slice(), key]);
        self.send(&request, None);
        self.queue.borrow_mut().push_back(Expected::Probe(read, Rc::clone(client)));
    }

    /// One of the set-up commands has been answered well.
    pub(super) fn set_up(&self) {
        let left = self.setting_up.get().saturating_sub(1);
        self.setting_up.set(left);
        if left == 0 {
            let behind = std::mem::take(&mut *self.behind.borrow_mut());
            self.out.borrow_mut().extend_from_slice(&behind);
            self.wake();
            self.make_room();
        }
    }

    /// Whether another request may be queued, or nothing can be any more. If not, the client is woken once there
    /// is room.
    pub fn has_room(&self, client: &Rc<Outbox>) -> bool {
        if !self.is_alive() || !self.is_full() {
            return true;
        }
        self.waiting.borrow_mut().push(Rc::clone(client));
        false
    }

    /// Whether so much is under way that nothing should be added.
    #[inline]
    pub fn is_full(&self) -> bool {
        let unsent = self.out.borrow().len() + self.behind.borrow().len();
        unsent >= self.most_unsent() || self.queue.borrow().len() >= MOST_EXPECTED
    }

    fn most_unsent(&self) -> usize {
        if self.is_pinned() { MOST_UNSENT_PINNED } else { MOST_UNSENT }
    }

    /// Whether it is for one client at a time.
    pub(super) fn is_pinned(&self) -> bool {
        self.mode.get() == ConnectionMode::Pinned
    }

    /// From now on it is for one client at a time, or for many.
    pub(super) fn set_mode(&self, mode: ConnectionMode) {
        self.context.upstream_gauge(self.mode.replace(mode)).dec();
        self.context.upstream_gauge(mode).inc();
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
        let pinned = &self.context.process.pinned;
        pinned.fetch_add(usize::from(owner.is_some()), Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.owner.borrow_mut(), owner);
        pinned.fetch_sub(usize::from(before.is_some()), Ordering::Relaxed);
    }

    /// Behind the replies that are expected, bytes are passed on unframed.
    pub fn set_raw(&self) {
        self.raw.set(true);
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

    /// Whether a client that waits for nothing on it should look for a better one.
    pub fn is_second_best(&self) -> bool {
        self.detour.get() || self.is_congested()
    }

    /// Whether what is sent now would wait behind something: a big reply, or a command that takes long, such as a
    /// script, during which Redis answers others.
    pub(super) fn is_congested(&self) -> bool {
        self.big_reply.get()
            || (!self.is_idle()
                && self.context.now().saturating_duration_since(self.heard.get()) > self.patience.get())
    }

    /// Whether it stands in for another one.
    pub(super) fn is_detour(&self) -> bool {
        self.detour.get()
    }

    /// The client is woken when something has changed here.
    pub(super) fn wake_later(&self, client: &Rc<Outbox>) {
        self.waiting.borrow_mut().push(Rc::clone(client));
    }

    /// Whether it stands in for another one that is congested.
    pub(super) fn set_detour(&self, detour: bool) {
        self.detour.set(detour);
    }

    /// Has a WAIT that comes next wait for all that Redis has executed up to here, over whatever connection: nobody gets the
    /// replies. It counts from the last command of its connection, from Redis 7.2 on from the last that replicas got, as they
    /// get each message.
    pub fn mark_for_wait(&self) {
        self.own(Setup::Ignore, &[b"PING"]);
        self.own(Setup::Ignore, &[b"PUBLISH", b"rescind:wait", b""]);
    }

    /// Its client has read something: replies may flow again, if they were stopped.
    pub fn resume(&self) {
        if self.throttled.replace(false) {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Moves bytes until the connection ends; resolves with the reason.
    pub(super) async fn drive(&self, mut read: ReadHalf, write: WriteHalf) -> String {
        let write = self.writer.get_or_init(|| write);
        std::future::poll_fn(|cx| self.poll(cx, &mut read, write)).await
    }

    fn poll(&self, cx: &mut TaskContext<'_>, read: &mut ReadHalf, write: &WriteHalf) -> Poll<String> {
        {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if self.is_drained() {
            self.retire();
        }
        if self.is_retired() {
            return Poll::Ready(if self.is_left() { REPLACED } else { "retired" }.to_owned());
        }
        let gathers = self.gathers();
        if !gathers && let Poll::Ready(error) = self.poll_flush(cx, write) {
            return Poll::Ready(error);
        }
        let read = self.poll_replies(cx, read);
        if gathers {
            // Runs again once it has been looked which sockets have become ready.
            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            return read;
        }
        if self.is_drained() {
            self.wake();
        }
        // Replies may have made new requests possible at once.
        match self.poll_flush(cx, write) {
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => read,
        }
    }

    /// Whether the requests of several clients, if they are small, wait for others that have come meanwhile: one look at the
    /// sockets costs less than one more read and write of Redis.
    fn gathers(&self) -> bool {
        let has_waited = self.gathering.replace(false);
        let few = (1..FEW).contains(&self.out.borrow().len());
        let gathers = few && !has_waited && !self.is_pinned() && self.is_of_several();
        self.gathering.set(gathers);
        gathers
    }

    /// Whether the first and the last reply that is expected are for different clients.
    fn is_of_several(&self) -> bool {
        match (self.queue.borrow().front(), self.queue.borrow().back()) {
            (Some(Expected::Client(first)), Some(Expected::Client(last))) => {
                !Rc::ptr_eq(&first.client, &last.client)
            }
            _ => false,
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
        let room = out.len() < self.most_unsent() / 2;
        self.reclaim(&mut out);
        drop(out);
        if room {
            self.make_room();
        }
        Poll::Pending
    }

    pub(super) fn make_room(&self) {
        for client in self.waiting.borrow_mut().drain(..) {
            client.wake();
        }
    }

    /// Reads and passes on what has arrived; ready only with an error.
    fn poll_replies(&self, cx: &mut TaskContext<'_>, read: &mut ReadHalf) -> Poll<String> {
        let mut taken = 0;
        loop {
            if taken >= TURN {
                // Goes on once the others have had their turn, those included whose sockets have become ready.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
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
                        taken += n;
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
        if !self.owner.borrow().as_ref().is_some_and(slow) {
            return false;
        }
        let queue = self.queue.borrow();
        let held = |expected: &Expected| matches!(expected, Expected::Client(pending) if pending.is_held());
        // Nor where it may wait until all its requests are taken before it reads.
        queue.len() < MOST_EXPECTED / 4 && !queue.iter().any(held)
    }
}
