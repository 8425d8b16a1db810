//! The `TAG.*` commands: replies, errors, where labels stay and where they go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Client, Proxy, RULES, Redis, eventually};

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

    fn labels(&mut self, key: &str) -> Vec<String> {
        let mut labels = self.client.list(&format!("TAG.OF {key}"));
        labels.sort();
        labels
    }
}

#[test]
fn refusals_sound_like_those_of_redis() {
    let mut w = World::new();
    let few = |name: &str| format!("-ERR wrong number of arguments for '{name}' command\r\n");
    for name in ["with", "next", "add", "rem", "invalidate", "keys", "of", "explain"] {
        let name = format!("tag.{name}");
        assert_eq!(w.client.cmd(&name), few(&name));
        assert_eq!(w.client.cmd(&name.to_uppercase()), few(&name));
    }
    for (line, name) in [
        ("TAG.WITH 1 t", "tag.with"),
        ("TAG.ADD k", "tag.add"),
        ("TAG.REM k", "tag.rem"),
        ("TAG.OF k l", "tag.of"),
        ("TAG.INFO x", "tag.info"),
    ] {
        assert_eq!(w.client.cmd(line), few(name), "{line}");
    }
    for line in [
        "TAG.WITH x t SET k v",
        "TAG.WITH 0 t SET k v",
        "TAG.WITH -1 t SET k v",
        "TAG.WITH 99999999999999999999 t SET k v",
        "TAG.WITH 9223372036854775807 t SET k v",
        "TAG.WITH 3 a b c",
        "TAG.WITH 4 a b SET k",
        "TAG.KEYS t COUNT",
        "TAG.KEYS t COUNT x",
        "TAG.KEYS t COUNT -1",
        "TAG.KEYS t LIMIT 1",
        "TAG.KEYS t COUNT 1 2",
        "TAG.LOG x",
        "TAG.LOG -1",
        "TAG.LOG 1 2",
        "TAG.INVALIDATE ",
        "TAG.WITH 1 t MULTI",
        "TAG.WITH 1 t SUBSCRIBE c",
        "TAG.WITH 1 t SELECT 1",
        "TAG.WITH 1 t TAG.WITH 1 u SET k v",
    ] {
        let reply = w.client.cmd(line);
        assert!(reply.starts_with("-ERR "), "{line}: {reply}");
        assert!(
            reply.ends_with("\r\n") && !reply[..reply.len() - 2].contains(['\r', '\n']),
            "{line}: {reply}"
        );
    }
    assert!(w.proxy.metric("rescind_command_errors_total{command=\"tag.with\"}") > 5.0);
    // A set of that name is somebody else's.
    w.direct.cmd("SET rescind:tag:odd string");
    assert!(w.client.cmd("TAG.WITH 1 odd SET k v").starts_with("-WRONGTYPE"));
    assert!(w.client.cmd("TAG.INVALIDATE odd").starts_with("-WRONGTYPE"));
    assert_eq!(w.direct.cmd("EXISTS k"), ":0\r\n");
    assert_eq!(w.client.cmd("PING"), "+PONG\r\n");
}

#[test]
fn replies_in_both_protocols() {
    let mut w = World::new();
    for version in ["2", "3"] {
        w.direct.cmd("FLUSHALL");
        w.client = w.proxy.client();
        w.client.cmd(&format!("HELLO {version}"));
        assert_eq!(w.client.cmd("TAG.WITH 2 a b SET k v"), "+OK\r\n");
        assert_eq!(w.client.cmd("TAG.WITH 1 a INCR n"), ":1\r\n");
        let nil = if version == "2" { "$-1\r\n" } else { "_\r\n" };
        assert_eq!(w.client.cmd("TAG.WITH 1 a SET k v2 NX"), nil);
        assert_eq!(w.client.cmd("TAG.WITH 1 a GET k"), "$1\r\nv\r\n");
        assert_eq!(w.client.cmd("TAG.NEXT c"), "+OK\r\n");
        assert_eq!(w.client.cmd("HSET h f v"), ":1\r\n");
        assert_eq!(w.client.cmd("TAG.ADD k c a c"), ":1\r\n");
        assert_eq!(w.client.cmd("TAG.ADD none a"), ":0\r\n");
        assert_eq!(w.client.cmd("TAG.REM k b x"), ":1\r\n");
        assert_eq!(w.labels("k"), ["a", "c"]);
        assert_eq!(w.client.cmd("TAG.OF none"), "*0\r\n");
        assert_eq!(w.client.cmd("TAG.KEYS none"), "*0\r\n");
        assert_eq!(w.client.cmd("TAG.KEYS a COUNT 0"), "*0\r\n");
        assert_eq!(w.client.list("TAG.KEYS a COUNT 1").len(), 1);
        assert_eq!(w.client.list("TAG.KEYS a count 10").len(), 2);
        assert_eq!(w.client.cmd("TAG.INVALIDATE a b"), ":2\r\n");
        assert_eq!(w.client.cmd("TAG.INVALIDATE a b"), ":0\r\n");
        assert_eq!(w.client.cmd("TAG.INVALIDATE c"), ":1\r\n");
    }
}

#[test]
fn every_kind_of_write_can_be_labelled() {
    let mut w = World::new();
    for line in [
        "SET k v",
        "SET k v GET",
        "SET k v NX GET",
        "SET k v EX 100",
        "GETSET k v",
        "MSET k v other v",
        "HSET k f v",
        "LPUSH k a",
        "ZADD k 1 a",
        "ZADD k INCR 1 a",
        "XADD k * f v",
        "APPEND k v",
        "RENAME source k",
        "COPY source k",
        "LMOVE list k LEFT LEFT",
        "BLMOVE list k LEFT LEFT 1",
        "SORT list ALPHA STORE k",
        "EVAL redis.call('SET',KEYS[1],1) 1 k",
        "EVAL return(redis.call('SET',KEYS[1],1)) 1 k",
        "SETNX k v",
    ] {
        w.direct.cmd("FLUSHALL");
        w.direct.cmd("MSET source v other2 v");
        w.direct.cmd("RPUSH list a b");
        let reply = w.client.cmd(&format!("TAG.WITH 1 t {line}"));
        assert!(!reply.starts_with('-'), "{line}: {reply}");
        assert!(w.labels("k").contains(&"t".to_owned()), "{line} labelled nothing: {reply}");
        w.client.cmd("TAG.INVALIDATE t");
        assert_eq!(w.direct.cmd("EXISTS k"), ":0\r\n", "{line}");

        w.direct.cmd("FLUSHALL");
        w.direct.cmd("MSET source v other2 v");
        w.direct.cmd("RPUSH list a b");
        w.client.cmd("TAG.NEXT t u");
        w.client.cmd(line);
        assert_eq!(w.labels("k"), ["t", "u"], "TAG.NEXT and {line}");
        // Labels are for one command only.
        w.client.cmd("SET later v");
        assert_eq!(w.labels("later"), [""; 0]);
    }
}

#[test]
fn what_fails_or_reads_labels_nothing() {
    let mut w = World::new();
    w.direct.cmd("SET k v");
    for line in [
        "GET k",
        "SET k v NX",
        "SET k v NX GET",
        "SETNX k v",
        "LPUSH k v",
        "SET k",
        "INCR k",
        "NOSUCH k",
        "COPY none k",
        "RENAME none k",
        "LPUSHX k2 v",
        "MSETNX new v k v",
        "EXISTS k",
        "TTL k",
        "PING",
    ] {
        w.client.cmd(&format!("TAG.WITH 1 t {line}"));
        assert_eq!(w.labels("k"), [""; 0], "{line}");
        assert_eq!(w.client.cmd("TAG.KEYS t"), "*0\r\n", "{line}");
        w.client.cmd("TAG.NEXT t");
        w.client.cmd(line);
        assert_eq!(w.labels("k"), [""; 0], "TAG.NEXT and {line}");
        eventually("nothing is left in Redis", || {
            (w.direct.cmd("ZCARD rescind:tag:t") == ":0\r\n").then_some(())
        });
    }
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":0\r\n");
    assert_eq!(w.direct.cmd("EXISTS k"), ":1\r\n");
}

#[test]
fn labels_stay_with_the_key_and_go_with_it() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 1 t SET k v");
    for line in ["SET k v2", "APPEND k x", "EXPIRE k 100", "SETEX k 100 v", "PERSIST k", "RENAMENX k other"] {
        w.direct.cmd("SET other v");
        w.client.cmd(line);
        assert_eq!(w.labels("k"), ["t"], "{line} through the proxy");
        w.direct.cmd(line);
        assert_eq!(w.labels("k"), ["t"], "{line}");
    }
    // MOVE and RENAMENX that find the place taken leave the key, its labels and its place in the index.
    w.direct.cmd("SELECT 1");
    w.direct.cmd("SET k taken");
    w.direct.cmd("SELECT 0");
    assert_eq!(w.client.cmd("MOVE k 1"), ":0\r\n");
    assert_eq!(w.labels("k"), ["t"]);

    let ends: [&[&str]; 7] = [
        &["DEL k"],
        &["UNLINK k"],
        &["GETDEL k"],
        &["PEXPIRE k 0"],
        &["RENAME k elsewhere", "DEL elsewhere"],
        &["MULTI", "DEL k", "EXEC"],
        &["FLUSHALL"],
    ];
    for (end, directly) in ends.into_iter().flat_map(|end| [(end, false), (end, true)]) {
        w.client.cmd("TAG.WITH 1 t SET k v");
        for line in end {
            let writer = if directly { &mut w.direct } else { &mut w.client };
            writer.cmd(line);
        }
        assert_eq!(w.labels("k"), [""; 0], "after {end:?}");
        w.direct.cmd("SET k anew");
        assert_eq!(w.labels("k"), [""; 0], "made anew after {end:?}, directly: {directly}");
        assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":0\r\n", "{end:?}");
        w.client.cmd("DEL k elsewhere");
    }
    w.client.cmd("TAG.WITH 1 t SET k v PX 30");
    eventually("it expires", || (w.direct.cmd("EXISTS k") == ":0\r\n").then_some(()));
    w.direct.cmd("SET k anew");
    assert_eq!(w.labels("k"), [""; 0], "made anew after its expiry");
    eventually("Redis forgets", || (w.direct.cmd("EXISTS rescind:tag:t") == ":0\r\n").then_some(()));
}

#[test]
fn transactions() {
    let mut w = World::new();
    w.client.cmd("MULTI");
    assert_eq!(w.client.cmd("TAG.WITH 1 t SETNX a v"), "+QUEUED\r\n");
    assert_eq!(w.client.cmd("TAG.NEXT u"), "+QUEUED\r\n");
    assert_eq!(w.client.cmd("SET b v"), "+QUEUED\r\n");
    assert_eq!(w.client.cmd("DEL nothing"), "+QUEUED\r\n");
    assert_eq!(w.client.cmd("EXEC"), "*4\r\n:1\r\n+OK\r\n+OK\r\n:0\r\n");
    assert_eq!((w.labels("a"), w.labels("b")), (vec!["t".to_owned()], vec!["u".to_owned()]));

    // Each command's own reply decides.
    w.direct.cmd("SET c v");
    w.client.cmd("MULTI");
    w.client.cmd("TAG.WITH 1 t SET c v NX");
    w.client.cmd("TAG.WITH 1 t SET d v GET");
    w.client.cmd("TAG.WITH 1 t LPUSH c v");
    w.client.cmd("EXEC");
    assert_eq!((w.labels("c"), w.labels("d")), (vec![], vec!["t".to_owned()]));

    for (end, ok) in [("DISCARD", true), ("EXEC", false)] {
        w.client.cmd("WATCH watched");
        w.client.cmd("MULTI");
        w.client.cmd("TAG.WITH 1 x SET c v");
        w.direct.cmd("INCR watched");
        assert_eq!(w.client.cmd(end) == "+OK\r\n", ok);
        assert_eq!(w.labels("c"), [""; 0], "{end}");
    }
    for line in [
        "TAG.ADD c t",
        "TAG.REM c t",
        "TAG.INVALIDATE t",
        "TAG.KEYS t",
        "TAG.OF c",
        "TAG.EXPLAIN GET c",
        "TAG.LOG",
        "TAG.INFO",
        "TAG.WITH x",
        "TAG.WITH 0 t SET c v",
    ] {
        w.client.cmd("MULTI");
        assert!(w.client.cmd(line).starts_with("-ERR"), "{line}");
        assert_eq!(w.client.cmd("SET c changed"), "+QUEUED\r\n");
        assert!(w.client.cmd("EXEC").starts_with("-EXECABORT"), "{line}");
        assert_eq!(w.client.cmd("GET c"), "$1\r\nv\r\n", "{line}");
    }
}

#[test]
fn labels_outlive_the_proxy() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 2 t u SET k v");
    w.client.cmd("TAG.WITH 1 t SET gone v");
    w.client.cmd("TAG.WITH 1 t SET timed v EX 1000");
    w.client.cmd("SELECT 3");
    w.client.cmd("TAG.WITH 1 t SET k3 v");
    eventually("the score follows the expiry", || {
        let at = w.direct.cmd("PEXPIRETIME timed").trim_start_matches(':').trim_end().to_owned();
        (w.direct.list("ZSCORE rescind:tag:t timed") == [at]).then_some(())
    });
    assert_eq!(w.direct.list("ZSCORE rescind:tag:t k"), ["inf"]);
    let World { proxy, redis, mut direct, .. } = w;
    drop(proxy);
    direct.cmd("DEL gone");
    let mut w = World::over(redis);
    assert_eq!(w.labels("k"), ["t", "u"]);
    eventually("what is gone is forgotten", || {
        (w.direct.list("ZSCORE rescind:tag:t gone") == ["(nil)"]).then_some(())
    });
    direct.cmd("SET gone anew");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":3\r\n");
    assert_eq!(direct.cmd("EXISTS k timed gone"), ":1\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE u"), ":0\r\n");
}

#[test]
fn labels_given_through_another_proxy_count() {
    let mut w = World::new();
    let second = Proxy::start(&w.redis, RULES);
    let mut other = second.client();
    for round in 0..20 {
        other.cmd(&format!("TAG.WITH 1 t SET k{round} v"));
        other.cmd(&format!("SET plain{round} v"));
        other.cmd(&format!("TAG.ADD plain{round} t"));
        assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":2\r\n", "round {round}");
        assert_eq!(w.direct.cmd(&format!("EXISTS k{round} plain{round}")), ":0\r\n");
    }
}

#[test]
fn an_evicted_label_set_is_written_back() {
    let mut w = World::new();
    for i in 0..300 {
        w.client.cmd(&format!("TAG.WITH 1 t SET k{i} v"));
    }
    // Evicts all keys that have a time to live or not, until there is room: only the set is left to evict.
    w.client.cmd("TAG.WITH 1 u SET single v");
    w.direct.cmd("CONFIG SET maxmemory-policy volatile-lru");
    w.direct.cmd("EXPIRE rescind:tag:t 10000");
    w.direct.cmd("CONFIG SET maxmemory 1");
    // Commands that need memory make it evict.
    assert!(w.direct.cmd("SET x y").starts_with("-OOM"));
    w.direct.cmd("CONFIG SET maxmemory 0");
    eventually("it is written back", || (w.direct.cmd("ZCARD rescind:tag:t") == ":300\r\n").then_some(()));
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":300\r\n");
}

#[test]
fn rules_labels_and_databases() {
    let mut w = World::new();
    let key = "app:1:home_page_data_1";
    w.client.cmd(&format!("TAG.WITH 2 Extra Post SET {key} v"));
    assert_eq!(w.labels(key), ["Extra", "PersonalInfo", "Post", "Tool"]);
    assert_eq!(w.client.cmd(&format!("TAG.REM {key} Post Tool Extra")), ":2\r\n");
    assert_eq!(w.labels(key), ["PersonalInfo", "Post", "Tool"]);
    assert_eq!(w.client.list("TAG.KEYS Post"), [key]);
    w.client.cmd("SELECT 1");
    assert_eq!(w.client.list("TAG.KEYS Post"), [""; 0]);
    assert_eq!(w.labels(key), [""; 0]);
    w.client.cmd("TAG.WITH 1 Extra SET here v");
    w.client.cmd("SELECT 0");
    w.client.cmd("TAG.WITH 1 Extra SET there v");
    assert_eq!(w.client.list("TAG.KEYS Extra"), ["there"]);
    assert_eq!(w.client.cmd("TAG.INVALIDATE Extra"), ":2\r\n");
}

/// Rules for database 1, and a proxy that knows another one.
fn rules_of_one_database() -> (World, Proxy) {
    let rules = RULES.replace("[keys]\n", "[keys]\ndatabases = [1]\n");
    let redis = Redis::start();
    let [proxy, other] = [(); 2].map(|()| Proxy::start(&redis, &rules));
    eventually("they know each other", || proxy.log().contains("another proxy is there").then_some(()));
    let (client, direct) = (proxy.client(), redis.client());
    (World { proxy, redis, client, direct }, other)
}

#[test]
fn where_no_rule_applies_labels_do_all_the_same() {
    let (mut w, other) = rules_of_one_database();
    let (key, mut there, mut elsewhere) = ("app:1:home_page_data_1", w.proxy.client(), other.client());
    there.cmd("SELECT 1");
    for client in [&mut w.client, &mut w.direct, &mut elsewhere] {
        client.cmd("SELECT 3");
    }
    for round in 0..3 {
        w.direct.cmd("MSET added v other v");
        assert_eq!(w.client.cmd(&format!("TAG.WITH 1 t SET {key} v")), "+OK\r\n");
        assert_eq!(w.client.cmd("TAG.NEXT t"), "+OK\r\n");
        assert_eq!(w.client.cmd("HSET next f v"), ":1\r\n");
        assert_eq!(w.client.cmd("TAG.ADD added t u"), ":2\r\n");
        assert_eq!(w.client.cmd("TAG.REM added u"), ":1\r\n");
        assert_eq!(w.client.cmd("MULTI"), "+OK\r\n");
        w.client.cmd("TAG.WITH 1 t SET queued v");
        assert_eq!(w.client.cmd("EXEC"), "*1\r\n+OK\r\n");
        assert_eq!(there.cmd("TAG.WITH 1 t SET there v"), "+OK\r\n");
        for client in [&mut w.client, &mut elsewhere] {
            let mut keys = client.list("TAG.KEYS t");
            keys.sort();
            assert_eq!(keys, ["added", key, "next", "queued"]);
            assert_eq!(client.list(&format!("TAG.OF {key}")), ["t"], "and none by rules");
        }
        assert_eq!(there.list("TAG.KEYS t"), ["there"]);
        assert_eq!(there.cmd("TAG.INVALIDATE Post"), ":0\r\n");
        assert_eq!(there.cmd("SET app:1:model:Post:7 1"), "+OK\r\n");
        assert_eq!(w.direct.cmd(&format!("EXISTS added {key} next queued other")), ":5\r\n");
        let invalidator = [&mut w.client, &mut there, &mut elsewhere].into_iter().nth(round).unwrap();
        assert_eq!(invalidator.cmd("TAG.INVALIDATE t"), ":5\r\n", "round {round}");
        assert_eq!(w.direct.cmd(&format!("EXISTS added {key} next queued")), ":0\r\n", "round {round}");
        assert_eq!(w.direct.cmd("EXISTS other"), ":1\r\n", "nothing else is touched");
    }
    // A key that is deleted takes its labels along.
    w.client.cmd("TAG.WITH 1 t SET other v");
    w.client.cmd("DEL other");
    w.direct.cmd("SET other v");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":0\r\n");
}

#[test]
fn where_no_rule_applies_fills_of_labelled_keys_are_protected_all_the_same() {
    let (mut w, other) = rules_of_one_database();
    let mut elsewhere = other.client();
    for client in [&mut w.client, &mut w.direct, &mut elsewhere] {
        client.cmd("SELECT 3");
    }
    w.client.cmd("TAG.WITH 1 t SET first v");
    for (round, labels) in [true, false, true, false].into_iter().enumerate() {
        let key = format!("page{round}");
        assert_eq!(w.client.cmd(&format!("GET {key}")), "$-1\r\n");
        let invalidator = if round < 2 { &mut elsewhere } else { &mut w.proxy.client() };
        assert!(!invalidator.cmd("TAG.INVALIDATE t").starts_with('-'));
        if labels {
            w.client.cmd(&format!("TAG.WITH 1 t SET {key} old"));
        } else {
            w.client.cmd(&format!("SET {key} old"));
            w.client.cmd(&format!("TAG.ADD {key} t"));
        }
        assert_eq!(w.direct.cmd(&format!("EXISTS {key}")), ":0\r\n", "round {round}");
        // Behind this the proxy has heard of the invalidation.
        assert_eq!(w.client.cmd(&format!("TAG.OF {key}")), "*0\r\n");
        assert_eq!(w.client.cmd(&format!("GET {key}")), "$-1\r\n");
        w.client.cmd(&format!("TAG.WITH 1 t SET {key} new"));
        assert_eq!(w.client.cmd(&format!("GET {key}")), "$3\r\nnew\r\n", "round {round}");
    }
}

#[test]
fn explain_log_and_info() {
    let mut w = World::new();
    w.client.cmd("TAG.WITH 1 Mine SET app:1:blog_posts_1 v");
    let before = w.direct.cmd("DBSIZE");
    let lines = w.client.list("TAG.EXPLAIN SET app:1:model:Post:7 v").join("\n");
    for part in ["model saved", "Post", "post:7", "SiteMap", "would delete 1 keys", "app:1:blog_posts_1"] {
        assert!(lines.contains(part), "{part} in {lines}");
    }
    let lines = w.client.list("TAG.EXPLAIN TAG.WITH 1 x SET app:1:blog_posts_2 v").join("\n");
    assert!(lines.contains("Post") && lines.contains('x'), "{lines}");
    w.client.list("TAG.EXPLAIN TAG.INVALIDATE Mine");
    w.client.list("TAG.EXPLAIN FLUSHALL");
    let _ = before;
    assert_eq!(w.direct.cmd("EXISTS app:1:blog_posts_1"), ":1\r\n");
    assert_eq!(w.direct.cmd("EXISTS app:1:model:Post:7 app:1:blog_posts_2"), ":0\r\n");
    assert_eq!(w.client.cmd("TAG.LOG"), "*0\r\n");

    w.client.cmd("CLIENT SETNAME tester");
    w.client.cmd("SET app:1:model:Post:7 v");
    w.client.cmd("TAG.INVALIDATE Mine");
    let log = w.client.list("TAG.LOG");
    assert!(log[0].parse::<u64>().unwrap() > 1_600_000_000_000, "{log:?}");
    assert!(log[1].contains("tester") && log[2] == "TAG.INVALIDATE", "{log:?}");
    assert!(log.iter().any(|text| text.contains("SET app:1:model:Post:7")), "{log:?}");
    assert!(log.iter().any(|text| text.contains("model saved")), "{log:?}");
    assert_eq!(w.client.cmd("TAG.LOG 0"), "*0\r\n");
    assert!(w.client.cmd("TAG.LOG 1").starts_with("*1\r\n"));

    let info = w.client.list("TAG.INFO").concat();
    for line in info.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, _) = line.split_once(':').expect(line);
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
    }
    for part in ["index_complete:1", "feed_connected:1", "journal_pending:0"] {
        assert!(info.contains(part), "{part} in {info}");
    }
}

#[test]
fn pipelined_labelled_writes_are_as_good_as_others() {
    let mut w = World::new();
    let mut request = Vec::new();
    for i in 0..500 {
        request.extend(format!("TAG.WITH 2 t u{} SET k{i} {i} PX 50000\r\n", i % 10).bytes());
        request.extend(format!("TAG.WITH 1 t INCRBY n{i} 3\r\nGET k{i}\r\n").bytes());
        request.extend(format!("TAG.WITH 1 w SET k{i} x NX\r\nTAG.WITH 1 w LPUSH k{i} x\r\n").bytes());
    }
    w.client.send(&request);
    for i in 0..500 {
        assert_eq!(w.client.reply(), "+OK\r\n");
        assert_eq!(w.client.reply(), ":3\r\n");
        assert_eq!(w.client.reply(), format!("${}\r\n{i}\r\n", i.to_string().len()));
        assert_eq!(w.client.reply(), "$-1\r\n");
        assert!(w.client.reply().starts_with("-WRONGTYPE"));
    }
    assert_eq!(w.direct.cmd("ZCARD rescind:tag:t"), ":1000\r\n");
    assert_eq!(w.direct.cmd("EXISTS rescind:tag:w"), ":0\r\n");
    let mut labels = w.labels("k17");
    labels.sort();
    assert_eq!(labels, ["t", "u7"]);
    // The scores are the keys' expiry from the first moment on.
    let expiry = w.direct.cmd("PEXPIRETIME k17");
    let score = w.direct.cmd("ZSCORE rescind:tag:t k17");
    assert_eq!(expiry.trim_start_matches(':').trim(), score.split("\r\n").nth(1).unwrap());
    assert!(w.direct.cmd("ZSCORE rescind:tag:t n17").contains("inf"));
    // What follows in the same pipeline takes the labels along, or ends them.
    w.client.send(b"TAG.WITH 1 a SET from v\r\nRENAME from to\r\nTAG.OF to\r\n");
    assert_eq!([w.client.reply(), w.client.reply()], ["+OK\r\n", "+OK\r\n"]);
    assert_eq!(w.client.reply(), "*1\r\n$1\r\na\r\n");
    w.client.send(b"TAG.WITH 1 a SET gone v\r\nDEL gone\r\nSET gone v\r\nTAG.OF gone\r\n");
    assert_eq!([w.client.reply(), w.client.reply(), w.client.reply()], ["+OK\r\n", ":1\r\n", "+OK\r\n"]);
    assert_eq!(w.client.reply(), "*0\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE u7"), ":50\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":950\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE a"), ":1\r\n");
}

#[test]
fn who_may_not_run_scripts_or_tell_of_labels_labels_all_the_same() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER mute on >pw +@all ~* resetchannels");
    direct.cmd("ACL SETUSER plain on >pw +@all -@scripting ~*");
    let mut w = World::over(redis);
    for name in ["mute", "plain"] {
        let mut client = w.proxy.client();
        assert_eq!(client.cmd(&format!("AUTH {name} pw")), "+OK\r\n");
        client.send(format!("TAG.WITH 1 t SET k{name} v\r\nGET k{name}\r\n").as_bytes());
        assert_eq!([client.reply(), client.reply()], ["+OK\r\n", "$1\r\nv\r\n"]);
        client.cmd("MULTI");
        assert_eq!(client.cmd(&format!("TAG.WITH 1 t SET m{name} v")), "+QUEUED\r\n");
        assert_eq!(client.cmd("EXEC"), "*1\r\n+OK\r\n");
    }
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":4\r\n");
}

#[test]
fn rights_are_those_of_redis() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let base = "on >pw +@all -@dangerous";
    for (name, keys) in [
        ("writer", "~k* ~rescind:tag:a*"),
        ("reader", "~k* %R~rescind:tag:*"),
        ("nobody", "~k*"),
        ("one", "~k* %R~rescind:tag:a*"),
        ("blind", "~k* %W~rescind:tag:*"),
    ] {
        assert_eq!(direct.cmd(&format!("ACL SETUSER {name} {base} {keys}")), "+OK\r\n");
    }
    let mut w = World::over(redis);
    w.client.cmd("TAG.WITH 1 a SET k v");
    let writing =
        ["TAG.WITH 1 a SET k2 v", "TAG.NEXT a", "TAG.ADD k a", "TAG.REM k b", "TAG.INVALIDATE nothing a"];
    let reading = ["TAG.KEYS a", "TAG.OF k", "TAG.LOG", "TAG.EXPLAIN GET k"];
    let user = |name: &str| {
        let mut client = w.proxy.client();
        assert_eq!(client.cmd(&format!("AUTH {name} pw")), "+OK\r\n");
        client
    };
    let (mut reader, mut nobody, mut writer, mut one) =
        (user("reader"), user("nobody"), user("writer"), user("one"));
    for line in writing {
        let reply = reader.cmd(line);
        assert!(reply.starts_with("-NOPERM"), "{line}: {reply}");
        assert!(nobody.cmd(line).starts_with("-NOPERM"), "{line}");
    }
    assert_eq!(w.direct.cmd("EXISTS k"), ":1\r\n");
    assert_eq!(w.direct.cmd("EXISTS k2"), ":0\r\n");
    for line in reading {
        assert!(nobody.cmd(line).starts_with("-NOPERM"), "{line}");
        assert!(!reader.cmd(line).starts_with('-'), "{line}");
    }
    assert_eq!(one.list("TAG.OF k"), ["a"]);
    assert!(one.cmd("TAG.KEYS b").starts_with("-NOPERM"));
    let mut blind = user("blind");
    for line in reading {
        assert!(blind.cmd(line).starts_with("-NOPERM"), "{line}");
    }
    for (line, reply) in [("TAG.ADD k z", ":1\r\n"), ("TAG.REM k z", ":1\r\n"), ("TAG.REM k z", ":0\r\n")] {
        assert_eq!(blind.cmd(line), reply);
    }
    for line in ["TAG.WITH 1 a SET k3 v", "TAG.NEXT ab", "SET k4 v", "TAG.INVALIDATE ab", "TAG.ADD k a"] {
        assert!(!writer.cmd(line).starts_with('-'), "{line}");
    }
    assert!(writer.cmd("TAG.WITH 1 b SET k5 v").starts_with("-NOPERM"));
    // What is on its way already must not go without its labels; who has read the refusal may go on.
    writer.send(b"TAG.NEXT b\r\nSET k5 v\r\nEXISTS k5\r\n");
    for what in ["TAG.NEXT", "SET"] {
        let reply = writer.reply();
        assert!(reply.starts_with("-NOPERM"), "{what}: {reply}");
    }
    assert_eq!(writer.reply(), ":0\r\n");
    assert!(writer.cmd("TAG.NEXT b").starts_with("-NOPERM"));
    assert_eq!(writer.cmd("SET k5 v"), "+OK\r\n");
    assert!(writer.cmd("TAG.WITH 1 a SET elsewhere v").starts_with("-NOPERM"));
    assert_eq!(w.client.list("TAG.KEYS a").len(), 2);

    let redis = Redis::with(&["--requirepass", "secret"]);
    let url = format!("redis://:secret@127.0.0.1:{}", redis.port);
    let proxy = Proxy::launch(&url, RULES, &[]);
    proxy.ready();
    let mut anonymous = proxy.client();
    for line in writing.into_iter().chain(reading).chain(["TAG.INFO"]) {
        assert!(anonymous.cmd(line).starts_with("-NOAUTH"), "{line}");
    }
}

#[test]
fn what_follows_a_labelled_write_at_once_finds_its_labels() {
    // Without events nothing but the labels' own news tells the index what has become of them.
    let mut w = World::over(Redis::with(&["--rename-command", "CONFIG", ""]));
    for round in 0..100 {
        let (key, kept) = (format!("k{round}"), format!("kept{round}"));
        w.client.cmd(&format!("TAG.WITH 1 gone SET {key} v"));
        w.client.cmd(&format!("DEL {key}"));
        w.client.cmd(&format!("TAG.WITH 2 gone stays SET {kept} v"));
        assert_eq!(w.client.cmd(&format!("TAG.REM {kept} gone other")), ":1\r\n", "{round}");
        assert_eq!(w.client.cmd(&format!("TAG.WITH 1 too SET {kept} v")), "+OK\r\n");
        assert_eq!(w.client.cmd(&format!("TAG.ADD {kept} stays too new")), ":1\r\n", "{round}");
        w.direct.cmd(&format!("SET {key} anew"));
        assert_eq!(w.client.cmd("TAG.INVALIDATE gone"), ":0\r\n", "{round}");
    }
    assert_eq!(w.client.cmd("TAG.WITH 1 stays SET last v"), "+OK\r\n");
    assert!(w.client.list("TAG.EXPLAIN TAG.INVALIDATE stays").contains(&"would delete 101 keys".to_owned()));
    assert_eq!(w.client.cmd("TAG.INVALIDATE stays"), ":101\r\n");
}

#[test]
fn a_late_fill_right_behind_a_labelled_write_is_compared_with_the_new_label() {
    let mut w = World::new();
    let (mut x, mut y) = (w.proxy.client(), w.proxy.client());
    w.client.cmd("TAG.WITH 1 other SET o v");
    for round in 0..200 {
        let (key, tag) = (format!("k{round}"), format!("t{round}"));
        assert_eq!(x.cmd(&format!("GET {key}")), "$-1\r\n");
        w.client.cmd(&format!("TAG.INVALIDATE {tag}"));
        assert_eq!(y.cmd(&format!("GET {key}")), "$-1\r\n");
        assert_eq!(y.cmd(&format!("TAG.WITH 1 {tag} SET {key} fresh")), "+OK\r\n");
        assert_eq!(x.cmd(&format!("SET {key} stale")), "+OK\r\n");
        assert_ne!(w.client.cmd(&format!("GET {key}")), "$5\r\nstale\r\n", "{round}");
    }
}

#[test]
fn a_value_that_is_renamed_while_it_is_being_labelled_keeps_its_label() {
    let mut w = World::new();
    let (mut x, mut y) = (w.proxy.client(), w.proxy.client());
    let mut moved = 0;
    for round in 0..400_u64 {
        w.client.cmd("TAG.WITH 1 old SET a old");
        x.send(b"RENAME a b\r\n");
        std::thread::sleep(std::time::Duration::from_micros(50 * (round % 30)));
        y.send(format!("TAG.WITH 1 t{round} SET a new\r\n").as_bytes());
        assert_eq!((x.reply(), y.reply()), ("+OK\r\n".to_owned(), "+OK\r\n".to_owned()));
        if w.client.cmd("GET b") == "$3\r\nnew\r\n" {
            moved += 1;
            assert_eq!(w.client.cmd(&format!("TAG.INVALIDATE t{round}")), ":1\r\n", "{round}");
            assert_eq!(w.client.cmd("EXISTS b"), ":0\r\n", "{round}");
        }
        w.client.cmd("DEL a b");
    }
    assert!(moved > 0, "never at the same time");
}

#[test]
fn a_label_that_is_given_while_it_is_taken_away_is_known_or_gone() {
    let mut w = World::new();
    let (mut x, mut y) = (w.proxy.client(), w.proxy.client());
    let mut there = 0;
    for round in 0..400_u64 {
        w.client.cmd("TAG.WITH 1 t SET k old");
        x.send(b"TAG.REM k t\r\n");
        std::thread::sleep(std::time::Duration::from_micros(30 * (round % 20)));
        y.send(b"TAG.WITH 1 t SET k new\r\n");
        assert_eq!((x.reply(), y.reply()), (":1\r\n".to_owned(), "+OK\r\n".to_owned()));
        let in_redis = w.direct.cmd("ZSCORE rescind:tag:t k") != "$-1\r\n";
        let of: &[&str] = if in_redis { &["t"] } else { &[] };
        assert_eq!(w.client.list("TAG.OF k"), of, "{round}");
        there += u32::from(in_redis);
    }
    assert!(there > 0, "never at the same time");
}

/// Whoever refills keys while a fan-out is under way may do it while the feed is lost.
#[test]
fn labels_given_while_the_feed_is_lost_stay() {
    const KEYS: u64 = 100;
    let mut w = World::new();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (mut client, stop) = (w.proxy.client(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let get: String = (0..KEYS).map(|key| format!("GET k{key}\r\n")).collect();
                while !stop.load(Ordering::Relaxed) {
                    client.send(get.as_bytes());
                    let missed: Vec<u64> = (0..KEYS).filter(|_| client.reply() == "$-1\r\n").collect();
                    let fill = missed.iter().map(|key| format!("TAG.WITH 1 t SET k{key} v\r\n"));
                    client.send(fill.collect::<String>().as_bytes());
                    missed.iter().for_each(|_| assert_eq!(client.reply(), "+OK\r\n"));
                }
            })
        })
        .collect();
    for _ in 0..12 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        w.direct.cmd("CLIENT KILL TYPE pubsub");
        assert!(!w.client.cmd("TAG.INVALIDATE t").starts_with('-'));
        eventually("rebuilt", || (w.proxy.metric("rescind_index_complete") == 1.0).then_some(()));
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    w.client.cmd("TAG.INVALIDATE t");
    let keys: Vec<String> = (0..KEYS).map(|key| format!("k{key}")).collect();
    assert_eq!(w.direct.cmd(&format!("EXISTS {}", keys.join(" "))), ":0\r\n");
}

/// Likewise if the fill was queued before the key got its label, or another proxy gave it.
#[test]
fn a_late_fill_is_compared_with_labels_that_nobody_here_has_heard_of() {
    let mut w = World::new();
    let elsewhere = Proxy::start(&w.redis, RULES);
    let (mut x, mut y, mut z) = (w.proxy.client(), w.proxy.client(), elsewhere.client());
    let mut undone = 0;
    w.client.cmd("TAG.WITH 1 other SET o v");
    for round in 0..50 {
        for queued in [false, true] {
            let (key, tag) = (format!("k{round}{queued}"), format!("t{round}{queued}"));
            assert_eq!(x.cmd(&format!("GET {key}")), "$-1\r\n");
            w.client.cmd(&format!("TAG.INVALIDATE {tag}"));
            let fresh = format!("TAG.WITH 1 {tag} SET {key} fresh");
            let who = if queued { &mut y } else { &mut z };
            assert_eq!(who.cmd(&format!("GET {key}")), "$-1\r\n");
            if queued {
                x.cmd("MULTI");
                x.cmd(&format!("SET {key} stale"));
                assert_eq!(y.cmd(&fresh), "+OK\r\n");
                assert_eq!(x.cmd("EXEC"), "*1\r\n+OK\r\n");
            } else {
                assert_eq!(z.cmd(&fresh), "+OK\r\n");
                assert_eq!(x.cmd(&format!("SET {key} stale")), "+OK\r\n");
            }
            if w.direct.cmd(&format!("GET {key}")) == "$5\r\nstale\r\n" {
                assert!(w.client.list(&format!("TAG.OF {key}")).is_empty(), "{round} {queued}");
            } else {
                undone += 1;
            }
        }
    }
    assert!(undone > 50, "{undone}");
}

#[test]
fn who_loses_the_right_to_tell_of_labels_labels_all_the_same() {
    let mut w = World::new();
    w.direct.cmd("ACL SETUSER u on >pw ~* &* +@all");
    let mut client = w.proxy.client();
    client.cmd("AUTH u pw");
    assert_eq!(client.cmd("TAG.WITH 1 t SET a v"), "+OK\r\n");
    w.direct.cmd("ACL SETUSER u resetchannels");
    // The first one notices.
    client.cmd("TAG.WITH 1 t SET b v");
    assert_eq!(client.cmd("TAG.WITH 1 t SET b v"), "+OK\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":2\r\n");
}

/// Commands that are labelled in more than one step.
#[test]
fn who_wants_no_reply_to_one_command_gets_that_to_the_next() {
    let mut w = World::new();
    w.direct.cmd("ACL SETUSER joe on >pw ~* &* +@all -eval -evalsha -eval_ro -evalsha_ro");
    let mut joe = w.proxy.client();
    assert_eq!(joe.cmd("AUTH joe pw"), "+OK\r\n");
    for (client, line) in [(&mut w.client, "ZADD z 1 m"), (&mut joe, "SET s 1")] {
        client.request(&["CLIENT", "REPLY", "SKIP"]);
        client.request(&["TAG.NEXT", "t"]);
        let reply = client.cmd(line);
        assert!([":1\r\n", "+OK\r\n"].contains(&&*reply), "{line}: {reply}");
        client.request(&["CLIENT", "REPLY", "OFF"]);
        client.request(&["TAG.WITH", "1", "t", "SET", "other", "1"]);
        client.request(&["TAG.WITH", "x", "t", "SET", "other", "1"]);
        assert_eq!(client.cmd("CLIENT REPLY ON"), "+OK\r\n");
        assert_eq!(client.cmd("ECHO x"), "$1\r\nx\r\n", "{line}");
    }
    assert_eq!(w.direct.cmd("EXISTS z s other"), ":3\r\n");
}
