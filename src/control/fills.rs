//! Fills that no script could do: what they wrote is looked at behind them.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use redis_protocol::resp3::types::BytesFrame;

use super::Engine;
use super::labels::learn;
use super::link::{Batch, has_no_database};
use super::wire::{array_of, bytes_of, int_of, into_result};
use crate::lease::script::{Check, MOST_RECENT_OF_ANY, MOST_SINCE, RECENT, Recent, Unsure, What, epoch_key};
use crate::lease::{BEFORE_ALL, Expected};
use crate::news::label_set;
use crate::rules::Tag;

/// So many labels are looked for at once; of more only what the feed has shown counts.
const MOST_LOOKED_FOR: usize = 50_000;
/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks at a key that was written in `db`, of which Redis could not tell whether it had a label that was invalidated since that
/// mark, and deletes it if it had.
pub(super) async fn look_again(engine: Rc<Engine>, db: u32, key: Box<[u8]>, since: Box<[u8]>) {
    learn(&engine).await;
    if has_stale_label(&engine, db, &key, &since) {
        undone(&engine, db, &key);
        check(engine, db, vec![Check { key, what: What::Never }]).await;
    }
}

/// Counts a fill that was undone. Of a tag of which no invalidation is known Redis may remember one for longer than this proxy: its
/// clock was set back, say, or `fill_window` was longer before the restart. That would undo every fill until it ends; so it is
/// learnt, and misses from then on count as younger.
pub(super) fn undone(engine: &Rc<Engine>, db: u32, key: &[u8]) {
    engine.process.metrics.stale_fills(&engine.family_of(db, key));
    let mut tags = engine.process.index.explicit_of(db, key);
    engine.matcher.borrow_mut().tags(db, key, &mut tags);
    tags.retain(|tag| has_no_epoch(engine, tag));
    if !tags.is_empty() {
        tokio::task::spawn_local(learn_epochs(Rc::clone(engine), tags));
    }
}

fn has_no_epoch(engine: &Engine, tag: &Tag) -> bool {
    engine.process.epochs.expected(tag, BEFORE_ALL) == Expected::NoEpoch
}

async fn learn_epochs(engine: Rc<Engine>, tags: Vec<Tag>) {
    let mut questions = Batch::default();
    tags.iter().for_each(|tag| questions.push([b"GET".as_slice(), &epoch_key(tag)]));
    // If Redis does not tell, the next fill that is undone asks again.
    for (tag, epoch) in tags.iter().zip(engine.deletes.call(0, questions).await.unwrap_or_default()) {
        // One that has been announced meanwhile is later.
        if let Some(epoch) = bytes_of(&epoch).filter(|_| has_no_epoch(&engine, tag)) {
            engine.process.epochs.found(tag, epoch, engine.moment());
        }
    }
}

/// Looks at keys that were written in `db` and deletes those that are stale; returns when that is done.
pub(super) async fn check(engine: Rc<Engine>, db: u32, checks: Vec<Check>) {
    while let Err(error) = once(&engine, db, &checks).await
        && !has_no_database(&error)
    {
        tracing::debug!(%error, "a fill cannot be looked at yet");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(engine: &Rc<Engine>, db: u32, checks: &[Check]) -> Result<(), String> {
    let mut recent = recent(engine, checks).await?;
    let (mut questions, mut labels) = (Batch::default(), Batch::default());
    for check in checks {
        match &check.what {
            What::Never => {}
            What::Epoch(tag, _) => questions.push([b"GET".as_slice(), &epoch_key(tag)]),
            What::Listener(channel, tag) => {
                questions.push([b"EXISTS".as_slice(), &epoch_key(tag)]);
                questions.push([b"PUBSUB".as_slice(), b"NUMSUB", channel]);
            }
            What::Unlabelled { .. } => {
                for tag in tags_since(recent.as_deref(), check).unwrap_or_default() {
                    labels.push([b"ZSCORE".as_slice(), &label_set(tag), &check.key]);
                }
                if labels.len() > MOST_LOOKED_FOR {
                    recent = None;
                    labels = Batch::default();
                }
            }
        }
    }
    let mut labels = engine.deletes.call(db, labels).await?.into_iter();
    let answers = engine.deletes.call(0, questions).await?;
    let (mut stale, mut known, mut learnt) = (Vec::<&[u8]>::new(), HashSet::new(), false);
    let mut answers = answers.into_iter().map(into_result);
    let mut answer = || answers.next().unwrap_or_else(|| Err("no answer".to_owned()));
    for check in checks {
        let is_stale = match &check.what {
            What::Unlabelled { since, unsure, .. } => match tags_since(recent.as_deref(), check) {
                Some(tags) => {
                    labels.by_ref().take(tags.len()).fold(false, |had, score| had | has(score, *unsure))
                }
                None if *unsure == Unsure::Stale => true,
                None => {
                    if !learnt {
                        learn(engine).await;
                    }
                    learnt = true;
                    has_stale_label(engine, db, &check.key, since)
                }
            },
            What::Never => true,
            What::Epoch(_, expected) => bytes_of(&answer()?).is_some_and(|epoch| **epoch != **expected),
            What::Listener(..) => {
                let first = answer()?;
                let listeners = match answer() {
                    Ok(counted) => array_of(counted).get(1).and_then(int_of),
                    // Nobody can say: it counts as gone.
                    Err(error) if error.starts_with("NOPERM") => Some(0),
                    Err(error) => return Err(error),
                };
                int_of(&first) == Some(1) && listeners == Some(0)
            }
        };
        if is_stale && known.insert(&*check.key) {
            stale.push(&check.key);
            if check.what != What::Never {
                undone(engine, db, &check.key);
            }
        }
    }
    if stale.is_empty() || engine.process.dry_run {
        return Ok(());
    }
    let request: Vec<&[u8]> = std::iter::once(b"UNLINK".as_slice()).chain(stale).collect();
    engine.deletes.one(db, request).await.map(|_| ())
}

/// Whether a label of the key, as far as the feed has shown by now, was invalidated since that mark.
fn has_stale_label(engine: &Engine, db: u32, key: &[u8], since: &[u8]) -> bool {
    let epochs = &engine.process.epochs;
    let clock = epochs.clock_at(since);
    let tags = engine.process.index.explicit_of(db, key);
    tags.iter().any(|tag| epochs.expected(tag, clock) == Expected::Stale)
}

/// What was invalidated lately, if that is asked for. `None`: Redis does not tell.
async fn recent(engine: &Engine, checks: &[Check]) -> Result<Option<Vec<Vec<u8>>>, String> {
    let asks = |check: &Check| matches!(check.what, What::Unlabelled { .. }) && !check.is_beyond();
    if !checks.iter().any(asks) {
        return Ok(None);
    }
    let mut question = Batch::default();
    question.push([b"LRANGE".as_slice(), RECENT, b"0", (MOST_SINCE - 1).to_string().as_bytes()]);
    let entries = engine.deletes.call(0, question).await?.into_iter().next().map(into_result);
    let Some(Ok(entries)) = entries else { return Ok(None) };
    Ok(Some(array_of(entries).iter().filter_map(bytes_of).map(|entry| entry.to_vec()).collect()))
}

/// The tags that were invalidated since the mark of that check. `None`: others may have been, and that matters.
fn tags_since<'a>(recent: Option<&'a [Vec<u8>]>, check: &Check) -> Option<Vec<&'a [u8]>> {
    let What::Unlabelled { since, unsure, .. } = &check.what else { return None };
    let is_fresh = *unsure == Unsure::Fresh;
    let Some(recent) = recent.filter(|_| !check.is_beyond()) else { return is_fresh.then(Vec::new) };
    let looked_at = if is_fresh { MOST_RECENT_OF_ANY } else { recent.len() };
    let (tags, all) = Recent::tags_since(&recent[..looked_at.min(recent.len())], since);
    (all || is_fresh).then_some(tags)
}

/// Whether there is such a label. Somebody else's key of another type that has such a name is none; where it is not told, it
/// may be one.
fn has(score: BytesFrame, unsure: Unsure) -> bool {
    match into_result(score) {
        Ok(score) => is_score(score),
        Err(error) => unsure != Unsure::Fresh && !error.starts_with("WRONGTYPE"),
    }
}

fn is_score(frame: BytesFrame) -> bool {
    matches!(
        frame,
        BytesFrame::BlobString { .. } | BytesFrame::SimpleString { .. } | BytesFrame::Double { .. }
    )
}
