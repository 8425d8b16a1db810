//! Replies about which nothing is remarkable, as nearly all are: a shorter way to what `replies` does with them.

use super::Conn;
use super::expected::{Expected, Pending};
use super::replies::{Read, count_read};
use crate::accounting::Account;
use crate::resp::{Head, whole_value};

impl Read<'_> {
    /// Deals with the reply that begins at `at`, if it is a single value and there whole, for a client, and shows at most a
    /// hit or a miss. How many bytes it takes up; `None`: nothing has been done.
    #[inline]
    pub(super) fn take_plainly(&mut self, conn: &Conn, at: usize) -> Option<usize> {
        let (head, length) = whole_value(&self.buf[at..])?;
        let mut queue = conn.queue.borrow_mut();
        if !matches!(queue.front(), Some(Expected::Client(pending)) if is_plain(pending)) {
            return None;
        }
        let Some(Expected::Client(pending)) = queue.pop_front() else { return None };
        drop(queue);
        self.add(conn, &pending.client, at..at + length, length);
        if let Account::Read(reading) = &pending.account {
            reading.settle_value(&head, |key, seen| count_read(conn, &pending.client, key, seen));
        }
        finish(conn, &pending, &head, length);
        Some(length)
    }
}

#[inline]
fn is_plain(pending: &Pending) -> bool {
    pending.special.is_none() && matches!(pending.account, Account::Nothing | Account::Read(_))
}

/// What follows a reply of `length` bytes that shows nothing but hits and misses, which have been counted.
#[inline]
pub(super) fn finish(conn: &Conn, pending: &Pending, head: &Head<'_>, length: usize) {
    let (context, error) = (&conn.context, head.is_error());
    if let Some(fetched) = pending.account.fetched(head) {
        context.fetched(&pending.client, fetched);
    }
    context.command_done(pending.metric, pending.started, error);
    conn.failed.set(error);
    if error {
        conn.note_error(head);
    }
    pending.client.arrived(length);
}
