//! Writing requests and the few replies that the proxy makes up itself.

use bytes::{BufMut, BytesMut};

/// Appends the request `args` in multibulk form.
pub fn request<A: AsRef<[u8]>>(
    out: &mut BytesMut,
    args: impl IntoIterator<Item = A, IntoIter: ExactSizeIterator>,
) {
    let args = args.into_iter();
    header(out, b'*', args.len() as i64);
    for arg in args {
        bulk(out, arg.as_ref());
    }
}

/// Appends `-text`. Line breaks in `text` become spaces.
pub fn error(out: &mut BytesMut, text: impl AsRef<[u8]>) {
    out.put_u8(b'-');
    out.extend(text.as_ref().iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
    out.put_slice(b"\r\n");
}

/// Appends `+text`.
pub fn simple(out: &mut BytesMut, text: &str) {
    out.put_u8(b'+');
    out.put_slice(text.as_bytes());
    out.put_slice(b"\r\n");
}

/// Appends a bulk string.
pub fn bulk(out: &mut BytesMut, bytes: &[u8]) {
    header(out, b'$', bytes.len() as i64);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// Appends `:number`.
pub fn int(out: &mut BytesMut, number: i64) {
    header(out, b':', number);
}

/// Appends the head of an array; its elements are to follow.
pub fn array(out: &mut BytesMut, count: usize) {
    header(out, b'*', count as i64);
}

/// Appends a type byte, a number and CRLF.
pub fn header(out: &mut BytesMut, kind: u8, number: i64) {
    // Longest: sign and 19 digits.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_u8(kind);
    if number < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}
