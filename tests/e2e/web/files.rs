//! The committed files of the page are built from its sources.
//! Out of scope: the page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::browser::installed;

#[test]
fn the_files_of_the_page_are_those_of_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/ui");
    let dir = tempfile::tempdir().expect("a directory");
    let (sources, out) = (dir.path().join("page"), dir.path().join("dist"));
    let copied = Command::new("cp")
        .arg("-r")
        .arg(root.join("page"))
        .arg(&sources)
        .status();
    assert!(copied.expect("cp").success());
    // Those of the lock file, even if others are beside the sources.
    let modules = installed("page");
    for file in ["package.json", "package-lock.json"] {
        let read = |dir: &Path| fs::read_to_string(dir.join(file)).expect("a file of npm");
        assert_eq!(read(&modules), read(&sources), "run tests/setup.sh");
    }
    let _ = fs::remove_dir_all(sources.join("node_modules"));
    std::os::unix::fs::symlink(modules.join("node_modules"), sources.join("node_modules"))
        .expect("a link");
    let built = Command::new("node")
        .arg(sources.join("build.mjs"))
        .arg(&out)
        .output()
        .expect("node");
    assert!(built.status.success(), "{built:?}");
    let names = |dir: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    };
    let dist = root.join("dist");
    assert_eq!(names(&out), names(&dist));
    for name in names(&out) {
        let read = |dir: &Path| fs::read(dir.join(&name)).expect("a file");
        assert!(
            read(&out) == read(&dist),
            "src/wire/ui/dist/{name} is not what its sources build: run `make page`"
        );
    }
}
