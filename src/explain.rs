//! What a command would label, trigger and delete, in words: `TAG.EXPLAIN` and `rescind explain`.

use crate::command::{Command, Commands, KeyUse, Kind, Reads, TagCommand};
use crate::resp::Args;
use crate::resp::request::number;
use crate::rules::{Matcher, Tag};

/// An explanation.
#[derive(Debug, Default)]
pub struct Explanation {
    /// One statement per line.
    pub lines: Vec<String>,
    /// The tags that would be invalidated, cascades included.
    pub invalidated: Vec<Tag>,
}

/// Explains one request of a client in database `db`, from the rules alone.
pub fn explain(commands: &Commands, matcher: &mut Matcher, db: u32, args: Args<'_>) -> Explanation {
    let mut explanation = Explanation::default();
    let Some(command) = commands.find(args) else {
        let name = String::from_utf8_lossy(args.get(0).unwrap_or_default()).into_owned();
        explanation.lines.push(format!("{name}: unknown; it is forwarded, its keys are not known"));
        return explanation;
    };
    explanation.lines.push(describe(command, args));
    match command.kind {
        Kind::Tag(tag) => explain_tag(&mut explanation, commands, matcher, db, tag, args),
        Kind::Publish if args.get(1) == Some(crate::fanout::CHANNEL) => {
            let tags = crate::fanout::tags_of_message(args.get(2).unwrap_or_default());
            invalidates(&mut explanation, "the message", tags);
        }
        _ => command.keys(args, |used| explain_key(&mut explanation, matcher, db, command, used)),
    }
    cascade(&mut explanation, matcher);
    if explanation.invalidated.is_empty() {
        explanation.lines.push("invalidates nothing".to_owned());
    }
    explanation
}

fn describe(command: &Command, args: Args<'_>) -> String {
    let name = command.name.to_ascii_uppercase().replace('|', " ");
    let what = if command.is_script() {
        "a script; its keys count as written"
    } else if command.is_write() {
        "a write"
    } else if command.reads != Reads::Uncounted {
        "a read; hits and misses are counted"
    } else {
        "neither a write nor a counted read"
    };
    let arity = if command.arity_ok(args.len()) { "" } else { " (wrong number of arguments)" };
    format!("{name}: {what}{arity}")
}

fn explain_tag(
    explanation: &mut Explanation,
    commands: &Commands,
    matcher: &mut Matcher,
    db: u32,
    command: TagCommand,
    args: Args<'_>,
) {
    match command {
        TagCommand::Invalidate => {
            invalidates(explanation, "the command", args.iter().skip(1).map(Tag::from).collect());
        }
        TagCommand::With => {
            let count = args.get(1).and_then(number).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let tags: Vec<Tag> = args.iter().skip(2).take(count).map(Tag::from).collect();
            explanation.lines.push(format!("labels what the command writes: {}", names(&tags)));
            let inner = explain(commands, matcher, db, args.tail(count.saturating_add(2)));
            explanation.lines.extend(inner.lines.into_iter().filter(|line| line != "invalidates nothing"));
            explanation.invalidated.extend(inner.invalidated);
        }
        TagCommand::Add => {
            let tags: Vec<Tag> = args.iter().skip(2).map(Tag::from).collect();
            explanation.lines.push(format!("labels the key, if it exists: {}", names(&tags)));
        }
        _ => {}
    }
}

fn explain_key(
    explanation: &mut Explanation,
    matcher: &mut Matcher,
    db: u32,
    command: &Command,
    used: KeyUse<'_>,
) {
    let class = matcher.classify(db, used.key);
    let family = matcher.rules().family(class.family).name.clone();
    let mut tags = vec![];
    matcher.tags(db, used.key, &mut tags);
    let use_of_it = match (used.writes, used.reads) {
        (true, true) => "read and written",
        (true, false) => "written",
        _ => "read",
    };
    let key = String::from_utf8_lossy(used.key);
    let tags = if tags.is_empty() { "none".to_owned() } else { names(&tags) };
    explanation.lines.push(format!("key {key}: {use_of_it}; family {family}; tags: {tags}"));
    if !matcher.rules().applies_to(db) {
        let why = format!("the rules do not apply to database {db} ([keys] databases)");
        if !explanation.lines.contains(&why) {
            explanation.lines.push(why);
        }
    }
    if !used.writes {
        return;
    }
    let (mut fired, mut by_others) = (vec![], vec![]);
    matcher.fired(db, used.key, command.name_to_fire(), &mut fired);
    matcher.fired(db, used.key, None, &mut by_others);
    by_others.retain(|one| !fired.iter().any(|known| known.trigger == one.trigger));
    for one in by_others {
        let trigger = &matcher.rules().triggers()[usize::from(one.trigger.0)];
        let commands = trigger.commands.join(", ");
        let why = format!("trigger \"{}\" does not fire: its commands are {commands}", trigger.label);
        explanation.lines.push(why);
    }
    for one in fired {
        let label = matcher.rules().triggers()[usize::from(one.trigger.0)].label.clone();
        invalidates(explanation, &format!("trigger \"{label}\""), one.tags);
    }
}

fn invalidates(explanation: &mut Explanation, what: &str, tags: Vec<Tag>) {
    explanation.lines.push(format!("{what} invalidates: {}", names(&tags)));
    for tag in tags {
        if !explanation.invalidated.contains(&tag) {
            explanation.invalidated.push(tag);
        }
    }
}

fn cascade(explanation: &mut Explanation, matcher: &Matcher) {
    let before = explanation.invalidated.len();
    matcher.cascade(&mut explanation.invalidated);
    if explanation.invalidated.len() > before {
        let more = names(&explanation.invalidated[before..]);
        explanation.lines.push(format!("by cascade also: {more}"));
    }
}

fn names(tags: &[Tag]) -> String {
    tags.iter().map(|tag| String::from_utf8_lossy(tag)).collect::<Vec<_>>().join(", ")
}
