//! Which misses a write fills: where others come over other connections, where one task looks twice, and where a great deal is
//! invalidated in between.

use std::time::Duration;

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

fn run(client: &mut Client, lines: &[&str]) {
    for line in lines {
        let reply = client.cmd(line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

/// Fills of the home page are watched for longer than any test takes.
fn patient(redis: &Redis) -> Proxy {
    let family = "name = \"home\"\nfill_window = \"300s\"\n";
    Proxy::start(redis, &RULES.replace("name = \"home\"\n", family))
}

/// What reads a key, and what fills it in parts.
const PARTS: [(&str, &str); 3] = [
    ("HGETALL app:1:home_page_data_1", "HSET app:1:home_page_data_1 field v"),
    ("LRANGE app:1:home_page_data_1 0 -1", "RPUSH app:1:home_page_data_1 v"),
    ("SMEMBERS app:1:home_page_data_1", "SADD app:1:home_page_data_1 v"),
];

#[test]
fn a_fill_in_parts_ends_when_who_had_missed_the_key_misses_it_once_more() {
    for (read, fill) in PARTS {
        let redis = Redis::start();
        let proxy = patient(&redis);
        let [mut reader, mut filler, mut direct] = [proxy.client(), proxy.client(), redis.client()];
        run(&mut reader, &[read]);
        run(&mut proxy.client(), &[TRIGGER]);
        // All of it is stale.
        run(&mut filler, &[fill, fill]);
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{fill}");
        run(&mut reader, &[read]);
        run(&mut filler, &[fill, fill]);
        assert_ne!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{fill}");
    }
}

#[test]
fn so_it_does_where_tasks_share_connections_unless_it_may_be_the_rest() {
    for (read, fill) in PARTS {
        let redis = Redis::start();
        let proxy = patient(&redis);
        let [mut reader, mut filler, mut direct] = [proxy.client(), proxy.client(), redis.client()];
        for other in 0..8 {
            let key = format!("app:1:home_page_data_shared_{other}");
            run(&mut reader, &[&format!("GET {key}")]);
            run(&mut filler, &[&format!("SET {key} v")]);
        }
        run(&mut reader, &[read]);
        run(&mut proxy.client(), &[TRIGGER]);
        run(&mut filler, &[fill]);
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "{fill}");
        eventually("it is cached again", || {
            std::thread::sleep(Duration::from_millis(200));
            run(&mut reader, &[read]);
            run(&mut filler, &[fill]);
            (direct.cmd(&format!("EXISTS {KEY}")) != ":0\r\n").then_some(())
        });
    }
}

#[test]
fn what_one_transaction_asks_of_a_key_is_one_miss() {
    let redis = Redis::start();
    let proxy = patient(&redis);
    let mut direct = redis.client();
    let mut pool: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    // Requests of several connections are under way at once: it is presumed that tasks share these.
    direct.cmd("CLIENT PAUSE 300 ALL");
    pool.iter_mut().for_each(|client| client.send(b"GET app:1:home_page_data_9\r\n"));
    pool.iter_mut().for_each(|client| assert_eq!(client.raw(), b"$-1\r\n"));
    let looks: Vec<Vec<u8>> =
        ["MULTI", &format!("TTL {KEY}"), &format!("EXISTS {KEY}"), &format!("GET {KEY}"), "EXEC"]
            .map(|line| encode(&line.split(' ').collect::<Vec<_>>()))
            .to_vec();
    for round in 0..4 {
        for client in &mut pool {
            client.send(&looks.concat());
            (0..4).for_each(|_| _ = client.raw());
            assert_eq!(client.raw(), b"*3\r\n:-2\r\n:0\r\n$-1\r\n");
        }
        pool.iter_mut().for_each(|client| run(client, &[&format!("SET {KEY} v")]));
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":1\r\n", "round {round}");
        run(&mut proxy.client(), &[TRIGGER]);
    }
}

/// More tags than a script looks through, and others besides.
fn invalidate_very_many(client: &mut Client, also: &str) {
    let others: Vec<String> = (0..1200).map(|n| format!("other:{n}")).collect();
    client.call(&["PUBLISH", "rescind:invalidate", also]);
    assert!(client.call(&["PUBLISH", "rescind:invalidate", &others.join(" ")]).starts_with(':'));
}

#[test]
fn a_key_that_nothing_names_is_kept_however_much_was_invalidated_since_it_was_missed() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let [mut client, mut direct] = [proxy.client(), redis.client()];
    run(&mut client, &["TAG.WITH 1 label SET app:1:labelled v"]);
    let long = "v".repeat(300_000);
    for fills in [
        vec![encode(&["SET", "session", "v", "NX", "EX", "100"])],
        vec![encode(&["MULTI"]), encode(&["SET", "session", "v"]), encode(&["EXEC"])],
        // Not as a script.
        vec![encode(&["SET", "session", &long])],
        vec![encode(&["SORT", "app:1:numbers", "STORE", "session"])],
    ] {
        run(&mut direct, &["RPUSH app:1:numbers 1"]);
        run(&mut client, &["EXISTS session"]);
        invalidate_very_many(&mut proxy.client(), "label");
        for fill in &fills {
            client.send(fill);
            assert!(!client.reply().starts_with('-'));
        }
        // Nor is it deleted behind the reply: what has been asked until now is answered.
        assert!(client.cmd("TAG.INVALIDATE unknown").starts_with(':'));
        let fill = String::from_utf8_lossy(fills.last().unwrap());
        assert_eq!(direct.cmd("DEL session"), ":1\r\n", "{:.30}", fill);
    }
    assert_eq!(proxy.metric("rescind_stale_fills_total{family=\"other\"}"), 0.0);
}

#[test]
fn where_redis_has_forgotten_more_than_the_proxy_has_heard_of_only_labelled_keys_are_looked_at() {
    let redis = Redis::start();
    let proxies = crate::proxies::some(&redis, 2);
    let mut direct = redis.client();
    let [mut filler, mut labels] = [proxies[0].client(), proxies[1].client()];
    let stale = || proxies[0].metric("rescind_stale_fills_total{family=\"other\"}");
    run(&mut labels, &["TAG.WITH 1 label SET app:1:labelled v"]);
    let others = ["LPUSH", "rescind:recent"].into_iter().chain(std::iter::repeat_n("tother", 20_000));
    let others = encode(&others.collect::<Vec<_>>());
    eventually("a stale fill was undone", || {
        run(&mut direct, &["DEL page session"]);
        run(&mut filler, &["MGET page session"]);
        run(&mut labels, &["TAG.INVALIDATE label"]);
        direct.send(&others);
        assert!(direct.reply().starts_with(':'));
        // The filler's proxy has not heard of the label when it sends the fill.
        direct.cmd("CLIENT PAUSE 400 ALL");
        labels.request(&["TAG.WITH", "1", "label", "SET", "page", "new"]);
        std::thread::sleep(Duration::from_millis(100));
        filler.send(&[encode(&["SET", "page", "old"]), encode(&["SET", "session", "v"])].concat());
        assert_eq!([labels.reply(), filler.reply(), filler.reply()], ["+OK\r\n"; 3]);
        eventually("the old value is gone", || (direct.cmd("GET page") != "$3\r\nold\r\n").then_some(()));
        assert_eq!(direct.cmd("EXISTS session"), ":1\r\n");
        (stale() > 0.0).then_some(())
    });
}

/// A proxy without others by which fills of the home page are protected strictly.
fn strict(redis: &Redis) -> Proxy {
    let rules = RULES.replace("name = \"home\"\n", "name = \"home\"\nstale_fill = \"strict\"\n");
    let proxy = Proxy::launch(&format!("redis://127.0.0.1:{}", redis.port), &rules, &[]);
    proxy.ready();
    proxy
}

/// As Django's `cache_page` does: the header is missed, and it and the page are written.
#[test]
fn strictly_a_page_that_was_written_unread_is_undone_like_the_header_that_was_missed() {
    let redis = Redis::start();
    let proxy = strict(&redis);
    let (header, page) = ("app:1:home_page_data_header", "app:1:home_page_data_page");
    let [mut slow, mut quick, mut writer] = [proxy.client(), proxy.client(), proxy.client()];
    assert_eq!(slow.cmd(&format!("GET {header}")), "$-1\r\n");
    assert_eq!(writer.cmd("SET app:1:model:Post:7 1"), "+OK\r\n");
    assert_eq!(quick.cmd(&format!("GET {header}")), "$-1\r\n");
    slow.cmd(&format!("SET {header} old"));
    quick.cmd(&format!("SET {header} new"));
    slow.cmd(&format!("SET {page} old"));
    assert_eq!(quick.cmd(&format!("GET {header}")), "$3\r\nnew\r\n");
    assert_eq!(quick.cmd(&format!("GET {page}")), "$-1\r\n");
    // Who has missed the page itself since fills it.
    quick.cmd(&format!("SET {page} new"));
    assert_eq!(quick.cmd(&format!("GET {page}")), "$3\r\nnew\r\n");
}

#[test]
fn strictly_what_has_been_missed_here_is_as_old_as_its_miss() {
    let redis = Redis::start();
    let proxy = strict(&redis);
    let [mut one, mut another, mut writer] = [proxy.client(), proxy.client(), proxy.client()];
    let mut direct = redis.client();
    // What one has missed another fills: tasks share their connections.
    for n in 0..20 {
        run(&mut one, &[&format!("GET app:1:tools_{n}")]);
        run(&mut another, &[&format!("SET app:1:tools_{n} v")]);
    }
    let (get, set) = (format!("GET {KEY}"), format!("SET {KEY} v"));
    for round in 0..3 {
        run(&mut one, &[&get]);
        run(&mut writer, &[TRIGGER]);
        run(&mut another, &[&set]);
        assert_eq!(direct.cmd(&format!("EXISTS {KEY}")), ":0\r\n", "missed before, round {round}");
        for same in [true, false] {
            run(&mut one, &[&get]);
            run(if same { &mut one } else { &mut another }, &[&set]);
            assert_eq!(direct.cmd(&format!("DEL {KEY}")), ":1\r\n", "same: {same}, round {round}");
        }
        // Nobody has missed it.
        run(&mut another, &["SET app:1:home_page_data_2 v"]);
        assert_eq!(direct.cmd("EXISTS app:1:home_page_data_2"), ":0\r\n", "round {round}");
    }
}

#[test]
fn who_writes_through_over_the_connection_of_his_trigger_shares_it_with_nobody() {
    let redis = Redis::start();
    let proxy = patient(&redis);
    let [mut slow, mut quick, mut other, mut writer] = [(); 4].map(|()| proxy.client());
    let mut direct = redis.client();
    for n in 0..12 {
        let key = format!("app:1:home_page_data_{n}");
        let (get, old, new) = (format!("GET {key}"), format!("SET {key} old"), format!("SET {key} new"));
        run(&mut slow, &[&get]);
        run(&mut writer, &[TRIGGER, &new]);
        // One of them waits for the other one's fill.
        run(&mut other, &[&get]);
        run(&mut quick, &[&get, &new]);
        run(&mut slow, &[&old]);
        assert_ne!(direct.cmd(&get), "$3\r\nold\r\n", "{n}");
    }
}

/// As Django's `cache_page` does: who finds the header and not the page writes both anew, and who finds no header writes the page
/// with it. Others may have missed what is written along.
#[test]
fn who_writes_along_with_what_he_has_missed_shares_his_connection_with_nobody() {
    let redis = Redis::start();
    let proxy = patient(&redis);
    let [mut one, mut other] = [proxy.client(), proxy.client()];
    for round in 0..10 {
        let [header, page] = ["header", "page"].map(|what| format!("app:1:home_page_data_{what}_{round}"));
        let along = if round % 2 == 0 { [&page, &header] } else { [&header, &page] };
        run(&mut other, &[&format!("GET {}", along[1])]);
        run(&mut one, &[&format!("GET {}", along[0])]);
        run(&mut one, &[&format!("SET {header} v"), &format!("SET {page} v")]);
    }
    // Otherwise what the other one may still fill would decide.
    run(&mut other, &[&format!("GET {KEY}")]);
    run(&mut proxy.client(), &[TRIGGER]);
    run(&mut one, &[&format!("GET {KEY}"), &format!("SET {KEY} new")]);
    assert_eq!(one.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n");
    run(&mut other, &[&format!("SET {KEY} old")]);
    assert_eq!(one.cmd(&format!("GET {KEY}")), "$-1\r\n");
}
