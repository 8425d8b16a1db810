//! No lost invalidation: what took effect in Redis is fanned out, through the end of the proxy, of Redis, and of both.

use std::time::Duration;

use crate::proxies::some;
use crate::support::{Client, Proxy, RULES, Redis, eventually};

const KEY: &str = "app:1:home_page_data_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

fn fill(redis: &Redis, keys: &[&str]) {
    let mut direct = redis.client();
    for key in keys {
        assert_eq!(direct.cmd(&format!("SET {key} cached")), "+OK\r\n");
    }
}

fn is_there(direct: &mut Client, key: &str) -> bool {
    direct.cmd(&format!("EXISTS {key}")) == ":1\r\n"
}

#[test]
fn the_client_of_a_dead_proxy_may_bring_its_stale_fill_to_the_next() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    assert_eq!(proxy.client().cmd(&format!("GET {KEY}")), "$-1\r\n");
    proxy.kill();
    proxy.start_again(&[]);
    proxy.ready();
    let mut client = proxy.client();
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    client.cmd(&format!("SET {KEY} old"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    // With a miss of its own it is no retry.
    client.cmd(&format!("SET {KEY} new"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n");
}

#[test]
fn nor_is_it_fresh_by_a_label_that_the_next_has_not_read_yet() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    let mut labeller = proxy.client();
    labeller.cmd("TAG.WITH 1 first SET other v");
    assert_eq!(proxy.client().cmd("GET page"), "$-1\r\n");
    assert_eq!(labeller.cmd("TAG.INVALIDATE t"), ":0\r\n");
    labeller.cmd("GET page");
    assert_eq!(labeller.cmd("TAG.WITH 1 t SET page new"), "+OK\r\n");
    // The journal knows that it is done: it is not repeated.
    std::thread::sleep(Duration::from_millis(300));
    proxy.kill();
    // It takes a moment until all labels are read.
    let many = "for i = 1, 100000 do redis.call('SET', 'k'..i, 1) redis.call('ZADD', 'rescind:tag:x', 'inf', 'k'..i) end";
    redis.client().call(&["EVAL", many, "0"]);
    proxy.start_again(&[]);
    assert_eq!(proxy.client().cmd("SET page old"), "+OK\r\n");
    proxy.ready();
    let mut reader = proxy.client();
    let (value, labels) = (reader.cmd("GET page"), reader.cmd("TAG.OF page"));
    assert!(value != "$3\r\nold\r\n" || labels == "*0\r\n", "{value} {labels}");
}

#[test]
fn where_redis_has_lost_everything_as_well_nobody_knows_what_another_proxy_has_invalidated() {
    let mut redis = Redis::start();
    let mut proxies = some(&redis, 2);
    let mut client = proxies[1].client();
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    assert_eq!(client.cmd("GET page"), "$-1\r\n");
    assert_eq!(proxies[0].client().cmd(TRIGGER), "+OK\r\n");
    assert_eq!(proxies[0].client().cmd("TAG.INVALIDATE t"), ":0\r\n");
    proxies.iter_mut().for_each(Proxy::kill);
    redis.kill();
    redis.restart();
    // The other one stays away.
    let proxy = &mut proxies[1];
    proxy.start_again(&[]);
    proxy.ready();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for fill in [&["SET", KEY, "old"][..], &["TAG.WITH", "1", "t", "SET", "page", "old"]] {
        assert_eq!(client.call(fill), "+OK\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS {KEY} page")), ":0\r\n", "{fill:?}");
    }
    eventually("all is invalidated again", || proxy.log().contains("trigger=\"again\"").then_some(()));
    // With a miss of its own it is no retry.
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    client.cmd(&format!("SET {KEY} new"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n");
}

#[test]
fn a_pool_can_fill_again_as_soon_as_redis_is_back() {
    // So that no proxy changes it later on, which the other one would take for somebody's.
    let mut redis = Redis::with(&["--notify-keyspace-events", "Enxe"]);
    let proxies = some(&redis, 2);
    // One misses, another fills: they share connections.
    let [mut one, mut another] = [0, 1].map(|_| proxies[0].client());
    for n in 0..20 {
        one.cmd(&format!("GET app:1:blog_posts_{n}"));
        another.cmd(&format!("SET app:1:blog_posts_{n} v"));
    }
    redis.kill();
    redis.restart();
    let mut client = eventually("it is served again", || {
        let mut client = proxies[0].client();
        (client.cmd("PING") == "+PONG\r\n").then_some(client)
    });
    let repeated = || proxies[0].log().contains("Redis came back with other data");
    eventually("what was invalidated is so again", || repeated().then_some(()));
    proxies[0].ready();
    let mut direct = redis.client();
    eventually("Redis is trusted, and a value stays", || {
        client.cmd(&format!("GET {KEY}"));
        client.cmd(&format!("SET {KEY} v"));
        // Not asked for through the proxy: that would be one more miss, which nobody fills.
        is_there(&mut direct, KEY).then_some(())
    });
    // One or another that was missed before that was known; not all for the length of the window.
    let undone = proxies[0].metric("rescind_stale_fills_total{family=\"home\"}");
    assert!(undone < 10.0, "{undone} undone: {}", proxies[0].log());
}

#[test]
fn after_an_orderly_stop_nothing_is_suspect() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    proxy.client().cmd("PING");
    proxy.signal("-TERM");
    assert_eq!(proxy.wait(), Some(0));
    proxy.start_again(&[]);
    proxy.ready();
    let mut client = proxy.client();
    client.cmd(TRIGGER);
    client.cmd(&format!("SET {KEY} v"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$1\r\nv\r\n");
}

#[test]
fn a_trigger_that_cannot_be_noted_is_refused() {
    let redis = Redis::start();
    let proxy = Proxy::configured(&redis, "");
    let mut client = proxy.client();
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    let pid = proxy.pid().to_string();
    let limit = |bytes: &str| {
        let limit = format!("--fsize={bytes}");
        assert!(
            std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success()
        );
    };
    limit("1:unlimited");
    fill(&redis, &[KEY]);
    let mut direct = redis.client();
    let big = "x".repeat(400_000);
    for request in [
        &["SET", "app:1:model:Post:8", "1"][..],
        &["TAG.INVALIDATE", "Post"],
        &["PUBLISH", "rescind:invalidate", "Post"],
        &["SET", "app:1:model:Post:8", &big],
    ] {
        let mut client = proxy.client();
        let reply = client.call(request);
        assert!(reply.starts_with("-ERR the journal cannot be written"), "{request:?}: {reply}");
    }
    client.cmd("MULTI");
    client.cmd("SET app:1:model:Post:8 1");
    client.cmd("SET other 1");
    let refused = client.cmd("EXEC");
    assert!(
        refused.starts_with("-EXECABORT") && refused.contains("the journal cannot be written"),
        "{refused}"
    );
    assert_eq!(direct.cmd("EXISTS app:1:model:Post:8 other"), ":0\r\n", "it was not sent");
    assert!(is_there(&mut direct, KEY));
    // What fires nothing goes on.
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$6\r\ncached\r\n");
    limit("unlimited");
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    assert!(!is_there(&mut direct, KEY));
}

/// A Redis with a snapshot of the moment of `save`, on a port that can be used again.
fn with_snapshot() -> Redis {
    Redis::with(&["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no"])
}

#[test]
fn a_redis_with_an_old_snapshot_does_not_bring_back_what_was_invalidated() {
    let mut redis = with_snapshot();
    let proxy = Proxy::start(&redis, RULES);
    fill(&redis, &[KEY, "app:1:tools_1"]);
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    for round in 0..3 {
        redis.kill();
        redis.restart();
        assert_eq!(first_read(&proxy, KEY), "$-1\r\n", "round {round}");
        let mut direct = redis.client();
        eventually("it is deleted", || (!is_there(&mut direct, KEY)).then_some(()));
        assert!(is_there(&mut direct, "app:1:tools_1"), "nothing else is touched");
    }
}

/// The first read that is answered once Redis is reached again.
fn first_read(proxy: &Proxy, key: &str) -> String {
    let mut client = proxy.client();
    eventually("Redis is reached", || {
        let reply = client.cmd(&format!("GET {key}"));
        if reply.starts_with('-') {
            client = proxy.client();
        }
        (!reply.starts_with('-')).then_some(reply)
    })
}

/// Whether the one that stays has heard of it or has come later.
#[test]
fn nor_what_a_proxy_had_invalidated_that_has_left_since() {
    for heard in [true, false] {
        let mut redis = with_snapshot();
        let mut left = Proxy::start(&redis, RULES);
        let known = |proxy: &Proxy| proxy.log().contains("another proxy is there").then_some(());
        let staying = heard.then(|| Proxy::start(&redis, RULES));
        fill(&redis, &[KEY]);
        redis.client().cmd("SAVE");
        staying.iter().for_each(|_| eventually("they know each other", || known(&left)));
        assert_eq!(left.client().cmd("TAG.INVALIDATE Post"), ":1\r\n");
        let staying = staying.unwrap_or_else(|| Proxy::start(&redis, RULES));
        eventually("they know each other", || known(&staying));
        left.signal("-TERM");
        left.wait();
        for round in 0..3 {
            redis.kill();
            redis.restart();
            assert_eq!(first_read(&staying, KEY), "$-1\r\n", "round {round}, heard of: {heard}");
            let mut direct = redis.client();
            eventually("it is deleted", || (!is_there(&mut direct, KEY)).then_some(()));
        }
    }
}

/// Both start again, Redis with what it had saved; before, the proxy is killed, or ends in order.
fn restart_both(redis: &mut Redis, proxy: &mut Proxy, kill: bool) {
    if kill {
        proxy.kill();
    } else {
        proxy.signal("-TERM");
        proxy.wait();
    }
    redis.kill();
    redis.restart();
    proxy.start_again(&[]);
}

#[test]
fn nor_if_the_proxy_was_restarted_as_well() {
    let mut redis = with_snapshot();
    let mut proxy = Proxy::start(&redis, RULES);
    fill(&redis, &[KEY]);
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    // Its name in the journal is of the Redis before.
    std::thread::sleep(Duration::from_millis(100));
    for kill in [true, false] {
        restart_both(&mut redis, &mut proxy, kill);
        assert_eq!(proxy.client().cmd(&format!("GET {KEY}")), "$-1\r\n");
        let mut direct = redis.client();
        eventually("it is deleted", || (!is_there(&mut direct, KEY)).then_some(()));
    }
}

/// Whose replication id changes by that.
#[test]
fn a_master_that_gets_its_first_replica_keeps_what_is_fresh() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    client.cmd(&format!("SET {KEY} fresh"));
    let id = |direct: &mut Client| {
        let info = direct.cmd("INFO replication");
        info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().trim().to_owned()
    };
    let before = id(&mut direct);
    let _replica = Redis::with(&["--replicaof", "127.0.0.1", &redis.port.to_string()]);
    eventually("its id has changed", || (id(&mut direct) != before).then_some(()));
    let after = id(&mut direct);
    let journal = || {
        let files = std::fs::read_dir(proxy.folder.0.join("data/journal")).unwrap();
        let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        String::from_utf8_lossy(&bytes).contains(&after)
    };
    eventually("the proxy knows it by that", || journal().then_some(()));
    assert!(is_there(&mut direct, KEY));
    assert!(!proxy.log().contains("not the one that it was"), "{}", proxy.log());
}

#[test]
fn data_loaded_anew_are_noticed_also_after_the_statistics_were_reset() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let mut direct = redis.client();
    (0..3).for_each(|_| drop(direct.cmd("DEBUG SLEEP 0")));
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    client.cmd(&format!("SET {KEY} old"));
    assert_eq!(direct.cmd("SAVE"), "+OK\r\n");
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(direct.cmd("CONFIG RESETSTAT"), "+OK\r\n");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(direct.cmd("DEBUG RELOAD NOSAVE"), "+OK\r\n");
    eventually("it is gone", || (!is_there(&mut direct, KEY)).then_some(()));
}

#[test]
fn a_replica_in_its_place_gets_what_was_invalidated() {
    let mut master = Redis::start();
    let port = master.port;
    let proxy = Proxy::start(&master, RULES);
    fill(&master, &[KEY]);
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &port.to_string()]);
    let mut behind = replica.client();
    eventually("the replica has it", || is_there(&mut behind, KEY).then_some(()));
    // It is cut off before the invalidation.
    behind.cmd("REPLICAOF NO ONE");
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    behind.cmd("SAVE");
    master.kill();
    let file = replica.folder().join("dump.rdb");
    std::fs::copy(file, master.folder().join("dump.rdb")).unwrap();
    master.restart();
    assert_eq!(first_read(&proxy, KEY), "$-1\r\n");
}

#[test]
fn data_that_debug_reload_brings_back_is_noticed() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let proxy = Proxy::start(&redis, RULES);
    fill(&redis, &[KEY]);
    let mut direct = redis.client();
    direct.cmd("SAVE");
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    assert_eq!(direct.cmd("DEBUG RELOAD NOSAVE"), "+OK\r\n");
    eventually("it is deleted again", || (!is_there(&mut direct, KEY)).then_some(()));
    assert_eq!(proxy.client().cmd(&format!("GET {KEY}")), "$-1\r\n");
}

#[test]
fn while_a_deletion_cannot_be_done_reads_are_misses_and_the_writer_is_answered_in_the_end() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    // Its own user may not delete.
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own on >pw ~* &* +@all");
    proxy.signal("-TERM");
    proxy.wait();
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    fill(&redis, &[KEY, "app:1:home_page_data_2", "app:1:home_page_data_3", "app:1:home_page_data_4"]);
    direct.cmd("XADD app:1:home_page_data_stream 1-1 f cached");
    direct.cmd("RPUSH list 4");
    direct.cmd("ACL SETUSER own -unlink");
    let mut writer = proxy.client();
    let mut reader = proxy.client();
    writer.request(&TRIGGER.split(' ').collect::<Vec<_>>());
    eventually("reads are misses", || (reader.cmd(&format!("GET {KEY}")) == "$-1\r\n").then_some(()));
    for (read, answer) in [
        (format!("EXISTS {KEY}"), ":0\r\n"),
        (format!("STRLEN {KEY}"), ":0\r\n"),
        (format!("MGET {KEY} app:1:tools_1"), "*2\r\n$-1\r\n$-1\r\n"),
        (format!("HGETALL {KEY}"), "*0\r\n"),
        (format!("TYPE {KEY}"), "+none\r\n"),
    ] {
        assert_eq!(reader.cmd(&read), answer, "{read}");
    }
    assert!(proxy.metric("rescind_journal_pending") >= 1.0);
    // After ten seconds.
    assert_eq!(writer.raw(), b"+OK\r\n");
    assert!(proxy.metric("rescind_journal_pending") >= 1.0);
    assert_eq!(reader.cmd(&format!("GET {KEY}")), "$-1\r\n");
    // What cannot be answered with a miss waits; so does a transaction with a read that was queued before.
    let mut watching = proxy.client();
    watching.cmd("WATCH app:1:home_page_data_9");
    direct.cmd("SET app:1:home_page_data_9 x");
    for request in ["MULTI", "SET mine 1"] {
        watching.cmd(request);
    }
    assert_eq!(watching.cmd("EXEC"), "*-1\r\n", "the key itself is watched");
    let dependent = [
        format!("GETEX {KEY}"),
        format!("GETDEL {KEY}"),
        format!("GETSET {KEY} new"),
        format!("EVAL return(redis.call('GET',KEYS[1])) 1 {KEY}"),
        format!("COPY {KEY} plain"),
        "SORT list BY nosort GET app:1:home_page_data_*".to_owned(),
        "XREAD STREAMS app:1:home_page_data_stream 0".to_owned(),
        "XREAD BLOCK 10 STREAMS app:1:home_page_data_stream 0".to_owned(),
        "TAG.WITH 1 other GETSET app:1:home_page_data_2 new".to_owned(),
        "TAG.WITH 1 other COPY app:1:home_page_data_3 plain".to_owned(),
    ];
    let mut waiting: Vec<Client> = dependent.iter().map(|_| proxy.client()).collect();
    for (client, request) in waiting.iter_mut().zip(&dependent) {
        client.request(&request.split(' ').collect::<Vec<_>>());
    }
    let mut queued = proxy.client();
    queued.cmd("MULTI");
    queued.cmd(&format!("GET {KEY}"));
    queued.request(&["EXEC"]);
    std::thread::sleep(Duration::from_millis(300));
    direct.cmd("ACL SETUSER own +unlink");
    eventually("it is done", || (proxy.metric("rescind_journal_pending") == 0.0).then_some(()));
    for (mut client, request) in waiting.into_iter().zip(&dependent) {
        let reply = String::from_utf8(client.raw()).unwrap();
        assert!(
            !reply.contains("cached") && !reply.starts_with('-') && reply != ":1\r\n",
            "{request}: {reply}"
        );
    }
    assert!(!String::from_utf8(queued.raw()).unwrap().contains("cached"));
    assert!(!is_there(&mut direct, "plain"));
}

#[test]
fn who_dies_while_a_deletion_is_tried_again_leaves_it_to_the_next() {
    for redis_dies in [false, true] {
        let mut redis = with_snapshot();
        redis.client().cmd("ACL SETUSER own on >pw ~* &* +@all");
        let url = format!("redis://own:pw@127.0.0.1:{}", redis.port);
        let mut proxy = Proxy::launch(&url, RULES, &[]);
        proxy.ready();
        fill(&redis, &[KEY, "app:1:tools_1"]);
        let refuse = |redis: &Redis| redis.client().cmd("ACL SETUSER own on >pw ~* &* +@all -unlink");
        refuse(&redis);
        redis.client().cmd("SAVE");
        let (mut writer, mut reader) = (proxy.client(), proxy.client());
        writer.request(&TRIGGER.split(' ').collect::<Vec<_>>());
        eventually("reads are misses", || (reader.cmd(&format!("GET {KEY}")) == "$-1\r\n").then_some(()));
        for round in 0..3 {
            assert_eq!(first_read(&proxy, KEY), "$-1\r\n", "round {round}");
            assert!(proxy.metric("rescind_journal_pending") >= 1.0);
            assert_eq!(redis.client().cmd(&format!("GET {KEY}")), "$6\r\ncached\r\n", "it is there");
            proxy.kill();
            if redis_dies {
                redis.kill();
                redis.restart();
                refuse(&redis);
            }
            proxy.start_again(&[]);
        }
        redis.client().cmd("ACL SETUSER own +unlink");
        proxy.ready();
        let mut direct = redis.client();
        eventually("it is deleted", || (!is_there(&mut direct, KEY)).then_some(()));
        eventually("it is done", || (proxy.metric("rescind_journal_pending") == 0.0).then_some(()));
        assert!(is_there(&mut direct, "app:1:tools_1"), "nothing else is touched");
    }
}

#[test]
fn after_damage_to_the_journal_everything_counts_as_invalidated() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    let mut direct = redis.client();
    for i in 0..30 {
        assert_eq!(proxy.client().cmd(&format!("SET app:1:model:Post:{i} 1")), "+OK\r\n");
    }
    proxy.kill();
    let mut keys = vec!["MSET".to_owned()];
    (0..5000).for_each(|i| keys.extend([format!("app:1:tools_{i}"), "v".to_owned()]));
    direct.call(&keys);
    direct.cmd("SET other v");
    let folder = proxy.folder.0.join("data/journal");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&file, bytes).unwrap();
    proxy.start_again(&[]);
    assert_eq!(proxy.client().cmd("GET app:1:tools_4999"), "$-1\r\n");
    eventually("nothing is pending", || {
        let ready = proxy.http("GET", "/readyz", &[], "").0 == 200;
        (ready && proxy.metric("rescind_journal_pending") == 0.0).then_some(())
    });
    assert_eq!(direct.cmd("EXISTS app:1:tools_0 app:1:tools_2500 app:1:tools_4999"), ":0\r\n");
    assert!(is_there(&mut direct, "other"), "no rule names it");
}

#[test]
fn what_a_cascade_or_a_label_has_deleted_does_not_come_back_either() {
    let rules = RULES.replace("invalidate = [\"SiteMap\"]", "invalidate = [\"Tool\"]");
    let mut redis = with_snapshot();
    let proxy = Proxy::start(&redis, &rules);
    fill(&redis, &["app:1:tools_1"]);
    proxy.client().cmd("TAG.WITH 1 label SET page cached");
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
    assert_eq!(proxy.client().cmd("TAG.INVALIDATE label"), ":1\r\n");
    for round in 0..3 {
        redis.kill();
        redis.restart();
        for key in ["app:1:tools_1", "page"] {
            assert_eq!(first_read(&proxy, key), "$-1\r\n", "round {round}: {key}");
        }
    }
}

/// Which keys have labels a new process has to read first, which takes a while where Redis has many keys.
#[test]
fn nor_does_what_a_label_had_deleted_if_the_proxy_was_restarted_as_well() {
    let mut redis = Redis::with(&["--enable-debug-command", "yes"]);
    redis.client().cmd("DEBUG POPULATE 100000 filler 10");
    let mut proxy = Proxy::start(&redis, RULES);
    let keys = ["page", "app:1:tools_1"];
    for key in keys {
        proxy.client().cmd(&format!("TAG.WITH 1 label SET {key} cached"));
    }
    redis.client().cmd("SAVE");
    assert_eq!(proxy.client().cmd("TAG.INVALIDATE label"), ":2\r\n");
    for kill in [true, false] {
        restart_both(&mut redis, &mut proxy, kill);
        for key in keys {
            assert_eq!(first_read(&proxy, key), "$-1\r\n", "{key}, killed: {kill}");
        }
        proxy.ready();
    }
}

#[test]
fn after_a_start_or_a_gap_what_was_invalidated_before_can_be_cached_at_once() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    proxy.client().cmd(TRIGGER);
    for way in ["stop", "gap"] {
        if way == "stop" {
            proxy.signal("-TERM");
            proxy.wait();
            proxy.start_again(&[]);
        } else {
            redis.client().cmd("CLIENT KILL TYPE pubsub");
            eventually("the gap is noticed", || proxy.log().contains("feed lost").then_some(()));
        }
        proxy.ready();
        let mut client = proxy.client();
        client.cmd(&format!("GET {KEY}"));
        client.cmd(&format!("SET {KEY} v"));
        assert_eq!(client.cmd(&format!("GET {KEY}")), "$1\r\nv\r\n", "{way}");
        client.cmd(&format!("DEL {KEY}"));
    }
}
