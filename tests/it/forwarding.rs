//! What a client sees through the proxy is what it would see from Redis itself.

use std::io::Write;
use std::time::Duration;

use crate::differential::{Way, Wire, compare, shown};
use crate::interleaving::Random;
use crate::support::{Proxy, RULES, Redis, encode, eventually};

/// Who subscribes to something.
const SUBSCRIBERS: &str = "z CLIENT LIST TYPE pubsub";

/// Runs a table against servers that want no password.
fn same(table: &str) {
    // With more ticks, time-outs come sooner.
    let arguments = ["--enable-debug-command", "yes", "--hz", "200"];
    let (straight, behind) = (Redis::with(&arguments), Redis::with(&arguments));
    let proxy = Proxy::start(&behind, RULES);
    let direct = Way { port: straight.port, redis: &straight };
    let proxied = Way { port: proxy.port, redis: &behind };
    let clean = [
        "z CLIENT UNPAUSE",
        "z FLUSHALL",
        "z SCRIPT FLUSH",
        "z FUNCTION FLUSH",
        "z CONFIG RESETSTAT",
        "z ACL DELUSER u v",
        SUBSCRIBERS,
    ];
    compare(&direct, &proxied, &clean, table);
}

#[test]
fn everything_looks_the_same() {
    same(include_str!("forwarding_open.txt"));
}

#[test]
fn connections_look_the_same() {
    same(include_str!("forwarding_connection.txt"));
}

#[test]
fn transactions_look_the_same() {
    same(include_str!("forwarding_transactions.txt"));
}

#[test]
fn messages_look_the_same() {
    same(include_str!("forwarding_messages.txt"));
}

#[test]
fn waiting_looks_the_same() {
    same(include_str!("forwarding_blocking.txt"));
}

#[test]
fn the_server_looks_the_same() {
    same(include_str!("forwarding_server.txt"));
}

#[test]
fn bytes_look_the_same() {
    same(include_str!("forwarding_bytes.txt"));
}

#[test]
fn unusual_states_look_the_same() {
    same(include_str!("forwarding_states.txt"));
}

/// Runs a table against servers that want one.
fn same_behind_a_password(table: &str) {
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
    let clean = ["z AUTH secret", "z FLUSHALL", SUBSCRIBERS];
    compare(&direct, &proxied, &clean, table);
}

#[test]
fn everything_looks_the_same_where_redis_wants_a_password() {
    same_behind_a_password(include_str!("forwarding_closed.txt"));
}

/// What random pipelines are made of: mostly what changes the state of a connection.
const ANYTHING: &str = "GET k|GET none|SET k v|INCR n|LRANGE l 0 -1|LRANGE s 0 -1|HGETALL h|DEL k|NOSUCH x|GET|SELECT\
    |PING|PING hello|ECHO x|MULTI|MULTI|EXEC|EXEC|DISCARD|WATCH k|WATCH m n|UNWATCH|MULTI x|EXEC x|SELECT 0|SELECT 1\
    |SELECT 3|SELECT 99|SELECT x|HELLO 2|HELLO 3|HELLO|HELLO 4|HELLO 3 AUTH default x|HELLO 2 AUTH nobody x|AUTH x\
    |AUTH default x|AUTH nobody x|AUTH a b c|ACL WHOAMI|RESET|RESET x|SUBSCRIBE c|UNSUBSCRIBE c|UNSUBSCRIBE\
    |PSUBSCRIBE c*|PUNSUBSCRIBE c*|PUNSUBSCRIBE|SSUBSCRIBE c|SUNSUBSCRIBE|UNSUBSCRIBE x|PUBLISH c m\
    |PUBLISH x m|SPUBLISH c m|BLPOP none 0.001|BLPOP l 0.001|RPUSH l message c m|RPUSH s subscribe c 1|WAIT 0 0\
    |XREAD BLOCK 1 STREAMS none $|CLIENT REPLY ON|CLIENT REPLY OFF|CLIENT REPLY SKIP|CLIENT REPLY x|CLIENT REPLY ON\
    |CLIENT NO-EVICT off|CLIENT TRACKINGINFO|CLIENT TRACKING ON|CLIENT TRACKING OFF|CLIENT GETREDIR|CLIENT CACHING YES\
    |EVAL return{1,{2}} 0|EVAL return{double=1.5} 0|EVAL bad( 0|SWAPDB 0 1|FLUSHDB|FLUSHALL|OBJECT ENCODING k\
    |SET app:1:model:Post:1 v|APPEND app:1:model:Post:1 v|SET k v NX|CONFIG GET maxmemory|MGET k n none|EXISTS k n\
    |TYPE k|READONLY|ASKING|READWRITE|CLIENT KILL ID 0|CLIENT UNBLOCK 0|SCRIPT EXISTS x|CLIENT SETNAME|MONITOR x";

/// Random requests. Left out is what is known to differ: CLIENT REPLY and MULTI where Redis refuses or queues them,
/// subscriptions inside MULTI, and RESET as the reply that is skipped.
fn random_pipeline(random: &mut Random) -> (Vec<&'static str>, Vec<u8>) {
    let all: Vec<&str> = ANYTHING.split('|').map(str::trim).collect();
    let (mut lines, mut bytes, mut listening, mut in_multi) = (vec![], vec![], false, false);
    for _ in 0..1 + random.below(50) {
        let line = all[random.below(all.len() as u64) as usize];
        let odd =
            line.starts_with("CLIENT REPLY") || line.starts_with("PUBLISH") || line.starts_with("SPUBLISH");
        let skipped = line == "RESET" && lines.last() == Some(&"CLIENT REPLY SKIP");
        let inside = in_multi && line.contains("SUBSCRIBE");
        if (odd && (listening || in_multi)) || (listening && line == "MULTI") || skipped || inside {
            continue;
        }
        listening |= line.contains("SUBSCRIBE c");
        match line {
            "RESET" => (listening, in_multi) = (false, false),
            "MULTI" => in_multi = true,
            "EXEC" | "EXEC x" | "DISCARD" => in_multi = false,
            _ => {}
        }
        lines.push(line);
        match random.below(4) {
            0 => bytes.extend(format!("{line}\r\n").into_bytes()),
            _ => bytes.extend(encode(&line.split(' ').collect::<Vec<_>>())),
        }
    }
    lines.extend(["PING", "RESET", "QUIT"]);
    bytes.extend(b"PING\r\nRESET\r\nQUIT\r\n");
    (lines, bytes)
}

#[test]
fn random_pipelines_look_the_same() {
    let seed = crate::interleaving::seed();
    let rounds = crate::interleaving::variable("RESCIND_ROUNDS").unwrap_or(300);
    let arguments = ["--hz", "200"];
    let (straight, behind) = (Redis::with(&arguments), Redis::with(&arguments));
    let proxy = Proxy::start(&behind, RULES);
    let mut failed = vec![];
    for round in 0..rounds {
        let mut random = Random(seed.wrapping_add(round << 32));
        let (lines, bytes) = random_pipeline(&mut random);
        let cut = random.below(bytes.len() as u64) as usize;
        let replies = [straight.port, proxy.port].map(|port| {
            let redis = if port == straight.port { &straight } else { &behind };
            Wire::connect(redis.port).cmd("FLUSHALL");
            let mut wire = Wire::connect(port);
            wire.stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            wire.send(&bytes[..cut]);
            wire.send(&bytes[cut..]);
            shown(wire.rest())
        });
        if replies[0] != replies[1] && failed.len() < 5 {
            let same = replies[0].bytes().zip(replies[1].bytes()).take_while(|(one, two)| one == two).count();
            let end = |text: &str| text.chars().skip(same.saturating_sub(60)).take(300).collect::<String>();
            let (direct, proxied) = (end(&replies[0]), end(&replies[1]));
            failed.push(format!("round {round}: {lines:?}\n  direct  …{direct}\n  proxied …{proxied}\n"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {rounds} differ:\n{}",
        failed.len(),
        failed[..failed.len().min(5)].concat()
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

/// Redis runs what it has read before it notices that nobody is left to take the replies.
#[test]
fn what_a_client_has_sent_runs_although_it_does_not_stay_for_the_replies() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut direct = redis.client();
    for (round, before) in
        ["", "SELECT 0\r\n", "CLIENT SETNAME me\r\n", "SET model:Post:1 v\r\n", "MULTI\r\nEXEC\r\n"]
            .iter()
            .enumerate()
    {
        for times in [100, 1000] {
            let key = format!("n:{round}:{times}");
            let mut wire = Wire::connect(proxy.port);
            wire.send(format!("{before}{}", format!("INCR {key}\r\n").repeat(times)).as_bytes());
            drop(wire);
            let expected = format!("${}\r\n{times}\r\n", times.to_string().len());
            eventually(&key, || (direct.cmd(&format!("GET {key}")) == expected).then_some(()));
        }
    }
    eventually("they are gone", || (proxy.metric("rescind_clients") == 0.0).then_some(()));
}

#[test]
fn nothing_is_read_behind_the_quit_of_a_subscriber() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    // Redis may hang up a moment after its reply.
    for round in 0..50 {
        for (port, resp) in [(redis.port, "2"), (proxy.port, "2"), (proxy.port, "3")] {
            let mut wire = Wire::having_said(port, &[&format!("HELLO {resp}"), "SUBSCRIBE c"]);
            wire.send(b"QUIT\r\nRESET\r\nSET behind 1\r\n");
            assert_eq!(wire.rest().unwrap(), b"+OK\r\n", "{round}: RESP{resp}");
        }
    }
    assert_eq!(Wire::connect(redis.port).cmd("EXISTS behind"), ":0\r\n");
}

/// What the client of a monitoring connection gets besides what Redis tells of others, up to the reply `last`.
fn replies_to(monitor: &mut Wire, last: &str) -> Vec<String> {
    let mut replies = vec![];
    while replies.last().is_none_or(|reply| reply != last) {
        let reply = monitor.text();
        if !reply.starts_with('+') || !reply.contains(" [") {
            replies.push(reply);
        }
    }
    replies
}

#[test]
fn behind_monitor_all_is_as_redis_has_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let requests = [
        "WAIT 0 0",
        "SWAPDB 1 2",
        "CLIENT REPLY OFF",
        "ECHO x",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY ON",
        "ECHO y",
    ];
    let requests = requests.map(|request| format!("{request}\r\n")).concat();
    let [direct, through] = [redis.port, proxy.port].map(|port| {
        let mut monitor = Wire::having_said(port, &["MONITOR"]);
        monitor.send(requests.as_bytes());
        replies_to(&mut monitor, "$1\r\ny\r\n")
    });
    assert_eq!(through, direct);
    assert_eq!(through[0], ":0\r\n");
    // Redis has refused SWAPDB.
    assert_eq!(proxy.metric("rescind_index_complete"), 1.0);
}

#[test]
fn what_the_proxy_asks_is_not_what_client_caching_speaks_of() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut direct = Wire::connect(redis.port);
    for line in ["GET k", "TAG.WITH 1 t GET k", "TAG.WITH 1 t STRLEN k"] {
        direct.cmd("SET k v");
        let mut wire = Wire::connect(proxy.port);
        wire.send(b"HELLO 3\r\n");
        wire.reply().unwrap();
        assert_eq!(wire.cmd("CLIENT TRACKING ON OPTIN"), "+OK\r\n");
        assert_eq!(wire.cmd("CLIENT CACHING YES"), "+OK\r\n");
        assert!(!wire.cmd(line).starts_with('-'), "{line}");
        // Nobody is told of these.
        assert!(!wire.cmd("TAG.ADD k other").starts_with('-'), "{line}");
        direct.cmd("SET k w");
        wire.send(b"PING\r\n");
        assert!(wire.text().contains("invalidate\r\n*1\r\n$1\r\nk\r\n"), "{line}");
        assert_eq!(wire.text(), "+PONG\r\n", "{line}");
    }
}

#[test]
fn what_cannot_be_labelled_runs_behind_tag_next_all_the_same() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut wire = Wire::connect(proxy.port);
    for line in ["FLUSHALL", "FLUSHDB", "SWAPDB 1 2"] {
        assert_eq!(wire.cmd("TAG.NEXT t"), "+OK\r\n");
        assert_eq!(wire.cmd(line), "+OK\r\n");
        assert_eq!(wire.cmd("SET k v"), "+OK\r\n");
        assert_eq!(wire.cmd("TAG.OF k"), "*0\r\n", "{line}");
    }
    for (line, reply) in [("MULTI", "+OK"), ("TAG.NEXT t", "+QUEUED"), ("FLUSHALL", "+QUEUED")] {
        assert_eq!(wire.cmd(line), format!("{reply}\r\n"));
    }
    assert_eq!(wire.cmd("EXEC"), "*2\r\n+OK\r\n+OK\r\n");
}
