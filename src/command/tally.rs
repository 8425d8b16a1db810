//! Hits and misses, as the reply of a read shows them.

use super::flags::Flags;
use crate::resp::Head;
use smallvec::SmallVec;

/// How the hits and misses of a command show in its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// It is no countable read.
    Uncounted,
    /// Nil, 0 or nothing in it is a miss.
    Value,
    /// As `Value`, but what is there need not be of all of the keys (SUNION).
    Union,
    /// An array: a miss if all its elements are nil (HMGET).
    NotAllNil,
    /// An array: a miss if all its elements are 0 (SMISMEMBER).
    NotAllZero,
    /// An array: a miss if all its elements are -2 (HTTL).
    NotAllAbsent,
    /// -2 is a miss (TTL).
    NotAbsent,
    /// A negative number is a miss (BITPOS).
    NotNegative,
    /// `none` is a miss (TYPE).
    NotNone,
    /// A cursor and an array: a miss if that is empty (HSCAN).
    Scan,
    /// An array with one element per key (MGET).
    PerKey,
    /// The number of keys that are there (EXISTS).
    Count,
}

impl Reads {
    /// How `name` shows its hits, given its flags and whether it has keys.
    pub(super) fn of(name: &str, flags: Flags, has_keys: bool) -> Reads {
        match name {
            "eval_ro" | "evalsha_ro" | "fcall_ro" => Reads::Uncounted,
            "getex" => Reads::Value,
            "hmget" | "geopos" | "geohash" | "zmscore" | "hgetex" => Reads::NotAllNil,
            "smismember" | "bitfield_ro" | "bitfield" => Reads::NotAllZero,
            // They may also write what they have read: then it does not count, but a miss is one.
            "sort" | "georadius" | "georadiusbymember" => Reads::Value,
            "httl" | "hpttl" | "hexpiretime" | "hpexpiretime" => Reads::NotAllAbsent,
            "ttl" | "pttl" | "expiretime" | "pexpiretime" => Reads::NotAbsent,
            "sunion" | "zunion" | "sdiff" | "zdiff" | "pfcount" | "xread" => Reads::Union,
            "bitpos" => Reads::NotNegative,
            "type" => Reads::NotNone,
            "hscan" | "sscan" | "zscan" => Reads::Scan,
            "mget" | "json.mget" => Reads::PerKey,
            "exists" | "touch" => Reads::Count,
            _ if flags.has(Flags::READONLY) && has_keys => Reads::Value,
            _ => Reads::Uncounted,
        }
    }
}

/// Whether the elements of an aggregate matter. Where they do not, the head of the reply decides alone, and the
/// caller may skip the rest.
pub fn reads_need_elements(reads: Reads) -> bool {
    use Reads::*;
    matches!(reads, NotAllNil | NotAllZero | NotAllAbsent | Scan | PerKey)
}

/// What a reply says about the keys of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Nothing: no countable read, or an error.
    Uncounted,
    /// All are hits, or all are misses.
    All(bool),
    /// One by one, in the order of the request: whether it is a hit.
    PerKey(&'a [bool]),
    /// So many are hits, it cannot be told which; more than none and less than all.
    Some(u64),
}

/// Folds the heads of one reply into hits and misses.
#[derive(Clone, Debug)]
pub struct Tally {
    reads: Reads,
    keys: usize,
    state: State,
    /// Elements seen at depth 1.
    elements: u64,
    /// Some of what was asked for is not there, though the key is.
    lacks: bool,
    /// Heads deeper than this describe the value that follows and are not part of it.
    attribute: Option<u32>,
    per_key: SmallVec<[bool; 8]>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Uncounted,
    All(bool),
    PerKey,
    Some(u64),
}

impl Tally {
    /// A tally for one reply of a command that reads `keys` keys.
    pub fn new(reads: Reads, keys: usize) -> Tally {
        Tally {
            reads,
            keys,
            state: State::Uncounted,
            elements: 0,
            lacks: false,
            attribute: None,
            per_key: SmallVec::new(),
        }
    }

    /// The next head of the reply. `depth` 0 is the reply itself, 1 its elements; the contents of an attribute are
    /// one deeper than the attribute, the value it describes is as deep as the attribute.
    pub fn on(&mut self, depth: u32, head: &Head<'_>) {
        match (self.attribute, head) {
            (Some(outer), _) if depth > outer => return,
            (_, Head::Attribute(_)) => return self.attribute = Some(depth),
            _ => self.attribute = None,
        }
        match depth {
            0 => self.state = self.start(head),
            1 => self.element(head),
            _ => {}
        }
    }

    /// Whether some of what was asked for of a key is not there: the client may add it, although it is a hit.
    pub fn lacks_some(&self) -> bool {
        self.lacks
    }

    /// What the heads so far say.
    pub fn finish(&self) -> Outcome<'_> {
        match self.state {
            State::Uncounted => Outcome::Uncounted,
            State::All(hit) => Outcome::All(hit),
            State::PerKey => Outcome::PerKey(&self.per_key),
            State::Some(hits) => Outcome::Some(hits),
        }
    }

    fn start(&self, head: &Head<'_>) -> State {
        if head.is_error() {
            return State::Uncounted;
        }
        let aggregate = matches!(head, Head::Array(_) | Head::Set(_) | Head::Map(_) | Head::Push(_));
        match self.reads {
            Reads::Uncounted => State::Uncounted,
            Reads::NotAbsent => State::All(*head != Head::Int(-2)),
            Reads::NotNegative => State::All(!matches!(head, Head::Int(..0))),
            Reads::NotNone => State::All(*head != Head::Simple(b"none")),
            Reads::Count => self.count(head),
            Reads::PerKey if aggregate => State::PerKey,
            // The elements may turn this into a hit.
            reads if aggregate && reads_need_elements(reads) => State::All(false),
            _ => State::All(is_there(head)),
        }
    }

    fn count(&self, head: &Head<'_>) -> State {
        match head {
            Head::Int(hits) if *hits >= self.keys as i64 => State::All(*hits > 0),
            Head::Int(hits) if *hits > 0 => State::Some(hits.unsigned_abs()),
            _ => State::All(false),
        }
    }

    fn element(&mut self, head: &Head<'_>) {
        let index = self.elements;
        self.elements += 1;
        let hit = match self.reads {
            Reads::NotAllNil => *head != Head::Null,
            Reads::NotAllZero => !matches!(head, Head::Int(0) | Head::Null | Head::Bool(false)),
            Reads::NotAllAbsent => !matches!(head, Head::Int(-2) | Head::Null),
            Reads::Scan => index == 1 && is_there(head),
            Reads::PerKey if self.per_key.len() < self.keys => return self.per_key.push(is_there(head)),
            _ => return,
        };
        self.lacks |= !hit && self.reads != Reads::Scan;
        if let (true, State::All(_)) = (hit, self.state) {
            self.state = State::All(true);
        }
    }
}

/// The general rule: nil, 0 and whatever is empty is a miss.
#[inline]
pub fn is_there(head: &Head<'_>) -> bool {
    match *head {
        Head::Null | Head::Int(0) | Head::Bool(false) | Head::Error(_) | Head::BlobError(_) => false,
        Head::Simple(text) => !text.is_empty(),
        Head::Bulk(n) | Head::Array(n) | Head::Map(n) | Head::Set(n) | Head::Push(n) => n > 0,
        // A verbatim string begins with its format, as in "txt:".
        Head::Verbatim(n) => n > 4,
        Head::Int(_) | Head::Bool(true) | Head::Double | Head::BigNumber | Head::Attribute(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Commands;
    use Head::{Array, Bulk, Double, Int, Null};

    fn reads(name: &str) -> Reads {
        Commands::builtin().by_name(name).unwrap().reads
    }

    fn all(name: &str, heads: &[(u32, Head<'_>)]) -> Option<bool> {
        let mut tally = Tally::new(reads(name), 1);
        heads.iter().for_each(|(depth, head)| tally.on(*depth, head));
        match tally.finish() {
            Outcome::All(hit) => Some(hit),
            Outcome::Uncounted => None,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_counts_as_a_read() {
        for name in [
            "get",
            "getex",
            "xread",
            "exists",
            "object|encoding",
            "memory|usage",
            "lcs",
            "zdiff",
            "sort_ro",
            "sort",
        ] {
            assert_ne!(reads(name), Reads::Uncounted, "{name}");
        }
        let writes = ["set", "getdel", "getset", "lpop", "xreadgroup"];
        let others = ["eval_ro", "fcall_ro", "watch", "ping", "scan", "publish", "keys", "eval", "tag.of"];
        for name in writes.into_iter().chain(others) {
            assert_eq!(reads(name), Reads::Uncounted, "{name}");
        }
    }

    #[test]
    fn general_rule() {
        for (head, hit) in [
            (Null, false),
            (Bulk(0), false),
            (Bulk(1), true),
            (Int(0), false),
            (Int(-1), true),
            (Array(0), false),
            (Head::Map(0), false),
            (Head::Map(2), true),
            (Head::Set(0), false),
            (Double, true),
            (Head::Verbatim(4), false),
        ] {
            assert_eq!(all("get", &[(0, head)]), Some(hit), "{head:?}");
        }
        assert_eq!(all("get", &[(0, Head::Error(b"ERR"))]), None);
        assert_eq!(all("get", &[(0, Head::BlobError(3))]), None);
        assert_eq!(all("get", &[]), None);
    }

    #[test]
    fn rules_of_their_own() {
        assert_eq!(all("ttl", &[(0, Int(-2))]), Some(false));
        assert_eq!(all("pexpiretime", &[(0, Int(-1))]), Some(true));
        assert_eq!(all("pttl", &[(0, Int(0))]), Some(true));
        assert_eq!(all("type", &[(0, Head::Simple(b"none"))]), Some(false));
        assert_eq!(all("type", &[(0, Head::Simple(b"hash"))]), Some(true));
    }

    #[test]
    fn elements_decide() {
        assert_eq!(all("hmget", &[(0, Array(2)), (1, Null), (1, Null)]), Some(false));
        assert_eq!(all("hmget", &[(0, Array(2)), (1, Bulk(0)), (1, Null)]), Some(true));
        assert_eq!(all("zmscore", &[(0, Array(2)), (1, Null), (1, Double)]), Some(true));
        assert_eq!(all("geopos", &[(0, Array(1)), (1, Null)]), Some(false));
        assert_eq!(all("geopos", &[(0, Array(1)), (1, Array(2)), (2, Null), (2, Null)]), Some(true));
        assert_eq!(all("smismember", &[(0, Array(2)), (1, Int(0)), (1, Int(0))]), Some(false));
        assert_eq!(all("smismember", &[(0, Array(2)), (1, Int(1)), (1, Int(0))]), Some(true));
        assert_eq!(all("httl", &[(0, Array(1)), (1, Int(-2))]), Some(false));
        assert_eq!(all("hscan", &[(0, Array(2)), (1, Bulk(1)), (1, Array(0))]), Some(false));
        assert_eq!(all("zscan", &[(0, Array(2)), (1, Bulk(1)), (1, Array(2)), (2, Bulk(1))]), Some(true));
        assert_eq!(all("hmget", &[(0, Head::Error(b"WRONGTYPE"))]), None);
    }

    #[test]
    fn attributes_are_not_the_reply() {
        assert_eq!(
            all("get", &[(0, Head::Attribute(1)), (1, Bulk(3)), (1, Bulk(3)), (0, Null)]),
            Some(false)
        );
        let inner = [(0, Array(1)), (1, Head::Attribute(1)), (2, Bulk(3)), (2, Bulk(3)), (1, Null)];
        assert_eq!(all("hmget", &inner), Some(false));
    }

    #[test]
    fn keys_one_by_one() {
        let mut tally = Tally::new(reads("mget"), 3);
        for (depth, head) in [(0, Array(3)), (1, Null), (1, Bulk(3)), (1, Bulk(0)), (1, Bulk(1))] {
            tally.on(depth, &head);
        }
        assert_eq!(tally.finish(), Outcome::PerKey(&[false, true, false]));
    }

    #[test]
    fn counted_keys() {
        for (hits, outcome) in
            [(0, Outcome::All(false)), (1, Outcome::Some(1)), (2, Outcome::Some(2)), (3, Outcome::All(true))]
        {
            let mut tally = Tally::new(reads("exists"), 3);
            tally.on(0, &Int(hits));
            assert_eq!(tally.finish(), outcome);
        }
    }
}
