//! Connections that Redis ends: because somebody asked it to, which is meant for the clients, or because it goes away
//! itself, which is not.

use crate::differential::Wire;
use crate::support::{Client, Proxy, RULES, Redis, client_list, encode, eventually};

const USERS: &str = "--user joe on >pw +@all ~* &* --user ann on >pw +@all ~* &*";

struct World {
    redis: Redis,
    proxy: Proxy,
    direct: Client,
}

impl World {
    fn new() -> Self {
        let redis = Redis::with(&USERS.split(' ').collect::<Vec<_>>());
        let proxy = Proxy::start(&redis, RULES);
        let direct = redis.client();
        Self { redis, proxy, direct }
    }

    /// A client that has said these lines.
    fn client(&self, lines: &[&str]) -> Wire {
        Wire::having_said(self.proxy.port, lines)
    }

    /// `field` of all connections of `user`.
    fn of(&mut self, user: &str, field: &str) -> Vec<String> {
        let all = client_list(&mut self.direct);
        all.iter().filter(|client| client["user"] == user).map(|client| client[field].clone()).collect()
    }

    /// All of `gone` are disconnected without a word, `joe` has no connection and gets no new one.
    fn only_these_go(&mut self, what: &str, gone: Vec<Wire>, mut staying: Vec<Wire>) {
        let ends: Vec<_> = gone.into_iter().map(|mut wire| wire.rest()).collect();
        assert!(ends.iter().all(|end| *end == Ok(vec![])), "{what}: {ends:?}");
        for wire in &mut staying {
            assert_eq!(wire.cmd("ECHO x"), "$1\r\nx\r\n", "{what}");
        }
        assert_eq!(self.of("joe", "id"), [""; 0], "{what}");
        // Nothing comes of it later either: the proxy has turned to its own once a second by then.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert_eq!(self.of("joe", "id"), [""; 0], "{what}");
    }
}

/// joe's clients: some share a connection, others have one of their own, some only have said who they are.
fn joes(world: &World) -> Vec<Wire> {
    let joe = "AUTH joe pw";
    vec![
        world.client(&[joe]),
        world.client(&[joe]),
        world.client(&[joe, "GET k"]),
        world.client(&[joe, "MULTI"]),
        world.client(&[joe, "WATCH k", "UNWATCH"]),
        world.client(&[joe, "SUBSCRIBE c"]),
        world.client(&[joe, "SELECT 3", "GET k"]),
        world.client(&["HELLO 3 AUTH joe pw"]),
        world.client(&[joe, "CLIENT SETNAME joe"]),
    ]
}

fn others(world: &World) -> Vec<Wire> {
    vec![world.client(&["GET k"]), world.client(&["AUTH ann pw"]), world.client(&["AUTH ann pw", "SELECT 3"])]
}

#[test]
fn killing_a_user_cuts_all_its_clients_and_no_others() {
    let mut world = World::new();
    let (gone, staying) = (joes(&world), others(&world));
    assert!(!world.direct.cmd("CLIENT KILL USER joe").starts_with(":0"));
    world.only_these_go("KILL USER", gone, staying);
    // It may come back.
    assert_eq!(world.client(&["AUTH joe pw"]).cmd("ACL WHOAMI"), "$3\r\njoe\r\n");
}

#[test]
fn deleting_a_user_cuts_all_its_clients_and_no_others() {
    let mut world = World::new();
    let (gone, staying) = (joes(&world), others(&world));
    assert_eq!(world.direct.cmd("ACL DELUSER joe"), ":1\r\n");
    world.only_these_go("DELUSER", gone, staying);
    assert!(Wire::connect(world.proxy.port).cmd("AUTH joe pw").starts_with("-WRONGPASS"));
}

/// The shared connection as CLIENT LIST shows it stands for all that are on it.
#[test]
fn killing_a_connection_cuts_who_is_on_it() {
    for way in ["ID", "ADDR", "old"] {
        let mut world = World::new();
        let gone = vec![
            world.client(&["AUTH joe pw", "GET k"]),
            world.client(&["AUTH joe pw", "GET k"]),
            world.client(&["AUTH joe pw", "GET k"]),
        ];
        let staying = others(&world);
        let field = if way == "ID" { "id" } else { "addr" };
        for value in world.of("joe", field) {
            let line = match way {
                "old" => format!("CLIENT KILL {value}"),
                _ => format!("CLIENT KILL {way} {value}"),
            };
            assert!([":1\r\n", "+OK\r\n"].contains(&world.direct.cmd(&line).as_str()), "{line}");
        }
        world.only_these_go(way, gone, staying);
    }
}

#[test]
fn killing_a_connection_of_its_own_cuts_only_its_client() {
    let mut world = World::new();
    for lines in [
        &["AUTH joe pw", "MULTI"][..],
        &["AUTH joe pw", "WATCH k"],
        &["AUTH joe pw", "SUBSCRIBE c"],
        &["AUTH joe pw", "CLIENT SETNAME me"],
        &["AUTH joe pw", "CLIENT TRACKING ON"],
    ] {
        let gone = world.client(lines);
        let staying = others(&world);
        for id in world.of("joe", "id") {
            world.direct.cmd(&format!("CLIENT KILL ID {id}"));
        }
        world.only_these_go(lines[1], vec![gone], staying);
    }
    let mut blocked = world.client(&["AUTH joe pw"]);
    blocked.send(b"BLPOP q 0\r\n");
    eventually("blocked", || world.direct.cmd("INFO clients").contains("blocked_clients:1").then_some(()));
    world.direct.cmd("CLIENT KILL USER joe");
    let staying = others(&world);
    world.only_these_go("BLPOP", vec![blocked], staying);
}

/// It hits the proxy's own connections as well, and yet it was meant for the clients.
#[test]
fn killing_all_normal_connections_cuts_all_their_clients() {
    for round in 0..5 {
        let mut world = World::new();
        let mut gone = joes(&world);
        // Listeners are of another type.
        gone.retain_mut(|wire| !wire.cmd("PING").contains("pong"));
        gone.extend(others(&world));
        world.direct.cmd("CLIENT KILL TYPE normal");
        for (number, mut wire) in gone.into_iter().enumerate() {
            assert_eq!(wire.rest(), Ok(vec![]), "round {round}, client {number}");
        }
        assert_eq!(world.client(&["AUTH joe pw"]).cmd("ACL WHOAMI"), "$3\r\njoe\r\n");
        world.proxy.ready();
    }
}

/// Those whose state is in the proxy alone.
fn silent(world: &World) -> Vec<(Wire, &'static str, &'static str)> {
    let (joe, ann) = ("$3\r\njoe\r\n", "$3\r\nann\r\n");
    let nobody = "$7\r\ndefault\r\n";
    vec![
        (world.client(&[]), nobody, ":0\r\n"),
        (world.client(&["GET k"]), nobody, ":0\r\n"),
        (world.client(&["SELECT 3"]), nobody, ":3\r\n"),
        (world.client(&["HELLO 3"]), nobody, ":0\r\n"),
        (world.client(&["MULTI", "EXEC"]), nobody, ":0\r\n"),
        (world.client(&["AUTH joe pw"]), joe, ":0\r\n"),
        (world.client(&["AUTH joe pw", "SELECT 3", "GET k"]), joe, ":3\r\n"),
        (world.client(&["AUTH ann pw", "WATCH k", "UNWATCH"]), ann, ":0\r\n"),
        (world.client(&["SUBSCRIBE c", "UNSUBSCRIBE c"]), nobody, ":0\r\n"),
    ]
}

#[test]
fn a_redis_that_dies_disconnects_nobody_who_is_silent() {
    for way in ["kill -9", "SHUTDOWN", "kill -9", "SHUTDOWN"] {
        let mut world = World::new();
        let mut clients = silent(&world);
        if way == "SHUTDOWN" {
            world.direct.request(&["SHUTDOWN", "NOSAVE"]);
            assert_eq!(world.direct.rest(), b"");
        }
        world.redis.kill();
        eventually("the proxy knows", || {
            (world.proxy.metric("rescind_upstream_connections{mode=\"shared\"}") == 0.0).then_some(())
        });
        world.redis.restart();
        for db in 0..4 {
            let mut setup = Wire::connect(world.redis.port);
            setup.cmd(&format!("SELECT {db}"));
            setup.cmd(&format!("SET number {db}"));
        }
        for (number, (wire, user, db)) in clients.iter_mut().enumerate() {
            // At once: the first thing it says is done.
            wire.send(&encode(&["ACL", "WHOAMI"]));
            assert_eq!(wire.reply(), Ok(user.as_bytes().to_vec()), "{way}: client {number}");
            assert_eq!(wire.cmd("BITCOUNT nothing"), ":0\r\n");
            let digit = &db[1..2];
            assert_eq!(wire.cmd("GET number"), format!("$1\r\n{digit}\r\n"), "{way}: client {number}");
        }
    }
}

/// As with Redis itself, who is in stays in when the password changes. A connection that the proxy would like to have
/// besides, because theirs is busy, cannot be had any more; that is nothing to the clients.
#[test]
fn a_changed_password_cuts_nobody_who_is_in() {
    let mut world = World::new();
    world.direct.call(&["SET", "big", &"x".repeat(1 << 20)]);
    world.direct.cmd("SET k v");
    let joe = ["AUTH joe pw", "GET k"];
    let (mut slow, mut quick, mut silent) = (world.client(&joe), world.client(&joe), world.client(&joe));
    world.direct.cmd("ACL SETUSER joe resetpass >new");
    for round in 0..10 {
        slow.send("GET big\r\n".repeat(30).as_bytes());
        for _ in 0..50 {
            quick.send(b"GET k\r\n");
            assert_eq!(quick.reply(), Ok(b"$1\r\nv\r\n".to_vec()), "{round}");
        }
        (0..30)
            .for_each(|_| assert_eq!(slow.reply().map(|reply| reply.len()), Ok((1 << 20) + 12), "{round}"));
    }
    assert_eq!(silent.cmd("ACL WHOAMI"), "$3\r\njoe\r\n");
}

/// Its connection goes while it waits for the feed: it hears of that, and nothing is left pending.
#[test]
fn who_waits_for_something_else_hears_that_its_connection_is_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    for round in 0..6 {
        let mut client = proxy.client();
        for line in ["TAG.WITH 1 t SET z:1 1", "MULTI", "SET app:1:model:Post:7 1", "RENAME z:1 z:2"] {
            assert!(client.cmd(line).starts_with('+'), "{line}");
        }
        let mut killer = redis.client();
        killer.cmd("CLIENT KILL TYPE pubsub");
        client.request(&["EXEC"]);
        std::thread::sleep(std::time::Duration::from_millis(4 * round));
        killer.cmd("CLIENT KILL TYPE normal SKIPME yes");
        // Its reply, or the end.
        let _ = client.try_raw();
        proxy.ready();
    }
    let mut client = proxy.client();
    eventually("nothing is pending", || {
        client.list("TAG.INFO").concat().contains("journal_pending:0").then_some(())
    });
}
