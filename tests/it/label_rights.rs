//! Explicit labels while Redis refuses what keeping them takes: rights that are gone for a moment, no memory. What cannot be kept,
//! or told to the other proxies, is refused; nothing that was acknowledged is lost.

use crate::support::{Client, Proxy, RULES, Redis, eventually};

struct World {
    redis: Redis,
    here: Proxy,
    there: Proxy,
    client: Client,
    direct: Client,
}

impl World {
    /// Two proxies that know of each other.
    fn new() -> Self {
        let redis = Redis::start();
        let [here, there] = [0, 1].map(|_| Proxy::start(&redis, RULES));
        let (client, direct) = (here.client(), redis.client());
        let mut w = Self { redis, here, there, client, direct };
        assert_eq!(w.client.cmd("TAG.WITH 1 t SET k old"), "+OK\r\n");
        w.known_there("k");
        w
    }

    fn may(&mut self, rights: &str) {
        assert_eq!(self.direct.cmd(&format!("ACL SETUSER default {rights}")), "+OK\r\n");
    }

    fn known_there(&self, key: &str) {
        let mut client = self.there.client();
        eventually("the other one knows the label", || {
            (client.list(&format!("TAG.OF {key}")) == ["t"]).then_some(())
        });
    }

    fn exists(&mut self, key: &str) -> bool {
        self.direct.cmd(&format!("EXISTS {key}")) == ":1\r\n"
    }

    /// The proxy that gave the labels is gone, and so is what it knew.
    fn is_found_when_this_one_has_died(&mut self, key: &str) {
        self.here.kill();
        let mut client = self.there.client();
        eventually("it is invalidated", || {
            client.cmd("TAG.INVALIDATE t");
            (!self.exists(key)).then_some(())
        });
    }
}

/// The other proxy has seen that a key was deleted, and takes the labels of its value out: it must have heard of those that the
/// next value has got meanwhile.
#[test]
fn labels_of_which_others_cannot_be_told_are_not_given() {
    for rights in ["-publish", "-publish -eval -evalsha"] {
        let mut w = World::new();
        w.there.signal("-STOP");
        w.may(rights);
        w.direct.cmd("DEL k");
        w.direct.cmd("SET added v");
        // Until it is known what may be done, it is tried in one step.
        for _ in 0..3 {
            let answer = w.client.cmd("TAG.WITH 1 t SET k new");
            assert!(answer.contains("NOPERM"), "{rights}: {answer}");
        }
        assert!(!w.exists("k"), "{rights}");
        let answer = w.client.cmd("TAG.ADD added t");
        assert!(answer.starts_with("-NOPERM") && answer.contains("cannot be told"), "{rights}: {answer}");
        w.client.cmd("MULTI");
        assert!(w.client.cmd("TAG.WITH 1 t SET k new").contains("NOPERM"), "{rights}");
        assert!(w.client.cmd("EXEC").starts_with("-EXECABORT"), "{rights}");
        w.there.signal("-CONT");
        w.may("+@all");
        eventually("it is given again", || {
            (w.client.cmd("TAG.WITH 1 t SET k new") == "+OK\r\n").then_some(())
        });
        assert_eq!(w.client.list("TAG.OF added"), [""; 0], "{rights}");
        w.known_there("k");
        w.is_found_when_this_one_has_died("k");
    }
}

#[test]
fn nor_are_they_taken_away() {
    for rights in ["-publish", "-publish -eval -evalsha"] {
        let mut w = World::new();
        w.may(rights);
        for _ in 0..3 {
            let answer = w.client.cmd("TAG.REM k t");
            assert!(answer.contains("NOPERM"), "{rights}: {answer}");
        }
        assert_eq!(w.client.list("TAG.OF k"), ["t"], "{rights}");
        w.may("+@all");
        eventually("it is taken away", || (w.client.cmd("TAG.REM k t") == ":1\r\n").then_some(()));
        assert_eq!(w.direct.list("ZRANGE rescind:tag:t 0 -1"), [""; 0], "{rights}");
    }
}

#[test]
fn a_proxy_alone_needs_not_tell_anybody() {
    let redis = Redis::start();
    let mut direct = redis.client();
    assert_eq!(direct.cmd("ACL SETUSER default -publish"), "+OK\r\n");
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    let mut is_given = |given: &str, answer: &str| {
        eventually(given, || client.cmd("TAG.WITH 1 t SET k v").starts_with(answer).then_some(()));
    };
    is_given("it is known to be alone", "+OK");
    let other = Proxy::start(&redis, RULES);
    is_given("it is not any more", "-NOPERM");
    assert!(other.client().cmd("TAG.WITH 1 t SET l v").starts_with("-NOPERM"));
    assert_eq!(direct.cmd("ACL SETUSER default +@all"), "+OK\r\n");
    is_given("they can be told", "+OK");
    assert_eq!(client.cmd("TAG.INVALIDATE t"), ":1\r\n");
}

/// The client gets no reply, and what it asks for afterwards gets its own.
#[test]
fn who_wants_no_reply_gets_no_refusal() {
    let mut w = World::new();
    w.may("-publish");
    for silence in ["OFF", "SKIP"] {
        for multi in [false, true] {
            let mut client = w.here.client();
            if multi {
                assert_eq!(client.cmd("MULTI"), "+OK\r\n");
            }
            client.request(&["CLIENT", "REPLY", silence]);
            client.request(&["RENAME", "k", "l"]);
            if silence == "OFF" {
                client.request(&["CLIENT", "REPLY", "ON"]);
                assert_eq!(client.reply(), "+OK\r\n", "multi: {multi}");
            }
            match multi {
                true => assert!(client.cmd("EXEC").starts_with("-EXECABORT"), "{silence}"),
                false => assert_eq!(client.cmd("PING"), "+PONG\r\n", "{silence}"),
            }
        }
    }
    assert!(w.exists("k"));
}

#[test]
fn what_fails_by_itself_is_not_refused_for_the_sake_of_labels() {
    let mut w = World::new();
    let direct = w.direct.cmd("MOVE k 99");
    assert_eq!(w.client.cmd("MOVE k 99"), direct);
    assert_eq!(w.client.cmd("MULTI"), "+OK\r\n");
    assert_eq!(w.client.cmd("SET other v"), "+QUEUED\r\n");
    assert_eq!(w.client.cmd("MOVE k 99"), "+QUEUED\r\n");
    assert!(w.client.cmd("EXEC").starts_with("*2"));
    assert!(w.exists("other"));
    assert_eq!(w.client.list("TAG.OF k"), ["t"]);
}

/// Who may not subscribe when its feed is connected asks again.
#[test]
fn a_proxy_that_could_not_listen_for_a_moment_hears_of_labels_again() {
    let mut w = World::new();
    w.may("-subscribe");
    w.direct.cmd("CLIENT KILL TYPE pubsub");
    eventually("it is said", || {
        let both = [&w.here, &w.there];
        both.iter()
            .all(|proxy| proxy.log().contains("SUBSCRIBE rescind:labels is not possible"))
            .then_some(())
    });
    w.may("+@all");
    assert_eq!(w.client.cmd("TAG.WITH 1 t SET l v"), "+OK\r\n");
    w.known_there("l");
    let mut others = w.there.client();
    assert_eq!(others.cmd("RENAME l m"), "+OK\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":2\r\n");
    assert!(!w.exists("m"));
}

/// `RENAME` needs no memory, but its label does.
#[test]
fn a_value_stays_where_it_is_if_its_label_cannot_follow() {
    for command in ["RENAME k l", "MOVE k 1", "MULTI"] {
        let mut w = World::new();
        w.direct.cmd("CONFIG SET maxmemory-policy noeviction maxmemory 1");
        let answer = w.client.cmd(command);
        if command == "MULTI" {
            let answer = w.client.cmd("RENAME k l");
            assert!(answer.starts_with("-OOM") && answer.contains("cannot follow"), "{answer}");
            assert!(w.client.cmd("EXEC").starts_with("-EXECABORT"));
        } else {
            assert!(answer.starts_with("-OOM") && answer.contains("cannot follow"), "{command}: {answer}");
        }
        w.direct.cmd("CONFIG SET maxmemory 0");
        assert!(w.exists("k"), "{command}");
        assert_eq!(w.client.list("TAG.OF k"), ["t"], "{command}");
        assert_eq!(w.client.list("TAG.OF l"), [""; 0], "{command}");
        assert_eq!(w.direct.list("ZRANGE rescind:tag:t 0 -1"), ["k"], "{command}");
        assert_eq!(w.client.cmd("RENAME k l"), "+OK\r\n");
        w.is_found_when_this_one_has_died("l");
    }
}

/// Which labels a key has is not known yet: it is not moved without them.
#[test]
fn a_value_stays_where_it_is_until_its_labels_are_known() {
    let mut w = World::new();
    w.may("-zscan");
    w.here.kill();
    w.here.start_again(&[]);
    let mut client = w.here.client();
    let answer = client.cmd("RENAME k l");
    assert!(answer.starts_with("-TRYAGAIN"), "{answer}");
    assert_eq!(client.cmd("MULTI"), "+OK\r\n");
    client.cmd("RENAME k l");
    assert!(client.cmd("EXEC").starts_with("-EXECABORT"));
    assert!(w.exists("k"));
    w.may("+@all");
    eventually("they are read", || (client.cmd("RENAME k l") == "+OK\r\n").then_some(()));
    assert_eq!(client.cmd("TAG.INVALIDATE t"), ":1\r\n");
    assert!(!w.exists("l"));
}

/// Whether another proxy has died Redis does not say: what is written is taken for stale, and nobody waits.
#[test]
fn labels_are_given_without_the_right_to_ask_who_listens() {
    let mut w = World::new();
    w.may("-pubsub");
    let mut client = w.here.client();
    let mut is_written = || {
        eventually("it is known what may be done", || {
            let answer = client.cmd("TAG.WITH 1 t SET l v");
            assert!(answer == "+OK\r\n" || answer.starts_with("-NOPERM"), "{answer}");
            (answer == "+OK\r\n").then_some(())
        });
    };
    is_written();
    assert!(w.exists("l"), "nothing was invalidated");
    assert_eq!(w.there.client().cmd("TAG.INVALIDATE t"), ":2\r\n");
    is_written();
    assert!(!w.exists("l"), "it may be from before");
    drop(w.redis);
}
