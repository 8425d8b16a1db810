//! Requests that are sent in other words than they came in.

use bytes::BytesMut;

use crate::resp::{Args, encode};

/// What is asked for in place of a key that must not be seen. Behind the key itself, so that rights to it suffice.
pub(super) const NO_KEY: &[u8] = b"\0rescind:none";

/// The request with these arguments, in order, replaced by keys that do not exist.
pub(super) fn without(args: Args<'_>, hidden: &[usize]) -> BytesMut {
    let mut out = BytesMut::new();
    encode::array(&mut out, args.len());
    for (index, arg) in args.iter().enumerate() {
        match hidden.binary_search(&index).is_ok() {
            true => encode::bulk(&mut out, &[arg, NO_KEY].concat()),
            false => encode::bulk(&mut out, arg),
        }
    }
    out
}

/// A CLIENT CAPA without the word that makes a replica of Valkey send its client past the proxy, to the master. Words that it
/// does not know it takes.
pub(super) fn without_redirect(args: Args<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    let is_redirect = |arg: &[u8]| arg.eq_ignore_ascii_case(b"redirect");
    let words: Vec<&[u8]> = args.iter().map(|arg| if is_redirect(arg) { b"none" } else { arg }).collect();
    encode::request(&mut out, words);
    out
}

/// The request in multibulk form.
pub(super) fn encoded(args: Args<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    let args: Vec<&[u8]> = args.iter().collect();
    encode::request(&mut out, args);
    out
}
