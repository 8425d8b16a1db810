//! Which upstream connection a client takes: a shared one, one of its own, or none before it is known who it is.

use std::rc::Rc;
use std::time::Instant;

use super::{Client, Pause, Step};
use crate::command::{Command, Kind};
use crate::resp::encode;
use crate::session::{Effect, Identity};
use crate::upstream::{Conn, Key, Way};

impl Client {
    /// The connection that the next plain request takes.
    pub(super) fn conn(&mut self) -> Rc<Conn> {
        if let Some(conn) = &self.pinned {
            return Rc::clone(conn);
        }
        // What comes over another one would overtake the replies of one that is left.
        let waits = self.outbox.pending() > 0;
        let stays = |conn: &&Rc<Conn>| conn.is_alive() || (waits && conn.is_draining());
        if let Some(conn) = self.shared.as_ref().filter(stays) {
            return Rc::clone(conn);
        }
        let conn = self.pool.shared(&self.key());
        self.set_shared(Some(Rc::clone(&conn)));
        conn
    }

    /// What becomes of the next request if something of other clients is in its way upstream; `None`: nothing is. With
    /// nothing of its own under way, the client changes to another connection, which overtakes nothing, or waits for one.
    pub(super) fn blocked_way(&mut self, command: Option<&Command>) -> Option<Step> {
        let best = |conn: &Rc<Conn>| conn.is_alive() && !conn.is_second_best();
        if self.outbox.pending() > 0 || self.pinned.is_some() || self.shared.as_ref().is_some_and(best) {
            return None;
        }
        let key = self.key();
        match self.pool.clear_way(&key, &self.outbox) {
            Way::Clear(conn) => {
                self.set_shared(Some(conn));
                None
            }
            Way::Wait => Some(Step::Again(Pause::Way)),
            // Redis itself takes a MULTI whatever else it refuses.
            Way::Refused(error) => Some(self.refuse_or_end(command, error, |kind| kind == Kind::Multi)),
        }
    }

    /// What becomes of the next request if the client's connection leads to a Redis that is left; `None`: it does not. Once
    /// it has its replies, the client takes another shared one. What it has on one of its own is lost.
    pub(super) fn left_behind(&mut self) -> Option<Step> {
        if let Some(conn) = &self.pinned {
            return conn.is_left().then(|| {
                conn.retire();
                self.outbox.close();
                Step::Then(Pause::End)
            });
        }
        // A transaction that has begun to travel in one piece arrives in one piece.
        let under_way = self.burst > 0 && self.outbox.session.borrow().in_multi();
        let waits = self.shared.as_ref().is_some_and(|conn| conn.is_draining());
        (waits && !under_way && self.outbox.pending() > 0).then_some(Step::Again(Pause::Idle))
    }

    /// Takes another shared connection, or none; connections count who has them.
    pub(super) fn set_shared(&mut self, conn: Option<Rc<Conn>>) {
        if let Some(conn) = &conn {
            conn.count_user(1);
        }
        if let Some(before) = std::mem::replace(&mut self.shared, conn) {
            before.count_user(-1);
        }
    }

    /// What the connection must be that the client's next request takes.
    pub(super) fn key(&self) -> Key {
        let key = Key::of(&self.outbox.session.borrow());
        let identity = match key.identity {
            // One without rights, or a new one, which Redis judges.
            Identity::Nobody if self.stranger => Identity::Unknown,
            // Everybody is let in now.
            Identity::Nobody => Identity::Default,
            identity => identity,
        };
        Key { identity, ..key }
    }

    /// Whether the client may go on without AUTH. `None`: it must wait. The error is why that cannot be known.
    ///
    /// Who was let in stays so. Who was not is asked for again with each request. While AUTH is wanted, its requests
    /// take a connection of their own: Redis cuts those without AUTH on which many replies wait.
    pub(super) fn standing(&mut self) -> Option<Result<bool, String>> {
        let wanted = *self.present().asked.get_or_insert_with(Instant::now);
        let unknown = !self.outbox.session.borrow().is_vetted();
        let since = if unknown { self.accepted } else { wanted };
        let standing = self.pool.standing(&self.outbox, since, wanted)?;
        self.present().asked = None;
        self.stranger = standing == Ok(false);
        if unknown && let Ok(open) = standing {
            let identity = if open { Identity::Default } else { Identity::Nobody };
            if self.pinned.as_ref().is_some_and(|conn| conn.key().identity != identity) {
                // It may have come by a connection with other rights; it must not use it.
                self.outbox.close();
            }
            self.set_shared(None);
            self.outbox.session.borrow_mut().identity = identity;
        }
        Some(standing)
    }

    /// A new client is known as one that needs no AUTH, if there is proof already.
    pub(super) fn let_in(&mut self) {
        let is_vetted = self.outbox.session.borrow().is_vetted();
        let asked = self.present.as_ref().and_then(|present| present.asked);
        let wanted = asked.unwrap_or_else(Instant::now);
        if !is_vetted && self.context.standing.of(self.accepted, wanted) == Some(Ok(true)) {
            self.standing();
        }
    }

    /// Whether it has a connection of its own from a time when everybody was let in.
    pub(super) fn has_rights_upstream(&self) -> bool {
        self.pinned.as_ref().is_some_and(|conn| conn.key().identity == Identity::Default)
    }

    /// Takes a connection of its own. False: there are too many of them.
    pub(super) fn pin(&mut self) -> bool {
        let key = self.key();
        self.pin_as(&key, false)
    }

    fn pin_as(&mut self, key: &Key, briefly: bool) -> bool {
        self.pinned = self.pool.pin(key, &self.outbox, briefly);
        if self.pinned.is_some() {
            self.set_shared(None);
        }
        self.pinned.is_some()
    }

    /// Takes a connection of its own for a request of this kind. False: there are too many of them.
    pub(super) fn pin_for(&mut self, kind: Kind, effect: &Effect) -> bool {
        let (key, briefly) = (self.key(), effect.is_momentary());
        let (identity, resp) = match effect {
            _ if kind == Kind::Urgent => {
                self.pinned = Some(self.pool.pin_urgently(&key, &self.outbox));
                return true;
            }
            Effect::Auth(identity) => (identity, key.resp),
            // Its client may have to stay there although it fails: not on what somebody else has proved.
            Effect::Hello { identity: Some(_), partly: true, .. } => {
                let is_anonymous = key.identity.is_anonymous();
                let identity = if is_anonymous { Identity::Unknown } else { key.identity.clone() };
                return self.pin_as(&Key { identity, ..key }, briefly);
            }
            Effect::Hello { resp, identity: Some(identity), .. } => (identity, resp.unwrap_or(key.resp)),
            _ => return self.pin_as(&key, briefly),
        };
        // Verifying a user on a connection that is the user's changes nothing there, whatever comes of it.
        let claimed = Key { identity: identity.clone(), resp, ..key.clone() };
        self.pinned = self.pool.pin_existing(&claimed, &self.outbox);
        // Elsewhere nothing is possible before AUTH, and afterwards the client moves on to where it was.
        let from = if key.identity.is_anonymous() { Key::fresh() } else { key };
        self.pinned.is_some() || self.pin_as(&from, briefly)
    }

    /// The client cannot have a connection of its own. It is disconnected, as by a Redis that has too many clients: had
    /// MULTI been refused alone, what follows would run one by one.
    pub(super) fn no_connection(&mut self) -> Step {
        let error =
            "ERR max number of clients reached: all upstream connections are pinned (upstream.max_pinned)";
        tracing::warn!(client = %self.outbox.peer, "disconnected: it needs an upstream connection of its own, and there are as many as upstream.max_pinned and the limit of open files (ulimit -n) allow");
        self.outbox.with_buffer(|out| encode::error(out, error));
        self.context.mark_dirty(&self.outbox);
        Step::Then(Pause::End)
    }

    /// Gives the client's own connection back. From then on it shares one that is what the client is: the database or
    /// the identity may be another now.
    pub(super) fn give_back(&mut self, conn: Rc<Conn>, clean: bool) {
        let key = self.key();
        let shared = self.pool.unpin(conn, clean, &key);
        self.set_shared(shared);
    }

    /// Gives the client's own connection back if nothing of its state is left there.
    pub(super) fn unpin_if_free(&mut self) {
        let free =
            self.passing.is_none() && self.outbox.pending() == 0 && !self.outbox.session.borrow().needs_own();
        if let Some(conn) = self.pinned.take_if(|_| free) {
            self.give_back(conn, true);
        }
    }
}
