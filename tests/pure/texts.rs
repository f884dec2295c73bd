//! Every text of the program with at least two words is in `tests/goldens/texts`, by module and file: a change of what users
//! read is reviewed there, in one place. Help is in `help`.
//! Out of scope: whether a text is shown, and when.

use std::collections::BTreeMap;
use std::fs;

use super::source::{assert_golden, files, literals, relative};

#[test]
fn every_text_is_in_the_golden_file_of_its_module() {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for path in files("src", &["rs"]) {
        let relative = relative(&path);
        if relative.ends_with("tests.rs") || relative.contains("/tests/") {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source");
        let found: Vec<String> = literals(&source)
            .into_iter()
            .filter(|text| is_sentence(text))
            .map(|text| format!("  {}\n", text.replace('\n', "\\n")))
            .collect();
        if found.is_empty() {
            continue;
        }
        let module = relative.split('/').nth(1).unwrap_or_default();
        let module = module.trim_end_matches(".rs").to_owned();
        let all = texts.entry(module).or_default();
        all.push_str(&format!("{relative}\n{}", found.concat()));
    }
    assert!(texts.len() > 8, "{:?}", texts.keys());
    for (module, found) in &texts {
        assert_golden(&format!("texts/{module}.txt"), found);
    }
    // A module that is gone leaves no golden file.
    for path in files("tests/goldens/texts", &["txt"]) {
        let module = path.file_stem().unwrap_or_default().to_string_lossy();
        assert!(texts.contains_key(&*module), "{}", path.display());
    }
}

/// At least two words of two letters or more; neither a path nor a rule of a table.
fn is_sentence(text: &str) -> bool {
    let words = text.split_whitespace().filter(|word| {
        let letters = word.chars().filter(|c| c.is_alphabetic()).count();
        letters >= 2 && !word.starts_with('-') && !word.contains(['/', '='])
    });
    words.count() >= 2
}
