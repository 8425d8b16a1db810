//! MULTI, three commands, EXEC: the rate beside a direct connection, and whether Redis sees new connections.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Connection, bulk, request};
use crate::report::{Figure, Outcome, median};
use crate::{Bench, Result};

const CLIENTS: usize = 50;
const TARGET: f64 = 0.6;
/// How a client sends a transaction.
const WAYS: [Way; 2] = [Way::Pipelined, Way::OneByOne];

#[derive(Clone, Copy)]
enum Way {
    Pipelined,
    OneByOne,
}

/// A connection and its transaction: requests, each with its reply.
struct Client {
    connection: Connection,
    steps: Vec<(Vec<u8>, Vec<u8>)>,
    requests: Vec<u8>,
    replies: Vec<u8>,
}

pub fn run(bench: &Bench) -> Result<Outcome> {
    let stage = bench.stage()?;
    let mut control = Connection::open(stage.behind.port)?;
    // All connections stay until the end: what Redis counts after the warm-up are those of the proxy.
    let mut direct = clients(stage.direct.port)?;
    let mut proxied = clients(stage.proxy.port)?;
    let (rounds, time) = bench.pick((7, Duration::from_secs(2)), (2, Duration::from_millis(700)));
    for way in WAYS {
        rate(&mut direct, way, time)?;
        rate(&mut proxied, way, time)?;
    }
    let before = control.info("total_connections_received")?;
    let mut rates: [[Vec<f64>; 2]; 2] = Default::default();
    let mut new = Vec::new();
    for _ in 0..rounds {
        for way in WAYS {
            rates[way as usize][0].push(rate(&mut direct, way, time)?);
            rates[way as usize][1].push(rate(&mut proxied, way, time)?);
        }
        new.push(control.info("total_connections_received")? - before);
    }
    let connected = control.info("connected_clients")? - 1;
    let ratio = |way: Way| median(&rates[way as usize][1]) / median(&rates[way as usize][0]);
    Ok(Outcome {
        figures: vec![
            Figure::new("pipelined: rate / direct", ratio(Way::Pipelined)).at_least(TARGET),
            Figure::new("one by one: rate / direct", ratio(Way::OneByOne)).at_least(TARGET),
            Figure::new("new connections to Redis", new.last().map_or(0.0, |new| *new as f64)).at_most(0.0),
            Figure::new("connections of the proxy", connected as f64),
        ],
        raw: json!({
            "seconds": time.as_secs_f64(), "new_connections_after_round": new,
            "direct_pipelined": rates[0][0], "proxied_pipelined": rates[0][1],
            "direct_one_by_one": rates[1][0], "proxied_one_by_one": rates[1][1],
        }),
    })
}

fn clients(port: u16) -> Result<Vec<Client>> {
    (0..CLIENTS).map(|number| Client::open(port, number)).collect()
}

/// Transactions per second of all clients.
fn rate(clients: &mut [Client], way: Way, time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let until = begun + time;
    let done: Result<u32> = thread::scope(|scope| {
        let threads: Vec<_> =
            clients.iter_mut().map(|client| scope.spawn(move || client.run(way, until))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a client panicked")?).sum()
    });
    Ok(f64::from(done?) / begun.elapsed().as_secs_f64())
}

impl Client {
    fn open(port: u16, number: usize) -> Result<Self> {
        let (key, value) = (format!("transaction:{number}"), "x".repeat(100));
        let queued = || b"+QUEUED\r\n".to_vec();
        let executed = [b"*3\r\n+OK\r\n".to_vec(), bulk(&value), b":100\r\n".to_vec()].concat();
        let steps = vec![
            (request(&["MULTI"]), b"+OK\r\n".to_vec()),
            (request(&["SET", &key, &value]), queued()),
            (request(&["GET", &key]), queued()),
            (request(&["STRLEN", &key]), queued()),
            (request(&["EXEC"]), executed),
        ];
        let requests = steps.iter().flat_map(|step| step.0.clone()).collect();
        let replies = steps.iter().flat_map(|step| step.1.clone()).collect();
        Ok(Self { connection: Connection::open(port)?, steps, requests, replies })
    }

    fn run(&mut self, way: Way, until: Instant) -> Result<u32> {
        let mut done = 0;
        while Instant::now() < until {
            match way {
                Way::Pipelined => self.connection.exchange(&self.requests, &self.replies)?,
                Way::OneByOne => {
                    for (request, reply) in &self.steps {
                        self.connection.exchange(request, reply)?;
                    }
                }
            }
            done += 1;
        }
        Ok(done)
    }
}
