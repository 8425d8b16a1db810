//! Values that RENAME, COPY and MOVE bring elsewhere in the midst of their invalidation.

use crate::support::{Client, Proxy, RULES, Redis, eventually};

/// So many dependents take a while to delete.
const MANY: usize = 60_000;
const KEYS: usize = 8;

fn key(what: &str, number: usize) -> String {
    format!("app:1:blog_posts_{what}{number}")
}

#[test]
fn an_old_value_does_not_get_away() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut writer, mut mover, mut direct) = (proxy.client(), proxy.client(), redis.client());
    for round in 0..6 {
        let mut elsewhere = redis.client();
        elsewhere.cmd("SELECT 3");
        let fill = format!("for i=1,{MANY} do redis.call('SET','app:1:blog_posts_many'..i,'x') end");
        direct.call(&["EVAL", &fill, "0"]);
        for number in 0..KEYS {
            for what in ["copy", "move", "rename", "multi"] {
                direct.call(&["SET", &key(what, number), "old"]);
            }
        }
        proxy.ready();
        writer.request(&["SET", "app:1:model:Post:1", "1"]);
        for number in 0..KEYS {
            let [copy, rename, multi] = ["copy", "rename", "multi"].map(|what| key(what, number));
            let to = key("to", number);
            mover.call(&["COPY", &copy, &format!("{to}c")]);
            mover.call(&["COPY", &copy, &copy, "DB", "3"]);
            mover.call(&["MOVE", &key("move", number), "3"]);
            mover.call(&["RENAME", &rename, &format!("{to}r")]);
            mover.cmd("MULTI");
            mover.call(&["RENAMENX", &multi, &format!("{to}m")]);
            mover.cmd("EXEC");
        }
        assert_eq!(writer.reply(), "+OK\r\n");
        let left = "return redis.call('KEYS','app:1:blog_posts_*')";
        for client in [&mut direct, &mut elsewhere] {
            client.request(&["EVAL", left, "0"]);
            let found = crate::support::texts(&client.raw());
            assert!(found.is_empty(), "round {round}: {found:?}");
        }
    }
}

#[test]
fn a_new_value_is_moved_on() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut other, mut direct) = (proxy.client(), proxy.client(), redis.client());
    for round in 0..20 {
        assert_eq!(client.cmd("SET app:1:model:Post:1 1"), "+OK\r\n");
        // Written aside, and put in its place.
        let writer = if round % 2 == 0 { &mut client } else { &mut other };
        writer.cmd("SET app:1:blog_posts_new fresh");
        assert_eq!(writer.cmd("COPY app:1:blog_posts_new app:1:blog_posts_copy REPLACE"), ":1\r\n");
        assert_eq!(writer.cmd("RENAME app:1:blog_posts_new app:1:blog_posts_1"), "+OK\r\n");
        assert_eq!(writer.cmd("RENAME app:1:blog_posts_new app:1:blog_posts_1"), "-ERR no such key\r\n");
        assert_eq!(direct.cmd("EXISTS app:1:blog_posts_1 app:1:blog_posts_copy"), ":2\r\n", "{round}");
    }
}

/// A key whose write fires, so that a proxy can be made to die when that has been answered.
const PAGE: &str = "app:1:model:Tool:1";

/// Two proxies; the first dies when a trigger has been answered to it, and before it does anything about that.
fn doomed_and_other(redis: &Redis) -> [Proxy; 2] {
    let mut doomed = Proxy::start(redis, RULES);
    doomed.kill();
    doomed.start_again(&[("RESCIND_DIE_AT", "trigger answered")]);
    doomed.ready();
    [doomed, Proxy::start(redis, RULES)]
}

/// What RESTORE is given for the string `v1`.
fn dump(direct: &mut Client) -> Vec<u8> {
    direct.cmd("SET plain v1");
    direct.request(&["DUMP", "plain"]);
    let dump = direct.raw();
    let start = dump.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    dump[start..dump.len() - 2].to_vec()
}

/// `how` brings `PAGE`, which has a label, a new value with the same label through a proxy that dies before it has told of it.
fn the_label_stays(how: &str) {
    let redis = Redis::start();
    let [mover, other] = doomed_and_other(&redis);
    let (mut client, mut here, mut direct) = (mover.client(), other.client(), redis.client());
    let labels = |here: &mut Client| here.list(&format!("TAG.OF {PAGE}"));
    // Both have heard of each other, and of the label.
    here.cmd(&format!("TAG.WITH 1 t SET {PAGE} v0"));
    eventually("both know the label", || {
        let known = client.list(&format!("TAG.OF {PAGE}")) == ["t"] && labels(&mut here) == ["t"];
        known.then_some(())
    });
    assert_eq!(client.cmd("TAG.WITH 1 t SET app:1:tmp v1"), "+OK\r\n");
    let dump = dump(&mut direct);
    match how {
        "restore" => client.request(&[b"RESTORE".as_slice(), PAGE.as_bytes(), b"0", &dump, b"REPLACE"]),
        "copy" => client.request(&["COPY", "app:1:tmp", PAGE, "REPLACE"]),
        _ => client.request(&["RENAME", "app:1:tmp", PAGE]),
    }
    client.rest();
    assert_eq!(labels(&mut here), ["t"], "{how}");
    // Whatever is done about the old label is done by then.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(direct.cmd(&format!("GET {PAGE}")), "$2\r\nv1\r\n", "{how}");
    here.cmd("TAG.INVALIDATE t");
    assert_eq!(direct.cmd(&format!("EXISTS {PAGE}")), ":0\r\n", "{how}");
}

#[test]
fn a_label_that_is_handed_on_to_a_key_that_had_it_is_not_taken_away_by_others() {
    ["rename", "copy", "restore"].into_iter().for_each(the_label_stays);
}

#[test]
fn a_label_is_invalidated_on_its_way() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for (number, how) in
        ["RENAME tmp page", "RENAMENX tmp page", "COPY tmp page", "MOVE tmp 3"].iter().enumerate()
    {
        for in_multi in [false, true] {
            let tag = format!("t{number}{in_multi}");
            client.cmd(&format!("TAG.WITH 1 {tag} SET tmp old"));
            // As if it had begun after the command was sent.
            direct.cmd(&format!("SET rescind:epoch:{tag} another PX 10000"));
            if in_multi {
                client.cmd("MULTI");
            }
            client.cmd(how);
            if in_multi {
                client.cmd("EXEC");
            }
            assert_eq!(direct.cmd("EXISTS page"), ":0\r\n", "{how}");
            direct.cmd("SELECT 3");
            assert_eq!(direct.cmd("EXISTS tmp"), ":0\r\n", "{how}");
            direct.cmd("SELECT 0");
            direct.cmd("DEL tmp page");
        }
    }
}

#[test]
fn the_mark_of_a_label_goes_with_the_command() {
    let redis = Redis::start();
    let (mover, _other) = (Proxy::start(&redis, RULES), Proxy::start(&redis, RULES));
    let (mut client, mut direct) = (mover.client(), redis.client());
    client.cmd("TAG.WITH 1 t SET one v");
    client.cmd("TAG.WITH 1 t SET two v");
    let score = |direct: &mut Client, key| direct.list(&format!("ZSCORE rescind:tag:t {key}"));
    eventually("the other one is known", || {
        client.cmd("MULTI");
        client.cmd("RENAME one two");
        let marked = score(&mut direct, "two")[0].starts_with('-');
        client.cmd("DISCARD");
        marked.then_some(())
    });
    eventually("nothing came of it", || (score(&mut direct, "two") == ["inf"]).then_some(()));
    assert_eq!(client.cmd("RENAMENX one two"), ":0\r\n");
    assert_eq!(score(&mut direct, "two"), ["inf"]);
    client.cmd("PEXPIREAT two 9000000000000");
    assert_eq!(client.cmd("RENAMENX one two"), ":0\r\n");
    eventually("it follows the expiry again", || {
        (score(&mut direct, "two") == ["9000000000000"]).then_some(())
    });
    assert_eq!(client.cmd("RENAME one two"), "+OK\r\n");
    assert_eq!(score(&mut direct, "two"), ["inf"]);
}

/// Labels that no script gives are known to other proxies before the write is seen.
#[test]
fn what_is_labelled_here_may_be_moved_there_before_that_is_told() {
    for how in ["MULTI", "RESTORE", "RENAME"] {
        let redis = Redis::start();
        let [doomed, other] = doomed_and_other(&redis);
        let (mut client, mut here, mut direct) = (doomed.client(), other.client(), redis.client());
        here.cmd("TAG.WITH 1 t SET tmp v0");
        eventually("both know a label", || (client.list("TAG.OF tmp") == ["t"]).then_some(()));
        let dump = dump(&mut direct);
        match how {
            "MULTI" => {
                assert_eq!(client.cmd("MULTI"), "+OK\r\n");
                assert_eq!(client.cmd(&format!("TAG.WITH 1 t SET {PAGE} v1")), "+QUEUED\r\n");
                client.request(&["EXEC"]);
            }
            "RESTORE" => {
                let words = [b"TAG.WITH".as_slice(), b"1", b"t", b"RESTORE", PAGE.as_bytes(), b"0", &dump];
                client.request(&words);
            }
            _ => client.request(&["RENAME", "tmp", PAGE]),
        }
        client.rest();
        assert_eq!(here.cmd(&format!("RENAME {PAGE} page")), "+OK\r\n", "{how}");
        assert_eq!(here.list("TAG.OF page"), ["t"], "{how}");
        here.cmd("TAG.INVALIDATE t");
        assert_eq!(direct.cmd("EXISTS page"), ":0\r\n", "{how}");
    }
}

#[test]
fn a_label_that_does_not_come_is_withdrawn() {
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, RULES)];
    let (mut client, mut other, mut direct) = (proxies[0].client(), proxies[1].client(), redis.client());
    direct.cmd("SET k v");
    other.cmd("TAG.WITH 1 t SET had v");
    eventually("both know a label", || (client.list("TAG.OF had") == ["t"]).then_some(()));
    for end in ["EXEC", "DISCARD", "RESET", "QUIT"] {
        let mut client = proxies[0].client();
        client.cmd("MULTI");
        client.cmd("TAG.WITH 1 t SET k w NX");
        client.cmd("TAG.WITH 1 t SET had w NX");
        client.cmd("RENAME nothing k");
        assert_eq!(other.list("TAG.OF k"), ["t"], "{end}");
        client.cmd(end);
        for key in ["k", "had"] {
            let is_left = key == "had";
            eventually("it was not given", || {
                let there = direct.cmd(&format!("ZSCORE rescind:tag:t {key}")) != "$-1\r\n";
                let known = !other.list(&format!("TAG.OF {key}")).is_empty();
                ([there, known] == [is_left; 2]).then_some(())
            });
        }
    }
}
