//! Random schedules with an oracle: a dependent written before a trigger was sent is gone when its reply arrives.
//! `RESCIND_SEED` repeats a run; it is printed on failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Client, Proxy, Redis};

const RULES: &str = r#"
[tags]
"t{n}" = ["dep:{n}:*", "both:*:{n}"]
[[trigger]]
keys = ["src:{n}"]
invalidate = ["t{n}"]
"#;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Prints the seed if the test fails.
pub struct Seed(pub u64);

impl Seed {
    pub fn new() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        Self(std::env::var("RESCIND_SEED").map_or_else(|_| now(), |seed| seed.parse().unwrap()))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with RESCIND_SEED={}", self.0);
        }
    }
}

/// The latest value of every dependent whose write was acknowledged. A key belongs to one writer.
type Written = Arc<Vec<[AtomicU64; KEYS]>>;
const TAGS: usize = 3;
const KEYS: usize = 6;

fn writer(mut client: Client, own: usize, mut random: Random, written: Written, stop: Arc<AtomicBool>) {
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        let (tag, slot) = (random.below(TAGS as u64) as usize, random.below(KEYS as u64 / 3) as usize);
        let key = slot * 3 + own;
        let name = name(tag, key);
        value += 1;
        let reply = match random.below(6) {
            0 => client.cmd(&format!("SET {name} {value} PX {}", 1 + random.below(3))),
            1 => client.cmd(&format!("DEL {name}")),
            2 => {
                client.cmd(&format!("SET tmp:{own} {value}"));
                client.cmd(&format!("RENAME tmp:{own} {name}"))
            }
            3 => client.cmd(&format!("EVAL return(redis.call('SET','{name}',{value})) 0")),
            _ => client.cmd(&format!("SET {name} {value}")),
        };
        assert!(!reply.starts_with('-'), "{reply}");
        written[tag][key].store(value, Ordering::SeqCst);
    }
}

fn name(tag: usize, key: usize) -> String {
    if key.is_multiple_of(2) { format!("dep:{tag}:{key}") } else { format!("both:{key}:{tag}") }
}

fn trigger(mut client: Client, mut direct: Client, mut random: Random, rounds: usize, written: Written) {
    for round in 0..rounds {
        let tag = random.below(TAGS as u64) as usize;
        let before: Vec<u64> = written[tag].iter().map(|value| value.load(Ordering::SeqCst)).collect();
        let line = match random.below(5) {
            0 => format!("DEL src:{tag}"),
            1 => format!("TAG.INVALIDATE t{tag}"),
            2 => format!("PUBLISH rescind:invalidate t{tag}"),
            3 => {
                client.cmd("MULTI");
                client.cmd(&format!("INCR src:{tag}"));
                "EXEC".to_owned()
            }
            _ => format!("INCR src:{tag}"),
        };
        assert!(!client.cmd(&line).starts_with('-'), "{line}");
        for (key, least) in before.into_iter().enumerate() {
            let reply = direct.cmd(&format!("GET {}", name(tag, key)));
            let value: u64 = reply.split("\r\n").nth(1).and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
            assert!(
                value > least,
                "round {round}: {line} left {} = {value}, at most {least}",
                name(tag, key)
            );
        }
    }
}

#[test]
fn what_was_written_before_a_trigger_is_gone_after_it() {
    race(250, |_, _| {});
}

/// Every gap is bridged by scans until the index is rebuilt.
#[test]
fn the_same_while_the_feed_is_lost_again_and_again() {
    race(120, |direct, round| {
        std::thread::sleep(Duration::from_millis(20));
        // In one step: before the canary notices, settings that changed behind the proxy's back do harm.
        direct.cmd("MULTI");
        if round % 5 == 0 {
            direct.call(&["CONFIG", "SET", "notify-keyspace-events", ""]);
        }
        direct.cmd("CLIENT KILL TYPE pubsub");
        assert!(direct.cmd("EXEC").starts_with('*'));
    });
}

/// Runs writers and triggers against each other while `disturb` is called over and over.
fn race(rounds: usize, disturb: impl Fn(&mut Client, usize)) {
    let seed = Seed::new();
    let redis = Redis::start();
    let written = Written::new((0..TAGS).map(|_| Default::default()).collect());
    let proxy = Proxy::start(&redis, RULES);
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = vec![];
    for own in 0..3 {
        let client = if own == 0 {
            proxy.client()
        } else if own == 1 {
            redis.client()
        } else {
            proxy.client()
        };
        let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
        let random = Random(seed.0 ^ (own as u64) << 32);
        writers.push(std::thread::spawn(move || writer(client, own, random, written, stop)));
    }
    let triggers: Vec<_> = (0..3u64)
        .map(|own| {
            let (client, direct, written) = (proxy.client(), redis.client(), Arc::clone(&written));
            let random = Random(seed.0.rotate_left(17) ^ own);
            std::thread::spawn(move || trigger(client, direct, random, rounds, written))
        })
        .collect();
    let mut direct = redis.client();
    for round in 0.. {
        if triggers.iter().all(|trigger| trigger.is_finished()) {
            break;
        }
        disturb(&mut direct, round);
        std::thread::sleep(Duration::from_millis(5));
    }
    let results: Vec<_> = triggers.into_iter().map(std::thread::JoinHandle::join).collect();
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(results.iter().all(Result::is_ok), "a violation");
}

#[test]
fn nothing_else_is_deleted() {
    let seed = Seed::new();
    let mut random = Random(seed.0);
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    let words = ["dep", "both", "dep:", "x", "0", "1", "2", "src", "t0", "*", "DEP"];
    for _ in 0..30 {
        let mut keys: BTreeSet<String> = BTreeSet::new();
        for _ in 0..40 {
            let parts: Vec<&str> =
                (0..1 + random.below(4)).map(|_| words[random.below(words.len() as u64) as usize]).collect();
            let key = parts.join(":");
            if !key.starts_with("src") {
                keys.insert(key);
            }
        }
        for key in &keys {
            let writer = if random.below(2) == 0 { &mut client } else { &mut direct };
            writer.cmd(&format!("SET {key} v"));
        }
        let tag = random.below(3).to_string();
        client.cmd(&format!("SET src:{tag} v"));
        let expected: BTreeSet<String> = keys.into_iter().filter(|key| !depends(key, &tag)).collect();
        let mut left: BTreeSet<String> = direct.list("KEYS *").into_iter().collect();
        left.retain(|key| !key.starts_with("rescind:") && !key.starts_with("src:"));
        assert_eq!(left, expected, "after src:{tag}");
        direct.cmd("FLUSHALL");
    }
}

/// Written anew from the rules above: `dep:{n}:*` and `both:*:{n}`.
fn depends(key: &str, tag: &str) -> bool {
    let dep = key.strip_prefix("dep:").and_then(|rest| rest.split_once(':')).is_some_and(|(n, _)| n == tag);
    let both =
        key.strip_prefix("both:").and_then(|rest| rest.rsplit_once(':')).is_some_and(|(_, n)| n == tag);
    dep || both
}

/// Explicit labels, given and invalidated through two proxies at once.
#[test]
fn labelled_writes_race_with_invalidations_through_two_proxies() {
    let seed = Seed::new();
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, RULES)];
    let latest: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|own| {
            let (mut client, mut random) = (proxies[own % 2].client(), Random(seed.0 ^ own as u64));
            let (latest, stop) = (Arc::clone(&latest), Arc::clone(&stop));
            std::thread::spawn(move || {
                for value in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let reply = match random.below(4) {
                        0 => {
                            client.cmd("TAG.NEXT L");
                            client.cmd(&format!("SET l{own} {value}"))
                        }
                        1 => {
                            client.cmd("MULTI");
                            client.cmd(&format!("TAG.WITH 1 L SET l{own} {value}"));
                            client.cmd("EXEC")
                        }
                        2 => {
                            client.cmd(&format!("TAG.WITH 1 L SET l{own} {value} PX {}", 1 + random.below(3)))
                        }
                        _ => client.cmd(&format!("TAG.WITH 2 M L SET l{own} {value}")),
                    };
                    assert!(!reply.starts_with('-'), "{reply}");
                    latest[own].store(value, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let invalidators: Vec<_> = (0..2)
        .map(|own| {
            let (mut client, mut direct) = (proxies[own].client(), redis.client());
            let latest = Arc::clone(&latest);
            std::thread::spawn(move || {
                for round in 0..200 {
                    let before: Vec<u64> = latest.iter().map(|value| value.load(Ordering::SeqCst)).collect();
                    assert!(!client.cmd("TAG.INVALIDATE L").starts_with('-'));
                    for (key, least) in before.into_iter().enumerate() {
                        let reply = direct.cmd(&format!("GET l{key}"));
                        let value =
                            reply.split("\r\n").nth(1).and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
                        assert!(value > least, "round {round}: l{key} = {value}, at most {least}");
                    }
                }
            })
        })
        .collect();
    let results: Vec<_> = invalidators.into_iter().map(std::thread::JoinHandle::join).collect();
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(results.iter().all(Result::is_ok), "a violation");
}
