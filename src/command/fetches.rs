//! Which reads fetch a value as a whole, so that an empty reply proves that there is none.

use crate::resp::Args;

/// How a read fetches its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetches {
    /// It does not, or not always.
    No,
    /// Its first argument is the only key, and all of its value, or whether there is one, is the reply.
    Whole,
    /// The same, where the range is all there is.
    Range,
}

impl Fetches {
    /// How a command of this name fetches its key.
    pub(super) fn of(name: &str) -> Fetches {
        match name {
            // Not HGET or SISMEMBER: what is not there may be a part of a value that is.
            "get" | "hgetall" | "hkeys" | "hvals" | "smembers" | "dump" | "exists" => Fetches::Whole,
            "lrange" | "zrange" => Fetches::Range,
            _ => Fetches::No,
        }
    }

    /// Whether this request does.
    #[inline]
    pub(super) fn all(self, args: Args<'_>) -> bool {
        let is = |index, word: &[u8]| args.get(index) == Some(word);
        match self {
            Fetches::No => false,
            Fetches::Whole => args.len() == 2,
            Fetches::Range => {
                let plain = args.len() == 4 || (args.len() == 5 && super::is(args, 4, "withscores"));
                plain && is(2, b"0") && is(3, b"-1")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::command::Commands;
    use crate::resp::OwnedArgs;

    #[test]
    fn values_as_a_whole() {
        let commands = Commands::builtin();
        let fetches = |line: &str| {
            let args: OwnedArgs = line.split(' ').collect();
            commands.find(args.as_args()).unwrap().fetches(args.as_args())
        };
        for line in ["GET k", "hgetall k", "EXISTS k", "LRANGE k 0 -1", "ZRANGE k 0 -1 withscores"] {
            assert!(fetches(line), "{line}");
        }
        for line in [
            "GET",
            "GET a b",
            "EXISTS a b",
            "MGET a",
            "HGET k f",
            "HMGET k f",
            "STRLEN k",
            "TTL k",
            "LRANGE k 0 9",
            "LRANGE k 1 -1",
            "ZRANGE k 0 -1 BYLEX",
            "SET k v",
            "GETDEL k",
            "SISMEMBER k m",
            "GETRANGE k 0 -1",
            "PING k",
        ] {
            assert!(!fetches(line), "{line}");
        }
    }
}
