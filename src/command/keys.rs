//! Where the keys of a request are: key specs in the sense of Redis 7, and the walk over them.
//!
//! The walk never fails. A request that Redis would refuse (a count that is no number, a missing word) shows the
//! keys that can be told, and costs no more than its arguments.

use super::flags::{Flags, KeyFlags};
use super::special::Special;
use crate::resp::Args;

/// One key of a request and what the request may do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse<'a> {
    /// The number of the argument.
    pub index: usize,
    /// The key.
    pub key: &'a [u8],
    /// The request may modify it.
    pub writes: bool,
    /// The request reads it, or asks whether it is there.
    pub reads: bool,
    /// The request removes it as a whole, whatever its value.
    pub deletes: bool,
}

/// Where some of a command's keys are and how it uses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// The use.
    pub flags: KeyFlags,
    /// Where to begin.
    pub begin: Begin,
    /// How to go on from there.
    pub find: Find,
}

/// Where the keys of a [`KeySpec`] begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument.
    Index(i32),
    /// Behind this word, looked for from this argument on (negative: from the end, backwards).
    Keyword(String, i32),
    /// Cannot be told.
    Unknown,
}

/// How the keys of a [`KeySpec`] go on from where they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// Every `step`-th argument up to `last`.
    Range {
        /// The last key, counted from the first one or, if negative, from the end.
        last: i32,
        /// From one key to the next.
        step: i32,
        /// With `last == -1`: only the first of so many equal parts of what follows; 0 and 1 mean all.
        limit: i32,
    },
    /// As many as an argument says.
    KeyNum {
        /// That argument, counted from the beginning.
        index: i32,
        /// The first key, counted from the beginning.
        first: i32,
        /// From one key to the next.
        step: i32,
    },
    /// Cannot be told.
    Unknown,
}

/// What a command does with a key, in the terms of [`KeyUse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) writes: bool,
    pub(super) reads: bool,
    pub(super) deletes: bool,
}

impl Access {
    pub(super) const READ: Access = Access { writes: false, reads: true, deletes: false };
    pub(super) const OVERWRITE: Access = Access { writes: true, reads: false, deletes: false };
    pub(super) const MODIFY: Access = Access { writes: true, reads: true, deletes: false };
    pub(super) const REMOVE: Access = Access { writes: true, reads: true, deletes: true };

    fn of(flags: KeyFlags, by: By) -> Access {
        match by {
            // What a script does to its keys cannot be told: it counts as a write of each.
            By::Script => Access::OVERWRITE,
            By::Read | By::Write => {
                let writes = by == By::Write && flags.modifies();
                let reads = flags.has(KeyFlags::RO) || flags.has(KeyFlags::ACCESS);
                Access { writes, reads, deletes: writes && flags.has(KeyFlags::WHOLE) }
            }
        }
    }

    #[inline]
    pub(super) fn at<'a>(self, index: usize, key: &'a [u8]) -> KeyUse<'a> {
        KeyUse { index, key, writes: self.writes, reads: self.reads, deletes: self.deletes }
    }
}

/// Who uses the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Read,
    Write,
    Script,
}

impl By {
    pub(super) fn new(name: &str, flags: Flags) -> By {
        match name {
            "eval" | "evalsha" | "fcall" => By::Script,
            _ if flags.has(Flags::WRITE) => By::Write,
            _ => By::Read,
        }
    }
}

/// How the keys of one command are found.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    /// It has none.
    None,
    /// Argument 1 is its only key.
    First(Access),
    /// As its specs say.
    Specs(Box<[KeySpec]>, By),
    /// As code says.
    Special(Special),
}

impl Plan {
    pub(super) fn new(name: &str, specs: Vec<KeySpec>, by: By) -> Plan {
        if let Some(special) = Special::of(name) {
            return Plan::Special(special);
        }
        match &*specs {
            all if all.iter().all(|s| s.flags.has(KeyFlags::NOT_KEY)) => Plan::None,
            [KeySpec { flags, begin: Begin::Index(1), find: Find::Range { last: 0, .. } }] => {
                Plan::First(Access::of(*flags, by))
            }
            _ => Plan::Specs(specs.into_boxed_slice(), by),
        }
    }

    /// Visits the keys of `args`. The frequent case is inlined, the others are not.
    #[inline]
    pub(super) fn visit<'a>(&self, args: Args<'a>, visit: &mut impl FnMut(KeyUse<'a>)) {
        match self {
            Plan::None => {}
            Plan::First(access) => {
                if let Some(key) = args.get(1) {
                    visit(access.at(1, key));
                }
            }
            Plan::Specs(specs, by) => visit_specs(specs, *by, args, visit),
            Plan::Special(special) => special.visit(args, visit),
        }
    }
}

fn visit_specs<'a>(specs: &[KeySpec], by: By, args: Args<'a>, visit: &mut dyn FnMut(KeyUse<'a>)) {
    for spec in specs.iter().filter(|s| !s.flags.has(KeyFlags::NOT_KEY)) {
        let Some(keys) = spec.place(args) else { continue };
        let access = Access::of(spec.flags, by);
        for index in keys {
            if let Some(key) = args.get(index) {
                visit(access.at(index, key));
            }
        }
    }
}

impl KeySpec {
    /// The argument numbers of the keys, all of them below `args.len()`.
    fn place(&self, args: Args<'_>) -> Option<impl Iterator<Item = usize> + use<>> {
        let argc = args.len() as i64;
        let begin = self.begin.place(args)?;
        let (first, last, step) = match self.find {
            Find::Range { last, step, limit } => {
                let last = i64::from(last);
                let last = match (last < 0, limit) {
                    (false, _) => begin + last,
                    (true, ..=1) => argc + last,
                    // The share is what Redis allows here: STREAMS a b 0 0 has two keys.
                    (true, limit) => begin + (argc - begin) / i64::from(limit) - 1,
                };
                (begin, last, step)
            }
            Find::KeyNum { index, first, step } => {
                let count = usize::try_from(begin + i64::from(index)).ok().and_then(|at| args.get(at))?;
                let first = begin + i64::from(first);
                let count = number(count).filter(|n| (1..=argc).contains(n))?;
                let last = first + (count - 1) * i64::from(step);
                // More keys than arguments: Redis refuses the request and looks at none of them.
                (first, (last < argc).then_some(last)?, step)
            }
            Find::Unknown => return None,
        };
        let first = usize::try_from(first).ok().filter(|first| *first > 0)?;
        let end = usize::try_from(last.min(argc - 1) + 1).ok()?;
        Some((first..end).step_by(usize::try_from(step).unwrap_or(1).max(1)))
    }
}

impl Begin {
    /// The argument that the keys begin at; it may lie behind the last one.
    fn place(&self, args: Args<'_>) -> Option<i64> {
        match self {
            Begin::Index(at) => Some(i64::from(*at)),
            Begin::Keyword(word, from) => {
                let is_word =
                    |i: &usize| args.get(*i).is_some_and(|a| a.eq_ignore_ascii_case(word.as_bytes()));
                let found = match usize::try_from(*from) {
                    Ok(from) => (from.max(1)..args.len()).find(is_word),
                    Err(_) => {
                        let from = (args.len() as i64 + i64::from(*from)).max(0) as usize;
                        (1..args.len().min(from + 1)).rev().find(is_word)
                    }
                };
                found.map(|i| i as i64 + 1)
            }
            Begin::Unknown => None,
        }
    }
}

/// The decimal number that `text` is, if it is one.
pub(super) fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use crate::command::Commands;
    use crate::resp::OwnedArgs;

    /// The keys of `request` as "index key access", access being of `rwd`.
    fn keys(request: &str) -> Vec<String> {
        let commands = Commands::builtin();
        let owned: OwnedArgs = request.split(' ').collect();
        let args = owned.as_args();
        let mut found = Vec::new();
        commands.find(args).unwrap().keys(args, |k| {
            let mut access = String::new();
            for (on, letter) in [(k.reads, 'r'), (k.writes, 'w'), (k.deletes, 'd')] {
                access.extend(on.then_some(letter));
            }
            found.push(format!("{} {} {}", k.index, String::from_utf8_lossy(k.key), access));
        });
        found
    }

    #[test]
    fn simple_commands() {
        assert_eq!(keys("GET k"), ["1 k r"]);
        assert_eq!(keys("mset a 1 b 2"), ["1 a w", "3 b w"]);
        assert_eq!(keys("DEL a b"), ["1 a wd", "2 b wd"]);
        assert_eq!(keys("GETDEL a"), ["1 a rwd"]);
        assert_eq!(keys("LPOP a"), ["1 a rw"]);
        assert_eq!(keys("RENAME a b"), ["1 a rwd", "2 b w"]);
        assert_eq!(keys("BLPOP a b 0"), ["1 a rw", "2 b rw"]);
        assert_eq!(keys("EXISTS a a"), ["1 a r", "2 a r"]);
        assert_eq!(keys("object encoding a"), ["2 a r"]);
        assert_eq!(keys("PFCOUNT a"), ["1 a r"]);
        assert_eq!(keys("SPUBLISH channel message"), [""; 0]);
        assert_eq!(keys("PING a"), [""; 0]);
    }

    #[test]
    fn counted_keys() {
        assert_eq!(keys("ZUNIONSTORE d 2 a b WEIGHTS 1 2"), ["1 d w", "3 a r", "4 b r"]);
        assert_eq!(keys("EVAL s 2 a b c"), ["3 a w", "4 b w"]);
        assert_eq!(keys("FCALL f 1 a b"), ["3 a w"]);
        assert_eq!(keys("EVAL_RO s 1 a b"), ["3 a r"]);
        assert_eq!(keys("EVAL s 0 a"), [""; 0]);
        assert_eq!(keys("MSETEX 2 a 1 b 2 EX 5"), ["2 a w", "4 b w"]);
        assert_eq!(keys("LMPOP 1 a LEFT"), ["2 a rw"]);
    }

    #[test]
    fn keywords() {
        assert_eq!(keys("XREAD COUNT 1 STREAMS a b 0 0"), ["4 a r", "5 b r"]);
        assert_eq!(keys("XREADGROUP GROUP g c STREAMS streams >"), ["5 streams rw"]);
        assert_eq!(keys("XREAD COUNT 1"), [""; 0]);
    }

    #[test]
    fn nonsense_shows_no_keys() {
        for count in ["x", "-1", "3", "99999999999999999999", "9223372036854775807", ""] {
            assert_eq!(keys(&format!("EVAL s {count} a b")), [""; 0], "{count}");
        }
        assert_eq!(keys("GET"), [""; 0]);
        assert_eq!(keys("EVAL"), [""; 0]);
        assert_eq!(keys("BLPOP"), [""; 0]);
        assert_eq!(keys("XREAD STREAMS"), [""; 0]);
    }
}
