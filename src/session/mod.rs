//! One client's protocol state: requests and replies in, decisions out. No sockets, no clock.
//!
//! [`Session::route`] decides for every request whether it may travel on a shared upstream connection or
//! needs one of the client's own ("pinned"), whether the requests behind it must wait, and what its reply
//! will change. [`Session::replied`] applies that change. [`Session::needs_own`] is the one place where
//! pinning is derived from the state.

mod identity;
mod route;

pub use identity::{Identity, Label, LabelField, selected};
pub use route::{Effect, Forward, Local, Route, SubscriptionKind};

use std::rc::Rc;

use crate::command::Kind;
use crate::resp::{Args, Head};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replies {
    On,
    /// The next command gets no reply.
    Skip,
    Off,
}

/// One client's protocol state.
#[derive(Debug)]
pub struct Session {
    /// Selected database.
    pub db: u32,
    /// 2 or 3.
    pub resp: u8,
    /// Who the client has proved to be.
    pub identity: Identity,
    /// What the client says about itself; most say nothing.
    pub label: Option<Rc<Label>>,
    /// MULTI was sent, EXEC or DISCARD were not.
    in_multi: bool,
    /// The database that what is queued from here on will run in, if a SELECT is queued that will not fail.
    queued_db: Option<u32>,
    /// MULTI has not been answered yet.
    multi_pending: bool,
    /// Something is queued that changes the session once EXEC has run it.
    change_queued: bool,
    /// How many MULTIs there were.
    transactions: u32,
    watching: bool,
    subscriptions: [u32; 3],
    /// Subscription commands whose confirmations are outstanding.
    subscribing: u32,
    /// Blocking commands without a reply yet.
    blocked: u32,
    /// Authentication or database changes without a reply yet.
    changing: u32,
    /// Has state that only a reset removes (CLIENT TRACKING, CLIENT ID, READONLY, …).
    sticky: bool,
    /// Who its connection speaks for is not known any more: a HELLO may have failed halfway.
    unsure: bool,
    /// A transaction has subscribed: to channels or patterns, to shard channels. How often is not known.
    listens_upstream: [bool; 2],
    /// Everything passes as it is: MONITOR, replication.
    raw: bool,
    replies: Replies,
    silenced: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            db: 0,
            resp: 2,
            identity: Identity::Unknown,
            label: None,
            in_multi: false,
            queued_db: None,
            multi_pending: false,
            change_queued: false,
            transactions: 0,
            watching: false,
            subscriptions: [0; 3],
            subscribing: 0,
            blocked: 0,
            changing: 0,
            sticky: false,
            unsure: false,
            listens_upstream: [false; 2],
            raw: false,
            replies: Replies::On,
            silenced: false,
        }
    }
}

impl Session {
    /// Whether the client's state lives in an upstream connection, which therefore must be its own.
    pub fn needs_own(&self) -> bool {
        self.in_multi
            || self.watching
            || self.subscriptions != [0; 3]
            || self.subscribing + self.blocked + self.changing > 0
            || self.sticky
            || self.raw
            // Who gives itself a name wants to be told from others in CLIENT LIST.
            || self.label.as_ref().is_some_and(|label| !label.name.is_empty())
    }

    /// Whether the client has rights, as far as is known: Redis looks at nobody's commands one by one.
    pub fn has_standing(&self) -> bool {
        !matches!(self.identity, Identity::Unknown | Identity::Nobody)
    }

    /// Whether it is known if the client needs AUTH.
    pub fn is_vetted(&self) -> bool {
        self.identity != Identity::Unknown
    }

    /// Whether requests of the client need nothing but to be sent: it may go on without AUTH, and [`Self::is_plain`].
    #[inline]
    pub fn travels_plainly(&self) -> bool {
        self.has_standing() && self.is_plain()
    }

    /// Whether a plain command can take the shared connection without another look.
    pub fn is_plain(&self) -> bool {
        self.replies == Replies::On && !self.needs_own()
    }

    /// Whether the connection has state that only a reset removes, such as CLIENT TRACKING.
    pub fn is_sticky(&self) -> bool {
        self.sticky
    }

    /// Whether what the proxy asks for the client goes over another connection of the same user: its own would queue it, take
    /// it for what CLIENT CACHING speaks of, or remember what was read (CLIENT TRACKING).
    pub fn is_asked_elsewhere(&self) -> bool {
        self.in_multi || (self.sticky && !self.unsure)
    }

    /// Whether a command of the client is blocked upstream.
    pub fn is_blocked(&self) -> bool {
        self.blocked > 0
    }

    /// Whether the client listens to something: such clients are idle by nature.
    pub fn is_listening(&self) -> bool {
        self.has_subscriptions() || self.raw
    }

    /// Whether the client's next read may be kept waiting for a value that somebody else computes.
    pub fn may_wait(&self) -> bool {
        let busy = self.in_multi || self.watching || self.subscribing + self.blocked + self.changing > 0;
        self.has_standing() && self.replies == Replies::On && !busy && !self.is_listening()
    }

    /// The database that the next command runs in.
    pub fn current_db(&self) -> u32 {
        self.queued_db.unwrap_or(self.db)
    }

    /// Whether the client is between MULTI and EXEC.
    pub fn in_multi(&self) -> bool {
        self.in_multi
    }

    /// Whether Redis may still refuse the MULTI, so that what follows would run at once.
    pub fn awaits_multi(&self) -> bool {
        self.multi_pending
    }

    /// Whether Redis takes little else than subscriptions from the client.
    pub fn is_confined(&self) -> bool {
        self.resp == 2 && self.has_subscriptions()
    }

    /// Likewise, or may do so when what the client sends now arrives.
    pub fn may_be_confined(&self) -> bool {
        self.is_confined() || (self.resp == 2 && self.subscribing > 0)
    }

    /// The client has sent a request without a single word.
    pub fn sent_nothing(&mut self) {
        if self.replies == Replies::Skip {
            self.replies = Replies::On;
        }
    }

    /// Whether bytes pass unframed in both directions.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Whether messages may arrive at any moment.
    pub fn has_subscriptions(&self) -> bool {
        self.listens_upstream != [false; 2] || self.subscriptions != [0; 3]
    }

    /// Whether the client wants replies at all: not after CLIENT REPLY OFF.
    pub fn takes_replies(&self) -> bool {
        self.replies == Replies::On
    }

    /// Whether the client wants no reply to the request that was routed last.
    pub fn was_silenced(&self) -> bool {
        self.silenced
    }

    /// The proxy answers a request itself that is not routed.
    pub fn answered_unrouted(&mut self) {
        self.silenced = self.take_silence();
    }

    /// Whether CLIENT REPLY is off or skips the next reply; consumes a skip.
    fn take_silence(&mut self) -> bool {
        match self.replies {
            Replies::On => false,
            Replies::Off => true,
            Replies::Skip => {
                self.replies = Replies::On;
                true
            }
        }
    }

    /// Decides about one request. `blocks`: it may block, as its arguments say. Inside MULTI, SELECT of a database that there
    /// is not is [`Kind::Plain`].
    pub fn route(&mut self, kind: Kind, args: Args<'_>, blocks: bool) -> Route {
        if kind == Kind::ClientReply && !self.is_confined() && !self.raw {
            // At once also inside MULTI: queued, it would make Redis silent, and every reply is waited for. ON alone
            // changes nothing there.
            let on = |mode: &[u8]| mode.eq_ignore_ascii_case(b"on");
            if !(self.in_multi && self.replies == Replies::On && args.get(2).is_some_and(on)) {
                return if args.len() == 3 { Route::Silence } else { self.client_reply(args) };
            }
        }
        let skipped = self.replies == Replies::Skip;
        let silent = self.take_silence();
        self.silenced = silent;
        if kind == Kind::Reset && args.len() == 1 {
            // RESET also ends CLIENT REPLY OFF: it is answered then.
            return Route::Local(Local::Reset { silent: skipped });
        }
        if self.in_multi
            && let Some(route) = self.in_transaction(kind, args, silent)
        {
            return route;
        }
        if let Some(route) = self.local(kind, silent) {
            return route;
        }
        // A command that ends the state still travels where the state is.
        let had_state = self.needs_own();
        let mut forward = Forward { silent, ..Forward::PLAIN };
        match kind {
            Kind::Multi => {
                self.in_multi = true;
                self.multi_pending = true;
                self.transactions = self.transactions.wrapping_add(1);
                forward.effect = Effect::Multi(self.transactions);
            }
            Kind::Exec if self.in_multi => {
                forward.effect = Effect::Exec;
                // What comes behind it must know where it runs, and as whom.
                forward.sync = self.change_queued;
                self.transaction_over();
            }
            // Without MULTI it is an error, and what is watched stays so. Redis may refuse it to the client: what comes behind
            // it must know.
            Kind::Discard if self.in_multi => (forward.effect, forward.sync) = (Effect::Discard, true),
            Kind::Unwatch if had_state => (forward.effect, forward.sync) = (Effect::Unwatch, true),
            Kind::Watch => {
                self.watching = true;
            }
            Kind::Subscribe | Kind::PSubscribe | Kind::SSubscribe => {
                self.subscription(kind, args, &mut forward)
            }
            Kind::Unsubscribe | Kind::PUnsubscribe | Kind::SUnsubscribe => {
                self.subscription(kind, args, &mut forward);
            }
            Kind::Blocking if blocks => self.blocking(&mut forward),
            Kind::Wait => self.blocking(&mut forward),
            Kind::Auth | Kind::Hello | Kind::Select | Kind::ClientSetName | Kind::ClientSetInfo => {
                self.handshake(kind, args, &mut forward);
            }
            Kind::ConnectionState => self.sticky = true,
            // On a connection of its own for this once, where nothing is waited for.
            Kind::Alone | Kind::Urgent => (forward.own, forward.sync) = (true, true),
            Kind::Monitor => {
                self.changing += 1;
                (forward.effect, forward.sync) = (Effect::Monitor, true);
            }
            Kind::Replication => {
                self.sticky = true;
                self.raw = true;
            }
            _ => {}
        }
        forward.own |= had_state || self.needs_own();
        Route::Forward(forward)
    }

    /// What the proxy answers itself; `None`: Redis answers.
    fn local(&self, kind: Kind, silent: bool) -> Option<Route> {
        Some(match kind {
            Kind::Quit if silent => Route::Cut,
            // Behind the messages that are on their way.
            Kind::Quit if self.has_subscriptions() && !self.raw => return None,
            Kind::Quit => Route::Local(Local::Quit),
            Kind::Tag(command) => Route::Local(Local::Tag(command)),
            _ => return None,
        })
    }

    /// Decides within MULTI; `None`: as outside.
    fn in_transaction(&mut self, kind: Kind, args: Args<'_>, silent: bool) -> Option<Route> {
        if kind == Kind::Select {
            self.queued_db = selected(args).or(self.queued_db);
        }
        let (mut effect, mut at_exec, mut sync) = (Effect::None, Effect::None, false);
        let queued = match kind {
            // These run at once even within MULTI.
            Kind::Exec | Kind::Discard | Kind::Quit => return None,
            Kind::Multi => {
                effect = Effect::MultiAgain(self.transactions);
                // If the first one is refused, it is this one's reply that tells where those behind it run.
                sync = true;
                false
            }
            Kind::Watch => false,
            // The proxy's own commands are the caller's to judge: it knows what they would queue.
            Kind::Tag(command) => return Some(Route::Local(Local::Tag(command))),
            // What follows from these is known only when EXEC ran: the connection is never shared again.
            Kind::Auth | Kind::Hello | Kind::Select | Kind::ClientSetName | Kind::ClientSetInfo => {
                self.sticky = true;
                at_exec = handshake(kind, args).unwrap_or(Effect::None);
                self.unsure |= kind == Kind::Hello && !matches!(at_exec, Effect::Hello { partly: false, .. });
                true
            }
            Kind::Subscribe | Kind::PSubscribe | Kind::SSubscribe => {
                self.sticky = true;
                let kind = subscription_of(kind).0;
                at_exec = Effect::Subscription { kind, confirms: u32::try_from(args.len() - 1).ok() };
                true
            }
            Kind::ConnectionState | Kind::Monitor | Kind::Replication => {
                self.sticky = true;
                true
            }
            _ => true,
        };
        self.change_queued |= at_exec != Effect::None;
        Some(Route::Forward(Forward { own: true, sync, queued, silent, effect, at_exec }))
    }

    fn transaction_over(&mut self) {
        self.transactions = self.transactions.wrapping_add(1);
        self.in_multi = false;
        self.change_queued = false;
        self.queued_db = None;
        self.watching = false;
    }

    fn blocking(&mut self, forward: &mut Forward) {
        self.blocked += 1;
        forward.effect = Effect::Unblocked;
    }

    /// Does as CLIENT REPLY says.
    pub fn client_reply(&mut self, args: Args<'_>) -> Route {
        let Some(mode) = args.get(2).filter(|_| args.len() == 3) else {
            let text = "ERR wrong number of arguments for 'client|reply' command";
            return self.local_error(text.to_owned());
        };
        if mode.eq_ignore_ascii_case(b"on") {
            self.replies = Replies::On;
            return Route::Local(Local::Ok);
        }
        if mode.eq_ignore_ascii_case(b"off") {
            self.replies = Replies::Off;
        } else if mode.eq_ignore_ascii_case(b"skip") {
            if self.replies == Replies::On {
                self.replies = Replies::Skip;
            }
        } else {
            return self.local_error("ERR syntax error".to_owned());
        }
        Route::Swallow
    }

    /// The proxy answers with this error in place of Redis, unless the client wants no reply.
    pub fn local_error(&mut self, text: String) -> Route {
        if self.take_silence() { Route::Swallow } else { Route::Local(Local::Error(text)) }
    }

    fn handshake(&mut self, kind: Kind, args: Args<'_>, forward: &mut Forward) {
        match handshake(kind, args) {
            Some(effect) => {
                self.changing += 1;
                forward.effect = effect;
                forward.sync = true;
            }
            // Redis applies the options of HELLO one by one until it meets a wrong one: who the connection
            // speaks for is not known any more.
            None if kind == Kind::Hello && args.len() > 2 => (self.sticky, self.unsure) = (true, true),
            // Redis says what is wrong, and nothing changes.
            None => {}
        }
    }

    fn subscription(&mut self, kind: Kind, args: Args<'_>, forward: &mut Forward) {
        let (which, adds) = subscription_of(kind);
        let named = args.len().saturating_sub(1) as u32;
        if adds && named == 0 {
            return;
        }
        self.subscribing += 1;
        forward.effect = Effect::Subscription { kind: which, confirms: (named > 0).then_some(named) };
    }

    /// How many confirmations an unsubscription without names will bring.
    pub fn confirmations(&self, kind: SubscriptionKind) -> u32 {
        self.subscriptions[kind as usize].max(1)
    }

    /// A confirmation says how many subscriptions there are now: of channels and patterns together, or of
    /// shard channels.
    pub fn confirmed(&mut self, kind: SubscriptionKind, total: u32) {
        if total == 0 {
            self.listens_upstream[usize::from(kind == SubscriptionKind::Shard)] = false;
        }
        let [channels, patterns, _] = self.subscriptions;
        self.subscriptions[kind as usize] = match kind {
            SubscriptionKind::Channel => total.saturating_sub(patterns),
            SubscriptionKind::Pattern => total.saturating_sub(channels),
            SubscriptionKind::Shard => total,
        };
    }

    /// Applies what a reply means. `head` is the reply's head. Returns whether the connection that gave it
    /// is in a state that the proxy knows.
    pub fn replied(&mut self, effect: Effect, head: &Head<'_>) -> bool {
        let failed = head.is_error();
        match effect {
            Effect::None => {}
            // What was queued and has run comes one by one.
            Effect::Exec => {}
            Effect::Multi(number) => {
                self.multi_pending = false;
                // What was sent behind it has run at once.
                if failed && self.transactions == number {
                    self.in_multi = false;
                }
                return !failed;
            }
            // Redis thought nothing of an earlier MULTI, so this one began the transaction.
            Effect::MultiAgain(number) => self.in_multi |= !failed && self.transactions == number,
            Effect::Discard if !failed => self.transaction_over(),
            Effect::Unwatch if !failed => self.watching = false,
            Effect::Discard | Effect::Unwatch => {}
            Effect::Monitor => {
                self.changing = self.changing.saturating_sub(1);
                self.raw |= !failed;
            }
            Effect::Unblocked => self.blocked = self.blocked.saturating_sub(1),
            Effect::Subscription { .. } => self.subscribing = self.subscribing.saturating_sub(1),
            Effect::Auth(_) | Effect::Hello { .. } | Effect::Select(_) | Effect::Label(..) => {
                self.changing = self.changing.saturating_sub(1);
                if !failed {
                    self.changed(effect);
                    return true;
                }
                let Effect::Hello { partly, .. } = effect else { return true };
                // It may have authenticated before it failed: who the connection speaks for is not known any more.
                self.sticky |= partly;
                self.unsure |= partly;
                return false;
            }
        }
        true
    }

    /// EXEC has run a queued request, with success, whose effect is this one.
    pub fn ran(&mut self, effect: Effect) {
        match effect {
            Effect::Subscription { kind, .. } => {
                self.listens_upstream[usize::from(kind == SubscriptionKind::Shard)] = true;
            }
            effect => self.changed(effect),
        }
    }

    fn changed(&mut self, effect: Effect) {
        match effect {
            Effect::Auth(identity) => self.identity = identity,
            Effect::Select(db) => self.db = db,
            Effect::Label(field, value) => self.set_label(field, &value),
            Effect::Hello { resp, identity, name, .. } => {
                self.resp = resp.unwrap_or(self.resp);
                if let Some(identity) = identity {
                    self.identity = identity;
                }
                if let Some(name) = name {
                    self.set_label(LabelField::Name, &name);
                }
            }
            _ => {}
        }
    }

    fn set_label(&mut self, field: LabelField, value: &[u8]) {
        let mut label = self.label.as_deref().cloned().unwrap_or_default();
        label.set(field, value);
        self.label = (label != Label::default()).then(|| Rc::new(label));
    }

    /// RESET: as if just connected, except that Redis remembers the client's library.
    pub fn reset(&mut self) {
        let label = self.label.take();
        *self = Session { label, ..Session::default() };
        self.set_label(LabelField::Name, b"");
    }
}

/// Whether a HELLO that is right as it stands says who the client is.
pub fn names_user(args: Args<'_>) -> bool {
    matches!(identity::of_hello(args), Some(Effect::Hello { identity: Some(_), .. }))
}

/// What a request that says who a client is, or where, changes. `None`: nothing, as it stands.
fn handshake(kind: Kind, args: Args<'_>) -> Option<Effect> {
    match kind {
        Kind::Auth => identity::of_auth(args).map(Effect::Auth),
        Kind::Hello => identity::of_hello(args),
        Kind::Select => selected(args).map(Effect::Select),
        _ => identity::of_label(kind, args),
    }
}

/// Which list of subscriptions a command changes, and whether it adds to it.
fn subscription_of(kind: Kind) -> (SubscriptionKind, bool) {
    match kind {
        Kind::Subscribe => (SubscriptionKind::Channel, true),
        Kind::PSubscribe => (SubscriptionKind::Pattern, true),
        Kind::SSubscribe => (SubscriptionKind::Shard, true),
        Kind::Unsubscribe => (SubscriptionKind::Channel, false),
        Kind::PUnsubscribe => (SubscriptionKind::Pattern, false),
        _ => (SubscriptionKind::Shard, false),
    }
}

#[cfg(test)]
mod tests;
