//! Connections to Redis: shared ones that carry many clients' commands, and pinned ones for one client each.
//!
//! A connection has a [`Key`] (database, identity, protocol version, name). Clients with the same key share one
//! connection per worker thread, or several while one is busy with a big reply or a long command; clients of
//! different keys never do. A client with connection state takes one
//! of its own from the [`Pool`]; commands that change the key (SELECT, AUTH, HELLO, CLIENT SETNAME) move the
//! connection that they ran on, so it goes back to the pool under its new key. Whether clients need AUTH at all is
//! [`standing`](crate::standing)'s to know.

mod conn;
mod dial;
mod expected;
mod life;
mod loss;
mod plain;
mod pool;
mod pubsub;
mod replies;
mod scripts;

pub use conn::Conn;
pub use expected::{Expected, Fills, Kept, Pending, Retimed, Scripted, Setup, Special};
pub use loss::error_text;
pub use pool::{Pool, Way};

use std::rc::Rc;

use crate::session::{Identity, Label, Session};

/// The words of a request.
type Request = Vec<Vec<u8>>;

/// What commands on a connection run as. Only equals may share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Selected database.
    pub db: u32,
    /// Who is authenticated.
    pub identity: Identity,
    /// 2 or 3.
    pub resp: u8,
    /// What CLIENT LIST shows of the clients on it.
    pub label: Option<Rc<Label>>,
}

impl Key {
    /// The key of the connection that a client in this state needs.
    pub fn of(session: &Session) -> Self {
        Self {
            db: session.db,
            identity: session.identity.clone(),
            resp: session.resp,
            label: session.label.clone(),
        }
    }

    /// The state of a connection that has just been made.
    pub fn fresh() -> Self {
        Self { db: 0, identity: Identity::Unknown, resp: 2, label: None }
    }

    /// The commands that bring a connection from the state `self` to the state `wanted`, in order, each with whether
    /// it must succeed. `None`: there is no way, since nothing takes an AUTH back.
    fn way_to(&self, wanted: &Key) -> Option<Vec<(Setup, Request)>> {
        let mut way = vec![];
        let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect();
        let mut say = |request: &[&[u8]]| way.push((Setup::Must, words(request)));
        match &wanted.identity {
            identity if *identity == self.identity => {}
            // Only what has no rights: it is not known yet whether its client has any.
            Identity::Unknown if self.identity == Identity::Nobody => {}
            // Whether it is so shows when the connection has been made.
            Identity::Default if self.identity == Identity::Unknown => {}
            Identity::User(user) => match &user.0 {
                Some(name) => say(&[b"AUTH", name, &user.1]),
                None => say(&[b"AUTH", &user.1]),
            },
            _ => return None,
        }
        if wanted.resp != self.resp {
            // Redis refuses HELLO before AUTH where it wants one; a client in RESP3 has passed that.
            say(&[b"HELLO", wanted.resp.to_string().as_bytes()]);
        }
        if wanted.db != self.db {
            say(&[b"SELECT", wanted.db.to_string().as_bytes()]);
        }
        // What CLIENT LIST shows is nothing to wait for.
        let mut say = |request: &[&[u8]]| way.push((Setup::Ignore, words(request)));
        let nothing = Label::default();
        let label = |key: &Key| key.label.clone();
        let (before, after) = (label(self), label(wanted));
        let (before, after) = (before.as_deref().unwrap_or(&nothing), after.as_deref().unwrap_or(&nothing));
        if before.name != after.name {
            say(&[b"CLIENT", b"SETNAME", &after.name]);
        }
        if before.library != after.library {
            say(&[b"CLIENT", b"SETINFO", b"LIB-NAME", &after.library]);
        }
        if before.version != after.version {
            say(&[b"CLIENT", b"SETINFO", b"LIB-VER", &after.version]);
        }
        Some(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(from: &Key, to: &Key) -> Option<Vec<String>> {
        let text =
            |(_, words): (Setup, Request)| String::from_utf8_lossy(&words.join(b" ".as_slice())).into_owned();
        from.way_to(to).map(|way| way.into_iter().map(text).collect())
    }

    #[test]
    fn a_way_says_what_differs_and_no_more() {
        let fresh = Key::fresh();
        let joe = Identity::user(Some(b"joe"), b"pw");
        let label = Label { name: b"me".to_vec(), library: b"lib".to_vec(), version: vec![] };
        let key = Key { db: 3, identity: joe.clone(), resp: 3, label: Some(Rc::new(label)) };
        let all = ["AUTH joe pw", "HELLO 3", "SELECT 3", "CLIENT SETNAME me", "CLIENT SETINFO LIB-NAME lib"];
        assert_eq!(way(&fresh, &key).unwrap(), all);
        assert_eq!(way(&key, &key), Some(vec![]));
        let back = Key { identity: joe, ..Key::fresh() };
        let words = ["HELLO 2", "SELECT 0", "CLIENT SETNAME ", "CLIENT SETINFO LIB-NAME "];
        assert_eq!(way(&key, &back).unwrap(), words);
    }

    #[test]
    fn nothing_takes_an_auth_back() {
        let of = |identity| Key { identity, ..Key::fresh() };
        let user = of(Identity::user(None, b"pw"));
        for anonymous in [Identity::Unknown, Identity::Default, Identity::Nobody] {
            assert_eq!(way(&user, &of(anonymous.clone())), None);
            assert_eq!(way(&of(anonymous), &user).unwrap(), ["AUTH pw"]);
        }
        // Who has not been asked yet, who is let in without a password and who is not: none takes another's place.
        assert_eq!(way(&of(Identity::Default), &of(Identity::Unknown)), None);
        assert_eq!(way(&of(Identity::Default), &of(Identity::Nobody)), None);
        assert_eq!(way(&of(Identity::Nobody), &of(Identity::Default)), None);
    }
}
