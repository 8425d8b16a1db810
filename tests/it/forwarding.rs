//! What a client sees through the proxy is what it would see from Redis itself.

use std::io::Write;

use crate::differential::{Way, Wire, compare};
use crate::support::{Proxy, RULES, Redis, encode, eventually};

/// All channels of the table.
const SUBSCRIBERS: &str = "z PUBSUB NUMSUB c d x y cat";

#[test]
fn everything_looks_the_same() {
    let (straight, behind) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&behind, RULES);
    let direct = Way { port: straight.port, redis: &straight };
    let proxied = Way { port: proxy.port, redis: &behind };
    let clean = ["z FLUSHALL", "z SCRIPT FLUSH", "z FUNCTION FLUSH", "z CONFIG RESETSTAT", SUBSCRIBERS];
    compare(&direct, &proxied, &clean, include_str!("forwarding_open.txt"));
}

#[test]
fn everything_looks_the_same_where_redis_wants_a_password() {
    let arguments = [
        "--requirepass secret",
        "--user reader on >pw +@read +auth +acl|whoami ~r:*",
        "--user all on >pw +@all ~* &*",
        "--user off off >pw +@all ~*",
        "--user multi on >pw +multi +exec +get ~*",
    ];
    let arguments: Vec<&str> = arguments.iter().flat_map(|line| line.split(' ')).collect();
    let (straight, behind) = (Redis::with(&arguments), Redis::with(&arguments));
    let upstream = format!("redis://default:secret@127.0.0.1:{}", behind.port);
    let proxy = Proxy::launch(&upstream, RULES, &[]);
    proxy.ready();
    let direct = Way { port: straight.port, redis: &straight };
    let proxied = Way { port: proxy.port, redis: &behind };
    compare(
        &direct,
        &proxied,
        &["z AUTH secret", "z FLUSHALL", SUBSCRIBERS],
        include_str!("forwarding_closed.txt"),
    );
}

/// Sends `bytes` in pieces that end at `cuts` and returns `replies` replies.
fn in_pieces(port: u16, bytes: &[u8], cuts: &[usize], replies: usize) -> Vec<Vec<u8>> {
    let mut wire = Wire::connect(port);
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        wire.send(&bytes[from..to]);
        // Gives the other side a chance to read the piece alone.
        std::thread::yield_now();
        from = to;
    }
    (0..replies).map(|_| wire.reply().unwrap()).collect()
}

#[test]
fn quitting_with_replies_off_closes_without_a_word() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    // Redis itself forgets to close in these cases.
    for last in [encode(&["QUIT"]), b"*x\r\n".to_vec()] {
        let mut wire = Wire::connect(proxy.port);
        wire.send(&encode(&["CLIENT", "REPLY", "OFF"]));
        wire.send(&last);
        assert_eq!(wire.rest().unwrap(), b"");
    }
}

#[test]
fn any_split_of_the_bytes_is_the_same() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let bytes: Vec<u8> = [
        encode(&["SET", "key", "a\r\nb"]),
        b"GET key\r\n\r\n".to_vec(),
        encode(&["MULTI"]),
        encode(&["INCR", "n"]),
        encode(&["DEL", "n"]),
        encode(&["EXEC"]),
        b"*0\r\nECHO \"x y\"\n".to_vec(),
        encode(&["SELECT", "1"]),
        encode(&["GET", "key"]),
        encode(&["SELECT", "0"]),
        encode(&["SUBSCRIBE", "a", "b"]),
        encode(&["UNSUBSCRIBE"]),
        encode(&["PING"]),
    ]
    .concat();
    let expected = in_pieces(redis.port, &bytes, &[], 15);
    for cut in 1..bytes.len() {
        assert_eq!(in_pieces(proxy.port, &bytes, &[cut], 15), expected, "cut at {cut}");
    }
    let every: Vec<usize> = (1..bytes.len()).collect();
    assert_eq!(in_pieces(proxy.port, &bytes, &every, 15), expected);
}

#[test]
fn a_deep_pipeline_keeps_its_order() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut wire = Wire::connect(proxy.port);
    let bytes: Vec<u8> = (0..50_000).flat_map(|n| encode(&["ECHO", &format!("number {n}")])).collect();
    let mut writer = wire.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for n in 0..50_000 {
        let text = format!("number {n}");
        assert_eq!(wire.reply().unwrap(), format!("${}\r\n{text}\r\n", text.len()).into_bytes());
    }
    sending.join().unwrap();
}

#[test]
fn values_of_all_sizes_pass_both_ways() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut wire, mut other) = (Wire::connect(proxy.port), Wire::connect(proxy.port));
    let around = |n: usize| [n - 1, n, n + 1];
    let sizes = [1, 2, 15, 20 << 20]
        .into_iter()
        .chain([1 << 12, 1 << 14, 1 << 16, 1 << 20].into_iter().flat_map(around));
    for size in sizes {
        let value: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        // A neighbour on the same upstream connection asks in between.
        other.send(&encode(&["ECHO", "me"]));
        wire.send(&encode(&[b"SET".as_slice(), b"k", &value]));
        wire.send(&encode(&["GET", "k"]));
        other.send(&encode(&["ECHO", "too"]));
        assert_eq!(wire.reply().unwrap(), b"+OK\r\n", "{size}");
        let got = wire.reply().unwrap();
        assert!(got.starts_with(format!("${size}\r\n").as_bytes()), "{size}");
        assert!(got[got.len() - size - 2..got.len() - 2] == value, "{size}");
        assert_eq!(other.reply().unwrap(), b"$2\r\nme\r\n");
        assert_eq!(other.reply().unwrap(), b"$3\r\ntoo\r\n");
    }
}

#[test]
fn a_big_transaction_and_a_big_array_pass() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut through, mut direct) = (Wire::connect(proxy.port), Wire::connect(redis.port));
    let words: Vec<String> =
        ["RPUSH", "l"].map(str::to_owned).into_iter().chain((0..200_000).map(|n| n.to_string())).collect();
    through.send(&encode(&words));
    assert_eq!(through.reply().unwrap(), b":200000\r\n");
    let mut bytes = encode(&["MULTI"]);
    (0..3000).for_each(|n| bytes.extend(encode(&["LINDEX", "l", &n.to_string()])));
    bytes.extend(encode(&["LRANGE", "l", "0", "-1"]));
    bytes.extend(encode(&["EXEC"]));
    for wire in [&mut through, &mut direct] {
        wire.send(&bytes);
    }
    for n in 0..3003 {
        assert!(through.reply() == direct.reply(), "reply {n}");
    }
}

#[test]
fn monitor_sees_what_others_do_and_ends_with_reset() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut monitor, mut client) = (Wire::connect(proxy.port), Wire::connect(proxy.port));
    monitor.send(&encode(&["MONITOR"]));
    assert_eq!(monitor.reply().unwrap(), b"+OK\r\n");
    client.send(&encode(&["SET", "seen", "v"]));
    client.reply().unwrap();
    let mut line = |wanted: &str| {
        eventually(wanted, || {
            let line = String::from_utf8(monitor.reply().unwrap()).unwrap();
            line.contains(wanted).then_some(line)
        })
    };
    assert!(line("\"SET\" \"seen\"").starts_with('+'));
    monitor.send(&encode(&["RESET"]));
    let mut line = |wanted: &str| {
        eventually(wanted, || {
            let line = String::from_utf8(monitor.reply().unwrap()).unwrap();
            line.starts_with(wanted).then_some(())
        })
    };
    line("+RESET");
    monitor.send(&encode(&["GET", "seen"]));
    assert_eq!(monitor.reply().unwrap(), b"$1\r\nv\r\n");
}

#[test]
fn what_debug_protocol_makes_redis_say_passes() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let proxy = Proxy::start(&redis, RULES);
    let kinds = "string integer double null array set map attrib verbatim true false bignum";
    for resp in ["2", "3"] {
        let (mut through, mut direct) = (Wire::connect(proxy.port), Wire::connect(redis.port));
        for wire in [&mut through, &mut direct] {
            wire.send(&encode(&["HELLO", resp]));
            wire.reply().unwrap();
        }
        for kind in kinds.split(' ') {
            let request = encode(&["DEBUG", "PROTOCOL", kind]);
            through.send(&request);
            direct.send(&request);
            let (got, expected) = (through.reply(), direct.reply());
            assert_eq!(got, expected, "{kind}");
        }
    }
}

#[test]
fn a_client_that_hangs_up_after_its_last_command_is_answered() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut wire = Wire::connect(proxy.port);
    wire.send(b"SET k v\r\nGET k\r\n");
    wire.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(wire.rest().unwrap(), b"+OK\r\n$1\r\nv\r\n");
}
