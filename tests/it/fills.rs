//! No stale fill: a value that was read before an invalidation and written after it is never readable.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_1";
const OTHER: &str = "app:1:home_page_data_2";
const TRIGGER: &str = "SET app:1:model:Post:7 1";
const STALE: &str = "rescind_stale_fills_total{family=\"home\"}";

struct World {
    redis: Redis,
    proxy: Proxy,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    fn with(config: &str) -> Self {
        let redis = Redis::start();
        let proxy = Proxy::configured(&redis, config);
        Self { redis, proxy }
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    fn invalidate(&self) {
        assert_eq!(self.client().cmd(TRIGGER), "+OK\r\n");
    }
}

/// What a client misses, and the request that fills it, with its reply.
const WAYS: &[(&str, &[&str], &str)] = &[
    ("GET app:1:home_page_data_1", &["SET", KEY, "old"], "+OK\r\n"),
    ("GET app:1:home_page_data_1", &["SET", KEY, "old", "EX", "100"], "+OK\r\n"),
    ("GET app:1:home_page_data_1", &["SET", KEY, "old", "NX"], "+OK\r\n"),
    ("GET app:1:home_page_data_1", &["SET", KEY, "old", "GET"], "$-1\r\n"),
    ("GET app:1:home_page_data_1", &["SETEX", KEY, "100", "old"], "+OK\r\n"),
    ("EXISTS app:1:home_page_data_1", &["PSETEX", KEY, "100000", "old"], "+OK\r\n"),
    ("GET app:1:home_page_data_1", &["SETNX", KEY, "old"], ":1\r\n"),
    ("GET app:1:home_page_data_1", &["GETSET", KEY, "old"], "$-1\r\n"),
    ("MGET app:1:home_page_data_1 app:1:home_page_data_2", &["MSET", KEY, "old", OTHER, "old"], "+OK\r\n"),
    ("MGET app:1:home_page_data_1 app:1:home_page_data_2", &["MSETNX", KEY, "old", OTHER, "old"], ":1\r\n"),
    ("HGETALL app:1:home_page_data_1", &["HSET", KEY, "a", "old", "b", "old"], ":2\r\n"),
    ("HGET app:1:home_page_data_1 a", &["HMSET", KEY, "a", "old"], "+OK\r\n"),
    ("LRANGE app:1:home_page_data_1 0 -1", &["RPUSH", KEY, "old", "old"], ":2\r\n"),
    ("SMEMBERS app:1:home_page_data_1", &["SADD", KEY, "old"], ":1\r\n"),
    ("SORT app:1:home_page_data_1 STORE sorted", &["RPUSH", KEY, "old"], ":1\r\n"),
    ("GETEX app:1:home_page_data_1 PERSIST", &["SET", KEY, "old"], "+OK\r\n"),
    // Not as a script: what they wrote is looked at behind them.
    ("ZRANGE app:1:home_page_data_1 0 -1", &["ZADD", KEY, "1", "old"], ":1\r\n"),
    ("GET app:1:home_page_data_1", &["INCRBY", KEY, "5"], ":5\r\n"),
    (
        "GET app:1:home_page_data_1",
        &["EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", KEY, "old"],
        "+OK\r\n",
    ),
];

#[test]
fn a_stale_fill_is_undone_and_a_fresh_one_stays() {
    let w = World::new();
    let mut direct = w.redis.client();
    for (read, fill, reply) in WAYS {
        let mut client = w.client();
        client.cmd(read);
        w.invalidate();
        let before = w.proxy.metric(STALE);
        assert_eq!(client.call(fill), *reply, "the reply is the command's own");
        assert_eq!(direct.cmd(&format!("EXISTS {KEY} {OTHER}")), ":0\r\n", "{fill:?}");
        assert!(w.proxy.metric(STALE) > before, "{fill:?}");
        // At once it can be cached again.
        client.cmd(read);
        assert_eq!(client.call(fill), *reply);
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n", "{fill:?}");
        direct.cmd(&format!("DEL {KEY} {OTHER}"));
    }
}

#[test]
fn in_transactions_and_pipelines_too() {
    let w = World::new();
    let mut direct = w.redis.client();
    for (read, fill, reply) in WAYS {
        for whole in [true, false] {
            let mut client = w.client();
            client.cmd(read);
            w.invalidate();
            let requests = [encode(&["MULTI"]), encode(fill), encode(&["EXEC"])];
            if whole {
                client.send(&requests.concat());
            } else {
                requests.iter().for_each(|request| client.send(request));
            }
            assert_eq!(client.raw(), b"+OK\r\n");
            assert_eq!(client.raw(), b"+QUEUED\r\n");
            assert_eq!(client.raw(), format!("*1\r\n{reply}").as_bytes());
            assert_eq!(direct.cmd(&format!("EXISTS {KEY} {OTHER}")), ":0\r\n", "{fill:?}");
        }
        let mut client = w.client();
        client.cmd(read);
        w.invalidate();
        client.send(&[encode(&["PING"]), encode(fill), encode(&["PING"])].concat());
        assert_eq!(client.raw(), b"+PONG\r\n");
        assert_eq!(client.raw(), reply.as_bytes());
        assert_eq!(client.raw(), b"+PONG\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS {KEY} {OTHER}")), ":0\r\n", "{fill:?}");
    }
}

#[test]
fn connections_may_be_pooled() {
    let w = World::new();
    let (mut one, mut two) = (w.client(), w.client());
    one.cmd(&format!("GET {KEY}"));
    w.invalidate();
    two.cmd(&format!("SET {KEY} old"));
    assert_eq!(one.cmd(&format!("GET {KEY}")), "$-1\r\n");
    // That was a miss of its own.
    one.cmd(&format!("SET {KEY} new"));
    assert_eq!(two.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n");
}

#[test]
fn once_it_is_known_that_connections_are_shared_an_own_miss_proves_nothing() {
    let w = World::new();
    let (mut one, mut two) = (w.client(), w.client());
    for i in 0..20 {
        one.cmd(&format!("GET app:1:tools_{i}"));
        two.cmd(&format!("SET app:1:tools_{i} v"));
    }
    one.cmd(&format!("GET {KEY}"));
    w.invalidate();
    two.cmd(&format!("GET {KEY}"));
    // The fill of the first miss, over the connection of the second one.
    two.cmd(&format!("SET {KEY} old"));
    assert_eq!(two.cmd(&format!("GET {KEY}")), "$-1\r\n");
}

#[test]
fn writes_without_a_miss_stay() {
    let w = World::new();
    let mut client = w.client();
    for value in ["a", "b", "c"] {
        client.cmd(TRIGGER);
        assert_eq!(client.cmd(&format!("SET {KEY} {value}")), "+OK\r\n");
        assert_eq!(client.cmd(&format!("GET {KEY}")), format!("$1\r\n{value}\r\n"));
    }
    // And misses whose tags were not invalidated.
    client.cmd("GET app:1:tools_1");
    client.cmd("SET app:1:tag:nothing 1");
    client.cmd("SET app:1:tools_1 v");
    assert_eq!(client.cmd("GET app:1:tools_1"), "$1\r\nv\r\n");
}

#[test]
fn whose_requests_overlap_may_fill_with_what_another_connection_missed() {
    let w = World::with("[listen]\nworkers = 1");
    let mut pool: Vec<_> = (0..5).map(|_| w.client()).collect();
    let swaps = |pool: &mut Vec<Client>, key: &str| {
        assert_eq!(pool[0].cmd(&format!("GET {key}")), "$-1\r\n");
        w.invalidate();
        assert_eq!(pool[1].cmd(&format!("GET {key}")), "$-1\r\n");
        pool[1].cmd(&format!("SET {key} old"));
        w.redis.client().cmd(&format!("EXISTS {key}"))
    };
    assert_eq!(swaps(&mut pool, KEY), ":1\r\n", "one at a time: who has missed it fills it");
    w.redis.client().cmd("CLIENT PAUSE 300 ALL");
    pool.iter_mut().for_each(|client| client.send(b"GET app:1:home_page_data_9\r\n"));
    pool.iter_mut().for_each(|client| assert_eq!(client.raw(), b"$-1\r\n"));
    w.redis.client().cmd(&format!("DEL {KEY}"));
    assert_eq!(swaps(&mut pool, KEY), ":0\r\n", "either may hold what was read for the first miss");
    // Once each miss may have been filled, new ones count.
    let fill = |client: &mut Client| client.cmd(&format!("SET {KEY} v"));
    pool.iter_mut().for_each(|client| assert_eq!(fill(client), "+OK\r\n"));
    w.redis.client().cmd(&format!("DEL {KEY}"));
    assert_eq!(pool[2].cmd(&format!("GET {KEY}")), "$-1\r\n");
    fill(&mut pool[2]);
    assert_eq!(pool[2].cmd(&format!("GET {KEY}")), "$1\r\nv\r\n");
}

#[test]
fn after_its_window_a_fill_is_not_watched() {
    let w = World::with("");
    let rules = RULES.replace("name = \"home\"\n", "name = \"home\"\nfill_window = \"2s\"\n");
    let proxy = Proxy::start(&w.redis, &rules);
    let mut client = proxy.client();
    client.cmd(&format!("GET {KEY}"));
    client.cmd(TRIGGER);
    std::thread::sleep(std::time::Duration::from_millis(2200));
    client.cmd(&format!("SET {KEY} v"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$1\r\nv\r\n");
}

#[test]
fn where_it_is_off_nothing_is_undone() {
    let redis = Redis::start();
    let proxy =
        Proxy::start(&redis, &RULES.replace("name = \"home\"\n", "name = \"home\"\nstale_fill = \"off\"\n"));
    let mut client = proxy.client();
    client.cmd(&format!("GET {KEY}"));
    client.cmd(TRIGGER);
    client.cmd(&format!("SET {KEY} old"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$3\r\nold\r\n");
    assert_eq!(proxy.metric(STALE), 0.0);
}

#[test]
fn explicit_labels_are_protected_from_the_first_one_on() {
    let w = World::new();
    let mut direct = w.redis.client();
    let mut client = w.client();
    for round in 0..3 {
        client.cmd(&format!("GET page{round}"));
        w.client().cmd("TAG.INVALIDATE t");
        assert_eq!(client.cmd(&format!("TAG.WITH 1 t SET page{round} old")), "+OK\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS page{round}")), ":0\r\n", "round {round}");
        client.cmd(&format!("GET page{round}"));
        client.cmd(&format!("TAG.WITH 1 t SET page{round} new"));
        assert_eq!(direct.cmd(&format!("EXISTS page{round}")), ":1\r\n", "round {round}");
    }
    // Without a miss.
    client.cmd("TAG.WITH 1 t SET p v");
    w.client().cmd("TAG.INVALIDATE t");
    client.cmd("TAG.WITH 1 t SET p v");
    assert_eq!(client.cmd("GET p"), "$1\r\nv\r\n");
}

#[test]
fn who_fills_a_key_without_tags_as_no_script_can_holds_up_nobody() {
    let w = World::new();
    let (mut client, mut other) = (w.client(), w.client());
    other.cmd("TAG.WITH 1 t SET p v");
    assert_eq!(client.cmd("ZRANGE page 0 -1"), "*0\r\n");
    // The page might have got this label meanwhile.
    other.cmd("TAG.INVALIDATE u");
    assert_eq!(client.cmd("ZADD page 1 a"), ":1\r\n");
    assert_eq!(client.cmd("ZCARD page"), ":1\r\n");
    // Not the error that it takes long.
    assert_eq!(other.cmd("TAG.INVALIDATE t"), ":1\r\n");
}

#[test]
fn a_big_value_is_looked_at_behind_its_write() {
    let w = World::new();
    let mut client = w.client();
    let big = "x".repeat(600_000);
    client.cmd(&format!("GET {KEY}"));
    w.invalidate();
    let bytes = encode(&["SET", KEY, &big]);
    client.send(&bytes[..300_000]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    client.send(&bytes[300_000..]);
    assert_eq!(client.raw(), b"+OK\r\n");
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
}

#[test]
fn users_without_scripts_are_protected_all_the_same() {
    let w = World::new();
    let mut direct = w.redis.client();
    direct.cmd("ACL SETUSER joe on nopass ~app:* +@all -eval -evalsha");
    direct.cmd("ACL SETUSER jim on nopass ~app:* +@all");
    for user in ["joe", "jim"] {
        let mut client = w.client();
        client.cmd(&format!("AUTH {user} x"));
        for (read, fill, reply) in WAYS.iter().filter(|way| way.1[0] != "EVAL") {
            client.cmd(read);
            w.invalidate();
            assert_eq!(client.call(fill), *reply, "{user} {fill:?}");
            assert_eq!(direct.cmd(&format!("EXISTS {KEY} {OTHER}")), ":0\r\n", "{user} {fill:?}");
        }
    }
}

#[test]
fn users_who_may_not_see_what_was_invalidated_are_protected_all_the_same() {
    let w = World::new();
    let (mut direct, mut client, mut labeller) = (w.redis.client(), w.client(), w.client());
    direct.cmd("ACL SETUSER sue on nopass ~app:* ~page* ~rescind:epoch:* &* +@all");
    direct.cmd("ACL SETUSER zoe on nopass ~app:* ~page* ~rescind:epoch:* ~rescind:recent &* +@all");
    direct.cmd("ACL SETUSER tom on nopass ~* resetchannels +@all");
    labeller.cmd("TAG.WITH 1 t SET page v");
    for user in ["sue", "zoe", "tom"] {
        client.cmd(&format!("AUTH {user} x"));
        for (key, tag, fresh) in
            [(KEY, "Post", false), (KEY, "Post", true), ("page", "t", false), ("page", "t", true)]
        {
            labeller.cmd(&format!("DEL {key}"));
            assert_eq!(client.cmd(&format!("GET {key}")), "$-1\r\n");
            if !fresh {
                labeller.cmd(&format!("TAG.INVALIDATE {tag} u"));
                labeller.cmd("GET page");
                labeller.cmd("TAG.WITH 1 t SET page new");
            }
            assert_eq!(client.call(&["SET", key, "old"]), "+OK\r\n");
            let there = if fresh { ":1\r\n" } else { ":0\r\n" };
            assert_eq!(direct.cmd(&format!("EXISTS {key}")), there, "{user}: {key}, fresh: {fresh}");
        }
    }
    // Who only may not speak is served in one step.
    labeller.cmd("TAG.INVALIDATE u");
    client.cmd("GET page:2");
    labeller.cmd("TAG.INVALIDATE u");
    let before = calls(&mut direct, "eval");
    client.cmd("SET page:2 v");
    assert_eq!(calls(&mut direct, "eval"), before + 1);
}

/// How often Redis has run a command.
fn calls(direct: &mut Client, command: &str) -> u32 {
    let (stats, before) = (direct.cmd("INFO commandstats"), format!("cmdstat_{command}:calls="));
    let calls = |line: &str| line.strip_prefix(&before)?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).unwrap_or(0)
}

#[test]
fn a_script_is_called_by_its_name_and_sent_once_more_where_redis_has_forgotten_it() {
    let w = World::new();
    let (mut direct, mut client) = (w.redis.client(), w.client());
    direct.cmd("ACL SETUSER kim on nopass ~* &* +@all -evalsha");
    let fill = |client: &mut Client| {
        client.cmd(&format!("UNLINK {KEY}"));
        assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
        assert_eq!(client.cmd(&format!("SET {KEY} v")), "+OK\r\n");
        assert_eq!(client.cmd(&format!("GET {KEY}")), "$1\r\nv\r\n");
    };
    for db in ["0", "3"] {
        client.cmd(&format!("SELECT {db}"));
        fill(&mut client);
        let (spelled, named) = (calls(&mut direct, "eval"), calls(&mut direct, "evalsha"));
        fill(&mut client);
        fill(&mut client);
        assert_eq!(
            (calls(&mut direct, "eval"), calls(&mut direct, "evalsha")),
            (spelled, named + 2),
            "in database {db}"
        );
        direct.cmd("SCRIPT FLUSH");
        fill(&mut client);
        assert_eq!(calls(&mut direct, "eval"), spelled + 1);
        // A stale one is as stale as any.
        direct.cmd("SCRIPT FLUSH");
        client.cmd(&format!("UNLINK {KEY}"));
        client.cmd(&format!("GET {KEY}"));
        direct.cmd(&format!("SET rescind:epoch:Post another-{db}"));
        assert_eq!(client.cmd(&format!("SET {KEY} old")), "+OK\r\n");
        assert_eq!(client.cmd(&format!("EXISTS {KEY}")), ":0\r\n");
        // The proxy learns of it, a moment later: what has been missed before is too old.
        eventually("it is known", || {
            client.cmd(&format!("GET {KEY}"));
            client.cmd(&format!("SET {KEY} v"));
            (client.cmd(&format!("GET {KEY}")) == "$1\r\nv\r\n").then_some(())
        });
        direct.cmd("DEL rescind:epoch:Post");
    }
    // Rights that have just been taken away are no reason to refuse what the user may do.
    direct.cmd("ACL SETUSER default -evalsha");
    fill(&mut client);
    direct.cmd("ACL SETUSER default +evalsha");
    client.cmd("AUTH kim x");
    let named = calls(&mut direct, "evalsha");
    (0..3).for_each(|_| fill(&mut client));
    assert_eq!(calls(&mut direct, "evalsha"), named, "who may not is served as before");
}

#[test]
fn a_value_that_reads_like_an_error_is_none() {
    let w = World::new();
    let (mut direct, mut client) = (w.redis.client(), w.client());
    client.cmd(&format!("GET {KEY}"));
    client.call(&["SET", KEY, "v"]);
    for error in ["-NOSCRIPT", "-NOPERM", "-ERR The user executing the script"] {
        client.cmd(&format!("UNLINK {KEY}"));
        client.cmd(&format!("GET {KEY}"));
        let value = error.repeat(3_000_000 / error.len());
        direct.call(&["SET", KEY, &value]);
        let (eval, evalsha) = (calls(&mut direct, "eval"), calls(&mut direct, "evalsha"));
        assert!(client.call(&["SET", KEY, "mine", "GET"]).ends_with(&format!("{value}\r\n")), "{error}");
        assert_eq!(client.cmd(&format!("GET {KEY}")), "$4\r\nmine\r\n");
        assert_eq!(
            (calls(&mut direct, "eval"), calls(&mut direct, "evalsha")),
            (eval, evalsha + 1),
            "{error}"
        );
    }
}

#[test]
fn what_is_sent_once_more_is_not_overtaken() {
    let w = World::new();
    let (mut direct, mut client) = (w.redis.client(), w.client());
    client.cmd(&format!("GET {KEY}"));
    client.cmd(&format!("SET {KEY} 0"));
    for then in [format!("SET {KEY} 2"), format!("SET {KEY} {}2", "x".repeat(300_000))] {
        client.cmd(&format!("UNLINK {KEY}"));
        client.cmd(&format!("GET {KEY}"));
        direct.cmd("SCRIPT FLUSH");
        direct.cmd("CLIENT PAUSE 60000 WRITE");
        client.send(&encode(&["SET", KEY, "1"]));
        eventually("the fill is on its way", || {
            direct.cmd("CLIENT LIST").contains("cmd=evalsha").then_some(())
        });
        let then: Vec<&str> = then.split(' ').collect();
        client.send(&[encode(&then), encode(&["STRLEN", KEY])].concat());
        // Time for whoever would not wait.
        std::thread::sleep(std::time::Duration::from_millis(50));
        direct.cmd("CLIENT UNPAUSE");
        let expected = ["+OK\r\n".to_owned(), "+OK\r\n".to_owned(), format!(":{}\r\n", then[2].len())];
        let replies = [0; 3].map(|_| client.reply());
        assert_eq!(replies, expected);
        assert_eq!(client.cmd(&format!("STRLEN {KEY}")), expected[2]);
    }
}

#[test]
fn a_stale_copy_to_another_database_is_undone_there() {
    let w = World::new();
    let (mut client, mut other, mut direct) = (w.client(), w.client(), w.redis.client());
    other.cmd("SELECT 3");
    for key in ["source", KEY] {
        direct.cmd(&format!("SET {key} here"));
    }
    for fill in [["COPY", "source", KEY, "DB", "3"], ["COPY", "source", KEY, "DB", "3"]] {
        client.cmd("SELECT 3");
        assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
        client.cmd("SELECT 0");
        w.invalidate();
        direct.cmd(&format!("SET {KEY} here"));
        assert_eq!(client.call(&fill), ":1\r\n");
        assert_eq!(other.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "stale");
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n", "nothing else is touched");
    }
}

#[test]
fn a_fill_of_many_keys_is_looked_at_as_a_whole() {
    let w = World::new();
    let mut client = w.client();
    client.cmd("TAG.WITH 1 t SET other v");
    let keys: Vec<String> = (0..200).map(|n| format!("page:{n}")).collect();
    for fresh in [false, true] {
        let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        client.call(&mget);
        let mut labeller = w.client();
        labeller.cmd("TAG.INVALIDATE u");
        if !fresh {
            labeller.cmd("TAG.INVALIDATE t");
            labeller.cmd("GET page:7");
            labeller.cmd("TAG.WITH 1 t SET page:7 new");
        }
        let mset: Vec<&str> =
            std::iter::once("MSET").chain(keys.iter().flat_map(|key| [key.as_str(), "old"])).collect();
        assert_eq!(client.call(&mset), "+OK\r\n");
        let expected = if fresh { ":200\r\n" } else { ":199\r\n" };
        let exists: Vec<&str> = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str)).collect();
        assert_eq!(client.call(&exists), expected);
        let unlink: Vec<&str> = std::iter::once("UNLINK").chain(keys.iter().map(String::as_str)).collect();
        client.call(&unlink);
    }
}

#[test]
fn what_a_user_may_not_do_is_said_as_redis_says_it_outside_of_scripts() {
    let w = World::new();
    let mut admin = w.redis.client();
    admin.cmd("ACL SETUSER ann on nopass ~* &* +@all -setex");
    admin.cmd("ACL SETUSER bob on nopass %R~* ~rescind:* &* +@all");
    // May do it at first.
    admin.cmd("ACL SETUSER eve on nopass ~* &* +@all");
    let fills: [&[&str]; 2] = [&["SETEX", KEY, "9", "v"], &["SET", KEY, "v"]];
    for db in ["0", "3"] {
        admin.cmd("ACL SETUSER eve +setex");
        for user in ["ann", "bob", "eve"] {
            let (mut direct, mut client) = (w.redis.client(), w.client());
            for one in [&mut direct, &mut client] {
                one.cmd(&format!("AUTH {user} x"));
                one.cmd(&format!("SELECT {db}"));
            }
            for fill in fills {
                assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
                if user == "eve" {
                    assert_eq!(client.call(fill), "+OK\r\n");
                    admin.cmd("ACL SETUSER eve -setex");
                    assert_eq!(client.cmd(&format!("UNLINK {KEY}")), ":1\r\n");
                    client.cmd(&format!("GET {KEY}"));
                }
                // The pipelined one behind it is told of the same.
                let expected = direct.call(fill);
                direct.cmd(&format!("UNLINK {KEY}"));
                client.send(&[encode(fill), encode(fill)].concat());
                let replies = [client.raw(), client.raw()].map(|reply| String::from_utf8(reply).unwrap());
                assert_eq!(replies, [&*expected, &*expected], "{user} {fill:?} in {db}");
                client.cmd(&format!("UNLINK {KEY}"));
            }
        }
    }
}

#[test]
fn other_databases_have_the_same_epochs() {
    let w = World::new();
    let mut client = w.client();
    client.cmd("SELECT 3");
    client.cmd(&format!("GET {KEY}"));
    w.invalidate();
    client.cmd(&format!("SET {KEY} old"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    // The script must leave the database as it was, and protect without the proxy's knowledge.
    client.cmd(&format!("GET {KEY}"));
    w.redis.client().cmd("SET rescind:epoch:Post another");
    client.cmd(&format!("SET {KEY} old"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    assert_eq!(client.cmd("SET k v"), "+OK\r\n");
    let mut direct = w.redis.client();
    direct.cmd("SELECT 3");
    assert_eq!(direct.cmd("GET k"), "$1\r\nv\r\n");
    eventually("it is counted", || (w.proxy.metric(STALE) >= 2.0).then_some(()));
}

#[test]
fn an_epoch_that_nobody_knows_undoes_no_fill_of_later_misses() {
    let w = World::new();
    let (mut direct, mut client) = (w.redis.client(), w.client());
    // Its time to live is longer than any, as after the clock of Redis was set back.
    direct.cmd("SET rescind:epoch:Post another PX 3600000");
    let mut fill = || {
        client.cmd(&format!("GET {KEY}"));
        client.cmd(&format!("SET {KEY} v"));
        client.cmd(&format!("GET {KEY}"))
    };
    assert_eq!(fill(), "$-1\r\n", "it may be from after the miss");
    eventually("it is cacheable", || (fill() == "$1\r\nv\r\n").then_some(()));
    assert_eq!(direct.cmd("GET rescind:epoch:Post"), "$7\r\nanother\r\n");
}

#[test]
fn errors_come_through_as_they_are() {
    let w = World::new();
    let (mut direct, mut client) = (w.redis.client(), w.client());
    let warm = w.client().cmd(&format!("GET {OTHER}"));
    assert_eq!(warm, "$-1\r\n");
    for (setup, request) in [
        ("RPUSH app:1:home_page_data_1 x", &["HSET", KEY, "a", "1"][..]),
        ("DEL app:1:home_page_data_1", &["SET", KEY, "v", "NONSENSE"]),
        ("DEL app:1:home_page_data_1", &["SETEX", KEY, "0", "v"]),
        ("DEL app:1:home_page_data_1", &["SET", KEY]),
        ("DEL app:1:home_page_data_1", &["RENAME", "nothing", KEY]),
        ("CONFIG SET maxmemory 1", &["SET", KEY, "v"]),
    ] {
        direct.cmd(setup);
        let expected = direct.call(request);
        for _ in 0..2 {
            direct.cmd(&format!("DEL {KEY}"));
            client.cmd(&format!("GET {KEY}"));
            w.proxy.client().cmd("PUBLISH rescind:invalidate Post");
            direct.cmd(setup);
            assert_eq!(client.call(request), expected, "{request:?}");
        }
    }
    direct.cmd("CONFIG SET maxmemory 0");
}

#[test]
fn a_hash_that_lacks_a_field_is_filled_as_well() {
    let w = World::new();
    let mut direct = w.redis.client();
    let ways: [(&str, &[&str]); 3] = [
        ("HMGET app:1:home_page_data_1 a b", &["HSET", KEY, "b", "old"]),
        ("SMISMEMBER app:1:home_page_data_1 a b", &["SADD", KEY, "b"]),
        ("ZMSCORE app:1:home_page_data_1 a b", &["ZADD", KEY, "1", "b"]),
    ];
    for (read, fill) in ways {
        direct.cmd(&format!("DEL {KEY}"));
        match fill[0] {
            "HSET" => direct.cmd(&format!("HSET {KEY} a 1")),
            "SADD" => direct.cmd(&format!("SADD {KEY} a")),
            _ => direct.cmd(&format!("ZADD {KEY} 1 a")),
        };
        let mut client = w.client();
        let hits = w.proxy.metric("rescind_hits_total{family=\"home\"}");
        client.cmd(read);
        assert_eq!(w.proxy.metric("rescind_hits_total{family=\"home\"}"), hits + 1.0, "it counts as a hit");
        w.invalidate();
        assert_eq!(client.call(fill), ":1\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{fill:?}");
    }
}

#[test]
fn a_label_given_behind_the_fill_is_given_too_late() {
    let w = World::new();
    let mut client = w.client();
    for round in 0..3 {
        client.cmd(&format!("GET page{round}"));
        w.client().cmd("TAG.INVALIDATE t");
        client.cmd(&format!("SET page{round} old"));
        client.cmd(&format!("TAG.ADD page{round} t"));
        assert_eq!(client.cmd(&format!("GET page{round}")), "$-1\r\n", "round {round}");
    }
}

#[test]
fn the_first_fill_on_a_new_connection_cannot_be_seen_either() {
    let w = World::new();
    let mut direct = w.redis.client();
    for round in 0..50 {
        // A name: a connection of its own, made for this.
        let mut client = w.client();
        client.cmd(&format!("GET {KEY}"));
        w.invalidate();
        client.send(
            &[encode(&["CLIENT", "SETNAME", &format!("c{round}")]), encode(&["SET", KEY, "old"])].concat(),
        );
        // Whoever looks all the time never sees it.
        for _ in 0..20 {
            assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "round {round}");
        }
        assert_eq!(client.raw(), b"+OK\r\n");
        assert_eq!(client.raw(), b"+OK\r\n");
    }
}

#[test]
fn a_fill_that_does_not_take_place_leaves_its_miss_open() {
    let w = World::new();
    let mut direct = w.redis.client();
    let ways: [&[&str]; 6] = [
        &["SET app:1:home_page_data_1 old NONSENSE"],
        &["SET app:1:home_page_data_1 old XX"],
        &["MULTI", "SET app:1:home_page_data_1 old", "DISCARD"],
        &["MULTI", "SET app:1:home_page_data_1 old", "NONSENSE", "EXEC"],
        &["MULTI", "SET app:1:home_page_data_1 old NONSENSE", "EXEC"],
        &["WATCH w", "SET w 2", "MULTI", "SET app:1:home_page_data_1 old", "EXEC"],
    ];
    for way in ways {
        let mut client = w.client();
        client.cmd(&format!("GET {KEY}"));
        for request in way {
            client.cmd(request);
        }
        w.invalidate();
        client.cmd(&format!("SET {KEY} old"));
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{way:?}");
    }
}

#[test]
fn a_fill_without_an_answer_may_be_tried_again_over_another_connection() {
    let w = World::new();
    for _ in 0..5 {
        let mut client = w.client();
        client.cmd(&format!("GET {KEY}"));
        // It hangs up with an answer unread, which the kernel tells.
        client.send(&encode(&["SET", KEY, "old", "NONSENSE"]));
        std::thread::sleep(std::time::Duration::from_millis(30));
        drop(client);
        std::thread::sleep(std::time::Duration::from_millis(30));
        w.invalidate();
        let mut again = w.client();
        again.cmd(&format!("SET {KEY} old"));
        assert_eq!(again.cmd(&format!("GET {KEY}")), "$-1\r\n");
    }
}
