//! Clients that connect while a password comes and goes, and while Redis does not answer at all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::differential::Wire;
use crate::interleaving::{Random, seed, variable};
use crate::support::{Proxy, RULES, Redis, encode, eventually};

const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";

/// When Redis wanted a password, as far as it can be known from outside.
#[derive(Default)]
struct Flips(Mutex<Vec<Flip>>);

/// From `asked` on Redis may, and from `answered` on it must be in this state.
struct Flip {
    open: bool,
    asked: Instant,
    answered: Option<Instant>,
}

impl Flips {
    fn flip(&self, admin: &mut Wire, open: bool) {
        self.0.lock().unwrap().push(Flip { open, asked: Instant::now(), answered: None });
        let line = if open { "CONFIG SET requirepass " } else { "CONFIG SET requirepass pw" };
        assert_eq!(admin.cmd(line), "+OK\r\n");
        self.0.lock().unwrap().last_mut().unwrap().answered = Some(Instant::now());
    }

    /// Whether Redis may have been in this state at some moment between the two.
    fn may_have_been(&self, open: bool, from: Instant, to: Instant) -> bool {
        let flips = self.0.lock().unwrap();
        flips.iter().enumerate().any(|(at, flip)| {
            let over = flips.get(at + 1).and_then(|next| next.answered);
            flip.open == open && flip.asked <= to && over.is_none_or(|over| over >= from)
        })
    }
}

/// One visit: a client without AUTH, its first requests and what came of them.
fn visit(port: u16, random: &mut Random, flips: &Flips) {
    let connecting = Instant::now();
    let mut wire = Wire::connect(port);
    // Whether Redis must have let it in, or refused it, when it connected.
    let (mut inside, mut refused, mut first) = (false, false, true);
    for _ in 0..=random.below(6) {
        let sent = Instant::now();
        let from = if first { connecting } else { sent };
        let (what, reply) = match random.below(6) {
            0 => ("WHOAMI", wire.cmd("ACL WHOAMI")),
            1 => match transaction(&mut wire) {
                Some(reply) => ("MULTI", reply),
                None => return,
            },
            2 => ("MGET", wire.call(&["MGET"].into_iter().chain(["k"; 9]).collect::<Vec<_>>())),
            3 => ("TAG", wire.cmd("TAG.KEYS Post")),
            4 => ("RESET", {
                // It counts as having connected now.
                assert_eq!(wire.cmd("RESET"), "+RESET\r\n");
                (inside, refused, first) = (false, false, true);
                wire.cmd("ACL WHOAMI")
            }),
            _ => ("GET", wire.cmd("GET k")),
        };
        let (from, now) = (if first { sent.min(from) } else { from }, Instant::now());
        let (closed, open) = (flips.may_have_been(false, from, now), flips.may_have_been(true, from, now));
        if reply == NOAUTH {
            assert!(closed || what == "MULTI" && !inside, "{what}: refused, though there was no password");
            // For a transaction it needs a connection of its own, which it may not get any more.
            assert!(!inside || what == "MULTI", "{what}: refused after it had been let in");
            refused |= what != "MULTI";
        } else {
            assert!(!reply.starts_with('-'), "{what}: {reply}");
            assert!(!reply.contains("joe"), "{what}: as somebody else");
            assert!(open || !(first || refused), "{what}: let in, though there was a password");
            inside |= first && !closed;
        }
        first = false;
    }
}

/// Asks who it is in a transaction. `None`: EXEC was refused, so the client stays inside, as with Redis.
fn transaction(wire: &mut Wire) -> Option<String> {
    let reply = wire.cmd("MULTI");
    if reply.starts_with('-') {
        return Some(reply);
    }
    let queued = wire.cmd("ACL WHOAMI");
    let done = wire.cmd("EXEC");
    if done == NOAUTH {
        return None;
    }
    Some(match queued.as_str() {
        "+QUEUED\r\n" if done.starts_with("-EXECABORT") && done.contains("NOAUTH") => NOAUTH.to_owned(),
        "+QUEUED\r\n" => done,
        _ => queued,
    })
}

/// Users come and go and leave connections of their own behind, which nobody else must get.
fn user(port: u16, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut wire = Wire::connect(port);
        assert_eq!(wire.cmd("AUTH joe pw"), "+OK\r\n");
        for line in ["ACL WHOAMI", "MULTI", "ACL WHOAMI", "EXEC", "ACL WHOAMI"] {
            let reply = wire.cmd(line);
            assert!(reply.contains("joe") || !line.starts_with("ACL") || reply == "+QUEUED\r\n", "{reply}");
        }
    }
}

fn flipping(config: &str) {
    let (seed, seconds) = (seed(), variable("RESCIND_SECONDS").unwrap_or(4));
    let redis = Redis::with(&"--user joe on >pw +@all ~* &*".split(' ').collect::<Vec<_>>());
    let proxy = Proxy::configured(&redis, config);
    let mut admin = Wire::connect(redis.port);
    assert_eq!(admin.cmd("SET k v"), "+OK\r\n");
    let (flips, stop, port) = (Flips::default(), AtomicBool::new(false), proxy.port);
    flips.flip(&mut admin, true);
    let visits: u64 = std::thread::scope(|scope| {
        let (flips, stop) = (&flips, &stop);
        let visitors: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    let (mut random, mut count) = (Random(seed + number), 0);
                    while !stop.load(Ordering::Relaxed) {
                        visit(port, &mut random, flips);
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let users: Vec<_> = (0..2).map(|_| scope.spawn(move || user(port, stop))).collect();
        let mut random = Random(seed + 99);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut open = true;
        while Instant::now() < end
            && !visitors.iter().any(|thread| thread.is_finished())
            && !users.iter().any(|thread| thread.is_finished())
        {
            std::thread::sleep(Duration::from_millis(1 + random.below(12)));
            open = !open;
            flips.flip(&mut admin, open);
        }
        stop.store(true, Ordering::Relaxed);
        users.into_iter().for_each(|thread| thread.join().unwrap());
        visitors.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{visits} visits, {} flips", flips.0.lock().unwrap().len());
    // In the end it is as Redis says.
    flips.flip(&mut admin, false);
    assert_eq!(Wire::connect(port).cmd("GET k"), NOAUTH);
    flips.flip(&mut admin, true);
    assert_eq!(Wire::connect(port).cmd("GET k"), "$1\r\nv\r\n");
}

#[test]
fn everybody_gets_what_redis_could_have_said() {
    flipping("[listen]\nworkers = 1");
}

#[test]
fn everybody_gets_what_redis_could_have_said_with_several_workers() {
    flipping("[listen]\nworkers = 3");
}

/// Many at once ask for the first time: one question is enough, and none of them is forgotten.
#[test]
fn a_crowd_gets_its_answer() {
    let redis = Redis::start();
    let proxy = Proxy::configured(&redis, "[listen]\nworkers = 1");
    let mut admin = Wire::connect(redis.port);
    admin.cmd("SET k v");
    for round in 0..6 {
        let closed = round % 2 == 1;
        admin.cmd(if closed { "CONFIG SET requirepass pw" } else { "CONFIG SET requirepass " });
        let mut crowd: Vec<Wire> = (0..200).map(|_| Wire::connect(proxy.port)).collect();
        crowd.iter_mut().for_each(|wire| wire.send(b"GET k\r\n"));
        for wire in &mut crowd {
            let reply = wire.reply().map(|reply| String::from_utf8(reply).unwrap());
            assert_eq!(reply.as_deref(), Ok(if closed { NOAUTH } else { "$1\r\nv\r\n" }), "{round}");
        }
    }
}

/// What the first clients may ask of a Redis that cannot be reached.
const FIRST: [&str; 8] =
    ["GET k", "MULTI", "SUBSCRIBE c", "BLPOP q 0", "TAG.KEYS Post", "SELECT 1", "HELLO 3", "CLIENT ID"];

/// Whose clients are disconnected when it fails.
fn prepares(line: &str) -> bool {
    ["MULTI", "SELECT", "HELLO", "AUTH"].iter().any(|word| line.starts_with(word))
}

#[test]
fn the_first_clients_of_all_find_no_redis() {
    let mut redis = Redis::start();
    redis.kill();
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", redis.port), RULES, &[]);
    let mut clients: Vec<Wire> = FIRST.iter().map(|_| Wire::connect(proxy.port)).collect();
    for (wire, line) in clients.iter_mut().zip(FIRST) {
        let reply = wire.cmd(line);
        assert!(reply.starts_with("-ERR upstream"), "{line}: {reply}");
    }
    // A big one is told so as well, and is not waited for.
    let mut big = Wire::connect(proxy.port);
    big.send(&encode(&["SET", "k", &"x".repeat(1 << 20)])[..400_000]);
    assert!(big.text().starts_with("-ERR upstream"));
    redis.restart();
    for (wire, line) in clients.iter_mut().zip(FIRST).filter(|(_, line)| !prepares(line)) {
        eventually(line, || (wire.cmd("GET k") == "$-1\r\n").then_some(()));
    }
    assert_eq!(Wire::connect(proxy.port).cmd("MULTI"), "+OK\r\n");
}

#[test]
fn the_first_clients_of_all_find_a_redis_that_does_not_answer() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    redis.signal("-STOP");
    let mut clients: Vec<Wire> = FIRST.iter().map(|_| Wire::connect(proxy.port)).collect();
    for (wire, line) in clients.iter_mut().zip(FIRST) {
        wire.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        wire.send(&encode(&line.split(' ').collect::<Vec<_>>()));
    }
    for (wire, line) in clients.iter_mut().zip(FIRST) {
        let reply = wire.text();
        assert!(reply.starts_with("-ERR upstream"), "{line}: {reply}");
    }
    redis.signal("-CONT");
    for (wire, line) in clients.iter_mut().zip(FIRST).filter(|(_, line)| !prepares(line)) {
        eventually(line, || (wire.cmd("GET k") == "$-1\r\n").then_some(()));
    }
}

/// There is a connection, on which the question whether the next client needs AUTH gets no answer.
#[test]
fn a_newcomer_while_redis_hangs_is_told_and_served_later() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut old = Wire::connect(proxy.port);
    assert_eq!(old.cmd("GET k"), "$-1\r\n");
    redis.signal("-STOP");
    let mut late = Wire::connect(proxy.port);
    late.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    late.send(b"GET k\r\n");
    let reply = late.text();
    assert!(reply.starts_with("-ERR upstream"), "{reply}");
    redis.signal("-CONT");
    eventually("the late one is served", || (late.cmd("GET k") == "$-1\r\n").then_some(()));
    assert_eq!(old.cmd("GET k"), "$-1\r\n");
    // A short pause is waited for.
    redis.signal("-STOP");
    let mut patient = Wire::connect(proxy.port);
    patient.send(b"GET k\r\n");
    std::thread::sleep(Duration::from_millis(300));
    redis.signal("-CONT");
    assert_eq!(patient.text(), "$-1\r\n");
}
