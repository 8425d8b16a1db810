//! Keys that one fan-out is deleting another one need not delete as well: it waits.
//!
//! A key whose generation has not moved since an `UNLINK` of it was sent has not come to exist since: so, behind the barrier,
//! whatever was written to it before is gone once that is answered.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use tokio::sync::Notify;

use super::gc::SentEntries;
use crate::index::SharedIndex;

/// The `UNLINK`s of all fan-outs that are on their way and that others may wait for.
#[derive(Default)]
pub(super) struct Unlinks {
    /// How many have been sent.
    sent: Cell<u64>,
    open: RefCell<BTreeSet<u64>>,
    failed: Cell<u64>,
    ended: Notify,
}

/// One of them.
pub(super) struct Unlink(u64);

impl Unlinks {
    /// These keys are about to be deleted.
    pub fn begin(&self, index: &SharedIndex, entries: &SentEntries) -> Unlink {
        let mut index = index.lock();
        entries.each_place(|id, generation| index.unlinking(id, generation, true));
        let number = self.sent.replace(self.sent.get() + 1);
        self.open.borrow_mut().insert(number);
        Unlink(number)
    }

    /// They have been deleted.
    pub fn done(&self, Unlink(number): Unlink) {
        self.open.borrow_mut().remove(&number);
        self.ended.notify_waiters();
    }

    /// They may not have been deleted.
    pub fn failed(&self, unlink: Unlink, index: &SharedIndex, entries: &SentEntries) {
        let mut index = index.lock();
        entries.each_place(|id, generation| index.unlinking(id, generation, false));
        self.failed.set(self.failed.get() + 1);
        self.done(unlink);
    }

    /// How many have failed.
    pub fn failures(&self) -> u64 {
        self.failed.get()
    }

    /// Waits for all that are on their way. Fails if there are more `failures` by then.
    pub async fn wait(&self, failures: u64) -> Result<(), String> {
        let last = self.sent.get();
        loop {
            let ended = self.ended.notified();
            if self.open.borrow().first().is_none_or(|first| *first >= last) {
                break;
            }
            ended.await;
        }
        match self.failed.get() == failures {
            true => Ok(()),
            false => Err("another fan-out has failed to delete the same keys".to_owned()),
        }
    }
}
