//! Guarantees 1, 3 and 4 for triggers that a client sends one behind the other without waiting: they are taken together, and
//! must not come to less than one by one.

use std::io::Write;

use crate::support::{Client, Proxy, RULES, Redis, eventually};
use crate::triggers::World;

const TRIGGERS: usize = 100;

fn trigger(number: usize) -> String {
    format!("app:1:model:Tag{number}:{number}")
}

/// Depends on that one trigger only.
fn dependent(number: usize) -> String {
    format!("app:1:post:{number}:page")
}

/// Sends the requests, a line each, in one piece.
fn send(client: &mut Client, lines: &[String]) {
    client.send(&encoded(lines));
}

fn encoded(lines: &[String]) -> Vec<u8> {
    let requests = lines.iter().map(|line| crate::support::encode(&line.split(' ').collect::<Vec<_>>()));
    requests.collect::<Vec<_>>().concat()
}

/// Stops a thread, also if the test fails.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

fn fill(redis: &Redis, numbers: impl Iterator<Item = usize>) {
    let mut direct = redis.client();
    numbers.for_each(|number| assert_eq!(direct.cmd(&format!("SET {} old", dependent(number))), "+OK\r\n"));
}

fn exist(direct: &mut Client, numbers: impl Iterator<Item = usize>) -> Vec<usize> {
    numbers.filter(|number| direct.cmd(&format!("EXISTS {}", dependent(*number))) == ":1\r\n").collect()
}

/// A number of TAG.INFO's.
fn info(client: &mut Client, name: &str) -> usize {
    let info = client.list("TAG.INFO").concat();
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn all_of_a_row_is_done_when_its_replies_come() {
    let mut w = World::new(RULES);
    fill(&w.redis, 0..TRIGGERS + 1);
    w.settle();
    let (synced, invalidations) = (info(&mut w.client, "journal_fsyncs"), w.invalidations());
    let writes = (0..TRIGGERS).map(|number| format!("SET {} 1", trigger(number)));
    let reads = (0..TRIGGERS + 1).map(|number| format!("GET {}", dependent(number)));
    let lines: Vec<String> = writes.chain(reads).collect();
    send(&mut w.client, &lines);
    // However few of them have been taken together, the last one is not answered before all is done.
    for number in 0..TRIGGERS {
        assert_eq!(w.client.reply(), "+OK\r\n", "{number}");
        if number % 10 == 0 || number + 1 == TRIGGERS {
            assert!(exist(&mut w.direct, 0..=number).is_empty(), "{number} was answered too early");
        }
    }
    for number in 0..TRIGGERS {
        assert_eq!(w.client.reply(), "$-1\r\n", "{number}");
    }
    assert_eq!(w.client.reply(), "$3\r\nold\r\n", "too much was deleted");
    w.settle();
    assert_eq!(w.invalidations() - invalidations, TRIGGERS as f64, "each counts");
    let log = w.client.cmd(&format!("TAG.LOG {TRIGGERS}"));
    (0..TRIGGERS).for_each(|number| assert!(log.contains(&format!("SET {}", trigger(number))), "{number}"));
    let synced = info(&mut w.client, "journal_fsyncs") - synced;
    assert!(synced < TRIGGERS / 2, "{synced} fsyncs");
}

#[test]
fn what_does_not_fire_in_a_row_does_no_harm() {
    let mut w = World::new(RULES);
    w.direct.cmd(&format!("SET {} text", trigger(1)));
    w.direct.cmd(&format!("SET {} text", trigger(3)));
    w.settle();
    fill(&w.redis, 0..7);
    let invalidations = w.invalidations();
    let [t0, t1, t2, t3, t4, t5, t6] = [0, 1, 2, 3, 4, 5, 6].map(trigger);
    let lines = [
        format!("SET {t0} 1"),
        format!("HSET {t1} f v"),
        format!("SETNX {t2} 1"),
        format!("SETNX {t3} 1"),
        format!("LPUSHX {t4} x"),
        format!("SET {t5} 1 XX"),
        format!("INCR {t6}"),
        format!("HSET {t1} f v"),
    ];
    send(&mut w.client, &lines);
    let replies: Vec<String> = lines.iter().map(|_| w.client.reply()).collect();
    assert_eq!(replies[0], "+OK\r\n");
    assert!(replies[1].starts_with("-WRONGTYPE"), "{}", replies[1]);
    assert_eq!(replies[2..7], [":1\r\n", ":0\r\n", ":0\r\n", "$-1\r\n", ":1\r\n"].map(str::to_owned));
    assert!(replies[7].starts_with("-WRONGTYPE"), "{}", replies[7]);
    assert_eq!(exist(&mut w.direct, 0..7), [1, 3, 4, 5]);
    w.settle();
    assert_eq!(w.invalidations() - invalidations, 3.0);
    // Nor is one taken for the proxy's own afterwards that somebody else writes.
    w.direct.cmd(&format!("DEL {t3}"));
    let mut direct = w.redis.client();
    eventually("a direct write", || exist(&mut direct, 3..4).is_empty().then_some(()));
}

/// Keys that are triggers and depend on others.
const CHAIN: &str = r#"
[tags]
A = ["a:*"]
B = ["b:*"]
[[trigger]]
keys = ["src:{n}"]
invalidate = ["A"]
[[trigger]]
keys = ["a:{n}"]
invalidate = ["B"]
[[trigger]]
keys = ["l:{n}"]
invalidate = ["C"]
"#;

#[test]
fn what_is_written_behind_a_trigger_outlives_it() {
    let mut w = World::new(CHAIN);
    w.direct.cmd("SET b:1 old");
    w.settle();
    send(
        &mut w.client,
        &["SET src:1 1", "SET src:2 1", "SET a:1 new", "SET src:3 1"].map(str::to_owned)[..3],
    );
    (0..3).for_each(|_| assert_eq!(w.client.reply(), "+OK\r\n"));
    assert!(w.is_there("a:1"), "deleted by a trigger before it");
    assert!(!w.is_there("b:1"));
    send(&mut w.client, &["SET a:1 new", "SET src:1 1"].map(str::to_owned));
    (0..2).for_each(|_| assert_eq!(w.client.reply(), "+OK\r\n"));
    assert!(!w.is_there("a:1"), "a trigger behind it");
    // Likewise where labels say so.
    w.client.cmd("TAG.WITH 1 A SET l:1 1");
    send(&mut w.client, &["SET src:1 1", "APPEND l:1 2"].map(str::to_owned));
    assert_eq!([w.client.reply(), w.client.reply()], ["+OK\r\n", ":1\r\n"]);
    assert_eq!(w.direct.cmd("GET l:1"), "$1\r\n2\r\n");
}

/// Triggers that name commands.
const COMMANDS: &str = r#"
[tags]
A = ["a:*"]
B = ["b:*"]
[[trigger]]
keys = ["src:{n}"]
invalidate = ["A"]
[[trigger]]
keys = ["src:{n}"]
commands = ["DEL"]
invalidate = ["B"]
"#;

#[test]
fn a_key_twice_in_a_row_fires_what_its_commands_say() {
    let mut w = World::new(COMMANDS);
    w.fill(&["a:1", "b:1"]);
    for _ in 0..20 {
        send(&mut w.client, &["SET src:1 1", "SET src:1 2", "SET src:1 3"].map(str::to_owned));
        (0..3).for_each(|_| assert_eq!(w.client.reply(), "+OK\r\n"));
    }
    w.settle();
    assert!(!w.is_there("a:1") && w.is_there("b:1"));
}

#[test]
fn a_crash_in_the_midst_of_a_row_loses_nothing() {
    for place in
        ["intent noted", "trigger answered", "fan-out begun", "announced", "one deleted", "all deleted"]
    {
        let redis = Redis::start();
        let mut proxy = Proxy::start(&redis, RULES);
        proxy.kill();
        proxy.start_again(&[("RESCIND_DIE_AT", place)]);
        proxy.ready();
        fill(&redis, 0..10);
        let mut writer = proxy.client();
        send(&mut writer, &(0..9).map(|number| format!("SET {} 1", trigger(number))).collect::<Vec<_>>());
        let answered = writer.rest();
        assert!(answered.is_empty(), "{place}: {}", String::from_utf8_lossy(&answered));
        proxy.wait();
        let mut direct = redis.client();
        let written = (0..9).filter(|number| direct.cmd(&format!("EXISTS {}", trigger(*number))) == ":1\r\n");
        let written = written.count();
        assert_eq!(written, if place == "intent noted" { 0 } else { 9 }, "{place}");
        proxy.start_again(&[]);
        let mut reader = proxy.client();
        for number in 0..9 {
            assert_eq!(reader.cmd(&format!("GET {}", dependent(number))), "$-1\r\n", "{place} {number}");
        }
        assert_eq!(reader.cmd(&format!("GET {}", dependent(9))), "$3\r\nold\r\n", "{place}");
        eventually("it is finished", || exist(&mut direct, 0..9).is_empty().then_some(()));
        eventually("nothing is pending", || (proxy.metric("rescind_journal_pending") == 0.0).then_some(()));
    }
}

#[test]
fn a_row_that_cannot_be_noted_is_refused_one_by_one() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let pid = proxy.pid().to_string();
    let limit = |bytes: &str| {
        let limit = format!("--fsize={bytes}");
        let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.unwrap().success());
    };
    fill(&redis, 0..5);
    let mut client = proxy.client();
    limit("1:unlimited");
    let lines: Vec<String> = (0..5).map(|number| format!("SET {} 1", trigger(number))).collect();
    send(&mut client, &lines);
    for number in 0..5 {
        let reply = client.reply();
        assert!(reply.starts_with("-ERR the journal cannot be written"), "{number}: {reply}");
    }
    let mut direct = redis.client();
    assert_eq!(direct.cmd("KEYS app:1:model:*"), "*0\r\n");
    assert_eq!(exist(&mut direct, 0..5), [0, 1, 2, 3, 4]);
    limit("unlimited");
    send(&mut client, &lines);
    (0..5).for_each(|number| assert_eq!(client.reply(), "+OK\r\n", "{number}"));
    assert!(exist(&mut direct, 0..5).is_empty());
    eventually("nothing is pending", || (proxy.metric("rescind_journal_pending") == 0.0).then_some(()));
}

#[test]
fn a_client_that_hangs_up_leaves_nothing_undone() {
    let mut w = World::new(RULES);
    for round in 0..20 {
        fill(&w.redis, 0..30);
        let mut writer = w.proxy.client();
        send(
            &mut writer,
            &(0..30).map(|number| format!("SET {} {round}", trigger(number))).collect::<Vec<_>>(),
        );
        if round % 2 == 0 {
            let _ = writer.reply();
        }
        drop(writer);
        let written = |direct: &mut Client| {
            let current = |number: &usize| {
                direct.cmd(&format!("GET {}", trigger(*number))).ends_with(&format!("\r\n{round}\r\n"))
            };
            (0..30).filter(current).collect::<Vec<_>>()
        };
        // What has taken effect has been fanned out, however much of it that is.
        let mut direct = w.redis.client();
        eventually("what was written is invalidated", || {
            let written = written(&mut direct);
            exist(&mut direct, written.into_iter()).is_empty().then_some(())
        });
        w.settle();
    }
}

/// The same without a trigger for the keys of the rows.
fn without_triggers() -> String {
    RULES.replace("model:{model}:{pk}", "other:{model}:{pk}")
}

#[test]
fn what_disturbs_a_row_leaves_nothing_behind() {
    let mut w = World::new(RULES);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let rules = [without_triggers(), RULES.to_owned()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut killer = w.redis.client();
            for round in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                w.proxy.folder.write("proxy.toml", &rules[round % 2]);
                w.proxy.signal("-HUP");
                if round % 5 == 4 {
                    killer.cmd("CLIENT KILL TYPE normal");
                }
                std::thread::sleep(std::time::Duration::from_millis(fastrand::u64(0..10)));
            }
        });
        let _stop = Stop(&stop);
        let mut client = w.proxy.client();
        for round in 0..400 {
            let writes = (0..20).map(|number| format!("SET {} {round}", trigger(number)));
            let lines: Vec<String> = writes.chain(["ECHO end".to_owned()]).collect();
            // All of it, or the connection is closed, perhaps before it was written.
            let is_sent = client.stream.write_all(&encoded(&lines)).is_ok();
            if !(is_sent && (0..lines.len()).all(|_| client.try_raw().is_some())) {
                client = w.proxy.client();
            }
        }
    });
    w.proxy.folder.write("proxy.toml", RULES);
    w.proxy.signal("-HUP");
    w.proxy.ready();
    let mut client = w.proxy.client();
    eventually("nothing is pending", || (info(&mut client, "journal_pending") == 0).then_some(()));
    w.direct = w.redis.client();
    eventually("the rules are the old ones", || {
        fill(&w.redis, 0..20);
        let mut client = w.proxy.client();
        send(&mut client, &(0..20).map(|number| format!("SET {} 1", trigger(number))).collect::<Vec<_>>());
        (0..20).for_each(|number| assert_eq!(client.reply(), "+OK\r\n", "{number}"));
        exist(&mut w.direct, 0..20).is_empty().then_some(())
    });
}
