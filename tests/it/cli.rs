//! The binary: configuration checks, reloads, signals, exit codes, and the admin address of a running proxy.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use crate::support::{Client, Folder, Proxy, RULES, Redis, eventually, free_port, send_signal};

fn rescind(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rescind")).args(args).env_remove("RESCIND_CONFIG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const WRONG: &str = r#"[keys]
prefiks = "app:"

[tags]
"t:{id}" = ["x:{other}"]

[[trigger]]
keys = ["a:{b}"]
invalidate = ["{c}"]

[listen]
max_clients = "many"
"#;

#[test]
fn check_says_all_that_is_wrong_with_its_line() {
    let folder = Folder::new();
    let good = folder.write("good.toml", RULES);
    let done = rescind(&["check", good.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("ok"));
    let done = rescind(&["check", "--config", good.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0));

    let wrong = folder.write("wrong.toml", WRONG);
    let done = rescind(&["check", wrong.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(2));
    let errors = text(&done.stderr);
    for (line, word) in [(2, "prefiks"), (5, "id"), (8, "c"), (12, "max_clients")] {
        let place = format!("wrong.toml:{line}");
        assert!(errors.lines().any(|l| l.contains(&place) && l.contains(word)), "{place} {word}\n{errors}");
    }
    assert!(errors.contains("prefix"), "says what to write instead\n{errors}");
    let done = rescind(&["check", "/nowhere/proxy.toml"]);
    assert_eq!(done.status.code(), Some(2));
    // To run with a wrong file is the same error.
    assert_eq!(rescind(&["--config", wrong.to_str().unwrap()]).status.code(), Some(2));
    assert_eq!(rescind(&["--nonsense"]).status.code(), Some(2));
}

#[test]
fn an_empty_variable_names_no_file() {
    let folder = Folder::new();
    let good = folder.write("proxy.toml", RULES);
    let called = |args: &[&str], variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rescind"));
        command.args(args).env("RESCIND_CONFIG", variable).current_dir(&folder.0).output().unwrap()
    };
    for args in
        [&["check"][..], &["check", good.to_str().unwrap()], &["--config", good.to_str().unwrap(), "check"]]
    {
        let done = called(args, "");
        assert_eq!(done.status.code(), Some(0), "{args:?} {}", text(&done.stderr));
    }
    // One that is not empty is asked, and an empty flag is a mistake.
    assert!(text(&called(&["check"], "elsewhere.toml").stderr).contains("elsewhere.toml: no such file"));
    assert_eq!(called(&["--config", "", "check"], "").status.code(), Some(2));
}

#[test]
fn a_log_level_that_is_none_is_a_mistake() {
    let folder = Folder::new();
    let file = folder.write("proxy.toml", "");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rescind"));
    let done =
        command.args(["--config", file.to_str().unwrap()]).env("RESCIND_LOG", "inof").output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(
        text(&done.stderr).contains("RESCIND_LOG: \"inof\" is not a level; write"),
        "{}",
        text(&done.stderr)
    );
}

#[test]
fn explain_needs_no_server() {
    let folder = Folder::new();
    let file = folder.write("proxy.toml", RULES);
    let explain = |request: &[&str]| {
        let done = rescind(&[&["--config", file.to_str().unwrap(), "explain"], request].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    let out = explain(&["SET", "app:1:model:Post:7", "v", "--not-a-flag"]);
    for part in ["model saved", "Post", "post:7", "SiteMap"] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert!(explain(&["GET", "app:1:home_page_data_1"]).contains("home"));
    assert!(explain(&["SET", "nothing", "v"]).contains("invalidates nothing"));
    // And why it does nothing.
    let rules = RULES.replace("[keys]", "[keys]\ndatabases = [1, 2]");
    let commands = "keys = [\"model:{model}:{pk}\"]\ncommands = [\"SET\", \"DEL\"]";
    folder.write("proxy.toml", &rules.replace("keys = [\"model:{model}:{pk}\"]", commands));
    let out = explain(&["SET", "app:1:model:Post:7", "v"]);
    assert!(out.contains("the rules do not apply to database 0 ([keys] databases)\n"), "{out}");
    let out = explain(&["--db", "1", "EXPIRE", "app:1:model:Post:7", "9"]);
    assert!(out.contains("trigger \"model saved\" does not fire: its commands are SET, DEL\n"), "{out}");
    assert!(out.contains("invalidates nothing") && !out.contains("do not apply"), "{out}");
}

#[test]
fn what_cannot_be_listened_on_is_one_line_and_an_exit_code() {
    let folder = Folder::new();
    let file = folder.write("proxy.toml", "");
    let free = format!("127.0.0.1:{}", free_port());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    for (listen, admin) in [
        (&*taken, &*free),
        (&*free, &*taken),
        ("unix:/nowhere/at/all.sock", &*free),
        ("192.0.2.1:6380", &*free),
    ] {
        let config = file.to_str().unwrap();
        let done = rescind(&["--config", config, "--listen", listen, "--admin", admin]);
        let errors = text(&done.stderr);
        let code = done.status.code();
        assert!(code.is_some_and(|code| code != 0), "{listen} {admin}: {code:?}");
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("rescind:")).collect();
        assert_eq!(lines.len(), 1, "{listen} {admin}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}

#[test]
fn a_journal_that_is_a_file_is_told_so() {
    let folder = Folder::new();
    let path = folder.write("journal", "");
    let file = folder.write("proxy.toml", &format!("[journal]\npath = \"{}\"", path.display()));
    let free = || format!("127.0.0.1:{}", free_port());
    let done = rescind(&["--config", file.to_str().unwrap(), "--listen", &free(), "--admin", &free()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("is a file; name a directory"), "{}", text(&done.stderr));
}

#[test]
fn a_private_redis_ends_with_the_proxy() {
    for signal in ["-TERM", "-INT"] {
        let mut proxy = Proxy::launch("spawn", RULES, &[]);
        proxy.ready();
        let mut client = proxy.client();
        client.cmd("SET app:1:blog_posts_1 v");
        client.cmd("SET app:1:model:Post:1 v");
        assert_eq!(client.cmd("EXISTS app:1:blog_posts_1"), ":0\r\n");
        let info = client.list("INFO server").concat();
        let port: u16 =
            info.split("tcp_port:").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        proxy.signal(signal);
        assert_eq!(proxy.wait(), Some(0), "{signal}");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "{signal}: redis-server is still there");
        assert!(client.rest().is_empty());
    }
}

const KEY: &str = "app:1:home_page_data_1";

/// A proxy whose own user may be forbidden to delete, and then cannot finish what this client has begun.
fn invalidating(redis: &Redis) -> (Proxy, Client) {
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own on >pw ~* &* +@all");
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    direct.cmd("ACL SETUSER own -unlink");
    direct.cmd(&format!("SET {KEY} v"));
    let mut writer = proxy.client();
    writer.request(&["SET", "app:1:model:Post:7", "1"]);
    eventually("it is tried", || proxy.log().contains("a fan-out failed").then_some(()));
    (proxy, writer)
}

#[test]
fn who_ends_it_reads_that_it_drains_and_all_that_it_still_did() {
    for signal in ["-TERM", "-INT"] {
        let redis = Redis::start();
        let mut direct = redis.client();
        let (mut proxy, mut writer) = invalidating(&redis);
        let [mut blocked, mut half, mut queued, mut listening] = [(); 4].map(|()| proxy.client());
        blocked.request(&["BLPOP", "q", "0"]);
        half.send(b"*2\r\n$3\r\nGET\r\n");
        queued.cmd("MULTI");
        queued.cmd("SET queued v");
        listening.cmd("SUBSCRIBE c");
        eventually("one is blocked", || {
            direct.cmd("INFO clients").contains("blocked_clients:1").then_some(())
        });
        assert!(!proxy.log().contains("draining"));

        proxy.signal(signal);
        eventually("it is said", || proxy.log().contains("INFO draining\n").then_some(()));
        eventually("nobody is let in", || {
            TcpStream::connect(("127.0.0.1", proxy.port)).is_err().then_some(())
        });
        let (status, why) = proxy.http("GET", "/readyz", &[], "");
        assert!(status == 503 && why.contains("going down"), "{signal}: {status} {why}");
        // Who waits for nothing is let go, the others when they have got it.
        for client in [&mut half, &mut queued, &mut listening] {
            assert!(client.rest().is_empty(), "{signal}");
        }
        direct.cmd("RPUSH q v");
        assert_eq!(blocked.rest(), b"*2\r\n$1\r\nq\r\n$1\r\nv\r\n", "{signal}");
        direct.cmd("ACL SETUSER own +unlink");
        assert_eq!(writer.rest(), b"+OK\r\n", "{signal}");
        assert_eq!(proxy.wait(), Some(0), "{signal}");

        assert_eq!(direct.cmd(&format!("EXISTS queued {KEY}")), ":0\r\n", "{signal}");
        // The last lines, too, and nothing that went wrong.
        let log = proxy.log();
        let (before, after) = log.split_once("INFO draining\n").unwrap();
        assert!(
            !before.contains("INFO invalidated") && after.contains("INFO invalidated"),
            "{signal}: {log}"
        );
        assert!(!after.contains("draining") && after.ends_with('\n'), "{signal}: {log}");
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{signal}: {log}");
    }
}

#[test]
fn what_cannot_be_finished_in_time_is_left_to_the_next_start() {
    let redis = Redis::start();
    let mut direct = redis.client();
    let (mut proxy, mut writer) = invalidating(&redis);
    proxy.signal("-INT");
    // Who waits for so long is answered all the same.
    let answered = writer.rest();
    assert!(answered.is_empty() || answered == b"+OK\r\n", "{answered:?}");
    assert_eq!(proxy.wait(), Some(0));
    assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n");
    proxy.start_again(&[]);
    assert_eq!(proxy.client().cmd(&format!("GET {KEY}")), "$-1\r\n");
    direct.cmd("ACL SETUSER own +unlink");
    eventually("it is finished", || (direct.cmd(&format!("EXISTS {KEY}")) == ":0\r\n").then_some(()));
}

#[test]
fn who_ends_it_reads_how_it_ended() {
    let ends: Vec<_> = [false, true]
        .into_iter()
        .map(|cut| {
            let redis = Redis::start();
            let mut proxy = Proxy::start(&redis, RULES);
            let mut client = proxy.client();
            if cut {
                client.request(&["BLPOP", "q", "0"]);
            }
            let mut direct = redis.client();
            let blocked = format!("blocked_clients:{}", u8::from(cut));
            eventually("it is blocked", || direct.cmd("INFO clients").contains(&blocked).then_some(()));
            proxy.signal("-TERM");
            assert_eq!(proxy.wait(), Some(0));
            proxy.log().split_once("INFO draining\n").unwrap().1.to_owned()
        })
        .collect();
    assert!(ends.iter().all(|end| end.ends_with('\n')), "{ends:?}");
    let [clean, cut] = [0, 1].map(|which| ends[which].split_once("  ").unwrap().1);
    assert!(clean.starts_with("INFO ended"), "{clean}");
    assert!(cut.starts_with("WARN cut") && cut.contains("clients=1") && cut.contains("INFO ended"), "{cut}");
}

#[test]
fn the_environment_overrides_the_file() {
    let redis = Redis::start();
    let folder = Folder::new();
    let file =
        folder.write("proxy.toml", "[upstream]\nurl = \"redis://127.0.0.1:1\"\n[tags]\nT = [\"x:*\"]\n");
    let (listen, admin) = (free_port(), free_port());
    let mut child = Command::new(env!("CARGO_BIN_EXE_rescind"))
        .env("RESCIND_CONFIG", &file)
        .env("RESCIND_UPSTREAM_URL", format!("redis://127.0.0.1:{}", redis.port))
        .env("RESCIND_LISTEN_ADDRESS", format!("127.0.0.1:{listen}"))
        .env("RESCIND_ADMIN_ADDRESS", format!("127.0.0.1:{admin}"))
        // Its journal is the test's own.
        .current_dir(&folder.0)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it listens", || TcpStream::connect(("127.0.0.1", listen)).ok());
    let mut client = crate::support::Client::connect(listen);
    client.cmd("SET x:1 v");
    assert_eq!(redis.client().cmd("EXISTS x:1"), ":1\r\n");
    assert_eq!(client.cmd("TAG.INVALIDATE T"), ":1\r\n");
    assert!(TcpStream::connect(("127.0.0.1", admin)).is_ok());
    send_signal(child.id(), "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    let done = Command::new(env!("CARGO_BIN_EXE_rescind"))
        .args(["check", file.to_str().unwrap()])
        .env("RESCIND_LISTEN_MAX_CLIENTS", "many")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2), "a wrong value in the environment");
}

#[test]
fn a_reload_changes_the_rules_and_no_connection() {
    let redis = Redis::start();
    let proxy = Proxy::start(
        &redis,
        "[tags]\nOld = [\"x:*\"]\n[[trigger]]\nkeys = [\"src\"]\ninvalidate = [\"Old\"]\n",
    );
    let (mut client, mut direct) = (proxy.client(), redis.client());
    let mut pinned = proxy.client();
    pinned.cmd("MULTI");
    pinned.cmd("SET queued v");
    let reloads =
        |result: &str| proxy.metric(&format!("rescind_config_reloads_total{{result=\"{result}\"}}"));
    direct.cmd("MSET x:1 v y:1 v");
    client.cmd("TAG.WITH 1 Explicit SET labelled v");
    client.cmd("GET x:1");

    std::fs::write(&proxy.config, WRONG).unwrap();
    proxy.signal("-HUP");
    eventually("refused", || (reloads("error") == 1.0).then_some(()));
    eventually("it is said", || proxy.log().contains("prefiks").then_some(()));
    client.cmd("SET src v");
    assert_eq!(direct.cmd("EXISTS x:1 y:1"), ":1\r\n");

    direct.cmd("SET x:1 v");
    let rules = "[tags]\nNew = [\"y:*\"]\n[[trigger]]\nkeys = [\"src2\"]\ninvalidate = [\"New\", \"Old\"]\n";
    std::fs::write(&proxy.config, rules).unwrap();
    proxy.signal("-HUP");
    eventually("reloaded", || (reloads("ok") == 1.0).then_some(()));
    eventually("the new rules are known", || (client.list("TAG.OF y:1") == ["New"]).then_some(()));
    proxy.ready();
    assert_eq!(client.list("TAG.OF x:1"), [""; 0]);
    assert_eq!(client.list("TAG.OF labelled"), ["Explicit"]);
    client.cmd("SET src v");
    assert_eq!(direct.cmd("EXISTS x:1 y:1"), ":2\r\n");
    client.cmd("SET src2 v");
    assert_eq!(direct.cmd("EXISTS x:1"), ":1\r\n", "it depends on nothing any more");
    assert_eq!(direct.cmd("EXISTS y:1"), ":0\r\n");
    // Past the proxy, too.
    direct.cmd("SET y:1 v");
    direct.cmd("SET src2 v");
    eventually("a direct trigger", || (redis.client().cmd("EXISTS y:1") == ":0\r\n").then_some(()));
    assert_eq!(client.cmd("TAG.INVALIDATE Explicit"), ":1\r\n");
    assert_eq!(pinned.cmd("EXEC"), "*1\r\n+OK\r\n");
    assert_eq!(proxy.metric("rescind_hits_total{family=\"x:*\"}"), 1.0, "counters survive");
    assert!(proxy.metric("rescind_commands_total{command=\"tag.of\"}") >= 2.0);
    // What takes a restart is named, if it has changed.
    assert!(!proxy.log().contains("takes a restart"), "{}", proxy.log());
    let rules = format!("{rules}[upstream]\nmax_pinned = 3\n[journal]\nfsync = \"never\"\n");
    std::fs::write(&proxy.config, rules).unwrap();
    proxy.signal("-HUP");
    let said = "what has changed in [upstream], [journal] takes a restart";
    eventually("it is said", || proxy.log().contains(said).then_some(()));
}

#[test]
fn reloads_under_traffic_miss_nothing() {
    let redis = Redis::start();
    let rules = "[tags]\nT = [\"x:*\"]\n[[trigger]]\nkeys = [\"src\"]\ninvalidate = [\"T\"]\n";
    let proxy = Proxy::start(&redis, rules);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for round in 0..200 {
        if round % 20 == 0 {
            let more = format!("{rules}[[family]]\nname = \"f{round}\"\nkeys = [\"x:{round}\"]\n");
            std::fs::write(&proxy.config, more).unwrap();
            proxy.signal("-HUP");
        }
        direct.cmd(&format!("SET x:{round} v"));
        client.cmd("SET src v");
        assert_eq!(direct.cmd(&format!("EXISTS x:{round}")), ":0\r\n", "round {round}");
    }
}

#[test]
fn the_admin_address_end_to_end() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let mut client = proxy.client();
    for key in ["home_page_data_1", "blog_posts_1", "blog_posts_2"] {
        client.cmd(&format!("SET app:1:{key} v"));
    }
    client.cmd("GET app:1:blog_posts_1");
    client.cmd("GET app:1:blog_posts_none");
    let json = [("Content-Type", "application/json")];
    let (status, body) = proxy.http("POST", "/api/invalidate", &json, r#"{"tags":["Post"]}"#);
    assert_eq!((status, body.replace(' ', "")), (200, r#"{"keys":3}"#.to_owned()));
    for (headers, body, expected) in [
        (&[("Content-Type", "text/plain")][..], r#"{"tags":["Post"]}"#, 403),
        (&[json[0], ("Origin", "http://evil.example")], r#"{"tags":["Post"]}"#, 403),
        (&json, "{", 400),
        (&json, r#"{"tags":[1]}"#, 400),
    ] {
        assert_eq!(proxy.http("POST", "/api/invalidate", headers, body).0, expected, "{headers:?} {body}");
    }
    let (status, body) = proxy.http("GET", "/api/status", &[], "");
    assert_eq!(status, 200);
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["index"]["complete"], true);
    assert_eq!(status["feed"]["mode"], "keyspace events");
    assert_eq!(status["clients"], 1);
    let families = status["families"].as_array().unwrap();
    let blog = families.iter().find(|family| family["name"] == "blog_posts_*").unwrap();
    assert_eq!(
        (&blog["hits"], &blog["misses"], &blog["invalidated_keys"]),
        (&1.into(), &1.into(), &2.into())
    );
    let (status, body) = proxy.http("GET", "/api/log", &[], "");
    assert_eq!(status, 200);
    let log: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(body.contains("\"http\"") || body.contains("http,"), "{log}");
    assert!(body.contains("SiteMap") && body.contains("POST /api/invalidate"), "{log}");
    assert!(proxy.http("GET", "/", &[], "").1.contains("<html"));
    redis.kill();
    eventually("not ready", || (proxy.http("GET", "/readyz", &[], "").0 == 503).then_some(()));
    assert_eq!(proxy.http("GET", "/healthz", &[], ""), (200, "ok".to_owned()));
    assert_eq!(proxy.http("GET", "/metrics", &[], "").0, 200);
    let (_, body) = proxy.http("GET", "/api/status", &[], "");
    assert!(body.contains("\"ready\":false"), "{body}");
}
