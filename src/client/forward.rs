//! Sending a request upstream, on the right connection and in the right order.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::{After, Client, Pause, Step, tag, trigger};
use crate::accounting::{Account, Queued};
use crate::command::{Command, Kind, TagCommand};
use crate::context::Context;
use crate::resp::{Args, encode};
use crate::session::{Effect, Forward, Identity, Local, Route, Session};
use crate::upstream::{Conn, Key, Pending};

/// The metrics label of a command that the table does not know: beyond all labels.
const UNKNOWN: u16 = u16::MAX;

/// What to do with a request besides forwarding it.
#[derive(Default)]
pub(super) struct Extra {
    /// Its reply waits, whatever else.
    pub hold: bool,
    /// What follows once its reply has arrived.
    pub after: After,
}

impl Client {
    /// The connection that the next plain request takes.
    pub(super) fn conn(&mut self) -> Rc<Conn> {
        if let Some(conn) = &self.pinned {
            return Rc::clone(conn);
        }
        if let Some(conn) = self.shared.as_ref().filter(|conn| conn.is_alive()) {
            return Rc::clone(conn);
        }
        let conn = self.pool.shared(&Key::of(&self.outbox.session.borrow()));
        self.set_shared(Some(Rc::clone(&conn)));
        conn
    }

    /// Takes another shared connection, or none; connections count who has them.
    pub(super) fn set_shared(&mut self, conn: Option<Rc<Conn>>) {
        if let Some(conn) = &conn {
            conn.count_user(1);
        }
        if let Some(before) = std::mem::replace(&mut self.shared, conn) {
            before.count_user(-1);
        }
    }

    /// Deals with one request; `raw` are its bytes, unless they must be encoded anew.
    #[inline]
    pub(super) fn request(&mut self, args: Args<'_>, raw: Option<&[u8]>) -> Step {
        if !self.outbox.has_room() {
            return Step::Again(Pause::Room);
        }
        let context = Rc::clone(&self.context);
        let commands = context.commands.borrow();
        let command = commands.find(args);
        let plain = command.is_none_or(|c| matches!(c.kind, Kind::Plain | Kind::Ping));
        if plain && self.pinned.is_none() && self.next.is_empty() && self.outbox.session.borrow().is_plain() {
            if is_attack(command, args) {
                return Step::Then(Pause::End);
            }
            let conn = self.conn();
            if !conn.has_room(&self.outbox) {
                return Step::Again(Pause::Room);
            }
            let forward =
                Forward { own: false, sync: false, queued: false, silent: false, effect: Effect::None };
            return self.send(&context, &conn, command, args, raw, forward, Extra::default());
        }
        self.special(&context, command, args, raw)
    }

    /// A request that is not plain, or of a client that is not.
    fn special(
        &mut self,
        context: &Rc<Context>,
        command: Option<&Command>,
        args: Args<'_>,
        raw: Option<&[u8]>,
    ) -> Step {
        if is_attack(command, args) {
            return Step::Then(Pause::End);
        }
        let kind = kind_of(command, args);
        if is_refused(context, &self.outbox.session.borrow(), kind) {
            return self.refuse();
        }
        let blocks = command.is_some_and(|c| c.blocks(args));
        let idle = self.outbox.pending() == 0;
        let in_multi = self.outbox.session.borrow().in_multi();
        if !idle && (is_local(kind) || (self.pinned.is_none() && may_pin(kind, blocks))) {
            // Answers and changes of connection must not overtake earlier replies.
            return Step::Again(Pause::Idle);
        }
        if idle && self.pinned.is_some() && !self.outbox.session.borrow().needs_own() {
            self.unpin();
        }
        if !self.conn().has_room(&self.outbox) {
            return Step::Again(Pause::Room);
        }
        if !self.next.is_empty() && !is_local(kind) {
            if !idle {
                return Step::Again(Pause::Idle);
            }
            let next = std::mem::take(&mut self.next);
            if command.is_some_and(Command::is_write) {
                return Step::Then(Pause::Tag(TagCommand::With, tag::with_of(&next, args)));
            }
        }
        let route = self.outbox.session.borrow_mut().route(kind, args, blocks);
        match route {
            Route::Cut => Step::Then(Pause::End),
            Route::Swallow => Step::Done,
            Route::Local(Local::Tag(command)) => Step::Then(Pause::Tag(command, args.iter().collect())),
            Route::Local(local) => self.local(local).map_or(Step::Done, Step::Then),
            Route::Forward(forward) => {
                if in_multi && kind == Kind::SwapDb {
                    self.swap_queued = true;
                }
                self.forward(context, command, args, raw, forward, Extra::default())
            }
        }
    }

    /// Refuses a command before AUTH.
    fn refuse(&mut self) -> Step {
        if self.outbox.pending() > 0 {
            return Step::Again(Pause::Idle);
        }
        let error = Local::Error("NOAUTH Authentication required.".to_owned());
        self.local(error).map_or(Step::Done, Step::Then)
    }

    /// Forwards on the right connection, with what its kind asks for besides.
    pub(super) fn forward(
        &mut self,
        context: &Rc<Context>,
        command: Option<&Command>,
        args: Args<'_>,
        raw: Option<&[u8]>,
        forward: Forward,
        mut extra: Extra,
    ) -> Step {
        if forward.own && self.pinned.is_none() {
            self.pin();
        }
        let conn = self.conn();
        match kind_of(command, args) {
            Kind::SwapDb if !forward.queued => {
                // From before it runs until the index has been rebuilt, fan-outs must also scan.
                context.process.index.set_incomplete("SWAPDB");
                extra.hold = true;
                extra.after.swapped = true;
            }
            // A nested MULTI is refused and changes nothing; it has no effect to wait for.
            Kind::Multi if matches!(forward.effect, Effect::Multi(_)) => {
                self.outbox.queued.borrow_mut().clear()
            }
            Kind::Discard => {
                self.abandon_labels();
                self.swap_queued = false;
            }
            Kind::Exec if matches!(forward.effect, Effect::Exec(_)) => {
                extra.after.labelled = std::mem::take(&mut self.labels_queued);
                extra.after.swapped = std::mem::take(&mut self.swap_queued);
                if extra.after.swapped {
                    context.process.index.set_incomplete("SWAPDB");
                }
                extra.hold = extra.after.swapped || !extra.after.labelled.is_empty();
            }
            Kind::Wait if !forward.queued => {
                // WAIT counts from the last write of its own connection. Any command run there first moves
                // that mark to the present, hence behind all that the client wrote elsewhere.
                conn.send_probe();
            }
            _ => {}
        }
        let raw_from_here = self.outbox.session.borrow().is_raw();
        if raw_from_here {
            conn.set_raw();
            return self.send_raw(&conn, args, raw);
        }
        self.send(context, &conn, command, args, raw, forward, extra)
    }

    /// Queues a request upstream together with what its reply will mean.
    #[allow(clippy::too_many_arguments)] // one call per request; a struct would only rename the arguments
    pub(super) fn send(
        &mut self,
        context: &Rc<Context>,
        conn: &Rc<Conn>,
        command: Option<&Command>,
        args: Args<'_>,
        raw: Option<&[u8]>,
        forward: Forward,
        mut extra: Extra,
    ) -> Step {
        let mut account = match forward.effect {
            Effect::Exec(_) => Account::Exec(std::mem::take(&mut *self.outbox.queued.borrow_mut())),
            _ => match command {
                Some(command) => {
                    trigger::account(context, &self.outbox, command, args, forward.queued, &mut extra)
                }
                None => {
                    if forward.queued {
                        // It takes up an element of EXEC's reply.
                        self.outbox.queued.borrow_mut().push(Queued::default());
                    }
                    Account::Nothing
                }
            },
        };
        let probed = account.take_ambiguous();
        let hold = extra.hold || account.may_fire();
        trigger::enter(context, &account);
        let pending = Pending {
            client: Rc::clone(&self.outbox),
            metric: Some(command.map_or(UNKNOWN, |c| c.metric)),
            started: context.now(),
            account,
            effect: (forward.effect != Effect::None).then(|| Box::new(forward.effect)),
            hold,
            silent: forward.silent,
            capture: false,
            instead: None,
        };
        match raw {
            Some(raw) => conn.send(raw, Some(pending)),
            None => conn.send(&encoded(args), Some(pending)),
        }
        if let (Some(families), Some(command)) = (probed, command) {
            // In the same write, so that nothing comes in between.
            let mut families = families.into_iter();
            command.keys(args, |used| {
                if let (true, Some(family)) = (used.reads, families.next()) {
                    conn.probe(family, used.key);
                }
            });
        }
        if hold {
            Step::Then(Pause::Verdict(extra.after))
        } else if forward.sync {
            Step::Then(Pause::Idle)
        } else {
            Step::Done
        }
    }

    fn send_raw(&self, conn: &Conn, args: Args<'_>, raw: Option<&[u8]>) -> Step {
        match raw {
            Some(raw) => conn.send(raw, None),
            None => conn.send(&encoded(args), None),
        }
        Step::Done
    }

    pub(super) fn pin(&mut self) {
        let key = Key::of(&self.outbox.session.borrow());
        self.pinned = Some(self.pool.pin(&key, &self.outbox));
    }

    /// Gives the client's own connection back: nothing of its state is left there.
    pub(super) fn unpin(&mut self) {
        if let Some(conn) = self.pinned.take() {
            self.pool.unpin(conn, true);
            // The database or the identity may be another now.
            self.set_shared(None);
        }
    }
}

/// The request in multibulk form.
pub(super) fn encoded(args: Args<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    let args: Vec<&[u8]> = args.iter().collect();
    encode::request(&mut out, args);
    out
}

/// What the request means to a session. One with a wrong number of arguments is refused by Redis without any
/// effect, except EXEC, which ends its transaction, and the commands that the proxy judges itself.
fn kind_of(command: Option<&Command>, args: Args<'_>) -> Kind {
    let Some(command) = command else { return Kind::Plain };
    match command.kind {
        kind @ (Kind::Exec | Kind::ClientReply | Kind::Tag(_)) => kind,
        kind if command.arity_ok(args.len()) => kind,
        _ => Kind::Plain,
    }
}

/// Whether Redis would ask for authentication before it took a command that the proxy answers in its place.
fn is_refused(context: &Context, session: &Session, kind: Kind) -> bool {
    matches!(kind, Kind::ClientGetName | Kind::ClientReply)
        && session.identity == Identity::Anonymous
        && !session.needs_own()
        && context.process.auth_required.load(Ordering::Relaxed)
}

/// Whether the proxy answers such a command itself.
fn is_local(kind: Kind) -> bool {
    matches!(kind, Kind::Tag(_) | Kind::Quit | Kind::Reset | Kind::ClientGetName | Kind::ClientReply)
}

/// Whether such a command may need a connection of the client's own.
fn may_pin(kind: Kind, blocks: bool) -> bool {
    match kind {
        Kind::Plain | Kind::Ping | Kind::Publish | Kind::SPublish => false,
        Kind::SwapDb | Kind::Flush | Kind::ClientSetName => false,
        Kind::Blocking => blocks,
        _ => true,
    }
}

/// HTTP that a browser was tricked into sending. Redis hangs up on it, which on a shared connection would hit
/// other clients.
fn is_attack(command: Option<&Command>, args: Args<'_>) -> bool {
    command.is_none_or(|c| matches!(&*c.name, "post" | "host:"))
        && args
            .get(0)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:"))
}
