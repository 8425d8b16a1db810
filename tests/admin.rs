//! The admin address over a real socket: routes, refusals, the status page, shutdown.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rescind::admin::{self, Config, Control, Family, Invalidation, LogEntry, Status, hit_ratio};

/// Remembers what was invalidated; fails for the tag `boom`, never ends for `slow`.
#[derive(Default)]
struct Fake {
    not_ready: Vec<String>,
    invalidated: Mutex<Vec<(Vec<Vec<u8>>, String)>>,
}

impl Control for Fake {
    fn status(&self) -> Status {
        let family = Family {
            name: "home".into(),
            hits: 3,
            misses: 1,
            hit_ratio: hit_ratio(3, 1),
            ..Family::default()
        };
        let idle = Family { name: "<b>other</b>".into(), ..Family::default() };
        Status { version: "9.9".into(), uptime_seconds: 5, families: vec![family, idle], ..Status::default() }
    }

    fn readiness(&self) -> Result<Vec<String>, Vec<String>> {
        if self.not_ready.is_empty() { Ok(vec![]) } else { Err(self.not_ready.clone()) }
    }

    fn invalidate(&self, tags: Vec<Vec<u8>>, client: String) -> Invalidation {
        let outcome = match tags.first().map(Vec::as_slice) {
            Some(b"boom") => Err("Redis cannot be reached".to_owned()),
            _ => Ok(tags.len() as u64),
        };
        let slow = tags.iter().any(|tag| tag == b"slow");
        self.invalidated.lock().unwrap().push((tags, client));
        Box::pin(async move {
            if slow {
                std::future::pending::<()>().await;
            }
            outcome
        })
    }

    fn log(&self, n: usize) -> Vec<LogEntry> {
        (0..n.min(50)).map(|i| LogEntry { trigger: format!("t{i}"), ..LogEntry::default() }).collect()
    }

    fn metrics(&self) -> String {
        "rescind_clients 1\n".into()
    }
}

/// A server on a thread of its own; stops when dropped.
struct Server {
    address: SocketAddr,
    fake: Arc<Fake>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        Server::with(Fake::default(), "127.0.0.1:0", None)
    }

    fn with(fake: Fake, bind: &str, token: Option<&str>) -> Server {
        Server::bounded(fake, bind, token, 256)
    }

    fn bounded(fake: Fake, bind: &str, token: Option<&str>, connections: usize) -> Server {
        let listener = std::net::TcpListener::bind(bind).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let config =
            Config { address: "admin.internal:9380".into(), token: token.map(str::to_owned), connections };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let fake = Arc::new(fake);
        let control = Arc::clone(&fake);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let stopped = async {
                    let _ = stopped.await;
                };
                admin::serve(listener, control, config, stopped).await.unwrap();
            });
        });
        Server { address: ([127, 0, 0, 1], port).into(), fake, stop: Some(stop), thread: Some(thread) }
    }

    /// Sends a request and returns the status, the head in lower case, and the body.
    fn send(&self, request_line: &str, headers: &[&str], body: &str) -> Reply {
        let mut text = format!("{request_line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.starts_with("Host:")) {
            text += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|header| text += &format!("{header}\r\n"));
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut stream = self.connect();
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path}"), &[], "")
    }

    fn post(&self, headers: &[&str], body: &str) -> Reply {
        self.send("POST /api/invalidate", &[&[JSON], headers].concat(), body)
    }

    fn invalidated(&self) -> usize {
        self.fake.invalidated.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    #[track_caller]
    fn json(&self) -> serde_json::Value {
        assert!(self.head.contains("\r\ncontent-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).expect(&self.body)
    }

    #[track_caller]
    fn refused(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].as_str().expect("an error").to_owned();
        assert!(error.contains(part), "{error}");
    }
}

const JSON: &str = "Content-Type: application/json";
const TAGS: &str = r#"{"tags": ["post:42", "Post"]}"#;

#[test]
fn metrics_and_health() {
    let server = Server::start();
    let metrics = server.get("/metrics");
    assert_eq!((metrics.status, metrics.body.as_str()), (200, "rescind_clients 1\n"));
    assert!(
        metrics.head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        metrics.head
    );
    let health = server.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok"));
    assert_eq!(server.get("/readyz").status, 200);
    // Monitoring may know the proxy by any name.
    for path in ["GET /metrics", "GET /healthz", "GET /readyz"] {
        assert_eq!(server.send(path, &["Host: rescind.example:9380"], "").status, 200, "{path}");
    }
}

#[test]
fn readiness_gives_the_reasons_one_per_line() {
    let fake = Fake {
        not_ready: vec!["the feed is down".into(), "the index\nis incomplete".into()],
        ..Fake::default()
    };
    let server = Server::with(fake, "127.0.0.1:0", None);
    let ready = server.get("/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "the feed is down\nthe index is incomplete\n"));
    assert_eq!(server.get("/healthz").status, 200);
    let status = server.get("/api/status").json();
    assert_eq!((&status["ready"], &status["not_ready"][0]), (&false.into(), &"the feed is down".into()));
}

#[test]
fn status_and_log() {
    let server = Server::start();
    let status = server.get("/api/status").json();
    assert_eq!(status["version"], "9.9");
    assert_eq!(status["ready"], true);
    assert_eq!(status["families"][0]["hit_ratio"], 0.75);
    assert_eq!(status["families"][1]["hit_ratio"], serde_json::Value::Null);
    assert_eq!(status["index"]["complete"], false);
    assert_eq!(status["upstream"]["connections"]["shared"], 0);
    assert_eq!(status["invalidations"].as_array().unwrap().len(), 20);
    assert_eq!(server.get("/api/log").json().as_array().unwrap().len(), 20);
    assert_eq!(server.get("/api/log?n=3").json()[2]["trigger"], "t2");
    server.get("/api/log?n=many").refused(400, "number");
}

#[test]
fn the_data_is_refused_under_a_rebound_name() {
    let server = Server::start();
    for path in ["GET /api/status", "GET /api/log"] {
        server.send(path, &["Host: evil.example:9380"], "").refused(403, "Host");
        assert_eq!(server.send(path, &["Host: localhost:9380"], "").status, 200);
        assert_eq!(server.send(path, &["Host: admin.internal:9380"], "").status, 200);
    }
}

#[test]
fn an_invalidation() {
    let server = Server::start();
    let reply = server.post(&[], TAGS);
    assert_eq!((reply.status, reply.json()), (200, serde_json::json!({ "keys": 2 })));
    let origin = format!("Origin: http://{}", server.address);
    assert_eq!(server.post(&[&origin], TAGS).status, 200);
    let charset =
        server.send("POST /api/invalidate", &["Content-Type: application/json; charset=utf-8"], TAGS);
    assert_eq!(charset.status, 200);
    let seen = server.fake.invalidated.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].0, [b"post:42".to_vec(), b"Post".to_vec()]);
    assert!(seen[0].1.starts_with("http 127.0.0.1:"), "{}", seen[0].1);
}

#[test]
fn what_a_web_page_could_send_is_refused() {
    let server = Server::start();
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"]
    {
        let header = format!("Content-Type: {content_type}");
        server.send("POST /api/invalidate", &[&header], TAGS).refused(403, "application/json");
    }
    server.send("POST /api/invalidate", &[], TAGS).refused(403, "application/json");
    for origin in ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1:1"] {
        server.post(&[&format!("Origin: {origin}")], TAGS).refused(403, "Origin");
    }
    let rebound = ["Host: evil.example:9380", "Origin: http://evil.example:9380"];
    server.post(&rebound, TAGS).refused(403, "Host");
    server.post(&rebound[..1], TAGS).refused(403, "Host");
    let preflight = server.send("OPTIONS /api/invalidate", &["Origin: http://evil.example"], "");
    assert_eq!(preflight.status, 405);
    assert!(!preflight.head.contains("access-control"), "{}", preflight.head);
    assert_eq!(server.invalidated(), 0);
}

#[test]
fn bad_bodies() {
    let server = Server::start();
    for (body, part) in [
        ("", "body"),
        ("{", "body"),
        ("[]", "body"),
        (r#"{"tags": "Post"}"#, "body"),
        (r#"{"tags": [1]}"#, "body"),
        (r#"{"tags": ["Post"], "key": 1}"#, "unknown field"),
        (r#"{"tags": []}"#, "tags is empty"),
        (r#"[["Post"]]"#, "it is no object"),
        (r#"{"tags": ["Post"], "tags": ["Tool"]}"#, "duplicate field"),
        (r#"{"tags": ["Post", ""]}"#, "a tag is empty"),
    ] {
        server.post(&[], body).refused(400, part);
    }
    assert_eq!(server.invalidated(), 0);
}

#[test]
fn a_body_is_bounded() {
    let server = Server::start();
    let mut stream = server.connect();
    let head = format!("POST /api/invalidate HTTP/1.1\r\nHost: {}\r\n{JSON}\r\n", server.address);
    stream.write_all(format!("{head}Content-Length: 1073741824\r\n\r\n").as_bytes()).unwrap();
    // The refusal arrives although the body never does.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // Nor does it help to leave the length out.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let mut stream = server.connect();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let sent = (0..1000).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 1000, "all was read");
    assert_eq!(server.invalidated(), 0);
}

#[test]
fn a_fan_out_that_fails() {
    let server = Server::start();
    server.post(&[], r#"{"tags": ["boom"]}"#).refused(503, "Redis cannot be reached");
}

#[test]
fn the_token() {
    let server = Server::with(Fake::default(), "127.0.0.1:0", Some("s3cret"));
    let without = server.post(&[], TAGS);
    without.refused(401, "admin.token");
    assert!(without.head.contains("\r\nwww-authenticate: bearer"), "{}", without.head);
    server.post(&["Authorization: Bearer wrong"], TAGS).refused(401, "admin.token");
    assert_eq!(server.post(&["Authorization: Bearer s3cret"], TAGS).status, 200);
    assert_eq!(server.get("/api/status").status, 200, "reading needs no token");
    assert_eq!(server.invalidated(), 1);
}

#[test]
fn an_address_that_is_not_loopback_takes_no_post_without_a_token() {
    let server = Server::with(Fake::default(), "0.0.0.0:0", None);
    server.post(&[], TAGS).refused(403, "no token");
    assert_eq!(server.get("/api/status").status, 200);
    let server = Server::with(Fake::default(), "0.0.0.0:0", Some("s3cret"));
    server.post(&[], TAGS).refused(401, "admin.token");
    let named = ["Host: rescind:9380", "Authorization: Bearer s3cret"];
    assert_eq!(server.post(&named, TAGS).status, 200, "a name is fine with the token");
}

#[test]
fn unknown_routes_methods_and_head() {
    let server = Server::start();
    assert_eq!(server.get("/nothing").status, 404);
    server.get("/api/nothing").refused(404, "route");
    let wrong = server.get("/api/invalidate");
    wrong.refused(405, "method");
    assert!(wrong.head.contains("\r\nallow: post"), "{}", wrong.head);
    assert_eq!(server.send("DELETE /metrics", &[], "").status, 405);
    for path in ["/", "/metrics", "/healthz", "/readyz", "/api/status"] {
        let head = server.send(&format!("HEAD {path}"), &[], "");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
}

#[test]
fn the_page_runs_only_its_own_script() {
    let server = Server::start();
    let (one, two) = (server.get("/"), server.get("/"));
    assert_eq!(one.status, 200);
    assert!(one.head.contains("\r\ncontent-type: text/html; charset=utf-8"));
    let nonce = |reply: &Reply| {
        let policy =
            reply.head.lines().find(|line| line.starts_with("content-security-policy:")).unwrap().to_owned();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned()
    };
    assert_ne!(nonce(&one), nonce(&two));
    assert_eq!(one.body.matches(&format!("nonce=\"{}\"", nonce(&one))).count(), 2);
    assert!(!one.body.contains("{{"));
    for reply in [&one, &server.get("/api/status"), &server.get("/nothing")] {
        for header in ["x-content-type-options: nosniff", "x-frame-options: deny", "cache-control: no-store"]
        {
            assert!(reply.head.contains(header), "{header} in {}", reply.head);
        }
        assert!(reply.head.contains("content-security-policy: default-src 'none'"), "{}", reply.head);
    }
}

#[test]
fn it_stops_although_a_client_is_silent_and_a_fan_out_hangs() {
    let server = Server::start();
    let _silent = server.connect();
    let mut half = server.connect();
    half.write_all(b"GET / HT").unwrap();
    let _slow = slow_invalidation(&server);
    let start = std::time::Instant::now();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

/// Whether the server has closed the connection, waiting for it at most that long.
fn is_closed(stream: &mut TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    match stream.read(&mut [0; 1024]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// One request on a connection that stays; what comes back at once.
fn asks(server: &Server, stream: &mut TcpStream) -> String {
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let (mut reply, mut chunk) = (Vec::new(), [0; 4096]);
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    while !reply.ends_with(b"ok") {
        let n = stream.read(&mut chunk).unwrap();
        assert!(n > 0, "closed");
        reply.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(reply).unwrap()
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for_and_an_idle_connection_stays() {
    let server = Server::start();
    let (mut kept, mut half, mut second) = (server.connect(), server.connect(), server.connect());
    assert!(asks(&server, &mut kept).starts_with("HTTP/1.1 200"));
    assert!(asks(&server, &mut second).starts_with("HTTP/1.1 200"));
    let silent = server.connect();
    half.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    second.write_all(b"GET /metrics HT").unwrap();
    let mut trickle = server.connect();
    let start = std::time::Instant::now();
    let patience = Duration::from_secs(9);
    // Bytes one by one do not help.
    while trickle.write_all(b"x").is_ok() && start.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = start.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&took), "{took:?}");
    for stream in [&mut half, &mut second] {
        assert!(is_closed(stream, Duration::from_secs(2)));
    }
    // These have not begun anything.
    for mut stream in [kept, silent] {
        assert!(asks(&server, &mut stream).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn when_all_places_are_taken_the_one_that_is_silent_for_longest_makes_room() {
    let server = Server::bounded(Fake::default(), "127.0.0.1:0", None, 4);
    let mut oldest = server.connect();
    oldest.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let mut kept: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(50));
    kept.iter_mut().for_each(|stream| drop(asks(&server, stream)));
    let mut slow = slow_invalidation(&server);
    let start = std::time::Instant::now();
    assert_eq!(server.get("/healthz").status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(is_closed(&mut oldest, Duration::from_secs(1)));
    // The others stay, and so does who waits for an invalidation, although silent for longer.
    kept.iter_mut().for_each(|stream| drop(asks(&server, stream)));
    assert!(!is_closed(&mut slow, Duration::from_millis(100)));
    // Whatever many begin and do not finish.
    let crowd: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = server.connect();
            let _ = stream.write_all(b"POST /api/invalidate HTTP/1.1\r\n");
            stream
        })
        .collect();
    assert_eq!(server.get("/healthz").status, 200);
    assert!(!is_closed(&mut slow, Duration::from_millis(100)));
    drop(crowd);
}

/// Somebody who waits for an invalidation that never ends.
fn slow_invalidation(server: &Server) -> TcpStream {
    let before = server.invalidated();
    let body = r#"{"tags": ["slow"]}"#;
    let mut slow = server.connect();
    let head = format!("POST /api/invalidate HTTP/1.1\r\nHost: {}\r\n{JSON}\r\n", server.address);
    slow.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    while server.invalidated() == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    slow
}

#[test]
fn invalidations_that_hang_do_not_keep_a_health_check_from_its_answer() {
    let server = Server::bounded(Fake::default(), "127.0.0.1:0", None, 3);
    let _slow: Vec<TcpStream> = (0..3).map(|_| slow_invalidation(&server)).collect();
    assert_eq!(server.get("/healthz").status, 200);
}
