//! What a command would label, trigger and delete, in words: `TAG.EXPLAIN` and `rescind explain`.

use crate::command::{Command, Commands, EMPTY_TAG, KeyUse, Kind, Reads, TagCommand, with_parts};
use crate::resp::Args;
use crate::rules::{Matcher, Tag, unique};

/// An explanation.
#[derive(Debug, Default)]
pub struct Explanation {
    /// One statement per line.
    pub lines: Vec<String>,
    /// The tags that would be invalidated, cascades included.
    pub invalidated: Vec<Tag>,
    /// The keys that would be written, with their tags.
    written: Vec<(String, Vec<Tag>)>,
}

/// Explains one request of a client in database `db`, from the rules, and from what `labels` says of the explicit labels of
/// keys.
pub fn explain(
    commands: &Commands,
    matcher: &mut Matcher,
    db: u32,
    args: Args<'_>,
    labels: &mut dyn FnMut(&[u8]) -> Vec<Tag>,
) -> Explanation {
    let mut explanation = Explanation::default();
    let Some(command) = commands.find(args) else {
        let name = shown(args.get(0).unwrap_or_default());
        explanation.lines.push(format!("{name}: unknown; it is forwarded, its keys are not known"));
        return explanation;
    };
    explanation.lines.push(describe(command));
    match (refusal(commands, command, args), command.kind) {
        (Some(why), _) => explanation.lines.push(format!("is refused: {why}")),
        (None, Kind::Tag(tag)) => explain_tag(&mut explanation, commands, matcher, db, tag, args, labels),
        (None, Kind::Publish) if args.get(1) == Some(crate::fanout::CHANNEL) => {
            let tags = crate::fanout::tags_of_message(args.get(2).unwrap_or_default());
            invalidates(&mut explanation, "the message", tags);
        }
        _ => {
            let written_in = command.written_in(args, db);
            command.keys(args, |used| {
                let here = [db];
                let used = KeyUse { writes: used.writes && !command.only_reads(args), ..used };
                for at in if used.writes { written_in.as_slice() } else { &here } {
                    if *at == db {
                        explain_key(&mut explanation, matcher, db, command, used, labels);
                    } else {
                        // Those of its own database are known only.
                        explanation.lines.push(format!("in database {at}:"));
                        explain_key(&mut explanation, matcher, *at, command, used, &mut |_| vec![]);
                    }
                }
            });
        }
    }
    cascade(&mut explanation, matcher);
    gone_at_once(&mut explanation);
    if explanation.invalidated.is_empty() {
        explanation.lines.push("invalidates nothing".to_owned());
    }
    explanation
}

/// Why the request is not run at all, as far as its words tell.
fn refusal(commands: &Commands, command: &Command, args: Args<'_>) -> Option<String> {
    if !command.arity_ok(args.len()) {
        return Some("wrong number of arguments".to_owned());
    }
    let text = |error: &str| error.trim_start_matches("ERR ").to_owned();
    let empty = |skip| args.iter().skip(skip).any(<[u8]>::is_empty).then(|| text(EMPTY_TAG));
    match command.kind {
        Kind::Tag(TagCommand::With) => match with_parts(args) {
            Err(error) => Some(text(error)),
            Ok((mut tags, inner)) => {
                if tags.any(<[u8]>::is_empty) {
                    return Some(text(EMPTY_TAG));
                }
                let inner = commands.find(inner).filter(|inner| !inner.kind.may_be_labelled())?;
                Some(format!("'{}' cannot be labelled", inner.name))
            }
        },
        Kind::Tag(TagCommand::Next | TagCommand::Invalidate | TagCommand::Keys) => empty(1),
        Kind::Tag(TagCommand::Add | TagCommand::Rem) => empty(2),
        _ => None,
    }
}

fn describe(command: &Command) -> String {
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
    format!("{name}: {what}")
}

fn explain_tag(
    explanation: &mut Explanation,
    commands: &Commands,
    matcher: &mut Matcher,
    db: u32,
    command: TagCommand,
    args: Args<'_>,
    labels: &mut dyn FnMut(&[u8]) -> Vec<Tag>,
) {
    match command {
        TagCommand::Invalidate => {
            invalidates(explanation, "the command", args.iter().skip(1).map(Tag::from).collect());
        }
        TagCommand::With => {
            let Ok((tags, inner)) = with_parts(args) else { return };
            let tags: Vec<Tag> = tags.map(Tag::from).collect();
            explanation.lines.push(format!("labels what the command writes: {}", names(&tags)));
            let inner = explain(commands, matcher, db, inner, labels);
            explanation.lines.extend(inner.lines.into_iter().filter(|line| line != "invalidates nothing"));
            explanation.invalidated.extend(inner.invalidated);
            // Of what goes by rules that has been said.
            explanation.written.extend(inner.written.into_iter().map(|(key, _)| (key, tags.clone())));
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
    labels: &mut dyn FnMut(&[u8]) -> Vec<Tag>,
) {
    let class = matcher.classify(db, used.key);
    let family = matcher.rules().family(class.family).name.clone();
    let mut tags = vec![];
    matcher.tags(db, used.key, &mut tags);
    tags.extend(labels(used.key));
    unique(&mut tags);
    let use_of_it = match (used.writes, used.reads) {
        (true, true) => "read and written",
        (true, false) => "written",
        _ => "read",
    };
    let key = shown(used.key);
    let shown_tags = if tags.is_empty() { "none".to_owned() } else { names(&tags) };
    explanation.lines.push(format!("key {key}: {use_of_it}; family {family}; tags: {shown_tags}"));
    if used.writes {
        explanation.written.push((key, tags));
    }
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
    if tags.is_empty() {
        return;
    }
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

/// What the command writes may depend on what it invalidates.
fn gone_at_once(explanation: &mut Explanation) {
    let invalidated = &explanation.invalidated;
    let goes = |(_, tags): &&(String, Vec<Tag>)| tags.iter().any(|tag| invalidated.contains(tag));
    for (key, _) in explanation.written.iter().filter(goes) {
        let line = format!("key {key} depends on that itself: what is written goes at once");
        if !explanation.lines.contains(&line) {
            explanation.lines.push(line);
        }
    }
}

fn names(tags: &[Tag]) -> String {
    tags.iter().map(|tag| shown(tag)).collect::<Vec<_>>().join(", ")
}

/// The name of a key or tag as part of a line: nothing in it ends the line, or moves the cursor of a terminal.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::resp::OwnedArgs;
    use crate::rules::Rules;
    use crate::rules::spec::{RulesSpec, TagSpec, TriggerSpec};

    fn explained(request: &[&str]) -> Vec<String> {
        let owned: OwnedArgs = request.iter().collect();
        let mut matcher = Arc::new(Rules::empty()).matcher();
        let labels = &mut |key: &[u8]| if key == b"k" { vec![Tag::from(b"mine".as_slice())] } else { vec![] };
        explain(&Commands::builtin(), &mut matcher, 0, owned.as_args(), labels).lines
    }

    #[test]
    fn what_is_refused_is_not_explained_as_if_it_ran() {
        for (request, why) in [
            ("SET k", "wrong number of arguments"),
            ("TAG.INVALIDATE", "wrong number of arguments"),
            ("TAG.WITH 0 t SET k v", "numtags should be greater than 0"),
            ("TAG.WITH 9 t SET k v", "Number of tags can't be greater than number of args"),
            ("TAG.WITH 1 t TAG.ADD k u", "'tag.add' cannot be labelled"),
            ("TAG.WITH 1 t MULTI", "'multi' cannot be labelled"),
            ("TAG.WITH 1  SET k v", "a tag must not be empty"),
            ("TAG.INVALIDATE t ", "a tag must not be empty"),
            ("TAG.ADD k ", "a tag must not be empty"),
        ] {
            let lines = explained(&request.split(' ').collect::<Vec<_>>());
            assert_eq!(
                lines[1..],
                [format!("is refused: {why}"), "invalidates nothing".to_owned()],
                "{request}"
            );
        }
        let lines = explained(&["TAG.WITH", "1", "t", "SET", "k"]);
        assert!(lines.contains(&"is refused: wrong number of arguments".to_owned()), "{lines:?}");
    }

    #[test]
    fn explicit_labels_are_tags() {
        assert!(explained(&["GET", "k"])[1].ends_with("tags: mine"));
        assert!(explained(&["GET", "j"])[1].ends_with("tags: none"));
    }

    #[test]
    fn what_is_written_may_depend_on_what_it_invalidates() {
        let at = |value: &str| crate::rules::spec::Located { value: value.to_owned(), line: 1 };
        let spec = RulesSpec {
            tags: vec![TagSpec { name: at("user:{id}"), keys: vec![at("user:{id}")] }],
            triggers: vec![TriggerSpec {
                line: 1,
                name: None,
                keys: vec![at("user:{id}")],
                commands: vec![],
                tags: vec![],
                invalidate: vec![at("user:{id}")],
            }],
            ..RulesSpec::default()
        };
        let mut matcher = Arc::new(Rules::compile(&spec).unwrap()).matcher();
        for request in ["SET user:1 v", "TAG.WITH 1 t SET user:1 v", "TAG.WITH 1 user:1 SET user:1 v"] {
            let owned: OwnedArgs = request.split(' ').collect();
            let lines =
                explain(&Commands::builtin(), &mut matcher, 0, owned.as_args(), &mut |_| vec![]).lines;
            let gone = lines.iter().filter(|line| line.contains("goes at once")).count();
            assert_eq!(gone, 1, "{lines:#?}");
        }
    }

    #[test]
    fn a_label_that_is_given_counts_and_another_database_too() {
        let at = |value: &str| crate::rules::spec::Located { value: value.to_owned(), line: 1 };
        let spec = RulesSpec {
            tags: vec![TagSpec { name: at("T"), keys: vec![at("page:*")] }],
            triggers: vec![TriggerSpec {
                line: 1,
                name: None,
                keys: vec![at("post:*")],
                commands: vec![],
                tags: vec![],
                invalidate: vec![at("T")],
            }],
            databases: Some(vec![2]),
            ..RulesSpec::default()
        };
        let mut matcher = Arc::new(Rules::compile(&spec).unwrap()).matcher();
        let mut lines = |db, request: &str| {
            let owned: OwnedArgs = request.split(' ').collect();
            explain(&Commands::builtin(), &mut matcher, db, owned.as_args(), &mut |_| vec![]).lines.join("\n")
        };
        assert!(lines(2, "TAG.WITH 1 T SET post:1 v").contains("key post:1 depends on that itself"));
        for request in ["MOVE post:1 2", "COPY post:0 post:1 DB 2"] {
            let lines = lines(0, request);
            assert!(
                lines.contains("in database 2:\nkey post:1") && lines.contains("invalidates: T"),
                "{lines}"
            );
        }
        assert!(lines(2, "COPY post:0 post:1 DB 1").contains("invalidates nothing"));
    }

    #[test]
    fn no_name_ends_a_line() {
        for request in [["GET", "a\nb\x1b[2J"], ["TAG.INVALIDATE", "a\nb\x1b[2J"], ["a\nb\x1b[2J", ""]] {
            let text = explained(&request).concat();
            assert!(text.contains("a\\nb\\u{1b}[2J") && !text.contains(char::is_control), "{text}");
        }
    }
}
