//! Patterns of paths that an archive does not contain.
//! Out of scope: who chooses them.

use std::path::Path;

use glob::{MatchOptions, Pattern, PatternError};

/// The maximum number of patterns, and the maximum length of one in bytes.
const PATTERNS_LIMIT: usize = 256;
const LENGTH_LIMIT: usize = 1024;

/// `*` and `?` do not match `/`, as in glob(7); a leading period is not special.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Patterns; none matches nothing.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<Pattern>);

/// A pattern is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPattern {
    /// Its syntax.
    #[error("invalid pattern \"{0}\": {1}")]
    Syntax(String, PatternError),
    /// Its length, or the number of patterns.
    #[error("at most {PATTERNS_LIMIT} patterns of at most {LENGTH_LIMIT} bytes are accepted")]
    TooMany,
}

impl Patterns {
    /// Parses patterns in the syntax of glob(7), with `**` for any number of directories.
    pub fn parse(texts: &[String]) -> Result<Self, InvalidPattern> {
        let is_long = texts.iter().any(|text| text.len() > LENGTH_LIMIT);
        if is_long || texts.len() > PATTERNS_LIMIT {
            return Err(InvalidPattern::TooMany);
        }
        let parse = |text: &String| {
            let text = text.trim_end_matches('/');
            Pattern::new(text).map_err(|error| InvalidPattern::Syntax(text.to_owned(), error))
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them matches the whole path or its last component. Bytes that are not UTF-8 are compared as U+FFFD.
    pub fn matches(&self, path: &Path) -> bool {
        let whole = path.to_string_lossy();
        let last = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.iter().any(|pattern| {
            pattern.matches_with(&whole, OPTIONS) || pattern.matches_with(&last, OPTIONS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_whole_path_or_a_last_component() {
        for (pattern, path, expected) in [
            ("*.o", "a.o", true),
            ("*.o", "src/deep/a.o", true),
            ("src/*.o", "src/a.o", true),
            ("src/*.o", "src/deep/a.o", false),
            ("src/**/*.o", "src/deep/a.o", true),
            ("target", "x/target", true),
            ("target/", "x/target", true),
            ("arget", "target", false),
            ("*", ".git", true),
            ("[ab]", "b", true),
        ] {
            let patterns = Patterns::parse(&[pattern.to_owned()]).unwrap();
            assert_eq!(
                patterns.matches(Path::new(path)),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn malformed_and_long_patterns_are_errors() {
        for text in ["[", "a**b", &"x".repeat(1025)] {
            assert!(Patterns::parse(&[text.to_owned()]).is_err(), "{text}");
        }
        assert!(Patterns::parse(&vec![String::new(); 257]).is_err());
    }
}
