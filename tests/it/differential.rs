//! Scripts that are run twice, straight against a redis-server and through rescind, and must look the same.
//!
//! A script is a list of lines. The first letter names a connection (opened when it is first used):
//!
//! | line | what happens |
//! | --- | --- |
//! | `a GET k` | a request (words quoted as for Redis's inline commands), and one reply |
//! | `a*3 SUBSCRIBE x y z` | a request, and three replies or messages |
//! | `a> BLPOP q 0` | a request, no reply yet |
//! | `a< 2` | two replies |
//! | `a~ "PING\r\n"` | bytes as they are, no reply yet |
//! | `a.` | everything until the connection is closed |
//! | `a-` | the client hangs up |
//! | `blocked 1` | waits until the server itself says that one client is blocked |

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

    /// Sends; a connection that the other side has closed is found out when reading.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
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

/// Runs a script; returns what every line gave.
pub fn run(way: &Way<'_>, script: &[&str]) -> Vec<String> {
    let mut wires = BTreeMap::new();
    script.iter().map(|line| format!("{line}\n      {}", step(way, &mut wires, line))).collect()
}

fn step(way: &Way<'_>, wires: &mut BTreeMap<char, Wire>, line: &str) -> String {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    if verb == "blocked" {
        let wanted = format!("blocked_clients:{rest}\r\n");
        let mut control = way.redis.client();
        let deadline = Instant::now() + STUCK;
        while !control.cmd("INFO clients").contains(&wanted) {
            if Instant::now() > deadline {
                return "(not in time)".to_owned();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        return String::new();
    }
    let name = verb.chars().next().unwrap();
    if verb.ends_with('-') {
        wires.remove(&name);
        return String::new();
    }
    let wire = wires.entry(name).or_insert_with(|| Wire::connect(way.port));
    let replies = match &verb[1..] {
        "<" => rest.parse().unwrap(),
        "." => return shown(wire.rest()),
        "~" => {
            wire.send(&words(rest).concat());
            0
        }
        ">" => {
            wire.send(&encode(&words(rest)));
            0
        }
        count => {
            wire.send(&encode(&words(rest)));
            count.strip_prefix('*').map_or(1, |count| count.parse().unwrap())
        }
    };
    (0..replies).map(|_| shown(wire.reply())).collect::<Vec<_>>().join("\n      ")
}

/// The words of a line, quoted as in an inline command.
fn words(line: &str) -> Vec<Vec<u8>> {
    let (mut bytes, mut spans) = (vec![], vec![]);
    rescind::resp::inline::split(line.as_bytes(), &mut bytes, &mut spans).unwrap();
    spans.iter().map(|span| bytes[span.start as usize..span.end as usize].to_vec()).collect()
}

fn shown(reply: Result<Vec<u8>, String>) -> String {
    match reply {
        Ok(bytes) if bytes.len() > 2000 => {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            format!("{}… {} bytes, hash {:x}", bytes[..99].escape_ascii(), bytes.len(), hasher.finish())
        }
        Ok(bytes) => without_id(&bytes).escape_ascii().to_string(),
        Err(what) => format!("({what})"),
    }
}

/// HELLO tells the connection's number, which differs.
fn without_id(reply: &[u8]) -> Vec<u8> {
    let mark = b"$2\r\nid\r\n:";
    let Some(at) = reply.windows(mark.len()).position(|window| window == mark) else { return reply.to_vec() };
    let (head, tail) = reply.split_at(at + mark.len());
    let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
    [head, b"N", &tail[digits..]].concat()
}

/// Runs every case of `table` both ways and fails with all differences. A case is a heading, `# name`, and the lines
/// up to the next one; `##` begins a comment. Between cases `clean` is run on the servers; its last line counts
/// subscribers.
pub fn compare(direct: &Way<'_>, proxied: &Way<'_>, clean: &[&str], table: &str) {
    let mut wrong = String::new();
    let lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with("##"));
    let mut cases: Vec<(&str, Vec<&str>)> = vec![];
    for line in lines {
        match line.strip_prefix("# ") {
            Some(name) => cases.push((name, vec![])),
            None => cases.last_mut().unwrap().1.push(line),
        }
    }
    for (name, script) in cases {
        for way in [direct, proxied] {
            let straight = Way { port: way.redis.port, redis: way.redis };
            // Subscribers of the case before may still be on their way out.
            eventually("nobody subscribes", || {
                let left = run(&straight, clean).pop().unwrap_or_default();
                (!left.contains(":1") && !left.contains(":2")).then_some(())
            });
        }
        let (expected, got) = (run(direct, &script), run(proxied, &script));
        let stuck = |lines: &[String]| lines.iter().find(|line| line.contains("(silence")).cloned();
        assert_eq!(stuck(&expected), None, "{name}: the script waits for what Redis does not send");
        if let Some(at) = (0..script.len()).find(|at| expected[*at] != got[*at]) {
            let text = format!("{name}, line {at}:\n  direct  {}\n  proxied {}\n", expected[at], got[at]);
            wrong.push_str(&text);
        }
    }
    assert!(wrong.is_empty(), "differences:\n{wrong}");
}
