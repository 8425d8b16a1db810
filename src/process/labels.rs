//! What is known of explicit labels: whether there are any, whether the index has all of them, who else may give some.
//!
//! | question | asked |
//! | --- | --- |
//! | [`Process::uses_labels`] | Have any been given here, or been heard of? |
//! | [`Process::may_use_labels`] | Or may there be some in Redis that have not been read: may a key be labelled that is missed? |
//! | [`Process::may_have_labels`] | May a key have one right now? |
//! | [`Process::knows_labels`] | Does the index have all of them at any moment, so that nobody need be asked? |
//! | [`Process::has_had_labels`] | Were there any, here or lately in the process before this one? |
//! | [`Process::has_left_labels`] | Or at any time, and have they not been read from Redis yet? |
//! | [`Process::may_have_had_labels`] | May old data have had some that nobody knows any more? |
//!
//! Whether any may be in doubt says [`Process::doubts_labels`].

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::Process;
use crate::fanout;

/// What the process has seen of them, besides the index.
#[derive(Debug)]
pub struct Seen {
    /// Clients here give some: every miss may be that of a key to be labelled.
    used: AtomicBool,
    /// An earlier process knew of some.
    remembered: AtomicBool,
    /// Likewise, and they have not been read from Redis yet.
    unread: AtomicBool,
    /// Those in Redis have been read into the index, and the feed has not been lost since.
    known: AtomicBool,
    /// The feed shows the news of them, so that the index learns from there what scripts give.
    heard: AtomicBool,
    /// There may be other proxies, which give some that the feed tells of a moment later.
    others: AtomicBool,
}

impl Default for Seen {
    fn default() -> Self {
        let [used, remembered, unread, known, heard] = [(); 5].map(|()| AtomicBool::new(false));
        Self { used, remembered, unread, known, heard, others: AtomicBool::new(true) }
    }
}

impl Seen {
    /// The process before this one has left this behind: whether there were any.
    pub fn remember(&self, any: bool) {
        self.remembered.store(any, Release);
        self.unread.store(any, Release);
    }

    /// Those in Redis are about to be read again.
    pub fn forget(&self) {
        self.known.store(false, Release);
    }

    /// Those in Redis have been read.
    pub fn read(&self) {
        self.known.store(true, Release);
        self.unread.store(false, Release);
    }

    /// The feed is lost: nothing is heard, also not of new proxies.
    pub fn lost(&self) {
        self.known.store(false, Release);
        self.heard.store(false, Release);
        self.others.store(true, Release);
    }

    /// The other proxies, if there are any, know of this one from now on; `heard`: this one hears of their labels.
    pub fn greeted(&self, alone: bool, heard: bool) {
        self.others.store(!alone, Release);
        // Not before the others are about to know that they are not alone.
        self.heard.store(heard, Release);
    }

    /// There is another proxy.
    pub fn met(&self) {
        self.others.store(true, Release);
    }

    /// Whether clients here give some.
    #[inline]
    pub fn are_used(&self) -> bool {
        self.used.load(Acquire)
    }

    /// Whether those of an earlier process have not been read yet.
    pub fn are_unread(&self) -> bool {
        self.unread.load(Acquire)
    }

    /// Whether those in Redis have been read, and the feed has not been lost since.
    pub fn are_known(&self) -> bool {
        self.known.load(Acquire)
    }

    /// Whether the feed shows their news.
    pub fn are_heard(&self) -> bool {
        self.heard.load(Acquire)
    }

    /// Whether there may be other proxies that give some.
    pub fn others_may_give(&self) -> bool {
        self.others.load(Acquire)
    }
}

impl Process {
    /// A client gives explicit labels. The process after this one is to know.
    pub fn use_labels(&self) {
        if !self.labels.are_used() && !self.labels.used.swap(true, AcqRel) {
            self.fanout.order(fanout::Order::Note);
        }
    }

    /// Whether explicit labels have been given here, or have been heard of.
    #[inline]
    pub fn uses_labels(&self) -> bool {
        self.labels.are_used() || self.index.has_had_labels()
    }

    /// Whether explicit labels have been given here, or have been heard of, or those in Redis have not been read.
    #[inline]
    pub fn may_use_labels(&self) -> bool {
        self.uses_labels() || !self.labels.are_known()
    }

    /// Whether any key may have explicit labels. Costs no lock. Beside other proxies always: one of them may just have given
    /// the first.
    pub fn may_have_labels(&self) -> bool {
        let seen = &self.labels;
        self.index.has_labels() || seen.others_may_give() || !seen.are_known() || seen.are_used()
    }

    /// Whether the index has all explicit labels at any moment, so that nobody need be asked.
    pub fn knows_labels(&self) -> bool {
        self.labels.are_known() && !(self.labels.others_may_give() || self.labels.are_used())
    }

    /// Whether it is known that there have been explicit labels: in this process, or lately in the one before it.
    pub fn has_had_labels(&self) -> bool {
        let remembers = self.labels.remembered.load(Acquire) && self.born.elapsed() <= self.replay_window;
        self.uses_labels() || remembers
    }

    /// Likewise, or those of an earlier process have not been read yet, however long ago that was.
    pub fn has_left_labels(&self) -> bool {
        self.has_had_labels() || self.labels.are_unread()
    }

    /// Whether there may have been explicit labels at a moment from which old data may come back: now there need not be any.
    pub fn may_have_had_labels(&self) -> bool {
        // Of others that came before this one it knows neither what they have invalidated nor by what labels.
        self.has_had_labels() || self.journal.has_missed()
    }
}
