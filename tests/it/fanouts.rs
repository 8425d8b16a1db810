//! Fan-outs that something else happens in the midst of: a reload, or another fan-out of the same keys.

use std::time::Duration;

use crate::support::{Proxy, Redis, eventually};

const HARD: &str =
    "[tags]\nPage = [\"page:*\"]\n[[trigger]]\nkeys = [\"trig:{x}\"]\ninvalidate = [\"{x}\"]\n";
const SOFT_FIRST: &str = "[[family]]\nname = \"soft\"\nkeys = [\"soft:*\"]\non_invalidate = \"expire\"\ngrace = \"60s\"\n\
    [tags]\nSoft = [\"soft:*\"]\nPage = [\"page:*\"]\n[[trigger]]\nkeys = [\"trig:{x}\"]\ninvalidate = [\"{x}\"]\n";

fn reload(proxy: &Proxy, rules: &str) {
    let reloads = || proxy.metric("rescind_config_reloads_total{result=\"ok\"}");
    let before = reloads();
    std::fs::write(&proxy.config, rules).unwrap();
    proxy.signal("-HUP");
    eventually("the rules are in force", || (reloads() > before).then_some(()));
}

/// In the new rules other numbers stand for the families.
#[test]
fn what_a_fan_out_has_collected_is_deleted_by_the_rules_of_then() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.call(&["EVAL", "for i=1,60000 do redis.call('SET','filler:'..i,'x') end", "0"]);
    let proxy = Proxy::start(&redis, HARD);
    let mut client = proxy.client();
    for round in 0..3 {
        direct.call(&["EVAL", "for i=1,50 do redis.call('SET','page:'..i,'old') end", "0"]);
        // As long as the index is being rebuilt a fan-out scans.
        reload(&proxy, HARD);
        client.request(&["SET", "trig:Page", "1"]);
        std::thread::sleep(Duration::from_millis(20 << round));
        redis.signal("-STOP");
        reload(&proxy, SOFT_FIRST);
        redis.signal("-CONT");
        assert_eq!(client.reply(), "+OK\r\n");
        let left = direct.list("KEYS page:*");
        assert!(left.is_empty(), "{round}: {left:?}");
        reload(&proxy, HARD);
        proxy.ready();
    }
}
