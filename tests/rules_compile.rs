//! What the rules say once compiled (families, prefixes, cascades), and every problem that they can have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use rescind::rules::spec::{
    FamilySpec, Located, OnInvalidate, Problem, RulesSpec, StaleFill, TagSpec, TriggerSpec,
};
use rescind::rules::{LeftOut, Rules, Tag, TriggerId, without_overlaps};

fn at(line: u32, text: &str) -> Located<String> {
    Located { value: text.to_owned(), line }
}

fn list(line: u32, texts: &[&str]) -> Vec<Located<String>> {
    texts.iter().map(|text| at(line, text)).collect()
}

fn tag(line: u32, name: &str, keys: &[&str]) -> TagSpec {
    TagSpec { name: at(line, name), keys: list(line, keys) }
}

fn family(line: u32, name: &str, keys: &[&str]) -> FamilySpec {
    FamilySpec {
        name: at(line, name),
        keys: list(line + 1, keys),
        on_invalidate: OnInvalidate::Expire,
        grace: Duration::from_secs(9),
        stale_fill: StaleFill::Off,
        fill_window: Duration::from_secs(3),
        coalesce: Duration::from_millis(250),
    }
}

fn trigger(line: u32, keys: &[&str], tags: &[&str], invalidate: &[&str]) -> TriggerSpec {
    TriggerSpec {
        line,
        name: None,
        keys: list(line + 1, keys),
        commands: Vec::new(),
        tags: list(line + 2, tags),
        invalidate: list(line + 3, invalidate),
    }
}

fn rules(spec: RulesSpec) -> Arc<Rules> {
    Arc::new(Rules::compile(&spec).unwrap())
}

fn names(rules: &Rules) -> Vec<&str> {
    rules.families().iter().map(|family| family.name.as_str()).collect()
}

#[test]
fn families_stand_in_the_order_of_the_file() {
    let rules = rules(RulesSpec {
        tags: vec![tag(10, "Post", &["home_*", "blog_*"]), tag(11, "Tool", &["home_*", "tools_*"])],
        families: vec![family(20, "home", &["home_*"]), family(2, "early", &["*_en"])],
        triggers: vec![trigger(5, &["model:{m}:*"], &[], &["{m}"])],
        ..RulesSpec::default()
    });
    assert_eq!(names(&rules), ["early", "model:{m}:*", "blog_*", "tools_*", "home", "other"]);
    let mut matcher = rules.matcher();
    let mut name = |key: &str| {
        let class = matcher.classify(0, key.as_bytes());
        rules.family(class.family).name.clone()
    };
    // Several match: the family that stands first in the file counts.
    assert_eq!(name("home_en"), "early");
    assert_eq!(name("home_de"), "home");
    assert_eq!(name("blog_en"), "early");
    assert_eq!(name("blog_"), "blog_*");
    assert_eq!(name("model:Post:1"), "model:{m}:*");
    assert_eq!(name("nothing"), "other");
    let home = &rules.families()[4];
    assert_eq!((home.on_invalidate, home.grace), (OnInvalidate::Expire, Duration::from_secs(9)));
    assert_eq!((home.stale_fill, rules.families()[2].stale_fill), (StaleFill::Off, StaleFill::Protect));
    assert_eq!(rules.families()[2].fill_window, Duration::from_secs(5));
    assert_eq!((home.coalesce, rules.families()[2].coalesce), (Duration::from_millis(250), Duration::ZERO));
}

#[test]
fn labels_of_triggers() {
    let mut named = trigger(1, &["a", "b"], &[], &["x"]);
    named.name = Some(at(2, "model saved"));
    let spec = RulesSpec {
        triggers: vec![named, trigger(5, &["a", "c:*"], &[], &["y"]), trigger(9, &[], &["x"], &["z"])],
        ..RulesSpec::default()
    };
    let rules = rules(spec);
    let labels: Vec<_> = rules.triggers().iter().map(|trigger| trigger.label.as_str()).collect();
    assert_eq!(labels, ["model saved", "a", "x"]);
}

#[test]
fn prefixes_to_track() {
    let rules = rules(RulesSpec {
        prefix: "app:1:".to_owned(),
        tags: vec![tag(1, "T", &["home_*", "post:{id}:*"])],
        families: vec![family(3, "f", &["zone[12]*"])],
        triggers: vec![
            trigger(10, &["model:{m}:{pk}", "model:x*"], &[], &["T"]),
            trigger(20, &["*"], &[], &["T"]),
            trigger(30, &["post:*", "zo*", "poster*"], &[], &["T"]),
        ],
        ..RulesSpec::default()
    });
    let tracking = rules.tracking_prefixes();
    let expected: Vec<Vec<u8>> = vec![b"app:1:model:".to_vec(), b"app:1:poster".to_vec()];
    assert_eq!(tracking.prefixes, expected);
    let left_out = |trigger, prefix: &[u8]| LeftOut { trigger: TriggerId(trigger), prefix: prefix.to_vec() };
    assert_eq!(
        tracking.left_out,
        [left_out(1, b"app:1:"), left_out(2, b"app:1:post:"), left_out(2, b"app:1:zo")]
    );
    let joined = without_overlaps(vec![b"rescind:x".to_vec(), b"b".to_vec(), b"rescind:".to_vec()]);
    assert_eq!(joined, [b"b".to_vec(), b"rescind:".to_vec()]);
}

#[test]
fn globs_for_scan() {
    let rules = rules(RulesSpec {
        prefix: "a[p]p*:".to_owned(),
        tags: vec![tag(1, "T{x}", &["po\\*st:{x}", "po\\*rt:?{x*}"]), tag(2, "U", &["po\\*st:{x}"])],
        families: vec![family(3, "f", &["unrelated"])],
        ..RulesSpec::default()
    });
    let globs: Vec<Vec<u8>> = vec![b"a[p]p*:po\\*rt:??*".to_vec(), b"a[p]p*:po\\*st:?*".to_vec()];
    assert_eq!(rules.scan_patterns(), globs);
    assert_eq!(rules.scan_glob(), Some(b"a*".to_vec()));
    assert_eq!(Rules::empty().scan_glob(), None);
}

fn cascade(triggers: Vec<TriggerSpec>, given: &[&str]) -> (Vec<String>, Vec<u16>, bool) {
    let rules = rules(RulesSpec { triggers, ..RulesSpec::default() });
    let mut tags: Vec<Tag> = given.iter().map(|tag| Tag::from(tag.as_bytes())).collect();
    let done = rules.cascade(&mut tags);
    let names = tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
    (names, done.triggers.iter().map(|id| id.0).collect(), done.cut_short)
}

#[test]
fn cascades_close_over_cycles_and_captures() {
    let triggers = || {
        vec![
            trigger(1, &[], &["Post"], &["SiteMap", "Feed"]),
            trigger(2, &[], &["SiteMap"], &["Post"]),
            trigger(3, &[], &["post:{id}"], &["author-of:{id}", "Post"]),
            trigger(4, &[], &["never"], &["x"]),
        ]
    };
    let (tags, fired, cut_short) = cascade(triggers(), &["post:4", "post:4"]);
    assert_eq!(tags, ["post:4", "author-of:4", "Post", "SiteMap", "Feed"]);
    assert_eq!((fired, cut_short), (vec![0, 1, 2], false));
    assert!(cascade(triggers(), &["else"]).1.is_empty());
    // A cascade that ends by itself, however long.
    let (tags, _, cut_short) =
        cascade(vec![trigger(1, &[], &["dir:{up*}/{name}"], &["dir:{up}"])], &["dir:a/b/c"]);
    assert!(tags.contains(&"dir:a".to_owned()) && !cut_short, "{tags:?}");
}

#[test]
fn cascades_that_grow_for_ever_end() {
    for invalidate in [&["a{x}"][..], &["{x}{x}"], &["a{x}", "b{x}"]] {
        let (tags, fired, cut_short) = cascade(vec![trigger(1, &[], &["{x*}"], invalidate)], &["t"]);
        assert!(cut_short && tags.len() > 10);
        assert_eq!(fired, [0]);
    }
}

fn problems(spec: RulesSpec) -> Vec<(u32, String)> {
    let problems = Rules::compile(&spec).unwrap_err();
    problems.into_iter().map(|Problem { line, message }| (line, message)).collect()
}

fn only_problem(spec: RulesSpec, line: u32, words: &[&str]) {
    let all = problems(spec);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0].0, line, "{all:?}");
    for word in words {
        assert!(all[0].1.contains(word), "{word:?} is not in {:?}", all[0].1);
    }
}

fn tagged(name: &str, key: &str) -> RulesSpec {
    RulesSpec { tags: vec![tag(7, name, &[key])], ..RulesSpec::default() }
}

fn triggered(keys: &[&str], tags: &[&str], invalidate: &[&str]) -> RulesSpec {
    RulesSpec { triggers: vec![trigger(7, keys, tags, invalidate)], ..RulesSpec::default() }
}

#[test]
fn problems_of_patterns() {
    only_problem(tagged("T", ""), 7, &["empty", "`*`"]);
    only_problem(tagged("T", "a{id"), 7, &["`a{id`", "`{id`", "\\{"]);
    only_problem(tagged("T", "a{}"), 7, &["`{}`", "{id}"]);
    only_problem(tagged("T", "a{i-d}"), 7, &["`{i-d}`"]);
    only_problem(tagged("T", "{id}:{id*}"), 7, &["twice", "{id2}"]);
    only_problem(tagged("T", "a[bc"), 7, &["`a[bc`", "`[bc`", "\\["]);
    only_problem(tagged("T", "a[é]"), 7, &["`[é]`", "`?`"]);
    only_problem(triggered(&["a{"], &[], &["x"]), 8, &["\\{"]);
    only_problem(triggered(&[], &["a{"], &["x"]), 9, &["\\{"]);
}

#[test]
fn problems_of_tags() {
    only_problem(tagged("", "k"), 7, &["empty"]);
    only_problem(tagged("t:{id", "k"), 7, &["\\{"]);
    only_problem(tagged("t:*", "k"), 7, &["`t:*`", "wildcard", "\\*"]);
    only_problem(tagged("t:{id}", "k:*"), 7, &["`t:{id}`", "`k:*`", "{id}"]);
    let every = RulesSpec { tags: vec![tag(7, "t:{id}", &["k:{id}", "l:{pk}"])], ..RulesSpec::default() };
    only_problem(every, 7, &["`l:{pk}`"]);
}

#[test]
fn problems_of_the_prefix() {
    let with = |prefix: &str| RulesSpec { prefix: prefix.to_owned(), ..tagged("T", "k") };
    only_problem(with("app:{v}:"), 0, &["prefix", "{v}", "`*`"]);
    only_problem(with("app[1"), 0, &["prefix", "\\["]);
}

#[test]
fn problems_of_families() {
    let with = |families| RulesSpec { families, ..RulesSpec::default() };
    only_problem(with(vec![family(3, "a", &["x"]), family(8, "a", &["y"])]), 8, &["`a`", "line 3"]);
    only_problem(with(vec![family(3, "a", &["x"]), family(8, "b", &["x"])]), 9, &["`x`", "`a`"]);
    only_problem(with(vec![family(3, "other", &["x"])]), 3, &["other"]);
    only_problem(with(vec![family(3, "", &["x"])]), 3, &["name = "]);
    only_problem(with(vec![family(3, "a", &[])]), 3, &["keys = "]);
    // A pattern without a family is one of its own, named as it is written.
    let tagged = |families| RulesSpec { tags: vec![tag(9, "T", &["x*"])], families, ..RulesSpec::default() };
    only_problem(tagged(vec![family(3, "x*", &["y*"])]), 3, &["`x*`", "line 9", "another name"]);
    rules(tagged(vec![family(3, "x*", &["x*", "y*"])]));
    rules(tagged(vec![family(3, "a", &["x*"]), family(5, "x*", &["y*"])]));
}

#[test]
fn no_pattern_is_for_keys_of_the_proxy_itself() {
    let tagged = |prefix: &str, key: &str| RulesSpec {
        prefix: prefix.to_owned(),
        tags: vec![tag(9, "T", &[key])],
        ..RulesSpec::default()
    };
    only_problem(tagged("", "rescind:tag:*"), 9, &["`rescind:tag:*`", "`rescind:`", "other keys"]);
    only_problem(tagged("res", "cind:{x}"), 9, &["`cind:{x}`"]);
    only_problem(tagged("rescind:", "x"), 0, &["the prefix", "another prefix"]);
    only_problem(triggered(&["rescind:{x*}"], &[], &["{x*}"]), 8, &["`rescind:{x*}`"]);
    // These match other keys as well.
    rules(tagged("*:", "rescind:x"));
    rules(tagged("rescind", "*"));
}

#[test]
fn problems_of_triggers() {
    only_problem(triggered(&[], &[], &["x"]), 7, &["keys", "tags"]);
    only_problem(triggered(&["a"], &["b"], &["x"]), 7, &["both", "two triggers"]);
    only_problem(triggered(&["a"], &[], &[]), 7, &["invalidate = "]);
    only_problem(triggered(&["m:{a}", "n:{b}"], &[], &["{a}"]), 8, &["`{a}`", "`n:{b}`"]);
    only_problem(triggered(&[], &["m:{a}", "n"], &["{a}"]), 9, &["`{a}`", "`n`"]);
    only_problem(triggered(&["a"], &[], &[""]), 10, &["empty"]);
    only_problem(triggered(&["a"], &[], &["{x*"]), 10, &["\\{"]);
    only_problem(triggered(&["http"], &[], &["x"]), 8, &["`http`", "name = "]);
    only_problem(triggered(&[], &["again"], &["x"]), 9, &["`again`"]);
    let mut named = triggered(&["http"], &[], &["x"]);
    named.triggers[0].name = Some(at(7, "TAG.INVALIDATE"));
    only_problem(named.clone(), 7, &["`TAG.INVALIDATE`"]);
    named.triggers[0].name = Some(at(7, "the key http"));
    rules(named);
    let mut commands = triggered(&[], &["a"], &["x"]);
    commands.triggers[0].commands = list(12, &["SET"]);
    only_problem(commands, 12, &["commands", "leave it out"]);
}

#[test]
fn all_problems_at_once_in_the_order_of_the_file() {
    let spec = RulesSpec {
        prefix: "{p}".to_owned(),
        tags: vec![tag(30, "t:{id}", &["a", "b{"]), tag(31, "", &["c"])],
        families: vec![family(10, "f", &["x"]), family(20, "f", &["x"])],
        triggers: vec![trigger(5, &[], &[], &[])],
        ..RulesSpec::default()
    };
    let lines: Vec<u32> = problems(spec).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [0, 5, 5, 20, 21, 30, 30, 31]);
}

#[test]
fn rules_that_name_the_same_dependents_have_the_same_fingerprint() {
    let spec = RulesSpec {
        tags: vec![tag(1, "a", &["x", "y"]), tag(2, "b", &["z"])],
        triggers: vec![trigger(3, &[], &["a"], &["b"])],
        ..RulesSpec::default()
    };
    let of = |spec: &RulesSpec| Rules::compile(spec).unwrap().fingerprint();
    let same = RulesSpec {
        tags: vec![tag(7, "b", &["z"]), tag(8, "a", &["y", "x"])],
        families: vec![family(1, "f", &["x"])],
        triggers: vec![trigger(3, &["k"], &[], &["b"]), trigger(9, &[], &["a"], &["b"])],
        ..RulesSpec::default()
    };
    assert_eq!(of(&spec), of(&same));
    for other in [
        RulesSpec { prefix: "p:".to_owned(), ..spec.clone() },
        RulesSpec { databases: Some(vec![0]), ..spec.clone() },
        RulesSpec { triggers: vec![], ..spec.clone() },
        RulesSpec { tags: vec![tag(1, "a", &["x"]), tag(2, "b", &["z", "y"])], ..spec.clone() },
    ] {
        assert_ne!(of(&spec), of(&other), "{other:?}");
    }
    assert_eq!(of(&RulesSpec::default()), Rules::empty().fingerprint());
}

#[test]
fn what_is_probably_not_meant_is_noted() {
    let mut plain = family(30, "plain", &["list:*"]);
    (plain.on_invalidate, plain.grace) = (OnInvalidate::Delete, Duration::ZERO);
    (plain.stale_fill, plain.fill_window) = (StaleFill::Protect, Duration::from_secs(5));
    plain.coalesce = Duration::ZERO;
    let mut graceful = family(5, "graceful", &["graceful"]);
    (graceful.on_invalidate, graceful.grace) = (OnInvalidate::Delete, Duration::from_secs(1));
    let spec = RulesSpec {
        prefix: "app:*:".to_owned(),
        tags: vec![tag(1, "post:{id}", &["post:{id}:*", "list:{id}"]), tag(2, "All", &["all_*"])],
        families: vec![family(10, "all", &["all_*"]), family(20, "posts", &["post:*"]), plain, graceful],
        triggers: vec![
            trigger(40, &["model:{id}"], &[], &["post:{id}"]),
            trigger(50, &["list:{id}"], &[], &["post:{id}"]),
            trigger(60, &["all_{n}"], &[], &["Any"]),
            trigger(70, &[], &["Any"], &["All"]),
        ],
        ..RulesSpec::default()
    };
    let expected = [
        "family \"graceful\": `grace` means nothing where keys are deleted",
        "family \"posts\": keys of the pattern `post:{id}:*`",
        "trigger \"all_{n}\": a key of its own such as \"app:1:all_1\" depends on the tag All",
        "trigger \"all_{n}\": the prefix \"app:\" of its keys also begins cached keys",
        "trigger \"list:{id}\": a key of its own such as \"app:1:list:1\" depends on the tag post:1",
        "trigger \"list:{id}\": the prefix",
        "trigger \"model:{id}\": the prefix",
    ];
    let notes = rules(spec).notes();
    assert_eq!(notes.len(), expected.len(), "{notes:#?}");
    notes.iter().zip(expected).for_each(|(note, begin)| assert!(note.starts_with(begin), "{notes:#?}"));
}
