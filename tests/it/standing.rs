//! Clients without AUTH while a password comes and goes. Redis decides for each client when it connects, and so it
//! must look through the proxy, although one connection carries many clients.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::differential::Wire;
use crate::support::{Proxy, Redis, encode};

pub const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";

/// Ways to want a password from now on, and to want none again.
pub const WAYS: [(&str, &str); 3] = [
    ("CONFIG SET requirepass pw", "CONFIG SET requirepass "),
    ("ACL SETUSER default >pw", "ACL SETUSER default nopass"),
    ("ACL SETUSER default off", "ACL SETUSER default on"),
];

/// What a client may begin with.
const FIRST: [&str; 22] = [
    "GET k",
    "SET k x",
    "PING",
    "ECHO x",
    "MULTI",
    "WATCH k",
    "SUBSCRIBE c",
    "PSUBSCRIBE c*",
    "BLPOP q 0.01",
    "WAIT 0 0",
    "SELECT 1",
    "CLIENT ID",
    "CLIENT SETNAME me",
    "CLIENT TRACKING ON",
    "CLIENT REPLY OFF",
    "EVAL return(1) 0",
    "SCRIPT KILL",
    "PUBLISH c m",
    "SWAPDB 0 1",
    "FLUSHALL",
    "MONITOR",
    "SET app:1:model:Post:7 1",
];

/// The proxy's own commands.
const OWN: [&str; 6] =
    ["TAG.INVALIDATE Post", "TAG.KEYS Post", "TAG.OF k", "TAG.ADD k t", "TAG.WITH 1 t SET k x", "TAG.NEXT t"];

pub struct World {
    pub redis: Redis,
    pub proxy: Proxy,
    /// Connected before there was any password.
    pub admin: Wire,
}

impl World {
    pub fn new() -> Self {
        Self::with("")
    }

    pub fn with(config: &str) -> Self {
        let redis = Redis::with(&"--user joe on >pw +@all ~* &*".split(' ').collect::<Vec<_>>());
        let proxy = Proxy::configured(&redis, config);
        let mut admin = Wire::connect(redis.port);
        assert_eq!(admin.cmd("SET k v"), "+OK\r\n");
        Self { redis, proxy, admin }
    }

    pub fn set(&mut self, line: &str) {
        assert_eq!(self.admin.cmd(line), "+OK\r\n", "{line}");
    }

    pub fn client(&self) -> Wire {
        Wire::connect(self.proxy.port)
    }

    pub fn pair(&self) -> Pair {
        Pair { direct: Wire::connect(self.redis.port), proxied: self.client() }
    }
}

/// Two clients that do the same, one of them straight at Redis.
pub struct Pair {
    pub direct: Wire,
    pub proxied: Wire,
}

impl Pair {
    /// The reply that both got.
    pub fn same(&mut self, line: &str) -> String {
        let (expected, got) = (self.direct.cmd(line), self.proxied.cmd(line));
        assert_eq!(got, expected, "{line}");
        got
    }
}

#[test]
fn who_came_before_the_password_goes_on_and_who_comes_after_it_does_not() {
    for (close, _) in WAYS {
        let mut world = World::new();
        let mut old: Vec<Pair> = (0..3).map(|_| world.pair()).collect();
        old.iter_mut().for_each(|pair| assert_eq!(pair.same("GET k"), "$1\r\nv\r\n"));
        // They have transactions of their own behind them: there are idle connections.
        old.iter_mut().for_each(|pair| drop((pair.same("MULTI"), pair.same("EXEC"))));
        world.set(close);
        for line in FIRST {
            assert_eq!(world.pair().same(line), NOAUTH, "{close}: {line}");
            old.iter_mut().for_each(|pair| assert_eq!(pair.same("GET k"), "$1\r\nv\r\n", "{close}: {line}"));
        }
        for line in OWN {
            assert_eq!(world.client().cmd(line), NOAUTH, "{close}: {line}");
        }
        assert!(world.pair().same("HELLO 3").starts_with("-NOAUTH"), "{close}");
        assert_eq!(world.pair().same("RESET"), "+RESET\r\n");
        assert_eq!(world.pair().same("QUIT"), "+OK\r\n");
        assert_eq!(world.pair().same("AUTH joe pw"), "+OK\r\n");
        assert!(world.pair().same("AUTH joe wrong").starts_with("-WRONGPASS"), "{close}");
        let mut many = world.pair();
        assert_eq!([many.same("GET k"), many.same("SET k x"), many.same("PING")], [NOAUTH; 3]);
        assert_eq!(world.admin.cmd("GET k"), "$1\r\nv\r\n", "{close}");
    }
}

/// The very first thing that the proxy hears of the password is this client's request.
#[test]
fn the_first_one_after_the_password_is_refused_whatever_it_asks() {
    let mut world = World::new();
    let (close, open) = WAYS[0];
    for line in FIRST.iter().chain(&OWN) {
        let mut old = world.client();
        assert_eq!(old.cmd("GET k"), "$1\r\nv\r\n", "{line}");
        world.set(close);
        assert_eq!(world.client().cmd(line), NOAUTH, "{line}");
        assert_eq!(old.cmd("GET k"), "$1\r\nv\r\n", "{line}");
        world.set(open);
    }
    assert_eq!(world.admin.cmd("GET k"), "$1\r\nv\r\n");
}

#[test]
fn a_big_first_request_is_refused_and_does_not_run() {
    let mut world = World::new();
    let mut old = world.client();
    assert_eq!(old.cmd("GET k"), "$1\r\nv\r\n");
    world.set(WAYS[0].0);
    let request = encode(&["SET", "big", &"x".repeat(1 << 20)]);
    for round in 0..3 {
        let mut client = world.client();
        // The whole of it need not be taken: Redis itself breaks such a client off.
        client.send(&request[..300_000 + round]);
        let reply = client.text();
        assert!(
            reply == NOAUTH || reply.starts_with("-ERR Protocol error: unauthenticated"),
            "{round}: {reply}"
        );
        client.send(&request[300_000 + round..]);
        drop(client);
        let mut client = world.client();
        client.send(&request);
        match client.reply() {
            Ok(reply) => assert!(reply.starts_with(b"-"), "{round}: {}", reply.escape_ascii()),
            Err(what) => assert!(what.starts_with("closed"), "{round}: {what}"),
        }
        assert_eq!(old.cmd("EXISTS big"), ":0\r\n", "{round}");
    }
}

/// Whoever shares a connection with the question must not matter: slow readers, transactions, users.
#[test]
fn the_refusal_comes_whatever_others_do() {
    let mut world = World::new();
    world.admin.call(&["SET", "big", &"x".repeat(1 << 20)]);
    let port = world.proxy.port;
    let mut slow = [Wire::connect(port), Wire::connect(port)];
    slow.iter_mut().for_each(|wire| assert_eq!(wire.cmd("GET k"), "$1\r\nv\r\n"));
    world.set(WAYS[0].0);
    slow.iter_mut().for_each(|wire| wire.send("GET big\r\n".repeat(60).as_bytes()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut user = Wire::connect(port);
                assert_eq!(user.cmd("AUTH joe pw"), "+OK\r\n");
                for line in ["MULTI", "ACL WHOAMI", "EXEC", "SELECT 2", "GET k", "WATCH k"] {
                    assert!(!user.cmd(line).starts_with('-'), "{line}");
                }
            }
        });
        let finished = std::panic::catch_unwind(|| {
            for line in FIRST.iter().chain(&OWN).cycle().take(100) {
                assert_eq!(Wire::connect(port).cmd(line), NOAUTH, "{line}");
            }
        });
        stop.store(true, Ordering::Relaxed);
        finished.unwrap();
    });
    for wire in &mut slow {
        (0..60).for_each(|_| assert_eq!(wire.reply().unwrap().len(), (1 << 20) + 12));
    }
}

#[test]
fn once_there_is_no_password_all_are_let_in() {
    for (close, open) in WAYS {
        let mut world = World::new();
        world.set(close);
        let mut early = world.pair();
        assert_eq!(early.same("GET k"), NOAUTH);
        world.set(open);
        // Whoever was refused may go on, as with Redis.
        assert_eq!(early.same("GET k"), "$1\r\nv\r\n", "{open}");
        for line in ["GET k", "ECHO x", "MULTI", "WATCH k", "SUBSCRIBE c", "SELECT 1", "CLIENT SETNAME me"] {
            assert!(!world.pair().same(line).starts_with('-'), "{open}: {line}");
        }
        for line in OWN {
            assert!(!world.client().cmd(line).starts_with('-'), "{open}: {line}");
        }
        assert!(world.client().cmd("HELLO 3").starts_with('%'), "{open}");
    }
}

#[test]
fn one_that_was_refused_can_do_everything_once_there_is_no_password() {
    for (close, open) in WAYS {
        for line in ["MULTI", "WATCH k", "BLPOP q 0.01", "SUBSCRIBE c", "SELECT 3", "CLIENT SETNAME me"] {
            let mut world = World::new();
            world.set(close);
            let mut early = world.pair();
            assert_eq!(early.same("GET k"), NOAUTH);
            world.set(open);
            let (expected, got) = (early.direct.cmd(line), early.proxied.cmd(line));
            assert!(!expected.starts_with('-'), "{open}: {line}");
            assert!(!got.starts_with('-'), "{open}: {line}: {got}");
        }
    }
}

/// As long as the proxy knows of a password, the limits for clients without AUTH hold; that may be out of date.
#[test]
fn once_there_is_no_password_the_first_request_may_be_long() {
    let fifty = ["MGET"].into_iter().chain(["k"; 49]).collect::<Vec<_>>();
    let inline = format!("{}\r\n", fifty.join(" ")).into_bytes();
    let (long, very_long) = ("x".repeat(100_000), "x".repeat(1 << 20));
    let requests =
        [encode(&fifty), inline, encode(&["SET", "long", &long]), encode(&["SET", "long", &very_long])];
    let mut wrong = vec![];
    for (name, request) in ["50 arguments", "50 arguments in a line", "100 KB", "1 MB"].iter().zip(requests) {
        let mut world = World::new();
        world.set(WAYS[0].0);
        let mut refused = world.client();
        assert_eq!(refused.cmd("GET k"), NOAUTH);
        world.set(WAYS[0].1);
        for (who, mut client) in [("new", world.client()), ("refused before", refused)] {
            client.send(&request);
            let reply = client.text();
            if !reply.starts_with("*49\r\n") && reply != "+OK\r\n" {
                wrong.push(format!("{name}, {who}: {reply:.99}"));
            }
            // Proves that it stands where it should.
            assert_eq!(client.cmd("GET k"), "$1\r\nv\r\n", "{name}, {who}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One that was refused has not become the default user by being let in once: Redis judges each of its commands.
#[test]
fn one_that_was_refused_is_refused_again() {
    let fifty = ["MGET"].into_iter().chain(["k"; 49]).collect::<Vec<_>>();
    for (close, open) in WAYS {
        for first in [vec!["GET", "k"], fifty.clone()] {
            let mut world = World::new();
            world.set(close);
            let mut pair = world.pair();
            assert_eq!(pair.same("GET k"), NOAUTH);
            world.set(open);
            let replies = [pair.direct.call(&first), pair.proxied.call(&first)];
            assert_eq!(replies[1], replies[0], "{open}");
            world.set(close);
            assert_eq!(pair.same("GET k"), NOAUTH, "{close}, after {} words", first.len());
            assert_eq!(pair.same("SET k x"), NOAUTH, "{close}, after {} words", first.len());
        }
    }
}

#[test]
fn on_and_off_and_on_again() {
    for (close, open) in WAYS {
        let mut world = World::new();
        let mut pairs: Vec<Pair> = vec![];
        for round in 0..6 {
            world.set(if round % 2 == 0 { open } else { close });
            for _ in 0..2 {
                let mut pair = world.pair();
                // Who has not said anything yet came when it came, too.
                if pairs.len().is_multiple_of(2) {
                    pair.same("GET k");
                }
                pairs.push(pair);
            }
            for (number, pair) in pairs.iter_mut().enumerate() {
                for line in ["GET k", "ACL WHOAMI", "SET k v"] {
                    let (expected, got) = (pair.direct.cmd(line), pair.proxied.cmd(line));
                    assert_eq!(got, expected, "{close}: round {round}, client {number}: {line}");
                }
            }
        }
    }
}

/// The silent one counts from when it connected, not from when it first spoke.
#[test]
fn one_that_connected_before_the_password_and_was_silent() {
    let mut world = World::new();
    let mut silent = world.pair();
    let mut speaking = world.pair();
    assert_eq!(speaking.same("GET k"), "$1\r\nv\r\n");
    // The connection has been accepted once others behind it are served.
    world.set(WAYS[0].0);
    let reply = silent.proxied.cmd("GET k");
    // Redis let it in when it connected; the proxy had asked nobody then, and may only err to the safe side.
    assert!(reply == "$1\r\nv\r\n" || reply == NOAUTH, "{reply}");
    assert_eq!(silent.direct.cmd("GET k"), "$1\r\nv\r\n");
}

#[test]
fn reset_makes_a_newcomer() {
    for (close, open) in WAYS {
        let mut world = World::new();
        let mut pairs: Vec<Pair> = (0..3).map(|_| world.pair()).collect();
        pairs.iter_mut().for_each(|pair| assert_eq!(pair.same("GET k"), "$1\r\nv\r\n"));
        pairs[1].same("WATCH k");
        pairs[2].same("MULTI");
        world.set(close);
        for pair in &mut pairs {
            assert_eq!(pair.same("RESET"), "+RESET\r\n");
            assert_eq!(pair.same("GET k"), NOAUTH, "{close}");
            assert_eq!(pair.same("MULTI"), NOAUTH, "{close}");
            assert_eq!(pair.same("AUTH joe pw"), "+OK\r\n");
            assert_eq!(pair.same("ACL WHOAMI"), "$3\r\njoe\r\n");
            assert_eq!(pair.same("RESET"), "+RESET\r\n");
            assert_eq!(pair.same("ACL WHOAMI"), NOAUTH, "{close}");
        }
        world.set(open);
        for pair in &mut pairs {
            assert_eq!(pair.same("ACL WHOAMI"), "$7\r\ndefault\r\n", "{open}");
            pair.same("RESET");
            assert_eq!(pair.same("ACL WHOAMI"), "$7\r\ndefault\r\n", "{open}");
        }
    }
}
