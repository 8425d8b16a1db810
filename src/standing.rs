//! Whether Redis takes clients without AUTH for the default user, or wants AUTH first.
//!
//! Redis decides that when a connection is made, and a connection that was let in stays so when a password is set
//! later. A shared connection therefore must not carry a client that connected after that: each client without AUTH
//! needs proof that is younger than itself. Proof is the first `PING` of a fresh connection, or, on one that was let
//! in, `AUTH default` with any password: it succeeds exactly where a new connection would need none. That it fails may
//! be told by silence, so a `HELLO` stands behind it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::outbox::Outbox;

/// A question that has not been answered for so long is asked elsewhere: what stands before it may take long.
pub const OVERDUE: Duration = Duration::from_millis(50);

/// What is known, and who waits for more.
#[derive(Debug, Default)]
pub struct Standing {
    proof: Cell<Option<Proof>>,
    /// Why there is none, as of an attempt that began then.
    failure: RefCell<Option<(Instant, String)>>,
    /// When the question that is on its way was asked.
    asked: Cell<Option<Instant>>,
    waiting: RefCell<Vec<Rc<Outbox>>>,
}

#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The question was sent then or later.
    since: Instant,
    open: bool,
}

impl Standing {
    /// Whether a client that connected at `accepted`, and has wanted to know since `wanted`, is let in without AUTH.
    /// `None`: not known yet. The error is why it cannot be found out, for the client.
    pub fn of(&self, accepted: Instant, wanted: Instant) -> Option<Result<bool, String>> {
        if let Some(proof) = self.proof.get().filter(|proof| proof.since >= accepted) {
            return Some(Ok(proof.open));
        }
        let failure = self.failure.borrow();
        failure.as_ref().filter(|(since, _)| *since >= wanted).map(|(_, error)| Err(error.clone()))
    }

    /// The latest answer, however old.
    pub fn latest(&self) -> Option<bool> {
        self.proof.get().map(|proof| proof.open)
    }

    /// Notes that `client` waits. True: the caller is to ask now, perhaps again.
    pub fn wait(&self, client: &Rc<Outbox>, now: Instant) -> bool {
        self.waiting.borrow_mut().push(Rc::clone(client));
        let ask = self.asked.get().is_none_or(|since| now.saturating_duration_since(since) >= OVERDUE);
        if ask {
            self.asked.set(Some(now));
        }
        ask
    }

    /// An answer to a question that was asked at `since`, or later.
    pub fn proved(&self, since: Instant, open: bool) {
        if self.proof.get().is_none_or(|proof| proof.since <= since) {
            self.proof.set(Some(Proof { since, open }));
        }
        self.answered();
    }

    /// The question that is on its way will not be answered. `error`: nor would another one now.
    pub fn failed(&self, error: Option<String>) {
        if let (Some(since), Some(error)) = (self.asked.get(), error) {
            *self.failure.borrow_mut() = Some((since, error));
        }
        self.answered();
    }

    fn answered(&self) {
        self.asked.set(None);
        self.waiting.borrow_mut().drain(..).for_each(|client| client.wake());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_must_be_younger_than_the_client() {
        let standing = Standing::default();
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let (early, late) = (at(1), at(2));
        assert_eq!(standing.of(early, early), None);
        standing.proved(early, true);
        assert_eq!(standing.of(early, late), Some(Ok(true)));
        assert_eq!(standing.of(late, late), None);
        standing.proved(late, false);
        assert_eq!(standing.of(late, late), Some(Ok(false)));
        // An answer that was overtaken does not count.
        standing.proved(early, true);
        assert_eq!(standing.of(early, early), Some(Ok(false)));
    }

    #[test]
    fn a_failure_counts_for_those_who_waited_for_it() {
        let standing = Standing::default();
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        standing.asked.set(Some(early));
        standing.failed(Some("ERR no".to_owned()));
        assert_eq!(standing.of(late, early), Some(Err("ERR no".to_owned())));
        assert_eq!(standing.of(early, late), None);
    }
}
