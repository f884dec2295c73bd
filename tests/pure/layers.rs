//! The import rules, read from the sources; where `unsafe` is allowed; how long a file may be.
//! Out of scope: what any of it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that can be read at one sitting, with a margin.
const LONGEST: usize = 500;

/// Pure files: plans, the rules and recipes that they are made of. Beside their own module they know these alone.
const PURE: [&str; 11] = [
    "plan.rs",
    "state.rs",
    "rules.rs",
    "recipe.rs",
    "qemu.rs",
    "firecracker.rs",
    "jailer.rs",
    "cloud_hypervisor.rs",
    "cmdline.rs",
    "version.rs",
    "guest.rs",
];
const PURE_MAY: [&str; 6] = [
    "api::",
    "vmm::",
    "owner::",
    "host::rule::",
    "host::tc::Insn",
    "store::HostRequirements",
];
/// Pure files that may know more, and why.
const PURE_EXCEPTIONS: [(&str, &str); 3] = [
    // Configurations and results are data that a plan compares and carries: DEL goes by what ADD went by.
    ("reconcile/net/cni/plan.rs", "cni::"),
    ("reconcile/net/cni/state.rs", "cni::"),
    ("reconcile/net/cni/guest.rs", "cni::"),
];

/// A file of `src`.
struct Source {
    /// From `src`, with slashes: `reconcile/net/plan.rs`.
    path: String,
    /// As it stands.
    text: String,
    /// Without comments and without tests.
    code: String,
}

impl Source {
    /// `reconcile`; `lib` and `bin` are no modules.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.trim_end_matches(".rs")
    }

    /// How many `super::` lead to the crate itself.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count();
        match self.path.ends_with("/mod.rs") {
            true => parts - 1,
            false => parts,
        }
    }

    /// Every path into the crate: `api::view::Check`.
    fn mentions(&self) -> Vec<String> {
        let up = "super::".repeat(self.depth());
        let roots = ["crate::", up.as_str()];
        let mut found = Vec::new();
        for root in roots {
            for (at, _) in self.code.match_indices(root) {
                let rest = &self.code[at + root.len()..];
                let end = rest.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':'));
                found.push(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
        found
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    assert!(
        files.len() > 50,
        "{} files in {}",
        files.len(),
        src.display()
    );
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source in UTF-8");
        let path = path.strip_prefix(&src).expect("in src");
        Source {
            path: path.display().to_string(),
            code: code(&text),
            text,
        }
    };
    files.into_iter().map(source).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => walk(&path, files),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
}

/// Without comments, and up to the tests, which stand last.
fn code(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let lines = text.lines();
    let uncommented = lines.map(|line| match line.trim_start().starts_with("//") {
        true => "",
        false => line.split(" // ").next().unwrap_or(line),
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

/// The map in `src/lib.rs`: module to the modules it may import. `None`: all.
fn map() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(lib).expect("src/lib.rs");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("//! | [`")?.split(" | ");
        let module = cells.next()?.trim_end_matches("`]").to_owned();
        let imports = cells.nth(1)?;
        let quoted = imports.split('`').skip(1).step_by(2);
        let modules = quoted
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect();
        Some((module, (!imports.starts_with("all")).then_some(modules)))
    };
    text.lines().filter_map(row).collect()
}

fn assert_none(rule: &str, offenders: &[String]) {
    assert!(
        offenders.is_empty(),
        "{rule}:\n  {}",
        offenders.join("\n  ")
    );
}

#[test]
fn the_map_names_every_module_and_no_other() {
    let modules: BTreeSet<String> = map().into_keys().collect();
    let built: BTreeSet<String> = sources()
        .iter()
        .map(|source| source.module().to_owned())
        .filter(|module| !matches!(module.as_str(), "lib" | "bin"))
        .collect();
    assert_eq!(modules, built);
    for imports in map().into_values().flatten() {
        assert!(imports.is_subset(&modules), "{imports:?}");
    }
}

#[test]
fn a_module_imports_what_the_map_lists_and_nothing_else() {
    let map = map();
    let mut offenders = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let Some(Some(allowed)) = map.get(source.module()) else {
            continue;
        };
        for mention in source.mentions() {
            let module = mention.split("::").next().unwrap_or_default();
            if module != source.module() && !allowed.contains(module) {
                offenders.push(format!("{}: {mention}", source.path));
            }
        }
    }
    assert_none("not in the map of src/lib.rs", &offenders);
}

#[test]
fn plans_and_recipes_are_pure() {
    let mut seen = 0;
    let mut offenders = Vec::new();
    for source in sources() {
        let name = source.path.rsplit('/').next().unwrap_or_default();
        if !matches!(source.module(), "reconcile" | "vmm") || !PURE.contains(&name) {
            continue;
        }
        seen += 1;
        for mention in source.mentions() {
            // `use crate::owner;` is as good as `use crate::owner::Label;`.
            let path = format!("{mention}::");
            let excepted = PURE_EXCEPTIONS
                .iter()
                .any(|(file, may)| *file == source.path && path.starts_with(may));
            if !mention.starts_with(source.module())
                && !excepted
                && !PURE_MAY.iter().any(|may| path.starts_with(may))
            {
                offenders.push(format!("{}: {mention}", source.path));
            }
        }
        for word in [
            "async ",
            ".await",
            "tokio::",
            "std::fs",
            "std::process",
            "std::env",
            "clock::",
        ] {
            if source.code.contains(word) {
                offenders.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert!(seen >= 5, "{seen} pure files were found");
    assert_none(
        "a plan is a function of what is wanted and what is seen",
        &offenders,
    );
}

#[test]
fn what_may_be_swapped_one_day_stays_behind_two_files() {
    for package in ["serde_yaml", "sled"] {
        let mention = format!("{package}::");
        let uses = |source: &&Source| {
            let starts = source.code.match_indices(&mention);
            let whole =
                |at: usize| !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            !source.is_test() && starts.map(|(at, _)| at).any(whole)
        };
        let sources = sources();
        let files: Vec<&str> = sources
            .iter()
            .filter(uses)
            .map(|source| source.path.as_str())
            .collect();
        assert!((1..=2).contains(&files.len()), "{package} is in {files:?}");
    }
}

#[test]
fn unsafe_code_programs_and_namespaces_are_in_the_host_module_alone() {
    // CNI plugins are programs, and so is the editor of a user; nothing else in these modules is. The agent runs in a guest and cannot use
    // the host module.
    let exceptions = [
        ("cni/invoke.rs", "Command::new("),
        ("cli/edit.rs", "Command::new("),
        ("guest/agent/child.rs", "Command::new("),
        ("guest/agent/child.rs", "unsafe "),
        ("guest/agent/vsock.rs", "Command::new("),
        ("guest/async_fd.rs", "unsafe "),
        ("guest/init/programs.rs", "Command::new("),
        ("guest/init/programs.rs", "unsafe "),
        ("guest/inject/mod.rs", "Command::new("),
        ("guest/inject/supervise.rs", "Command::new("),
        ("guest/inject/supervise.rs", "unsafe "),
    ];
    let words = [
        "unsafe ",
        "Command::new(",
        "setns(",
        "unshare_unsafe(",
        "move_into_link_name_space(",
    ];
    let mut offenders = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| !source.is_test() && source.module() != "host")
    {
        let found = words.iter().filter(|word| {
            source.code.contains(**word) && !exceptions.contains(&(source.path.as_str(), **word))
        });
        offenders.extend(found.map(|word| format!("{}: {word}", source.path)));
    }
    assert_none("only src/host does this", &offenders);
}

#[test]
fn only_the_clock_module_reads_the_time() {
    let words = [
        "Instant::now()",
        "SystemTime::now()",
        "Timestamp::now()",
        "Zoned::now()",
        "Utc::now()",
    ];
    let mut offenders = Vec::new();
    for source in sources() {
        if source.is_test() || source.module() == "host" || source.path == "clock.rs" {
            continue;
        }
        let found = words.iter().filter(|word| source.code.contains(**word));
        offenders.extend(found.map(|word| format!("{}: {word}", source.path)));
    }
    assert_none("only src/clock.rs tells the time", &offenders);
}

#[test]
fn every_module_begins_with_its_purpose_and_what_is_out_of_scope() {
    let signed = |source: &Source| {
        let mut lines = source.text.lines();
        lines
            .next()
            .is_some_and(|line| line.len() > 8 && line.starts_with("//! "))
            && lines
                .next()
                .is_some_and(|line| line.starts_with("//! Out of scope:"))
    };
    let unsigned: Vec<String> = sources()
        .into_iter()
        .filter(|source| !signed(source))
        .map(|source| source.path)
        .collect();
    assert_none("what it is for, then `//! Out of scope: …`", &unsigned);
}

#[test]
fn a_file_fits_a_sitting() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.text.lines().count(), &source.path))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert_none("split it", &long);
}

#[test]
fn this_test_sees_what_it_is_to_see() {
    let source = |path: &str, text: &str| Source {
        path: path.into(),
        code: code(text),
        text: text.into(),
    };
    let file = source(
        "wire/socket.rs",
        "use crate::store::Txn;\n// use crate::host;\nuse super::super::owner;\nuse super::packet;\n#[cfg(test)]\nmod tests {\n use crate::cli;\n}",
    );
    assert_eq!(file.mentions(), ["store::Txn", "owner"]);
    assert_eq!((file.module(), file.depth()), ("wire", 2));
    assert_eq!(
        source("wire/mod.rs", "use super::api::meta;").mentions(),
        ["api::meta"]
    );
    assert_eq!(source("owner.rs", "super::api").module(), "owner");
}
