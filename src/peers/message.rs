//! What proxies tell each other on [`CHANNEL`]. A message is an array of strings, as a request is.

use bytes::BytesMut;

use crate::resp::{Args, Limits, Parsed, RequestParser, encode};
use crate::rules::Tag;

/// The channel on which proxies speak.
pub const CHANNEL: &[u8] = b"rescind:proxies";
/// What a proxy's own channel begins with: as long as it lives, it listens there.
pub const LIFELINE: &[u8] = b"rescind:proxy:";

/// The name of a proxy: unique for each start of each process.
pub type ProxyId = Box<[u8]>;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A fan-out has begun: `rescind:epoch:<tag>` of each tag is `epoch` now.
    Begun {
        /// Whose it is.
        proxy: ProxyId,
        /// Unique among all attempts of all fan-outs of all proxies.
        epoch: Box<[u8]>,
        /// The tags, cascades included.
        tags: Vec<Tag>,
        /// It follows one of another proxy, by other rules; nobody follows it in turn.
        follows: bool,
    },
    /// All dependents of that fan-out are deleted.
    Done {
        /// Whose it was.
        proxy: ProxyId,
        /// That of its last attempt.
        epoch: Box<[u8]>,
    },
    /// What was begun in the same message stands in Redis behind this mark, see [`RECENT`](crate::lease::script::RECENT).
    Mark(Box<[u8]>),
    /// A proxy has come, with rules of this fingerprint, which watches fills for so many milliseconds at most, and wants to
    /// know who is there.
    Hello(ProxyId, u32, u32),
    /// The answer, and what is said when the rules change.
    Here {
        /// Who says so.
        proxy: ProxyId,
        /// Whether it knows that tasks of clients share connections.
        shared: bool,
        /// The fingerprint of its rules.
        rules: u32,
        /// For how long it watches fills at most, in milliseconds.
        window: u32,
        /// For how long it still takes writes without a miss for late fills, in milliseconds.
        suspects: u32,
        /// Those that it knows.
        others: Vec<ProxyId>,
    },
    /// At these data, which Redis has now, it has invalidated again what it knew to have been invalidated lately.
    Repeated(ProxyId, Box<[u8]>),
    /// Requests of several connections of a host are under way at once: it is presumed that tasks share them.
    Busy(ProxyId, u64),
    /// A proxy goes in order. Whether clients may still fill what they missed there.
    Bye(ProxyId, bool),
    /// A stale fill was undone within Redis, for a client of that proxy.
    Undone {
        /// The proxy.
        proxy: ProxyId,
        /// The database.
        db: u32,
        /// The key.
        key: Box<[u8]>,
    },
    /// Redis does not know any more whether a key that a client of that proxy has written had a label that was invalidated.
    Unsure {
        /// The proxy.
        proxy: ProxyId,
        /// The database.
        db: u32,
        /// The key.
        key: Box<[u8]>,
        /// The mark since which it must not have been.
        since: Box<[u8]>,
    },
}

impl Message {
    /// Appends it to a payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Message::Begun { proxy, epoch, tags, follows } => encode_begun(out, proxy, epoch, tags, *follows),
            Message::Done { proxy, epoch } => encode::request(out, [b"done".as_slice(), proxy, epoch]),
            Message::Mark(mark) => encode::request(out, [b"mark".as_slice(), mark]),
            Message::Hello(proxy, rules, window) => {
                let (rules, window) = (rules.to_string(), window.to_string());
                encode::request(out, [b"hello".as_slice(), proxy, rules.as_bytes(), window.as_bytes()]);
            }
            Message::Here { proxy, shared, rules, window, suspects, others } => {
                let shared: &[u8] = if *shared { b"shared" } else { b"" };
                let numbers = [rules, window, suspects].map(|number| number.to_string());
                encode::header(out, b'*', 6 + others.len() as i64);
                [b"here", &**proxy, shared].into_iter().for_each(|word| encode::bulk(out, word));
                numbers.iter().for_each(|number| encode::bulk(out, number.as_bytes()));
                others.iter().for_each(|other| encode::bulk(out, other));
            }
            Message::Repeated(proxy, data) => encode::request(out, [b"repeated".as_slice(), proxy, data]),
            Message::Busy(proxy, host) => {
                encode::request(out, [b"busy".as_slice(), proxy, host.to_string().as_bytes()]);
            }
            Message::Bye(proxy, open) => {
                encode::request(out, [b"bye".as_slice(), proxy, if *open { b"open" } else { b"" }]);
            }
            Message::Undone { proxy, db, key } => {
                let db = db.to_string();
                encode::request(out, [b"undone".as_slice(), proxy, db.as_bytes(), key]);
            }
            Message::Unsure { proxy, db, key, since } => {
                let db = db.to_string();
                encode::request(out, [b"unsure".as_slice(), proxy, db.as_bytes(), key, since]);
            }
        }
    }

    /// Reads the messages of a payload; false: what is left is none of ours.
    pub fn decode(mut payload: &[u8], mut each: impl FnMut(Message)) -> bool {
        let mut parser = RequestParser::default();
        loop {
            let Parsed::Request { len, inline: false } = parser.parse(payload, &Limits::NORMAL) else {
                return false;
            };
            let Some(message) = Self::of(parser.args(payload, false)) else { return false };
            each(message);
            payload = &payload[len..];
            if payload.is_empty() {
                return true;
            }
        }
    }

    fn of(args: Args<'_>) -> Option<Message> {
        // Of a mark: itself.
        let proxy: ProxyId = args.get(1)?.into();
        Some(match (args.get(0)?, args.len()) {
            (verb @ (b"begun" | b"also"), 4..) => Message::Begun {
                proxy,
                epoch: args.get(2)?.into(),
                tags: args.iter().skip(3).map(Tag::from).collect(),
                follows: verb == b"also",
            },
            (b"done", 3) => Message::Done { proxy, epoch: args.get(2)?.into() },
            (b"mark", 2) => Message::Mark(proxy),
            (b"hello", 4) => Message::Hello(proxy, number(args.get(2)?)?, number(args.get(3)?)?),
            (b"here", 6..) => Message::Here {
                proxy,
                shared: !args.get(2)?.is_empty(),
                rules: number(args.get(3)?)?,
                window: number(args.get(4)?)?,
                suspects: number(args.get(5)?)?,
                others: args.iter().skip(6).map(ProxyId::from).collect(),
            },
            (b"repeated", 3) => Message::Repeated(proxy, args.get(2)?.into()),
            (b"busy", 3) => Message::Busy(proxy, number(args.get(2)?)?),
            (b"bye", 3) => Message::Bye(proxy, !args.get(2)?.is_empty()),
            (b"undone", 4) => {
                Message::Undone { proxy, db: database(args.get(2)?)?, key: args.get(3)?.into() }
            }
            (b"unsure", 5) => {
                let (db, key) = (database(args.get(2)?)?, args.get(3)?.into());
                Message::Unsure { proxy, db, key, since: args.get(4)?.into() }
            }
            _ => return None,
        })
    }
}

/// As scripts name it.
fn database(text: &[u8]) -> Option<u32> {
    if text.is_empty() { Some(0) } else { number(text) }
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends a [`Message::Begun`] to a payload.
pub fn encode_begun(out: &mut BytesMut, proxy: &[u8], epoch: &[u8], tags: &[Tag], follows: bool) {
    let verb = if follows { b"also".as_slice() } else { b"begun" };
    encode::header(out, b'*', 3 + tags.len() as i64);
    [verb, proxy, epoch].into_iter().for_each(|word| encode::bulk(out, word));
    tags.iter().for_each(|tag| encode::bulk(out, tag));
}

/// The fan-out whose epoch that is: each attempt has one of its own.
pub fn fan_out_of(epoch: &[u8]) -> &[u8] {
    memchr::memchr(b'.', epoch).map_or(epoch, |end| &epoch[..end])
}

/// The channel on which that proxy listens as long as it lives.
pub fn lifeline(proxy: &[u8]) -> Vec<u8> {
    [LIFELINE, proxy].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let proxy: ProxyId = b"p1".as_slice().into();
        let epoch: Box<[u8]> = b"p1-7".as_slice().into();
        let tags = vec![Tag::from(b"a\r\nb".as_slice()), Tag::from(b"".as_slice())];
        let all = [
            Message::Begun { proxy: proxy.clone(), epoch: epoch.clone(), tags: tags.clone(), follows: false },
            Message::Begun { proxy: proxy.clone(), epoch: epoch.clone(), tags, follows: true },
            Message::Done { proxy: proxy.clone(), epoch },
            Message::Mark(b"p1.7".as_slice().into()),
            Message::Hello(proxy.clone(), 0, 5000),
            Message::Here {
                proxy: proxy.clone(),
                shared: true,
                rules: u32::MAX,
                window: 0,
                suspects: 7,
                others: vec![],
            },
            Message::Here {
                proxy: proxy.clone(),
                shared: false,
                rules: 7,
                window: u32::MAX,
                suspects: 0,
                others: vec![proxy.clone(), b"p2".as_slice().into()],
            },
            Message::Repeated(proxy.clone(), b"run id role 0".as_slice().into()),
            Message::Busy(proxy.clone(), u64::MAX),
            Message::Bye(proxy.clone(), true),
            Message::Bye(proxy.clone(), false),
            Message::Undone { proxy: proxy.clone(), db: 12, key: b"\0\xff".as_slice().into() },
            Message::Unsure { proxy: proxy.clone(), db: 0, key: b"".as_slice().into(), since: proxy },
        ];
        let mut together = BytesMut::new();
        for message in &all {
            let mut payload = BytesMut::new();
            message.encode(&mut payload);
            assert_eq!(read(&payload), (vec![message.clone()], true));
            together.unsplit(payload);
        }
        assert_eq!(read(&together), (all.to_vec(), true));
        together.extend_from_slice(b"more");
        assert_eq!(read(&together), (all.to_vec(), false));
    }

    fn read(payload: &[u8]) -> (Vec<Message>, bool) {
        let mut messages = vec![];
        let whole = Message::decode(payload, |message| messages.push(message));
        (messages, whole)
    }

    #[test]
    fn anything_else_is_nothing() {
        let payloads: [&[u8]; 7] = [
            b"",
            b"hello",
            b"*1\r\n$5\r\nhello\r\n",
            b"*3\r\n$5\r\nhello\r\n$1\r\np\r\n$1\r\n-\r\n",
            b"*-1\r\n",
            b"\xff",
            b"*2\r\n$4\r\nwhat\r\n$1\r\nx\r\n",
        ];
        for payload in payloads {
            assert_eq!(read(payload), (vec![], false), "{}", String::from_utf8_lossy(payload));
        }
    }
}
