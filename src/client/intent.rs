//! What a request may invalidate is noted in the journal before it is sent; what cannot be noted is not sent.

use std::rc::Rc;

use super::forward::Extra;
use super::{Client, Pause, Step, trigger};
use crate::accounting::{Account, Firing, Noted};
use crate::command::{Command, Kind};
use crate::context::Context;
use crate::doubt::Scope;
use crate::resp::{Args, OwnedArgs};
use crate::rules::{Tag, unique};
use crate::session::Route;

impl Client {
    /// Whether the request must wait for the journal before anything is done about it. `None`: it may go on, and
    /// [`Client::attach_intent`] finds the intent.
    pub(super) fn awaits_intent(
        &mut self,
        context: &Rc<Context>,
        command: Option<&Command>,
        args: Args<'_>,
        kind: Kind,
    ) -> Option<Step> {
        let (scope, what) = self.may_invalidate(context, command, args, kind)?;
        match &self.intent {
            None => Some(Step::Again(Pause::Intent(vec![(scope, what)]))),
            Some(Ok(_)) => None,
            Some(Err(error)) => {
                let error = error.clone();
                let step = match kind == Kind::Exec {
                    true => self.refuse_exec(
                        command,
                        &format!("EXECABORT Transaction discarded because of: {error}"),
                    ),
                    false => self.refuse(command, format!("ERR {error}")),
                };
                if matches!(step, Step::Done | Step::Then(_)) {
                    self.intent = None;
                }
                Some(step)
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

    /// What the request invalidates if it succeeds, with a text for people. `None`: nothing.
    pub(super) fn may_invalidate(
        &self,
        context: &Rc<Context>,
        command: Option<&Command>,
        args: Args<'_>,
        kind: Kind,
    ) -> Option<(Scope, String)> {
        let session = self.outbox.session.borrow();
        let in_multi = session.in_multi();
        drop(session);
        if kind == Kind::Exec && in_multi {
            let queued = self.outbox.queued.borrow();
            return of(context, queued.iter().filter_map(|queued| queued.firing.as_ref()));
        }
        // Of a command that blocks nobody knows whether it will write: it is noted when it has.
        let may = |command: &&Command| command.is_write() || kind == Kind::Publish;
        let command = command.filter(|command| !in_multi && may(command) && !command.blocks(args))?;
        let account = trigger::account(context, &self.outbox, command, args, false, &mut Extra::default());
        of(context, account.firings())
    }

    /// The journal's number goes with the account. `Some`: there is none yet.
    #[inline]
    pub(super) fn attach_intent(&mut self, command: Option<&Command>, account: &mut Account) -> Option<Step> {
        let fires = !account.firings().all(Firing::only_covers);
        if !fires && self.intent.is_none() {
            return None;
        }
        match self.intent.take() {
            Some(Ok(intent)) if fires => account.set_intent(intent),
            Some(Ok(intent)) => self.context.process.journal.done(intent.id),
            Some(Err(error)) => return Some(self.refuse(command, format!("ERR {error}"))),
            None => {
                let (scope, what) = of(&self.context, account.firings())?;
                return Some(Step::Again(Pause::Intent(vec![(scope, what)])));
            }
        }
        None
    }

    /// Waits for the journal, where nothing else has to be seen to meanwhile.
    pub(super) async fn intend(&mut self, scope: Scope, what: String) -> Result<(), String> {
        self.intent = Some(Ok(self.context.intend(scope, what).await?));
        Ok(())
    }

    /// Notes what a request may invalidate that has been waiting, if that is not noted: there may be other rules meanwhile.
    pub(super) async fn intend_anew(
        &mut self,
        command: Option<&Command>,
        args: Args<'_>,
        kind: Kind,
    ) -> Result<(), String> {
        let context = Rc::clone(&self.context);
        match self.may_invalidate(&context, command, args, kind) {
            Some((scope, what)) if self.intent.is_none() => self.intend(scope, what).await,
            _ => Ok(()),
        }
    }

    /// The request was not sent after all, if anything is left of what was noted for it: the next one must not go by that.
    #[inline]
    pub(super) fn drop_intent(&mut self) {
        if let Some(Ok(intent)) = self.intent.take() {
            self.context.process.journal.done(intent.id);
        }
    }
}

/// What these invalidate, cascades included: the keys of all these tags are in doubt if it is not finished.
fn of<'a>(context: &Context, firings: impl Iterator<Item = &'a Firing>) -> Option<(Scope, String)> {
    let mut tags: Vec<Tag> = vec![];
    let mut what = None;
    for firing in firings.filter(|firing| !firing.only_covers()) {
        what.get_or_insert_with(|| firing.what.clone());
        tags.extend(firing.tags.iter().cloned());
    }
    let what = what?;
    unique(&mut tags);
    context.matcher.borrow().cascade(&mut tags);
    Some((Scope::Tags(tags), what))
}

/// Takes the numbers out of what did not fire. One request has one, whatever of it fired.
pub(super) fn take_intents(idle: &mut [Firing]) -> Vec<Noted> {
    idle.iter_mut().flat_map(|firing| std::mem::take(&mut firing.intents)).collect()
}
