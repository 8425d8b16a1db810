//! From the bytes of a connection to the clients: framing, matching with what is expected, delivering.

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use super::Conn;
use super::expected::{Expected, Pending, Setup, Special};
use super::life::REPLACED;
use super::plain;
use super::pubsub::{self, Class};
use crate::accounting::{Account, NOPERM, ReadKey, Reader, Seen, Watch};
use crate::context::{READ, READ_OF_BIG};
use crate::fanout::Order;
use crate::lease::trouble::Trouble;
use crate::net::ReadHalf;
use crate::outbox::Outbox;
use crate::resp::{Head, ReplyFramer, encode};
use crate::session::{Effect, Identity, SubscriptionKind};

/// A reply that is longer than this, and not yet whole, is one that others should not wait behind.
const BIG: usize = 256 * 1024;
/// So many bytes for one client are written from where they have been read to, if its socket takes them. Fewer are copied,
/// so that one write carries all that it gets in a turn.
const UNCOPIED: usize = 4 * 1024;

/// What the value that is being read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Current {
    /// Not known before its first bytes.
    #[default]
    Unknown,
    /// The reply that is expected next.
    Reply,
    /// A message: passed on, answers nothing.
    Message,
    /// Confirms a subscription.
    Confirmation(SubscriptionKind),
}

/// The state of reading one connection.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    framer: ReplyFramer,
    reader: Reader,
    current: Current,
    /// Bytes of the current reply so far.
    length: usize,
    /// The start of a header line whose end has not arrived.
    rest: Vec<u8>,
    /// Text of an error reply to a set-up command.
    setup_error: Option<String>,
    /// The last number that one answered.
    setup_reply: i64,
    /// The reply to one consists of several values.
    setup_has_many: bool,
    /// What Redis says about itself.
    setup_text: Vec<u8>,
    /// What it means that the reply is an error, if a script runs the command.
    trouble: Option<Trouble>,
}

/// Whole replies, and parts of one, that lie side by side and go to the same client.
struct Run {
    client: Rc<Outbox>,
    start: usize,
    end: usize,
    /// Bytes of its last reply so far.
    length: usize,
}

/// The bytes that have been read, and what of them is still to be given to a client.
pub(super) struct Read<'a> {
    pub(super) buf: &'a [u8],
    run: Option<Run>,
}

impl Incoming {
    /// Reads into `scratch`, behind what was left over; returns how many bytes of it are to be processed,
    /// 0 at the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut TaskContext<'_>,
        read: &mut ReadHalf,
        scratch: &mut Vec<u8>,
    ) -> Poll<std::io::Result<usize>> {
        let rest = self.rest.len();
        if scratch.len() < rest * 2 {
            scratch.resize(rest * 2, 0);
        }
        let is_big = self.current == Current::Reply && self.length >= READ / 2;
        let end = scratch.len().min(rest + if is_big { READ_OF_BIG } else { READ });
        let mut buf = ReadBuf::new(&mut scratch[rest..end]);
        ready!(Pin::new(read).poll_read(cx, &mut buf))?;
        let filled = buf.filled().len();
        if filled == 0 {
            return Poll::Ready(Ok(0));
        }
        scratch[..rest].copy_from_slice(&self.rest);
        self.rest.clear();
        Poll::Ready(Ok(rest + filled))
    }

    /// Passes on the replies in `buf`. The error is why the connection cannot be used any longer.
    pub fn process(&mut self, conn: &Conn, buf: &[u8]) -> Result<(), String> {
        let mut read = Read { buf, run: None };
        let result = self.process_all(conn, &mut read);
        read.deliver(conn);
        result
    }

    fn process_all(&mut self, conn: &Conn, read: &mut Read<'_>) -> Result<(), String> {
        let (mut at, buf) = (0, read.buf);
        while at < buf.len() {
            if conn.raw.get() && conn.queue.borrow().is_empty() {
                read.deliver(conn);
                pass_on(conn, &buf[at..]);
                return Ok(());
            }
            if self.current == Current::Unknown {
                if let Some(length) = read.take_plainly(conn, at) {
                    at += length;
                    continue;
                }
                match classify(conn, &buf[at..]) {
                    Some(current) => self.begin(conn, current, read),
                    None => break,
                }
            }
            let progress = self.advance(conn, read, at)?;
            at += progress.consumed;
            if !progress.done && at < buf.len() {
                // Only a header line whose end is missing is left over.
                break;
            }
        }
        self.rest.extend_from_slice(&buf[at..]);
        Ok(())
    }

    fn begin(&mut self, conn: &Conn, mut current: Current, read: &mut Read<'_>) {
        if current == Current::Reply && conn.is_pinned() && conn.is_idle() {
            // EXEC may say less than it sends: pushes count among its elements. The client shall have it all.
            conn.set_unknown();
            current = Current::Message;
        }
        self.current = current;
        self.length = 0;
        if let (Current::Reply, Some(Expected::Client(pending))) = (current, conn.queue.borrow().front()) {
            self.reader.begin(&pending.account);
            if pending.is_held() {
                read.deliver(conn);
                pending.client.hold();
            }
        } else {
            self.reader.begin(&Account::Nothing);
        }
    }

    fn advance(
        &mut self,
        conn: &Conn,
        read: &mut Read<'_>,
        at: usize,
    ) -> Result<crate::resp::Progress, String> {
        let buf = &read.buf[at..];
        let queue = conn.queue.borrow();
        let front = queue.front();
        let (reader, setup_error) = (&mut self.reader, &mut self.setup_error);
        let (setup_reply, setup_has_many) = (&mut self.setup_reply, &mut self.setup_has_many);
        let progress = match front {
            Some(Expected::Client(pending)) if self.current == Current::Reply => {
                let account = &pending.account;
                let mut count = |key, seen| count_read(conn, &pending.client, key, seen);
                self.framer.advance(buf, |depth, head| reader.on_reply(depth, head, account, &mut count))
            }
            Some(Expected::Setup(_)) if self.current == Current::Reply => {
                self.framer.advance(buf, |depth, head| match (depth, head) {
                    (0, Head::Error(text)) => {
                        *setup_error = Some(String::from_utf8_lossy(text).into_owned());
                    }
                    (0, Head::Int(n)) => *setup_reply = *n,
                    (0, Head::Array(_) | Head::Map(_)) => *setup_has_many = true,
                    _ => {}
                })
            }
            None if self.current == Current::Reply => return Err("an unexpected reply".to_owned()),
            _ => {
                let (nothing, mut ignore) = (Account::Nothing, |_, _| {});
                self.framer.advance(buf, |depth, head| reader.on(depth, head, &nothing, &mut ignore))
            }
        }
        .map_err(|error| error.to_string())?;
        let chunk = &buf[..progress.consumed];
        self.length += chunk.len();
        conn.big_reply.set(self.length >= BIG && !progress.done);
        match (self.current, front) {
            (Current::Reply, Some(Expected::Client(pending))) if pending.special.is_none() => {
                read.add(conn, &pending.client, at..at + chunk.len(), self.length);
            }
            (Current::Reply, Some(Expected::Client(pending))) => {
                read.deliver(conn);
                let is_first = self.length == chunk.len();
                self.trouble = if is_first { pending.trouble(chunk) } else { None };
                let refusal = self.trouble.and_then(|_| pending.refusal(chunk));
                match self.trouble {
                    Some(Trouble::Name) => {
                        conn.forgot_scripts();
                        if chunk.starts_with(b"-NOPERM") {
                            conn.note_error(&Head::Error(NOPERM));
                        }
                    }
                    Some(Trouble::Before | Trouble::Behind) => conn.lacks_rights(),
                    Some(Trouble::Refused) => conn.note_error(&Head::Error(NOPERM)),
                    None => {}
                }
                let comes_again = match self.trouble {
                    Some(Trouble::Name) => true,
                    Some(Trouble::Before) => pending.is_kept(),
                    _ => false,
                };
                if comes_again {
                    // This is not its answer.
                } else if pending.is_captured() {
                    pending.client.capture(chunk);
                } else if let Some(text) = refusal.filter(|_| pending.is_passed_on()) {
                    pending.client.with_buffer(|out| encode::error(out, text));
                    conn.context.mark_dirty(&pending.client);
                } else if pending.is_passed_on() {
                    pending.client.push_reply(chunk, self.length);
                    conn.context.mark_dirty(&pending.client);
                }
            }
            (Current::Reply, Some(Expected::Setup(Setup::Run))) => self.setup_text.extend_from_slice(chunk),
            (Current::Reply, _) => {}
            _ => {
                read.deliver(conn);
                pass_on(conn, chunk);
            }
        }
        drop(queue);
        if progress.done {
            self.done(conn)?;
        }
        Ok(progress)
    }

    fn done(&mut self, conn: &Conn) -> Result<(), String> {
        match std::mem::replace(&mut self.current, Current::Unknown) {
            Current::Reply => {
                let expected = conn.queue.borrow_mut().pop_front();
                match expected {
                    Some(Expected::Client(pending)) => self.answered(conn, pending),
                    Some(Expected::Setup(setup)) => self.set_up(conn, setup)?,
                    Some(Expected::Probe(key, client)) => {
                        if let (Head::Int(n), false) = (self.reader.head(), conn.failed.get()) {
                            let seen = if n > 0 { Seen::Hit } else { Seen::Miss };
                            count_read(conn, &client, key, seen);
                        }
                    }
                    None => {}
                }
            }
            Current::Confirmation(kind) => self.confirmed(conn, kind),
            Current::Message | Current::Unknown => {}
        }
        Ok(())
    }

    fn set_up(&mut self, conn: &Conn, setup: Setup) -> Result<(), String> {
        let (error, has_many) = (self.setup_error.take(), std::mem::take(&mut self.setup_has_many));
        match (setup, error) {
            // It says so instead of an answer, and hangs up: nothing of what was sent has run.
            (Setup::Probe, Some(text)) if is_refusal(&text) => return Err(text),
            (Setup::Probe, error) => {
                let open = lets_in(error.as_deref());
                if conn.key.borrow().identity.is_anonymous() {
                    prove(conn, conn.life.created, open);
                }
                conn.greeted(open)?;
            }
            (Setup::Standing(since), error) => {
                let is_nobody = conn.key.borrow().identity == Identity::Nobody;
                let open = match error.as_deref() {
                    error if is_nobody => lets_in(error),
                    // The AUTH has failed in silence: this is what HELLO says, which was sent behind it.
                    None if has_many => {
                        conn.queue.borrow_mut().pop_front();
                        false
                    }
                    None => true,
                    // A wrong password is what tells that there is one.
                    Some(text) if text.starts_with("WRONGPASS") => false,
                    Some(text) => {
                        return Err(format!("ERR upstream cannot be asked whether it wants AUTH: {text}"));
                    }
                };
                prove(conn, since, open);
                return Ok(());
            }
            (Setup::Run, error) => {
                let text = std::mem::take(&mut self.setup_text);
                let process = &conn.context.process;
                if error.is_some() {
                    // The proxy's own user may be allowed to ask.
                    process.look_for_another();
                }
                let era = process.leads_to(error.is_none().then_some(&text), conn.life.created);
                let Some(era) = era.filter(|_| process.may_carry(conn.life.created)) else {
                    return Err(REPLACED.to_owned());
                };
                conn.set_era(era);
            }
            (Setup::Scripts, error) => {
                conn.answered_scripts(error.as_deref(), self.setup_reply);
                // Clients with something to fill wait to know.
                conn.make_room();
            }
            (Setup::Must, Some(text)) => {
                if !is_refusal(&text) {
                    conn.opened();
                }
                return Err(text);
            }
            _ => {}
        }
        if setup.blocks() {
            if conn.is_left() {
                return Err(REPLACED.to_owned());
            }
            conn.set_up();
        }
        Ok(())
    }

    /// As most replies are: hits and misses to be counted, and nothing else.
    fn answered_plainly(&mut self, conn: &Conn, pending: Pending) {
        if let Account::Read(reading) = &pending.account {
            self.reader.settle(reading, |key, seen| count_read(conn, &pending.client, key, seen));
        }
        plain::finish(conn, &pending, &self.reader.head(), self.length);
    }

    fn answered(&mut self, conn: &Conn, mut pending: Pending) {
        let trouble = self.trouble.take();
        if trouble == Some(Trouble::Name)
            && let Some(request) = pending.spelled_out()
        {
            let client = Rc::clone(&pending.client);
            conn.send(&request, Some(pending));
            // Not before: its next request must wait for that one, too.
            return client.arrived(self.length);
        }
        let taken_back = pending.taken_back().filter(|_| trouble == Some(Trouble::Before));
        if taken_back.is_some() {
            // It is counted when it has run.
            pending.metric = None;
        }
        if pending.special.is_none() && matches!(pending.account, Account::Nothing | Account::Read(_)) {
            return self.answered_plainly(conn, pending);
        }
        let context = &conn.context;
        let special = pending.special.map_or_else(Special::default, |special| *special);
        let client = Rc::clone(&pending.client);
        let mut count = |key, seen| count_read(conn, &client, key, seen);
        let head = self.reader.head();
        let fetched = pending.account.fetched(&head);
        let mut verdict = self.reader.finish(pending.account, &mut count);
        if let Some(fetched) = fetched {
            context.fetched(&client, fetched);
        }
        if let Some(settled) = special.settled {
            context.settled(&settled, &head);
        }
        context.command_done(pending.metric, pending.started, verdict.error);
        verdict.failed.iter().for_each(|metric| context.command_failed(*metric));
        conn.failed.set(verdict.error);
        if verdict.has_refusals {
            // A script among them may have been refused something.
            conn.note_error(&Head::Error(NOPERM));
        } else if taken_back.is_none() {
            conn.note_error(&head);
        }
        if let Some(scripted) = special.scripted {
            scripted.short.filter(|_| !verdict.error).into_iter().for_each(|short| conn.ran(short));
            if trouble == Some(Trouble::Behind) {
                let ((db, checks), (reply, _)) = (scripted.checks, oneshot::channel());
                context.process.fanout.order(Order::Check(db, checks, reply));
            }
        }
        if let Some(fills) = special.fills {
            match fills.condition.fired(&head) && !verdict.has_failures {
                true => context.undone(&fills.stale),
                false if fills.only_adds && !verdict.error => context.outdone(&client, &fills.of),
                false => context.give_back(&client, &fills.of),
            }
        }
        if let Some(keys) = special.retimed {
            context.process.fanout.order(Order::Retimed(*keys));
        }
        if let Some(text) = special.instead.as_ref().filter(|_| !special.silent) {
            client.with_buffer(|out| encode::error(out, text.as_bytes()));
            context.mark_dirty(&client);
        }
        let changes = special.effect.is_some();
        if let Some(effect) = special.effect {
            apply(conn, &client, effect, &head);
        }
        for effect in verdict.effects.drain(..) {
            let mut session = client.session.borrow_mut();
            session.ran(effect.clone());
            conn.follow(&effect, &session);
        }
        if special.hold || special.capture {
            client.judge(verdict);
        } else if !verdict.fired.is_empty() {
            // Queued commands that ran at once: MULTI must have failed.
            context.fan_out_detached(&client.peer, verdict.fired);
        }
        client.arrived(self.length);
        if let Some(request) = taken_back {
            client.take_back(request);
        }
        if changes && client.pending() == 0 && !client.session.borrow().needs_own() {
            // Its task gives the connection back.
            client.wake();
        }
    }

    fn confirmed(&mut self, conn: &Conn, kind: SubscriptionKind) {
        let Some(owner) = conn.owner.borrow().clone() else { return };
        let total = self.reader.number();
        let mut queue = conn.queue.borrow_mut();
        let mut session = owner.session.borrow_mut();
        let expected = match queue.front_mut() {
            Some(Expected::Client(pending)) => match pending.effect_mut() {
                Some(Effect::Subscription { kind: waited, confirms }) if *waited == kind => {
                    let left = confirms.unwrap_or_else(|| session.confirmations(kind)) - 1;
                    *confirms = Some(left);
                    left == 0
                }
                _ => false,
            },
            _ => false,
        };
        session.confirmed(kind, total);
        drop((queue, session));
        if expected {
            let expected = conn.queue.borrow_mut().pop_front();
            if let Some(Expected::Client(pending)) = expected {
                self.answered(conn, pending);
            }
        }
    }
}

impl Read<'_> {
    /// Bytes `at` are for the client.
    #[inline]
    pub(super) fn add(&mut self, conn: &Conn, client: &Rc<Outbox>, at: Range<usize>, length: usize) {
        match &mut self.run {
            Some(run) if run.end == at.start && Rc::ptr_eq(&run.client, client) => {
                (run.end, run.length) = (at.end, length);
            }
            _ => {
                self.deliver(conn);
                self.run = Some(Run { client: Rc::clone(client), start: at.start, end: at.end, length });
            }
        }
    }

    /// Nothing of what comes next may be given to a client before this has been called.
    #[inline]
    fn deliver(&mut self, conn: &Conn) {
        let Some(Run { client, start, end, length }) = self.run.take() else { return };
        let mut bytes = &self.buf[start..end];
        if bytes.len() >= UNCOPIED {
            let written = client.write_past(bytes);
            conn.context.metrics.bytes_out(written as u64);
            bytes = &bytes[written..];
        }
        if !bytes.is_empty() {
            client.push_reply(bytes, length);
            conn.context.mark_dirty(&client);
        }
    }
}

/// One key of a client's read.
#[inline]
pub(super) fn count_read(conn: &Conn, client: &Outbox, key: ReadKey, seen: Seen) {
    if seen != Seen::Hit && key.watch == Watch::Tagged && conn.is_busy_for_others(client) {
        conn.context.busy(client);
    }
    conn.context.count_read(client, key, seen);
}

/// Whether somebody without AUTH may go on, after this error.
fn lets_in(error: Option<&str>) -> bool {
    !error.is_some_and(|text| text.starts_with("NOAUTH"))
}

/// New clients without AUTH are let in, or not.
fn prove(conn: &Conn, since: Instant, open: bool) {
    conn.context.process.auth_required.store(!open, Ordering::Relaxed);
    conn.context.standing.proved(since, open);
}

/// Whether Redis turns away the connection as such: too many clients, or protected mode.
fn is_refusal(text: &str) -> bool {
    text.starts_with("ERR max number of clients") || text.starts_with("DENIED")
}

/// Applies what a reply means to its client's session and to the connection.
fn apply(conn: &Conn, client: &Rc<Outbox>, effect: Effect, head: &Head<'_>) {
    let mut session = client.session.borrow_mut();
    let (monitor, changed) = (effect == Effect::Monitor, effect.clone());
    if !session.replied(effect, head) {
        conn.set_unknown();
    }
    if head.is_error() {
        return;
    }
    conn.follow(&changed, &session);
    if monitor {
        conn.set_raw();
    }
}

/// What the value at the start of `buf` is; `None`: too little of it has arrived.
fn classify(conn: &Conn, buf: &[u8]) -> Option<Current> {
    let listening = buf[0] == b'>' || (buf[0] == b'*' && may_be_message(conn));
    if !listening {
        return Some(Current::Reply);
    }
    Some(match pubsub::classify(buf)? {
        Class::Message => Current::Message,
        Class::Confirmation(kind) => Current::Confirmation(kind),
        Class::Other if buf[0] == b'>' => Current::Message,
        Class::Other => Current::Reply,
    })
}

/// Whether an array may be a message or a confirmation. An array that looks like one may as well be the reply to
/// a command that was sent before the first SUBSCRIBE.
fn may_be_message(conn: &Conn) -> bool {
    let owner = conn.owner.borrow();
    let Some(session) = owner.as_ref().map(|owner| owner.session.borrow()) else { return false };
    // In RESP3 messages are pushes.
    session.resp == 2
        && (session.has_subscriptions()
            || match conn.queue.borrow().front() {
                Some(Expected::Client(pending)) => {
                    matches!(pending.effect(), Some(Effect::Subscription { .. }))
                }
                _ => false,
            })
}

fn pass_on(conn: &Conn, bytes: &[u8]) {
    if let Some(owner) = &*conn.owner.borrow() {
        owner.push(bytes);
        conn.context.mark_dirty(owner);
    }
}
