//! What a request may invalidate is noted in the journal before it is sent; what cannot be noted is not sent.

use std::rc::Rc;

use super::forward::Extra;
use super::request::Request;
use super::{Client, Pause, Step, trigger};
use crate::accounting::{Account, Firing, Noted};
use crate::command::{Command, Kind};
use crate::context::Context;
use crate::doubt::Scope;
use crate::journal::Wanted;
use crate::resp::OwnedArgs;
use crate::rules::unique;
use crate::session::Route;

impl Client {
    /// Whether the request must wait for the journal before anything is done about it. `None`: it may go on, and
    /// [`Client::attach_intent`] finds the intent.
    pub(super) fn awaits_intent(&mut self, context: &Rc<Context>, request: Request<'_>) -> Option<Step> {
        let (command, kind) = (request.command, request.kind());
        let wanted = self.may_invalidate(context, request)?;
        match self.present.as_ref().and_then(|present| present.intent.as_ref()) {
            None => Some(Step::Again(Pause::Intent(vec![wanted]))),
            Some(Ok(_)) => None,
            Some(Err(error)) => {
                let error = error.clone();
                Some(match kind == Kind::Exec {
                    true => self.refuse_exec(
                        command,
                        &format!("EXECABORT Transaction discarded because of: {error}"),
                    ),
                    false => self.refuse(command, format!("ERR {error}")),
                })
            }
        }
    }

    /// The transaction ends with an error in place of EXEC.
    pub(super) fn refuse_exec(&mut self, exec: Option<&Command>, error: &str) -> Step {
        // Who may EXEC need not be allowed to DISCARD: Redis is made to abort it.
        let [bad, end]: [OwnedArgs; 2] = ["RESCIND.ABORT", "EXEC"].map(|word| [word].into_iter().collect());
        let route = self.outbox.session.borrow_mut().route(Kind::Exec, end.as_args(), false);
        let Route::Forward(forward) = route else { return Step::Then(Pause::End) };
        self.refused(exec);
        self.abandon();
        for (request, silent) in [(bad, true), (end, forward.silent)] {
            let mut pending = super::tag::pending_of(self, Some(error));
            pending.special.iter_mut().for_each(|special| special.silent = silent);
            self.conn().send(&super::rewrite::encoded(request.as_args()), Some(pending));
        }
        Step::Done
    }

    /// What the request invalidates if it succeeds. `None`: nothing.
    pub(super) fn may_invalidate(&self, context: &Rc<Context>, request: Request<'_>) -> Option<Wanted> {
        let (Request { command, args, .. }, kind) = (request, request.kind());
        let in_multi = self.outbox.session.borrow().in_multi();
        if kind == Kind::Exec && in_multi {
            let queued = self.outbox.queued.borrow();
            return of(queued.iter().filter_map(|queued| queued.firing.as_ref()));
        }
        // Of a command that blocks nobody knows whether it will write: it is noted when it has.
        let may = |command: &&Command| command.is_write() || kind == Kind::Publish;
        let command = command.filter(|command| !in_multi && may(command) && !request.blocks())?;
        let account = trigger::account(context, &self.outbox, command, args, false, &mut Extra::default());
        of(account.firings())
    }

    /// The journal's number goes with the account. `Some`: there is none yet.
    #[inline]
    pub(super) fn attach_intent(&mut self, command: Option<&Command>, account: &mut Account) -> Option<Step> {
        let fires = !account.firings().all(Firing::only_covers);
        let intent = self.present.as_mut().and_then(|present| present.intent.take());
        if !fires && intent.is_none() {
            return None;
        }
        match intent {
            Some(Ok(intent)) if fires => account.set_intent(intent),
            Some(Ok(intent)) => self.context.process.journal.done(intent.id),
            Some(Err(error)) => return Some(self.refuse(command, format!("ERR {error}"))),
            None => {
                return Some(Step::Again(Pause::Intent(vec![of(account.firings())?])));
            }
        }
        None
    }

    /// Waits for the journal, where nothing else has to be seen to meanwhile.
    pub(super) async fn intend(&mut self, wanted: Wanted) -> Result<(), String> {
        let noted = self.context.intend(wanted).await?;
        self.present().intent = Some(Ok(noted));
        Ok(())
    }

    /// Notes what a request may invalidate that has been waiting, if that is not noted: there may be other rules meanwhile.
    pub(super) async fn intend_anew(&mut self, request: Request<'_>) -> Result<(), String> {
        let context = Rc::clone(&self.context);
        match self.may_invalidate(&context, request) {
            Some(wanted) if self.present().intent.is_none() => self.intend(wanted).await,
            _ => Ok(()),
        }
    }
}

/// What these invalidate, cascades included: the keys of all these tags are in doubt if it is not finished.
fn of<'a>(firings: impl Iterator<Item = &'a Firing>) -> Option<Wanted> {
    let mut firings = firings.filter(|firing| !firing.only_covers());
    let first = firings.next()?;
    let (mut tags, rules) = (first.tags.clone(), first.rules.fingerprint());
    let mut is_one = true;
    for firing in firings {
        tags.extend(firing.tags.iter().cloned());
        // A transaction may have been queued while the rules changed.
        is_one &= firing.rules.fingerprint() == rules;
    }
    unique(&mut tags);
    first.rules.cascade(&mut tags);
    let scope = if is_one { Scope::Tags(tags) } else { Scope::Everything };
    Some(Wanted { scope, rules: Some(rules), what: first.what.clone() })
}

/// Takes the numbers out of what did not fire. One request has one, whatever of it fired.
pub(super) fn take_intents(idle: &mut [Firing]) -> Vec<Noted> {
    idle.iter_mut().flat_map(|firing| std::mem::take(&mut firing.intents)).collect()
}
