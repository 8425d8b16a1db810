//! Fills that no script could do: what they wrote is looked at behind them.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use redis_protocol::resp3::types::BytesFrame;

use super::Engine;
use super::link::{Batch, has_no_database};
use super::wire::{array_of, bytes_of, int_of, into_result};
use crate::lease::script::{self, Check, MOST_RECENT_OF_ANY, RECENT, Recent, Unsure, What, epoch_key};
use crate::news::label_set;

/// So many labels are looked for at once; of more it is taken for granted that they are there.
const MOST_LOOKED_FOR: usize = 50_000;
/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks at keys that were written in `db` and deletes those that are stale; returns when that is done.
pub(super) async fn check(engine: Rc<Engine>, db: u32, checks: Vec<Check>) {
    while let Err(error) = once(&engine, db, &checks).await
        && !has_no_database(&error)
    {
        tracing::debug!(%error, "a fill cannot be looked at yet");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(engine: &Engine, db: u32, checks: &[Check]) -> Result<(), String> {
    let mut recent = recent(engine, checks).await?;
    let (mut questions, mut labels) = (Batch::default(), Batch::default());
    for check in checks {
        match &check.what {
            What::Never => questions.push([b"PING".as_slice()]),
            What::Epoch(tag, _) => questions.push([b"GET".as_slice(), &epoch_key(tag)]),
            What::Listener(channel, tag) => {
                questions.push([b"EXISTS".as_slice(), &epoch_key(tag)]);
                questions.push([b"PUBSUB".as_slice(), b"NUMSUB", channel]);
            }
            What::Unlabelled { since, unsure } => {
                for tag in tags_since(recent.as_deref(), since, *unsure).unwrap_or_default() {
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
    let (mut stale, mut known) = (Vec::<&[u8]>::new(), HashSet::new());
    let mut answers = answers.into_iter().map(into_result);
    let mut answer = || answers.next().unwrap_or_else(|| Err("no answer".to_owned()));
    for check in checks {
        let is_stale = match &check.what {
            What::Unlabelled { since, unsure } => match tags_since(recent.as_deref(), since, *unsure) {
                Some(tags) => {
                    labels.by_ref().take(tags.len()).fold(false, |had, score| had | has(score, *unsure))
                }
                None => true,
            },
            What::Never => answer().map(|_| true)?,
            What::Epoch(_, expected) => bytes_of(&answer()?).is_some_and(|epoch| **epoch != **expected),
            What::Listener(..) => {
                let first = answer()?;
                let listeners = array_of(answer()?).get(1).and_then(int_of);
                int_of(&first) == Some(1) && listeners == Some(0)
            }
        };
        if is_stale && known.insert(&*check.key) {
            stale.push(&check.key);
            if check.what != What::Never {
                engine.process.metrics.stale_fills(&engine.family_of(db, &check.key));
            }
        }
    }
    if stale.is_empty() || engine.dry_run {
        return Ok(());
    }
    let request: Vec<&[u8]> = std::iter::once(b"UNLINK".as_slice()).chain(stale).collect();
    engine.deletes.one(db, request).await.map(|_| ())
}

/// What was invalidated lately, if that is asked for. `None`: Redis does not tell.
async fn recent(engine: &Engine, checks: &[Check]) -> Result<Option<Vec<Vec<u8>>>, String> {
    if script::unlabelled(checks) == 0 {
        return Ok(None);
    }
    let mut question = Batch::default();
    question.push([b"LRANGE".as_slice(), RECENT, b"0", b"-1"]);
    let entries = engine.deletes.call(0, question).await?.into_iter().next().map(into_result);
    let Some(Ok(entries)) = entries else { return Ok(None) };
    Ok(Some(array_of(entries).iter().filter_map(bytes_of).map(|entry| entry.to_vec()).collect()))
}

/// The tags that were invalidated since that mark. `None`: others may have been, and it is `unsure` whether the value is
/// stale.
fn tags_since<'a>(recent: Option<&'a [Vec<u8>]>, mark: &[u8], unsure: Unsure) -> Option<Vec<&'a [u8]>> {
    let is_fresh = unsure == Unsure::Fresh;
    let Some(recent) = recent else { return is_fresh.then(Vec::new) };
    let looked_at = if is_fresh { MOST_RECENT_OF_ANY } else { recent.len() };
    let (tags, all) = Recent::tags_since(&recent[..looked_at.min(recent.len())], mark);
    (all || is_fresh).then_some(tags)
}

/// Whether there is such a label. Somebody else's key of another type that has such a name is none; where it is not told, it
/// may be one.
fn has(score: BytesFrame, unsure: Unsure) -> bool {
    match into_result(score) {
        Ok(score) => is_score(score),
        Err(error) => unsure == Unsure::Stale && !error.starts_with("WRONGTYPE"),
    }
}

fn is_score(frame: BytesFrame) -> bool {
    matches!(
        frame,
        BytesFrame::BlobString { .. } | BytesFrame::SimpleString { .. } | BytesFrame::Double { .. }
    )
}
