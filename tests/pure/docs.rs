//! README and documentation: their YAML, JSON and commands are valid, their links lead somewhere, every page is in the index.
//! Out of scope: whether the commands do what a page says (`tests/e2e/docs.rs`).

mod api;
mod blocks;
mod links;

use std::path::PathBuf;

use test_support::pages::{self, Page};

/// Pages that another test writes (`BLESS=1`), and may not have written yet.
const GENERATED: [&str; 3] = [
    "docs/reference/yaml.md",
    "docs/reference/slicectl.md",
    "docs/reference/sliced.md",
];

/// A page of a test.
fn page(path: &str, text: &str) -> Page {
    let (path, text) = (PathBuf::from(path), text.to_owned());
    Page { path, text }
}

#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n  {}", problems.join("\n  "));
}

/// Fails unless there is exactly one problem, which contains `expected`.
#[track_caller]
fn assert_one(problems: &[String], expected: &str) {
    assert!(
        problems.len() == 1 && problems[0].contains(expected),
        "{expected}: {problems:#?}"
    );
}

#[test]
fn the_readme_has_at_most_150_lines() {
    let pages = pages::all();
    let readme = pages.iter().find(|page| page.path == *"README.md");
    let lines = readme.expect("a README").text.lines().count();
    assert!(lines <= 150, "{lines} lines");
}
