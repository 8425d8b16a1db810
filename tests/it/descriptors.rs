//! Few file descriptors: who is let in is served, the others are told, and the proxy itself always finds one.

use crate::differential::Wire;
use crate::support::{Folder, Proxy, RULES, Redis, encode, eventually, free_port};

const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

fn limited(redis: &Redis, rules: &str, soft: u32, hard: u32) -> Proxy {
    let proxy = Proxy::launch_limited(&format!("redis://127.0.0.1:{}", redis.port), rules, soft, hard);
    proxy.ready();
    eventually("no clients", || (proxy.metric("rescind_clients") == 0.0).then_some(()));
    proxy
}

/// So many clients that say PING at once: those that are let in.
fn crowd(proxy: &Proxy, clients: usize) -> Vec<Wire> {
    let mut wires: Vec<Wire> = (0..clients).map(|_| Wire::connect(proxy.port)).collect();
    for wire in &mut wires {
        // Who was refused may have been disconnected already.
        let _ = std::io::Write::write_all(&mut &wire.stream, b"PING\r\n");
    }
    wires
        .into_iter()
        .filter_map(|mut wire| match wire.reply() {
            Ok(reply) if reply == b"+PONG\r\n" => Some(wire),
            Ok(reply) => {
                assert_eq!(reply, TOO_MANY);
                None
            }
            // What it sent came too late to be read, and the kernel says so instead of passing on the error.
            Err(_) => None,
        })
        .collect()
}

#[test]
fn a_low_soft_limit_is_raised() {
    let redis = Redis::start();
    let proxy = limited(&redis, RULES, 64, 4096);
    assert_eq!(crowd(&proxy, 300).len(), 300);
    assert_eq!(proxy.metric("process_max_fds"), 4096.0);
    // Not further than needed.
    let proxy = limited(&redis, &format!("[listen]\nmax_clients = 50\n{RULES}"), 64, 4096);
    let limit = proxy.metric("process_max_fds");
    assert!((101.0..1000.0).contains(&limit), "{limit}");
    assert!(!proxy.log().contains("max_clients is"), "{}", proxy.log());
}

#[test]
fn where_the_hard_limit_is_low_fewer_clients_are_let_in_and_all_of_them_are_served() {
    let redis = Redis::start();
    let proxy = limited(&redis, RULES, 64, 256);
    let log = proxy.log();
    let said = log.lines().find(|line| line.contains("max_clients is")).unwrap_or_else(|| panic!("{log}"));
    let admitted: usize =
        said.split("max_clients is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(said.contains("instead of 10000") && said.contains("256 files"), "{said}");
    assert!((60..128).contains(&admitted), "{admitted}");
    let mut wires = crowd(&proxy, 400);
    assert_eq!(wires.len(), admitted);

    // Each may have a connection of its own.
    for wire in &mut wires {
        assert_eq!(wire.cmd("MULTI"), "+OK\r\n");
    }
    // While nobody else gets in, all that the proxy does itself goes on, also over new connections.
    assert_eq!(Wire::connect(proxy.port).rest().unwrap(), TOO_MANY);
    Wire::connect(redis.port).cmd("CLIENT KILL TYPE pubsub");
    let mut admins: Vec<_> =
        (0..16).map(|_| std::net::TcpStream::connect(("127.0.0.1", proxy.admin))).collect();
    admins.pop();
    eventually("the feed is back", || (proxy.http("GET", "/readyz", &[], "").0 == 200).then_some(()));
    assert_eq!(proxy.metric("rescind_clients"), admitted as f64);
    assert!(proxy.metric("process_open_fds") <= 256.0);
    assert_eq!(wires[0].cmd("DISCARD"), "+OK\r\n");
    assert_eq!(wires[0].cmd("SET app:1:blog_posts_1 v"), "+OK\r\n");
    assert_eq!(wires[0].cmd("SET app:1:model:Post:7 1"), "+OK\r\n");
    assert_eq!(Wire::connect(redis.port).cmd("EXISTS app:1:blog_posts_1"), ":0\r\n");
    assert!(!proxy.log().contains("could not be accepted"), "{}", proxy.log());

    // A place that is given back is taken by the next one.
    drop(wires);
    eventually("there is room again", || {
        let mut wire = Wire::connect(proxy.port);
        wire.send(&encode(&["PING"]));
        wire.reply().is_ok_and(|reply| reply == b"+PONG\r\n").then_some(())
    });
}

#[test]
fn replies_to_slow_readers_take_no_descriptor_that_is_needed() {
    let redis = Redis::start();
    let proxy = limited(&redis, &format!("[upstream]\nmax_pinned = 1\n{RULES}"), 128, 128);
    let mut wires = crowd(&proxy, 200);
    assert!(wires.len() > 50, "{}", wires.len());
    let mut direct = Wire::connect(redis.port);
    direct.send(&encode(&["SET", "big", &"x".repeat(4 << 20)]));
    direct.reply().unwrap();
    for wire in &mut wires {
        wire.send("GET big\r\n".repeat(5).as_bytes());
    }
    // In files as long as there are places for them, then in memory.
    eventually("there is no place left", || proxy.log().contains("too many files are open").then_some(()));
    assert!(proxy.metric("process_open_fds") <= 128.0 - 16.0);
    for wire in &mut wires {
        for _ in 0..5 {
            assert_eq!(wire.reply().unwrap().len(), (4 << 20) + 12);
        }
    }
}

#[test]
fn too_few_for_the_proxy_itself_are_one_line_and_a_failure() {
    let folder = Folder::new();
    let config = folder.write("proxy.toml", RULES);
    let free = || format!("127.0.0.1:{}", free_port());
    // Where it goes on all the same, that is not for long.
    let done = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -n 40 && exec timeout 10 \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_rescind"),
            "--config",
        ])
        .arg(&config)
        .args(["--listen", &free(), "--admin", &free(), "--upstream", "redis://127.0.0.1:1"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!((done.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("only 40 files may be open (ulimit -n)"), "{error}");
}
