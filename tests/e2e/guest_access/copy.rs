//! `slicectl vm cp` and `slicectl fs`, from the command line to the agent and back.
//! Out of scope: the rules of archives (unit tests of `guest::archive`); the rules of places (those of `guest::copy`).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::{Host, VM, memory, with_agent};

/// More than all buffers together.
const LARGE: usize = 100 << 20;

fn succeeds(host: &Host, words: &[&str]) -> String {
    let output = host.ctl(words).output().expect("slicectl");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}

fn fails(host: &Host, words: &[&str]) -> String {
    let output = host.ctl(words).output().expect("slicectl");
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A path in the VM.
fn vm(path: &Path) -> String {
    format!("{VM}:{}", text(path))
}

#[test]
fn a_file_is_copied_into_a_vm_and_back_with_its_permissions_and_time() {
    with_agent(|host| {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let content: Vec<u8> = (0..LARGE as u32 / 4).flat_map(u32::to_le_bytes).collect();
        fs::write(at("source"), &content).expect("written");
        fs::set_permissions(at("source"), fs::Permissions::from_mode(0o640)).expect("set");
        let before = memory(host.harness.pid());
        succeeds(
            host,
            &[
                "vm",
                "cp",
                text(&at("source")),
                &vm(&at("in-vm")),
                "--uid",
                "0",
            ],
        );
        succeeds(host, &["vm", "cp", &vm(&at("in-vm")), text(&at("back"))]);
        let growth = memory(host.harness.pid()).saturating_sub(before);
        assert!(growth < 4 << 20, "sliced: {growth} bytes");
        assert!(fs::read(at("back")).expect("read") == content);
        let [source, back] = ["source", "back"].map(|name| fs::metadata(at(name)).expect("there"));
        assert_eq!(source.mode(), back.mode());
        assert_eq!(source.mtime(), back.mtime());
    });
}

#[test]
fn a_tree_is_copied_with_its_links_and_listed_and_removed() {
    with_agent(|host| {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("tree/sub/empty")).expect("created");
        fs::write(at("tree/sub/file"), "content").expect("written");
        fs::write(at("tree/skipped.o"), "object").expect("written");
        symlink("sub/file", at("tree/link")).expect("created");
        let why = fails(host, &["vm", "cp", text(&at("tree")), &vm(&at("copy"))]);
        assert!(why.contains("-r"), "{why}");
        let (tree, copy) = (at("tree"), vm(&at("copy")));
        let words = ["vm", "cp", "-r", text(&tree), &copy, "--exclude", "*.o"];
        succeeds(host, &[&words[..], &["--uid", "0"]].concat());
        succeeds(
            host,
            &["vm", "cp", "-r", &vm(&at("copy")), text(&at("back"))],
        );
        assert_eq!(
            fs::read_to_string(at("back/sub/file")).expect("read"),
            "content"
        );
        assert_eq!(
            fs::read_link(at("back/link")).expect("a link"),
            Path::new("sub/file")
        );
        assert!(at("back/sub/empty").is_dir() && !at("back/skipped.o").exists());
        let listed = succeeds(host, &["fs", "ls", VM, text(&at("copy"))]);
        assert!(
            listed.contains("sub") && listed.contains("link"),
            "{listed}"
        );
        succeeds(host, &["fs", "rm", "-r", VM, text(&at("copy"))]);
        assert!(!at("copy").exists());
        let why = fails(host, &["fs", "stat", VM, text(&at("copy"))]);
        assert!(
            why.contains("not found") || why.contains("No such file"),
            "{why}"
        );
    });
}

#[test]
fn standard_input_and_output_are_files_too() {
    with_agent(|host| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("in-vm");
        let source = dir.path().join("source");
        fs::write(&source, b"a\0b\xff").expect("written");
        let mut command = host.ctl(&["vm", "cp", "-", &vm(&path)]);
        let input = fs::File::open(&source).expect("opened");
        assert!(command.stdin(input).status().expect("slicectl").success());
        let output = host.ctl(&["cp", &vm(&path), "-"]).output();
        assert_eq!(output.expect("slicectl").stdout, b"a\0b\xff");
    });
}
