//! Trees survive an archive.
//! Out of scope: archives of others that break rules.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::{archive, snapshot};
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::draft::Attributes;
use crate::guest::archive::{Extraction, extract};
use crate::guest::place::put_file;

#[derive(Clone, Debug)]
enum Node {
    File {
        chunks: Vec<(bool, u16)>,
        mode: u32,
    },
    Link(Vec<u8>),
    Dir {
        children: Vec<(Vec<u8>, Node)>,
        mode: u32,
    },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => b'a'..=b'e',
        1 => (1u8..=255).prop_filter("no slash", |byte| *byte != b'/'),
    ];
    let short = prop::collection::vec(byte.clone(), 1..9);
    let long = prop::collection::vec(byte, 90..=255);
    prop_oneof![6 => short, 1 => long].prop_filter("a name", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        3 => (prop::collection::vec(any::<(bool, u16)>(), 0..4), 0o400u32..=0o777)
            .prop_map(|(chunks, mode)| Node::File { chunks, mode }),
        1 => prop::collection::vec(1u8..=255, 1..200).prop_map(Node::Link),
        1 => (0o700u32..=0o777).prop_map(|mode| Node::Dir { children: Vec::new(), mode }),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        (
            prop::collection::vec((name(), inner), 0..6),
            0o500u32..=0o777,
        )
            .prop_map(|(children, mode)| Node::Dir { children, mode })
    })
}

fn build(path: &Path, node: &Node, mtime: u64) {
    // The same name twice.
    if fs::symlink_metadata(path).is_ok() {
        return;
    }
    match node {
        Node::File { chunks, mode } => {
            let mut file = File::create(path).unwrap();
            let mut length = 0;
            for (is_hole, size) in chunks {
                match is_hole {
                    true => drop(file.seek(SeekFrom::Current((*size).into())).unwrap()),
                    false => file.write_all(&vec![b'x'; usize::from(*size)]).unwrap(),
                }
                length += u64::from(*size);
            }
            file.set_len(length).unwrap();
            file.set_permissions(fs::Permissions::from_mode(*mode))
                .unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(mtime))
                .unwrap();
        }
        Node::Link(target) => {
            let target = OsString::from_vec(target.clone());
            std::os::unix::fs::symlink(target, path).unwrap();
        }
        Node::Dir { children, mode } => {
            fs::create_dir(path).unwrap();
            for (at, (name, child)) in children.iter().enumerate() {
                let path = path.join(OsString::from_vec(name.clone()));
                build(&path, child, mtime + at as u64);
            }
            let dir = File::open(path).unwrap();
            dir.set_permissions(fs::Permissions::from_mode(*mode))
                .unwrap();
            dir.set_modified(UNIX_EPOCH + Duration::from_secs(mtime))
                .unwrap();
        }
    }
}

fn unpack(bytes: &[u8], to: &Path) {
    let mut root = Beneath::open(to).unwrap();
    extract(bytes, &mut root, &Extraction::default()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_tree_is_the_same_after_an_archive(
        children in prop::collection::vec((name(), node()), 0..6),
        mtime in 0u64..1 << 33,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        build(&from, &Node::Dir { children, mode: 0o755 }, mtime);
        fs::create_dir(&to).unwrap();
        let bytes = archive(&from, &[]);
        prop_assert_eq!(bytes.len() % 512, 0);
        unpack(&bytes, &to);
        prop_assert_eq!(snapshot(&from), snapshot(&to));
        prop_assert_eq!(&archive(&to, &[]), &bytes, "in the same order");
        // On top of itself.
        unpack(&bytes, &to);
        let files = |tree| {
            let found = snapshot(tree).into_iter();
            found.filter(|(_, (mode, ..))| mode & 0o170_000 != 0o040_000).collect::<Vec<_>>()
        };
        prop_assert_eq!(files(&from), files(&to));
    }
}

/// A tree with everything that has a special form in an archive.
fn special(root: &Path) {
    let deep = root
        .join("d".repeat(120))
        .join("e".repeat(120))
        .join("f".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::write(root.join("g".repeat(200)), "long").unwrap();
    fs::write(root.join("ü ä\n"), "text").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("absolute")).unwrap();
}

#[test]
fn gnu_tar_extracts_our_archives() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(&to).unwrap();
    fs::create_dir_all(&from).unwrap();
    special(&from);
    let mut tar = Command::new("tar")
        .args(["-xp", "-f", "-", "-C"])
        .arg(&to)
        .stdin(Stdio::piped())
        .spawn()
        .expect("tar");
    let bytes = archive(&from, &[]);
    assert_eq!(&bytes[257..262], b"ustar");
    tar.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    let without_times = |tree: &Path| {
        let found = snapshot(tree).into_iter();
        let found = found.map(|(path, (mode, mtime, content))| match mode & 0o170_000 {
            // GNU tar does not set the time of links by default.
            0o120_000 => (path, mode, 0, content),
            _ => (path, mode, mtime, content),
        });
        found.collect::<Vec<_>>()
    };
    assert_eq!(without_times(&from), without_times(&to));
}

#[test]
fn archives_of_gnu_tar_in_all_its_formats_are_extracted() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(&from).unwrap();
    special(&from);
    for (format, root) in [("gnu", "."), ("pax", "."), ("posix", ".")] {
        let to = dir.path().join(format!("to-{format}"));
        fs::create_dir_all(&to).unwrap();
        let output = Command::new("tar")
            .arg(format!("--format={format}"))
            .args(["-c", "-f", "-", "-C"])
            .arg(&from)
            .arg(root)
            .output()
            .expect("tar");
        assert!(output.status.success());
        unpack(&output.stdout, &to);
        assert_eq!(snapshot(&from), snapshot(&to), "{format}");
    }
}

#[test]
fn zeros_become_holes_and_sizes_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    let mut file = File::create(from.join("sparse")).unwrap();
    file.write_all(b"begin").unwrap();
    file.seek(SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(b"middle").unwrap();
    file.set_len((9 << 20) + 17).unwrap();
    unpack(&archive(&from, &[]), &to);
    let copy = fs::metadata(to.join("sparse")).unwrap();
    assert_eq!(copy.len(), (9 << 20) + 17);
    assert!(copy.blocks() * 512 < 64 << 10, "{} blocks", copy.blocks());
    assert_eq!(snapshot(&from), snapshot(&to));
}

#[test]
fn a_size_of_more_than_33_bits_is_a_pax_record_that_is_read_again() {
    use crate::guest::archive::Limits;
    use crate::guest::archive::entry::{Entry, Kind};
    use crate::guest::archive::reader::Reader;
    let entry = Entry {
        path: "large".into(),
        kind: Kind::File(9 << 30),
        mode: 0o644,
        mtime: 7,
    };
    let bytes = entry.encode();
    assert_eq!(bytes.len(), 3 * 512);
    let text = String::from_utf8_lossy(&bytes[512..1024]);
    assert!(text.starts_with("19 size=9663676416\n"), "{text}");
    let mut reader = Reader::new(&bytes[..], Limits::default());
    assert_eq!(reader.next_entry().unwrap(), Some(entry));
    assert!(reader.read(&mut [0; 8]).is_err(), "the content is missing");
}

#[test]
fn special_files_excluded_files_and_what_links_lead_to_are_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("target/debug")).unwrap();
    fs::write(from.join("target/debug/big"), "x").unwrap();
    fs::write(from.join("a.o"), "x").unwrap();
    fs::write(from.join("a.c"), "x").unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), "x").unwrap();
    std::os::unix::fs::symlink("../outside", from.join("out")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    let bytes = archive(&from, &["target", "*.o"]);
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    unpack(&bytes, &to);
    let names: Vec<_> = snapshot(&to).into_keys().collect();
    assert_eq!(names, [Path::new("a.c"), Path::new("out")]);
}

proptest! {
    /// Each 4096 bytes are zeros or not; the reader returns pieces of any length.
    #[test]
    fn blocks_of_zeros_are_holes_whatever_the_pieces_that_are_read(
        blocks in prop::collection::vec(any::<bool>(), 0..40),
        rest in 0_usize..4096,
        piece in 1_usize..20_000,
    ) {
        let mut bytes: Vec<u8> = blocks.iter().flat_map(|data| [u8::from(*data); 4096]).collect();
        bytes.resize(bytes.len() + rest, 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut input = BufReader::with_capacity(piece, bytes.as_slice());
        put_file(&path, &mut input, Attributes::default(), None).unwrap();
        prop_assert!(fs::read(&path).unwrap() == bytes);
        let written = blocks.iter().filter(|data| **data).count() + usize::from(rest > 0);
        // A unit of stat(2) has 512 bytes.
        // File systems may count a block with the places of the others.
        prop_assert!(fs::metadata(&path).unwrap().blocks() <= written as u64 * 8 + 8);
    }
}
