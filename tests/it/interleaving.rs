//! Many clients at once, doing everything that changes connections, each with values of its own: nothing crosses
//! over, nothing is lost, nothing changes places.
//!
//! The seed is printed; `RESCIND_SEED=n` runs the same choices again, `RESCIND_SECONDS=n` runs longer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, encode};

/// A small random number generator, so that a seed says everything.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seed of this run.
pub fn seed() -> u64 {
    let seed = variable("RESCIND_SEED").unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
    });
    println!("RESCIND_SEED={seed}");
    seed
}

/// One client: what it has sent and what must come back, in this order.
struct Player {
    name: String,
    wire: Wire,
    random: Random,
    expected: VecDeque<(String, String)>,
    bytes: Vec<u8>,
    db: u64,
    resp: u64,
    count: u64,
    /// What its counter key must say in each database.
    counters: [u64; 3],
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

impl Player {
    fn new(port: u16, number: u64, seed: u64) -> Self {
        Self {
            name: format!("player-{number}"),
            wire: Wire::connect(port),
            random: Random(seed ^ number.wrapping_mul(0xD129_0E5B_7A4F_9C3D)),
            expected: VecDeque::new(),
            bytes: vec![],
            db: 0,
            resp: 2,
            count: 0,
            counters: [0; 3],
        }
    }

    fn ask(&mut self, line: &str, replies: &[&str]) {
        self.bytes.extend(encode(&line.split(' ').collect::<Vec<_>>()));
        self.expected.extend(replies.iter().map(|reply| (line.to_owned(), (*reply).to_owned())));
    }

    fn unique(&mut self) -> String {
        self.count += 1;
        format!("{}:{}", self.name, self.count)
    }

    fn null(&self) -> &'static str {
        if self.resp == 3 { "_\r\n" } else { "$-1\r\n" }
    }

    fn null_array(&self) -> &'static str {
        if self.resp == 3 { "_\r\n" } else { "*-1\r\n" }
    }

    fn act(&mut self) {
        let (word, key) = (self.unique(), format!("{}:k{}", self.name, self.random.below(3)));
        let reply = bulk(&word);
        match self.random.below(23) {
            0..3 => self.ask(&format!("ECHO {word}"), &[&reply]),
            3..5 => {
                self.ask(&format!("SET {key} {word}"), &["+OK\r\n"]);
                self.ask(&format!("GET {key}"), &[&reply]);
            }
            5 => {
                self.counters[self.db as usize] += 1;
                let count = format!(":{}\r\n", self.counters[self.db as usize]);
                self.ask(&format!("INCR {}:n", self.name), &[&count]);
            }
            6 => {
                self.db = self.random.below(3);
                self.ask(&format!("SELECT {}", self.db), &["+OK\r\n"]);
            }
            7 => self.transaction(&key, &word),
            8 => {
                let queue = format!("{}:q", self.name);
                self.ask(&format!("RPUSH {queue} {word}"), &[":1\r\n"]);
                let popped = format!("*2\r\n{}{reply}", bulk(&queue));
                self.ask(&format!("BLPOP {queue} 0"), &[&popped]);
            }
            9 => self.ask(&format!("BLPOP {}:empty 0.01", self.name), &[self.null_array()]),
            10 => self.subscribe(&word),
            11 => self.ask(&format!("GET {}:nothing", self.name), &[self.null()]),
            12 => {
                self.ask(&format!("SET app:1:model:{}:1 {word}", self.name), &["+OK\r\n"]);
                self.ask(&format!("GET app:1:model:{}:1", self.name), &[&reply]);
            }
            13 => {
                self.ask("CLIENT REPLY SKIP", &[]);
                self.ask(&format!("ECHO skipped-{word}"), &[]);
                self.ask(&format!("CLIENT SETNAME {word}"), &["+OK\r\n"]);
                self.ask("CLIENT GETNAME", &[&reply]);
            }
            14 => {
                self.ask(&format!("WATCH {key}"), &["+OK\r\n"]);
                self.ask(&format!("SET {key} {word}"), &["+OK\r\n"]);
                self.ask("MULTI", &["+OK\r\n"]);
                self.ask(&format!("SET {key} lost"), &["+QUEUED\r\n"]);
                self.ask("EXEC", &[self.null_array()]);
                self.ask(&format!("GET {key}"), &[&reply]);
            }
            15 => {
                // Its reply tells the connection's number.
                self.ask("CLIENT REPLY SKIP", &[]);
                self.resp = 2 + self.random.below(2);
                self.ask(&format!("HELLO {}", self.resp), &[]);
                self.ask(&format!("GET {}:nothing", self.name), &[self.null()]);
            }
            16 => self.subscribe_to_pattern(&word),
            17 => {
                let (from, to) = (format!("{}:from", self.name), format!("{}:to", self.name));
                self.ask(&format!("RPUSH {from} {word}"), &[":1\r\n"]);
                self.ask(&format!("BLMOVE {from} {to} LEFT RIGHT 0"), &[&reply]);
                self.ask(&format!("LPOP {to}"), &[&reply]);
            }
            18 => {
                let both = format!("*2\r\n{}{reply}", bulk(&key));
                self.ask(&format!("EVAL return{{KEYS[1],ARGV[1]}} 1 {key} {word}"), &[&both]);
            }
            19 => {
                self.ask("RESET", &["+RESET\r\n"]);
                (self.db, self.resp) = (0, 2);
            }
            20 => {
                self.ask("CLIENT REPLY OFF", &[]);
                self.ask(&format!("SET {key} {word}"), &[]);
                self.ask(&format!("BLPOP {}:empty 0.001", self.name), &[]);
                self.ask(&format!("ECHO lost-{word}"), &[]);
                self.ask("CLIENT REPLY ON", &["+OK\r\n"]);
                self.ask(&format!("GET {key}"), &[&reply]);
            }
            21 if self.random.below(20) == 0 => {
                let size = (1 << 20) + self.random.below(2 << 20);
                let value = format!("{word}{}", "x".repeat(size as usize));
                self.ask(&format!("SET {key} {value}"), &["+OK\r\n"]);
                self.ask(&format!("GET {key}"), &[&bulk(&value)]);
            }
            _ => {
                let size = self.random.below(40_000);
                let value = format!("{word}{}", "x".repeat(size as usize));
                self.ask(&format!("SET {key} {value}"), &["+OK\r\n"]);
                self.ask(&format!("GET {key}"), &[&bulk(&value)]);
            }
        }
    }

    fn transaction(&mut self, key: &str, word: &str) {
        if self.random.below(2) == 0 {
            self.ask(&format!("WATCH {key}"), &["+OK\r\n"]);
        }
        self.ask("MULTI", &["+OK\r\n"]);
        self.ask(&format!("SET {key} {word}"), &["+QUEUED\r\n"]);
        self.ask(&format!("GET {key}"), &["+QUEUED\r\n"]);
        match self.random.below(4) {
            0 => self.ask("DISCARD", &["+OK\r\n"]),
            1 => {
                self.ask("GET", &["-ERR wrong number of arguments for 'get' command\r\n"]);
                self.ask("EXEC", &["-EXECABORT Transaction discarded because of previous errors.\r\n"]);
            }
            _ => self.ask("EXEC", &[&format!("*2\r\n+OK\r\n{}", bulk(word))]),
        }
    }

    fn subscribe(&mut self, word: &str) {
        let (mark, channel) = (if self.resp == 3 { '>' } else { '*' }, bulk(word));
        let confirm = |verb: &str, left: u32| format!("{mark}3\r\n{}{channel}:{left}\r\n", bulk(verb));
        self.ask(&format!("SUBSCRIBE {word}"), &[&confirm("subscribe", 1)]);
        if self.resp == 3 {
            let message = format!(">3\r\n{}{channel}{}", bulk("message"), bulk("hello"));
            self.ask(&format!("PUBLISH {word} hello"), &[&message, ":1\r\n"]);
        } else {
            self.ask(&format!("PING {word}"), &[&format!("*2\r\n{}{channel}", bulk("pong"))]);
        }
        self.ask(&format!("UNSUBSCRIBE {word}"), &[&confirm("unsubscribe", 0)]);
    }

    fn subscribe_to_pattern(&mut self, word: &str) {
        let (mark, pattern) = (if self.resp == 3 { '>' } else { '*' }, bulk(&format!("{word}*")));
        let confirm = |verb: &str, left: u32| format!("{mark}3\r\n{}{pattern}:{left}\r\n", bulk(verb));
        self.ask(&format!("PSUBSCRIBE {word}*"), &[&confirm("psubscribe", 1)]);
        if self.resp == 3 {
            let channel = bulk(&format!("{word}:1"));
            let message = format!(">4\r\n{}{pattern}{channel}{}", bulk("pmessage"), bulk("hello"));
            self.ask(&format!("PUBLISH {word}:1 hello"), &[&message, ":1\r\n"]);
        }
        self.ask("PUNSUBSCRIBE", &[&confirm("punsubscribe", 0)]);
    }

    /// Sends what has been collected, in pieces or at once, and reads some or all replies.
    fn settle(&mut self, all: bool) {
        let bytes = std::mem::take(&mut self.bytes);
        let pieces = 1 + self.random.below(3) as usize;
        bytes.chunks(bytes.len().div_ceil(pieces).max(1)).for_each(|piece| self.wire.send(piece));
        let keep = if all { 0 } else { self.random.below(20) as usize };
        while self.expected.len() > keep {
            let (line, expected) = self.expected.pop_front().unwrap();
            let got = self.wire.reply();
            assert!(
                got.as_deref() == Ok(expected.as_bytes()),
                "{}: {}: expected {:.200}, got {:.200}",
                self.name,
                &line[..line.len().min(99)],
                expected.escape_debug().to_string(),
                format!("{:?}", got.map(|got| got.escape_ascii().to_string())),
            );
        }
    }

    /// Starts anew on another connection, perhaps in the middle of something.
    fn reconnect(&mut self, port: u16) {
        self.settle(true);
        match self.random.below(4) {
            0 => self.wire.send(b"MULTI\r\nSET leaked 1\r\n"),
            1 => self.wire.send(b"SUBSCRIBE player\r\nECHO lost\r\n"),
            2 => self.wire.send(b"BLPOP nothing 0\r\n"),
            _ => self.wire.send("GET lost\r\n".repeat(50).as_bytes()),
        }
        self.wire = Wire::connect(port);
        self.db = 0;
        self.resp = 2 + self.random.below(2);
        if self.resp == 3 {
            self.wire.cmd("HELLO 3");
        }
    }

    fn play(mut self, port: u16, stop: &AtomicBool) -> u64 {
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..=self.random.below(30) {
                self.act();
            }
            self.settle(false);
            if self.random.below(10) == 0 {
                self.reconnect(port);
            }
        }
        self.settle(true);
        self.count
    }
}

fn tournament(players: u64, listen: &str) {
    let seed = seed();
    let seconds = variable("RESCIND_SECONDS").unwrap_or(5);
    let redis = Redis::start();
    let rules = format!("[listen]\n{listen}\n{RULES}");
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", redis.port), &rules, &[]);
    proxy.ready();
    let (stop, port) = (AtomicBool::new(false), proxy.port);
    let count: u64 = std::thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = (0..players)
            .map(|number| scope.spawn(move || Player::new(port, number, seed).play(port, stop)))
            .collect();
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !threads.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{count} actions");
    assert_eq!(Wire::connect(redis.port).cmd("EXISTS leaked"), ":0\r\n");
}

#[test]
fn nothing_crosses_over() {
    tournament(16, "workers = 1");
}

#[test]
fn nothing_crosses_over_between_workers() {
    tournament(8, "workers = 3");
}
