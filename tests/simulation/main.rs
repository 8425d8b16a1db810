//! The protocol under random schedules: proxies, Redis, clients and the network between them, one step at a time.
//!
//! The proxies are made of the real index, leases, epochs, peers and rules; their I/O is re-enacted in steps, which a
//! schedule takes in any order that the network allows. Everything follows from one seed per schedule:
//!
//! - `RESCIND_SEED`: the seed of the first schedule; `RESCIND_SCHEDULES`: how many
//! - `RESCIND_AS_IS`: without the protections that the proxies do not have yet, see [`mutations::Protections::AS_IS`]
//!
//! What a schedule teaches, the oracle judges: see `oracle`. Each protection that the protocol consists of is switched
//! off once, and must be missed: see `mutations`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod clients;
mod fanout;
mod faults;
mod feed;
mod journal;
mod known;
mod mutations;
mod names;
mod network;
mod options;
mod oracle;
mod proxy;
mod redis;
mod schedule;
mod serve;

use mutations::{MUTATIONS, Protections};
use options::Options;
use schedule::World;

/// Of schedules in one run, unless `RESCIND_SCHEDULES` says otherwise.
const SCHEDULES: u64 = 3000;
/// Steps of a schedule that are shown where it fails.
const SHOWN: usize = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one schedule; what it violates.
fn run(seed: u64, options: &Options, protect: Protections) -> (World, Option<String>) {
    let mut world = World::new(seed, options.clone(), protect);
    world.run();
    let violation = world.oracle.violation.take();
    (world, violation)
}

/// The steps of a schedule, as far as they fit on a page or two.
fn story(seed: u64, options: &Options, protect: Protections) -> String {
    let mut world = World::new(seed, options.clone(), protect);
    world.trace = Some(vec![]);
    world.run();
    // Without what happens every second.
    let upkeep = ["Tick(", "Identity)", "for Some(Look", "NumSub(", "Exists("];
    let mut trace = world.trace.unwrap_or_default();
    trace.retain(|line| !upkeep.iter().any(|word| line.contains(word)));
    trace[trace.len().saturating_sub(SHOWN)..].join("\n")
}

#[test]
fn no_schedule_shows_stale_data() {
    let first = number("RESCIND_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
    let schedules = number("RESCIND_SCHEDULES").unwrap_or(SCHEDULES);
    println!("RESCIND_SEED={first} RESCIND_SCHEDULES={schedules}");
    let protect = if number("RESCIND_AS_IS").is_some() { Protections::AS_IS } else { Protections::ALL };
    // Half of them in another thread.
    let half = |offset: u64| {
        let (mut hits, mut acknowledged, mut undone) = (0, 0, 0);
        for seed in (first..first + schedules).skip(offset as usize).step_by(2) {
            let options = Options::of(seed);
            let (world, violation) = run(seed, &options, protect);
            if let Some(violation) = violation {
                let story = story(seed, &options, protect);
                panic!("{story}\n{options:?}\nRESCIND_SEED={seed} RESCIND_SCHEDULES=1: {violation}");
            }
            hits += world.oracle.hits;
            acknowledged += world.oracle.acknowledged.len() as u64;
            undone += world.redis.undone;
        }
        [hits, acknowledged, undone]
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        (half(0), other.join())
    });
    let other = other.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let [hits, acknowledged, undone] = std::array::from_fn(|i| one[i] + other[i]);
    println!("{hits} hits, {acknowledged} invalidations acknowledged, {undone} fills undone");
    if schedules >= 100 {
        assert!(hits > 0 && acknowledged > 0 && undone > 0, "nothing happens in these schedules");
    }
}

#[test]
fn each_protection_is_missed() {
    let found = |mutation: &mutations::Mutation| {
        let protect = Protections::without(mutation.protection);
        let options = (mutation.options)();
        let seeds = 0..mutation.schedules;
        seeds.into_iter().find_map(|seed| run(seed, &options, protect).1.map(|violation| (seed, violation)))
    };
    let half = |offset: usize| -> Vec<&str> {
        let mut unnoticed = vec![];
        for mutation in MUTATIONS.iter().skip(offset).step_by(2) {
            match found(mutation) {
                Some((seed, violation)) => println!("without {}: {seed}: {violation}", mutation.protection),
                None => unnoticed.push(mutation.protection),
            }
        }
        unnoticed
    };
    let (mut unnoticed, others) = std::thread::scope(|scope| {
        let others = scope.spawn(|| half(1));
        (half(0), others.join())
    });
    unnoticed.extend(others.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    assert!(unnoticed.is_empty(), "nothing is found without: {unnoticed:?}");
}

#[test]
fn a_gap_ends_older_misses() {
    let keeps = |protect: Protections| {
        (0..30).filter(|seed| World::new(*seed, Options::CALM, protect).fills_after_gap()).count()
    };
    assert_eq!(keeps(Protections::ALL), 0);
    assert!(keeps(Protections::without("gap")) > 0);
}

#[test]
fn a_fresh_fill_becomes_a_hit() {
    for seed in 0..200 {
        let options = Options { proxies: 1 + seed as usize % 3, steps: 150, ..Options::CALM };
        let (mut world, violation) = run(seed, &options, Protections::ALL);
        assert_eq!(violation, None, "seed {seed}");
        if let Err(what) = world.fill_afresh() {
            panic!("seed {seed}: {what}");
        }
    }
}
