//! No archive changes anything outside of its destination.
//! Out of scope: archives that are as they should be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tar::{EntryType, Header};

use super::snapshot;
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::{Error, Extraction, Limits, extract};

/// A header with a name that is not checked, and its content.
fn entry(name: &[u8], kind: EntryType, target: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let fields = header.as_gnu_mut().expect("a GNU header");
    let length = name.len().min(100);
    fields.name[..length].copy_from_slice(&name[..length]);
    let length = target.len().min(100);
    fields.linkname[..length].copy_from_slice(&target[..length]);
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(name.as_bytes(), EntryType::Regular, b"", b"evil")
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name.as_bytes(), EntryType::Symlink, target.as_bytes(), b"")
}

fn dir(name: &str) -> Vec<u8> {
    entry(name.as_bytes(), EntryType::Directory, b"", b"")
}

/// A destination `in/to` with something around it.
fn surroundings() -> tempfile::TempDir {
    // In memory, because there are many.
    let memory = Path::new("/dev/shm");
    let root = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let root = root.unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("in/to")).unwrap();
    fs::create_dir_all(at("outside")).unwrap();
    for path in ["in/secret", "outside/secret", "secret"] {
        fs::write(at(path), "secret").unwrap();
        fs::set_permissions(at(path), fs::Permissions::from_mode(0o600)).unwrap();
    }
    root
}

/// Extracts, and fails if anything but the destination has changed, or if a temporary file is left.
fn outcome(root: &Path, bytes: &[u8], limits: Limits) -> Result<(), Error> {
    let around = || {
        let mut found = snapshot(root);
        found.retain(|path, _| !path.starts_with("in/to"));
        // Its parent is not changed, and neither is the destination itself.
        found
    };
    let before = around();
    let mut beneath = Beneath::open(&root.join("in/to")).unwrap();
    let extraction = Extraction {
        limits,
        ..Extraction::default()
    };
    let extracted = extract(bytes, &mut beneath, &extraction).map(drop);
    assert_eq!(before, around());
    let drafts = snapshot(&root.join("in/to")).into_keys();
    let mut drafts = drafts.filter(|path| path.to_string_lossy().contains(".slice-"));
    assert_eq!(drafts.next(), None);
    extracted
}

const END: [u8; 1024] = [0; 1024];

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend_from_slice(&END);
    bytes
}

#[test]
fn what_must_not_be_in_an_archive_is_an_error_that_changes_nothing_outside() {
    let long = "x".repeat(5000);
    let long_name = |name: &[u8]| entry(b"@", EntryType::GNULongName, b"", name);
    let pax = |record: &[u8]| entry(b"@", EntryType::XHeader, b"", record);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("absolute", vec![file("/tmp/slice-evil")]),
        ("above", vec![file("../secret")]),
        ("above, inside", vec![dir("a"), file("a/../../secret")]),
        ("above, link", vec![link("../new", "x")]),
        ("above, directory", vec![dir("../new")]),
        (
            "through a link",
            vec![link("a", "../../outside"), file("a/secret")],
        ),
        (
            "through an absolute link",
            vec![link("a", "/"), file("a/tmp/slice-evil")],
        ),
        (
            "through two links",
            vec![link("a", ".."), link("b", "a/.."), file("b/secret")],
        ),
        (
            "through a link that stays inside",
            vec![dir("b"), link("a", "b"), file("a/c")],
        ),
        (
            "a directory through a link",
            vec![link("a", "../.."), dir("a/new")],
        ),
        (
            "a link through a link",
            vec![link("a", "../.."), link("a/new", "x")],
        ),
        (
            "a directory in place of a link",
            vec![link("a", "../../outside"), dir("a")],
        ),
        ("a file in place of a directory", vec![dir("a"), file("a")]),
        (
            "a link in place of a directory",
            vec![dir("a"), link("a", "../../outside"), file("a/secret")],
        ),
        ("a directory in place of a file", vec![file("a"), dir("a")]),
        ("a file below a file", vec![file("a"), file("a/b")]),
        (
            "a hard link",
            vec![entry(b"a", EntryType::Link, b"../secret", b"")],
        ),
        (
            "a hard link inside",
            vec![file("a"), entry(b"b", EntryType::Link, b"a", b"")],
        ),
        (
            "a character device",
            vec![entry(b"a", EntryType::Char, b"", b"")],
        ),
        (
            "a block device",
            vec![entry(b"a", EntryType::Block, b"", b"")],
        ),
        ("a FIFO", vec![entry(b"a", EntryType::Fifo, b"", b"")]),
        (
            "a sparse file",
            vec![entry(b"a", EntryType::GNUSparse, b"", b"")],
        ),
        (
            "an unknown type",
            vec![entry(b"a", EntryType::new(b'Z'), b"", b"")],
        ),
        ("no name", vec![file("")]),
        ("a file as the root", vec![file(".")]),
        ("a link as the root", vec![link("./", "/")]),
        ("a link without target", vec![link("a", "")]),
        (
            "a directory with content",
            vec![entry(b"a", EntryType::Directory, b"", b"x")],
        ),
        ("a long path", vec![long_name(long.as_bytes()), file("a")]),
        ("a long component", vec![long_name(&[b'x'; 256]), file("a")]),
        ("a NUL byte", vec![long_name(b"a\0b"), file("a")]),
        (
            "a PAX path above",
            vec![pax(b"18 path=../secret\n"), file("a")],
        ),
        (
            "an absolute PAX path",
            vec![pax(b"15 path=/secret\n"), file("a")],
        ),
        (
            "a PAX record with a wrong length",
            vec![pax(b"99 path=a\n"), file("a")],
        ),
        (
            "a PAX record without a length",
            vec![pax(b"path=a\n"), file("a")],
        ),
        (
            "a PAX size that is no number",
            vec![pax(b"10 size=x\n"), file("a")],
        ),
        (
            "a huge PAX size",
            vec![pax(b"29 size=18446744073709551615\n"), file("a")],
        ),
        (
            "a sparse file in PAX",
            vec![pax(b"22 GNU.sparse.major=1\n"), file("a")],
        ),
        ("many extended headers", vec![pax(b"10 path=a\n"); 9]),
        (
            "large extended header",
            vec![entry(b"@", EntryType::XHeader, b"", &[b'x'; 70_000])],
        ),
    ];
    for (what, entries) in cases {
        let root = surroundings();
        let extracted = outcome(root.path(), &archive(&entries), Limits::default());
        assert!(extracted.is_err(), "{what}");
        assert!(!Path::new("/tmp/slice-evil").exists(), "{what}");
    }
}

#[test]
fn an_archive_that_ends_early_is_an_error_and_leaves_no_half_file() {
    let whole = archive(&[file("a"), dir("b"), file("b/c")]);
    for length in 0..whole.len() - 1024 + 512 {
        if length % 512 > 3 && length % 97 != 0 {
            continue;
        }
        let root = surroundings();
        let extracted = outcome(root.path(), &whole[..length], Limits::default());
        assert!(extracted.is_err(), "{length} bytes");
        for (path, (mode, _, content)) in snapshot(&root.path().join("in/to")) {
            let is_whole = mode & 0o170_000 == 0o040_000 || content == b"evil";
            assert!(is_whole, "{length} bytes: {}", path.display());
        }
    }
}

#[test]
fn links_that_exist_in_the_destination_are_replaced_and_not_followed() {
    let root = surroundings();
    let to = root.path().join("in/to");
    symlink("../../outside/secret", to.join("file")).unwrap();
    symlink("../../outside", to.join("dir")).unwrap();
    outcome(root.path(), &archive(&[file("file")]), Limits::default()).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap(), b"evil");
    for entries in [
        vec![file("dir/secret")],
        vec![dir("dir"), file("dir/secret")],
    ] {
        assert!(outcome(root.path(), &archive(&entries), Limits::default()).is_err());
    }
    let _socket = std::os::unix::net::UnixListener::bind(to.join("socket")).unwrap();
    assert!(outcome(root.path(), &archive(&[file("socket")]), Limits::default()).is_err());
}

#[test]
fn duplicates_replace_each_other_and_privileged_bits_are_removed() {
    let root = surroundings();
    let to = root.path().join("in/to");
    let entries = [
        link("a", "../../outside/secret"),
        file("a"),
        link("a", "b"),
        file("b"),
        file("b"),
    ];
    outcome(root.path(), &archive(&entries), Limits::default()).unwrap();
    assert_eq!(fs::read_link(to.join("a")).unwrap(), Path::new("b"));
    let mode = fs::metadata(to.join("b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
}

#[test]
fn the_limits_of_the_caller_hold() {
    let many: Vec<Vec<u8>> = (0..10_000)
        .map(|at| file(&format!("{}/{at}", at % 10)))
        .collect();
    let limits = |entries, bytes| Limits { entries, bytes };
    let root = surroundings();
    outcome(root.path(), &archive(&many), limits(10_000, 40_000)).unwrap();
    let found = snapshot(&root.path().join("in/to"));
    assert_eq!(found.len(), 10_010);
    for (limits, expected) in [
        (limits(9_999, 40_000), "the limit of 9999 files is exceeded"),
        (
            limits(10_000, 39_999),
            "the limit of 39999 bytes is exceeded",
        ),
    ] {
        let root = surroundings();
        let error = outcome(root.path(), &archive(&many), limits).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

/// Names that meet each other, and parts of names that lead somewhere.
fn hostile_name() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec!["a", "b", "a/b", "a/secret", "b/secret", "a/b/secret"]);
    let parts = vec!["a", "b", "..", ".", "", "/", "secret", "outside", "c\0d"];
    let parts = prop::collection::vec(prop::sample::select(parts), 1..5);
    prop_oneof![
        3 => known.prop_map(str::to_owned),
        1 => parts.prop_map(|parts| parts.join("/")),
    ]
    .prop_map(String::into_bytes)
}

fn hostile_target() -> impl Strategy<Value = Vec<u8>> {
    let known = vec![
        "..",
        "../..",
        "../../outside",
        "../../outside/secret",
        "../secret",
        "/",
        "a",
        "b",
        ".",
    ];
    let known = prop::sample::select(known).prop_map(|text| text.as_bytes().to_vec());
    prop_oneof![3 => known, 1 => hostile_name()]
}

fn hostile_entry() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(b"0000022222555513xgLKS\x00".to_vec());
    let content = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 0..700),
        1 => hostile_name().prop_map(|name| {
            let name = String::from_utf8_lossy(&name).into_owned();
            format!("{} path={name}\n", name.len() + 9).into_bytes()
        }),
    ];
    (hostile_name(), kind, hostile_target(), content).prop_map(|(name, kind, target, content)| {
        entry(&name, EntryType::new(kind), &target, &content)
    })
}

/// Entries, of which single bytes are changed without or with a correct checksum, and an end.
fn hostile_archive() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    (
        prop::collection::vec(hostile_entry(), 0..6),
        prop::collection::vec(change, 0..3),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
        .prop_map(|(entries, changes, cut)| {
            let mut bytes = archive(&entries);
            for (at, byte, has_checksum) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                let begin = at / 512 * 512;
                if has_checksum {
                    let mut header = Header::from_byte_slice(&bytes[begin..begin + 512]).clone();
                    header.set_cksum();
                    bytes[begin..begin + 512].copy_from_slice(header.as_bytes());
                }
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        })
}

/// `SLICE_ARCHIVES` is the number of archives, `SLICE_SEED` the seed.
#[test]
fn no_archive_whatever_changes_anything_outside() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (archives, seed): (u64, u64) = (number("SLICE_ARCHIVES", 3000), number("SLICE_SEED", 1));
    println!("SLICE_ARCHIVES={archives} SLICE_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = ProptestConfig {
        cases: u32::try_from(archives).expect("fewer archives"),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut extracted = 0;
    let root = surroundings();
    let to = root.path().join("in/to");
    let counter = std::cell::Cell::new(0);
    TestRunner::new_with_rng(config, rng)
        .run(&hostile_archive(), |bytes| {
            let limits = Limits {
                entries: 100,
                bytes: 1 << 20,
            };
            counter.set(counter.get() + u64::from(outcome(root.path(), &bytes, limits).is_ok()));
            // What one archive leaves is there for some of the next.
            if counter.get().is_multiple_of(3) {
                // Directories may be unreadable, but not for root.
                fs::remove_dir_all(&to).unwrap();
                fs::create_dir(&to).unwrap();
            }
            Ok(())
        })
        .unwrap();
    extracted += counter.get();
    assert!(
        extracted > archives / 20,
        "{extracted} of {archives} archives were valid"
    );
}
