//! Explicit labels over time: scores that follow expiries, sets that do not grow, evictions, several proxies.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

struct World {
    proxy: Proxy,
    redis: Redis,
    client: Client,
    direct: Client,
}

impl World {
    fn new() -> Self {
        Self::over(Redis::start())
    }

    fn over(redis: Redis) -> Self {
        let proxy = Proxy::start(&redis, RULES);
        let (client, direct) = (proxy.client(), redis.client());
        Self { proxy, redis, client, direct }
    }

    /// The score of `key` among the labels `t` comes to be its expiry.
    fn follows(&mut self, line: &str) {
        let direct = &mut self.direct;
        eventually(&format!("the score follows {line}"), || {
            let expiry = direct.list("PEXPIRETIME k")[0].clone();
            let expiry = if expiry == "-1" { "inf".to_owned() } else { expiry };
            (direct.list("ZSCORE rescind:tag:t k") == [expiry]).then_some(())
        });
    }
}

#[test]
fn scores_follow_every_way_to_change_an_expiry() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 1 t SET k v");
    w.follows("TAG.WITH");
    let at = 4_000_000_000_u64;
    for line in [
        "EXPIRE k 1000".to_owned(),
        "SET k v".to_owned(),
        "PEXPIRE k 2000000".to_owned(),
        "GETEX k PERSIST".to_owned(),
        format!("EXPIREAT k {at}"),
        "PERSIST k".to_owned(),
        format!("PEXPIREAT k {at}123"),
        "GETSET k v".to_owned(),
        "SET k v EX 3000".to_owned(),
        "SET k v KEEPTTL".to_owned(),
        "GETEX k PX 4000000".to_owned(),
        "MSET k v l v".to_owned(),
        format!("SET k v PXAT {at}456"),
        "SETEX k 5000 v".to_owned(),
        "PSETEX k 6000000 v".to_owned(),
        "SUNIONSTORE k none".to_owned(),
        "TAG.WITH 1 t SET k v EX 7000".to_owned(),
        "MULTI|EXPIRE k 8000|EXEC".to_owned(),
        "RENAME k l|RENAME l k".to_owned(),
    ] {
        let mut pipeline = vec![];
        let lines: Vec<&str> = line.split('|').collect();
        lines.iter().for_each(|line| pipeline.extend(encode(&line.split(' ').collect::<Vec<_>>())));
        w.client.send(&pipeline);
        lines.iter().for_each(|_| assert_ne!(w.client.raw()[0], b'-', "{line}"));
        if w.direct.cmd("EXISTS k") == ":0\r\n" {
            w.client.cmd("TAG.WITH 1 t SET k v");
        }
        w.follows(&line);
    }
}

/// As many at once as were not used in the last second, also of writes that wait for the journal before they are sent.
#[test]
fn scores_follow_triggers_as_often_as_other_writes() {
    let mut w = World::new();
    let keys: Vec<String> = (0..240).map(|n| format!("app:1:model:Tool:{n}")).collect();
    for key in &keys {
        assert_eq!(w.client.cmd(&format!("TAG.WITH 1 t SET {key} v")), "+OK\r\n");
    }
    std::thread::sleep(Duration::from_millis(1100));
    for key in &keys {
        assert_eq!(w.client.cmd(&format!("EXPIRE {key} 1000")), ":1\r\n");
    }
    eventually("all scores follow", || {
        let scores = w.direct.list("ZRANGE rescind:tag:t 0 -1 WITHSCORES");
        let left = scores.iter().filter(|score| *score == "inf").count();
        (scores.len() == 2 * keys.len() && left == 0).then_some(())
    });
}

#[test]
fn a_score_that_has_passed_loses_no_label() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 1 t SET k v EX 1000");
    w.follows("EX");
    // Longer, straight to Redis; and a score that nobody knows better.
    w.direct.cmd("PERSIST k");
    w.direct.cmd("ZADD rescind:tag:t 1000 k");
    let World { proxy, redis, .. } = w;
    drop(proxy);
    let mut w = World::over(redis);
    assert_eq!(w.client.list("TAG.OF k"), ["t"]);
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":1\r\n");
}

/// Members that no proxy knows go if their keys are gone, and stay if they are not.
#[test]
fn labels_of_keys_that_nobody_knows_are_swept_when_the_keys_are_gone() {
    let mut w = World::new();
    w.direct.cmd("SELECT 2");
    w.direct.cmd("SET alive v");
    let mut pipeline = vec![];
    for i in 0..300 {
        // Small sets, a large one; with and without an expiry.
        let score = if i % 2 == 0 { "inf" } else { "1000" };
        pipeline.extend(encode(&["ZADD", &format!("rescind:tag:s{i}"), score, &format!("dead{i}")]));
        pipeline.extend(encode(&["ZADD", "rescind:tag:large", score, &format!("dead{i}")]));
    }
    w.direct.send(&pipeline);
    (0..600).for_each(|_| assert_eq!(w.direct.raw(), b":1\r\n"));
    w.direct.cmd("ZADD rescind:tag:large 1000 alive");
    w.direct.cmd("ZADD rescind:tag:s0 inf alive");
    w.direct.cmd("SET rescind:tag:odd string");
    // One of them comes to exist in time.
    w.direct.cmd("SET dead7 v");
    let deadline = Instant::now() + Duration::from_secs(150);
    loop {
        let sets = w.direct.list("EVAL return(#redis.call('KEYS','rescind:tag:*')) 0");
        if sets == ["4"] && w.direct.cmd("ZCARD rescind:tag:large") == ":2\r\n" {
            break;
        }
        assert!(Instant::now() < deadline, "{sets:?} sets, {}", w.direct.cmd("ZCARD rescind:tag:large"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(w.direct.list("ZRANGE rescind:tag:large 0 -1"), ["alive", "dead7"]);
    assert_eq!(w.direct.list("ZRANGE rescind:tag:s0 0 -1"), ["alive"]);
    assert_eq!(w.direct.list("ZRANGE rescind:tag:s7 0 -1"), ["dead7"]);
    assert_eq!(w.client.cmd("TAG.INVALIDATE large"), ":2\r\n");
}

#[test]
fn nothing_is_left_of_many_short_lived_labelled_keys() {
    let redis = Redis::start();
    let second = Proxy::start(&redis, RULES);
    let mut w = World::over(redis);
    let mut clients = [w.proxy.client(), second.client()];
    for round in 0..20 {
        for client in &mut clients {
            let mut pipeline = vec![];
            for i in 0..100 {
                let (tag, key) = (format!("t{}", i % 7), format!("k{round}:{i}"));
                let ttl = (1 + i % 30).to_string();
                pipeline.extend(encode(&["TAG.WITH", "2", &tag, "all", "SET", &key, "v", "PX", &ttl]));
            }
            client.send(&pipeline);
            (0..100).for_each(|_| assert_eq!(client.raw(), b"+OK\r\n"));
        }
    }
    eventually("the sets are gone", || (w.direct.cmd("KEYS rescind:tag:*") == "*0\r\n").then_some(()));
    for client in &mut clients {
        eventually("the index forgets", || {
            let info = client.list("TAG.INFO").concat();
            (info.contains("index_keys:0\r") && info.contains("index_labels:0\r")).then_some(())
        });
    }
}

#[test]
fn labels_given_through_another_proxy_are_shown() {
    let mut w = World::new();
    let second = Proxy::start(&w.redis, RULES);
    let mut other = second.client();
    for round in 0..50 {
        let k = format!("k{round}");
        other.cmd(&format!("TAG.WITH 1 t SET {k} v"));
        assert_eq!(w.client.list(&format!("TAG.OF {k}")), ["t"]);
        assert!(w.client.list("TAG.KEYS t").contains(&k));
        w.client.cmd(&format!("TAG.ADD {k} u"));
        other.cmd(&format!("TAG.REM {k} t"));
        assert_eq!(w.client.list(&format!("TAG.OF {k}")), ["u"]);
        assert_eq!(other.list(&format!("TAG.OF {k}")), ["u"]);
        assert_eq!(other.list("TAG.KEYS u").len(), round + 1);
        assert_eq!(other.list("TAG.KEYS u COUNT 1").len(), 1);
    }
    // One that no proxy has told of: an older one, say.
    w.direct.cmd("SET quiet v");
    w.direct.cmd("ZADD rescind:tag:u inf quiet");
    assert!(w.client.list("TAG.KEYS u").contains(&"quiet".to_owned()));
    assert_eq!(w.client.cmd("TAG.INVALIDATE u"), ":51\r\n");
}

#[test]
fn messages_that_are_no_news_do_no_harm() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 1 t SET k v");
    for payload in
        ["", "Post", "*0\r\n", "*1\r\n$1\r\n1\r\n", "*4\r\n$1\r\n1\r\n$5\r\ngiven\r\n$1\r\n0\r\n$9\r\nk\r\n"]
    {
        w.direct.call(&["PUBLISH", "rescind:labels", payload]);
    }
    assert_eq!(w.client.list("TAG.OF k"), ["t"]);
    // A label that was taken out of Redis by mistake is put back.
    w.direct.cmd("ZREM rescind:tag:t k");
    let gone = String::from_utf8(encode(&["1", "forgotten", "0", "k", "t", "u"])).unwrap();
    w.direct.call(&["PUBLISH", "rescind:labels", &gone]);
    eventually("it is back", || (w.direct.list("ZRANGE rescind:tag:t 0 -1") == ["k"]).then_some(()));
    assert_eq!(w.direct.cmd("EXISTS rescind:tag:u"), ":0\r\n");
}

/// Much more is written than memory holds, so that keys and the sets of their labels are evicted all the time.
fn evict_sets(policy: &str) {
    let mut w = World::over(Redis::with(&["--maxmemory-policy", policy, "--maxmemory-samples", "1"]));
    let number = |direct: &mut Client, section: &str, name: &str| -> u64 {
        let info = direct.cmd(&format!("INFO {section}"));
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    };
    let mut events = w.redis.client();
    events.cmd("SUBSCRIBE __keyevent@0__:evicted");
    let limit = number(&mut w.direct, "memory", "used_memory:") + 3_000_000;
    w.direct.cmd(&format!("CONFIG SET maxmemory {limit}"));
    let value = "x".repeat(500);
    let write = |client: &mut Client, labelled: bool, numbers: std::ops::Range<usize>| {
        let count = numbers.len();
        let mut pipeline = vec![];
        for i in numbers {
            let (tag, key) = (format!("t{}", i / 10), format!("k{i}"));
            match labelled {
                true => pipeline.extend(encode(&["TAG.WITH", "2", &tag, "all", "SET", &key, &value])),
                false => pipeline.extend(encode(&["SET", &format!("plain{i}"), &value])),
            }
        }
        client.send(&pipeline);
        for _ in 0..count {
            let reply = client.raw();
            assert!(reply == b"+OK\r\n" || reply.starts_with(b"-OOM"), "{reply:?}");
        }
    };
    for round in 0..4 {
        write(&mut w.client, true, round * 1000..(round + 1) * 1000);
        // What is evicted is told by how long it has not been used, in seconds.
        std::thread::sleep(Duration::from_millis(1200));
        write(&mut w.direct, false, round * 1000..(round + 1) * 1000);
    }
    w.direct.cmd("CONFIG SET maxmemory 0");
    let evicted = number(&mut w.direct, "stats", "evicted_keys:");
    let sets =
        (0..evicted).filter(|_| String::from_utf8_lossy(&events.raw()).contains("rescind:tag:")).count();
    assert!(sets > 5, "{sets} sets were evicted");
    check_survivors(w);
}

fn check_survivors(mut w: World) {
    let survivors: Vec<String> = w.direct.list("KEYS k*");
    let number = |key: &str| key[1..].parse::<usize>().unwrap() / 10;
    assert!(!survivors.is_empty() && survivors.len() < 4000);
    for key in &survivors {
        for set in [format!("t{}", number(key)).as_str(), "all"] {
            let line = format!("ZSCORE rescind:tag:{set} {key}");
            eventually(&line, || (w.direct.list(&line) != ["(nil)"]).then_some(()));
        }
    }
    // A proxy that starts now knows them, too.
    let second = Proxy::start(&w.redis, RULES);
    let mut other = second.client();
    let odd: Vec<&String> = survivors.iter().filter(|key| number(key) % 2 == 1).collect();
    let tags: BTreeSet<String> = odd.iter().map(|key| format!("t{}", number(key))).collect();
    let line = format!("TAG.INVALIDATE {}", tags.into_iter().collect::<Vec<_>>().join(" "));
    assert_eq!(other.cmd(&line), format!(":{}\r\n", odd.len()));
    let left = survivors.len() - odd.len();
    assert_eq!(w.client.cmd("TAG.INVALIDATE all"), format!(":{left}\r\n"));
    assert_eq!(w.direct.cmd("KEYS k*"), "*0\r\n");
}

#[test]
fn labels_survive_the_eviction_of_their_sets() {
    evict_sets("allkeys-lru");
}

#[test]
fn labels_survive_evictions_at_random() {
    evict_sets("allkeys-random");
}

#[test]
fn what_redis_lost_unseen_is_written_back() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 2 t u SET k v EX 1000");
    w.follows("TAG.WITH");
    // Nothing tells of this but a change of the set.
    w.direct.cmd("DEL rescind:tag:t");
    eventually("it is back", || (w.direct.list("ZRANGE rescind:tag:t 0 -1") == ["k"]).then_some(()));
}

/// The proxy's own user may do what it needed before proxies told each other of labels.
#[test]
fn without_the_right_to_news_and_scripts_one_proxy_keeps_labels() {
    let redis = Redis::start();
    let rights = "on >pw ~* resetchannels &__keyevent@*__:new &__keyevent@*__:expired &__keyevent@*__:evicted \
                  &rescind:invalidate -@all +hello +auth +ping +select +config|get +config|set +psubscribe \
                  +subscribe +client|tracking +command +info +scan +exists +unlink +pexpire +zadd +zrem +zscan \
                  +pexpiretime";
    let mut direct = redis.client();
    let words: Vec<&str> = rights.split_whitespace().collect();
    assert_eq!(direct.call(&[&["ACL", "SETUSER", "rescind"], &words[..]].concat()), "+OK\r\n");
    let proxy = Proxy::launch(&format!("redis://rescind:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    eventually("it is said", || {
        proxy.log().contains("SUBSCRIBE rescind:labels is not possible").then_some(())
    });
    let mut client = proxy.client();
    for _ in 0..20 {
        client.cmd("DEL m");
        client.cmd("TAG.WITH 2 t u SET k v");
        assert_eq!(client.cmd("RENAME k l"), "+OK\r\n");
        assert_eq!(client.cmd("COPY l m"), ":1\r\n");
        client.cmd("TAG.REM m u");
        client.cmd("DEL m");
        client.cmd("SET m v");
        assert_eq!(client.list("TAG.OF m"), [""; 0]);
        // Who wrote m anew may have labelled it through another proxy: what it had may stay in Redis.
        assert!(client.list("TAG.KEYS t").contains(&"l".to_owned()));
        assert!([":1\r\n", ":2\r\n"].contains(&&*client.cmd("TAG.INVALIDATE t")));
        assert_eq!(direct.cmd("EXISTS l"), ":0\r\n");
    }
    let mut left =
        || [direct.list("ZRANGE rescind:tag:t 0 -1"), direct.list("ZRANGE rescind:tag:u 0 -1")].concat();
    eventually("Redis forgets", || left().iter().all(|key| key == "m").then_some(()));
}

/// Labels of keys that are looked at, as now and then and whenever a database is flushed, are written back if Redis has lost them.
#[test]
fn a_label_that_is_taken_away_just_then_is_not_written_back() {
    let mut w = World::new();
    let mut flusher = w.redis.client();
    flusher.cmd("SELECT 9");
    for round in 0..400_u64 {
        w.client.cmd(&format!("TAG.WITH 1 t SET k{round} v"));
        flusher.send(b"FLUSHDB\r\n");
        std::thread::sleep(Duration::from_micros(50 * (round % 20)));
        assert_eq!(w.client.cmd(&format!("TAG.REM k{round} t")), ":1\r\n");
        assert_eq!(flusher.reply(), "+OK\r\n");
    }
    assert_eq!(w.direct.list("ZRANGE rescind:tag:t 0 -1"), [""; 0]);
}
