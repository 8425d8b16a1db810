//! What the `TAG.*` commands answer and leave where they may do little, or where there is little to do.

use crate::support::{Client, Proxy, RULES, Redis, encode};

struct World {
    _redis: Redis,
    proxy: Proxy,
    client: Client,
    direct: Client,
}

impl World {
    fn new(rules: &str) -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, rules);
        let (client, direct) = (proxy.client(), redis.client());
        Self { _redis: redis, proxy, client, direct }
    }

    fn explain(&mut self, line: &str) -> Vec<String> {
        self.client.list(&format!("TAG.EXPLAIN {line}"))
    }
}

#[test]
fn all_labels_are_removed_or_none() {
    let mut w = World::new(RULES);
    w.direct.cmd("ACL SETUSER scripts on >pw ~app:* %W~rescind:tag:mine &* +@all");
    w.direct.cmd("ACL SETUSER plain on >pw ~app:* %W~rescind:tag:mine &* +@all -@scripting");
    for user in ["scripts", "plain"] {
        w.client.cmd("TAG.WITH 2 mine theirs SET app:x v");
        let mut other = w.proxy.client();
        other.cmd(&format!("AUTH {user} pw"));
        assert!(other.cmd("TAG.REM app:x mine theirs").starts_with("-NOPERM"), "{user}");
        assert_eq!(w.direct.list("ZRANGE rescind:tag:mine 0 -1"), ["app:x"], "{user}");
        assert_eq!(w.client.list("TAG.OF app:x").len(), 2, "{user}");
        assert_eq!(other.cmd("TAG.REM app:x mine"), ":1\r\n", "{user}");
        assert_eq!(w.direct.cmd("EXISTS rescind:tag:mine"), ":0\r\n", "{user}");
        w.client.cmd("DEL app:x");
    }
}

#[test]
fn a_key_that_is_gone_has_no_labels_to_remove() {
    let mut w = World::new(RULES);
    w.direct.cmd("ACL SETUSER plain on >pw ~* &* +@all -@scripting");
    let mut plain = w.proxy.client();
    plain.cmd("AUTH plain pw");
    for (user, client) in [("default", &mut w.client), ("plain", &mut plain)] {
        for gone in ["LPOP k", "DEL k"] {
            assert_eq!(client.cmd("TAG.WITH 2 t u RPUSH k v"), ":1\r\n", "{user}");
            w.direct.cmd(gone);
            assert_eq!(client.cmd("TAG.REM k t u"), ":0\r\n", "{user}, {gone}");
            assert_eq!(w.direct.cmd("EXISTS rescind:tag:t rescind:tag:u"), ":0\r\n", "{user}, {gone}");
        }
    }
}

#[test]
fn to_ask_for_a_right_takes_no_label_away() {
    let mut w = World::new(RULES);
    let key = |words: &[&str]| encode(words);
    w.direct.send(&key(&["SET", "", "v"]));
    w.direct.raw();
    w.client.send(&key(&["TAG.ADD", "", "t"]));
    assert_eq!(w.client.raw(), b":1\r\n");
    w.client.cmd("TAG.NEXT t");
    w.client.cmd("PING");
    assert_eq!(w.direct.cmd("ZCARD rescind:tag:t"), ":1\r\n");
}

#[test]
fn a_command_that_writes_nothing_labels_nothing() {
    let mut w = World::new(RULES);
    let cases = [
        ("RPUSH k x", "BLMOVE none k LEFT LEFT 0.01"),
        ("RPUSH k x", "BRPOPLPUSH none k 0.01"),
        ("RPUSH k x", "LMOVE none k LEFT LEFT"),
        ("RPUSH k x", "RPOPLPUSH none k"),
        ("RPUSH k x", "LINSERT k BEFORE none y"),
        ("RPUSH other x", "LINSERT k BEFORE none y"),
        ("RPUSH other x", "LPUSHX k y"),
        ("SADD k x", "SMOVE none k y"),
        ("ZADD k 1 m", "ZADD k XX INCR 1 none"),
        ("XGROUP CREATE k g $ MKSTREAM", "XREADGROUP GROUP g c STREAMS k >"),
        ("XGROUP CREATE k g $ MKSTREAM", "XREADGROUP GROUP g c BLOCK 10 STREAMS k >"),
        ("SET other x", "XADD k NOMKSTREAM * f v"),
        ("HSET k f v", "HDEL k none"),
        ("SADD k x", "SREM k none"),
        ("ZADD k 1 m", "ZREM k none"),
        ("RPUSH k x", "LREM k 0 none"),
        ("SET k v", "PERSIST k"),
        ("SET k v", "EXPIRE k 10 XX"),
    ];
    for (before, line) in cases {
        for way in ["TAG.WITH", "TAG.NEXT", "MULTI"] {
            w.direct.cmd("FLUSHALL");
            w.direct.cmd(before);
            let mut client = w.proxy.client();
            match way {
                "TAG.NEXT" => {
                    client.cmd("TAG.NEXT t");
                    client.cmd(line);
                }
                way => {
                    client.cmd(if way == "MULTI" { "MULTI" } else { "PING" });
                    client.cmd(&format!("TAG.WITH 1 t {line}"));
                    client.cmd(if way == "MULTI" { "EXEC" } else { "PING" });
                }
            }
            let there = w.direct.cmd("EXISTS k");
            assert_eq!(w.client.cmd("TAG.OF k"), "*0\r\n", "{way} {line}");
            assert_eq!(w.client.cmd("TAG.INVALIDATE t"), ":0\r\n", "{way} {line}");
            assert_eq!(w.direct.cmd("EXISTS k"), there, "{way} {line}");
        }
    }
    // What does write labels as ever.
    for line in ["LMOVE from k LEFT LEFT", "BLMOVE from k LEFT LEFT 1", "LINSERT k BEFORE x y"] {
        w.direct.cmd("FLUSHALL");
        w.direct.cmd("RPUSH from a");
        w.direct.cmd("RPUSH k x");
        w.client.cmd(&format!("TAG.WITH 1 t {line}"));
        assert_eq!(w.client.list("TAG.OF k"), ["t"], "{line}");
        w.client.cmd("TAG.WITH 1 u EXPIRE k 100");
        assert_eq!(w.client.list("TAG.OF k").len(), 2, "{line}");
    }
}

#[test]
fn commands_of_the_proxy_do_not_count_as_the_next_one() {
    let mut w = World::new(RULES);
    for between in ["TAG.OF k", "TAG.INVALIDATE none", "TAG.EXPLAIN SET k v", "CLIENT REPLY ON", "TAG.NEXT t"]
    {
        w.client.cmd("TAG.NEXT t");
        w.client.cmd(between);
        w.client.cmd("SET k v");
        assert_eq!(w.client.list("TAG.OF k"), ["t"], "{between}");
        w.client.cmd("DEL k");
    }
    for between in ["PING", "GET k", "SELECT 0", "RESET"] {
        w.client.cmd("TAG.NEXT t");
        w.client.cmd(between);
        w.client.cmd("SET k v");
        assert_eq!(w.client.cmd("TAG.OF k"), "*0\r\n", "{between}");
    }
}

#[test]
fn a_subscriber_is_told_what_it_cannot_run() {
    let w = World::new(RULES);
    let mut client = w.proxy.client();
    client.cmd("SUBSCRIBE channel");
    for line in [
        "TAG.WITH 1 t SET k v",
        "TAG.NEXT t",
        "TAG.ADD k t",
        "TAG.REM k t",
        "TAG.INVALIDATE t",
        "TAG.KEYS t",
        "TAG.OF k",
        "TAG.EXPLAIN GET k",
        "TAG.LOG",
        "TAG.INFO",
    ] {
        let name = line.split(' ').next().unwrap().to_ascii_lowercase();
        let reply = client.cmd(line);
        assert!(reply.starts_with(&format!("-ERR Can't execute '{name}': only (P|S)SUBSCRIBE")), "{reply}");
    }
    // Likewise where labels go with the write in one step.
    let mut writer = w.proxy.client();
    writer.cmd("TAG.WITH 1 t SET k v");
    writer.cmd("SUBSCRIBE channel");
    assert!(writer.cmd("TAG.WITH 1 t SET k v").starts_with("-ERR Can't execute 'tag.with'"));
}

#[test]
fn what_is_gone_or_stays_for_a_while_is_not_explained_as_deleted() {
    const RULES: &str = r#"
        [tags]
        T = ["hard:*", "soft:*"]
        [[family]]
        name = "soft"
        keys = ["soft:*"]
        on_invalidate = "expire"
        grace = "9s"
    "#;
    let mut w = World::new(RULES);
    for key in ["hard:1", "hard:2", "soft:1"] {
        w.client.cmd(&format!("SET {key} v"));
    }
    w.client.cmd("TAG.WITH 2 T mine SET labelled v");
    w.direct.cmd("SELECT 3");
    w.direct.cmd("SET hard:3 v");
    assert_eq!(w.client.cmd("TAG.KEYS T").lines().next(), Some("*4"));
    w.direct.cmd("SELECT 0");
    w.client.cmd("DEL hard:1");
    let lines = w.explain("TAG.INVALIDATE T");
    let found = lines.iter().position(|line| line == "would delete 3 keys").unwrap();
    let expected = [
        "would delete: db 0 hard:2",
        "would delete: db 0 labelled",
        "would delete: db 3 hard:3",
        "would shorten the life of 1 keys",
        "would shorten the life: db 0 soft:1",
    ];
    assert_eq!(lines[found + 1..], expected);
    assert!(
        w.explain("GET labelled").contains(&"key labelled: read; family other; tags: T, mine".to_owned())
    );
    assert!(w.explain("GET hard:1").contains(&"key hard:1: read; family hard:*; tags: T".to_owned()));
    let lines = w.explain("TAG.WITH 1 t TAG.INVALIDATE T");
    assert_eq!(lines[1..], ["is refused: 'tag.invalidate' cannot be labelled", "invalidates nothing"]);
    assert_eq!(w.client.cmd("TAG.INVALIDATE T"), ":4\r\n");
}

#[test]
fn no_name_forges_a_line_of_the_log() {
    let mut w = World::new(RULES);
    let key = b"app:1:tag:x\n2026-01-01T00:00:00Z  INFO invalidated client=admin \x1b[2J";
    w.client.call(&[b"SET".as_slice(), key, b"1"]);
    w.client.cmd("CLIENT SETNAME web-1");
    w.client.cmd("SET app:1:model:Post:1 1");
    let lines = crate::support::eventually("both are logged", || {
        let log = w.proxy.log();
        let lines: Vec<_> =
            log.lines().filter(|line| line.contains("invalidated")).map(str::to_owned).collect();
        (lines.len() >= 2).then_some(lines)
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("cause=\"SET app:1:tag:x\\n2026") && !lines[0].contains('\x1b'), "{lines:?}");
    assert!(lines[1].contains("web-1\" cause=\"SET app:1:model:Post:1\" trigger=\"model saved"), "{lines:?}");
    // Where names have a place of their own they are as they are.
    let text = "x\n2026-01-01T00:00:00Z  INFO invalidated client=admin \x1b[2J";
    assert!(w.client.cmd("TAG.LOG").contains(text));
    let (_, json) = w.proxy.http("GET", "/api/log?n=5", &[], "");
    assert!(json.contains("app:1:tag:x\\n2026") && json.contains("\\u001b[2J"), "{json}");
}

#[test]
fn the_log_names_all_that_has_fired() {
    let mut w = World::new(RULES);
    let mut latest = |requests: &[&str]| {
        requests.iter().for_each(|request| _ = w.client.cmd(request));
        w.client.list("TAG.LOG 1")[1].clone()
    };
    let log = latest(&["DEL app:1:tag:A other app:1:tag:B"]);
    assert!(log.ends_with(" DEL app:1:tag:A app:1:tag:B"), "{log}");
    let log = latest(&["MULTI", "SET x 1", "SET app:1:tag:A 1", "SET app:1:model:Tool:9 1", "EXEC"]);
    assert!(log.ends_with(" SET app:1:tag:A; SET app:1:model:Tool:9"), "{log}");
    let many: Vec<String> = (0..20).map(|n| format!("app:1:tag:{n}")).collect();
    let log = latest(&[&format!("DEL {}", many.join(" "))]);
    assert!(log.ends_with(" DEL app:1:tag:0 app:1:tag:1 app:1:tag:2 app:1:tag:3 app:1:tag:4 app:1:tag:5 app:1:tag:6 app:1:tag:7 …"), "{log}");
}

#[test]
fn one_command_gives_no_more_than_ten_thousand_labels() {
    let mut w = World::new(RULES);
    w.client.cmd("SET k v");
    let tags: Vec<String> = (0..=10_000).map(|n| format!("t{n}")).collect();
    let all = tags.join(" ");
    for request in [
        format!("TAG.ADD k {all}"),
        format!("TAG.REM k {all}"),
        format!("TAG.NEXT {all}"),
        format!("TAG.WITH {} {all} SET k v", tags.len()),
    ] {
        let args: Vec<&str> = request.split(' ').collect();
        assert_eq!(w.client.call(&args), "-ERR too many tags\r\n", "{}", args[0]);
    }
    assert_eq!(w.client.cmd("TAG.OF k"), "*0\r\n");
    let most = tags[..1000].join(" ");
    let mut call = |request: String| w.client.call(&request.split(' ').collect::<Vec<_>>());
    assert_eq!(call(format!("TAG.ADD k {most}")), ":1000\r\n");
    assert_eq!(call(format!("TAG.ADD k {most}")), ":0\r\n");
    assert_eq!(call(format!("TAG.WITH 1000 {most} SET l v")), "+OK\r\n");
    assert_eq!(call(format!("TAG.REM k {most}")), ":1000\r\n");
    assert_eq!(w.client.cmd("TAG.INVALIDATE t999"), ":1\r\n");
    assert_eq!(w.client.cmd("EXISTS k l"), ":1\r\n");
}

#[test]
fn a_stale_value_that_gets_a_label_is_gone_and_counted() {
    let mut w = World::new(RULES);
    let mut other = w.proxy.client();
    w.client.cmd("GET page");
    other.cmd("TAG.INVALIDATE t");
    w.client.cmd("SET page old");
    assert_eq!(w.client.cmd("TAG.ADD page t"), ":1\r\n");
    assert_eq!(w.client.cmd("EXISTS page"), ":0\r\n");
    assert_eq!(w.proxy.metric("rescind_stale_fills_total{family=\"other\"}"), 1.0);
    let log = w.client.list("TAG.LOG 1");
    assert!(log[1].ends_with(" TAG.INVALIDATE"), "{log:?}");
}
