//! The largest value Redis takes, there and back: time beside a direct connection, and the proxy's peak of memory.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Connection, request, set_head};
use crate::process::Daemon;
use crate::report::{Figure, Outcome, median};
use crate::{Bench, Result};

const MIB: usize = 1 << 20;
const VALUE_MIB: usize = 512;
const TARGET_MIB: f64 = 32.0;
/// A reader that pauses does so after this much, the first time before the first byte.
const PAUSE_EVERY_MIB: usize = 64;
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Times {
    set: Vec<f64>,
    get: Vec<f64>,
}

pub fn run(bench: &Bench) -> Result<Outcome> {
    let stage = bench.stage()?;
    let chunk: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
    let mut direct = Connection::open(stage.direct.port)?;
    let mut proxied = Connection::open(stage.proxy.port)?;
    let (mut beside, mut through) = (Times::default(), Times::default());
    let (mut fast, mut paused) = (Vec::new(), Vec::new());
    for connection in [&mut direct, &mut proxied] {
        set(connection, &chunk, 1)?;
        get(connection, &chunk, 1)?;
    }
    // One for all rounds, so that growth adds up.
    let before = stage.proxy.rss_kib()?;
    for _ in 0..bench.pick(5, 1) {
        round_trip(&mut direct, &chunk, &mut beside)?;
        stage.proxy.reset_peak();
        round_trip(&mut proxied, &chunk, &mut through)?;
        fast.push(growth_mib(&stage.proxy, before)?);
        stage.proxy.reset_peak();
        get_with_pauses(&mut proxied, &chunk)?;
        paused.push(growth_mib(&stage.proxy, before)?);
    }
    let ratio = |through: &[f64], beside: &[f64]| median(through) / median(beside);
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    Ok(Outcome {
        figures: vec![
            Figure::new("MiB of growth, as fast as possible", most(&fast)).at_most(TARGET_MIB),
            Figure::new("MiB of growth, reader pauses", most(&paused)).at_most(TARGET_MIB),
            Figure::new("SET: time / direct", ratio(&through.set, &beside.set)),
            Figure::new("GET: time / direct", ratio(&through.get, &beside.get)),
        ],
        raw: json!({
            "fast_growth_mib": fast, "paused_growth_mib": paused,
            "direct_set_s": beside.set, "direct_get_s": beside.get,
            "proxied_set_s": through.set, "proxied_get_s": through.get,
        }),
    })
}

fn growth_mib(proxy: &Daemon, before: f64) -> Result<f64> {
    Ok((proxy.peak_kib()? - before).max(0.0) / 1024.0)
}

fn round_trip(connection: &mut Connection, chunk: &[u8], times: &mut Times) -> Result<()> {
    times.set.push(set(connection, chunk, VALUE_MIB)?);
    times.get.push(get(connection, chunk, VALUE_MIB)?);
    Ok(())
}

fn set(connection: &mut Connection, chunk: &[u8], mib: usize) -> Result<f64> {
    let begun = Instant::now();
    connection.stream.write_all(&set_head("huge", mib * MIB))?;
    for _ in 0..mib {
        connection.stream.write_all(chunk)?;
    }
    connection.exchange(b"\r\n", b"+OK\r\n")?;
    Ok(begun.elapsed().as_secs_f64())
}

fn get(connection: &mut Connection, chunk: &[u8], mib: usize) -> Result<f64> {
    let mut buffer = vec![0; chunk.len()];
    let begun = Instant::now();
    ask(connection, mib)?;
    for _ in 0..mib {
        connection.stream.read_exact(&mut buffer)?;
    }
    connection.expect(b"\r\n")?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Nothing depends on its time, so it also compares what it reads.
fn get_with_pauses(connection: &mut Connection, chunk: &[u8]) -> Result<()> {
    let mut buffer = vec![0; chunk.len()];
    connection.stream.write_all(&request(&["GET", "huge"]))?;
    thread::sleep(PAUSE);
    check_length(connection, VALUE_MIB)?;
    for number in 0..VALUE_MIB {
        if number % PAUSE_EVERY_MIB == 0 {
            thread::sleep(PAUSE);
        }
        connection.stream.read_exact(&mut buffer)?;
        if buffer != chunk {
            return Err(format!("the value differs in its MiB {number}").into());
        }
    }
    connection.expect(b"\r\n")
}

fn ask(connection: &mut Connection, mib: usize) -> Result<()> {
    connection.stream.write_all(&request(&["GET", "huge"]))?;
    check_length(connection, mib)
}

fn check_length(connection: &mut Connection, mib: usize) -> Result<()> {
    let length = connection.bulk_length()?;
    if length == mib * MIB { Ok(()) } else { Err(format!("a value of {length} bytes").into()) }
}
