//! Triggers that a client sends one behind the other.
//!
//! Each has to be in the journal before it is sent, and its reply waits for its fan-out. One by one, each would cost an fsync
//! and some round trips. Those that have arrived together are therefore noted together, sent together, and fanned out side by
//! side, as if each had come from a client of its own; the replies wait until all of it is done.

use std::collections::HashSet;

use super::Client;
use super::request::Request;
use crate::accounting::Noted;
use crate::command::{Command, Kind};
use crate::journal::Wanted;
use crate::resp::{Args, Limits, Parsed, RequestParser};

impl Client {
    /// What the triggers invalidate that follow the first one in `requests` without a gap.
    pub(super) fn triggers_behind(&self, requests: &[u8]) -> Vec<Wanted> {
        let mut found = vec![];
        if !self.travels_plainly() {
            return found;
        }
        let commands = self.context.commands.borrow();
        let mut parser = self.context.ahead.borrow_mut();
        let (mut at, mut is_first, room) = (0, true, self.outbox.room() as usize);
        let mut keys: HashSet<Box<[u8]>> = HashSet::new();
        while found.len() + 1 < room {
            let Parsed::Request { len, inline: false } = parser.parse(&requests[at..], &Limits::NORMAL)
            else {
                break;
            };
            let args = parser.args(&requests[at..at + len], false);
            at += len;
            let command = commands.find(args).filter(|command| self.is_nobodys_dependent(command, args));
            let Some(command) = command else { break };
            // Of two writes of one key that come at once nobody could tell which the feed shows.
            let mut is_again = false;
            command.keys(args, |used| is_again |= keys.contains(used.key));
            if is_again {
                break;
            }
            command.keys(args, |used| _ = keys.insert(used.key.into()));
            if !std::mem::take(&mut is_first) {
                match self.may_invalidate(&self.context, Request::of(Some(command), args, None)) {
                    Some(wanted) => found.push(wanted),
                    None => break,
                }
            }
        }
        *parser = RequestParser::default();
        found
    }

    /// Whether the request only writes keys that nothing deletes: the fan-out of one that went before it may then also come
    /// behind it.
    fn is_nobodys_dependent(&self, command: &Command, args: Args<'_>) -> bool {
        let (context, db) = (&self.context, self.outbox.session.borrow().current_db());
        let is_plain = command.kind == Kind::Plain && command.is_write() && command.arity_ok(args.len());
        let mut tagged = !is_plain || command.carries || command.other_db(args).is_some();
        let (mut matcher, index, now) =
            (context.matcher.borrow_mut(), &context.process.index, context.moment());
        command.keys(args, |used| {
            tagged |= matcher.classify(db, used.key).has_tags;
            tagged |= index.may_have_labels(db, used.key) || index.expects_labels(db, used.key, now);
        });
        !tagged
    }

    /// Notes in the journal what the next requests may invalidate, one behind the other: all of it, or that of the first one
    /// only.
    pub(super) async fn note_row(&mut self, row: Vec<Wanted>) {
        let asked: Vec<_> = row.into_iter().map(|wanted| self.context.intend(wanted)).collect();
        let mut noted = Vec::with_capacity(asked.len());
        for one in asked {
            noted.push(one.await);
        }
        let mut noted = noted.into_iter();
        let first = noted.next();
        let others: Vec<Result<Noted, String>> = noted.collect();
        let is_whole = first.iter().chain(&others).all(Result::is_ok);
        self.present().intent = first;
        self.row.extend(others.into_iter().flatten());
        if !is_whole {
            self.end_row();
        }
    }

    /// Whether requests have been sent, or noted, that others of the same row precede or follow.
    #[inline]
    pub(super) fn is_in_row(&self) -> bool {
        !(self.held.is_empty() && self.row.is_empty())
    }

    /// A request has been dealt with. True: the next one belongs to the same row, and is not to wait.
    pub(super) fn goes_on(&mut self) -> bool {
        let next = self.row.pop_front();
        let goes_on = next.is_some();
        if let Some(intent) = next {
            // Perhaps there are other rules meanwhile, and it did not need it.
            self.end_present();
            self.present().intent = Some(Ok(intent));
        }
        goes_on
    }

    /// What was noted for requests that are not sent in a row is not needed.
    pub(super) fn end_row(&mut self) {
        self.row.drain(..).for_each(|intent| self.context.process.journal.done(intent.id));
    }
}
