//! Tests of the table as a whole: names, lookup, extension, and that no request makes it fail.

use super::*;
use crate::resp::OwnedArgs;
use proptest::prelude::*;
use std::collections::HashSet;

fn args(request: &str) -> OwnedArgs {
    request.split(' ').collect()
}

fn found(commands: &Commands, request: &str) -> Option<String> {
    commands.find(args(request).as_args()).map(|c| c.name.to_string())
}

#[test]
fn every_row_is_found_by_its_name() {
    let commands = Commands::builtin();
    assert_eq!(commands.len(), table::ROWS.len());
    for (i, command) in commands.iter().enumerate() {
        assert_eq!(usize::from(command.id.0), i);
        assert_eq!(commands.by_name(&command.name).map(|c| c.id), Some(command.id), "{}", command.name);
        let upper = command.name.to_uppercase().replace('|', " ");
        assert_eq!(found(&commands, &upper).as_deref(), Some(&*command.name));
        assert_eq!(commands.labels().nth(usize::from(command.metric)), Some(&*command.label));
    }
}

#[test]
fn labels_are_dense_and_distinct() {
    let commands = Commands::builtin();
    let labels: HashSet<&str> = commands.labels().collect();
    assert_eq!(labels.len(), commands.labels().len());
    assert!(labels.contains("client") && !labels.iter().any(|l| l.contains('|')));
}

#[test]
fn subcommands() {
    let commands = Commands::builtin();
    assert_eq!(found(&commands, "CLIENT SetName x").as_deref(), Some("client|setname"));
    assert_eq!(found(&commands, "client nonsense").as_deref(), Some("client"));
    assert_eq!(found(&commands, "client").as_deref(), Some("client"));
    assert_eq!(found(&commands, "GET setname").as_deref(), Some("get"));
    assert_eq!(found(&commands, "client|setname x"), None);
    assert_eq!(found(&commands, "setname x"), None);
    assert_eq!(found(&commands, ""), None);
    assert!(commands.find(OwnedArgs::default().as_args()).is_none());
}

#[test]
fn own_commands() {
    let commands = Commands::builtin();
    let with = commands.by_name("TAG.WITH").unwrap();
    assert_eq!((with.arity, with.kind), (-4, Kind::Tag(TagCommand::With)));
    assert_eq!(with.label, "tag.with");
}

#[test]
fn arity() {
    let commands = Commands::builtin();
    let ok = |name, argc| commands.by_name(name).unwrap().arity_ok(argc);
    assert!(ok("get", 2) && !ok("get", 1) && !ok("get", 3));
    assert!(ok("set", 3) && ok("set", 9) && !ok("set", 2));
}

#[test]
fn only_some_requests_block() {
    let commands = Commands::builtin();
    let blocks = |request| {
        let owned = args(request);
        commands.find(owned.as_args()).unwrap().blocks(owned.as_args())
    };
    assert!(blocks("BLPOP a 0"));
    assert!(blocks("WAIT 1 0"));
    assert!(blocks("XREAD COUNT 1 block 0 STREAMS a 0"));
    assert!(blocks("XREADGROUP GROUP g c NOACK BLOCK 0 STREAMS a 0"));
    assert!(!blocks("XREAD STREAMS block 0"));
    assert!(!blocks("XREADGROUP GROUP block streams STREAMS a 0"));
    assert!(!blocks("GET block"));
}

#[test]
fn scripts_write() {
    let commands = Commands::builtin();
    let writes = |name| commands.by_name(name).unwrap().is_write();
    assert!(writes("eval") && writes("evalsha") && writes("fcall") && writes("set"));
    assert!(!writes("eval_ro") && !writes("fcall_ro") && !writes("get") && !writes("pfcount"));
}

#[test]
fn other_databases() {
    let commands = Commands::builtin();
    let db = |request| {
        let owned = args(request);
        commands.find(owned.as_args()).unwrap().other_db(owned.as_args())
    };
    assert_eq!(db("MOVE a 3"), Some(3));
    assert_eq!(db("COPY a b REPLACE db 4"), Some(4));
    assert_eq!(db("COPY a b"), None);
    assert_eq!(db("COPY a b DB"), None);
    assert_eq!(db("RENAME a b"), None);
}

#[test]
fn a_server_may_know_more() {
    let mut commands = Commands::builtin();
    let get = commands.by_name("get").unwrap().id;
    let old = |name: &str, flag: &str, last| Described {
        name: name.to_owned(),
        arity: -2,
        flags: vec![flag.to_owned(), "module".to_owned()],
        first: 1,
        last,
        step: 1,
        ..Described::default()
    };
    let mut container = Described { name: "GRAPH.X".to_owned(), arity: -2, ..Described::default() };
    container.subcommands = vec![old("graph.x|set", "write", 2), old("get", "readonly", 1)];
    container.subcommands[0].first = 2;
    let mut client = Described { name: "client".to_owned(), ..Described::default() };
    client.subcommands = vec![old("client|newer", "fast", 0), old("client|id", "fast", 0)];
    let described = [old("JSON.Set", "write", -1), old("get", "write", 1), container, client];

    assert_eq!(commands.extend(&described), 5);
    assert_eq!(commands.extend(&described), 0);
    assert_eq!(commands.by_name("get").map(|c| (c.id, c.is_write())), Some((get, false)));
    assert_eq!(found(&commands, "CLIENT NEWER").as_deref(), Some("client|newer"));
    assert_eq!(found(&commands, "graph.x GET a").as_deref(), Some("graph.x|get"));
    assert_eq!(commands.by_name("graph.x|get").unwrap().label, "graph.x");

    let owned = args("json.set a b");
    let mut keys = Vec::new();
    let set = commands.find(owned.as_args()).unwrap();
    set.keys(owned.as_args(), |k| keys.push((k.index, k.writes)));
    assert_eq!(keys, [(1, true), (2, true)]);
    assert_eq!(set.kind, Kind::Plain);
}

#[test]
fn scripts_run_what_the_server_has() {
    let mut commands = Commands::builtin();
    let named = |name: &str| Described { name: name.to_owned(), ..Described::default() };
    let is_scripted = |commands: &Commands, name: &str| commands.by_name(name).unwrap().is_scripted;
    let all = ["set", "SETEX", "get", "hsetex"].map(named);
    assert!(commands.script_only(&all[..3]));
    assert!(!commands.script_only(&all[..3]));
    let found = ["set", "setex", "get", "hsetex"].map(|name| is_scripted(&commands, name));
    assert_eq!(found, [true, true, false, false]);
    // The server is a newer one by now.
    assert!(commands.script_only(&all));
    assert!(is_scripted(&commands, "hsetex"));
}

/// Words that mean something to some command, and some that mean nothing to any.
fn word() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "",
        "0",
        "1",
        "2",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "a",
        "k",
        "get",
        "set",
        "nx",
        "xx",
        "ifeq",
        "px",
        "store",
        "storedist",
        "keys",
        "streams",
        "block",
        "group",
        "count",
        "auth",
        "auth2",
        "copy",
        "limit",
        "by",
        "overflow",
        "incrby",
        "db",
    ];
    prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(|w| w.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn nothing_panics(at in 0usize..table::ROWS.len(), words in prop::collection::vec(word(), 0..14)) {
        let commands = Commands::builtin();
        let name = table::ROWS[at].name.split('|').map(|n| n.as_bytes().to_vec());
        for request in [words.clone(), name.chain(words).collect()] {
            let owned: OwnedArgs = request.iter().collect();
            let args = owned.as_args();
            let Some(command) = commands.find(args) else { continue };
            let mut visited = 0;
            command.keys(args, |used| {
                visited += 1;
                assert_eq!(args.get(used.index), Some(used.key));
                assert!(used.index > 0);
                assert!(!used.deletes || used.writes);
                assert!(!used.writes || command.is_write());
            });
            prop_assert!(visited <= 2 * args.len());
            command.fire_condition(args);
            command.blocks(args);
            command.other_db(args);
            command.arity_ok(args.len());
        }
    }

    #[test]
    fn specs_of_servers_never_panic(
        begin in any::<i32>(),
        (last, step, limit) in any::<(i32, i32, i32)>(),
        counted in any::<bool>(),
        small in any::<bool>(),
        words in prop::collection::vec(word(), 0..9),
    ) {
        let cut = |n: i32| if small { n % 5 } else { n };
        let find = match counted {
            true => Find::KeyNum { index: cut(last), first: cut(step), step: cut(limit) },
            false => Find::Range { last: cut(last), step: cut(step), limit: cut(limit) },
        };
        let flags = KeyFlags::RW.with(KeyFlags::UPDATE);
        let word = Begin::Keyword("keys".into(), cut(begin));
        let specs = vec![KeySpec { flags, begin: Begin::Index(cut(begin)), find }, KeySpec { flags, begin: word, find }];
        let described = Described { name: "m.x".to_owned(), arity: -1, specs, ..Described::default() };
        let mut commands = Commands::builtin();
        prop_assert_eq!(commands.extend(&[described]), 1);
        let owned: OwnedArgs = std::iter::once(b"m.x".to_vec()).chain(words).collect();
        let mut visited = 0;
        let args = owned.as_args();
        commands.find(args).unwrap().keys(args, |_| visited += 1);
        prop_assert!(visited <= 2 * args.len());
    }
}
