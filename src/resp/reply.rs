//! Framing of what Redis answers: finds where a reply ends while its bytes pass through.

use super::head::Head;
use super::request::{number, short_number};

/// Longest line that is looked at as a whole. Lengths and numbers are far shorter; the text of a status or an error,
/// which scripts may make as long as they like, passes in portions beyond this.
const MAX_LINE: usize = 64 * 1024;
/// Deepest nesting. Scripts can return tables within tables as deep as Lua's stack allows, some thousands.
const MAX_DEPTH: usize = 64 * 1024;

/// The upstream sent something that is not RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotResp;

impl std::fmt::Display for NotResp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the upstream sent something that is not a Redis reply")
    }
}

/// How far one call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the buffer that belong to the current reply and can be passed on.
    pub consumed: usize,
    /// The reply ends there.
    pub done: bool,
}

/// Finds the end of one reply after the other, resumable at any byte, without keeping any of them.
///
/// Bytes are consumed as they arrive (bodies in any portions, header lines whole), so a reply of any size
/// passes through with bounded memory.
#[derive(Debug, Default)]
pub struct ReplyFramer {
    /// Values still to come at each depth of the aggregates that are open.
    open: Vec<u64>,
    /// Bytes of the current body still to come, its CRLF included.
    body: u64,
    /// Within the text of a status or an error that is longer than [`MAX_LINE`].
    text: bool,
    /// Within a reply.
    started: bool,
    /// The reply began with an attribute; the value itself is still to come.
    described: bool,
}

impl ReplyFramer {
    /// Consumes what belongs to the current reply from the start of `buf`, and tells `on` the depth
    /// (0: the reply itself) and head of every value that begins in it.
    pub fn advance(&mut self, buf: &[u8], mut on: impl FnMut(u32, &Head<'_>)) -> Result<Progress, NotResp> {
        let mut at = 0;
        loop {
            if self.body > 0 || self.text {
                let (taken, ended) = self.pass(&buf[at..]);
                at += taken;
                if !ended {
                    return Ok(Progress { consumed: at, done: false });
                }
                if self.close() {
                    return Ok(Progress { consumed: at, done: true });
                }
                continue;
            }
            let (head, length) = match usual_head(&buf[at..]) {
                Some(found) => found,
                None => {
                    if let Some(head) = long_text(&buf[at..]) {
                        on(self.open.len() as u32, &head);
                        (self.started, self.text) = (true, true);
                        continue;
                    }
                    let Some(found) = read_head(&buf[at..])? else {
                        return Ok(Progress { consumed: at, done: false });
                    };
                    found
                }
            };
            on(self.open.len() as u32, &head);
            self.started = true;
            at += length;
            match head {
                Head::Bulk(n) if (buf.len() - at) as u64 >= n + 2 => {
                    at += n as usize + 2;
                    if self.close() {
                        return Ok(Progress { consumed: at, done: true });
                    }
                    continue;
                }
                Head::Bulk(n) | Head::BlobError(n) | Head::Verbatim(n) => self.body = n + 2,
                Head::Array(n) | Head::Set(n) | Head::Push(n) => self.descend(n)?,
                Head::Map(n) => self.descend(n * 2)?,
                Head::Attribute(n) => {
                    // The value that it describes follows at the same depth.
                    match self.open.last_mut() {
                        Some(left) => *left += 1,
                        None => self.described = true,
                    }
                    self.descend(n * 2)?;
                }
                _ => {
                    if self.close() {
                        return Ok(Progress { consumed: at, done: true });
                    }
                    continue;
                }
            }
            if self.body == 0 && self.open.last() == Some(&0) && self.end_of_aggregates() {
                return Ok(Progress { consumed: at, done: true });
            }
        }
    }

    /// Takes what `rest` has of the current body or long text: how many bytes, and whether it ends with them.
    fn pass(&mut self, rest: &[u8]) -> (usize, bool) {
        if self.text {
            let end = memchr::memchr(b'\n', rest);
            self.text = end.is_none();
            return (end.map_or(rest.len(), |end| end + 1), !self.text);
        }
        let taken = self.body.min(rest.len() as u64);
        self.body -= taken;
        (taken as usize, self.body == 0)
    }

    fn descend(&mut self, values: u64) -> Result<(), NotResp> {
        if self.open.len() >= MAX_DEPTH {
            return Err(NotResp);
        }
        self.open.push(values);
        Ok(())
    }

    /// A value has ended: does the reply end with it?
    #[inline]
    fn close(&mut self) -> bool {
        match self.open.last_mut() {
            Some(left) if *left > 1 => {
                *left -= 1;
                return false;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.end_of_aggregates()
    }

    fn end_of_aggregates(&mut self) -> bool {
        while self.open.last() == Some(&0) {
            self.open.pop();
            if let Some(left) = self.open.last_mut() {
                *left -= 1;
            }
        }
        if !self.open.is_empty() || std::mem::take(&mut self.described) {
            return false;
        }
        self.started = false;
        true
    }
}

/// The start of a status or an error so long that its end is not waited for.
fn long_text(buf: &[u8]) -> Option<Head<'_>> {
    let start = buf.get(..MAX_LINE)?;
    if !matches!(start[0], b'+' | b'-' | b'(') || memchr::memchr(b'\r', start).is_some() {
        return None;
    }
    Some(match start[0] {
        b'+' => Head::Simple(&start[1..]),
        b'-' => Head::Error(&start[1..]),
        _ => Head::BigNumber,
    })
}

/// The head at the start of `buf` if it is one of the frequent ones and there whole, and the length of its line.
#[inline]
fn usual_head(buf: &[u8]) -> Option<(Head<'_>, usize)> {
    let kind = *buf.first()?;
    if kind == b'+' {
        return (buf.first_chunk() == Some(b"+OK\r\n")).then(|| (Head::Simple(&buf[1..3]), 5));
    }
    if !matches!(kind, b'$' | b'*' | b':') {
        return None;
    }
    if buf.get(1) == Some(&b'-') {
        return (buf.first_chunk() == Some(b"$-1\r\n")).then_some((Head::Null, 5));
    }
    let (n, length) = short_number(buf, 0)?;
    let head = match kind {
        b'$' => Head::Bulk(n as u64),
        b'*' => Head::Array(n as u64),
        _ => Head::Int(n as i64),
    };
    Some((head, length))
}

/// The value at the start of `buf` if it is a single one of the frequent kinds and there whole, and how many bytes it
/// takes up.
#[inline]
pub fn whole_value(buf: &[u8]) -> Option<(Head<'_>, usize)> {
    let (head, length) = usual_head(buf)?;
    match head {
        Head::Bulk(n) => {
            let end = length + n as usize + 2;
            (end <= buf.len()).then_some((head, end))
        }
        Head::Array(_) => None,
        _ => Some((head, length)),
    }
}

/// Reads the header line at the start of `buf`: the head and the length of the line with its CRLF.
/// `None`: it has not arrived whole.
pub fn read_head(buf: &[u8]) -> Result<Option<(Head<'_>, usize)>, NotResp> {
    let Some(&kind) = buf.first() else { return Ok(None) };
    if !b"+-:$*_#,(!=%~>|".contains(&kind) {
        return Err(NotResp);
    }
    let Some(cr) = memchr::memchr(b'\r', &buf[..buf.len().min(MAX_LINE)]) else {
        return if buf.len() >= MAX_LINE { Err(NotResp) } else { Ok(None) };
    };
    match buf.get(cr + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(NotResp),
    }
    let line = &buf[1..cr];
    Ok(Some((head_of(kind, line)?, cr + 2)))
}

fn head_of(kind: u8, line: &[u8]) -> Result<Head<'_>, NotResp> {
    Ok(match kind {
        b'+' => Head::Simple(line),
        b'-' => Head::Error(line),
        b':' => Head::Int(number(line).ok_or(NotResp)?),
        b'$' => length(line)?.map_or(Head::Null, Head::Bulk),
        b'*' => length(line)?.map_or(Head::Null, Head::Array),
        b'_' => Head::Null,
        b'#' => Head::Bool(line == b"t"),
        b',' => Head::Double,
        b'(' => Head::BigNumber,
        b'!' => Head::BlobError(length(line)?.ok_or(NotResp)?),
        b'=' => Head::Verbatim(length(line)?.ok_or(NotResp)?),
        b'%' => Head::Map(length(line)?.ok_or(NotResp)?),
        b'~' => Head::Set(length(line)?.ok_or(NotResp)?),
        b'>' => Head::Push(length(line)?.ok_or(NotResp)?),
        _ => Head::Attribute(length(line)?.ok_or(NotResp)?),
    })
}

/// A length or count; `None` for -1.
fn length(line: &[u8]) -> Result<Option<u64>, NotResp> {
    match number(line) {
        Some(-1) => Ok(None),
        // Doubled for maps, so it must leave room.
        Some(n) if (0..=i64::from(u32::MAX)).contains(&n) => Ok(Some(n as u64)),
        _ => Err(NotResp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of the replies in `bytes`, given in portions of `step`.
    fn replies(bytes: &[u8], step: usize) -> Result<Vec<usize>, NotResp> {
        let mut framer = ReplyFramer::default();
        let (mut lengths, mut from, mut end, mut current) = (vec![], 0, 0, 0);
        loop {
            let progress = framer.advance(&bytes[from..end], |_, _| {})?;
            from += progress.consumed;
            current += progress.consumed;
            if progress.done {
                lengths.push(current);
                current = 0;
            } else if end == bytes.len() {
                return Ok(lengths);
            } else {
                end = (end + step).min(bytes.len());
            }
        }
    }

    #[test]
    fn any_split_gives_the_same_replies() {
        let samples: [&[u8]; 12] = [
            b"+OK\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"$5\r\na\r\nbc\r\n",
            b"*2\r\n*0\r\n$1\r\nx\r\n",
            b"%1\r\n+k\r\n*2\r\n:1\r\n_\r\n",
            b"*3\r\n*1\r\n*1\r\n*0\r\n:-5\r\n,1.5\r\n",
            b">2\r\n+invalidate\r\n_\r\n",
            b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n",
            b"!3\r\nERR\r\n",
        ];
        let all = samples.concat();
        let expected: Vec<usize> = samples.iter().map(|s| s.len()).collect();
        for step in 1..all.len() {
            assert_eq!(replies(&all, step).unwrap(), expected, "step {step}");
        }
    }

    #[test]
    fn heads_come_with_their_depth() {
        let mut seen = vec![];
        let bytes = b"*2\r\n*1\r\n$-1\r\n:0\r\n";
        ReplyFramer::default().advance(bytes, |depth, head| seen.push((depth, format!("{head:?}")))).unwrap();
        assert_eq!(
            seen,
            [(0, "Array(2)".into()), (1, "Array(1)".into()), (2, "Null".into()), (1, "Int(0)".into())]
        );
    }

    #[test]
    fn garbage_is_refused() {
        for bad in
            [b"HTTP/1.1 200 OK\r\n".as_slice(), b"$-2\r\n", b"*x\r\n", b"+a\rb\r\n", b"$99999999999\r\n"]
        {
            assert_eq!(replies(bad, bad.len()), Err(NotResp), "{bad:?}");
        }
        let deep = b"*1\r\n".repeat(MAX_DEPTH + 1);
        assert_eq!(replies(&deep, deep.len()), Err(NotResp));
    }

    #[test]
    fn long_texts_pass_in_portions() {
        let text = [b"+".as_slice(), &vec![b'x'; 3 * MAX_LINE], b"\r\n"].concat();
        let nested = [b"*2\r\n".as_slice(), &text, b":1\r\n", &text].concat();
        for step in [1000, MAX_LINE, MAX_LINE + 1, 4 * MAX_LINE] {
            assert_eq!(replies(&nested, step), Ok(vec![nested.len() - text.len(), text.len()]), "{step}");
        }
    }

    #[test]
    fn lua_nests_deeply() {
        let deep = [b"*1\r\n".repeat(6000), b":1\r\n".to_vec()].concat();
        assert_eq!(replies(&deep, 100), Ok(vec![deep.len()]));
    }
}
