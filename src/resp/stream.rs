//! A request that is too big to be kept: its bytes pass through, only its small arguments are remembered.

use super::args::{Args, Span};
use super::request::{self, Limits, ProtocolError, RequestParser, Stage};

/// Longer arguments are not remembered: they are values, not keys or options.
const LONGEST_KEPT: usize = 4 * 1024;
/// Unless it is the first one behind the command's name, where most commands have their key.
const LONGEST_KEY: usize = 1024 * 1024;
/// What may be remembered of one request, in bytes.
const MOST_KEPT: usize = 128 * 1024 * 1024;

/// Where the stream stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// In a `$` header, part of which may be in `line`.
    Header,
    /// In an argument; this many bytes, its CRLF included, are to come, and it is remembered or not.
    Body(u64, bool),
}

/// The state of a request that passes through.
#[derive(Debug)]
pub struct Streamed {
    at: At,
    /// Arguments to come, the current one included.
    left: u32,
    kept: Vec<u8>,
    spans: Vec<Span>,
    line: Vec<u8>,
    error: Option<ProtocolError>,
}

impl Streamed {
    /// Goes on where `parser` found the request in `buf` incomplete; all of `buf` counts as passed through.
    /// `None`: nothing is known of the request yet, or it is an inline one.
    pub fn begin(parser: &RequestParser, buf: &[u8]) -> Option<Self> {
        let (stage, pos) = parser.place();
        let mut stream =
            Self { at: At::Header, left: 0, kept: vec![], spans: vec![], line: vec![], error: None };
        for arg in parser.args(buf, false).iter() {
            stream.remember(arg);
        }
        match stage {
            Stage::Start => return None,
            Stage::Header(left) => {
                stream.left = left;
                stream.line.extend_from_slice(&buf[pos..]);
            }
            Stage::Body(left, end) => {
                stream.left = left;
                stream.enter(end - pos);
                stream.body(&buf[pos..]);
            }
        }
        Some(stream)
    }

    /// The arguments; those that were too long are empty.
    pub fn args(&self) -> Args<'_> {
        Args::new(&self.kept, &self.spans)
    }

    /// How the client broke the protocol, if it did.
    pub fn error(&self) -> Option<ProtocolError> {
        self.error
    }

    /// Takes what of `bytes` belongs to the request: how many bytes, and whether it ends there.
    pub fn advance(&mut self, bytes: &[u8], limits: &Limits) -> Result<(usize, bool), ProtocolError> {
        let result = self.take(bytes, limits);
        self.error = result.err();
        result
    }

    fn take(&mut self, bytes: &[u8], limits: &Limits) -> Result<(usize, bool), ProtocolError> {
        let mut at = 0;
        while at < bytes.len() {
            match self.at {
                At::Body(..) => at += self.body(&bytes[at..]),
                At::Header => at += self.header(&bytes[at..], limits)?,
            }
            if self.left == 0 {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn header(&mut self, bytes: &[u8], limits: &Limits) -> Result<usize, ProtocolError> {
        let before = self.line.len();
        // A header is short: more of it than this is an error anyway.
        self.line.extend_from_slice(&bytes[..bytes.len().min(request::MAX_LINE + 2)]);
        let Some((length, end)) = request::bulk_header(&self.line, 0, limits)? else {
            return Ok(self.line.len() - before);
        };
        self.line.clear();
        if self.kept.len() + self.spans.len() * size_of::<Span>() > MOST_KEPT {
            return Err(ProtocolError::RequestTooBig);
        }
        self.enter(length);
        Ok(end - before)
    }

    fn enter(&mut self, length: usize) {
        let keep = self.is_kept(length);
        let start = self.kept.len() as u32;
        self.spans.push(Span { start, end: start });
        self.at = At::Body(length as u64 + 2, keep);
    }

    /// Whether the next argument, so long, is remembered.
    fn is_kept(&self, length: usize) -> bool {
        length <= if self.spans.len() == 1 { LONGEST_KEY } else { LONGEST_KEPT }
    }

    fn body(&mut self, bytes: &[u8]) -> usize {
        let At::Body(to_come, keep) = self.at else { return 0 };
        let take = to_come.min(bytes.len() as u64);
        if keep {
            // The last two bytes are the CRLF.
            let content = to_come.saturating_sub(2).min(take) as usize;
            self.kept.extend_from_slice(&bytes[..content]);
            if let Some(span) = self.spans.last_mut() {
                span.end = self.kept.len() as u32;
            }
        }
        if take == to_come {
            self.left -= 1;
            self.at = At::Header;
        } else {
            self.at = At::Body(to_come - take, keep);
        }
        take as usize
    }

    fn remember(&mut self, arg: &[u8]) {
        let start = self.kept.len() as u32;
        if self.is_kept(arg.len()) {
            self.kept.extend_from_slice(arg);
        }
        self.spans.push(Span { start, end: self.kept.len() as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Parsed;

    fn request(args: &[&[u8]]) -> Vec<u8> {
        let mut out = bytes::BytesMut::new();
        super::super::encode::request(&mut out, args.iter());
        out.to_vec()
    }

    #[test]
    fn small_arguments_are_kept_whatever_the_portions() {
        let big = vec![b'v'; LONGEST_KEPT + 1];
        let (key, too_big) = (vec![b'k'; LONGEST_KEY], vec![b'k'; LONGEST_KEY + 1]);
        for (key, kept) in [(b"k1".as_slice(), b"k1".as_slice()), (&key, &key), (&too_big, b"")] {
            keeps(
                &request(&[b"MSET", key, &big, b"k2", b"", b"k3", &big]),
                &[b"MSET", kept, b"", b"k2", b"", b"k3", b""],
            );
        }
    }

    fn keeps(bytes: &[u8], kept: &[&[u8]]) {
        for cut in [5, 20, 31, 40, 1000, bytes.len() - LONGEST_KEPT - 30, bytes.len() - 1] {
            for step in [1, 2, 7, 70_000] {
                let mut parser = RequestParser::default();
                assert_eq!(parser.parse(&bytes[..cut], &Limits::NORMAL), Parsed::Incomplete);
                let Some(mut stream) = Streamed::begin(&parser, &bytes[..cut]) else { continue };
                let mut at = cut;
                loop {
                    let end = (at + step).min(bytes.len());
                    let (used, done) = stream.advance(&bytes[at..end], &Limits::NORMAL).unwrap();
                    at += used;
                    if done {
                        break;
                    }
                    assert!(at < bytes.len(), "cut {cut} step {step}");
                }
                assert_eq!(at, bytes.len());
                let args: Vec<&[u8]> = stream.args().iter().collect();
                assert_eq!(args, kept);
            }
        }
    }

    #[test]
    fn what_follows_is_not_touched_and_errors_are_seen() {
        let bytes = request(&[b"SET", b"k", b"v"]);
        let mut parser = RequestParser::default();
        parser.parse(&bytes[..15], &Limits::NORMAL);
        let mut stream = Streamed::begin(&parser, &bytes[..15]).unwrap();
        let rest = [&bytes[15..], b"*1\r\n"].concat();
        assert_eq!(stream.advance(&rest, &Limits::NORMAL), Ok((rest.len() - 4, true)));
        let mut parser = RequestParser::default();
        parser.parse(b"*2\r\n$1\r\nk\r\n", &Limits::NORMAL);
        let mut stream = Streamed::begin(&parser, b"*2\r\n$1\r\nk\r\n").unwrap();
        assert_eq!(stream.advance(b":5\r\n", &Limits::NORMAL), Err(ProtocolError::ExpectedDollar(b':')));
    }
}
