//! Fills that no script could do: what they wrote is looked at behind them.

use std::rc::Rc;
use std::time::Duration;

use redis_protocol::resp3::types::BytesFrame;

use super::Engine;
use super::link::Batch;
use super::wire::{array_of, bytes_of, int_of, into_result};
use crate::lease::script::{Check, RECENT, Recent, What, epoch_key};
use crate::news::label_set;

/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks at keys that were written in `db` and deletes those that are stale; returns when that is done.
pub(super) async fn check(engine: Rc<Engine>, db: u32, checks: Vec<Check>) {
    while let Err(error) = once(&engine, db, &checks).await {
        tracing::debug!(%error, "a fill cannot be looked at yet");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(engine: &Engine, db: u32, checks: &[Check]) -> Result<(), String> {
    let recent = recent(engine, checks).await?;
    let (mut questions, mut labels) = (Batch::default(), Batch::default());
    for check in checks {
        match &check.what {
            What::Never => questions.push([b"PING".as_slice()]),
            What::Epoch(tag, _) => questions.push([b"GET".as_slice(), &epoch_key(tag)]),
            What::Listener(channel, tag) => {
                questions.push([b"EXISTS".as_slice(), &epoch_key(tag)]);
                questions.push([b"PUBSUB".as_slice(), b"NUMSUB", channel]);
            }
            What::Unlabelled(mark) => {
                let since = Recent::tags_since(&recent, mark).unwrap_or_default();
                since.iter().for_each(|tag| labels.push([b"ZSCORE".as_slice(), &label_set(tag), &check.key]));
            }
        }
    }
    let mut labels = engine.deletes.call(db, labels).await?.into_iter();
    let answers = engine.deletes.call(0, questions).await?;
    let mut stale: Vec<&[u8]> = vec![];
    let mut answers = answers.into_iter().map(into_result);
    let mut answer = || answers.next().unwrap_or_else(|| Err("no answer".to_owned()));
    for check in checks {
        let is_stale = match &check.what {
            // Somebody else's key of another type that has such a name is no label.
            What::Unlabelled(mark) => match Recent::tags_since(&recent, mark) {
                Some(since) => labels
                    .by_ref()
                    .take(since.len())
                    .fold(false, |found, score| found | into_result(score).is_ok_and(is_score)),
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
        if is_stale && !stale.contains(&&*check.key) {
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

/// What was invalidated lately, if that is asked for.
async fn recent(engine: &Engine, checks: &[Check]) -> Result<Vec<Vec<u8>>, String> {
    if !checks.iter().any(|check| matches!(check.what, What::Unlabelled(_))) {
        return Ok(vec![]);
    }
    let entries = engine.deletes.one(0, [b"LRANGE".as_slice(), RECENT, b"0", b"-1"]).await?;
    Ok(array_of(entries).iter().filter_map(bytes_of).map(|entry| entry.to_vec()).collect())
}

fn is_score(frame: BytesFrame) -> bool {
    matches!(
        frame,
        BytesFrame::BlobString { .. } | BytesFrame::SimpleString { .. } | BytesFrame::Double { .. }
    )
}
