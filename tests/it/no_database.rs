//! A database that Redis does not have: to select it fails, in a transaction only when EXEC comes, and what follows runs
//! where it would have run without it.

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, connections_made, encode};

const PAGE: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";
const FAILED: &str = "-ERR DB index is out of range\r\n";

struct World {
    redis: Redis,
    proxy: Proxy,
    client: Wire,
    direct: Wire,
}

impl World {
    fn with(rules: &str) -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, rules);
        let (client, direct) = (Wire::connect(proxy.port), Wire::connect(redis.port));
        Self { redis, proxy, client, direct }
    }

    /// A transaction with these requests behind a SELECT that fails, sent one by one: what they answer.
    fn behind_select(&mut self, lines: &[&str]) -> String {
        assert_eq!(self.client.cmd("MULTI"), "+OK\r\n");
        for line in ["SELECT 99"].iter().chain(lines) {
            assert_eq!(self.client.cmd(line), "+QUEUED\r\n", "{line}");
        }
        let reply = self.client.cmd("EXEC");
        let head = format!("*{}\r\n{FAILED}", lines.len() + 1);
        reply.strip_prefix(&head).unwrap_or_else(|| panic!("{reply}")).to_owned()
    }
}

#[test]
fn labels_given_behind_it_are_those_of_the_database_before() {
    let mut world = World::with(RULES);
    for (line, reply) in [
        ("TAG.WITH 1 L ZADD plain 1 a", ":1\r\n"),
        ("TAG.WITH 1 L SET plain 1", "+OK\r\n"),
        ("TAG.WITH 1 L LPUSH plain 1", ":1\r\n"),
    ] {
        assert_eq!(world.behind_select(&[line]), reply, "{line}");
        assert_eq!(world.direct.cmd("EXISTS plain"), ":1\r\n", "{line}");
        assert_eq!(world.client.cmd("TAG.OF plain"), "*1\r\n$1\r\nL\r\n", "{line}");
        assert_eq!(world.client.cmd("TAG.INVALIDATE L"), ":1\r\n", "{line}");
        assert_eq!(world.direct.cmd("EXISTS plain"), ":0\r\n", "{line}");
    }
    world.client.cmd("SET from 1");
    world.client.cmd("TAG.ADD from L");
    assert_eq!(world.behind_select(&["COPY from to"]), ":1\r\n");
    assert_eq!(world.client.cmd("TAG.INVALIDATE L"), ":2\r\n");
    assert_eq!(world.direct.cmd("EXISTS from to"), ":0\r\n");
    assert_eq!(world.proxy.metric("rescind_journal_pending"), 0.0);
}

#[test]
fn triggers_and_stale_fills_behind_it_count() {
    let mut world = World::with(&RULES.replace("[keys]\n", "[keys]\ndatabases = [0]\n"));
    world.direct.cmd(&format!("SET {PAGE} v"));
    assert_eq!(world.behind_select(&[TRIGGER]), "+OK\r\n");
    assert_eq!(world.direct.cmd(&format!("EXISTS {PAGE}")), ":0\r\n");
    // In one piece.
    world.direct.cmd(&format!("SET {PAGE} v"));
    let words = |line: &str| encode(&line.split(' ').collect::<Vec<_>>());
    world.client.send(&["MULTI", "SELECT 4294967295", TRIGGER, "EXEC"].map(words).concat());
    let replies: Vec<String> = (0..4).map(|_| world.client.text()).collect();
    assert_eq!(
        replies[3],
        "*2\r\n-ERR value is out of range, value must between -2147483648 and 2147483647\r\n+OK\r\n"
    );
    assert_eq!(world.direct.cmd(&format!("EXISTS {PAGE}")), ":0\r\n");
    let mut other = Wire::connect(world.proxy.port);
    assert_eq!(world.client.cmd(&format!("GET {PAGE}")), "$-1\r\n");
    assert_eq!(other.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(world.behind_select(&[&format!("SET {PAGE} stale")]), "+OK\r\n");
    assert_eq!(other.cmd(&format!("GET {PAGE}")), "$-1\r\n");
}

#[test]
fn what_is_there_is_selected() {
    let mut world = World::with(RULES);
    world.direct.cmd("SELECT 5");
    world.direct.cmd(&format!("SET {PAGE} v"));
    for line in ["MULTI", "SELECT 5", "TAG.WITH 1 L SET plain 1"] {
        assert!(!world.client.cmd(line).starts_with('-'), "{line}");
    }
    assert_eq!(world.client.cmd("EXEC"), "*2\r\n+OK\r\n+OK\r\n");
    assert_eq!(world.client.cmd("TAG.OF plain"), "*1\r\n$1\r\nL\r\n");
    assert_eq!(Wire::connect(world.redis.port).cmd("EXISTS rescind:tag:L"), ":0\r\n", "in database 0");
    assert_eq!(world.client.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(world.client.cmd("TAG.INVALIDATE L"), ":1\r\n");
    assert_eq!(world.direct.cmd(&format!("EXISTS plain {PAGE}")), ":0\r\n");
}

/// Nothing that was meant for it may run in the database that is selected instead.
#[test]
fn what_cannot_be_moved_there_leaves_no_labels_anywhere() {
    let mut world = World::with(RULES);
    for line in [
        "COPY from to DB 99",
        "MOVE from 99",
        "TAG.WITH 1 M COPY from to DB 99",
        "TAG.WITH 1 M COPY from to DB 4294967295",
    ] {
        for line in ["SET from 1", "SET to 1", "TAG.ADD from L"] {
            world.client.cmd(line);
        }
        assert!(world.client.cmd(line).starts_with("-ERR"), "{line}");
        assert_eq!(world.client.cmd("TAG.OF to"), "*0\r\n", "{line}");
        assert_eq!(world.direct.cmd("ZSCORE rescind:tag:L to"), "$-1\r\n", "{line}");
        assert_eq!(world.client.cmd("TAG.INVALIDATE L M"), ":1\r\n", "{line}");
        assert_eq!(world.direct.cmd("EXISTS from to"), ":1\r\n", "{line}");
    }
}

/// Redis was started anew with fewer of them: each connection is refused that is to be made for it.
#[test]
fn who_is_in_one_that_is_gone_is_told_with_each_request() {
    let World { mut redis, proxy, mut client, .. } = World::with(RULES);
    client.cmd("SELECT 5");
    redis.kill();
    redis.restart_with(&["--databases", "1"]);
    proxy.ready();
    // Somebody has missed a key, so that any write may be a fill.
    let mut other = Wire::connect(proxy.port);
    other.cmd(&format!("GET {PAGE}"));
    for line in ["GET k", "SET k v", "TAG.WITH 1 L SET k v", "SET k v", TRIGGER] {
        let before = connections_made(&mut redis.client());
        let reply = client.cmd(line);
        assert!(reply.starts_with("-ERR") && reply.contains("DB index is out of range"), "{line}: {reply}");
        let made = connections_made(&mut redis.client()) - before;
        assert!(made < 10, "{line}: {made} connections");
        other.cmd(&format!("GET {PAGE}"));
    }
    assert_eq!(other.cmd("SET k v"), "+OK\r\n");
}

#[test]
fn rules_for_it_do_no_harm() {
    let world = World::with(&RULES.replace("[keys]\n", "[keys]\ndatabases = [99, 0]\n"));
    let World { redis: _redis, proxy, mut client, mut direct } = world;
    direct.cmd(&format!("SET {PAGE} v"));
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(direct.cmd(&format!("EXISTS {PAGE}")), ":0\r\n");
    assert_eq!(proxy.metric("rescind_index_complete"), 1.0);
}
