//! Source files as text and as tokens, and golden files.
//! Out of scope: what is checked in them.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of the extensions below a directory of the repository, sorted by path.
pub fn files(below: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root().join(below), extensions, &mut found);
    found.sort();
    found
}

fn collect(path: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    if path.is_file() {
        found.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        let path = entry.expect("an entry").path();
        let matches = path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|desired| extension == *desired));
        if path.is_dir() || matches {
            collect(&path, extensions, found);
        }
    }
}

/// The path from the root of the repository.
pub fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("a file of the repository");
    path.display().to_string()
}

/// The string literals of a source file in their order, without those of attributes other than `error` and of modules for tests.
pub fn literals(source: &str) -> Vec<String> {
    let tokens: TokenStream = source.parse().expect("Rust");
    let mut found = Vec::new();
    walk(tokens, &mut found);
    found
}

fn walk(tokens: TokenStream, found: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Literal(literal) => found.extend(text(&literal.to_string())),
            TokenTree::Group(group) => {
                let attribute = at > 0
                    && group.delimiter() == Delimiter::Bracket
                    && (is_punctuation(&tokens[at - 1], '#')
                        || at > 1
                            && is_punctuation(&tokens[at - 1], '!')
                            && is_punctuation(&tokens[at - 2], '#'));
                if !attribute {
                    walk(group.stream(), found);
                } else if is_cfg_test(group.stream()) {
                    at = end_of_item(&tokens, at + 1);
                } else if is_shown(group.stream()) {
                    walk(group.stream(), found);
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
        at += 1;
    }
}

fn is_punctuation(token: &TokenTree, desired: char) -> bool {
    matches!(token, TokenTree::Punct(punctuation) if punctuation.as_char() == desired)
}

fn is_cfg_test(attribute: TokenStream) -> bool {
    attribute.to_string().replace(' ', "") == "cfg(test)"
}

/// Attributes with texts for users: those of errors and of the command line.
fn is_shown(attribute: TokenStream) -> bool {
    let first = attribute.into_iter().next().map(|token| token.to_string());
    matches!(
        first.as_deref(),
        Some("error" | "arg" | "command" | "value")
    )
}

/// The index of the last token of the item that begins at an index: its block, or its semicolon.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        other => is_punctuation(other, ';'),
    };
    let length = tokens[from..].iter().position(ends);
    length.map_or(tokens.len(), |length| from + length)
}

/// The value of a string literal, plain or raw; none for other literals.
fn text(literal: &str) -> Option<String> {
    if let Some(raw) = literal.strip_prefix('r') {
        let raw = raw.trim_matches('#');
        return Some(raw.strip_prefix('"')?.strip_suffix('"')?.to_owned());
    }
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    // A backslash at the end of a line continues the literal after the blanks of the next one.
    let mut joined = String::new();
    let mut lines = inner.split("\\\n");
    joined.push_str(lines.next()?);
    for line in lines {
        joined.push_str(line.trim_start());
    }
    Some(
        joined
            .replace("\\\"", "\"")
            .replace("\\n", "\n")
            .replace("\\\\", "\\"),
    )
}

/// Compares with `tests/goldens/<name>`; `BLESS=1` writes it.
pub fn assert_golden(name: &str, found: &str) {
    assert_text(&format!("tests/goldens/{name}"), found);
}

/// Compares a text with a file of the repository; `BLESS=1` rewrites the file.
#[track_caller]
pub fn assert_text(name: &str, found: &str) {
    let path = root().join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, found).expect("written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let differs = golden
        .lines()
        .zip(found.lines())
        .find(|(golden, found)| golden != found);
    assert!(
        golden == found,
        "{name} differs (BLESS=1 accepts it); first difference: {differs:?}, {} and {} lines",
        golden.lines().count(),
        found.lines().count()
    );
}

#[test]
fn literals_are_found_in_macros_and_errors_and_not_in_attributes_and_tests() {
    let source = r##"
        /// "not this"
        #[error("an error of {0}")]
        #[serde(rename = "not this one")]
        struct S;
        fn f() { warn!(x = 1, "a warning \
            of two lines"); g(r#"a raw "one""#) }
        #[cfg(test)]
        mod tests { const A: &str = "no test"; }
        const B: &str = "the last";
    "##;
    assert_eq!(
        literals(source),
        [
            "an error of {0}",
            "a warning of two lines",
            "a raw \"one\"",
            "the last"
        ]
    );
}
