//! Scripts that are run twice, straight against a redis-server and through rescind, and must look the same.
//!
//! A script is a list of lines. The first letter names a connection (opened when it is first used):
//!
//! | line | what happens |
//! | --- | --- |
//! | `a GET k` | a request (words quoted as for Redis's inline commands), and one reply |
//! | `a*3 SUBSCRIBE x y z` | a request, and three replies or messages |
//! | `a%3 UNSUBSCRIBE` | a request, and three replies in any order |
//! | `a> BLPOP q 0` | a request, no reply yet |
//! | `a< 2` | two replies |
//! | `a~ "PING\r\n"` | bytes as they are, no reply yet |
//! | `a=me CLIENT ID` | as `a CLIENT ID`; later lines may say `{me}` for the number in its reply |
//! | `a# INFO server` | as `a INFO server`, but only the shape of the reply counts: names, not numbers |
//! | `a^ word` | replies and messages up to the first one with this word; of that one, the shape |
//! | `a.` | everything until the connection is closed |
//! | `a-` | the client hangs up |
//! | `blocked 1` | waits until the server itself says that one client is blocked |
//!
//! Every case runs in several variants: in RESP2 and in RESP3, on shared connections and on the clients' own, with
//! lines of one client sent one by one and all at once.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Redis, encode, eventually};

/// Longer than anything takes that is not stuck.
const STUCK: Duration = Duration::from_secs(6);

/// A connection that shows every byte.
pub struct Wire {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    pub fn connect(port: u16) -> Self {
        let stream = eventually("connected", || TcpStream::connect(("127.0.0.1", port)).ok());
        stream.set_read_timeout(Some(STUCK)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: vec![] }
    }

    /// A connection on which these lines have been said, none of them refused.
    pub fn having_said(port: u16, lines: &[&str]) -> Self {
        let mut wire = Self::connect(port);
        for line in lines {
            let reply = wire.cmd(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
        wire
    }

    /// Sends; a connection that the other side has closed is found out when reading.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// One request, one reply, as text.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> String {
        self.send(&encode(args));
        self.text()
    }

    /// `call` with the words of one line.
    pub fn cmd(&mut self, line: &str) -> String {
        self.call(&line.split(' ').collect::<Vec<_>>())
    }

    /// The next reply as text.
    pub fn text(&mut self) -> String {
        let reply = self.reply().unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// The next reply, or what came instead of it.
    pub fn reply(&mut self) -> Result<Vec<u8>, String> {
        let (mut chunk, mut parsed) = (vec![0; 1 << 16], Progress::default());
        loop {
            if parsed.advance(&self.unread) {
                return Ok(self.unread.drain(..parsed.at).collect());
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&self.unread))),
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(format!("closed after {:?}", String::from_utf8_lossy(&self.unread)));
                }
                Err(_) => return Err(format!("silence after {:?}", String::from_utf8_lossy(&self.unread))),
            }
        }
    }

    /// What comes until the end.
    pub fn rest(&mut self) -> Result<Vec<u8>, String> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(std::mem::take(&mut self.unread)),
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(std::mem::take(&mut self.unread));
                }
                Err(_) => {
                    return Err(format!("not closed after {:?}", String::from_utf8_lossy(&self.unread)));
                }
            }
        }
    }
}

/// A reply that is still arriving: what was looked at is not looked at again.
#[derive(Default)]
struct Progress {
    at: usize,
    open: u64,
    begun: bool,
}

impl Progress {
    /// Whether a whole reply is at the start of `bytes`; it ends at `self.at`.
    fn advance(&mut self, bytes: &[u8]) -> bool {
        if !self.begun {
            (self.open, self.begun) = (1, true);
        }
        while self.open > 0 {
            let Some(rest) = bytes.get(self.at..) else { return false };
            let Some(line) = rest.iter().position(|b| *b == b'\n') else { return false };
            let number = || String::from_utf8_lossy(&rest[1..line]).trim_end().parse::<i64>().unwrap_or(0);
            let (body, values) = match rest[0] {
                b'$' | b'=' | b'!' if number() >= 0 => (number() as usize + 2, 0),
                b'*' | b'~' | b'>' => (0, number().max(0) as u64),
                b'%' => (0, number() as u64 * 2),
                b'|' => (0, number() as u64 * 2 + 1),
                _ => (0, 0),
            };
            if rest.len() < line + 1 + body {
                return false;
            }
            self.at += line + 1 + body;
            self.open = self.open - 1 + values;
        }
        true
    }
}

/// One of the two ways to the server.
pub struct Way<'a> {
    pub port: u16,
    pub redis: &'a Redis,
}

/// How a script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// In a heading: `# name (not 3)` leaves out the variants with this letter.
    letter: char,
    /// What every connection begins with.
    prelude: &'static [&'static str],
    /// What one client asks for in consecutive lines is sent at once.
    pipelined: bool,
}

const PLAIN: Variant = Variant { letter: '2', prelude: &[], pipelined: false };
/// `CLIENT NO-EVICT` makes the proxy take a connection of the client's own, and Redis thinks nothing of it.
const VARIANTS: [Variant; 5] = [
    PLAIN,
    Variant { letter: 'p', prelude: &[], pipelined: true },
    Variant { letter: 'o', prelude: &["CLIENT NO-EVICT off"], pipelined: false },
    Variant { letter: '3', prelude: &["HELLO 3"], pipelined: false },
    Variant { letter: 'q', prelude: &["HELLO 3", "CLIENT NO-EVICT off"], pipelined: true },
];

/// A script under way.
struct Play<'a> {
    way: &'a Way<'a>,
    variant: Variant,
    wires: BTreeMap<char, Wire>,
    /// Numbers that were given a name.
    numbers: BTreeMap<String, String>,
}

/// What a line waits for.
enum Awaited {
    Replies(usize),
    /// Whose order Redis does not define.
    Unordered(usize),
    Number(String),
    Shape,
    Search(String),
    End,
}

/// Runs a script; returns what every line gave.
fn run(way: &Way<'_>, variant: Variant, script: &[&str]) -> Vec<String> {
    let mut play = Play { way, variant, wires: BTreeMap::new(), numbers: BTreeMap::new() };
    let mut lines = script.iter().peekable();
    let mut shown = vec![];
    while let Some(line) = lines.next() {
        let mut together = vec![(*line, play.send(line))];
        while let (true, Some(next)) = (variant.pipelined, lines.peek()) {
            let named = matches!(together.last(), Some((_, Awaited::Number(_) | Awaited::End)));
            if named || !may_follow(line, next) {
                break;
            }
            together.push((*next, play.send(next)));
            lines.next();
        }
        for (line, awaited) in together {
            if shown.last().is_some_and(|last: &String| is_stuck(last)) {
                return shown;
            }
            shown.push(format!("{line}\n      {}", play.receive(line, awaited)));
        }
    }
    shown
}

/// Whether what was waited for did not come.
fn is_stuck(shown: &str) -> bool {
    shown.contains("(silence after") || shown.contains("(not ")
}

/// Whether `next` may be sent before the replies to `line` are here.
fn may_follow(line: &str, next: &str) -> bool {
    let name = |line: &str| {
        line.split(' ')
            .next()
            .filter(|verb| *verb != "blocked" && !verb.ends_with('-'))
            .map(|verb| verb.as_bytes()[0])
    };
    name(line).is_some() && name(line) == name(next)
}

impl Play<'_> {
    fn send(&mut self, line: &str) -> Awaited {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let name = verb.chars().next().unwrap();
        if verb == "blocked" || verb.ends_with('-') {
            return Awaited::Replies(0);
        }
        let rest = self
            .numbers
            .iter()
            .fold(rest.to_owned(), |rest, (name, number)| rest.replace(&format!("{{{name}}}"), number));
        let (port, prelude) = (self.way.port, self.variant.prelude);
        let wire = self.wires.entry(name).or_insert_with(|| {
            let mut wire = Wire::connect(port);
            prelude.iter().for_each(|line| drop(wire.cmd(line)));
            wire
        });
        let how = &verb[1..];
        match how.chars().next() {
            Some('<') => return Awaited::Replies(rest.parse().unwrap()),
            Some('%') if words(&rest).is_empty() => return Awaited::Unordered(how[1..].parse().unwrap()),
            Some('^') => return Awaited::Search(rest),
            Some('.') => return Awaited::End,
            Some('~') => wire.send(&words(&rest).concat()),
            _ => wire.send(&encode(&words(&rest))),
        }
        match how.chars().next() {
            Some('>' | '~') => Awaited::Replies(0),
            Some('=') => Awaited::Number(how[1..].to_owned()),
            Some('#') => Awaited::Shape,
            Some('%') => Awaited::Unordered(how[1..].parse().unwrap()),
            Some(_) => Awaited::Replies(how[1..].parse().unwrap()),
            None => Awaited::Replies(1),
        }
    }

    /// What a line gave. Numbers that have a name are shown by it.
    fn receive(&mut self, line: &str, awaited: Awaited) -> String {
        let shown = self.received(line, awaited);
        let named = |shown: String, (name, number): (&String, &String)| {
            let shown = shown.replace(&format!(":{number}\\r"), &format!(":{{{name}}}\\r"));
            shown.replace(&format!("redir={number} "), &format!("redir={{{name}}} "))
        };
        self.numbers.iter().fold(shown, named)
    }

    fn received(&mut self, line: &str, awaited: Awaited) -> String {
        if let Some(count) = line.strip_prefix("blocked ") {
            return self.blocked(count);
        }
        let name = line.chars().next().unwrap();
        if line.ends_with('-') && line.len() == 2 {
            self.wires.remove(&name);
            return String::new();
        }
        let wire = self.wires.get_mut(&name).unwrap();
        match awaited {
            Awaited::Replies(count) => {
                let mut replies = vec![];
                for _ in 0..count {
                    let reply = wire.reply();
                    let over = reply.is_err();
                    replies.push(shown(reply));
                    if over {
                        break;
                    }
                }
                replies.join("\n      ")
            }
            Awaited::Unordered(count) => {
                let replies: Result<Vec<_>, _> = (0..count).map(|_| wire.reply()).collect();
                let sorted = replies.map(|replies| {
                    let all = replies.concat();
                    let mut lines: Vec<&[u8]> = all.split(|byte| *byte == b'\n').collect();
                    lines.sort_unstable();
                    lines.join(&b'\n')
                });
                shown(sorted)
            }
            Awaited::End => shown(wire.rest()),
            Awaited::Shape => shown(wire.reply().map(|reply| shape(&reply))),
            Awaited::Search(word) => loop {
                match wire.reply() {
                    Ok(reply) if !String::from_utf8_lossy(&reply).contains(&word) => {}
                    found => return shown(found.map(|reply| shape(&reply))),
                }
            },
            Awaited::Number(variable) => match wire.reply() {
                Ok(reply) => {
                    let text = String::from_utf8_lossy(&reply).into_owned();
                    let number = text[1..].trim_end().to_owned();
                    self.numbers.insert(variable, number);
                    text[..1].to_owned()
                }
                wrong => shown(wrong),
            },
        }
    }

    fn blocked(&self, count: &str) -> String {
        let wanted = format!("blocked_clients:{count}\r\n");
        let mut control = self.way.redis.client();
        let deadline = Instant::now() + STUCK;
        while !control.cmd("INFO clients").contains(&wanted) {
            if Instant::now() > deadline {
                return "(not in time)".to_owned();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        String::new()
    }
}

/// The words of a line, quoted as in an inline command.
fn words(line: &str) -> Vec<Vec<u8>> {
    let (mut bytes, mut spans) = (vec![], vec![]);
    rescind::resp::inline::split(line.as_bytes(), &mut bytes, &mut spans).unwrap();
    spans.iter().map(|span| bytes[span.start as usize..span.end as usize].to_vec()).collect()
}

pub fn shown(reply: Result<Vec<u8>, String>) -> String {
    match reply {
        Ok(bytes) if bytes.len() > 20_000 => {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            format!("{}… {} bytes, hash {:x}", bytes[..99].escape_ascii(), bytes.len(), hasher.finish())
        }
        Ok(bytes) => without_addresses(&without_id(&bytes)).escape_ascii().to_string(),
        Err(what) => format!("({what})"),
    }
}

/// HELLO tells the connection's number, which differs.
fn without_id(reply: &[u8]) -> Vec<u8> {
    let mark = b"$2\r\nid\r\n:";
    let Some(at) = reply.windows(mark.len()).position(|window| window == mark) else { return reply.to_vec() };
    let (head, tail) = reply.split_at(at + mark.len());
    let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
    [head, b"N", &without_id(&tail[digits..])].concat()
}

/// What CLIENT LIST and INFO say about clients, without what differs from one connection to the next.
fn without_addresses(reply: &[u8]) -> Vec<u8> {
    const TRUE: [&str; 12] =
        ["name", "flags", "db", "sub", "psub", "ssub", "multi", "watch", "cmd", "user", "redir", "resp"];
    let Ok(text) = std::str::from_utf8(reply) else { return reply.to_vec() };
    if !text.contains(" laddr=") {
        return reply.to_vec();
    }
    let field = |word: &str| match word.split_once('=') {
        Some((name, _)) if !TRUE.contains(&name) => format!("{name}=N"),
        _ => word.to_owned(),
    };
    let lines: Vec<&str> = text.split('\n').collect();
    let masked = lines.iter().enumerate().map(|(at, line)| match lines.get(at + 1) {
        // The length in front of such a list.
        Some(next) if next.contains(" laddr=") && !line.contains('=') => "$N".to_owned(),
        _ => line.split(' ').map(field).collect::<Vec<_>>().join(" "),
    });
    masked.collect::<Vec<_>>().join("\n").into_bytes()
}

/// What remains of a reply without its numbers; of INFO, the names alone.
fn shape(reply: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(reply);
    if text.contains("\r\n# ") || text.contains("txt:# ") {
        let names = text.lines().skip(1).map(|line| line.split([':', '=']).next().unwrap_or_default());
        return names.collect::<Vec<_>>().join("\n").into_bytes();
    }
    let mut out = String::new();
    for symbol in text.chars() {
        match symbol {
            '0'..='9' | '.' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            other => out.push(other),
        }
    }
    out.into_bytes()
}

/// The cases of a table: a heading, `# name`, and the lines up to the next one; `##` begins a comment.
fn cases(table: &str) -> Vec<(&str, Vec<&str>)> {
    let mut cases: Vec<(&str, Vec<&str>)> = vec![];
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with("##")) {
        match line.strip_prefix("# ") {
            Some(name) => cases.push((name, vec![])),
            None => cases.last_mut().unwrap().1.push(line),
        }
    }
    cases
}

/// Runs every case of `table` both ways and fails with all differences. Before each, `clean` is run on the servers;
/// its last line lists subscribers. `RESCIND_CASE=text` runs only the cases whose name contains the text.
pub fn compare(direct: &Way<'_>, proxied: &Way<'_>, clean: &[&str], table: &str) {
    let only = std::env::var("RESCIND_CASE").unwrap_or_default();
    let (mut wrong, mut count) = (String::new(), 0);
    let subscribers = |way: &Way<'_>| {
        let straight = Way { port: way.redis.port, redis: way.redis };
        run(&straight, PLAIN, clean).pop().unwrap_or_default().matches("laddr=").count()
    };
    // The proxy's own.
    let before = [direct, proxied].map(subscribers);
    for (name, script) in cases(table).iter().filter(|(name, _)| name.contains(&only)) {
        let left_out = name.split_once("(not ").map_or("", |(_, letters)| letters);
        let mut letters = String::new();
        for variant in VARIANTS.iter().filter(|variant| !left_out.contains(variant.letter)) {
            for (way, before) in [direct, proxied].into_iter().zip(before) {
                // Those of the case before may still be on their way out.
                eventually("nobody subscribes", || (subscribers(way) <= before).then_some(()));
            }
            let expected = run(direct, *variant, script);
            count += 1;
            if let Some(line) = expected.iter().find(|line| is_stuck(line)) {
                wrong.push_str(&format!("{name}: Redis does not do what is waited for: {line}\n"));
                letters.push(variant.letter);
                continue;
            }
            let got = run(proxied, *variant, script);
            if let Some(at) = (0..script.len()).find(|at| expected.get(*at) != got.get(*at)) {
                if letters.is_empty() {
                    let text = format!("{name}:\n  direct  {}\n  proxied {}\n", expected[at], got[at]);
                    wrong.push_str(&text);
                }
                letters.push(variant.letter);
            }
        }
        if !letters.is_empty() {
            wrong.push_str(&format!("  variants {letters}\n"));
        }
    }
    println!("{count} runs");
    assert!(wrong.is_empty(), "differences:\n{wrong}");
}
