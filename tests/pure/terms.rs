//! Retired terms do not come back: one concept has one term, that of Kubernetes, netlink or netfilter.
//! Out of scope: style.

use std::fs;

use super::source::{files, relative};

/// Terms that earlier versions used, and what is used instead.
const RETIRED: [(&str, &str); 23] = [
    ("rung", "stage"),
    ("footing", "host requirements"),
    ("firm", "converged"),
    ("hindrance", "blocked reason"),
    ("unfit", "preflight error"),
    ("stillborn", "failed at startup"),
    ("birth", "spawn"),
    ("ladder", "pipeline"),
    ("stray", "orphan"),
    ("strayed", "drifted"),
    ("house", "layout"),
    ("door", "listener"),
    ("hall", "app state"),
    ("climb", "bring up"),
    ("descend", "tear down"),
    ("nudge", "enqueue"),
    ("shun", "hold off"),
    ("standing", "readiness"),
    ("wish", "spec"),
    ("ought", "should"),
    ("anew", "again"),
    ("remark", "note"),
    ("judge", "evaluate"),
];

/// The words of a text: identifiers are taken apart at `_` and at capitals.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .flat_map(|run| {
            let mut words = Vec::new();
            let mut word = String::new();
            let mut lower_before = false;
            for c in run.chars() {
                if c.is_ascii_uppercase() && lower_before {
                    words.push(std::mem::take(&mut word));
                }
                lower_before = c.is_ascii_lowercase();
                word.push(c.to_ascii_lowercase());
            }
            words.push(word);
            words
        })
        .filter(|word| !word.is_empty())
}

#[test]
fn no_retired_term_is_in_the_sources_the_documentation_or_the_help() {
    let mut found = Vec::new();
    for (below, extensions) in [
        ("src", &["rs"][..]),
        ("docs", &["md"]),
        ("README.md", &["md"]),
        ("tests/goldens", &["txt"]),
    ] {
        for path in files(below, extensions) {
            let text = fs::read_to_string(&path).expect("a text");
            for (number, line) in text.lines().enumerate() {
                for word in words(line) {
                    let retired = RETIRED.iter().find(|(retired, _)| {
                        word == *retired || word.strip_suffix('s') == Some(retired)
                    });
                    if let Some((retired, instead)) = retired {
                        let path = relative(&path);
                        found.push(format!("{path}:{}: {retired} (use: {instead})", number + 1));
                    }
                }
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} retired terms:\n  {}",
        found.len(),
        found.join("\n  ")
    );
}

#[test]
fn terms_are_found_in_identifiers_of_all_kinds() {
    let found: Vec<String> = words("take_rung(RungPage::LADDER) // the rungs").collect();
    assert_eq!(
        found,
        ["take", "rung", "rung", "page", "ladder", "the", "rungs"]
    );
}
