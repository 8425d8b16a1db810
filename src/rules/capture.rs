//! Matches one pattern against one key and tells where its captures lie.
//!
//! Where several splits are possible, wildcards and captures take as few bytes as possible, from left to right:
//! the first takes the fewest that let the rest match, then the second, and so on.

use smallvec::SmallVec;

use super::pattern::Token;

/// Where each capture lies in the key, by its number.
pub(super) type Spans = SmallVec<[(usize, usize); 8]>;

/// Whether the tokens match the whole key; `spans` receives the captures.
///
/// Time is linear in the key for each wildcard, whatever the pattern: see [`Walk`].
pub(super) fn matches(tokens: &[Token], key: &[u8], spans: &mut Spans) -> bool {
    spans.clear();
    let mut walk = Walk { tokens, key, spans, failed: SmallVec::new() };
    walk.from(0, 0) == Outcome::Match
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Match,
    /// Not from here; an earlier wildcard may take more.
    Fail,
    /// Not at all: a wildcard for any bytes has tried every place that any longer earlier match would leave it.
    Never,
}

/// Backtracking without its exponential cases. A `*` that failed from some place fails from every later one, so the
/// search ends there. A `{name}` that failed from some place fails from everywhere up to the next `:`.
struct Walk<'a> {
    tokens: &'a [Token],
    key: &'a [u8],
    spans: &'a mut Spans,
    /// Per token: the latest range of starts from which a `{name}` is known to fail.
    failed: SmallVec<[(usize, usize); 16]>,
}

impl Walk<'_> {
    fn from(&mut self, mut token: usize, mut at: usize) -> Outcome {
        let (tokens, key) = (self.tokens, self.key);
        while let Some(next) = tokens.get(token) {
            let rest = &key[at..];
            let taken = match next {
                Token::Literal(bytes) if rest.starts_with(bytes) => bytes.len(),
                Token::AnyByte if !rest.is_empty() => 1,
                Token::Class(set, _) if rest.first().is_some_and(|&byte| set.contains(byte)) => 1,
                Token::Literal(_) | Token::AnyByte | Token::Class(..) => return Outcome::Fail,
                Token::Star => return self.any_bytes(token, at, 0, None),
                Token::Rest(number) => return self.any_bytes(token, at, 1, Some(*number)),
                Token::Segment(number) => return self.segment(token, at, *number),
            };
            at += taken;
            token += 1;
        }
        if at == key.len() { Outcome::Match } else { Outcome::Fail }
    }

    fn any_bytes(&mut self, token: usize, at: usize, least: usize, capture: Option<usize>) -> Outcome {
        let last = token + 1 == self.tokens.len();
        let first = if last { self.key.len().max(at + least) } else { at + least };
        for end in first..=self.key.len() {
            match self.from(token + 1, end) {
                Outcome::Match => {
                    if let Some(number) = capture {
                        self.set(number, at, end);
                    }
                    return Outcome::Match;
                }
                Outcome::Never => return Outcome::Never,
                Outcome::Fail => {}
            }
        }
        Outcome::Never
    }

    fn segment(&mut self, token: usize, at: usize, number: usize) -> Outcome {
        if self.failed.get(token).is_some_and(|&(from, to)| (from..to).contains(&at)) {
            return Outcome::Fail;
        }
        let rest = &self.key[at..];
        let end_of_run = at + memchr::memchr(b':', rest).unwrap_or(rest.len());
        let last = token + 1 == self.tokens.len();
        let first = if last { self.key.len().max(at + 1) } else { at + 1 };
        for end in first..=end_of_run {
            match self.from(token + 1, end) {
                Outcome::Match => {
                    self.set(number, at, end);
                    return Outcome::Match;
                }
                Outcome::Never => return Outcome::Never,
                Outcome::Fail => {}
            }
        }
        if self.failed.len() <= token {
            self.failed.resize(token + 1, (0, 0));
        }
        self.failed[token] = (at, end_of_run + 1);
        Outcome::Fail
    }

    fn set(&mut self, number: usize, from: usize, to: usize) {
        if self.spans.len() <= number {
            self.spans.resize(number + 1, (0, 0));
        }
        self.spans[number] = (from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Pattern;
    use super::*;

    fn captures<'k>(pattern: &str, key: &'k str) -> Option<Vec<&'k str>> {
        let mut spans = Spans::new();
        matches(&Pattern::parse(pattern).unwrap().tokens, key.as_bytes(), &mut spans)
            .then(|| spans.iter().map(|&(from, to)| &key[from..to]).collect())
    }

    #[test]
    fn captures_take_as_few_bytes_as_possible_from_left_to_right() {
        assert_eq!(captures("{a*}:{b*}", "x:y:z"), Some(vec!["x", "y:z"]));
        assert_eq!(captures("{a}{b}", "xyz"), Some(vec!["x", "yz"]));
        assert_eq!(captures("*{a}", "xyz"), Some(vec!["xyz"]));
        assert_eq!(captures("feed:*:{id}", "feed:a:b:c"), Some(vec!["c"]));
        assert_eq!(captures("feed:*:{id}:*", "feed:a:b:c:d"), Some(vec!["b"]));
    }

    #[test]
    fn a_segment_has_no_colon_and_is_not_empty() {
        assert_eq!(captures("post:{id}", "post:"), None);
        assert_eq!(captures("post:{id}", "post:1:2"), None);
        assert_eq!(captures("post:{id*}", "post:1:2"), Some(vec!["1:2"]));
        assert_eq!(captures("post:{id*}", "post:"), None);
    }

    #[test]
    fn an_earlier_segment_gives_way() {
        // `{a}` = "1" leaves "x:" for `x?` and then no byte for `{b}`.
        assert_eq!(captures("{a}x?{b}y", "1xx:zy"), Some(vec!["1x", "z"]));
    }

    #[test]
    fn hard_patterns_end() {
        let key = "a".repeat(20_000);
        assert_eq!(captures("*a*a*a*a*a*a*a*b", &key), None);
        assert_eq!(captures("{a}a{b}a{c}a{d}a{e}b", &key), None);
    }
}
