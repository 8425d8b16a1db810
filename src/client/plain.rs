//! Requests about which nothing is remarkable, as nearly all are: a shorter way to what `forward` does with them.

use std::rc::Rc;

use super::request::Request;
use super::{Client, trigger};
use crate::command::Kind;
use crate::context::Context;
use crate::upstream::{Conn, Pending};

impl Client {
    /// Sends the request, `raw`, if that is all there is to do about it. False: nothing has been done.
    #[inline]
    pub(super) fn sent_plainly(&mut self, context: &Rc<Context>, request: Request<'_>) -> bool {
        let Request { command: Some(command), args, raw: Some(raw), .. } = request else { return false };
        if !is_plain(context, request) || self.has_concerns() {
            return false;
        }
        let Some(conn) = self.shared.as_ref().filter(|conn| self.may_take(conn)) else { return false };
        let Some(account) = trigger::account_plainly(context, &self.outbox, command, args) else {
            return false;
        };
        let pending = Pending {
            client: Rc::clone(&self.outbox),
            metric: Some(command.metric),
            started: context.nanos(),
            account,
            special: None,
        };
        conn.send(raw, Some(pending));
        true
    }

    /// Whether the state of the client makes any request remarkable.
    #[inline]
    fn has_concerns(&self) -> bool {
        self.pinned.is_some()
            || !self.next.is_empty()
            || !self.fills.is_empty()
            || self.present.is_some()
            || !self.outbox.session.borrow().travels_plainly()
    }

    /// Whether the client's next request may go to its shared connection at once.
    #[inline]
    fn may_take(&self, conn: &Conn) -> bool {
        conn.is_alive() && !conn.is_full() && (self.outbox.pending() > 0 || !conn.is_second_best())
    }
}

/// Whether the command, and what is going on in the proxy, leave it at sending the request.
#[inline]
fn is_plain(context: &Context, request: Request<'_>) -> bool {
    let is_simple = request
        .command
        .is_some_and(|command| matches!(command.kind, Kind::Plain | Kind::Ping) && !command.carries)
        && !request.is_attack();
    let nothing_waits = !context.coalesces() && !context.process.doubt.any();
    is_simple && nothing_waits
}
