//! The command table against a real server: whatever `redis-server` says of its commands, the table says too, and
//! the keys that it finds in requests are those of `COMMAND GETKEYS`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use redis_protocol::resp2::{decode::decode, types::OwnedFrame};
use rescind::command::{Begin, Command, Commands, Described, Find, Flags, KeyFlags, KeySpec};
use rescind::resp::OwnedArgs;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

/// Versions differ in these; the table holds the more permissive arity, of Redis 7.2.
const WIDER_ARITY: &[&str] = &["zrank", "zrevrank", "command|getkeys", "command|getkeysandflags"];

/// Requests whose keys move: what Redis finds by code rather than by specs, and the corners of the specs.
const MOVING: &[&str] = &[
    "SET k v GET",
    "SET k v EX 10 NX",
    "set k v xx get keepttl",
    "BITFIELD k GET u8 0",
    "BITFIELD k GET u8 0 OVERFLOW FAIL GET u8 8",
    "BITFIELD k GET u8 0 INCRBY u8 8 1",
    "BITFIELD k OVERFLOW SAT SET u8 8 1",
    "SORT k",
    "SORT k BY w* LIMIT 0 5 GET store GET # ASC ALPHA STORE d",
    "SORT k STORE a STORE b",
    "SORT k BY store STORE d",
    "SORT_RO k BY w* GET STORE",
    "GEORADIUS k 1 2 3 m",
    "GEORADIUS k 1 2 3 m COUNT 5 ASC STORE d",
    "GEORADIUS k 1 2 3 m STOREDIST d WITHCOORD",
    "GEORADIUSBYMEMBER k m 3 km STORE d",
    "GEORADIUSBYMEMBER k m 3 km STOREDIST d",
    "GEORADIUS_RO k 1 2 3 m COUNT 5",
    "GEOSEARCHSTORE d s FROMLONLAT 1 2 BYRADIUS 3 m STOREDIST",
    "MIGRATE host 1 k 0 9",
    "MIGRATE host 1 k 0 9 COPY REPLACE",
    "MIGRATE host 1 k 0 9 AUTH keys",
    "MIGRATE host 1  0 9 KEYS a b c",
    "MIGRATE host 1  0 9 REPLACE AUTH2 user keys KEYS a b",
    "EVAL script 0",
    "EVAL script 2 a b c",
    "EVALSHA sha 1 a b c",
    "EVAL_RO script 3 a b c",
    "EVALSHA_RO sha 1 a",
    "FCALL f 2 a b c",
    "FCALL_RO f 1 a b",
    "XREAD STREAMS a 0",
    "XREAD COUNT 5 BLOCK 0 STREAMS a b c 0 0 0",
    "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS a b > >",
    "XREADGROUP GROUP g c STREAMS streams >",
    "ZUNIONSTORE d 2 a b WEIGHTS 1 2 AGGREGATE MAX",
    "ZINTERSTORE d 1 a",
    "ZDIFFSTORE d 3 a b c",
    "ZUNION 2 a b WITHSCORES",
    "ZINTERCARD 2 a b LIMIT 5",
    "SINTERCARD 3 a b c",
    "LMPOP 2 a b LEFT COUNT 3",
    "BLMPOP 0 2 a b LEFT",
    "ZMPOP 1 a MIN",
    "BZMPOP 0 1 a MAX COUNT 2",
    "BLPOP a b c 0",
    "BZPOPMIN a 0",
    "MSET a 1 b 2 c 3",
    "MSETNX a 1 b 2",
    "BITOP AND d a b c",
    "RENAME a b",
    "COPY a b DB 1 REPLACE",
    "MOVE a 1",
    "PFMERGE d a b",
    "PFCOUNT a b",
    "LMOVE a b LEFT RIGHT",
    "BLMOVE a b LEFT RIGHT 0",
    "OBJECT ENCODING a",
    "MEMORY USAGE a SAMPLES 3",
    "XGROUP CREATE a g $ MKSTREAM",
    "XINFO STREAM a FULL",
    "DEL a b c",
    "LCS a b LEN",
    "ZRANGESTORE d s 0 -1",
    "SMOVE a b m",
];

#[test]
fn every_command_of_the_server_is_in_the_table() {
    let mut server = Server::start();
    let described = server.describe();
    let mut commands = Commands::builtin();
    assert!(described.len() > 200, "{} commands", described.len());
    for live in described.iter().flat_map(|d| std::iter::once(d).chain(&d.subcommands)) {
        let name = &live.name;
        let ours = commands.by_name(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        if WIDER_ARITY.contains(&name.as_str()) {
            assert!(ours.arity_ok(live.arity.unsigned_abs() as usize), "{name}: arity");
        } else {
            assert_eq!(i64::from(ours.arity), live.arity, "{name}: arity");
        }
        let flags = Flags::from_names(&live.flags);
        for flag in
            [Flags::WRITE, Flags::READONLY, Flags::BLOCKING, Flags::ADMIN, Flags::NOSCRIPT, Flags::PUBSUB]
        {
            assert_eq!(ours.flags.has(flag), flags.has(flag), "{name}: {:?}", live.flags);
        }
        let has_keys = live.specs.iter().any(|s| !s.flags.has(KeyFlags::NOT_KEY));
        assert_eq!(ours.has_keys(), has_keys, "{name}: keys");
        assert_eq!(ours.flags.has(Flags::CONTAINER), !live.subcommands.is_empty(), "{name}: subcommands");
    }
    assert_eq!(commands.extend(&described), 0, "nothing was left to add");
}

#[test]
fn keys_are_those_of_the_server() {
    let mut server = Server::start();
    let commands = Commands::builtin();
    let mut compared = HashSet::new();
    let mut requests: Vec<Vec<String>> =
        MOVING.iter().map(|request| request.split(' ').map(str::to_owned).collect()).collect();
    let named = requests.len();
    let described = server.describe();
    let all: Vec<&Described> = described
        .iter()
        .flat_map(|d| std::iter::once(d).chain(&d.subcommands))
        .filter(|d| has_keys(d))
        .collect();
    requests.extend(all.iter().flat_map(|live| samples(live)));

    for (i, request) in requests.iter().enumerate() {
        let owned: OwnedArgs = request.iter().collect();
        let command = commands.find(owned.as_args()).unwrap_or_else(|| panic!("{request:?}"));
        let Some(theirs) = server.keys(request, command) else {
            assert!(i >= named || request.contains(&"0".to_owned()), "{request:?} has no keys");
            continue;
        };
        let mut ours = Vec::new();
        command.keys(owned.as_args(), |k| ours.push((k.key.to_vec(), k.writes)));
        // Redis takes a MIGRATE … COPY for a removal.
        if request.contains(&"COPY".to_owned()) && &*command.name == "migrate" {
            ours.iter_mut().for_each(|(_, writes)| *writes = true);
        }
        assert_eq!(ours, theirs, "{request:?}");
        compared.insert(command.name.to_string());
    }
    let missed: Vec<&str> = all.iter().map(|d| d.name.as_str()).filter(|n| !compared.contains(*n)).collect();
    assert!(missed.is_empty(), "never compared: {missed:?}");
    assert!(requests.len() > 500, "{} requests", requests.len());
}

fn has_keys(described: &Described) -> bool {
    described.specs.iter().any(|s| !s.flags.has(KeyFlags::NOT_KEY))
}

/// Requests of several lengths for one command, with the counts and words that its key specs look for.
fn samples(live: &Described) -> Vec<Vec<String>> {
    let shortest = live.arity.unsigned_abs() as usize;
    let longest = if live.arity < 0 { shortest + 6 } else { shortest };
    let words = live.specs.iter().filter_map(|spec| match &spec.begin {
        Begin::Keyword(word, from) if *from > 0 => Some(Some((word.clone(), *from as usize))),
        _ => None,
    });
    let words: Vec<_> = std::iter::once(None).chain(words).collect();
    let mut samples = Vec::new();
    for (length, word) in (shortest..=longest).flat_map(|n| words.iter().map(move |w| (n, w))) {
        let mut request: Vec<String> = live.name.split('|').map(str::to_owned).collect();
        request.extend((request.len()..length).map(|i| format!("k{i}")));
        for spec in &live.specs {
            if let (Begin::Index(at), Find::KeyNum { index, .. }) = (&spec.begin, spec.find) {
                let room = length.saturating_sub((at + index) as usize + 1);
                request[(at + index) as usize] = room.min(2).to_string();
            }
        }
        if let Some((word, at)) = word.as_ref().filter(|(_, at)| *at < length) {
            request[*at] = word.clone();
        }
        samples.push(request);
    }
    samples
}

/// A server of the test's own; it goes when this does, also on a panic.
struct Server {
    process: Child,
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Server {
    fn start() -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut process = Process::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server on the PATH");
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    process.kill().unwrap();
                    panic!("redis-server does not answer: {error}");
                }
            }
        };
        let mut server = Server { process, stream, unread: Vec::new() };
        server.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(server.call(&["PING"]), OwnedFrame::SimpleString(b"PONG".to_vec()));
        server
    }

    fn call<S: AsRef<str>>(&mut self, request: &[S]) -> OwnedFrame {
        let mut bytes = format!("*{}\r\n", request.len());
        for arg in request.iter().map(AsRef::as_ref) {
            bytes += &format!("${}\r\n{arg}\r\n", arg.len());
        }
        self.stream.write_all(bytes.as_bytes()).unwrap();
        loop {
            if let Some((frame, length)) = decode(&self.unread).unwrap() {
                self.unread.drain(..length);
                return frame;
            }
            let mut chunk = vec![0; 1 << 18];
            let n = self.stream.read(&mut chunk).unwrap();
            assert!(n > 0, "redis-server hung up");
            self.unread.extend_from_slice(&chunk[..n]);
        }
    }

    /// The reply of `COMMAND`.
    fn describe(&mut self) -> Vec<Described> {
        array(self.call(&["COMMAND"])).into_iter().map(described).collect()
    }

    /// The keys of a request and whether they are written; `None` where the server sees none.
    fn keys(&mut self, request: &[String], command: &Command) -> Option<Vec<(Vec<u8>, bool)>> {
        let asked: Vec<&str> =
            ["COMMAND", "GETKEYSANDFLAGS"].into_iter().chain(request.iter().map(String::as_str)).collect();
        let OwnedFrame::Array(found) = self.call(&asked) else { return None };
        // Reading through a group writes to the stream, though its key is marked as only read.
        let script = matches!(&*command.name, "eval" | "evalsha" | "fcall" | "xreadgroup");
        let keys = found.into_iter().map(|entry| {
            let [key, flags] = <[OwnedFrame; 2]>::try_from(array(entry)).unwrap();
            let flags: Vec<String> = array(flags).into_iter().map(text).collect();
            let modifies =
                flags.iter().any(|f| ["RW", "OW", "RM", "insert", "update", "delete"].contains(&&**f));
            (text(key).into_bytes(), script || modifies && command.flags.has(Flags::WRITE))
        });
        Some(keys.collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn described(entry: OwnedFrame) -> Described {
    let mut fields = array(entry).into_iter();
    let mut next = || fields.next().unwrap();
    let (name, arity, flags) = (text(next()), int(next()), next());
    let (first, last, step) = (int(next()), int(next()), int(next()));
    let (_acl, _tips, specs, subcommands) = (next(), next(), next(), next());
    Described {
        name,
        arity,
        flags: array(flags).into_iter().map(text).collect(),
        first,
        last,
        step,
        specs: array(specs).iter().map(key_spec).collect(),
        subcommands: array(subcommands).into_iter().map(described).collect(),
    }
}

fn key_spec(frame: &OwnedFrame) -> KeySpec {
    let part = |name| field(field(frame, name), "spec");
    let kind = |name| text(field(field(frame, name), "type").clone());
    let number = |of, name| int(field(part(of), name).clone()) as i32;
    let begin = match kind("begin_search").as_str() {
        "index" => Begin::Index(number("begin_search", "index")),
        "keyword" => {
            let word = text(field(part("begin_search"), "keyword").clone());
            Begin::Keyword(word, number("begin_search", "startfrom"))
        }
        _ => Begin::Unknown,
    };
    let get = |name| number("find_keys", name);
    let find = match kind("find_keys").as_str() {
        "range" => Find::Range { last: get("lastkey"), step: get("keystep"), limit: get("limit") },
        "keynum" => Find::KeyNum { index: get("keynumidx"), first: get("firstkey"), step: get("keystep") },
        _ => Find::Unknown,
    };
    let flags = array(field(frame, "flags").clone()).into_iter().map(text);
    KeySpec { flags: KeyFlags::from_names(flags), begin, find }
}

/// The value behind `name` in a map, which RESP2 sends as an array.
fn field<'a>(map: &'a OwnedFrame, name: &str) -> &'a OwnedFrame {
    let OwnedFrame::Array(items) = map else { panic!("no map: {map:?}") };
    let pair = items.chunks(2).find(|pair| text(pair[0].clone()) == name);
    &pair.unwrap_or_else(|| panic!("no {name} in {map:?}"))[1]
}

fn array(frame: OwnedFrame) -> Vec<OwnedFrame> {
    let OwnedFrame::Array(items) = frame else { panic!("no array: {frame:?}") };
    items
}

fn text(frame: OwnedFrame) -> String {
    match frame {
        OwnedFrame::SimpleString(text) | OwnedFrame::BulkString(text) => String::from_utf8(text).unwrap(),
        other => panic!("no text: {other:?}"),
    }
}

fn int(frame: OwnedFrame) -> i64 {
    let OwnedFrame::Integer(number) = frame else { panic!("no number: {frame:?}") };
    number
}
