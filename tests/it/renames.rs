//! Rules that name tags otherwise than those before: what is known of an invalidation by name is not lost.

use crate::support::{Client, Proxy, Redis, eventually};

const RULES: &str = "[tags]\n\"obj:{id}\" = [\"page:{id}\"]\nmoved = [\"note:*\"]\n\
    [[trigger]]\nkeys = [\"model:{id}\"]\ninvalidate = [\"obj:{id}\"]\n";

/// With the tag renamed, or with its keys under another one that is there already.
fn changed(how: &str) -> String {
    match how {
        "renamed" => RULES.replace("obj:{id}", "thing:{id}"),
        _ => RULES.replace("\"page:{id}\"", "\"note:{id}\"").replace("note:*", "page:*"),
    }
}

/// A Redis that saves when it is told to, and a proxy with a user of its own.
fn world() -> (Redis, Proxy) {
    let user = ["--user", "own", "on", ">pw", "~*", "&*", "+@all"];
    let options = ["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no"];
    let redis = Redis::with(&[options.as_slice(), &user].concat());
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    (redis, proxy)
}

fn write(proxy: &Proxy, rules: &str) {
    let new = proxy.folder.write("proxy.toml.new", rules);
    std::fs::rename(new, &proxy.config).unwrap();
}

/// The rules change, and the worker knows it.
fn reload(proxy: &Proxy, how: &str) {
    write(proxy, &changed(how));
    proxy.signal("-HUP");
    let tag = if how == "renamed" { "thing:1" } else { "moved" };
    let mut client = proxy.client();
    eventually("they are in force", || client.cmd("TAG.EXPLAIN SET page:1 v").contains(tag).then_some(()));
}

fn is_there(redis: &Redis, key: &str) -> bool {
    redis.client().cmd(&format!("EXISTS {key}")) == ":1\r\n"
}

/// The first read that is answered once Redis is reached.
fn first_read(proxy: &Proxy, key: &str) -> String {
    eventually("Redis is reached", || {
        let reply = proxy.client().cmd(&format!("GET {key}"));
        (!reply.starts_with('-')).then_some(reply)
    })
}

/// It takes effect, but nothing can be deleted.
fn begin(redis: &Redis, proxy: &Proxy) -> Client {
    redis.client().cmd("SET page:1 cached");
    redis.client().cmd("ACL SETUSER own -unlink");
    let mut writer = proxy.client();
    writer.request(&["SET", "model:1", "1"]);
    eventually("it has taken effect", || is_there(redis, "model:1").then_some(()));
    eventually("reads are misses", || (proxy.client().cmd("GET page:1") == "$-1\r\n").then_some(()));
    writer
}

#[test]
fn what_is_being_invalidated_is_deleted_although_its_tag_is_called_otherwise_meanwhile() {
    for how in ["renamed", "moved"] {
        let (redis, proxy) = world();
        let mut writer = begin(&redis, &proxy);
        reload(&proxy, how);
        assert_eq!(proxy.client().cmd("GET page:1"), "$-1\r\n", "{how}: it is in doubt");
        redis.client().cmd("ACL SETUSER own +unlink");
        assert_eq!(writer.reply(), "+OK\r\n");
        assert!(!is_there(&redis, "page:1"), "{how}");
        redis.client().cmd("SET page:1 cached");
        assert_eq!(proxy.client().cmd("GET page:1"), "$6\r\ncached\r\n", "{how}: there is no doubt any more");
    }
}

#[test]
fn what_a_transaction_was_to_invalidate_when_it_was_queued_is_deleted_as_well() {
    for how in ["renamed", "moved"] {
        let (redis, proxy) = world();
        redis.client().cmd("SET page:1 cached");
        let mut writer = proxy.client();
        ["MULTI", "SET model:1 1"].iter().for_each(|request| _ = writer.cmd(request));
        reload(&proxy, how);
        proxy.ready();
        assert_eq!(writer.cmd("EXEC"), "*1\r\n+OK\r\n");
        assert!(!is_there(&redis, "page:1"), "{how}");
    }
}

#[test]
fn a_fill_is_stale_although_what_was_invalidated_in_between_had_another_name() {
    let (_redis, proxy) = world();
    let (mut writer, mut filler) = (proxy.client(), proxy.client());
    filler.cmd("GET page:1");
    assert_eq!(writer.cmd("SET model:1 1"), "+OK\r\n");
    ["MULTI", "SET model:2 1"].iter().for_each(|request| _ = writer.cmd(request));
    reload(&proxy, "renamed");
    filler.cmd("GET page:2");
    assert_eq!(writer.cmd("EXEC"), "*1\r\n+OK\r\n");
    for key in ["page:1", "page:2"] {
        filler.cmd(&format!("SET {key} old"));
        assert_eq!(filler.cmd(&format!("GET {key}")), "$-1\r\n", "{key}");
        filler.cmd(&format!("SET {key} new"));
        assert_eq!(filler.cmd(&format!("GET {key}")), "$3\r\nnew\r\n", "{key}");
    }
}

/// Triggers meet workers that have the new rules already, and such that have not.
#[test]
fn no_reload_in_the_midst_of_triggers_leaves_anything_behind() {
    const CLIENTS: usize = 8;
    let (redis, proxy) = world();
    let mut direct = redis.client();
    let mut writers: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    for round in 0..60 {
        write(&proxy, &if round % 2 == 0 { changed("renamed") } else { RULES.to_owned() });
        proxy.signal("-HUP");
        for turn in 0..10 {
            (0..CLIENTS).for_each(|n| _ = direct.cmd(&format!("SET page:{n} cached")));
            for (n, writer) in writers.iter_mut().enumerate() {
                writer.request(&["SET", &format!("model:{n}"), "1"]);
            }
            for (n, writer) in writers.iter_mut().enumerate() {
                assert_eq!(writer.reply(), "+OK\r\n");
                assert!(!is_there(&redis, &format!("page:{n}")), "round {round}, turn {turn}, page:{n}");
            }
        }
    }
}

#[test]
fn what_was_begun_is_finished_by_the_next_process_although_it_has_other_rules() {
    for how in ["renamed", "moved"] {
        let (redis, mut proxy) = world();
        drop(begin(&redis, &proxy));
        proxy.kill();
        redis.client().cmd("ACL SETUSER own +unlink");
        write(&proxy, &changed(how));
        proxy.start_again(&[]);
        assert_eq!(proxy.client().cmd("GET page:1"), "$-1\r\n", "{how}");
        proxy.ready();
        eventually("it is deleted", || (!is_there(&redis, "page:1")).then_some(()));
    }
}

#[test]
fn old_data_bring_nothing_back_that_was_invalidated_by_another_name() {
    for (how, restarts) in [("renamed", false), ("moved", false), ("renamed", true), ("moved", true)] {
        let (mut redis, mut proxy) = world();
        redis.client().cmd("SET page:1 cached");
        redis.client().cmd("SAVE");
        assert_eq!(proxy.client().cmd("SET model:1 1"), "+OK\r\n");
        if restarts {
            proxy.signal("-TERM");
            proxy.wait();
            write(&proxy, &changed(how));
            proxy.start_again(&[]);
            proxy.ready();
        } else {
            reload(&proxy, how);
        }
        redis.kill();
        redis.restart();
        assert_eq!(first_read(&proxy, "page:1"), "$-1\r\n", "{how} {restarts}");
        proxy.ready();
        assert_eq!(first_read(&proxy, "page:1"), "$-1\r\n", "{how} {restarts}");
    }
}
