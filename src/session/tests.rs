//! What requests of each kind do to a session, and what their replies do.

use super::*;
use crate::resp::OwnedArgs;

fn route(session: &mut Session, kind: Kind, words: &str) -> Route {
    let args: OwnedArgs = words.split(' ').collect();
    match session.route(kind, args.as_args(), matches!(kind, Kind::Blocking)) {
        Route::Silence => session.client_reply(args.as_args()),
        route => route,
    }
}

fn forward(session: &mut Session, kind: Kind, words: &str) -> Forward {
    match route(session, kind, words) {
        Route::Forward(forward) => forward,
        other => panic!("{words}: {other:?}"),
    }
}

const OK: Head<'static> = Head::Simple(b"OK");
const ERR: Head<'static> = Head::Error(b"ERR");

#[test]
fn plain_commands_share() {
    let mut session = Session::default();
    let get = forward(&mut session, Kind::Plain, "GET k");
    assert!(!get.own && !get.sync && !get.queued && !get.silent);
    assert!(session.is_plain());
}

#[test]
fn a_transaction_owns_until_exec() {
    let mut session = Session::default();
    assert!(forward(&mut session, Kind::Watch, "WATCH k").own);
    assert!(forward(&mut session, Kind::Multi, "MULTI").own);
    assert!(forward(&mut session, Kind::Plain, "SET k v").queued);
    assert!(!forward(&mut session, Kind::Multi, "MULTI").queued);
    let exec = forward(&mut session, Kind::Exec, "EXEC");
    assert!(exec.own);
    assert_eq!(exec.effect, Effect::Exec);
    assert!(!session.needs_own());
    // Without MULTI, Redis's error needs no connection of one's own.
    assert!(!forward(&mut session, Kind::Exec, "EXEC").own);
}

#[test]
fn discard_and_unwatch_travel_where_the_state_is() {
    let mut session = Session::default();
    forward(&mut session, Kind::Multi, "MULTI");
    let discard = forward(&mut session, Kind::Discard, "DISCARD");
    assert!(discard.own && discard.sync);
    session.replied(discard.effect, &OK);
    assert!(!session.needs_own());
    forward(&mut session, Kind::Watch, "WATCH k");
    let unwatch = forward(&mut session, Kind::Unwatch, "UNWATCH");
    assert!(unwatch.own && unwatch.sync);
    session.replied(unwatch.effect, &OK);
    assert!(!session.needs_own());
}

#[test]
fn discard_without_multi_keeps_what_is_watched() {
    let mut session = Session::default();
    forward(&mut session, Kind::Watch, "WATCH k");
    let discard = forward(&mut session, Kind::Discard, "DISCARD");
    assert!(discard.own && discard.effect == Effect::None);
    assert!(session.needs_own());
    assert!(forward(&mut session, Kind::Multi, "MULTI").own);
}

#[test]
fn what_redis_refuses_to_end_goes_on() {
    let mut session = Session::default();
    forward(&mut session, Kind::Watch, "WATCH k");
    let unwatch = forward(&mut session, Kind::Unwatch, "UNWATCH");
    assert!(session.replied(unwatch.effect, &ERR));
    assert!(session.needs_own());
    forward(&mut session, Kind::Multi, "MULTI");
    let discard = forward(&mut session, Kind::Discard, "DISCARD");
    assert!(session.replied(discard.effect, &ERR));
    assert!(session.in_multi());
    forward(&mut session, Kind::Exec, "EXEC");
    assert!(!session.needs_own());
}

#[test]
fn authentication_counts_when_redis_says_so() {
    let mut session = Session::default();
    let auth = forward(&mut session, Kind::Auth, "AUTH joe secret");
    assert!(auth.own && auth.sync);
    session.replied(auth.effect.clone(), &ERR);
    assert_eq!(session.identity, Identity::Unknown);
    session.replied(auth.effect, &OK);
    assert_eq!(session.identity, Identity::user(Some(b"joe"), b"secret"));
    assert!(!format!("{session:?}").contains("secret"));
}

#[test]
fn hello_changes_protocol_and_identity_together() {
    let mut session = Session::default();
    let hello = forward(&mut session, Kind::Hello, "HELLO 3 AUTH joe pw SETNAME me");
    assert!(session.replied(hello.effect, &Head::Map(7)));
    assert_eq!((session.resp, session.identity.clone()), (3, Identity::user(Some(b"joe"), b"pw")));
    assert_eq!(session.label.as_ref().map(|label| &*label.name), Some(b"me".as_slice()));
    let broken = forward(&mut session, Kind::Hello, "HELLO 4");
    assert_eq!(broken.effect, Effect::None);
}

#[test]
fn select_moves_only_on_success() {
    let mut session = Session::default();
    let select = forward(&mut session, Kind::Select, "SELECT 7");
    assert!(select.own && select.sync);
    session.replied(select.effect.clone(), &ERR);
    assert_eq!((session.db, session.needs_own()), (0, false));
    let select = forward(&mut session, Kind::Select, "SELECT 7");
    session.replied(select.effect, &OK);
    assert_eq!(session.db, 7);
}

#[test]
fn names_and_libraries_move_with_their_replies() {
    let mut session = Session::default();
    let name = forward(&mut session, Kind::ClientSetName, "CLIENT SETNAME me");
    assert!(name.own && name.sync);
    session.replied(name.effect.clone(), &ERR);
    assert_eq!((session.label.clone(), session.needs_own()), (None, false));
    session.replied(name.effect, &OK);
    let library = forward(&mut session, Kind::ClientSetInfo, "CLIENT SETINFO lib-NAME redis-py");
    session.replied(library.effect, &OK);
    let label = Label { name: b"me".to_vec(), library: b"redis-py".to_vec(), version: vec![] };
    assert_eq!(session.label.as_deref(), Some(&label));
    // As with Redis, the library outlives RESET and the name does not.
    session.reset();
    assert_eq!(session.label.as_deref(), Some(&Label { name: vec![], ..label }));
    let none = forward(&mut session, Kind::ClientSetInfo, "CLIENT SETINFO LIB-NAME ");
    session.replied(none.effect, &OK);
    assert_eq!(session.label, None);
    for wrong in ["CLIENT SETINFO LIB-AGE 7", "CLIENT SETINFO LIB-NAME"] {
        assert_eq!(forward(&mut session, Kind::ClientSetInfo, wrong).effect, Effect::None, "{wrong}");
    }
}

#[test]
fn subscriptions_are_counted_by_their_confirmations() {
    let mut session = Session::default();
    let subscribe = forward(&mut session, Kind::Subscribe, "SUBSCRIBE a b");
    assert!(subscribe.own && !session.has_subscriptions());
    session.confirmed(SubscriptionKind::Channel, 1);
    session.confirmed(SubscriptionKind::Channel, 2);
    session.replied(subscribe.effect, &Head::Array(3));
    let more = forward(&mut session, Kind::PSubscribe, "PSUBSCRIBE p*");
    session.confirmed(SubscriptionKind::Pattern, 3);
    session.replied(more.effect, &Head::Array(3));
    let none = forward(&mut session, Kind::Unsubscribe, "UNSUBSCRIBE");
    assert_eq!(session.confirmations(SubscriptionKind::Channel), 2);
    session.confirmed(SubscriptionKind::Channel, 2);
    session.confirmed(SubscriptionKind::Channel, 1);
    session.replied(none.effect, &Head::Array(3));
    assert!(session.needs_own());
    let last = forward(&mut session, Kind::PUnsubscribe, "PUNSUBSCRIBE p*");
    session.confirmed(SubscriptionKind::Pattern, 0);
    session.replied(last.effect, &Head::Array(3));
    assert!(!session.needs_own());
}

#[test]
fn client_reply_is_ours() {
    let mut session = Session::default();
    assert_eq!(route(&mut session, Kind::ClientReply, "CLIENT REPLY SKIP"), Route::Swallow);
    assert!(forward(&mut session, Kind::Plain, "GET k").silent);
    assert!(!forward(&mut session, Kind::Plain, "GET k").silent);
    assert_eq!(route(&mut session, Kind::ClientReply, "CLIENT REPLY OFF"), Route::Swallow);
    assert!(forward(&mut session, Kind::Plain, "GET k").silent);
    assert!(forward(&mut session, Kind::Plain, "GET k").silent);
    assert_eq!(route(&mut session, Kind::ClientReply, "CLIENT REPLY ON"), Route::Local(Local::Ok));
    assert!(session.is_plain());
}

#[test]
fn who_wants_no_replies_gets_none_from_the_proxy_either() {
    let mut session = Session::default();
    route(&mut session, Kind::ClientReply, "CLIENT REPLY SKIP");
    assert!(matches!(route(&mut session, Kind::ClientReply, "CLIENT REPLY MAYBE"), Route::Swallow));
    assert!(matches!(route(&mut session, Kind::ClientReply, "CLIENT REPLY MAYBE"), Route::Local(_)));
    route(&mut session, Kind::ClientReply, "CLIENT REPLY OFF");
    assert_eq!(route(&mut session, Kind::Quit, "QUIT"), Route::Cut);
}

#[test]
fn blocking_owns_until_it_ends() {
    let mut session = Session::default();
    let block = forward(&mut session, Kind::Blocking, "BLPOP k 0");
    assert!(block.own && session.is_blocked());
    session.replied(block.effect, &Head::Null);
    assert!(!session.needs_own());
}

#[test]
fn sticky_state_stays_until_reset() {
    let mut session = Session::default();
    assert!(forward(&mut session, Kind::ConnectionState, "CLIENT TRACKING ON").own);
    assert!(session.needs_own() && session.is_asked_elsewhere());
    // As whom it goes on is not known.
    let hello = forward(&mut session, Kind::Hello, "HELLO 3 AUTH joe pw SETNAME me");
    session.replied(hello.effect, &ERR);
    assert!(session.needs_own() && !session.is_asked_elsewhere());
    session.reset();
    assert!(!session.needs_own());
}

#[test]
fn a_refused_multi_is_none() {
    let mut session = Session::default();
    let multi = forward(&mut session, Kind::Multi, "MULTI");
    assert!(session.in_multi());
    session.replied(multi.effect, &ERR);
    assert!(!session.in_multi() && !session.needs_own());
    // A second one that was sent before the refusal of the first is not touched by it.
    let first = forward(&mut session, Kind::Multi, "MULTI");
    forward(&mut session, Kind::Exec, "EXEC");
    forward(&mut session, Kind::Multi, "MULTI");
    session.replied(first.effect, &ERR);
    assert!(session.in_multi());
}

#[test]
fn a_wrong_discard_keeps_the_watch() {
    let mut session = Session::default();
    forward(&mut session, Kind::Watch, "WATCH k");
    assert!(forward(&mut session, Kind::Discard, "DISCARD").own);
    assert!(session.needs_own());
}
