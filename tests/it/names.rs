//! Clients that name themselves are told from others in CLIENT LIST, each with what is true of it.

use std::collections::BTreeMap;

use crate::differential::Wire;
use crate::support::{Client, Proxy, Redis, client_list, connections_made, eventually};

struct World {
    redis: Redis,
    proxy: Proxy,
    direct: Client,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    fn with(config: &str) -> Self {
        let redis = Redis::with(&"--user joe on >pw +@all ~* &*".split(' ').collect::<Vec<_>>());
        let proxy = Proxy::configured(&redis, config);
        let direct = redis.client();
        Self { redis, proxy, direct }
    }

    fn client(&self, lines: &[&str]) -> Wire {
        Wire::having_said(self.proxy.port, lines)
    }

    /// The lines of CLIENT LIST with a name.
    fn named(&mut self) -> Vec<BTreeMap<String, String>> {
        let mut list = client_list(&mut self.direct);
        list.retain(|client| !client["name"].is_empty());
        list
    }

    /// What CLIENT LIST says of those with a name: name, database, user, protocol.
    fn shown(&mut self) -> Vec<[String; 4]> {
        let list = self.named();
        let mut all: Vec<_> = list
            .iter()
            .map(|client| ["name", "db", "user", "resp"].map(|field| client[field].clone()))
            .collect();
        all.sort();
        all
    }
}

#[test]
fn each_is_one_line_with_what_is_true_of_it() {
    let mut world = World::new();
    let mut clients = vec![
        world.client(&["CLIENT SETNAME twin"]),
        world.client(&["AUTH joe pw", "SELECT 3", "HELLO 3", "CLIENT SETNAME twin"]),
        world.client(&["HELLO 3 AUTH joe pw SETNAME other"]),
        // What is true may change after the name was given.
        world.client(&["CLIENT SETNAME late", "SELECT 5", "HELLO 3", "AUTH joe pw"]),
        world.client(&["CLIENT SETNAME early", "CLIENT SETNAME renamed", "SELECT 2", "SELECT 1"]),
    ];
    let _nameless = [world.client(&["GET k"]), world.client(&["SELECT 3", "MULTI"])];
    let expected = [
        ["late", "5", "joe", "3"],
        ["other", "0", "joe", "3"],
        ["renamed", "1", "default", "2"],
        ["twin", "0", "default", "2"],
        ["twin", "3", "joe", "3"],
    ];
    assert_eq!(world.shown(), expected);
    // Work does not change it.
    for wire in &mut clients {
        for line in ["SET k v", "MULTI", "GET k", "EXEC", "BLPOP q 0.01", "WATCH k", "UNWATCH"] {
            wire.cmd(line);
        }
    }
    assert_eq!(world.shown(), expected);
    clients.remove(0);
    eventually("the first twin is gone", || {
        (world.shown() == [&expected[..3], &expected[4..]].concat()).then_some(())
    });
    clients[0].send(b"QUIT\r\n");
    eventually("the second twin is gone", || (world.shown() == expected[..3]).then_some(()));
    drop(clients);
    eventually("all are gone", || world.shown().is_empty().then_some(()));
    // Nor does whoever comes next find a name.
    for lines in [&["GET k"][..], &["MULTI"], &["SELECT 5"], &["AUTH joe pw", "WATCH k"], &["HELLO 3"]] {
        let mut next = world.client(lines);
        let nothing = ["$-1\r\n", "_\r\n", "+QUEUED\r\n"];
        assert!(nothing.contains(&next.cmd("CLIENT GETNAME").as_str()), "{lines:?}");
        assert!(world.shown().is_empty(), "{lines:?}");
    }
}

#[test]
fn a_client_sees_itself_inside_and_outside_of_a_transaction() {
    let mut world = World::new();
    let mut wires = [
        world.client(&["CLIENT SETNAME me", "SELECT 3"]),
        world.client(&["AUTH joe pw", "CLIENT SETNAME me", "SELECT 3"]),
    ];
    let ids: Vec<String> = wires.iter_mut().map(|wire| wire.cmd("CLIENT ID")).collect();
    assert_ne!(ids[0], ids[1]);
    for (wire, id) in wires.iter_mut().zip(&ids) {
        for _ in 0..3 {
            assert_eq!(wire.cmd("CLIENT GETNAME"), "$2\r\nme\r\n");
            assert_eq!(wire.cmd("CLIENT ID"), *id);
            let number = id[1..].trim_end();
            let info = wire.cmd("CLIENT INFO");
            assert!(info.contains(&format!("id={number} ")) && info.contains(" name=me "), "{info}");
            assert!(info.contains(" db=3 "), "{info}");
            wire.send(b"MULTI\r\nCLIENT GETNAME\r\nCLIENT ID\r\nCLIENT INFO\r\nEXEC\r\n");
            let replies: Vec<String> = (0..5).map(|_| wire.text()).collect();
            assert!(replies[4].starts_with(&format!("*3\r\n$2\r\nme\r\n{id}")), "{replies:?}");
            assert!(replies[4].contains(&format!("id={number} ")), "{replies:?}");
            // It is still the line that others see.
            let list = world.named();
            assert_eq!(list.iter().filter(|client| client["id"] == number).count(), 1);
            assert_eq!(list.len(), 2);
        }
    }
}

#[test]
fn a_name_ends_with_an_empty_one_and_the_client_shares_again() {
    let mut world = World::with("[upstream]\nmax_pinned = 1");
    let mut only = world.client(&["CLIENT SETNAME me"]);
    assert!(
        Wire::connect(world.proxy.port).cmd("CLIENT SETNAME you").starts_with("-ERR max number of clients")
    );
    assert_eq!(only.call(&["CLIENT", "SETNAME", ""]), "+OK\r\n");
    assert_eq!(only.cmd("GET k"), "$-1\r\n");
    assert!(world.shown().is_empty());
    // Its place is free, and what it does now takes none.
    let mut other = world.client(&["CLIENT SETNAME you"]);
    assert_eq!(only.cmd("GET k"), "$-1\r\n");
    assert_eq!(other.cmd("CLIENT GETNAME"), "$3\r\nyou\r\n");
}

#[test]
fn connections_of_names_that_ended_serve_others() {
    let mut world = World::new();
    let made = connections_made(&mut world.direct);
    // Twenty with a name have a connection each; without, they need no more than one.
    let mut many: Vec<Wire> = (0..20).map(|_| world.client(&["CLIENT SETNAME me"])).collect();
    assert_eq!(world.shown().len(), 20);
    many.iter_mut().for_each(|wire| assert_eq!(wire.call(&["CLIENT", "SETNAME", ""]), "+OK\r\n"));
    many.iter_mut().for_each(|wire| assert_eq!(wire.cmd("GET k"), "$-1\r\n"));
    assert!(world.shown().is_empty());
    // The connections that they had serve the next ones.
    let before = connections_made(&mut world.direct);
    assert!(before <= made + 22, "{made}, then {before}");
    for _ in 0..20 {
        let mut next = world.client(&["CLIENT SETNAME next"]);
        assert_eq!(next.cmd("CLIENT GETNAME"), "$4\r\nnext\r\n");
        assert_eq!(next.call(&["CLIENT", "SETNAME", ""]), "+OK\r\n");
        assert_eq!(next.cmd("GET k"), "$-1\r\n");
    }
    assert_eq!(connections_made(&mut world.direct), before);
}

/// Names travel with connections, and connections with clients, and they must part in time.
#[test]
fn a_name_never_shows_on_another_client() {
    let mut world = World::new();
    let mut nameless: Vec<Wire> = (0..3).map(|_| world.client(&["GET k"])).collect();
    for round in 0..60 {
        let own = format!("CLIENT SETNAME name{round}");
        let mut named = world.client(&[&own, ["GET k", "MULTI", "SELECT 3", "WATCH k"][round % 4]]);
        match round % 5 {
            0 => drop(named),
            1 => drop(named.call(&["CLIENT", "SETNAME", ""])),
            2 => assert_eq!(named.cmd("RESET"), "+RESET\r\n"),
            3 => named.send(b"QUIT\r\n"),
            _ => {}
        }
        for (number, wire) in nameless.iter_mut().enumerate() {
            wire.send(b"MULTI\r\nCLIENT GETNAME\r\nEXEC\r\n");
            let replies: Vec<String> = (0..3).map(|_| wire.text()).collect();
            assert_eq!(replies[2], "*1\r\n$-1\r\n", "round {round}, client {number}");
        }
        let mut other = world.client(&["CLIENT SETNAME other"]);
        assert_eq!(other.cmd("CLIENT GETNAME"), "$5\r\nother\r\n", "{round}");
        let names: Vec<String> = world.shown().into_iter().map(|[name, ..]| name).collect();
        let possible = [format!("name{round}"), "other".to_owned()];
        // Those of earlier rounds may still be on their way out.
        assert!(names.contains(&possible[1]), "{round}: {names:?}");
        eventually("those that left are gone", || {
            world.shown().iter().all(|[name, ..]| possible.contains(name)).then_some(())
        });
        drop(other);
    }
}

#[test]
fn what_a_library_says_of_itself_is_shown_where_redis_knows_it() {
    let mut world = World::new();
    let mut straight = Wire::connect(world.redis.port);
    let known = straight.cmd("CLIENT SETINFO LIB-NAME x");
    let mut named = world.client(&["CLIENT SETNAME me"]);
    for (option, value) in [("LIB-NAME", "books"), ("LIB-VER", "1.2")] {
        let line = format!("CLIENT SETINFO {option} {value}");
        // An older Redis has no such command, and says so itself.
        assert_eq!(named.cmd(&line), straight.cmd(&line));
    }
    let line = world.named().remove(0);
    assert_eq!((line["name"].as_str(), world.named().len()), ("me", 1));
    if known == "+OK\r\n" {
        assert_eq!((line["lib-name"].as_str(), line["lib-ver"].as_str()), ("books", "1.2"));
    } else {
        assert!(known.starts_with('-') && !line.contains_key("lib-name"), "{known}");
    }
    // What was refused has not cost it its name or its connection.
    assert_eq!(named.cmd("CLIENT GETNAME"), "$2\r\nme\r\n");
    assert_eq!(named.call(&["CLIENT", "SETNAME", "a b"]), straight.call(&["CLIENT", "SETNAME", "a b"]));
    assert_eq!(named.cmd("CLIENT GETNAME"), "$2\r\nme\r\n");
}
