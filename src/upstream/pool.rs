//! The connections of one worker thread: shared ones, usually one per key, and idle ones to be pinned.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::conn::Conn;
use super::dial::{self, Backoff};
use super::loss::error_text;
use super::{Key, Setup};
use crate::context::Context;
use crate::descriptors::Place;
use crate::fanout::Order;
use crate::metrics::ConnectionMode;
use crate::outbox::Outbox;
use crate::session::Identity;

/// Idle connections kept for clients that will need one of their own.
const MOST_IDLE: usize = 128;
/// Connections beyond `max_pinned` for clients that need one only until the reply is there.
const MOST_BRIEF: usize = 128;
/// How long one is kept.
const REST: Duration = Duration::from_secs(60);
/// How long none is made to stand in for another one after that has failed.
const DETOUR_PAUSE: Duration = Duration::from_secs(1);
/// Keys of shared connections beyond which those that no client uses are closed.
const MOST_UNUSED: usize = 32;
/// Shared connections with the same key: more than one only while big replies or long commands are under way.
const MOST_SHARED: usize = 64;

/// Where a client's next request may go.
#[derive(Debug)]
pub enum Way {
    /// To this connection.
    Clear(Rc<Conn>),
    /// Nowhere yet: there soon is another connection, or soon none is needed. The client is woken then.
    Wait,
    /// Redis takes it nowhere, with this error.
    Refused(String),
}

/// The upstream connections of one worker thread.
#[derive(Debug)]
pub struct Pool {
    itself: Weak<Pool>,
    context: Rc<Context>,
    backoff: Rc<Backoff>,
    /// The first one of a key is the usual one; the others stand in for it.
    shared: RefCell<HashMap<Key, SmallVec<[Rc<Conn>; 1]>>>,
    /// The last one goes out first.
    idle: RefCell<Vec<Rc<Conn>>>,
    /// Made to find out whether Redis wants AUTH; becomes a shared one.
    greeting: RefCell<Option<Rc<Conn>>>,
    /// All that are alive, whoever has them.
    all: RefCell<Vec<Weak<Conn>>>,
    /// When a connection that was to stand in for another one could not be made, and why.
    no_detour: RefCell<Option<(Instant, String)>>,
    /// A password that nobody has.
    no_password: String,
}

impl Pool {
    /// A pool without connections; they are made when they are needed.
    pub fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new_cyclic(|itself| Self {
            itself: Weak::clone(itself),
            context,
            backoff: Rc::default(),
            shared: RefCell::default(),
            idle: RefCell::default(),
            greeting: RefCell::default(),
            all: RefCell::default(),
            no_detour: RefCell::default(),
            no_password: format!("rescind-asks-{:032x}", fastrand::u128(..)),
        })
    }

    /// Whether `client`, which connected at `accepted` and has wanted to know since `wanted`, is let in without AUTH.
    /// `None`: not known yet; the client is woken when it is. The error is why it cannot be found out.
    pub fn standing(
        &self,
        client: &Rc<Outbox>,
        accepted: Instant,
        wanted: Instant,
    ) -> Option<Result<bool, String>> {
        let known = self.context.standing.of(accepted, wanted);
        let now = Instant::now();
        if known.is_none() && self.context.standing.wait(client, now) {
            self.ask_standing(now);
        }
        known
    }

    /// Asks on a connection that is there, the cheaper kind first: a wrong password stands in Redis's ACL LOG.
    fn ask_standing(&self, now: Instant) {
        self.settle_greeting();
        let closed = self.context.standing.latest() == Some(false);
        let kinds = [Identity::Nobody, Identity::Default];
        let find = |identity: &Identity| {
            let shared = self.shared.borrow();
            let fits = |conn: &&Rc<Conn>| conn.is_clear() && conn.key.borrow().identity == *identity;
            shared.values().flatten().find(fits).map(Rc::clone)
        };
        let setup = Setup::Standing(now);
        match kinds.iter().filter(|kind| !closed || **kind == Identity::Nobody).find_map(find) {
            Some(conn) if conn.key.borrow().identity == Identity::Nobody => conn.own(setup, &[b"PING"]),
            Some(conn) => {
                conn.own(setup, &[b"AUTH", b"default", self.no_password.as_bytes()]);
                // Redis from 7.2 on says nothing of an AUTH that fails behind a reply which has not been sent yet.
                conn.own(Setup::Ignore, &[b"HELLO"]);
            }
            None => {
                let mut greeting = self.greeting.borrow_mut();
                // One that Redis does not answer is not helped by another one.
                if greeting.is_none() {
                    *greeting = Some(self.open(&Key::fresh(), ConnectionMode::Shared, Place::take()));
                }
            }
        }
    }

    /// A connection that was made to ask becomes a shared one once it has been answered, if there is none that is free.
    fn settle_greeting(&self) {
        let greeted = self.greeting.borrow_mut().take_if(|conn| conn.is_usable() || !conn.is_alive());
        let Some(conn) = greeted.filter(|conn| conn.is_alive()) else { return };
        let wanted = |conns: &SmallVec<[Rc<Conn>; 1]>| {
            conns.len() < MOST_SHARED && !conns.iter().any(|conn| conn.is_alive() && !conn.is_congested())
        };
        if self.shared.borrow().get(&conn.key()).is_none_or(wanted) {
            self.share(conn);
        } else {
            conn.retire();
        }
    }

    /// Adds a shared connection.
    fn share(&self, conn: Rc<Conn>) {
        let key = conn.key();
        let mut shared = self.shared.borrow_mut();
        if !shared.contains_key(&key) {
            make_place(&mut shared);
        }
        let conns = shared.entry(key).or_default();
        conns.retain(|conn| conn.is_alive());
        conn.set_detour(!conns.is_empty());
        conns.push(conn);
    }

    /// A connection that clients with this key share, whatever is under way on it.
    pub fn shared(&self, key: &Key) -> Rc<Conn> {
        if let Some(conn) = self.existing(key) {
            return conn;
        }
        // All depend on it: it is made even where there is no place.
        let conn = self.open(key, ConnectionMode::Shared, Place::take());
        self.share(Rc::clone(&conn));
        conn
    }

    /// The best of the connections that clients with this key share, if there are any.
    fn existing(&self, key: &Key) -> Option<Rc<Conn>> {
        self.settle_greeting();
        let mut shared = self.shared.borrow_mut();
        let conns = shared.get_mut(key)?;
        conns.retain(|conn| conn.is_alive());
        let first = conns.first()?;
        first.set_detour(false);
        Some(Rc::clone(conns.iter().find(|conn| conn.is_clear()).unwrap_or(first)))
    }

    /// As [`Pool::shared`], for a client that waits for nothing: one on which it does not have to wait for others
    /// either.
    pub fn clear_way(&self, key: &Key, client: &Rc<Outbox>) -> Way {
        let best = self.shared(key);
        // A Redis that does not answer a new connection is not helped by one more.
        if !best.is_congested() || !best.is_usable() {
            return Way::Clear(best);
        }
        match &*self.no_detour.borrow() {
            Some((since, _)) if since.elapsed() >= DETOUR_PAUSE => {}
            // Redis would say the same to the client.
            Some((_, error)) if error.starts_with("BUSY ") => return Way::Refused(error.clone()),
            Some(_) => return Way::Clear(best),
            None => {}
        }
        let mut shared = self.shared.borrow_mut();
        let Some(conns) = shared.get_mut(key) else { return Way::Clear(best) };
        let under_way = conns.iter().find(|conn| !conn.is_usable()).map(Rc::clone);
        let detour = match under_way {
            Some(conn) => conn,
            None if conns.len() >= MOST_SHARED => return Way::Clear(best),
            None => {
                let Some(place) = Place::take() else { return Way::Clear(best) };
                let conn = self.open(key, ConnectionMode::Shared, Some(place));
                conn.set_detour(true);
                conns.push(Rc::clone(&conn));
                conn
            }
        };
        best.wake_later(client);
        detour.wake_later(client);
        Way::Wait
    }

    /// A connection in the state `key` for `owner` alone: one that has this state already, else one that can be
    /// brought there, else a new one. `None`: there are too many. `briefly`: only until its reply is there.
    pub fn pin(&self, key: &Key, owner: &Rc<Outbox>, briefly: bool) -> Option<Rc<Conn>> {
        let process = &self.context.process;
        let most = process.max_pinned + if briefly { MOST_BRIEF } else { 0 };
        if process.pinned.load(Ordering::Relaxed) >= most {
            process.metrics.pinned_refused();
            return None;
        }
        let exact = self.take_idle(|idle| idle == key);
        let moved =
            || self.take_idle(|idle| idle.way_to(key).is_some()).inspect(|conn| _ = conn.move_to(key));
        let fresh = || Place::take().map(|place| self.open(key, ConnectionMode::Pinned, Some(place)));
        let Some(conn) = exact.or_else(moved).or_else(fresh) else {
            process.metrics.pinned_refused();
            return None;
        };
        conn.set_owner(Some(Rc::clone(owner)));
        Some(conn)
    }

    /// As [`Pool::pin`], one of this user that is there already. `None`: there is none.
    pub fn pin_existing(&self, key: &Key, owner: &Rc<Outbox>) -> Option<Rc<Conn>> {
        let conn = self.take_idle(|idle| idle.identity == key.identity)?;
        conn.move_to(key);
        conn.set_owner(Some(Rc::clone(owner)));
        Some(conn)
    }

    /// As [`Pool::pin`], for one command that has to get through: in any database, since a Redis that is busy refuses
    /// SELECT, and whatever the bound.
    pub fn pin_urgently(&self, key: &Key, owner: &Rc<Outbox>) -> Rc<Conn> {
        let fits = |idle: &Key| Key { db: idle.db, ..key.clone() } == *idle;
        let fresh = || self.open(&Key { db: 0, ..key.clone() }, ConnectionMode::Pinned, Place::take());
        let conn = self.take_idle(fits).unwrap_or_else(fresh);
        conn.set_owner(Some(Rc::clone(owner)));
        conn
    }

    fn take_idle(&self, fits: impl Fn(&Key) -> bool) -> Option<Rc<Conn>> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().rposition(|conn| conn.is_alive() && fits(&conn.key.borrow()))?;
        Some(idle.remove(at))
    }

    /// Takes back a connection whose client needs it no longer. `clean`: nothing of the client's state is left
    /// on it. Returns the connection that the client, which is `key` now, shares from now on, if there is one.
    pub fn unpin(&self, conn: Rc<Conn>, clean: bool, key: &Key) -> Option<Rc<Conn>> {
        conn.set_owner(None);
        let existing = self.existing(key);
        // A RESET would not do: messages of a subscription may be on their way, and the next client would take
        // them for its replies.
        if !clean || !conn.is_known() || !conn.is_idle() {
            conn.retire();
        } else if conn.is_alive() {
            if existing.is_none() && conn.key() == *key {
                conn.set_mode(ConnectionMode::Shared);
                self.share(Rc::clone(&conn));
                return Some(conn);
            }
            conn.rest();
            let mut idle = self.idle.borrow_mut();
            idle.push(conn);
            if idle.len() > MOST_IDLE {
                idle.remove(0).retire();
            }
        }
        existing
    }

    /// Closes what nobody has needed for a while; called now and then.
    pub fn trim(&self) {
        self.settle_greeting();
        // The oldest stand first.
        let mut idle = self.idle.borrow_mut();
        let old = idle.iter().take_while(|conn| conn.idle_since().elapsed() >= REST).count();
        idle.drain(..old).for_each(|conn| conn.retire());
        let mut shared = self.shared.borrow_mut();
        if shared.len() > MOST_UNUSED {
            make_place(&mut shared);
        }
        for conns in shared.values() {
            conns.iter().skip(1).filter(|conn| !conn.has_users()).for_each(|conn| {
                conn.retire_if_idle();
            });
        }
    }

    fn open(&self, key: &Key, mode: ConnectionMode, place: Option<Place>) -> Rc<Conn> {
        let conn = Conn::new(&self.context, key, mode, place);
        dial::start(&conn, &self.backoff, Weak::clone(&self.itself));
        let mut all = self.all.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|conn| conn.strong_count() > 0);
        }
        all.push(Rc::downgrade(&conn));
        conn
    }

    /// A connection has ended. If Redis lives, somebody had it cut (CLIENT KILL, ACL DELUSER), and would have cut each
    /// of its clients, also those that are silent. If Redis has gone, they go on when it is back.
    pub(super) fn ended(&self, conn: &Rc<Conn>, was_usable: bool, reason: &str) {
        if self.greeting.borrow_mut().take_if(|greeting| Rc::ptr_eq(greeting, conn)).is_some() && !was_usable
        {
            self.context.standing.failed(Some(error_text(reason)));
        }
        if conn.is_detour() && !was_usable {
            *self.no_detour.borrow_mut() = Some((Instant::now(), reason.to_owned()));
            return;
        }
        if conn.is_pinned() || conn.is_retired() || conn.is_left() {
            return;
        }
        if was_usable && conn.has_users() {
            let (context, conn) = (Rc::clone(&self.context), Rc::clone(conn));
            tokio::task::spawn_local(async move {
                if context.process.fanout.ask(Order::Alive).await == Some(true) {
                    conn.set_cut();
                    context.clients.borrow().values().for_each(|client| client.wake());
                }
            });
        } else if !was_usable && is_unknown_user(reason) {
            self.context.disconnect(&conn.key().identity);
        }
    }

    /// Redis answers nobody: ends the connections on which a reply has been waited for that long.
    pub fn give_up_after(&self, patience: Duration) {
        self.all.borrow().iter().filter_map(Weak::upgrade).for_each(|conn| conn.give_up_after(patience));
    }

    /// New connections lead to another Redis: ends those that do not. Clients that had one of their own are disconnected, as
    /// if that Redis had died; the others go on once they have their replies.
    pub fn leave(&self) {
        self.all.borrow().iter().filter_map(Weak::upgrade).for_each(|conn| conn.leave());
    }

    /// Closes everything that no client uses.
    pub fn close(&self) {
        self.idle.borrow_mut().drain(..).for_each(|conn| conn.retire());
    }
}

/// Lets go of shared connections that no client uses, if there are many keys: many identities may have come and gone.
fn make_place(shared: &mut HashMap<Key, SmallVec<[Rc<Conn>; 1]>>) {
    let crowded = shared.len() >= MOST_UNUSED;
    shared.retain(|_, conns| {
        conns.retain(|conn| conn.is_alive() && (!crowded || conn.has_users() || conn.retire_if_idle()));
        !conns.is_empty()
    });
}

/// Whether Redis refused to verify a user again.
fn is_unknown_user(reason: &str) -> bool {
    reason.starts_with("WRONGPASS") || reason.starts_with("ERR AUTH ")
}
