//! File descriptors: as many as are needed, and who gets them.
//!
//! Each client takes a place, and so does what is opened for one: a connection to Redis, a file. There are as many places
//! as the system allows descriptors, less those that the proxy itself needs, so that it always finds one for the
//! feed, a fan-out, the journal or a health check.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the proxy itself has open at a time: the log, signals, the journal, the control thread's runtime and connections, names
/// being looked up, files being read.
const OWN: usize = 48;
/// What a worker has open besides a socket for each address.
const PER_WORKER: usize = 6;
/// Connections to Redis that the clients of a worker share, in ordinary cases.
const SHARED: usize = 8;
/// Of so many descriptors one is for a connection to the admin address, between these bounds.
const ADMIN_SHARE: usize = 16;
const LEAST_ADMIN: usize = 8;
const MOST_ADMIN: usize = 256;

static TABLE: Table = Table { taken: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) };

/// Who has how many places.
#[derive(Debug)]
struct Table {
    taken: AtomicUsize,
    most: AtomicUsize,
}

impl Table {
    fn take(&'static self) -> Option<Place> {
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.most.load(Ordering::Relaxed) {
            return Some(Place(self));
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

/// The right to have one descriptor open; given back when it is dropped.
#[derive(Debug)]
pub struct Place(&'static Table);

impl Place {
    /// One of those that are left, if there are any.
    pub fn take() -> Option<Self> {
        TABLE.take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the configuration asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Most clients at a time.
    pub clients: usize,
    /// Most connections that belong to one client each.
    pub pinned: usize,
    /// Worker threads.
    pub workers: usize,
    /// Addresses that each of them listens at.
    pub addresses: usize,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Most clients at a time.
    pub clients: usize,
    /// Most connections to the admin address.
    pub admin: usize,
}

/// Raises the soft limit of the process as far as it must be, and distributes what there is. The error is one line for the
/// user.
pub fn provide(wanted: Wanted) -> Result<Granted, String> {
    let limit = getrlimit(Resource::Nofile);
    let count = |limit: Option<u64>| limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let (soft, hard) = (count(limit.current), count(limit.maximum));
    let needed = wanted.needed();
    let mut allowed = soft.max(needed.min(hard));
    if allowed > soft {
        let raised = Rlimit { current: Some(allowed as u64), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files (ulimit -n) stays {soft}: it cannot be raised to {allowed}");
            allowed = soft;
        }
    }
    let (places, granted) = wanted.within(allowed)?;
    TABLE.most.store(places, Ordering::Relaxed);
    if granted.clients < wanted.clients {
        let text = format!(
            "max_clients is {} instead of {}: {allowed} files may be open (ulimit -n, hard limit), and {needed} would be needed, \
             two per client as far as upstream.max_pinned goes",
            granted.clients, wanted.clients
        );
        // Where next to nothing is missing of the default, nobody has to do anything.
        if granted.clients < wanted.clients / 10 * 9 {
            tracing::warn!("{text}")
        } else {
            tracing::info!("{text}")
        }
    }
    Ok(granted)
}

impl Wanted {
    /// What the proxy itself needs, apart from the admin address.
    fn own(&self) -> usize {
        OWN + self.workers * (PER_WORKER + self.addresses)
    }

    fn shared(&self) -> usize {
        self.workers * SHARED
    }

    /// Descriptors for all that is wanted. Whoever is let in finds a connection of its own, if it needs one.
    fn needed(&self) -> usize {
        self.clients + self.pinned.min(self.clients) + self.shared() + self.own() + MOST_ADMIN
    }

    /// The places among so many descriptors, and what is left of the wishes.
    fn within(&self, allowed: usize) -> Result<(usize, Granted), String> {
        let admin = (allowed / ADMIN_SHARE).clamp(LEAST_ADMIN, MOST_ADMIN);
        let places = allowed.saturating_sub(self.own() + admin);
        let for_clients = places.saturating_sub(self.shared());
        let clients = self.clients.min(for_clients.saturating_sub(self.pinned).max(for_clients / 2));
        if clients == 0 {
            let least = self.own() + LEAST_ADMIN + self.shared() + 2;
            return Err(format!(
                "only {allowed} files may be open (ulimit -n): allow {least}, and two more for each further client"
            ));
        }
        Ok((places, Granted { clients, admin }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { clients: 10_000, pinned: 10_000, workers: 1, addresses: 1 };

    #[test]
    fn what_is_needed_is_enough_and_one_less_is_not() {
        for wanted in
            [WANTED, Wanted { pinned: 100, ..WANTED }, Wanted { workers: 8, addresses: 3, ..WANTED }]
        {
            let (places, granted) = wanted.within(wanted.needed()).unwrap();
            assert_eq!(granted, Granted { clients: 10_000, admin: MOST_ADMIN });
            assert!(places >= 10_000 + wanted.pinned, "{places}");
            let (_, granted) = wanted.within(wanted.needed() - 1).unwrap();
            assert_eq!(granted.clients, 9_999);
        }
        let (_, granted) = WANTED.within(usize::MAX).unwrap();
        assert_eq!(granted.clients, 10_000);
    }

    #[test]
    fn whoever_is_let_in_finds_a_connection_of_its_own() {
        for allowed in (100..21_000).step_by(7) {
            for pinned in [1, 50, 10_000] {
                let wanted = Wanted { pinned, ..WANTED };
                let Ok((places, granted)) = wanted.within(allowed) else { continue };
                assert!(granted.clients + pinned.min(granted.clients) + SHARED <= places);
                assert!(places + wanted.own() + granted.admin <= allowed);
            }
        }
    }

    #[test]
    fn too_few_for_a_single_client_are_an_error_that_says_how_many_are_needed() {
        let error = WANTED.within(64).unwrap_err();
        let least: usize = error.split("allow ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert_eq!(WANTED.within(least).unwrap().1, Granted { clients: 1, admin: LEAST_ADMIN });
        assert!(WANTED.within(least - 1).is_err());
    }

    #[test]
    fn places_are_given_back() {
        static FEW: Table = Table { taken: AtomicUsize::new(0), most: AtomicUsize::new(2) };
        let (one, two) = (FEW.take(), FEW.take());
        assert!(one.is_some() && two.is_some() && FEW.take().is_none() && FEW.take().is_none());
        drop(one);
        assert!(FEW.take().is_some());
    }
}
