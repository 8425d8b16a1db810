//! Templates of tags: text with `{name}` where a capture of the pattern goes, `\` before a literal brace or star.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashSet;

use super::capture::Spans;
use super::pattern::capture_at;

/// The name of a tag; cheap to clone.
pub type Tag = Arc<[u8]>;

/// Leaves each once, where it comes first.
pub fn unique<T: Clone + Eq + Hash>(all: &mut Vec<T>) {
    // Fewer are compared faster than they are hashed.
    const FEW: usize = 16;
    if all.len() > FEW {
        let mut known = HashSet::with_capacity(all.len());
        all.retain(|one| known.insert(one.clone()));
        return;
    }
    let mut next = 1;
    while let Some(one) = all.get(next) {
        if all[..next].contains(one) {
            all.remove(next);
        } else {
            next += 1;
        }
    }
}

/// A template as written, not yet bound to a pattern.
#[derive(Clone, Debug)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(Vec<u8>),
    Capture(String),
}

impl Template {
    /// Parses the text; errors say what to write instead.
    ///
    /// `{name*}` is accepted for `{name}`: what a capture may hold is the pattern's business.
    pub(super) fn parse(text: &str) -> Result<Template, Vec<String>> {
        if text.is_empty() {
            return Err(vec!["the tag is empty: write its name".to_owned()]);
        }
        let mut parts = Vec::new();
        let mut errors = Vec::new();
        let mut literal = Vec::new();
        let mut at = 0;
        while let Some(&byte) = text.as_bytes().get(at) {
            at += 1;
            match (byte, text.as_bytes().get(at)) {
                (b'\\', Some(&escaped)) => {
                    literal.push(escaped);
                    at += 1;
                }
                (b'{', _) => match capture_at(&text[at - 1..]) {
                    Ok(capture) => {
                        if !literal.is_empty() {
                            parts.push(Part::Literal(std::mem::take(&mut literal)));
                        }
                        parts.push(Part::Capture(capture.name.to_owned()));
                        at += capture.len - 1;
                    }
                    Err(error) => {
                        errors.push(error);
                        at = text[at..].find('}').map_or(text.len(), |end| at + end + 1);
                    }
                },
                (b'*', _) => errors.push(format!(
                    "`*` is no wildcard in the name of a tag: in `{text}` write `{{name}}` for a capture, or `\\*` for \
                     the star itself"
                )),
                _ => literal.push(byte),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if errors.is_empty() { Ok(Template { parts }) } else { Err(errors) }
    }

    /// The captures it uses, each once.
    pub(super) fn captures(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for part in &self.parts {
            match part {
                Part::Capture(name) if !names.contains(&name.as_str()) => names.push(name),
                _ => {}
            }
        }
        names
    }

    /// The template with its captures numbered as in a pattern; `None` if the pattern lacks one of them.
    pub(super) fn bind(&self, captures: &[String]) -> Option<TagSource> {
        if let [Part::Literal(name)] = self.parts.as_slice() {
            return Some(TagSource::Fixed(Tag::from(name.as_slice())));
        }
        let pieces = self.parts.iter().map(|part| match part {
            Part::Literal(bytes) => Some(Piece::Literal(bytes.clone())),
            Part::Capture(name) => captures.iter().position(|known| known == name).map(Piece::Capture),
        });
        Some(TagSource::Built(pieces.collect::<Option<Vec<_>>>()?))
    }
}

/// How a matching key yields a tag.
#[derive(Clone, Debug)]
pub(super) enum TagSource {
    /// The same tag for every key.
    Fixed(Tag),
    /// Put together from captures.
    Built(Vec<Piece>),
}

#[derive(Clone, Debug)]
pub(super) enum Piece {
    Literal(Vec<u8>),
    Capture(usize),
}

impl TagSource {
    pub(super) fn needs_captures(&self) -> bool {
        matches!(self, TagSource::Built(_))
    }

    /// Adds the tag to `out` unless it is there; `name` is scratch space.
    pub(super) fn add_to(&self, key: &[u8], spans: &Spans, name: &mut Vec<u8>, out: &mut Vec<Tag>) {
        match self {
            TagSource::Fixed(tag) => {
                if !out.contains(tag) {
                    out.push(Tag::clone(tag));
                }
            }
            TagSource::Built(pieces) => {
                name.clear();
                for piece in pieces {
                    match piece {
                        Piece::Literal(bytes) => name.extend_from_slice(bytes),
                        Piece::Capture(number) => {
                            let (from, to) = spans.get(*number).copied().unwrap_or_default();
                            name.extend_from_slice(&key[from..to]);
                        }
                    }
                }
                if !out.iter().any(|tag| **tag == **name) {
                    out.push(Tag::from(name.as_slice()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_left_once_where_it_comes_first() {
        for (length, different) in [(0, 1), (1, 1), (5, 2), (16, 5), (17, 5), (500, 400), (500, 40)] {
            let mut all: Vec<usize> = (0..length).map(|n| n * 7 % different).collect();
            let first = |n: &usize| all[..*n].iter().all(|one| *one != all[*n]);
            let expected: Vec<usize> = (0..length).filter(first).map(|n| all[n]).collect();
            unique(&mut all);
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn escapes_and_captures() {
        let template = Template::parse("a\\{b\\*{x}:{y*}}").unwrap();
        assert_eq!(template.captures(), ["x", "y"]);
        assert!(template.bind(&["x".to_owned()]).is_none());
        let source = template.bind(&["y".to_owned(), "x".to_owned()]).unwrap();
        let mut tags = Vec::new();
        let spans = Spans::from_slice(&[(0, 1), (1, 2)]);
        source.add_to(b"\xffX", &spans, &mut Vec::new(), &mut tags);
        source.add_to(b"\xffX", &spans, &mut Vec::new(), &mut tags);
        assert_eq!(tags, [Tag::from(&b"a{b*X:\xff}"[..])]);
    }

    #[test]
    fn errors() {
        assert!(Template::parse("").is_err());
        assert_eq!(Template::parse("post:*{").unwrap_err().len(), 2);
    }
}
