//! Replies as heads, against accounts made by hand: what is counted, and what fires.

use super::*;
use crate::resp::ReplyFramer;
use FireCondition::{Nil, NoError, NotNil, NotZero};

fn reading(reads: Reads, families: &[u16]) -> Reading {
    let key = |id: &u16| ReadKey { family: FamilyId(*id), counts: true, watch: Watch::No, hash: 0 };
    Reading { reads, keys: families.iter().map(key).collect(), fetches: false, waited: false }
}

#[test]
fn only_what_is_not_there_is_waited_for() {
    let account = |fetches| Account::Read(Reading { fetches, waited: true, ..reading(Reads::Value, &[3]) });
    let found = |head: Head<'_>| account(true).fetched(&head).map(|fetched| fetched.found);
    for head in [Head::Null, Head::Int(0), Head::Array(0), Head::Map(0), Head::Set(0)] {
        assert_eq!(found(head), Some(false), "{head:?}");
        assert_eq!(account(false).fetched(&head), None);
    }
    // An empty string is a value, and an error says nothing.
    for head in [Head::Bulk(0), Head::Bulk(9), Head::Int(1), Head::Array(2), Head::Map(1), Head::Verbatim(4)]
    {
        assert_eq!(found(head), Some(true), "{head:?}");
    }
    assert_eq!((found(Head::Error(b"ERR")), found(Head::BlobError(3))), (None, None));
    let fetched = account(true).fetched(&Head::Null).unwrap();
    assert_eq!((fetched.key.family, fetched.waited), (FamilyId(3), true));
}

fn firing(condition: FireCondition, name: &str) -> Firing {
    Firing {
        condition,
        triggers: SmallVec::new(),
        tags: vec![],
        rules: Arc::new(Rules::empty()),
        partial: false,
        keys: vec![(0, name.as_bytes().into())],
        what: name.to_owned(),
        intents: SmallVec::new(),
    }
}

fn read(reads: Reads, families: &[u16]) -> Queued {
    Queued { reading: Some(reading(reads, families)), ..Queued::default() }
}

fn write(condition: FireCondition, name: &str) -> Queued {
    Queued { firing: Some(firing(condition, name)), ..Queued::default() }
}

/// What came of one reply.
#[derive(Debug, Default, PartialEq)]
struct Told {
    error: bool,
    counted: Vec<(u16, bool)>,
    fired: Vec<String>,
    idle: Vec<String>,
    failed: Vec<u16>,
}

/// Frames `bytes` as one reply in portions of `step` and accounts for it.
fn portions(account: Account, bytes: &[u8], step: usize) -> (Told, Head<'static>) {
    let (mut framer, mut reader) = (ReplyFramer::default(), Reader::default());
    let mut counted = vec![];
    let mut count = |key: ReadKey, seen| counted.push((key.family.0, seen != Seen::Miss));
    reader.begin(&account);
    let (mut from, mut end) = (0, 0);
    loop {
        end = (end + step).min(bytes.len());
        let progress = framer
            .advance(&bytes[from..end], |depth, head| reader.on(depth, head, &account, &mut count))
            .unwrap();
        from += progress.consumed;
        if progress.done {
            break;
        }
        assert!(end < bytes.len(), "not a whole reply: {bytes:?}");
    }
    assert_eq!(from, bytes.len(), "more than one reply: {bytes:?}");
    let verdict = reader.finish(account, &mut count);
    let names = |firings: Vec<Firing>| firings.into_iter().map(|f| f.what).collect();
    let (fired, idle) = (names(verdict.fired), names(verdict.idle));
    let failed = verdict.failed.to_vec();
    (Told { error: verdict.error, counted, fired, idle, failed }, verdict.head)
}

/// The same in every portion size must tell the same.
fn told(account: impl Fn() -> Account, bytes: &[u8]) -> Told {
    let whole = portions(account(), bytes, bytes.len()).0;
    for step in 1..bytes.len() {
        assert_eq!(portions(account(), bytes, step).0, whole, "step {step}");
    }
    whole
}

fn counted(reads: Reads, families: &[u16], bytes: &[u8]) -> Vec<(u16, bool)> {
    let told = told(|| Account::Read(reading(reads, families)), bytes);
    assert!(told.fired.is_empty() && told.idle.is_empty());
    told.counted
}

fn fires(condition: FireCondition, bytes: &[u8]) -> bool {
    let told = told(|| Account::Write(Box::new(firing(condition, "w"))), bytes);
    assert_eq!(told.fired.len() + told.idle.len(), 1);
    !told.fired.is_empty()
}

fn exec(queued: impl Fn() -> Vec<Queued>, bytes: &[u8]) -> Told {
    told(|| Account::Exec(queued()), bytes)
}

#[test]
fn reads_count_hits_and_misses() {
    assert_eq!(counted(Reads::Value, &[3], b"$1\r\nv\r\n"), [(3, true)]);
    assert_eq!(counted(Reads::Value, &[3], b"$-1\r\n"), [(3, false)]);
    assert_eq!(counted(Reads::Value, &[3], b"_\r\n"), [(3, false)]);
    assert_eq!(counted(Reads::Value, &[3], b"-WRONGTYPE\r\n"), []);
    assert_eq!(counted(Reads::Value, &[3], b"!3\r\nERR\r\n"), []);
    let mget = b"*3\r\n$1\r\na\r\n$-1\r\n$1\r\nb\r\n";
    assert_eq!(counted(Reads::PerKey, &[1, 2, 1], mget), [(1, true), (2, false), (1, true)]);
    assert_eq!(counted(Reads::Count, &[1, 1, 1], b":2\r\n"), [(1, true), (1, true), (1, false)]);
    assert_eq!(counted(Reads::NotAllNil, &[5], b"*2\r\n_\r\n$1\r\nx\r\n"), [(5, true)]);
}

#[test]
fn replies_shorter_or_longer_than_the_keys_count_no_more_than_both() {
    assert_eq!(counted(Reads::PerKey, &[1, 2], b"*1\r\n$1\r\na\r\n"), [(1, true)]);
    assert_eq!(counted(Reads::PerKey, &[1], b"*2\r\n$1\r\na\r\n$1\r\na\r\n"), [(1, true)]);
    assert_eq!(counted(Reads::PerKey, &[], b"*0\r\n"), []);
}

#[test]
fn writes_fire_as_their_condition_says() {
    assert!(fires(NoError, b"+OK\r\n"));
    assert!(fires(NoError, b"$-1\r\n"));
    assert!(!fires(NoError, b"-ERR\r\n"));
    assert!(!fires(NoError, b"!3\r\nERR\r\n"));
    assert!(fires(NotNil, b"+OK\r\n"));
    assert!(!fires(NotNil, b"$-1\r\n"));
    assert!(!fires(NotNil, b"_\r\n"));
    assert!(fires(Nil, b"_\r\n"));
    assert!(!fires(Nil, b"$0\r\n\r\n"));
    assert!(fires(NotZero, b":1\r\n"));
    assert!(!fires(NotZero, b":0\r\n"));
    assert!(!fires(NotZero, b"#f\r\n"));
    assert!(fires(NotZero, b"#t\r\n"));
}

#[test]
fn only_the_head_of_the_reply_decides() {
    assert!(fires(NotZero, b"*2\r\n:0\r\n:0\r\n"), "an array is not the zero in it");
    assert!(fires(NotNil, b"*1\r\n_\r\n"));
    assert!(fires(NoError, b"*1\r\n-ERR\r\n"));
}

#[test]
fn attributes_are_no_part_of_the_reply() {
    assert!(fires(NotZero, b"|1\r\n+ttl\r\n:0\r\n:1\r\n"));
    assert!(!fires(NotZero, b"|1\r\n+ttl\r\n:7\r\n:0\r\n"));
    assert!(fires(NotNil, b"|1\r\n+a\r\n_\r\n+OK\r\n"));
    assert!(!fires(NotNil, b"|1\r\n+a\r\n:3\r\n_\r\n"));
    assert!(!fires(NoError, b"|0\r\n-ERR\r\n"));
    assert_eq!(counted(Reads::Value, &[1], b"|1\r\n+a\r\n*1\r\n|1\r\n:1\r\n:2\r\n:3\r\n_\r\n"), [(1, false)]);
}

#[test]
fn attributes_are_no_elements_of_exec() {
    let queued = || vec![read(Reads::Value, &[1]), write(NotZero, "b"), read(Reads::Value, &[2])];
    let plain = b"*3\r\n$1\r\nv\r\n:0\r\n_\r\n";
    let before = b"|1\r\n+k\r\n:1\r\n*3\r\n$1\r\nv\r\n:0\r\n_\r\n";
    let within = b"*3\r\n|1\r\n+k\r\n:1\r\n$1\r\nv\r\n|1\r\n+k\r\n*2\r\n:1\r\n:1\r\n:0\r\n|0\r\n_\r\n";
    let expected =
        Told { counted: vec![(1, true), (2, false)], idle: vec!["b".to_owned()], ..Told::default() };
    for bytes in [plain.as_slice(), before, within] {
        assert_eq!(exec(queued, bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn mget_inside_exec() {
    let queued = || vec![write(NoError, "a"), read(Reads::PerKey, &[1, 2, 3]), read(Reads::Value, &[4])];
    let told = exec(queued, b"*3\r\n+OK\r\n*3\r\n$1\r\nx\r\n$-1\r\n$0\r\n\r\n$1\r\nx\r\n");
    assert_eq!(told.counted, [(1, true), (2, false), (3, false), (4, true)]);
    assert_eq!(told.fired, ["a"]);
}

#[test]
fn whatever_exec_asks_of_a_key_it_misses_it_once() {
    let of = |hash| {
        let mut one = read(Reads::Value, &[1]);
        let key = ReadKey { family: FamilyId(1), watch: Watch::Tagged, counts: true, hash };
        one.reading.as_mut().unwrap().keys[0] = key;
        one
    };
    let account = Account::Exec([5, 5, 6, 7, 6].map(of).to_vec());
    let (mut framer, mut reader, mut counted) = (ReplyFramer::default(), Reader::default(), vec![]);
    let mut count = |key: ReadKey, seen| counted.push((key.hash, seen, key.watch == Watch::Tagged));
    reader.begin(&account);
    let reply = b"*5\r\n:0\r\n$-1\r\n$-1\r\n:1\r\n$-1\r\n";
    framer.advance(reply, |depth, head| reader.on(depth, head, &account, &mut count)).unwrap();
    reader.finish(account, &mut count);
    let (hit, miss) = (Seen::Hit, Seen::Miss);
    let expected = [(5, miss, true), (5, miss, false), (6, miss, true), (7, hit, true), (6, miss, false)];
    assert_eq!(counted, expected, "each is counted, and watched once");
}

#[test]
fn each_element_has_its_own_condition() {
    let queued =
        || vec![write(NotNil, "nx"), write(NotNil, "xx"), write(NotZero, "setnx"), write(Nil, "nx get")];
    let told = exec(queued, b"*4\r\n$-1\r\n+OK\r\n:0\r\n$-1\r\n");
    assert_eq!(
        (told.fired, told.idle),
        (vec!["xx".into(), "nx get".into()], vec!["nx".into(), "setnx".into()])
    );
}

#[test]
fn errors_inside_exec_fire_nothing_and_count_nothing() {
    let queued = || vec![write(NoError, "a"), read(Reads::Value, &[1]), write(NoError, "b")];
    let told = exec(queued, b"*3\r\n-WRONGTYPE no\r\n-WRONGTYPE no\r\n:1\r\n");
    assert!(!told.error && told.counted.is_empty());
    assert_eq!((told.fired, told.idle), (vec!["b".to_owned()], vec!["a".to_owned()]));
}

#[test]
fn exec_that_did_not_run() {
    let queued = || vec![write(NoError, "a"), read(Reads::Value, &[1])];
    for (bytes, error) in [
        (b"*-1\r\n".as_slice(), false),
        (b"_\r\n", false),
        (b"-EXECABORT Transaction discarded\r\n", true),
        (b"!9\r\nEXECABORT\r\n", true),
    ] {
        let told = exec(queued, bytes);
        assert_eq!((told.error, told.fired.len(), told.counted.len()), (error, 0, 0), "{bytes:?}");
        assert_eq!(told.idle, ["a"]);
    }
}

#[test]
fn another_count_than_expected_fires_everything() {
    let queued = || vec![write(NotZero, "a"), write(NotZero, "b")];
    for bytes in [b"*1\r\n:0\r\n".as_slice(), b"*3\r\n:0\r\n:0\r\n:0\r\n", b"*0\r\n", b"+OK\r\n"] {
        assert_eq!(exec(queued, bytes).fired, ["a", "b"], "{bytes:?}");
    }
    assert_eq!(exec(Vec::new, b"*0\r\n"), Told::default());
}

#[test]
fn nested_replies_inside_exec_are_one_element_each() {
    let queued = || vec![read(Reads::Scan, &[1]), write(NoError, "a"), read(Reads::NotAllNil, &[2])];
    let told =
        exec(queued, b"*3\r\n*2\r\n$1\r\n0\r\n*0\r\n%1\r\n+k\r\n*2\r\n:1\r\n:2\r\n*2\r\n$-1\r\n$-1\r\n");
    assert_eq!((told.counted, told.fired), (vec![(1, false), (2, false)], vec!["a".to_owned()]));
}

#[test]
fn a_read_that_also_fires_inside_exec() {
    let both = || {
        vec![Queued {
            reading: Some(reading(Reads::Value, &[1])),
            firing: Some(firing(NoError, "w")),
            ..Queued::default()
        }]
    };
    let told = exec(both, b"*1\r\n$1\r\nv\r\n");
    assert_eq!((told.counted, told.fired), (vec![(1, true)], vec!["w".to_owned()]));
}

#[test]
fn no_trigger_of_the_file_can_be_called_like_another() {
    use TriggerLabel::{Again, Command, Followed, Http, Publish, TakenOver};
    let names = [Publish, Command, Http, TakenOver, Followed, Again].map(|label| label.name().unwrap());
    assert_eq!(names, crate::rules::OTHER_TRIGGERS);
}

#[test]
fn what_fails_inside_exec_is_counted_as_what_it_is() {
    let queued = || [Some(7), None, Some(9), Some(7)].map(|metric| Queued { metric, ..Queued::default() });
    let failed = |bytes: &[u8]| exec(|| queued().into(), bytes).failed;
    assert_eq!(failed(b"*4\r\n-ERR a\r\n-ERR b\r\n+OK\r\n!3\r\nERR\r\n"), [7, 7]);
    assert!(failed(b"*-1\r\n").is_empty() && failed(b"-EXECABORT\r\n").is_empty());
}

#[test]
fn what_was_to_be_queued_but_ran_at_once() {
    let fired = |condition, bytes| told(|| Account::Queued(Box::new(write(condition, "q"))), bytes).fired;
    assert!(fired(NoError, b"+QUEUED\r\n").is_empty());
    assert!(fired(NoError, b"-ERR unknown command\r\n").is_empty());
    assert_eq!(fired(NoError, b"+OK\r\n"), ["q"]);
    assert_eq!(fired(NotZero, b":1\r\n"), ["q"]);
    assert!(fired(NotZero, b":0\r\n").is_empty());
    // A value that happens to read so is a bulk string.
    assert_eq!(fired(NoError, b"$6\r\nQUEUED\r\n"), ["q"]);
}

#[test]
fn what_a_lost_reply_may_have_done() {
    let queued = || vec![write(NotZero, "a"), read(Reads::Value, &[1]), write(Nil, "b")];
    let names = |account: Account| account.may_have_fired().into_iter().map(|f| f.what).collect::<Vec<_>>();
    assert!(Account::Exec(queued()).may_fire());
    assert_eq!(names(Account::Exec(queued())), ["a", "b"]);
    assert_eq!(names(Account::Write(Box::new(firing(NotNil, "w")))), ["w"]);
    assert!(!Account::Exec(vec![read(Reads::Value, &[1])]).may_fire());
    assert!(!Account::Queued(Box::new(write(NoError, "q"))).may_fire());
    assert!(names(Account::Queued(Box::new(write(NoError, "q")))).is_empty());
}

#[test]
fn the_head_outlives_the_reply_and_the_number_is_the_last_one() {
    let head = |bytes| portions(Account::Nothing, bytes, usize::MAX / 2).1;
    assert_eq!(head(b":12\r\n".as_slice()), Head::Int(12));
    assert_eq!(head(b"*2\r\n:1\r\n:2\r\n"), Head::Array(2));
    assert_eq!(head(b"$2\r\nab\r\n"), Head::Bulk(2));
    assert_eq!(head(b"-ERR x\r\n"), Head::Error(b""));
    let mut reader = Reader::default();
    reader.begin(&Account::Nothing);
    let heads = [(0, Head::Push(3)), (1, Head::Bulk(9)), (1, Head::Bulk(1)), (1, Head::Int(4))];
    heads.iter().for_each(|(depth, head)| reader.on(*depth, head, &Account::Nothing, &mut |_, _| {}));
    assert_eq!(reader.number(), 4);
}
