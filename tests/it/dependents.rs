//! Guarantee 1 from the other side: dependents of every origin and name, and the ways to invalidate them.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};
use crate::triggers::World;

#[test]
fn dependents_may_come_to_exist_in_any_way() {
    let mut w = World::new(RULES);
    let key = "app:1:blog_posts_9";
    let ways: &[&[&str]] = &[
        &["SET app:1:blog_posts_9 v"],
        &["HSET app:1:blog_posts_9 f v"],
        &["EVAL return(redis.call('SET','app:1:blog_posts_9',1)) 0"],
        &["SET app:1:x v", "RENAME app:1:x app:1:blog_posts_9"],
        &["SET app:1:x v", "COPY app:1:x app:1:blog_posts_9"],
        &["SELECT 2", "SET app:1:blog_posts_9 v", "MOVE app:1:blog_posts_9 0", "SELECT 0"],
        &["SET app:1:blog_posts_9 v PX 1", "SET app:1:blog_posts_9 v"],
        &["SET app:1:x 1", "BITOP NOT app:1:blog_posts_9 app:1:x"],
        &["MULTI", "DEL app:1:blog_posts_9", "SET app:1:blog_posts_9 v", "EXEC"],
        &["HELLO 3", "SET app:1:blog_posts_9 v", "HELLO 2"],
        &["PFADD app:1:blog_posts_9 v"],
        &["XADD app:1:blog_posts_9 * f v"],
        &["LPUSH app:1:l a", "LMOVE app:1:l app:1:blog_posts_9 LEFT LEFT"],
        &["SET app:1:blog_posts_9 v", "DEL app:1:blog_posts_9", "APPEND app:1:blog_posts_9 v"],
    ];
    for (round, way) in ways.iter().cycle().take(ways.len() * 4).enumerate() {
        // Straight to Redis, through the proxy.
        let writer = if (round / ways.len()).is_multiple_of(2) { &mut w.direct } else { &mut w.client };
        for line in *way {
            let reply = writer.cmd(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
        assert!(w.is_there(key), "{way:?}");
        w.client.cmd("SET app:1:model:Post:1 v");
        assert!(!w.is_there(key), "{way:?}, round {round}");
        w.settle();
    }
}

#[test]
fn keys_are_bytes() {
    let mut w = World::new(RULES);
    let dependents: [&[u8]; 4] = [
        b"app:1:blog_posts_\xff\xfe\x00",
        b"app:1:blog_posts_ with\r\nlines",
        b"app:1:blog_posts_\xc3\xa9\"'\\",
        b"app:1:blog_posts_*[a-z]?",
    ];
    for key in dependents {
        w.direct.call(&[b"SET".as_slice(), key, b"v"]);
    }
    w.direct.call(&[b"SET".as_slice(), b"app:1:post:\xff\x00:x", b"v"]);
    w.direct.call(&[b"SET".as_slice(), b"app:1:post:\xfe\x00:x", b"v"]);
    w.client.call(&[b"SET".as_slice(), b"app:1:model:Post:\xff\x00", b"v"]);
    for key in dependents.into_iter().chain([b"app:1:post:\xff\x00:x".as_slice()]) {
        assert_eq!(w.direct.call(&[b"EXISTS".as_slice(), key]), ":0\r\n", "{}", key.escape_ascii());
    }
    assert_eq!(w.direct.call(&[b"EXISTS".as_slice(), b"app:1:post:\xfe\x00:x"]), ":1\r\n");
}

#[test]
fn no_pattern_takes_keys_of_the_proxy_itself() {
    const RULES: &str = r#"
        [tags]
        Listing = ["*posts*"]
        [[trigger]]
        name = "any"
        keys = ["*"]
        commands = ["SET", "ZADD"]
        invalidate = ["Other"]
    "#;
    let mut w = World::new(RULES);
    w.client.cmd("TAG.WITH 1 posts HSET home f v");
    w.client.cmd("HSET x:posts f v");
    assert_eq!(w.client.list("TAG.KEYS Listing"), ["x:posts"]);
    w.client.cmd("TAG.ADD x:posts posts");
    assert_eq!(w.proxy.metric("rescind_invalidations_total{trigger=\"any\"}"), 0.0);
    // The index has to look with SCAN, which finds them, too.
    w.proxy.kill();
    w.proxy.start_again(&[]);
    w.client = w.proxy.client();
    assert_eq!(w.client.cmd("TAG.INVALIDATE Listing"), ":1\r\n");
    w.proxy.ready();
    assert_eq!(w.client.cmd("TAG.INVALIDATE Listing"), ":0\r\n");
    assert_eq!(w.direct.list("KEYS rescind:tag:*"), ["rescind:tag:posts"]);
    w.client.cmd("SET rescind:x 1");
    assert_eq!(w.proxy.metric("rescind_invalidations_total{trigger=\"any\"}"), 0.0);
    assert_eq!(w.client.cmd("TAG.INVALIDATE posts"), ":1\r\n");
    assert!(!w.is_there("home"));
    w.client.cmd("SET x 1");
    assert_eq!(w.proxy.metric("rescind_invalidations_total{trigger=\"any\"}"), 1.0);
}

#[test]
fn a_big_fan_out_deletes_all_and_counts_them() {
    let mut w = World::new(RULES);
    let mut pipeline = vec![];
    for i in 0..5000 {
        pipeline.extend(encode(&["SET", &format!("app:1:blog_posts_{i}"), "v"]));
    }
    w.direct.send(&pipeline);
    (0..5000).for_each(|_| assert_eq!(w.direct.raw(), b"+OK\r\n"));
    assert_eq!(w.client.cmd("TAG.INVALIDATE Post"), ":5000\r\n");
    assert_eq!(w.direct.cmd("EVAL return(#redis.call('KEYS','app:1:*')) 0"), ":0\r\n");
    assert_eq!(w.proxy.metric("rescind_invalidated_keys_total{family=\"blog_posts_*\"}"), 5000.0);
}

#[test]
fn soft_invalidation_shortens_the_time_to_live() {
    let rules = r#"
        [tags]
        T = ["soft:*", "hard:*"]
        [[family]]
        name = "soft"
        keys = ["soft:*"]
        on_invalidate = "expire"
        grace = "90s"
        [[trigger]]
        keys = ["src"]
        invalidate = ["T"]
    "#;
    let mut w = World::new(rules);
    for line in ["SET soft:none v", "SET soft:long v EX 5000", "SET soft:short v EX 20", "SET hard:1 v"] {
        w.direct.cmd(line);
    }
    for _ in 0..2 {
        w.client.cmd("SET src 1");
        assert!(!w.is_there("hard:1"));
        for (key, most) in [("soft:none", 90), ("soft:long", 90), ("soft:short", 20)] {
            let ttl: i64 = w.direct.list(&format!("TTL {key}"))[0].parse().unwrap();
            assert!((1..=most).contains(&ttl), "{key}: {ttl}");
        }
    }
    w.direct.cmd("SET soft:again v");
    w.direct.cmd("SET soft:none v");
    w.client.cmd("SET src 1");
    assert_ne!(w.direct.cmd("TTL soft:again"), ":-1\r\n");
    assert_ne!(w.direct.cmd("TTL soft:none"), ":-1\r\n");
}

#[test]
fn a_dry_run_deletes_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", redis.port), RULES, &["--dry-run"]);
    proxy.ready();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    client.cmd("SET app:1:blog_posts_1 v");
    client.cmd("TAG.WITH 1 Mine SET app:1:mine v");
    for line in ["SET app:1:model:Post:1 v", "TAG.INVALIDATE Post Mine", "PUBLISH rescind:invalidate Post"] {
        assert!(!client.cmd(line).starts_with('-'));
    }
    // It reports as usual, what is found twice once, and what is gone not at all.
    assert_eq!(client.cmd("TAG.INVALIDATE Post Mine PersonalInfo"), ":2\r\n");
    let fanned_out = |what: &str| proxy.metric(&format!("rescind_fanout_keys_{what}"));
    assert_eq!((fanned_out("count"), fanned_out("sum")), (4.0, 6.0));
    let json = [("Content-Type", "application/json")];
    let (_, reply) = proxy.http("POST", "/api/invalidate", &json, "{\"tags\": [\"Mine\"]}");
    assert_eq!(reply, "{\"keys\":1}");
    assert!(client.cmd("TAG.LOG 1").contains("other\r\n:1\r\n"));
    direct.cmd("SET app:1:model:Post:2 v");
    client.cmd("TAG.KEYS Post");
    assert_eq!(direct.cmd("EXISTS app:1:blog_posts_1 app:1:mine"), ":2\r\n");
    assert_eq!(client.cmd("TAG.KEYS Post"), "*1\r\n$18\r\napp:1:blog_posts_1\r\n");
}

#[test]
fn awkward_clients_trigger_like_any_other() {
    let mut w = World::new(RULES);
    let key = "app:1:blog_posts_1";
    let ways: &[(&[&str], &str)] = &[
        (&["CLIENT TRACKING ON"], "+OK\r\n"),
        (&["WATCH app:1:blog_posts_1"], "+OK\r\n"),
        (&["HELLO 3", "SUBSCRIBE channel"], "+OK\r\n"),
        (&["HELLO 3", "CLIENT TRACKING ON BCAST"], "+OK\r\n"),
        (&["SELECT 9", "CLIENT SETNAME me"], "+OK\r\n"),
    ];
    for (way, expected) in ways {
        let mut client = w.proxy.client();
        for line in *way {
            let reply = client.cmd(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
        w.fill(&[key]);
        let mut reply = client.cmd("SET app:1:model:Post:1 v");
        while reply.starts_with('>') {
            reply = String::from_utf8(client.raw()).unwrap();
        }
        assert_eq!(reply, *expected, "{way:?}");
        assert!(!w.is_there(key), "{way:?}");
    }
    w.fill(&[key]);
    w.client.send(b"SET app:1:model:Post:1 inline\r\n");
    assert_eq!(w.client.raw(), b"+OK\r\n");
    assert!(!w.is_there(key));

    // Nobody waits for the reply, and the fan-out takes place.
    w.fill(&[key]);
    let mut silent = w.proxy.client();
    silent.send(&[encode(&["CLIENT", "REPLY", "OFF"]), encode(&["DEL", "app:1:tag:Post"])].concat());
    eventually("a silent client", || {
        (w.redis.client().cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(())
    });
    for _ in 0..20 {
        w.fill(&[key]);
        let mut leaving: Client = w.proxy.client();
        // DEL of a missing key is nothing that the feed would show.
        leaving.send(&encode(&["DEL", "app:1:tag:Post"]));
        drop(leaving);
        eventually("a client that has gone", || {
            (w.redis.client().cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(())
        });
    }
}

#[test]
fn trigger_keys_that_expire_or_are_evicted_were_not_written() {
    let mut w = World::new(RULES);
    let key = "app:1:blog_posts_1";
    w.client.cmd("SET app:1:model:Post:1 v PX 50");
    w.client.cmd("SET app:1:model:Post:2 v");
    w.settle();
    let before = w.invalidations();
    w.fill(&[key]);
    eventually("expired", || (w.redis.client().cmd("EXISTS app:1:model:Post:1") == ":0\r\n").then_some(()));
    w.settle();
    assert!(w.is_there(key), "an expiry fired");
    w.direct.cmd("CONFIG SET maxmemory-policy volatile-lru");
    w.direct.cmd("PERSIST app:1:blog_posts_1");
    w.client.cmd("SET app:1:unrelated v");
    assert_eq!(w.invalidations(), before);
    // Written anew, it fires; straight to Redis too.
    w.client.cmd("SET app:1:model:Post:1 v PX 10");
    assert!(!w.is_there(key));
    eventually("expired", || (w.redis.client().cmd("EXISTS app:1:model:Post:1") == ":0\r\n").then_some(()));
    w.settle();
    w.fill(&[key]);
    w.direct.cmd("SET app:1:model:Post:1 v");
    eventually("a direct write", || {
        (w.redis.client().cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(())
    });
}

/// Redis tells of the end first, and of both changes once.
#[test]
fn a_trigger_key_that_has_expired_when_its_write_is_told_was_written() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let _proxy = Proxy::start(&redis, RULES);
    let (mut direct, key) = (redis.client(), "app:1:blog_posts_1");
    for _ in 0..5 {
        assert_eq!(direct.cmd(&format!("SET {key} v")), "+OK\r\n");
        let lines = ["SET app:1:model:Post:1 v PX 1", "DEBUG SLEEP 0.005", "GET app:1:model:Post:1"];
        let requests = lines.map(|line| encode(&line.split(' ').collect::<Vec<_>>()));
        direct.send(&requests.concat());
        let replies = lines.map(|_| direct.reply());
        assert_eq!(replies, ["+OK\r\n", "+OK\r\n", "$-1\r\n"]);
        eventually("it fires", || (direct.cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(()));
    }
}
