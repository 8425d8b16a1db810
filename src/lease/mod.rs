//! Misses and fills: which value may have been read from the database before an invalidation.
//!
//! A client that misses a key reads the database and writes what it found: it fills the key. If a tag of the key is
//! invalidated in between, the fill is stale and must not be readable. [`Epochs`] numbers the invalidations as the feed
//! shows them; [`Leases`] remembers for each miss how many there had been when the client was told of it. A later
//! write of the key is compared with what has been invalidated since.
//!
//! Which miss belongs to a fill? Of a connection that serves one task at a time: the oldest since it has last found the key
//! there, and with it all of them. Where tasks share connections (pools, multiplexing) that cannot be seen, and the misses of a
//! key are a bag: the oldest one decides, and the youngest one is taken out. That way the bag is never younger than the misses
//! that are really open, whoever fills first, and it is empty once each of them was filled; when the time of an old one is over,
//! the younger one for which it stood is open again. The price is that some fresh fills are undone, so the bag is used
//! for clients that have given themselves away: by requests of several connections under way at once, as long as their
//! fills have not disproved it, or by fills over connections that had not missed the key, or not so often.
//!
//! Not every write is a fill: who has changed the database may write the new value at once, unread. That takes out a miss of
//! somebody else, and the bag is younger then than what is open. It is told apart only where a connection has been told of the
//! latest invalidation of one of its tags, and nothing shows that tasks share it: then no miss is taken out. Where they do, it
//! may as well be another task's fill, and misses that stay in the bag although they were filled would keep a hot key from being
//! cached.
//!
//! [`Computations`] are about the same misses from another side: who may wait for whose fill.
//!
//! It knows no sockets and no clock: moments are told.

mod computing;
mod epochs;
mod hits;
mod open;
pub mod script;
mod sharing;
pub mod trouble;

pub use crate::command::Fill;
pub use computing::{Computations, Turn, Waiter};
pub use epochs::{BEFORE_ALL, Clock, Epochs, Expected};
pub use hits::{Along, Hits};

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use hashbrown::DefaultHashBuilder;

use open::{ANYBODY, Miss, Open};
use sharing::{Shares, Sharing};

/// Milliseconds since the process started.
pub type Moment = u64;

/// A key, hashed with its database. That two keys share one costs a miss too many at worst.
pub type KeyHash = u64;

/// Keys with open misses. Beyond, all are forgotten, and every write counts as a fill of an old miss for a while.
const MOST_KEYS: usize = 200_000;
/// How often it is said that the process runs, where fills are watched for a second and a half or longer.
const PULSE: Moment = 250;
/// However short that time is, not more often than this.
const SHORTEST_PULSE: Moment = 25;
/// Slots for misses of keys that nothing labels yet.
const SLOTS: usize = 1 << 15;

/// Misses of keys that nothing labels yet, which share it.
#[derive(Debug, Default)]
struct Slot {
    /// When the last of them is over. Read without the lock: nearly always it says that there are none.
    until: AtomicU64,
    oldest: Mutex<Clock>,
}

impl Slot {
    fn missed(&self, clock: Clock, now: Moment, until: Moment) {
        let mut oldest = self.oldest();
        let before = self.until.load(Ordering::Acquire);
        // Another thread may have been quicker with a younger one.
        *oldest = if before <= now { clock } else { clock.min(*oldest) };
        self.until.store(before.max(until), Ordering::Release);
    }

    /// The clock of the oldest, if there are any.
    #[inline]
    fn open(&self, now: Moment) -> Option<Clock> {
        (self.until.load(Ordering::Acquire) > now).then(|| *self.oldest())
    }

    fn oldest(&self) -> MutexGuard<'_, Clock> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often it is to be said that the process runs, if that is the shortest time that fills are watched: often enough to notice
/// when it stood still for half of it.
pub fn pulse(shortest: Moment) -> Moment {
    match shortest {
        0 => PULSE,
        _ => (shortest / 6).clamp(SHORTEST_PULSE, PULSE),
    }
}

/// Whose miss or fill it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The connection.
    pub id: u64,
    /// Where it comes from: connections of one pool have that in common.
    pub host: u64,
}

/// Until when a miss would be open that came when its connection last found the key there: what it had missed before, it had got
/// by then.
pub type Found = Option<Moment>;

/// A write that may be a fill.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Whose it is.
    pub client: Client,
    /// What it does to its key.
    pub fill: Fill,
    /// When its connection last found the key there.
    pub found: Found,
    /// Whether it goes along with that of another key.
    pub along: Along,
    /// When it is.
    pub now: Moment,
}

/// What is known about a write that may be a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// When the miss that decides was; `None`: there was none, and it fills nothing as far as is known.
    pub clock: Option<Clock>,
    /// Its connection has a miss of the key, and nothing has shown that it serves several tasks; else it may be the fill of a
    /// miss that is not known here.
    pub is_own: bool,
    /// The miss that decides is known to be open: its connection's own, or, where tasks share connections, one from there.
    pub is_known: bool,
    /// That miss is the one that decides: it is not even presumed that the connection serves several tasks.
    pub is_sure: bool,
    /// There is no miss of the key that is known, or it only goes on with a fill of its own, and its connection serves one task
    /// at a time as far as is known: what the connection has been told the writer knows.
    pub is_lone: bool,
    /// It would show that tasks share connections, unless it goes along with another key.
    pub is_ahead: bool,
}

/// The misses that are open.
#[derive(Debug)]
pub struct Leases {
    hasher: DefaultHashBuilder,
    open: DashMap<KeyHash, Open, DefaultHashBuilder>,
    len: AtomicUsize,
    sharing: Sharing,
    /// Until then a write without a miss counts as a fill of one that is older than all: misses have been lost.
    suspect_until: AtomicU64,
    /// Until then it is not known whether that is so.
    feared_until: AtomicU64,
    /// When it was last said that the process runs.
    ran_at: AtomicU64,
    /// Misses of keys that nothing labels yet.
    slots: Box<[Slot]>,
}

impl Default for Leases {
    fn default() -> Self {
        Self::new()
    }
}

impl Leases {
    /// No misses.
    pub fn new() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            open: DashMap::default(),
            len: AtomicUsize::new(0),
            sharing: Sharing::default(),
            suspect_until: AtomicU64::new(0),
            feared_until: AtomicU64::new(0),
            ran_at: AtomicU64::new(0),
            slots: (0..SLOTS).map(|_| Default::default()).collect(),
        }
    }

    /// The hash under which the misses of a key are kept.
    pub fn hash(&self, db: u32, key: &[u8]) -> KeyHash {
        self.hasher.hash_one((db, key))
    }

    /// A client has been told that the key is not there, when `clock` invalidations had been seen.
    pub fn missed(&self, key: KeyHash, client: Client, clock: Clock, now: Moment, window: Moment) {
        if self.len.load(Ordering::Relaxed) >= MOST_KEYS {
            self.lose(now + window);
        }
        let miss = Miss::new(client, clock, now + window);
        match self.open.entry(key) {
            Entry::Occupied(mut open) => {
                open.get_mut().expire(now);
                open.get_mut().add(miss);
            }
            Entry::Vacant(slot) => {
                let mut open = Open::default();
                open.add(miss);
                // Before anybody can take it away again.
                self.len.fetch_add(1, Ordering::Relaxed);
                slot.insert(open);
            }
        }
    }

    /// Fills whose reply their client may not have got, each with the clock of its miss: it may fill again, over any
    /// connection.
    pub fn give_back(&self, fills: &[(KeyHash, Clock)], host: u64, now: Moment, window: Moment) {
        for (key, clock) in fills {
            self.missed(*key, Client { id: ANYBODY, host }, *clock, now, window);
        }
    }

    /// Fills of the client that did nothing, since others had filled their keys: it has been told that these are there. Their
    /// misses are taken out, perhaps wrongly: should it write all the same, they decide.
    pub fn outdone(&self, keys: impl Iterator<Item = KeyHash>, client: Client) {
        for key in keys {
            if let Some(mut open) = self.open.get_mut(&key) {
                open.outdone(client);
            }
        }
    }

    /// As [`Leases::missed`], of a key that has no tags, where explicit labels have not been used yet: the client may
    /// label the key when it fills it. Costs next to nothing and remembers roughly.
    pub fn missed_unlabelled(&self, key: KeyHash, clock: Clock, now: Moment, window: Moment) {
        self.slot(key).missed(clock, now, now + window);
    }

    fn slot(&self, key: KeyHash) -> &Slot {
        &self.slots[key as usize % SLOTS]
    }

    /// Whether nothing is open and nothing is suspect, so that no write is a fill that matters.
    #[inline]
    pub fn is_idle(&self, now: Moment) -> bool {
        self.len.load(Ordering::Relaxed) == 0 && !self.is_feared(now)
    }

    /// Whether a write of the key may be a fill that matters.
    #[inline]
    pub fn may_be_filled(&self, key: KeyHash, now: Moment) -> bool {
        self.is_feared(now)
            || self.filled_unlabelled(key, now).is_some()
            || (self.len.load(Ordering::Relaxed) > 0 && self.open.contains_key(&key))
    }

    /// Which miss decides whether the written value is stale? `told`: whether the connection has been told of the latest
    /// invalidation of one of the key's tags; what it then writes and has not missed is most likely new, and no fill.
    pub fn filled(&self, key: KeyHash, write: Write, told: impl FnOnce() -> bool) -> Filled {
        let Write { client, now, .. } = write;
        let found = self.take(key, write, told);
        let is_own = found.is_some_and(|found| found.is_own);
        let suspect = self.is_suspect(now) && !is_own;
        let clock = if suspect { Some(BEFORE_ALL) } else { found.and_then(|found| found.clock) };
        let shares = self.sharing.is_known(client.host, now) || self.sharing.is_lost(now);
        let is_lone = found.is_none_or(|found| found.is_lone) && !shares;
        let is = |what: fn(&Filled) -> bool| found.as_ref().is_some_and(what);
        let [is_known, is_sure, is_ahead] =
            [is(|found| found.is_known), is(|found| found.is_sure), is(|found| found.is_ahead)];
        Filled { clock, is_own, is_known, is_sure, is_lone, is_ahead }
    }

    /// The client deletes the key as a whole, and may be about to fill it anew.
    pub fn cleared(&self, key: KeyHash, client: Client) {
        if !self.is_empty()
            && let Some(mut open) = self.open.get_mut(&key)
        {
            open.clear(client);
        }
    }

    /// Whether a write without a miss may be the fill of one that was seen by somebody who has died.
    pub fn is_suspect(&self, now: Moment) -> bool {
        self.suspect_until.load(Ordering::Relaxed) > now
    }

    /// For how long that is so.
    pub fn suspects_for(&self, now: Moment) -> Moment {
        self.suspect_until.load(Ordering::Relaxed).saturating_sub(now)
    }

    /// Whether that is so, or cannot be told at the moment.
    pub fn is_feared(&self, now: Moment) -> bool {
        self.is_suspect(now) || self.feared_until.load(Ordering::Relaxed) > now
    }

    /// Until then nobody can tell whether other proxies live. Fills of keys with tags ask Redis that themselves.
    pub fn fear(&self, until: Moment) {
        self.feared_until.fetch_max(until, Ordering::Relaxed);
    }

    /// The oldest miss of the key, also of those that were taken for the fill of somebody without one. It stays open: whoever
    /// writes the key may label it afterwards.
    pub fn oldest(&self, key: KeyHash, now: Moment) -> Option<Clock> {
        let open = self.open.get(&key);
        let misses = open.iter().flat_map(|open| &open.misses);
        let oldest = misses.filter(|miss| miss.may_be_filled(now)).map(|miss| miss.clock).min();
        oldest.into_iter().chain(self.filled_unlabelled(key, now)).min()
    }

    /// When the miss was that decides about labels which the client gives to a key: as old is what the key has been filled with.
    /// Closes none, since that is what fills do, unless nobody is known to have filled it. `is_late`: that may be forgotten.
    pub fn labelled(&self, key: KeyHash, client: Client, is_late: bool, now: Moment) -> Option<Clock> {
        let last = self
            .open
            .get(&key)
            .and_then(|open| open.filled.last().map(|filling| filling.miss).filter(|miss| miss.until > now));
        let shared = self.sharing.is_presumed(client.host, now);
        match last {
            Some(last) if last.is_own(client) && !shared => Some(last.clock),
            _ if is_late || self.is_suspect(now) => Some(BEFORE_ALL),
            Some(last) => self.filled_unlabelled(key, now).into_iter().chain([last.clock]).min(),
            // As far as is known nobody has filled it.
            None => {
                let write = Write { client, fill: Fill::Whole, found: None, along: Along::No, now };
                let filled = self.filled(key, write, || false);
                self.clock_of_labelled(filled, key, now)
            }
        }
    }

    /// When the miss was that decides about the fill of a key with labels. Until labels are used, misses of keys without tags
    /// are kept apart: unless it is sure whose miss that is, the older one decides.
    pub fn clock_of_labelled(&self, filled: Filled, key: KeyHash, now: Moment) -> Option<Clock> {
        match filled.is_sure {
            true => filled.clock,
            false => filled.clock.into_iter().chain(self.filled_unlabelled(key, now)).min(),
        }
    }

    /// As [`Leases::filled`], of a key that has explicit labels only and that [`Leases::missed_unlabelled`] may know.
    pub fn filled_unlabelled(&self, key: KeyHash, now: Moment) -> Option<Clock> {
        self.slot(key).open(now)
    }

    fn take(&self, key: KeyHash, write: Write, told: impl FnOnce() -> bool) -> Option<Filled> {
        if self.len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut open = self.open.get_mut(&key)?;
        open.expire(write.now);
        if write.fill == Fill::Perhaps {
            // What it would fill is only looked up: if it does not write the key, its client may still fill it.
            // As young as its client's last look, since it need not be the end of what began with an earlier one.
            let mut open = open.clone();
            return self.take_of(&mut open, Write { found: Some(Moment::MAX), ..write }, told);
        }
        self.take_of(&mut open, write, told)
    }

    fn take_of(&self, open: &mut Open, write: Write, told: impl FnOnce() -> bool) -> Option<Filled> {
        let Write { client, fill, along, now, .. } = write;
        let own = |miss: &Miss| miss.is_own(client) && miss.owed > 0;
        let begun = open.begun(write, self.sharing.of(client.host, now));
        let is_own = begun.is_some() || open.misses.iter().any(own);
        let is_unread = begun.is_none() && !open.misses.iter().any(|miss| miss.is_own(client));
        let is_new = is_unread && told();
        let connections = self.sharing.connections(client.host);
        let may_tell = fill != Fill::Perhaps && !is_new && (is_own || along != Along::Yes);
        let is_telling = may_tell && open.is_telling(client, is_own, connections);
        let is_ahead = is_telling && !is_own && along == Along::Perhaps;
        if is_telling && !is_ahead {
            self.sharing.filled(client.host, is_own, now);
        }
        let shares = self.sharing.of(client.host, now);
        let misses_anew = |miss: &Miss| miss.is_own(client) && miss.is_open() && !miss.left;
        let goes_on = begun.is_some() && !open.misses.iter().any(misses_anew);
        let others = open.may_go_on(write).filter(|_| shares == Shares::Known);
        let near = |miss: &Miss| miss.client.host == client.host && miss.is_open();
        let is_known = is_own || (shares != Shares::No && open.misses.iter().any(near));
        let decides = match is_new && shares == Shares::Presumed {
            // Unless tasks do share connections nobody's miss is filled by that, and each is to be filled yet.
            true => open.clone().decide(write, begun, shares)?,
            false => open.decide(write, begun, shares)?,
        };
        open.pay(client);
        open.fill(write, decides, begun, shares);
        let is_own = is_own && shares != Shares::Known;
        Some(Filled {
            clock: others.into_iter().chain([decides.clock]).min(),
            is_own,
            is_known,
            is_sure: is_own && shares == Shares::No,
            is_lone: goes_on && shares == Shares::No,
            is_ahead,
        })
    }

    /// So many writes of a connection from there that would have shown that tasks share connections, had they not gone along with
    /// another key, did not.
    pub fn went_alone(&self, host: u64, writes: u32, now: Moment) {
        (0..writes).for_each(|_| self.sharing.filled(host, false, now));
    }

    /// Whether tasks of that host are known to share connections, or that is to be presumed.
    pub fn may_share(&self, host: u64, now: Moment) -> bool {
        self.sharing.is_presumed(host, now)
    }

    /// A client from there has connected.
    pub fn connected(&self, host: u64) {
        self.sharing.connected(host);
    }

    /// One has gone.
    pub fn disconnected(&self, host: u64) {
        self.sharing.disconnected(host);
    }

    /// Requests of several connections from there are under way at the same time. True: the other proxies are to know,
    /// because less can be seen of it there.
    pub fn busy(&self, host: u64, now: Moment) -> bool {
        self.sharing.busy(host, now)
    }

    /// Whether tasks of any host are known to share connections: whoever goes on without this memory must assume it.
    pub fn knows_sharing(&self, now: Moment) -> bool {
        self.sharing.is_known_of_any(now)
    }

    /// Somebody who knows better says that tasks share connections.
    pub fn assume_sharing(&self, now: Moment) {
        self.sharing.told(now);
    }

    /// Misses have been lost: until `until` a write without a miss counts as a fill of one older than all. Nor is it
    /// known any more whose tasks share connections.
    pub fn suspect(&self, until: Moment) {
        self.suspect_fills(until);
        self.sharing.lost(until);
    }

    /// Misses have been lost, or were not taken for such: until `until` a write without one counts as a fill of one older
    /// than all.
    pub fn suspect_fills(&self, until: Moment) {
        self.suspect_until.fetch_max(until, Ordering::Relaxed);
    }

    /// The process runs. If it stood still for half of the shortest time that fills are watched, that of misses may be over
    /// though their clients have lost none.
    #[inline]
    pub fn runs(&self, now: Moment, shortest: Moment, longest: Moment) {
        if self.stood_still(now, shortest) {
            self.suspect_fills(now + longest);
        }
        // Who sees this sees what follows from it.
        self.ran_at.store(now, Ordering::Release);
    }

    /// Whether it did, and nobody has noticed.
    #[inline]
    pub fn stood_still(&self, now: Moment, shortest: Moment) -> bool {
        let still = now.saturating_sub(self.ran_at.load(Ordering::Acquire));
        shortest > 0 && still > (shortest / 2).max(3 * pulse(shortest))
    }

    fn lose(&self, until: Moment) {
        self.suspect(until);
        self.drop_where(|_| true);
    }

    /// Counted one by one: others add at the same time.
    fn drop_where(&self, mut goes: impl FnMut(&mut Open) -> bool) {
        let mut dropped = 0;
        self.open.retain(|_, open| {
            let goes = goes(open);
            dropped += usize::from(goes);
            !goes
        });
        self.len.fetch_sub(dropped, Ordering::Relaxed);
    }

    /// Whether misses are open at that moment, so that whoever goes on without this memory must be careful.
    pub fn has_open(&self, now: Moment) -> bool {
        self.open.iter().any(|open| open.misses.iter().any(|miss| miss.until > now && miss.is_open()))
            // They matter if the next one has other rules.
            || self.slots.iter().any(|slot| slot.open(now).is_some())
            || self.suspect_until.load(Ordering::Relaxed) > now
    }

    /// How many keys have open misses.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether no key has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets misses whose time is over; called now and then.
    pub fn expire(&self, now: Moment) {
        self.drop_where(|open| {
            open.expire(now);
            open.is_empty()
        });
        if self.open.capacity() > 4 * self.len() + 4096 {
            self.open.shrink_to_fit();
        }
        self.sharing.expire(now);
    }
}

#[cfg(test)]
mod tests;
