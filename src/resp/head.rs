//! The head of a RESP2 or RESP3 value: its type and its length or short content.

/// What the first line of a value says. Bodies (bulk bytes, elements) follow separately.
///
/// The RESP2 nulls `$-1` and `*-1` and the RESP3 null `_` are all [`Head::Null`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head<'a> {
    /// `+text`
    Simple(&'a [u8]),
    /// `-text`
    Error(&'a [u8]),
    /// `:number`
    Int(i64),
    /// `$length`, the body follows
    Bulk(u64),
    /// `$-1`, `*-1` or `_`
    Null,
    /// `*count`
    Array(u64),
    /// `%count`, twice as many values follow
    Map(u64),
    /// `~count`
    Set(u64),
    /// `>count`, out of band
    Push(u64),
    /// `|count`, twice as many values follow, then the value that they describe
    Attribute(u64),
    /// `#t` or `#f`
    Bool(bool),
    /// `,number`
    Double,
    /// `(number`
    BigNumber,
    /// `!length`, the body follows
    BlobError(u64),
    /// `=length`, the body follows
    Verbatim(u64),
}

impl Head<'_> {
    /// Whether the value is an error reply.
    pub fn is_error(&self) -> bool {
        matches!(self, Head::Error(_) | Head::BlobError(_))
    }
}

/// Whether Redis has said so itself: its errors begin with a word in capitals.
pub fn is_error_of_redis(error: &str) -> bool {
    let word = error.split(' ').next().unwrap_or_default();
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_redis_are_told_from_those_of_the_network() {
        for error in ["NOPERM User x", "WRONGPASS invalid", "ERR unknown command", "LOADING"] {
            assert!(is_error_of_redis(error), "{error}");
        }
        for error in ["", "Connection refused (os error 111)", "the connection was closed", "no answer"] {
            assert!(!is_error_of_redis(error), "{error}");
        }
    }
}
