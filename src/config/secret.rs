//! Text that must not be shown, and the showing of text that might hold such.

use std::fmt;

/// A password or token. Its `Debug` form is `***`; it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; never for messages or logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A value quoted for a message: escaped, at most 60 characters, and of what looks like a URL with a password
/// (somebody may have put it under the wrong key) only the harmless part.
pub(super) fn shown(text: &str) -> String {
    if let Some((scheme, _)) = text.split_once("://")
        && scheme.len() <= 20
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'+')
    {
        return format!("\"{scheme}://…\"");
    }
    if text.contains("://") || text.contains('@') {
        return "\"…\"".to_owned();
    }
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
        for text in ["redis://u:hunter2@h", "hunter2@h", "x hunter2://hunter2", "redis://:hunter2"] {
            assert!(!shown(text).contains("hunter2"), "{}", shown(text));
        }
    }

    #[test]
    fn values_are_escaped_and_short() {
        assert_eq!(shown("a\"\n"), "\"a\\\"\\n\"");
        assert_eq!(shown(&"é".repeat(100)).chars().count(), 63);
    }
}
