//! Requests that are too big to be kept pass through as they arrive.

use std::io::Write;

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const MB: usize = 1 << 20;

/// Sends in portions, as a network would.
fn trickle(client: &mut Client, bytes: &[u8], step: usize) {
    bytes.chunks(step).for_each(|chunk| client.stream.write_all(chunk).unwrap());
}

#[test]
fn big_values_arrive_whole_whatever_the_portions() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for (size, step) in [(256 << 10, 1000), (MB, 70_001), (MB + 1, 4096), (20 * MB, 1 << 18)] {
        let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let mut bytes = encode(&[b"PING".as_slice()]);
        bytes.extend(encode(&[b"SET".as_slice(), b"big", &value, b"EX", b"100"]));
        bytes.extend(encode(&[b"STRLEN".as_slice(), b"big"]));
        trickle(&mut client, &bytes, step);
        assert_eq!(client.raw(), b"+PONG\r\n");
        assert_eq!(client.raw(), b"+OK\r\n");
        assert_eq!(client.raw(), format!(":{size}\r\n").into_bytes());
        let stored = direct.call(&["GET", "big"]);
        assert!(stored.len() >= size);
        direct.request(&["GET", "big"]);
        client.request(&["GET", "big"]);
        assert_eq!(client.raw(), direct.raw(), "size {size}");
        assert_eq!(direct.cmd("PERSIST big"), ":1\r\n");
    }
}

#[test]
fn keys_around_big_values_still_fire_and_count() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    let big = vec![b'x'; 2 * MB];
    direct.cmd("SET app:1:blog_posts_1 old");
    let request: [&[u8]; 7] = [b"MSET", b"a", &big, b"app:1:model:Post:7", &big, b"c", b"3"];
    trickle(&mut client, &encode(&request), 50_000);
    assert_eq!(client.raw(), b"+OK\r\n");
    assert_eq!(direct.cmd("EXISTS app:1:blog_posts_1"), ":0\r\n");
    // Inside MULTI.
    direct.cmd("SET app:1:tools_1 old");
    client.cmd("MULTI");
    trickle(&mut client, &encode(&[b"SET".as_slice(), b"app:1:model:Tool:1", &big]), 100_000);
    assert_eq!(client.raw(), b"+QUEUED\r\n");
    assert_eq!(direct.cmd("EXISTS app:1:tools_1"), ":1\r\n");
    assert_eq!(client.cmd("EXEC"), "*1\r\n+OK\r\n");
    assert_eq!(direct.cmd("EXISTS app:1:tools_1"), ":0\r\n");
    assert_eq!(client.cmd("GET c"), "$1\r\n3\r\n");
}

#[test]
fn a_client_that_goes_in_the_middle_changes_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let bytes = encode(&[b"SET".as_slice(), b"half", &vec![b'x'; 4 * MB]]);
    let mut client = proxy.client();
    trickle(&mut client, &bytes[..3 * MB], 100_000);
    drop(client);
    eventually("its connection is closed", || {
        (proxy.metric("rescind_upstream_connections{mode=\"pinned\"}") == 0.0).then_some(())
    });
    let mut other = proxy.client();
    assert_eq!(other.cmd("EXISTS half"), ":0\r\n");
    // Nor does one that breaks the protocol half way.
    let mut client = proxy.client();
    let mut broken = b"*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n".to_vec();
    broken.extend(vec![b'v'; MB]);
    broken.extend(b"\r\nEX\r\n");
    trickle(&mut client, &broken, 100_000);
    assert_eq!(client.rest(), b"-ERR Protocol error: expected '$', got 'E'\r\n");
    assert_eq!(other.cmd("EXISTS k"), ":0\r\n");
}

#[test]
fn big_requests_do_not_sit_in_memory() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    let before = proxy.rss();
    for client in &mut clients {
        client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$67108864\r\n");
    }
    let portion = vec![b'v'; MB];
    for _ in 0..63 {
        clients.iter_mut().for_each(|client| client.send(&portion));
    }
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 64 * MB as u64, "grew by {grown} bytes");
    assert_eq!(proxy.client().cmd("PING"), "+PONG\r\n");
}
