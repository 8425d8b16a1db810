//! From when to when a connection is used, and why not any longer.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Conn;

/// Why a connection cannot be used.
pub(super) const REPLACED: &str = "Redis has been replaced";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has been heard of Redis yet: commands in the queue have certainly not run.
    Starting,
    /// Redis has answered the set-up.
    Open,
    /// Gone.
    Dead,
}

/// What decides it.
#[derive(Debug)]
pub(super) struct Life {
    pub phase: Cell<Phase>,
    /// When it began to be made.
    pub created: Instant,
    /// In which era it was found to lead to the Redis in use, if it is known where it leads.
    era: Cell<Option<u64>>,
    /// Since when nobody has it.
    idle_since: Cell<Instant>,
    /// It ends as soon as its task runs.
    retired: Cell<bool>,
    /// Redis has cut it and lives: its clients are to go, too.
    cut: Cell<bool>,
    /// Redis is silent: clients are told so.
    pub stalled: Cell<bool>,
}

impl Life {
    pub fn new() -> Self {
        let created = Instant::now();
        Self {
            phase: Cell::new(Phase::Starting),
            created,
            era: Cell::new(None),
            idle_since: Cell::new(created),
            retired: Cell::new(false),
            cut: Cell::new(false),
            stalled: Cell::new(false),
        }
    }
}

impl Conn {
    /// Whether it still can carry requests.
    #[inline]
    pub fn is_alive(&self) -> bool {
        self.life.phase.get() != Phase::Dead && !self.life.retired.get() && !self.is_left()
    }

    /// Whether its set-up has succeeded.
    pub(super) fn is_usable(&self) -> bool {
        self.is_open() && self.setting_up.get() == 0
    }

    pub(super) fn is_open(&self) -> bool {
        self.life.phase.get() == Phase::Open
    }

    pub(super) fn opened(&self) {
        self.life.phase.set(Phase::Open);
    }

    /// Whether a command that is sent now is executed at once.
    pub(super) fn is_clear(&self) -> bool {
        self.is_alive() && self.is_usable() && !self.is_congested()
    }

    /// Whether new connections lead to another Redis by now: nothing more is to be sent here.
    #[inline]
    pub fn is_left(&self) -> bool {
        self.life.era.get().is_some_and(|era| era != self.context.process.era())
    }

    /// Whether it is left, and replies are still to come.
    pub fn is_draining(&self) -> bool {
        self.is_left() && !self.life.retired.get() && self.life.phase.get() != Phase::Dead
    }

    /// Whether it has ever led to the Redis in use.
    pub fn has_led(&self) -> bool {
        self.life.era.get().is_some()
    }

    /// It leads to the Redis that is in use in that era.
    pub(super) fn set_era(&self, era: u64) {
        self.life.era.set(Some(era));
    }

    /// New connections lead to another Redis. If this one does not, it ends: shared, once what was sent has been answered.
    pub(super) fn leave(&self) {
        if self.is_left() {
            if self.is_pinned() || !self.is_usable() { self.retire() } else { self.wake() }
        }
    }

    /// Whether what was sent has been answered, and nothing more is to be sent.
    pub(super) fn is_drained(&self) -> bool {
        self.is_left() && self.is_idle()
    }

    /// Ends it as soon as its task runs. Whatever Redis still does on it (a blocked command) ends with it.
    pub fn retire(&self) {
        self.life.retired.set(true);
        self.wake();
    }

    /// Whether it was ended on purpose.
    pub(super) fn is_retired(&self) -> bool {
        self.life.retired.get()
    }

    /// Ends it unless replies are expected on it; whether it goes on.
    pub(super) fn retire_if_idle(&self) -> bool {
        let busy = !self.is_idle();
        if !busy {
            self.retire();
        }
        busy
    }

    /// Redis answers nobody: ends it if a reply has been waited for that long.
    pub(super) fn give_up_after(&self, patience: Duration) {
        if !self.is_idle() && self.heard.get().elapsed() >= patience {
            self.life.stalled.set(true);
            self.retire();
        }
    }

    /// Redis has cut it and lives.
    pub(super) fn set_cut(&self) {
        self.life.cut.set(true);
    }

    /// Whether Redis cut it, though it lives: somebody asked it to.
    pub fn was_cut(&self) -> bool {
        self.life.cut.get()
    }

    /// Notes that nobody has it from now on.
    pub(super) fn rest(&self) {
        self.life.idle_since.set(Instant::now());
    }

    /// Since when nobody has it.
    pub(super) fn idle_since(&self) -> Instant {
        self.life.idle_since.get()
    }
}
