//! Who a client is, which database and which protocol it speaks, is its own business: clients are never mixed.

use std::time::{Duration, Instant};

use crate::differential::Wire;
use crate::support::{Proxy, RULES, Redis, encode, eventually};

const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";

/// A Redis that wants a password, with some users, and a proxy whose own URL has the credentials.
fn closed() -> (Redis, Proxy) {
    let users =
        "--requirepass secret --user reader on >pw +@read +acl|whoami ~r:* --user all on >pw +@all ~* &*";
    let redis = Redis::with(&users.split(' ').collect::<Vec<_>>());
    let proxy = Proxy::launch(&format!("redis://default:secret@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    (redis, proxy)
}

/// Authenticates, which also proves that the answer is Redis's.
fn signed_in(proxy: &Proxy, line: &str) -> Wire {
    let mut client = Wire::connect(proxy.port);
    assert_eq!(client.cmd(line), "+OK\r\n");
    client
}

#[test]
fn nobody_rides_on_the_credentials_of_the_proxy() {
    let (_redis, proxy) = closed();
    let mut signed = signed_in(&proxy, "AUTH secret");
    signed.cmd("SET k v");
    for line in [
        "GET k",
        "SET k x",
        "INFO",
        "CONFIG GET *",
        "MULTI",
        "SUBSCRIBE c",
        "BLPOP q 1",
        "WAIT 0 0",
        "EVAL x 0",
    ] {
        assert_eq!(Wire::connect(proxy.port).cmd(line), NOAUTH, "{line}");
    }
    for line in ["KEYS *", "PUBLISH c m", "SELECT 1", "MONITOR", "CLIENT LIST", "CLIENT ID", "CLIENT GETNAME"]
    {
        assert_eq!(Wire::connect(proxy.port).cmd(line), NOAUTH, "{line}");
    }
    assert!(Wire::connect(proxy.port).cmd("HELLO 3").starts_with("-NOAUTH"));
    assert_eq!(signed.cmd("GET k"), "$1\r\nv\r\n");
}

#[test]
fn the_proxys_own_commands_are_not_open_either() {
    let (_redis, proxy) = closed();
    for line in ["TAG.INVALIDATE Post", "TAG.KEYS Post", "TAG.OF k", "TAG.ADD k t", "TAG.WITH 1 t SET k v"] {
        let mut client = Wire::connect(proxy.port);
        assert!(client.cmd(line).starts_with("-NOAUTH"), "{line}");
    }
}

#[test]
fn a_connection_that_served_one_user_serves_no_other() {
    let (_redis, proxy) = closed();
    // Connections of their own go back to a pool; whoever comes next must not find anything of the last one.
    for round in 0..20 {
        let mut all = signed_in(&proxy, "AUTH all pw");
        all.cmd("SELECT 5");
        all.cmd("MULTI");
        all.cmd(&format!("SET k {round}"));
        all.cmd("EXEC");
        let mut nobody = Wire::connect(proxy.port);
        assert_eq!(nobody.cmd("MULTI"), NOAUTH);
        assert_eq!(nobody.cmd("GET k"), NOAUTH);
        let mut reader = signed_in(&proxy, "AUTH reader pw");
        assert_eq!(reader.cmd("ACL WHOAMI"), "$6\r\nreader\r\n");
        assert!(reader.cmd("GET k").starts_with("-NOPERM"));
        assert!(reader.cmd("SET r:1 v").starts_with("-NOPERM"));
        let mut default = signed_in(&proxy, "AUTH secret");
        assert_eq!(default.cmd("GET k"), "$-1\r\n", "database 0, not 5");
        assert_eq!(default.cmd("BLPOP q 0.01"), "*-1\r\n");
        // Some leave in the middle of things.
        all.cmd("MULTI");
        drop(all);
    }
}

#[test]
fn a_failed_hello_leaves_nothing_behind() {
    let (_redis, proxy) = closed();
    for line in
        ["HELLO 3 AUTH all pw NOSUCH", "HELLO 3 AUTH all pw SETNAME", "HELLO 3 AUTH all pw AUTH all wrong"]
    {
        let mut client = Wire::connect(proxy.port);
        assert!(client.cmd(line).starts_with('-'), "{line}");
        for _ in 0..3 {
            assert_eq!(Wire::connect(proxy.port).cmd("GET k"), NOAUTH, "{line}");
            assert_eq!(Wire::connect(proxy.port).cmd("MULTI"), NOAUTH, "{line}");
        }
        drop(client);
        for _ in 0..3 {
            assert_eq!(Wire::connect(proxy.port).cmd("WATCH k"), NOAUTH, "{line}");
        }
    }
    let mut bad_name = Wire::connect(proxy.port);
    assert!(bad_name.call(&["HELLO", "3", "AUTH", "all", "pw", "SETNAME", "a b"]).starts_with('-'));
    assert_eq!(Wire::connect(proxy.port).cmd("MULTI"), NOAUTH);
    bad_name.cmd("PING");
    assert_eq!(Wire::connect(proxy.port).cmd("MULTI"), NOAUTH);
}

#[test]
fn a_wrong_password_changes_nothing() {
    let (_redis, proxy) = closed();
    let mut client = Wire::connect(proxy.port);
    for line in ["AUTH wrong", "AUTH all wrong", "AUTH nobody pw", "HELLO 3 AUTH all wrong"] {
        assert!(client.cmd(line).starts_with("-WRONGPASS"), "{line}");
        assert_eq!(client.cmd("GET k"), NOAUTH);
    }
    assert_eq!(client.cmd("AUTH all pw"), "+OK\r\n");
    assert!(client.cmd("AUTH all wrong").starts_with("-WRONGPASS"));
    assert_eq!(client.cmd("ACL WHOAMI"), "$3\r\nall\r\n");
}

#[test]
fn users_protocols_and_databases_side_by_side() {
    let (_redis, proxy) = closed();
    let mut setup = signed_in(&proxy, "AUTH secret");
    let mut clients = vec![];
    for db in 0..4 {
        for resp in [2, 3] {
            for user in ["all", "default"] {
                setup.cmd(&format!("SELECT {db}"));
                setup.cmd(&format!("HSET h field db{db}"));
                let mut client = Wire::connect(proxy.port);
                let password = if user == "all" { "pw" } else { "secret" };
                client.cmd(&format!("HELLO {resp} AUTH {user} {password}"));
                assert_eq!(client.cmd(&format!("SELECT {db}")), "+OK\r\n");
                clients.push((client, db, resp, user));
            }
        }
    }
    for _ in 0..5 {
        for (client, db, resp, user) in &mut clients {
            let head = if *resp == 3 { "%1" } else { "*2" };
            assert_eq!(client.cmd("HGETALL h"), format!("{head}\r\n$5\r\nfield\r\n$3\r\ndb{db}\r\n"));
            assert_eq!(client.cmd("ACL WHOAMI"), format!("${}\r\n{user}\r\n", user.len()));
        }
        for (client, ..) in &mut clients {
            client.send(b"MULTI\r\n");
            client.send(b"HGET h field\r\n");
            client.send(b"EXEC\r\n");
        }
        for (client, db, ..) in &mut clients {
            let replies = [client.text(), client.text(), client.text()].concat();
            let expected = format!("+OK\r\n+QUEUED\r\n*1\r\n$3\r\ndb{db}\r\n");
            assert_eq!(replies, expected);
        }
    }
}

#[test]
fn limits_before_auth_hit_the_offender_only() {
    let (redis, proxy) = closed();
    let mut others: Vec<Wire> = (0..5).map(|_| Wire::connect(proxy.port)).collect();
    others.iter_mut().for_each(|other| assert_eq!(other.cmd("PING"), NOAUTH));
    let many: Vec<&str> = ["MGET"].into_iter().chain(["k"; 10]).collect();
    let long = "x".repeat(16385);
    for bytes in [encode(&many), encode(&["GET", &long])] {
        let ended = |port| {
            let mut wire = Wire::connect(port);
            wire.send(&bytes);
            wire.rest().unwrap()
        };
        let reply = ended(proxy.port);
        assert!(reply.starts_with(b"-ERR Protocol error: unauthenticated"), "{}", reply.escape_ascii());
        assert_eq!(reply, ended(redis.port));
        others.iter_mut().for_each(|other| assert_eq!(other.cmd("PING"), NOAUTH));
    }
    // At the limit is allowed, and after AUTH so is more.
    assert_eq!(others[0].call(&many[..10]), NOAUTH);
    assert_eq!(others[0].call(&["GET", &long[..16384]]), NOAUTH);
    others[0].cmd("AUTH secret");
    assert!(others[0].call(&many).starts_with("*10\r\n"));
    assert_eq!(others[0].call(&["SET", "k", &long]), "+OK\r\n");
}

#[test]
fn a_changed_password_is_noticed() {
    let (redis, proxy) = closed();
    let mut admin = Wire::connect(redis.port);
    admin.cmd("AUTH secret");
    let mut client = signed_in(&proxy, "AUTH all pw");
    let mut second = signed_in(&proxy, "AUTH all pw");
    client.cmd("GET k");
    second.cmd("GET k");
    admin.cmd("ACL SETUSER all resetpass >new");
    assert!(Wire::connect(proxy.port).cmd("AUTH all pw").starts_with("-WRONGPASS"));
    signed_in(&proxy, "AUTH all new");
    // As with Redis itself, a connection stays what it was; what needs a new one is refused, and never done as
    // somebody else.
    assert_eq!(client.cmd("ACL WHOAMI"), "$3\r\nall\r\n");
    let mut refused = vec![];
    let mut pinned: Vec<Wire> = vec![];
    for _ in 0..3 {
        let mut one = signed_in(&proxy, "AUTH all new");
        one.cmd("WATCH k");
        pinned.push(one);
    }
    refused.push(client.cmd("WATCH k"));
    assert!(refused.iter().all(|reply| reply == "+OK\r\n" || reply.starts_with("-WRONGPASS")), "{refused:?}");
    // Less rights hold at once.
    admin.cmd("ACL SETUSER all -get");
    assert!(second.cmd("GET k").starts_with("-NOPERM"));
}

#[test]
fn names_are_personal() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut one, mut two) = (Wire::connect(proxy.port), Wire::connect(proxy.port));
    one.cmd("CLIENT SETNAME one");
    two.cmd("CLIENT SETNAME two");
    assert_eq!(one.cmd("CLIENT GETNAME"), "$3\r\none\r\n");
    assert_eq!(two.cmd("CLIENT GETNAME"), "$3\r\ntwo\r\n");
    assert_eq!(Wire::connect(proxy.port).cmd("CLIENT GETNAME"), "$-1\r\n");
}

#[test]
fn state_does_not_leak_from_clients_that_vanish() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let until = Instant::now() + Duration::from_secs(3);
    let leaving: [&[&str]; 8] = [
        &["MULTI", "SET leaked 1"],
        &["WATCH k"],
        &["SELECT 9"],
        &["HELLO 3"],
        &["SUBSCRIBE c"],
        &["CLIENT TRACKING ON BCAST"],
        &["CLIENT REPLY OFF", "SELECT 3"],
        &["MULTI", "SELECT 4", "EXEC"],
    ];
    let mut round = 0;
    while Instant::now() < until && round < 200 {
        let mut client = Wire::connect(proxy.port);
        leaving[round % leaving.len()].iter().for_each(|line| client.send(format!("{line}\r\n").as_bytes()));
        if round % 3 == 0 {
            let _ = client.reply();
        }
        drop(client);
        let mut next = Wire::connect(proxy.port);
        // One that needs a connection of its own, in case it gets the one that was left.
        assert_eq!(next.cmd("BLPOP nothing 0.001"), "*-1\r\n", "{round}");
        assert_eq!(next.cmd("MULTI"), "+OK\r\n", "{round}");
        assert_eq!(next.cmd("CONFIG GET port"), "+QUEUED\r\n", "{round}");
        let port = redis.port.to_string();
        let expected = format!("*1\r\n*2\r\n$4\r\nport\r\n${}\r\n{port}\r\n", port.len());
        assert_eq!(next.cmd("EXEC"), expected, "{round}");
        round += 1;
    }
    eventually("nothing leaked", || {
        (Wire::connect(redis.port).cmd("EXISTS leaked") == ":0\r\n").then_some(())
    });
}

/// What waits for a connection that turns out to be nobody's must not run as the default user, or in database 0.
#[test]
fn what_a_connection_was_not_set_up_for_does_not_run() {
    let redis = Redis::with(&"--user limited on >pw +@all ~l:*".split(' ').collect::<Vec<_>>());
    let proxy = Proxy::start(&redis, RULES);
    let mut admin = Wire::connect(redis.port);
    let mut clients: Vec<Wire> = (0..3).map(|_| signed_in(&proxy, "AUTH limited pw")).collect();
    admin.cmd("ACL SETUSER limited resetpass >new");
    // The connections that are there stay what they are; no other can be had.
    let mut refused = 0;
    for client in &mut clients {
        for line in ["WATCH l:1", "SET k v"] {
            client.send(&encode(&line.split(' ').collect::<Vec<_>>()));
            let reply = client.reply().unwrap_or_else(|_| b"-WRONGPASS".to_vec());
            assert!(reply == b"+OK\r\n" && line != "SET k v" || reply[0] == b'-', "{}", reply.escape_ascii());
            refused += u32::from(reply.starts_with(b"-WRONGPASS"));
        }
    }
    assert!(refused > 0, "all had connections");
    assert_eq!(admin.cmd("EXISTS k"), ":0\r\n");
    admin.cmd("ACL SETUSER limited resetpass >pw");
    let mut client = signed_in(&proxy, "AUTH limited pw");
    client.cmd("SELECT 3");
    admin.cmd("ACL SETUSER limited -select");
    let reply = client.cmd("SET l:1 v");
    assert!(reply == "+OK\r\n" || reply.starts_with("-NOPERM"), "{reply}");
    assert_eq!(admin.cmd("EXISTS l:1"), ":0\r\n", "database 0");
}

#[test]
fn a_deleted_user_is_served_no_more() {
    let (redis, proxy) = closed();
    let mut admin = Wire::connect(redis.port);
    admin.cmd("AUTH secret");
    let mut client = signed_in(&proxy, "AUTH all pw");
    client.cmd("SET k v");
    admin.cmd("ACL DELUSER all");
    for _ in 0..3 {
        // Redis hangs up on its connections; the client is cut with them or told so by the next.
        client.send(b"GET k\r\n");
        match client.reply() {
            Ok(reply) => assert!(reply.starts_with(b"-WRONGPASS"), "{}", reply.escape_ascii()),
            Err(_) => break,
        }
    }
    assert!(Wire::connect(proxy.port).cmd("AUTH all pw").starts_with("-WRONGPASS"));
}

/// Clients that go before Redis has answered their new connection must not make it look unreachable.
#[test]
fn leaving_early_is_no_fault_of_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    for round in 0..200 {
        let mut leaving: Vec<Wire> = (0..3).map(|_| Wire::connect(proxy.port)).collect();
        leaving.iter_mut().for_each(|wire| wire.send(b"BLPOP nothing 0\r\n"));
        drop(leaving);
        let mut staying = Wire::connect(proxy.port);
        assert_eq!(staying.cmd("WATCH k"), "+OK\r\n", "{round}");
        assert_eq!(staying.cmd("PING"), "+PONG\r\n", "{round}");
    }
}
