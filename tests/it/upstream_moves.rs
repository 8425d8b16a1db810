//! The upstream's address leads to another Redis, while the one before it lives on: a name in DNS that was changed, a master
//! that was demoted. Here it is a socket's path that leads elsewhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Client, Folder, Proxy, RULES, Redis, client_list, encode, eventually};

const DEPENDENT: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "SET app:1:model:Post:1 v";

struct World {
    old: Redis,
    new: Redis,
    proxy: Proxy,
    address: PathBuf,
    folder: Folder,
}

impl World {
    /// The address leads to the old one. Several workers have to hear of it when that changes.
    fn new() -> Self {
        Self::with(&[], "")
    }

    /// Both servers have been told `lines`; the proxy's own user is this one.
    fn with(lines: &[&str], user: &str) -> Self {
        let folder = Folder::new();
        let server = |name: &str| {
            let socket = folder.0.join(name);
            // The feed need not be set up anew for that.
            let events = ["--notify-keyspace-events", "Enxe"];
            let redis = Redis::with(&["--unixsocket", socket.to_str().unwrap(), events[0], events[1]]);
            redis.client().cmd(&format!("SET who {name}"));
            lines.iter().for_each(|line| _ = redis.client().cmd(line));
            redis
        };
        let (old, new, address) = (server("old"), server("new"), folder.0.join("address"));
        lead(&address, &folder.0.join("old"));
        let rules = format!("[listen]\nworkers = 3\n{RULES}");
        let proxy = Proxy::launch(&format!("unix://{user}{}", address.display()), &rules, &[]);
        proxy.ready();
        Self { old, new, proxy, address, folder }
    }

    /// From now on new connections lead there.
    fn lead_to(&self, name: &str) {
        lead(&self.address, &self.folder.0.join(name));
    }

    /// A client whose command needs a new connection.
    fn dial(&self) -> Client {
        eventually("a new connection can be used", || {
            let mut client = self.proxy.client();
            is_watching(&mut client).then_some(client)
        })
    }

    /// How many connections the proxy has with it.
    fn connections(&self, redis: &Redis) -> usize {
        let clients = client_list(&mut redis.client());
        clients.iter().filter(|client| client["flags"].contains('U')).count()
    }

    fn who(&self, client: &mut Client) -> String {
        client.cmd("GET who").lines().nth(1).unwrap_or_default().to_owned()
    }

    /// All of the proxy is with the new one: what these clients cached there is gone once they trigger its invalidation.
    fn is_with_the_new_one(&self, clients: &mut [&mut Client]) {
        for turn in 0..clients.len() {
            for client in clients.iter_mut() {
                assert_eq!(self.who(client), "new");
            }
            self.new.client().cmd(&format!("SET {DEPENDENT} v"));
            self.old.client().cmd(&format!("SET {DEPENDENT} stale"));
            assert_eq!(clients[turn].cmd(TRIGGER), "+OK\r\n");
            for client in clients.iter_mut() {
                assert_eq!(client.cmd(&format!("GET {DEPENDENT}")), "$-1\r\n");
            }
        }
        eventually("the old one is left", || (self.connections(&self.old) == 0).then_some(()));
        self.proxy.ready();
    }
}

/// Asks for what needs a new connection. False: it was refused, or cut.
fn is_watching(client: &mut Client) -> bool {
    client.request(&["WATCH", "k"]);
    client.try_raw().is_some_and(|reply| reply == b"+OK\r\n")
}

fn lead(address: &Path, socket: &Path) {
    let next = address.with_extension("next");
    std::os::unix::fs::symlink(socket, &next).unwrap();
    std::fs::rename(next, address).unwrap();
}

#[test]
fn all_follow_a_new_connection_of_a_client() {
    let world = World::new();
    let (mut one, mut two, mut early) = (world.proxy.client(), world.proxy.client(), world.proxy.client());
    assert_eq!(one.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(world.who(&mut early), "old");
    world.new.client().cmd(&format!("SET {DEPENDENT} stale"));
    assert_eq!(world.who(&mut two), "old");
    world.lead_to("new");
    assert_eq!(world.who(&mut one), "old", "nobody knows yet");
    // What is asked for over the very connection that shows it was asked before anything was in doubt.
    world.new.client().cmd("RPUSH app:1:blog_posts_2 stale");
    early.request(&["BLPOP", "app:1:blog_posts_2", "0.5"]);
    let got = early.try_raw().unwrap_or_default();
    assert!(!got.ends_with(b"stale\r\n"), "{}", got.escape_ascii());
    let mut watching = world.dial();
    for client in [&mut one, &mut two, &mut watching] {
        assert_eq!(client.cmd(&format!("GET {DEPENDENT}")), "$-1\r\n", "invalidated lately");
    }
    world.is_with_the_new_one(&mut [&mut one, &mut two, &mut watching]);
}

#[test]
fn all_follow_the_feed() {
    let world = World::new();
    let (mut one, mut two) = (world.proxy.client(), world.proxy.client());
    assert_eq!(one.cmd(TRIGGER), "+OK\r\n");
    assert_eq!(world.who(&mut two), "old");
    world.lead_to("new");
    world.old.client().cmd("CLIENT KILL TYPE pubsub");
    eventually("the feed has moved", || (world.who(&mut one) == "new").then_some(()));
    world.is_with_the_new_one(&mut [&mut one, &mut two]);
}

#[test]
fn nothing_fails_where_nothing_was_invalidated() {
    let world = World::new();
    let (mut one, mut two) = (world.proxy.client(), world.proxy.client());
    assert_eq!(world.who(&mut one), "old");
    world.lead_to("new");
    assert_eq!(two.cmd("WATCH k"), "+OK\r\n");
    world.is_with_the_new_one(&mut [&mut one, &mut two]);
}

#[test]
fn connections_of_clients_own_are_lost_and_shared_ones_bring_what_was_sent() {
    let world = World::new();
    // So many that no connection is left over that could be taken instead of a new one.
    let mut own: Vec<Client> = ["SUBSCRIBE c", "MULTI", "BLPOP q 0", "CLIENT TRACKING ON"]
        .iter()
        .chain(&["WATCH k"; 12])
        .map(|line| {
            let mut client = world.proxy.client();
            client.request(&line.split(' ').collect::<Vec<_>>());
            if !line.starts_with("BLPOP") {
                client.raw();
            }
            client
        })
        .collect();
    let blocked = || world.old.client().cmd("INFO clients").contains("blocked_clients:1").then_some(());
    eventually("BLPOP blocks", blocked);
    let mut shared = world.proxy.client();
    assert_eq!(world.who(&mut shared), "old");
    // Together they take longer than it takes to move, and no more may be on their way.
    let long = "local t = redis.call('TIME') local from = t[1] * 1000000 + t[2] repeat t = redis.call('TIME') until \
                t[1] * 1000000 + t[2] > from + 50000 return redis.call('GET', 'who') .. ' ' .. ARGV[1]";
    // So big that Redis answers one before it reads the next.
    let big = "x".repeat(20_000);
    let requests: Vec<Vec<u8>> =
        (0..33).map(|n| encode(&["EVAL", long, "0", &n.to_string(), &big])).collect();
    shared.send(&requests.concat());
    std::thread::sleep(Duration::from_millis(100));
    world.lead_to("new");
    let began = Instant::now();
    let mut watching = world.dial();
    shared.request(&["GET", "who"]);
    for client in &mut own {
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(world.who(&mut world.proxy.client()), "new");
    assert!(began.elapsed() < Duration::from_millis(1400), "they do not wait: {:?}", began.elapsed());
    let replies: Vec<String> = (0..33).map(|_| shared.reply().lines().nth(1).unwrap().to_owned()).collect();
    // What had not been sent when all moved goes to the new one.
    let sent = replies.iter().take_while(|reply| reply.starts_with("old")).count();
    let server = |n: usize| if n < sent { "old" } else { "new" };
    assert!(sent > 0, "{replies:?}");
    assert_eq!(replies, (0..33).map(|n| format!("{} {n}", server(n))).collect::<Vec<_>>());
    assert_eq!(shared.reply(), "$3\r\nnew\r\n");
    world.is_with_the_new_one(&mut [&mut shared, &mut watching]);
}

#[test]
fn it_is_ready_again_once_the_feed_has_followed() {
    let world = World::new();
    let mut client = world.proxy.client();
    assert_eq!(world.who(&mut client), "old");
    world.lead_to("new");
    // The feed cannot say hello.
    world.new.client().cmd("CLIENT PAUSE 1500 WRITE");
    let mut watching = world.dial();
    assert_eq!(world.who(&mut client), "new");
    let (status, body) = world.proxy.http("GET", "/readyz", &[], "");
    assert_eq!(status, 503, "{body}");
    world.is_with_the_new_one(&mut [&mut client, &mut watching]);
}

#[test]
fn a_replica_in_the_place_of_the_master_leads_to_the_new_one() {
    let world = World::new();
    let (mut client, mut quiet) = (world.proxy.client(), world.proxy.client());
    assert_eq!(client.cmd("SET k v"), "+OK\r\n");
    world.old.client().cmd(&format!("REPLICAOF 127.0.0.1 {}", world.new.port));
    // What its new role causes is over before the address leads elsewhere.
    std::thread::sleep(Duration::from_secs(4));
    world.lead_to("new");
    assert!(client.cmd("SET k v").starts_with("-READONLY"));
    eventually("it is noticed", || (client.cmd("SET k v") == "+OK\r\n").then_some(()));
    assert_eq!(world.who(&mut quiet), "new");
}

#[test]
fn a_master_that_becomes_a_replica_is_noticed_without_a_write() {
    let world = World::new();
    let mut client = world.proxy.client();
    world.old.client().cmd("CONFIG SET replica-serve-stale-data yes");
    assert_eq!(world.who(&mut client), "old");
    world.lead_to("new");
    // It never gets the data.
    world.old.client().cmd("REPLICAOF 127.0.0.1 1");
    eventually("it is noticed", || (world.who(&mut client) == "new").then_some(()));
}

#[test]
fn users_that_may_not_ask_who_redis_is_are_noticed_too() {
    let users = ["ACL SETUSER rescind on >pw ~* &* +@all", "ACL SETUSER default -info"];
    let world = World::with(&users, "rescind:pw@");
    let mut client = world.proxy.client();
    assert_eq!(world.who(&mut client), "old");
    world.lead_to("new");
    // Served, unless it is noticed at once.
    is_watching(&mut world.proxy.client());
    eventually("it is noticed", || (world.who(&mut client) == "new").then_some(()));
    world.is_with_the_new_one(&mut [&mut client]);
}

#[test]
fn an_address_that_leads_to_two_servers_in_turn_does_not_keep_all_moving() {
    let world = World::new();
    let mut client = world.proxy.client();
    assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
    let began = Instant::now();
    for turn in 0..40 {
        world.lead_to(if turn % 2 == 0 { "new" } else { "old" });
        let mut next = world.proxy.client();
        is_watching(&mut next);
        assert!(["old", "new"].contains(&&*world.who(&mut client)), "whoever shares is served");
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = world.proxy.log();
    let moves = log.matches("Redis is not the one that it was").count();
    let most = 1 + began.elapsed().as_secs() as usize / 5;
    assert!((1..=most).contains(&moves), "{moves} in {:?}", began.elapsed());
    assert_eq!(log.matches("lead to different Redis servers in turn").count(), 1);
    // In the end they are where it leads, though nobody makes a connection any more.
    world.lead_to("old");
    eventually("they have gone back", || (world.who(&mut client) == "old").then_some(()));
    eventually("the other one is left", || (world.connections(&world.new) == 0).then_some(()));
    world.proxy.ready();
}
