//! One client's protocol state: requests and replies in, decisions out. No sockets, no clock.
//!
//! [`Session::route`] decides for every request whether it may travel on a shared upstream connection or
//! needs one of the client's own ("pinned"), whether the requests behind it must wait, and what its reply
//! will change. [`Session::replied`] applies that change. [`Session::needs_own`] is the one place where
//! pinning is derived from the state.

mod identity;

pub use identity::Identity;

use crate::command::{Kind, TagCommand};
use crate::resp::{Args, Head, request::number};

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// To Redis.
    Forward(Forward),
    /// Answered by the proxy itself, after all earlier replies.
    Local(Local),
    /// Nothing is answered and nothing is sent: `CLIENT REPLY OFF` and `SKIP`.
    Swallow,
    /// The connection is closed without a word: QUIT of a client that wants no replies.
    Cut,
}

/// How a request is forwarded.
#[derive(Debug, PartialEq)]
pub struct Forward {
    /// Only over a connection of the client's own.
    pub own: bool,
    /// Requests behind it wait until its reply has been applied.
    pub sync: bool,
    /// Redis queues it (the client is inside MULTI).
    pub queued: bool,
    /// The client wants no reply to it.
    pub silent: bool,
    /// What its reply changes.
    pub effect: Effect,
}

/// What the reply to a request changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Nothing.
    None,
    /// EXEC: what was queued has run.
    Exec,
    /// MULTI, the client's so-manieth.
    Multi(u32),
    /// A state command that must succeed; if it does not the connection's state is unknown.
    MustSucceed,
    /// The connection's identity becomes this one if the reply is not an error.
    Auth(Identity),
    /// HELLO: protocol version (`None`: unchanged), identity, name.
    Hello {
        /// 2 or 3; `None`: as before.
        resp: Option<u8>,
        /// From its AUTH option.
        identity: Option<Identity>,
        /// From its SETNAME option.
        name: Option<Box<[u8]>>,
    },
    /// SELECT.
    Select(u32),
    /// CLIENT SETNAME.
    SetName(Box<[u8]>),
    /// (P|S)SUBSCRIBE or its opposite: this many confirmations are to come
    /// (`None`: one per subscription of that kind, at least one).
    Subscription {
        /// Which list of subscriptions.
        kind: SubscriptionKind,
        /// Confirmations to come.
        confirms: Option<u32>,
    },
    /// A command that may block ends.
    Unblocked,
}

/// The three lists of subscriptions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionKind {
    /// SUBSCRIBE
    Channel,
    /// PSUBSCRIBE
    Pattern,
    /// SSUBSCRIBE
    Shard,
}

/// What the proxy answers itself.
#[derive(Debug, PartialEq)]
pub enum Local {
    /// QUIT: `OK` and close.
    Quit,
    /// RESET.
    Reset,
    /// CLIENT GETNAME.
    GetName,
    /// CLIENT REPLY ON.
    Ok,
    /// A command of the proxy's own.
    Tag(TagCommand),
    /// An error reply, its whole text.
    Error(String),
}

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
}

impl Default for Session {
    fn default() -> Self {
        Self {
            db: 0,
            resp: 2,
            identity: Identity::Anonymous,
            name: None,
            in_multi: false,
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
        if kind == Kind::ClientReply && !self.in_multi {
            return self.client_reply(args);
        }
        let silent = self.take_silence();
        if self.in_multi
            && let Some(route) = self.in_transaction(kind, silent)
        {
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
                self.transaction_over();
                forward.effect = Effect::Exec;
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
            Kind::ClientGetName if args.len() == 2 && !self.named_upstream => {
                return if silent { Route::Swallow } else { Route::Local(Local::GetName) };
            }
            Kind::Quit => return if silent { Route::Cut } else { Route::Local(Local::Quit) },
            Kind::Reset if args.len() == 1 => return Route::Local(Local::Reset),
            Kind::ConnectionState => self.sticky = true,
            Kind::Monitor | Kind::Replication => {
                self.sticky = true;
                self.raw = true;
            }
            Kind::Tag(command) => return Route::Local(Local::Tag(command)),
            _ => {}
        }
        forward.own = had_state || self.needs_own();
        Route::Forward(forward)
    }

    /// Decides within MULTI; `None`: as outside.
    fn in_transaction(&mut self, kind: Kind, silent: bool) -> Option<Route> {
        let queued = match kind {
            // These run at once even within MULTI.
            Kind::Exec | Kind::Discard | Kind::Quit | Kind::Reset => return None,
            Kind::Multi | Kind::Watch => false,
            // The proxy's own commands are the caller's to judge: it knows what they would queue.
            Kind::Tag(command) => return Some(Route::Local(Local::Tag(command))),
            // What follows from these is known only when EXEC ran: the connection is never shared again.
            Kind::Auth
            | Kind::Hello
            | Kind::Select
            | Kind::ConnectionState
            | Kind::ClientReply
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
        Some(Route::Forward(Forward { own: true, sync: false, queued, silent, effect: Effect::None }))
    }

    fn transaction_over(&mut self) {
        self.in_multi = false;
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
            _ => args
                .get(1)
                .filter(|_| args.len() == 2)
                .and_then(number)
                .and_then(|db| u32::try_from(db).ok())
                .map(Effect::Select),
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
            Effect::None | Effect::Exec => {}
            Effect::Multi(number) => {
                // What was sent behind it has run at once.
                if failed && self.transactions == number {
                    self.in_multi = false;
                }
                return !failed;
            }
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
