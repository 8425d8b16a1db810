//! No stale fill, where it is not plain which miss a write fills: in several parts, with labels behind it, after a hit, after
//! a long wait, across a reload or a restart.

use std::time::{Duration, Instant};

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_1";
const OTHER: &str = "app:1:home_page_data_2";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

struct World {
    redis: Redis,
    proxy: Proxy,
    direct: Client,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, RULES);
        let direct = redis.client();
        Self { redis, proxy, direct }
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    fn invalidate(&self, line: &str) {
        let reply = self.client().cmd(line);
        assert!(!reply.starts_with('-'), "{reply}");
    }

    fn exist(&mut self, keys: &str) -> String {
        self.direct.cmd(&format!("EXISTS {keys}"))
    }
}

fn run(client: &mut Client, lines: &[&str]) {
    for line in lines {
        let reply = client.cmd(line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

#[test]
fn a_read_of_several_keys_misses_any_of_them_that_may_be_missing() {
    let mut w = World::new();
    for read in ["EXISTS", "TOUCH", "SUNION", "SDIFF"] {
        for keys in [[KEY, OTHER], [OTHER, KEY]] {
            w.direct.cmd(&format!("SADD {OTHER} member"));
            let mut client = w.client();
            run(&mut client, &[&format!("{read} {} {}", keys[0], keys[1])]);
            w.invalidate(TRIGGER);
            run(&mut client, &[&format!("SADD {KEY} old")]);
            assert_eq!(w.exist(KEY), ":0\r\n", "{read} {keys:?}");
        }
    }
}

#[test]
fn commands_that_may_also_write_read_as_well() {
    let mut w = World::new();
    for (read, fill) in [
        ("SORT app:1:home_page_data_1", "RPUSH app:1:home_page_data_1 1"),
        ("BITPOS app:1:home_page_data_1 1", "SET app:1:home_page_data_1 x"),
        ("BITFIELD app:1:home_page_data_1 GET u8 0", "SET app:1:home_page_data_1 x"),
        ("GEORADIUS app:1:home_page_data_1 1 1 1 m", "GEOADD app:1:home_page_data_1 1 1 x"),
    ] {
        let mut client = w.client();
        run(&mut client, &[read]);
        w.invalidate(TRIGGER);
        run(&mut client, &[fill]);
        assert_eq!(w.exist(KEY), ":0\r\n", "{read}");
        run(&mut client, &[read, fill]);
        assert_eq!(w.exist(KEY), ":1\r\n", "{read}");
        w.direct.cmd(&format!("DEL {KEY}"));
    }
}

#[test]
fn what_is_moved_from_another_database_is_a_fill() {
    let mut w = World::new();
    let mut client = w.client();
    run(&mut client, &["GET app:1:home_page_data_1"]);
    w.invalidate(TRIGGER);
    run(&mut client, &["SELECT 3", "SET app:1:home_page_data_1 old", "MOVE app:1:home_page_data_1 0"]);
    assert_eq!(w.exist(KEY), ":0\r\n");
}

#[test]
fn a_fill_goes_on_after_a_whole_value() {
    let mut w = World::new();
    for (whole, part) in [("SET", "APPEND"), ("SETEX", "SETRANGE"), ("APPEND", "APPEND")] {
        let line = |command: &str| match command {
            "SETEX" => format!("SETEX {KEY} 100 one"),
            "SETRANGE" => format!("SETRANGE {KEY} 3 two"),
            other => format!("{other} {KEY} part"),
        };
        // The trigger comes before, or between the parts.
        for between in [false, true] {
            let mut client = w.client();
            run(&mut client, &[&format!("GET {KEY}")]);
            if !between {
                w.invalidate(TRIGGER);
            }
            run(&mut client, &[&line(whole)]);
            if between {
                w.invalidate(TRIGGER);
            }
            run(&mut client, &[&line(part)]);
            assert_eq!(w.exist(KEY), ":0\r\n", "{whole} {part} {between}");
        }
    }
}

#[test]
fn who_has_invalidated_what_he_had_filled_begins_anew() {
    let mut w = World::new();
    let mut client = w.client();
    run(&mut client, &["LRANGE app:1:home_page_data_1 0 -1", "RPUSH app:1:home_page_data_1 old", TRIGGER]);
    run(&mut client, &["RPUSH app:1:home_page_data_1 new"]);
    assert_eq!(w.direct.cmd(&format!("LRANGE {KEY} 0 -1")), "*1\r\n$3\r\nnew\r\n");
    // Nor is a list the rest of a string, whoever has deleted that.
    run(&mut client, &["GET app:1:home_page_data_2", "SET app:1:home_page_data_2 page"]);
    w.invalidate(TRIGGER);
    run(&mut client, &["RPUSH app:1:home_page_data_2 new"]);
    assert_eq!(w.exist(OTHER), ":1\r\n");
}

#[test]
fn each_of_two_clients_goes_on_with_its_own_fill() {
    let mut w = World::new();
    for add in
        ["HSET app:1:home_page_data_1 f v", "RPUSH app:1:home_page_data_1 v", "SADD app:1:home_page_data_1 v"]
    {
        let (mut a, mut b) = (w.client(), w.client());
        for client in [&mut a, &mut b] {
            run(client, &["EXISTS app:1:home_page_data_1"]);
        }
        run(&mut a, &[add]);
        run(&mut b, &[add]);
        w.invalidate(TRIGGER);
        run(&mut a, &[add]);
        assert_eq!(w.exist(KEY), ":0\r\n", "{add}");
    }
}

#[test]
fn labels_that_come_behind_a_fill_find_it_as_old_as_it_is() {
    let mut w = World::new();
    for (fill, labels) in [
        ("SET page old", &["TAG.ADD page t1", "TAG.ADD page t2"][..]),
        ("TAG.WITH 1 t1 SET page old", &["TAG.ADD page t2"]),
        ("SET page old", &["TAG.WITH 1 t2 EXPIRE page 100"]),
        ("SET page old EX 100", &["TAG.WITH 1 t2 PERSIST page"]),
        ("SET page old", &["TAG.NEXT t2", "GETEX page EX 100"]),
    ] {
        let mut client = w.client();
        run(&mut client, &["GET page"]);
        w.invalidate("TAG.INVALIDATE t2");
        run(&mut client, &[fill]);
        run(&mut client, labels);
        assert_eq!(w.exist("page"), ":0\r\n", "{fill} {labels:?}");
        // A fresh one stays.
        run(&mut client, &["GET page", fill]);
        run(&mut client, labels);
        assert_eq!(w.exist("page"), ":1\r\n", "{fill} {labels:?}");
        w.direct.cmd("DEL page");
    }
    // Likewise of a key that has tags by the rules.
    let mut client = w.client();
    run(&mut client, &["GET app:1:home_page_data_1"]);
    w.invalidate("TAG.INVALIDATE t2");
    run(&mut client, &["SET app:1:home_page_data_1 old", "TAG.ADD app:1:home_page_data_1 t2"]);
    assert_eq!(w.exist(KEY), ":0\r\n");
}

#[test]
fn who_labels_a_key_has_not_filled_it() {
    let mut w = World::new();
    let (mut slow, mut other) = (w.client(), w.client());
    run(&mut other, &["TAG.WITH 1 t SET elsewhere v"]);
    run(&mut slow, &["GET page"]);
    run(&mut other, &["SET page v"]);
    run(&mut slow, &["TAG.ADD page t"]);
    w.invalidate("TAG.INVALIDATE t");
    run(&mut slow, &["TAG.WITH 1 t SET page old"]);
    assert_eq!(w.exist("page"), ":0\r\n");
}

#[test]
fn what_is_computed_anew_although_it_was_there_is_as_old_as_its_read() {
    let mut w = World::new();
    let mut client = w.client();
    w.direct.cmd(&format!("SET {KEY} first"));
    run(&mut client, &[&format!("GET {KEY}")]);
    w.invalidate(TRIGGER);
    run(&mut client, &[&format!("SET {KEY} old EX 100")]);
    assert_eq!(w.exist(KEY), ":0\r\n");
    assert_eq!(w.proxy.metric("rescind_stale_fills_total{family=\"home\"}"), 1.0);
    // Without an invalidation, and after one that the client itself has caused, it knows better.
    run(&mut client, &[&format!("GET {KEY}"), &format!("SET {KEY} new"), &format!("GET {KEY}")]);
    run(&mut client, &[&format!("SET {KEY} newer")]);
    assert_eq!(w.direct.cmd(&format!("GET {KEY}")), "$5\r\nnewer\r\n");
    run(&mut client, &[&format!("GET {KEY}"), TRIGGER, &format!("SET {KEY} newest")]);
    assert_eq!(w.direct.cmd(&format!("GET {KEY}")), "$6\r\nnewest\r\n");
}

#[test]
fn so_it_is_if_somebody_else_has_missed_the_key_meanwhile() {
    let mut w = World::new();
    let (mut one, mut other) = (w.client(), w.client());
    w.direct.cmd(&format!("SET {KEY} first"));
    run(&mut one, &[&format!("GET {KEY}")]);
    w.invalidate(TRIGGER);
    run(&mut other, &[&format!("GET {KEY}")]);
    run(&mut one, &[&format!("SET {KEY} old")]);
    assert_eq!(w.exist(KEY), ":0\r\n");
    run(&mut other, &[&format!("SET {KEY} new")]);
    assert_eq!(w.exist(KEY), ":1\r\n");
}

#[test]
fn that_another_task_of_the_connection_was_told_of_the_invalidation_does_not_make_it_newer() {
    let mut w = World::new();
    let (mut one, mut other) = (w.client(), w.client());
    for n in 10..22 {
        run(&mut one, &[&format!("GET app:1:home_page_data_{n}")]);
        run(&mut other, &[&format!("SET app:1:home_page_data_{n} v")]);
    }
    w.direct.cmd(&format!("SET {KEY} old"));
    // One of them has found the key, and computes it anew; another one invalidates it.
    let mut shared = w.client();
    run(&mut shared, &[&format!("GET {KEY}"), TRIGGER, &format!("SET {KEY} old")]);
    assert_eq!(w.exist(KEY), ":0\r\n");
}

#[test]
fn rules_that_come_between_miss_and_fill_count() {
    let mut w = World::new();
    let late = RULES.replace("[tags]", "[tags]\nLate = [\"late_*\"]");
    let off = RULES.replace("name = \"home\"", "name = \"home\"\nstale_fill = \"off\"");
    for (round, (before, after, key, trigger)) in
        [(RULES, &*late, "app:1:late_1", "TAG.INVALIDATE Late"), (&off, RULES, KEY, TRIGGER)]
            .into_iter()
            .enumerate()
    {
        let reload = |rules: &str, number: usize| {
            w.proxy.folder.write("proxy.toml", rules);
            w.proxy.signal("-HUP");
            let ok = "rescind_config_reloads_total{result=\"ok\"}";
            eventually("reloaded", || (w.proxy.metric(ok) == number as f64).then_some(()));
            w.proxy.ready();
        };
        reload(before, 2 * round + 1);
        let mut client = w.client();
        run(&mut client, &[&format!("GET {key}")]);
        reload(after, 2 * round + 2);
        // All workers have them.
        std::thread::sleep(Duration::from_millis(100));
        w.invalidate(trigger);
        run(&mut client, &[&format!("SET {key} old")]);
        assert_eq!(w.direct.cmd(&format!("EXISTS {key}")), ":0\r\n", "{key}");
        run(&mut client, &[&format!("GET {key}"), &format!("SET {key} new")]);
        assert_eq!(w.direct.cmd(&format!("EXISTS {key}")), ":1\r\n", "{key}");
    }
}

#[test]
fn the_same_rules_once_more_make_nothing_suspect() {
    let mut w = World::new();
    let changed = RULES.replace("[tags]", "[tags]\nLate = [\"late_*\"]");
    for (number, (rules, stays)) in [(RULES, true), (&*changed, false)].into_iter().enumerate() {
        w.invalidate(TRIGGER);
        w.proxy.folder.write("proxy.toml", rules);
        w.proxy.signal("-HUP");
        let ok = "rescind_config_reloads_total{result=\"ok\"}";
        eventually("reloaded", || (w.proxy.metric(ok) == (number + 1) as f64).then_some(()));
        w.proxy.ready();
        run(&mut w.client(), &[&format!("SET {KEY} v")]);
        assert_eq!(w.exist(KEY), if stays { ":1\r\n" } else { ":0\r\n" }, "{rules}");
    }
}

#[test]
fn rules_that_come_with_a_restart_count_too() {
    let mut w = World::new();
    run(&mut w.client(), &["GET app:1:late_1"]);
    w.proxy.folder.write("proxy.toml", &RULES.replace("[tags]", "[tags]\nLate = [\"late_*\"]"));
    w.proxy.signal("-TERM");
    w.proxy.wait();
    w.proxy.start_again(&[]);
    w.proxy.ready();
    w.invalidate("TAG.INVALIDATE Late");
    run(&mut w.client(), &["SET app:1:late_1 old"]);
    assert_eq!(w.exist("app:1:late_1"), ":0\r\n");
}

/// Redis keeps the epoch for twice as long as fills are watched. Found at the start, it was not forgotten too early when it ends.
#[test]
fn an_epoch_from_before_a_restart_takes_nothing_along_when_it_ends() {
    let mut w = World::new();
    w.invalidate(TRIGGER);
    w.proxy.signal("-TERM");
    w.proxy.wait();
    std::thread::sleep(Duration::from_millis(6000));
    assert_eq!(w.exist("rescind:epoch:Post"), ":1\r\n");
    w.proxy.start_again(&[]);
    w.proxy.ready();
    run(&mut w.client(), &[&format!("SET {KEY} new")]);
    assert_eq!(w.exist(KEY), ":1\r\n");
    eventually("its time is over", || (w.exist("rescind:epoch:Post") == ":0\r\n").then_some(()));
    // What would come of it has come when the next message has.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(w.exist(KEY), ":1\r\n");
}

#[test]
fn after_a_restart_the_connection_of_a_trigger_knows_no_better_than_others() {
    for signal in ["-TERM", "-KILL"] {
        let mut w = World::new();
        run(&mut w.client(), &[&format!("GET {KEY}")]);
        w.proxy.signal(signal);
        w.proxy.wait();
        w.proxy.start_again(&[]);
        w.proxy.ready();
        // A pool gives the same connection to whoever asks.
        let mut pooled = w.client();
        run(&mut pooled, &[TRIGGER, &format!("SET {KEY} old")]);
        assert_eq!(w.exist(KEY), ":0\r\n", "{signal}");
    }
}

#[test]
fn a_fill_that_has_waited_here_is_as_old_as_when_it_came() {
    let mut w = World::new();
    let mut client = w.client();
    run(&mut client, &[&format!("GET {KEY}")]);
    w.direct.cmd("CLIENT PAUSE 6000 WRITE");
    // On one connection, so that the fill waits behind the trigger for longer than fills are watched.
    client.send(&[encode(&TRIGGER.split(' ').collect::<Vec<_>>()), encode(&["SET", KEY, "old"])].concat());
    assert_eq!([client.reply(), client.reply()], ["+OK\r\n", "+OK\r\n"]);
    assert_eq!(w.client().cmd(&format!("GET {KEY}")), "$-1\r\n");
}

#[test]
fn a_proxy_that_stood_still_does_not_know_whether_misses_are_over() {
    let mut w = World::new();
    let second = Proxy::start(&w.redis, RULES);
    eventually("they know each other", || second.log().contains("another proxy is there").then_some(()));
    eventually("likewise", || w.proxy.log().contains("another proxy is there").then_some(()));
    let mut client = second.client();
    run(&mut client, &[&format!("GET {KEY}")]);
    second.signal("-STOP");
    client.request(&["SET", KEY, "old"]);
    w.invalidate(TRIGGER);
    std::thread::sleep(Duration::from_millis(5500));
    second.signal("-CONT");
    assert_eq!(client.reply(), "+OK\r\n");
    assert_eq!(w.exist(KEY), ":0\r\n");
}

#[test]
fn a_look_at_a_fill_that_takes_long_loses_no_trigger() {
    let mut w = World::new();
    let page = "app:1:blog_posts_1";
    let mut client = w.client();
    run(&mut client, &[&format!("EXISTS {KEY}")]);
    w.direct.cmd(&format!("SET {page} old"));
    for request in
        ["MULTI", "SET app:1:model:Post:9 1", "ZADD app:1:home_page_data_1 1 old", "CLIENT PAUSE 11500 WRITE"]
    {
        client.cmd(request);
    }
    client.request(&["EXEC"]);
    let _ = client.try_raw();
    eventually("it is fanned out all the same", || (w.exist(page) == ":0\r\n").then_some(()));
    // Nor is its key deaf afterwards.
    w.direct.cmd(&format!("SET {page} old"));
    w.direct.cmd("SET app:1:model:Post:9 2");
    eventually("a direct write", || (w.exist(page) == ":0\r\n").then_some(()));
}

#[test]
fn who_labels_what_he_fills_can_cache_it_again_at_once() {
    let mut w = World::new();
    let mut clients: Vec<Client> = (0..4).map(|_| w.client()).collect();
    for round in 0..8 {
        for client in &mut clients {
            run(client, &["GET page"]);
        }
        let client = &mut clients[round % 2];
        run(client, &["GET page", "SET page v", "TAG.ADD page t"]);
        assert_eq!(w.exist("page"), ":1\r\n", "{round}");
        w.invalidate("TAG.INVALIDATE t");
        assert_eq!(w.exist("page"), ":0\r\n", "{round}");
        // The others do not fill what they have missed, or do so now.
        for (number, client) in clients.iter_mut().enumerate().filter(|(number, _)| *number != round % 2) {
            run(client, if number == 2 { &["PING"] } else { &["SET page v", "DEL page"] });
        }
    }
}

/// Requests of two connections are under way at once, so it is taken for granted that tasks share them.
#[test]
fn who_has_missed_again_fills_anew_in_parts() {
    let mut w = World::new();
    let (mut client, mut other) = (w.client(), w.client());
    let read = encode(&["SMEMBERS", OTHER]).repeat(20);
    for _ in 0..60 {
        client.send(&read);
        other.send(&read);
        (0..20).for_each(|_| _ = (client.reply(), other.reply()));
    }
    run(&mut client, &[&format!("SMEMBERS {KEY}"), &format!("SADD {KEY} v")]);
    for round in 0..3 {
        w.invalidate(TRIGGER);
        run(&mut client, &[&format!("SMEMBERS {KEY}"), &format!("SADD {KEY} v")]);
        assert_eq!(w.exist(KEY), ":1\r\n", "{round}");
    }
}

#[test]
fn what_is_written_through_after_an_own_trigger_stays() {
    let mut w = World::new();
    w.direct.cmd(&format!("SADD {KEY} x"));
    w.direct.cmd(&format!("SADD {OTHER} x"));
    let mut client = w.client();
    run(&mut client, &[&format!("SINTER {KEY} {OTHER}"), TRIGGER, &format!("SADD {KEY} y")]);
    assert_eq!(w.exist(KEY), ":1\r\n");
}

#[test]
fn a_stale_fill_that_writes_nothing_is_not_counted() {
    let w = World::new();
    let stale = || w.proxy.metric("rescind_stale_fills_total{family=\"home\"}");
    for fill in ["NX", "NX EX 100", "XX"].map(|how| format!("SET {KEY} old {how}")) {
        let (mut slow, mut quick) = (w.proxy.client(), w.proxy.client());
        slow.cmd(&format!("GET {KEY}"));
        quick.cmd(TRIGGER);
        if !fill.ends_with("XX") {
            quick.cmd(&format!("GET {KEY}"));
            quick.cmd(&format!("SET {KEY} new"));
        }
        assert_eq!(slow.cmd(&fill), "$-1\r\n", "{fill}");
        assert_eq!(slow.call(&["HSET", KEY, "f"])[..4], *"-ERR");
        assert_eq!(stale(), 0.0, "{fill}");
        quick.cmd(&format!("DEL {KEY}"));
    }
    let mut slow = w.proxy.client();
    slow.cmd(&format!("GET {KEY}"));
    w.proxy.client().cmd(TRIGGER);
    slow.cmd(&format!("SET {KEY} old NX"));
    assert_eq!(stale(), 1.0);
}

#[test]
fn what_a_script_has_written_before_it_failed_is_looked_at() {
    let mut w = World::new();
    let script = "redis.call('SET',KEYS[1],'old') return redis.call('LPUSH',KEYS[1],'x')";
    let mut client = w.client();
    client.cmd(&format!("GET {KEY}"));
    w.invalidate(TRIGGER);
    let reply = client.call(&["EVAL", script, "1", KEY]);
    assert!(reply.starts_with("-WRONGTYPE"), "{reply}");
    assert_eq!(w.exist(KEY), ":0\r\n");
}

#[test]
fn who_looks_once_more_before_he_fills_brings_no_newer_value() {
    let mut w = World::new();
    let get = format!("GET {KEY}");
    for (look, fill) in [
        (&["GET app:1:home_page_data_1"][..], &["SET app:1:home_page_data_1 old"][..]),
        (&["EXISTS app:1:home_page_data_1"], &["SETEX app:1:home_page_data_1 60 old"]),
        (
            &["WATCH app:1:home_page_data_1", "GET app:1:home_page_data_1"],
            &["MULTI", "SET app:1:home_page_data_1 old", "EXEC"],
        ),
    ] {
        let mut client = w.client();
        run(&mut client, &[&get]);
        w.invalidate(TRIGGER);
        run(&mut client, look);
        run(&mut client, fill);
        assert_eq!(w.exist(KEY), ":0\r\n", "{look:?}");
        // At once it can be cached again.
        run(&mut client, &[&get, &format!("SET {KEY} new")]);
        assert_eq!(w.exist(KEY), ":1\r\n", "{look:?}");
        w.direct.cmd(&format!("DEL {KEY}"));
    }
    // Who got the value from somebody else has nothing left to fill.
    let (mut client, mut other) = (w.client(), w.client());
    run(&mut client, &[&get]);
    run(&mut other, &[&get, &format!("SET {KEY} v")]);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(client.cmd(&get), "$1\r\nv\r\n");
    w.invalidate(TRIGGER);
    std::thread::sleep(Duration::from_millis(5));
    run(&mut client, &[&get, &format!("SET {KEY} new")]);
    assert_eq!(client.cmd(&get), "$3\r\nnew\r\n");
}

#[test]
fn what_brings_no_value_leaves_the_miss_open() {
    let mut w = World::new();
    let key = "app:1:home_page_data_1";
    for between in [
        "EVAL return(redis.call('TTL',KEYS[1])) 1 app:1:home_page_data_1",
        "MULTI;EVAL return(redis.call('TTL',KEYS[1])) 2 app:1:home_page_data_1 lock;EXEC",
        "EXPIRE app:1:home_page_data_1 60",
        "MULTI;EXPIRE app:1:home_page_data_1 60;EXEC",
        "MULTI;ZREMRANGEBYRANK app:1:home_page_data_1 0 -1;EXEC",
        "MULTI;SREM app:1:home_page_data_1 member;EXEC",
        "CLIENT SETNAME me;HDEL app:1:home_page_data_1 field",
    ] {
        for same in [true, false] {
            let (mut client, mut other) = (w.client(), w.client());
            run(&mut client, &[&format!("GET {key}")]);
            run(&mut client, &between.split(';').collect::<Vec<_>>());
            w.invalidate(TRIGGER);
            let filler = if same { &mut client } else { &mut other };
            run(filler, &[&format!("SET {key} old")]);
            assert_eq!(w.exist(key), ":0\r\n", "{between}, over the same connection: {same}");
            w.direct.cmd(&format!("DEL {key}"));
        }
    }
    let mut client = w.client();
    run(&mut client, &[&format!("SMEMBERS {OTHER}")]);
    w.invalidate(TRIGGER);
    run(&mut client, &["MULTI", &format!("SREM {OTHER} gone"), &format!("SADD {OTHER} old"), "EXEC"]);
    assert_eq!(w.exist(OTHER), ":0\r\n");
}

/// Two connections, and what shows that tasks share them.
fn shared(w: &World) -> [Client; 2] {
    let mut pool = [w.client(), w.client()];
    for i in 0..20 {
        run(&mut pool[0], &[&format!("GET app:1:tools_{i}")]);
        run(&mut pool[1], &[&format!("SET app:1:tools_{i} v")]);
    }
    pool
}

#[test]
fn where_tasks_share_connections_a_stale_part_does_not_come_in_behind_another_fill() {
    for part in ["RPUSH", "APPEND", "SADD"] {
        for (second, third) in [(0, 0), (1, 1)] {
            let mut w = World::new();
            let mut pool = shared(&w);
            let (read, line) = (format!("EXISTS {KEY}"), |value: &str| format!("{part} {KEY} {value}"));
            eventually("it goes quickly", || {
                w.direct.cmd(&format!("DEL {KEY}"));
                run(&mut pool[0], &[&read]);
                w.invalidate(TRIGGER);
                let began = Instant::now();
                run(&mut pool[0], &[&line("old")]);
                run(&mut pool[second], &[&read, &line("new")]);
                run(&mut pool[third], &[&line("old")]);
                (began.elapsed() < Duration::from_millis(100)).then_some(())
            });
            assert_eq!(w.exist(KEY), ":0\r\n", "{part} over {second} and {third}");
        }
    }
}

#[test]
fn a_fill_that_finds_the_key_there_does_not_keep_it_from_being_cached() {
    let mut w = World::new();
    let [mut one, mut two] = shared(&w);
    for (get, fill) in [
        ("GET", "SET app:1:home_page_data_1 v NX"),
        ("GET", "SETNX app:1:home_page_data_1 v"),
        ("GET", "MSETNX app:1:home_page_data_1 v app:1:home_page_data_2 v"),
        ("HGETALL", "HSETNX app:1:home_page_data_1 f v"),
    ] {
        let get = format!("{get} {KEY}");
        run(&mut one, &[&get]);
        run(&mut two, &[&get]);
        run(&mut one, &[fill]);
        run(&mut two, &[fill]);
        // What comes now is no part of these.
        std::thread::sleep(Duration::from_millis(200));
        w.invalidate(TRIGGER);
        run(&mut one, &[&get, fill]);
        assert_eq!(w.exist(KEY), ":1\r\n", "{fill}");
        w.direct.cmd(&format!("DEL {KEY} {OTHER}"));
    }
}

#[test]
fn a_hot_key_is_cached_again_at_once_however_many_have_missed_it() {
    let mut w = World::new();
    let mut pool: Vec<Client> = (0..40).map(|_| w.client()).collect();
    let (get, set) = (encode(&["GET", KEY]), encode(&["SET", KEY, "v"]));
    for round in 0..4 {
        w.invalidate(TRIGGER);
        for request in [&get, &set] {
            pool.iter_mut().for_each(|client| client.send(request));
            pool.iter_mut().for_each(|client| _ = client.reply());
        }
        assert_eq!(w.exist(KEY), ":1\r\n", "round {round}");
    }
}

#[test]
fn where_tasks_share_connections_who_deletes_a_key_first_fills_it_anew() {
    let mut w = World::new();
    let [mut one, mut two] = shared(&w);
    let fill = ["MULTI", "DEL app:1:home_page_data_1", "RPUSH app:1:home_page_data_1 v", "EXEC"];
    for round in 0..3 {
        // As many fills as misses, all over one connection.
        (0..3).for_each(|_| run(&mut one, &[&format!("LRANGE {KEY} 0 -1")]));
        (0..3).for_each(|_| run(&mut one, &fill));
        // What comes now is no part of these.
        std::thread::sleep(Duration::from_millis(200));
        w.invalidate(TRIGGER);
        run(&mut two, &[&format!("LRANGE {KEY} 0 -1")]);
        run(&mut two, &fill);
        assert_eq!(w.exist(KEY), ":1\r\n", "round {round}");
        w.direct.cmd(&format!("DEL {KEY}"));
    }
}
