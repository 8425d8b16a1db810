//! What a command means to the session of a client: one [`Kind`] per way of handling it.

use super::flags::Flags;

/// The ways a session treats commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Forwarded, and that is all.
    Plain,
    /// MULTI
    Multi,
    /// EXEC
    Exec,
    /// DISCARD
    Discard,
    /// WATCH
    Watch,
    /// UNWATCH
    Unwatch,
    /// SUBSCRIBE
    Subscribe,
    /// UNSUBSCRIBE
    Unsubscribe,
    /// PSUBSCRIBE
    PSubscribe,
    /// PUNSUBSCRIBE
    PUnsubscribe,
    /// SSUBSCRIBE
    SSubscribe,
    /// SUNSUBSCRIBE
    SUnsubscribe,
    /// PUBLISH
    Publish,
    /// SPUBLISH
    SPublish,
    /// Can block its client; [`Command::blocks`](super::Command::blocks) says whether a request does.
    Blocking,
    /// WAIT, WAITAOF
    Wait,
    /// AUTH
    Auth,
    /// HELLO
    Hello,
    /// SELECT
    Select,
    /// RESET
    Reset,
    /// QUIT
    Quit,
    /// MONITOR
    Monitor,
    /// SYNC, PSYNC, REPLCONF
    Replication,
    /// The client needs an upstream connection of its own from now on (CLIENT TRACKING, READONLY, …).
    ConnectionState,
    /// CLIENT REPLY
    ClientReply,
    /// CLIENT SETNAME
    ClientSetName,
    /// CLIENT SETINFO
    ClientSetInfo,
    /// SWAPDB
    SwapDb,
    /// FLUSHALL, FLUSHDB
    Flush,
    /// PING
    Ping,
    /// May send more or less than one reply: DEBUG.
    Alone,
    /// Must reach Redis while it does something else: SCRIPT KILL, CLIENT UNPAUSE, SHUTDOWN, …
    Urgent,
    /// One of the proxy's own.
    Tag(TagCommand),
}

/// The commands that the proxy adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagCommand {
    /// TAG.WITH
    With,
    /// TAG.NEXT
    Next,
    /// TAG.ADD
    Add,
    /// TAG.REM
    Rem,
    /// TAG.INVALIDATE
    Invalidate,
    /// TAG.KEYS
    Keys,
    /// TAG.OF
    Of,
    /// TAG.EXPLAIN
    Explain,
    /// TAG.LOG
    Log,
    /// TAG.INFO
    Info,
}

/// The commands that are not [`Kind::Plain`] by name.
const KINDS: &[(&str, Kind)] = &[
    ("multi", Kind::Multi),
    ("exec", Kind::Exec),
    ("discard", Kind::Discard),
    ("watch", Kind::Watch),
    ("unwatch", Kind::Unwatch),
    ("subscribe", Kind::Subscribe),
    ("unsubscribe", Kind::Unsubscribe),
    ("psubscribe", Kind::PSubscribe),
    ("punsubscribe", Kind::PUnsubscribe),
    ("ssubscribe", Kind::SSubscribe),
    ("sunsubscribe", Kind::SUnsubscribe),
    ("publish", Kind::Publish),
    ("spublish", Kind::SPublish),
    ("wait", Kind::Wait),
    ("waitaof", Kind::Wait),
    ("auth", Kind::Auth),
    ("hello", Kind::Hello),
    ("select", Kind::Select),
    ("reset", Kind::Reset),
    ("quit", Kind::Quit),
    ("monitor", Kind::Monitor),
    ("sync", Kind::Replication),
    ("psync", Kind::Replication),
    ("replconf", Kind::Replication),
    ("client|id", Kind::ConnectionState),
    ("client|info", Kind::ConnectionState),
    ("client|tracking", Kind::ConnectionState),
    ("client|trackinginfo", Kind::ConnectionState),
    ("client|caching", Kind::ConnectionState),
    ("client|getredir", Kind::ConnectionState),
    ("client|no-evict", Kind::ConnectionState),
    ("client|no-touch", Kind::ConnectionState),
    ("client|capa", Kind::ConnectionState),
    ("client|import-source", Kind::ConnectionState),
    ("readonly", Kind::ConnectionState),
    ("readwrite", Kind::ConnectionState),
    ("asking", Kind::ConnectionState),
    ("script|debug", Kind::ConnectionState),
    ("client|reply", Kind::ClientReply),
    ("client|setname", Kind::ClientSetName),
    ("client|setinfo", Kind::ClientSetInfo),
    ("swapdb", Kind::SwapDb),
    ("flushall", Kind::Flush),
    ("flushdb", Kind::Flush),
    ("ping", Kind::Ping),
    ("debug", Kind::Alone),
    ("script|kill", Kind::Urgent),
    ("function|kill", Kind::Urgent),
    ("function|stats", Kind::Urgent),
    ("shutdown", Kind::Urgent),
    ("client|kill", Kind::Urgent),
    ("client|unblock", Kind::Urgent),
    ("client|unpause", Kind::Urgent),
    ("tag.with", Kind::Tag(TagCommand::With)),
    ("tag.next", Kind::Tag(TagCommand::Next)),
    ("tag.add", Kind::Tag(TagCommand::Add)),
    ("tag.rem", Kind::Tag(TagCommand::Rem)),
    ("tag.invalidate", Kind::Tag(TagCommand::Invalidate)),
    ("tag.keys", Kind::Tag(TagCommand::Keys)),
    ("tag.of", Kind::Tag(TagCommand::Of)),
    ("tag.explain", Kind::Tag(TagCommand::Explain)),
    ("tag.log", Kind::Tag(TagCommand::Log)),
    ("tag.info", Kind::Tag(TagCommand::Info)),
];

/// The kind of the command `name` with `flags`.
pub(super) fn kind_of(name: &str, flags: Flags) -> Kind {
    match KINDS.iter().find(|(known, _)| *known == name) {
        Some((_, kind)) => *kind,
        None if flags.has(Flags::BLOCKING) => Kind::Blocking,
        None => Kind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Commands;

    #[test]
    fn every_name_with_a_kind_is_in_the_table() {
        let commands = Commands::builtin();
        for (name, kind) in KINDS {
            assert_eq!(commands.by_name(name).map(|c| c.kind), Some(*kind), "{name}");
        }
    }

    #[test]
    fn blocking_commands_have_their_kind() {
        let commands = Commands::builtin();
        let kind = |name| commands.by_name(name).map(|c| c.kind);
        assert_eq!(kind("blpop"), Some(Kind::Blocking));
        assert_eq!(kind("xreadgroup"), Some(Kind::Blocking));
        assert_eq!(kind("client"), Some(Kind::Plain));
        assert_eq!(kind("client|getname"), Some(Kind::Plain));
    }
}
