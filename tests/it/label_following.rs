//! Explicit labels follow their values: random commands through two proxies against a plain model.
//! `RESCIND_SEED` repeats a run; it is printed on failure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::races::{Random, Seed};
use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

/// Databases, keys in each, tags.
const DBS: u64 = 2;
const KEYS: u64 = 4;
const TAGS: [&str; 3] = ["t", "u", "v"];

/// What should be: the labels of the keys that exist.
type Model = BTreeMap<(u64, u64), BTreeSet<&'static str>>;

/// A command as words, and what it does to the model.
struct Step {
    line: String,
    effect: Box<dyn Fn(&mut Model)>,
}

fn step(line: String, effect: impl Fn(&mut Model) + 'static) -> Step {
    Step { line, effect: Box::new(effect) }
}

/// Overwrites `to` with what is at `from`, labels and all.
fn hand_on(model: &mut Model, from: (u64, u64), to: (u64, u64), moves: bool, replaces: bool) {
    let taken = model.contains_key(&to) && !replaces;
    if from == to || taken {
        return;
    }
    if let Some(labels) = model.get(&from).cloned() {
        model.insert(to, labels);
        if moves {
            model.remove(&from);
        }
    }
}

fn some_tags(random: &mut Random) -> BTreeSet<&'static str> {
    (0..1 + random.below(2)).map(|_| TAGS[random.below(3) as usize]).collect()
}

fn joined(tags: &BTreeSet<&str>) -> String {
    tags.iter().copied().collect::<Vec<_>>().join(" ")
}

/// Commands that may stand anywhere, also inside MULTI.
fn plain(random: &mut Random, db: u64) -> Step {
    let (k, l, other) = (random.below(KEYS), random.below(KEYS), random.below(DBS));
    let (a, b) = ((db, k), (db, l));
    match random.below(13) {
        0..3 => step(format!("RENAME k{k} k{l}"), move |m| hand_on(m, a, b, true, true)),
        3 => step(format!("RENAMENX k{k} k{l}"), move |m| hand_on(m, a, b, true, false)),
        4 => step(format!("COPY k{k} k{l}"), move |m| hand_on(m, a, b, false, false)),
        5 => step(format!("copy k{k} k{l} replace db {other}"), move |m| {
            hand_on(m, a, (other, l), false, true);
        }),
        6 => step(format!("MOVE k{k} {other}"), move |m| hand_on(m, a, (other, k), true, false)),
        7 => step(format!("PEXPIRE k{k} {}", 1_000_000 + random.below(1000)), |_| {}),
        8 => step(format!("PERSIST k{k}"), |_| {}),
        9 => {
            step(format!("SETEX k{k} {} v", 1000 + random.below(1000)), move |m| _ = m.entry(a).or_default())
        }
        // Redis deletes what it overwrites.
        10 => step(format!("RESTORE k{k} 0 DUMP REPLACE"), move |m| _ = m.entry(a).or_default()),
        _ => step(format!("SET k{k} v"), move |m| _ = m.entry(a).or_default()),
    }
}

fn labelled(random: &mut Random, db: u64) -> Step {
    let (k, tags) = (random.below(KEYS), some_tags(random));
    let line = format!("TAG.WITH {} {} SET k{k} v", tags.len(), joined(&tags));
    step(line, move |m| m.entry((db, k)).or_default().extend(&tags))
}

/// Commands for outside MULTI only.
fn outside(random: &mut Random, db: u64) -> Step {
    let (k, l, tags) = (random.below(KEYS), random.below(KEYS), some_tags(random));
    let (a, b) = ((db, k), (db, l));
    match random.below(7) {
        0 => step(format!("TAG.ADD k{k} {}", joined(&tags)), move |m| {
            m.entry(a).and_modify(|labels| labels.extend(&tags));
        }),
        1 => step(format!("TAG.REM k{k} {}", joined(&tags)), move |m| {
            m.entry(a).and_modify(|labels| labels.retain(|tag| !tags.contains(tag)));
        }),
        2 => step(format!("DEL k{k}"), move |m| _ = m.remove(&a)),
        3 => step(format!("PEXPIRE k{k} 0"), move |m| _ = m.remove(&a)),
        4 if k != l => {
            step(format!("TAG.WITH {} {} RENAME k{k} k{l}", tags.len(), joined(&tags)), move |m| {
                let there = m.contains_key(&a);
                hand_on(m, a, b, true, true);
                m.entry(b).and_modify(|labels| labels.extend(tags.iter().filter(|_| there)));
            })
        }
        5 => step("FLUSHDB".to_owned(), move |m| m.retain(|place, _| place.0 != db)),
        _ => labelled(random, db),
    }
}

/// One client of one proxy.
struct User {
    client: Client,
    db: u64,
}

impl User {
    fn select(&mut self, db: u64) {
        if self.db != db {
            assert_eq!(self.client.cmd(&format!("SELECT {db}")), "+OK\r\n");
            self.db = db;
        }
    }

    fn labels(&mut self, place: (u64, u64)) -> BTreeSet<String> {
        self.select(place.0);
        self.client.list(&format!("TAG.OF k{}", place.1)).into_iter().collect()
    }
}

struct World {
    random: Random,
    users: Vec<User>,
    direct: Client,
    /// What RESTORE restores.
    dump: Vec<u8>,
    model: Model,
    history: Vec<String>,
}

impl World {
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            let place = (self.random.below(DBS), self.random.below(KEYS));
            self.check(place);
            if self.random.below(25) == 0 {
                self.invalidate();
            }
        }
        for place in (0..DBS).flat_map(|db| (0..KEYS).map(move |k| (db, k))) {
            self.check(place);
        }
        self.check_redis();
        (0..20).for_each(|_| self.invalidate());
    }

    fn user(&mut self) -> &mut User {
        let n = self.random.below(self.users.len() as u64) as usize;
        &mut self.users[n]
    }

    fn step(&mut self) {
        let n = self.random.below(self.users.len() as u64) as usize;
        let db = self.random.below(DBS);
        self.users[n].select(db);
        let steps = match self.random.below(6) {
            0 => self.transaction(db),
            1..4 => vec![plain(&mut self.random, db)],
            _ => vec![outside(&mut self.random, db)],
        };
        let mut lines: Vec<&str> = steps.iter().map(|step| step.line.as_str()).collect();
        if steps.len() > 1 {
            lines.insert(0, "MULTI");
            lines.push("EXEC");
        }
        let at_once = self.random.below(2) == 0;
        self.history.push(format!("user {n} db {db}: {}", lines.join("; ")));
        let requests: Vec<Vec<u8>> = lines.iter().map(|line| self.request(line)).collect();
        let client = &mut self.users[n].client;
        if at_once {
            client.send(&requests.concat());
            lines.iter().for_each(|_| _ = client.raw());
        } else {
            for request in &requests {
                client.send(request);
                client.raw();
            }
        }
        steps.iter().for_each(|step| (step.effect)(&mut self.model));
    }

    fn request(&self, line: &str) -> Vec<u8> {
        let word = |word| if word == "DUMP" { self.dump.as_slice() } else { str::as_bytes(word) };
        encode(&line.split(' ').map(word).collect::<Vec<_>>())
    }

    /// Some commands that all succeed.
    fn transaction(&mut self, db: u64) -> Vec<Step> {
        let mut model = self.model.clone();
        let mut steps = vec![];
        while steps.len() < 2 + self.random.below(4) as usize {
            let step = match self.random.below(3) {
                0 => labelled(&mut self.random, db),
                _ => plain(&mut self.random, db),
            };
            let source = step.line.split(' ').nth(1).and_then(|key| key[1..].parse().ok());
            // What a command that fails would have handed on is handed on by those behind it.
            let hands_on = ["RENAME", "COPY", "MOVE", "copy"].iter().any(|name| step.line.starts_with(name));
            if hands_on && !source.is_some_and(|k| model.contains_key(&(db, k))) {
                continue;
            }
            if step.line.starts_with("RENAMENX")
                || step.line.starts_with("COPY")
                || step.line.starts_with("MOVE")
            {
                let mut after = model.clone();
                (step.effect)(&mut after);
                if after == model {
                    continue;
                }
            }
            (step.effect)(&mut model);
            steps.push(step);
        }
        steps
    }

    fn check(&mut self, place: (u64, u64)) {
        let expected: BTreeSet<String> =
            self.model.get(&place).into_iter().flatten().map(|tag| (*tag).to_owned()).collect();
        let found = self.user().labels(place);
        assert_eq!(found, expected, "labels of {place:?} after\n{}", self.recent());
    }

    fn recent(&self) -> String {
        self.history[self.history.len().saturating_sub(25)..].join("\n")
    }

    fn invalidate(&mut self) {
        let tag = TAGS[self.random.below(3) as usize];
        let before = self.model.len();
        self.model.retain(|_, labels| !labels.contains(tag));
        let expected = format!(":{}\r\n", before - self.model.len());
        self.history.push(format!("TAG.INVALIDATE {tag}"));
        let reply = self.user().client.cmd(&format!("TAG.INVALIDATE {tag}"));
        for place in (0..DBS).flat_map(|db| (0..KEYS).map(move |k| (db, k))) {
            self.direct.cmd(&format!("SELECT {}", place.0));
            let there = self.direct.cmd(&format!("EXISTS k{}", place.1)) == ":1\r\n";
            assert_eq!(there, self.model.contains_key(&place), "{place:?} after\n{}", self.recent());
        }
        assert_eq!(reply, expected, "after\n{}", self.recent());
    }

    /// The sets in Redis come to hold exactly the labels, with the expiry of their keys.
    fn check_redis(&mut self) {
        for (db, tag) in (0..DBS).flat_map(|db| TAGS.map(|tag| (db, tag))) {
            let labelled = self.model.iter().filter(|(place, labels)| place.0 == db && labels.contains(tag));
            let keys: Vec<u64> = labelled.map(|(place, _)| place.1).collect();
            let (direct, history) = (&mut self.direct, &self.history);
            direct.cmd(&format!("SELECT {db}"));
            let mut last = (vec![], vec![]);
            let line = format!("ZRANGE rescind:tag:{tag} 0 -1 WITHSCORES");
            let deadline = std::time::Instant::now() + crate::support::PATIENCE;
            loop {
                let mut expected: Vec<String> = vec![];
                for k in &keys {
                    let expiry = direct.list(&format!("PEXPIRETIME k{k}"))[0].clone();
                    expected.push(format!("k{k} {}", if expiry == "-1" { "inf" } else { &expiry }));
                }
                let found = direct.list(&line);
                let mut found: Vec<String> =
                    found.chunks(2).map(|pair| format!("{} {}", pair[0], pair[1])).collect();
                found.sort();
                if found == expected {
                    break;
                }
                last = (found, expected);
                let late = std::time::Instant::now() > deadline;
                assert!(!late, "{tag} in {db}: {last:?} after\n{}", history.join("\n"));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            drop(last);
        }
    }
}

/// What DUMP says of a key.
fn dump(direct: &mut Client, key: &str) -> Vec<u8> {
    direct.request(&["DUMP", key]);
    let reply = direct.raw();
    let start = reply.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    reply[start..reply.len() - 2].to_vec()
}

fn schedule(proxies: usize, steps: usize) {
    let seed = Seed::new();
    let redis = Redis::start();
    let proxies: Vec<Proxy> = (0..proxies).map(|_| Proxy::start(&redis, RULES)).collect();
    let users = (0..4).map(|n| User { client: proxies[n % proxies.len()].client(), db: 0 }).collect();
    let mut direct = redis.client();
    direct.cmd("SET dumped v");
    let (dump, model, history) = (dump(&mut direct, "dumped"), Model::new(), vec![]);
    World { random: Random(seed.0), users, direct, dump, model, history }.run(steps);
}

#[test]
fn labels_are_where_a_model_has_them() {
    schedule(1, 1500);
}

#[test]
fn the_same_through_two_proxies_at_once() {
    schedule(2, 1500);
}

/// The latest value of each mover that an invalidation must not leave anywhere.
type Latest = Arc<Vec<AtomicU64>>;

/// Labels values and moves them about, each time through the next of its clients.
fn mover(mut clients: Vec<Client>, own: usize, mut random: Random, latest: Latest, stop: Arc<AtomicBool>) {
    let alone = clients.len() == 1;
    for value in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        clients.rotate_left(1);
        clients[0].cmd(&format!("TAG.WITH 1 L SET a{own} {value}"));
        if alone {
            // Also while it is being moved.
            latest[own].store(value, Ordering::SeqCst);
        }
        clients.rotate_left(1);
        let client = &mut clients[0];
        // An invalidation may come first: then there is nothing to move.
        match random.below(4) {
            0 => {
                client.cmd("MULTI");
                client.cmd(&format!("RENAME a{own} b{own}"));
                client.cmd("EXEC");
            }
            1 => _ = client.cmd(&format!("COPY a{own} b{own} REPLACE")),
            _ => _ = client.cmd(&format!("RENAME a{own} b{own}")),
        }
        clients.rotate_left(1);
        clients[0].cmd(&format!("RENAME b{own} c{own}"));
        latest[own].store(value, Ordering::SeqCst);
    }
}

fn move_and_invalidate(proxies: usize) {
    let seed = Seed::new();
    let redis = Redis::start();
    let proxies: Vec<Proxy> = (0..proxies).map(|_| Proxy::start(&redis, RULES)).collect();
    let latest: Latest = Arc::new((0..3).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let movers: Vec<_> = (0..3)
        .map(|own| {
            let clients = proxies.iter().map(Proxy::client).collect();
            let (random, latest, stop) =
                (Random(seed.0 ^ own as u64), Arc::clone(&latest), Arc::clone(&stop));
            std::thread::spawn(move || mover(clients, own, random, latest, stop))
        })
        .collect();
    let (mut client, mut direct) = (proxies[0].client(), redis.client());
    for round in 0..400 {
        let before: Vec<u64> = latest.iter().map(|value| value.load(Ordering::SeqCst)).collect();
        assert!(!client.cmd("TAG.INVALIDATE L").starts_with('-'));
        for (own, least) in before.into_iter().enumerate() {
            for key in ["a", "b", "c"] {
                let reply = direct.cmd(&format!("GET {key}{own}"));
                let value: u64 = reply.split("\r\n").nth(1).and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
                if value <= least {
                    stop.store(true, Ordering::Relaxed);
                    panic!("round {round}: {key}{own} = {value}, at most {least}");
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    movers.into_iter().for_each(|mover| mover.join().unwrap());
}

/// A value that was labelled is gone when an invalidation is acknowledged that came after it, wherever it was moved or
/// copied meanwhile.
#[test]
fn labelled_values_on_the_move_race_with_invalidations() {
    move_and_invalidate(1);
}

/// Likewise through two proxies, once it has arrived.
#[test]
fn values_labelled_here_and_moved_there_are_invalidated() {
    move_and_invalidate(2);
}

#[test]
fn clients_need_no_right_to_tags_to_rename_and_silent_ones_get_no_reply() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER app on >pw ~k* +@all");
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut app) = (proxy.client(), proxy.client());
    app.cmd("AUTH app pw");
    client.cmd("TAG.WITH 1 t SET k1 v");
    assert_eq!(app.cmd("RENAME k1 k2"), "+OK\r\n");
    assert_eq!(app.cmd("COPY k2 k3"), ":1\r\n");
    assert_eq!(app.cmd("COPY k2 k3"), ":0\r\n");
    assert!(app.cmd("RENAME k2").starts_with("-ERR wrong number"));
    assert!(app.cmd("RENAME knone k2").starts_with("-ERR no such key"));
    assert!(app.cmd("RENAME k2 other").starts_with("-NOPERM"));
    assert!(app.cmd("COPY k2 k4 DB x").starts_with("-ERR"));
    assert_eq!(client.list("TAG.OF k2"), ["t"]);
    assert_eq!(client.cmd("TAG.OF other"), "*0\r\n");
    client.send(b"CLIENT REPLY SKIP\r\nRENAME k2 k5\r\nRENAME k5 k6\r\nPING\r\n");
    assert_eq!((client.raw(), client.raw()), (b"+OK\r\n".to_vec(), b"+PONG\r\n".to_vec()));
    client.send(b"TAG.NEXT u\r\nRENAME k6 k7\r\nTAG.OF k7\r\n");
    assert_eq!((client.raw(), client.raw()), (b"+OK\r\n".to_vec(), b"+OK\r\n".to_vec()));
    assert_eq!(crate::support::texts(&client.raw()).len(), 2);
    assert_eq!(client.cmd("TAG.INVALIDATE t"), ":2\r\n");
    eventually("Redis forgets", || (direct.cmd("KEYS rescind:tag:*") == "*0\r\n").then_some(()));
}

#[test]
fn what_is_queued_hands_on_what_there_is_when_it_runs() {
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, RULES)];
    let (mut client, mut other, mut second) = (proxies[0].client(), proxies[0].client(), proxies[1].client());
    for (end, through) in [("EXEC", 0), ("EXEC", 1), ("DISCARD", 0), ("abort", 0), ("abort", 1)] {
        client.cmd("FLUSHALL");
        client.cmd("TAG.WITH 2 t u SET a v");
        client.cmd("TAG.WITH 1 old SET b v");
        client.cmd("MSET c v d v");
        client.cmd("WATCH watched");
        client.cmd("MULTI");
        assert_eq!(client.cmd("RENAME a b"), "+QUEUED\r\n");
        assert_eq!(client.cmd("TAG.WITH 1 new SET a v"), "+QUEUED\r\n");
        // Without a label until later.
        assert_eq!(client.cmd("RENAME c d"), "+QUEUED\r\n");
        let meanwhile = if through == 0 { &mut other } else { &mut second };
        assert_eq!(meanwhile.cmd("TAG.ADD a late"), ":1\r\n");
        assert_eq!(meanwhile.cmd("TAG.ADD b later"), ":1\r\n");
        assert_eq!(meanwhile.cmd("TAG.ADD c t"), ":1\r\n");
        assert_eq!(meanwhile.cmd("TAG.ADD d u"), ":1\r\n");
        if end == "abort" {
            meanwhile.cmd("INCR watched");
        }
        let done = client.cmd(if end == "abort" { "EXEC" } else { end }).starts_with("*3");
        assert_eq!(done, end == "EXEC");
        let expected: [&[&str]; 4] = match done {
            true => [&["new"], &["late", "t", "u"], &[], &["t"]],
            false => [&["late", "t", "u"], &["later", "old"], &["t"], &["u"]],
        };
        for reader in [&mut client, &mut other, &mut second] {
            for (key, expected) in ["a", "b", "c", "d"].into_iter().zip(expected) {
                let mut labels = reader.list(&format!("TAG.OF {key}"));
                labels.sort();
                assert_eq!(labels, expected, "{key} after {end}, {through}");
            }
        }
        let lines = ["old", "new", "late", "t"].map(|tag| second.cmd(&format!("TAG.INVALIDATE {tag}")));
        let counts = if done { [0, 1, 1, 1] } else { [1, 0, 1, 1] };
        assert_eq!(lines, counts.map(|count| format!(":{count}\r\n")), "{end}, {through}");
    }
}

/// What others label while commands are queued follows its value as well, whichever of these come to something; and nothing
/// follows that only a command gave which did not write.
#[test]
fn what_is_labelled_between_two_queued_commands_follows_through_both() {
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, RULES)];
    let (mut client, mut direct) = (proxies[0].client(), redis.client());
    // The commands, ahead of which of them `y` is labelled with `g`, and what labels `x` has then.
    let cases: [(&[&str], usize, &[&str]); 10] = [
        (&["RENAME x y", "RENAME y x"], 1, &["g"]),
        (&["COPY x y", "RENAME y x"], 1, &["g"]),
        (&["COPY x y REPLACE", "COPY y x REPLACE"], 1, &["g"]),
        (&["MOVE x 1", "COPY y x"], 1, &["g"]),
        (&["TAG.WITH 1 g SET y v NX", "RENAME y x"], 1, &["g"]),
        (&["TAG.WITH 1 h APPEND y v", "COPY y x"], 1, &["g", "h"]),
        (&["RENAME y x", "TAG.WITH 1 g SET y v"], 2, &["g"]),
        (&["RENAME y z", "RENAME z x"], 2, &["g"]),
        (&["TAG.WITH 1 h SET y v NX", "COPY y x"], 0, &["g"]),
        (&["COPY y x", "TAG.WITH 1 h SET y v NX"], 1, &["g"]),
    ];
    for (through, (queued, at, expected)) in
        [0, 1].into_iter().flat_map(|proxy| cases.map(|case| (proxy, case)))
    {
        let mut other = proxies[through].client();
        direct.cmd("FLUSHALL");
        let mut label = || assert_eq!(other.cmd("TAG.WITH 1 g SET y new"), "+OK\r\n");
        assert_eq!(client.cmd("MULTI"), "+OK\r\n");
        for (number, command) in queued.iter().enumerate() {
            if number == at {
                label();
            }
            assert_eq!(client.cmd(command), "+QUEUED\r\n");
        }
        if queued.len() == at {
            label();
        }
        client.cmd("EXEC");
        for reader in [&mut client, &mut other] {
            let mut labels = reader.list("TAG.OF x");
            labels.sort();
            assert_eq!(labels, expected, "{queued:?}, labelled ahead of {at} through {through}");
        }
        other.cmd("TAG.INVALIDATE g");
        assert_eq!(direct.cmd("EXISTS x"), ":0\r\n", "{queued:?}, labelled ahead of {at} through {through}");
    }
}
