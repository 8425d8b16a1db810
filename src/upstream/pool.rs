//! The connections of one worker thread: one shared connection per key, and idle ones to be pinned.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Key;
use super::conn::Conn;
use super::dial::{self, Backoff};
use crate::context::Context;
use crate::metrics::ConnectionMode;
use crate::outbox::Outbox;

/// Idle connections kept for clients that will need one of their own.
const MOST_IDLE: usize = 64;
/// Shared connections beyond which those that no client uses are closed.
const MOST_UNUSED: usize = 32;

/// The upstream connections of one worker thread.
#[derive(Debug)]
pub struct Pool {
    context: Rc<Context>,
    backoff: Rc<Backoff>,
    shared: RefCell<HashMap<Key, Rc<Conn>>>,
    idle: RefCell<Vec<Rc<Conn>>>,
    /// All that are alive, whoever has them.
    all: RefCell<Vec<Weak<Conn>>>,
}

impl Pool {
    /// A pool without connections; they are made when they are needed.
    pub fn new(context: Rc<Context>) -> Self {
        Self {
            context,
            backoff: Rc::default(),
            shared: RefCell::default(),
            idle: RefCell::default(),
            all: RefCell::default(),
        }
    }

    /// The connection that all clients with this key share.
    pub fn shared(&self, key: &Key) -> Rc<Conn> {
        let mut shared = self.shared.borrow_mut();
        if let Some(conn) = shared.get(key).filter(|conn| conn.is_alive()) {
            return Rc::clone(conn);
        }
        shared.retain(|_, conn| conn.is_alive());
        if shared.len() >= MOST_UNUSED {
            // Many identities have come and gone.
            shared.retain(|_, conn| conn.has_users() || conn.retire_if_idle());
        }
        let conn = self.open(key, ConnectionMode::Shared);
        shared.insert(key.clone(), Rc::clone(&conn));
        conn
    }

    /// A connection in the state `key` for `owner` alone: one that has this state already, else one that can
    /// be brought there without waiting, else a new one.
    pub fn pin(&self, key: &Key, owner: &Rc<Outbox>) -> Rc<Conn> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|conn| conn.is_alive());
        let found = idle.iter().rposition(|conn| *conn.key.borrow() == *key);
        let conn = match found {
            Some(at) => idle.swap_remove(at),
            None => match idle.iter().position(|conn| *conn.key.borrow() == Key::fresh()) {
                Some(at) => {
                    let conn = idle.swap_remove(at);
                    conn.move_to(key);
                    conn
                }
                None => self.open(key, ConnectionMode::Pinned),
            },
        };
        conn.set_owner(Some(Rc::clone(owner)));
        conn
    }

    /// Takes back a connection whose client needs it no longer. `clean`: nothing of the client's state is left
    /// on it.
    pub fn unpin(&self, conn: Rc<Conn>, clean: bool) {
        conn.set_owner(None);
        if !conn.is_alive() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        // A RESET would not do: messages of a subscription may be on their way, and the next client would take
        // them for its replies.
        if !clean || !conn.is_known() || !conn.is_idle() || idle.len() >= MOST_IDLE {
            conn.retire();
        } else {
            idle.push(conn);
        }
    }

    fn open(&self, key: &Key, mode: ConnectionMode) -> Rc<Conn> {
        let conn = Conn::new(&self.context, key, mode);
        dial::start(&conn, &self.backoff);
        let mut all = self.all.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|conn| conn.strong_count() > 0);
        }
        all.push(Rc::downgrade(&conn));
        conn
    }

    /// Redis answers nobody: ends the connections on which a reply has been waited for that long.
    pub fn give_up_after(&self, patience: Duration) {
        self.all.borrow().iter().filter_map(Weak::upgrade).for_each(|conn| conn.give_up_after(patience));
    }

    /// Closes everything that no client uses.
    pub fn close(&self) {
        self.idle.borrow_mut().drain(..).for_each(|conn| conn.retire());
    }
}
