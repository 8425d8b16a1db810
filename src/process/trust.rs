//! Whether Redis is the one that it was, and what is served until that is known.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use super::Process;
use crate::doubt::{self, Scope};
use crate::fanout;
use crate::lease::Moment;

/// What is known about that.
#[derive(Debug, Default)]
pub struct Trust {
    doubted: Mutex<Doubted>,
    /// Since then Redis may not know what was invalidated before it came. 0: never.
    epochs_lost: AtomicU64,
    /// Until it is known, also keys without tags may be stale: they may have had labels. Others are no cached values at
    /// all, so they are not hidden: their readers wait.
    untagged: AtomicBool,
    /// The run id of the Redis that was seen last.
    run: RwLock<Option<Arc<str>>>,
}

/// The question whether it is.
#[derive(Debug, Default)]
struct Doubted {
    /// How often it was asked.
    count: u64,
    /// The control thread has been asked to find out and has not yet.
    comparing: bool,
    /// The doubt, if there is anything to doubt, and since when.
    reason: Option<(doubt::Reason, Instant)>,
}

impl Trust {
    fn doubted(&self) -> MutexGuard<'_, Doubted> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Redis may have been replaced: until that is known, what it holds of keys invalidated lately is not served.
    pub fn doubt_redis(&self) {
        let mut state = self.trust.doubted();
        state.count += 1;
        // Who compares goes on until nothing was doubted meanwhile.
        if std::mem::replace(&mut state.comparing, true) {
            return;
        }
        if self.dry_run {
            state.comparing = false;
            return;
        }
        // Of what other proxies have invalidated not everything may have been heard.
        let recent = if self.is_alone() && !self.had_others.load(Ordering::Acquire) {
            self.journal.recent()
        } else {
            Scope::Everything
        };
        state.reason = (!recent.is_empty()).then(|| (self.doubt.enter(recent), Instant::now()));
        // Which keys had labels an old Redis knows, not the index.
        let labels = self.labels_used.load(Ordering::Acquire) || self.index.has_had_labels();
        self.trust.untagged.store(state.reason.is_some() && labels, Ordering::Release);
        drop(state);
        self.fanout.order(fanout::Order::Compare);
    }

    /// Whether also keys without tags are in doubt.
    pub fn doubts_untagged(&self) -> bool {
        self.trust.untagged.load(Ordering::Acquire)
    }

    /// Whether anything was invalidated lately that a Redis with old data would bring back.
    pub fn has_recent(&self) -> bool {
        self.journal.has_recent() || !self.is_alone()
    }

    /// Whether a new connection leads to the Redis that was seen last, as its `INFO server` says. If it does not, that is
    /// doubted from now on; the connection can be used if it was doubted before `created`, when requests were not yet sent
    /// to it.
    pub fn is_same_run(&self, info: &[u8], created: Instant) -> bool {
        let known = self.trust.run.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(known) = known else { return true };
        if memchr::memmem::find(info, &[b"run_id:", known.as_bytes()].concat()).is_some() {
            return true;
        }
        let doubted = self.trust.doubted();
        let since = doubted.reason.as_ref().map(|(_, since)| *since);
        drop(doubted);
        self.fanout.order(fanout::Order::Redial);
        self.doubt_redis();
        since.is_some_and(|since| since < created)
    }

    /// The Redis that is seen now, by its run id.
    pub fn saw_run(&self, run: &str) {
        *self.trust.run.write().unwrap_or_else(PoisonError::into_inner) = Some(run.into());
    }

    /// How often it was doubted.
    pub fn doubts_of_redis(&self) -> u64 {
        self.trust.doubted().count
    }

    /// Redis is the one that it was, or what was invalidated lately is invalidated again. False: it was doubted again
    /// since it had been doubted that often.
    pub fn trust_redis(&self, doubts: u64) -> bool {
        let mut state = self.trust.doubted();
        let holds = state.count == doubts;
        if holds {
            (state.reason, state.comparing) = (None, false);
            self.had_others.store(false, Ordering::Release);
            self.trust.untagged.store(false, Ordering::Release);
        }
        holds
    }

    /// Redis is another one: what the one before it knew of invalidations it need not know.
    pub fn lost_epochs(&self, now: Moment) {
        self.trust.epochs_lost.store(now + 1, Ordering::Release);
    }

    /// Whether Redis may lack the epochs of invalidations of which this proxy need not have heard: it was replaced within
    /// `window`, or that is being found out.
    pub fn may_lack_epochs(&self, now: Moment, window: Moment) -> bool {
        let comparing = self.trust.doubted().comparing;
        let lost = self.trust.epochs_lost.load(Ordering::Acquire);
        comparing || (lost > 0 && now < lost + window)
    }
}
