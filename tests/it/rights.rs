//! What users may do changes while they are connected, and what scripts do for them besides their own commands with it; what
//! nobody can do.

use crate::support::{Client, Proxy, RULES, Redis, encode, eventually};

const KEY: &str = "app:1:home_page_data_";
const TRIGGER: &str = "SET app:1:model:Post:7 1";

/// Fills of a key by short scripts and by longer ones.
const FILLS: &[&str] = &["SET KEY v", "SET KEY v NX", "SETEX KEY 100 v"];

struct World {
    redis: Redis,
    proxy: Proxy,
    direct: Client,
    /// How many keys have been used.
    keys: usize,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, RULES);
        let direct = redis.client();
        Self { redis, proxy, direct, keys: 0 }
    }

    fn may(&mut self, rights: &str) {
        assert_eq!(self.direct.cmd(&format!("ACL SETUSER joe on >pw {rights}")), "+OK\r\n");
    }

    /// A client of the user, in a database, which has filled so often that its connection knows the scripts.
    fn joe(&mut self, db: u32) -> Client {
        let mut joe = self.proxy.client();
        assert_eq!(joe.cmd("AUTH joe pw"), "+OK\r\n");
        assert_eq!(joe.cmd(&format!("SELECT {db}")), "+OK\r\n");
        for _ in 0..2 {
            self.all_fill(&mut joe, "before");
        }
        joe
    }

    /// A key that the client has missed.
    fn missed(&mut self, client: &mut Client) -> String {
        self.keys += 1;
        let key = format!("{KEY}{}", self.keys);
        assert_eq!(client.cmd(&format!("GET {key}")), "$-1\r\n");
        key
    }

    fn all_fill(&mut self, client: &mut Client, when: &str) {
        for fill in FILLS {
            let key = self.missed(client);
            assert_eq!(client.cmd(&fill.replace("KEY", &key)), "+OK\r\n", "{fill} {when}");
            assert_eq!(client.cmd(&format!("GET {key}")), "$1\r\nv\r\n", "{fill} {when}");
        }
    }
}

#[test]
fn what_a_user_may_still_fill_is_filled_although_he_has_lost_what_scripts_need() {
    for less in ["resetkeys ~app:1:*", "-eval", "-evalsha", "-@scripting", "-select", "-pubsub", "-unlink"] {
        for db in [0, 1] {
            let mut world = World::new();
            world.may("~* &* +@all");
            let mut joe = world.joe(db);
            world.may(less);
            for _ in 0..2 {
                world.all_fill(&mut joe, less);
            }
            let mut other = world.proxy.client();
            assert_eq!(other.cmd("AUTH joe pw"), "+OK\r\n");
            world.all_fill(&mut other, less);
        }
    }
}

#[test]
fn nothing_stale_stays_of_a_user_who_may_not_undo_it_any_more() {
    let mut world = World::new();
    world.may("~* &* +@all");
    for fill in FILLS {
        let (mut joe, mut other) = (world.joe(0), world.proxy.client());
        let key = world.missed(&mut joe);
        assert_eq!(other.cmd(TRIGGER), "+OK\r\n");
        world.may("-unlink");
        assert_eq!(joe.cmd(&fill.replace("KEY", &key)), "+OK\r\n", "{fill}");
        assert_eq!(other.cmd(&format!("GET {key}")), "$-1\r\n", "{fill}");
        world.may("+unlink");
    }
}

#[test]
fn what_turned_out_to_be_stale_within_redis_goes_also_where_the_user_may_not_undo_it() {
    let mut world = World::new();
    world.may("~* &* +@all");
    let mut joe = world.joe(0);
    let key = world.missed(&mut joe);
    // Another proxy has invalidated it, and this one has not been told yet.
    for tag in ["Post", "Tool", "AITool"] {
        world.direct.cmd(&format!("SET rescind:epoch:{tag} other PX 10000"));
    }
    world.may("-unlink");
    assert!(joe.cmd(&format!("SET {key} old")).starts_with("-NOPERM"));
    eventually("it is gone", || (world.direct.cmd(&format!("EXISTS {key}")) == ":0\r\n").then_some(()));
    world.direct.cmd("DEL rescind:epoch:Post rescind:epoch:Tool rescind:epoch:AITool");
    world.all_fill(&mut joe, "afterwards");
}

#[test]
fn in_a_pipeline_and_in_transactions_rights_are_asked_for_anew_as_well() {
    let mut world = World::new();
    world.may("~* &* +@all");
    let mut joe = world.joe(0);
    let keys = [(); 4].map(|()| world.missed(&mut joe));
    world.may("resetkeys ~app:1:*");
    joe.send(&[encode(&["SET", &keys[0], "v"]), encode(&["SET", &keys[1], "v"])].concat());
    for _ in 0..2 {
        let reply = joe.reply();
        assert!(reply == "+OK\r\n" || reply.starts_with("-NOPERM"), "{reply}");
    }
    world.all_fill(&mut joe, "behind a pipeline");
    world.may("~*");
    let mut joe = world.joe(0);
    world.may("resetkeys ~app:1:*");
    for key in &keys[2..] {
        let lines = ["MULTI", &format!("SET {key} v"), "EXEC"]
            .map(|line| encode(&line.split(' ').collect::<Vec<_>>()));
        joe.send(&lines.concat());
        let replies = [joe.reply(), joe.reply(), joe.reply()];
        assert_eq!(replies[..2], ["+OK\r\n", "+QUEUED\r\n"]);
    }
    world.all_fill(&mut joe, "behind a transaction");
    assert_eq!(joe.cmd(&format!("GET {}", keys[3])), "$1\r\nv\r\n");
}

#[test]
fn refusals_of_fills_are_those_of_redis() {
    let mut world = World::new();
    world.may("~* &* +@all");
    for rights in ["resetkeys %R~app:1:* ~rescind:*", "resetkeys ~* -set -setex"] {
        let (mut joe, mut plain) = (world.joe(0), world.redis.client());
        assert_eq!(plain.cmd("AUTH joe pw"), "+OK\r\n");
        let keys: Vec<String> = FILLS.iter().map(|_| world.missed(&mut joe)).collect();
        world.may(rights);
        for (fill, key) in FILLS.iter().zip(&keys) {
            let fill = fill.replace("KEY", key);
            let refused = plain.cmd(&fill);
            assert!(refused.starts_with("-NOPERM"), "{fill}: {refused}");
            assert_eq!(joe.cmd(&fill), refused, "{fill}, {rights}");
            // Behind and before others.
            let words: Vec<&str> = fill.split(' ').collect();
            joe.send(&[encode(&["PING"]), encode(&words), encode(&["PING"])].concat());
            assert_eq!(
                [joe.reply(), joe.reply(), joe.reply()],
                ["+PONG\r\n", &refused, "+PONG\r\n"],
                "{fill}, {rights}"
            );
        }
        world.may("resetkeys ~* +@all");
    }
}

#[test]
fn what_the_server_does_not_have_it_says_in_its_own_words() {
    let redis = Redis::with(&["--rename-command", "SETEX", ""]);
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for fill in ["SETEX KEY 100 v", "HSETEX KEY FIELDS 1 f v", "MSETEX 1 KEY v", "SET KEY v"] {
        let key = format!("{KEY}1");
        let fill = fill.replace("KEY", &key);
        let answer = direct.cmd(&fill);
        direct.cmd(&format!("DEL {key}"));
        eventually("it is as without the proxy", || {
            assert_eq!(client.cmd(&format!("GET {key}")), "$-1\r\n");
            let through = client.cmd(&fill);
            direct.cmd(&format!("DEL {key}"));
            (through == answer).then_some(())
        });
    }
}
