//! A request as it has arrived, and what it means before anything is done about it.

use crate::command::{Command, Commands, Kind};
use crate::resp::Args;

/// The metrics label of a command that the table does not know: beyond all labels.
const UNKNOWN: u16 = u16::MAX;

/// A request that has arrived whole, or one that the proxy makes of it.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// `None`: the table does not have it.
    pub command: Option<&'a Command>,
    pub args: Args<'a>,
    /// Its bytes. `None`: they must be encoded anew.
    pub raw: Option<&'a [u8]>,
    /// Nothing has arrived behind it.
    pub is_last: bool,
}

impl<'a> Request<'a> {
    #[inline]
    pub fn new(commands: &'a Commands, args: Args<'a>, raw: Option<&'a [u8]>) -> Self {
        Self::of(commands.find(args), args, raw)
    }

    #[inline]
    pub fn of(command: Option<&'a Command>, args: Args<'a>, raw: Option<&'a [u8]>) -> Self {
        Self { command, args, raw, is_last: false }
    }

    /// What it means to a session. One with a wrong number of arguments is refused by Redis without any effect, except EXEC,
    /// which ends its transaction, and the commands that the proxy judges itself.
    pub fn kind(&self) -> Kind {
        let Some(command) = self.command else { return Kind::Plain };
        match command.kind {
            kind @ (Kind::Exec | Kind::ClientReply | Kind::Tag(_)) => kind,
            kind if command.arity_ok(self.args.len()) => kind,
            _ => Kind::Plain,
        }
    }

    /// Where it is counted.
    pub fn metric(&self) -> u16 {
        metric_of(self.command)
    }

    /// Whether it may block until there is something to answer.
    pub fn blocks(&self) -> bool {
        self.command.is_some_and(|command| command.blocks(self.args))
    }

    /// HTTP that a browser was tricked into sending. Redis hangs up on it, which on a shared connection would hit
    /// other clients.
    #[inline]
    pub fn is_attack(&self) -> bool {
        let is = |name: &[u8]| name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:");
        self.command.is_none_or(|command| matches!(&*command.name, "post" | "host:"))
            && self.args.get(0).is_some_and(is)
    }

    /// Whether it matters if its client needs AUTH: not for AUTH itself, say.
    pub fn needs_vetting(&self) -> bool {
        !matches!(self.kind(), Kind::Auth | Kind::Quit | Kind::Reset) && !self.authenticates()
    }

    /// Whether it is a HELLO that says who the client is.
    pub fn authenticates(&self) -> bool {
        self.kind() == Kind::Hello && crate::session::names_user(self.args)
    }

    /// Whether the proxy answers it itself.
    pub fn is_local(&self) -> bool {
        matches!(self.kind(), Kind::Tag(_) | Kind::Quit | Kind::Reset | Kind::ClientReply)
    }

    /// Whether it does no harm if the MULTI before it turns out to have been refused.
    pub fn is_queued_or_harmless(&self) -> bool {
        use Kind::{Discard, Exec, Flush, Multi, Ping, Plain, Publish, SPublish, Unwatch};
        matches!(self.kind(), Plain | Ping | Publish | SPublish | Flush | Multi | Exec | Discard | Unwatch)
    }

    /// Whether it may need a connection of the client's own.
    pub fn may_pin(&self) -> bool {
        match self.kind() {
            Kind::Plain | Kind::Ping | Kind::Publish | Kind::SPublish => false,
            Kind::SwapDb | Kind::Flush => false,
            Kind::Blocking => self.blocks(),
            _ => true,
        }
    }
}

/// Where a command is counted.
pub(super) fn metric_of(command: Option<&Command>) -> u16 {
    command.map_or(UNKNOWN, |command| command.metric)
}
