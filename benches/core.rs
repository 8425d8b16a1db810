//! What the hot path costs: framing, commands, the session, accounting, rules and index.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rescind::accounting::{Account, ReadKey, Reader, Reading, Seen, Watch};
use rescind::command::{Commands, Reads};
use rescind::index::Index;
use rescind::resp::{Args, Head, Limits, OwnedArgs, Parsed, ReplyFramer, RequestParser, encode};
use rescind::rules::spec::{Located, RulesSpec, TagSpec, TriggerSpec};
use rescind::rules::{FamilyId, Rules, Tag};
use rescind::session::Session;

fn at(text: String) -> Located<String> {
    Located { value: text, line: 1 }
}

/// As many patterns as asked for, in the proportions of a web application: prefixes, segments, infixes, triggers.
fn patterns(count: usize) -> Arc<Rules> {
    let mut spec = RulesSpec { prefix: ":1:".to_owned(), ..RulesSpec::default() };
    for n in 0..count {
        let (name, key) = match n % 5 {
            0 => (format!("Page{n}"), format!("page{n}_data_*")),
            1 => (format!("post{n}:{{id}}"), format!("post{n}:{{id}}:*")),
            2 => (format!("feed{n}:{{id}}"), format!("feed{n}:*:{{id}}")),
            3 => (format!("One{n}"), format!("statistics{n}")),
            _ => {
                spec.triggers.push(TriggerSpec {
                    line: 1,
                    name: None,
                    keys: vec![at(format!("model{n}:{{model}}:{{pk}}"))],
                    commands: vec![],
                    tags: vec![],
                    invalidate: vec![at("{model}:{pk}".to_owned())],
                });
                continue;
            }
        };
        spec.tags.push(TagSpec { name: at(name), keys: vec![at(key)] });
    }
    Arc::new(Rules::compile(&spec).unwrap())
}

fn rules(c: &mut Criterion) {
    let mut none = Arc::new(Rules::empty()).matcher();
    c.bench_function("rules/classify/none", |b| {
        b.iter(|| none.classify(0, black_box(b":1:session:0123456789abcdef01")))
    });
    for count in [10, 100, 1000] {
        let mut matcher = patterns(count).matcher();
        let mut classify = |name: &str, key: &str| {
            let id = format!("rules/classify/{count}/{name}");
            c.bench_function(&id, |b| b.iter(|| matcher.classify(0, black_box(key.as_bytes()))));
        };
        classify("hit", ":1:page5_data_0123456789abcdef");
        classify("hit_segment", ":1:post6:0123456789abcd:header");
        classify("miss_early", ":1:session:0123456789abcdef012");
        classify("miss_late", ":1:statistics3_0123456789abcde");
        // Many different keys, as in traffic, so that more than one path of the automaton is in use.
        let keys: Vec<String> =
            (0..1024).map(|n| format!(":1:post{}:{n:010}:body_x", n % count / 5 * 5 + 1)).collect();
        let mut turn = 0;
        c.bench_function(&format!("rules/classify/{count}/hit_varied"), |b| {
            b.iter(|| {
                turn = (turn + 1) % keys.len();
                matcher.classify(0, black_box(keys[turn].as_bytes()))
            });
        });
        let mut out = Vec::new();
        c.bench_function(&format!("rules/tags/{count}/captured"), |b| {
            b.iter(|| {
                out.clear();
                matcher.tags(0, black_box(b":1:post6:0123456789abcd:header"), &mut out);
                out.len()
            });
        });
    }
}

const KEYS: usize = 100_000;

fn key(n: usize) -> String {
    format!(":1:some_cached_page_{n:010}")
}

fn filled(keys: &[String], tags: &[Tag]) -> Index {
    let mut index = Index::new();
    keys.iter().for_each(|key| _ = black_box(index.add(0, key.as_bytes(), tags)));
    index
}

fn index(c: &mut Criterion) {
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let tags = [Tag::from(&b"Post"[..]), Tag::from(&b"PersonalInfo"[..])];
    let own: Vec<[Tag; 2]> =
        (0..KEYS).map(|n| [tags[0].clone(), Tag::from(format!("post:{n}").as_bytes())]).collect();
    let full = filled(&keys, &tags);

    let mut group = c.benchmark_group("index");
    group.throughput(criterion::Throughput::Elements(KEYS as u64)).sample_size(20);
    group.bench_function("insert", |b| b.iter_with_large_drop(|| filled(&keys, &tags)));
    group.bench_function("insert/own_tags", |b| {
        b.iter_with_large_drop(|| {
            let mut index = Index::new();
            keys.iter().zip(&own).for_each(|(key, tags)| _ = black_box(index.add(0, key.as_bytes(), tags)));
            index
        });
    });
    group.bench_function("remove", |b| {
        b.iter_batched_ref(
            || filled(&keys, &tags),
            |index| keys.iter().for_each(|key| drop(index.gone(0, key.as_bytes()))),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("overwrite", |b| {
        b.iter_batched_ref(
            || filled(&keys, &tags),
            |index| keys.iter().for_each(|key| _ = black_box(index.add(0, key.as_bytes(), &tags))),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("collect", |b| {
        b.iter(|| {
            let (mut cursor, mut bytes) = (Some(usize::MAX), 0);
            while let Some(at) = cursor {
                cursor = full.collect(b"Post", at, 512, &mut |found| bytes += found.key.len());
            }
            bytes
        });
    });
    group.finish();
}

/// Requests in multibulk form, one behind the other.
fn requests(requests: &[&[&str]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    requests.iter().for_each(|words| encode::request(&mut out, *words));
    out.to_vec()
}

/// Frames all requests in `bytes`; returns how many arguments they have.
fn frame(parser: &mut RequestParser, bytes: &[u8]) -> usize {
    let (mut at, mut args) = (0, 0);
    while at < bytes.len() {
        match parser.parse(&bytes[at..], &Limits::NORMAL) {
            Parsed::Request { len, inline } => {
                args += parser.args(&bytes[at..at + len], inline).len();
                at += len;
            }
            other => panic!("{other:?}"),
        }
    }
    args
}

const KEY: &str = ":1:home_page_data_0123456789";

fn framing(c: &mut Criterion) {
    let value = "v".repeat(100);
    let get: &[&str] = &["GET", KEY];
    let mget: Vec<&str> = std::iter::once("MGET").chain([KEY; 100]).collect();
    for (name, bytes) in [
        ("get", requests(&[get])),
        ("set_100", requests(&[&["SET", KEY, &value]])),
        ("get_pipeline_16", requests(&[get; 16])),
        ("mget_100", requests(&[&mget])),
        ("inline_get", format!("GET {KEY}\r\n").into_bytes()),
    ] {
        let mut parser = RequestParser::default();
        c.bench_function(&format!("framing/request/{name}"), |b| {
            b.iter(|| frame(&mut parser, black_box(&bytes)));
        });
    }
    let bulk = format!("$100\r\n{value}\r\n");
    for (name, bytes) in [
        ("ok", "+OK\r\n".to_owned()),
        ("nil", "$-1\r\n".to_owned()),
        ("int", ":1\r\n".to_owned()),
        ("bulk_100", bulk.clone()),
        ("array_100", format!("*100\r\n{}", bulk.repeat(100))),
    ] {
        let mut framer = ReplyFramer::default();
        c.bench_function(&format!("framing/reply/{name}"), |b| {
            b.iter(|| framer.advance(black_box(bytes.as_bytes()), |_, head| _ = black_box(head)).unwrap());
        });
    }
}

fn command(c: &mut Criterion) {
    let commands = Commands::builtin();
    for (name, words) in [
        ("get", vec!["GET", KEY]),
        ("set_ex", vec!["SET", KEY, "value", "EX", "300"]),
        ("mget_10", std::iter::once("MGET").chain([KEY; 10]).collect()),
        ("client_setname", vec!["CLIENT", "SETNAME", "me"]),
        ("unknown", vec!["NOSUCHCOMMAND", "x"]),
    ] {
        let owned: OwnedArgs = words.into_iter().collect();
        let find = |args: Args<'_>| commands.find(args).map_or(0, |command| command.id.0);
        c.bench_function(&format!("command/find/{name}"), |b| b.iter(|| find(black_box(owned.as_args()))));
        c.bench_function(&format!("command/keys/{name}"), |b| {
            b.iter(|| {
                let (args, mut bytes) = (black_box(owned.as_args()), 0);
                if let Some(command) = commands.find(args) {
                    command.keys(args, |used| bytes += used.key.len());
                }
                bytes
            });
        });
    }
}

fn session(c: &mut Criterion) {
    let commands = Commands::builtin();
    let owned: OwnedArgs = ["GET", KEY].into_iter().collect();
    let kind = commands.find(owned.as_args()).unwrap().kind;
    let mut session = Session::default();
    c.bench_function("session/is_plain", |b| b.iter(|| black_box(&session).is_plain()));
    c.bench_function("session/route/plain", |b| {
        b.iter(|| session.route(black_box(kind), black_box(owned.as_args()), false));
    });
}

fn accounting(c: &mut Criterion) {
    let key = ReadKey { family: FamilyId(1), counts: true, watch: Watch::Tagged, hash: 7 };
    let get = || {
        Account::Read(Reading {
            reads: Reads::Value,
            keys: [key].into_iter().collect(),
            fetches: false,
            waited: false,
        })
    };
    let keys = [key; 100].into_iter().collect();
    let mget = Account::Read(Reading { reads: Reads::PerKey, keys, fetches: false, waited: false });
    let mut reader = Reader::default();
    let mut hits = 0;
    let mut count = |_, seen| hits += u64::from(seen == Seen::Hit);
    c.bench_function("accounting/get", |b| {
        b.iter(|| {
            let account = black_box(get());
            reader.begin(&account);
            reader.on(0, black_box(&Head::Bulk(100)), &account, &mut count);
            reader.finish(account, &mut count).error
        });
    });
    c.bench_function("accounting/nothing", |b| {
        b.iter(|| {
            reader.begin(&Account::Nothing);
            reader.on(0, black_box(&Head::Simple(b"OK")), &Account::Nothing, &mut count);
            reader.finish(Account::Nothing, &mut count).error
        });
    });
    c.bench_function("accounting/mget_100", |b| {
        b.iter_batched(
            || clone_of(&mget),
            |account| {
                reader.begin(&account);
                reader.on(0, &Head::Array(100), &account, &mut count);
                (0..100).for_each(|_| reader.on(1, black_box(&Head::Bulk(100)), &account, &mut count));
                reader.finish(account, &mut count).error
            },
            BatchSize::SmallInput,
        );
    });
}

fn clone_of(account: &Account) -> Account {
    match account {
        Account::Read(reading) => Account::Read(reading.clone()),
        _ => Account::Nothing,
    }
}

criterion_group!(core, framing, command, session, accounting, rules, index);
criterion_main!(core);
