//! Several proxies of which one does not hear of the others in time, or fails at what it has told them.

use std::time::Duration;

use crate::support::{Client, Proxy, RULES, Redis, eventually};

const KEY: &str = "app:1:home_page_data_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

/// Proxies that know each other. Each has a user of its own, p0 or p1, whose rights can be taken away.
fn two(redis: &Redis) -> [Proxy; 2] {
    with_rules(redis, [RULES, RULES])
}

fn with_rules(redis: &Redis, rules: [&str; 2]) -> [Proxy; 2] {
    let mut number = 0;
    let proxies = rules.map(|rules| {
        redis.client().cmd(&format!("ACL SETUSER p{number} on >pw ~* &* +@all"));
        let proxy = Proxy::launch(&format!("redis://p{number}:pw@127.0.0.1:{}", redis.port), rules, &[]);
        number += 1;
        proxy.ready();
        proxy
    });
    for proxy in &proxies {
        eventually("they know each other", || name_of_other(proxy).map(drop));
    }
    proxies
}

/// The name of the other proxy, as this one has logged it.
fn name_of_other(proxy: &Proxy) -> Option<String> {
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("another proxy is there"))?;
    line.split("proxy=").nth(1)?.split_whitespace().next().map(str::to_owned)
}

fn value(client: &mut Client) -> String {
    client.cmd(&format!("GET {KEY}"))
}

/// Who has seen the first one only, and hears late of the second, would take a stale fill for a fresh one.
#[test]
fn a_fan_out_that_is_tried_again_does_not_bring_its_epoch_back() {
    let redis = Redis::start();
    let [failing, other] = two(&redis);
    let mut direct = redis.client();
    let mut epoch = || direct.cmd("GET rescind:epoch:Post");
    redis.client().cmd("ACL SETUSER p0 -unlink");
    redis.client().cmd("SET app:1:home_page_data_1 v");
    let mut writer = failing.client();
    writer.request(&TRIGGER.split(' ').collect::<Vec<_>>());
    let first = eventually("it has begun", || Some(epoch()).filter(|epoch| epoch != "$-1\r\n"));
    assert_eq!(other.client().cmd(TRIGGER), "+OK\r\n");
    let second = epoch();
    let third = eventually("it is tried again", || Some(epoch()).filter(|epoch| *epoch != second));
    assert_ne!(third, first);
    redis.client().cmd("ACL SETUSER p0 +unlink");
    assert_eq!(writer.reply(), "+OK\r\n");
}

/// Whoever was there heard how the other one ended; its successor knows nothing.
#[test]
fn who_comes_right_after_another_one_has_gone_takes_its_clients_for_late() {
    for signal in ["-TERM", "-KILL"] {
        let redis = Redis::start();
        let [mut gone, other] = two(&redis);
        assert_eq!(value(&mut gone.client()), "$-1\r\n");
        assert_eq!(other.client().cmd(TRIGGER), "+OK\r\n");
        gone.signal(signal);
        gone.wait();
        // As in a container without a volume.
        std::fs::remove_dir_all(gone.folder.0.join("data")).unwrap();
        gone.start_again(&[]);
        assert_eq!(gone.client().cmd(&format!("SET {KEY} old")), "+OK\r\n");
        assert_eq!(value(&mut other.client()), "$-1\r\n", "{signal}");
    }
}

/// The clock of Redis was set, or that of the proxy stood still for so long.
#[test]
fn fills_that_come_when_redis_has_forgotten_the_invalidation_too_early_do_not_stay() {
    let redis = Redis::start();
    let [still, other] = two(&redis);
    let mut direct = redis.client();
    let mut fills: Vec<_> =
        (0..4).map(|number| (still.client(), format!("app:1:home_page_data_{number}"))).collect();
    fills.iter_mut().for_each(|(client, key)| assert_eq!(client.cmd(&format!("GET {key}")), "$-1\r\n"));
    still.signal("-STOP");
    assert_eq!(other.client().cmd("TAG.INVALIDATE Tool"), ":0\r\n");
    direct.cmd("PEXPIRE rescind:epoch:Tool 1");
    eventually("it is forgotten", || (direct.cmd("EXISTS rescind:epoch:Tool") == ":0\r\n").then_some(()));
    fills.iter_mut().for_each(|(client, key)| client.request(&["SET", key, "old"]));
    // So that it has other things to do before it reads what the feed tells.
    std::thread::sleep(Duration::from_millis(800));
    still.signal("-CONT");
    for (client, key) in &mut fills {
        assert_eq!(client.reply(), "+OK\r\n");
        let is_gone = || (direct.cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(());
        eventually("it is deleted", is_gone);
    }
}

#[test]
fn who_has_stood_still_for_as_long_as_redis_tells_of_invalidations_takes_fills_for_late() {
    let redis = Redis::start();
    let [still, other] = two(&redis);
    let mut fills: Vec<_> =
        (0..6).map(|number| (still.client(), format!("app:1:home_page_data_{number}"))).collect();
    fills.iter_mut().for_each(|(client, key)| assert_eq!(client.cmd(&format!("GET {key}")), "$-1\r\n"));
    still.signal("-STOP");
    assert_eq!(other.client().cmd(TRIGGER), "+OK\r\n");
    fills.iter_mut().for_each(|(client, key)| client.request(&["SET", key, "old"]));
    std::thread::sleep(Duration::from_millis(11_000));
    still.signal("-CONT");
    fills.iter_mut().for_each(|(client, _)| assert_eq!(client.reply(), "+OK\r\n"));
    for (_, key) in &fills {
        assert_eq!(other.client().cmd(&format!("GET {key}")), "$-1\r\n");
    }
}

#[test]
fn a_fill_that_has_waited_here_until_redis_has_forgotten_the_invalidation_is_undone() {
    let redis = Redis::start();
    let [slow, other] = two(&redis);
    let mut client = slow.client();
    assert_eq!(client.cmd("TAG.WITH 1 first SET old old"), "+OK\r\n");
    assert_eq!(value(&mut client), "$-1\r\n");
    // Not by a trigger: that both see, and during the pause it cannot be told that it is done.
    assert_eq!(other.client().cmd("TAG.INVALIDATE Post"), ":0\r\n");
    std::thread::sleep(Duration::from_millis(2_000));
    redis.client().cmd("CLIENT PAUSE 8500 WRITE");
    // The labels go along first.
    assert_eq!(client.cmd(&format!("COPY old {KEY}")), ":1\r\n");
    assert_eq!(redis.client().cmd("EXISTS rescind:epoch:Post"), ":0\r\n");
    assert_eq!(value(&mut other.client()), "$-1\r\n");
}

#[test]
fn labels_that_have_waited_here_until_the_miss_is_forgotten_find_the_value_stale() {
    let redis = Redis::start();
    let [slow, other] = two(&redis);
    let mut client = slow.client();
    assert_eq!(other.client().cmd("TAG.WITH 1 first SET other v"), "+OK\r\n");
    assert_eq!(client.cmd("GET page"), "$-1\r\n");
    assert_eq!(client.cmd("SET page old"), "+OK\r\n");
    assert_eq!(other.client().cmd("TAG.INVALIDATE t"), ":0\r\n");
    redis.client().cmd("CLIENT PAUSE 5500 WRITE");
    assert_eq!(client.cmd("TAG.ADD page t"), ":1\r\n");
    assert_eq!(other.client().cmd("GET page"), "$-1\r\n");
}

#[test]
fn redis_tells_of_invalidations_for_twice_as_long_as_any_proxy_watches_fills() {
    let redis = Redis::start();
    let longer = RULES.replace("name = \"home\"\n", "name = \"home\"\nfill_window = \"60s\"\n");
    let proxies = with_rules(&redis, [RULES, &longer]);
    for proxy in &proxies {
        assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n");
        let left = redis.client().cmd("PTTL rescind:epoch:Post");
        let left: u64 = left.trim().trim_start_matches(':').parse().unwrap();
        assert!((100_000..=120_000).contains(&left), "{left}");
    }
}

/// It has announced what both have seen, and cannot do it.
#[test]
fn what_a_proxy_that_stands_still_has_left_undone_another_one_does() {
    let redis = Redis::start();
    let proxies = two(&redis);
    let mut direct = redis.client();
    // Of what both see it is the turn of the first one.
    let first = usize::from(name_of_other(&proxies[0]) < name_of_other(&proxies[1]));
    direct.cmd(&format!("ACL SETUSER p{first} -unlink"));
    direct.cmd(&format!("SET {KEY} v"));
    direct.cmd("PUBLISH rescind:invalidate Post");
    let epoch = || redis.client().cmd("GET rescind:epoch:Post");
    eventually("it has begun", || (epoch() != "$-1\r\n").then_some(()));
    proxies[first].signal("-STOP");
    assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n");
    eventually("the other one does it", || (direct.cmd(&format!("EXISTS {KEY}")) == ":0\r\n").then_some(()));
    proxies[first].signal("-CONT");
}
