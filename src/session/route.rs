//! What a session decides about a request, and what the reply will change.

use super::{Identity, LabelField};
use crate::command::TagCommand;

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// To Redis.
    Forward(Forward),
    /// Answered by the proxy itself, after all earlier replies.
    Local(Local),
    /// CLIENT REPLY: to [`Session::client_reply`](super::Session::client_reply), if Redis lets the client ask for it.
    Silence,
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
    /// What it changes when EXEC has run it, if it is queued.
    pub at_exec: Effect,
}

impl Forward {
    /// As most requests are: nothing is to be seen to.
    pub const PLAIN: Forward = Forward {
        own: false,
        sync: false,
        queued: false,
        silent: false,
        effect: Effect::None,
        at_exec: Effect::None,
    };
}

/// What the reply to a request changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// EXEC: what was queued has run.
    Exec,
    /// MULTI, the client's so-manieth.
    Multi(u32),
    /// MULTI inside MULTI: an error, unless Redis refused the first one.
    MultiAgain(u32),
    /// DISCARD: unless it is refused, the transaction is over.
    Discard,
    /// UNWATCH: unless it is refused, nothing is watched any more.
    Unwatch,
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
        /// Redis may have applied a part of it when it refuses another.
        partly: bool,
    },
    /// SELECT.
    Select(u32),
    /// CLIENT SETNAME or SETINFO.
    Label(LabelField, Box<[u8]>),
    /// (P|S)SUBSCRIBE or its opposite: this many confirmations are to come
    /// (`None`: one per subscription of that kind, at least one).
    Subscription {
        /// Which list of subscriptions.
        kind: SubscriptionKind,
        /// Confirmations to come.
        confirms: Option<u32>,
    },
    /// MONITOR: if it is not refused, everything passes as it is.
    Monitor,
    /// A command that may block ends.
    Unblocked,
}

impl Effect {
    /// Whether requests behind one that fails mean something else than its client has meant.
    pub fn prepares(&self) -> bool {
        matches!(
            self,
            Effect::Multi(_)
                | Effect::MultiAgain(_)
                | Effect::Select(_)
                | Effect::Auth(_)
                | Effect::Hello { .. }
        )
    }

    /// Whether it is no effect at all.
    #[inline]
    pub fn is_none(&self) -> bool {
        matches!(self, Effect::None)
    }

    /// Whether the client needs a connection of its own for it only until the reply is there.
    pub fn is_momentary(&self) -> bool {
        match self {
            Self::Auth(_) | Self::Select(_) => true,
            Self::Hello { partly, .. } => !partly,
            Self::Label(field, _) => *field != LabelField::Name,
            _ => false,
        }
    }
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
    /// RESET. `silent`: behind CLIENT REPLY SKIP.
    Reset {
        /// Without a reply.
        silent: bool,
    },
    /// CLIENT REPLY ON.
    Ok,
    /// A command of the proxy's own.
    Tag(TagCommand),
    /// An error reply, its whole text.
    Error(String),
}
