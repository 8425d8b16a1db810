//! What the configuration says about rules, before it is compiled: text with its line numbers.

use std::time::Duration;

/// A value and the line of the file it stands on (1 is the first; 0: not from a file).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub line: u32,
}

/// One entry of `[tags]`: a tag (perhaps with captures) and the patterns of the keys that depend on it.
#[derive(Clone, Debug)]
pub struct TagSpec {
    /// The tag as written, such as `post:{id}`.
    pub name: Located<String>,
    /// Key patterns, without the prefix.
    pub keys: Vec<Located<String>>,
}

/// What happens to a dependent when its tag is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnInvalidate {
    /// The key is unlinked.
    #[default]
    Delete,
    /// Its time to live is shortened to the family's `grace`.
    Expire,
}

/// What becomes of a value that was read before an invalidation and is written after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StaleFill {
    /// It stays.
    Off,
    /// It is undone.
    #[default]
    Protect,
    /// So is what may be one: no miss of its key is known.
    Strict,
}

/// One `[[family]]`.
#[derive(Clone, Debug)]
pub struct FamilySpec {
    /// The label of its metrics.
    pub name: Located<String>,
    /// Key patterns, without the prefix.
    pub keys: Vec<Located<String>>,
    /// What an invalidation does to its keys.
    pub on_invalidate: OnInvalidate,
    /// The remaining time to live under [`OnInvalidate::Expire`].
    pub grace: Duration,
    /// What becomes of stale fills.
    pub stale_fill: StaleFill,
    /// How long after its miss a fill is watched.
    pub fill_window: Duration,
    /// How long a read may wait for the fill of a key that another client computes.
    pub coalesce: Duration,
}

/// One `[[trigger]]`: either `keys` or `tags` is given.
#[derive(Clone, Debug)]
pub struct TriggerSpec {
    /// Line of its `[[trigger]]`.
    pub line: u32,
    /// The label of its metrics; without one the first pattern or tag as written.
    pub name: Option<Located<String>>,
    /// A write to a key of one of these patterns fires it.
    pub keys: Vec<Located<String>>,
    /// Only these commands fire it; empty: every write command.
    pub commands: Vec<Located<String>>,
    /// An invalidation of one of these tags fires it (a cascade).
    pub tags: Vec<Located<String>>,
    /// The tags to invalidate, with captures of the pattern.
    pub invalidate: Vec<Located<String>>,
}

/// All rules as written.
#[derive(Clone, Debug, Default)]
pub struct RulesSpec {
    /// Prepended to every key pattern; may hold wildcards.
    pub prefix: String,
    /// The databases that the rules apply to; `None`: all.
    pub databases: Option<Vec<u32>>,
    /// `[tags]` in the order of the file.
    pub tags: Vec<TagSpec>,
    /// `[[family]]` in the order of the file.
    pub families: Vec<FamilySpec>,
    /// `[[trigger]]` in the order of the file.
    pub triggers: Vec<TriggerSpec>,
}

/// Something wrong with the rules: where, what, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file.
    pub line: u32,
    /// What is wrong and what to write instead.
    pub message: String,
}
