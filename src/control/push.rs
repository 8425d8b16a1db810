//! What the feed receives, read where it lies: most of it is glanced at and thrown away.

use smallvec::SmallVec;

use crate::resp::reply::read_head;
use crate::resp::{Head, NotResp};

/// What Redis sends.
#[derive(Debug, PartialEq)]
pub(super) enum Received<'a> {
    /// Something that nobody asked for.
    Push(Push<'a>),
    /// A reply, of which only an error is told.
    Reply(Result<(), &'a [u8]>),
}

/// A message, an event or an invalidation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Push<'a> {
    /// Its strings, those of an array within it behind the others.
    parts: SmallVec<[&'a [u8]; 4]>,
    /// There is a null within it.
    pub null: bool,
}

impl<'a> Push<'a> {
    /// What it is.
    pub fn kind(&self) -> &'a [u8] {
        self.part(0).unwrap_or_default()
    }

    /// The string number `n`.
    pub fn part(&self, n: usize) -> Option<&'a [u8]> {
        self.parts.get(n).copied()
    }

    /// The strings behind the kind.
    pub fn rest(&self) -> &[&'a [u8]] {
        self.parts.get(1..).unwrap_or_default()
    }
}

/// Reads what `buf` begins with, and how long it is. `None`: it has not arrived whole.
pub(super) fn read(buf: &[u8]) -> Result<Option<(Received<'_>, usize)>, NotResp> {
    let (mut at, mut left) = (0, 1_u64);
    let mut push: Option<Push<'_>> = None;
    let mut reply = Ok(());
    while left > 0 {
        let Some((head, length)) = read_head(&buf[at..])? else { return Ok(None) };
        at += length;
        left -= 1;
        let body = match head {
            Head::Bulk(n) | Head::BlobError(n) | Head::Verbatim(n) => {
                let end = at + n as usize;
                let Some(body) = buf.get(at..end).filter(|_| end + 2 <= buf.len()) else { return Ok(None) };
                at = end + 2;
                body
            }
            Head::Simple(text) | Head::Error(text) => text,
            Head::Array(n) | Head::Set(n) | Head::Push(n) => {
                left += n;
                &[]
            }
            Head::Map(n) => {
                left += 2 * n;
                &[]
            }
            // The value that it describes follows.
            Head::Attribute(n) => {
                left += 2 * n + 1;
                &[]
            }
            _ => &[],
        };
        match (&mut push, head) {
            (None, Head::Push(_)) => push = Some(Push::default()),
            (None, head) if head.is_error() => reply = Err(body),
            (Some(push), Head::Bulk(_) | Head::Simple(_) | Head::Verbatim(_)) => push.parts.push(body),
            (Some(push), Head::Null) => push.null = true,
            _ => {}
        }
    }
    Ok(Some((push.map_or(Received::Reply(reply), Received::Push), at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push<'a>(parts: &[&'a str], null: bool) -> Received<'a> {
        Received::Push(Push { parts: parts.iter().map(|part| part.as_bytes()).collect(), null })
    }

    #[test]
    fn whatever_arrives_is_read_once_it_is_whole() {
        let samples: [(&[u8], Received<'_>); 9] = [
            (
                b">4\r\n$8\r\npmessage\r\n$1\r\np\r\n$1\r\nc\r\n$3\r\na\r\n\r\n",
                push(&["pmessage", "p", "c", "a\r\n"], false),
            ),
            (
                b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
                push(&["invalidate", "a", "b"], false),
            ),
            (b">2\r\n$10\r\ninvalidate\r\n_\r\n", push(&["invalidate"], true)),
            (b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", push(&["subscribe", "c"], false)),
            (b"+PONG\r\n", Received::Reply(Ok(()))),
            (b":3\r\n", Received::Reply(Ok(()))),
            (b"*2\r\n-ERR inner\r\n*0\r\n", Received::Reply(Err(b"ERR inner"))),
            (b"-ERR no\r\n", Received::Reply(Err(b"ERR no"))),
            (b"!6\r\nERR no\r\n", Received::Reply(Err(b"ERR no"))),
        ];
        for (bytes, expected) in samples {
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(None), "{end} of {}", String::from_utf8_lossy(bytes));
            }
            let more = [bytes, b"+OK"].concat();
            assert_eq!(
                format!("{:?}", read(&more)),
                format!("{:?}", Ok::<_, NotResp>(Some((expected, bytes.len()))))
            );
        }
        assert_eq!(read(b"HTTP/1.1"), Err(NotResp));
    }
}
