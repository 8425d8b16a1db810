//! How the process ends and what it does for that: signals that come while it starts, a private Redis that must not outlive
//! it, a log that nobody reads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::support::{Client, Folder, PATIENCE, Proxy, RULES, Redis, eventually, free_port, send_signal};

/// A rescind of which nobody knows yet whether it has started.
struct Starting {
    child: Child,
    port: u16,
    admin: u16,
    folder: Folder,
}

impl Starting {
    /// In front of `upstream`, with these variables.
    fn new(upstream: &str, variables: &[(&str, &str)], stderr: Stdio) -> Self {
        Self::limited("true", upstream, variables, stderr)
    }

    /// Likewise, behind this command of the shell.
    fn limited(limit: &str, upstream: &str, variables: &[(&str, &str)], stderr: Stdio) -> Self {
        let (port, admin, folder) = (free_port(), free_port(), Folder::new());
        let config = folder.write("proxy.toml", RULES);
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("{limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_rescind")])
            .args(["--config", config.to_str().unwrap(), "--upstream", upstream])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--admin", &format!("127.0.0.1:{admin}")])
            .envs(variables.iter().copied())
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, port, admin, folder }
    }

    /// What the admin address answers; nothing if it does not.
    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)) else { return String::new() };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reply = String::new();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut reply));
        reply
    }

    fn healthy(&self) -> bool {
        self.get("/healthz").starts_with("HTTP/1.1 200")
    }

    fn end(&mut self) -> Option<i32> {
        eventually("rescind ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port of the Redis behind a proxy.
fn port_of(client: &mut Client) -> u16 {
    let info = client.list("INFO server").concat();
    info.split("tcp_port:").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap()
}

#[test]
fn signals_that_come_while_it_starts_are_taken_in_order() {
    let redis = Redis::start();
    let url = format!("redis://127.0.0.1:{}", redis.port);
    for upstream in ["spawn", &url] {
        for _ in 0..3 {
            let temporary = Folder::new();
            let variables = [("TMPDIR", temporary.0.to_str().unwrap())];
            let mut starting = Starting::new(upstream, &variables, Stdio::null());
            // The first that can be seen from outside.
            eventually("the admin address is bound", || {
                TcpStream::connect(("127.0.0.1", starting.admin)).ok()
            });
            send_signal(starting.child.id(), "-HUP");
            send_signal(starting.child.id(), "-TERM");
            assert_eq!(starting.end(), Some(0), "{upstream}");
            let left: Vec<_> = std::fs::read_dir(&temporary.0).unwrap().collect();
            assert!(left.is_empty(), "{upstream}: {left:?}");
        }
        let temporary = Folder::new();
        let variables = [("TMPDIR", temporary.0.to_str().unwrap())];
        let starting = Starting::new(upstream, &variables, Stdio::null());
        eventually("the admin address is bound", || TcpStream::connect(("127.0.0.1", starting.admin)).ok());
        send_signal(starting.child.id(), "-HUP");
        eventually("it has started", || starting.healthy().then_some(()));
    }
}

#[test]
fn a_private_redis_does_not_outlive_a_proxy_that_is_killed() {
    // Its folder stays.
    let temporary = Folder::new();
    let variables = [("TMPDIR", temporary.0.to_str().unwrap())];
    let mut proxy = Proxy::launch_with("spawn", RULES, &[], &variables);
    proxy.ready();
    let port = port_of(&mut proxy.client());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    proxy.kill();
    eventually("redis-server ends", || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
}

#[test]
fn a_proxy_ends_with_its_private_redis() {
    for shut_down in [true, false] {
        let temporary = Folder::new();
        let variables = [("TMPDIR", temporary.0.to_str().unwrap())];
        let mut proxy = Proxy::launch_with("spawn", RULES, &[], &variables);
        proxy.ready();
        let mut client = proxy.client();
        if shut_down {
            client.request(&["SHUTDOWN"]);
        } else {
            let info = client.list("INFO server").concat();
            let pid = info.split("process_id:").nth(1).unwrap().split("\r\n").next().unwrap();
            send_signal(pid.parse().unwrap(), "-KILL");
        }
        assert_eq!(proxy.wait(), Some(1));
        assert!(proxy.log().contains("the private redis-server has ended: "), "{}", proxy.log());
        assert_eq!(std::fs::read_dir(&temporary.0).unwrap().count(), 0);
    }
}

#[test]
fn where_there_is_no_redis_server_nothing_is_left_behind() {
    let (temporary, empty) = (Folder::new(), Folder::new());
    let variables = [("TMPDIR", temporary.0.to_str().unwrap()), ("PATH", empty.0.to_str().unwrap())];
    let mut starting = Starting::new("spawn", &variables, Stdio::piped());
    assert_eq!(starting.end(), Some(1));
    let mut said = String::new();
    starting.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("redis-server cannot be found; install it"), "{said}");
    assert_eq!(std::fs::read_dir(&temporary.0).unwrap().count(), 0);
}

#[test]
fn what_the_admin_address_has_begun_is_in_doubt_until_it_is_finished_cascades_and_all() {
    let redis = Redis::start();
    let rules = "[tags]\nMap = [\"map:*\"]\n\n[[trigger]]\ntags = [\"Post\"]\ninvalidate = [\"Map\"]\n";
    let mut proxy = Proxy::start(&redis, rules);
    proxy.kill();
    proxy.start_again(&[("RESCIND_DIE_AT", "announced")]);
    proxy.ready();
    let mut direct = redis.client();
    // The scan that the next one begins with takes a moment.
    direct.call(&["EVAL", "for i = 1, 300000 do redis.call('SET', 'other:'..i, '') end", "0"]);
    direct.cmd("SET map:1 old");
    let json = [("Content-Type", "application/json")];
    assert_eq!(proxy.http("POST", "/api/invalidate", &json, "{\"tags\": [\"Post\"]}").0, 0);
    proxy.wait();
    assert_eq!(direct.cmd("GET map:1"), "$3\r\nold\r\n");
    proxy.start_again(&[]);
    assert_eq!(proxy.client().cmd("GET map:1"), "$-1\r\n");
    eventually("it is finished", || (direct.cmd("EXISTS map:1") == ":0\r\n").then_some(()));
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let redis = Redis::start();
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let mut starting = Starting::new(&url, &[("RESCIND_JOURNAL_FSYNC", "never")], Stdio::piped());
    let mut writer = Client::connect(starting.port);
    // Each line has some ten thousand bytes: far more than a pipe holds and the proxy keeps.
    let tags: Vec<String> = (0..100).map(|number| format!("{number:0100}")).collect();
    let request: Vec<&str> =
        std::iter::once("TAG.INVALIDATE").chain(tags.iter().map(String::as_str)).collect();
    for _ in 0..300 {
        assert_eq!(writer.call(&request), ":0\r\n");
    }
    assert!(starting.healthy());
    // A reload that has something to say waits for nobody either.
    let odd =
        format!("{RULES}\n[[trigger]]\nkeys = [\"odd\"]\ncommands = [\"NO.SUCH\"]\ninvalidate = [\"Odd\"]\n");
    starting.folder.write("proxy.toml", &odd);
    send_signal(starting.child.id(), "-HUP");
    eventually("it is reloaded", || {
        starting.get("/metrics").contains("reloads_total{result=\"ok\"} 1").then_some(())
    });
    assert_eq!(writer.call(&request), ":0\r\n");

    let mut stderr = starting.child.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    send_signal(starting.child.id(), "-TERM");
    assert_eq!(starting.end(), Some(0));
    let said = reading.join().unwrap();
    assert!(said.contains(" lines of the log were dropped"), "{}", said.len());
    assert!(said.contains("INFO ended"), "what is said when somebody reads again is written");
}

#[test]
fn a_journal_that_cannot_be_written_shows() {
    let redis = Redis::start();
    let url = format!("redis://127.0.0.1:{}", redis.port);
    // In blocks of 512 bytes; the signal for it is an error.
    let starting = Starting::limited("ulimit -f 32", &url, &[], Stdio::null());
    let mut writer = Client::connect(starting.port);
    eventually("it is ready", || starting.get("/readyz").ends_with("ready").then_some(()));
    assert!(starting.get("/metrics").contains("\nrescind_journal_failures_total 0\n"));
    // Each is remembered; of one and the same nothing would be left when the file is written anew.
    let mut tags = 0..;
    let mut trigger = || format!("SET app:1:tag:{}{} v", tags.next().unwrap_or(0), "x".repeat(1000));
    eventually("it is full", || writer.cmd(&trigger()).starts_with("-ERR the journal").then_some(()));
    let (status, metrics) = (starting.get("/readyz"), starting.get("/metrics"));
    assert!(
        status.starts_with("HTTP/1.1 200") && status.contains("the journal cannot be written"),
        "{status}"
    );
    assert!(!metrics.contains("\nrescind_journal_failures_total 0\n"), "{metrics}");
}
