//! Hits, misses and the other numbers, exact against scripted traffic.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

struct World {
    proxy: Proxy,
    redis: Redis,
    client: Client,
    direct: Client,
}

const HOME: &str = "app:1:home_page_data_1";

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, RULES);
        let (client, mut direct) = (proxy.client(), redis.client());
        for line in [
            "SET app:1:home_page_data_1 v",
            "HSET app:1:home_page_data_h f v",
            "RPUSH app:1:home_page_data_l a b",
            "SADD app:1:home_page_data_s a",
            "ZADD app:1:home_page_data_z 1 a",
            "SET app:1:home_page_data_empty \u{0}",
            "SETRANGE app:1:tools_1 0 v",
            "SET unknown v",
        ] {
            assert!(!direct.cmd(line).starts_with('-'));
        }
        direct.call(&["SET", "app:1:home_page_data_empty", ""]);
        Self { proxy, redis, client, direct }
    }

    fn counts(&self, family: &str) -> (f64, f64) {
        let of = |what: &str| self.proxy.metric(&format!("rescind_{what}_total{{family=\"{family}\"}}"));
        (of("hits"), of("misses"))
    }

    /// Runs the lines and says by how much hits and misses of `family` grew.
    fn grown(&mut self, family: &str, lines: &[&str]) -> (u32, u32) {
        let before = self.counts(family);
        for line in lines {
            self.client.cmd(line);
        }
        let after = self.counts(family);
        ((after.0 - before.0) as u32, (after.1 - before.1) as u32)
    }
}

/// Commands on family `home`, where `home_page_data_` is written `@`, with their hits and misses.
const HOME_READS: &[(&str, u32, u32)] = &[
    ("GET @1", 1, 0),
    ("GET @none", 0, 1),
    ("GET @empty", 0, 1),
    ("GET @h", 0, 0),
    ("GET", 0, 0),
    ("MGET @1 @none @1 app:1:tools_1 @h", 2, 2),
    ("GETEX @1", 1, 0),
    ("GETEX @none EX 100", 0, 1),
    ("STRLEN @1", 1, 0),
    ("STRLEN @none", 0, 1),
    ("GETRANGE @1 0 5", 1, 0),
    ("GETRANGE @none 0 5", 0, 1),
    ("GETBIT @1 0", 0, 1),
    ("EXISTS @1", 1, 0),
    ("EXISTS @none", 0, 1),
    ("EXISTS @1 @none @h @1", 3, 1),
    ("TOUCH @1 @none", 1, 1),
    ("TTL @1", 1, 0),
    ("TTL @none", 0, 1),
    ("PTTL @1", 1, 0),
    ("EXPIRETIME @none", 0, 1),
    ("TYPE @1", 1, 0),
    ("TYPE @none", 0, 1),
    ("HGET @h f", 1, 0),
    ("HGET @h none", 0, 1),
    ("HGET @none f", 0, 1),
    ("HGET @1 f", 0, 0),
    ("HMGET @h f none", 1, 0),
    ("HMGET @h none", 0, 1),
    ("HMGET @none a b", 0, 1),
    ("HGETALL @h", 1, 0),
    ("HGETALL @none", 0, 1),
    ("HEXISTS @h f", 1, 0),
    ("HLEN @none", 0, 1),
    ("HKEYS @h", 1, 0),
    ("HSCAN @h 0", 1, 0),
    ("HSCAN @none 0", 0, 1),
    ("SSCAN @s 0 COUNT 10", 1, 0),
    ("ZSCAN @none 0", 0, 1),
    ("LRANGE @l 0 -1", 1, 0),
    ("LRANGE @none 0 -1", 0, 1),
    ("LINDEX @l 0", 1, 0),
    ("LLEN @none", 0, 1),
    ("SMEMBERS @s", 1, 0),
    ("SISMEMBER @s a", 1, 0),
    ("SISMEMBER @s b", 0, 1),
    ("SMISMEMBER @s a b", 1, 0),
    ("SINTER @s @none", 0, 2),
    ("SUNION @s @none", 2, 0),
    ("ZRANGE @z 0 -1", 1, 0),
    ("ZSCORE @z a", 1, 0),
    ("ZSCORE @none a", 0, 1),
    ("ZMSCORE @z a b", 1, 0),
    ("OBJECT ENCODING @1", 1, 0),
    ("DUMP @none", 0, 1),
    ("SET @new v", 0, 0),
    ("SET @new v GET", 0, 0),
    ("INCR @n", 0, 0),
    ("GETSET @new v", 0, 0),
    ("GETDEL @new", 0, 0),
    ("LPOP @nothing", 0, 0),
    ("DEL @n", 0, 0),
    ("SCAN 0", 0, 0),
    ("KEYS *", 0, 0),
    ("COPY @1 @copy", 0, 0),
    ("EVAL return(redis.call('GET',KEYS[1])) 1 @1", 0, 0),
    ("EXPIRE @1 1000", 0, 0),
    ("SORT_RO @l ALPHA", 1, 0),
    ("SORT @l ALPHA", 1, 0),
    ("SORT @none", 0, 1),
    ("SORT @l ALPHA STORE @stored", 0, 0),
    ("SORT @none STORE @stored", 0, 0),
    ("GEORADIUS @none 1 1 1 km STORE @stored", 0, 0),
    ("BITFIELD @none GET u8 0", 0, 1),
    ("BITFIELD @n SET u8 0 1 GET u8 0", 0, 0),
    ("GETEX @1 PERSIST", 1, 0),
];

fn on_home(line: &str) -> String {
    line.replace('@', "app:1:home_page_data_")
}

#[test]
fn every_kind_of_read_in_both_protocols() {
    let mut w = World::new();
    for version in ["2", "3"] {
        w.client.cmd(&format!("HELLO {version}"));
        for (line, hits, misses) in HOME_READS {
            assert_eq!(w.grown("home", &[&on_home(line)]), (*hits, *misses), "{line}, RESP{version}");
        }
    }
}

#[test]
fn in_transactions_and_pipelines() {
    let mut w = World::new();
    let all = HOME_READS.iter().filter(|(line, ..)| *line != "GET");
    let (hits, misses) = all.clone().fold((0, 0), |sum, one| (sum.0 + one.1, sum.1 + one.2));
    for version in ["2", "3"] {
        w.client.cmd(&format!("HELLO {version}"));
        let lines: Vec<String> = all.clone().map(|one| on_home(one.0)).collect();
        let before = w.counts("home");
        let mut pipeline = vec![];
        for line in &lines {
            pipeline.extend(encode(&line.split(' ').collect::<Vec<_>>()));
        }
        w.client.send(&pipeline);
        lines.iter().for_each(|_| drop(w.client.raw()));
        let after = w.counts("home");
        assert_eq!((after.0 - before.0, after.1 - before.1), (hits.into(), misses.into()), "pipeline");

        let mut queued: Vec<&str> = vec!["MULTI"];
        queued.extend(lines.iter().map(String::as_str));
        assert_eq!(w.grown("home", &queued), (0, 0), "before EXEC");
        assert_eq!(w.grown("home", &["EXEC"]), (hits, misses), "EXEC, RESP{version}");
        queued.push("DISCARD");
        assert_eq!(w.grown("home", &queued), (0, 0), "DISCARD");
    }
}

#[test]
fn families_and_databases() {
    let mut w = World::new();
    let tools = "tools_*";
    assert_eq!(w.grown(tools, &["MGET app:1:tools_1 app:1:tools_2 app:1:home_page_data_1 unknown"]), (1, 1));
    assert_eq!(w.grown("other", &["MGET unknown app:1:tools_1 none", "GET nothing"]), (1, 2));
    assert_eq!(w.grown("post:{id}:*", &["GET app:1:post:7:x"]), (0, 1));
    // Over several families the reply tells the number only.
    assert_eq!(w.grown(tools, &["EXISTS app:1:tools_1 app:1:home_page_data_1"]), (1, 0));
    assert_eq!(w.grown(tools, &["EXISTS app:1:tools_9 app:1:home_page_data_none"]), (0, 1));
    let counts = |w: &World| [w.counts("home"), w.counts(tools), w.counts("other")];
    let before = counts(&w);
    assert_eq!(w.client.cmd("EXISTS app:1:tools_9 app:1:home_page_data_1 none"), ":1\r\n");
    w.client.cmd("PING");
    let after = counts(&w);
    let grown: Vec<_> = before.iter().zip(after).map(|(b, a)| (a.0 - b.0, a.1 - b.1)).collect();
    assert_eq!(grown, [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]);
    w.client.cmd("SELECT 5");
    assert_eq!(w.grown("home", &[&format!("GET {HOME}")]), (0, 1));
    w.client.cmd("SELECT 0");
    assert_eq!(w.grown("home", &[&format!("GET {HOME}")]), (1, 0));
    // The first family in the file counts.
    let rules = "[tags]\nA = [\"x:*\"]\nB = [\"x:y:*\", \"*\"]\n";
    let proxy = Proxy::start(&w.redis, rules);
    proxy.client().cmd("GET x:y:1");
    assert_eq!(proxy.metric("rescind_misses_total{family=\"x:*\"}"), 1.0);
    assert_eq!(proxy.metric("rescind_misses_total{family=\"x:y:*\"}"), 0.0);
    proxy.client().cmd("GET z");
    assert_eq!(proxy.metric("rescind_misses_total{family=\"*\"}"), 1.0);
}

#[test]
fn commands_errors_clients_and_bytes() {
    let mut w = World::new();
    let metric = |w: &World, name: &str| w.proxy.metric(&format!("rescind_{name}"));
    let commands = |w: &World, name: &str| metric(w, &format!("commands_total{{command=\"{name}\"}}"));
    let errors = |w: &World, name: &str| metric(w, &format!("command_errors_total{{command=\"{name}\"}}"));
    for _ in 0..7 {
        w.client.cmd("GET k");
    }
    w.client.cmd("get app:1:home_page_data_h");
    assert_eq!((commands(&w, "get"), errors(&w, "get")), (8.0, 1.0));
    assert_eq!(metric(&w, "command_duration_seconds_count{command=\"get\"}"), 8.0);
    w.client.cmd("NOSUCH");
    w.client.cmd("NEITHER x");
    assert_eq!((commands(&w, "unknown"), errors(&w, "unknown")), (2.0, 2.0));
    w.client.cmd("TAG.ADD k t");
    w.client.cmd("TAG.ADD k");
    assert_eq!((commands(&w, "tag.add"), errors(&w, "tag.add")), (2.0, 1.0));
    // What the proxy asks on its own behalf is not the client's.
    assert_eq!((commands(&w, "zrem"), commands(&w, "exists"), commands(&w, "zadd")), (0.0, 0.0, 0.0));
    w.client.cmd("TAG.WITH 1 t SET k v");
    assert_eq!((commands(&w, "tag.with"), commands(&w, "set")), (1.0, 1.0));

    assert_eq!(metric(&w, "clients"), 1.0);
    let more: Vec<Client> = (0..3).map(|_| w.proxy.client()).collect();
    eventually("clients", || (metric(&w, "clients") == 4.0).then_some(()));
    drop(more);
    eventually("clients", || (metric(&w, "clients") == 1.0).then_some(()));

    let bytes = |w: &World, way: &str| metric(w, &format!("client_bytes_total{{direction=\"{way}\"}}"));
    let (received, sent) = (bytes(&w, "in"), bytes(&w, "out"));
    let request = encode(&["ECHO", &"x".repeat(100_000)]);
    w.client.send(&request);
    let reply = w.client.raw().len();
    assert_eq!(bytes(&w, "in") - received, request.len() as f64);
    // What the socket has taken is counted right after.
    let counted = || (bytes(&w, "out") - sent == reply as f64).then_some(());
    eventually("the bytes are counted", counted);
}

#[test]
fn all_names_are_there() {
    let mut w = World::new();
    for line in ["GET k", "TAG.INVALIDATE Post", "NOSUCH"] {
        w.client.cmd(line);
    }
    let (status, text) = w.proxy.http("GET", "/metrics", &[], "");
    assert_eq!(status, 200);
    for name in [
        "hits_total{family=",
        "misses_total{family=",
        "evictions_total{family=",
        "expirations_total{family=",
        "invalidations_total{trigger=\"model saved\"} 0",
        "invalidations_total{trigger=\"TAG.INVALIDATE\"} 1",
        "invalidated_keys_total{family=",
        "stale_fills_total{family=",
        "coalesced_total{family=",
        "coalesce_timeouts_total{family=",
        "fanout_duration_seconds_count",
        "fanout_keys_bucket",
        "commands_total{command=\"get\"}",
        "command_duration_seconds_bucket{command=\"get\"",
        "command_errors_total{command=\"get\"} 0",
        "clients 1",
        "client_bytes_total{direction=\"in\"}",
        "upstream_connections{mode=\"shared\"} 1",
        "upstream_connections{mode=\"pinned\"}",
        "upstream_up{node=",
        "upstream_reconnects_total{node=",
        "index_keys",
        "index_bytes",
        "index_complete 1",
        "feed_connected{node=",
        "feed_gaps_total{node=",
        "journal_pending 0",
        "config_reloads_total{result=\"ok\"} 0",
        "config_reloads_total{result=\"error\"} 0",
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("rescind_{name}"))), "{name}\n{text}");
    }
    for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
    }
    // No key is a label.
    assert!(!text.contains("home_page_data_1"));
    for family in ["home", "blog_posts_*", "tools_*", "post:{id}:*", "feed:*:{id}", "other"] {
        assert!(text.contains(&format!("rescind_hits_total{{family=\"{family}\"}}")), "{family}");
    }
}

#[test]
fn what_the_proxy_refuses_is_counted() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER rescind on >secret ~* &* +@all");
    let proxy = Proxy::launch(&format!("redis://rescind:secret@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    direct.cmd("ACL SETUSER rescind -unlink -del");
    let (mut writer, mut reader, mut queuing) = (proxy.client(), proxy.client(), proxy.client());
    writer.cmd("SET app:1:blog_posts_1 v");
    queuing.cmd("MULTI");
    queuing.cmd("GET app:1:blog_posts_1");
    writer.request(&["SET", "app:1:model:Post:1", "v"]);
    eventually("a fan-out is pending", || (proxy.metric("rescind_journal_pending") == 1.0).then_some(()));
    let mut other = proxy.client();
    eventually("its keys are in doubt", || (other.cmd("GET app:1:blog_posts_1") == "$-1\r\n").then_some(()));
    reader.request(&["GETEX", "app:1:blog_posts_1"]);
    queuing.request(&["EXEC"]);
    for client in [&mut reader, &mut queuing] {
        client.stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        let reply = client.reply();
        assert!(reply.starts_with("-TRYAGAIN "), "{reply}");
    }
    for command in ["getex", "exec"] {
        let counted = |what: &str| proxy.metric(&format!("rescind_command{what}{{command=\"{command}\"}}"));
        assert_eq!((counted("s_total"), counted("_errors_total")), (1.0, 1.0), "{command}");
    }
    // Inside MULTI the proxy asks for a DISCARD of its own.
    assert_eq!(proxy.metric("rescind_commands_total{command=\"discard\"}"), 0.0);
    // So is what is refused for want of AUTH.
    direct.cmd("CONFIG SET requirepass secret");
    let mut stranger = proxy.client();
    assert!(stranger.cmd("TAG.KEYS Post").starts_with("-NOAUTH "));
    assert_eq!(proxy.metric("rescind_command_errors_total{command=\"tag.keys\"}"), 1.0);
}

#[test]
fn what_the_proxy_answers_itself_is_counted() {
    let w = World::new();
    let mut client = w.proxy.client();
    assert_eq!(client.cmd("RESET"), "+RESET\r\n");
    client.cmd("CLIENT REPLY ON");
    client.request(&["CLIENT", "REPLY", "OFF"]);
    client.cmd("CLIENT REPLY ON");
    assert!(client.cmd("CLIENT REPLY MAYBE").starts_with("-ERR"));
    assert_eq!(client.cmd("QUIT"), "+OK\r\n");
    for (command, calls, failed) in [("reset", 1.0, 0.0), ("client", 4.0, 1.0), ("quit", 1.0, 0.0)] {
        let of = |what: &str| w.proxy.metric(&format!("rescind_command{what}{{command=\"{command}\"}}"));
        assert_eq!((of("s_total"), of("_errors_total")), (calls, failed), "{command}");
    }
    // And what it refuses, because it has no connection left.
    let redis = Redis::start();
    let proxy = Proxy::configured(&redis, "[upstream]\nmax_pinned = 1\n");
    let (mut first, mut second) = (proxy.client(), proxy.client());
    first.cmd("SUBSCRIBE c");
    assert!(second.cmd("SUBSCRIBE c").contains("upstream.max_pinned"));
    assert_eq!(proxy.metric("rescind_command_errors_total{command=\"subscribe\"}"), 1.0);
}

#[test]
fn expirations_and_evictions_by_family() {
    let mut w = World::new();
    let of = |w: &World, what: &str, family: &str| {
        w.proxy.metric(&format!("rescind_{what}_total{{family=\"{family}\"}}"))
    };
    for i in 0..5 {
        w.client.cmd(&format!("SET app:1:tools_x{i} v PX 1"));
    }
    w.direct.cmd("SET app:1:blog_posts_x v PX 1");
    w.direct.cmd("SET nobody's v PX 1");
    eventually("expirations", || {
        let found = ["tools_*", "blog_posts_*", "other"].map(|family| of(&w, "expirations", family));
        (found == [5.0, 1.0, 1.0]).then_some(())
    });
    // The proxy's own keys are no part of the cache.
    w.client.cmd("TAG.INVALIDATE Tool own");
    w.direct.cmd("PEXPIRE rescind:epoch:own 1");
    eventually("it is gone", || (w.direct.cmd("EXISTS rescind:epoch:own") == ":0\r\n").then_some(()));
    w.client.cmd("TAG.INVALIDATE Tool");
    assert_eq!(of(&w, "expirations", "other"), 1.0);
    w.direct.cmd("FLUSHALL");
    w.client.cmd("TAG.INVALIDATE Tool own");
    for i in 0..50 {
        w.direct.call(&["SET", &format!("app:1:tools_{i}"), &"v".repeat(10_000)]);
    }
    w.direct.cmd("CONFIG SET maxmemory-policy allkeys-lru");
    w.direct.cmd("CONFIG SET maxmemory 1");
    w.direct.cmd("SET k v");
    w.direct.cmd("CONFIG SET maxmemory 0");
    eventually("evictions", || (of(&w, "evictions", "tools_*") == 50.0).then_some(()));
    // What is evicted is not in the index any more.
    assert_eq!(w.client.cmd("TAG.KEYS Tool"), "*0\r\n");
    w.client.cmd("TAG.INVALIDATE Tool");
    assert_eq!((of(&w, "evictions", "home"), of(&w, "evictions", "other")), (0.0, 0.0));
}

#[test]
fn the_duration_of_a_command_has_the_invalidation_that_it_caused() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own on >pw ~* &* +@all");
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    let mut writer = proxy.client();
    let least = std::time::Duration::from_millis(200);
    let script = "redis.call('SET', KEYS[1], 1)";
    let requests: [(&str, &[&[&str]]); 6] = [
        ("set", &[&["SET", "app:1:model:Post:1", "v"]]),
        ("del", &[&["DEL", "app:1:tag:Post"]]),
        ("eval", &[&["EVAL", script, "1", "app:1:tag:Post"]]),
        ("publish", &[&["PUBLISH", "rescind:invalidate", "Post"]]),
        ("tag.invalidate", &[&["TAG.INVALIDATE", "Post"]]),
        ("exec", &[&["MULTI"], &["SET", "app:1:tag:Post", "v"], &["EXEC"]]),
    ];
    for (command, requests) in requests {
        direct.cmd("ACL SETUSER own -unlink");
        direct.cmd("SET app:1:blog_posts_1 v");
        let of = |what: &str| {
            proxy.metric(&format!("rescind_command_duration_seconds_{what}{{command=\"{command}\"}}"))
        };
        let before = (of("sum"), of("count"));
        requests.iter().for_each(|request| writer.request(request));
        // The proxy may take some time to see them.
        std::thread::sleep(2 * least);
        direct.cmd("ACL SETUSER own +unlink");
        requests.iter().for_each(|_| assert!(!writer.reply().starts_with('-'), "{command}"));
        assert_eq!(direct.cmd("EXISTS app:1:blog_posts_1"), ":0\r\n", "{command}");
        assert_eq!(of("count") - before.1, 1.0, "{command}");
        assert!(of("sum") - before.0 >= least.as_secs_f64(), "{command}: {}", of("sum"));
    }
}

#[test]
fn what_fails_in_a_transaction_counts_as_an_error_of_its_command() {
    let w = World::new();
    let mut client = w.proxy.client();
    client.cmd("SET text v");
    for whole in [true, false] {
        let of =
            |what: &str, name: &str| w.proxy.metric(&format!("rescind_{what}_total{{command=\"{name}\"}}"));
        let counts = || {
            ["commands", "command_errors"].map(|what| (of(what, "lpush"), of(what, "get"), of(what, "exec")))
        };
        let before = counts();
        let requests =
            [&["MULTI"][..], &["LPUSH", "text", "v"], &["GET", "text"], &["LPUSH", "text", "v"], &["EXEC"]];
        match whole {
            true => client.send(&requests.map(encode).concat()),
            false => requests.iter().for_each(|request| client.request(request)),
        }
        let replies: Vec<String> = requests.iter().map(|_| client.reply()).collect();
        assert!(replies[4].starts_with("*3\r\n-WRONGTYPE"), "{replies:?}");
        let after = counts();
        assert_eq!(
            (after[0].0 - before[0].0, after[0].1 - before[0].1, after[0].2 - before[0].2),
            (2.0, 1.0, 1.0)
        );
        assert_eq!(
            (after[1].0 - before[1].0, after[1].1 - before[1].1, after[1].2 - before[1].2),
            (2.0, 0.0, 0.0)
        );
    }
}
