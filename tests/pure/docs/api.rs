//! The page about the API and the sources list the same requests and keys.
//! Out of scope: values, which the page shows from a run (`tests/e2e/docs.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use test_support::pages;

use super::super::source::{files, root};

const PAGE: &str = "docs/reference/api.md";

/// Methods and paths of the first column of a table: `GET /v1/objects/{kind}[/{name}]?follow=true`. Values after a colon are examples.
fn requests(text: &str, prefix: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let request = |row: &str| row.split('`').next().map(str::to_owned);
    let requests = rows.filter_map(request);
    requests
        .filter(|request| request.contains(" /v1/"))
        .collect()
}

#[test]
fn the_page_and_the_table_of_the_module_list_the_same_requests() {
    let module = fs::read_to_string(root().join("src/wire/mod.rs")).expect("the module");
    let page = pages::page(Path::new(PAGE));
    let (found, expected) = (requests(&page.text, "| `"), requests(&module, "//! | `"));
    assert!(expected.len() > 15, "{expected:#?}");
    assert_eq!(found, expected);
}

/// The sources of the types of responses.
fn views() -> String {
    let paths = files("src/api/view", &["rs"]).into_iter();
    let paths = paths.chain([root().join("src/api/view.rs")]);
    paths
        .map(|path| fs::read_to_string(path).expect("a source"))
        .collect()
}

/// The fields of a struct, by the name that JSON has.
fn fields(module: &str, name: &str) -> Vec<String> {
    let start = module.find(&format!("pub struct {name} {{"));
    let body = &module[start.unwrap_or_else(|| panic!("no struct {name}"))..];
    let body = body.split("\n}").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut renamed = None;
    for line in body.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if let Some((field, _)) = line
            .strip_prefix("pub ")
            .and_then(|rest| rest.split_once(':'))
        {
            found.push(renamed.take().unwrap_or_else(|| field.to_owned()));
        }
    }
    found
}

/// The keys that the page does not name.
fn missing(page: &str, module: &str, structs: &[&str]) -> Vec<String> {
    let keys = structs.iter().flat_map(|name| {
        let fields = fields(module, name);
        fields.into_iter().map(move |field| (name, field))
    });
    let is_named =
        |key: &str| page.contains(&format!("`{key}`")) || page.contains(&format!(".{key}`"));
    let missing = keys.filter(|(_, key)| !is_named(key) && !page.contains(&format!(".{key}[]`")));
    missing.map(|(name, key)| format!("{name}.{key}")).collect()
}

#[test]
fn the_page_names_every_key_of_the_objects() {
    let page = pages::page(Path::new(PAGE)).text;
    let structs = [
        "MetaView",
        "ConditionView",
        "VmView",
        "VmStatus",
        "NetworkStatus",
        "FirewallStatus",
        "VmmStatus",
        "ExitView",
        "GroupView",
        "GroupStatus",
        "LeaseView",
        "ApplyResult",
        "DiffResult",
        "Explanation",
        "Orphan",
        "Check",
        "RouteInfo",
        "ServerInfo",
        "NewVmResult",
    ];
    assert_eq!(missing(&page, &views(), &structs), Vec::<String>::new());
}

#[test]
fn a_missing_request_and_a_missing_key_are_found() {
    let text = "| `GET /v1/a`: x | b |\n| `POST /v1/b?c=d`, body | e |\n| `/v1/c` | |";
    let expected = ["GET /v1/a", "POST /v1/b?c=d"].map(str::to_owned);
    assert_eq!(requests(text, "| `"), BTreeSet::from(expected));
    let module = "pub struct A {\n    /// B.\n    pub b: C,\n    #[serde(rename = \"d\")]\n    pub e: F,\n}\n";
    assert_eq!(missing("`b`", module, &["A"]), ["A.d"]);
    assert!(missing("`x.b`, `d`", module, &["A"]).is_empty());
}
