//! Coalesced misses: what replies say about keys that clients compute, and that others may wait for.

use super::Context;
use crate::accounting::{Became, Fetched, Settled};
use crate::lease::Moment;
use crate::outbox::Outbox;
use crate::resp::Head;
use crate::rules::{Family, FamilyId};

impl Context {
    /// Takes over for how long the keys of these families may be waited for.
    pub(super) fn set_coalesced(&self, families: &[Family]) {
        let longest: Vec<_> = families.iter().map(|family| family.coalesce.as_millis() as Moment).collect();
        self.coalesces.set(longest.iter().any(|time| *time > 0));
        *self.longest_waits.borrow_mut() = longest;
    }

    /// Whether the misses of any family are coalesced.
    #[inline]
    pub fn coalesces(&self) -> bool {
        self.coalesces.get()
    }

    /// How long a read of this family may wait for a fill; 0: not at all.
    pub fn longest_wait(&self, family: FamilyId) -> Moment {
        self.longest_waits.borrow().get(usize::from(family.0)).copied().unwrap_or(0)
    }

    /// A client has been told whether a key is there that others may wait for.
    pub fn fetched(&self, client: &Outbox, fetched: Fetched) {
        let (process, key) = (&self.process, fetched.key);
        if fetched.found {
            process.computations.filled(key.hash);
        } else {
            let (clock, longest) = (process.epochs.clock(), self.longest_wait(key.family));
            process.computations.missed(key.hash, client.id, clock, self.moment(), longest);
        }
        if fetched.waited {
            let matcher = self.matcher.borrow();
            process.metrics.coalesced(&matcher.rules().family(key.family).name, fetched.found);
        }
    }

    /// A write has been answered, and its reply has this head.
    pub fn settled(&self, settled: &Settled, reply: &Head<'_>) {
        if !settled.condition.fired(reply) {
            return;
        }
        let computations = &self.process.computations;
        settled.keys.iter().for_each(|(key, became)| match became {
            Became::Filled => computations.filled(*key),
            Became::Gone => computations.given_up(*key),
        });
    }
}
