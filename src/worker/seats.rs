//! Which worker serves a new client: the one with the fewest. The kernel spreads connections by a hash, by which one worker
//! easily has twice as many of a few dozen as another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// One worker, as the others see it.
#[derive(Debug)]
struct Worker<C> {
    clients: AtomicUsize,
    to: UnboundedSender<C>,
}

/// A worker's view of all; `C` is a client that is handed over.
#[derive(Debug)]
pub struct Seats<C> {
    all: Arc<[Worker<C>]>,
    own: usize,
    /// Clients that other workers have accepted for this one.
    pub handed: UnboundedReceiver<C>,
}

impl<C> Seats<C> {
    /// The views of so many workers.
    pub fn new(workers: usize) -> Vec<Self> {
        let (all, handed): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (to, handed) = mpsc::unbounded_channel();
                (Worker { clients: AtomicUsize::new(0), to }, handed)
            })
            .unzip();
        let all: Arc<[_]> = all.into();
        let view = |(own, handed)| Self { all: Arc::clone(&all), own, handed };
        handed.into_iter().enumerate().map(view).collect()
    }

    /// Takes a seat for a client that this worker has accepted, where there are the fewest: the number of the worker if it is
    /// another one.
    pub fn take(&self) -> Option<usize> {
        let count = |number: &usize| self.all[*number].clients.load(Ordering::Relaxed);
        // This one first: of several it is the least trouble.
        let numbers = (self.own..self.all.len()).chain(0..self.own);
        let fewest = numbers.min_by_key(count).unwrap_or(self.own);
        self.all[fewest].clients.fetch_add(1, Ordering::Relaxed);
        (fewest != self.own).then_some(fewest)
    }

    /// Hands a client over to the worker that [`Seats::take`] named.
    pub fn hand(&self, worker: usize, client: C) {
        if self.all[worker].to.send(client).is_err() {
            // It goes down, as this one will; the client is disconnected.
            self.give_back(worker);
        }
    }

    /// The seat that [`Seats::take`] took there is not needed.
    pub fn give_back(&self, worker: usize) {
        self.all[worker].clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// A client of this worker has gone.
    pub fn leave(&self) {
        self.give_back(self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emptiest_worker_gets_the_next_client() {
        let mut seats = Seats::new(3);
        // All come to the first one.
        let mut taken: Vec<_> = (0..6).map(|_| seats[0].take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [None, None, Some(1), Some(1), Some(2), Some(2)]);
        seats[1].leave();
        assert_eq!(seats[2].take(), Some(1));
        seats[0].hand(2, "client");
        assert_eq!(seats[2].handed.try_recv().ok(), Some("client"));
        // Where all have as many it stays where it is.
        assert_eq!(seats[1].take(), None);
    }

    #[test]
    fn a_worker_that_is_gone_keeps_no_seat() {
        let mut seats = Seats::new(2);
        drop(seats.pop());
        assert_eq!((seats[0].take(), seats[0].take()), (None, Some(1)));
        seats[0].hand(1, ());
        assert_eq!((seats[0].take(), seats[0].take()), (Some(1), None));
    }
}
