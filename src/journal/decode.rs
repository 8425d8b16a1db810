//! From the bytes of a journal file to its records, whatever happened to them. Pure.

use memchr::memmem::Finder;

use super::record::{self, FRAME, HEADER, MAGIC, MOST_PAYLOAD, Record, Rest, VERSION};

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// The upstream that its header names.
    pub upstream: String,
    /// Its records in order.
    pub records: Vec<Record>,
    /// How many of them stand before the first damage: nothing is missing between those.
    pub certain: usize,
    /// The last record is incomplete, as a crash leaves it.
    pub torn: bool,
    /// Where it is damaged, as an offset: something is missing that may have been an intent.
    pub damage: Vec<usize>,
}

/// Why a file says nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The header is not one, or damaged.
    Header,
    /// The file was written by a later version.
    Version(u32),
}

/// Reads a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, Unreadable> {
    let (mark, upstream) = header(bytes)?;
    let mut decoded =
        Decoded { certain: 0, records: vec![], torn: false, damage: vec![], upstream: upstream.to_owned() };
    let mut frames = Frames { mark, finder: Finder::new(&mark), budget: 4 * bytes.len() };
    let mut at = HEADER + upstream.len();
    while at < bytes.len() {
        match frames.read(&bytes[at..]) {
            Frame::Whole(record, length) => {
                decoded.records.push(record);
                at += length;
            }
            Frame::Torn => {
                decoded.torn = true;
                break;
            }
            Frame::Broken => {
                if decoded.damage.is_empty() {
                    decoded.certain = decoded.records.len();
                }
                decoded.damage.push(at);
                match frames.next_whole(bytes, at + 1) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }
    if decoded.damage.is_empty() {
        decoded.certain = decoded.records.len();
    }
    Ok(decoded)
}

/// The mark and the upstream.
fn header(bytes: &[u8]) -> Result<([u8; 8], &str), Unreadable> {
    let fields = || {
        let mut rest = Rest(bytes);
        (rest.take(MAGIC.len())? == MAGIC).then_some(())?;
        Some((rest.int()?, rest))
    };
    let (version, mut rest) = fields().ok_or(Unreadable::Header)?;
    if version > VERSION {
        return Err(Unreadable::Version(version));
    }
    let mut fields = || {
        let mark = rest.take(8)?.try_into().ok()?;
        let length = rest.int()? as usize;
        let upstream = rest.take(length)?;
        let covered = &bytes[..bytes.len() - rest.0.len()];
        (version == VERSION && rest.int()? == crc32fast::hash(covered)).then_some(())?;
        Some((mark, std::str::from_utf8(upstream).ok()?))
    };
    fields().ok_or(Unreadable::Header)
}

enum Frame {
    /// A record, and the bytes of its frame.
    Whole(Record, usize),
    /// The file ends within the frame, as when a write was cut off.
    Torn,
    /// Anything else.
    Broken,
}

struct Frames<'m> {
    mark: [u8; 8],
    finder: Finder<'m>,
    /// Bytes that checksums may still be computed of in vain: the work stays proportional to the file.
    budget: usize,
}

impl Frames<'_> {
    /// The frame at the start of `bytes`, which go to the end of the file.
    fn read(&mut self, bytes: &[u8]) -> Frame {
        let Some((head, rest)) = bytes.split_first_chunk::<FRAME>() else {
            // A cut frame begins like one.
            let known = bytes.len().min(self.mark.len());
            return if bytes[..known] == self.mark[..known] { Frame::Torn } else { zeros(bytes) };
        };
        let mut fields = Rest(&head[8..]);
        let (Some(length), Some(checksum), Some(own)) = (fields.int(), fields.int(), fields.int()) else {
            return Frame::Broken;
        };
        let length = length as usize;
        if head[..8] != self.mark || own != crc32fast::hash(&head[..16]) || length > MOST_PAYLOAD {
            return zeros(bytes);
        }
        // The head is right, so the file does end too early.
        let Some(payload) = rest.get(..length) else { return Frame::Torn };
        if crc32fast::hash(payload) == checksum
            && let Some(record) = record::read(payload)
        {
            return Frame::Whole(record, FRAME + length);
        }
        self.budget = self.budget.saturating_sub(length);
        Frame::Broken
    }

    /// Where the next whole frame starts, from `from` on.
    fn next_whole(&mut self, bytes: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        while self.budget > 0 {
            at += self.finder.find(bytes.get(at..)?)?;
            if let Frame::Whole(..) = self.read(&bytes[at..]) {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

/// Some file systems fill up with zeros what was not yet written when the power went. No frame begins with one.
fn zeros(bytes: &[u8]) -> Frame {
    if bytes.iter().all(|byte| *byte == 0) { Frame::Torn } else { Frame::Broken }
}
