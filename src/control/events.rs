//! What the feed shows, and what is done about it.

use std::rc::Rc;

use super::Engine;
use super::push::Push;
use crate::accounting::{Firing, TriggerLabel};
use crate::fanout::{CHANNEL, tags_of_message};
use crate::lease::Moment;
use crate::lease::script::EPOCHS;
use crate::news::{LABEL_SETS, NEWS};
use crate::peers::{self, Message};
use crate::rules::{OWN_KEYS, Tag};

pub(super) fn pushed(engine: &Rc<Engine>, push: &Push<'_>) {
    match push.kind() {
        b"pmessage" => {
            if let (Some(channel), Some(key)) = (push.part(2), push.part(3)) {
                event(engine, channel, key);
            }
        }
        b"message" => {
            if let (Some(channel), Some(payload)) = (push.part(1), push.part(2)) {
                message(engine, channel, payload);
            }
        }
        b"invalidate" if push.null => engine.flushed(),
        b"invalidate" => push.rest().iter().for_each(|key| written(engine, key)),
        _ => {}
    }
}

/// `__keyevent@<db>__:<event>`
fn event(engine: &Rc<Engine>, channel: &[u8], key: &[u8]) {
    let Some((db, event)) = split_channel(channel) else { return };
    if key.starts_with(super::gc::CANARY) {
        if event == b"new" {
            engine.feed.sing();
        }
        return;
    }
    match event {
        b"new" => {
            engine.feed.ended.borrow_mut().remove(key);
            if engine.created(db, key) {
                engine.feed.made.borrow_mut().insert(key.into());
            }
        }
        b"expired" => {
            ended(engine, db, key);
            engine.gone(db, key);
            if !key.starts_with(OWN_KEYS) {
                engine.process.metrics.expirations(&engine.family_of(db, key));
            } else if let Some(tag) = key.strip_prefix(EPOCHS) {
                epoch_expired(engine, tag.into());
            }
        }
        b"evicted" => {
            ended(engine, db, key);
            engine.gone(db, key);
            if !key.starts_with(OWN_KEYS) {
                engine.process.metrics.evictions(&engine.family_of(db, key));
            }
            if let Some(tag) = key.strip_prefix(LABEL_SETS) {
                tokio::task::spawn_local(super::label_upkeep::restore(Rc::clone(engine), db, tag.into()));
            } else if let Some(tag) = key.strip_prefix(EPOCHS) {
                tokio::task::spawn_local(epoch_gone(Rc::clone(engine), tag.into(), "was evicted"));
            }
        }
        _ => {}
    }
}

/// Redis also reports the end of a key that nobody wrote as a change of it.
fn ended(engine: &Engine, db: u32, key: &[u8]) {
    let has_triggers = engine.matcher.borrow_mut().classify(db, key).has_triggers;
    if has_triggers && !engine.feed.made.borrow().contains(key) {
        engine.feed.ended.borrow_mut().insert(key.into());
    }
}

fn split_channel(channel: &[u8]) -> Option<(u32, &[u8])> {
    let rest = channel.strip_prefix(b"__keyevent@")?;
    let end = memchr::memchr(b'_', rest)?;
    let db = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((db, rest[end..].strip_prefix(b"__:")?))
}

/// Epochs outlive the time for which fills are watched. Not if the clock of Redis was set, or this proxy's stood still, as that of
/// a machine does which sleeps: then it is no better than evicted. Of one that was found at the start nobody knows its age.
fn epoch_expired(engine: &Rc<Engine>, tag: Tag) {
    if engine.process.epochs.announced_since(&tag, watched_since(engine)) {
        tokio::task::spawn_local(epoch_gone(Rc::clone(engine), tag, "expired too early"));
    }
}

/// Of what was invalidated before that no stale fill is watched any more.
fn watched_since(engine: &Engine) -> Moment {
    engine.moment().saturating_sub(engine.longest_window())
}

/// Until it was gone it told stale fills from fresh ones. What was filled since is deleted once more, with a new epoch. It
/// may be gone before its announcement came, which has come behind the barrier.
async fn epoch_gone(engine: Rc<Engine>, tag: Tag, how: &str) {
    engine.feed.barrier(vec![], &engine).await;
    if engine.process.epochs.invalidated_since(&tag, watched_since(&engine)) {
        let what = format!("its epoch {how}");
        let rules = engine.rules_since(watched_since(&engine));
        engine.seen_by_all(Firing::unconditional(TriggerLabel::Again, vec![tag], rules, what));
    }
}

fn message(engine: &Rc<Engine>, channel: &[u8], payload: &[u8]) {
    if channel == CHANNEL {
        asked_for(engine, payload);
    } else if channel == NEWS {
        super::label_news::heard(engine, payload);
    } else if channel == peers::CHANNEL && !Message::decode(payload, |message| engine.told(message)) {
        tracing::debug!("a message on the proxies' channel is none of theirs");
    }
}

/// A message on the invalidation channel.
fn asked_for(engine: &Rc<Engine>, payload: &[u8]) {
    if engine.process.own_triggers.covers_message(payload) {
        return;
    }
    let tags = tags_of_message(payload);
    if !tags.is_empty() {
        engine.seen_by_all(Firing::unconditional(
            TriggerLabel::Publish,
            tags,
            engine.present_rules(),
            format!("PUBLISH {}", String::from_utf8_lossy(CHANNEL)),
        ));
    }
}

/// A key under a tracked prefix was written, by us or past us.
fn written(engine: &Rc<Engine>, key: &[u8]) {
    if let Some(tag) = key.strip_prefix(LABEL_SETS) {
        engine.label_changes.seen_change(tag.into());
    }
    engine.feed.made.borrow_mut().remove(key);
    let unwritten = engine.feed.ended.borrow_mut().remove(key);
    if unwritten || key.starts_with(OWN_KEYS) || engine.process.own_triggers.covers_key(key) {
        return;
    }
    // Redis does not say in which database.
    let db = engine.first_database();
    let mut fired = vec![];
    engine.matcher.borrow_mut().fired(db, key, None, &mut fired);
    for one in fired {
        engine.seen_by_all(Firing::unconditional(
            TriggerLabel::Rule(one.trigger),
            one.tags,
            engine.present_rules(),
            format!("a write of {}", String::from_utf8_lossy(key)),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels() {
        assert_eq!(split_channel(b"__keyevent@12__:new"), Some((12, b"new".as_slice())));
        for bad in [b"__keyevent@__:new".as_slice(), b"x", b"__keyevent@1_:new", b"__keyspace@0__:k"] {
            assert_eq!(split_channel(bad), None);
        }
    }
}
