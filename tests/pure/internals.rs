//! The functions that `docs/internals.md` names exist in the files that it names.
//! Out of scope: what they do.

use std::fs;

use super::source::root;

#[test]
fn every_function_of_the_traces_exists() {
    let page = fs::read_to_string(root().join("docs/internals.md")).expect("the page");
    let mut count = 0;
    for quoted in page.split('`').skip(1).step_by(2) {
        let Some((file, function)) = quoted.split_once(".rs:") else {
            continue;
        };
        let file = format!("{file}.rs");
        let source = fs::read_to_string(root().join(&file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let defines = [format!("fn {function}("), format!("fn {function}<")];
        assert!(
            defines.iter().any(|define| source.contains(define)),
            "{file} has no function {function}"
        );
        count += 1;
    }
    assert!(count > 25, "{count} functions");
}
