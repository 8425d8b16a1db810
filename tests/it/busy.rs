//! A Redis that is busy with a script, or pauses its clients: what must get through does, and the rest is told or
//! waits as it would at Redis itself.

use std::time::Duration;

use crate::differential::Wire;
use crate::support::{Client, PATIENCE, Proxy, Redis, encode, eventually};

const ENDLESS: [&str; 3] = ["EVAL", "while true do end", "0"];

struct World {
    redis: Redis,
    proxy: Proxy,
}

impl World {
    fn new(config: &str) -> Self {
        let args = "--busy-reply-threshold 10 --user joe on >pw +@all ~* &*";
        let redis = Redis::with(&args.split(' ').collect::<Vec<_>>());
        let proxy = Proxy::configured(&redis, config);
        Self { redis, proxy }
    }

    fn client(&self, lines: &[&str]) -> Wire {
        let mut wire = Wire::connect(self.proxy.port);
        wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for line in lines {
            let reply = wire.cmd(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
        wire
    }

    /// Has a script run for ever; the client that asked for it.
    fn endless(&self, lines: &[&str]) -> Wire {
        let mut wire = self.client(lines);
        wire.send(&encode(&ENDLESS));
        let mut straight = self.redis.client();
        eventually("Redis is busy", || {
            let reply = straight.cmd("AUTH joe pw");
            assert_eq!(reply, "+OK\r\n");
            straight.cmd("PING").starts_with("-BUSY").then_some(())
        });
        noticed();
        wire
    }
}

/// What the proxy has sent behind a command before it can know that it takes long waits with it. It knows after 20 ms.
fn noticed() {
    std::thread::sleep(Duration::from_millis(200));
}

fn is_busy(reply: &str) -> bool {
    reply.starts_with("-BUSY Redis is busy running a script")
}

/// Ends the script by what `killer` says, and sees that all is well again; what went wrong.
fn killed(world: &World, mut killer: Wire, mut victim: Wire) -> Result<(), String> {
    let reply = killer.cmd("SCRIPT KILL");
    if reply != "+OK\r\n" {
        Wire::connect(world.redis.port).cmd("SCRIPT KILL");
        return Err(reply);
    }
    let reply = victim.text();
    assert!(reply.starts_with("-ERR Script killed"), "{reply}");
    for wire in [&mut killer, &mut victim, &mut world.client(&[])] {
        assert_eq!(wire.cmd("ECHO x"), "$1\r\nx\r\n");
    }
    assert!(killer.cmd("SCRIPT KILL").starts_with("-NOTBUSY"));
    Ok(())
}

#[test]
fn a_script_that_does_not_end_can_be_killed_by_anybody() {
    let mut wrong = vec![];
    for first in [&[][..], &["AUTH joe pw"], &["SELECT 3"], &["WATCH k"]] {
        for lines in [
            &[][..],
            &["SELECT 3"],
            &["SELECT 3", "GET k"],
            &["SELECT 3", "MULTI", "EXEC", "GET k"],
            &["AUTH joe pw"],
            &["AUTH joe pw", "SELECT 2", "GET k"],
            &["HELLO 3"],
            &["HELLO 3 AUTH joe pw", "SELECT 2"],
        ] {
            let world = World::new("[listen]\nworkers = 1");
            // Who runs it may be on the connection that the others use, too.
            let killer = world.client(lines);
            let victim = world.endless(first);
            if let Err(reply) = killed(&world, killer, victim) {
                wrong.push(format!("{lines:?}, while {first:?} runs it: {reply}"));
            }
        }
        // Who says who it is only now: Redis takes that while it is busy.
        let world = World::new("[listen]\nworkers = 1");
        let victim = world.endless(first);
        if let Err(reply) = killed(&world, world.client(&["AUTH joe pw"]), victim) {
            wrong.push(format!("a late user, while {first:?} runs it: {reply}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_script_can_be_killed_by_one_in_a_transaction_or_with_a_name() {
    let world = World::new("");
    let mut killer = world.client(&["CLIENT SETNAME me"]);
    let mut victim = world.endless(&[]);
    assert_eq!(killer.cmd("SCRIPT KILL"), "+OK\r\n");
    assert!(victim.text().starts_with("-ERR Script killed"));
    assert_eq!(killer.cmd("CLIENT GETNAME"), "$2\r\nme\r\n");
    // Queued, it would run too late; that is Redis's own view.
    let mut watcher = world.client(&["WATCH k"]);
    let mut victim = world.endless(&[]);
    assert_eq!(watcher.cmd("SCRIPT KILL"), "+OK\r\n");
    assert!(victim.text().starts_with("-ERR Script killed"));
    assert_eq!(watcher.cmd("MULTI"), "+OK\r\n");
    assert_eq!(watcher.cmd("EXEC"), "*0\r\n");
}

#[test]
fn others_are_told_that_redis_is_busy_and_go_on_afterwards() {
    let world = World::new("[listen]\nworkers = 1");
    let mut others = vec![
        world.client(&["GET k"]),
        world.client(&["AUTH joe pw", "GET k"]),
        world.client(&["SELECT 3", "GET k"]),
        world.client(&["HELLO 3", "GET k"]),
        world.client(&["WATCH k"]),
    ];
    let mut listening = world.client(&["SUBSCRIBE c"]);
    let victim = world.endless(&[]);
    for round in 0..3 {
        for (number, wire) in others.iter_mut().enumerate() {
            for line in ["GET k", "SET k v", "PING"] {
                let reply = wire.cmd(line);
                assert!(is_busy(&reply), "{round}: client {number}: {line}: {reply}");
            }
        }
        let reply = world.client(&[]).cmd("GET k");
        assert!(is_busy(&reply), "a fresh client: {reply}");
    }
    let mut straight = Wire::connect(world.redis.port);
    let mut fresh = world.client(&[]);
    for line in ["CLIENT ID", "SELECT 1", "BLPOP q 0", "SUBSCRIBE d", "SET app:1:model:Post:7 1"] {
        assert_eq!(fresh.cmd(line), straight.cmd(line), "{line}");
    }
    killed(&world, world.client(&[]), victim).unwrap();
    for wire in &mut others {
        assert!(!wire.cmd("GET k").starts_with('-'));
    }
    assert_eq!(world.client(&[]).cmd("PUBLISH c m"), ":1\r\n");
    assert!(listening.text().contains("message"));
    eventually("the proxy is well", || (world.proxy.http("GET", "/readyz", &[], "").0 == 200).then_some(()));
}

/// With a password the question whether a newcomer needs it is answered by a Redis that is busy, too.
#[test]
fn a_busy_redis_still_wants_its_password() {
    let world = World::new("[listen]\nworkers = 1");
    let mut admin = Wire::connect(world.redis.port);
    let mut old = world.client(&["GET k"]);
    admin.cmd("CONFIG SET requirepass pw");
    let mut victim = world.endless(&["AUTH joe pw"]);
    for line in ["GET k", "SCRIPT KILL", "MULTI", "PING"] {
        let reply = world.client(&[]).cmd(line);
        assert!(reply.starts_with("-NOAUTH"), "{line}: {reply}");
    }
    let reply = old.cmd("GET k");
    assert!(is_busy(&reply), "{reply}");
    let mut killer = world.client(&["AUTH joe pw"]);
    assert_eq!(killer.cmd("SCRIPT KILL"), "+OK\r\n");
    assert!(victim.text().starts_with("-ERR Script killed"));
    assert_eq!(old.cmd("GET k"), "$-1\r\n");
}

fn info(direct: &mut Client, field: &str) -> String {
    let reply = direct.cmd("INFO clients");
    reply.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default().to_owned()
}

#[test]
fn writes_that_are_paused_go_on_when_anybody_ends_the_pause() {
    for ending in [&[][..], &["SELECT 3"], &["AUTH joe pw"], &["GET k"], &["WATCH k"]] {
        let world = World::new("[listen]\nworkers = 1");
        let mut direct = world.redis.client();
        direct.cmd("SET k v");
        let (mut reader, mut writer) = (world.client(&["GET k"]), world.client(&["GET k"]));
        let mut ender = world.client(ending);
        assert_eq!(world.client(&[]).cmd("CLIENT PAUSE 100000 WRITE"), "+OK\r\n");
        writer.send(&encode(&["SET", "k", "new"]));
        eventually("the write waits", || (info(&mut direct, "blocked_clients:") != "0").then_some(()));
        noticed();
        // Reads are not held up, nor are newcomers.
        for _ in 0..5 {
            assert_eq!(world.client(&[]).cmd("GET k"), "$1\r\nv\r\n", "{ending:?}");
            assert_eq!(reader.cmd("GET k"), "$1\r\nv\r\n", "{ending:?}");
        }
        let mut another = world.client(&["MULTI"]);
        // Even queueing it waits.
        another.send(b"INCR n\r\nEXEC\r\n");
        assert_eq!(ender.cmd("CLIENT UNPAUSE"), "+OK\r\n", "{ending:?}");
        assert_eq!(writer.text(), "+OK\r\n", "{ending:?}");
        assert_eq!(another.text(), "+QUEUED\r\n", "{ending:?}");
        assert_eq!(another.text(), "*1\r\n:1\r\n", "{ending:?}");
        assert_eq!(reader.cmd("GET k"), "$3\r\nnew\r\n", "{ending:?}");
    }
}

/// Redis holds up everything then, CLIENT UNPAUSE included.
#[test]
fn a_pause_of_everything_passes() {
    let world = World::new("[listen]\nworkers = 1");
    let mut old = world.client(&["SET k v"]);
    assert_eq!(world.client(&[]).cmd("CLIENT PAUSE 1500 ALL"), "+OK\r\n");
    let mut fresh = world.client(&[]);
    fresh.send(&encode(&["GET", "k"]));
    let mut user = world.client(&[]);
    user.send(b"AUTH joe pw\r\nGET k\r\n");
    old.send(b"GET k\r\n");
    assert_eq!(old.text(), "$1\r\nv\r\n");
    assert_eq!(fresh.text(), "$1\r\nv\r\n");
    assert_eq!((user.text(), user.text()), ("+OK\r\n".to_owned(), "$1\r\nv\r\n".to_owned()));
}

/// What goes without a script can be seen before it is looked at.
#[test]
fn a_fill_right_behind_a_time_in_which_redis_was_loading_is_compared_in_the_same_step() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let proxy = Proxy::configured(&redis, "");
    let mut straight = redis.client();
    straight.cmd("DEBUG POPULATE 300 k 200");
    straight.cmd("CONFIG SET key-load-delay 2000 loading-process-events-interval-bytes 1024");
    let mut loader = Wire::connect(redis.port);
    loader.send(&encode(&["DEBUG", "RELOAD"]));
    eventually("Redis is loading", || straight.cmd("PING").starts_with("-LOADING").then_some(()));
    // Whether scripts are possible is asked on a new connection now, and not answered.
    straight.cmd("CLIENT KILL TYPE normal SKIPME yes");
    let mut client = Wire::connect(proxy.port);
    let early = client.cmd("GET app:1:blog_posts_1");
    assert!(early.starts_with("-LOADING"), "{early}");
    eventually("Redis has loaded", || (straight.cmd("PING") == "+PONG\r\n").then_some(()));
    straight.cmd("CONFIG RESETSTAT");
    assert_eq!(client.cmd("GET app:1:blog_posts_1"), "$-1\r\n");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(client.cmd("SET app:1:blog_posts_1 new"), "+OK\r\n");
    let counts = straight.cmd("INFO commandstats");
    assert!(counts.contains("cmdstat_set:calls=1,"), "{counts}");
    assert!(counts.contains("cmdstat_eval:calls=1,"), "{counts}");
}
