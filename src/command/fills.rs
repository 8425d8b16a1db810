//! Which writes may put a value into the cache that was computed before.

/// How a write changes its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It replaces the value.
    Whole,
    /// It adds to the value: a fill may take several of these.
    Part,
    /// It adds to a string: a fill may begin with a whole one.
    More,
    /// It counts: a part, but nobody fills a key with that who has not missed it.
    Count,
    /// A script of the client's own, of which nobody knows what it does: it may only read.
    Perhaps,
}

/// Writes that take something away or change the time to live: they bring no value.
const BRING_NOTHING: &[&str] = &[
    "del",
    "unlink",
    "delex",
    "delifeq",
    "getdel",
    "expire",
    "pexpire",
    "expireat",
    "pexpireat",
    "persist",
    "getex",
    "hexpire",
    "hpexpire",
    "hexpireat",
    "hpexpireat",
    "hpersist",
    "hgetex",
    "hgetdel",
    "hdel",
    "lpop",
    "rpop",
    "lmpop",
    "blpop",
    "brpop",
    "blmpop",
    "ltrim",
    "lrem",
    "spop",
    "srem",
    "zrem",
    "zpopmin",
    "zpopmax",
    "zmpop",
    "bzpopmin",
    "bzpopmax",
    "bzmpop",
    "zremrangebyrank",
    "zremrangebyscore",
    "zremrangebylex",
    "xdel",
    "xtrim",
    "xack",
    "xclaim",
    "xautoclaim",
    "xgroup",
    "xreadgroup",
    "migrate",
    "flushall",
    "flushdb",
];

/// Writes that add to a string.
const ADD_TO_STRING: &[&str] = &["append", "setrange"];

/// Writes that count.
const COUNT: &[&str] =
    &["incr", "incrby", "incrbyfloat", "decr", "decrby", "hincrby", "hincrbyfloat", "zincrby"];

/// Scripts that may write.
const SCRIPTS: &[&str] = &["eval", "evalsha", "fcall"];

/// Writes that add to a value.
const ADD: &[&str] = &[
    "setbit", "bitfield", "hset", "hmset", "hsetnx", "hsetex", "lpush", "rpush", "lpushx", "rpushx",
    "linsert", "lset", "sadd", "zadd", "geoadd", "pfadd", "xadd",
];

/// Those whose reply comes through a script as it is: a status, a string, nil or a number that a double holds.
const SCRIPTED: &[&str] = &[
    "set",
    "setex",
    "psetex",
    "setnx",
    "mset",
    "msetnx",
    "getset",
    "append",
    "setrange",
    "hset",
    "hmset",
    "hsetnx",
    "hsetex",
    "msetex",
    "lpush",
    "rpush",
    "lpushx",
    "rpushx",
    "linsert",
    "lset",
    "sadd",
    "pfadd",
    "geoadd",
    "xadd",
    "setbit",
    "incrbyfloat",
    "hincrbyfloat",
    "rename",
    "renamenx",
    "copy",
    "bitop",
    "sunionstore",
    "sinterstore",
    "sdiffstore",
    "zunionstore",
    "zinterstore",
    "zdiffstore",
    "zrangestore",
];

/// How a write command of this name changes its keys. `None`: it brings no value.
pub(super) fn of(name: &str) -> Option<Fill> {
    if ADD_TO_STRING.contains(&name) {
        Some(Fill::More)
    } else if ADD.contains(&name) {
        Some(Fill::Part)
    } else if COUNT.contains(&name) {
        Some(Fill::Count)
    } else if SCRIPTS.contains(&name) {
        Some(Fill::Perhaps)
    } else if BRING_NOTHING.contains(&name) {
        None
    } else {
        Some(Fill::Whole)
    }
}

/// Whether a script can run the command and pass its reply on unchanged.
pub(super) fn is_scripted(name: &str) -> bool {
    SCRIPTED.contains(&name)
}
