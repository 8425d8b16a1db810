//! Writes that go as a script, together with what has to hold for them and the labels that they give.

use bytes::BytesMut;

use super::Client;
use super::fill::Unwrapped;
use super::forward::Extra;
use super::request::Request;
use crate::command::Command;
use crate::lease::script::{self, Check, Wrapping};
use crate::resp::Args;
use crate::upstream::{Conn, Kept, Scripted};

/// Bytes of a request that are kept for the case that it has to be sent once more.
const MOST_RESENT: usize = 16 * 1024;

/// A write that goes as a script.
pub(super) struct Script {
    pub request: BytesMut,
    /// Unless it is queued: inside EXEC's reply no error is worded anew.
    pub scripted: Option<Scripted>,
}

impl Client {
    /// How a write with `checks` or labels is sent: as a script, if one is given back. Otherwise what it writes is looked at
    /// when it is done, before the client gets its reply.
    pub(super) fn way_of_fill(
        &mut self,
        conn: &Conn,
        Request { command, args, .. }: Request<'_>,
        checks: Vec<Check>,
        queued: bool,
        extra: &mut Extra,
    ) -> Option<Script> {
        let labels = std::mem::take(&mut extra.labels);
        let command = command.filter(|_| !checks.is_empty() || !labels.tags.is_empty())?;
        // What Redis may not remember is looked at behind it all the same.
        let (beyond, checks): (Vec<_>, Vec<_>) = checks.into_iter().partition(Check::is_beyond);
        if !beyond.is_empty() {
            extra.may_resend = false;
            self.look_behind(command, args, beyond, queued, extra);
            if checks.is_empty() && labels.tags.is_empty() {
                return None;
            }
        }
        let db = self.outbox.session.borrow().current_db();
        let condition = command.fire_condition(args);
        // Where Redis takes no commands it names the one that it has been sent.
        let confined = self.outbox.session.borrow().may_be_confined();
        let may =
            !confined && conn.takes_scripts() && (script::unlabelled(&checks) == 0 || conn.sees_labels());
        let scripted = !extra.partial && may && is_scripted(command, args, &checks);
        if scripted || !labels.tags.is_empty() {
            let process = &self.context.process;
            let told = labels.told;
            let labels = labels.of(command, args, db, process.number);
            if told {
                let now = self.context.moment();
                labels.keys.iter().for_each(|key| process.index.expect_labels(db, key, now));
            }
            let mut request = BytesMut::new();
            let wrapping = Wrapping { db, proxy: &process.id, condition, checks: &checks, labels };
            let short = wrapping.short().filter(|_| !queued);
            let size = args.iter().map(<[u8]>::len).sum::<usize>();
            let keeps = extra.may_resend && size <= MOST_RESENT && wrapping.labels.tags.is_empty();
            let named = keeps && short.is_some_and(|script| conn.may_call(script));
            let begin = match short {
                Some(script) => wrapping.wrap_shortly(script, named, &mut request, args),
                None => wrapping.wrap(&mut request, args),
            };
            self.may_be_resent = keeps;
            // The text of the script is not needed any more.
            let from = if named { 0 } else { begin };
            let arguments = args.len();
            let kept = keeps.then(|| Kept {
                request: request[from..].into(),
                named,
                begin: begin - from,
                arguments,
            });
            if !extra.after.labelled.is_empty() && !process.is_alone() {
                // While its label was not in Redis, an invalidation by another proxy may have missed it.
                extra.after.unwrapped.push(Unwrapped { db, condition, checks: checks.clone() });
            }
            let command = command.name.clone();
            let scripted = (!queued).then_some(Scripted { command, short, checks: (db, checks), kept });
            return Some(Script { request, scripted });
        }
        self.look_behind(command, args, checks, queued, extra);
        None
    }
}

/// Whether the request can be sent as a script, together with its checks.
fn is_scripted(command: &Command, args: Args<'_>, checks: &[Check]) -> bool {
    // A script deletes what is stale in the client's own database.
    let here = command.other_db(args).is_none();
    let fits = script::fits(args.len(), checks.len()) && script::fits_in_a_step(checks);
    here && fits && command.is_scripted && command.arity_ok(args.len())
}
