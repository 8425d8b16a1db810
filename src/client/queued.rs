//! What a client has queued since MULTI, beside what EXEC's reply tells of each request: EXEC makes it good, or nothing comes
//! of it.

use std::rc::Rc;

use super::carry::Carried;
use super::fill::Unwrapped;
use super::labels::{self, Labelled};
use super::{After, Client, Pause, Step, trust};
use crate::accounting::Became;
use crate::command::Kind;
use crate::context::Context;
use crate::lease::{Clock, KeyHash};
use crate::outbox::Outbox;
use crate::resp::Args;
use crate::rules::FamilyId;
use crate::session::selected;

/// What is queued.
#[derive(Default)]
pub(super) struct Transaction {
    /// What it fills, with the clocks of its misses.
    pub fills: Vec<(KeyHash, Clock)>,
    /// The families of keys that are known to become stale.
    pub stale: Vec<FamilyId>,
    /// Keys on which it depends.
    pub depends: Vec<trust::Place>,
    /// SWAPDB is among it.
    pub swaps: bool,
    /// Labels that it gives to keys.
    pub labelled: Vec<Labelled>,
    /// Labels that it hands on.
    pub carried: Vec<Carried>,
    /// Fills that must be looked at behind EXEC.
    pub unwrapped: Vec<Unwrapped>,
    /// Labelled keys whose expiry it may change.
    pub retimed: Vec<(u32, Box<[u8]>)>,
    /// What its writes make of keys that others may wait for.
    pub settled: Vec<(KeyHash, Became)>,
}

impl Transaction {
    /// EXEC is about to be sent: what follows once its reply has arrived.
    pub fn executed(&mut self) -> After {
        self.depends.clear();
        After {
            swapped: std::mem::take(&mut self.swaps),
            labelled: std::mem::take(&mut self.labelled),
            carried: std::mem::take(&mut self.carried),
            unwrapped: std::mem::take(&mut self.unwrapped),
            ..After::default()
        }
    }

    /// It will not be executed.
    fn abandoned(self, context: &Rc<Context>, outbox: &Outbox) {
        context.give_back(outbox, &self.fills);
        labels::undo(context, self.labelled);
        self.carried.into_iter().for_each(|one| one.undo(context));
    }
}

impl After {
    /// Whether the reply must wait for what follows it.
    pub fn holds(&self) -> bool {
        self.swapped || !(self.labelled.is_empty() && self.carried.is_empty() && self.unwrapped.is_empty())
    }
}

impl Client {
    /// What was queued since MULTI will not be executed.
    pub(super) fn abandon(&mut self) {
        self.outbox.queued.borrow_mut().clear();
        std::mem::take(&mut self.transaction).abandoned(&self.context, &self.outbox);
    }

    /// What the request means. A SELECT in MULTI whose database there is not will fail when EXEC comes, and what follows runs
    /// where it would have run without it. `Err`: whether there is must be asked.
    pub(super) fn kind_in_multi(&mut self, kind: Kind, args: Args<'_>) -> Result<Kind, Step> {
        let session = self.outbox.session.borrow();
        let Some(db) = selected(args).filter(|_| kind == Kind::Select && session.in_multi()) else {
            return Ok(kind);
        };
        match self.present.as_ref().and_then(|present| present.database) {
            // Once Redis has said yes to one.
            _ if db <= session.db => Ok(kind),
            Some(true) => Ok(kind),
            Some(false) => Ok(Kind::Plain),
            None => Err(Step::Again(Pause::Database(db))),
        }
    }
}
