//! What is not RESP gets exactly Redis's answer, ends this one connection, and harms nobody else.

use std::io::Write;

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, encode, eventually};

/// Broken in a way that Redis answers with an error and a close.
const REFUSED: &[&[u8]] = &[
    b"*2147483648\r\n",
    b"*99999999999999999999\r\n",
    b"*x\r\n",
    b"*\r\n",
    b"*1x\r\n",
    b"* 1\r\n",
    b"*+1\r\n",
    b"*01\r\n",
    b"*-0\r\n",
    b"*1.0\r\n",
    b"*1\rx$4\r\nPING\r\n*y\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$-2\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$\r\n",
    b"*1\r\n$4x\r\n",
    b"*1\r\n$04\r\n",
    b"*1\r\n$+4\r\n",
    b"*1\r\n$536870913\r\n",
    b"*1\r\n$99999999999999999999\r\n",
    b"*1\r\n\r\n",
    b"*1\r\n\n\r\n",
    b"*1\r\n:4\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$4\r\nPING\r\n*1\r\n$1\r\nx\r\n",
    b"*1\r\n%1\r\n",
    b"*1\r\nPING\r\n",
    b"*2\r\n$4\r\nPINGxx$1\r\nxyyz\r\n*q\r\n",
    b"PING\r\n*x\r\n",
    b"SET k v\r\nGET k\r\n*1\r\n$x\r\n",
    b"{\"json\": true}\n",
    b"\"PING\r\n",
    b"'PING\r\n",
    b"PING \"a\"b\r\n",
    b"PING 'a'b\r\n",
    b"PING \"\\x4\r\n",
    b"PING \"a\\\"\r\n",
];

/// Broken, but Redis makes something of it and goes on.
const TOLERATED: &[&[u8]] = &[
    b"*2\r\n$4\r\nECHO\r\n$2\r\nabcd\r\n",
    b"*-1\r\n",
    b"*-9223372036854775808\r\n",
    b"*0\r\n",
    b"*1\r\n$4\r\nPINGxy",
    b"*1\rx$4\rxPING\r\n",
    b"+OK\r\n",
    b"$4\r\n",
    b"-ERR x\r\n",
    b":1\r\n",
    b"\r\r\r\n",
    b"\xff\xfe\xfd\n",
    b"PING\r\r\n",
    b"%1\r\n~1\r\n>1\r\n",
    b"EHLO mail\r\n",
    b"\x16\x03\x01\x02\x01\x01\n",
];

/// Begun and never ended: Redis waits for more.
const BEGUN: &[&[u8]] = &[
    b"*2000000000\r\n",
    b"*1\r\n$536870912\r\n",
    b"*1",
    b"*1\r\n$4\r",
    b"PING",
    b"*1\r\n$4\r\nPIN",
    b"*1\r\n\x004\r\nPING\r\n",
    b"P\0NG\r\nPING\r\n",
];

fn ended(port: u16, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut wire = Wire::connect(port);
    wire.send(bytes);
    wire.rest()
}

/// What comes back before the answer to a last PING.
fn answered(port: u16, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut wire = Wire::connect(port);
    wire.send(bytes);
    wire.send(&encode(&["PING", "last"]));
    let mut replies = vec![];
    while replies.last().is_none_or(|reply: &Vec<u8>| reply != b"$4\r\nlast\r\n") {
        replies.push(wire.reply().unwrap_or_else(|what| panic!("{}: {what}", bytes.escape_ascii())));
    }
    replies
}

#[test]
fn what_redis_refuses_is_refused_in_its_words() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut bystander = proxy.client();
    for bytes in REFUSED {
        let (expected, got) = (ended(redis.port, bytes), ended(proxy.port, bytes));
        assert!(
            expected.as_ref().is_ok_and(|reply| !reply.is_empty()),
            "{}: {expected:?}",
            bytes.escape_ascii()
        );
        assert_eq!(got, expected, "{}", bytes.escape_ascii());
        assert_eq!(bystander.cmd("PING"), "+PONG\r\n");
    }
}

#[test]
fn every_byte_in_the_place_of_the_dollar() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    for byte in (0..=255).filter(|byte| *byte != b'$' && *byte != 0) {
        let bytes = [b"*1\r\n", [byte].as_slice(), b"4\r\nPING\r\n"].concat();
        let (expected, got) = (ended(redis.port, &bytes), ended(proxy.port, &bytes));
        assert_eq!(got, expected, "{byte}");
    }
}

#[test]
fn what_redis_tolerates_is_tolerated() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    for bytes in TOLERATED {
        assert_eq!(answered(proxy.port, bytes), answered(redis.port, bytes), "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_is_never_ended_costs_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    proxy.client().cmd("PING");
    let before = proxy.rss();
    let mut open = vec![];
    for bytes in BEGUN {
        for _ in 0..20 {
            let mut client = proxy.client();
            client.send(bytes);
            open.push(client);
        }
    }
    assert_eq!(proxy.client().cmd("PING"), "+PONG\r\n");
    for client in &mut open[..] {
        client.stream.set_nonblocking(true).unwrap();
        let waits =
            client.stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(waits, "an answer to half a request");
    }
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

#[test]
fn endless_lines_are_cut() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let long = vec![b'1'; 70 * 1024];
    for start in ["a", "*", "*1\r\n$", "*1\r\nx", "GET "] {
        let bytes = [start.as_bytes(), &long].concat();
        let (expected, got) = (ended(redis.port, &bytes), ended(proxy.port, &bytes));
        assert!(
            expected.as_ref().is_ok_and(|reply| reply.starts_with(b"-ERR Protocol error")),
            "{start}: {expected:?}"
        );
        assert_eq!(got, expected, "{start}");
    }
    // A line of just under 64 KiB is fine.
    let fine = format!("ECHO {}\r\n", "x".repeat(60_000));
    assert_eq!(answered(proxy.port, fine.as_bytes()), answered(redis.port, fine.as_bytes()));
}

#[test]
fn an_endless_stream_of_anything_is_bounded() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut bystander = proxy.client();
    bystander.cmd("PING");
    let before = proxy.rss();
    for byte in [b'x', b'*', b'\n', b'1', 0, 0xff] {
        let mut wire = Wire::connect(proxy.port);
        let chunk = vec![byte; 1 << 20];
        // It may be cut at any time.
        (0..32).take_while(|_| wire.stream.write_all(&chunk).is_ok()).count();
        assert_eq!(bystander.cmd("PING"), "+PONG\r\n");
    }
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

#[test]
fn garbage_harms_only_its_sender() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut bystander = proxy.client();
    let mut state = 0x9E37_79B9_u64;
    for round in 0..300 {
        let mut wire = Wire::connect(proxy.port);
        let bytes: Vec<u8> = (0..round * 3 + 1)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Half of it of what requests are made of.
                match state >> 63 {
                    0 => (state >> 40) as u8,
                    _ => b"*$12\r\n-\" "[(state >> 40) as usize % 9],
                }
            })
            .collect();
        wire.send(&bytes);
        drop(wire);
        assert_eq!(bystander.cmd(&format!("ECHO {round}")), encode_bulk(round));
    }
}

fn encode_bulk(number: usize) -> String {
    let text = number.to_string();
    format!("${}\r\n{text}\r\n", text.len())
}

#[test]
fn browsers_are_cut_without_a_word_and_alone() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut bystander = proxy.client();
    bystander.cmd("SET k v");
    for bytes in [
        b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k x\r\n".as_slice(),
        b"Host: localhost\r\nSET k x\r\n",
        b"hOsT:\r\nSET k x\r\n",
        b"*1\r\n$4\r\npOsT\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nx\r\n",
        b"MULTI\r\nPOST /\r\nSET k x\r\nEXEC\r\n",
    ] {
        let reply = ended(proxy.port, bytes).unwrap();
        assert!(reply.is_empty() || reply == b"+OK\r\n", "{}", reply.escape_ascii());
        assert_eq!(bystander.cmd("GET k"), "$1\r\nv\r\n");
    }
    // The upstream connection that all share has not been sacrificed either.
    eventually("one shared connection", || {
        (proxy.metric("rescind_upstream_connections{mode=\"shared\"}") == 1.0).then_some(())
    });
}
