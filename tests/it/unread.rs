//! No stale fill, where a key is written that its task has not read: it has missed another one, of the same page, say.

use std::time::Duration;

use crate::support::{Client, Proxy, RULES, Redis};

/// What is looked for first.
const HEADER: &str = "app:1:home_page_data_1";
/// What is written along with it.
const PAGE: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

struct World {
    _redis: Redis,
    proxy: Proxy,
    direct: Client,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, RULES);
        let direct = redis.client();
        Self { _redis: redis, proxy, direct }
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    fn invalidate(&self) {
        run(&mut self.client(), &[TRIGGER]);
    }

    fn value(&mut self, key: &str) -> String {
        self.direct.cmd(&format!("GET {key}"))
    }

    fn clear(&mut self) {
        self.direct.cmd(&format!("DEL {HEADER} {PAGE}"));
    }
}

fn run(client: &mut Client, lines: &[&str]) {
    for line in lines {
        let reply = client.cmd(line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

fn get(key: &str) -> String {
    format!("GET {key}")
}

fn set(key: &str, value: &str) -> String {
    format!("SET {key} {value}")
}

#[test]
fn a_page_is_as_old_as_the_miss_of_its_header() {
    let mut w = World::new();
    let (mut one, mut two) = (w.client(), w.client());
    run(&mut one, &[&get(HEADER)]);
    w.invalidate();
    // Another request is faster, and reads what is new.
    run(&mut two, &[&get(HEADER)]);
    run(&mut one, &[&set(HEADER, "old")]);
    run(&mut two, &[&set(HEADER, "new"), &set(PAGE, "new")]);
    assert_eq!((w.value(HEADER), w.value(PAGE)), ("$3\r\nnew\r\n".into(), "$3\r\nnew\r\n".into()));
    run(&mut one, &[&set(PAGE, "old")]);
    assert_eq!(w.value(PAGE), "$-1\r\n");
    assert_eq!(w.proxy.metric("rescind_stale_fills_total{family=\"blog_posts_*\"}"), 1.0);
    // Who finds the header there reads the page as well.
    run(&mut one, &[&get(HEADER), &get(PAGE), &set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n");
}

#[test]
fn whatever_the_order_and_the_commands() {
    let mut w = World::new();
    let mset = format!("MSET {PAGE} old {HEADER} old");
    let (page, header) = (set(PAGE, "old"), set(HEADER, "old"));
    let hash = format!("HSET {PAGE} a old");
    let ways: [&[&str]; 6] = [
        &[&page, &header],
        &[&header, &page],
        &[&mset],
        &["MULTI", &page, &header, "EXEC"],
        &["MULTI", &header, &page, "EXEC"],
        &[&hash, &header],
    ];
    for way in ways {
        let mut client = w.client();
        run(&mut client, &[&get(HEADER)]);
        w.invalidate();
        run(&mut client, way);
        assert_eq!(w.direct.cmd(&format!("EXISTS {HEADER} {PAGE}")), ":0\r\n", "{way:?}");
        // In another millisecond.
        std::thread::sleep(Duration::from_millis(2));
        run(&mut client, &[&get(HEADER)]);
        run(&mut client, way);
        assert_eq!(w.direct.cmd(&format!("EXISTS {HEADER} {PAGE}")), ":2\r\n", "{way:?}");
        w.clear();
    }
}

#[test]
fn explicit_labels_count_too() {
    let w = World::new();
    let (mut one, mut two) = (w.client(), w.client());
    run(&mut two, &["TAG.WITH 1 t SET another v"]);
    run(&mut one, &["GET header"]);
    run(&mut two, &["TAG.INVALIDATE t"]);
    run(&mut one, &["TAG.WITH 1 t SET header old", "TAG.WITH 1 t SET page old"]);
    assert_eq!(two.cmd("EXISTS header page"), ":0\r\n");
    run(&mut one, &["GET header", "TAG.WITH 1 t SET header new", "TAG.WITH 1 t SET page new"]);
    assert_eq!(two.cmd("EXISTS header page"), ":2\r\n");
}

#[test]
fn who_has_missed_nothing_or_knows_of_the_invalidation_writes_something_new() {
    let mut w = World::new();
    let (mut reader, mut worker) = (w.client(), w.client());
    run(&mut reader, &[&get(HEADER)]);
    w.invalidate();
    run(&mut worker, &[&set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n", "another connection");
    w.clear();
    run(&mut reader, &[TRIGGER, &set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n", "it has invalidated that itself");
    // What was missed before the latest miss need not have to do with it.
    w.clear();
    run(&mut worker, &[&get(HEADER)]);
    w.invalidate();
    run(&mut worker, &["GET app:1:tools_1", &set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n");
}

#[test]
fn that_another_one_has_missed_the_page_makes_it_no_newer() {
    let mut w = World::new();
    let (mut one, mut two) = (w.client(), w.client());
    w.direct.cmd(&set(PAGE, "first"));
    run(&mut one, &[&get(PAGE), &get(HEADER)]);
    w.invalidate();
    run(&mut two, &[&get(PAGE)]);
    run(&mut one, &[&set(HEADER, "old"), &set(PAGE, "old")]);
    assert_eq!(w.value(PAGE), "$-1\r\n");
    // What it has found there since is computed anew.
    w.direct.cmd(&set(PAGE, "second"));
    run(&mut one, &[&get(HEADER)]);
    w.invalidate();
    w.direct.cmd(&set(PAGE, "third"));
    std::thread::sleep(Duration::from_millis(2));
    run(&mut one, &[&get(PAGE), &set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n");
}

#[test]
fn what_counts_is_as_new_as_ever() {
    let mut w = World::new();
    let mut client = w.client();
    run(&mut client, &[&get(HEADER)]);
    w.invalidate();
    run(&mut client, &[&format!("INCR {PAGE}"), &format!("INCR {PAGE}")]);
    assert_eq!(w.value(PAGE), "$1\r\n2\r\n");
}

#[test]
fn where_tasks_share_connections_a_page_may_come_over_any_of_them() {
    let mut w = World::new();
    let mut pool: Vec<Client> = (0..4).map(|_| w.client()).collect();
    for i in 0..20 {
        run(&mut pool[0], &[&get(&format!("app:1:tools_{i}"))]);
        run(&mut pool[1], &[&set(&format!("app:1:tools_{i}"), "v")]);
    }
    run(&mut pool[0], &[&get(HEADER)]);
    w.invalidate();
    run(&mut pool[1], &[&set(HEADER, "old")]);
    run(&mut pool[2], &[&set(PAGE, "old")]);
    assert_eq!(w.direct.cmd(&format!("EXISTS {HEADER} {PAGE}")), ":0\r\n");
    // Keys with other tags have nothing to do with it.
    run(&mut w.client(), &["TAG.INVALIDATE post:1"]);
    run(&mut pool[3], &[&set("app:1:post:1:a", "new")]);
    assert_eq!(w.value("app:1:post:1:a"), "$3\r\nnew\r\n");
    // Nor has who has just invalidated them.
    run(&mut pool[3], &[TRIGGER, &set("app:1:blog_posts_2", "new")]);
    assert_eq!(w.value("app:1:blog_posts_2"), "$3\r\nnew\r\n");
    // It can be cached as soon as it is read.
    run(&mut pool[0], &[&get(PAGE)]);
    run(&mut pool[3], &[&set(PAGE, "new")]);
    assert_eq!(w.value(PAGE), "$3\r\nnew\r\n");
}
