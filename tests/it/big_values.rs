//! Big values and many replies: they pass through whole, little of them stays in memory, and nobody waits for a
//! client that reads late.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::differential::Wire;
use crate::interleaving::Random;
use crate::support::{PATIENCE, Proxy, RULES, Redis, encode};

const MB: usize = 1 << 20;

fn url(redis: &Redis) -> String {
    format!("redis://127.0.0.1:{}", redis.port)
}

/// Bytes that repeat nowhere, so that nothing can be lost or change places unseen.
fn value(size: usize) -> Vec<u8> {
    let mut random = Random(size as u64);
    (0..size / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

/// FNV-1a, as far as it has come.
struct Checksum(u64);

impl Checksum {
    fn of(bytes: &[u8]) -> u64 {
        let mut sum = Self(0xcbf2_9ce4_8422_2325);
        sum.add(bytes);
        sum.0
    }

    fn add(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..word.len()].copy_from_slice(word);
            self.0 = (self.0 ^ u64::from_le_bytes(eight)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Runs `work` while another client is served; how much resident memory grew at most, meanwhile.
fn grown_while(proxy: &Proxy, work: impl FnOnce()) -> usize {
    let before = proxy.rss();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut neighbour, mut most) = (Wire::connect(proxy.port), before);
            while !done.load(Ordering::Relaxed) {
                assert_eq!(neighbour.cmd("PING"), "+PONG\r\n");
                assert_eq!(neighbour.cmd("GET small"), "$1\r\nv\r\n");
                most = most.max(proxy.rss());
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let most = watch.join().unwrap();
        finished.unwrap();
        (most - before) as usize
    })
}

/// A proxy that has been warmed up, so that growth is not what any traffic costs.
fn world(config: &str) -> (Redis, Proxy) {
    let redis = Redis::start();
    let proxy = Proxy::configured(&redis, config);
    let mut warm = Wire::connect(proxy.port);
    for line in ["SET small v", "GET small", "MULTI", "GET small", "EXEC", "SET app:1:model:Tool:1 x"] {
        warm.cmd(line);
    }
    // The allocator keeps for a moment what the first big requests of all have moved.
    let some = "x".repeat(8 * MB);
    for _ in 0..2 {
        assert_eq!(warm.call(&["SET", "some", &some]), "+OK\r\n");
        assert_eq!(warm.cmd("GET some"), format!("${}\r\n{some}\r\n", some.len()));
    }
    (redis, proxy)
}

/// The payload of the bulk string that comes next, from a client that starts to read late, and then reads all.
fn late_bulk(wire: &mut Wire, size: usize) -> u64 {
    std::thread::sleep(Duration::from_millis(400));
    let head = format!("${size}\r\n");
    let mut got = vec![0; head.len()];
    wire.stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), head);
    let mut sum = Checksum(0xcbf2_9ce4_8422_2325);
    let mut portion = vec![0; MB];
    for _ in 0..size / MB {
        wire.stream.read_exact(&mut portion).unwrap();
        sum.add(&portion);
    }
    let mut end = [0; 2];
    wire.stream.read_exact(&mut end).unwrap();
    assert_eq!(&end, b"\r\n");
    sum.0
}

#[test]
fn sixty_four_megabytes_pass_in_both_directions() {
    let (redis, proxy) = world("[listen]\nworkers = 1");
    let value = value(64 * MB);
    let sum = Checksum::of(&value);
    let request = encode(&[b"SET".as_slice(), b"big", &value]);
    for prelude in [None, Some("WATCH k")] {
        let mut wire = Wire::connect(proxy.port);
        wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if let Some(prelude) = prelude {
            assert_eq!(wire.cmd(prelude), "+OK\r\n");
        }
        let grown = grown_while(&proxy, || {
            request.chunks(MB).for_each(|portion| wire.stream.write_all(portion).unwrap());
            assert_eq!(wire.text(), "+OK\r\n");
        });
        assert!(grown < 24 * MB, "SET after {prelude:?}: {} KB", grown / 1024);
        let grown = grown_while(&proxy, || {
            wire.send(b"GET big\r\n");
            assert_eq!(late_bulk(&mut wire, 64 * MB), sum, "{prelude:?}");
        });
        assert!(grown < 24 * MB, "GET after {prelude:?}: {} KB", grown / 1024);
        assert_eq!(wire.cmd("STRLEN big"), format!(":{}\r\n", 64 * MB));
    }
    let mut direct = Wire::connect(redis.port);
    direct.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    direct.send(b"GET big\r\n");
    assert_eq!(late_bulk(&mut direct, 64 * MB), sum, "as Redis has it");
}

/// The whole reply of EXEC is kept back until the dependents are gone.
#[test]
fn a_big_reply_that_waits_for_a_fan_out() {
    let (redis, proxy) = world("[listen]\nworkers = 1");
    let value = value(40 * MB);
    let sum = Checksum::of(&value);
    let mut direct = Wire::connect(redis.port);
    direct.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    direct.send(&encode(&[b"SET".as_slice(), b"big", &value]));
    assert_eq!(direct.text(), "+OK\r\n");
    let mut wire = Wire::connect(proxy.port);
    wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..3 {
        assert_eq!(direct.cmd("SET app:1:blog_posts_1 old"), "+OK\r\n");
        let grown = grown_while(&proxy, || {
            wire.send(b"MULTI\r\nSET app:1:model:Post:7 1\r\nGET big\r\nINCR n\r\nEXEC\r\n");
            for expected in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "+QUEUED\r\n"] {
                assert_eq!(wire.text(), expected);
            }
            let mut head = [0; 9];
            wire.stream.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"*3\r\n+OK\r\n");
            // The first byte of the reply says that the dependent is gone.
            assert_eq!(direct.cmd("EXISTS app:1:blog_posts_1"), ":0\r\n", "{round}");
            assert_eq!(late_bulk(&mut wire, 40 * MB), sum, "{round}");
            assert_eq!(wire.text(), format!(":{}\r\n", round + 1));
        });
        assert!(grown < 24 * MB, "round {round}: {} KB", grown / 1024);
    }
}

/// Sends everything before it reads anything, as many a client library does; the requests alone are more than the
/// buffers of the kernel take.
fn written_before_read<S: Read + Write>(mut stream: S, prelude: &str, count: usize) {
    let mut check = |sent: &[u8], expected: &[u8], times: usize| {
        (0..times).for_each(|_| stream.write_all(sent).unwrap());
        let mut got = vec![0; expected.len()];
        for number in 0..times {
            stream.read_exact(&mut got).unwrap();
            assert!(got == expected, "{prelude}: reply {number}: {:.99}", String::from_utf8_lossy(&got));
        }
    };
    if !prelude.is_empty() {
        check(format!("{prelude}\r\n").as_bytes(), b"+OK\r\n", 1);
    }
    let element = "e".repeat(500);
    let reply = format!("*8\r\n{}", format!("$500\r\n{element}\r\n").repeat(8));
    check(&encode(&["LRANGE", &"l".repeat(1000), "0", "7"]), reply.as_bytes(), count);
    check(b"PING\r\n", b"+PONG\r\n", 1);
}

#[test]
fn ten_thousand_requests_written_before_any_reply_is_read() {
    let redis = Redis::start();
    let rules = format!("[listen]\nworkers = 1\n{RULES}");
    let folder = crate::support::Folder::new();
    let socket = folder.0.join("socket");
    let listen = format!("unix:{}", socket.display());
    let proxy = Proxy::launch(&url(&redis), &rules, &["--listen", &listen]);
    proxy.ready();
    let mut direct = Wire::connect(redis.port);
    let element = "e".repeat(500);
    let key = "l".repeat(1000);
    let push: Vec<&str> = ["RPUSH", key.as_str()].into_iter().chain([element.as_str(); 8]).collect();
    assert_eq!(direct.call(&push), ":8\r\n");
    direct.cmd("SET small v");
    for (prelude, count) in [("", 10_000), ("WATCH k", 5_000)] {
        let tcp = Wire::connect(proxy.port).stream;
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_write_timeout(Some(PATIENCE)).unwrap();
        grown_while(&proxy, || written_before_read(tcp, prelude, count));
        let unix = UnixStream::connect(&socket).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        unix.set_write_timeout(Some(PATIENCE)).unwrap();
        grown_while(&proxy, || written_before_read(unix, prelude, count));
    }
}

#[test]
fn the_output_limit_cuts_who_asks_for_much_and_does_not_read() {
    let (redis, proxy) = world("[listen]\nworkers = 1\nclient_output_limit = \"1mb\"");
    let mut direct = Wire::connect(redis.port);
    direct.call(&["SET", "one", &"x".repeat(MB)]);
    let mut wire = Wire::connect(proxy.port);
    wire.send("GET one\r\n".repeat(32).as_bytes());
    let limit = "output limit reached";
    crate::support::eventually("it is cut", || proxy.log().contains(limit).then_some(()));
    let got = wire.rest().unwrap().len();
    assert!(got < 32 * (MB + 12), "{got} bytes arrived");
    // Whoever reads gets all, be it never so much.
    let mut reader = Wire::connect(proxy.port);
    for _ in 0..3 {
        reader.send("GET one\r\n".repeat(3).as_bytes());
        (0..3).for_each(|_| assert_eq!(reader.reply().unwrap().len(), MB + 12));
    }
    assert_eq!(proxy.log().matches(limit).count(), 1);
}

#[test]
fn one_reply_may_be_longer_than_the_output_limit() {
    let (redis, proxy) = world("[listen]\nworkers = 1\nclient_output_limit = \"1mb\"");
    let value = value(32 * MB);
    let sum = Checksum::of(&value);
    let mut direct = Wire::connect(redis.port);
    direct.send(&encode(&[b"SET".as_slice(), b"big", &value]));
    assert_eq!(direct.text(), "+OK\r\n");
    for prelude in ["", "WATCH k", "MULTI"] {
        let mut wire = Wire::connect(proxy.port);
        wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if !prelude.is_empty() {
            assert_eq!(wire.cmd(prelude), "+OK\r\n");
        }
        let grown = grown_while(&proxy, || {
            wire.send(b"GET big\r\n");
            if prelude == "MULTI" {
                assert_eq!(wire.text(), "+QUEUED\r\n");
                wire.send(b"EXEC\r\n");
                let mut head = [0; 4];
                wire.stream.read_exact(&mut head).unwrap();
                assert_eq!(&head, b"*1\r\n");
            }
            assert_eq!(late_bulk(&mut wire, 32 * MB), sum, "{prelude}");
        });
        assert!(grown < 24 * MB, "{prelude}: {} KB", grown / 1024);
        assert_eq!(wire.cmd("PING"), "+PONG\r\n", "{prelude}");
    }
}

#[test]
fn without_a_folder_for_temporary_files_replies_stay_in_memory() {
    let redis = Redis::start();
    let rules = format!("[listen]\nworkers = 1\n{RULES}");
    let missing = "/nonexistent/rescind-test";
    let proxy = Proxy::launch_with(&url(&redis), &rules, &[], &[("TMPDIR", missing)]);
    proxy.ready();
    let mut direct = Wire::connect(redis.port);
    let value = value(32 * MB);
    let sum = Checksum::of(&value);
    direct.send(&encode(&[b"SET".as_slice(), b"big", &value]));
    assert_eq!(direct.text(), "+OK\r\n");
    direct.cmd("SET small v");
    for _ in 0..2 {
        let mut wire = Wire::connect(proxy.port);
        wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..2 {
            grown_while(&proxy, || {
                wire.send(b"GET big\r\n");
                assert_eq!(late_bulk(&mut wire, 32 * MB), sum);
            });
        }
    }
    let log = proxy.log();
    assert_eq!(log.matches("no temporary file (TMPDIR)").count(), 1, "{log}");
}
