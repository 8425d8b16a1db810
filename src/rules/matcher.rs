//! The questions asked about keys, with the mutable cache that answering them quickly takes.

use std::sync::Arc;

use regex_automata::hybrid::dfa::Cache;

use super::capture::{self, Spans};
use super::template::TagSource;
use super::{FamilyId, OWN_KEYS, Rules, Tag, TriggerId};

/// What the hot path needs to know about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyClass {
    /// The family it counts for.
    pub family: FamilyId,
    /// Whether [`Matcher::tags`] would name any.
    pub has_tags: bool,
    /// Whether a write to it could fire a trigger.
    pub has_triggers: bool,
}

/// A trigger that a write fires, and the tags that it invalidates (before cascades).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The trigger.
    pub trigger: TriggerId,
    /// The tags, each once.
    pub tags: Vec<Tag>,
}

/// Answers questions about keys for one thread.
///
/// It holds the rules that it was made from: new rules need a new matcher ([`Rules::matcher`]).
#[derive(Debug)]
pub struct Matcher {
    rules: Arc<Rules>,
    cache: Option<Cache>,
    /// The patterns that the last key matched.
    hits: Vec<u32>,
    spans: Spans,
    name: Vec<u8>,
}

impl Matcher {
    pub(super) fn new(rules: Arc<Rules>) -> Matcher {
        let cache = rules.automaton.as_ref().and_then(|automaton| automaton.create_cache());
        Matcher { rules, cache, hits: Vec::new(), spans: Spans::new(), name: Vec::new() }
    }

    /// The rules that it answers from.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The family of the key, and whether it carries tags or could fire a trigger. Allocates nothing once warm.
    #[inline]
    pub fn classify(&mut self, db: u32, key: &[u8]) -> KeyClass {
        let mut class = KeyClass { family: self.rules.other(), has_tags: false, has_triggers: false };
        if self.rules.automaton.is_none() || !self.rules.applies_to(db) {
            return class;
        }
        self.find(key);
        for &hit in &self.hits {
            let more = self.rules.classes[hit as usize];
            class.family = class.family.min(more.family);
            class.has_tags |= more.has_tags;
            class.has_triggers |= more.has_triggers;
        }
        class
    }

    /// Appends the tags that the rules give to the key, unless `out` has them already. Whether its writes could fire a trigger.
    pub fn tags(&mut self, db: u32, key: &[u8], out: &mut Vec<Tag>) -> bool {
        let mut has_triggers = false;
        if !self.rules.applies_to(db) {
            return has_triggers;
        }
        self.find(key);
        let Matcher { rules, hits, spans, name, .. } = self;
        for &hit in hits.iter() {
            let pattern = &rules.patterns[hit as usize];
            locate(&pattern.pattern.tokens, &pattern.tags, key, spans);
            pattern.tags.iter().for_each(|tag| tag.add_to(key, spans, name, out));
            has_triggers |= !pattern.fires.is_empty();
        }
        has_triggers
    }

    /// Appends the triggers that a write to the key fires, each once, in the order of the file.
    ///
    /// `command` is the name of the write command in any case; `None` when it is not known (the feed shows a write
    /// made past the proxy), and then a trigger fires whatever its `commands`. False: another command would fire more.
    pub fn fired(&mut self, db: u32, key: &[u8], command: Option<&str>, out: &mut Vec<Fired>) -> bool {
        let mut all = true;
        if !self.rules.applies_to(db) {
            return all;
        }
        self.find(key);
        let first = out.len();
        let Matcher { rules, hits, spans, name, .. } = self;
        for &hit in hits.iter() {
            let pattern = &rules.patterns[hit as usize];
            for firing in &pattern.fires {
                if !rules.triggers[usize::from(firing.trigger.0)].admits(command) {
                    all = false;
                    continue;
                }
                let at = match out[first..].iter().position(|known| known.trigger == firing.trigger) {
                    Some(at) => first + at,
                    None => {
                        out.push(Fired { trigger: firing.trigger, tags: Vec::new() });
                        out.len() - 1
                    }
                };
                locate(&pattern.pattern.tokens, &firing.tags, key, spans);
                firing.tags.iter().for_each(|tag| tag.add_to(key, spans, name, &mut out[at].tags));
            }
        }
        out[first..].sort_by_key(|fired| fired.trigger);
        all
    }

    /// See [`Rules::cascade`].
    pub fn cascade(&self, tags: &mut Vec<Tag>) -> super::Cascaded {
        self.rules.cascade(tags)
    }

    /// The numbers of the patterns that match the key. Slowly.
    pub(super) fn matching(&mut self, key: &[u8]) -> &[u32] {
        self.find_one_by_one(key);
        &self.hits
    }

    /// Leaves the numbers of the patterns that match the key in `hits`.
    #[inline]
    fn find(&mut self, key: &[u8]) {
        self.hits.clear();
        let Some(automaton) = &self.rules.automaton else { return };
        if key.starts_with(OWN_KEYS) {
            return;
        }
        if automaton.search(&mut self.cache, key, &mut self.hits).is_err() {
            self.find_one_by_one(key);
        }
    }

    #[cold]
    fn find_one_by_one(&mut self, key: &[u8]) {
        self.hits.clear();
        for (number, pattern) in (0..).zip(&self.rules.patterns) {
            if capture::matches(&pattern.pattern.tokens, key, &mut self.spans) {
                self.hits.push(number);
            }
        }
    }
}

/// Finds the captures, if one of the tags needs them.
fn locate(tokens: &[super::pattern::Token], tags: &[TagSource], key: &[u8], spans: &mut Spans) {
    if tags.iter().any(TagSource::needs_captures) {
        capture::matches(tokens, key, spans);
    }
}
