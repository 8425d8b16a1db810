//! Framing of what clients send: multibulk and inline requests, resumable at any byte.
//!
//! Limits and error texts are those of Redis 7 (`processMultibulkBuffer` and `processInlineBuffer`
//! in its `networking.c`), so that a client that misbehaves cannot tell the difference.

use super::args::{Args, Span};

/// Longest header line or inline request, as `PROTO_INLINE_MAX_SIZE` of Redis.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// What a client may send before the framer refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most arguments of one request.
    pub max_args: i64,
    /// Longest argument, bytes.
    pub max_bulk: i64,
    /// The client has not authenticated although it must: errors say so.
    pub unauthenticated: bool,
}

impl Limits {
    /// The limits of an ordinary Redis client: 512 MB per argument (`proto-max-bulk-len`).
    pub const NORMAL: Limits =
        Limits { max_args: i32::MAX as i64, max_bulk: 512 * 1024 * 1024, unauthenticated: false };
    /// The limits that Redis sets before AUTH.
    pub const UNAUTHENTICATED: Limits = Limits { max_args: 10, max_bulk: 16384, unauthenticated: true };

    /// Whether a request would be refused in multibulk form.
    pub fn exceeded_by(&self, args: Args<'_>) -> bool {
        args.len() as i64 > self.max_args || args.iter().any(|arg| arg.len() as i64 > self.max_bulk)
    }
}

/// What the bytes at the start of the buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request of `len` bytes; its arguments are at [`RequestParser::spans`].
    Request {
        /// Bytes that it takes up.
        len: usize,
        /// It came as an inline request: forward it re-encoded.
        inline: bool,
    },
    /// `len` bytes that ask for nothing: a blank line, `*0`, `*-1`.
    Nothing {
        /// Bytes to skip.
        len: usize,
    },
    /// The request goes on behind the end of the buffer.
    Incomplete,
    /// The client broke the protocol: answer and close.
    Error(ProtocolError),
}

/// How a client broke the protocol. [`std::fmt::Display`] gives the text that Redis sends after `ERR `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// An endless inline request.
    InlineTooBig,
    /// Quotes that do not close.
    UnbalancedQuotes,
    /// An endless `*` line.
    CountTooLong,
    /// A count that is no number or out of range.
    InvalidCount,
    /// Too many arguments before AUTH.
    UnauthenticatedCount,
    /// An endless `$` line.
    BulkHeaderTooLong,
    /// Something else where `$` must stand.
    ExpectedDollar(u8),
    /// A length that is no number or out of range.
    InvalidBulk,
    /// Too long an argument before AUTH.
    UnauthenticatedBulk,
    /// More small arguments than can be remembered.
    RequestTooBig,
}

impl ProtocolError {
    /// The whole error reply without its `-`. It is not always UTF-8: Redis repeats the byte that is wrong.
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::ExpectedDollar(byte) => {
                [b"ERR Protocol error: expected '$', got '", [*byte].as_slice(), b"'"].concat()
            }
            other => format!("ERR {other}").into_bytes(),
        }
    }
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::InlineTooBig => f.write_str("too big inline request"),
            Self::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            Self::CountTooLong => f.write_str("too big mbulk count string"),
            Self::InvalidCount => f.write_str("invalid multibulk length"),
            Self::UnauthenticatedCount => f.write_str("unauthenticated multibulk length"),
            Self::BulkHeaderTooLong => f.write_str("too big bulk count string"),
            Self::ExpectedDollar(byte) => write!(f, "expected '$', got '{}'", *byte as char),
            Self::InvalidBulk => f.write_str("invalid bulk length"),
            Self::UnauthenticatedBulk => f.write_str("unauthenticated bulk length"),
            Self::RequestTooBig => f.write_str("too big request"),
        }
    }
}

/// Where the parser stands within the current request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before its first byte.
    Start,
    /// At a `$` header; this many arguments are still to come.
    Header(u32),
    /// In an argument that ends (without its CRLF) at this offset; this many to come, it included.
    Body(u32, usize),
}

/// Finds requests in a buffer without building a tree.
///
/// Call [`RequestParser::parse`] with the bytes from the start of the current request on. After
/// [`Parsed::Incomplete`] call it again with the same bytes and more behind them: it goes on where it
/// stopped. Memory grows with the arguments that have arrived, never with a count that a client claims.
#[derive(Debug)]
pub struct RequestParser {
    stage: Stage,
    pos: usize,
    spans: Vec<Span>,
    /// The unquoted arguments of an inline request; the spans point into it then.
    inline: Vec<u8>,
    /// Each line and each argument so far ended as it should.
    exact: bool,
}

impl Default for RequestParser {
    fn default() -> Self {
        Self { stage: Stage::Start, pos: 0, spans: Vec::new(), inline: Vec::new(), exact: true }
    }
}

impl RequestParser {
    /// Looks at the request that starts at `buf[0]`.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Parsed {
        if self.stage == Stage::Start {
            self.pos = 0;
            self.exact = true;
            self.spans.clear();
            match buf.first() {
                None => return Parsed::Incomplete,
                Some(b'*') => match self.count(buf, limits) {
                    Ok(None) => {}
                    Ok(Some(done)) => return done,
                    Err(error) => return Parsed::Error(error),
                },
                Some(_) => return self.parse_inline(buf),
            }
        }
        self.arguments(buf, limits).unwrap_or_else(Parsed::Error)
    }

    /// The arguments of the request that was found last; `buf` is what was given to `parse`.
    pub fn args<'a>(&'a self, buf: &'a [u8], inline: bool) -> Args<'a> {
        Args::new(if inline { &self.inline } else { buf }, &self.spans)
    }

    /// Whether any server takes the bytes of the request that was found last as they are. An inline request depends on its
    /// line; and where the end of a line or of an argument should be, Redis skips two bytes whatever they are, while Valkey
    /// from 8.1 on hangs up.
    #[inline]
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Where the arguments lie.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// How many bytes the current, incomplete request has at least, as far as its headers say.
    pub fn needed(&self) -> usize {
        match self.stage {
            Stage::Body(_, end) => end + 2,
            _ => self.pos,
        }
    }

    /// Where it stands, and the offset up to which the request has been looked at.
    pub(super) fn place(&self) -> (Stage, usize) {
        (self.stage, self.pos)
    }

    /// Gives back memory that an unusually long request made it take.
    pub fn shrink(&mut self) {
        self.spans.shrink_to(16);
        self.inline.shrink_to(0);
    }

    /// Reads the `*count` line. `Some`: nothing more to do now.
    #[inline]
    fn count(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<Parsed>, ProtocolError> {
        if let Some((count @ 1.., next)) = short_number(buf, 0)
            && count as i64 <= limits.max_args
        {
            (self.pos, self.stage) = (next, Stage::Header(count as u32));
            return Ok(None);
        }
        let Some((line, next)) = header(buf, 1).map_err(|()| ProtocolError::CountTooLong)? else {
            return Ok(Some(Parsed::Incomplete));
        };
        self.exact &= buf[next - 1] == b'\n';
        let count = number(line).filter(|n| *n <= i32::MAX as i64).ok_or(ProtocolError::InvalidCount)?;
        if count > limits.max_args {
            return Err(ProtocolError::UnauthenticatedCount);
        }
        if count <= 0 {
            return Ok(Some(Parsed::Nothing { len: next }));
        }
        self.pos = next;
        self.stage = Stage::Header(count as u32);
        Ok(None)
    }

    fn arguments(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, ProtocolError> {
        loop {
            match self.stage {
                Stage::Header(left) => {
                    let left = self.usual_arguments(buf, limits, left);
                    if left == 0 {
                        self.stage = Stage::Start;
                        return Ok(Parsed::Request { len: self.pos, inline: false });
                    }
                    self.stage = Stage::Header(left);
                    let Some((length, next)) = bulk_header(buf, self.pos, limits)? else {
                        return Ok(Parsed::Incomplete);
                    };
                    self.exact &= buf[next - 1] == b'\n';
                    self.pos = next;
                    self.stage = Stage::Body(left, next + length);
                }
                Stage::Body(left, end) => {
                    // Redis skips two bytes behind an argument whatever they are.
                    let Some(behind) = buf.get(end..end + 2) else { return Ok(Parsed::Incomplete) };
                    self.exact &= behind == b"\r\n";
                    self.spans.push(Span { start: self.pos as u32, end: end as u32 });
                    self.pos = end + 2;
                    if left == 1 {
                        self.stage = Stage::Start;
                        return Ok(Parsed::Request { len: self.pos, inline: false });
                    }
                    self.stage = Stage::Header(left - 1);
                }
                Stage::Start => return Ok(Parsed::Incomplete),
            }
        }
    }

    /// Takes arguments as long as they are there whole and nothing about them is remarkable; how many are left.
    #[inline]
    fn usual_arguments(&mut self, buf: &[u8], limits: &Limits, mut left: u32) -> u32 {
        let mut pos = self.pos;
        while left > 0 && buf.get(pos) == Some(&b'$') {
            let Some((length, start)) = short_number(buf, pos) else { break };
            let end = start + length;
            let is_whole = buf.get(end..end + 2) == Some(b"\r\n");
            if !is_whole || length as i64 > limits.max_bulk || end + 2 > u32::MAX as usize {
                break;
            }
            self.spans.push(Span { start: start as u32, end: end as u32 });
            pos = end + 2;
            left -= 1;
        }
        self.pos = pos;
        left
    }

    fn parse_inline(&mut self, buf: &[u8]) -> Parsed {
        let window = &buf[..buf.len().min(MAX_LINE + 1)];
        // Redis looks for the end of the line in a C string: not behind a NUL.
        let end = memchr::memchr2(b'\n', 0, window).filter(|at| window[*at] == b'\n');
        let Some(newline) = end else {
            let too_big = buf.len() > MAX_LINE;
            return if too_big { Parsed::Error(ProtocolError::InlineTooBig) } else { Parsed::Incomplete };
        };
        let line = buf[..newline].strip_suffix(b"\r").unwrap_or(&buf[..newline]);
        self.exact = false;
        self.inline.clear();
        if super::inline::split(line, &mut self.inline, &mut self.spans).is_err() {
            return Parsed::Error(ProtocolError::UnbalancedQuotes);
        }
        let len = newline + 1;
        if self.spans.is_empty() { Parsed::Nothing { len } } else { Parsed::Request { len, inline: true } }
    }
}

/// The number of at most seven digits that the header line at `at` consists of, as nearly all do, behind its first byte; and
/// the offset behind the line. `None` tells nothing about what is there.
#[inline(always)]
pub(super) fn short_number(buf: &[u8], at: usize) -> Option<(usize, usize)> {
    const END: u64 = u16::from_le_bytes(*b"\r\n") as u64;
    let line = buf.get(at..)?;
    // Nearly all of these have one to three.
    let Some(start) = line.first_chunk() else { return longer_number(line, at) };
    let word = u64::from_le_bytes(*start);
    let digit = |n: u32| (word >> (8 * n) & 0xff).wrapping_sub(u64::from(b'0')) as usize;
    let ends = |n: u32| word >> (8 * n) & 0xffff == END;
    match (digit(1), digit(2), digit(3)) {
        (a @ 0..=9, ..) if ends(2) => Some((a, at + 4)),
        (a @ 1..=9, b @ 0..=9, _) if ends(3) => Some((a * 10 + b, at + 5)),
        (a @ 1..=9, b @ 0..=9, c @ 0..=9) if ends(4) => Some((a * 100 + b * 10 + c, at + 6)),
        _ => longer_number(line, at),
    }
}

/// As [`short_number`], for a line that has been found at `at`.
fn longer_number(line: &[u8], at: usize) -> Option<(usize, usize)> {
    let text = line.get(1..)?;
    let (mut value, mut length) = (0, 0);
    loop {
        let byte = *text.get(length)?;
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let is_plain = length > 0 && (length == 1 || text[0] != b'0');
            let ends = text.get(length..length + 2) == Some(b"\r\n");
            return (is_plain && ends).then_some((value, at + length + 3));
        }
        if length == 7 {
            return None;
        }
        value = value * 10 + usize::from(digit);
        length += 1;
    }
}

/// The bytes between `from` and the next CR, and the offset behind its LF. `None`: not there yet.
/// Like Redis it looks for the CR alone, and not behind a NUL. `Err`: endless.
fn header(buf: &[u8], from: usize) -> Result<Option<(&[u8], usize)>, ()> {
    let rest = &buf[from..];
    let end = memchr::memchr2(b'\r', 0, &rest[..rest.len().min(MAX_LINE)]);
    match end.filter(|at| rest[*at] == b'\r') {
        Some(at) if rest.len() > at + 1 => Ok(Some((&rest[..at], from + at + 2))),
        Some(_) => Ok(None),
        None if rest.len() >= MAX_LINE => Err(()),
        None => Ok(None),
    }
}

/// Reads a `$length` line at `at`: the length and the offset of the body.
pub(super) fn bulk_header(
    buf: &[u8],
    at: usize,
    limits: &Limits,
) -> Result<Option<(usize, usize)>, ProtocolError> {
    let Some(&first) = buf.get(at) else { return Ok(None) };
    // Redis looks for the end of the line before it looks at the first byte.
    let found = header(buf, at).map_err(|()| ProtocolError::BulkHeaderTooLong)?;
    let Some((line, next)) = found else { return Ok(None) };
    if first != b'$' {
        return Err(ProtocolError::ExpectedDollar(first));
    }
    let length = number(&line[1..]).filter(|n| (0..=Limits::NORMAL.max_bulk).contains(n));
    let length = length.ok_or(ProtocolError::InvalidBulk)?;
    if length > limits.max_bulk {
        return Err(if limits.unauthenticated {
            ProtocolError::UnauthenticatedBulk
        } else {
            ProtocolError::InvalidBulk
        });
    }
    // Spans are 32 bits: a request beyond that is refused rather than misread.
    if next as u64 + length as u64 + 2 > u64::from(u32::MAX) {
        return Err(ProtocolError::InvalidBulk);
    }
    Ok(Some((length as usize, next)))
}

/// A decimal number as Redis's `string2ll` takes it: no plus sign, no leading zeros, no spaces.
pub fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ if digits.len() > 19 => return None,
        _ => {}
    }
    let mut value: u64 = 0;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u64::from(digit);
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> (Parsed, Vec<Vec<u8>>) {
        let mut parser = RequestParser::default();
        let parsed = parser.parse(bytes, &Limits::NORMAL);
        let args = match parsed {
            Parsed::Request { inline, .. } => parser.args(bytes, inline).iter().map(<[u8]>::to_vec).collect(),
            _ => vec![],
        };
        (parsed, args)
    }

    #[test]
    fn multibulk() {
        let (parsed, args) = parse(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nrest");
        assert_eq!(parsed, Parsed::Request { len: 20, inline: false });
        assert_eq!(args, [b"GET".to_vec(), b"k".to_vec()]);
    }

    #[test]
    fn inline_and_nothing() {
        assert_eq!(parse(b"set a 'b c'\r\n").1, [b"set".to_vec(), b"a".to_vec(), b"b c".to_vec()]);
        assert_eq!(parse(b"\r\n").0, Parsed::Nothing { len: 2 });
        assert_eq!(parse(b"*0\r\nx").0, Parsed::Nothing { len: 4 });
        assert_eq!(parse(b"*-1\r\n").0, Parsed::Nothing { len: 5 });
        assert_eq!(parse(b"set 'a\r\n").0, Parsed::Error(ProtocolError::UnbalancedQuotes));
    }

    #[test]
    fn what_some_servers_refuse_is_not_exact() {
        let exact = |bytes: &[u8]| {
            let mut parser = RequestParser::default();
            // Whether it arrives at once makes no difference.
            let at_once = (parser.parse(bytes, &Limits::NORMAL), parser.is_exact());
            let mut parser = RequestParser::default();
            let steps = (1..=bytes.len()).map(|end| parser.parse(&bytes[..end], &Limits::NORMAL)).last();
            assert_eq!((steps.unwrap(), parser.is_exact()), at_once);
            assert!(matches!(at_once.0, Parsed::Request { .. }));
            at_once.1
        };
        assert!(exact(b"*2\r\n$4\r\nECHO\r\n$1\r\nk\r\n"));
        for odd in [
            "*2\rx$4\r\nECHO\r\n$1\r\nk\r\n",
            "*2\r\n$4\rxECHO\r\n$1\r\nk\r\n",
            "*2\r\n$4\r\nECHOxy$1\r\nk\r\n",
        ] {
            assert!(!exact(odd.as_bytes()), "{odd:?}");
        }
        assert!(!exact(b"*2\r\n$4\r\nECHO\r\n$1\r\nk\rx"));
        assert!(!exact(b"ECHO k\r\n"));
    }

    #[test]
    fn claims_are_not_believed() {
        assert_eq!(parse(b"*2000000000\r\n").0, Parsed::Incomplete);
        assert_eq!(parse(b"*2147483648\r\n").0, Parsed::Error(ProtocolError::InvalidCount));
        assert_eq!(parse(b"*x\r\n").0, Parsed::Error(ProtocolError::InvalidCount));
        assert_eq!(parse(b"*1\r\n$-1\r\n").0, Parsed::Error(ProtocolError::InvalidBulk));
        assert_eq!(parse(b"*1\r\n$536870913\r\n").0, Parsed::Error(ProtocolError::InvalidBulk));
        assert_eq!(parse(b"*1\r\n:3\r\n").0, Parsed::Error(ProtocolError::ExpectedDollar(b':')));
        let endless = vec![b'9'; MAX_LINE + 2];
        assert_eq!(parse(&endless).0, Parsed::Error(ProtocolError::InlineTooBig));
        let endless = [b"*".as_slice(), &endless].concat();
        assert_eq!(parse(&endless).0, Parsed::Error(ProtocolError::CountTooLong));
    }

    #[test]
    fn tighter_before_auth() {
        let mut parser = RequestParser::default();
        let parsed = parser.parse(b"*11\r\n", &Limits::UNAUTHENTICATED);
        assert_eq!(parsed, Parsed::Error(ProtocolError::UnauthenticatedCount));
        let mut parser = RequestParser::default();
        let parsed = parser.parse(b"*1\r\n$16385\r\n", &Limits::UNAUTHENTICATED);
        assert_eq!(parsed, Parsed::Error(ProtocolError::UnauthenticatedBulk));
    }

    #[test]
    fn numbers_as_redis_reads_them() {
        assert_eq!(number(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(number(b"-9223372036854775808"), Some(i64::MIN));
        for bad in [b"9223372036854775808".as_slice(), b"", b"-", b"01", b"+1", b" 1", b"1 ", b"-0", b"1a"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
