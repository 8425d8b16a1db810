//! Whether fills and labels can be sent as scripts: that is a matter of the rights of a connection's user.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::expected::Setup;
use crate::accounting::{NOPERM, READONLY};
use crate::lease::script::{self, Short};
use crate::outbox::Outbox;
use crate::resp::Head;

/// When Redis is asked again that could not answer: it may be able to any moment, and until it is asked what is filled may be
/// seen before it is looked at.
const SOON: Duration = Duration::from_millis(10);
/// The same of one that has refused what it had said the user may do.
const LATER: Duration = Duration::from_secs(1);

/// What scripts can do on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scripts {
    rights: Rights,
    /// Those that Redis has run on it, as bits: it knows them by their names unless it was told to forget them.
    ran: u8,
}

/// What its user may do with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Unknown,
    Asked,
    /// As [`script::probe`] says.
    Yes(i64),
    No,
    /// Redis answers nothing of the kind, or has refused what it had said they may: it is not asked before then.
    NotNow(Instant),
}

impl Scripts {
    /// Those of a new connection.
    pub const NEW: Self = Self { rights: Rights::Unknown, ran: 0 };

    /// Of a user of whom nothing is known.
    pub fn of_another_user(self) -> Self {
        self.with(Rights::Unknown)
    }

    fn with(self, rights: Rights) -> Self {
        Self { rights, ..self }
    }

    fn may(self, rights: i64) -> bool {
        matches!(self.rights, Rights::Yes(all) if all & rights == rights)
    }
}

impl Conn {
    /// Whether a fill can be sent as a script, as far as is known.
    pub fn takes_scripts(&self) -> bool {
        self.scripts.get().may(0)
    }

    /// Whether a script can look whether a key has labels that were invalidated lately, as far as is known.
    pub fn sees_labels(&self) -> bool {
        self.scripts.get().may(script::SEES)
    }

    /// Whether labels can be given by a script, as far as is known.
    pub fn takes_labels(&self) -> bool {
        self.scripts.get().may(script::TELLS | script::SEES)
    }

    /// Whether Redis probably knows this script by its name.
    pub fn may_call(&self, script: Short) -> bool {
        let scripts = self.scripts.get();
        scripts.may(script::CALLS) && scripts.ran & script.bit() != 0
    }

    /// Redis has run this script.
    pub(super) fn ran(&self, script: Short) {
        let scripts = self.scripts.get();
        self.scripts.set(Scripts { ran: scripts.ran | script.bit(), ..scripts });
    }

    /// Somebody has told Redis to forget its scripts.
    pub(super) fn forgot_scripts(&self) {
        self.scripts.set(Scripts { ran: 0, ..self.scripts.get() });
    }

    fn set_rights(&self, rights: Rights) {
        self.scripts.set(self.scripts.get().with(rights));
    }

    /// Whether it is known if fills can be sent as scripts. If not, it is asked for, and the client is woken when it is: a fill
    /// that goes without a script can be seen for a moment.
    pub fn knows_scripts(&self, client: &Rc<Outbox>) -> bool {
        match self.scripts.get().rights {
            _ if !self.is_alive() => return true,
            Rights::Yes(_) | Rights::No => return true,
            Rights::NotNow(until) if self.context.now() < until => return true,
            Rights::NotNow(_) | Rights::Unknown => self.ask_for_scripts(),
            Rights::Asked => {}
        }
        self.wake_later(client);
        false
    }

    pub(super) fn ask_for_scripts(&self) {
        self.set_rights(Rights::Asked);
        self.own(Setup::Scripts, &script::probe());
    }

    /// Redis has answered [`script::probe`].
    pub(super) fn answered_scripts(&self, error: Option<&str>, reply: i64) {
        let passes = |text: &str| ["BUSY", "LOADING", "MASTERDOWN"].iter().any(|word| text.starts_with(word));
        self.set_rights(match error {
            // Perhaps somebody else's rights were asked for, or it says nothing about rights.
            _ if self.scripts.get().rights != Rights::Asked => Rights::Unknown,
            Some(text) if passes(text) => Rights::NotNow(self.context.now() + SOON),
            None if reply > 0 => Rights::Yes(reply),
            _ => Rights::No,
        });
    }

    /// The user may not do something that a script does, whatever was answered before.
    pub(super) fn lacks_rights(&self) {
        self.set_rights(Rights::NotNow(self.context.now() + LATER));
    }

    /// A command was answered like that: if it was a matter of rights, they may be others than they were. Who meets a replica
    /// may find the master elsewhere by now.
    pub(super) fn note_error(&self, head: &Head<'_>) {
        if *head == Head::Error(READONLY) {
            self.context.process.look_for_another();
        }
        if *head == Head::Error(NOPERM) && self.scripts.get().rights != Rights::Asked {
            self.set_rights(Rights::Unknown);
        }
    }
}
