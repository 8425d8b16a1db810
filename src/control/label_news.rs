//! What other proxies tell about explicit labels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::wire::{Wire, array_of, int_of};
use super::{Engine, labels};
use crate::index::LabelState;
use crate::news::{Labels, NEWS, News, Verb};
use crate::rules::Tag;

/// Asks for the news. Without the right to them, labels given through other proxies are looked for by fan-outs only.
pub(super) async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<(), String> {
    let refused = engine.feed.subscribe_to(wire, &[NEWS]).await?;
    engine.hears_labels.set(refused.is_none());
    if let Some(error) = refused {
        tracing::warn!(
            %error,
            "SUBSCRIBE rescind:labels is not possible: labels given through other proxies do not follow a RENAME, \
             COPY or MOVE through this one"
        );
    }
    Ok(())
}

/// Labels of which another proxy has told that they are coming, each as often as it has.
#[derive(Default)]
pub(super) struct Coming(RefCell<HashMap<Told, usize>>);

/// Who told of it, its database, key and tag.
type Told = (u64, u32, Box<[u8]>, Tag);

impl Coming {
    fn note(&self, from: u64, Labels { db, key, tags }: &Labels) {
        let mut coming = self.0.borrow_mut();
        for tag in tags {
            *coming.entry((from, *db, key.clone(), Tag::clone(tag))).or_default() += 1;
        }
    }

    /// Those of the labels that were coming: once less from now on.
    fn take(&self, from: u64, Labels { db, key, tags }: &Labels) -> Vec<Tag> {
        let mut coming = self.0.borrow_mut();
        let mut take = |tag: &Tag| {
            let place = (from, *db, key.clone(), Tag::clone(tag));
            let Some(count) = coming.get_mut(&place) else { return false };
            *count -= 1;
            if *count == 0 {
                coming.remove(&place);
            }
            true
        };
        tags.iter().filter(|tag| take(tag)).cloned().collect()
    }
}

/// Nobody may tell any more what has become of labels that were coming: they count as given.
pub(super) fn all_have_come(engine: &Engine) {
    let mut index = engine.process.index.lock();
    for ((_, db, key, tag), count) in engine.labels_coming.0.borrow_mut().drain() {
        (0..count).for_each(|_| index.settle(db, &key, std::slice::from_ref(&tag)));
    }
}

/// The feed is lost: nothing is heard, also not of new proxies.
pub(super) fn lost(engine: &Engine) {
    all_have_come(engine);
    engine.process.labels.lost();
}

/// Tells the other proxies that there is one more, and learns whether there are any. Where it may not be told, it is tried again
/// each second.
pub(super) async fn greet(engine: &Engine) {
    let hello = News::payload(engine.process.number, Verb::Hello, &Labels::new(0, b"", vec![]));
    let (heard, session) = (engine.heard_others.get(), engine.feed.session());
    engine.greeted.set(false);
    let told = engine.scans.one(0, [b"PUBLISH".as_slice(), NEWS, &hello]).await;
    let listeners = match &told {
        Ok(listeners) => int_of(listeners),
        Err(_) => {
            let counted = engine.scans.one(0, [b"PUBSUB".as_slice(), b"NUMSUB", NEWS]).await;
            counted.ok().and_then(|counted| array_of(counted).get(1).and_then(int_of))
        }
    };
    if !engine.feed.is_connected() || engine.feed.session() != session {
        return;
    }
    engine.greeted.set(told.is_ok());
    let own = i64::from(engine.hears_labels.get());
    let alone = listeners == Some(own) && engine.heard_others.get() == heard;
    match alone || told.is_ok() {
        true => engine.process.labels.greeted(alone, engine.hears_labels.get()),
        // They do not know of this one.
        false => engine.process.labels.met(),
    }
}

/// Another proxy, or this one, has said something about labels.
pub(super) fn heard(engine: &Rc<Engine>, payload: &[u8]) {
    let Some(News { from, verb, labels }) = News::parse(payload) else { return };
    if verb == Verb::Forgotten {
        let Labels { db, key, tags } = labels;
        let kept = engine.process.index.lock().explicit_of(db, &key);
        let mine = Labels { db, key, tags: tags.into_iter().filter(|tag| kept.contains(tag)).collect() };
        if !mine.tags.is_empty() {
            let engine = Rc::clone(engine);
            // Where Redis does not take it, the sweep of the index does.
            tokio::task::spawn_local(async move { labels::give(&engine, &mine).await.map(drop) });
        }
        return;
    }
    let is_own = from == engine.process.number;
    if is_own && !matches!(verb, Verb::Written | Verb::Taken) {
        return;
    }
    if !is_own {
        engine.heard_others.set(engine.heard_others.get() + 1);
        engine.process.labels.met();
    }
    let mut index = engine.process.index.lock();
    let (db, key, tags) = (labels.db, &labels.key, &labels.tags);
    match verb {
        Verb::Coming => {
            engine.labels_coming.note(from, &labels);
            index.label(db, key, tags, LabelState::InFlight);
        }
        Verb::Given => {
            index.settle(db, key, &engine.labels_coming.take(from, &labels));
            index.label(db, key, tags, LabelState::Settled);
        }
        // Who says this, or that a value is gone, takes them out of Redis.
        Verb::Withdrawn => index.cancel(db, key, &engine.labels_coming.take(from, &labels)),
        Verb::Written => _ = index.label(db, key, tags, LabelState::Settled),
        Verb::Taken => _ = index.unlabel(db, key, tags),
        Verb::Leaving => index.leaving(db, key, tags),
        Verb::Left => _ = index.left(db, key, tags),
        Verb::Stayed => index.stayed(db, key, tags),
        Verb::Hello | Verb::Forgotten => {}
    }
}
