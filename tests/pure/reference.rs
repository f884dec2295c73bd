//! `docs/reference` is what the definitions of the arguments say (`BLESS=1` rewrites it), and the man pages are complete.
//! Out of scope: the texts themselves.

use std::fs;
use std::process::Command;

use slicectl::cli::{man, reference};

use super::source::root;

#[test]
fn the_reference_is_generated_from_the_arguments() {
    for (name, text) in [
        ("slicectl", reference::slicectl()),
        ("sliced", reference::sliced()),
    ] {
        let path = root().join(format!("docs/reference/{name}.md"));
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(&path, &text).expect("written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        let mut pairs = found.lines().zip(text.lines());
        let first = pairs.find(|(found, text)| found != text);
        assert!(
            found == text,
            "{} is out of date (BLESS=1 rewrites it): {first:?}",
            path.display()
        );
    }
}

#[test]
fn the_reference_has_every_option_of_every_command() {
    let text = reference::slicectl() + &reference::sliced();
    for option in [
        "--socket",
        "--dry-run",
        "--timeout",
        "--port-mapping",
        "--vmm-ids",
        "-l, --selector",
    ] {
        assert!(text.contains(&format!("| `{option}")), "{option}");
    }
    for hidden in ["__man", "slicectl ps", "--all-namespaces"] {
        assert!(!text.contains(hidden), "{hidden}");
    }
}

#[test]
fn there_is_a_man_page_for_every_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_slicectl"))
        .arg("__man")
        .arg(dir.path())
        .output()
        .expect("slicectl");
    assert!(output.status.success(), "{output:?}");
    for name in [
        "man1/slicectl.1",
        "man1/slicectl-get.1",
        "man1/slicectl-vm.1",
        "man1/slicectl-vm-add.1",
        "man8/sliced.8",
    ] {
        let text =
            fs::read_to_string(dir.path().join(name)).unwrap_or_else(|_| panic!("no {name}"));
        for section in [
            ".TH ",
            ".SH NAME",
            ".SH SYNOPSIS",
            ".SH OPTIONS",
            ".SH \"SEE ALSO\"",
        ] {
            assert!(text.contains(section), "{name} has no {section}:\n{text}");
        }
    }
    let man1 = dir.path().join("man1");
    let pages = fs::read_dir(&man1).expect("a directory").count();
    assert_eq!(pages + 1, man::pages().expect("pages").len());
    let get = fs::read_to_string(man1.join("slicectl-get.1")).expect("a page");
    assert!(get.contains(".SH EXAMPLES\n.nf\n"), "{get}");
    assert!(!man1.join("slicectl-ps.1").exists());
}
