//! What the hot path costs: rules and index.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rescind::index::Index;
use rescind::rules::spec::{Located, RulesSpec, TagSpec, TriggerSpec};
use rescind::rules::{Rules, Tag};

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

criterion_group!(core, rules, index);
criterion_main!(core);
