//! What the proxy itself says on its connections comes between the requests of clients, and must not be taken for theirs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Client, Proxy, RULES, Redis, complete, encode, eventually, texts};

/// What becomes of a request on its way to Redis.
enum Way {
    /// It goes on.
    On,
    /// This one goes in its place.
    Instead(&'static [&'static str]),
    /// Its connection is cut.
    Cut,
}

/// Stands between proxy and Redis, and decides about each request.
struct Between {
    port: u16,
    /// Replies get lost.
    mute: Arc<AtomicBool>,
}

impl Between {
    fn new(redis: u16, way: impl Fn(&[String]) -> Way + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, way, mute) =
            (listener.local_addr().unwrap().port(), Arc::new(way), Arc::new(AtomicBool::new(false)));
        let muted = Arc::clone(&mute);
        std::thread::spawn(move || {
            for proxy in listener.incoming().flatten() {
                let Ok(redis) = TcpStream::connect(("127.0.0.1", redis)) else { continue };
                let (back, to) = (redis.try_clone().unwrap(), proxy.try_clone().unwrap());
                let (way, mute) = (Arc::clone(&way), Arc::clone(&muted));
                std::thread::spawn(move || pass_back(back, to, &mute));
                std::thread::spawn(move || pass_on(proxy, redis, &*way));
            }
        });
        Self { port, mute }
    }

    fn proxy(&self) -> Proxy {
        let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", self.port), RULES, &[]);
        proxy.ready();
        proxy
    }
}

fn pass_on(mut proxy: TcpStream, mut redis: TcpStream, way: &dyn Fn(&[String]) -> Way) {
    let (mut unread, mut chunk) = (vec![], [0; 4096]);
    while let Ok(n @ 1..) = proxy.read(&mut chunk) {
        unread.extend_from_slice(&chunk[..n]);
        while let Some(length) = complete(&unread) {
            let request: Vec<u8> = unread.drain(..length).collect();
            let request = match way(&texts(&request)) {
                Way::On => request,
                Way::Instead(words) => encode(words),
                Way::Cut => {
                    _ = (proxy.shutdown(std::net::Shutdown::Both), redis.shutdown(std::net::Shutdown::Both));
                    return;
                }
            };
            if redis.write_all(&request).is_err() {
                return;
            }
        }
    }
    let _ = redis.shutdown(std::net::Shutdown::Both);
}

fn pass_back(mut redis: TcpStream, mut proxy: TcpStream, mute: &AtomicBool) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(n @ 1..) = redis.read(&mut chunk) {
        let replies = without_late_refusals(&chunk[..n]);
        if !mute.load(Ordering::SeqCst) && proxy.write_all(&replies).is_err() {
            break;
        }
    }
    let _ = proxy.shutdown(std::net::Shutdown::Both);
}

/// As of version 7.2 Redis says nothing of an AUTH that fails while other replies are still to be sent; the one of the tests
/// may be older.
fn without_late_refusals(replies: &[u8]) -> Vec<u8> {
    let text = |bytes: &[u8]| bytes.iter().map(|byte| *byte as char).collect::<String>();
    let mut replies = text(replies);
    while let Some(at) = replies.find("\r\n-WRONGPASS") {
        let end = replies[at + 2..].find("\r\n").map_or(replies.len(), |end| at + 2 + end);
        replies.replace_range(at..end, "");
    }
    replies.chars().map(|byte| byte as u8).collect()
}

fn is(words: &[String], wanted: &[&str]) -> bool {
    words.len() >= wanted.len()
        && words.iter().zip(wanted).all(|(word, wanted)| word.eq_ignore_ascii_case(wanted))
}

/// As of version 7.2 Redis takes the name of a client's library; the one of the tests may be older.
fn with_names_of_libraries(words: &[String]) -> Way {
    match is(words, &["CLIENT", "SETINFO"]) {
        true => Way::Instead(&["CLIENT", "NO-EVICT", "OFF"]),
        false => Way::On,
    }
}

#[test]
fn a_client_whose_library_names_itself_gets_new_connections() {
    let mut redis = Redis::start();
    let proxy = Between::new(redis.port, with_names_of_libraries).proxy();
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(client.cmd("CLIENT SETINFO LIB-NAME lib"), "+OK\r\n");
        assert_eq!(client.cmd("CLIENT SETINFO LIB-VER 1"), "+OK\r\n");
        assert_eq!(client.cmd("SET app:1:tools_1 v"), "+OK\r\n");
    }
    for line in ["MULTI", "PING", "EXEC", "WATCH k", "UNWATCH", "SUBSCRIBE c"] {
        assert!(!clients[0].cmd(line).starts_with('-'), "{line}");
    }
    redis.kill();
    // What is between passes on the end of one connection after the other.
    let shared = || proxy.metric("rescind_upstream_connections{mode=\"shared\"}");
    eventually("the proxy has noticed it", || (shared() == 0.0).then_some(()));
    redis.restart();
    proxy.ready();
    let mut direct = redis.client();
    direct.cmd("SET k v");
    // Those that had nothing of their own are still there, and each of them needs a connection with its name.
    let mut client = clients.swap_remove(2);
    assert_eq!(client.cmd("GET k"), "$1\r\nv\r\n");
    assert_eq!(client.cmd("MULTI"), "+OK\r\n");
    let mut fresh = proxy.client();
    assert_eq!(fresh.cmd("CLIENT SETINFO LIB-NAME lib"), "+OK\r\n");
    assert_eq!(fresh.cmd("GET k"), "$1\r\nv\r\n");
}

#[test]
fn what_is_asked_about_rights_takes_its_place_among_the_requests() {
    let redis = Redis::start();
    redis.client().cmd("ACL SETUSER joe on >pw ~* &* +@all");
    let proxy = Proxy::start(&redis, RULES);
    let (mut joe, mut other) = (proxy.client(), proxy.client());
    assert_eq!(joe.cmd("AUTH joe pw"), "+OK\r\n");
    assert_eq!(joe.cmd("GET app:1:tools_1"), "$-1\r\n");
    // An idle connection of another user, which is made into one of his.
    for line in ["GET q", "WATCH z", "UNWATCH", "GET q"] {
        assert!(!other.cmd(line).starts_with('-'), "{line}");
    }
    std::thread::sleep(Duration::from_millis(100));
    let lines = ["WATCH z", "GET y", "SET app:1:tools_1 v"];
    joe.send(&lines.map(|line| encode(&line.split(' ').collect::<Vec<_>>())).concat());
    assert_eq!([joe.reply(), joe.reply(), joe.reply()], ["+OK\r\n", "$-1\r\n", "+OK\r\n"]);
}

#[test]
fn what_was_sent_before_rights_were_asked_for_may_have_run() {
    let redis = Redis::start();
    redis.client().cmd("ACL SETUSER joe on >pw ~* &* +@all -flushall");
    let cuts = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&cuts);
    let between = Between::new(redis.port, move |words| {
        let asks = is(words, &["EVAL_RO"]) && cut.load(Ordering::SeqCst);
        if asks { Way::Cut } else { Way::On }
    });
    let proxy = between.proxy();
    let (mut filler, mut counter) = (proxy.client(), proxy.client());
    for client in [&mut filler, &mut counter] {
        assert_eq!(client.cmd("AUTH joe pw"), "+OK\r\n");
        assert_eq!(client.cmd("GET x"), "$-1\r\n");
    }
    assert_eq!(filler.cmd("GET app:1:tools_1"), "$-1\r\n");
    // Afterwards it is not known any more what he may do.
    assert!(filler.cmd("FLUSHALL").starts_with("-NOPERM"));
    between.mute.store(true, Ordering::SeqCst);
    cuts.store(true, Ordering::SeqCst);
    counter.request(&["INCR", "n"]);
    let mut direct = redis.client();
    eventually("it has run", || (direct.cmd("GET n") == "$1\r\n1\r\n").then_some(()));
    filler.request(&["SET", "app:1:tools_1", "v"]);
    let answer = counter.rest();
    assert!(answer.is_empty(), "told that it did not run: {}", String::from_utf8_lossy(&answer));
}

#[test]
fn nothing_of_a_user_whose_password_has_changed_runs_as_somebody_else() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let proxy = Between::new(redis.port, |_| Way::On).proxy();
    direct.cmd("SET keep 1");
    for change in ["off", "resetpass"] {
        direct.cmd("ACL SETUSER joe reset on >pw ~* &* +@all -flushall");
        let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
        for client in &mut clients {
            assert_eq!(client.cmd("AUTH joe pw"), "+OK\r\n");
            assert_eq!(client.cmd("GET k"), "$-1\r\n");
        }
        direct.cmd(&format!("ACL SETUSER joe {change}"));
        let answers = clients.iter_mut().map(|client| {
            client.send(&[encode(&["WATCH", "k"]), encode(&["FLUSHALL"])].concat());
            client.reply()
        });
        // One has the connection on which he was let in.
        let refused = answers.filter(|answer| answer.contains("WRONGPASS")).count();
        assert_eq!((refused, &*direct.cmd("GET keep")), (2, "$1\r\n1\r\n"), "{change}");
        // Nor does anybody else suffer from it.
        assert_eq!(proxy.client().cmd("WATCH k"), "+OK\r\n");
    }
}

#[test]
fn strangers_get_no_replies_of_others_when_a_password_is_set() {
    const KEYS: usize = 50;
    let redis = Redis::start();
    let mut direct = redis.client();
    (0..KEYS).for_each(|n| _ = direct.cmd(&format!("SET k{n} v{n}")));
    let proxy = Between::new(redis.port, |_| Way::On).proxy();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                let gets: Vec<u8> = (0..KEYS).flat_map(|n| encode(&["GET", &format!("k{n}")])).collect();
                while !done.load(Ordering::SeqCst) {
                    client.send(&gets);
                    (0..KEYS).for_each(|n| assert!(client.reply().ends_with(&format!("\r\nv{n}\r\n"))));
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..30 {
            direct.cmd("CONFIG SET requirepass secret");
            assert_eq!(proxy.client().cmd("GET k1"), "-NOAUTH Authentication required.\r\n");
            direct.request(&["CONFIG", "SET", "requirepass", ""]);
            assert_eq!(direct.reply(), "+OK\r\n");
            assert_eq!(proxy.client().cmd("GET k1"), "$2\r\nv1\r\n");
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn no_server_sends_a_client_past_the_proxy() {
    let redis = Redis::start();
    let was_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&was_asked);
    let between = Between::new(redis.port, move |words| {
        if is(words, &["CLIENT", "CAPA"]) {
            assert_eq!(words.len(), 4);
            assert!(words[3].eq_ignore_ascii_case("more"), "{words:?}");
            asked.store(words[2] == "none", Ordering::SeqCst);
        }
        Way::On
    });
    let proxy = between.proxy();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    // Only Valkey knows it.
    assert_eq!(client.cmd("CLIENT CAPA Redirect more"), direct.cmd("CLIENT CAPA other more"));
    assert!(was_asked.load(Ordering::SeqCst));
    let master = Redis::start();
    direct.cmd(&format!("REPLICAOF 127.0.0.1 {}", master.port));
    assert!(client.cmd("SET k v").starts_with("-READONLY"));
}
