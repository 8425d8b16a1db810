//! Rules: which tags a key depends on, which family it counts for, what a write triggers.
//!
//! [`Rules`] is compiled once from [`spec::RulesSpec`] and shared; every thread asks through a [`Matcher`] of its
//! own. All key patterns are one lazily built automaton, so the cost of a key hardly depends on their number, and a
//! key that matches nothing is done with at the first byte that no pattern goes on with.
//!
//! - `pattern`: the syntax of patterns; `capture`: one pattern against one key, with its captures
//! - `template`: names of tags built from captures
//! - `compile`: from text to rules, with every problem reported; `automaton`: all patterns at once; `fingerprint`: whether
//!   two say the same
//! - `matcher`: the questions asked per command; `cascade`: tags that invalidate other tags
//! - `notes`: what is right and probably not meant
//! - `tracking`: what the feed asks Redis to watch, and globs for `SCAN`
//!
//! The rules know no sockets, no clock and no index.

mod automaton;
mod capture;
mod cascade;
mod compile;
mod fingerprint;
mod matcher;
mod notes;
mod pattern;
pub mod spec;
mod template;
mod tracking;

use std::sync::Arc;
use std::time::Duration;

use automaton::Automaton;
use cascade::Cascades;
use pattern::Pattern;
use spec::{OnInvalidate, Problem, RulesSpec, StaleFill};
use template::TagSource;

pub use cascade::Cascaded;
pub use matcher::{Fired, KeyClass, Matcher};
pub use template::{Tag, unique};
pub use tracking::{LeftOut, TrackingPrefixes, without_overlaps};

/// How the keys of the proxy itself begin. They are no part of the cache: no rule names them, whatever its patterns match.
pub const OWN_KEYS: &[u8] = b"rescind:";

/// What invalidations by something else than a trigger of the file are counted as: no trigger can be called so.
pub const OTHER_TRIGGERS: [&str; 6] =
    ["publish", "TAG.INVALIDATE", "http", "taken over", "other rules", "again"];

/// A family, as a place in [`Rules::families`]. The last one is `other`: the keys that no pattern names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FamilyId(pub u16);

/// A trigger, as a place in [`Rules::triggers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TriggerId(pub u16);

/// A group of keys: the label of their metrics, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name of the `[[family]]`, or the pattern as written.
    pub name: String,
    /// Its patterns as written, without the prefix.
    pub keys: Vec<String>,
    /// What an invalidation does to its keys.
    pub on_invalidate: OnInvalidate,
    /// The remaining time to live under [`OnInvalidate::Expire`].
    pub grace: Duration,
    /// What becomes of stale fills.
    pub stale_fill: StaleFill,
    /// How long after its miss a fill is watched.
    pub fill_window: Duration,
    /// How long a read may wait for the fill of a key that another client computes; zero: not at all.
    pub coalesce: Duration,
}

impl Family {
    /// A family without a `[[family]]`: deleted on invalidation, fills protected for five seconds.
    fn with_defaults(name: String, keys: Vec<String>) -> Family {
        Family {
            name,
            keys,
            on_invalidate: OnInvalidate::Delete,
            grace: Duration::ZERO,
            stale_fill: StaleFill::Protect,
            fill_window: Duration::from_secs(5),
            coalesce: Duration::ZERO,
        }
    }

    /// How long after its miss a fill is watched; zero: not at all.
    pub fn watched(&self) -> Duration {
        match self.stale_fill {
            StaleFill::Off => Duration::ZERO,
            StaleFill::Protect | StaleFill::Strict => self.fill_window,
        }
    }
}

/// Something that invalidates tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Its name, or its first pattern or tag as written.
    pub label: String,
    /// Only these commands fire it; empty: every write command.
    pub commands: Vec<String>,
    /// The patterns of keys that fire it, as written, without the prefix.
    pub keys: Vec<String>,
    /// The patterns of tags that fire it, as written (a cascade).
    pub tags: Vec<String>,
    /// The tags that it invalidates, as written.
    pub invalidate: Vec<String>,
}

impl Trigger {
    /// Whether a write by `command` counts; an unknown command may have been any.
    fn admits(&self, command: Option<&str>) -> bool {
        self.commands.is_empty()
            || command.is_none_or(|name| self.commands.iter().any(|own| own.eq_ignore_ascii_case(name)))
    }
}

/// One distinct key pattern and all that it means.
#[derive(Debug)]
struct KeyPattern {
    /// With the prefix.
    pattern: Pattern,
    /// In `[tags]` or a `[[family]]`: its keys are cached values, not only triggers.
    cached: bool,
    tags: Vec<TagSource>,
    fires: Vec<Firing>,
}

/// What a matching write invalidates.
#[derive(Debug)]
struct Firing {
    trigger: TriggerId,
    tags: Vec<TagSource>,
}

/// All rules, compiled. Meant to live in an [`Arc`].
#[derive(Debug)]
pub struct Rules {
    databases: Option<Vec<u32>>,
    families: Vec<Family>,
    triggers: Vec<Trigger>,
    patterns: Vec<KeyPattern>,
    /// What each pattern says about a key on the hot path, in the order of `patterns`.
    classes: Vec<KeyClass>,
    automaton: Option<Automaton>,
    cascades: Cascades,
    fingerprint: u32,
}

/// Whether this can be a prefix of all patterns.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    compile::prefix_pattern(prefix).map(drop)
}

impl Rules {
    /// Compiles the rules, or tells all that is wrong with them.
    pub fn compile(spec: &RulesSpec) -> Result<Rules, Vec<Problem>> {
        compile::compile(spec)
    }

    /// Rules that say nothing.
    pub fn empty() -> Rules {
        Rules {
            databases: None,
            families: vec![Family::with_defaults("other".to_owned(), Vec::new())],
            triggers: Vec::new(),
            patterns: Vec::new(),
            classes: Vec::new(),
            automaton: None,
            cascades: Cascades::default(),
            fingerprint: fingerprint::of(&RulesSpec::default()),
        }
    }

    /// All families in the order of the file; the last is `other`.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The family of that number. A number from other rules yields `other`.
    pub fn family(&self, id: FamilyId) -> &Family {
        self.families.get(usize::from(id.0)).unwrap_or(&self.families[self.families.len() - 1])
    }

    /// The family of the keys that no pattern names.
    pub fn other(&self) -> FamilyId {
        FamilyId((self.families.len() - 1) as u16)
    }

    /// The longest time that a fill of any family is watched.
    pub fn longest_window(&self) -> Duration {
        self.families.iter().map(Family::watched).max().unwrap_or_default()
    }

    /// The shortest time that a fill of any family is watched that is watched at all; zero: none is.
    pub fn shortest_window(&self) -> Duration {
        let watched = self.families.iter().map(Family::watched);
        watched.filter(|window| !window.is_zero()).min().unwrap_or_default()
    }

    /// All triggers in the order of the file.
    pub fn triggers(&self) -> &[Trigger] {
        &self.triggers
    }

    /// Whether the rules apply to the keys of that database.
    pub fn applies_to(&self, db: u32) -> bool {
        self.databases.as_ref().is_none_or(|databases| databases.contains(&db))
    }

    /// The databases that the rules apply to; `None`: all.
    pub fn databases(&self) -> Option<&[u32]> {
        self.databases.as_deref()
    }

    /// The first of them, if they are named: in it the feed takes writes to have been made of which it is not told where.
    pub fn feed_database(&self) -> Option<u32> {
        self.databases().and_then(|all| all.first().copied())
    }

    /// The first of them.
    pub fn first_database(&self) -> u32 {
        self.feed_database().unwrap_or(0)
    }

    /// Whether keys have the same tags by them as by `other`, and their misses are watched alike.
    pub fn watches_like(&self, other: &Self) -> bool {
        (self.fingerprint, self.databases(), self.families())
            == (other.fingerprint, other.databases(), other.families())
    }

    /// The same where rules name the same dependents of each tag, also in other processes.
    pub fn fingerprint(&self) -> u32 {
        self.fingerprint
    }

    /// The closure of `tags` under the cascades: adds every tag that they invalidate in turn, no tag twice.
    pub fn cascade(&self, tags: &mut Vec<Tag>) -> Cascaded {
        self.cascades.close(tags)
    }

    /// A matcher for one thread.
    pub fn matcher(self: &Arc<Self>) -> Matcher {
        Matcher::new(Arc::clone(self))
    }
}
