//! Several proxies on one Redis, which share nothing but Redis.

use std::time::Duration;

use crate::support::{Client, Folder, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

/// Proxies that know each other.
pub fn some(redis: &Redis, number: usize) -> Vec<Proxy> {
    with_rules(redis, number, RULES)
}

fn with_rules(redis: &Redis, number: usize, rules: &str) -> Vec<Proxy> {
    let proxies: Vec<Proxy> = (0..number).map(|_| Proxy::start(redis, rules)).collect();
    for proxy in &proxies {
        let known = |proxy: &Proxy| proxy.log().matches("another proxy is there").count();
        eventually("they know each other", || (known(proxy) + 1 >= number).then_some(()));
    }
    proxies
}

/// Ends as a crash would. Returns when Redis has noticed: until then it counts as alive.
fn dies(proxy: &mut Proxy, direct: &mut Client) {
    let alive = |direct: &mut Client| direct.list("PUBSUB CHANNELS rescind:proxy:*").len();
    let before = alive(direct);
    proxy.kill();
    eventually("Redis has noticed", || (alive(direct) < before).then_some(()));
}

/// Not by a write of a trigger: that the other proxies see as well, and if this one is slow one of them invalidates once more.
fn invalidate(client: &mut Client) {
    assert!(client.cmd("TAG.INVALIDATE Post").starts_with(':'));
}

fn is_there(direct: &mut Client, key: &str) -> bool {
    direct.cmd(&format!("EXISTS {key}")) == ":1\r\n"
}

/// The sample rules, with fills of the home page protected like that.
fn protecting(how: &str) -> String {
    let family = format!("name = \"home\"\nstale_fill = \"{how}\"\n");
    format!("[listen]\nworkers = 1\n{}", RULES.replace("name = \"home\"\n", &family))
}

/// So many clients whose requests are under way at once, as those of a pool are.
fn overlap(direct: &mut Client, clients: &mut [Client]) {
    direct.cmd("CLIENT PAUSE 300 ALL");
    clients.iter_mut().for_each(|client| client.send(b"GET app:1:home_page_data_9\r\n"));
    clients.iter_mut().for_each(|client| assert_eq!(client.raw(), b"$-1\r\n"));
}

fn fan_outs(proxies: &[Proxy]) -> f64 {
    proxies.iter().map(|proxy| proxy.metric("rescind_fanout_keys_count")).sum()
}

#[test]
fn whoever_writes_through_whichever_proxy() {
    let redis = Redis::start();
    let proxies = some(&redis, 3);
    let mut clients: Vec<Client> = proxies.iter().map(Proxy::client).collect();
    for round in 0..60 {
        let (filler, writer, reader) = (round % 3, (round / 3) % 3, (round / 9) % 3);
        clients[filler].cmd(&format!("SET {KEY} v"));
        assert_eq!(clients[writer].cmd(TRIGGER), "+OK\r\n");
        assert_eq!(clients[reader].cmd(&format!("GET {KEY}")), "$-1\r\n", "round {round}");
    }
}

/// As while a new one replaces an old one. No feed tells of the trigger: its pattern has no prefix.
#[test]
fn what_a_dead_proxy_has_begun_is_finished_by_one_that_shares_its_journal_and_had_started_before() {
    let rules = "[keys]\nprefix = \"app:1:\"\n[tags]\nPost = [\"home_page_data_*\"]\n\
                 [[trigger]]\nkeys = [\"{model}:saved\"]\ninvalidate = [\"{model}\"]\n";
    let (redis, journal) = (Redis::start(), Folder::new());
    let upstream = format!("redis://127.0.0.1:{}", redis.port);
    let shared = ("RESCIND_JOURNAL_PATH", journal.0.to_str().unwrap());
    let mut old =
        Proxy::launch_with(&upstream, rules, &[], &[shared, ("RESCIND_DIE_AT", "trigger answered")]);
    old.ready();
    let new = Proxy::launch_with(&upstream, rules, &[], &[shared]);
    new.ready();
    let mut client = new.client();
    client.cmd(&format!("SET {KEY} old"));
    let mut writer = old.client();
    writer.request(&["SET", "app:1:Post:saved", "1"]);
    assert!(writer.rest().is_empty(), "it died");
    old.wait();
    eventually("it is deleted", || (client.cmd(&format!("GET {KEY}")) == "$-1\r\n").then_some(()));
}

#[test]
fn a_fill_is_stale_whichever_proxy_was_told_of_the_invalidation() {
    let redis = Redis::start();
    let proxies = some(&redis, 2);
    for (here, there) in [(0, 1), (1, 0)] {
        for _ in 0..20 {
            let mut client = proxies[here].client();
            client.cmd(&format!("GET {KEY}"));
            assert_eq!(proxies[there].client().cmd(TRIGGER), "+OK\r\n");
            client.cmd(&format!("SET {KEY} old"));
            assert_eq!(proxies[there].client().cmd(&format!("GET {KEY}")), "$-1\r\n");
            // At once, unless this proxy has not heard of the invalidation yet.
            eventually("a fresh fill stays", || {
                client.cmd(&format!("GET {KEY}"));
                client.cmd(&format!("SET {KEY} new"));
                (client.cmd(&format!("GET {KEY}")) == "$3\r\nnew\r\n").then_some(())
            });
            client.cmd(&format!("DEL {KEY}"));
        }
    }
}

#[test]
fn what_all_of_them_see_is_done_once() {
    let redis = Redis::start();
    let proxies = some(&redis, 3);
    let mut direct = redis.client();
    let before = fan_outs(&proxies);
    for round in 0..20 {
        direct.cmd(&format!("SET {KEY} v"));
        match round % 2 {
            0 => direct.cmd(TRIGGER),
            _ => direct.cmd("PUBLISH rescind:invalidate Post"),
        };
        eventually("it is deleted", || (!is_there(&mut direct, KEY)).then_some(()));
    }
    std::thread::sleep(Duration::from_millis(200));
    let done = fan_outs(&proxies) - before;
    assert!((20.0..30.0).contains(&done), "{done} fan-outs of 20 writes past three proxies");
    let before = fan_outs(&proxies);
    for round in 0..20 {
        assert_eq!(proxies[round % 3].client().cmd(TRIGGER), "+OK\r\n");
    }
    std::thread::sleep(Duration::from_millis(1500));
    let done = fan_outs(&proxies) - before;
    assert!((20.0..30.0).contains(&done), "{done} fan-outs of 20 writes through three proxies");
}

#[test]
fn what_a_dead_proxy_has_begun_is_taken_over_by_the_others() {
    for place in ["trigger answered", "announced", "collected"] {
        let redis = Redis::start();
        let mut proxies = some(&redis, 2);
        proxies[0].kill();
        proxies[0].start_again(&[("RESCIND_DIE_AT", place)]);
        proxies[0].ready();
        let mut direct = redis.client();
        direct.cmd(&format!("SET {KEY} v"));
        let mut writer = proxies[0].client();
        writer.request(&TRIGGER.split(' ').collect::<Vec<_>>());
        assert!(!writer.rest().starts_with(b"+OK"));
        eventually("the other one does it", || (!is_there(&mut direct, KEY)).then_some(()));
    }
}

#[test]
fn the_client_of_a_dead_proxy_may_bring_its_stale_fill_to_another() {
    let redis = Redis::start();
    let mut proxies = some(&redis, 2);
    for _ in 0..5 {
        let mut retry = proxies[1].client();
        assert_eq!(proxies[0].client().cmd(&format!("GET {KEY}")), "$-1\r\n");
        proxies[0].kill();
        assert_eq!(proxies[1].client().cmd(TRIGGER), "+OK\r\n");
        retry.cmd(&format!("SET {KEY} old"));
        assert_eq!(retry.cmd(&format!("GET {KEY}")), "$-1\r\n");
        proxies[0].start_again(&[]);
        proxies[0].ready();
    }
}

/// Its fill labels the key, or meets a label that somebody else has given.
#[test]
fn the_client_of_a_dead_proxy_may_bring_what_is_stale_by_a_label_to_another() {
    for (fill, labelled) in [("TAG.WITH 1 t SET page old", false), ("SET page old", true)] {
        for noticed in [false, true] {
            let redis = Redis::start();
            let mut proxies = some(&redis, 2);
            let (mut labeller, mut retry) = (proxies[0].client(), proxies[1].client());
            // Until a proxy has given a label itself it takes the oldest miss of a key without tags for that of each fill.
            for client in [&mut labeller, &mut retry] {
                assert_eq!(client.cmd("TAG.WITH 1 first SET other v"), "+OK\r\n");
            }
            assert_eq!(proxies[0].client().cmd("GET page"), "$-1\r\n");
            let mut told = redis.client();
            told.cmd("SUBSCRIBE rescind:proxies");
            assert_eq!(labeller.cmd("TAG.INVALIDATE t"), ":0\r\n");
            // Else it is done once more by the other one, which deletes what follows.
            eventually("it is done", || told.reply().contains("\ndone\r\n").then_some(()));
            if labelled {
                labeller.cmd("GET page");
                assert_eq!(labeller.cmd("TAG.WITH 1 t SET page new"), "+OK\r\n");
            }
            // Behind this the other one has heard of both.
            let labels = if labelled { "*1\r\n$1\r\nt\r\n" } else { "*0\r\n" };
            assert_eq!(retry.cmd("TAG.OF page"), labels);
            dies(&mut proxies[0], &mut redis.client());
            if noticed {
                let log = || proxies[1].log().contains("gone without a word").then_some(());
                eventually("it is noticed", log);
            }
            assert_eq!(retry.cmd(fill), "+OK\r\n");
            assert_eq!(retry.cmd("GET page"), "$-1\r\n", "{fill}, the death noticed: {noticed}");
            // With a miss of its own it is no retry.
            assert_eq!(retry.cmd("TAG.WITH 1 t SET page new"), "+OK\r\n");
            assert_eq!(retry.cmd("GET page"), "$3\r\nnew\r\n");
        }
    }
}

#[test]
fn nor_if_the_label_was_given_while_the_feed_was_lost() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own on >pw ~* &* +@all");
    let mut other = Proxy::start(&redis, RULES);
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    let (mut labeller, mut retry) = (other.client(), proxy.client());
    labeller.cmd("TAG.WITH 1 first SET other v");
    assert_eq!(retry.cmd("TAG.OF other"), "*1\r\n$5\r\nfirst\r\n");
    assert_eq!(other.client().cmd("GET page"), "$-1\r\n");
    assert_eq!(labeller.cmd("TAG.INVALIDATE t"), ":0\r\n");
    direct.cmd("ACL SETUSER own off");
    assert_eq!(direct.cmd("CLIENT KILL TYPE pubsub USER own"), ":1\r\n");
    eventually("the feed is lost", || proxy.log().contains("feed lost").then_some(()));
    labeller.cmd("GET page");
    assert_eq!(labeller.cmd("TAG.WITH 1 t SET page new"), "+OK\r\n");
    dies(&mut other, &mut direct);
    assert_eq!(retry.cmd("SET page old"), "+OK\r\n");
    direct.cmd("ACL SETUSER own on");
    proxy.ready();
    let (value, labels) = (retry.cmd("GET page"), retry.cmd("TAG.OF page"));
    assert!(value != "$3\r\nold\r\n" || labels == "*0\r\n", "{value} {labels}");
}

#[test]
fn nor_if_the_label_is_given_at_the_same_time() {
    let redis = Redis::start();
    let mut proxies = some(&redis, 3);
    let [mut missing, mut labeller, mut retry] = [0, 1, 2].map(|number| proxies[number].client());
    for client in [&mut labeller, &mut retry] {
        assert_eq!(client.cmd("TAG.WITH 1 first SET other v"), "+OK\r\n");
    }
    let keys: Vec<String> = (0..200).map(|round| format!("page{round}")).collect();
    keys.iter().for_each(|key| assert_eq!(missing.cmd(&format!("GET {key}")), "$-1\r\n"));
    assert_eq!(labeller.cmd("TAG.INVALIDATE t"), ":0\r\n");
    dies(&mut proxies[0], &mut redis.client());
    // Before that it is not: each write of each key would have to be a script.
    eventually("it is noticed", || proxies[2].log().contains("gone without a word").then_some(()));
    let mut old = vec![];
    for key in &keys {
        labeller.cmd(&format!("GET {key}"));
        labeller.send(&encode(&["TAG.WITH", "1", "t", "SET", key, "new"]));
        retry.send(&encode(&["SET", key, "old"]));
        assert_eq!((labeller.reply(), retry.reply()), ("+OK\r\n".to_owned(), "+OK\r\n".to_owned()));
        if retry.cmd(&format!("GET {key}")) == "$3\r\nold\r\n"
            && retry.cmd(&format!("TAG.OF {key}")) != "*0\r\n"
        {
            old.push(key);
        }
    }
    assert!(old.is_empty(), "{old:?}");
}

/// Who has died may have had their misses, but nothing says that they are cached values, or whose labels they have.
#[test]
fn keys_that_nothing_is_known_of_outlive_the_death_of_a_proxy() {
    for orderly in [true, false] {
        let redis = Redis::start();
        let mut proxies = some(&redis, 2);
        let (mut client, mut direct) = (proxies[1].client(), redis.client());
        client.cmd("TAG.WITH 1 first SET other v");
        for n in 0..700 {
            assert_eq!(client.cmd(&format!("TAG.INVALIDATE t{n}")), ":0\r\n");
        }
        for line in
            ["RPUSH jobs 1 2 3", "INCRBY counter 40", "HSET session a 1", "SET plain 0", "SET taken 0"]
        {
            direct.cmd(line);
        }
        // Who only adds to a value writes no old one.
        assert_eq!(client.cmd("GET missed"), "$-1\r\n");
        for n in 0..700 {
            assert_eq!(client.cmd(&format!("TAG.INVALIDATE u{n}")), ":0\r\n");
        }
        assert_eq!(client.cmd("INCR missed"), ":1\r\n");
        assert_eq!(client.cmd("GET missed"), "$1\r\n1\r\n");
        // An open miss makes its end suspicious although it was orderly.
        proxies[0].client().cmd("GET page");
        if orderly {
            proxies[0].signal("-TERM");
            proxies[0].wait();
        } else {
            dies(&mut proxies[0], &mut direct);
        }
        // As long as one may come with what it missed there.
        for n in 1..=100 {
            for (line, reply) in [
                ("RPUSH jobs 4", format!(":{}\r\n", 3 + n)),
                ("INCR counter", format!(":{}\r\n", 40 + n)),
                ("HINCRBY session a 1", format!(":{}\r\n", 1 + n)),
                ("SET plain 1", "+OK\r\n".to_owned()),
                ("GETSET taken 1", format!("$1\r\n{}\r\n", u8::from(n > 1))),
            ] {
                assert_eq!(client.cmd(line), reply, "{line}, orderly: {orderly}");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(direct.cmd("EXISTS jobs counter session plain taken"), ":5\r\n", "orderly: {orderly}");
    }
}

#[test]
fn a_proxy_whose_feed_connects_anew_is_not_dead() {
    let redis = Redis::start();
    let mut direct = redis.client();
    direct.cmd("ACL SETUSER own on >pw ~* &* +@all");
    let other = Proxy::start(&redis, RULES);
    let proxy = Proxy::launch(&format!("redis://own:pw@127.0.0.1:{}", redis.port), RULES, &[]);
    proxy.ready();
    eventually("they know each other", || other.log().contains("another proxy is there").then_some(()));
    for _ in 0..10 {
        assert_eq!(direct.cmd("CLIENT KILL TYPE pubsub USER own"), ":1\r\n");
        std::thread::sleep(std::time::Duration::from_millis(20));
        proxy.ready();
        eventually("its feed is back", || {
            direct.cmd("CLIENT LIST TYPE pubsub").contains("user=own").then_some(())
        });
    }
    assert!(!other.log().contains("gone without a word"));
}

#[test]
fn a_flush_does_not_make_them_forget() {
    let redis = Redis::start();
    let mut proxies = some(&redis, 2);
    let mut direct = redis.client();
    assert_eq!(proxies[0].client().cmd(&format!("GET {KEY}")), "$-1\r\n");
    proxies[0].kill();
    assert_eq!(proxies[1].client().cmd(TRIGGER), "+OK\r\n");
    let epoch = direct.cmd("GET rescind:epoch:Post");
    direct.cmd("FLUSHALL");
    eventually("the epoch is back", || (direct.cmd("GET rescind:epoch:Post") == epoch).then_some(()));
    let mut retry = proxies[1].client();
    retry.cmd(&format!("SET {KEY} old"));
    assert_eq!(retry.cmd(&format!("GET {KEY}")), "$-1\r\n");
}

#[test]
fn a_miss_at_one_proxy_may_be_filled_through_another() {
    let redis = Redis::start();
    let proxies = with_rules(&redis, 2, &protecting("strict"));
    for _ in 0..10 {
        let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
        here.cmd(&format!("GET {KEY}"));
        assert_eq!(proxies[0].client().cmd(TRIGGER), "+OK\r\n");
        there.cmd(&format!("SET {KEY} old"));
        assert_eq!(here.cmd(&format!("GET {KEY}")), "$-1\r\n");
        // Who has just been told of the invalidation writes something new.
        let mut writer = proxies[0].client();
        writer.cmd(TRIGGER);
        writer.cmd("SET app:1:home_page_data_2 new");
        assert_eq!(writer.cmd("GET app:1:home_page_data_2"), "$3\r\nnew\r\n");
    }
}

#[test]
fn strictly_it_may_be_filled_by_any_command() {
    let redis = Redis::start();
    let proxies = with_rules(&redis, 2, &protecting("strict"));
    let mut direct = redis.client();
    for (fill, stays) in [
        ("ZADD app:1:home_page_data_1 1 old", false),
        ("ZADD app:1:home_page_data_1 GT CH 1 old", false),
        ("BITFIELD app:1:home_page_data_1 SET u8 0 65", false),
        ("HSET app:1:home_page_data_1 field old", false),
        // Who counts brings no value.
        ("INCRBY app:1:home_page_data_1 7", true),
        ("HINCRBYFLOAT app:1:home_page_data_1 field 7", true),
    ] {
        let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
        here.cmd(&format!("EXISTS {KEY}"));
        invalidate(&mut here);
        let reply = there.cmd(fill);
        assert!(!reply.starts_with('-'), "{fill}: {reply}");
        assert_eq!(is_there(&mut direct, KEY), stays, "{fill}");
        direct.cmd(&format!("DEL {KEY}"));
    }
}

#[test]
fn what_one_proxy_sees_of_a_pool_counts_at_the_others() {
    let redis = Redis::start();
    let proxies = with_rules(&redis, 2, &format!("[listen]\nworkers = 1\n{RULES}"));
    let (mut direct, mut told) = (redis.client(), redis.client());
    told.cmd("SUBSCRIBE rescind:proxies");
    let mut elsewhere: Vec<_> = (0..5).map(|_| proxies[0].client()).collect();
    let mut pool: Vec<_> = (0..5).map(|_| proxies[1].client()).collect();
    // One misses, and its value comes over a connection that has missed the key later. Does it stay?
    let mut stays = |direct: &mut Client| {
        direct.cmd(&format!("DEL {KEY}"));
        assert_eq!(pool[0].cmd(&format!("GET {KEY}")), "$-1\r\n");
        // It shows this proxy what the other one has told, too.
        invalidate(&mut pool[4]);
        assert_eq!(pool[1].cmd(&format!("GET {KEY}")), "$-1\r\n");
        assert_eq!(pool[1].cmd(&format!("SET {KEY} old")), "+OK\r\n");
        let stays = is_there(direct, KEY);
        // No miss is left open.
        assert_eq!(pool[0].cmd(&format!("SET {KEY} old")), "+OK\r\n");
        stays
    };
    assert!(stays(&mut direct), "one at a time: who has missed it fills it");
    let is_of_pool =
        |message: String| message.contains("\nbusy\r\n") && !message.ends_with("$1\r\n1\r\n\r\n");
    for proxy in direct.list("PUBSUB CHANNELS rescind:proxy:*") {
        let busy = encode(&["busy", proxy.trim_start_matches("rescind:proxy:"), "1"]);
        assert_eq!(direct.call(&[b"PUBLISH".as_slice(), b"rescind:proxies", &busy]), ":3\r\n");
    }
    assert!(stays(&mut direct), "another host is meant");
    overlap(&mut direct, &mut elsewhere);
    eventually("it is told", || is_of_pool(told.reply()).then_some(()));
    assert!(!stays(&mut direct), "either may hold what was read for the first miss");
    // A miss alone is filled all the same, and what follows it can be cached.
    direct.cmd(&format!("DEL {KEY}"));
    let mut client = proxies[1].client();
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
    client.cmd(&format!("SET {KEY} new"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n");
}

/// A load balancer hands each request of a pool to any proxy, over any connection.
#[test]
fn strictly_a_miss_of_a_pools_connection_proves_nothing_about_what_another_proxy_has_seen() {
    for (how, stays) in [("protect", true), ("strict", false)] {
        let redis = Redis::start();
        let proxies = with_rules(&redis, 2, &protecting(how));
        let [mut one, mut another, mut third] = [(); 3].map(|()| proxies[1].client());
        // What one has missed another fills: tasks share them.
        for n in 0..20 {
            one.cmd(&format!("GET app:1:tools_{n}"));
            another.cmd(&format!("SET app:1:tools_{n} v"));
        }
        let mut direct = redis.client();
        assert_eq!(proxies[0].client().cmd(&format!("GET {KEY}")), "$-1\r\n");
        invalidate(&mut proxies[0].client());
        // Behind this the other one has heard of it.
        assert_eq!(another.cmd("TAG.OF none"), "*0\r\n");
        assert_eq!(another.cmd(&format!("GET {KEY}")), "$-1\r\n");
        assert_eq!(another.cmd(&format!("SET {KEY} old")), "+OK\r\n");
        assert_eq!(is_there(&mut direct, KEY), stays, "{how}: it may come from the first miss");
        // One of its tasks has been told of this invalidation, not the one that writes perhaps.
        invalidate(&mut third);
        third.cmd("SET app:1:home_page_data_2 old");
        assert_eq!(is_there(&mut direct, "app:1:home_page_data_2"), stays, "{how}: it has been told");
    }
}

#[test]
fn strictly_a_pool_that_is_only_presumed_caches_what_it_has_missed() {
    let redis = Redis::start();
    let proxies = with_rules(&redis, 2, &protecting("strict"));
    let (mut direct, mut writer) = (redis.client(), proxies[1].client());
    let mut pool: Vec<_> = (0..5).map(|_| proxies[1].client()).collect();
    for presumed in [false, true] {
        if presumed {
            overlap(&mut direct, &mut pool);
        }
        for client in &mut pool {
            invalidate(&mut writer);
            assert_eq!(client.cmd(&format!("GET {KEY}")), "$-1\r\n");
            assert_eq!(client.cmd(&format!("SET {KEY} new")), "+OK\r\n");
            assert_eq!(client.cmd(&format!("GET {KEY}")), "$3\r\nnew\r\n", "presumed: {presumed}");
        }
        // Without a miss only who has been told of the latest invalidation knows better.
        for (client, stays) in [(&mut pool[0], false), (&mut writer, true)] {
            assert_eq!(client.cmd("SET app:1:home_page_data_2 v"), "+OK\r\n");
            assert_eq!(is_there(&mut direct, "app:1:home_page_data_2"), stays, "presumed: {presumed}");
            direct.cmd("DEL app:1:home_page_data_2");
        }
    }
}

#[test]
fn who_goes_in_order_leaves_nothing_to_suspect() {
    let redis = Redis::start();
    let mut proxies = some(&redis, 2);
    proxies[0].signal("-TERM");
    proxies[0].wait();
    let mut client = proxies[1].client();
    client.cmd(TRIGGER);
    client.cmd(&format!("SET {KEY} v"));
    assert_eq!(client.cmd(&format!("GET {KEY}")), "$1\r\nv\r\n");
    assert!(!proxies[1].log().contains("gone without a word"));
}

#[test]
fn a_fill_is_stale_by_a_label_that_nobody_has_heard_of_yet() {
    // So many proxies; so many invalidations come between its miss and the fill.
    for (number, between, rounds) in
        [(2, 0, 200), (2, 10, 200), (2, 200, 100), (2, 2000, 10), (1, 0, 200), (1, 200, 100)]
    {
        let redis = Redis::start();
        let proxies = some(&redis, number);
        let (mut filler, mut labeller) = (proxies[0].client(), proxies[number - 1].client());
        let others: Vec<String> = (0..between).map(|n| format!("x{n}")).collect();
        labeller.cmd("TAG.WITH 1 first SET other v");
        eventually("the label is known", || {
            (filler.cmd("TAG.OF other") == "*1\r\n$5\r\nfirst\r\n").then_some(())
        });
        let mut old = 0;
        for round in 0..rounds {
            let key = &*format!("page{round}");
            filler.cmd(&format!("GET {key}"));
            labeller.cmd("TAG.INVALIDATE t");
            if between > 0 {
                let words: Vec<&str> =
                    std::iter::once("TAG.INVALIDATE").chain(others.iter().map(String::as_str)).collect();
                labeller.call(&words);
            }
            // Else its write would count as the fill of what the other has missed.
            labeller.cmd(&format!("GET {key}"));
            // At the same time: it gets its label, and what was read before.
            labeller.send(&encode(&["TAG.WITH", "1", "t", "SET", key, "new"]));
            filler.send(&encode(&["SET", key, "old"]));
            assert_eq!((filler.raw(), labeller.raw()), (b"+OK\r\n".to_vec(), b"+OK\r\n".to_vec()));
            old += u32::from(filler.cmd(&format!("GET {key}")) == "$3\r\nold\r\n");
        }
        assert_eq!(old, 0, "{number} proxies, {between} invalidations in between");
    }
}

/// Names other dependents of the same tags than the sample rules do.
const OTHER_RULES: &str = r#"
[tags]
Post = ["elsewhere:*"]
Site = ["site:*"]
[[trigger]]
keys = ["there:{name}"]
invalidate = ["{name}"]
[[trigger]]
tags = ["Post"]
invalidate = ["Site"]
"#;

/// As while new rules are rolled out.
#[test]
fn what_only_the_rules_of_one_name_is_deleted_whichever_proxy_is_told() {
    let redis = Redis::start();
    let proxies = [Proxy::start(&redis, RULES), Proxy::start(&redis, OTHER_RULES)];
    let mut direct = redis.client();
    let warns = |proxy: &Proxy| proxy.log().matches("another proxy has other [tags]").count();
    proxies.iter().for_each(|proxy| eventually("it is noticed", || (warns(proxy) == 1).then_some(())));
    let keys = [KEY, "elsewhere:1", "site:1"];
    for line in [TRIGGER, "SET there:Post 1", "TAG.INVALIDATE Post", "PUBLISH rescind:invalidate Post"] {
        let direct_too = !line.starts_with("TAG");
        let clients = proxies.iter().map(Proxy::client).chain(direct_too.then(|| redis.client()));
        for (who, mut client) in clients.enumerate() {
            keys.iter().for_each(|key| assert_eq!(direct.cmd(&format!("SET {key} v")), "+OK\r\n"));
            assert!(!client.cmd(line).starts_with('-'));
            let gone = || keys.iter().all(|key| !is_there(&mut redis.client(), key)).then_some(());
            eventually(&format!("{line} through {who}"), gone);
        }
    }
    // Who follows is not followed.
    std::thread::sleep(Duration::from_millis(300));
    let before = fan_outs(&proxies);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(fan_outs(&proxies), before);
    // One that fails is announced again and again, and followed once.
    direct.cmd("ACL SETUSER default -unlink -del");
    proxies[0].client().request(&["TAG.INVALIDATE", "Post"]);
    std::thread::sleep(Duration::from_secs(3));
    direct.cmd("ACL SETUSER default +@all");
    eventually("all is done", || {
        proxies.iter().all(|proxy| proxy.metric("rescind_journal_pending") == 0.0).then_some(())
    });
    assert!(fan_outs(&proxies) - before <= 2.0, "{}", fan_outs(&proxies) - before);
    // The rules of both are the same again.
    std::fs::write(&proxies[1].config, RULES).unwrap();
    proxies[1].signal("-HUP");
    eventually("the rules are reloaded", || {
        (proxies[1].metric("rescind_config_reloads_total{result=\"ok\"}") == 1.0).then_some(())
    });
    proxies[1].ready();
    let told = proxies[0].client().cmd("TAG.INVALIDATE Nothing");
    assert_eq!(told, ":0\r\n");
    let before = fan_outs(&proxies);
    for round in 0..20 {
        direct.cmd(&format!("SET {KEY} v"));
        invalidate(&mut proxies[round % 2].client());
    }
    assert_eq!(fan_outs(&proxies) - before, 20.0);
    assert_eq!(warns(&proxies[0]), 1);
}
