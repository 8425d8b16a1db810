//! What other proxies tell about explicit labels.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::wire::{Wire, int_of};
use super::{Engine, labels};
use crate::index::LabelState;
use crate::news::{Labels, NEWS, News, Verb};

/// Asks for the news. Without the right to them, labels given through other proxies are looked for by fan-outs only.
pub(super) async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<(), String> {
    let subscribed = wire.subscribe(&[b"SUBSCRIBE", NEWS]).await?;
    engine.hears_labels.set(subscribed.is_ok());
    if let Err(error) = subscribed {
        tracing::warn!(
            %error,
            "SUBSCRIBE rescind:labels is not possible: labels given through other proxies do not follow a RENAME, \
             COPY or MOVE through this one"
        );
    }
    Ok(())
}

/// The feed is lost: nothing is heard, also not of new proxies.
pub(super) fn lost(engine: &Engine) {
    let process = &engine.process;
    process.labels_known.store(false, Ordering::Release);
    process.hears_labels.store(false, Ordering::Release);
    process.others_may_label.store(true, Ordering::Release);
}

/// Tells the other proxies that there is one more, and learns whether there are any.
pub(super) async fn greet(engine: Rc<Engine>) {
    let hello = News::payload(engine.process.number, Verb::Hello, &Labels::new(0, b"", vec![]));
    let (heard, session) = (engine.heard_others.get(), engine.feed.session());
    let Ok(listeners) = engine.scans.one(0, [b"PUBLISH".as_slice(), NEWS, &hello]).await else { return };
    if !engine.feed.is_connected() || engine.feed.session() != session {
        return;
    }
    let alone = int_of(&listeners) == Some(1) && engine.heard_others.get() == heard;
    engine.process.others_may_label.store(!alone, Ordering::Release);
    // Not before the others are about to know that they are not alone.
    engine.process.hears_labels.store(engine.hears_labels.get(), Ordering::Release);
}

/// Another proxy, or this one, has said something about labels.
pub(super) fn heard(engine: &Rc<Engine>, payload: &[u8]) {
    let Some(News { from, verb, labels: Labels { db, key, tags } }) = News::parse(payload) else { return };
    if verb == Verb::Forgotten {
        let kept = engine.process.index.lock().explicit_of(db, &key);
        let mine = Labels { db, key, tags: tags.into_iter().filter(|tag| kept.contains(tag)).collect() };
        if !mine.tags.is_empty() {
            let engine = Rc::clone(engine);
            tokio::task::spawn_local(async move { labels::give(&engine, &mine).await });
        }
        return;
    }
    let is_own = from == engine.process.number;
    if is_own && !matches!(verb, Verb::Written | Verb::Taken) {
        return;
    }
    if !is_own {
        engine.heard_others.set(engine.heard_others.get() + 1);
        engine.process.others_may_label.store(true, Ordering::Release);
    }
    let mut index = engine.process.index.lock();
    match verb {
        Verb::Given | Verb::Written => _ = index.label(db, &key, &tags, LabelState::Settled),
        Verb::Taken => _ = index.unlabel(db, &key, &tags),
        Verb::Leaving => index.leaving(db, &key, &tags),
        // Who says so takes them out of Redis.
        Verb::Left => _ = index.left(db, &key, &tags),
        Verb::Stayed => index.stayed(db, &key, &tags),
        Verb::Hello | Verb::Forgotten => {}
    }
}
