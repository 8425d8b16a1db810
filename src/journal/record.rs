//! The records of a journal file and how they are written. Pure.
//!
//! A file is a header and frames. All numbers are little-endian.
//!
//! ```text
//! header: magic (16) | version u32 | mark u64 | length u32 | upstream | CRC-32 of all before
//! frame:  mark u64 | length u32 | CRC-32 of the payload | CRC-32 of the 16 bytes before | payload
//! ```
//!
//! The mark is random, one for each file: nothing that a client puts into a tag looks like a frame, nor do blocks that
//! once belonged to another file. The head has a checksum of its own, so that a wrong length is never taken for a
//! record that was cut off.

use super::{Intent, IntentId, Scope};
use crate::rules::Tag;

/// How every journal file begins.
pub(super) const MAGIC: &[u8; 16] = b"rescind journal\n";
/// What this code writes, and the latest that it reads.
pub(super) const VERSION: u32 = 1;
/// Bytes of a header besides the upstream's.
pub(super) const HEADER: usize = 16 + 4 + 8 + 4 + 4;
/// Bytes of a frame before its payload.
pub(super) const FRAME: usize = 8 + 4 + 4 + 4;
/// Bytes of the record that a process stopped in order, with its frame.
pub(super) const CLOSED_FRAME: u64 = FRAME as u64 + 1;
/// Tags of one intent may take as many bytes; beyond, it stands for everything.
pub(super) const MOST_TAGS: usize = 16 << 20;
/// No payload is longer: tags, and room for the rest.
pub(super) const MOST_PAYLOAD: usize = MOST_TAGS + (64 << 10);

/// One entry of a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A trigger is about to be forwarded.
    Intent(Intent),
    /// The fan-out of an intent is complete, or its trigger did not fire.
    Done { id: IntentId, unix_ms: u64 },
    /// The identity of the Redis, as told from then on.
    Redis { identity: String, unix_ms: u64 },
    /// What was invalidated earlier, carried over from another file.
    Recent { scope: Scope, unix_ms: u64 },
    /// Whatever follows names tags by rules of this fingerprint.
    Rules { fingerprint: u32, unix_ms: u64 },
    /// The process stopped in order. Nothing follows.
    Closed,
}

impl Record {
    /// When what it says happened, if it tells.
    pub fn unix_ms(&self) -> Option<u64> {
        match self {
            Record::Intent(Intent { unix_ms, .. })
            | Record::Done { unix_ms, .. }
            | Record::Redis { unix_ms, .. }
            | Record::Recent { unix_ms, .. }
            | Record::Rules { unix_ms, .. } => Some(*unix_ms),
            Record::Closed => None,
        }
    }
}

const INTENT: u8 = 1;
const DONE: u8 = 2;
const REDIS: u8 = 3;
const RECENT: u8 = 4;
const CLOSED: u8 = 5;

/// [`Record::Rules`] is written as the completion of an intent that no process has: earlier versions pass over it.
const RULES: u64 = (u32::MAX as u64) << 32;

const EVERYTHING: u8 = 0;
const TAGS: u8 = 1;

/// Appends the header of a file.
pub(super) fn header(mark: u64, upstream: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&mark.to_le_bytes());
    put_bytes(upstream.as_bytes(), out);
    let checksum = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// Appends a record in its frame.
pub(super) fn append(record: &Record, mark: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    put_record(record, out);
    let (head, payload) = out[start..].split_at_mut(FRAME);
    head[..8].copy_from_slice(&mark.to_le_bytes());
    head[8..12].copy_from_slice(&short(payload.len()).to_le_bytes());
    head[12..16].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&head[..16]);
    head[16..].copy_from_slice(&checksum.to_le_bytes());
}

/// Lengths are bounded far below what a `u32` holds before they come here.
fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_record(record: &Record, out: &mut Vec<u8>) {
    let put_time = |unix_ms: &u64, out: &mut Vec<u8>| out.extend_from_slice(&unix_ms.to_le_bytes());
    match record {
        Record::Intent(intent) => {
            out.push(INTENT);
            out.extend_from_slice(&intent.id.0.to_le_bytes());
            put_time(&intent.unix_ms, out);
            put_bytes(intent.what.as_bytes(), out);
            put_scope(&intent.scope, out);
        }
        Record::Done { id, unix_ms } => {
            out.push(DONE);
            out.extend_from_slice(&id.0.to_le_bytes());
            put_time(unix_ms, out);
        }
        Record::Redis { identity, unix_ms } => {
            out.push(REDIS);
            put_time(unix_ms, out);
            put_bytes(identity.as_bytes(), out);
        }
        Record::Recent { scope, unix_ms } => {
            out.push(RECENT);
            put_time(unix_ms, out);
            put_scope(scope, out);
        }
        Record::Rules { fingerprint, unix_ms } => {
            let id = IntentId(RULES | u64::from(*fingerprint));
            put_record(&Record::Done { id, unix_ms: *unix_ms }, out);
        }
        Record::Closed => out.push(CLOSED),
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&short(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_scope(scope: &Scope, out: &mut Vec<u8>) {
    match scope {
        Scope::Everything => out.push(EVERYTHING),
        Scope::Tags(tags) => {
            out.push(TAGS);
            out.extend_from_slice(&short(tags.len()).to_le_bytes());
            tags.iter().for_each(|tag| put_bytes(tag, out));
        }
    }
}

/// Bytes that a scope takes in a record, about.
pub(super) fn size(scope: &Scope) -> usize {
    match scope {
        Scope::Everything => 1,
        Scope::Tags(tags) => 5 + tags.iter().map(|tag| 4 + tag.len()).sum::<usize>(),
    }
}

/// Reads what [`append`] wrote as payload; `None` for anything else.
pub(super) fn read(payload: &[u8]) -> Option<Record> {
    let mut rest = Rest(payload);
    let record = match rest.byte()? {
        INTENT => Record::Intent(Intent {
            id: IntentId(rest.long()?),
            unix_ms: rest.long()?,
            what: rest.text()?,
            scope: rest.scope()?,
        }),
        DONE => match (rest.long()?, rest.long()?) {
            (id @ RULES.., unix_ms) => Record::Rules { fingerprint: id as u32, unix_ms },
            (id, unix_ms) => Record::Done { id: IntentId(id), unix_ms },
        },
        REDIS => Record::Redis { unix_ms: rest.long()?, identity: rest.text()? },
        RECENT => Record::Recent { unix_ms: rest.long()?, scope: rest.scope()? },
        CLOSED => Record::Closed,
        _ => return None,
    };
    rest.0.is_empty().then_some(record)
}

/// What is still to be read.
pub(super) struct Rest<'a>(pub(super) &'a [u8]);

impl<'a> Rest<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn int(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.int()?;
        self.take(length as usize)
    }

    pub(super) fn text(&mut self) -> Option<String> {
        std::str::from_utf8(self.bytes()?).ok().map(str::to_owned)
    }

    fn scope(&mut self) -> Option<Scope> {
        match self.byte()? {
            EVERYTHING => Some(Scope::Everything),
            TAGS => {
                let count = self.int()? as usize;
                // Each tag takes four bytes at least: memory follows the bytes that are there.
                (count <= self.0.len() / 4).then_some(())?;
                (0..count).map(|_| self.bytes().map(Tag::from)).collect::<Option<_>>().map(Scope::Tags)
            }
            _ => None,
        }
    }
}
