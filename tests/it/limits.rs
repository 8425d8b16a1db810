//! Nothing that clients do or leave undone takes unbounded memory, time or places.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::differential::Wire;
use crate::support::{Folder, Proxy, RULES, Redis, encode, eventually, free_port, texts};

const MB: u64 = 1 << 20;

fn with_limits(redis: &Redis, listen: &str) -> Proxy {
    let proxy = Proxy::launch(
        &format!("redis://127.0.0.1:{}", redis.port),
        &format!("[listen]\n{listen}\n{RULES}"),
        &[],
    );
    proxy.ready();
    proxy
}

#[test]
fn one_client_too_many_gets_the_error_of_redis() {
    let redis = Redis::start();
    let proxy = with_limits(&redis, "max_clients = 3");
    // What the harness itself opened must be gone first.
    eventually("no clients", || (proxy.metric("rescind_clients") == 0.0).then_some(()));
    let mut three: Vec<Wire> = (0..3).map(|_| Wire::connect(proxy.port)).collect();
    three.iter_mut().for_each(|wire| assert_eq!(wire.cmd("PING"), "+PONG\r\n"));
    assert_eq!(Wire::connect(proxy.port).rest().unwrap(), b"-ERR max number of clients reached\r\n");
    three.iter_mut().for_each(|wire| assert_eq!(wire.cmd("PING"), "+PONG\r\n"));
    three.pop();
    eventually("a place is free again", || {
        let mut wire = Wire::connect(proxy.port);
        wire.send(&encode(&["PING"]));
        wire.reply().is_ok_and(|reply| reply == b"+PONG\r\n").then_some(())
    });
}

#[test]
fn silent_clients_are_cut_and_listening_or_blocked_ones_are_not() {
    let redis = Redis::start();
    let proxy = with_limits(&redis, "idle_timeout = \"1s\"");
    let (mut silent, mut half, mut multi) =
        (Wire::connect(proxy.port), Wire::connect(proxy.port), Wire::connect(proxy.port));
    let (mut listening, mut blocked) = (Wire::connect(proxy.port), Wire::connect(proxy.port));
    silent.cmd("PING");
    multi.cmd("MULTI");
    half.send(b"*2\r\n$3\r\nGET\r\n$1");
    listening.cmd("SUBSCRIBE c");
    blocked.send(b"BLPOP q 0\r\n");
    for wire in [&mut silent, &mut half, &mut multi] {
        wire.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(wire.rest().unwrap(), b"");
    }
    let mut direct = Wire::connect(redis.port);
    assert_eq!(direct.cmd("PUBLISH c m"), ":1\r\n");
    assert!(listening.text().contains("message"));
    direct.cmd("RPUSH q v");
    assert_eq!(blocked.text(), "*2\r\n$1\r\nq\r\n$1\r\nv\r\n");
}

#[test]
fn who_takes_what_it_is_given_is_not_silent() {
    let redis = Redis::start();
    let proxy = with_limits(&redis, "idle_timeout = \"3s\"");
    let (mut direct, mut tracking) = (Wire::connect(redis.port), Wire::connect(proxy.port));
    tracking.send(b"HELLO 3\r\nCLIENT TRACKING ON BCAST PREFIX t\r\nPING\r\n");
    while tracking.text() != "+PONG\r\n" {}
    for n in 0..60 {
        direct.cmd(&format!("SET t{n} v"));
        assert!(tracking.text().contains(&format!("t{n}\r\n")));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(tracking.cmd("PING"), "+PONG\r\n");
}

/// Sends all of it, although nothing is read.
fn send_all(wire: &mut Wire, bytes: &[u8]) {
    wire.stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    wire.send(bytes);
}

fn until_blocked(direct: &mut Wire, clients: u32) {
    let wanted = format!("blocked_clients:{clients}\r\n");
    eventually(&wanted, || direct.cmd("INFO clients").contains(&wanted).then_some(()));
}

#[test]
fn a_blocked_client_that_has_hung_up_gets_nothing_however_much_it_has_sent() {
    let redis = Redis::start();
    let proxy = with_limits(&redis, "workers = 1");
    let mut direct = Wire::connect(redis.port);
    let writes = encode(&["SET", "k", &"x".repeat(1000)]).repeat(20_000);
    // What waits until nothing of the client is under way.
    for waiting in ["SELECT 1", "SET app:1:model:Post:7 1", "TAG.INFO", "RESET"] {
        let mut wire = Wire::connect(proxy.port);
        wire.send(b"BLPOP q 0\r\n");
        until_blocked(&mut direct, 1);
        wire.send(format!("{waiting}\r\n").as_bytes());
        send_all(&mut wire, &writes);
        assert!(proxy.rss() < 400 * MB, "{} MB", proxy.rss() / MB);
        drop(wire);
        until_blocked(&mut direct, 0);
        assert_eq!(direct.cmd("RPUSH q v"), ":1\r\n", "{waiting}");
        assert_eq!(direct.cmd("LPOP q"), "$1\r\nv\r\n", "{waiting}");
    }
    eventually("all are gone", || (proxy.metric("rescind_clients") == 0.0).then_some(()));
}

#[test]
fn what_is_sent_behind_a_blocked_command_is_done_in_order() {
    let redis = Redis::start();
    let proxy = with_limits(&redis, "workers = 1");
    let (mut wire, mut direct) = (Wire::connect(proxy.port), Wire::connect(redis.port));
    wire.send(b"BLPOP q 0\r\nSELECT 1\r\n");
    let padding = "x".repeat(1000);
    let lines: Vec<String> = (0..8000).map(|n| format!("{n} {padding}")).collect();
    let writes: Vec<u8> = lines.iter().flat_map(|line| encode(&["RPUSH", "l", line])).collect();
    send_all(&mut wire, &writes);
    until_blocked(&mut direct, 1);
    direct.cmd("RPUSH q v");
    assert_eq!(wire.text(), "*2\r\n$1\r\nq\r\n$1\r\nv\r\n");
    assert_eq!(wire.text(), "+OK\r\n");
    (1..=lines.len()).for_each(|n| assert_eq!(wire.text(), format!(":{n}\r\n")));
    direct.cmd("SELECT 1");
    direct.send(b"LRANGE l 0 -1\r\n");
    assert!(texts(&direct.reply().unwrap()) == lines);
}

/// Lets `work` go on while PINGs of another client must be answered.
fn while_pinging(proxy: &Proxy, what: &str, mut done: impl FnMut() -> bool) {
    let mut other = Wire::connect(proxy.port);
    let deadline = Instant::now() + Duration::from_secs(8);
    while !done() && Instant::now() < deadline {
        other.send(b"PING\r\n");
        assert_eq!(other.reply().unwrap_or_else(|error| panic!("{what}: {error}")), b"+PONG\r\n");
        assert!(proxy.rss() < 400 * MB, "{what}: {} MB", proxy.rss() / MB);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends without ever reading; false once the other side takes no more.
fn stuffing(stream: &TcpStream, bytes: &[u8]) -> bool {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut stream = stream;
    stream.write_all(bytes).is_ok()
}

#[test]
fn a_client_that_does_not_read_is_throttled_or_cut() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut setup = Wire::connect(proxy.port);
    setup.send(&encode(&["SET", "big", &"x".repeat(1 << 20)]));
    setup.reply().unwrap();
    let trust = "ECHO x\r\n".repeat(2000);
    // Redis builds all replies of a connection of the client's own in one go, and serves nobody meanwhile.
    for (name, prelude, requests) in
        [("shared", "", 2000), ("pinned", "WATCH k\r\n", 500), ("trusted", &*trust, 2000)]
    {
        let mut wire = Wire::connect(proxy.port);
        wire.send(prelude.as_bytes());
        prelude.lines().for_each(|_| drop(wire.reply().unwrap()));
        stuffing(&wire.stream, "GET big\r\n".repeat(requests).as_bytes());
        let mut rounds = 0;
        while_pinging(&proxy, name, || {
            rounds += 1;
            rounds > 300
        });
    }
    // Small replies, too: the requests are not taken without bound either.
    let wire = Wire::connect(proxy.port);
    let bytes = "GET big\r\n".repeat(100).into_bytes();
    let mut rounds = 0;
    while_pinging(&proxy, "stuffed", || {
        rounds += 1;
        rounds > 100 || !stuffing(&wire.stream, &bytes)
    });
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut setup = Wire::connect(proxy.port);
    setup.send(&encode(&["SET", "big", &"x".repeat(1 << 20)]));
    setup.reply().unwrap();
    let mut wire = Wire::connect(proxy.port);
    wire.send("GET big\r\n".repeat(100).as_bytes());
    for _ in 0..100 {
        assert_eq!(wire.reply().unwrap().len(), (1 << 20) + 12);
    }
}

#[test]
fn a_slow_subscriber_is_cut_and_the_memory_comes_back() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut slow = Wire::connect(proxy.port);
    slow.cmd("SUBSCRIBE c");
    let mut publisher = Wire::connect(redis.port);
    let message = encode(&["PUBLISH", "c", &"x".repeat(1 << 20)]);
    let mut sent = 0;
    while_pinging(&proxy, "subscriber", || {
        publisher.send(&message);
        sent += 1;
        // Redis cuts it at 32 MB of its own buffer.
        publisher.text() == ":0\r\n" || sent > 200
    });
    assert!(sent < 200, "the subscriber was never cut");
    slow.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    slow.rest().unwrap();
}

#[test]
fn big_values_do_not_stay_in_memory() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let value = "x".repeat(20 << 20);
    let mut wires: Vec<Wire> = (0..4).map(|_| Wire::connect(proxy.port)).collect();
    for wire in &mut wires {
        wire.send(&encode(&["SET", "big", &value]));
        assert_eq!(wire.text(), "+OK\r\n");
        wire.send(b"GET big\r\n");
        wire.reply().unwrap();
    }
    // mimalloc gives pages back after a while.
    eventually("memory is given back", || {
        wires.iter_mut().for_each(|wire| drop(wire.cmd("PING")));
        (proxy.rss() < 100 * MB).then_some(())
    });
}

#[test]
fn idle_connections_are_cheap() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    Wire::connect(proxy.port).cmd("PING");
    let before = proxy.rss();
    let mut wires: Vec<Wire> = (0..2000).map(|_| Wire::connect(proxy.port)).collect();
    for wire in &mut wires {
        wire.send(&encode(&["ECHO", &"x".repeat(3000)]));
    }
    wires.iter_mut().for_each(|wire| drop(wire.reply().unwrap()));
    // Buffers are given back after a moment.
    eventually("idle clients take less than 16 KiB each", || {
        (proxy.rss().saturating_sub(before) / 2000 < 16 * 1024).then_some(())
    });
}

#[test]
fn sigterm_lets_commands_in_flight_finish() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    let mut idle = Wire::connect(proxy.port);
    idle.cmd("PING");
    let mut busy = Wire::connect(proxy.port);
    busy.send(&encode(&[
        "EVAL",
        "local t=redis.call('time')[1]+1 while redis.call('time')[1]+0 <= t+0 do end return 'done'",
        "0",
    ]));
    let mut blocked = Wire::connect(proxy.port);
    blocked.send(b"BLPOP q 3\r\n");
    // Both have reached the proxy once this one is answered, which waits behind the script.
    assert_eq!(idle.cmd("PING"), "+PONG\r\n");
    busy.send(&encode(&[
        "EVAL",
        "local t=redis.call('time')[1]+1 while redis.call('time')[1]+0 <= t+0 do end return 'again'",
        "0",
    ]));
    std::thread::sleep(Duration::from_millis(50));
    let started = Instant::now();
    proxy.signal("-TERM");
    assert_eq!(busy.text(), "$4\r\ndone\r\n");
    assert_eq!(busy.text(), "$5\r\nagain\r\n");
    assert_eq!(busy.rest().unwrap(), b"");
    assert_eq!(idle.rest().unwrap(), b"");
    assert_eq!(blocked.text(), "*-1\r\n");
    assert_eq!(proxy.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(14), "{:?}", started.elapsed());
}

#[test]
fn sigterm_does_not_wait_for_ever() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis, RULES);
    let mut blocked = Wire::connect(proxy.port);
    blocked.send(b"BLPOP q 0\r\n");
    eventually("blocked", || {
        Wire::connect(redis.port).cmd("INFO clients").contains("blocked_clients:1").then_some(())
    });
    let started = Instant::now();
    proxy.signal("-TERM");
    assert_eq!(proxy.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(14), "{:?}", started.elapsed());
    eventually("Redis has let go", || {
        Wire::connect(redis.port).cmd("INFO clients").contains("blocked_clients:0").then_some(())
    });
}

#[test]
fn a_taken_port_is_one_line_and_a_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let folder = Folder::new();
    let config = folder.write("proxy.toml", RULES);
    let free = format!("127.0.0.1:{}", free_port());
    for (listen, admin) in [(taken.to_string(), free.clone()), (free, taken.to_string())] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rescind"))
            .arg("--config")
            .arg(&config)
            .args(["--listen", &listen, "--admin", &admin, "--upstream", "redis://127.0.0.1:1"])
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = eventually("rescind gives up", || child.try_wait().unwrap());
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(status.code(), Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(&taken.to_string()), "{error}");
    }
}
