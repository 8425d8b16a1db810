//! What fuzzers call: one function per target, which panics if something that must hold does not.
//!
//! `fuzz/` hands them to libFuzzer, `tests/fuzz.rs` runs them for a short time on mutated samples. Not part of
//! the interface.

use std::sync::{Arc, LazyLock};

use crate::command::{Commands, Kind};
use crate::config::{self, Flags};
use crate::resp::{Args, Head, Limits, OwnedArgs, Parsed, ReplyFramer, RequestParser};
use crate::rules::spec::{FamilySpec, Located, OnInvalidate, RulesSpec, StaleFill, TagSpec, TriggerSpec};
use crate::rules::{Rules, Tag};
use crate::session::{Effect, Route, Session, SubscriptionKind};

static COMMANDS: LazyLock<Commands> = LazyLock::new(Commands::builtin);

/// Requests: however the bytes arrive, the same requests come out, and memory follows the bytes.
///
/// The first byte chooses the portions and the limits.
pub fn request(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let limits = if choice & 1 == 0 { Limits::NORMAL } else { Limits::UNAUTHENTICATED };
    let whole = requests(data, data.len().max(1), &limits);
    assert_eq!(requests(data, usize::from(choice >> 1) + 1, &limits), whole);
}

/// The arguments of every request in `data`, where it ended and how.
fn requests(data: &[u8], step: usize, limits: &Limits) -> (Vec<Vec<Vec<u8>>>, usize, Parsed) {
    let (mut parser, mut found, mut start, mut end) = (RequestParser::default(), vec![], 0, 0);
    loop {
        let buf = &data[start..end];
        let parsed = parser.parse(buf, limits);
        assert!(parser.spans().len() <= buf.len() / 2 + 1, "more arguments than bytes for them");
        match parsed {
            Parsed::Request { len, inline } => {
                let args = parser.args(&buf[..len], inline);
                assert!(args.iter().map(<[u8]>::len).sum::<usize>() <= len, "arguments overlap");
                found.push(args.iter().map(<[u8]>::to_vec).collect());
                start += len;
            }
            Parsed::Nothing { len } => {
                assert!(len > 0, "no progress");
                start += len;
            }
            Parsed::Incomplete if end < data.len() => end = (end + step).min(data.len()),
            Parsed::Incomplete | Parsed::Error(_) => return (found, start, parsed),
        }
    }
}

/// Replies: however the bytes arrive, the same ends and heads come out, and another decoder agrees.
///
/// The first byte chooses the portions.
pub fn reply(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let whole = replies(data, data.len().max(1));
    assert_eq!(replies(data, usize::from(choice) + 1), whole);
    // The other decoder recurses: what is deep is not for it.
    let shallow = whole.heads.iter().all(|(depth, _)| *depth < 16);
    if let (Some(end), true) = (whole.ends.first(), shallow)
        && let Ok(Some((_, length))) = redis_protocol::resp3::decode::complete::decode_range(data)
    {
        assert_eq!(*end, length, "another decoder finds another end");
    }
}

/// What was found in some bytes.
#[derive(Debug, Default, PartialEq)]
struct Replies {
    ends: Vec<usize>,
    heads: Vec<(u32, String)>,
    refused: bool,
}

fn replies(data: &[u8], step: usize) -> Replies {
    let (mut framer, mut found, mut from, mut end) = (ReplyFramer::default(), Replies::default(), 0, 0);
    loop {
        let heads = &mut found.heads;
        let on = |depth, head: &Head<'_>| heads.push((depth, format!("{head:?}")));
        let Ok(progress) = framer.advance(&data[from..end], on) else {
            found.refused = true;
            return found;
        };
        from += progress.consumed;
        if progress.done {
            assert!(progress.consumed > 0, "a reply of no bytes");
            found.ends.push(from);
        } else if end < data.len() {
            end = (end + step).min(data.len());
        } else {
            return found;
        }
    }
}

/// A session: requests and replies in any order leave it consistent.
///
/// Every line is a request; its first byte says how many outstanding replies arrive before it, and how.
pub fn session(data: &[u8]) {
    let mut session = Session::default();
    let mut outstanding: Vec<Effect> = vec![];
    for line in data.split(|byte| *byte == b'\n') {
        let Some((&choice, request)) = line.split_first() else { continue };
        for n in 0..usize::from(choice & 3).min(outstanding.len()) {
            let head =
                if usize::from(choice >> 2) & (1 << n) == 0 { Head::Simple(b"OK") } else { Head::Error(b"") };
            answer(&mut session, outstanding.remove(0), &head);
        }
        let owned: OwnedArgs = request.split(|byte| *byte == b' ').collect();
        let args = owned.as_args();
        let command = COMMANDS.find(args);
        let kind = command.map_or(Kind::Plain, |command| command.kind);
        let had_state = session.needs_own();
        match session.route(kind, args, command.is_some_and(|command| command.blocks(args))) {
            Route::Forward(forward) => {
                assert!(forward.own || !(had_state || session.needs_own()), "state and shared");
                assert!(!forward.queued || session.in_multi(), "queued outside MULTI");
                outstanding.push(forward.effect);
            }
            Route::Local(crate::session::Local::Reset { .. }) => {
                outstanding.clear();
                session.reset();
                assert!(session.is_plain());
            }
            Route::Silence => _ = session.client_reply(args),
            _ => assert_eq!(session.needs_own(), had_state, "{kind:?} is none of Redis's business"),
        }
        assert!(
            !(session.is_plain()
                && (session.in_multi() || session.has_subscriptions() || session.is_blocked()))
        );
    }
    outstanding.into_iter().for_each(|effect| answer(&mut session, effect, &Head::Error(b"")));
    assert!(!session.is_blocked());
}

fn answer(session: &mut Session, effect: Effect, head: &Head<'_>) {
    if let Effect::Subscription { kind, confirms } = &effect
        && !head.is_error()
    {
        let confirms = confirms.unwrap_or_else(|| session.confirmations(*kind));
        assert!(confirms > 0, "something is always answered");
        session.confirmed(*kind, confirms);
        session.confirmed(SubscriptionKind::Channel, 0);
    }
    session.replied(effect, head);
}

/// Commands: whatever the arguments, keys are arguments and the work is bounded by them.
///
/// Arguments end at NUL bytes.
pub fn command_keys(data: &[u8]) {
    let owned: OwnedArgs = data.split(|byte| *byte == 0).collect();
    let args = owned.as_args();
    let Some(command) = COMMANDS.find(args) else { return };
    let mut visits = 0;
    command.keys(args, |used| {
        visits += 1;
        assert!(used.index > 0, "{}: the name is no key", command.name);
        assert_eq!(args.get(used.index), Some(used.key), "{}", command.name);
        assert!(!used.deletes || used.writes, "{}", command.name);
    });
    assert!(visits <= 2 * args.len(), "{}: {visits} visits of {} arguments", command.name, args.len());
    assert!(visits == 0 || command.has_keys(), "{}", command.name);
    check_reply_side(command, args);
}

fn check_reply_side(command: &crate::command::Command, args: Args<'_>) {
    let condition = command.fire_condition(args);
    // What a script has done before it failed stays.
    let error = Head::Error(if command.is_script() { b"NOSCRIPT" } else { b"ERR" });
    assert!(!condition.fired(&error), "{}: an error fires", command.name);
    assert!(!command.blocks(args) || matches!(command.kind, Kind::Blocking | Kind::Wait), "{}", command.name);
    let _ = (command.other_db(args), command.arity_ok(args.len()));
}

/// Rules: whatever compiles answers all questions alike.
///
/// Lines: `p` the prefix, `t` a tag, `f` a family, `g` a trigger on keys, `c` a cascade, each with the patterns
/// behind its name separated by spaces; any other line is a key.
pub fn rules(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut spec = RulesSpec::default();
    let mut keys = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.get(1..).unwrap_or_default().split(' ').filter(|word| !word.is_empty());
        let mut next = || words.next().map(|word| Located { value: word.to_owned(), line: number });
        match (line.bytes().next(), next()) {
            (Some(b'p'), Some(prefix)) => spec.prefix = prefix.value,
            (Some(b't'), Some(name)) => {
                spec.tags.push(TagSpec { name, keys: std::iter::from_fn(next).collect() });
            }
            (Some(b'f'), Some(name)) => spec.families.push(family(name, std::iter::from_fn(next).collect())),
            (Some(kind @ (b'g' | b'c')), Some(name)) => {
                spec.triggers.push(trigger(kind, name, std::iter::from_fn(next).collect()));
            }
            _ => keys.push(line.as_bytes()),
        }
    }
    match Rules::compile(&spec) {
        Ok(rules) => ask(&Arc::new(rules), &keys),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            problems.iter().for_each(|problem| assert!(!problem.message.is_empty()));
        }
    }
}

fn family(name: Located<String>, keys: Vec<Located<String>>) -> FamilySpec {
    FamilySpec {
        name,
        keys,
        on_invalidate: OnInvalidate::Delete,
        grace: std::time::Duration::ZERO,
        stale_fill: StaleFill::Protect,
        fill_window: std::time::Duration::from_secs(5),
        coalesce: std::time::Duration::ZERO,
    }
}

fn trigger(kind: u8, invalidates: Located<String>, on: Vec<Located<String>>) -> TriggerSpec {
    let (keys, tags) = if kind == b'g' { (on, vec![]) } else { (vec![], on) };
    let line = invalidates.line;
    TriggerSpec { line, name: None, keys, commands: vec![], tags, invalidate: vec![invalidates] }
}

fn ask(rules: &Arc<Rules>, keys: &[&[u8]]) {
    let (mut matcher, mut all) = (rules.matcher(), vec![]);
    for key in keys {
        let class = matcher.classify(0, key);
        assert!(usize::from(class.family.0) < rules.families().len());
        let (mut tags, mut fired) = (vec![], vec![]);
        matcher.tags(0, key, &mut tags);
        matcher.fired(0, key, None, &mut fired);
        assert!(class.has_tags || tags.is_empty(), "tags without notice");
        assert!(class.has_triggers || fired.is_empty(), "triggers without notice");
        assert!(no_tag_twice(&tags) && fired.iter().all(|one| no_tag_twice(&one.tags)));
        // The cache of the automaton must not change answers.
        assert_eq!(rules.matcher().classify(0, key), class);
        all.extend(tags);
        all.extend(fired.into_iter().flat_map(|one| one.tags));
    }
    all.sort_unstable();
    all.dedup();
    rules.cascade(&mut all);
    assert!(no_tag_twice(&all));
}

fn no_tag_twice(tags: &[Tag]) -> bool {
    let mut sorted: Vec<&Tag> = tags.iter().collect();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// A configuration file: whatever stands in it, every problem is shown with its line.
pub fn config(data: &[u8]) {
    const NO_VARIABLES: [(&str, &str); 0] = [];
    let loaded = config::parse("f", data, NO_VARIABLES, &Flags::default());
    let problems = Rules::compile(&loaded.config.rules).err().unwrap_or_default();
    // Text that does not end in a line break has one line more than line breaks.
    let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
    match loaded.finish(problems) {
        Ok(config) => assert!(!config.listen.address.is_empty()),
        Err(errors) => {
            assert!(!errors.problems.is_empty());
            for problem in &errors.problems {
                assert!(!problem.message.is_empty());
                if let config::Place::Line(line) = problem.place {
                    assert!((1..=lines).contains(&(line as usize)), "line {line} of {lines}");
                }
            }
            assert_eq!(errors.to_string().lines().count(), errors.problems.len(), "{errors}");
        }
    }
}

/// Files of the journal: whatever stands in them is survived, and means the same when it is written again.
pub fn journal(data: &[u8]) {
    crate::journal::reread(data);
}
