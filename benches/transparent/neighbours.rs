//! GET clients beside two slow ones, of which one sends and one reads a large value: does their p99 change?

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Connection, bulk, request, set_head};
use crate::report::{Figure, Outcome, median};
use crate::{Bench, Result};

const CLIENTS: usize = 20;
const TARGET: f64 = 1.5;
const SLOW_BYTES: usize = 100_000_000;
/// 1 MB/s: this much each `TICK`.
const PIECE: usize = 100_000;
const TICK: Duration = Duration::from_millis(100);
/// Between phases: what the slow clients left behind is cleared away.
const SETTLE: Duration = Duration::from_millis(500);

/// Clients of one port, and what was measured of them, in milliseconds.
struct Side {
    port: u16,
    clients: Vec<Connection>,
    alone: Phases,
    beside_slow: Phases,
    slow_bytes: AtomicUsize,
}

#[derive(Default)]
struct Phases {
    p99: Vec<f64>,
    longest: Vec<f64>,
}

pub fn run(bench: &Bench) -> Result<Outcome> {
    let stage = bench.stage()?;
    for redis in [&stage.direct, &stage.behind] {
        fill(redis.port)?;
    }
    let mut direct = Side::open(stage.direct.port)?;
    let mut proxied = Side::open(stage.proxy.port)?;
    let (rounds, time) = bench.pick((10, Duration::from_secs(4)), (3, Duration::from_millis(1500)));
    for side in [&mut direct, &mut proxied] {
        gets(&mut side.clients, time)?;
    }
    for _ in 0..rounds {
        for side in [&mut direct, &mut proxied] {
            side.round(time)?;
        }
    }
    let longest = |phases: &Phases| median(&phases.longest);
    Ok(Outcome {
        figures: vec![
            Figure::new("p99 with slow clients / without", proxied.ratio()).at_most(TARGET),
            Figure::new("the same, direct", direct.ratio()),
            Figure::new("p99 without, ms", median(&proxied.alone.p99)),
            Figure::new("p99 with, ms", median(&proxied.beside_slow.p99)),
            Figure::new("longest GET without, ms", longest(&proxied.alone)),
            Figure::new("longest GET with, ms", longest(&proxied.beside_slow)),
        ],
        raw: json!({ "seconds": time.as_secs_f64(), "direct": direct.json(), "proxied": proxied.json() }),
    })
}

fn fill(port: u16) -> Result<()> {
    let mut redis = Connection::open(port)?;
    redis.exchange(&request(&["SET", "small", &"x".repeat(100)]), b"+OK\r\n")?;
    redis.exchange(&request(&["SET", "large", &"x".repeat(SLOW_BYTES)]), b"+OK\r\n")
}

impl Side {
    fn open(port: u16) -> Result<Self> {
        let clients = (0..CLIENTS).map(|_| Connection::open(port)).collect::<Result<_>>()?;
        let (alone, beside_slow) = Default::default();
        Ok(Self { port, clients, alone, beside_slow, slow_bytes: AtomicUsize::new(0) })
    }

    /// Without, then with.
    fn round(&mut self, time: Duration) -> Result<()> {
        thread::sleep(SETTLE);
        self.alone.add(gets(&mut self.clients, time)?);
        thread::sleep(SETTLE);
        let clients = &mut self.clients;
        self.beside_slow.add(beside_slow(self.port, &self.slow_bytes, || gets(clients, time))?);
        Ok(())
    }

    fn ratio(&self) -> f64 {
        median(&self.beside_slow.p99) / median(&self.alone.p99)
    }

    fn json(&self) -> Value {
        json!({
            "p99_without_ms": self.alone.p99, "p99_with_ms": self.beside_slow.p99,
            "longest_without_ms": self.alone.longest, "longest_with_ms": self.beside_slow.longest,
            "slow_bytes": self.slow_bytes.load(Ordering::Relaxed),
        })
    }
}

impl Phases {
    fn add(&mut self, mut samples: Vec<Duration>) {
        samples.sort_unstable();
        let at = |index: usize| samples.get(index).map_or(0.0, |sample| sample.as_secs_f64() * 1e3);
        self.p99.push(at(samples.len() * 99 / 100));
        self.longest.push(at(samples.len().saturating_sub(1)));
    }
}

/// How long each GET takes while all clients send one after another.
fn gets(clients: &mut [Connection], time: Duration) -> Result<Vec<Duration>> {
    let until = Instant::now() + time;
    thread::scope(|scope| {
        let threads: Vec<_> =
            clients.iter_mut().map(|client| scope.spawn(move || get_until(client, until))).collect();
        let mut samples = Vec::new();
        for thread in threads {
            samples.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(samples)
    })
}

fn get_until(client: &mut Connection, until: Instant) -> Result<Vec<Duration>> {
    let (get, reply) = (request(&["GET", "small"]), bulk(&"x".repeat(100)));
    let mut samples = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= until {
            return Ok(samples);
        }
        client.exchange(&get, &reply)?;
        samples.push(begun.elapsed());
    }
}

/// The slow clients begin with `work` and break off when it ends.
fn beside_slow<T>(port: u16, bytes: &AtomicUsize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_slowly(port, bytes, &stop));
        let reader = scope.spawn(|| read_slowly(port, bytes, &stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        for slow in [sender, reader] {
            slow.join().map_err(|_| "a slow client panicked")??;
        }
        result
    })
}

fn send_slowly(port: u16, bytes: &AtomicUsize, stop: &AtomicBool) -> Result<()> {
    let mut client = Connection::open(port)?;
    client.stream.write_all(&set_head("sent", SLOW_BYTES))?;
    let piece = vec![b'x'; PIECE];
    paced(bytes, stop, || Ok(client.stream.write_all(&piece)?))
}

fn read_slowly(port: u16, bytes: &AtomicUsize, stop: &AtomicBool) -> Result<()> {
    let mut client = Connection::open(port)?;
    client.stream.write_all(&request(&["GET", "large"]))?;
    let mut piece = vec![0; PIECE];
    paced(bytes, stop, || Ok(client.stream.read_exact(&mut piece)?))
}

fn paced(bytes: &AtomicUsize, stop: &AtomicBool, mut one: impl FnMut() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    for number in 1..=SLOW_BYTES / PIECE {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        one()?;
        bytes.fetch_add(PIECE, Ordering::Relaxed);
        thread::sleep((TICK * number as u32).saturating_sub(begun.elapsed()));
    }
    Ok(())
}
