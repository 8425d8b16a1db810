//! What the journal asks of the disk, seen from the disk: the proxy runs with an `fdatasync` of the test's own.

use std::process::Command;
use std::time::Duration;

use crate::support::{Client, Folder, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "app:1:model:Post:7";
/// How long the disk is held.
const HELD: Duration = Duration::from_millis(200);

/// See `disk.c`.
struct Disk(Folder);

impl Disk {
    fn new() -> Self {
        let folder = Folder::new();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disk.c");
        // What links Rust programs compiles C as well.
        let mut compiler = Command::new("cc");
        let built = compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.0.join("disk.so")).arg(source);
        assert!(built.status().expect("cc on the PATH").success());
        Self(folder)
    }

    fn proxy(&self, redis: &Redis, rules: &str) -> Proxy {
        let (folder, library) =
            (self.0.0.display().to_string(), self.0.0.join("disk.so").display().to_string());
        let variables = [("LD_PRELOAD", &*library), ("RESCIND_TEST_DISK", &*folder)];
        let url = format!("redis://127.0.0.1:{}", redis.port);
        let proxy = Proxy::launch_with(&url, rules, &[], &variables);
        proxy.ready();
        proxy
    }

    fn set(&self, what: &str) {
        self.0.write(what, "");
    }

    fn unset(&self, what: &str) {
        std::fs::remove_file(self.0.0.join(what)).unwrap();
    }

    fn count(&self, what: &str) -> u64 {
        std::fs::metadata(self.0.0.join(what)).map_or(0, |file| file.len())
    }

    fn somebody_waits(&self) {
        let waits = || (self.count("begun") > self.count("done")).then_some(());
        eventually("somebody waits for the disk", waits);
    }
}

fn fill(direct: &mut Client) {
    assert_eq!(direct.cmd(&format!("SET {KEY} cached")), "+OK\r\n");
}

/// Microseconds of the latest invalidation: all of it, and the part of each phase.
fn times(log: &[String]) -> (u64, u64) {
    let after = |name: &str| log.iter().position(|text| text == name).map(|at| &log[at + 1]);
    let journal = after("journal").unwrap().parse().unwrap();
    let phases = ["barrier", "delete"].map(|name| after(name).unwrap().parse::<u64>().unwrap());
    (journal, journal + phases.iter().sum::<u64>())
}

#[test]
fn nothing_that_invalidates_is_sent_or_done_before_the_disk_has_it_and_the_log_says_how_long_that_took() {
    let (redis, disk) = (Redis::start(), Disk::new());
    let proxy = disk.proxy(&redis, RULES);
    let (mut direct, mut client) = (redis.client(), proxy.client());
    let mut subscriber = redis.client();
    subscriber.cmd("SUBSCRIBE rescind:invalidate");
    let set = encode(&["SET", TRIGGER, "1"]);
    let invalidate = || {
        let headers = [("Content-Type", "application/json")];
        assert_eq!(proxy.http("POST", "/api/invalidate", &headers, "{\"tags\": [\"Post\"]}").0, 200);
    };
    let ways = [
        ("SET", set.clone()),
        ("EXEC", [encode(&["MULTI"]), set.clone(), encode(&["EXEC"])].concat()),
        ("PUBLISH", encode(&["PUBLISH", "rescind:invalidate", "Post"])),
        ("TAG.INVALIDATE", encode(&["TAG.INVALIDATE", "Post"])),
        ("pipeline", [set.clone(), encode(&["SET", "app:1:model:Post:8", "1"])].concat()),
        ("HTTP", vec![]),
    ];
    for (number, (way, requests)) in ways.iter().enumerate() {
        // Not past the proxy: what that fires is done at some time.
        client.cmd(&format!("DEL {TRIGGER}"));
        fill(&mut direct);
        disk.set("held");
        std::thread::scope(|scope| {
            if requests.is_empty() {
                scope.spawn(invalidate);
            }
            client.send(requests);
            disk.somebody_waits();
            std::thread::sleep(HELD);
            assert_eq!(direct.cmd(&format!("EXISTS {TRIGGER} {KEY}")), ":1\r\n", "{way}");
            let pong = subscriber.cmd("PING");
            assert!(pong.contains("pong"), "{way}: {pong}");
            disk.unset("held");
        });
        let replies = match *way {
            "EXEC" => 3,
            "pipeline" => 2,
            "HTTP" => 0,
            _ => 1,
        };
        for _ in 0..replies {
            let reply = client.reply();
            assert!(!reply.starts_with('-'), "{way}: {reply}");
        }
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{way}");
        if *way == "PUBLISH" {
            assert!(subscriber.reply().contains("Post"));
        }
        let log = client.list("TAG.LOG 1");
        let ((journal, phases), held) = (times(&log), HELD.as_micros() as u64);
        assert!(journal >= held, "{way}: {log:?}");
        // Each phase in whole microseconds.
        let duration: u64 =
            log.iter().filter_map(|text| text.parse().ok()).find(|time| phases.abs_diff(*time) <= 3).unwrap();
        assert!(duration >= held);
        let seconds = proxy.metric("rescind_fanout_duration_seconds_sum");
        assert!(seconds >= HELD.as_secs_f64() * (number + 1) as f64, "{way}: {seconds}");
        let (_, json) = proxy.http("GET", "/api/log?n=1", &[], "");
        assert!(json.contains(&format!("\"journal\":{journal}")), "{way}: {json}");
        let line = format!("journal_us={journal}");
        eventually("the log says so", || proxy.log().contains(&line).then_some(()));
    }
}

#[test]
fn what_the_disk_does_not_take_is_refused_until_it_does() {
    let (redis, disk) = (Redis::start(), Disk::new());
    let proxy = disk.proxy(&redis, RULES);
    let (mut direct, mut client) = (redis.client(), proxy.client());
    fill(&mut direct);
    disk.set("broken");
    let refused = "-ERR the journal cannot be written: Input/output error\r\n";
    assert_eq!(client.cmd(&format!("SET {TRIGGER} 1")), refused);
    assert_eq!(client.cmd("TAG.INVALIDATE Post"), refused);
    assert_eq!(direct.cmd(&format!("EXISTS {TRIGGER} {KEY}")), ":1\r\n");
    disk.unset("broken");
    assert_eq!(client.cmd(&format!("SET {TRIGGER} 1")), "+OK\r\n");
    assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n");
}

#[test]
fn once_a_second_or_never_nobody_waits_for_the_disk() {
    for (fsync, asks) in [("everysec", true), ("never", false)] {
        let (redis, disk) = (Redis::start(), Disk::new());
        let proxy = disk.proxy(&redis, &format!("[journal]\nfsync = \"{fsync}\"\n{RULES}"));
        let (mut direct, mut client) = (redis.client(), proxy.client());
        fill(&mut direct);
        let before = disk.count("begun");
        assert_eq!(client.cmd(&format!("SET {TRIGGER} 1")), "+OK\r\n");
        if asks {
            eventually("the disk is asked", || (disk.count("begun") > before).then_some(()));
        } else {
            // As long as it would take otherwise.
            std::thread::sleep(Duration::from_millis(1500));
            assert_eq!(disk.count("begun"), before);
        }
    }
}

#[test]
fn what_has_taken_effect_is_in_doubt_while_the_disk_does_not_take_it() {
    let (redis, disk) = (Redis::start(), Disk::new());
    let proxy = disk.proxy(&redis, RULES);
    let (mut direct, mut client, mut reader) = (redis.client(), proxy.client(), proxy.client());
    fill(&mut direct);
    direct.cmd("RPUSH list a");
    disk.set("held");
    // Of a command that blocks it is known only afterwards whether it has written.
    client.request(&["BLMOVE", "list", TRIGGER, "LEFT", "LEFT", "1"]);
    disk.somebody_waits();
    assert_eq!(reader.cmd("LLEN list"), ":0\r\n");
    eventually("reads are misses", || (reader.cmd(&format!("GET {KEY}")) == "$-1\r\n").then_some(()));
    assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n");
    disk.unset("held");
    assert_eq!(client.reply(), "$1\r\na\r\n");
    assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n");
}

#[test]
fn what_was_noted_for_a_request_that_is_refused_is_not_taken_for_the_next_one() {
    const RULES: &str = r#"
        [tags]
        X = ["counter"]
        Y = ["y:*"]
        [[trigger]]
        keys = ["t:{n}"]
        invalidate = ["X"]
        [[trigger]]
        keys = ["counter"]
        invalidate = ["Y"]
    "#;
    let mut redis = Redis::with(&["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no"]);
    let disk = Disk::new();
    let proxy = disk.proxy(&redis, RULES);
    redis.client().cmd("SET counter 1");
    redis.client().cmd("SAVE");
    let (mut client, mut other) = (proxy.client(), proxy.client());
    assert_eq!(client.cmd("SET t:1 1"), "+OK\r\n");
    disk.set("held");
    client.request(&["INCR", "counter"]);
    disk.somebody_waits();
    // What depends on X is in doubt now, until it has been deleted again; who needs to know it is refused after ten seconds.
    redis.kill();
    redis.restart();
    redis.client().cmd("ACL SETUSER default -unlink");
    eventually("Redis is reached", || {
        let reply = other.cmd("GET t:1");
        if reply.starts_with('-') {
            other = proxy.client();
        }
        (reply == "$-1\r\n").then_some(())
    });
    disk.unset("held");
    let reply = String::from_utf8(client.raw()).unwrap();
    assert!(reply.starts_with("-TRYAGAIN"), "{reply}");
    redis.client().cmd("ACL SETUSER default +unlink");
    let none = || other.cmd("TAG.INFO").contains("journal_pending:0").then_some(());
    eventually("nothing is pending", none);
}
