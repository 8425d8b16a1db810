//! Which keys are being computed, and who waits for them.
//!
//! After the miss of a key its client computes the value. Others that ask for the key meanwhile wait until it is filled,
//! for a bounded time, instead of all computing the same. What they get in the end is always what Redis says then: here
//! are no values. When the time of a computation is over, one of those who wait takes it up; the others go on waiting
//! as long as they may.
//!
//! It knows no sockets and no clock: moments are told, and whoever waits brings a waker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use hashbrown::{DefaultHashBuilder, HashMap};
use smallvec::{SmallVec, smallvec};

use super::{Clock, KeyHash, Moment};

/// Keys that are being computed. Of more, nobody waits for any.
const MOST_KEYS: usize = 100_000;
/// Clients that are known to compute the same key. Of more, one may wait for the others, if it asks again.
const MOST_COMPUTING: usize = 16;

/// One key that is being computed.
#[derive(Debug)]
struct Computation {
    /// The connections that have missed it.
    by: SmallVec<[u64; 2]>,
    /// How many invalidations had been seen when it began.
    clock: Clock,
    /// Not waited for from then on.
    until: Moment,
    waiting: HashMap<u64, Waker>,
}

/// A client that wants a key.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    /// The connection.
    pub client: u64,
    /// When it will not wait any more.
    pub deadline: Moment,
    /// Should it be its turn to compute: how many invalidations have been seen, and how long others may wait for it.
    pub clock: Clock,
    /// See there.
    pub longest: Moment,
}

/// Whether a waiting client goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It asks Redis now.
    Now,
    /// It is woken when there is news, and is to ask again then, or at this moment.
    Later(Moment),
}

/// The keys that are being computed.
#[derive(Debug, Default)]
pub struct Computations {
    open: DashMap<KeyHash, Computation, DefaultHashBuilder>,
    len: AtomicUsize,
}

impl Computations {
    /// Whether no key is being computed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// How many invalidations had been seen when somebody else began to compute the key. `None`: nobody else does, or
    /// this client does as well.
    pub fn begun(&self, key: KeyHash, client: u64, now: Moment) -> Option<Clock> {
        if self.is_empty() {
            return None;
        }
        let open = self.open.get(&key)?;
        (open.until > now && !open.by.contains(&client)).then_some(open.clock)
    }

    /// A client has been told that the key is not there: it computes, and others may wait for it for `longest`. If
    /// somebody else does so already, that does not make the time longer.
    pub fn missed(&self, key: KeyHash, client: u64, clock: Clock, now: Moment, longest: Moment) {
        let until = now + longest;
        match self.open.entry(key) {
            Entry::Occupied(mut open) => {
                let open = open.get_mut();
                if open.until <= now {
                    (open.by, open.clock, open.until) = (smallvec![client], clock, until);
                } else if open.by.len() < MOST_COMPUTING && !open.by.contains(&client) {
                    open.by.push(client);
                }
            }
            Entry::Vacant(slot) => {
                if self.len.load(Ordering::Relaxed) < MOST_KEYS {
                    let by = smallvec![client];
                    // Before anybody can take it away again.
                    self.len.fetch_add(1, Ordering::Relaxed);
                    slot.insert(Computation { by, clock, until, waiting: HashMap::default() });
                }
            }
        }
    }

    /// Whether it is the client's turn to ask Redis; if not, `waker` is woken when there is news. Who comes first when
    /// the time of a computation is over takes it up.
    pub fn wait(&self, key: KeyHash, waiter: Waiter, waker: &Waker, now: Moment) -> Turn {
        let Some(mut open) = self.open.get_mut(&key) else { return Turn::Now };
        let is_free = open.until <= now;
        if is_free {
            open.by = smallvec![waiter.client];
            (open.clock, open.until) = (waiter.clock, now + waiter.longest);
        }
        if is_free || waiter.deadline <= now || open.by.contains(&waiter.client) {
            open.waiting.remove(&waiter.client);
            return Turn::Now;
        }
        open.waiting.insert(waiter.client, waker.clone());
        Turn::Later(open.until.min(waiter.deadline))
    }

    /// The client does not wait any more.
    pub fn leave(&self, key: KeyHash, client: u64) {
        if let Some(mut open) = self.open.get_mut(&key) {
            open.waiting.remove(&client);
        }
    }

    /// The key is there: all who wait for it go on.
    pub fn filled(&self, key: KeyHash) {
        if self.is_empty() {
            return;
        }
        if let Some((_, open)) = self.open.remove(&key) {
            self.len.fetch_sub(1, Ordering::Relaxed);
            open.waiting.into_values().for_each(Waker::wake);
        }
    }

    /// What is being computed is not worth waiting for: one of those who wait takes it up, or whoever asks next.
    pub fn given_up(&self, key: KeyHash) {
        if self.is_empty() {
            return;
        }
        let Some(mut open) = self.open.get_mut(&key) else { return };
        open.until = 0;
        let waiting = std::mem::take(&mut open.waiting);
        drop(open);
        waiting.into_values().for_each(Waker::wake);
    }

    /// Forgets computations that nobody waits for any more; called now and then.
    pub fn expire(&self, now: Moment) {
        let mut dropped = 0;
        self.open.retain(|_, open| {
            let stays = open.until > now || !open.waiting.is_empty();
            dropped += usize::from(!stays);
            stays
        });
        self.len.fetch_sub(dropped, Ordering::Relaxed);
        if self.open.capacity() > 4 * self.len.load(Ordering::Relaxed) + 4096 {
            self.open.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;

    const KEY: KeyHash = 7;
    const LONGEST: Moment = 100;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct World {
        all: Computations,
        woken: Arc<Woken>,
    }

    impl World {
        /// The key was missed by client 1 at moment 0.
        fn new() -> World {
            let world = World { all: Computations::default(), woken: Arc::default() };
            world.all.missed(KEY, 1, 5, 0, LONGEST);
            world
        }

        /// The client wants the key and has done so since `since`.
        fn wait(&self, client: u64, since: Moment, now: Moment) -> Turn {
            let waiter = Waiter { client, deadline: since + LONGEST, clock: 6, longest: LONGEST };
            self.all.wait(KEY, waiter, &Waker::from(Arc::clone(&self.woken)), now)
        }

        fn woken(&self) -> u32 {
            self.woken.0.swap(0, Ordering::Relaxed)
        }
    }

    #[test]
    fn others_wait_until_it_is_filled() {
        let w = World::new();
        assert_eq!(w.all.begun(KEY, 2, 1), Some(5));
        assert_eq!(w.all.begun(KEY, 1, 1), None, "not for itself");
        assert_eq!(w.all.begun(KEY + 1, 2, 1), None);
        assert_eq!((w.wait(2, 1, 1), w.wait(3, 1, 1)), (Turn::Later(100), Turn::Later(100)));
        w.all.filled(KEY);
        assert_eq!((w.woken(), w.all.is_empty()), (2, true));
        assert_eq!((w.wait(2, 1, 2), w.wait(3, 1, 2)), (Turn::Now, Turn::Now));
        assert_eq!(w.all.begun(KEY, 4, 2), None);
    }

    #[test]
    fn when_its_time_is_over_one_takes_it_up() {
        let w = World::new();
        assert_eq!((w.wait(2, 40, 40), w.wait(3, 50, 50)), (Turn::Later(100), Turn::Later(100)));
        assert_eq!(w.all.begun(KEY, 4, 100), None, "a newcomer does not wait for it");
        assert_eq!((w.wait(3, 50, 100), w.wait(2, 40, 100)), (Turn::Now, Turn::Later(140)));
        assert_eq!(w.all.begun(KEY, 1, 101), Some(6), "the first one has become one of the others");
        assert_eq!(w.wait(2, 40, 140), Turn::Now, "nobody waits longer than he may");
        w.all.missed(KEY, 2, 6, 141, LONGEST);
        assert_eq!(w.all.begun(KEY, 2, 142), None, "he computes as well");
        assert_eq!(w.all.begun(KEY, 4, 200), None, "which makes the time no longer");
    }

    #[test]
    fn what_is_given_up_is_taken_up_by_one() {
        let w = World::new();
        assert_eq!((w.wait(2, 1, 1), w.wait(3, 2, 2)), (Turn::Later(100), Turn::Later(100)));
        w.all.given_up(KEY);
        assert_eq!(w.woken(), 2);
        assert_eq!((w.wait(3, 2, 3), w.wait(2, 1, 3)), (Turn::Now, Turn::Later(101)));
        w.all.filled(KEY);
        assert_eq!(w.woken(), 1);
    }

    #[test]
    fn a_miss_when_its_time_is_over_begins_anew() {
        let w = World::new();
        assert_eq!(w.wait(2, 99, 99), Turn::Later(100));
        w.all.missed(KEY, 4, 6, 100, LONGEST);
        assert_eq!(w.wait(2, 99, 100), Turn::Later(199));
        assert_eq!(w.wait(4, 100, 101), Turn::Now, "whoever computes");
    }

    #[test]
    fn nothing_is_kept_without_need() {
        let w = World::new();
        assert_eq!(w.wait(2, 1, 1), Turn::Later(100));
        w.all.expire(100);
        assert!(!w.all.is_empty(), "somebody waits");
        w.all.leave(KEY, 2);
        w.all.expire(99);
        assert!(!w.all.is_empty());
        w.all.expire(100);
        assert!(w.all.is_empty());
        w.all.filled(KEY);
        w.all.given_up(KEY);
        assert_eq!(w.woken(), 0);
        (0..2 * MOST_KEYS as u64).for_each(|key| w.all.missed(key, 1, 5, 0, LONGEST));
        assert_eq!(w.all.open.len(), MOST_KEYS);
        w.all.expire(LONGEST);
        assert!(w.all.is_empty());
    }
}
