//! What reviews found: each was wrong once.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

fn both() -> (Redis, Proxy, Client, Client) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (client, direct) = (proxy.client(), redis.client());
    (redis, proxy, client, direct)
}

#[test]
fn a_client_that_dies_without_reading_loses_no_fan_out() {
    let (_redis, proxy, mut client, mut direct) = both();
    direct.call(&["SET", "big", &"x".repeat(8 << 20)]);
    direct.cmd("SET app:1:blog_posts_1 old");
    client.cmd("WATCH k");
    let mut bytes = encode(&["GET", "big"]);
    bytes.extend(encode(&["SET", "app:1:model:Post:1", "x"]));
    client.send(&bytes);
    eventually("the trigger has run", || (direct.cmd("EXISTS app:1:model:Post:1") == ":1\r\n").then_some(()));
    drop(client);
    eventually("the fan-out is done", || (direct.cmd("EXISTS app:1:blog_posts_1") == ":0\r\n").then_some(()));
    eventually("the client is gone", || (proxy.metric("rescind_clients") == 0.0).then_some(()));
    // Nor is a later write past the proxy taken for that one.
    direct.cmd("SET app:1:blog_posts_1 old");
    direct.cmd("SET app:1:model:Post:1 y");
    eventually("direct writes are seen", || {
        (direct.cmd("EXISTS app:1:blog_posts_1") == ":0\r\n").then_some(())
    });
}

#[test]
fn labels_of_another_proxy_are_seen_again_and_again() {
    let (redis, _proxy, mut one, mut direct) = both();
    let other = Proxy::start(&redis, RULES);
    let mut two = other.client();
    for round in 0..4 {
        assert_eq!(two.cmd(&format!("TAG.WITH 1 t SET k v{round}")), "+OK\r\n");
        assert_eq!(one.cmd("TAG.INVALIDATE t"), ":1\r\n", "round {round}");
        assert_eq!(direct.cmd("EXISTS k"), ":0\r\n");
    }
}

#[test]
fn wait_inside_multi_adds_nothing() {
    let (_redis, _proxy, mut client, _direct) = both();
    for line in ["MULTI", "SET a 1", "WAIT 0 0"] {
        client.cmd(line);
    }
    assert_eq!(client.cmd("EXEC"), "*2\r\n+OK\r\n:0\r\n");
}

#[test]
fn who_wants_no_replies_gets_none_from_the_proxy_either() {
    let (_redis, _proxy, mut client, mut direct) = both();
    client.request(&["CLIENT", "REPLY", "OFF"]);
    client.request(&["TAG.INVALIDATE", "t"]);
    client.request(&["TAG.WITH", "1", "t", "SET", "k", "v"]);
    client.request(&["TAG.NOSUCH"]);
    assert_eq!(client.cmd("CLIENT REPLY ON"), "+OK\r\n");
    client.request(&["CLIENT", "REPLY", "SKIP"]);
    client.request(&["TAG.WITH", "1", "t", "SET", "k2", "v"]);
    assert_eq!(client.cmd("PING"), "+PONG\r\n");
    assert_eq!(direct.cmd("EXISTS k k2"), ":2\r\n");
    assert_eq!(client.cmd("TAG.INVALIDATE t"), ":2\r\n");
}

#[test]
fn a_blocked_write_covers_nobody_elses() {
    let redis = Redis::start();
    let rules = "[tags]\nPost = [\"blog:*\"]\n[[trigger]]\nkeys = [\"model:{pk}\"]\ncommands = [\"SET\"]\ninvalidate = [\"Post\"]\n";
    let proxy = Proxy::start(&redis, rules);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    direct.cmd("SET blog:1 old");
    client.request(&["BLMOVE", "src", "model:1", "LEFT", "LEFT", "2"]);
    eventually("it blocks", || (direct.cmd("INFO clients").contains("blocked_clients:1")).then_some(()));
    direct.cmd("SET model:1 x");
    eventually("the direct write is seen", || (direct.cmd("EXISTS blog:1") == ":0\r\n").then_some(()));
    assert_eq!(client.raw(), b"*-1\r\n");
}

#[test]
fn a_protocol_error_in_a_big_request_waits_for_earlier_replies() {
    let (_redis, _proxy, mut client, _direct) = both();
    let mut bytes = encode(&["MULTI"]);
    bytes.extend(encode(&["SET", "a", "1"]));
    bytes.extend(b"*4\r\n$5\r\nRPUSH\r\n$1\r\nl\r\n$1048576\r\n");
    bytes.extend(vec![b'x'; 1 << 20]);
    bytes.extend(b"\r\nbad\r\n");
    client.send(&bytes);
    let expected = b"+OK\r\n+QUEUED\r\n-ERR Protocol error: expected '$', got 'b'\r\n";
    assert_eq!(String::from_utf8_lossy(&client.rest()), String::from_utf8_lossy(expected));
}
