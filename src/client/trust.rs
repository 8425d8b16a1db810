//! Keys in doubt: what may not be seen of them. A read asks for a key that does not exist instead; what cannot be answered
//! like that waits until there is no doubt.

use std::time::{Duration, Instant};

use super::{Client, FANOUT_PATIENCE, Pause, Step, fill};
use crate::command::{Command, Fill, Flags, KeyUse, Kind};
use crate::context::Context;
use crate::resp::Args;

/// How often it is looked whether there is still doubt.
const PERIOD: Duration = Duration::from_millis(5);
const TRY_AGAIN: &str = "TRYAGAIN the key is being invalidated, which takes long";

/// A key and its database.
pub(super) type Place = (u32, Box<[u8]>);

/// Whether what the request does with a key depends on its value.
fn depends(command: &Command, used: &KeyUse<'_>) -> bool {
    match &*command.name {
        "del" | "unlink" => false,
        // Whoever watches wants to know of the deletion.
        "watch" => false,
        _ => used.reads || (used.writes && command.fill != Some(Fill::Whole)),
    }
}

/// Whether reads of the key are to be answered as misses.
fn is_hidden(context: &Context, db: u32, key: &[u8]) -> bool {
    context.process.doubt.concerns(&fill::tags(context, db, key))
}

/// Whether it may be stale: it is hidden, or may have had a label that nobody knows any more.
fn is_doubtful(context: &Context, db: u32, key: &[u8]) -> bool {
    let tags = fill::tags(context, db, key);
    context.process.doubt.concerns(&tags) || (tags.is_empty() && context.process.doubts_untagged())
}

/// Which arguments of a read are keys whose values must not be seen now. Only while there is doubt.
#[cold]
pub(super) fn hidden(context: &Context, db: u32, command: &Command, args: Args<'_>) -> Vec<usize> {
    let mut hidden = vec![];
    if command.flags.has(Flags::READONLY) && command.kind == Kind::Plain {
        command.keys(args, |used| {
            if is_hidden(context, db, used.key) {
                hidden.push(used.index);
            }
        });
    }
    hidden.sort_unstable();
    hidden
}

/// The keys on whose value the request depends.
fn places(context: &Context, db: u32, command: &Command, args: Args<'_>) -> Vec<Place> {
    let labels = context.process.index.has_labels() || context.process.doubts_untagged();
    let mut places = vec![];
    command.keys(args, |used| {
        let tagged = || labels || context.matcher.borrow_mut().classify(db, used.key).has_tags;
        if (depends(command, &used) || command.is_script()) && tagged() {
            places.push((db, used.key.into()));
        }
    });
    places
}

impl Client {
    /// Whether the request must wait because it depends on keys in doubt. `partial`: it has passed through, and cannot be
    /// changed any more.
    #[inline]
    pub(super) fn awaits_trust(
        &mut self,
        command: Option<&Command>,
        args: Args<'_>,
        kind: Kind,
        partial: bool,
    ) -> Option<Step> {
        if !self.context.process.doubt.any() {
            self.doubted = None;
            return None;
        }
        self.distrusts(command, args, kind, partial)
    }

    #[cold]
    fn distrusts(
        &mut self,
        command: Option<&Command>,
        args: Args<'_>,
        kind: Kind,
        partial: bool,
    ) -> Option<Step> {
        let session = self.outbox.session.borrow();
        let (db, in_multi, tracks) = (session.current_db(), session.in_multi(), session.is_sticky());
        drop(session);
        let places = match command {
            _ if kind == Kind::Exec && in_multi => self.transaction.depends.clone(),
            _ if in_multi => vec![],
            // Tracked, it must be the key itself.
            Some(command) if command.is_write() || partial || tracks => {
                places(&self.context, db, command, args)
            }
            // Others are hidden.
            Some(command) if self.context.process.doubts_untagged() => {
                let mut places = places(&self.context, db, command, args);
                places.retain(|(db, key)| !is_hidden(&self.context, *db, key));
                places
            }
            _ => vec![],
        };
        if !places.iter().any(|(db, key)| is_doubtful(&self.context, *db, key)) {
            self.doubted = None;
            return None;
        }
        if self.doubted.get_or_insert_with(Instant::now).elapsed() < FANOUT_PATIENCE {
            return Some(Step::Again(Pause::Doubt(places)));
        }
        self.doubted = None;
        if kind == Kind::Exec && in_multi {
            return Some(self.refuse_exec(command, TRY_AGAIN));
        }
        let step = self.refuse(command, TRY_AGAIN.to_owned());
        // What has passed through already cannot be taken back otherwise.
        Some(if partial { Step::Then(Pause::End) } else { step })
    }

    /// Waits a little for the doubt about these keys to end.
    pub(super) async fn until_trusted(&self, places: &[Place]) {
        let began = Instant::now();
        while began.elapsed() < FANOUT_PATIENCE
            && !self.outbox.is_closing()
            && places.iter().any(|(db, key)| is_doubtful(&self.context, *db, key))
        {
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The request is queued: what it depends on counts when EXEC comes.
    pub(super) fn queue_places(&mut self, command: &Command, args: Args<'_>) {
        let db = self.outbox.session.borrow().current_db();
        let places = places(&self.context, db, command, args);
        self.transaction.depends.extend(places);
    }
}
