//! Cascades: tags whose invalidation invalidates other tags.

use std::collections::{HashMap, HashSet};

use super::capture::{self, Spans};
use super::pattern::Pattern;
use super::template::TagSource;
use super::{Tag, TriggerId};

/// Captures can make tags that make longer tags for ever (`{x*}` invalidates `a{x*}`). These bounds are far beyond
/// what a meaningful cascade reaches.
const MAX_DEPTH: u32 = 1000;
const MAX_NAME: usize = 64 << 10;
const MAX_DERIVED: usize = 100_000;

/// What [`super::Rules::cascade`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cascaded {
    /// The cascade triggers that fired, each once, in the order of the file.
    pub triggers: Vec<TriggerId>,
    /// The cascade would never have ended, and was cut short.
    pub cut_short: bool,
}

/// A trigger by tags, for one of its tag patterns.
#[derive(Debug)]
pub(super) struct Cascade {
    pub pattern: Pattern,
    pub trigger: TriggerId,
    pub invalidate: Vec<TagSource>,
}

/// All cascades. Plain names are looked up, patterns are tried one after the other.
#[derive(Debug, Default)]
pub(super) struct Cascades {
    all: Vec<Cascade>,
    by_name: HashMap<Vec<u8>, Vec<usize>>,
    with_wildcards: Vec<usize>,
}

impl Cascades {
    pub(super) fn push(&mut self, cascade: Cascade) {
        match cascade.pattern.as_literal() {
            Some(name) => self.by_name.entry(name.to_vec()).or_default().push(self.all.len()),
            None => self.with_wildcards.push(self.all.len()),
        }
        self.all.push(cascade);
    }

    pub(super) fn close(&self, tags: &mut Vec<Tag>) -> Cascaded {
        let mut done = Cascaded::default();
        if self.all.is_empty() {
            return done;
        }
        let mut known: HashSet<Tag> = HashSet::with_capacity(tags.len());
        tags.retain(|tag| known.insert(Tag::clone(tag)));
        let given = tags.len();
        let mut depths = vec![0; given];
        let (mut spans, mut name, mut next) = (Spans::new(), Vec::new(), Vec::new());
        let mut at = 0;
        while at < tags.len() {
            let (tag, depth) = (Tag::clone(&tags[at]), depths[at]);
            at += 1;
            self.step(&tag, &mut spans, &mut name, &mut next, &mut done.triggers);
            for derived in next.drain(..) {
                if known.contains(&derived) {
                    continue;
                }
                let too_long = derived.len() > MAX_NAME.max(tag.len());
                if too_long || depth >= MAX_DEPTH || tags.len() - given >= MAX_DERIVED {
                    done.cut_short = true;
                    continue;
                }
                known.insert(Tag::clone(&derived));
                tags.push(derived);
                depths.push(depth + 1);
            }
        }
        done.triggers.sort_unstable();
        done
    }

    /// What one tag invalidates, into `next`.
    fn step(
        &self,
        tag: &Tag,
        spans: &mut Spans,
        name: &mut Vec<u8>,
        next: &mut Vec<Tag>,
        fired: &mut Vec<TriggerId>,
    ) {
        let exact = self.by_name.get(&**tag).into_iter().flatten();
        for &index in exact.chain(&self.with_wildcards) {
            let cascade = &self.all[index];
            if !capture::matches(&cascade.pattern.tokens, tag, spans) {
                continue;
            }
            if !fired.contains(&cascade.trigger) {
                fired.push(cascade.trigger);
            }
            cascade.invalidate.iter().for_each(|source| source.add_to(tag, spans, name, next));
        }
    }
}
