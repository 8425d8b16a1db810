//! How the connections of a host are used: does each serve one task at a time, or do tasks share them?
//!
//! It cannot be seen, but it gives itself away. What shows it: fills over connections that had not missed the key, or not so
//! often. What suggests it: requests of several connections under way at once. What disproves a suggestion: fills of keys that
//! a few of many connections had missed, each over its own. Nothing is shown by what a connection writes that has been told of
//! the latest invalidation of one of its tags, or that goes along with a key that it has missed.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use hashbrown::DefaultHashBuilder;

use super::Moment;

/// So many fills without an own miss, within [`MEMORY`], show that tasks share connections, if they are not less than one in
/// [`RARE`] of those that could have shown it.
pub(super) const SHOWN: u32 = 4;
const RARE: u32 = 64;
/// So many fills that could have shown it, and did not, show that each connection serves one task at a time.
pub(super) const PROOF: u32 = 32;
/// How long it is remembered, of hosts without connections, what fills and requests tell about them, in milliseconds; and that
/// nothing is shared, of any.
pub(super) const MEMORY: Moment = 60_000;

/// Whether tasks of a host share connections: then a miss on one may be filled over another, even if that one has a miss of its
/// own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shares {
    /// Nothing says so.
    No,
    /// It is to be presumed.
    Presumed,
    /// It is known.
    Known,
}

/// What is known about one host: fills from there, of keys that had been missed over other connections, too. Who shares
/// connections may fill such a key over the wrong one.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Those without a miss of the connection's own.
    without: u32,
    fills: u32,
    since: Moment,
    /// Requests of several connections were under way at the same time, and until then that counts even if the host has no
    /// connections any more: where that happens, it is taken for granted that they are shared, until enough fills have shown
    /// that they are not.
    busy_until: Moment,
    connections: usize,
}

impl Host {
    /// Whether tasks there share connections, as fills have shown. A quiet time does not change that.
    fn shows(&self, now: Moment) -> bool {
        let lasts = self.connections > 0 || self.is_fresh(now);
        lasts && self.without >= SHOWN && self.without >= self.fills / RARE
    }

    /// Whether that is to be presumed.
    fn suggests(&self, now: Moment) -> bool {
        let lasts = self.busy_until > now || (self.busy_until > 0 && self.connections > 0);
        lasts && !(self.is_fresh(now) && self.is_disproved())
    }

    fn is_disproved(&self) -> bool {
        self.fills >= PROOF + self.without * RARE
    }

    fn is_fresh(&self, now: Moment) -> bool {
        self.since + 2 * MEMORY > now
    }

    /// What was long ago weighs less. That does not make it disproved, nor what was shown or disproved void.
    fn fade(&mut self, now: Moment) {
        let least = if self.shows(now) { SHOWN } else { 0 };
        (self.without, self.fills) = match (self.is_fresh(now), self.is_disproved()) {
            (false, _) if least == 0 => (0, 0),
            (true, true) => (self.without / 4, (self.fills / 4).max(PROOF + self.without / 4 * RARE)),
            _ => (self.without.div_ceil(4).max(least), self.fills / 4),
        };
        self.since = now;
    }
}

/// What is known about all hosts.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    hosts: DashMap<u64, Host, DefaultHashBuilder>,
    /// Until then it is taken for granted of all: what was known has been lost.
    lost_until: AtomicU64,
    /// Until then somebody who knows has said so, of all.
    told_until: AtomicU64,
}

impl Sharing {
    fn host(&self, host: u64) -> Host {
        self.hosts.get(&host).map_or_else(Host::default, |one| *one)
    }

    /// A client from there has connected.
    pub fn connected(&self, host: u64) {
        self.hosts.entry(host).or_default().connections += 1;
    }

    /// One has gone.
    pub fn disconnected(&self, host: u64) {
        if let Some(mut known) = self.hosts.get_mut(&host) {
            known.connections = known.connections.saturating_sub(1);
        }
    }

    /// How many there are.
    pub fn connections(&self, host: u64) -> usize {
        self.host(host).connections
    }

    /// A fill that could have shown it came over a connection with a miss of its own, or without.
    pub fn filled(&self, host: u64, is_own: bool, now: Moment) {
        let mut known = self.hosts.entry(host).or_default();
        if known.since + MEMORY <= now {
            known.fade(now);
        }
        known.fills = known.fills.saturating_add(1);
        known.without += u32::from(!is_own);
    }

    /// Requests of several connections from there are under way at the same time. True: that suggests something, and had not
    /// been noted lately.
    pub fn busy(&self, host: u64, now: Moment) -> bool {
        let until = now + 2 * MEMORY;
        if self.host(host).busy_until + MEMORY / 2 > until {
            return false;
        }
        let mut known = self.hosts.entry(host).or_default();
        known.busy_until = until;
        known.suggests(now)
    }

    /// Whether tasks from there share connections.
    pub fn of(&self, host: u64, now: Moment) -> Shares {
        match () {
            _ if self.is_known(host, now) => Shares::Known,
            _ if self.is_presumed(host, now) => Shares::Presumed,
            _ => Shares::No,
        }
    }

    /// Whether it is known that they do.
    pub fn is_known(&self, host: u64, now: Moment) -> bool {
        self.told_until.load(Ordering::Relaxed) > now || self.host(host).shows(now)
    }

    /// Whether that is known, or to be presumed.
    pub fn is_presumed(&self, host: u64, now: Moment) -> bool {
        self.is_known(host, now) || self.host(host).suggests(now) || self.is_lost(now)
    }

    /// Whether what was known has been lost.
    pub fn is_lost(&self, now: Moment) -> bool {
        self.lost_until.load(Ordering::Relaxed) > now
    }

    /// Whether tasks of any host are known to share connections.
    pub fn is_known_of_any(&self, now: Moment) -> bool {
        let told = self.lost_until.load(Ordering::Relaxed).max(self.told_until.load(Ordering::Relaxed));
        told > now || self.hosts.iter().any(|one| one.shows(now))
    }

    /// Somebody who knows better says that tasks share connections.
    pub fn told(&self, now: Moment) {
        self.told_until.fetch_max(now + MEMORY, Ordering::Relaxed);
    }

    /// It is not known any more whose tasks share connections, and can be known again some time after `until`.
    pub fn lost(&self, until: Moment) {
        self.lost_until.fetch_max(until + MEMORY, Ordering::Relaxed);
    }

    /// Forgets hosts that are gone.
    pub fn expire(&self, now: Moment) {
        self.hosts.retain(|_, one| one.connections > 0 || one.is_fresh(now) || one.busy_until > now);
    }
}
