//! The layers of the crate: who may know whom, held by the `use` lines.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules from the bottom to the top: each may know those before it, never those behind it. This is the map
/// of `src/lib.rs`, with each part placed above all that it needs.
const ORDER: [&str; 37] = [
    // Pure: plain values in, plain values out.
    "resp",
    "command",
    "rules",
    "news",
    "doubt",
    "lease",
    "peers",
    "index",
    "session",
    "accounting",
    // How fan-outs are asked for.
    "fanout",
    // Pure as well; it quotes what `fanout` says about messages.
    "explain",
    // Assembly: what is configured.
    "config",
    "cli",
    // Sockets, processes and numbers that know nothing of Redis.
    "net",
    "descriptors",
    "spawn",
    "failpoint",
    "logging",
    "relay",
    "metrics",
    // The log of invalidations: a folder, a thread, no sockets.
    "journal",
    "admin",
    // What all threads share.
    "process",
    // A worker's parts.
    "backlog",
    "outbox",
    "standing",
    "context",
    "upstream",
    "client",
    // The control thread.
    "control",
    "worker",
    "status",
    // Assembly: everything.
    "app",
    "main",
    // On no path of the proxy.
    "fuzzing",
    "lib",
];

/// Tested with plain values, knowing no sockets and no clock.
const PURE: [&str; 11] = [
    "resp",
    "command",
    "rules",
    "doubt",
    "lease",
    "peers",
    "index",
    "session",
    "accounting",
    "news",
    "explain",
];

/// Likewise, in modules that otherwise do.
const PURE_FILES: [&str; 5] =
    ["journal/decode.rs", "journal/recent.rs", "journal/record.rs", "journal/state.rs", "process/lead.rs"];

/// What a pure module may not touch besides modules above it.
const IMPURE: [&str; 11] = [
    "tokio",
    "socket2",
    "axum",
    "std::net",
    "std::io",
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "Instant",
    "SystemTime",
];

/// Known exceptions: a pure module and what it uses all the same. One that is no longer needed must go.
const EXCEPTIONS: [(&str, &str); 1] = [
    // The name of the channel and the reading of its messages, which belong together.
    ("explain", "fanout"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module that a file belongs to: `resp` for `src/resp/head.rs`.
fn module(path: &Path, root: &Path) -> String {
    let first = path.strip_prefix(root).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The code of a file without comments and without its tests, which stand last.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
}

/// The first names behind `prefix` (`crate::`, `rescind::`) wherever it stands, also of `crate::{a, b::c}`.
fn names_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let name =
        |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in code.split(prefix).skip(1) {
        match rest.strip_prefix('{') {
            None => drop(found.insert(name(rest))),
            Some(group) => found.extend(top_level(group).iter().map(|part| name(part))),
        }
    }
    found.into_iter().filter(|name| !name.is_empty()).collect()
}

/// The parts of `a, b::{c, d}, e}…` up to the brace that closes the group.
fn top_level(group: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts.iter().map(|part| part.trim_start_matches(',').to_owned()).collect()
}

/// Every module with the modules it names and the files that name them.
fn dependencies() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    sources(&root, &mut files);
    assert!(files.len() > 50, "the sources are elsewhere");
    let mut all: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for path in files.into_iter().filter(|path| !is_test(path)) {
        let own = module(&path, &root);
        let prefix = if own == "main" { "rescind::" } else { "crate::" };
        let names = names_behind(&code(&path), prefix);
        let entry = all.entry(own.clone()).or_default();
        names.into_iter().filter(|name| *name != own).for_each(|name| _ = entry.insert(name, path.clone()));
    }
    all
}

fn place(module: &str) -> usize {
    ORDER
        .iter()
        .position(|known| *known == module)
        .unwrap_or_else(|| panic!("`{module}` has no place in ORDER"))
}

#[test]
fn modules_know_only_what_is_below_them() {
    let mut wrong = vec![];
    for (module, used) in dependencies() {
        for (other, path) in used {
            if place(&other) >= place(&module) {
                wrong.push(format!("{module} uses {other} in {}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the order:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_its_place() {
    let modules: BTreeSet<String> = dependencies().into_keys().collect();
    let placed: BTreeSet<String> = ORDER.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(modules, placed);
    assert_eq!(placed.len(), ORDER.len(), "a module stands twice");
}

#[test]
fn pure_modules_know_no_others() {
    let all = dependencies();
    let mut wrong = vec![];
    for pure in PURE {
        for (other, path) in &all[pure] {
            if !PURE.contains(&other.as_str()) && !EXCEPTIONS.contains(&(pure, other)) {
                wrong.push(format!("{pure} uses {other} in {}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "no longer pure:\n{}", wrong.join("\n"));
    for (pure, other) in EXCEPTIONS {
        assert!(all[pure].contains_key(other), "the exception of {pure} for {other} is no longer needed");
    }
}

#[test]
fn pure_modules_touch_no_sockets_and_no_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    sources(&root, &mut files);
    let mut wrong = vec![];
    for path in files {
        let is_pure_file = PURE_FILES.iter().any(|file| path.ends_with(file));
        if !PURE.contains(&module(&path, &root).as_str()) && !is_pure_file {
            continue;
        }
        let code = code(&path);
        // `use std::{net::…}` would hide what it imports.
        let grouped = code.contains("use std::{").then_some("use std::{");
        let found = IMPURE.iter().copied().filter(|word| has_word(&code, word)).chain(grouped);
        wrong.extend(found.map(|word| format!("{word} in {}", path.display())));
    }
    assert!(wrong.is_empty(), "not pure:\n{}", wrong.join("\n"));
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let in_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !in_name(before) && !in_name(after)
    })
}

#[test]
fn imports_are_found_however_they_are_written() {
    let found = |code: &str| names_behind(code, "crate::").into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found("use crate::resp::{Args, Head};\nlet x = crate::fanout::CHANNEL;"), "fanout resp");
    assert_eq!(found("use crate::{net, rules::{Tag, spec}, status};"), "net rules status");
    assert!(has_word("use std::time::{Duration, Instant};", "Instant"));
    assert!(!has_word("Instantly tokio_free", "Instant") && !has_word("tokio_free", "tokio"));
}
