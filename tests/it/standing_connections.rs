//! Clients without AUTH and the connections that they share: what was let in, and what was not, never mix.

use crate::differential::Wire;
use crate::standing::{NOAUTH, WAYS, World};
use crate::support::{Client, client_list, eventually};

/// A big reply, or a script that takes long, makes the proxy look for another connection for those behind it; there
/// is none to be had for who came before the password.
#[test]
fn an_old_client_goes_on_while_its_connection_is_busy_for_others() {
    let mut world = World::new();
    world.admin.call(&["SET", "big", &"x".repeat(1 << 20)]);
    let mut old: Vec<Wire> = (0..3).map(|_| world.client()).collect();
    old.iter_mut().for_each(|wire| assert_eq!(wire.cmd("GET k"), "$1\r\nv\r\n"));
    world.set(WAYS[0].0);
    let mut slow = old.pop().unwrap();
    for round in 0..20 {
        slow.send("GET big\r\n".repeat(30).as_bytes());
        for wire in &mut old {
            for _ in 0..20 {
                wire.send("GET k\r\n".repeat(10).as_bytes());
                (0..10).for_each(|_| assert_eq!(wire.text(), "$1\r\nv\r\n", "{round}"));
            }
        }
        (0..30).for_each(|_| assert_eq!(slow.reply().unwrap().len(), (1 << 20) + 12));
    }
}

/// What needs a connection of its own cannot be had any more, and says so; nothing of it runs in pieces.
#[test]
fn an_old_client_that_gets_no_connection_of_its_own_loses_nothing_else() {
    let mut world = World::new();
    let mut old = world.client();
    assert_eq!(old.cmd("GET k"), "$1\r\nv\r\n");
    world.set(WAYS[0].0);
    for round in 0..3 {
        old.send(b"MULTI\r\nINCR n\r\nINCR n\r\nEXEC\r\n");
        let replies: Vec<String> = (0..4).map(|_| old.text()).collect();
        if replies[0] == "+OK\r\n" {
            assert!(replies[3].starts_with("*2\r\n"), "{round}: {replies:?}");
        } else {
            assert!(replies.iter().all(|reply| reply.starts_with('-')), "{round}: {replies:?}");
        }
        assert_eq!(old.cmd("GET k"), "$1\r\nv\r\n", "{round}");
    }
}

/// CLIENT REPLY ON is answered by the proxy, so the client is let in without a connection to use.
#[test]
fn one_that_was_let_in_stays_so_although_it_has_used_no_connection() {
    let mut world = World::new();
    let mut old = world.pair();
    assert_eq!(old.same("CLIENT REPLY ON"), "+OK\r\n");
    world.set(WAYS[0].0);
    assert_eq!(world.pair().same("CLIENT REPLY ON"), NOAUTH);
    assert_eq!(old.same("GET k"), "$1\r\nv\r\n");
    assert_eq!(world.pair().same("GET k"), NOAUTH);
}

#[test]
fn asking_leaves_no_connections_behind() {
    let mut world = World::with("[listen]\nworkers = 1");
    let mut direct = world.redis.client();
    let count = |direct: &mut Client| client_list(direct).len();
    let before = count(&mut direct);
    for _ in 0..20 {
        assert_eq!(world.client().cmd("CLIENT REPLY ON"), "+OK\r\n");
        world.set(WAYS[0].0);
        assert_eq!(world.client().cmd("CLIENT REPLY ON"), NOAUTH);
        world.set(WAYS[0].1);
    }
    let all = count(&mut direct);
    assert!(all <= before + 4, "{all} connections, {before} at first");
}

/// Redis hangs up on a client without AUTH that has more than 1 KB of replies coming, not counting what fits into its
/// first buffer. Clients with a password known to be wanted, and that buffer small, as it is after some seconds.
fn strangers(count: usize) -> (World, Vec<Wire>) {
    let mut world = World::with("[listen]\nworkers = 1");
    world.set(WAYS[0].0);
    let mut wires: Vec<Wire> = (0..count).map(|_| world.client()).collect();
    wires.iter_mut().for_each(|wire| assert_eq!(wire.cmd("GET k"), NOAUTH));
    let mut direct = Wire::connect(world.redis.port);
    direct.cmd("AUTH joe pw");
    eventually("buffers are small", || {
        let list = direct.cmd("CLIENT LIST");
        // The only one there is that has asked for something as nobody.
        let line = list.lines().find(|line| line.contains("cmd=get") && line.contains("user=default"))?;
        (!line.contains("rbs=") || line.contains("rbs=1024 ")).then_some(())
    });
    (world, wires)
}

fn is_refused(wire: &mut Wire) {
    let reply = wire.reply().map(|reply| String::from_utf8(reply).unwrap());
    assert_eq!(reply.as_deref(), Ok(NOAUTH));
}

#[test]
fn a_crowd_of_strangers_is_not_cut() {
    let (_world, mut wires) = strangers(300);
    for _ in 0..3 {
        wires.iter_mut().for_each(|wire| wire.send(b"GET k\r\n"));
        wires.iter_mut().for_each(is_refused);
    }
}

#[test]
fn a_stranger_does_not_get_others_cut() {
    let (world, mut wires) = strangers(5);
    for _ in 0..3 {
        let mut noisy = world.client();
        noisy.send("GET k\r\n".repeat(2000).as_bytes());
        // It may be cut, as by Redis itself.
        while noisy.reply().is_ok_and(|reply| reply.starts_with(b"-NOAUTH"))
            && noisy.stream.peek(&mut [0]).is_ok()
        {}
        for wire in &mut wires {
            wire.send(b"GET k\r\n");
            is_refused(wire);
        }
    }
}

/// AUTH and HELLO with AUTH may run on any connection without AUTH, even on an idle one from before the password; what
/// does not authenticate must not be done there, now or later.
#[test]
fn idle_connections_from_before_the_password_let_nobody_in() {
    let mut wrong = vec![];
    for first in [
        "HELLO 3 SETNAME auth",
        "HELLO 2 SETNAME AUTH",
        "HELLO 3 AUTH",
        "HELLO 3 AUTH joe",
        "HELLO 3 AUTH joe wrong",
        "HELLO 3 AUTH joe pw SETNAME",
        "HELLO auth",
        "HELLO 4 AUTH joe pw",
        "AUTH",
        "AUTH wrong",
        "AUTH joe wrong",
        "AUTH a b c",
    ] {
        for follow in ["GET k", "ACL WHOAMI", "MULTI", "SUBSCRIBE c", "RESET"] {
            let mut world = World::new();
            let mut old: Vec<Wire> = (0..4).map(|_| world.client()).collect();
            old.iter_mut().for_each(|wire| assert_eq!(wire.cmd("MULTI"), "+OK\r\n"));
            old.iter_mut().for_each(|wire| assert_eq!(wire.cmd("EXEC"), "*0\r\n"));
            world.set(WAYS[0].0);
            let mut pair = world.pair();
            for (at, line) in [first, follow, "GET k"].into_iter().enumerate() {
                let (expected, got) = (pair.direct.cmd(line), pair.proxied.cmd(line));
                let word = |reply: &str| reply.split([' ', '\r']).next().unwrap_or_default().to_owned();
                // Redis has authenticated joe before it finds what else is wrong.
                if word(&got) != word(&expected) && !(at > 0 && first.contains("joe pw")) {
                    wrong.push(format!("{first}, {follow}: {line}: {got:.40}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
