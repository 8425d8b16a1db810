//! A Redis that comes back with old data, and what is not known of what had been invalidated there: by another proxy that is gone
//! along with it, or by labels that nobody has any more.

use std::time::Duration;

use crate::support::{Folder, Proxy, RULES, Redis, eventually};

const KEY: &str = "app:1:tools_1";

/// A Redis that saves when it is told to, and lets a proxy have a user of its own. Another one may delete nothing once it has
/// started anew.
fn with_snapshot() -> Redis {
    let user = ["--user", "own", "on", ">pw", "~*", "&*", "+@all"];
    let weak = ["--user", "weak", "on", ">pw", "~*", "&*", "+@all", "-unlink"];
    let options = ["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no"];
    let redis = Redis::with(&[options.as_slice(), &user, &weak].concat());
    redis.client().cmd("ACL SETUSER weak +unlink");
    redis
}

/// By the first of them.
fn launch(redis: &Redis, rules: &str) -> Proxy {
    launch_by("own", redis, rules)
}

fn launch_by(user: &str, redis: &Redis, rules: &str) -> Proxy {
    let proxy = Proxy::launch(&format!("redis://{user}:pw@127.0.0.1:{}", redis.port), rules, &[]);
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

fn know_each_other(proxies: &[&Proxy]) {
    for proxy in proxies {
        eventually("it knows the other", || proxy.log().contains("another proxy is there").then_some(()));
    }
}

/// The value that was invalidated is not served until it is deleted.
fn is_not_served(redis: &Redis, proxy: &Proxy) {
    let mut direct = redis.client();
    eventually("it is deleted", || {
        assert_eq!(first_read(proxy, KEY), "$-1\r\n");
        (direct.cmd(&format!("EXISTS {KEY}")) == ":0\r\n").then_some(())
    });
}

/// The dying proxy has invalidated what was saved; the other one serves nothing of it.
fn dies_along(mut redis: Redis, mut dying: Proxy, staying: &Proxy) {
    dying.kill();
    redis.kill();
    redis.restart();
    assert_eq!(first_read(staying, KEY), "$-1\r\n");
    staying.ready();
    is_not_served(&redis, staying);
}

/// What one of them has invalidated was saved; the other has not heard it, and has heard all of the last `replay_window` before.
fn with_a_gap(redis: &Redis, user: &str) -> (Proxy, Proxy) {
    let rules = format!("{RULES}\n[journal]\nreplay_window = \"3s\"\n");
    let (other, cut) = (launch_by(user, redis, &rules), launch(redis, &rules));
    know_each_other(&[&other, &cut]);
    std::thread::sleep(Duration::from_millis(3500));
    redis.client().cmd(&format!("SET {KEY} old"));
    redis.client().cmd("SAVE");
    lose_feed(redis, &cut);
    assert_eq!(other.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
    (other, cut)
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
        know_each_other(&[&staying]);
        dies_along(redis, dying, &staying);
    }
}

/// It has heard all of the last `replay_window`, but not what came right before Redis was another one.
#[test]
fn nor_what_it_had_invalidated_last() {
    let redis = with_snapshot();
    let (dying, staying) = with_a_gap(&redis, "default");
    dies_along(redis, dying, &staying);
}

/// The one that stays waits for the other, which might be about to repeat that, and dies as well: the next one has it all to do.
#[test]
fn nor_if_it_is_restarted_before_it_has_given_up_the_other() {
    for orderly in [true, false] {
        let mut redis = with_snapshot();
        let (mut dying, mut staying) = with_a_gap(&redis, "default");
        dying.kill();
        redis.kill();
        redis.restart();
        let news = "Redis is not the one that it was";
        eventually("it has noticed", || staying.log().contains(news).then_some(()));
        // It looks once a second who Redis is.
        std::thread::sleep(Duration::from_millis(1200));
        if orderly {
            staying.signal("-TERM");
            staying.wait();
        } else {
            staying.kill();
        }
        staying.start_again(&[]);
        is_not_served(&redis, &staying);
    }
}

/// It is there again, but cannot repeat it.
#[test]
fn nor_if_it_is_there_and_gets_nothing_done() {
    let mut redis = with_snapshot();
    let (_weak, staying) = with_a_gap(&redis, "weak");
    redis.kill();
    redis.restart();
    is_not_served(&redis, &staying);
}

/// What both know they repeat, and nothing more.
#[test]
fn proxies_that_have_heard_everything_repeat_no_more_than_that() {
    let mut redis = with_snapshot();
    let rules = format!("{RULES}\n[journal]\nreplay_window = \"3s\"\n");
    let good = "app:1:blog_posts_1";
    let proxies = [launch(&redis, &rules), launch(&redis, &rules)];
    know_each_other(&[&proxies[0], &proxies[1]]);
    let mut is_kept = || {
        std::thread::sleep(Duration::from_millis(3500));
        redis.client().cmd(&format!("MSET {KEY} old {good} good"));
        redis.client().cmd("SAVE");
        assert_eq!(proxies[0].client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
        redis.kill();
        redis.restart();
        for proxy in &proxies {
            is_not_served(&redis, proxy);
            proxy.ready();
        }
        redis.client().cmd(&format!("GET {good}")) == "$4\r\ngood\r\n"
    };
    // One of them may have come too late.
    assert!((0..5).any(|_| is_kept()));
}

/// It stands still when the other starts, which gets no answer from it.
#[test]
fn nor_what_a_proxy_had_invalidated_that_stands_still() {
    let mut redis = with_snapshot();
    let still = Proxy::start(&redis, RULES);
    redis.client().cmd(&format!("SET {KEY} old"));
    redis.client().cmd("SAVE");
    assert_eq!(still.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
    still.signal("-STOP");
    let staying = launch(&redis, RULES);
    redis.kill();
    redis.restart();
    is_not_served(&redis, &staying);
    drop(still);
}

/// All start again at once, with one folder of journals: the first takes over what there is, and cannot repeat it.
#[test]
fn nor_if_the_next_one_finds_nothing_to_take_over() {
    let (mut redis, journal) = (with_snapshot(), Folder::new());
    let rules = format!("{RULES}\n[journal]\npath = \"{}\"\n", journal.0.display());
    let (mut first, mut second) = (launch_by("weak", &redis, &rules), launch(&redis, &rules));
    redis.client().cmd(&format!("SET {KEY} old"));
    redis.client().cmd("SAVE");
    assert_eq!(first.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
    first.kill();
    second.kill();
    redis.kill();
    redis.restart();
    first.start_again(&[]);
    let news = "Redis is not the one that it was";
    eventually("it has noticed", || first.log().contains(news).then_some(()));
    // Nor does it tell what it is about to do.
    first.signal("-STOP");
    second.start_again(&[]);
    is_not_served(&redis, &second);
}

/// The address of another Redis is put into the configuration, a replica say. Its own journal has not what the others did.
#[test]
fn nor_if_another_redis_with_old_data_is_to_be_used_from_now_on() {
    let (mut before, after, journal) = (with_snapshot(), with_snapshot(), Folder::new());
    let rules = format!("{RULES}\n[journal]\npath = \"{}\"\n", journal.0.display());
    let (mut dying, mut moving) = (Proxy::start(&before, RULES), launch(&before, &rules));
    know_each_other(&[&dying, &moving]);
    for redis in [&before, &after] {
        redis.client().cmd(&format!("SET {KEY} old"));
    }
    assert_eq!(dying.client().cmd("TAG.INVALIDATE Tool"), ":1\r\n");
    dying.kill();
    before.kill();
    moving.signal("-TERM");
    moving.wait();
    is_not_served(&after, &launch(&after, &rules));
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

/// A key with tags by rule as well: these nobody has invalidated.
#[test]
fn nor_what_a_label_had_deleted_that_its_key_has_besides() {
    let mut redis = Redis::with(&["--enable-debug-command", "yes"]);
    redis.client().cmd("DEBUG POPULATE 100000 filler 10");
    let proxy = Proxy::start(&redis, RULES);
    proxy.client().cmd(&format!("TAG.WITH 1 label SET {KEY} cached"));
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd("TAG.INVALIDATE label"), ":1\r\n");
    redis.kill();
    redis.restart();
    is_not_served(&redis, &proxy);
}

/// Nor if the Redis with the old data is to be used from now on, and nobody has read its labels yet.
#[test]
fn nor_what_a_label_had_deleted_at_another_address() {
    let (mut before, after, journal) =
        (with_snapshot(), Redis::with(&["--enable-debug-command", "yes"]), Folder::new());
    after.client().cmd("DEBUG POPULATE 100000 filler 10");
    let mut other = Proxy::start(&after, RULES);
    other.client().cmd(&format!("TAG.WITH 1 label SET {KEY} cached"));
    other.kill();
    let rules = format!("{RULES}\n[journal]\npath = \"{}\"\n", journal.0.display());
    let mut proxy = launch(&before, &rules);
    proxy.client().cmd(&format!("TAG.WITH 1 label SET {KEY} cached"));
    assert_eq!(proxy.client().cmd("TAG.INVALIDATE label"), ":1\r\n");
    before.kill();
    proxy.kill();
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", after.port), &rules, &[]);
    is_not_served(&after, &proxy);
}
