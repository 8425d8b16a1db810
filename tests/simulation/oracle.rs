//! What must hold: no read that starts after an acknowledgement returns a value older than the commit before it.

use crate::names::Versions;
use crate::redis::Cached;

/// The write of a trigger that a client has sent.
#[derive(Clone, Debug)]
pub struct Invalidation {
    pub tags: Vec<usize>,
    /// Of the rows, as committed before the trigger was sent.
    pub versions: Versions,
    /// When Redis executed it first.
    pub executed: Option<u64>,
    pub acknowledged: Option<Acknowledged>,
    /// It went past the proxies: those that have been shown it.
    pub direct: bool,
    pub shown_to: Vec<(usize, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    ToAll,
    /// The fan-out was not done in time: readers at this proxy only may count on it.
    At(usize),
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub invalidations: Vec<Invalidation>,
    /// In the order in which they were acknowledged.
    pub acknowledged: Vec<usize>,
    pub violation: Option<String>,
    /// Reads are not judged, only what is left in the end.
    pub lenient: bool,
    /// What nobody who lives has been shown may never be known to anybody.
    pub witnesses: bool,
    pub reads: u64,
    pub hits: u64,
}

impl Oracle {
    pub fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub fn sent(&mut self, tags: &[usize], versions: Versions, direct: bool) -> usize {
        self.invalidations.push(Invalidation {
            tags: tags.to_vec(),
            versions,
            executed: None,
            acknowledged: None,
            direct,
            shown_to: vec![],
        });
        self.invalidations.len() - 1
    }

    pub fn executed(&mut self, invalidation: usize, at: u64) {
        self.invalidations[invalidation].executed.get_or_insert(at);
    }

    pub fn shown(&mut self, invalidations: &[usize], proxy: (usize, u32)) {
        for invalidation in invalidations {
            self.invalidations[*invalidation].shown_to.push(proxy);
        }
    }

    pub fn acknowledge(&mut self, invalidation: usize, how: Acknowledged) {
        self.invalidations[invalidation].acknowledged = Some(how);
        self.acknowledged.push(invalidation);
    }

    /// Whether the value must not be there: it is older than the commit, and it is protected or was there before.
    fn outlawed(&self, tags: &[usize], value: &Cached, invalidation: usize) -> bool {
        let one = &self.invalidations[invalidation];
        let older =
            tags.iter().any(|tag| one.tags.contains(tag) && value.versions[*tag] < one.versions[*tag]);
        older && (value.filled || one.executed.is_some_and(|at| value.at < at))
    }

    /// A client has read a value; when it asked, so many had been acknowledged.
    pub fn read(&mut self, key: usize, tags: &[usize], value: &Cached, acknowledged: usize, proxy: usize) {
        self.hits += 1;
        for at in 0..acknowledged {
            let invalidation = self.acknowledged[at];
            let one = &self.invalidations[invalidation];
            let counts = match one.acknowledged {
                Some(Acknowledged::At(place)) => place == proxy,
                _ => true,
            };
            if counts && !self.lenient && self.outlawed(tags, value, invalidation) {
                let what = format!(
                    "key {key} read at proxy {proxy}: {value:?} after invalidation {invalidation} of {:?}",
                    one.tags
                );
                self.demand(false, || what);
            }
        }
    }

    /// All is healed and quiet: nothing may be left that a trigger should have deleted. `alive` tells which proxies
    /// have lived since: what was written past the proxies counts only if one of those has been shown it.
    pub fn finally(&mut self, key: usize, tags: &[usize], value: &Cached, alive: &[(usize, u32)]) {
        for invalidation in 0..self.invalidations.len() {
            let one = &self.invalidations[invalidation];
            let known = !one.direct && !self.witnesses;
            let witnessed = known || one.shown_to.iter().any(|proxy| alive.contains(proxy));
            if one.executed.is_some() && witnessed && self.outlawed(tags, value, invalidation) {
                let what = format!("key {key} is left: {value:?}, invalidation {invalidation}: {one:?}");
                self.demand(false, || what);
            }
        }
    }
}
