//! Connections to Redis: shared ones that carry many clients' commands, and pinned ones for one client each.
//!
//! A connection has a [`Key`] (database, identity, protocol version). Clients with the same key share one
//! connection per worker thread; clients of different keys never do. A client with connection state takes one
//! of its own from the [`Pool`]; commands that change the key (SELECT, AUTH, HELLO) move the connection that
//! they ran on, so it goes back to the pool under its new key.

mod conn;
mod dial;
mod expected;
mod pool;
mod pubsub;
mod replies;

pub use conn::Conn;
pub use expected::{Expected, Pending, Setup};
pub use pool::Pool;

use crate::session::{Identity, Session};

/// What commands on a connection run as. Only equals may share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Selected database.
    pub db: u32,
    /// Who is authenticated.
    pub identity: Identity,
    /// 2 or 3.
    pub resp: u8,
}

impl Key {
    /// The key of the connection that a client in this state needs.
    pub fn of(session: &Session) -> Self {
        Self { db: session.db, identity: session.identity.clone(), resp: session.resp }
    }

    /// The state of a connection that has just been made, or reset.
    pub fn fresh() -> Self {
        Self { db: 0, identity: Identity::Anonymous, resp: 2 }
    }
}
