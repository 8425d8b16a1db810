//! A client in Rust, redis-rs, through the proxy. Clients in other languages are in `tests/clients`.

use std::collections::HashMap;

use redis::{Commands, Connection, Script, TypedCommands};

use crate::support::{Proxy, RULES, Redis};

/// A connection in RESP2 or RESP3.
fn connect(proxy: &Proxy, resp3: bool) -> Connection {
    let protocol = if resp3 { "resp3" } else { "resp2" };
    let url = format!("redis://127.0.0.1:{}/1?protocol={protocol}", proxy.port);
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn both(check: impl Fn(&Proxy, bool)) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    for resp3 in [false, true] {
        let mut connection = connect(&proxy, resp3);
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        check(&proxy, resp3);
    }
}

#[test]
fn commands_and_pipelines() {
    both(|proxy, resp3| {
        let mut connection = connect(proxy, resp3);
        TypedCommands::set(&mut connection, "k", "v").unwrap();
        assert_eq!(TypedCommands::get(&mut connection, "k").unwrap().as_deref(), Some("v"));
        let _: () = Commands::hset_multiple(&mut connection, "h", &[("a", 1), ("b", 2)]).unwrap();
        let all: HashMap<String, i32> = Commands::hgetall(&mut connection, "h").unwrap();
        assert_eq!(all, HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]));
        let (one, two): (i32, i32) = redis::pipe().incr("n", 1).incr("n", 1).query(&mut connection).unwrap();
        assert_eq!((one, two), (1, 2));
        let (old, new): (i32, i32) =
            redis::pipe().atomic().get("n").incr("n", 5).query(&mut connection).unwrap();
        assert_eq!((old, new), (2, 7));
        let wrong = redis::cmd("LPUSH").arg("k").arg("x").exec(&mut connection).unwrap_err();
        assert_eq!(wrong.code(), Some("WRONGTYPE"));
    });
}

#[test]
fn a_watched_key_that_changes_starts_the_transaction_again() {
    both(|proxy, resp3| {
        let (mut mine, mut other) = (connect(proxy, resp3), connect(proxy, resp3));
        let mut rounds = 0;
        let sum: (i32,) = redis::transaction(&mut mine, &["n"], |connection, pipe| {
            rounds += 1;
            let now: Option<i32> = Commands::get(connection, "n")?;
            if rounds == 1 {
                let _: () = Commands::set(&mut other, "n", 10)?;
            }
            pipe.set("n", now.unwrap_or(0) + 1).ignore().get("n").query(connection)
        })
        .unwrap();
        assert_eq!((sum.0, rounds), (11, 2));
    });
}

#[test]
fn scripts_blocking_and_messages() {
    both(|proxy, resp3| {
        let (mut one, mut other) = (connect(proxy, resp3), connect(proxy, resp3));
        let script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
        // The second time by its hash.
        for expected in [3, 6] {
            assert_eq!(script.key("s").arg(3).invoke::<i32>(&mut one).unwrap(), expected);
        }
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| {
                let popped: Option<(String, String)> = Commands::blpop(&mut one, "queue", 20.0).unwrap();
                popped
            });
            let _: () = Commands::rpush(&mut other, "queue", "job").unwrap();
            assert_eq!(blocked.join().unwrap(), Some(("queue".to_owned(), "job".to_owned())));
        });
        let mut listener = connect(proxy, resp3);
        let mut messages = listener.as_pubsub();
        messages.subscribe("news").unwrap();
        messages.psubscribe("n*").unwrap();
        let reached: i32 = Commands::publish(&mut other, "news", "hello").unwrap();
        assert_eq!(reached, 2);
        for _ in 0..2 {
            assert_eq!(messages.get_message().unwrap().get_payload::<String>().unwrap(), "hello");
        }
    });
}
