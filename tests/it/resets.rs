//! What shows in no event Redis only counts: it is noticed although the counts begin anew next to it.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const DEPENDENT: &str = "app:1:blog_posts_1";
const TRIGGER: &str = "SET app:1:model:Post:7 1";
const ON: &str = "CONFIG SET notify-keyspace-events Enxe";

/// Two, since each of them asks for the counts and thereby adds to what the other one sees.
fn beside_another(redis: &Redis) -> [Proxy; 2] {
    [Proxy::start(redis, RULES), Proxy::start(redis, RULES)]
}

/// Sends all of these at once, which Redis then executes one behind the other.
fn at_once(direct: &mut Client, lines: &[Vec<&str>]) {
    direct.send(&lines.iter().flat_map(|line| encode(line)).collect::<Vec<u8>>());
    lines.iter().for_each(|line| assert_eq!(direct.raw(), b"+OK\r\n", "{line:?}"));
}

/// Each of the proxies has asked for the counts, twice.
fn looked_at(direct: &mut Client) {
    let asked = |direct: &mut Client| {
        let stats = direct.cmd("INFO commandstats");
        let count =
            |line: &str| line.strip_prefix("cmdstat_config|get:calls=")?.split(',').next()?.parse().ok();
        stats.lines().find_map(count).unwrap_or(0u64)
    };
    let before = asked(direct);
    eventually("it has been looked", || (asked(direct) > before + 4).then_some(()));
}

fn gone_from(direct: &mut Client, db: u32) -> bool {
    direct.cmd(&format!("SELECT {db}"));
    direct.cmd(&format!("EXISTS {DEPENDENT}")) == ":0\r\n"
}

/// From then on a trigger deletes the dependent wherever it is.
fn is_noticed(proxies: &[Proxy], direct: &mut Client, what: &str) {
    for proxy in proxies {
        let mut client = proxy.client();
        eventually(what, || {
            assert_eq!(client.cmd(TRIGGER), "+OK\r\n");
            (gone_from(direct, 1) && gone_from(direct, 0)).then_some(())
        });
    }
}

#[test]
fn a_swap_beside_a_reset_is_noticed() {
    let redis = Redis::start();
    let proxies = beside_another(&redis);
    let mut direct = redis.client();
    let (reset, swap) = (vec!["CONFIG", "RESETSTAT"], vec!["SWAPDB", "0", "1"]);
    for round in 0..6 {
        direct.cmd("SELECT 1");
        direct.cmd(&format!("SET {DEPENDENT} old"));
        direct.cmd("SELECT 0");
        looked_at(&mut direct);
        proxies.iter().for_each(Proxy::ready);
        let mut lines = [reset.clone(), swap.clone()];
        if round % 3 == 2 {
            lines.reverse();
        }
        at_once(&mut direct, &lines);
        is_noticed(&proxies, &mut direct, &format!("swap {round} is noticed"));
    }
}

#[test]
fn events_that_were_off_beside_a_reset_are_missed() {
    let redis = Redis::with(&["--notify-keyspace-events", "Enxe"]);
    let proxies = beside_another(&redis);
    let mut direct = redis.client();
    for round in 0..4 {
        looked_at(&mut direct);
        proxies.iter().for_each(Proxy::ready);
        let lines = [
            vec!["CONFIG", "RESETSTAT"],
            vec!["CONFIG", "SET", "notify-keyspace-events", ""],
            vec!["SET", DEPENDENT, "old"],
            ON.split(' ').collect(),
        ];
        at_once(&mut direct, &lines);
        is_noticed(&proxies, &mut direct, &format!("gap {round} is noticed"));
    }
}

#[test]
fn old_data_that_were_loaded_beside_a_reset_do_not_stay() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let proxies = beside_another(&redis);
    let mut direct = redis.client();
    for round in 0..3 {
        direct.cmd(&format!("SET {DEPENDENT} old"));
        assert_eq!(direct.cmd("SAVE"), "+OK\r\n");
        looked_at(&mut direct);
        proxies.iter().for_each(|proxy| assert_eq!(proxy.client().cmd(TRIGGER), "+OK\r\n"));
        assert!(gone_from(&mut direct, 0));
        at_once(&mut direct, &[vec!["CONFIG", "RESETSTAT"], vec!["DEBUG", "RELOAD", "NOSAVE"]]);
        eventually(&format!("load {round} is noticed"), || gone_from(&mut direct, 0).then_some(()));
    }
}
