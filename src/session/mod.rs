//! One client's protocol state: requests and replies in, decisions out. No sockets, no clock.
//!
//! [`Session::route`] decides for every request whether it may travel on a shared upstream connection or
//! needs one of the client's own ("pinned"), whether the requests behind it must wait, and what its reply
//! will change. [`Session::replied`] applies that change. [`Session::needs_own`] is the one place where
//! pinning is derived from the state.

mod identity;
mod route;

pub use identity::Identity;
pub use route::{Effect, Forward, Local, Route, SubscriptionKind};

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
    /// CLIENT SETNAME.
    pub name: Option<Box<[u8]>>,
    /// MULTI was sent, EXEC or DISCARD were not.
    in_multi: bool,
    /// The database that what is queued from here on will run in, if a SELECT is queued.
    queued_db: Option<u32>,
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
    /// A transaction may have named the connection: only Redis knows the name.
    named_upstream: bool,
    /// A transaction may have subscribed: messages may arrive.
    listens_upstream: bool,
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
            identity: Identity::Anonymous,
            name: None,
            in_multi: false,
            queued_db: None,
            transactions: 0,
            watching: false,
            subscriptions: [0; 3],
            subscribing: 0,
            blocked: 0,
            changing: 0,
            sticky: false,
            named_upstream: false,
            listens_upstream: false,
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
    }

    /// Whether a plain command can take the shared connection without another look.
    pub fn is_plain(&self) -> bool {
        self.replies == Replies::On && !self.needs_own()
    }

    /// Whether a command of the client is blocked upstream.
    pub fn is_blocked(&self) -> bool {
        self.blocked > 0
    }

    /// Whether the client listens to something: such clients are idle by nature.
    pub fn is_listening(&self) -> bool {
        self.subscriptions != [0; 3] || self.listens_upstream || self.raw
    }

    /// The database that the next command runs in.
    pub fn current_db(&self) -> u32 {
        self.queued_db.unwrap_or(self.db)
    }

    /// Whether the client is between MULTI and EXEC.
    pub fn in_multi(&self) -> bool {
        self.in_multi
    }

    /// Whether bytes pass unframed in both directions.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Whether messages may arrive at any moment.
    pub fn has_subscriptions(&self) -> bool {
        self.listens_upstream || self.subscriptions != [0; 3]
    }

    /// Whether the client wants replies at all: not after CLIENT REPLY OFF.
    pub fn takes_replies(&self) -> bool {
        self.replies == Replies::On
    }

    /// Whether the client wants no reply to the request that was routed last.
    pub fn was_silenced(&self) -> bool {
        self.silenced
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

    /// Decides about one request. `blocks`: it may block, as its arguments say.
    pub fn route(&mut self, kind: Kind, args: Args<'_>, blocks: bool) -> Route {
        if kind == Kind::ClientReply {
            // At once also inside MULTI: queued, it would make Redis silent, and every reply is waited for.
            return self.client_reply(args);
        }
        let silent = self.take_silence();
        self.silenced = silent;
        if self.in_multi
            && let Some(route) = self.in_transaction(kind, args, silent)
        {
            return route;
        }
        if let Some(route) = self.local(kind, args, silent) {
            return route;
        }
        // A command that ends the state still travels where the state is.
        let had_state = self.needs_own();
        let mut forward = Forward { own: false, sync: false, queued: false, silent, effect: Effect::None };
        match kind {
            Kind::Multi => {
                self.in_multi = true;
                self.transactions = self.transactions.wrapping_add(1);
                forward.effect = Effect::Multi(self.transactions);
            }
            Kind::Exec if self.in_multi => {
                forward.effect = Effect::Exec(self.queued_db.take());
                self.transaction_over();
            }
            // Without MULTI it is an error, and what is watched stays so.
            Kind::Discard if self.in_multi => {
                self.transaction_over();
                forward.effect = Effect::MustSucceed;
            }
            Kind::Unwatch if had_state => {
                self.watching = false;
                forward.effect = Effect::MustSucceed;
            }
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
            Kind::Auth | Kind::Hello | Kind::Select => self.handshake(kind, args, &mut forward),
            Kind::ClientSetName => {
                forward.effect = args.get(2).map_or(Effect::None, |name| Effect::SetName(name.into()));
            }
            Kind::ConnectionState => self.sticky = true,
            Kind::Monitor | Kind::Replication => {
                self.sticky = true;
                self.raw = true;
            }
            _ => {}
        }
        forward.own = had_state || self.needs_own();
        Route::Forward(forward)
    }

    /// What the proxy answers itself; `None`: Redis answers.
    fn local(&self, kind: Kind, args: Args<'_>, silent: bool) -> Option<Route> {
        Some(match kind {
            Kind::ClientGetName if args.len() != 2 || self.named_upstream => return None,
            Kind::ClientGetName if silent => Route::Swallow,
            Kind::ClientGetName => Route::Local(Local::GetName),
            Kind::Quit if silent => Route::Cut,
            Kind::Quit => Route::Local(Local::Quit),
            // RESET also ends CLIENT REPLY OFF: it is answered in any case.
            Kind::Reset if args.len() == 1 => Route::Local(Local::Reset),
            Kind::Tag(command) => Route::Local(Local::Tag(command)),
            _ => return None,
        })
    }

    /// Decides within MULTI; `None`: as outside.
    fn in_transaction(&mut self, kind: Kind, args: Args<'_>, silent: bool) -> Option<Route> {
        if kind == Kind::Select {
            self.queued_db = identity::of_select(args).or(self.queued_db);
        }
        let mut effect = Effect::None;
        let queued = match kind {
            // These run at once even within MULTI.
            Kind::Exec | Kind::Discard | Kind::Quit | Kind::Reset => return None,
            Kind::Multi => {
                effect = Effect::MultiAgain(self.transactions);
                false
            }
            Kind::Watch => false,
            // The proxy's own commands are the caller's to judge: it knows what they would queue.
            Kind::Tag(command) => return Some(Route::Local(Local::Tag(command))),
            // What follows from these is known only when EXEC ran: the connection is never shared again.
            Kind::Auth
            | Kind::Hello
            | Kind::Select
            | Kind::ConnectionState
            | Kind::Monitor
            | Kind::Replication => {
                self.sticky = true;
                true
            }
            Kind::Subscribe | Kind::PSubscribe | Kind::SSubscribe => {
                self.sticky = true;
                self.listens_upstream = true;
                true
            }
            Kind::ClientSetName => {
                self.sticky = true;
                self.named_upstream = true;
                true
            }
            _ => true,
        };
        Some(Route::Forward(Forward { own: true, sync: false, queued, silent, effect }))
    }

    fn transaction_over(&mut self) {
        self.transactions = self.transactions.wrapping_add(1);
        self.in_multi = false;
        self.queued_db = None;
        self.watching = false;
    }

    fn blocking(&mut self, forward: &mut Forward) {
        self.blocked += 1;
        forward.effect = Effect::Unblocked;
    }

    fn client_reply(&mut self, args: Args<'_>) -> Route {
        let Some(mode) = args.get(2).filter(|_| args.len() == 3) else {
            let text = "ERR wrong number of arguments for 'client|reply' command";
            return self.local_error(text);
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
            return self.local_error("ERR syntax error");
        }
        Route::Swallow
    }

    fn local_error(&mut self, text: &str) -> Route {
        if self.take_silence() { Route::Swallow } else { Route::Local(Local::Error(text.to_owned())) }
    }

    fn handshake(&mut self, kind: Kind, args: Args<'_>, forward: &mut Forward) {
        let effect = match kind {
            Kind::Auth => identity::of_auth(args).map(Effect::Auth),
            Kind::Hello => identity::of_hello(args),
            _ => identity::of_select(args).map(Effect::Select),
        };
        match effect {
            Some(effect) => {
                self.changing += 1;
                forward.effect = effect;
                forward.sync = true;
            }
            // Redis applies the options of HELLO one by one until it meets a wrong one: who the connection
            // speaks for is not known any more.
            None if kind == Kind::Hello && args.len() > 2 => self.sticky = true,
            // Redis says what is wrong, and nothing changes.
            None => {}
        }
    }

    fn subscription(&mut self, kind: Kind, args: Args<'_>, forward: &mut Forward) {
        let (which, adds) = match kind {
            Kind::Subscribe => (SubscriptionKind::Channel, true),
            Kind::PSubscribe => (SubscriptionKind::Pattern, true),
            Kind::SSubscribe => (SubscriptionKind::Shard, true),
            Kind::Unsubscribe => (SubscriptionKind::Channel, false),
            Kind::PUnsubscribe => (SubscriptionKind::Pattern, false),
            _ => (SubscriptionKind::Shard, false),
        };
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
            Effect::Exec(selected) if !failed && *head != Head::Null => self.db = selected.unwrap_or(self.db),
            Effect::Exec(_) => {}
            Effect::Multi(number) => {
                // What was sent behind it has run at once.
                if failed && self.transactions == number {
                    self.in_multi = false;
                }
                return !failed;
            }
            // Redis thought nothing of an earlier MULTI, so this one began the transaction.
            Effect::MultiAgain(number) => self.in_multi |= !failed && self.transactions == number,
            Effect::MustSucceed => return !failed,
            Effect::Unblocked => self.blocked = self.blocked.saturating_sub(1),
            Effect::Subscription { .. } => self.subscribing = self.subscribing.saturating_sub(1),
            Effect::SetName(name) if !failed => self.name = (!name.is_empty()).then_some(name),
            Effect::SetName(_) => {}
            Effect::Auth(_) | Effect::Hello { .. } | Effect::Select(_) => {
                self.changing = self.changing.saturating_sub(1);
                if !failed {
                    return self.changed(effect);
                }
                // A HELLO may have authenticated before it failed.
                return !matches!(effect, Effect::Hello { .. });
            }
        }
        true
    }

    fn changed(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Auth(identity) => self.identity = identity,
            Effect::Select(db) => self.db = db,
            Effect::Hello { resp, identity, name } => {
                self.resp = resp.unwrap_or(self.resp);
                if let Some(identity) = identity {
                    self.identity = identity;
                }
                if let Some(name) = name {
                    self.name = (!name.is_empty()).then_some(name);
                    // The connection bears it, too.
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// RESET: as if just connected.
    pub fn reset(&mut self) {
        *self = Session::default();
    }
}

#[cfg(test)]
mod tests;
