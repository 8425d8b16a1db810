//! Rules that change while something is under way.

use crate::differential::Wire;
use crate::support::{Proxy, Redis, client_list, encode, eventually};

const BEFORE: &str = "[listen]\nworkers = 1\n[tags]\nPage = [\"page:*\"]\n";
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
