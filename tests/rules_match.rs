//! The matcher against naive references, and what a key means under given rules.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use proptest::prelude::*;
use rescind::rules::spec::{Located, RulesSpec, TagSpec, TriggerSpec};
use rescind::rules::{Fired, Matcher, Rules, Tag};

fn at(line: u32, text: &str) -> Located<String> {
    Located { value: text.to_owned(), line }
}

fn tag(line: u32, name: &str, keys: &[&str]) -> TagSpec {
    TagSpec { name: at(line, name), keys: keys.iter().map(|key| at(line, key)).collect() }
}

fn trigger(line: u32, keys: &[&str], commands: &[&str], invalidate: &[&str]) -> TriggerSpec {
    let list = |texts: &[&str]| texts.iter().map(|text| at(line, text)).collect::<Vec<_>>();
    TriggerSpec {
        line,
        name: None,
        keys: list(keys),
        commands: list(commands),
        tags: Vec::new(),
        invalidate: list(invalidate),
    }
}

fn matcher(spec: &RulesSpec) -> Matcher {
    Arc::new(Rules::compile(spec).unwrap()).matcher()
}

fn tags(matcher: &mut Matcher, db: u32, key: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    matcher.tags(db, key, &mut out);
    let mut names: Vec<_> = out.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
    names.sort();
    names
}

/// Redis 7.0 `stringmatchlen_impl` (util.c), without `nocase` and without the shortcut that only saves time.
fn stringmatchlen(mut pattern: &[u8], mut string: &[u8]) -> bool {
    while !pattern.is_empty() && !string.is_empty() {
        match pattern[0] {
            b'*' => {
                while pattern.get(1) == Some(&b'*') {
                    pattern = &pattern[1..];
                }
                if pattern.len() == 1 {
                    return true;
                }
                return (0..string.len()).any(|skip| stringmatchlen(&pattern[1..], &string[skip..]));
            }
            b'?' => {}
            b'[' => {
                let (accepted, rest) = class(&pattern[1..], string[0]);
                if !accepted {
                    return false;
                }
                pattern = rest;
            }
            first => {
                if first == b'\\' && pattern.len() >= 2 {
                    pattern = &pattern[1..];
                }
                if pattern[0] != string[0] {
                    return false;
                }
            }
        }
        string = &string[1..];
        pattern = &pattern[1..];
        if string.is_empty() {
            while pattern.first() == Some(&b'*') {
                pattern = &pattern[1..];
            }
            break;
        }
    }
    pattern.is_empty() && string.is_empty()
}

/// A class behind its `[`: whether it accepts the byte, and the pattern from its `]` on.
fn class(mut pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let not = pattern.first() == Some(&b'^');
    if not {
        pattern = &pattern[1..];
    }
    let mut matched = false;
    loop {
        // Redis steps back where the pattern ends inside a class; such patterns are refused here.
        assert!(!pattern.is_empty(), "unclosed class");
        if pattern[0] == b'\\' && pattern.len() >= 2 {
            pattern = &pattern[1..];
            matched |= pattern[0] == byte;
        } else if pattern[0] == b']' {
            return (matched != not, pattern);
        } else if pattern.len() >= 3 && pattern[1] == b'-' {
            let (start, end) = (pattern[0].min(pattern[2]), pattern[0].max(pattern[2]));
            pattern = &pattern[2..];
            matched |= (start..=end).contains(&byte);
        } else {
            matched |= pattern[0] == byte;
        }
        pattern = &pattern[1..];
    }
}

/// One piece of a generated pattern; the reference below tries all its splits in order.
#[derive(Clone, Debug)]
enum Piece {
    Byte(u8),
    Any,
    Class,
    Star,
    Segment,
    Rest,
}

fn written(pieces: &[Piece]) -> (String, Vec<String>) {
    let (mut text, mut names) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Byte(byte) => text.extend(['\\', char::from(*byte)]),
            Piece::Any => text.push('?'),
            Piece::Class => text.push_str("[^a]"),
            Piece::Star => text.push('*'),
            Piece::Segment | Piece::Rest => {
                let name = format!("c{}", names.len());
                let star = if matches!(piece, Piece::Rest) { "*" } else { "" };
                text.push_str(&format!("{{{name}{star}}}"));
                names.push(name);
            }
        }
    }
    (text, names)
}

fn naive(pieces: &[Piece], key: &[u8], captures: &mut Vec<Vec<u8>>) -> bool {
    let Some((piece, pieces)) = pieces.split_first() else { return key.is_empty() };
    let one = |accepts: bool, captures: &mut Vec<Vec<u8>>| accepts && naive(pieces, &key[1..], captures);
    let least = match piece {
        Piece::Byte(byte) => return one(key.first() == Some(byte), captures),
        Piece::Any => return one(!key.is_empty(), captures),
        Piece::Class => return one(key.first().is_some_and(|byte| *byte != b'a'), captures),
        Piece::Star => 0,
        Piece::Segment | Piece::Rest => 1,
    };
    for len in least..=key.len() {
        if matches!(piece, Piece::Segment) && key[..len].contains(&b':') {
            return false;
        }
        let before = captures.len();
        if least == 1 {
            captures.push(key[..len].to_vec());
        }
        if naive(pieces, &key[len..], captures) {
            return true;
        }
        captures.truncate(before);
    }
    false
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        6 => prop::sample::select(b"ab:{*".to_vec()).prop_map(Piece::Byte),
        1 => Just(Piece::Any),
        1 => Just(Piece::Class),
        2 => Just(Piece::Star),
        3 => Just(Piece::Segment),
        1 => Just(Piece::Rest),
    ];
    prop::collection::vec(piece, 1..8)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"aaabb::{*-]^c\\\xff\n".to_vec()), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn globs_match_as_in_redis(
        patterns in prop::collection::btree_set("[-ab:*?\\[\\]^\\\\]{1,9}", 1..20),
        keys in prop::collection::vec(key(), 1..20),
    ) {
        let compiles = |text: &&String| {
            let spec = RulesSpec { tags: vec![tag(1, "t", &[text])], ..RulesSpec::default() };
            Rules::compile(&spec).is_ok()
        };
        let patterns: Vec<_> = patterns.iter().filter(compiles).collect();
        let named = (0..).zip(&patterns).map(|(n, text)| tag(n, &n.to_string(), &[text]));
        let mut matcher = matcher(&RulesSpec { tags: named.collect(), ..RulesSpec::default() });
        for key in keys {
            let mut expected: Vec<_> = (0..patterns.len())
                .filter(|&n| stringmatchlen(patterns[n].as_bytes(), &key))
                .map(|n| n.to_string())
                .collect();
            expected.sort();
            prop_assert_eq!(tags(&mut matcher, 0, &key), expected, "{:?} {:?}", patterns, key);
        }
    }

    #[test]
    fn captures_take_the_first_split(all in prop::collection::vec(pieces(), 1..8), keys in prop::collection::vec(key(), 1..12)) {
        let specs = all.iter().enumerate().map(|(n, pieces)| {
            let (text, names) = written(pieces);
            let name: String = names.iter().map(|name| format!(",{{{name}}}")).collect();
            tag(1, &format!("{n}{name}"), &[&text])
        });
        let mut matcher = matcher(&RulesSpec { tags: specs.collect(), ..RulesSpec::default() });
        for key in keys {
            let mut expected = Vec::new();
            for (n, pieces) in all.iter().enumerate() {
                let mut captures = Vec::new();
                if naive(pieces, &key, &mut captures) {
                    let mut name = n.to_string().into_bytes();
                    captures.iter().for_each(|capture| { name.push(b','); name.extend(capture); });
                    expected.push(Tag::from(name));
                }
            }
            let mut got = Vec::new();
            matcher.tags(0, &key, &mut got);
            got.sort();
            expected.sort();
            prop_assert_eq!(got, expected);
        }
    }
}

fn django() -> RulesSpec {
    RulesSpec {
        prefix: "app:1:".to_owned(),
        databases: Some(vec![1, 3]),
        tags: vec![
            tag(3, "PersonalInfo", &["home_page_data_*", "personal_page_data"]),
            tag(4, "Post", &["home_page_data_*", "blog_posts_*"]),
            tag(5, "post:{id}", &["post:{id}:*", "feed:*:{id}"]),
        ],
        triggers: vec![
            trigger(20, &["model:{model}:{pk}"], &["SET", "DEL"], &["{model}", "post:{pk}"]),
            trigger(30, &["tag:{tag*}"], &[], &["{tag*}"]),
        ],
        ..RulesSpec::default()
    }
}

#[test]
fn tags_of_a_key() {
    let mut matcher = matcher(&django());
    assert_eq!(tags(&mut matcher, 1, b"app:1:home_page_data_en"), ["PersonalInfo", "Post"]);
    assert_eq!(tags(&mut matcher, 1, b"app:1:post:42:"), ["post:42"]);
    assert_eq!(tags(&mut matcher, 1, b"app:1:feed:x:y:7"), ["post:7"]);
    assert!(tags(&mut matcher, 1, b"home_page_data_en").is_empty());
    assert!(tags(&mut matcher, 2, b"app:1:home_page_data_en").is_empty());
    assert!(!tags(&mut matcher, 3, b"app:1:home_page_data_\xff\n").is_empty());
    // What the caller has already is not added again.
    let mut out = vec![Tag::from(&b"Post"[..])];
    matcher.tags(1, b"app:1:home_page_data_", &mut out);
    assert_eq!(out.len(), 2);
}

#[test]
fn non_utf8_captures_and_wildcard_prefixes() {
    let mut spec = django();
    spec.prefix = "app:*:".to_owned();
    let mut matcher = matcher(&spec);
    let mut out = Vec::new();
    matcher.tags(1, b"app:2:post:\xfe\xff:x", &mut out);
    assert_eq!(out, [Tag::from(&b"post:\xfe\xff"[..])]);
    assert_eq!(tags(&mut matcher, 1, b"app:9:home_page_data_"), ["PersonalInfo", "Post"]);
}

fn fired(matcher: &mut Matcher, db: u32, key: &[u8], command: Option<&str>) -> Vec<(u16, Vec<String>)> {
    let mut out: Vec<Fired> = Vec::new();
    matcher.fired(db, key, command, &mut out);
    let text = |tag: &Tag| String::from_utf8_lossy(tag).into_owned();
    out.iter().map(|fired| (fired.trigger.0, fired.tags.iter().map(text).collect())).collect()
}

#[test]
fn triggers_fire_by_key_and_command() {
    let mut matcher = matcher(&django());
    let both = vec![(0, vec!["Post".to_owned(), "post:42".to_owned()])];
    assert_eq!(fired(&mut matcher, 1, b"app:1:model:Post:42", Some("set")), both);
    assert_eq!(fired(&mut matcher, 1, b"app:1:model:Post:42", Some("DEL")), both);
    assert_eq!(fired(&mut matcher, 1, b"app:1:model:Post:42", None), both);
    assert!(fired(&mut matcher, 1, b"app:1:model:Post:42", Some("expire")).is_empty());
    assert!(fired(&mut matcher, 0, b"app:1:model:Post:42", Some("set")).is_empty());
    let virtual_tag = vec![(1, vec!["post:1".to_owned()])];
    assert_eq!(fired(&mut matcher, 3, b"app:1:tag:post:1", Some("incr")), virtual_tag);
    let class = matcher.classify(1, b"app:1:model:Post:42");
    assert!(class.has_triggers && !class.has_tags);
}

#[test]
fn one_trigger_with_two_matching_patterns_fires_once() {
    let mut spec = RulesSpec::default();
    spec.triggers.push(trigger(1, &["m:{x}:*", "m:*:{x}"], &[], &["{x}", "all"]));
    let mut matcher = matcher(&spec);
    let mut all = fired(&mut matcher, 0, b"m:a:b", None);
    all[0].1.sort();
    let expected: Vec<String> = ["a", "all", "b"].map(String::from).to_vec();
    assert_eq!(all, [(0, expected)]);
}

#[test]
fn no_pattern_matches_keys_of_the_proxy_itself() {
    let spec = RulesSpec {
        tags: vec![tag(1, "T", &["*", "{any*}:t", "resc*"])],
        triggers: vec![trigger(2, &["*", "*:t"], &[], &["T"])],
        ..RulesSpec::default()
    };
    let mut matcher = matcher(&spec);
    for key in ["rescind:", "rescind:tag:t", "rescind:epoch:t", "rescind:recent"] {
        let class = matcher.classify(0, key.as_bytes());
        assert_eq!(
            (class.family, class.has_tags, class.has_triggers),
            (matcher.rules().other(), false, false)
        );
        assert!(tags(&mut matcher, 0, key.as_bytes()).is_empty(), "{key}");
        assert!(fired(&mut matcher, 0, key.as_bytes(), None).is_empty(), "{key}");
    }
    for key in ["rescind", "rescind_tag", "x:rescind:t", "Rescind:t"] {
        assert_eq!(tags(&mut matcher, 0, key.as_bytes()), ["T"], "{key}");
        assert!(!fired(&mut matcher, 0, key.as_bytes(), Some("set")).is_empty(), "{key}");
    }
}

#[test]
fn thousands_of_patterns() {
    let names: Vec<String> = (0..3000).map(|n| format!("family{n}:*:{{id}}")).collect();
    let tags_of = names.iter().enumerate().map(|(n, name)| tag(n as u32, &format!("t{n}:{{id}}"), &[name]));
    let mut matcher = matcher(&RulesSpec { tags: tags_of.collect(), ..RulesSpec::default() });
    for n in (0..3000).step_by(7) {
        let key = format!("family{n}:x:y:{n}");
        assert_eq!(tags(&mut matcher, 0, key.as_bytes()), [format!("t{n}:{n}")]);
        let class = matcher.classify(0, key.as_bytes());
        assert_eq!(matcher.rules().family(class.family).name, names[n]);
        assert_eq!(matcher.classify(0, format!("familiar{n}").as_bytes()).family, matcher.rules().other());
    }
}

#[test]
fn thousands_of_patterns_that_no_automaton_can_hold() {
    // Every state of these is a different set of two thousand places: the cache overflows, the answers stay right.
    let names: Vec<String> = (0..2000).map(|n| format!("*{}*{n}*x", n % 97)).collect();
    let tags_of = names.iter().map(|name| tag(1, name.replace('*', ".").as_str(), &[name]));
    let mut matcher = matcher(&RulesSpec { tags: tags_of.collect(), ..RulesSpec::default() });
    for n in 0..60_u32 {
        let key = format!("{}-{}-{}x", n * 7919 % 1999, n * 104_729 % 1013, n * 31);
        let mut expected: Vec<_> = names
            .iter()
            .filter(|name| stringmatchlen(name.as_bytes(), key.as_bytes()))
            .map(|name| name.replace('*', "."))
            .collect();
        expected.sort();
        assert_eq!(tags(&mut matcher, 0, key.as_bytes()), expected);
    }
}

#[test]
fn no_rules() {
    let rules = Arc::new(Rules::empty());
    let mut matcher = rules.matcher();
    let class = matcher.classify(0, b"anything");
    assert_eq!((class.family, class.has_tags, class.has_triggers), (rules.other(), false, false));
    assert_eq!(rules.families().len(), 1);
    assert!(tags(&mut matcher, 0, b"anything").is_empty());
    assert!(fired(&mut matcher, 0, b"anything", None).is_empty());
}

#[test]
fn stars_match_the_empty_key() {
    for star in ["*", "**"] {
        let mut matcher = matcher(&RulesSpec { tags: vec![tag(1, "all", &[star])], ..RulesSpec::default() });
        assert_eq!(tags(&mut matcher, 0, b""), ["all"]);
    }
}

#[test]
fn a_pattern_that_matches_nothing() {
    for key in ["[]", "[]x", "a[]*"] {
        let mut matcher = matcher(&RulesSpec { tags: vec![tag(1, "t", &[key])], ..RulesSpec::default() });
        assert!(
            ["", "a", "[]", "[]x", "ab"].iter().all(|key| tags(&mut matcher, 0, key.as_bytes()).is_empty())
        );
    }
}
