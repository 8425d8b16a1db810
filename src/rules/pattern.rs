//! Patterns over bytes: Redis globs with captures, parsed to tokens and rendered for other matchers.
//!
//! A pattern is `*`, `?`, `[a-z]`, `[^a]` and `\` escapes with the meaning that Redis's `stringmatchlen`
//! gives them, plus `{name}` (one or more bytes without `:`) and `{name*}` (one or more bytes of any kind).
//! Three things that Redis lets pass are refused or differ, because they are never what was meant: a `[` without
//! its `]`, a character of several bytes inside `[…]`, and `**` matches the empty key, as `*` does in `KEYS`.

use std::fmt::Write as _;

/// A set of byte values.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn invert(&mut self) {
        self.0 = self.0.map(|word| !word);
    }

    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }
}

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// These bytes.
    Literal(Vec<u8>),
    /// `?`
    AnyByte,
    /// `[…]`: the bytes it accepts, and itself as written (Redis reads it in `SCAN MATCH`).
    Class(Box<ByteSet>, Vec<u8>),
    /// `*`
    Star,
    /// `{name}`, by number.
    Segment(usize),
    /// `{name*}`, by number.
    Rest(usize),
}

/// A parsed pattern.
#[derive(Clone, Debug, Default)]
pub(super) struct Pattern {
    /// What it matches, from left to right; neighbouring literals and stars are merged.
    pub tokens: Vec<Token>,
    /// The names of its captures; a capture's number is its place here.
    pub captures: Vec<String>,
}

impl Pattern {
    /// Parses the text of a pattern; an error says what is wrong and what to write instead.
    pub(super) fn parse(text: &str) -> Result<Pattern, Vec<String>> {
        if text.is_empty() {
            return Err(vec!["the pattern is empty: write `*` if it is to match every key".to_owned()]);
        }
        let mut parser = Parser { text, at: 0, pattern: Pattern::default(), errors: Vec::new() };
        parser.run();
        if parser.errors.is_empty() { Ok(parser.pattern) } else { Err(parser.errors) }
    }

    /// The pattern that matches what `self` (which has no captures) and then `rest` match.
    pub(super) fn followed_by(&self, rest: &Pattern) -> Pattern {
        let mut joined = Pattern { tokens: self.tokens.clone(), captures: rest.captures.clone() };
        for token in &rest.tokens {
            joined.push(token.clone());
        }
        joined
    }

    fn push(&mut self, token: Token) {
        match (self.tokens.last_mut(), token) {
            (Some(Token::Literal(last)), Token::Literal(more)) => last.extend_from_slice(&more),
            (Some(Token::Star), Token::Star) => {}
            (_, token) => self.tokens.push(token),
        }
    }

    /// The bytes that every match begins with.
    pub(super) fn literal_prefix(&self) -> &[u8] {
        match self.tokens.first() {
            Some(Token::Literal(bytes)) => bytes,
            _ => b"",
        }
    }

    /// The only bytes that the pattern matches, if it has neither wildcards nor captures.
    pub(super) fn as_literal(&self) -> Option<&[u8]> {
        match self.tokens.as_slice() {
            [] => Some(b""),
            [Token::Literal(bytes)] => Some(bytes),
            _ => None,
        }
    }

    /// A key that it matches, unless one of its classes accepts nothing.
    pub(super) fn example(&self) -> Vec<u8> {
        let mut key = vec![];
        for token in &self.tokens {
            match token {
                Token::Literal(bytes) => key.extend_from_slice(bytes),
                Token::Class(set, _) => key.extend((0..=255).find(|&byte| set.contains(byte))),
                Token::AnyByte | Token::Star | Token::Segment(_) | Token::Rest(_) => key.push(b'1'),
            }
        }
        key
    }

    /// A glob for Redis that matches all that the pattern matches (and, for `{name}`, a little more).
    pub(super) fn to_glob(&self) -> Vec<u8> {
        let mut glob = Vec::new();
        for token in &self.tokens {
            match token {
                Token::Literal(bytes) => escape_glob(bytes, &mut glob),
                Token::AnyByte => glob.push(b'?'),
                Token::Class(_, written) => glob.extend_from_slice(written),
                Token::Star => glob.push(b'*'),
                Token::Segment(_) | Token::Rest(_) => glob.extend_from_slice(b"?*"),
            }
        }
        glob
    }

    /// The same language for regex-automata, with the flags `(?s-u)` and without the first `skip` bytes, which must be
    /// within the literal prefix.
    pub(super) fn to_regex(&self, skip: usize) -> String {
        let mut regex = String::new();
        for (turn, token) in self.tokens.iter().enumerate() {
            match token {
                Token::Literal(bytes) => {
                    let skip = if turn == 0 { skip } else { 0 };
                    bytes[skip..].iter().for_each(|&byte| push_hex(&mut regex, byte));
                }
                Token::AnyByte => regex.push('.'),
                Token::Class(set, _) => {
                    // A class that accepts nothing is spelled as the complement of everything.
                    let any = (0..=255).any(|byte| set.contains(byte));
                    regex.push_str(if any { "[" } else { "[^\\x00-\\xFF" });
                    (0..=255).filter(|&byte| set.contains(byte)).for_each(|byte| push_hex(&mut regex, byte));
                    regex.push(']');
                }
                Token::Star => regex.push_str(".*"),
                Token::Segment(_) => regex.push_str("[^:]+"),
                Token::Rest(_) => regex.push_str(".+"),
            }
        }
        regex.push_str("\\z");
        regex
    }
}

/// Appends `bytes` so that a Redis glob takes them literally.
pub(super) fn escape_glob(bytes: &[u8], glob: &mut Vec<u8>) {
    for &byte in bytes {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
            glob.push(b'\\');
        }
        glob.push(byte);
    }
}

fn push_hex(regex: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(regex, "\\x{byte:02X}");
}

/// A `{name}` or `{name*}`, as read by [`capture_at`].
pub(super) struct CaptureRef<'a> {
    pub name: &'a str,
    pub any_bytes: bool,
    /// How much text it took, braces included.
    pub len: usize,
}

/// Reads the capture whose `{` is the first character of `text`.
pub(super) fn capture_at(text: &str) -> Result<CaptureRef<'_>, String> {
    let Some(end) = text.find('}') else {
        return Err(format!(
            "`{text}` opens a capture and does not close it: write `{{name}}`, or `\\{{` for the \
                            brace itself"
        ));
    };
    let inner = &text[1..end];
    let (name, any_bytes) = match inner.strip_suffix('*') {
        Some(name) => (name, true),
        None => (inner, false),
    };
    let mut letters = name.chars();
    let starts_well = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
    if !starts_well || !letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
        return Err(format!(
            "`{{{inner}}}` is no capture: write a name of letters, digits and `_`, such as `{{id}}` or `{{id*}}`, \
             or `\\{{` for the brace itself"
        ));
    }
    Ok(CaptureRef { name, any_bytes, len: end + 1 })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    pattern: Pattern,
    errors: Vec<String>,
}

impl Parser<'_> {
    fn run(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'*' => self.pattern.push(Token::Star),
                b'?' => self.pattern.push(Token::AnyByte),
                b'[' => self.class(),
                b'{' => self.capture(),
                b'\\' if self.at < bytes.len() => {
                    self.pattern.push(Token::Literal(vec![bytes[self.at]]));
                    self.at += 1;
                }
                literal => self.pattern.push(Token::Literal(vec![literal])),
            }
        }
    }

    fn capture(&mut self) {
        let start = self.at - 1;
        let capture = match capture_at(&self.text[start..]) {
            Ok(capture) => capture,
            Err(error) => {
                self.errors.push(error);
                // Behind the closing brace the rest can still be judged.
                self.at = self.text[start..].find('}').map_or(self.text.len(), |end| start + end + 1);
                return;
            }
        };
        self.at = start + capture.len;
        if self.pattern.captures.iter().any(|known| known == capture.name) {
            self.errors.push(format!(
                "the capture `{{{0}}}` stands twice in `{1}`: give the second one another name, such as `{{{0}2}}`",
                capture.name, self.text
            ));
            return;
        }
        let number = self.pattern.captures.len();
        self.pattern.captures.push(capture.name.to_owned());
        self.pattern.push(if capture.any_bytes { Token::Rest(number) } else { Token::Segment(number) });
    }

    /// Reads a class behind its `[`, in the order of tests that Redis has: an escape, the end, a range, a byte.
    fn class(&mut self) {
        let bytes = self.text.as_bytes();
        let start = self.at - 1;
        let mut set = ByteSet::default();
        let negated = bytes.get(self.at) == Some(&b'^');
        self.at += usize::from(negated);
        loop {
            match bytes[self.at..] {
                [] => return self.unclosed_class(start),
                [b'\\', escaped, ..] => {
                    set.insert(escaped);
                    self.at += 2;
                }
                [b']', ..] => break,
                [from, b'-', to, ..] => {
                    (from.min(to)..=from.max(to)).for_each(|byte| set.insert(byte));
                    self.at += 3;
                }
                [byte, ..] => {
                    set.insert(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        if negated {
            set.invert();
        }
        let written = &bytes[start..self.at];
        if !written.is_ascii() {
            self.errors.push(format!(
                "`{}` holds a character of several bytes, and a class matches one byte: write `?` once per byte, or \
                 `*`",
                self.text.get(start..self.at).unwrap_or(self.text)
            ));
        }
        self.pattern.push(Token::Class(Box::new(set), written.to_vec()));
    }

    fn unclosed_class(&mut self, start: usize) {
        self.errors.push(format!(
            "`{}` opens a class and does not close it: write `[…]`, or `\\[` for the bracket itself",
            &self.text[start..]
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn neighbours_are_merged() {
        assert_eq!(parse("a\\*b**").tokens, [Token::Literal(b"a*b".to_vec()), Token::Star]);
        let joined = parse("app:1:*").followed_by(&parse("*x"));
        assert_eq!(joined.to_glob(), b"app:1:*x");
        assert_eq!(joined.literal_prefix(), b"app:1:");
    }

    #[test]
    fn renderings() {
        let pattern = parse("p\\[:{id}[^a-c]?{rest*}");
        assert_eq!(pattern.captures, ["id", "rest"]);
        assert_eq!(pattern.to_glob(), b"p\\[:?*[^a-c]??*");
        assert!(pattern.to_regex(0).starts_with("\\x70\\x5B\\x3A[^:]+[\\x00"));
        assert!(pattern.to_regex(2).starts_with("\\x3A[^:]+"));
        assert_eq!(pattern.example(), b"p[:1\x0011");
        assert_eq!(parse("a\\{b}").as_literal(), Some(&b"a{b}"[..]));
        assert_eq!(parse("a\\").as_literal(), Some(&b"a\\"[..]));
    }

    #[test]
    fn all_errors_of_one_pattern() {
        let errors = Pattern::parse("{1}{a}{a}{-*}[é]{b").unwrap_err();
        assert_eq!(errors.len(), 5, "{errors:#?}");
        assert!(Pattern::parse("a[b").unwrap_err()[0].contains("\\["));
        assert!(Pattern::parse("").is_err());
    }
}
