//! What proxies tell each other about explicit labels, on a channel of its own: so the index of each knows the labels
//! that were given through any of them.
//!
//! A message is published behind the change in Redis that it tells of, and before the client hears of it; where that cannot be
//! one step, another one ahead of it. The feed shows them in order with the events of keys.

use bytes::BytesMut;

use crate::resp::request::number;
use crate::resp::{Limits, Parsed, RequestParser, encode};
use crate::rules::Tag;

/// The channel.
pub const NEWS: &[u8] = b"rescind:labels";

/// What the names of the sets of explicit labels begin with.
pub const LABEL_SETS: &[u8] = b"rescind:tag:";

/// The name of the set that holds the labelled keys of a tag.
pub fn label_set(tag: &[u8]) -> Vec<u8> {
    [LABEL_SETS, tag].concat()
}

/// What has happened to the labels of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Nothing: there is another proxy.
    Hello,
    /// A write is under way that gives them to it, and is answered after [`Verb::Given`] or [`Verb::Withdrawn`].
    Coming,
    /// That did not take place.
    Withdrawn,
    /// The key has them.
    Given,
    /// It was written with them, in the same step.
    Written,
    /// They were taken away from it.
    Taken,
    /// They were taken out of Redis because their value is gone. Who knows better puts them back.
    Forgotten,
    /// Their value may be overwritten from here on.
    Leaving,
    /// It was: those that have not been given anew are gone.
    Left,
    /// It was not.
    Stayed,
}

const WORDS: [(&[u8], Verb); 10] = [
    (b"hello", Verb::Hello),
    (b"coming", Verb::Coming),
    (b"withdrawn", Verb::Withdrawn),
    (b"given", Verb::Given),
    (b"written", Verb::Written),
    (b"taken", Verb::Taken),
    (b"forgotten", Verb::Forgotten),
    (b"leaving", Verb::Leaving),
    (b"left", Verb::Left),
    (b"stayed", Verb::Stayed),
];

/// Labels of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The database of the key.
    pub db: u32,
    /// The key.
    pub key: Box<[u8]>,
    /// Its labels, or those of them that something is said about.
    pub tags: Vec<Tag>,
}

impl Labels {
    /// The labels `tags` of a key.
    pub fn new(db: u32, key: &[u8], tags: Vec<Tag>) -> Self {
        Self { db, key: key.into(), tags }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The number of the proxy that sent it.
    pub from: u64,
    /// What happened.
    pub verb: Verb,
    /// To these labels.
    pub labels: Labels,
}

impl News {
    /// A message about `labels`.
    pub fn payload(from: u64, verb: Verb, labels: &Labels) -> BytesMut {
        let word = WORDS.iter().find(|(_, known)| *known == verb).map_or(b"".as_slice(), |(word, _)| *word);
        let (from, db) = (from.to_string(), labels.db.to_string());
        let mut args: Vec<&[u8]> = vec![from.as_bytes(), word, db.as_bytes(), &labels.key];
        args.extend(labels.tags.iter().map(|tag| &**tag));
        let mut out = BytesMut::new();
        encode::request(&mut out, args);
        out
    }

    /// Reads a message; `None`: it is not one of ours.
    pub fn parse(payload: &[u8]) -> Option<News> {
        let mut parser = RequestParser::default();
        let Parsed::Request { len, inline: false } = parser.parse(payload, &Limits::NORMAL) else {
            return None;
        };
        let args = parser.args(payload, false);
        let from = std::str::from_utf8(args.get(0)?).ok()?.parse().ok()?;
        let verb = WORDS.iter().find(|(word, _)| Some(*word) == args.get(1))?.1;
        let db = u32::try_from(number(args.get(2)?)?).ok()?;
        let tags = args.iter().skip(4).map(Tag::from).collect();
        (len == payload.len()).then_some(News { from, verb, labels: Labels::new(db, args.get(3)?, tags) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for (_, verb) in WORDS {
            for tags in [vec![], vec![Tag::from(b"a".as_slice()), Tag::from(b"\r\n\xff".as_slice())]] {
                let labels = Labels::new(7, b"k \r\n*", tags);
                let payload = News::payload(u64::MAX, verb, &labels);
                assert_eq!(News::parse(&payload), Some(News { from: u64::MAX, verb, labels }));
            }
        }
    }

    #[test]
    fn nonsense_is_not() {
        let good = News::payload(1, Verb::Given, &Labels::new(0, b"k", vec![]));
        for cut in 0..good.len() {
            assert_eq!(News::parse(&good[..cut]), None);
        }
        assert_eq!(News::parse(&[&good[..], b"x"].concat()), None);
        for bad in
            ["Post post:42", "*1\r\n$1\r\n1\r\n", "*4\r\n$1\r\n1\r\n$3\r\nfly\r\n$1\r\n0\r\n$1\r\nk\r\n"]
        {
            assert_eq!(News::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(News::parse(b"*4\r\n$1\r\n1\r\n$5\r\ngiven\r\n$2\r\n-1\r\n$1\r\nk\r\n"), None);
    }
}
