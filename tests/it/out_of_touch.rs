//! Several proxies of which one does not hear of the others in time, or fails at what it has told them.

use crate::support::{Proxy, RULES, Redis, eventually};

const TRIGGER: &str = "SET app:1:model:Post:7 1";

/// Proxies that know each other; the first one has a user of its own, whose rights can be taken away.
fn two(redis: &Redis) -> [Proxy; 2] {
    redis.client().cmd("ACL SETUSER own on >pw ~* &* +@all");
    let first = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    first.ready();
    let second = Proxy::start(redis, RULES);
    for proxy in [&first, &second] {
        eventually("they know each other", || proxy.log().contains("another proxy is there").then_some(()));
    }
    [first, second]
}

/// Who has seen the first one only, and hears late of the second, would take a stale fill for a fresh one.
#[test]
fn a_fan_out_that_is_tried_again_does_not_bring_its_epoch_back() {
    let redis = Redis::start();
    let [failing, other] = two(&redis);
    let mut direct = redis.client();
    let mut epoch = || direct.cmd("GET rescind:epoch:Post");
    redis.client().cmd("ACL SETUSER own -unlink");
    redis.client().cmd("SET app:1:home_page_data_1 v");
    let mut writer = failing.client();
    writer.request(&TRIGGER.split(' ').collect::<Vec<_>>());
    let first = eventually("it has begun", || Some(epoch()).filter(|epoch| epoch != "$-1\r\n"));
    assert_eq!(other.client().cmd(TRIGGER), "+OK\r\n");
    let second = epoch();
    let third = eventually("it is tried again", || Some(epoch()).filter(|epoch| *epoch != second));
    assert_ne!(third, first);
    redis.client().cmd("ACL SETUSER own +unlink");
    assert_eq!(writer.reply(), "+OK\r\n");
}
