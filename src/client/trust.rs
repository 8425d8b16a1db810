//! Keys in doubt: what may not be seen of them. A read asks for a key that does not exist instead; what cannot be answered
//! like that waits until there is no doubt.

use std::time::Instant;

use super::request::Request;
use super::{Client, FANOUT_PATIENCE, Pause, Step, fill, with};
use crate::command::{Command, Fill, Flags, KeyUse, Kind, TagCommand};
use crate::context::Context;
use crate::doubt::next_look;
use crate::resp::Args;

const TRY_AGAIN: &str = "TRYAGAIN the key is being invalidated, which takes long";

/// What a request depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A key, in a database.
    Key(u32, Box<[u8]>),
    /// Keys that only its reply would tell.
    Any,
}

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

/// Whether it may be stale: it is hidden, or may have a label that nobody knows any more, or yet.
fn is_doubtful(context: &Context, place: &Place) -> bool {
    let Place::Key(db, key) = place else { return context.process.doubt.any() };
    context.process.doubts_labels() || is_hidden(context, *db, key)
}

/// Whether it reads keys whose names are made from what it finds: SORT with `BY` or `GET` of a pattern.
fn reads_by_pattern(command: &Command, args: Args<'_>) -> bool {
    let is_option = |word: &[u8]| word.eq_ignore_ascii_case(b"by") || word.eq_ignore_ascii_case(b"get");
    let has_pattern = |at: usize| args.get(at).is_some_and(|pattern| pattern.contains(&b'*'));
    matches!(&*command.name, "sort" | "sort_ro")
        && (2..args.len()).any(|at| args.get(at).is_some_and(is_option) && has_pattern(at + 1))
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
    let labels = context.process.index.has_labels() || context.process.doubts_labels();
    let mut places = vec![];
    command.keys(args, |used| {
        let tagged = || labels || context.matcher.borrow_mut().classify(db, used.key).has_tags;
        if (depends(command, &used) || command.is_script()) && tagged() {
            places.push(Place::Key(db, used.key.into()));
        }
    });
    places.extend(reads_by_pattern(command, args).then_some(Place::Any));
    places
}

impl Client {
    /// Whether the request must wait because it depends on keys in doubt. `partial`: it has passed through, and cannot be
    /// changed any more.
    #[inline]
    pub(super) fn awaits_trust(&mut self, request: Request<'_>, partial: bool) -> Option<Step> {
        if !self.context.process.doubt.any() {
            self.trusts();
            return None;
        }
        self.distrusts(request, partial)
    }

    /// Likewise; of a TAG.WITH, what counts is the command in it. The others of the proxy show no values.
    pub(super) fn awaits_trust_within(&mut self, request: Request<'_>) -> Option<Step> {
        match request.kind() {
            Kind::Tag(TagCommand::With) if self.context.process.doubt.any() => {
                let commands = self.context.commands.borrow().clone();
                let inner = Request::new(&commands, with::inner(request.args)?, None);
                inner.command.and_then(|_| self.awaits_trust(inner, false))
            }
            Kind::Tag(_) => None,
            _ => self.awaits_trust(request, false),
        }
    }

    #[cold]
    fn distrusts(&mut self, request: Request<'_>, partial: bool) -> Option<Step> {
        let (Request { command, args, .. }, kind) = (request, request.kind());
        let session = self.outbox.session.borrow();
        let (db, in_multi, tracks) = (session.current_db(), session.in_multi(), session.is_sticky());
        drop(session);
        let places = match command {
            _ if kind == Kind::Exec && in_multi => self.transaction.depends.clone(),
            _ if in_multi => vec![],
            // Tracked, it must be the key itself.
            Some(command) if command.is_write() || partial || tracks || command.kind != Kind::Plain => {
                places(&self.context, db, command, args)
            }
            // Others are hidden.
            Some(command) => {
                let mut places = places(&self.context, db, command, args);
                let labels = self.context.process.doubts_labels();
                places.retain(|place| match place {
                    Place::Key(db, key) => labels && !is_hidden(&self.context, *db, key),
                    Place::Any => true,
                });
                places
            }
            None => vec![],
        };
        if !places.iter().any(|place| is_doubtful(&self.context, place)) {
            self.trusts();
            return None;
        }
        if self.present().doubted.get_or_insert_with(Instant::now).elapsed() < FANOUT_PATIENCE {
            return Some(Step::Again(Pause::Doubt(places)));
        }
        if kind == Kind::Exec && in_multi {
            return Some(self.refuse_exec(command, TRY_AGAIN));
        }
        let step = self.refuse(command, TRY_AGAIN.to_owned());
        // What has passed through already cannot be taken back otherwise.
        Some(if partial { Step::Then(Pause::End) } else { step })
    }

    /// The request depends on nothing that is in doubt.
    #[inline]
    fn trusts(&mut self) {
        if let Some(present) = &mut self.present {
            present.doubted = None;
        }
    }

    /// Waits a little for the doubt about these keys to end.
    pub(super) async fn until_trusted(&self, places: &[Place]) {
        let began = Instant::now();
        while began.elapsed() < FANOUT_PATIENCE
            && !self.outbox.is_closing()
            && places.iter().any(|place| is_doubtful(&self.context, place))
        {
            tokio::time::sleep(next_look(began.elapsed())).await;
        }
    }

    /// The request is queued: what it depends on counts when EXEC comes.
    pub(super) fn queue_places(&mut self, command: &Command, args: Args<'_>) {
        let db = self.outbox.session.borrow().current_db();
        let places = places(&self.context, db, command, args);
        self.transaction.depends.extend(places);
    }
}
