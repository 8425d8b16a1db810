//! Whether a write took place, told from its request and its reply: only then do triggers fire.

use crate::resp::{Args, Head};

/// How a command's reply says that it did nothing although it is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fires {
    /// It does not: any reply but an error fires. A DEL of a missing key fires too.
    Always,
    /// A script's: so does an error, as what the script has done before it stays.
    Script,
    /// SET: its options decide.
    Set,
    /// 0, or less, says that nothing was done (SETNX, COPY, LPUSHX, LINSERT).
    UnlessZero,
    /// The same, if there are options behind the key (DELEX).
    UnlessZeroWithOptions,
    /// Nil says so (LMOVE, XREADGROUP).
    UnlessNil,
    /// The same, with NOMKSTREAM (XADD).
    UnlessNilWithNoStream,
}

/// What the reply to one request must be for triggers to fire. Taken from the request when it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FireCondition {
    /// Anything but an error.
    NoError,
    /// Anything but an error that says that nothing has run.
    Ran,
    /// Neither an error nor nil.
    NotNil,
    /// Nil: the old value of a `SET … NX GET` that was performed.
    Nil,
    /// Neither an error nor nil, nor 0 or less.
    NotZero,
}

impl Fires {
    pub(super) fn of(name: &str) -> Fires {
        match name {
            "set" => Fires::Set,
            "setnx" | "msetnx" | "hsetnx" | "renamenx" | "copy" | "move" | "lpushx" | "rpushx" => {
                Fires::UnlessZero
            }
            "msetex" | "hsetex" | "delifeq" | "smove" | "linsert" => Fires::UnlessZero,
            "delex" => Fires::UnlessZeroWithOptions,
            "lmove" | "blmove" | "rpoplpush" | "brpoplpush" | "zadd" | "xreadgroup" => Fires::UnlessNil,
            "xadd" => Fires::UnlessNilWithNoStream,
            "eval" | "evalsha" | "fcall" => Fires::Script,
            _ => Fires::Always,
        }
    }

    /// The condition for the request `args`.
    #[inline]
    pub(super) fn condition(self, args: Args<'_>) -> FireCondition {
        match self {
            Fires::Always => FireCondition::NoError,
            Fires::Script => FireCondition::Ran,
            Fires::Set if args.len() <= 3 => FireCondition::NoError,
            Fires::Set => SetOptions::parse(args).condition(),
            Fires::UnlessZero => FireCondition::NotZero,
            Fires::UnlessZeroWithOptions if args.len() > 2 => FireCondition::NotZero,
            Fires::UnlessZeroWithOptions => FireCondition::NoError,
            Fires::UnlessNil => FireCondition::NotNil,
            // Where a field is called so nothing is lost: nil says the same of every XADD.
            Fires::UnlessNilWithNoStream if has_no_stream(args) => FireCondition::NotNil,
            Fires::UnlessNilWithNoStream => FireCondition::NoError,
        }
    }
}

impl FireCondition {
    /// Whether triggers fire, given the head of the reply.
    pub fn fired(self, reply: &Head<'_>) -> bool {
        if reply.is_error() {
            return self == FireCondition::Ran
                && !matches!(reply, Head::Error(text) if says_nothing_ran(text));
        }
        match self {
            FireCondition::NoError | FireCondition::Ran => true,
            FireCondition::NotNil => *reply != Head::Null,
            FireCondition::Nil => *reply == Head::Null,
            FireCondition::NotZero => !matches!(reply, Head::Int(..=0) | Head::Null | Head::Bool(false)),
        }
    }
}

/// Stands for any error that says so.
pub const NOT_BEGUN: &[u8] = b"NOSCRIPT";

/// Whether a script with that error has not begun. Of what goes wrong within it, Redis 7 and later tell the place.
pub fn says_nothing_ran(text: &[u8]) -> bool {
    const BEGINS: &[&[u8]] = &[
        NOT_BEGUN,
        b"NOPERM",
        b"NOAUTH Authentication required",
        b"BUSY Redis is busy",
        b"BUSY Valkey is busy",
        b"LOADING Redis is loading",
        b"LOADING Valkey is loading",
        b"MASTERDOWN Link with MASTER",
        // Those are judged before the first write.
        b"READONLY",
        b"MISCONF",
        b"NOREPLICAS",
        b"OOM",
        b"ERR Error compiling script",
        b"ERR Function not found",
    ];
    memchr::memmem::find(text, b" script: ").is_none() && BEGINS.iter().any(|begin| text.starts_with(begin))
}

/// `XADD key [NOMKSTREAM] [MAXLEN [~] threshold [LIMIT count]] id …`, with its options in any order.
fn has_no_stream(args: Args<'_>) -> bool {
    (2..8).filter_map(|i| args.get(i)).any(|arg| arg.eq_ignore_ascii_case(b"nomkstream"))
}

/// The options of a SET, as far as they matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetOptions {
    pub(super) get: bool,
    pub(super) nx: bool,
    xx: bool,
    /// IFEQ and its kin.
    compares: bool,
}

impl SetOptions {
    /// Reads `SET key value [option [value]]…`.
    pub(super) fn parse(args: Args<'_>) -> SetOptions {
        let mut options = SetOptions::default();
        let mut i = 3;
        while let Some(arg) = args.get(i) {
            let is = |word: &[u8]| arg.eq_ignore_ascii_case(word);
            // Values are stepped over: `IFEQ get` does not get.
            i += match (arg.len(), arg.first().map(u8::to_ascii_lowercase)) {
                (2, Some(b'e' | b'p')) if is(b"ex") || is(b"px") => 2,
                (4, Some(b'e' | b'p')) if is(b"exat") || is(b"pxat") => 2,
                (4, Some(b'i')) if is(b"ifeq") || is(b"ifne") => options.set_compares(),
                (5, Some(b'i')) if is(b"ifdeq") || is(b"ifdne") => options.set_compares(),
                (length, _) => {
                    options.nx |= length == 2 && is(b"nx");
                    options.xx |= length == 2 && is(b"xx");
                    options.get |= length == 3 && is(b"get");
                    1
                }
            };
        }
        options
    }

    /// Notes a comparison; answers how many arguments it takes.
    fn set_compares(&mut self) -> usize {
        self.compares = true;
        2
    }

    fn condition(self) -> FireCondition {
        match self {
            // The old value does not tell whether it compared equal, so this one fires always.
            SetOptions { compares: true, get: true, .. } => FireCondition::NoError,
            SetOptions { nx: true, get: true, .. } => FireCondition::Nil,
            SetOptions { xx: true, .. } | SetOptions { nx: true, .. } => FireCondition::NotNil,
            SetOptions { compares: true, .. } => FireCondition::NotNil,
            _ => FireCondition::NoError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Commands;
    use crate::resp::OwnedArgs;

    const OK: Head<'static> = Head::Simple(b"OK");
    const ERROR: Head<'static> = Head::Error(b"ERR no");

    fn fires(request: &str, reply: Head<'_>) -> bool {
        let commands = Commands::builtin();
        let owned: OwnedArgs = request.split(' ').collect();
        let args = owned.as_args();
        let command = commands.find(args).unwrap();
        command.fire_condition(args).fired(&reply)
    }

    #[test]
    fn set_without_get() {
        for request in ["SET k v NX", "set k v ex 5 xx", "SET k v IFEQ nx", "SET k v IFDNE 5"] {
            assert!(fires(request, OK), "{request}");
            assert!(!fires(request, Head::Null), "{request}");
            assert!(!fires(request, ERROR), "{request}");
        }
        assert!(fires("SET k v", OK));
        assert!(fires("SET k nx", OK));
        assert!(!fires("SET k v", ERROR));
    }

    #[test]
    fn set_with_get_answers_the_old_value() {
        assert!(fires("SET k v GET", Head::Null));
        assert!(fires("SET k v GET", Head::Bulk(3)));
        assert!(fires("SET k v NX GET", Head::Null));
        assert!(!fires("SET k v GET NX", Head::Bulk(0)));
        assert!(fires("SET k v GET XX PX 5", Head::Bulk(3)));
        assert!(!fires("SET k v XX GET", Head::Null));
        assert!(fires("SET k v IFEQ a GET", Head::Null));
        assert!(fires("SET k v IFEQ a GET", Head::Bulk(3)));
        assert!(!fires("SET k v GET", Head::BlobError(3)));
    }

    #[test]
    fn zero_says_no_only_where_it_means_no() {
        for request in ["SETNX k v", "COPY a b", "MOVE a 1", "LPUSHX a 1", "DELIFEQ a b", "DELEX a IFEQ b"] {
            assert!(!fires(request, Head::Int(0)), "{request}");
            assert!(fires(request, Head::Int(1)), "{request}");
        }
        assert!(fires("DEL a", Head::Int(0)));
        assert!(fires("DELEX a", Head::Int(0)));
        assert!(fires("HSET a f v", Head::Int(0)));
        for request in ["LINSERT a BEFORE b c", "SMOVE a b c"] {
            assert!(!fires(request, Head::Int(0)) && !fires(request, Head::Int(-1)), "{request}");
            assert!(fires(request, Head::Int(1)), "{request}");
        }
    }

    #[test]
    fn nil_says_no_where_there_was_nothing_to_take() {
        for request in [
            "LMOVE a b LEFT LEFT",
            "BLMOVE a b LEFT LEFT 1",
            "RPOPLPUSH a b",
            "BRPOPLPUSH a b 1",
            "XREADGROUP GROUP g c STREAMS a >",
            "ZADD a XX INCR 1 m",
            "XADD a MAXLEN ~ 5 LIMIT 1 nomkstream * f v",
        ] {
            assert!(!fires(request, Head::Null), "{request}");
            assert!(fires(request, Head::Bulk(1)), "{request}");
        }
        assert!(fires("ZADD a 1 m", Head::Int(0)));
        assert!(fires("GETSET a b", Head::Null));
        let condition = |request: &str| {
            let owned: OwnedArgs = request.split(' ').collect();
            Fires::of("xadd").condition(owned.as_args())
        };
        // So that it is filled by a short script.
        assert_eq!(condition("XADD a * f v"), FireCondition::NoError);
    }
}
