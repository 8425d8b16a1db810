//! Guarantees 1 and 4: whatever triggers, all dependents are gone when the reply arrives, and nothing else is.

use crate::support::{Client, PATIENCE, Proxy, RULES, Redis, encode, eventually};

/// A dependent of `Post`, and a key that depends on nothing that the tests trigger.
const DEPENDENT: &str = "app:1:blog_posts_1";
const STRANGER: &str = "app:1:tools_1";

pub struct World {
    pub proxy: Proxy,
    pub redis: Redis,
    pub client: Client,
    pub direct: Client,
}

impl World {
    pub fn new(rules: &str) -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, rules);
        let (client, direct) = (proxy.client(), redis.client());
        Self { proxy, redis, client, direct }
    }

    /// Waits until the proxy has seen and dealt with everything that was written so far.
    pub fn settle(&mut self) {
        for _ in 0..2 {
            self.client.cmd("TAG.KEYS nothing");
        }
        eventually("no fan-out is under way", || {
            (self.proxy.metric("rescind_journal_pending") == 0.0).then_some(())
        });
    }

    pub fn invalidations(&self) -> f64 {
        let (_, text) = self.proxy.http("GET", "/metrics", &[], "");
        let lines = text.lines().filter(|line| line.starts_with("rescind_invalidations_total{"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub fn fill(&mut self, keys: &[&str]) {
        for key in keys {
            assert_eq!(self.direct.call(&["SET", key, "cached"]), "+OK\r\n");
        }
    }

    pub fn is_there(&mut self, key: &str) -> bool {
        self.direct.call(&["EXISTS", key]) == ":1\r\n"
    }

    /// Runs one command and checks that it, and it alone, invalidated `Post`.
    fn fires(&mut self, line: &str) {
        self.settle();
        self.fill(&[DEPENDENT, STRANGER]);
        let before = self.invalidations();
        let reply = self.client.cmd(line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
        assert!(!self.is_there(DEPENDENT), "{line}: the dependent is still there");
        assert!(self.is_there(STRANGER), "{line}: too much was deleted");
        self.settle();
        // `model saved` and the cascade from Post.
        let invalidations = self.invalidations() - before;
        // What blocks may be fanned out once more, by what the feed shows of it.
        let again = line.starts_with("BLMOVE") && invalidations == 4.0;
        assert!(invalidations == 2.0 || again, "{line}: {invalidations} invalidations");
    }

    /// Runs one command and checks that nothing is invalidated, also not a little later.
    fn idle(&mut self, line: &str) {
        self.settle();
        self.fill(&[DEPENDENT, STRANGER]);
        let before = self.invalidations();
        let reply = self.client.cmd(line);
        self.settle();
        assert!(self.is_there(DEPENDENT), "{line}: {reply}: the dependent is gone");
        assert_eq!(self.invalidations(), before, "{line}: {reply}: invalidations");
    }
}

#[test]
fn every_write_of_a_trigger_key_fires_once() {
    let mut w = World::new(RULES);
    for line in [
        "MSET app:1:x:str 1 app:1:x:num 1",
        "RPUSH app:1:x:list a b c",
        "SADD app:1:x:set a b",
        "ZADD app:1:x:zset 1 a",
    ] {
        w.direct.cmd(line);
    }
    for line in [
        "SET app:1:model:Post:1 v",
        "SET app:1:model:Post:1 v GET",
        "SET app:1:model:Post:1 v XX",
        "DEL app:1:model:Post:1",
        "DEL app:1:model:Post:missing",
        "UNLINK app:1:nothing app:1:model:Post:missing",
        "HSET app:1:model:Post:h f v",
        "HSET app:1:model:Post:h f v",
        "HDEL app:1:model:Post:h f",
        "MSET app:1:other 1 app:1:model:Post:2 1 app:1:more 1",
        "MSETNX app:1:other2 1 app:1:model:Post:3 1",
        "INCR app:1:model:Post:n",
        "APPEND app:1:model:Post:s x",
        "SETRANGE app:1:model:Post:s 2 x",
        "SETEX app:1:model:Post:s 100 x",
        "GETSET app:1:model:Post:s x",
        "EXPIRE app:1:model:Post:s 100",
        "PERSIST app:1:model:Post:s",
        "GETDEL app:1:model:Post:s",
        "LPUSH app:1:model:Post:l x",
        "SADD app:1:model:Post:set x",
        "ZADD app:1:model:Post:z 1 x",
        "XADD app:1:model:Post:x * f v",
        "PFADD app:1:model:Post:p a",
        "RENAME app:1:x:str app:1:model:Post:r",
        "RENAME app:1:model:Post:r app:1:x:str",
        "RENAMENX app:1:x:str app:1:model:Post:r2",
        "COPY app:1:x:num app:1:model:Post:c",
        "LMOVE app:1:x:list app:1:model:Post:l2 LEFT LEFT",
        "BLMOVE app:1:x:list app:1:model:Post:l3 LEFT LEFT 1",
        "SMOVE app:1:x:set app:1:model:Post:set2 a",
        "SUNIONSTORE app:1:model:Post:su app:1:x:set",
        "ZRANGESTORE app:1:model:Post:zr app:1:x:zset 0 -1",
        "SORT app:1:x:list ALPHA STORE app:1:model:Post:sort",
        "BITOP AND app:1:model:Post:bit app:1:x:num",
        "SETBIT app:1:model:Post:bit 3 1",
        "EVAL return(redis.call('SET',KEYS[1],1)) 1 app:1:model:Post:lua",
        "MOVE app:1:model:Post:lua 3",
        "PUBLISH rescind:invalidate Post",
        "TAG.WITH 1 t SET app:1:model:Post:with v",
    ] {
        let publish = line.starts_with("PUBLISH");
        let before = w.proxy.metric("rescind_invalidations_total{trigger=\"model saved\"}");
        w.fires(line);
        let after = w.proxy.metric("rescind_invalidations_total{trigger=\"model saved\"}");
        let again = line.starts_with("BLMOVE") && after - before == 2.0;
        assert!(again || after - before == f64::from(u8::from(!publish)), "{line}");
    }
}

#[test]
fn what_did_nothing_does_not_fire() {
    let mut w = World::new(RULES);
    w.direct.cmd("SET app:1:model:Post:s v");
    for line in [
        "LPUSH app:1:model:Post:s x",
        "INCR app:1:model:Post:s",
        "SET app:1:model:Post:s v NX",
        "SET app:1:model:Post:s v NX GET",
        "SET app:1:model:Post:s v XX NX",
        "SET app:1:model:Post:none v XX",
        "SET app:1:model:Post:none v XX GET",
        "SET app:1:model:Post:s",
        "SETNX app:1:model:Post:s v",
        "MSETNX app:1:model:Post:s v app:1:model:Post:new v",
        "MSET app:1:model:Post:s",
        "RENAME app:1:none app:1:model:Post:s",
        "COPY app:1:none app:1:model:Post:s",
        "COPY app:1:tools_1 app:1:model:Post:s",
        "LPUSHX app:1:model:Post:none x",
        "GET app:1:model:Post:s",
        "GETEX app:1:model:Post:s",
        "GETEX app:1:model:Post:none",
        "EXISTS app:1:model:Post:s",
        "TTL app:1:model:Post:s",
        "TOUCH app:1:model:Post:s",
        "GETRANGE app:1:model:Post:s 0 1",
        "COPY app:1:model:Post:s app:1:elsewhere",
        "SET model:Post:1 v",
        "SET app:1:model:Post:1:2 v",
        "SET app:2:model:Post:1 v",
        "NOSUCHCOMMAND app:1:model:Post:s",
        "PUBLISH rescind:invalidated Post",
        "PUBLISH other Post",
        "EVAL nonsense( 1 app:1:model:Post:s",
        "EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 app:1:model:Post:s",
        "FCALL none 1 app:1:model:Post:s",
    ] {
        w.idle(line);
    }
}

/// What it has written stays.
#[test]
fn a_script_that_fails_fires() {
    // The feed does not tell of trigger keys where their prefix also begins cached keys.
    let mut w = World::new(&RULES.replace("app:1:", "app:*:"));
    let script = "redis.call('SET',KEYS[1],'v') return redis.call('LPUSH',KEYS[1],'x')";
    let eval = ["EVAL", script, "1", "app:1:model:Post:s"];
    for in_multi in [false, true] {
        w.fill(&[DEPENDENT, STRANGER]);
        if in_multi {
            w.client.cmd("MULTI");
            w.client.call(&eval);
            assert!(w.client.cmd("EXEC").contains("WRONGTYPE"));
        } else {
            assert!(w.client.call(&eval).starts_with("-WRONGTYPE"));
        }
        assert!(!w.is_there(DEPENDENT) && w.is_there(STRANGER), "in MULTI: {in_multi}");
    }
}

#[test]
fn transactions_fire_when_exec_succeeds_and_only_then() {
    let mut w = World::new(RULES);
    w.fill(&[DEPENDENT]);
    w.client.cmd("MULTI");
    assert_eq!(w.client.cmd("SET app:1:model:Post:1 v"), "+QUEUED\r\n");
    assert!(w.is_there(DEPENDENT));
    w.client.cmd("EXEC");
    assert!(!w.is_there(DEPENDENT));

    // RESP3 and several triggers, some of which fail.
    w.fill(&[DEPENDENT, STRANGER]);
    w.client.cmd("HELLO 3");
    w.client.cmd("MULTI");
    w.client.cmd("LPUSH app:1:model:Post:1 not-a-list");
    w.client.cmd("HSET app:1:hash a b");
    w.client.cmd("HGETALL app:1:hash");
    w.client.cmd("SET app:1:model:Tool:1 v");
    w.client.cmd("EXEC");
    assert!(!w.is_there(STRANGER));
    w.settle();
    assert!(w.is_there(DEPENDENT), "the failed LPUSH fired");
    w.client.cmd("HELLO 2");

    for abandon in ["DISCARD", "EXECABORT", "WATCH", "RESET"] {
        w.settle();
        w.fill(&[DEPENDENT]);
        let before = w.invalidations();
        w.client.cmd("WATCH app:1:watched");
        w.client.cmd("MULTI");
        w.client.cmd("SET app:1:model:Post:1 v");
        match abandon {
            "EXECABORT" => {
                w.client.cmd("SET too few");
                w.client.cmd("SET");
                assert!(w.client.cmd("EXEC").starts_with("-EXECABORT"));
            }
            "WATCH" => {
                w.direct.cmd("INCR app:1:watched");
                assert_eq!(w.client.cmd("EXEC"), "*-1\r\n");
            }
            other => assert!(w.client.cmd(other).starts_with('+')),
        }
        w.settle();
        assert!(w.is_there(DEPENDENT), "{abandon}");
        assert_eq!(w.invalidations(), before, "{abandon}");
    }
}

#[test]
fn a_nested_multi_loses_no_trigger() {
    let mut w = World::new(RULES);
    w.fill(&[DEPENDENT]);
    w.client.cmd("MULTI");
    w.client.cmd("SET app:1:model:Post:1 v");
    assert!(w.client.cmd("MULTI").starts_with("-ERR MULTI"));
    assert_eq!(w.client.cmd("EXEC"), "*1\r\n+OK\r\n");
    assert!(!w.is_there(DEPENDENT));
}

#[test]
fn later_commands_of_the_same_client_wait() {
    let mut w = World::new(RULES);
    let triggers: [&[&str]; 4] = [
        &["SET", "app:1:model:Post:1", "v"],
        &["DEL", "app:1:tag:Post"],
        &["PUBLISH", "rescind:invalidate", "Post"],
        &["TAG.INVALIDATE", "Post"],
    ];
    for trigger in triggers {
        for round in 0..20 {
            // A key of its own: a miss that nobody has filled yet counts for the next write.
            let dependent = format!("app:1:home_page_data_{round}_{}", trigger[0]);
            w.fill(&[&dependent]);
            let mut pipeline = encode(&["GET", &dependent]);
            pipeline.extend(encode(trigger));
            pipeline.extend(encode(&["GET", &dependent]));
            pipeline.extend(encode(&["SET", &dependent, "new"]));
            pipeline.extend(encode(&["GET", &dependent]));
            w.client.send(&pipeline);
            assert_eq!(w.client.raw(), b"$6\r\ncached\r\n");
            let reply = w.client.raw();
            assert!(!reply.starts_with(b"-"), "{trigger:?}");
            assert_eq!(w.client.raw(), b"$-1\r\n", "{trigger:?}");
            assert_eq!(w.client.raw(), b"+OK\r\n");
            assert_eq!(w.client.raw(), b"$3\r\nnew\r\n", "{trigger:?}");
        }
    }
}

#[test]
fn other_ways_to_trigger() {
    let mut w = World::new(RULES);
    let dependents = ["app:1:post:7:body", "app:1:feed:x:7"];
    for (round, virtual_key) in ["SET app:1:tag:post:7 1", "DEL app:1:tag:post:7"].into_iter().enumerate() {
        w.fill(&dependents);
        w.client.cmd(virtual_key);
        assert!(dependents.iter().all(|key| !w.is_there(key)), "round {round}");
    }
    w.fill(&dependents);
    w.fill(&[DEPENDENT, STRANGER]);
    assert_eq!(w.client.call(&["PUBLISH", "rescind:invalidate", " post:7  Post\n"]), ":1\r\n");
    assert!(dependents.iter().chain(&[DEPENDENT]).all(|key| !w.is_there(key)));
    assert!(w.is_there(STRANGER));

    w.fill(&dependents);
    assert_eq!(w.client.cmd("TAG.INVALIDATE post:7 post:8"), ":2\r\n");
    w.fill(&dependents);
    let json = [("Content-Type", "application/json")];
    let (status, body) = w.proxy.http("POST", "/api/invalidate", &json, r#"{"tags": ["post:7"]}"#);
    assert_eq!((status, body.replace(' ', "")), (200, r#"{"keys":2}"#.to_owned()));
    assert!(dependents.iter().all(|key| !w.is_there(key)));

    // Inside MULTI, PUBLISH fires with EXEC.
    w.fill(&dependents);
    w.client.cmd("MULTI");
    w.client.cmd("PUBLISH rescind:invalidate post:7");
    w.client.cmd("EXEC");
    assert!(dependents.iter().all(|key| !w.is_there(key)));
}

#[test]
fn what_bypasses_the_proxy_is_seen_by_the_feed() {
    let mut w = World::new(RULES);
    for line in [
        "SET app:1:model:Post:1 v",
        "DEL app:1:model:Post:1",
        "RENAME app:1:elsewhere app:1:tag:Post",
        "EVAL return(redis.call('SET','app:1:model:Post:9',1)) 0",
        "PUBLISH rescind:invalidate Post",
    ] {
        w.fill(&[DEPENDENT, STRANGER, "app:1:elsewhere"]);
        assert!(!w.direct.cmd(line).starts_with('-'));
        eventually(line, || (w.redis.client().cmd(&format!("EXISTS {DEPENDENT}")) == ":0\r\n").then_some(()));
        w.settle();
        assert!(w.is_there(STRANGER), "{line}");
    }
    // A script run through the proxy that does not name its keys.
    w.fill(&[DEPENDENT]);
    w.client.cmd("EVAL return(redis.call('SET','app:1:model:Post:9',2)) 0");
    eventually("undeclared keys", || {
        (w.redis.client().cmd(&format!("EXISTS {DEPENDENT}")) == ":0\r\n").then_some(())
    });
}

const FILTERED: &str = r#"
[tags]
T = ["dep:*"]
[[trigger]]
name = "removed"
keys = ["src:{id}"]
commands = ["DEL", "hset"]
invalidate = ["T"]
"#;

#[test]
fn only_the_commands_that_a_trigger_names_fire_it() {
    let mut w = World::new(FILTERED);
    let queued = ["MULTI", "SET src:1 v", "EXEC"];
    for lines in
        [&["SET src:1 v"][..], &["EXPIRE src:1 100"], &["UNLINK src:1"], &["APPEND src:2 x"], &queued]
    {
        w.settle();
        w.fill(&["dep:1"]);
        lines.iter().for_each(|line| {
            w.client.cmd(line);
        });
        w.settle();
        assert!(w.is_there("dep:1"), "{lines:?} fired");
        assert_eq!(w.invalidations(), 0.0, "{lines:?} fired");
    }
    for line in ["DEL src:1", "HSET src:h f v", "del src:1"] {
        w.fill(&["dep:1"]);
        w.client.cmd(line);
        assert!(!w.is_there("dep:1"), "{line} did not fire");
    }
    for script in ["return redis.call('DEL', KEYS[1])", "return 1"] {
        w.fill(&["dep:1"]);
        w.client.call(&["EVAL", script, "1", "src:1"]);
        assert!(!w.is_there("dep:1"), "who knows what a script does: {script}");
    }
    // Past the proxy nobody knows the command.
    w.settle();
    w.fill(&["dep:1"]);
    w.direct.cmd("SET src:5 v");
    eventually("a direct write", || (w.redis.client().cmd("EXISTS dep:1") == ":0\r\n").then_some(()));
}

const BY_COMMAND: &str = r#"
[tags]
Page = ["page:*"]
[[trigger]]
name = "saved"
keys = ["obj:{name}"]
commands = ["SET"]
invalidate = ["{name}"]
[[trigger]]
name = "gone"
keys = ["obj:{name}"]
commands = ["DEL"]
invalidate = ["gone:{name}"]
"#;

/// The feed does not tell their commands.
#[test]
fn a_write_that_fires_something_else_does_not_hide_one_past_the_proxy() {
    let mut w = World::new(BY_COMMAND);
    w.direct.call(&["SET", "huge", &"x".repeat(30 << 20)]);
    for round in 0..5 {
        w.fill(&["page:1"]);
        w.direct.cmd("SET obj:Page 1");
        eventually("it is saved", || (!w.is_there("page:1")).then_some(()));
        w.settle();
        w.fill(&["page:1"]);
        // Its fan-out begins when all of the reply has come.
        for line in ["MULTI", "DEL obj:Page", "GET huge", "EXEC"] {
            w.client.request(&line.split(' ').collect::<Vec<_>>());
        }
        eventually("it is deleted", || (!w.is_there("obj:Page")).then_some(()));
        w.direct.cmd("SET obj:Page 2");
        (0..4).for_each(|_| drop(w.client.raw()));
        eventually(&format!("it is saved, round {round}"), || (!w.is_there("page:1")).then_some(()));
    }
    w.settle();
    w.fill(&["page:1"]);
    w.client.cmd("DEL obj:Page");
    w.settle();
    assert!(w.is_there("page:1"), "alone it fires its own");
}

const ANY_AND_SOME: &str = r#"
[tags]
Any  = ["any:*"]
Some = ["some:*"]
[[trigger]]
name = "any"
keys = ["obj:{name}"]
invalidate = ["Any"]
[[trigger]]
name = "some"
keys = ["obj:{name}", "src:{name}"]
commands = ["SET", "RENAMENX", "LMOVE"]
invalidate = ["Some"]
"#;

/// All of it goes through the proxy, which knows the commands.
#[test]
fn what_fires_is_kept_apart_where_a_key_is_written_several_times_at_once() {
    let mut w = World::new(ANY_AND_SOME);
    let mut others: Vec<Client> = (0..3).map(|_| w.proxy.client()).collect();
    let cases: &[&[&str]] = &[
        &["MULTI", "HSET obj:h f v", "EXPIRE obj:h 100", "EXEC"],
        &["MSET obj:m 1 obj:m 2"],
        // What does nothing fires nothing, whatever else is written there.
        &["SETNX obj:n 1", "MULTI", "SET obj:n 1 NX", "INCR obj:n", "EXEC"],
        &["SETNX obj:r 1", "SETNX src:r 1", "MULTI", "RENAMENX src:r obj:r", "INCR obj:r", "EXEC"],
        &["RPUSH src:l 1", "SETNX obj:l 1", "MULTI", "LMOVE src:l obj:l LEFT LEFT", "INCR obj:l", "EXEC"],
        // Nothing blocks there.
        &["RPUSH obj:b 1 2", "MULTI", "BLPOP obj:b 1", "BLPOP obj:b 1", "EXEC"],
    ];
    for (round, lines) in (0..3).flat_map(|round| cases.iter().map(move |lines| (round, lines))) {
        w.settle();
        w.fill(&["any:1", "some:1"]);
        lines.iter().for_each(|line| _ = w.client.cmd(line));
        assert!(!w.is_there("any:1"), "{lines:?}, round {round}");
        w.settle();
        assert!(w.is_there("some:1"), "{lines:?}, round {round}");
    }
    for round in 0..100 {
        w.settle();
        w.fill(&["any:1", "some:1"]);
        // The one has nothing to do.
        w.client.request(&["SET", "obj:n", "1", "NX"]);
        others.iter_mut().for_each(|client| client.request(&["INCR", "obj:n"]));
        assert_eq!(w.client.reply(), "$-1\r\n");
        others.iter_mut().for_each(|client| _ = client.reply());
        assert!(!w.is_there("any:1"));
        w.settle();
        assert!(w.is_there("some:1"), "round {round}");
    }
    // Past the proxy nobody knows.
    w.direct.cmd("INCR obj:n");
    eventually("a direct write", || (!w.is_there("some:1")).then_some(()));
}

const CASCADES: &str = r#"
[tags]
A = ["a:*"]
B = ["b:*"]
C = ["c:*"]
"item:{id}" = ["item:{id}:*"]
[[trigger]]
keys = ["src:{name*}"]
invalidate = ["{name*}"]
[[trigger]]
tags = ["A"]
invalidate = ["B"]
[[trigger]]
tags = ["B"]
invalidate = ["C"]
[[trigger]]
tags = ["C"]
invalidate = ["A"]
[[trigger]]
tags = ["item:{id}"]
invalidate = ["C", "parent:{id}"]
"#;

#[test]
fn cascades_end_although_they_go_round() {
    let mut w = World::new(CASCADES);
    for tag in ["A", "B", "C", "item:5"] {
        w.fill(&["a:1", "b:1", "c:1", "item:5:x", "item:6:x", "d:1"]);
        w.client.cmd(&format!("SET src:{tag} 1"));
        assert_eq!(w.direct.cmd("EXISTS a:1 b:1 c:1"), ":0\r\n", "{tag}");
        assert_eq!(w.is_there("item:5:x"), tag != "item:5");
        assert_eq!(w.direct.cmd("EXISTS item:6:x d:1"), ":2\r\n");
    }
}

#[test]
fn tags_span_databases() {
    let mut w = World::new(RULES);
    let key = "app:1:home_page_data_x";
    let dbs = [0, 1, 7, 15];
    for round in 0..2 {
        for db in dbs {
            w.direct.cmd(&format!("SELECT {db}"));
            w.fill(&[key, STRANGER]);
        }
        w.client.cmd(&format!("SELECT {}", round * 3));
        w.client.cmd("SET app:1:model:Post:1 v");
        for db in dbs {
            w.direct.cmd(&format!("SELECT {db}"));
            assert!(!w.is_there(key), "db {db}");
            assert!(w.is_there(STRANGER), "db {db}");
        }
    }
}

#[test]
fn rules_of_one_database_leave_the_others_alone() {
    let mut w = World::new(&RULES.replace("prefix = \"app:1:\"", "prefix = \"app:1:\"\ndatabases = [1]"));
    w.fill(&[DEPENDENT]);
    w.direct.cmd("SELECT 1");
    w.fill(&[DEPENDENT]);
    w.client.cmd("SET app:1:model:Post:1 v");
    w.settle();
    assert!(w.is_there(DEPENDENT), "a write in another database fired");
    // MOVE and COPY write in the other database.
    w.client.cmd("MOVE app:1:model:Post:1 1");
    assert!(!w.is_there(DEPENDENT), "MOVE into the database");
    w.fill(&[DEPENDENT]);
    w.client.cmd("SET app:1:x v");
    w.client.cmd("COPY app:1:x app:1:model:Post:2 DB 1");
    assert!(!w.is_there(DEPENDENT), "COPY into the database");
    w.fill(&[DEPENDENT]);
    w.client.cmd("SELECT 1");
    w.client.cmd("COPY app:1:model:Post:2 app:1:model:Post:3 DB 0");
    w.settle();
    assert!(w.is_there(DEPENDENT), "COPY out of the database");
    w.client.cmd("SET app:1:model:Post:1 v");
    assert!(!w.is_there(DEPENDENT));
    w.direct.cmd("SELECT 0");
    assert!(w.is_there(DEPENDENT));
}

#[test]
fn a_slow_redis_delays_the_answer() {
    let mut w = World::new(RULES);
    w.fill(&[DEPENDENT]);
    w.client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    w.direct.cmd("CLIENT PAUSE 300 WRITE");
    w.client.cmd("SET app:1:model:Post:1 v");
    assert!(!w.is_there(DEPENDENT));
}
