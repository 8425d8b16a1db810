//! The hot path for counting instructions: `instructions CASE REPETITIONS` does one thing so many times and nothing else,
//! `instructions` alone lists the cases. `benches/instructions.py` runs it under valgrind.
//!
//! Everything happens on one thread and in a fixed order, so that the count does not depend on the machine's load.

#![allow(missing_docs, clippy::unwrap_used)]

mod relay;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use rescind::command::Commands;
use rescind::resp::{Limits, OwnedArgs, Parsed, ReplyFramer, RequestParser, encode};
use rescind::rules::Rules;
use rescind::rules::spec::{Located, RulesSpec, TagSpec, TriggerSpec};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a case does as many times as it is told.
type Case = fn(u64);

const CASES: [(&str, Case); 19] = [
    ("frame request: GET", |n| frame_request(&request(&["GET", KEY]), n)),
    ("frame request: SET of 100 bytes", |n| frame_request(&request(&["SET", KEY, VALUE]), n)),
    ("frame reply: 100 bytes", |n| frame_reply(&bulk(VALUE), n)),
    ("frame reply: 100 elements", |n| frame_reply(&elements(), n)),
    ("find command: GET", |n| find(&["GET", KEY], n)),
    ("find command: CLIENT SETINFO", |n| find(&["CLIENT", "SETINFO", "LIB-NAME", "x"], n)),
    ("match key: 10 patterns", |n| classify(10, n)),
    ("match key: 1000 patterns", |n| classify(1000, n)),
    ("relay: GET, one at a time", |n| relay::run(&request(&["GET", KEY]), &bulk(VALUE), 1, n)),
    ("relay: GET, 16 at once", |n| relay::run(&request(&["GET", KEY]), &bulk(VALUE), 16, n)),
    ("relay: GET of nothing, 16 at once", |n| relay::run(&request(&["GET", KEY]), b"$-1\r\n", 16, n)),
    ("relay: GET of an untagged key, 16 at once", |n| {
        relay::run(&request(&["GET", OTHER_KEY]), &bulk(VALUE), 16, n);
    }),
    ("relay: SET, one at a time", |n| relay::run(&request(&["SET", KEY, VALUE]), b"+OK\r\n", 1, n)),
    ("relay: SET, 16 at once", |n| relay::run(&request(&["SET", KEY, VALUE]), b"+OK\r\n", 16, n)),
    ("relay: SET of an untagged key, 16 at once", |n| {
        relay::run(&request(&["SET", OTHER_KEY, VALUE]), b"+OK\r\n", 16, n);
    }),
    ("relay: SET of a labelled key, 16 at once", |n| {
        relay::run_beside(Some(OTHER_KEY), &request(&["SET", OTHER_KEY, VALUE]), b"+OK\r\n", 16, n);
    }),
    ("relay: SET of an untagged key beside a labelled one, 16 at once", |n| {
        relay::run_beside(Some(KEY), &request(&["SET", OTHER_KEY, VALUE]), b"+OK\r\n", 16, n);
    }),
    ("relay: MSET of 10, 16 at once", |n| {
        let pairs = [[OTHER_KEY, VALUE]; 10].concat();
        relay::run(&request(&[&["MSET"], &*pairs].concat()), b"+OK\r\n", 16, n);
    }),
    ("relay: LRANGE of 100, 16 at once", |n| {
        relay::run(&request(&["LRANGE", KEY, "0", "99"]), &elements(), 16, n);
    }),
];

/// Of a family with a tag in all rules below.
const KEY: &str = "app:1:page5_data_0123456789abcdef";
/// Of no family.
const OTHER_KEY: &str = "key:000000012345";
const VALUE: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let Some(name) = words.next() else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let repetitions = words.next().and_then(|word| word.parse().ok());
    match (CASES.iter().find(|(known, _)| *known == name), repetitions) {
        (Some((_, case)), Some(repetitions)) => {
            case(repetitions);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: instructions [CASE REPETITIONS]");
            ExitCode::FAILURE
        }
    }
}

fn request(words: &[&str]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    encode::request(&mut out, words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    out.to_vec()
}

fn bulk(value: &str) -> Vec<u8> {
    format!("${}\r\n{value}\r\n", value.len()).into_bytes()
}

fn elements() -> Vec<u8> {
    [b"*100\r\n".to_vec(), bulk("xyz").repeat(100)].concat()
}

fn frame_request(bytes: &[u8], repetitions: u64) {
    let mut parser = RequestParser::default();
    for _ in 0..repetitions {
        let parsed = parser.parse(black_box(bytes), &Limits::NORMAL);
        assert!(matches!(parsed, Parsed::Request { len, .. } if len == bytes.len()));
        black_box(parser.args(bytes, false));
    }
}

fn frame_reply(bytes: &[u8], repetitions: u64) {
    let mut framer = ReplyFramer::default();
    for _ in 0..repetitions {
        let progress = framer.advance(black_box(bytes), |_, head| _ = black_box(head)).unwrap();
        assert!(progress.done);
    }
}

fn find(words: &[&str], repetitions: u64) {
    let commands = Commands::builtin();
    let owned: OwnedArgs = words.iter().collect();
    for _ in 0..repetitions {
        let command = commands.find(black_box(owned.as_args())).unwrap();
        command.keys(owned.as_args(), |used| _ = black_box(used));
    }
}

fn classify(patterns: usize, repetitions: u64) {
    let mut matcher = rules(patterns).matcher();
    for _ in 0..repetitions {
        assert!(matcher.classify(0, black_box(KEY.as_bytes())).has_tags);
    }
}

fn at(text: String) -> Located<String> {
    Located { value: text, line: 1 }
}

/// As many patterns as asked for, in the proportions of a web application: prefixes, segments, infixes, triggers.
fn rules(count: usize) -> Arc<Rules> {
    let mut spec = RulesSpec { prefix: "app:1:".to_owned(), ..RulesSpec::default() };
    for n in 0..count {
        let (name, key) = match n % 5 {
            0 => (format!("Page{n}"), format!("page{n}_data_*")),
            1 => (format!("post{n}:{{id}}"), format!("post{n}:{{id}}:*")),
            2 => (format!("feed{n}:{{id}}"), format!("feed{n}:*:{{id}}")),
            3 => (format!("One{n}"), format!("statistics{n}")),
            _ => {
                let invalidate = vec![at("{model}:{pk}".to_owned())];
                let keys = vec![at(format!("model{n}:{{model}}:{{pk}}"))];
                spec.triggers.push(TriggerSpec {
                    line: 1,
                    name: None,
                    keys,
                    commands: vec![],
                    tags: vec![],
                    invalidate,
                });
                continue;
            }
        };
        spec.tags.push(TagSpec { name: at(name), keys: vec![at(key)] });
    }
    Arc::new(Rules::compile(&spec).unwrap())
}
