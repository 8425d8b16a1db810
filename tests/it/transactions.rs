//! Transactions that arrive in one piece share a connection, and still nothing comes in between.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, encode, eventually, texts};

const KEY: &str = "app:1:home_page_data_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

/// MULTI, these requests and EXEC, as most clients send them.
fn whole(requests: &[Vec<u8>]) -> Vec<u8> {
    [encode(&["MULTI"]), requests.concat(), encode(&["EXEC"])].concat()
}

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn nothing_comes_between_the_commands_of_a_transaction() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = Wire::connect(proxy.port);
            while !over.load(Ordering::Relaxed) {
                noise.cmd("SET k noise");
            }
        });
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                let port = proxy.port;
                scope.spawn(move || {
                    let mut wire = Wire::connect(port);
                    wire.cmd("PING");
                    for round in 0..300 {
                        let value = format!("{writer}-{round}");
                        let bytes = whole(&[encode(&["SET", "k", &value]), encode(&["GET", "k"])]);
                        // Twice, so that one waits behind the other.
                        wire.send(&[bytes.clone(), bytes].concat());
                        for _ in 0..2 {
                            let replies: Vec<String> = (0..4).map(|_| wire.text()).collect();
                            let own = format!("*2\r\n+OK\r\n${}\r\n{value}\r\n", value.len());
                            assert_eq!(replies, ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", own.as_str()]);
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert_eq!(proxy.metric("rescind_upstream_connections{mode=\"pinned\"}"), 0.0);
}

#[test]
fn what_would_stay_behind_on_a_shared_connection_is_kept_off_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut other) = (Wire::connect(proxy.port), Wire::connect(proxy.port));
    client.cmd("PING");
    other.cmd("SET k mine");
    for line in ["SELECT 3", "SUBSCRIBE c", "CLIENT SETNAME x", "BLPOP q 0", "CLIENT TRACKING ON", "WATCH k"]
    {
        let mut client = Wire::connect(proxy.port);
        client.send(&whole(&[words(line), encode(&["GET", "k"])]));
        (0..4).for_each(|_| _ = client.text());
        assert_eq!(other.cmd("GET k"), "$4\r\nmine\r\n", "{line}");
        assert_eq!(other.cmd("CLIENT GETNAME"), "$-1\r\n", "{line}");
    }
    // Half of one, and its client goes: the next ones do not find themselves inside it.
    let half = [encode(&["MULTI"]), encode(&["SET", "k", "never"])].concat();
    client.send(&half);
    (0..2).for_each(|_| _ = client.text());
    drop(client);
    assert_eq!(other.cmd("GET k"), "$4\r\nmine\r\n");
    assert_eq!(Wire::connect(proxy.port).cmd("GET k"), "$4\r\nmine\r\n");
}

#[test]
fn a_whole_transaction_fires_triggers_before_it_is_answered() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (Wire::connect(proxy.port), Wire::connect(redis.port));
    for round in 0..50 {
        direct.cmd(&format!("SET app:1:blog_posts_{round} v"));
        client.send(&whole(&[words(TRIGGER), encode(&["GET", "none"])]));
        let replies: Vec<String> = (0..4).map(|_| client.text()).collect();
        assert_eq!(replies[3], "*2\r\n+OK\r\n$-1\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS app:1:blog_posts_{round}")), ":0\r\n");
    }
    eventually("counted", || {
        (proxy.metric("rescind_invalidations_total{trigger=\"model saved\"}") == 50.0).then_some(())
    });
}

#[test]
fn what_a_transaction_would_have_done_is_forgotten_with_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = Wire::connect(proxy.port);
    for end in ["RESET", "DISCARD"] {
        for line in ["MULTI", "SWAPDB 0 1", "TAG.WITH 1 L SET k v", end] {
            assert!(!client.cmd(line).starts_with('-'), "{line}");
        }
        for line in ["MULTI", "SET k v", "EXEC"] {
            client.cmd(line);
        }
        // Behind whatever the control thread has been asked for.
        assert_eq!(client.cmd("TAG.INVALIDATE L"), ":0\r\n", "{end}");
        eventually("complete", || (proxy.metric("rescind_index_complete") == 1.0).then_some(()));
        assert!(!proxy.log().contains("SWAPDB"), "{end}: the index was rebuilt");
    }
}

/// What is known about a key whose values are the numbers of the rounds in which they were written.
#[derive(Default)]
struct Rounds {
    /// The latest one whose value somebody has been told is not there.
    gone: AtomicU32,
    /// The latest one whose value each reader has seen.
    seen: [AtomicU32; 4],
    /// Transactions in whose midst the doubt began.
    amidst: AtomicU32,
    over: AtomicBool,
}

/// Reads the key in transactions, each sent in one piece, until it is over.
fn read_in_transactions(port: u16, reader: usize, rounds: &Rounds) {
    let mut wire = Wire::connect(port);
    let get = words(&format!("GET {KEY}"));
    let counter = format!("n{reader}");
    let mut requests = vec![encode(&["INCR", &counter])];
    requests.extend(std::iter::repeat_n(get, 20));
    requests.extend([words(&format!("GETEX {KEY}")), encode(&["GET", &counter])]);
    let bytes = whole(&requests);
    let mut count = 0;
    while !rounds.over.load(Ordering::SeqCst) {
        let gone = rounds.gone.load(Ordering::SeqCst);
        wire.send(&bytes);
        count += 1;
        assert_eq!(wire.text(), "+OK\r\n");
        requests.iter().for_each(|_| assert_eq!(wire.text(), "+QUEUED\r\n"));
        let replies = texts(&wire.reply().unwrap());
        assert_eq!(replies.len(), 23, "{replies:?}");
        assert_eq!([&replies[0], &replies[22]], [&count.to_string(); 2], "once, and as a whole: {replies:?}");
        let (missed, seen): (Vec<_>, Vec<_>) = replies[1..22].iter().partition(|value| *value == "(nil)");
        let seen: Vec<u32> = seen.into_iter().map(|value| value.parse().unwrap()).collect();
        assert!(seen.iter().all(|round| *round > gone), "{gone} was known to be gone: {replies:?}");
        rounds.seen[reader].fetch_max(seen.iter().copied().max().unwrap_or(0), Ordering::SeqCst);
        rounds.amidst.fetch_add(u32::from(!missed.is_empty() && !seen.is_empty()), Ordering::SeqCst);
    }
}

#[test]
fn doubt_about_the_keys_of_a_whole_transaction_may_begin_at_any_moment() {
    let redis = Redis::start();
    redis.client().cmd("ACL SETUSER own on >pw ~* &* +@all");
    let config = format!("[listen]\nworkers = 1\n{RULES}");
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), &config, &[]);
    proxy.ready();
    let rounds = Rounds::default();
    let drive = || {
        let [mut writer, mut reader, mut late] = [(); 3].map(|()| Wire::connect(proxy.port));
        let mut direct = redis.client();
        for round in 1..=40 {
            direct.cmd(&format!("SET {KEY} {round}"));
            eventually("all read it", || {
                rounds.seen.iter().all(|seen| seen.load(Ordering::SeqCst) == round).then_some(())
            });
            // What the proxy may not delete is in doubt until it may.
            direct.cmd("ACL SETUSER own -unlink");
            writer.send(&words(TRIGGER));
            eventually("it is in doubt", || (reader.cmd(&format!("GET {KEY}")) == "$-1\r\n").then_some(()));
            rounds.gone.store(round, Ordering::SeqCst);
            // What cannot be answered with a miss waits, also in a transaction, and others do not wait for it.
            late.send(&whole(&[words(&format!("GET {KEY}")), words(&format!("GETEX {KEY}"))]));
            let queued = [(); 3].map(|()| late.text());
            assert_eq!(queued, ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n"]);
            assert_eq!(reader.cmd("PING"), "+PONG\r\n");
            assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n");
            direct.cmd("ACL SETUSER own +unlink");
            assert_eq!(writer.text(), "+OK\r\n");
            assert_eq!(late.text(), "*2\r\n$-1\r\n$-1\r\n");
            assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n");
        }
    };
    thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| {
            // On the same connection: it never finds itself inside somebody's transaction.
            let mut noise = Wire::connect(proxy.port);
            while !rounds.over.load(Ordering::SeqCst) {
                assert_eq!(noise.cmd("SET k noise"), "+OK\r\n");
            }
        })];
        for reader in 0..rounds.seen.len() {
            let (port, rounds) = (proxy.port, &rounds);
            threads.push(scope.spawn(move || read_in_transactions(port, reader, rounds)));
        }
        let driven = scope.spawn(drive).join();
        rounds.over.store(true, Ordering::SeqCst);
        let results: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        results.into_iter().chain([driven]).for_each(|result| result.unwrap());
    });
    assert!(rounds.amidst.load(Ordering::SeqCst) > 0, "it has never begun in the midst of one");
}
