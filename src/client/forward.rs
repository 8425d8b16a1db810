//! Sending a request upstream, on the right connection and in the right order.

use std::rc::Rc;

use super::request::{Request, metric_of};
use super::rewrite::{NO_KEY, encoded, without, without_redirect};
use super::scripted::Script;
use super::with::{Labels, with_of};
use super::{After, Client, Pause, Step, carry, fill, trigger};
use crate::accounting::{Account, Queued};
use crate::command::{Command, FireCondition, Kind, TagCommand};
use crate::context::Context;
use crate::lease::script::Check;
use crate::resp::Args;
use crate::session::{Effect, Forward, Local, Route};
use crate::upstream::{Conn, Fills, Pending, Retimed, Special};

pub(super) const NOAUTH: &str = "NOAUTH Authentication required.";

/// What to do with a request besides forwarding it.
#[derive(Default)]
pub(super) struct Extra {
    /// Its reply waits, whatever else.
    pub hold: bool,
    /// What follows once its reply has arrived.
    pub after: After,
    /// The request has passed through: of its arguments only the small ones are known, and its bytes are on their way.
    pub partial: bool,
    /// Arguments that are keys in doubt, in order: others that do not exist are asked for in their place.
    pub hidden: Vec<usize>,
    /// What it writes gets these labels, as a script.
    pub labels: Labels,
    /// It can be sent once more, if it has not run.
    pub may_resend: bool,
    /// Labelled keys whose expiry it may change.
    pub retimed: Vec<(u32, Box<[u8]>)>,
}

impl Client {
    /// Deals with one request; `raw` are its bytes, unless they must be encoded anew.
    #[inline]
    pub(super) fn request(&mut self, args: Args<'_>, raw: Option<&[u8]>, is_last: bool) -> Step {
        if !self.fills.is_empty() {
            self.forget_fills();
        }
        // Once it has begun, nothing may come between the requests of a transaction that travels in one piece.
        let bursting = self.burst > 0;
        if !bursting && !self.outbox.has_room(self.pinned.is_some()) {
            return Step::Again(Pause::Room);
        }
        let context = Rc::clone(&self.context);
        let commands = context.commands.borrow();
        let request = Request { is_last, ..Request::new(&commands, args, raw) };
        let command = request.command;
        if raw.is_none() && self.limits().exceeded_by(args) {
            // In one line Redis takes it, but not in the form in which it would be passed on.
            if self.outbox.pending() > 0 {
                return Step::Again(Pause::Idle);
            }
            match self.standing() {
                None => return Step::Again(Pause::Standing),
                Some(Ok(true)) => {}
                Some(Ok(false)) => return self.refuse(command, NOAUTH.to_owned()),
                Some(Err(error)) => return self.refuse_unreached(command, error),
            }
        }
        if !bursting && self.sent_plainly(&context, request) {
            return Step::Done;
        }
        if let Some(step) = self.left_behind() {
            return step;
        }
        let Some((args, labels)) = self.labelled(&commands, command, args) else {
            return self.dispatch(&context, request, Labels::default());
        };
        let step =
            self.dispatch(&context, Request { is_last, ..Request::new(&commands, args, None) }, labels);
        if !matches!(step, Step::Again(_) | Step::Then(Pause::Tag(..))) {
            self.next.clear();
            let metric = command.filter(|c| matches!(c.kind, Kind::Tag(_))).map(|c| c.metric);
            context.command_done(metric, context.nanos(), false);
        }
        step
    }

    /// Deals with one request whose keys get `labels`.
    #[inline]
    fn dispatch(&mut self, context: &Rc<Context>, request: Request<'_>, labels: Labels) -> Step {
        let Request { command, args, .. } = request;
        let plain = command
            .is_none_or(|c| matches!(c.kind, Kind::Plain | Kind::Ping) && !self.labels_follow(c, args));
        let unbound = self.pinned.is_none() && (self.next.is_empty() || !labels.tags.is_empty());
        if plain && unbound && self.outbox.session.borrow().travels_plainly() {
            if request.is_attack() {
                return Step::Then(Pause::End);
            }
            if let Some(step) = self.awaits_fill(request) {
                return step;
            }
            if let Some(step) = self.blocked_way(command) {
                return step;
            }
            if let Some(step) = self.awaits_trust(request, false) {
                return step;
            }
            if let Some(step) = self.awaits_scripts(command).or_else(|| self.awaits_labels(&labels, args)) {
                return step;
            }
            let conn = self.conn();
            if !conn.has_room(&self.outbox) {
                return Step::Again(Pause::Room);
            }
            let extra = Extra { labels, ..Extra::default() };
            return self.send(context, &conn, request, Forward::PLAIN, extra);
        }
        self.special(context, request, labels)
    }

    /// A request that is not plain, or of a client that is not.
    fn special(&mut self, context: &Rc<Context>, request: Request<'_>, labels: Labels) -> Step {
        if request.is_attack() {
            return Step::Then(Pause::End);
        }
        let Request { command, args, .. } = request;
        let (kind, is_local) = (request.kind(), request.is_local());
        let has_standing = self.outbox.session.borrow().has_standing();
        // What a client sends before it is known who it is travels alone, on a connection of its own.
        let mut stranger = !self.outbox.session.borrow().is_vetted();
        if !has_standing && request.needs_vetting() {
            match self.standing() {
                None => return Step::Again(Pause::Standing),
                Some(Ok(true)) => stranger = false,
                Some(Ok(false)) if is_local || self.has_rights_upstream() => {
                    return self.refuse(command, NOAUTH.to_owned());
                }
                Some(Ok(false)) => stranger = true,
                Some(Err(error)) => return self.refuse_unreached(command, error),
            }
        }
        let in_multi = self.outbox.session.borrow().in_multi();
        // In the midst of a transaction that travels in one piece nothing is waited for: what other clients send would come
        // into it. What other threads have changed since it began comes too late for it.
        let under_way = self.burst > 0 && in_multi;
        if !under_way && let Some(step) = self.awaits_fill(request) {
            return step;
        }
        let idle = self.outbox.pending() == 0;
        let changes_conn = self.burst == 0 && self.pinned.is_none() && (stranger || request.may_pin());
        // Answers and changes of connection must not overtake earlier replies; and Redis from 7.2 on says nothing of an AUTH
        // that fails behind one which has not been sent yet.
        if !idle && (is_local || changes_conn || kind == Kind::Auth || request.authenticates()) {
            return Step::Again(Pause::Idle);
        }
        if !idle && self.outbox.session.borrow().awaits_multi() && !request.is_queued_or_harmless() {
            return Step::Again(Pause::Idle);
        }
        self.unpin_if_free();
        if !(under_way || changes_conn || is_local)
            && let Some(step) = self.blocked_way(command)
        {
            return step;
        }
        let stays = under_way || changes_conn;
        if !stays && !self.conn().has_room(&self.outbox) {
            return Step::Again(Pause::Room);
        }
        if !under_way && let Some(step) = self.awaits_trust_within(request) {
            return step;
        }
        if !self.next.is_empty() && labels.tags.is_empty() && !is_local {
            if !idle {
                return Step::Again(Pause::Idle);
            }
            let next = std::mem::take(&mut self.next);
            if command.is_some_and(Command::is_write) && kind.may_be_labelled() {
                self.outbox.session.borrow_mut().answered_unrouted();
                return Step::Then(Pause::Tag(TagCommand::With, with_of(&next, args)));
            }
        }
        if !(under_way || is_local)
            && let Some(step) = self
                .awaits_scripts(command)
                .or_else(|| self.awaits_labels(&labels, args))
                .or_else(|| self.awaits_intent(context, request))
        {
            return step;
        }
        let follows = match kind {
            Kind::Exec => in_multi && !self.transaction.carried.is_empty(),
            // Inside MULTI, what counts is what there is at EXEC.
            _ if under_way => false,
            _ => command.is_some_and(|c| (in_multi && c.carries) || self.labels_follow(c, args)),
        };
        if follows {
            return if idle {
                Step::Then(Pause::Follow(args.iter().collect()))
            } else {
                Step::Again(Pause::Idle)
            };
        }
        let kind = match self.kind_in_multi(kind, args) {
            Ok(kind) => kind,
            Err(step) => return step,
        };
        let route = self.outbox.session.borrow_mut().route(kind, args, request.blocks());
        match route {
            Route::Cut => Step::Then(Pause::End),
            Route::Swallow => {
                context.command_done(Some(request.metric()), context.nanos(), false);
                Step::Done
            }
            Route::Silence => Step::Then(Pause::Silence(args.iter().collect())),
            Route::Local(Local::Tag(command)) => Step::Then(Pause::Tag(command, args.iter().collect())),
            Route::Local(local) => {
                let error = matches!(local, Local::Error(_));
                context.command_done(Some(request.metric()), context.nanos(), error);
                self.local(local).map_or(Step::Done, Step::Then)
            }
            Route::Forward(mut forward) => {
                forward.own |= stranger;
                forward.sync |= stranger;
                if in_multi && kind == Kind::SwapDb {
                    self.transaction.swaps = true;
                }
                let extra = Extra { labels, ..Extra::default() };
                match self.forward(context, request, forward, extra) {
                    // Redis reads nothing behind it.
                    Step::Done if kind == Kind::Quit => Step::Then(Pause::End),
                    step => step,
                }
            }
        }
    }

    /// Answers with an error in place of Redis.
    pub(super) fn refuse(&mut self, command: Option<&Command>, error: String) -> Step {
        if self.outbox.pending() > 0 {
            return Step::Again(Pause::Idle);
        }
        self.refused(command);
        let route = self.outbox.session.borrow_mut().local_error(error);
        match route {
            Route::Local(error) => self.local(error).map_or(Step::Done, Step::Then),
            _ => Step::Done,
        }
    }

    /// Answers with an error because Redis cannot be reached.
    fn refuse_unreached(&mut self, command: Option<&Command>, error: String) -> Step {
        use Kind::{Auth, Hello, Multi, Select, Watch};
        self.refuse_or_end(command, error, |kind| matches!(kind, Multi | Select | Auth | Hello | Watch))
    }

    /// Answers with an error in place of Redis. What the client may have sent behind a command that `prepares` it would run one by
    /// one, in the wrong database, or as somebody else: then it is disconnected.
    pub(super) fn refuse_or_end(
        &mut self,
        command: Option<&Command>,
        error: String,
        prepares: impl Fn(Kind) -> bool,
    ) -> Step {
        match self.refuse(command, error) {
            Step::Done if command.is_some_and(|command| prepares(command.kind)) => Step::Then(Pause::End),
            step => step,
        }
    }

    /// Counts a command that Redis does not get to see.
    pub(super) fn refused(&self, command: Option<&Command>) {
        self.context.command_done(Some(metric_of(command)), self.context.nanos(), true);
    }

    /// Forwards on the right connection, with what its kind asks for besides.
    pub(super) fn forward(
        &mut self,
        context: &Rc<Context>,
        request: Request<'_>,
        forward: Forward,
        mut extra: Extra,
    ) -> Step {
        let (Request { command, args, raw, .. }, kind) = (request, request.kind());
        if forward.own && self.pinned.is_none() && self.burst == 0 && !self.pin_for(kind, &forward.effect) {
            self.refused(command);
            return self.no_connection();
        }
        let conn = self.conn();
        if self.outbox.session.borrow().is_raw() {
            conn.set_raw();
            match raw {
                Some(raw) => conn.send(raw, None),
                None => conn.send(&encoded(args), None),
            }
            return Step::Done;
        }
        match kind {
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
            // Also if it is refused: EXEC will be, too.
            Kind::Discard => self.abandon(),
            Kind::Exec if matches!(forward.effect, Effect::Exec) => {
                extra.after = self.transaction.executed();
                extra.hold = extra.after.holds();
                if extra.after.swapped {
                    context.process.index.set_incomplete("SWAPDB");
                }
            }
            Kind::Wait if !forward.queued => {
                // What the client has written may have gone over another connection.
                conn.mark_for_wait();
            }
            _ => {}
        }
        let tamed = command.filter(|command| command.name == "client|capa").map(|_| without_redirect(args));
        let raw = tamed.as_deref().or(raw);
        self.send(context, &conn, Request { raw, ..request }, forward, extra)
    }

    /// Queues a request upstream together with what its reply will mean.
    pub(super) fn send(
        &mut self,
        context: &Rc<Context>,
        conn: &Rc<Conn>,
        request: Request<'_>,
        mut forward: Forward,
        mut extra: Extra,
    ) -> Step {
        let Request { command, args, raw, .. } = request;
        let mut account = match forward.effect {
            Effect::Exec => Account::Exec(std::mem::take(&mut *self.outbox.queued.borrow_mut())),
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
        if !forward.at_exec.is_none()
            && let Some(entry) = self.outbox.queued.borrow_mut().last_mut()
        {
            entry.effect = Some(Box::new(std::mem::take(&mut forward.at_exec)));
        }
        if let Some(step) = self.attach_intent(command, &mut account).filter(|_| !request.blocks()) {
            return step;
        }
        if context.coalesces() {
            self.mark_waited(&mut account);
        }
        let probed = account.take_ambiguous();
        let before = self.fills.len();
        let tags = &extra.labels.tags;
        let mut checks = command.map_or(vec![], |command| {
            fill::checks(context, &self.outbox, &mut self.fills, command, args, tags)
        });
        if let Some(command) = command.filter(|command| command.carries) {
            let db = self.outbox.session.borrow().current_db();
            checks.extend(carry::checks(context, command, args, db));
        }
        let fills = self.fills_of(request, &checks, &forward, before);
        let mut settled = match context.coalesces() {
            true => self.settles(request, &checks, &forward),
            false => None,
        };
        // Nothing is before it and nothing behind it, so that it can be sent once more.
        let is_single = request.is_last && self.outbox.pending() == 0 && probed.is_none();
        let has_more = extra.hold || forward.queued || forward.silent || account.may_fire();
        extra.may_resend = is_single && !has_more;
        let script = self.way_of_fill(conn, request, checks, forward.queued, &mut extra);
        let (script, scripted) = match script {
            Some(Script { request, scripted }) => (Some(request), scripted),
            None => (None, None),
        };
        let hold = extra.hold || account.may_fire();
        if hold {
            // Not before what it wrote has been looked at.
            extra.after.settled = settled.take();
            extra.after.counted = Some((request.metric(), context.nanos()));
        }
        trigger::enter(context, &account);
        let retimed = self.retimed(std::mem::take(&mut extra.retimed), forward.queued, &forward.effect);
        let pending = Pending {
            client: Rc::clone(&self.outbox),
            metric: Some(request.metric()).filter(|_| !hold),
            started: context.nanos(),
            account,
            special: Special {
                effect: Some(forward.effect).filter(|effect| !effect.is_none()),
                hold,
                silent: forward.silent,
                capture: false,
                instead: None,
                fills,
                retimed,
                settled,
                scripted,
            }
            .boxed(),
        };
        match (script, raw) {
            _ if !extra.hidden.is_empty() && !extra.partial => {
                conn.send(&without(args, &extra.hidden), Some(pending))
            }
            (Some(script), _) => conn.send(&script, Some(pending)),
            (None, Some(raw)) => conn.send(raw, Some(pending)),
            (None, None) => conn.send(&encoded(args), Some(pending)),
        }
        if let (Some(keys), Some(command)) = (probed, command) {
            // In the same write, so that nothing comes in between.
            let mut keys = keys.into_iter();
            command.keys(args, |used| {
                if let (true, Some(key)) = (used.reads, keys.next()) {
                    let hidden = extra.hidden.binary_search(&used.index).is_ok();
                    conn.probe(&self.outbox, key, if hidden { NO_KEY } else { used.key });
                }
            });
        }
        if hold {
            self.held.push(extra.after);
            Step::Then(Pause::Verdict)
        } else if forward.sync {
            Step::Then(Pause::Idle)
        } else {
            Step::Done
        }
    }

    /// What the request has filled, for the case that it does not take place: since `before`, or since MULTI.
    fn fills_of(
        &mut self,
        request: Request<'_>,
        checks: &[Check],
        forward: &Forward,
        before: usize,
    ) -> Option<Box<Fills>> {
        let Request { command, args, .. } = request;
        let db = self.outbox.session.borrow().current_db();
        let mut stale = fill::stale(&self.context, db, checks);
        if forward.queued {
            self.transaction.fills.extend(self.fills.drain(before..));
            self.transaction.stale.extend(stale);
            command.into_iter().for_each(|command| self.queue_places(command, args));
            return None;
        }
        let (of, condition, only_adds) = match forward.effect {
            Effect::Exec => (std::mem::take(&mut self.transaction.fills), FireCondition::NotNil, false),
            _ => {
                let command = command?;
                (self.fills[before..].to_vec(), command.fire_condition(args), command.only_adds(args))
            }
        };
        if matches!(forward.effect, Effect::Exec) {
            self.fills.extend(&of);
            stale = std::mem::take(&mut self.transaction.stale);
        }
        (!of.is_empty() || !stale.is_empty()).then(|| Box::new(Fills { of, condition, only_adds, stale }))
    }

    /// Whether labels may follow what the request does.
    fn labels_follow(&self, command: &Command, args: Args<'_>) -> bool {
        command.carries && {
            let db = self.outbox.session.borrow().current_db();
            carry::concerns(&self.context, command, args, db)
        }
    }

    /// What is to be looked at once the reply is here; inside MULTI, with that to EXEC. It is granted only now: what is sent may
    /// have been looked at before, and have waited since.
    fn retimed(
        &mut self,
        mut keys: Vec<(u32, Box<[u8]>)>,
        queued: bool,
        effect: &Effect,
    ) -> Option<Box<Retimed>> {
        keys.retain(|_| self.context.may_retime());
        if queued {
            self.transaction.retimed.extend(keys);
            return None;
        }
        if matches!(effect, Effect::Exec) {
            keys = std::mem::take(&mut self.transaction.retimed);
        }
        (!keys.is_empty()).then(|| Box::new(keys))
    }
}
