//! `[keys]`, `[tags]`, `[[family]]`, `[[trigger]]`: rules as written. Whether patterns and captures make sense
//! is for the compiler of the rules to say; here it is only whether everything needed is there. The prefix alone is
//! asked about here, since it may come from a variable, which only this module knows.

use std::sync::LazyLock;
use std::time::Duration;

use super::duration::parse_duration;
use super::reader::{Kind, Section, Wants};
use super::secret::shown;
use super::sections::{DURATION, whole};
use super::suggest::nearest;
use crate::command::Commands;
use crate::rules::check_prefix;
use crate::rules::spec::{FamilySpec, OnInvalidate, RulesSpec, StaleFill, TagSpec, TriggerSpec};

const DEFAULT_FILL_WINDOW: Duration = Duration::from_secs(5);
const LONGEST_COALESCE: Duration = Duration::from_secs(10);

const PREFIX: Kind<String> = Kind { wants: Wants::Text, example: r#""app:1:""#, parse: prefix };
const DATABASE: Kind<u32> = Kind { wants: Wants::Number, example: "1", parse: database };
const PATTERN: Kind<String> = Kind { wants: Wants::Text, example: r#""post:{id}:*""#, parse: not_empty };
const NAME: Kind<String> = Kind { wants: Wants::Text, example: r#""home""#, parse: not_empty };
const TAG: Kind<String> = Kind { wants: Wants::Text, example: r#""Post""#, parse: not_empty };
const COMMAND: Kind<String> = Kind { wants: Wants::Text, example: r#""SET""#, parse: command };
const ON_INVALIDATE: Kind<OnInvalidate> =
    Kind { wants: Wants::Text, example: r#""delete""#, parse: on_invalidate };
/// Whether fills are protected, and strictly.
const STALE_FILL: Kind<StaleFill> = Kind { wants: Wants::Text, example: r#""protect""#, parse: stale_fill };

const COALESCE: Kind<Duration> = Kind { wants: Wants::Text, example: r#""250ms""#, parse: coalesce };

/// All sections about rules.
pub(super) fn rules(top: &mut Section<'_>) -> RulesSpec {
    let mut keys = top.table("keys", "[keys]", Some("KEYS"));
    let prefix = keys.one("prefix", &PREFIX).map(|prefix| prefix.value).unwrap_or_default();
    let databases = keys.many("databases", &DATABASE, false);
    keys.finish();
    let tags = top.table("tags", "[tags]", None).entries(&PATTERN);
    RulesSpec {
        prefix,
        databases: databases.map(|list| list.into_iter().map(|n| n.value).collect()),
        tags: tags.into_iter().map(|(name, keys)| TagSpec { name, keys }).collect(),
        families: top.tables("family", "[[family]]").into_iter().filter_map(family).collect(),
        triggers: top.tables("trigger", "[[trigger]]").into_iter().filter_map(trigger).collect(),
    }
}

/// One family; `None` if it lacks what it needs, and that is recorded.
fn family(mut section: Section<'_>) -> Option<FamilySpec> {
    let name = section.one("name", &NAME);
    let keys = section.many("keys", &PATTERN, false);
    let on_invalidate = section.one("on_invalidate", &ON_INVALIDATE);
    let grace = section.one("grace", &DURATION);
    let stale_fill = section.one("stale_fill", &STALE_FILL).map(|choice| choice.value).unwrap_or_default();
    let fill_window = section.one("fill_window", &DURATION).map_or(DEFAULT_FILL_WINDOW, |time| time.value);
    let coalesce = section.one("coalesce", &COALESCE);
    if !section.has("name") {
        section.problem("needs a name for its metrics; write name = \"home\"");
    }
    if !section.has("keys") {
        section.problem("needs the patterns of its keys; write keys = [\"home_page_*\"]");
    }
    if stale_fill != StaleFill::Off && fill_window.is_zero() {
        section.problem("has a fill_window of 0s; write a longer time, or stale_fill = \"off\"");
    }
    section.finish();
    Some(FamilySpec {
        name: name?,
        keys: keys?,
        on_invalidate: on_invalidate.map(|choice| choice.value).unwrap_or_default(),
        grace: grace.map(|time| time.value).unwrap_or_default(),
        stale_fill,
        fill_window,
        coalesce: coalesce.map(|time| time.value).unwrap_or_default(),
    })
}

/// One trigger; `None` if it lacks what it needs, and that is recorded.
fn trigger(mut section: Section<'_>) -> Option<TriggerSpec> {
    let name = section.one("name", &NAME);
    let keys = section.many("keys", &PATTERN, false).unwrap_or_default();
    let commands = section.many("commands", &COMMAND, false).unwrap_or_default();
    let tags = section.many("tags", &TAG, false).unwrap_or_default();
    let invalidate = section.many("invalidate", &TAG, false);
    if !section.has("keys") && !section.has("tags") {
        section.problem("needs what fires it; write keys = [\"model:{model}:*\"] or tags = [\"Post\"]");
    }
    if !section.has("invalidate") {
        section.problem("needs the tags it invalidates; write invalidate = [\"Post\"]");
    }
    let line = section.line();
    section.finish();
    let invalidate = invalidate?;
    // Both may be empty although one is given, if that one was wrong.
    (!keys.is_empty() || !tags.is_empty()).then_some(TriggerSpec {
        line,
        name,
        keys,
        commands,
        tags,
        invalidate,
    })
}

fn prefix(text: &str) -> Result<String, String> {
    // A problem is one line, whatever it quotes.
    check_prefix(text).map_err(|problem| problem.replace('\n', "\\n"))?;
    any(text)
}

fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("an empty string; write at least one character".to_owned()) } else { any(text) }
}

/// The name of a command that writes. What is not known may be a module's.
fn command(text: &str) -> Result<String, String> {
    static COMMANDS: LazyLock<Commands> = LazyLock::new(Commands::builtin);
    match COMMANDS.by_name(text) {
        Some(command) if command.is_write() => any(text),
        Some(_) => Err(format!(
            "{} writes nothing, so it would never fire; write the names of commands that do",
            shown(text)
        )),
        None if text.contains('.') => any(text),
        None => {
            let names: Vec<&str> =
                COMMANDS.iter().filter(|one| one.is_write()).map(|one| &*one.name).collect();
            let meant = nearest(text, &names).map(str::to_uppercase);
            let meant = meant.unwrap_or_else(|| "SET".to_owned());
            Err(format!("{} is no command of Redis; write its name, such as \"{meant}\"", shown(text)))
        }
    }
}

fn database(text: &str) -> Result<u32, String> {
    u32::try_from(whole(text)?).map_err(|_| format!("{text} is not a database; write its number, such as 1"))
}

fn on_invalidate(text: &str) -> Result<OnInvalidate, String> {
    match text {
        "delete" => Ok(OnInvalidate::Delete),
        "expire" => Ok(OnInvalidate::Expire),
        _ => Err(format!("{} is unknown; write \"delete\" or \"expire\"", shown(text))),
    }
}

fn coalesce(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time > LONGEST_COALESCE {
        return Err(format!("{} is too long; write at most \"10s\"", shown(text)));
    }
    Ok(time)
}

fn stale_fill(text: &str) -> Result<StaleFill, String> {
    match text {
        "protect" => Ok(StaleFill::Protect),
        "strict" => Ok(StaleFill::Strict),
        "off" => Ok(StaleFill::Off),
        _ => Err(format!("{} is unknown; write \"protect\", \"strict\" or \"off\"", shown(text))),
    }
}
