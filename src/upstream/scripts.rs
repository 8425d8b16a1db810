//! Whether fills and labels can be sent as scripts: that is a matter of the rights of a connection's user.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::expected::Setup;
use crate::accounting::{NOPERM, READONLY};
use crate::lease::script::{self, Short};
use crate::outbox::Outbox;
use crate::resp::Head;

/// When Redis is asked again that could not answer.
const LATER: Duration = Duration::from_secs(1);

/// Whether scripts can serve the user of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scripts {
    Unknown,
    Asked,
    /// They may also tell of labels; see what was invalidated lately; be called by their names.
    Yes {
        tells: bool,
        sees: bool,
        calls: bool,
    },
    No,
    /// Redis answers nothing of the kind now; as of then.
    NotNow(Instant),
}

impl Conn {
    /// Whether a fill can be sent as a script, as far as is known.
    pub fn takes_scripts(&self) -> bool {
        matches!(self.scripts.get(), Scripts::Yes { .. })
    }

    /// Whether a script can look whether a key has labels that were invalidated lately, as far as is known.
    pub fn sees_labels(&self) -> bool {
        matches!(self.scripts.get(), Scripts::Yes { sees: true, .. })
    }

    /// Whether labels can be given by a script, as far as is known.
    pub fn takes_labels(&self) -> bool {
        matches!(self.scripts.get(), Scripts::Yes { tells: true, sees: true, .. })
    }

    /// Whether Redis probably knows this script by its name.
    pub fn may_call(&self, script: Short) -> bool {
        matches!(self.scripts.get(), Scripts::Yes { calls: true, .. })
            && self.known_scripts.get() & script.bit() != 0
    }

    /// Redis has run this script.
    pub(super) fn ran(&self, script: Short) {
        self.known_scripts.set(self.known_scripts.get() | script.bit());
    }

    /// Somebody has told Redis to forget its scripts.
    pub(super) fn forgot_scripts(&self) {
        self.known_scripts.set(0);
    }

    /// Whether it is known if fills can be sent as scripts. If not, it is asked for, and the client is woken when it is: a fill
    /// that goes without a script can be seen for a moment.
    pub fn knows_scripts(&self, client: &Rc<Outbox>) -> bool {
        match self.scripts.get() {
            _ if !self.is_alive() => return true,
            Scripts::Yes { .. } | Scripts::No => return true,
            Scripts::NotNow(since) if self.context.now() < since + LATER => return true,
            Scripts::NotNow(_) => self.ask_for_scripts(),
            Scripts::Unknown => self.ask_for_scripts(),
            Scripts::Asked => {}
        }
        self.wake_later(client);
        false
    }

    pub(super) fn ask_for_scripts(&self) {
        self.scripts.set(Scripts::Asked);
        self.own(Setup::Scripts, &script::probe());
    }

    /// Redis has answered [`script::probe`].
    pub(super) fn answered_scripts(&self, error: Option<&str>, reply: i64) {
        let passes = |text: &str| ["BUSY", "LOADING", "MASTERDOWN"].iter().any(|word| text.starts_with(word));
        self.scripts.set(match error {
            // Perhaps somebody else's rights were asked for, or it says nothing about rights.
            _ if self.scripts.get() != Scripts::Asked => Scripts::Unknown,
            Some(text) if passes(text) => Scripts::NotNow(self.context.now()),
            None if reply > 0 => {
                let has = |right| reply & right != 0;
                Scripts::Yes { tells: has(script::TELLS), sees: has(script::SEES), calls: has(script::CALLS) }
            }
            _ => Scripts::No,
        });
    }

    /// A command was answered like that: if it was a matter of rights, they may be others than they were. Who meets a replica
    /// may find the master elsewhere by now.
    pub(super) fn note_error(&self, head: &Head<'_>) {
        if *head == Head::Error(READONLY) {
            self.context.process.look_for_another();
        }
        if *head == Head::Error(NOPERM) && self.scripts.get() != Scripts::Asked {
            self.scripts.set(Scripts::Unknown);
        }
    }
}
