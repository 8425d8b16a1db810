//! A Redis that comes back with old data, and what is not known of what had been invalidated there: by another proxy that is gone
//! along with it, or by labels that nobody has any more.

use std::time::Duration;

use crate::support::{Proxy, RULES, Redis, eventually};

const KEY: &str = "app:1:tools_1";

/// A Redis that saves when it is told to, and lets a proxy have a user of its own.
fn with_snapshot() -> Redis {
    let user = ["--user", "own", "on", ">pw", "~*", "&*", "+@all"];
    let options = ["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no"];
    Redis::with(&[options.as_slice(), &user].concat())
}

/// By that user.
fn launch(redis: &Redis, rules: &str) -> Proxy {
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), rules, &[]);
    proxy.ready();
    proxy
}

/// The first read that is answered once Redis is reached again.
fn first_read(proxy: &Proxy, key: &str) -> String {
    eventually("Redis is reached", || {
        let reply = proxy.client().cmd(&format!("GET {key}"));
        (!reply.starts_with('-')).then_some(reply)
    })
}

fn lose_feed(redis: &Redis, proxy: &Proxy) {
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own off");
    assert_eq!(direct.cmd("CLIENT KILL TYPE pubsub USER own"), ":1\r\n");
    eventually("the feed is lost", || proxy.log().contains("feed lost").then_some(()));
}

/// The dying proxy has invalidated what was saved; the other one serves nothing of it.
fn dies_along(mut redis: Redis, mut dying: Proxy, staying: &Proxy) {
    dying.kill();
    redis.kill();
    redis.restart();
    assert_eq!(first_read(staying, KEY), "$-1\r\n");
    staying.ready();
    assert_eq!(first_read(staying, KEY), "$-1\r\n");
    let mut direct = redis.client();
    eventually("it is deleted", || (direct.cmd(&format!("EXISTS {KEY}")) == ":0\r\n").then_some(()));
}

/// The other one came later, or has not heard it because its feed was lost for a moment.
#[test]
fn what_a_proxy_had_invalidated_that_dies_along_does_not_come_back() {
    for later in [true, false] {
        let redis = with_snapshot();
        let dying = Proxy::start(&redis, RULES);
        let before = (!later).then(|| launch(&redis, RULES));
        redis.client().cmd(&format!("SET {KEY} old"));
        redis.client().cmd("SAVE");
        before.iter().for_each(|staying| lose_feed(&redis, staying));
        assert_eq!(dying.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
        redis.client().cmd("ACL SETUSER own on");
        let staying = before.unwrap_or_else(|| launch(&redis, RULES));
        staying.ready();
        eventually("it knows the other", || staying.log().contains("another proxy is there").then_some(()));
        dies_along(redis, dying, &staying);
    }
}

/// It has heard all of the last `replay_window`, but not what came right before Redis was another one.
#[test]
fn nor_what_it_had_invalidated_last() {
    let rules = format!("{RULES}\n[journal]\nreplay_window = \"1s\"\n");
    let redis = with_snapshot();
    let (dying, staying) = (Proxy::start(&redis, &rules), launch(&redis, &rules));
    eventually("they know each other", || dying.log().contains("another proxy is there").then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    redis.client().cmd(&format!("SET {KEY} old"));
    redis.client().cmd("SAVE");
    lose_feed(&redis, &staying);
    assert_eq!(dying.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
    dies_along(redis, dying, &staying);
}

/// The one that starts again finds no labels: the last one is gone with what it had deleted.
#[test]
fn nor_what_the_last_label_had_deleted_if_only_the_proxy_was_restarted_in_between() {
    let mut redis = Redis::with(&["--enable-debug-command", "yes"]);
    redis.client().cmd("DEBUG POPULATE 100000 filler 10");
    let mut proxy = Proxy::start(&redis, RULES);
    proxy.client().cmd("TAG.WITH 1 label SET page cached");
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd("TAG.INVALIDATE label"), ":1\r\n");
    for round in 0..2 {
        proxy.signal("-TERM");
        proxy.wait();
        proxy.start_again(&[]);
        proxy.ready();
        redis.kill();
        redis.restart();
        assert_eq!(first_read(&proxy, "page"), "$-1\r\n", "round {round}");
        proxy.ready();
    }
}
