//! Links inside the repository, anchors, and the index.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use test_support::pages::{self, Page};

use super::super::source::root;
use super::{GENERATED, assert_none, assert_one, page};

/// The page that links to all others in `docs`.
const INDEX: &str = "docs/index.md";

/// A link that is not to another site.
struct Link<'a> {
    line: usize,
    target: &'a str,
}

/// The lines outside of fenced blocks, with their numbers.
fn prose(page: &Page) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    page.text
        .lines()
        .enumerate()
        .filter_map(move |(index, line)| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            (!inside && !fence).then_some((index + 1, line))
        })
}

fn links(page: &Page) -> Vec<Link<'_>> {
    let of_line = |(line, text): (usize, &'_ str)| {
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        targets
            .map(move |target| (line, target.to_owned()))
            .collect::<Vec<_>>()
    };
    let found = prose(page).flat_map(of_line);
    let found = found.filter(|(_, target)| !target.starts_with("https://"));
    found
        .map(|(line, target)| {
            let start = page
                .text
                .find(&format!("]({target})"))
                .expect("it was found")
                + 2;
            let target = &page.text[start..start + target.len()];
            Link { line, target }
        })
        .collect()
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(page) {
        let Some((_, heading)) = line
            .split_once("# ")
            .filter(|(hashes, _)| hashes.chars().all(|c| c == '#'))
        else {
            continue;
        };
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let slug: String = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone())
            .chain(numbered)
            .find(|slug| !found.contains(slug));
        found.extend(free);
    }
    found
}

/// The path from the root of the repository that a link of a page names.
fn resolve(page: &Page, target: &str) -> PathBuf {
    let mut path = page.path.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

fn broken(pages: &[Page]) -> Vec<String> {
    let mut found = Vec::new();
    for page in pages {
        for Link { line, target } in links(page) {
            let (file, anchor) = target
                .split_once('#')
                .map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let path = match file {
                "" => page.path.clone(),
                file => resolve(page, file),
            };
            let place = format!("{}:{line}: {target}", page.path.display());
            let other = pages.iter().find(|page| page.path == path);
            let is_generated = GENERATED
                .iter()
                .any(|generated| path == Path::new(generated));
            if other.is_none() && !is_generated && !root().join(&path).exists() {
                found.push(format!("{place}: no such file"));
            }
            if let (Some(anchor), Some(other)) = (anchor, other)
                && !anchors(other).contains(anchor)
            {
                found.push(format!("{place}: no such heading"));
            }
        }
    }
    found
}

/// Pages in `docs` that the index does not link to.
fn missing_in_index(pages: &[Page]) -> Vec<String> {
    let index = pages.iter().find(|page| page.path == *INDEX);
    let linked: BTreeSet<PathBuf> = index.map_or(BTreeSet::new(), |index| {
        let files = links(index)
            .into_iter()
            .filter_map(|link| link.target.split('#').next());
        files.map(|file| resolve(index, file)).collect()
    });
    let pages = pages.iter().map(|page| &page.path);
    let pages =
        pages.filter(|path| path.starts_with("docs") && *path != INDEX && !linked.contains(*path));
    pages
        .map(|path| format!("{INDEX} has no link to {}", path.display()))
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading() {
    let pages = pages::all();
    assert!(pages.iter().map(|page| links(page).len()).sum::<usize>() > 50);
    assert_none(&broken(&pages));
}

#[test]
fn every_page_is_in_the_index() {
    assert_none(&missing_in_index(&pages::all()));
}

#[test]
fn links_to_missing_files_and_headings_are_found() {
    let pages = |text: &str| {
        [
            page("docs/a.md", text),
            page("docs/deep/b.md", "# The `b`, 1st\n\n## x\n\n# x\n"),
        ]
    };
    assert_one(
        &broken(&pages("[b](b.md)")),
        "docs/a.md:1: b.md: no such file",
    );
    assert_one(
        &broken(&pages("\n[b](deep/b.md#the-c)")),
        "docs/a.md:2: deep/b.md#the-c: no such heading",
    );
    assert_one(&broken(&pages("# A\n\n[a](#b)")), "#b: no such heading");
    assert_none(&broken(&pages(
        "# A\n\n[a](#a) [b](deep/b.md#the-b-1st) [x](deep/b.md#x-1) [c](../Cargo.toml)",
    )));
    assert_none(&broken(&pages(
        "```text\n[b](b.md)\n```\n[other](https://example.org/b.md)",
    )));
}

#[test]
fn a_page_that_the_index_does_not_link_to_is_found() {
    let pages = [
        page(INDEX, "[a](a.md)"),
        page("docs/a.md", ""),
        page("docs/reference/b.md", ""),
    ];
    assert_one(&missing_in_index(&pages), "no link to docs/reference/b.md");
}

/// Files that are not pages name pages, too.
#[test]
fn every_page_that_a_sample_names_exists() {
    for file in super::super::source::files("manifests", &["yaml", "conflist"]) {
        let text = std::fs::read_to_string(&file).expect("a sample");
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || "/.-_".contains(c))) {
            assert!(
                !word.starts_with("docs/") || root().join(word).exists(),
                "{}: {word} does not exist",
                file.display()
            );
        }
    }
}
