//! Files do not import each other in a circle: what several of them exchange is in a file of its own.
//! Out of scope: which module may import which (`layers`).
//!
//! A module may use its own submodules, and these may use the items of it: an import of an ancestor or a descendant is not counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::source::{files, relative};

/// Module paths, and the modules that each imports: `reconcile::net` -> `host::link`.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The path of a file of `src` as a module: `reconcile::net` for `src/reconcile/net/mod.rs`.
fn module(path: &str) -> Option<String> {
    let path = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    Some(path.replace('/', "::")).filter(|path| !path.starts_with("bin"))
}

/// Every path in `tokens` that begins with `crate` or `super`, or in a `use` with any name; the tests of a file are not part of it.
fn paths(tokens: TokenStream, prefix: &[String], in_use: bool, found: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut path: Vec<String> = prefix.to_vec();
    let mut uses = in_use;
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(name) if name == "use" => {
                uses = true;
                path.clear();
            }
            TokenTree::Ident(name) if name == "mod" && is_for_tests(&tokens[..at]) => {
                // Its name and its body, or its semicolon.
                at += 2;
            }
            TokenTree::Ident(name) => path.push(name.to_string()),
            TokenTree::Punct(colon) if colon.as_char() == ':' => {}
            TokenTree::Group(group) if uses && group.delimiter() == Delimiter::Brace => {
                paths(group.stream(), &path, true, found);
                path.clear();
            }
            other => {
                end(&mut path, prefix, uses, found);
                if let TokenTree::Group(group) = other {
                    paths(group.stream(), &[], false, found);
                }
                if matches!(other, TokenTree::Punct(end) if end.as_char() == ';') {
                    uses = in_use;
                }
            }
        }
        let continues = matches!(tokens.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == ':')
            || matches!(&tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        if !uses && !continues {
            end(&mut path, prefix, uses, found);
        }
        at += 1;
    }
    end(&mut path, prefix, uses, found);
}

/// The end of a path.
fn end(path: &mut Vec<String>, prefix: &[String], uses: bool, found: &mut Vec<Vec<String>>) {
    let path = std::mem::replace(path, prefix.to_vec());
    let is_relative = path
        .first()
        .is_some_and(|first| first == "crate" || first == "super");
    if is_relative || (uses && path.len() > prefix.len()) {
        found.push(path);
    }
}

/// Whether the attribute before a `mod` is `#[cfg(test)]`.
fn is_for_tests(before: &[TokenTree]) -> bool {
    let mut attributes = before.iter().rev().map_while(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            Some(group.to_string())
        }
        TokenTree::Punct(_) | TokenTree::Ident(_) => Some(String::new()),
        _ => None,
    });
    attributes
        .next()
        .is_some_and(|attribute| attribute.replace(' ', "") == "[cfg(test)]")
}

/// The module that a path in `of` leads to.
fn resolve(of: &str, path: &[String], modules: &BTreeSet<String>) -> Option<String> {
    let mut full: Vec<&str> = of.split("::").collect();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => {
            full.clear();
            rest = &rest[1..];
        }
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                full.pop();
                rest = &rest[1..];
            }
        }
        _ => {}
    }
    full.extend(
        rest.iter()
            .map(String::as_str)
            .filter(|part| *part != "self"),
    );
    while !full.is_empty() {
        let path = full.join("::");
        if modules.contains(&path) {
            return Some(path).filter(|path| path != of);
        }
        full.pop();
    }
    None
}

fn imports(sources: &BTreeMap<String, String>) -> Imports {
    let modules: BTreeSet<String> = sources.keys().cloned().collect();
    let is_kin = |one: &str, other: &str| {
        let is_below = |one: &str, other: &str| one.starts_with(&format!("{other}::"));
        is_below(one, other) || is_below(other, one)
    };
    let of = |(module, text): (&String, &String)| {
        let mut found = Vec::new();
        paths(text.parse().expect("Rust"), &[], false, &mut found);
        let used = found
            .iter()
            .filter_map(|path| resolve(module, path, &modules));
        let used = used.filter(|used| !is_kin(module, used));
        (module.clone(), used.collect())
    };
    sources.iter().map(of).collect()
}

/// The modules that lead from a module back to it, for each module that has some.
fn cycles(imports: &Imports) -> Vec<String> {
    let reachable = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&str> = imports[from].iter().map(String::as_str).collect();
        while let Some(module) = next.pop() {
            if seen.insert(module.to_owned()) {
                next.extend(imports[module].iter().map(String::as_str));
            }
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> = imports
        .keys()
        .map(|module| (module, reachable(module)))
        .collect();
    let mut found = Vec::new();
    for (module, used) in imports {
        let back = used.iter().filter(|used| all[used].contains(module));
        found.extend(back.map(|used| format!("{module} -> {used}")));
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources: BTreeMap<String, String> = files("src", &["rs"])
        .into_iter()
        .filter_map(|path| Some((module(&relative(&path))?, path)))
        .filter(|(module, _)| !module.ends_with("tests") && !module.contains("::tests::"))
        .map(|(module, path)| (module, fs::read_to_string(path).expect("a source")))
        .collect();
    assert!(sources.len() > 300, "{} files", sources.len());
    let imports = imports(&sources);
    let count: usize = imports.values().map(BTreeSet::len).sum();
    assert!(count > 1000, "{count} imports");
    let found = cycles(&imports);
    assert!(
        found.is_empty(),
        "imports in a circle:\n  {}",
        found.join("\n  ")
    );
}

#[test]
fn a_circle_is_found_through_lists_relative_paths_and_expressions_and_not_through_tests() {
    let source = |text: &str| text.to_owned();
    let sources = |a: &str, b: &str, c: &str| {
        BTreeMap::from([
            (
                "m".to_owned(),
                source("pub mod a; pub mod b; mod c; use a::A;"),
            ),
            ("m::a".to_owned(), source(a)),
            ("m::b".to_owned(), source(b)),
            ("m::c".to_owned(), source(c)),
        ])
    };
    let circle = |a, b, c| cycles(&imports(&sources(a, b, c)));
    let none: [String; 0] = [];
    assert_eq!(circle("use super::b::B;", "", "use super::{a, b};"), none);
    assert_eq!(circle("use super::M;", "use super::M;", ""), none);
    let both = ["m::a -> m::b", "m::b -> m::a"];
    for (a, b) in [
        ("use super::b::B;", "use super::a::A;"),
        ("use super::{c, b::{self, B}};", "use crate::m::{a::A};"),
        (
            "fn f() { super::b::f(super::c::C) }",
            "fn g() -> crate::m::a::A {}",
        ),
        (
            "fn f() -> Vec<super::b::B> {}",
            "pub(super) use super::a::A as X;",
        ),
    ] {
        assert_eq!(circle(a, b, ""), both, "{a} {b}");
    }
    let tests = "#[cfg(test)]\nmod tests { use super::super::a::A; }";
    assert_eq!(circle("use super::b::B;", tests, ""), none);
    let three = circle("use super::b::B;", "use super::c::C;", "use super::a::A;");
    assert_eq!(three, ["m::a -> m::b", "m::b -> m::c", "m::c -> m::a"]);
}
