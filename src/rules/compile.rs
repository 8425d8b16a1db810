//! From rules as written to [`Rules`], with every problem of the file reported at once.

use std::collections::HashMap;

use super::automaton::Automaton;
use super::cascade::{Cascade, Cascades};
use super::pattern::Pattern;
use super::spec::{FamilySpec, Located, Problem, RulesSpec, TagSpec, TriggerSpec};
use super::template::{TagSource, Template};
use super::{
    Family, FamilyId, Firing, KeyClass, KeyPattern, OTHER_TRIGGERS, OWN_KEYS, Rules, Trigger, TriggerId,
};

pub(super) fn compile(spec: &RulesSpec) -> Result<Rules, Vec<Problem>> {
    let mut compiler = Compiler::default();
    compiler.prefix(&spec.prefix);
    spec.tags.iter().for_each(|tag| compiler.tag(tag));
    compiler.families(&spec.families);
    spec.triggers.iter().for_each(|trigger| compiler.trigger(trigger));
    compiler.names(&spec.families);
    compiler.own_keys();
    compiler.finish(spec)
}

/// The pattern of a prefix; the error says what is wrong and what to write.
pub(super) fn prefix_pattern(prefix: &str) -> Result<Pattern, String> {
    if prefix.is_empty() {
        return Ok(Pattern::default());
    }
    let pattern = Pattern::parse(prefix).map_err(|errors| errors.join("; "))?;
    match pattern.captures.first() {
        None if pattern.literal_prefix().starts_with(OWN_KEYS) => {
            Err("keys that begin with `rescind:` are the proxy's own and in no rule: choose another prefix"
                .to_owned())
        }
        None => Ok(pattern),
        Some(capture) => Err(format!(
            "it holds the capture `{{{capture}}}`, which a prefix must not: write `*`, or `\\{{` for the brace itself"
        )),
    }
}

/// A key pattern while the file is being read.
struct Draft {
    text: String,
    /// The first line that names it, and its turn among all patterns.
    place: (u32, usize),
    pattern: Pattern,
    cached: bool,
    tags: Vec<TagSource>,
    fires: Vec<Firing>,
    /// The `[[family]]` that lists it.
    family: Option<usize>,
}

#[derive(Default)]
struct Compiler {
    prefix: Pattern,
    problems: Vec<Problem>,
    drafts: Vec<Draft>,
    by_text: HashMap<String, usize>,
    triggers: Vec<Trigger>,
    cascades: Cascades,
}

impl Compiler {
    fn problem(&mut self, line: u32, message: impl Into<String>) {
        let problem = Problem { line, message: message.into() };
        // The same mistake twice on one line (a list of patterns) is told once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn prefix(&mut self, prefix: &str) {
        match prefix_pattern(prefix) {
            Ok(pattern) => self.prefix = pattern,
            // The configuration has asked before, and knows the line.
            Err(error) => self.problem(0, format!("the prefix: {error}")),
        }
    }

    /// The number of the draft for a key pattern; `None` if it has a problem.
    fn key(&mut self, key: &Located<String>) -> Option<usize> {
        if let Some(&known) = self.by_text.get(&key.value) {
            let place = &mut self.drafts[known].place;
            place.0 = place.0.min(key.line);
            return Some(known);
        }
        let pattern = self.parse(Pattern::parse(&key.value), key)?;
        let number = self.drafts.len();
        self.by_text.insert(key.value.clone(), number);
        self.drafts.push(Draft {
            text: key.value.clone(),
            place: (key.line, number),
            pattern,
            cached: false,
            tags: Vec::new(),
            fires: Vec::new(),
            family: None,
        });
        Some(number)
    }

    /// Of several on one line the problem tells which it is.
    fn parse<T>(&mut self, parsed: Result<T, Vec<String>>, text: &Located<String>) -> Option<T> {
        let shown = if text.value.is_empty() { String::new() } else { format!("`{}`: ", text.value) };
        let mut problem = |error| self.problem(text.line, format!("{shown}{error}"));
        parsed.map_err(|errors| errors.into_iter().for_each(&mut problem)).ok()
    }

    fn template(&mut self, text: &Located<String>) -> Option<Template> {
        self.parse(Template::parse(&text.value), text)
    }

    /// Binds a template to the pattern that is to fill it.
    fn bind(
        &mut self,
        template: &Template,
        written: &Located<String>,
        captures: &[String],
        pattern: &Located<String>,
    ) -> Option<TagSource> {
        let bound = template.bind(captures);
        if bound.is_none() {
            for name in template.captures() {
                if !captures.iter().any(|known| known == name) {
                    let message = format!(
                        "the tag `{}` needs `{{{name}}}`, which the pattern `{}` does not capture: write `{{{name}}}` \
                         in the pattern too, or leave it out of the tag",
                        written.value, pattern.value
                    );
                    self.problem(pattern.line, message);
                }
            }
        }
        bound
    }

    fn tag(&mut self, tag: &TagSpec) {
        let template = self.template(&tag.name);
        for key in &tag.keys {
            let Some(number) = self.key(key) else { continue };
            self.drafts[number].cached = true;
            let Some(template) = &template else { continue };
            let captures = self.drafts[number].pattern.captures.clone();
            if let Some(source) = self.bind(template, &tag.name, &captures, key) {
                self.drafts[number].tags.push(source);
            }
        }
    }

    fn families(&mut self, families: &[FamilySpec]) {
        for (index, family) in families.iter().enumerate() {
            let (name, line) = (&family.name.value, family.name.line);
            if name.is_empty() {
                self.problem(line, "the family has no name: write `name = \"…\"`");
            } else if name == "other" {
                self.problem(
                    line,
                    "`other` is the family of the keys that no pattern names: choose another name",
                );
            } else if let Some(first) = families[..index].iter().find(|first| first.name.value == *name) {
                let message = format!(
                    "the family `{name}` is already defined on line {}: add the keys there, or choose another name",
                    first.name.line
                );
                self.problem(line, message);
            }
            if family.keys.is_empty() {
                self.problem(line, format!("the family `{name}` has no keys: write `keys = [\"…\"]`"));
            }
            for key in &family.keys {
                let Some(number) = self.key(key) else { continue };
                let draft = &mut self.drafts[number];
                draft.cached = true;
                let first = *draft.family.get_or_insert(index);
                if first != index {
                    let message = format!(
                        "the pattern `{}` is already in the family `{}`: list it in one of them only",
                        key.value, families[first].name.value
                    );
                    self.problem(key.line, message);
                }
            }
        }
    }

    /// A pattern without a family is one of its own, with its text as its name.
    fn names(&mut self, families: &[FamilySpec]) {
        for FamilySpec { name, .. } in families {
            let alone = self.by_text.get(&name.value).map(|number| &self.drafts[*number]);
            if let Some(line) = alone.filter(|draft| draft.family.is_none()).map(|draft| draft.place.0) {
                let message = format!(
                    "the family `{0}` has the name of the pattern `{0}` on line {line}, which is a family of its own: \
                     list the pattern here, or choose another name",
                    name.value
                );
                self.problem(name.line, message);
            }
        }
    }

    /// A pattern that can only match keys of the proxy itself would match nothing.
    fn own_keys(&mut self) {
        let whole = |draft: &Draft| self.prefix.followed_by(&draft.pattern);
        let own = self.drafts.iter().filter(|draft| whole(draft).literal_prefix().starts_with(OWN_KEYS));
        let own: Vec<(u32, String)> = own.map(|draft| (draft.place.0, draft.text.clone())).collect();
        for (line, text) in own {
            let message = format!(
                "the pattern `{text}` is for keys that begin with `rescind:`, which are the proxy's own and in no rule: \
                 choose other keys"
            );
            self.problem(line, message);
        }
    }

    fn trigger(&mut self, trigger: &TriggerSpec) {
        match (trigger.keys.is_empty(), trigger.tags.is_empty()) {
            (true, true) => self.problem(
                trigger.line,
                "the trigger has nothing to fire it: write `keys = [\"…\"]` or `tags = [\"…\"]`",
            ),
            (false, false) => self.problem(
                trigger.line,
                "the trigger has both `keys` and `tags`: write two triggers, one with each",
            ),
            _ => {}
        }
        if trigger.invalidate.is_empty() {
            self.problem(trigger.line, "the trigger invalidates nothing: write `invalidate = [\"…\"]`");
        }
        if let ([first, ..], [], [_, ..]) = (&trigger.commands[..], &trigger.keys[..], &trigger.tags[..]) {
            self.problem(
                first.line,
                "`commands` says which writes of `keys` count, and this trigger has `tags`: leave it out",
            );
        }
        let id = TriggerId(u16::try_from(self.triggers.len()).unwrap_or(u16::MAX));
        let templates: Vec<_> =
            trigger.invalidate.iter().filter_map(|text| Some((text, self.template(text)?))).collect();
        self.key_trigger(id, trigger, &templates);
        self.tag_trigger(id, trigger, &templates);
        let named = trigger.name.as_ref().or(trigger.keys.first()).or(trigger.tags.first());
        if let Some(name) = named.filter(|name| OTHER_TRIGGERS.contains(&&*name.value)) {
            let message = format!(
                "`{}` is what the metrics call invalidations that no `[[trigger]]` causes: give the trigger another \
                 name, `name = \"…\"`",
                name.value
            );
            self.problem(name.line, message);
        }
        self.triggers.push(described(trigger, named));
    }

    fn key_trigger(
        &mut self,
        id: TriggerId,
        trigger: &TriggerSpec,
        templates: &[(&Located<String>, Template)],
    ) {
        for key in &trigger.keys {
            let Some(number) = self.key(key) else { continue };
            let captures = self.drafts[number].pattern.captures.clone();
            let tags = self.bind_all(templates, &captures, key);
            self.drafts[number].fires.push(Firing { trigger: id, tags });
        }
    }

    fn tag_trigger(
        &mut self,
        id: TriggerId,
        trigger: &TriggerSpec,
        templates: &[(&Located<String>, Template)],
    ) {
        for tag in &trigger.tags {
            let Some(pattern) = self.parse(Pattern::parse(&tag.value), tag) else { continue };
            let invalidate = self.bind_all(templates, &pattern.captures, tag);
            self.cascades.push(Cascade { pattern, trigger: id, invalidate });
        }
    }

    fn bind_all(
        &mut self,
        templates: &[(&Located<String>, Template)],
        captures: &[String],
        pattern: &Located<String>,
    ) -> Vec<TagSource> {
        templates.iter().filter_map(|(text, template)| self.bind(template, text, captures, pattern)).collect()
    }

    fn finish(mut self, spec: &RulesSpec) -> Result<Rules, Vec<Problem>> {
        let (families, family_of_draft) = order_families(&spec.families, &self.drafts);
        // Numbers are kept in 16 bits, one of them for `other`.
        if families.len() > usize::from(u16::MAX) || self.triggers.len() > usize::from(u16::MAX) {
            self.problem(0, "there are more than 65,535 families or triggers: join patterns with wildcards");
        }
        let mut patterns = Vec::with_capacity(self.drafts.len());
        let mut classes = Vec::with_capacity(self.drafts.len());
        for (draft, family) in self.drafts.iter_mut().zip(family_of_draft) {
            classes.push(KeyClass {
                family: FamilyId(u16::try_from(family).unwrap_or(u16::MAX)),
                has_tags: !draft.tags.is_empty(),
                has_triggers: !draft.fires.is_empty(),
            });
            patterns.push(KeyPattern {
                pattern: self.prefix.followed_by(&draft.pattern),
                cached: draft.cached,
                tags: std::mem::take(&mut draft.tags),
                fires: std::mem::take(&mut draft.fires),
            });
        }
        let mut automaton = None;
        if self.problems.is_empty() && !patterns.is_empty() {
            match Automaton::build(&patterns.iter().map(|key| &key.pattern).collect::<Vec<_>>()) {
                Ok(built) => automaton = Some(built),
                Err(error) => self.problem(0, format!("the patterns are too many or too long: {error}")),
            }
        }
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|problem| problem.line);
            return Err(self.problems);
        }
        let databases = spec.databases.clone();
        Ok(Rules {
            databases,
            families,
            triggers: self.triggers,
            patterns,
            classes,
            automaton,
            cascades: self.cascades,
            fingerprint: super::fingerprint::of(spec),
        })
    }
}

fn described(trigger: &TriggerSpec, named: Option<&Located<String>>) -> Trigger {
    let texts = |list: &[Located<String>]| list.iter().map(|text| text.value.clone()).collect::<Vec<_>>();
    Trigger {
        label: named.map(|text| text.value.clone()).unwrap_or_default(),
        commands: texts(&trigger.commands),
        keys: texts(&trigger.keys),
        tags: texts(&trigger.tags),
        invalidate: texts(&trigger.invalidate),
    }
}

/// The families in the order of the file with `other` at the end, and the family of each draft.
fn order_families(written: &[FamilySpec], drafts: &[Draft]) -> (Vec<Family>, Vec<usize>) {
    /// A `[[family]]`, or the family of a pattern that no `[[family]]` lists.
    enum Origin {
        Written(usize),
        Pattern(usize),
    }
    let mut order: Vec<((u32, usize), Origin)> = Vec::new();
    for (index, family) in written.iter().enumerate() {
        // Among patterns on the same line (or without lines) its turn is that of its first pattern.
        let turn = drafts.iter().position(|draft| draft.family == Some(index)).unwrap_or(drafts.len());
        order.push(((family.name.line, turn), Origin::Written(index)));
    }
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.family.is_none()) {
        order.push((draft.place, Origin::Pattern(index)));
    }
    order.sort_by_key(|&(place, _)| place);

    let mut family_of_draft = vec![0; drafts.len()];
    let mut families = Vec::with_capacity(order.len() + 1);
    for (number, (_, origin)) in order.into_iter().enumerate() {
        families.push(match origin {
            Origin::Pattern(index) => {
                family_of_draft[index] = number;
                Family::with_defaults(drafts[index].text.clone(), vec![drafts[index].text.clone()])
            }
            Origin::Written(index) => {
                for (draft, family) in drafts.iter().zip(&mut family_of_draft) {
                    if draft.family == Some(index) {
                        *family = number;
                    }
                }
                as_written(&written[index])
            }
        });
    }
    families.push(Family::with_defaults("other".to_owned(), Vec::new()));
    (families, family_of_draft)
}

fn as_written(family: &FamilySpec) -> Family {
    Family {
        name: family.name.value.clone(),
        keys: family.keys.iter().map(|key| key.value.clone()).collect(),
        on_invalidate: family.on_invalidate,
        grace: family.grace,
        stale_fill: family.stale_fill,
        fill_window: family.fill_window,
        coalesce: family.coalesce,
    }
}
