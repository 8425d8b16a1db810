//! Splitting an inline request into arguments, with the quoting rules of Redis's `sdssplitargs`.

use super::args::Span;

/// The quotes do not balance, or a closing quote is not followed by a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbalanced;

/// Splits `line` into arguments: their unquoted bytes are appended to `out`, where they lie to `spans`.
///
/// `"…"` takes `\n \r \t \b \a \xHH` and `\` before any other byte; `'…'` takes only `\'`.
pub fn split(line: &[u8], out: &mut Vec<u8>, spans: &mut Vec<Span>) -> Result<(), Unbalanced> {
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(|b| is_space(*b)) {
            at += 1;
        }
        if at >= line.len() {
            return Ok(());
        }
        let start = out.len() as u32;
        at = argument(line, at, out)?;
        spans.push(Span { start, end: out.len() as u32 });
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Reads one argument from `at` on; returns the offset behind it.
fn argument(line: &[u8], mut at: usize, out: &mut Vec<u8>) -> Result<usize, Unbalanced> {
    while let Some(&byte) = line.get(at) {
        match byte {
            b'"' => return quoted(line, at + 1, b'"', out),
            b'\'' => return quoted(line, at + 1, b'\'', out),
            byte if is_space(byte) => return Ok(at),
            byte => out.push(byte),
        }
        at += 1;
    }
    Ok(at)
}

/// Reads to the closing `quote`, which must end the argument.
fn quoted(line: &[u8], mut at: usize, quote: u8, out: &mut Vec<u8>) -> Result<usize, Unbalanced> {
    loop {
        match line.get(at..).unwrap_or(&[]) {
            [] => return Err(Unbalanced),
            [b'\\', b'x', high, low, ..] if quote == b'"' && both_hex(*high, *low) => {
                out.push(hex(*high) << 4 | hex(*low));
                at += 4;
            }
            [b'\\', escaped, ..] if quote == b'"' => {
                out.push(unescape(*escaped));
                at += 2;
            }
            [b'\\', b'\'', ..] if quote == b'\'' => {
                out.push(b'\'');
                at += 2;
            }
            [byte, rest @ ..] if *byte == quote => {
                return match rest.first() {
                    Some(next) if !is_space(*next) => Err(Unbalanced),
                    _ => Ok(at + 1),
                };
            }
            [byte, ..] => {
                out.push(*byte);
                at += 1;
            }
        }
    }
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn both_hex(high: u8, low: u8) -> bool {
    high.is_ascii_hexdigit() && low.is_ascii_hexdigit()
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).unwrap_or(0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, Unbalanced> {
        let (mut out, mut spans) = (Vec::new(), Vec::new());
        split(line, &mut out, &mut spans)?;
        Ok(spans.iter().map(|s| out[s.start as usize..s.end as usize].to_vec()).collect())
    }

    #[test]
    fn quoting() {
        assert_eq!(words(b" a  b\t").unwrap(), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(words(br#""a\x41\n\"" 'it\'s'"#).unwrap(), [b"aA\n\"".to_vec(), b"it's".to_vec()]);
        assert_eq!(words(b"a\"b\" \"\"").unwrap(), [b"ab".to_vec(), b"".to_vec()]);
        for bad in [b"\"a".as_slice(), b"'a", b"\"a\"b", b"'a'b"] {
            assert_eq!(words(bad), Err(Unbalanced));
        }
    }
}
