//! Transactions that arrive in one piece share a connection, and still nothing comes in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, encode, eventually};

/// MULTI, these requests and EXEC, as most clients send them.
fn whole(requests: &[Vec<u8>]) -> Vec<u8> {
    [encode(&["MULTI"]), requests.concat(), encode(&["EXEC"])].concat()
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
        client.send(&whole(&[encode(&line.split(' ').collect::<Vec<_>>()), encode(&["GET", "k"])]));
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
        client.send(&whole(&[encode(&["SET", "app:1:model:Post:7", "1"]), encode(&["GET", "none"])]));
        let replies: Vec<String> = (0..4).map(|_| client.text()).collect();
        assert_eq!(replies[3], "*2\r\n+OK\r\n$-1\r\n");
        assert_eq!(direct.cmd(&format!("EXISTS app:1:blog_posts_{round}")), ":0\r\n");
    }
    eventually("counted", || {
        (proxy.metric("rescind_invalidations_total{trigger=\"model saved\"}") == 50.0).then_some(())
    });
}
