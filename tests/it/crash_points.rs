//! A proxy that dies at any step of an invalidation: the next one finishes it before anybody reads.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;

use crate::support::{Client, Proxy, RULES, Redis, complete, encode, eventually, texts};

const KEY: &str = "app:1:home_page_data_1";
const OTHER: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "app:1:model:Post:7";
/// The life that soft invalidation leaves, in milliseconds.
const GRACE: i64 = 600_000;

/// The places at which a debug build can be made to die, in the order in which a trigger passes them.
const PLACES: &[&str] = &[
    "intent noted",
    "trigger answered",
    "fan-out begun",
    "announced",
    "collected",
    "one deleted",
    "all deleted",
    "noted as done",
];

/// What invalidates, and how it is.
struct Way {
    rules: String,
    requests: Vec<u8>,
    /// How the reply begins that is not to come.
    reply: &'static str,
    /// It writes [`TRIGGER`].
    writes: bool,
    soft: bool,
}

impl Way {
    fn new(requests: Vec<u8>, reply: &'static str) -> Self {
        Self { rules: RULES.to_owned(), requests, reply, writes: false, soft: false }
    }

    fn set() -> Self {
        Self { writes: true, ..Self::new(encode(&["SET", TRIGGER, "1"]), "+OK") }
    }

    /// Where a proxy dies that this one's writer has sent the requests.
    fn die(&self, redis: &Redis, proxy: &mut Proxy, place: &str) {
        fill(redis, &[KEY, OTHER]);
        let mut writer = proxy.client();
        writer.send(&self.requests);
        let answered = String::from_utf8(writer.rest()).unwrap();
        let is_answered = answered.lines().any(|line| line.starts_with(self.reply));
        assert!(!is_answered, "{place}: the writer was answered: {answered}");
        proxy.wait();
        let took_effect = redis.client().cmd(&format!("EXISTS {TRIGGER}")) == ":1\r\n";
        assert_eq!(took_effect, self.writes && place != "intent noted", "{place}");
    }

    fn is_invalidated(&self, direct: &mut Client, key: &str) -> bool {
        let life = direct.cmd(&format!("PTTL {key}"));
        let life: i64 = life.trim_start_matches(':').trim_end().parse().unwrap();
        if self.soft { (1..=GRACE).contains(&life) } else { life == -2 }
    }

    /// The next proxy finishes it, and that once.
    fn is_finished(&self, redis: &Redis, proxy: &mut Proxy, place: &str) {
        let mut direct = redis.client();
        proxy.start_again(&[]);
        // The very first read that is answered must not see it.
        let read = proxy.client().cmd(&format!("GET {KEY}"));
        assert!(read == "$-1\r\n" || (self.soft && self.is_invalidated(&mut direct, KEY)), "{place}: {read}");
        for key in [KEY, OTHER] {
            eventually("it is finished", || self.is_invalidated(&mut direct, key).then_some(()));
        }
        eventually("nothing is pending", || (proxy.metric("rescind_journal_pending") == 0.0).then_some(()));
        // Nothing is done twice by the one after that, once the journal knows.
        std::thread::sleep(std::time::Duration::from_millis(300));
        proxy.kill();
        fill(redis, &[KEY]);
        proxy.start_again(&[]);
        proxy.ready();
        assert_eq!(proxy.client().cmd(&format!("GET {KEY}")), "$6\r\ncached\r\n", "{place}");
        assert_eq!(direct.cmd(&format!("PTTL {KEY}")), ":-1\r\n", "{place}");
    }
}

fn fill(redis: &Redis, keys: &[&str]) {
    let mut direct = redis.client();
    for key in keys {
        assert_eq!(direct.cmd(&format!("SET {key} cached")), "+OK\r\n");
    }
}

fn at_each_place(way: &Way, places: &[&str]) {
    for place in places {
        let redis = Redis::start();
        let mut proxy = Proxy::start(&redis, &way.rules);
        proxy.kill();
        proxy.start_again(&[("RESCIND_DIE_AT", place)]);
        proxy.ready();
        way.die(&redis, &mut proxy, place);
        way.is_finished(&redis, &mut proxy, place);
    }
}

#[test]
fn what_a_dead_proxy_has_begun_is_finished_by_the_next_one() {
    at_each_place(&Way::set(), PLACES);
}

#[test]
fn so_is_what_a_transaction_triggers() {
    let requests = [encode(&["MULTI"]), encode(&["SET", TRIGGER, "1"]), encode(&["EXEC"])].concat();
    at_each_place(&Way { writes: true, ..Way::new(requests, "*1") }, PLACES);
}

#[test]
fn so_is_what_a_message_or_the_command_invalidates() {
    let publish = Way::new(encode(&["PUBLISH", "rescind:invalidate", "Post"]), ":");
    at_each_place(&publish, PLACES);
    // No reply to a command that Redis gets.
    let places: Vec<_> = PLACES.iter().copied().filter(|place| *place != "trigger answered").collect();
    at_each_place(&Way::new(encode(&["TAG.INVALIDATE", "Post"]), ":"), &places);
}

#[test]
fn so_is_what_only_shortens_lives() {
    let family = format!("on_invalidate = \"expire\"\ngrace = \"{GRACE}ms\"");
    let rules =
        RULES.replace("keys = [\"home_page_data_*\"]", &format!("keys = [\"home_page_data_*\"]\n{family}"));
    let rules = format!("{rules}\n[[family]]\nname = \"blog\"\nkeys = [\"blog_posts_*\"]\n{family}");
    at_each_place(&Way { rules, soft: true, ..Way::set() }, PLACES);
}

/// Passes requests on to Redis, but ends all connections to it ahead of the first `word` that follows an epoch; then it goes on
/// for whoever comes next. Its port, and who is told of that.
fn cutter(redis: u16, word: &'static str) -> (u16, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cut, told) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let redis = TcpStream::connect(("127.0.0.1", redis)).unwrap();
            let (mut replies, mut back) = (redis.try_clone().unwrap(), client.try_clone().unwrap());
            let cut = cut.clone();
            std::thread::spawn(move || pass_on(client, redis, word, &cut));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut replies, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
        }
    });
    (port, told)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, word: &str, cut: &mpsc::Sender<()>) {
    let (mut unread, mut chunk, mut is_begun) = (vec![], vec![0; 1 << 16], false);
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        unread.extend_from_slice(&chunk[..length]);
        while let Some(length) = complete(&unread) {
            let request: Vec<u8> = unread.drain(..length).collect();
            let words = texts(&request);
            is_begun |= words[0] == "SET" && words[1].starts_with("rescind:epoch:");
            // Nobody listens any more: the next proxy is not cut off.
            if is_begun && words[0] == word && cut.send(()).is_ok() {
                while let Ok(1..) = from.read(&mut chunk) {}
                unread.clear();
            } else if to.write_all(&request).is_err() {
                return;
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn what_has_an_epoch_is_finished_whatever_was_told_of_it() {
    for word in ["LPUSH", "PUBLISH", "PING"] {
        let redis = Redis::start();
        let (port, told) = cutter(redis.port, word);
        let mut proxy = Proxy::launch(&format!("redis://127.0.0.1:{port}"), RULES, &[]);
        proxy.ready();
        fill(&redis, &[KEY, OTHER]);
        let mut writer = proxy.client();
        writer.send(&Way::set().requests);
        told.recv_timeout(crate::support::PATIENCE).expect(word);
        drop(told);
        proxy.kill();
        assert_eq!(writer.rest(), b"", "{word}");
        assert_eq!(redis.client().cmd(&format!("EXISTS rescind:epoch:Post {KEY}")), ":2\r\n", "{word}");
        Way::set().is_finished(&redis, &mut proxy, word);
    }
}
