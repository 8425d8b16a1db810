//! What a lost connection means to those who have something under way on it.

use bytes::BytesMut;

use super::Conn;
use super::expected::{Expected, Pending, Setup, Special};
use super::life::Phase;
use crate::accounting::Verdict;
use crate::resp::{Head, encode, is_error_of_redis};
use crate::session::{Effect, Identity};

impl Conn {
    /// The connection is gone. Clients whose commands certainly did not run get an error; the others are
    /// disconnected, as Redis would have done, since nobody knows what has run. Nothing is sent again.
    pub(super) fn fail(&self, reason: &str) {
        // Before the set-up has succeeded nothing of a client is sent.
        let sent = self.is_usable();
        if self.has_led() && !self.is_retired() {
            self.context.process.doubt_redis();
        }
        self.life.phase.set(Phase::Dead);
        if let Some(writer) = self.writer.get() {
            // Silent clients may have it for long.
            writer.hang_up();
        }
        self.context.upstream_gauge(self.mode.get()).dec();
        *self.out.borrow_mut() = BytesMut::new();
        *self.behind.borrow_mut() = BytesMut::new();
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        for expected in queue {
            match expected {
                Expected::Client(pending) => self.fail_pending(pending, sent, reason),
                // Another connection can be asked.
                Expected::Setup(Setup::Standing(_)) => self.context.standing.failed(None),
                _ => {}
            }
        }
        let owner = self.owner.borrow().clone();
        self.set_owner(None);
        if let Some(owner) = owner {
            // What the client had there is lost.
            if sent || owner.session.borrow().needs_own() {
                owner.close();
            }
        }
        self.context.flush_dirty();
        self.make_room();
    }

    pub(super) fn fail_pending(&self, pending: Pending, sent: bool, reason: &str) {
        let Pending { client, metric, started, account, special } = pending;
        let special = special.map_or_else(Special::default, |special| *special);
        if special.hold && !sent {
            client.hold();
        }
        let mut verdict = Verdict::failed();
        if sent {
            // It may have run: a fan-out too many is harmless.
            let fired = account.may_have_fired();
            if self.life.stalled.get() && !special.silent {
                client.with_buffer(|out| {
                    encode::error(out, "ERR upstream does not answer; what was sent may or may not run");
                });
            }
            client.close();
            self.context.fan_out_detached(&client.peer, fired);
        } else {
            if let Some(fills) = &special.fills {
                self.context.give_back(&client, &fills.of);
            }
            let mut error = BytesMut::new();
            encode::error(&mut error, error_text(reason));
            if special.capture {
                client.capture(&error)
            } else if !special.silent {
                client.push(&error)
            }
            let mut session = client.session.borrow_mut();
            if reason.starts_with("NOAUTH") && !self.is_pinned() && session.identity == Identity::Default {
                // It was let in once and has lost its place: now it is as those who come now.
                session.identity = Identity::Nobody;
            }
            drop(session);
            self.context.command_done(metric, started, true);
            if let Some(effect) = special.effect {
                let is_own = reason.starts_with("ERR ") || !is_error_of_redis(reason);
                // Redis itself takes a MULTI while a script runs.
                let is_busy = reason.starts_with("BUSY ") && matches!(effect, Effect::Multi(_));
                if is_busy || (effect.prepares() && is_own) {
                    // What may be on its way behind it would run one by one, in the wrong database, or as somebody else.
                    client.close();
                }
                client.session.borrow_mut().replied(effect, &Head::Error(b""));
            }
            verdict.idle = account.may_have_fired();
            self.context.mark_dirty(&client);
        }
        if special.hold || special.capture {
            client.judge(verdict);
        }
        client.arrived(0);
    }
}

/// Why a connection failed, as the text of an error reply. Redis's own errors begin with a word in capitals.
pub fn error_text(reason: &str) -> String {
    if is_error_of_redis(reason) { reason.to_owned() } else { format!("ERR upstream: {reason}") }
}
