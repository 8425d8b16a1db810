//! Coalesced misses: of many clients that miss a key one computes it, and the others wait for what it writes.

use std::cell::Cell;

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_1";
const GET: &str = "GET app:1:home_page_data_1";
const NIL: &[u8] = b"$-1\r\n";
const TRIGGER: &str = "SET app:1:model:Post:7 1";
/// Longer than any test waits for a fill that comes.
const LONG: &str = "10s";

struct World {
    redis: Redis,
    proxy: Proxy,
    canaries: Cell<u32>,
}

impl World {
    /// With that much time for the family `home`.
    fn new(coalesce: &str) -> Self {
        Self::with("", coalesce)
    }

    fn with(config: &str, coalesce: &str) -> Self {
        let redis = Redis::start();
        let family = "name = \"home\"\n";
        let rules = RULES.replace(family, &format!("{family}coalesce = \"{coalesce}\"\n"));
        let rules =
            format!("{rules}\n[[family]]\nname = \"slow\"\nkeys = [\"slow_*\"]\ncoalesce = \"{LONG}\"\n");
        let proxy = Proxy::start(&redis, &format!("{config}\n{rules}"));
        Self { redis, proxy, canaries: Cell::new(0) }
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    /// One that has been told of a miss.
    fn computing(&self) -> Client {
        let mut client = self.client();
        client.request(&GET.split(' ').collect::<Vec<_>>());
        assert_eq!(client.raw(), NIL);
        client
    }

    /// One that has asked for the key; its proxy knows.
    fn waiting(&self) -> Client {
        let mut client = self.client();
        self.send(&mut client, &[GET]);
        client
    }

    /// A client that waits for a key that nobody fills. As long as it gets nothing, nobody's time is over who has begun to
    /// wait, or to compute, after it.
    fn canary(&self) -> Client {
        let number = self.canaries.replace(self.canaries.get() + 1);
        let get = format!("GET app:1:slow_{number}");
        assert_eq!(self.client().cmd(&get).as_bytes(), NIL);
        let mut canary = self.client();
        self.send(&mut canary, &[&get]);
        canary
    }

    fn waiting_clients(&self, count: usize) -> Vec<Client> {
        (0..count).map(|_| self.waiting()).collect()
    }

    /// Sends requests in one piece; returns when the proxy has read them.
    fn send(&self, client: &mut Client, lines: &[&str]) {
        let received = || self.proxy.metric("rescind_client_bytes_total{direction=\"in\"}");
        let (before, bytes) = (received(), lines.iter().map(|line| words(line)).collect::<Vec<_>>().concat());
        client.send(&bytes);
        eventually("it is read", || (received() >= before + bytes.len() as f64).then_some(()));
    }

    fn count(&self, what: &str) -> f64 {
        self.proxy.metric(&format!("rescind_{what}_total{{family=\"home\"}}"))
    }

    /// Misses, reads that waited and hit, reads that waited in vain.
    fn counts(&self) -> [f64; 3] {
        ["misses", "coalesced", "coalesce_timeouts"].map(|what| self.count(what))
    }
}

/// The one of them that goes on, taken out.
fn whose_turn(waiting: &mut Vec<Client>) -> Client {
    let turn = eventually("one goes on", || waiting.iter().position(|client| !waits(client)));
    waiting.remove(turn)
}

/// Whether the client has got nothing so far.
fn waits(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let nothing = client.stream.peek(&mut [0]).is_err();
    client.stream.set_nonblocking(false).unwrap();
    nothing
}

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn raw(client: &mut Client) -> String {
    String::from_utf8_lossy(&client.raw()).into_owned()
}

#[test]
fn one_computes_and_the_others_hit() {
    let w = World::new(LONG);
    let canary = w.canary();
    let mut first = w.computing();
    let others = w.waiting_clients(49);
    assert_eq!(w.counts(), [1.0, 0.0, 0.0]);
    assert_eq!(first.cmd(&format!("SET {KEY} v")), "+OK\r\n");
    others.into_iter().for_each(|mut client| assert_eq!(raw(&mut client), "$1\r\nv\r\n"));
    assert!(waits(&canary));
    assert_eq!(w.counts(), [1.0, 49.0, 0.0]);
    assert_eq!(w.count("hits"), 49.0);
    // Nothing is left of it: the next miss is one.
    w.redis.client().cmd(&format!("DEL {KEY}"));
    assert_eq!(w.client().cmd(GET).as_bytes(), NIL);
    assert_eq!(w.counts(), [2.0, 49.0, 0.0]);
}

#[test]
fn workers_know_of_each_other() {
    let w = World::with("[listen]\nworkers = 2", LONG);
    for round in 1..=5 {
        let canary = w.canary();
        let mut first = w.computing();
        let others = w.waiting_clients(20);
        assert_eq!(w.count("misses"), f64::from(round));
        first.cmd(&format!("SET {KEY} v{round}"));
        let value = format!("$2\r\nv{round}\r\n");
        others.into_iter().for_each(|mut client| assert_eq!(raw(&mut client), value));
        assert!(waits(&canary));
        assert_eq!(w.count("misses"), f64::from(round));
        w.redis.client().cmd(&format!("DEL {KEY}"));
    }
    assert_eq!(w.count("coalesce_timeouts"), 0.0);
}

#[test]
fn any_write_of_the_value_is_a_fill_and_anybody_may_do_it() {
    let w = World::new(LONG);
    let set = format!("SET {KEY} v");
    let string = "$1\r\nv\r\n";
    let big = format!("SET {KEY} {}", "x".repeat(300_000));
    let of_big = format!("$300000\r\n{}\r\n", "x".repeat(300_000));
    for (fill, read, value) in [
        (vec![format!("SETEX {KEY} 100 v")], GET, string),
        (vec![format!("SET {KEY} v NX")], GET, string),
        (vec![format!("SET {KEY} v NX GET")], GET, string),
        (vec![format!("SETNX {KEY} v")], GET, string),
        (vec![format!("MSET app:1:tools_1 v {KEY} v")], GET, string),
        (vec![format!("APPEND {KEY} v")], GET, string),
        (vec!["SET app:1:x v".to_owned(), format!("RENAME app:1:x {KEY}")], GET, string),
        (
            vec!["SELECT 1".to_owned(), "SET app:1:x v".to_owned(), format!("COPY app:1:x {KEY} DB 0")],
            GET,
            string,
        ),
        (vec![format!("TAG.WITH 1 t SET {KEY} v")], GET, string),
        (vec!["TAG.NEXT t".to_owned(), set.clone()], GET, string),
        (vec!["MULTI".to_owned(), set.clone(), "EXEC".to_owned()], GET, string),
        (vec!["CLIENT SETNAME joe".to_owned(), set.clone()], GET, string),
        (vec![big], GET, &of_big),
        (vec![format!("HSET {KEY} f v")], "HGETALL app:1:home_page_data_1", "*2\r\n$1\r\nf\r\n$1\r\nv\r\n"),
        (vec![format!("RPUSH {KEY} v")], "LRANGE app:1:home_page_data_1 0 -1", "*1\r\n$1\r\nv\r\n"),
        (vec![set], "EXISTS app:1:home_page_data_1", ":1\r\n"),
    ] {
        let (canary, before) = (w.canary(), w.counts());
        let _computing = w.computing();
        let mut waiting = w.client();
        w.send(&mut waiting, &[read]);
        assert_eq!(w.count("misses"), before[0] + 1.0);
        let mut other = w.client();
        other.send(&fill.iter().map(|line| words(line)).collect::<Vec<_>>().concat());
        assert_eq!(raw(&mut waiting), value, "{fill:?}");
        assert!(waits(&canary), "{fill:?}");
        assert_eq!(w.counts(), [before[0] + 1.0, before[1] + 1.0, 0.0], "{fill:?}");
        fill.iter().for_each(|_| drop(other.raw()));
        w.redis.client().cmd(&format!("DEL {KEY}"));
    }
}

#[test]
fn what_writes_nothing_is_no_fill() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut waiting = w.waiting();
    let mut other = w.client();
    for line in
        ["SET app:1:home_page_data_1 v XX", "SET app:1:home_page_data_1", "SETEX app:1:home_page_data_1 0 v"]
    {
        other.cmd(line);
    }
    other.cmd(&format!("EXPIRE {KEY} 100"));
    other.send(&[words("MULTI"), words(&format!("SET {KEY} old")), words("DISCARD")].concat());
    (0..3).for_each(|_| drop(other.raw()));
    other.send(&[words("MULTI"), words("SET app:1:home_page_data_2 v"), words("EXEC")].concat());
    (0..3).for_each(|_| drop(other.raw()));
    assert_eq!(w.counts(), [1.0, 0.0, 0.0], "it has not asked");
    first.cmd(&format!("SET {KEY} v"));
    assert_eq!(raw(&mut waiting), "$1\r\nv\r\n");
}

#[test]
fn nobody_waits_for_ever() {
    let w = World::new("300ms");
    let _first = w.computing();
    for mut client in w.waiting_clients(10) {
        assert_eq!(client.raw(), NIL);
    }
    // On a slow machine some have come too late to wait.
    let [misses, coalesced, timeouts] = w.counts();
    assert_eq!((misses, coalesced), (11.0, 0.0));
    assert!((1.0..=10.0).contains(&timeouts), "{timeouts}");
}

#[test]
fn a_value_written_past_the_proxy_is_found_in_the_end() {
    let w = World::new("1s");
    let _first = w.computing();
    let mut waiting = w.waiting();
    w.redis.client().cmd(&format!("SET {KEY} v"));
    assert_eq!(raw(&mut waiting), "$1\r\nv\r\n");
    assert_eq!(w.counts(), [1.0, 1.0, 0.0]);
}

#[test]
fn a_hit_of_anybody_ends_the_wait() {
    let w = World::new(LONG);
    let canary = w.canary();
    let mut first = w.computing();
    let mut waiting = w.waiting();
    w.redis.client().cmd(&format!("SET {KEY} v"));
    // Who computes does not wait for itself.
    assert_eq!(first.cmd(GET), "$1\r\nv\r\n");
    assert_eq!(raw(&mut waiting), "$1\r\nv\r\n");
    assert!(waits(&canary));
    assert_eq!(w.counts(), [1.0, 1.0, 0.0]);
}

#[test]
fn who_computes_does_not_wait_for_itself() {
    let w = World::new(LONG);
    let mut first = w.computing();
    first.send(&[words(GET), words("PING"), words(GET), words(&format!("SET {KEY} v")), words(GET)].concat());
    let replies: Vec<String> = (0..5).map(|_| raw(&mut first)).collect();
    assert_eq!(replies, ["$-1\r\n", "+PONG\r\n", "$-1\r\n", "+OK\r\n", "$1\r\nv\r\n"]);
    assert_eq!(w.counts(), [3.0, 0.0, 0.0]);
}

#[test]
fn replies_keep_their_order_and_requests_theirs() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut client = w.client();
    w.send(&mut client, &["PING", GET, "SET app:1:behind v", "GET app:1:behind", GET, "PING"]);
    assert_eq!(raw(&mut client), "+PONG\r\n", "what came before is answered");
    assert_eq!(w.redis.client().cmd("EXISTS app:1:behind"), ":0\r\n", "what comes behind waits");
    first.cmd(&format!("SET {KEY} w"));
    let replies: Vec<String> = (0..5).map(|_| raw(&mut client)).collect();
    assert_eq!(replies, ["$1\r\nw\r\n", "+OK\r\n", "$1\r\nv\r\n", "$1\r\nw\r\n", "+PONG\r\n"]);
    assert_eq!(w.counts(), [1.0, 1.0, 0.0]);
}

#[test]
fn what_is_deleted_is_computed_by_one_of_them() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut waiting = w.waiting_clients(10);
    first.cmd(&format!("DEL {KEY}"));
    let mut next = whose_turn(&mut waiting);
    assert_eq!(next.raw(), NIL);
    assert_eq!(w.counts(), [2.0, 0.0, 1.0]);
    next.cmd(&format!("SET {KEY} v"));
    waiting.iter_mut().for_each(|client| assert_eq!(raw(client), "$1\r\nv\r\n"));
    assert_eq!(w.counts(), [2.0, 9.0, 1.0]);
}

#[test]
fn the_old_value_is_never_seen_after_an_invalidation() {
    let w = World::new(LONG);
    let old = format!("SET {KEY} old");
    for fill in [
        vec![old.clone()],
        vec![format!("TAG.WITH 1 t SET {KEY} old")],
        vec!["MULTI".to_owned(), old, "EXEC".to_owned()],
    ] {
        let mut first = w.computing();
        let mut waiting = w.waiting_clients(3);
        assert_eq!(w.client().cmd(TRIGGER), "+OK\r\n");
        first.send(&fill.iter().map(|line| words(line)).collect::<Vec<_>>().concat());
        let mut next = whose_turn(&mut waiting);
        assert_eq!(next.raw(), NIL, "{fill:?}");
        assert_eq!(next.cmd(&format!("SET {KEY} new")), "+OK\r\n");
        waiting.iter_mut().for_each(|client| assert_eq!(raw(client), "$3\r\nnew\r\n", "{fill:?}"));
        w.redis.client().cmd(&format!("DEL {KEY}"));
    }
    // One of each three computed anew.
    assert_eq!(w.counts(), [6.0, 6.0, 3.0]);
}

#[test]
fn of_a_script_that_may_have_filled_it_one_of_them_finds_out() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut waiting = w.waiting_clients(5);
    assert_eq!(first.cmd(&format!("EVAL return(redis.call('TTL',KEYS[1])) 1 {KEY}")), ":-2\r\n");
    assert_eq!(whose_turn(&mut waiting).raw(), NIL);
    first.cmd(&format!("EVAL return(redis.call('SET',KEYS[1],'v')) 1 {KEY}"));
    waiting.iter_mut().for_each(|client| assert_eq!(raw(client), "$1\r\nv\r\n"));
}

#[test]
fn what_began_before_an_invalidation_is_not_waited_for() {
    let w = World::new(LONG);
    let mut first = w.computing();
    w.client().cmd(TRIGGER);
    let mut second = w.computing();
    let mut waiting = w.waiting();
    assert_eq!(w.counts(), [2.0, 0.0, 0.0], "the second one has not waited, the third one does");
    assert_eq!(first.cmd(&format!("SET {KEY} old")), "+OK\r\n");
    assert_eq!(second.cmd(&format!("SET {KEY} new")), "+OK\r\n");
    // The stale fill may have made it the third one's turn to compute.
    let got = raw(&mut waiting);
    assert!(["$-1\r\n", "$3\r\nnew\r\n"].contains(&got.as_str()), "{got}");
}

#[test]
fn who_waited_for_a_client_that_is_gone_computes_next() {
    let w = World::new("500ms");
    drop(w.computing());
    let mut next = w.waiting();
    assert_eq!(next.raw(), NIL);
    let mut third = w.waiting();
    next.cmd(&format!("SET {KEY} v"));
    // Slow machine: it may have waited as long as it may.
    let got = raw(&mut third);
    assert!(["$-1\r\n", "$1\r\nv\r\n"].contains(&got.as_str()), "{got}");
    assert_eq!(w.client().cmd(GET), "$1\r\nv\r\n");
}

#[test]
fn a_waiting_client_that_hangs_up_is_noticed() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut gone = w.client();
    w.send(&mut gone, &[GET, "SET app:1:behind v"]);
    let mut stays = w.waiting();
    drop(gone);
    eventually("it is gone", || (w.proxy.metric("rescind_clients") == 2.0).then_some(()));
    assert_eq!(w.redis.client().cmd("EXISTS app:1:behind"), ":1\r\n", "what it had sent has run");
    first.cmd(&format!("SET {KEY} v"));
    assert_eq!(raw(&mut stays), "$1\r\nv\r\n");
}

#[test]
fn only_plain_reads_of_one_value_wait() {
    let w = World::new(LONG);
    // Requests, how many replies they have, and the last of these.
    for (number, (requests, replies, last)) in [
        ("MGET KEY", 1, "*1\r\n$-1\r\n"),
        ("HGET KEY f", 1, "$-1\r\n"),
        ("TTL KEY", 1, ":-2\r\n"),
        ("MULTI, GET KEY, EXEC", 3, "*1\r\n$-1\r\n"),
        ("MULTI, PING, SELECT 0, GET KEY, EXEC", 5, "*3\r\n+PONG\r\n+OK\r\n$-1\r\n"),
        ("WATCH k, GET KEY", 2, "$-1\r\n"),
        ("CLIENT REPLY OFF, GET KEY, CLIENT REPLY ON", 1, "+OK\r\n"),
        ("GET KEYx", 1, "$-1\r\n"),
        ("SELECT 1, GET KEY", 2, "$-1\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("app:1:home_page_data_x{number}");
        let (canary, mut client) = (w.canary(), w.client());
        assert_eq!(w.client().cmd(&format!("GET {key}")).as_bytes(), NIL);
        client.send(&requests.replace("KEY", &key).split(", ").map(words).collect::<Vec<_>>().concat());
        (1..replies).for_each(|_| drop(client.raw()));
        assert_eq!(raw(&mut client), last, "{requests}");
        assert!(waits(&canary), "{requests}");
    }
    let (canary, mut listening) = (w.canary(), w.client());
    listening.cmd("HELLO 3");
    listening.cmd("SUBSCRIBE c");
    let _computing = w.computing();
    assert_eq!(listening.cmd(GET), "_\r\n");
    assert!(waits(&canary));
    assert_eq!(w.count("coalesce_timeouts"), 0.0);
}

#[test]
fn what_is_there_is_not_waited_for() {
    let w = World::new(LONG);
    let mut direct = w.redis.client();
    // A part of it that is missing, or a value that is empty, is no miss to wait for.
    direct.cmd(&format!("HSET {KEY} f v"));
    for (read, reply) in
        [(format!("HGET {KEY} x"), "$-1\r\n"), (format!("HGETALL {KEY}"), "*2\r\n$1\r\nf\r\n$1\r\nv\r\n")]
    {
        let canary = w.canary();
        assert_eq!(w.client().cmd(&read), reply);
        assert!(waits(&canary));
    }
    direct.call(&["SET", KEY, ""]);
    for _ in 0..2 {
        let canary = w.canary();
        assert_eq!(w.client().cmd(GET), "$0\r\n\r\n");
        assert!(waits(&canary));
    }
    assert_eq!((w.count("coalesced"), w.count("coalesce_timeouts")), (0.0, 0.0));
}

#[test]
fn clients_with_a_connection_of_their_own_wait_too() {
    let w = World::new(LONG);
    let mut first = w.computing();
    let mut named = w.client();
    named.cmd("CLIENT SETNAME joe");
    w.send(&mut named, &[GET]);
    first.cmd(&format!("SET {KEY} v"));
    assert_eq!(raw(&mut named), "$1\r\nv\r\n");
    assert_eq!(w.counts(), [1.0, 1.0, 0.0]);
}

#[test]
fn without_it_nobody_waits() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let on = World::new(LONG);
    // Of a family that has none, likewise.
    for (proxy, key) in [(&proxy, KEY), (&on.proxy, "app:1:blog_posts_1")] {
        for _ in 0..3 {
            assert_eq!(proxy.client().cmd(&format!("GET {key}")).as_bytes(), NIL);
        }
        for what in ["coalesced", "coalesce_timeouts"] {
            for family in ["home", "blog_posts_*"] {
                let name = format!("rescind_{what}_total{{family=\"{family}\"}}");
                assert_eq!(proxy.metric(&name), 0.0);
            }
        }
    }
}
