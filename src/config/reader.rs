//! Walking a TOML table: takes the keys that the caller asks for, records whatever else it finds.
//!
//! A [`Section`] learns the known keys from being asked for them, so there is no second list of keys to keep,
//! and a key of a section with variables is looked up in the environment in the same step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{ConfigProblem, Place};
use super::suggest::nearest;
use crate::rules::spec::Located;

/// Where the lines of a file begin.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(memchr::memchr_iter(b'\n', bytes).collect())
    }

    /// The line, from 1, that byte `offset` stands on.
    fn of(&self, offset: usize) -> u32 {
        let newlines = self.0.partition_point(|newline| *newline < offset);
        u32::try_from(newlines + 1).unwrap_or(u32::MAX)
    }
}

/// What the name of each of our variables begins with.
const OURS: &str = "RESCIND_";

/// The `RESCIND_*` variables.
pub(super) struct Environment(HashMap<OsString, OsString>);

impl Environment {
    pub(super) fn new<K, V>(variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(OURS.as_bytes());
        let variables = variables.into_iter().filter(|(name, _)| ours(name.as_ref()));
        Self(variables.map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned())).collect())
    }
}

/// What all sections share: positions, variables, and the problems found so far.
pub(super) struct Context {
    lines: Lines,
    environment: Environment,
    /// The names of the variables that there might be, without [`OURS`].
    variables: RefCell<Vec<String>>,
    problems: RefCell<Vec<ConfigProblem>>,
}

impl Context {
    pub(super) fn new(lines: Lines, environment: Environment) -> Self {
        Self { lines, environment, variables: RefCell::default(), problems: RefCell::default() }
    }

    pub(super) fn line(&self, offset: usize) -> u32 {
        self.lines.of(offset)
    }

    /// Records a problem at a byte of the file.
    pub(super) fn problem(&self, offset: usize, message: String) {
        self.record(Place::Line(self.line(offset)), message);
    }

    fn record(&self, place: Place, message: String) {
        self.problems.borrow_mut().push(ConfigProblem { place, message });
    }

    /// A note for each variable that means nothing, but is named nearly like one that does. Others are left alone: where a
    /// Kubernetes service is called `rescind`, there are many.
    pub(super) fn misspelt(&self) -> Vec<String> {
        let known = self.variables.borrow();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut notes: Vec<String> = self
            .environment
            .0
            .keys()
            .filter_map(|name| {
                let own = name.to_str()?.strip_prefix(OURS)?;
                let meant = nearest(own, &known)?.to_uppercase();
                if meant == own {
                    return None;
                }
                let name = name.display();
                Some(format!("{name}: note: not known and ignored; did you mean {OURS}{meant}?"))
            })
            .collect();
        notes.sort_unstable();
        notes
    }

    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        self.problems.into_inner()
    }
}

/// What TOML must hold for a [`Kind`].
#[derive(Clone, Copy)]
pub(super) enum Wants {
    /// A string.
    Text,
    /// An integer.
    Number,
}

/// A kind of value: what it looks like and how its text is read. Used for single values and list elements,
/// in the file and in variables.
pub(super) struct Kind<T> {
    pub wants: Wants,
    /// As it stands in the file.
    pub example: &'static str,
    /// The error says what is wrong and what to write.
    pub parse: fn(&str) -> Result<T, String>,
}

/// One table of the file (or its absence) and the variables that override it.
pub(super) struct Section<'a> {
    context: &'a Context,
    /// As shown: `[listen]`, `[[family]]`; empty for the file's top.
    name: &'static str,
    /// The part of the variables' names: `LISTEN`.
    variables: Option<&'static str>,
    table: Option<&'a DeTable<'a>>,
    /// Where the table begins.
    offset: usize,
    /// Every key asked for, and how it is shown if that is not `key`.
    known: Vec<(&'static str, Option<&'static str>)>,
}

impl<'a> Section<'a> {
    /// The top of a file.
    pub(super) fn top(context: &'a Context, root: &'a DeTable<'a>) -> Self {
        Self { context, name: "", variables: None, table: Some(root), offset: 0, known: Vec::new() }
    }

    /// The table `[key]` of the top; `name` is how it is shown.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        name: &'static str,
        variables: Option<&'static str>,
    ) -> Section<'a> {
        self.known.push((key, Some(name)));
        let mut section =
            Section { context: self.context, name, variables, table: None, offset: 0, known: Vec::new() };
        if let Some((offset, value)) = self.find(key) {
            section.offset = offset;
            section.table = value.get_ref().as_table();
            if section.table.is_none() {
                let found = found(value.get_ref());
                self.context.problem(offset, format!("{key}: found {found}; write it as a section, {name}"));
            }
        }
        section
    }

    /// The tables `[[key]]` of the top, in the order of the file.
    pub(super) fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<Section<'a>> {
        self.known.push((key, Some(name)));
        let Some((offset, value)) = self.find(key) else { return Vec::new() };
        let Some(elements) = value.get_ref().as_array() else {
            let found = found(value.get_ref());
            self.context.problem(offset, format!("{key}: found {found}; write each as {name}"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for element in elements.iter() {
            let (context, offset) = (self.context, element.span().start);
            match element.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    context,
                    name,
                    variables: None,
                    table: Some(table),
                    offset,
                    known: Vec::new(),
                }),
                None => {
                    let found = found(element.get_ref());
                    context.problem(offset, format!("{key}: found {found}; write each as {name}"));
                }
            }
        }
        sections
    }

    /// A single value: of its variable, otherwise of the file. `None`: not given, or wrong (and recorded).
    pub(super) fn one<T>(&mut self, key: &'static str, kind: &Kind<T>) -> Option<Located<T>> {
        self.known.push((key, None));
        let from_file = self.find(key).and_then(|(_, value)| {
            let wrong_type = || format!("write {}: {key} = {}", wanted(kind.wants), kind.example);
            self.read(key, value, kind, &wrong_type)
        });
        self.variable(key, |text| (kind.parse)(text).map_err(|error| vec![error])).or(from_file)
    }

    /// A list of values, never empty. In a variable they are separated by commas. With `single` the file may
    /// hold one value without brackets.
    pub(super) fn many<T>(
        &mut self,
        key: &'static str,
        kind: &Kind<T>,
        single: bool,
    ) -> Option<Vec<Located<T>>> {
        self.known.push((key, None));
        let from_file = self.find(key).and_then(|(offset, value)| {
            let list = self.list(key, value, kind, single)?;
            if value.get_ref().as_array().is_some_and(|elements| elements.is_empty()) {
                let problem =
                    self.labelled(key, "the list is empty; write at least one, or leave the key out");
                self.context.problem(offset, problem);
            }
            (!list.is_empty()).then_some(list)
        });
        let from_variable = self.variable(key, |text| {
            let (mut values, mut errors) = (vec![], vec![]);
            for item in text.split(',') {
                match (kind.parse)(item.trim()) {
                    Ok(value) => values.push(value),
                    Err(error) => errors.push(error),
                }
            }
            if errors.is_empty() { Ok(values) } else { Err(errors) }
        });
        let unlocated = |list: Vec<T>| list.into_iter().map(|value| Located { value, line: 0 }).collect();
        from_variable.map(|list| unlocated(list.value)).or(from_file)
    }

    /// Every key of a table whose keys are names of the user's own, with its list of values, in file order.
    pub(super) fn entries<T>(&mut self, kind: &Kind<T>) -> Vec<(Located<String>, Vec<Located<T>>)> {
        let Some(table) = self.table.take() else { return Vec::new() };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let read = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            let located =
                Located { value: name.clone().into_owned(), line: self.context.line(key.span().start) };
            Some((located, self.list(name, value, kind, false)?))
        };
        entries.into_iter().filter_map(read).collect()
    }

    /// Whether the file gives the key at all, be it wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// The line the section begins on; 0 if it is absent.
    pub(super) fn line(&self) -> u32 {
        if self.table.is_some() { self.context.line(self.offset) } else { 0 }
    }

    /// Records a problem of the section as a whole.
    pub(super) fn problem(&self, message: &str) {
        self.context.problem(self.offset, format!("{} {message}", self.name));
    }

    /// Records every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, value) in self.table.into_iter().flatten() {
            let key_name: &str = key.get_ref();
            if !self.known.iter().any(|(known, _)| *known == key_name) {
                let message = self.unknown(key_name, value.get_ref());
                self.context.problem(key.span().start, message);
            }
        }
    }

    fn unknown(&self, key: &str, value: &DeValue<'_>) -> String {
        let top = self.name.is_empty();
        let is_section = top && matches!(value, DeValue::Table(_) | DeValue::Array(_));
        let key_shown: String = key.chars().take(60).flat_map(char::escape_debug).collect();
        let what = match (is_section, top) {
            (true, _) => format!("unknown section [{key_shown}]"),
            (_, true) => format!("unknown key `{key_shown}` outside of any section"),
            _ => format!("unknown key `{key_shown}` in {}", self.name),
        };
        let mut known = self.known.iter();
        let shown =
            |(key, name): &(&str, Option<&str>)| name.map_or_else(|| format!("`{key}`"), str::to_owned);
        let keys: Vec<&str> = known.clone().map(|(key, _)| *key).collect();
        let meant = nearest(key, &keys).and_then(|meant| known.find(|(key, _)| *key == meant));
        match meant {
            Some(meant) => format!("{what}; did you mean {}?", shown(meant)),
            None => {
                let known: Vec<String> = self.known.iter().map(shown).collect();
                format!("{what}; write one of {}", known.join(", "))
            }
        }
    }

    /// The byte the key stands at, and its value.
    fn find(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (key, value) = self.table?.get_key_value(key)?;
        Some((key.span().start, value))
    }

    fn labelled(&self, key: &str, message: &str) -> String {
        let key: String = key.chars().take(60).flat_map(char::escape_debug).collect();
        format!("{} {key}: {message}", self.name)
    }

    /// The elements of a list; wrong ones are recorded and left out. `None`: not a list.
    fn list<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        kind: &Kind<T>,
        single: bool,
    ) -> Option<Vec<Located<T>>> {
        let wrong_type = || format!("write a list of {}s: {key} = [{}]", plain(kind.wants), kind.example);
        match value.get_ref() {
            DeValue::Array(elements) => Some(
                elements.iter().filter_map(|element| self.read(key, element, kind, &wrong_type)).collect(),
            ),
            _ if single => self.read(key, value, kind, &wrong_type).map(|value| vec![value]),
            other => {
                let message = self.labelled(key, &format!("found {}; {}", found(other), wrong_type()));
                self.context.problem(value.span().start, message);
                None
            }
        }
    }

    /// One value of the file; `write` says what to write if its type is wrong.
    fn read<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        kind: &Kind<T>,
        write: &dyn Fn() -> String,
    ) -> Option<Located<T>> {
        let parsed = match (kind.wants, value.get_ref()) {
            (Wants::Text, DeValue::String(text)) => (kind.parse)(text),
            (Wants::Number, DeValue::Integer(number)) => {
                // Only u64 and i64 are of use here; what is beyond is left as written, for parse to refuse.
                let decimal = i64::from_str_radix(number.as_str(), number.radix());
                (kind.parse)(&decimal.map_or_else(|_| number.to_string(), |n| n.to_string()))
            }
            (_, other) => Err(format!("found {}; {}", found(other), write())),
        };
        match parsed {
            Ok(parsed) => Some(Located { value: parsed, line: self.context.line(value.span().start) }),
            Err(message) => {
                self.context.problem(value.span().start, self.labelled(key, &message));
                None
            }
        }
    }

    /// The value of the key's variable. An empty variable counts as not set, unless empty is a value.
    fn variable<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Vec<String>>) -> Option<Located<T>> {
        let name = self.variable_of(key)?;
        self.context.variables.borrow_mut().push(name[OURS.len()..].to_lowercase());
        let value = self.context.environment.0.get(OsStr::new(&name))?;
        let parsed = match value.to_str() {
            Some(text) => parse(text),
            None => Err(vec!["not UTF-8 text; write it in UTF-8".to_owned()]),
        };
        match parsed {
            Ok(value) => Some(Located { value, line: 0 }),
            Err(_) if value.is_empty() => None,
            Err(messages) => {
                let record = |message| self.context.record(Place::Variable(name.clone()), message);
                messages.into_iter().for_each(record);
                None
            }
        }
    }

    fn variable_of(&self, key: &str) -> Option<String> {
        Some(format!("{OURS}{}_{}", self.variables?, key.to_ascii_uppercase()))
    }

    /// Where a value of this key stands that was read from this line, or from none.
    pub(super) fn place(&self, key: &str, line: u32) -> Place {
        match self.variable_of(key) {
            _ if line > 0 => Place::Line(line),
            Some(name) => Place::Variable(name),
            None => Place::File,
        }
    }
}

fn wanted(wants: Wants) -> &'static str {
    match wants {
        Wants::Text => "a string in quotes",
        Wants::Number => "a whole number",
    }
}

fn plain(wants: Wants) -> &'static str {
    match wants {
        Wants::Text => "string",
        Wants::Number => "number",
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction or an exponent",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one() {
        let lines = Lines::new(b"a\nb\r\n\nc");
        assert_eq!([0, 1, 2, 4, 5, 6, 99].map(|offset| lines.of(offset)), [1, 1, 2, 2, 3, 4, 4]);
    }
}
