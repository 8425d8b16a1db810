//! Transactions that have arrived whole: they need no connection of their own.
//!
//! Most clients send MULTI, what belongs to it and EXEC in one piece. Passed on in one piece, nothing of other clients
//! comes in between, and behind EXEC the shared connection is what it was.

use super::{Client, trigger};
use crate::command::{Command, Kind};
use crate::resp::{Args, Limits, Parsed};

impl Client {
    /// How many requests a transaction has that begins with `first` and ends within `rest`, both included. 0: `first`
    /// begins none, it is not there whole, or what it holds may leave something behind on the connection.
    pub(super) fn whole_transaction(&mut self, first: Args<'_>, rest: &[u8]) -> u32 {
        let is = |args: Args<'_>, name: &[u8]| {
            args.len() == 1 && args.get(0).is_some_and(|word| word.eq_ignore_ascii_case(name))
        };
        if !is(first, b"multi") || rest.is_empty() {
            return 0;
        }
        self.let_in();
        if !self.travels_plainly() {
            return 0;
        }
        let commands = self.context.commands.borrow();
        let mut parser = self.context.ahead.borrow_mut();
        let room = self.outbox.room();
        let (mut at, mut count) = (0, 1);
        while count < room {
            let Parsed::Request { len, inline: false } = parser.parse(&rest[at..], &Limits::NORMAL) else {
                break;
            };
            let args = parser.args(&rest[at..at + len], false);
            count += 1;
            if is(args, b"exec") {
                return count;
            }
            // Should Redis refuse MULTI, these run one by one and leave nothing behind either.
            let plain = |command: &Command| {
                let follows = command.carries && self.context.process.may_have_labels();
                command.kind == Kind::Plain && command.arity_ok(args.len()) && !follows
            };
            let Some(command) = commands.find(args).filter(|command| plain(command)) else { break };
            // The journal is waited for before EXEC, and others are not to wait meanwhile.
            if trigger::may_fire(&self.context, self.outbox.session.borrow().current_db(), command, args) {
                break;
            }
            at += len;
        }
        *parser = crate::resp::RequestParser::default();
        0
    }

    /// Whether the client's state lets requests that belong together travel on the shared connection.
    pub(super) fn travels_plainly(&self) -> bool {
        let session = self.outbox.session.borrow();
        // What waits for keys in doubt must not hold up others.
        !self.context.process.doubt.any()
            && self.pinned.is_none()
            && self.next.is_empty()
            && session.travels_plainly()
    }
}
