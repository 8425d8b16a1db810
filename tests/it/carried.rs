//! Values that RENAME, COPY and MOVE bring elsewhere in the midst of their invalidation.

use crate::support::{Proxy, RULES, Redis};

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
