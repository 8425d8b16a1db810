//! Guarantee 6: whatever is missing, invalidation is slower and never wrong.

use std::time::{Duration, Instant};

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const DEPENDENT: &str = "app:1:blog_posts_1";

fn connected(proxy: &Proxy, redis: &Redis) -> bool {
    proxy.metric(&format!("rescind_feed_connected{{node=\"127.0.0.1:{}\"}}", redis.port)) == 1.0
}

fn gaps(proxy: &Proxy, redis: &Redis) -> f64 {
    proxy.metric(&format!("rescind_feed_gaps_total{{node=\"127.0.0.1:{}\"}}", redis.port))
}

/// Dependents written directly and through the proxy are deleted by a trigger.
fn works(client: &mut Client, direct: &mut Client, round: &str) {
    direct.cmd(&format!("SET {DEPENDENT} v"));
    client.cmd("HSET app:1:home_page_data_1 f v");
    client.cmd("TAG.WITH 1 Post SET labelled v");
    assert_eq!(client.cmd("SET app:1:model:Post:1 v"), "+OK\r\n", "{round}");
    let left = direct.cmd(&format!("EXISTS {DEPENDENT} app:1:home_page_data_1 labelled"));
    assert_eq!(left, ":0\r\n", "{round}");
}

#[test]
fn without_config_the_index_knows_own_writes_and_fan_outs_scan() {
    let redis = Redis::with(&["--rename-command", "CONFIG", ""]);
    let mut direct = redis.client();
    direct.cmd("SET app:1:blog_posts_old v");
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    for round in 0..3 {
        works(&mut client, &mut direct, &round.to_string());
        assert_eq!(proxy.metric("rescind_index_complete"), 0.0);
        assert_eq!(proxy.http("GET", "/readyz", &[], "").0, 200);
    }
    assert_eq!(direct.cmd("EXISTS app:1:blog_posts_old"), ":0\r\n");
    assert!(client.cmd("TAG.INFO").contains("feed_mode:own writes"));
    client.cmd("TAG.WITH 1 Mine SET k v");
    client.cmd("DEL k");
    direct.cmd("SET k anew");
    assert_eq!(client.cmd("TAG.INVALIDATE Mine"), ":0\r\n");
}

#[test]
fn events_that_come_although_config_is_forbidden_are_used() {
    let redis = Redis::with(&["--notify-keyspace-events", "EA", "--rename-command", "CONFIG", ""]);
    let proxy = Proxy::start(&redis, RULES);
    // `EA` lacks `n`; nothing comes.
    assert_eq!(proxy.metric("rescind_index_complete"), 0.0);
    let redis = Redis::with(&["--notify-keyspace-events", "KEAn", "--rename-command", "CONFIG", ""]);
    let proxy = Proxy::start(&redis, RULES);
    eventually("the canary is seen", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
    works(&mut proxy.client(), &mut redis.client(), "with events");
}

#[test]
fn settings_are_extended_and_watched() {
    let redis = Redis::with(&["--notify-keyspace-events", "KEA"]);
    let mut direct = redis.client();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    let flags = |direct: &mut Client| direct.list("CONFIG GET notify-keyspace-events")[1].clone();
    let now = flags(&mut direct);
    // Redis 7.0 does not show `n` beside `A`; that events come shows that it is there.
    assert!(['A', 'K', 'E'].iter().all(|flag| now.contains(*flag)), "{now}");
    assert_eq!(proxy.metric("rescind_index_complete"), 1.0);
    works(&mut client, &mut direct, "extended");
    direct.call(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    eventually("it is noticed", || (gaps(&proxy, &redis) >= 1.0).then_some(()));
    eventually("it is repaired", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
    let now = flags(&mut direct);
    assert!(['x', 'e', 'E', 'n'].iter().all(|flag| now.contains(*flag)), "{now}");
    works(&mut client, &mut direct, "repaired");
}

const OFF: &str = "CONFIG SET notify-keyspace-events ";
const ON: &str = "CONFIG SET notify-keyspace-events Enxe";

/// How often the index was rebuilt because of that.
fn rebuilt(proxy: &Proxy, why: &str) -> usize {
    let why = format!("why=\"{why}\"");
    proxy.log().lines().filter(|line| line.contains("index rebuilt") && line.contains(&why)).count()
}

/// How often the settings have been asked for: once a second by each proxy, which then looks at Redis.
fn asked(direct: &mut Client) -> u64 {
    let stats = direct.cmd("INFO commandstats");
    let count = |line: &str| line.strip_prefix("cmdstat_config|get:calls=")?.split(',').next()?.parse().ok();
    stats.lines().find_map(count).unwrap_or(0)
}

/// So many times it has been looked at Redis since.
fn looked_at(direct: &mut Client, times: u64) {
    let before = asked(direct);
    eventually("it has been looked", || (asked(direct) > before + times).then_some(()));
}

#[test]
fn events_that_were_off_for_a_moment_are_a_gap_for_every_proxy() {
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, RULES)];
    let mut direct = redis.client();
    looked_at(&mut direct, 4);
    for (round, proxy) in proxies.iter().enumerate() {
        direct.call(&OFF.split(' ').collect::<Vec<_>>());
        direct.cmd(&format!("SET {DEPENDENT} old"));
        direct.cmd(ON);
        for proxy in &proxies {
            let settings = || rebuilt(proxy, "CONFIG SET") > round;
            eventually("every proxy has noticed", || settings().then_some(()));
            proxy.ready();
        }
        assert_eq!(proxy.client().cmd("SET app:1:model:Post:1 v"), "+OK\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS {DEPENDENT}")), ":0\r\n", "{round}");
    }
    // What proxies themselves set to hear of events is no reason for each other to do that for ever.
    direct.call(&OFF.split(' ').collect::<Vec<_>>());
    let flags = |direct: &mut Client| direct.list("CONFIG GET notify-keyspace-events")[1].clone();
    eventually("one has switched them on again", || (flags(&mut direct).len() == 4).then_some(()));
    looked_at(&mut direct, 8);
    let before = proxies.iter().map(|proxy| rebuilt(proxy, "CONFIG SET")).sum::<usize>();
    looked_at(&mut direct, 8);
    assert_eq!(proxies.iter().map(|proxy| rebuilt(proxy, "CONFIG SET")).sum::<usize>(), before);
}

#[test]
fn what_was_invalidated_without_events_is_invalidated_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for on in [Some(ON), None] {
        proxy.ready();
        looked_at(&mut direct, 2);
        direct.call(&OFF.split(' ').collect::<Vec<_>>());
        direct.cmd(&format!("SET {DEPENDENT} old"));
        assert_eq!(client.cmd("SET app:1:model:Post:1 v"), "+OK\r\n");
        // Or the proxy does that itself, a second later.
        on.into_iter().for_each(|on| drop(direct.cmd(on)));
        let gone = |direct: &mut Client| direct.cmd(&format!("EXISTS {DEPENDENT}")) == ":0\r\n";
        eventually("it is gone", || gone(&mut direct).then_some(()));
    }
}

#[test]
fn settings_of_which_redis_does_not_show_all_are_left_alone() {
    for flags in ["KEA", "A", "AKEn"] {
        let redis = Redis::with(&["--notify-keyspace-events", flags]);
        let proxy = Proxy::start(&redis, RULES);
        let (mut client, mut direct) = (proxy.client(), redis.client());
        looked_at(&mut direct, 2);
        works(&mut client, &mut direct, flags);
        assert_eq!(gaps(&proxy, &redis), 0.0, "{flags}");
        // And if they do not come any more, that is noticed.
        direct.cmd("CONFIG SET notify-keyspace-events AK");
        eventually("it is a gap", || (gaps(&proxy, &redis) > 0.0 && connected(&proxy, &redis)).then_some(()));
        works(&mut client, &mut direct, flags);
        direct.cmd("CONFIG SET notify-keyspace-events KEA");
        eventually("it is a gap", || (gaps(&proxy, &redis) > 1.0 && connected(&proxy, &redis)).then_some(()));
        works(&mut client, &mut direct, flags);
    }
}

#[test]
fn settings_that_suffice_are_not_changed_although_redis_does_not_show_all_of_them() {
    for flags in ["KEAn", "Enxe"] {
        let redis = Redis::with(&["--notify-keyspace-events", flags]);
        let proxy = Proxy::start(&redis, RULES);
        works(&mut proxy.client(), &mut redis.client(), flags);
        // With `o` and `c`, which Redis 8.2 does not show beside `A`, they would be gone.
        assert!(!redis.client().cmd("INFO commandstats").contains("cmdstat_config|set"), "{flags}");
    }
}

#[test]
fn a_lost_feed_is_a_gap_and_nothing_is_missed() {
    let mut redis = Redis::start();
    let mut direct = redis.client();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    for round in 0..5 {
        assert_eq!(direct.cmd("CLIENT KILL TYPE pubsub"), ":1\r\n");
        works(&mut client, &mut direct, &format!("killed {round}"));
        eventually("the gap is counted", || (gaps(&proxy, &redis) >= f64::from(round + 1)).then_some(()));
        eventually("rebuilt", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
        works(&mut client, &mut direct, &format!("rebuilt {round}"));
    }
    let before = gaps(&proxy, &redis);
    redis.kill();
    eventually("down", || (!connected(&proxy, &redis)).then_some(()));
    let (status, why) = proxy.http("GET", "/readyz", &[], "");
    assert_eq!(status, 503);
    assert!(why.contains("feed"), "{why}");
    assert_eq!(proxy.http("GET", "/healthz", &[], "").0, 200);
    redis.restart();
    let mut direct = redis.client();
    eventually("up again", || (connected(&proxy, &redis) && gaps(&proxy, &redis) > before).then_some(()));
    // A client whose own connection was lost may have been cut: a new one is served at once.
    let mut client = proxy.client();
    eventually("served", || (client.cmd("PING") == "+PONG\r\n").then_some(()));
    works(&mut client, &mut direct, "restarted");
    proxy.ready();
    works(&mut client, &mut direct, "ready");
}

#[test]
fn flushes_and_swaps() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    for line in ["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC", "SWAPDB 0 1", "SWAPDB 1 0"] {
        for directly in [false, true] {
            if directly && line.starts_with("SWAPDB") {
                continue; // seen nowhere
            }
            for i in 0..50 {
                direct.cmd(&format!("SET app:1:blog_posts_{i} v"));
            }
            client.cmd("TAG.WITH 1 Post SET labelled v");
            let writer = if directly { &mut direct } else { &mut client };
            assert_eq!(writer.cmd(line), "+OK\r\n");
            direct.cmd("SET labelled v");
            works(&mut client, &mut direct, line);
            direct.cmd("SELECT 1");
            works(&mut client, &mut direct, line);
            assert_eq!(direct.cmd("EXISTS app:1:blog_posts_7"), ":0\r\n", "{line}");
            direct.cmd("SELECT 0");
            assert_eq!(direct.cmd("EXISTS app:1:blog_posts_7"), ":0\r\n", "{line}");
        }
    }
    client.cmd("MULTI");
    client.cmd("SWAPDB 0 1");
    client.cmd("EXEC");
    works(&mut client, &mut direct, "SWAPDB in EXEC");
    eventually("complete again", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
}

#[test]
fn what_existed_before_is_invalidated_also_while_warming_up() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let mut pipeline = vec![];
    for i in 0..20_000 {
        pipeline.extend(encode(&["SET", &format!("app:1:blog_posts_{i}"), "v"]));
    }
    direct.send(&pipeline);
    (0..20_000).for_each(|_| assert_eq!(direct.raw(), b"+OK\r\n"));
    direct.cmd("ZADD rescind:tag:Mine inf mine1 inf mine2");
    direct.cmd("MSET mine1 v mine2 v other v");
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", redis.port), RULES, &[]);
    // At once: it need not be ready.
    let mut client = proxy.client();
    assert!(!client.cmd("TAG.INVALIDATE Mine").starts_with('-'));
    assert_eq!(direct.cmd("EXISTS mine1 mine2 other"), ":1\r\n");
    client.cmd("SET app:1:model:Post:1 v");
    assert_eq!(direct.list("EVAL return(#redis.call('KEYS','app:1:blog*')) 0"), ["0"]);
    proxy.ready();
    works(&mut client, &mut direct, "warm");
}

#[test]
fn a_password_in_the_url_is_the_proxys_own() {
    let redis = Redis::with(&["--requirepass", "secret"]);
    let proxy = Proxy::launch(&format!("redis://:secret@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    assert!(client.cmd("SET app:1:model:Post:1 v").starts_with("-NOAUTH"));
    assert!(client.cmd("AUTH wrong").starts_with("-WRONGPASS"));
    for client in [&mut client, &mut direct] {
        assert_eq!(client.cmd("AUTH secret"), "+OK\r\n");
    }
    works(&mut client, &mut direct, "with a password");
    assert!(!proxy.log().contains("secret"));
}

#[test]
fn the_index_forgets_what_is_gone() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    let keys = || proxy.metric("rescind_index_keys");
    for i in 0..200 {
        direct.cmd(&format!("SET app:1:blog_posts_{i} v"));
    }
    client.cmd("TAG.KEYS Post COUNT 1");
    assert_eq!(keys(), 200.0);
    for i in 0..100 {
        let writer = if i % 2 == 0 { &mut direct } else { &mut client };
        writer.cmd(&format!("DEL app:1:blog_posts_{i}"));
    }
    eventually("half of them are gone", || (keys() == 100.0).then_some(()));
    direct.cmd("FLUSHALL");
    eventually("all are gone", || (keys() == 0.0).then_some(()));
    works(&mut client, &mut direct, "afterwards");
}

#[test]
fn a_swapdb_past_the_proxy_is_noticed() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    direct.cmd("SET app:1:blog_posts_1 old");
    direct.cmd("SWAPDB 0 1");
    eventually("the index is rebuilt", || {
        client.cmd("SET app:1:model:Post:7 1");
        direct.cmd("SELECT 1");
        (direct.cmd("EXISTS app:1:blog_posts_1") == ":0\r\n").then_some(())
    });
}

/// Until it is noticed the index has the keys in the wrong database.
#[test]
fn what_was_invalidated_before_a_swapdb_was_noticed_is_invalidated_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for way in ["SWAPDB 0 1", "EVAL return(redis.call('SWAPDB',0,1)) 0"] {
        direct.cmd("SET app:1:blog_posts_1 old");
        proxy.ready();
        assert_eq!(direct.cmd(way), "+OK\r\n");
        assert!(client.cmd("TAG.INVALIDATE Post").starts_with(':'));
        direct.cmd("SELECT 1");
        let gone = |direct: &mut Client| (direct.cmd("EXISTS app:1:blog_posts_1") == ":0\r\n").then_some(());
        eventually("it is gone", || gone(&mut direct));
        direct.cmd("SELECT 0");
    }
}

#[test]
fn a_swapdb_beside_a_trigger_leaves_no_dependents() {
    const KEYS: usize = 300;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut writer, mut swapper, mut direct) = (proxy.client(), proxy.client(), redis.client());
    let keys: Vec<String> = (0..KEYS).map(|n| format!("app:1:blog_posts_{n}")).collect();
    let fill: Vec<&str> =
        std::iter::once("MSET").chain(keys.iter().flat_map(|key| [key.as_str(), "v"])).collect();
    for round in 0..60 {
        for database in ["SELECT 5", "SELECT 0"] {
            direct.cmd(database);
            direct.call(&fill);
        }
        proxy.ready();
        writer.send(&encode(&["SET", "app:1:model:Post:7", "1"]));
        std::thread::sleep(Duration::from_micros(50 * (round % 30)));
        swapper.send(&encode(&["SWAPDB", "0", "5"]));
        assert_eq!((writer.raw(), swapper.raw()), (b"+OK\r\n".to_vec(), b"+OK\r\n".to_vec()));
        let ask: Vec<&str> = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str)).collect();
        for database in ["SELECT 5", "SELECT 0"] {
            direct.cmd(database);
            assert_eq!(direct.call(&ask), ":0\r\n", "round {round}, {database}");
        }
    }
}

#[test]
fn what_is_written_behind_a_flush_can_be_read_at_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    // Something was invalidated lately, and something labelled.
    client.cmd("TAG.WITH 1 t SET page v");
    client.cmd("SET app:1:model:Post:1 1");
    for round in 0..200 {
        let flusher = if round % 2 == 0 { &mut direct } else { &mut client };
        assert_eq!(flusher.cmd("FLUSHALL"), "+OK\r\n");
        for key in ["app:1:home_page_data_1", "plain"] {
            assert_eq!(client.cmd(&format!("SET {key} {round}")), "+OK\r\n");
            assert_eq!(
                client.cmd(&format!("GET {key}")),
                format!("${}\r\n{round}\r\n", round.to_string().len())
            );
        }
    }
}

/// As those of a test suite. What follows one of them takes longer than the next is away.
#[test]
fn what_follows_many_flushes_is_done_for_many_at_once() {
    const FLUSHES: usize = 2000;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    let tags: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let request: Vec<&str> =
        std::iter::once("TAG.INVALIDATE").chain(tags.iter().map(String::as_str)).collect();
    assert_eq!(client.call(&request), ":0\r\n");
    let before = calls(&mut direct, "set");
    direct.send(&encode(&["FLUSHDB"]).repeat(FLUSHES));
    (0..FLUSHES).for_each(|_| assert_eq!(direct.raw(), b"+OK\r\n"));
    eventually("the epochs are back", || (direct.cmd("EXISTS rescind:epoch:t99") == ":1\r\n").then_some(()));
    let mut last = 0;
    eventually("nothing goes on", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = calls(&mut direct, "set");
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let each = (last - before) as usize / tags.len();
    assert!((1..FLUSHES / 4).contains(&each), "{each}");
}

const RIGHTS: &str = "~* &rescind:* -@all +hello +auth +ping +select +config|get +config|set +psubscribe +subscribe \
    +client|tracking +command +info +scan +exists +set +get +unlink +pexpire +zadd +zrem +zscan +zscore +zrangebyscore \
    +pexpiretime +publish +pubsub +eval +lpush +ltrim +lrange";

/// A Redis with a user `own` for the proxy, who may do what it needs, except for this.
fn restricted(except: &str) -> (Redis, String) {
    let redis = Redis::start();
    let user = format!("ACL SETUSER own on >pw resetchannels {RIGHTS} {except}");
    let user: Vec<&str> = user.split_whitespace().collect();
    assert_eq!(redis.client().call(&user), "+OK\r\n");
    let url = format!("redis://own:pw@127.0.0.1:{}", redis.port);
    (redis, url)
}

fn calls(direct: &mut Client, command: &str) -> u32 {
    let stats = direct.cmd("INFO commandstats");
    let prefix = format!("cmdstat_{command}:calls=");
    let calls = |line: &str| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).unwrap_or(0)
}

#[test]
fn without_the_right_to_hear_of_key_changes_it_lives_on_its_own_writes() {
    // Redis compares the channels of PSUBSCRIBE as they are written.
    for except in
        ["-psubscribe", "&__keyevent@*", "-psubscribe -subscribe", "-psubscribe -subscribe -client|tracking"]
    {
        let (redis, url) = restricted(except);
        let proxy = Proxy::launch(&url, RULES, &[]);
        proxy.ready();
        let (mut client, mut direct) = (proxy.client(), redis.client());
        let up = || proxy.metric(&format!("rescind_upstream_up{{node=\"127.0.0.1:{}\"}}", redis.port));
        for round in 0..2 {
            works(&mut client, &mut direct, &format!("{except} {round}"));
        }
        let (asked, looked) = (calls(&mut direct, "command"), calls(&mut direct, "info"));
        eventually("some seconds", || (calls(&mut direct, "info") >= looked + 3).then_some(()));
        assert_eq!(calls(&mut direct, "command"), asked, "{except}");
        assert_eq!((up(), proxy.metric("rescind_index_complete")), (1.0, 0.0), "{except}");
        let (status, note) = proxy.http("GET", "/readyz", &[], "");
        assert!(status == 200 && note.contains("every fan-out also scans"), "{except}: {status} {note}");
        assert!(client.cmd("TAG.INFO").contains("feed_mode:own writes"), "{except}");
        assert!(!proxy.log().contains("cannot be reached"), "{except}: {}", proxy.log());
    }
}

#[test]
fn without_the_right_to_ping_there_is_no_feed_and_that_is_said_at_once() {
    let (redis, url) = restricted("-ping");
    let proxy = Proxy::launch(&url, RULES, &[]);
    eventually("it says why", || proxy.http("GET", "/readyz", &[], "").1.contains("NOPERM").then_some(()));
    works(&mut proxy.client(), &mut redis.client(), "without a feed");
    assert!(!connected(&proxy, &redis));
    let up = proxy.metric(&format!("rescind_upstream_up{{node=\"127.0.0.1:{}\"}}", redis.port));
    assert_eq!(up, 1.0);
}

#[test]
fn what_keeps_the_index_from_being_filled_is_said() {
    let (redis, url) = restricted("-scan");
    let proxy = Proxy::launch(&url, RULES, &[]);
    let why = eventually("it says why", || {
        let (status, why) = proxy.http("GET", "/readyz", &[], "");
        (status == 503 && why.contains("NOPERM")).then_some(why)
    });
    assert!(why.contains("the index is not complete") && why.contains("'scan'"), "{why}");
    redis.client().cmd("ACL SETUSER own +scan");
    proxy.ready();
    works(&mut proxy.client(), &mut redis.client(), "granted");
}

#[test]
fn a_right_that_is_granted_later_is_used() {
    let (redis, url) = restricted("-psubscribe");
    let proxy = Proxy::launch(&url, RULES, &[]);
    proxy.ready();
    assert_eq!(proxy.metric("rescind_index_complete"), 0.0);
    redis.client().cmd("ACL SETUSER own +psubscribe allchannels");
    eventually("it hears of key changes", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
    works(&mut proxy.client(), &mut redis.client(), "granted");
}

#[test]
fn a_redis_that_refuses_the_proxy_itself_is_there_all_the_same() {
    let redis = Redis::with(&["--requirepass", "right"]);
    let name = format!("rescind_upstream_up{{node=\"127.0.0.1:{}\"}}", redis.port);
    let proxy = Proxy::launch(&format!("redis://:wrong@127.0.0.1:{}", redis.port), RULES, &[]);
    let why = eventually("it says why", || {
        let (status, why) = proxy.http("GET", "/readyz", &[], "");
        (status == 503 && why.contains("WRONGPASS")).then_some(why)
    });
    assert!(why.contains("the feed is not connected: WRONGPASS"), "{why}");
    let up = || proxy.metric(&name);
    assert_eq!((up(), f64::from(u8::from(connected(&proxy, &redis)))), (1.0, 0.0));
    assert!(proxy.log().contains("upstream refuses the feed"), "{}", proxy.log());
    let mut client = proxy.client();
    assert_eq!(client.cmd("AUTH right"), "+OK\r\n");
    assert_eq!(client.cmd("GET k"), "$-1\r\n");
    drop(redis);
    eventually("now it is away", || (up() == 0.0).then_some(()));
}

/// It refuses a `PING` as well, in its turn.
#[test]
fn a_redis_that_takes_no_writes_since_it_cannot_save_them_keeps_its_feed() {
    let redis = Redis::with(&["--save", "3600 1"]);
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    client.cmd(&format!("SET {DEPENDENT} v"));
    client.cmd("TAG.WITH 1 label SET k v");
    let in_its_way = redis.folder().join("dump.rdb");
    std::fs::create_dir(&in_its_way).unwrap();
    let mut saved = |how: &str| {
        direct.cmd("BGSAVE");
        let status = format!("rdb_last_bgsave_status:{how}");
        eventually("it has tried to save", || direct.cmd("INFO persistence").contains(&status).then_some(()));
    };
    saved("err");
    assert!(client.cmd("PING").starts_with("-MISCONF"));
    let began = Instant::now();
    assert!(client.cmd("RENAME k l").starts_with("-MISCONF"));
    assert!(client.cmd("PUBLISH rescind:invalidate none").starts_with(':'));
    assert!(client.cmd("TAG.KEYS none").starts_with('*'));
    assert!(began.elapsed() < Duration::from_secs(8), "nobody waits for the feed");
    // What is sent past the proxy is heard, although nothing can be deleted.
    assert!(redis.client().cmd("PUBLISH rescind:invalidate Post").starts_with(':'));
    eventually("it is hidden", || (client.cmd(&format!("GET {DEPENDENT}")) == "$-1\r\n").then_some(()));
    let json = [("Content-Type", "application/json")];
    let (status, body) = proxy.http("POST", "/api/invalidate", &json, "{\"tags\": [\"Post\"]}");
    assert!(status == 503 && body.contains("MISCONF"), "{status}: {body}");
    assert_eq!((gaps(&proxy, &redis), proxy.metric("rescind_index_complete")), (0.0, 1.0));
    std::fs::remove_dir(&in_its_way).unwrap();
    saved("ok");
    let is_there = |key: &str| redis.client().cmd(&format!("EXISTS {key}")) == ":1\r\n";
    eventually("it is deleted", || (!is_there(DEPENDENT)).then_some(()));
    assert!(is_there("k"));
}

#[test]
fn a_fan_out_that_fails_again_and_again_is_told_of_once() {
    let (redis, url) = restricted("-unlink");
    let proxy = Proxy::launch_with(&url, RULES, &[], &[("RESCIND_LOG", "debug")]);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    direct.cmd(&format!("SET {DEPENDENT} v"));
    client.request(&["SET", "app:1:model:Post:1", "v"]);
    let failed = |how: &str| proxy.log().lines().filter(|line| line.contains(how)).count();
    eventually("it fails again", || (failed("DEBUG a fan-out failed again") >= 3).then_some(()));
    let log = proxy.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("WARN a fan-out failed")).collect();
    assert_eq!(told.len(), 1, "{log}");
    for part in ["NOPERM", "SET app:1:model:Post:1", "\"Post\"", "post:1"] {
        assert!(told[0].contains(part), "{part} in {}", told[0]);
    }
    let (status, body) = proxy.http("GET", "/readyz", &[], "");
    assert!(status == 200 && body.contains("\nfan-outs fail") && body.contains("NOPERM"), "{status}: {body}");
    direct.cmd("ACL SETUSER own +unlink");
    assert_eq!(client.reply(), "+OK\r\n");
    assert_eq!(direct.cmd(&format!("EXISTS {DEPENDENT}")), ":0\r\n");
    assert!(!proxy.http("GET", "/readyz", &[], "").1.contains("fan-outs fail"));
}

#[test]
fn where_the_feed_is_away_for_long_nobody_waits_for_labels() {
    let (redis, url) = restricted("+@all");
    let proxy = Proxy::launch(&url, RULES, &[]);
    proxy.ready();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    direct.cmd("MSET a v b v app:1:blog_posts_1 v");
    direct.cmd("ACL SETUSER own off");
    direct.cmd("CLIENT KILL USER own");
    eventually("the feed is lost", || (!connected(&proxy, &redis)).then_some(()));
    // It may be back in a moment.
    client.cmd("RENAME a c");
    let began = Instant::now();
    assert_eq!(client.cmd("RENAME b d"), "+OK\r\n");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // And what cannot be asked is not answered as if there was nothing.
    let reply = client.cmd("TAG.KEYS Post");
    assert!(reply.starts_with("-ERR the keys cannot be looked at: WRONGPASS"), "{reply}");
}

#[test]
fn a_redis_that_takes_no_more_connections_does_not_hold_up_the_first_fan_out() {
    let redis = Redis::with(&["--maxclients", "30"]);
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    direct.cmd(&format!("SET {DEPENDENT} v"));
    client.cmd("GET k");
    let mut others = vec![];
    while let Some(reply) = {
        let mut other = redis.client();
        other.request(&["PING"]);
        let reply = other.try_raw();
        others.push(other);
        reply
    } {
        if reply != b"+PONG\r\n" {
            break;
        }
    }
    let began = Instant::now();
    assert_eq!(client.cmd("SET app:1:model:Post:1 v"), "+OK\r\n");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(direct.cmd(&format!("EXISTS {DEPENDENT}")), ":0\r\n");
}
