//! Redis is away, goes away, or is no Redis: clear errors, no hangs, nothing done twice.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, eventually, free_port};

/// Well above what is promised, for slow machines.
const SOON: Duration = Duration::from_secs(4);

fn in_front_of(port: u16) -> Proxy {
    Proxy::launch(&format!("redis://127.0.0.1:{port}"), RULES, &[])
}

/// Accepts connections and does `what` with each.
fn impostor(what: impl Fn(std::net::TcpStream) + Send + Sync + Copy + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || what(stream));
        }
    });
    port
}

#[test]
fn an_unreachable_redis_gives_an_error_at_once_for_every_kind_of_command() {
    let proxy = in_front_of(free_port());
    for line in
        ["GET k", "SET k v", "SELECT 1", "AUTH x", "HELLO 3", "BLPOP q 0", "SUBSCRIBE c", "WATCH k", "MULTI"]
    {
        let started = Instant::now();
        let reply = Wire::connect(proxy.port).cmd(line);
        assert!(reply.starts_with("-ERR upstream"), "{line}: {reply}");
        assert!(started.elapsed() < SOON, "{line}: {:?}", started.elapsed());
    }
    for line in [
        "EVAL return 0",
        "SET app:1:model:Post:1 x",
        "PUBLISH rescind:invalidate Post",
        "MONITOR",
        "WAIT 0 0",
    ] {
        let started = Instant::now();
        let mut wire = Wire::connect(proxy.port);
        wire.send(format!("{line}\r\n").as_bytes());
        // MONITOR's connection carries no replies of its own any more: an error or an end.
        let reply = wire.reply().unwrap_or_default();
        assert!(reply.starts_with(b"-ERR upstream") || line == "MONITOR", "{line}: {}", reply.escape_ascii());
        assert!(started.elapsed() < SOON, "{line}: {:?}", started.elapsed());
    }
    // A client survives the errors.
    let mut wire = Wire::connect(proxy.port);
    for _ in 0..20 {
        assert!(wire.cmd("GET k").starts_with("-ERR upstream"));
    }
    // Not if what it has sent behind it would mean something else.
    for line in ["SELECT 2", "MULTI", "HELLO 3", "AUTH x"] {
        let mut wire = Wire::connect(proxy.port);
        wire.send(format!("{line}\r\nSET k v\r\n").as_bytes());
        assert!(wire.text().starts_with("-ERR upstream"), "{line}");
        let rest: Vec<_> = std::iter::repeat_with(|| wire.reply()).take(2).collect();
        assert!(rest.iter().flatten().all(|reply| reply.starts_with(b"-ERR upstream")), "{line}: {rest:?}");
        assert!(rest[1].as_ref().is_err_and(|end| end.starts_with("closed")), "{line}: {rest:?}");
    }
}

#[test]
fn a_proxy_started_before_its_redis_recovers_by_itself() {
    let mut redis = Redis::start();
    redis.kill();
    let proxy = in_front_of(redis.port);
    let mut wire = Wire::connect(proxy.port);
    assert!(wire.cmd("SET k v").starts_with("-ERR upstream"));
    redis.restart();
    eventually("the same client is served", || (wire.cmd("SET k v") == "+OK\r\n").then_some(()));
    proxy.ready();
    wire.cmd("SET app:1:tools_1 x");
    wire.cmd("SET app:1:model:Tool:1 x");
    assert_eq!(wire.cmd("EXISTS app:1:tools_1"), ":0\r\n");
}

#[test]
fn a_redis_that_never_answers_gives_an_error() {
    let port = impostor(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let proxy = in_front_of(port);
    let mut waiting: Vec<Wire> = (0..3).map(|_| Wire::connect(proxy.port)).collect();
    waiting[0].send(b"GET k\r\n");
    waiting[1].send(b"MULTI\r\n");
    waiting[2].send(b"SET app:1:model:Post:1 x\r\n");
    for wire in &mut waiting {
        wire.stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let reply = wire.text();
        assert!(reply.starts_with("-ERR upstream"), "{reply}");
    }
}

#[test]
fn something_else_in_the_place_of_redis_gives_an_error() {
    let web = impostor(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let closes = impostor(drop);
    let noise = impostor(|mut stream| {
        let _ = stream.write_all(&[0xff; 1000]);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let endless = impostor(|mut stream| while stream.write_all(&[b'$'; 4096]).is_ok() {});
    let full = impostor(|mut stream| {
        let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
    });
    for (name, port) in
        [("web", web), ("closes", closes), ("noise", noise), ("endless", endless), ("full", full)]
    {
        let proxy = in_front_of(port);
        let mut wire = Wire::connect(proxy.port);
        for line in ["GET k", "INCR n", "GET k", "SELECT 3"] {
            let started = Instant::now();
            let reply = wire.cmd(line);
            assert!(reply.starts_with("-ERR upstream"), "{name}: {reply}");
            assert!(started.elapsed() < SOON, "{name}");
        }
    }
}

#[test]
fn an_upstream_that_answers_too_much_ends_only_its_connection() {
    let port = impostor(|mut stream| {
        // One reply too many to everything that arrives.
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf) {
            let lines = buf[..n].iter().filter(|b| **b == b'*').count();
            if stream.write_all("+PONG\r\n".repeat(lines + 1).as_bytes()).is_err() {
                return;
            }
        }
    });
    let proxy = in_front_of(port);
    for _ in 0..10 {
        let mut wire = Wire::connect(proxy.port);
        wire.send(b"GET k\r\n");
        // Whatever it is, it comes to an end.
        let _ = wire.reply();
    }
}

#[test]
fn commands_in_flight_are_cut_and_never_repeated() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut idle = Wire::connect(proxy.port);
    assert_eq!(idle.cmd("PING"), "+PONG\r\n");
    let mut in_multi = Wire::connect(proxy.port);
    in_multi.cmd("MULTI");
    in_multi.cmd("INCR n");
    let mut blocked = Wire::connect(proxy.port);
    blocked.send(b"BLPOP q 0\r\n");
    let mut listening = Wire::connect(proxy.port);
    listening.cmd("SUBSCRIBE c");
    redis.signal("-STOP");
    let mut in_flight: Vec<Wire> = (0..10).map(|_| Wire::connect(proxy.port)).collect();
    in_flight.iter_mut().for_each(|wire| wire.send(b"INCR n\r\nINCR n\r\nGET n\r\n"));
    in_flight[0].send(b"SET app:1:model:Post:1 x\r\n");
    redis.kill();
    for wire in &mut in_flight {
        // What the proxy had not sent yet gets an error, the rest is cut.
        match wire.reply() {
            Ok(reply) => assert!(reply.starts_with(b"-ERR upstream"), "{}", reply.escape_ascii()),
            Err(what) => assert!(what.starts_with("closed"), "{what}"),
        }
    }
    for wire in [&mut in_multi, &mut blocked, &mut listening] {
        let rest = wire.rest().unwrap();
        assert!(rest.is_empty() || rest.starts_with(b"-ERR"), "{}", rest.escape_ascii());
    }
    assert!(idle.cmd("PING").starts_with("-ERR upstream"), "an idle client stays");
    redis.restart();
    eventually("the idle client goes on", || (idle.cmd("PING") == "+PONG\r\n").then_some(()));
    assert_eq!(idle.cmd("GET n"), "$-1\r\n", "nothing was sent again");
    assert_eq!(idle.cmd("INCR n"), ":1\r\n");
    assert_eq!(Wire::connect(proxy.port).cmd("MULTI"), "+OK\r\n");
}

/// As long as those who are connected: directly, too, one would wait.
#[test]
fn who_comes_while_redis_is_held_up_for_some_seconds_is_served() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut before = Wire::connect(proxy.port);
    assert_eq!(before.cmd("SET k v"), "+OK\r\n");
    redis.signal("-STOP");
    let mut lines = ["GET k", "WATCH k", "SUBSCRIBE c"].map(|line| (line, Wire::connect(proxy.port)));
    before.send(b"GET k\r\n");
    lines.iter_mut().for_each(|(line, wire)| wire.send(format!("{line}\r\n").as_bytes()));
    std::thread::sleep(Duration::from_secs(6));
    redis.signal("-CONT");
    assert_eq!(before.text(), "$1\r\nv\r\n");
    for (line, wire) in &mut lines {
        let reply = wire.text();
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

#[test]
fn every_acknowledged_increment_ran_exactly_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut direct = Wire::connect(redis.port);
    let (mut acknowledged, mut sent) = (0, 0);
    for round in 0..30 {
        let mut wire = Wire::connect(proxy.port);
        wire.send("INCR n\r\n".repeat(50).as_bytes());
        sent += 50;
        if round % 3 == 0 {
            // Redis hangs up on everybody except the one who asks.
            direct.cmd("CLIENT KILL TYPE normal");
        }
        for _ in 0..50 {
            match wire.reply() {
                Ok(reply) if reply.starts_with(b":") => acknowledged += 1,
                // The connection was killed before anything had been sent on it.
                Ok(reply) => assert!(reply.starts_with(b"-ERR upstream"), "{}", reply.escape_ascii()),
                Err(what) => {
                    assert!(what.starts_with("closed"), "{what}");
                    break;
                }
            }
        }
    }
    let count = direct.cmd("GET n");
    let count: usize = count.lines().nth(1).unwrap().parse().unwrap();
    assert!(acknowledged <= count && count <= sent, "{acknowledged} acknowledged, {count} done, {sent} sent");
}

#[test]
fn a_redis_that_comes_and_goes_is_found_again_each_time() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut wire = Wire::connect(proxy.port);
    for round in 0..3 {
        redis.kill();
        // The loss may not have been noticed yet, but then the client is cut: what it asked may have run.
        wire.send(b"SET k x\r\n");
        match wire.reply() {
            Ok(reply) => assert!(reply.starts_with(b"-ERR upstream"), "{round}: {}", reply.escape_ascii()),
            Err(_) => wire = Wire::connect(proxy.port),
        }
        redis.restart();
        eventually("served again", || {
            let served = wire.cmd("SELECT 1") == "+OK\r\n";
            if !served {
                wire = Wire::connect(proxy.port);
            }
            served.then_some(())
        });
        assert_eq!(wire.cmd("SET k v"), "+OK\r\n");
        assert_eq!(wire.cmd("SELECT 0"), "+OK\r\n");
    }
}

#[test]
fn a_redis_that_answers_nothing_is_given_up() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut trigger) = (proxy.client(), proxy.client());
    assert_eq!(client.cmd("PING"), "+PONG\r\n");
    redis.signal("-STOP");
    client.request(&["GET", "k"]);
    trigger.request(&["SET", "app:1:model:Post:7", "1"]);
    assert!(client.raw().starts_with(b"-ERR upstream does not answer"));
    assert!(trigger.rest().starts_with(b"-ERR upstream does not answer"));
    assert_eq!(proxy.http("GET", "/readyz", &[], "").0, 503);
    assert!(proxy.client().cmd("GET k").starts_with("-ERR upstream"));
    redis.signal("-CONT");
    proxy.ready();
    eventually("Redis is used again", || (proxy.client().cmd("GET k") == "$-1\r\n").then_some(()));
}
