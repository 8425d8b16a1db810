//! Rules that change while something is under way.

use crate::differential::Wire;
use crate::support::{Proxy, Redis, client_list, encode, eventually};

/// However slow the machine is, a write does not wait here for longer than fills are watched.
const BEFORE: &str = "[listen]\nworkers = 1\n[tags]\nPage = [\"page:*\"]\n\
    [[family]]\nname = \"late\"\nkeys = [\"late:*\"]\nfill_window = \"60s\"\n";
const AFTER: &str = "[[trigger]]\nkeys = [\"late:{x}\"]\ninvalidate = [\"{x}\"]\n";

/// The rules change while the label is given: then the write fires.
#[test]
fn a_write_that_begins_to_fire_while_it_is_labelled_is_sent_and_fans_out() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, BEFORE);
    let (mut client, mut direct) = (Wire::connect(proxy.port), redis.client());
    // On another connection to Redis, so that it does not wait as well.
    let mut other = Wire::having_said(proxy.port, &["SELECT 1"]);
    client.cmd("SET page:1 v");
    direct.cmd("CLIENT PAUSE 20000 WRITE");
    client.send(&encode(&["TAG.WITH", "1", "L", "ZADD", "late:Page", "1", "a"]));
    eventually("the label is on its way", || {
        client_list(&mut direct).iter().any(|one| one["cmd"] == "zadd").then_some(())
    });
    std::fs::write(&proxy.config, [BEFORE, AFTER].concat()).unwrap();
    proxy.signal("-HUP");
    eventually("the rules are in force", || {
        other.cmd("TAG.EXPLAIN ZADD late:Page 1 a").contains("would delete").then_some(())
    });
    direct.cmd("CLIENT UNPAUSE");
    assert_eq!(client.text(), ":1\r\n");
    assert_eq!(direct.cmd("EXISTS late:Page"), ":1\r\n");
    assert_eq!(direct.cmd("EXISTS page:1"), ":0\r\n");
    assert_eq!(client.cmd("TAG.INVALIDATE L"), ":1\r\n");
}

/// New rules concern a database of which the proxy's user may not hear.
#[test]
fn a_database_of_which_the_proxy_may_not_hear_makes_it_no_deaf_one() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let channels = ["new", "expired", "evicted"].map(|event| format!("&__keyevent@1__:{event}")).join(" ");
    direct.cmd(&format!("ACL SETUSER prox on >pw ~* resetchannels {channels} &rescind:* +@all"));
    let rules = |databases: &str| {
        format!("[keys]\ndatabases = {databases}\n{}{}", BEFORE.replace("[listen]\nworkers = 1\n", ""), AFTER)
    };
    let proxy = Proxy::launch(&format!("redis://prox:pw@127.0.0.1:{}", redis.port), &rules("[1]"), &[]);
    proxy.ready();
    std::fs::write(&proxy.config, rules("[1, 2]")).unwrap();
    proxy.signal("-HUP");
    let mut client = proxy.client();
    client.cmd("SELECT 2");
    eventually("the rules are in force", || {
        client.cmd("TAG.EXPLAIN SET late:Page 1").contains("would delete").then_some(())
    });
    direct.cmd("SELECT 2");
    for round in 0..3 {
        client.cmd("SET page:1 v");
        direct.cmd("SET page:2 v");
        client.cmd("SET late:Page 1");
        assert_eq!(direct.cmd("EXISTS page:1 page:2"), ":0\r\n", "{round}");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert!(proxy.metric("rescind_index_complete") == 0.0, "it may not hear of all keys");
}
