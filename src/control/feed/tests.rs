//! What is sent on the feed, in which order, and which reply ends a barrier.

use std::sync::Arc;

use super::*;
use crate::accounting::TriggerLabel;
use crate::rules::{Rules, TriggerId};

fn connected() -> (Feed, OwnTriggers) {
    let feed = Feed::default();
    feed.connected.set(true);
    (feed, OwnTriggers::default())
}

fn begun(epoch: &str) -> Announcement {
    let (proxy, epoch) = (b"p".as_slice().into(), epoch.as_bytes().into());
    Announcement::Begun { proxy, epoch, tags: [b"t".as_slice().into()].into(), lifetime: 10, follows: false }
}

fn firing(key: &[u8]) -> Firing {
    let (label, rules) = (TriggerLabel::Rule(TriggerId(0)), Arc::new(Rules::empty()));
    let mut firing = Firing::unconditional(label, vec![], rules, String::new());
    firing.keys.push((0, key.into()));
    firing
}

/// Queues what waits; the commands, as texts.
fn queued(feed: &Feed) -> Vec<String> {
    let mut commands = vec![];
    let note = Note { mark: b"p.1", lifetime: Some(10) };
    let note = announcement::is_noted(&feed.unsaid.borrow()).then_some(&note);
    feed.queue(note, |words| commands.push(String::from_utf8_lossy(&words.join(&b' ')).into_owned()));
    commands
}

fn place(commands: &[String], start: &str) -> usize {
    commands.iter().position(|command| command.starts_with(start)).unwrap()
}

#[test]
fn a_barrier_goes_behind_all_that_was_said_before_it_is_sent() {
    let (feed, own) = connected();
    // Whatever came first.
    let mut first = feed.ask(vec![]);
    assert!(feed.say(begun("p-1")));
    let mut second = feed.ask(vec![]);
    assert!(feed.say(begun("p-2")));
    let commands = queued(&feed);
    let order = ["SET rescind:epoch:t p-2", "LPUSH rescind:recent", "PUBLISH", "PING"];
    assert!(order.map(|start| place(&commands, start)).is_sorted(), "{commands:?}");
    assert_eq!(place(&commands, "PING"), commands.len() - 1, "one for both, behind all: {commands:?}");
    // It passes with the reply to its PING, also where announcements are refused.
    for number in 1..commands.len() {
        let reply = if number == 1 { Err(b"OOM".as_slice()) } else { Ok(()) };
        feed.answered(&own, reply).unwrap();
        assert!(first.try_recv().is_err() && second.try_recv().is_err(), "after {number} replies");
    }
    feed.answered(&own, Ok(())).unwrap();
    assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
    assert!(queued(&feed).is_empty(), "nothing is said twice");
}

#[test]
fn what_is_asked_for_later_gets_a_barrier_of_its_own() {
    let (feed, own) = connected();
    let mut before = feed.ask(vec![]);
    assert_eq!(queued(&feed), ["PING"]);
    let mut behind = feed.ask(vec![]);
    assert_eq!(queued(&feed), ["PING"]);
    feed.answered(&own, Ok(())).unwrap();
    assert!(before.try_recv().is_ok() && behind.try_recv().is_err());
    feed.answered(&own, Ok(())).unwrap();
    assert!(behind.try_recv().is_ok());
}

#[test]
fn own_triggers_are_covered_until_their_barrier_passes() {
    let (feed, own) = connected();
    let (fired, other) = (firing(b"k"), firing(b"other"));
    [&fired, &other].into_iter().for_each(|firing| own.enter(firing));
    let asked = feed.ask(vec![fired]);
    assert_eq!(queued(&feed), ["PING"]);
    assert!(own.covers_key(b"k"));
    feed.answered(&own, Ok(())).unwrap();
    assert!(!own.covers_key(b"k") && own.covers_key(b"other"));
    drop(asked);
}

#[test]
fn a_barrier_that_is_refused_or_lost_has_not_passed() {
    let (feed, own) = connected();
    let (fired, later) = (firing(b"k"), firing(b"later"));
    [&fired, &later].into_iter().for_each(|firing| own.enter(firing));
    let mut refused = feed.ask(vec![fired.clone()]);
    queued(&feed);
    assert!(feed.answered(&own, Err(b"NOPERM")).is_err(), "the connection cannot go on");
    assert!(refused.try_recv().is_err() && !own.covers_key(b"k"));
    own.enter(&fired);
    let mut lost = [feed.ask(vec![fired]), feed.ask(vec![])];
    queued(&feed);
    let mut unsent = feed.ask(vec![later]);
    feed.say(begun("p-1"));
    feed.lost(&own);
    lost.iter_mut().chain([&mut unsent]).for_each(|one| assert!(one.try_recv().is_err()));
    assert!(!own.covers_key(b"k") && !own.covers_key(b"later"), "nobody will cover it");
    assert!(!feed.say(begun("p-2")) && queued(&feed).is_empty());
}
