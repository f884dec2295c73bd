//! The rules of cp(1) in both directions, and agents that break the protocol.
//! Out of scope: large files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures::{StreamExt, stream};

use super::super::{
    CopyError, Destination, GuestPath, Options, Progress, Source, download, upload,
};
use super::Agent;
use crate::guest::agent::files::router;
use crate::guest::archive::tests::snapshot;

/// `src/{file,dir/{a,sub/b,link,ro/c}}` and an existing directory `to/into`, on a host and in a guest.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("src/dir/sub")).unwrap();
    fs::create_dir_all(at("src/dir/ro")).unwrap();
    fs::create_dir_all(at("to/into")).unwrap();
    for (path, mode) in [
        ("src/file", 0o640),
        ("src/dir/a", 0o755),
        ("src/dir/sub/b", 0o600),
        ("src/dir/ro/c", 0o444),
    ] {
        fs::write(at(path), path).unwrap();
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::open(at(path))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    symlink("a", at("src/dir/link")).unwrap();
    fs::write(at("to/old"), "old").unwrap();
    fs::set_permissions(at("src/dir/ro"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(at("src/dir"), fs::Permissions::from_mode(0o750)).unwrap();
    root
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Up,
    Down,
}

async fn copy(
    agent: &Agent,
    way: Way,
    from: &Path,
    to: &str,
    options: &Options,
) -> Result<(), CopyError> {
    let progress = Arc::new(Progress::default());
    match way {
        Way::Up => {
            upload(
                agent,
                Source::Path(from.to_owned()),
                &GuestPath::new(to),
                options,
                &progress,
            )
            .await
        }
        Way::Down => {
            let from = GuestPath::new(from.to_str().unwrap());
            download(
                agent,
                &from,
                Destination::Path(PathBuf::from(to)),
                options,
                &progress,
            )
            .await
        }
    }
}

fn recursive() -> Options {
    Options {
        recursive: true,
        ..Options::default()
    }
}

#[tokio::test]
async fn both_directions_go_into_and_onto_as_cp_does() {
    for way in [Way::Up, Way::Down] {
        for (from, to, expected) in [
            ("file", "new", Ok("new")),
            ("file", "old", Ok("old")),
            ("file", "into", Ok("into/file")),
            ("file", "into/", Ok("into/file")),
            ("file", "none/", Err("No such file")),
            ("file", "none/new", Err("No such file")),
            ("file", "old/new", Err("Not a directory")),
            ("dir", "new", Ok("new")),
            ("dir", "new/", Ok("new")),
            ("dir", "into", Ok("into/dir")),
            ("dir/", "into", Ok("into/dir")),
            ("dir/.", "into", Ok("into")),
            ("dir/.", "new", Ok("new")),
            ("dir/sub/..", "into", Ok("into")),
            ("dir", "old", Err("Not a directory")),
            ("dir", "none/new", Err("No such file")),
            ("none", "new", Err("No such file")),
        ] {
            let root = tree();
            let agent = Agent::serve(root.path(), router());
            let source = root.path().join("src").join(from);
            // Path::join keeps what is after the last component.
            let target = format!("{}/to/{to}", root.path().display());
            let before = snapshot(&root.path().join("to"));
            let copied = copy(&agent, way, &source, &target, &recursive()).await;
            let what = format!("{way:?} {from} {to}");
            match (copied, expected) {
                (Ok(()), Ok(path)) => {
                    let copy = root.path().join("to").join(path);
                    if source.is_dir() {
                        let source = source.canonicalize().unwrap();
                        assert_eq!(snapshot(&source), snapshot(&copy), "{what}");
                    } else {
                        assert_eq!(fs::read(&copy).unwrap(), b"src/file", "{what}");
                    }
                    let (is, should) =
                        (fs::metadata(&copy).unwrap(), fs::metadata(&source).unwrap());
                    if !to.starts_with("into") || from != "dir/." && from != "dir/sub/.." {
                        let is_kept = !source.is_dir() || from == "dir" || from == "dir/";
                        assert!(
                            !is_kept || is.mode() == should.mode(),
                            "{what}: mode {:o}",
                            is.mode()
                        );
                        assert!(!is_kept || is.mtime() == should.mtime(), "{what}: mtime");
                    }
                }
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{what}: {error}");
                    assert_eq!(before, snapshot(&root.path().join("to")), "{what}");
                }
                (copied, expected) => panic!("{what}: {copied:?}, expected {expected:?}"),
            }
        }
    }
}

#[tokio::test]
async fn directories_need_recursive_and_special_files_are_refused() {
    let root = tree();
    let agent = Agent::serve(root.path(), router());
    let target = root.path().join("to/new").display().to_string();
    for way in [Way::Up, Way::Down] {
        let copied = copy(
            &agent,
            way,
            &root.path().join("src/dir"),
            &target,
            &Options::default(),
        )
        .await;
        assert!(
            matches!(copied, Err(CopyError::IsDirectory(_))),
            "{way:?}: {copied:?}"
        );
        let copied = copy(
            &agent,
            way,
            &root.path().join("agent.sock"),
            &target,
            &recursive(),
        )
        .await;
        let error = copied.unwrap_err().to_string();
        assert!(error.contains("regular file"), "{way:?}: {error}");
    }
}

#[tokio::test]
async fn options_apply_in_both_directions() {
    for way in [Way::Up, Way::Down] {
        let root = tree();
        let agent = Agent::serve(root.path(), router());
        let target = root.path().join("to/new").display().to_string();
        let options = Options {
            recursive: true,
            permissions: Some(0o604),
            exclude: vec!["sub".to_owned(), "link".to_owned()],
            ..Options::default()
        };
        copy(&agent, way, &root.path().join("src/dir"), &target, &options)
            .await
            .unwrap();
        let found = snapshot(Path::new(&target));
        let found: Vec<_> = found
            .iter()
            .map(|(path, (mode, ..))| (path.to_str().unwrap(), mode & 0o777))
            .collect();
        assert_eq!(
            found,
            [("a", 0o604), ("ro", 0o555), ("ro/c", 0o604)],
            "{way:?}"
        );
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o750);
    }
}

/// Standard output that can be read.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn streams_are_copied_and_counted() {
    let root = tree();
    let agent = Agent::serve(root.path(), router());
    let path = GuestPath::new(root.path().join("new/file").to_str().unwrap());
    let progress = Arc::new(Progress::default());
    let body = stream::iter(["12", "345"].map(|text| Ok(text.into()))).boxed();
    upload(
        &agent,
        Source::Stream(body),
        &path,
        &Options::default(),
        &progress,
    )
    .await
    .unwrap();
    assert_eq!((progress.done(), progress.total()), (5, None));
    let (output, progress) = (Output::default(), Arc::new(Progress::default()));
    let to = Destination::Stream(Box::new(output.clone()));
    download(&agent, &path, to, &Options::default(), &progress)
        .await
        .unwrap();
    assert_eq!(output.0.lock().unwrap().as_slice(), b"12345");
    assert_eq!((progress.done(), progress.total()), (5, Some(5)));
    let to = Destination::Stream(Box::new(output));
    let dir = GuestPath::new(root.path().to_str().unwrap());
    let copied = download(&agent, &dir, to, &recursive(), &progress).await;
    assert!(
        matches!(copied, Err(CopyError::DirectoryToStdout)),
        "{copied:?}"
    );
}

#[tokio::test]
async fn a_source_that_fails_is_the_error_and_nothing_is_left() {
    let root = tree();
    let agent = Agent::serve(root.path(), router());
    let path = GuestPath::new(root.path().join("to/old").to_str().unwrap());
    let parts = [
        Ok("half".into()),
        Err(std::io::Error::other("the disk is broken")),
    ];
    let source = Source::Stream(stream::iter(parts).boxed());
    let before = snapshot(&root.path().join("to"));
    let copied = upload(&agent, source, &path, &Options::default(), &Arc::default()).await;
    assert_eq!(copied.unwrap_err().to_string(), "the disk is broken");
    // The agent notices the end of the connection a little later.
    while before != snapshot(&root.path().join("to")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An agent with this response to everything.
fn liar(headers: &'static [(&str, &str)], body: fn() -> Body) -> Router {
    Router::new().fallback(async move || {
        let mut response = Response::new(body());
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    })
}

const FILE: (&str, &str) = ("x-slicer-source-type", "file");
const DIRECTORY: (&str, &str) = ("x-slicer-source-type", "directory");

/// An archive with one file.
fn archive_of(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(4);
    header.set_mode(0o6777);
    header.set_mtime(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(b"evil");
    bytes.resize(3 * 512 + 512, 0);
    bytes
}

fn broken() -> Body {
    let parts = [Ok("half"), Err(std::io::Error::other("gone"))];
    Body::from_stream(stream::iter(parts))
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_changes_nothing() {
    let cases: Vec<(&str, bool, Router, &str)> = vec![
        (
            "/x/file",
            false,
            liar(&[], || "x".into()),
            "neither file nor directory",
        ),
        (
            "/x/file",
            false,
            liar(&[DIRECTORY], || archive_of("a").into()),
            "a directory where a file",
        ),
        (
            "/x/file",
            true,
            liar(&[("x-slicer-source-type", "link")], || "x".into()),
            "neither file nor directory",
        ),
        (
            "/x/.",
            true,
            liar(&[FILE], || "x".into()),
            "a file where the contents",
        ),
        (
            "~",
            true,
            liar(
                &[FILE, ("x-slicer-source-name-base64", "Li4vc2VjcmV0")],
                || "x".into(),
            ),
            "a file where the contents",
        ),
        (
            "/x/dir",
            true,
            liar(&[DIRECTORY], || archive_of("../secret").into()),
            "\"..\"",
        ),
        (
            "/x/dir",
            true,
            liar(&[DIRECTORY], || archive_of("/tmp/slice-evil").into()),
            "is absolute",
        ),
        (
            "/x/dir",
            true,
            liar(&[DIRECTORY], || "no archive".into()),
            "ends early",
        ),
        ("/x/file", false, liar(&[FILE], broken), "connection closed"),
        (
            "/x/file",
            false,
            liar(&[FILE], || vec![0; 2000].into()),
            "the limit of 1000 bytes is exceeded",
        ),
        (
            "/x/old",
            false,
            liar(&[FILE], || vec![0; 2000].into()),
            "the limit of 1000 bytes is exceeded",
        ),
    ];
    for (from, recursive, router, expected) in cases {
        let root = tree();
        let agent = Agent::serve(root.path(), router);
        let before = snapshot(&root.path().join("to"));
        let options = Options {
            recursive,
            max_bytes: Some(1000),
            ..Options::default()
        };
        let to = Destination::Path(root.path().join("to"));
        let copied = download(&agent, &GuestPath::new(from), to, &options, &Arc::default()).await;
        let error = copied.unwrap_err().to_string();
        assert!(error.contains(expected), "{from}: {error}");
        let mut after = snapshot(&root.path().join("to"));
        // An empty directory is left by an archive that is not accepted.
        after.remove(Path::new("dir"));
        assert_eq!(before, after, "{from}: {expected}");
    }
}

#[tokio::test]
async fn the_name_of_a_copy_is_the_requested_one_and_its_permissions_are_not_privileged() {
    let root = tree();
    let headers = &[
        FILE,
        ("x-slicer-source-name-base64", "LmJhc2hyYw"),
        ("x-slicer-file-mode", "6755"),
        ("x-slice-file-mtime", "not a time"),
    ];
    let agent = Agent::serve(root.path(), liar(headers, || "x".into()));
    let to = root.path().join("to/into");
    let from = GuestPath::new("/x/name");
    download(
        &agent,
        &from,
        Destination::Path(to.clone()),
        &Options::default(),
        &Arc::default(),
    )
    .await
    .unwrap();
    let found = snapshot(&to);
    assert_eq!(found.len(), 1);
    assert_eq!(found[Path::new("name")].0 & 0o7777, 0o755);
}

#[tokio::test]
async fn a_download_that_is_given_up_leaves_nothing() {
    let root = tree();
    let endless = || {
        Body::from_stream(
            stream::once(async { Ok::<_, std::io::Error>("half") }).chain(stream::pending()),
        )
    };
    let agent = Agent::serve(root.path(), liar(&[FILE], endless));
    let to = root.path().join("to");
    let before = snapshot(&to);
    let progress = Arc::new(Progress::default());
    let (from, options) = (GuestPath::new("/x/old"), Options::default());
    let mut copying = Box::pin(download(
        &agent,
        &from,
        Destination::Path(to.clone()),
        &options,
        &progress,
    ));
    while progress.done() == 0 {
        let step = tokio::time::timeout(Duration::from_millis(5), &mut copying).await;
        assert!(step.is_err(), "{step:?}");
    }
    drop(copying);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while before != snapshot(&to) {
        assert!(std::time::Instant::now() < deadline, "a file is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
