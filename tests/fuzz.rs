//! The fuzz targets without a fuzzer: handwritten samples, mutated at random for two seconds each.
//!
//! `RESCIND_FUZZ_SECONDS` makes it longer. A failure prints its seed; `RESCIND_FUZZ_SEED` runs that one case
//! again.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rescind::config::Fsync;
use rescind::fuzzing;
use rescind::journal::{Journal, Options, Scope};

const REQUEST: &[&[u8]] = &[
    b"\x00*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\na\r\nbc\r\n",
    b"\x02*1\r\n$4\r\nPING\r\nset a 'b c' \"\\x41\\n\"\r\n*0\r\n\r\n*-1\r\n",
    b"\x03*11\r\n$16385\r\n*2147483648\r\n$536870913\r\n",
    b"\x07GET \"k\\\"\" 'it\\'s'\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
];

const REPLY: &[&[u8]] = &[
    b"\x00+OK\r\n-ERR no\r\n:-12\r\n$-1\r\n*-1\r\n$0\r\n\r\n_\r\n#t\r\n,1.5\r\n(123456789012345678901234567890\r\n",
    b"\x01*3\r\n*1\r\n$2\r\na\n\r\n%2\r\n+a\r\n:1\r\n+b\r\n*0\r\n~2\r\n:1\r\n:2\r\n",
    b"\x02|1\r\n+ttl\r\n:3\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n=7\r\ntxt:abc\r\n!5\r\nERR x\r\n",
    b"\x05*2\r\n|1\r\n+a\r\n|0\r\n:1\r\n%0\r\n*4294967295\r\n%4294967295\r\n$4294967295\r\n",
];

const SESSION: &[&[u8]] = &[
    b"\x00WATCH k\n\x01MULTI\n\x00SET k v\n\x01EXEC\n\x03DISCARD\n\x00UNWATCH\n\x05GET k",
    b"\x00HELLO 3 AUTH joe pw SETNAME me\n\x01SELECT 3\n\x05AUTH pw\n\x00CLIENT GETNAME\n\x01RESET\n\x00QUIT",
    b"\x00SUBSCRIBE a b\n\x01PSUBSCRIBE p*\n\x01SSUBSCRIBE s\n\x03UNSUBSCRIBE\n\x01PUNSUBSCRIBE p*\n\x00SUNSUBSCRIBE",
    b"\x00CLIENT REPLY OFF\n\x00CLIENT REPLY SKIP\n\x00CLIENT REPLY ON\n\x00CLIENT TRACKING ON\n\x00MONITOR",
    b"\x00BLPOP k 0\n\x01XREAD BLOCK 0 STREAMS s $\n\x01WAIT 1 0\n\x02TAG.WITH 1 t SET k v\n\x00TAG.INVALIDATE t",
];

const COMMAND_KEYS: &[&[u8]] = &[
    b"SET\0k\0v\0EX\x0010\0NX\0GET",
    b"MSET\0a\x001\0b\x002",
    b"EVAL\0return 1\x002\0a\0b\0arg",
    b"SORT\0k\0BY\0w_*\0GET\0#\0STORE\0out",
    b"GEORADIUS\0k\x001\x002\x003\0m\0STORE\0out\0STOREDIST\0far",
    b"XREADGROUP\0GROUP\0g\0c\0BLOCK\x000\0STREAMS\0a\0b\0>\0>",
    b"ZUNIONSTORE\0out\x002\0a\0b\0WEIGHTS\x001\x002",
    b"MIGRATE\0host\x006379\0\x000\x00100\0AUTH\0x\0KEYS\0a\0b",
    b"BITFIELD\0k\0GET\0u8\x000\0SET\0u8\x000\x001",
    b"COPY\0a\0b\0DB\x001\0REPLACE",
    b"LMPOP\x002\0a\0b\0LEFT\0COUNT\x002",
    b"MEMORY\0USAGE\0k\0SAMPLES\x005",
    b"CLIENT\0SETNAME\0me",
    b"BZMPOP\x000\x002\0a\0b\0MIN",
    b"TAG.WITH\x001\0t\0SET\0k\0v",
];

const RULES: &[&[u8]] = &[
    b"p:1:\ntPage page_*\ntpost:{id} post:{id}:* feed:*:{id}\nghome post:{id}:*\n:1:post:7:body\n:1:page_1\n",
    b"tt:{a}:{b} x{a}y{b}z\nfall *\nfone one? [ab]c \\*\ngt:{m} model:{m}:{pk}\nmodel:u:1\nxaybz\none1\n",
    b"ta a*\ncb a\ncc b\nca c\ncx:{id} y:{id}\ncy:{id} x:{id}\na1\n",
    b"p*:\nttag {a}{b}\nt{a} {a}:{a}\nt* k\ng{zz} {a}\n:::\n",
];

/// A step of the mutations: numbers and words that parsers care about.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"*",
    b"$",
    b"-1",
    b"0",
    b"1",
    b"2",
    b"4294967295",
    b"2147483647",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"%",
    b"|",
    b">",
    b"~",
    b"!",
    b"=",
    b"_",
    b"*1\r\n",
    b"|1\r\n",
    b"'",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"{id}",
    b"?",
    b"**",
    b"STORE",
    b"KEYS",
    b"STREAMS",
    b"BLOCK",
    b"MULTI",
    b"EXEC",
    b"RESET",
    b"[[trigger]]",
    b"[tags]",
    b"= ",
    b"\xff",
    b"\xc3\xa9",
    b"999999999999999999999",
];

fn mutate(bytes: &mut Vec<u8>, samples: &[&[u8]], rng: &mut Rng) {
    for _ in 0..rng.usize(0..8) {
        let at = rng.usize(0..=bytes.len());
        let until = (at + rng.usize(0..16)).min(bytes.len());
        match rng.u8(0..8) {
            0 => drop(bytes.drain(at..until)),
            1 => bytes.truncate(at.max(1)),
            2 if at < bytes.len() => bytes[at] = rng.u8(..),
            3 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            4 => {
                let copy = bytes[at..until].repeat(rng.usize(1..6));
                bytes.splice(at..at, copy);
            }
            5 => {
                let other = samples[rng.usize(0..samples.len())];
                let from = rng.usize(0..=other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let word = WORDS[rng.usize(0..WORDS.len())];
                let replaced = if rng.bool() { at } else { until };
                bytes.splice(at..replaced, word.iter().copied());
            }
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// One case, all of it determined by its seed.
fn case(seed: u64, samples: &[&[u8]], body: fn(&[u8])) {
    let mut rng = Rng::with_seed(seed);
    let mut bytes = samples[rng.usize(0..samples.len())].to_vec();
    mutate(&mut bytes, samples, &mut rng);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&bytes))) {
        eprintln!(
            "failed with RESCIND_FUZZ_SEED={seed} on {} bytes: \"{}\"",
            bytes.len(),
            bytes.escape_ascii()
        );
        resume_unwind(panic);
    }
}

fn fuzz(samples: &[&[u8]], body: fn(&[u8])) {
    if let Some(seed) = number("RESCIND_FUZZ_SEED") {
        return case(seed, samples, body);
    }
    samples.iter().for_each(|sample| body(sample));
    let until = Instant::now() + Duration::from_secs(number("RESCIND_FUZZ_SECONDS").unwrap_or(2));
    let mut cases = 0u64;
    while Instant::now() < until {
        case(fastrand::u64(..), samples, body);
        cases += 1;
    }
    eprintln!("{cases} cases");
}

#[test]
fn request() {
    fuzz(REQUEST, fuzzing::request);
}

#[test]
fn reply() {
    fuzz(REPLY, fuzzing::reply);
}

#[test]
fn session() {
    fuzz(SESSION, fuzzing::session);
}

#[test]
fn command_keys() {
    fuzz(COMMAND_KEYS, fuzzing::command_keys);
}

#[test]
fn rules() {
    fuzz(RULES, fuzzing::rules);
}

#[test]
fn journal() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        folder: folder.path().to_owned(),
        fsync: Fsync::Never,
        upstream: "up".to_owned(),
        window: Duration::from_secs(3600),
        rules: 7,
    };
    let (journal, _) = Journal::open(options).unwrap();
    for tag in [&b"post:1"[..], b"\xff\0"] {
        drop(journal.intend((Scope::Tags(vec![tag.into()]), "SET a".to_owned())));
    }
    drop(journal.intend((Scope::Everything, String::new())));
    journal.saw("run id".to_owned());
    journal.close(true);
    let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read(path).unwrap();
    let intent = b"\x01\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0a\x01\x02\0\0\0\x01\0\0\0b\0\0\0\0";
    fuzz(&[&file, intent, b"\x05"], fuzzing::journal);
}

#[test]
fn config() {
    let reference = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml")).unwrap();
    let small: &[u8] = b"[listen]\naddress = [\"127.0.0.1:6380\"]\nidle_timeout = \"5s\"\n[upstream]\n\
        url = \"redis://joe:pw@h:1/2\"\n[keys]\nprefix = \":1:\"\n[tags]\nPost = [\"post_*\"]\n\
        [[family]]\nname = \"f\"\nkeys = [\"a*\"]\n[[trigger]]\nkeys = [\"m:{x}\"]\ninvalidate = [\"{x}\"]\n";
    fuzz(&[&reference, small], fuzzing::config);
}
