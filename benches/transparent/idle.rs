//! Clients that have done one GET and stay: what each takes of the proxy's memory.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::client::{Connection, bulk, request};
use crate::process::{self, Stage};
use crate::report::{Figure, Outcome};
use crate::{Bench, Result};

const CLIENTS: usize = 10_000;
/// What the first clients make the proxy allocate once does not count.
const WARM_UP: usize = 100;
/// For the proxy's own files and the bench's.
const SPARE: usize = 300;
const TARGET_BYTES: f64 = 8192.0;

pub fn run(bench: &Bench) -> Result<Outcome> {
    let allowed = process::open_files(CLIENTS + WARM_UP + SPARE)?;
    let clients = CLIENTS.min(allowed.saturating_sub(WARM_UP + SPARE));
    if clients < CLIENTS {
        eprintln!("only {clients} clients: {allowed} files may be open");
    }
    let stage = bench.stage()?;
    let value = "x".repeat(100);
    Connection::open(stage.behind.port)?.exchange(&request(&["SET", "idle", &value]), b"+OK\r\n")?;

    let reply = bulk(&value);
    let _warm = connect(&stage, WARM_UP, &reply)?;
    let before = settled(&stage)?;
    let _idle = connect(&stage, clients, &reply)?;
    let after = settled(&stage)?;
    let bytes = (after - before) * 1024.0 / clients as f64;
    Ok(Outcome {
        figures: vec![
            Figure::new("clients", clients as f64),
            Figure::new("bytes of RSS per client", bytes).at_most(TARGET_BYTES),
        ],
        raw: json!({ "rss_before_kib": before, "rss_after_kib": after }),
    })
}

fn connect(stage: &Stage, count: usize, reply: &[u8]) -> Result<Vec<Connection>> {
    let one = || {
        let mut client = Connection::open(stage.proxy.port)?;
        client.exchange(&request(&["GET", "idle"]), reply)?;
        Ok(client)
    };
    (0..count).map(|_| one()).collect()
}

fn settled(stage: &Stage) -> Result<f64> {
    thread::sleep(Duration::from_secs(2));
    stage.proxy.rss_kib()
}
