//! Fan-outs that something else happens in the midst of: a reload, or another fan-out of the same keys.

use std::time::Duration;

use crate::support::{Client, Proxy, Redis, client_list, eventually};

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

/// How often Redis was asked for an UNLINK.
fn unlinks(direct: &mut Client) -> u64 {
    let stats = direct.list("INFO commandstats").concat();
    let of_unlink = stats.split("cmdstat_unlink:calls=").nth(1);
    of_unlink.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
}

fn fill(direct: &mut Client, prefix: &str, keys: usize) {
    let script = format!("for i=1,{keys} do redis.call('SET','page:{prefix}'..i,'old') end");
    direct.call(&["EVAL", &script, "0"]);
}

#[test]
fn fan_outs_of_the_same_keys_share_the_work() {
    const CLIENTS: usize = 20;
    const KEYS: usize = 20_000;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, HARD);
    let mut direct = redis.client();
    fill(&mut direct, "", KEYS);
    let before = unlinks(&mut direct);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| proxy.client()).collect();
    // Redis runs them in one go.
    direct.cmd("CLIENT PAUSE 20000 WRITE");
    clients.iter_mut().for_each(|client| client.request(&["SET", "trig:Page", "1"]));
    eventually("they wait", || client_list(&mut direct).iter().any(|one| one["cmd"] == "set").then_some(()));
    direct.cmd("CLIENT UNPAUSE");
    for client in &mut clients {
        assert_eq!(client.reply(), "+OK\r\n");
        assert_eq!(direct.list("KEYS page:*"), [""; 0]);
    }
    let done = unlinks(&mut direct) - before;
    assert!(done < 3 * (KEYS / 1024) as u64, "{done} UNLINKs");
    assert_eq!(proxy.metric("rescind_invalidated_keys_total{family=\"page:*\"}"), KEYS as f64);
}

/// Everybody's own keys are gone whoever deletes them, also where somebody's deletion fails.
#[test]
fn what_is_left_to_another_fan_out_is_deleted_or_tried_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, HARD);
    let mut direct = redis.client();
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..6)
            .map(|user| {
                let (mut direct, mut client) = (redis.client(), proxy.client());
                scope.spawn(move || {
                    for round in 0..40 {
                        fill(&mut direct, &format!("{user}:"), 1500);
                        assert_eq!(client.cmd("SET trig:Page 1"), "+OK\r\n");
                        let left = direct.list(&format!("KEYS page:{user}:*"));
                        assert!(left.is_empty(), "{user} {round}: {}", left.len());
                    }
                })
            })
            .collect();
        while !users.iter().all(|user| user.is_finished()) {
            for one in client_list(&mut direct).iter().filter(|one| one["cmd"] == "unlink") {
                direct.cmd(&format!("CLIENT KILL ID {}", one["id"]));
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    });
}
