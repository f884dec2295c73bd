//! All endpoints, with good and bad requests.
//! Out of scope: archives of which single entries are wrong (`archive::tests`).

mod watches;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::router;
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::exclude::Patterns;
use crate::guest::archive::tests::snapshot;
use crate::guest::archive::{Root, write};
use crate::guest::protocol::{FileInfo, FileType};

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        body["error"].as_str().expect("an error").to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

async fn call(method: &str, uri: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(uri).body(body.into());
    let response = router().oneshot(request.unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec());
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.expect("a whole body"),
    }
}

fn encoded(path: &Path) -> String {
    utf8_percent_encode(path.to_str().unwrap(), NON_ALPHANUMERIC).to_string()
}

fn cp(path: &Path, more: &str) -> String {
    format!("/cp?path={}&{more}", encoded(path))
}

fn archive(tree: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let root = Beneath::open(tree).unwrap();
    write(&root, Root::Omitted, &Patterns::default(), &mut bytes).unwrap();
    bytes
}

/// `file` (mode 0640), `dir/a`, `dir/sub/b`, a link `link` to `file`, and `target/`.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::create_dir_all(at("target")).unwrap();
    for path in ["file", "dir/a", "dir/sub/b"] {
        fs::write(at(path), path).unwrap();
    }
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("file", at("link")).unwrap();
    root
}

#[tokio::test]
async fn refused_requests_have_a_status_and_a_sentence() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    let path = |path: &str| encoded(&at(path));
    std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let empty = vec![0; 1024];
    let text = |text: &str| text.as_bytes().to_vec();
    let post = |to: &str, more: &str| ("POST", cp(&at(to), more));
    let get = |to: &str, more: &str| ("GET", cp(&at(to), more));
    let mkdir = || ("POST", "/fs/mkdir".to_owned());
    let cases: Vec<((&str, String), Vec<u8>, u16, &str)> = vec![
        (get("none", ""), vec![], 404, "No such file"),
        (get("none", "mode=tar"), vec![], 404, "No such file"),
        (get("file/x", ""), vec![], 400, "Not a directory"),
        (
            get("dir", ""),
            vec![],
            400,
            "must specify a file not a directory",
        ),
        (
            get("dir", "mode=cp-v1-binary"),
            vec![],
            400,
            "must specify a file not a directory",
        ),
        (get("file", "mode=tar"), vec![], 400, "is not a directory"),
        (
            get("file", "mode=cp-v1-tar"),
            vec![],
            400,
            "is not a directory",
        ),
        (get("socket", ""), vec![], 400, "not a regular file"),
        (
            get("socket", "mode=cp-v1-recursive"),
            vec![],
            400,
            "not a regular file",
        ),
        (get("file", "mode=zip"), vec![], 400, "invalid mode: zip"),
        (
            get("file", "mode=cp-v2"),
            vec![],
            400,
            "invalid mode: cp-v2",
        ),
        (
            get("dir", "mode=tar&exclude=%5B"),
            vec![],
            400,
            "invalid pattern",
        ),
        (get("file", "uid=x"), vec![], 400, "invalid query"),
        (
            ("GET", "/cp?path=/&mode=cp-v1-tar".into()),
            vec![],
            400,
            "has no name",
        ),
        (("GET", "/cp".into()), vec![], 400, "\"path\" is missing"),
        (
            ("GET", "/cp?path=relative".into()),
            vec![],
            400,
            "expected an absolute path",
        ),
        (
            ("GET", "/cp?path=~other/x".into()),
            vec![],
            400,
            "expected an absolute path",
        ),
        (("GET", "/cp?path=/a%00b".into()), vec![], 400, "NUL"),
        (post("new", "mode=x"), text("x"), 400, "invalid mode: x"),
        (
            post("new", "permissions=9"),
            text("x"),
            400,
            "invalid permissions \"9\"",
        ),
        (
            post("new", "permissions=%2B644"),
            text("x"),
            400,
            "invalid permissions",
        ),
        (
            post("new", "permissions=77777"),
            text("x"),
            400,
            "invalid permissions",
        ),
        (
            post("new", "mtime=yesterday"),
            text("x"),
            400,
            "invalid query",
        ),
        (
            post("new", "exclude=x&mode=tar"),
            text("x"),
            400,
            "has no effect",
        ),
        (post("dir", ""), text("x"), 400, "Is a directory"),
        (post("socket", ""), text("x"), 400, "not a regular file"),
        (post("file/new", ""), text("x"), 400, "Not a directory"),
        (post("new/", ""), text("x"), 400, "not the name of a file"),
        (
            post("target", "mode=tar"),
            text("no archive"),
            400,
            "invalid archive: it ends early",
        ),
        (post("target", "mode=tar"), vec![7; 2048], 400, "checksum"),
        (
            post("file", "mode=tar"),
            empty.clone(),
            400,
            "Not a directory",
        ),
        (
            post("none/new", "mode=cp-v1-binary&source_name=a"),
            text("x"),
            404,
            "No such file",
        ),
        (
            post("none/", "mode=cp-v1-binary&source_name=a"),
            text("x"),
            404,
            "No such file",
        ),
        (
            post("target", "mode=cp-v1-binary"),
            text("x"),
            400,
            "\"source_name\" is missing",
        ),
        (
            post("target", "mode=cp-v1-binary&source_name=.."),
            text("x"),
            400,
            "\"..\"",
        ),
        (
            post("target", "mode=cp-v1-binary&source_name=a/b"),
            text("x"),
            400,
            "not the name",
        ),
        (
            post(
                "target",
                "mode=cp-v1-binary&source_name=a&source_type=directory",
            ),
            text("x"),
            400,
            "source_type",
        ),
        (
            post("target", "mode=cp-v1-recursive&source_name=a"),
            text("x"),
            400,
            "source_type",
        ),
        (
            post("", "mode=cp-v1-binary&source_name=dir"),
            text("x"),
            400,
            "Is a directory",
        ),
        (
            post("file", "mode=cp-v1-tar&source_name=d"),
            empty.clone(),
            400,
            "Not a directory",
        ),
        (
            post("", "mode=cp-v1-tar&source_name=file"),
            empty.clone(),
            400,
            "Not a directory",
        ),
        (
            post("none/new", "mode=cp-v1-tar&source_name=d"),
            empty,
            404,
            "No such file",
        ),
        (
            ("GET", format!("/fs/stat?path={}", path("none"))),
            vec![],
            404,
            "No such file",
        ),
        (
            ("GET", "/fs/stat".into()),
            vec![],
            400,
            "\"path\" is missing",
        ),
        (
            ("GET", format!("/fs/readdir?path={}", path("file"))),
            vec![],
            400,
            "Not a directory",
        ),
        (
            ("GET", format!("/fs/readdir?path={}", path("none"))),
            vec![],
            404,
            "No such file",
        ),
        (mkdir(), text("{"), 400, "invalid body"),
        (
            mkdir(),
            text(r#"{"path":"x"}"#),
            400,
            "expected an absolute path",
        ),
        (
            mkdir(),
            text(&format!(r#"{{"path":{:?},"mode":"8"}}"#, at("n"))),
            400,
            "invalid permissions",
        ),
        (
            mkdir(),
            text(&format!(r#"{{"path":{:?}}}"#, at("dir"))),
            409,
            "exists",
        ),
        (
            mkdir(),
            text(&format!(r#"{{"path":{:?}}}"#, at("none/new"))),
            404,
            "No such file",
        ),
        (
            mkdir(),
            text(&format!(
                r#"{{"path":{:?},"recursive":true}}"#,
                at("file/new")
            )),
            400,
            "Not a directory",
        ),
        (
            ("DELETE", format!("/fs/remove?path={}", path("none"))),
            vec![],
            404,
            "No such file",
        ),
        (
            ("DELETE", format!("/fs/remove?path={}", path("dir"))),
            vec![],
            400,
            "not empty",
        ),
        (
            ("DELETE", "/fs/remove?path=/&recursive=true".into()),
            vec![],
            400,
            "cannot be removed",
        ),
        (
            (
                "DELETE",
                format!("/fs/remove?path={}&recursive=true", path("dir/..")),
            ),
            vec![],
            400,
            "cannot be removed",
        ),
        (
            (
                "DELETE",
                format!("/fs/remove?path={}&recursive=true", path("dir/.")),
            ),
            vec![],
            400,
            "cannot be removed",
        ),
    ];
    let before = snapshot(root.path());
    for ((method, uri), body, status, expected) in cases {
        let answer = call(method, &uri, body).await;
        let error = answer.error();
        assert_eq!(answer.status, status, "{method} {uri}: {error}");
        assert!(error.contains(expected), "{method} {uri}: {error}");
        assert_eq!(answer.header("content-type"), "application/json");
    }
    let names = |found: std::collections::BTreeMap<_, (u32, i64, Vec<u8>)>| {
        found
            .into_iter()
            .map(|(path, (mode, _, content))| (path, mode, content))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(before),
        names(snapshot(root.path())),
        "nothing has changed"
    );
}

#[tokio::test]
async fn a_file_is_read_with_its_permissions_and_its_time() {
    let root = tree();
    let file = root.path().join("file");
    for mode in [
        "",
        "mode=binary",
        "mode=cp-v1-binary",
        "mode=cp-v1-recursive",
        "uid=4294967295&copy_semantics=cp-v1",
    ] {
        for path in [file.clone(), root.path().join("link")] {
            let answer = call("GET", &cp(&path, mode), "").await;
            assert_eq!(
                (answer.status, answer.body.as_slice()),
                (200, &b"file"[..]),
                "{mode}"
            );
            assert_eq!(answer.header("x-slicer-file-mode"), "0640");
            assert_eq!(answer.header("content-length"), "4");
            let mtime: jiff::Timestamp = answer.header("x-slice-file-mtime").parse().unwrap();
            assert_eq!(mtime.as_second(), fs::metadata(&file).unwrap().mtime());
            if mode.contains("mode=cp-v1") {
                assert_eq!(answer.header("x-slicer-source-type"), "file");
                let name = answer.header("x-slicer-source-name-base64");
                assert!(["ZmlsZQ", "bGluaw"].contains(&name), "{name}");
            }
        }
    }
    let answer = call("GET", "/cp?path=/proc/self/status", "").await;
    assert!(
        answer.body.starts_with(b"Name:"),
        "a size of 0 is not the size"
    );
}

#[tokio::test]
async fn a_directory_is_read_as_an_archive_without_its_root() {
    let root = tree();
    for mode in ["tar", "cp-v1-tar", "cp-v1-recursive"] {
        let uri = cp(
            &root.path().join("dir"),
            &format!("mode={mode}&exclude=sub"),
        );
        let answer = call("GET", &uri, "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/x-tar");
        assert_eq!(&answer.body[257..262], b"ustar");
        assert_eq!(answer.body.len(), 512 * 4, "one file and the end");
        assert!(answer.body.starts_with(b"a\0"));
        let kind = answer.header("x-slicer-source-type");
        assert_eq!(kind, if mode == "tar" { "" } else { "directory" });
    }
    let answer = call(
        "GET",
        "/cp?path=/proc/self/fdinfo&mode=cp-v1-tar&copy_contents=true",
        "",
    )
    .await;
    assert_eq!(answer.header("x-slicer-source-type"), "directory");
}

#[tokio::test]
async fn a_file_is_written_as_the_request_says() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    let owner = |path: &str| {
        let found = fs::metadata(at(path)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let post = async |to: &str, more: &str| {
        let answer = call("POST", &cp(&at(to), more), "new").await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{to} {more}");
    };
    post(
        "x/y/new",
        "uid=7&gid=8&permissions=4755&mtime=2001-02-03T04:05:06.5Z",
    )
    .await;
    assert_eq!(owner("x/y/new"), (7, 8, 0o755));
    assert_eq!(owner("x/y"), (7, 8, 0o755 & !umask()));
    let mtime = fs::metadata(at("x/y/new")).unwrap();
    assert_eq!(
        (mtime.mtime(), mtime.mtime_nsec()),
        (981_173_106, 500_000_000)
    );
    // Owner and permissions of a file that is replaced stay, if the request does not set them.
    post("x/y/new", "").await;
    assert_eq!(owner("x/y/new"), (7, 8, 0o755));
    post("x/y/new", "permissions=600&uid=9").await;
    assert_eq!((owner("x/y/new").0, owner("x/y/new").2), (9, 0o600));
    // Into a directory, onto a file, as a new file.
    let cp1 = "mode=cp-v1-binary&source_type=file&source_name=s";
    post("target", cp1).await;
    post("target/", cp1).await;
    assert_eq!(fs::read(at("target/s")).unwrap(), b"new");
    post("dir/a", cp1).await;
    assert_eq!(fs::read(at("dir/a")).unwrap(), b"new");
    post(
        "brand-new",
        "mode=cp-v1-recursive&source_type=file&source_name=s",
    )
    .await;
    assert_eq!(fs::read(at("brand-new")).unwrap(), b"new");
    // A link at the end is replaced, a link to a directory is a directory.
    post("link", cp1).await;
    assert_eq!(fs::read(at("file")).unwrap(), b"file");
    symlink("target", at("to-target")).unwrap();
    post("to-target", "mode=cp-v1-binary&source_name=t").await;
    assert_eq!(fs::read(at("target/t")).unwrap(), b"new");
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    u32::from_str_radix(line.unwrap().trim(), 8).unwrap()
}

#[tokio::test]
async fn an_archive_is_put_where_cp_puts_a_directory() {
    let source = tree();
    let bytes = archive(&source.path().join("dir"));
    for (to, more, expected) in [
        ("a/b", "mode=tar", "a/b/sub/b"),
        (
            "new",
            "mode=cp-v1-tar&source_type=directory&source_name=dir",
            "new/sub/b",
        ),
        (
            "target",
            "mode=cp-v1-tar&source_name=dir",
            "target/dir/sub/b",
        ),
        (
            "target",
            "mode=cp-v1-recursive&source_type=directory&source_name=dir",
            "target/dir/sub/b",
        ),
        (
            "target",
            "mode=cp-v1-tar&source_name=dir&copy_contents=true",
            "target/sub/b",
        ),
        ("new", "mode=cp-v1-tar&copy_contents=true", "new/sub/b"),
    ] {
        let root = tree();
        let uri = cp(
            &root.path().join(to),
            &format!("{more}&uid=5&gid=6&mtime=2001-01-01T00:00:00Z"),
        );
        for _ in 0..2 {
            let answer = call("POST", &uri, bytes.clone()).await;
            assert_eq!(answer.status, 200, "{to} {more}");
            // The first time, `new` did not exist: the second copy goes into it.
            let found = fs::metadata(root.path().join(expected)).unwrap();
            assert_eq!((found.uid(), found.gid()), (5, 6), "{to} {more}");
        }
    }
}

#[tokio::test]
async fn the_home_directory_is_that_of_the_user() {
    for (uri, name) in [
        ("/fs/readdir?path=~", None),
        ("/cp?path=~/slice-none&uid=0", Some("/root/slice-none")),
    ] {
        let answer = call("GET", uri, "").await;
        match name {
            None => assert_eq!(answer.status, 200),
            Some(name) => assert!(answer.error().contains(name), "{}", answer.error()),
        }
    }
}

#[tokio::test]
async fn files_are_listed_created_and_removed() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    let stat = async |path: &str| {
        let answer = call("GET", &format!("/fs/stat?path={}", encoded(&at(path))), "").await;
        serde_json::from_slice::<FileInfo>(&answer.body).unwrap()
    };
    let file = stat("file").await;
    assert_eq!(
        (file.name.as_str(), file.kind, file.size, file.mode.as_str()),
        ("file", FileType::File, 4, "0640")
    );
    assert_eq!(stat("link").await.kind, FileType::Symlink);
    assert_eq!(stat("dir").await.kind, FileType::Directory);
    let answer = call(
        "GET",
        &format!("/fs/readdir?path={}", encoded(root.path())),
        "",
    )
    .await;
    let files: Vec<FileInfo> = serde_json::from_slice(&answer.body).unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["dir", "file", "link", "target"]);
    let empty = call(
        "GET",
        &format!("/fs/readdir?path={}", encoded(&at("target"))),
        "",
    )
    .await;
    assert_eq!(empty.body, b"[]");
    for (body, path, mode) in [
        (
            format!(
                r#"{{"path":{:?},"recursive":true,"mode":"0700"}}"#,
                at("p/q")
            ),
            "p/q",
            "0700",
        ),
        (
            format!(r#"{{"path":{:?},"recursive":true}}"#, at("p/q")),
            "p/q",
            "0700",
        ),
        (format!(r#"{{"path":{:?}}}"#, at("one")), "one", "0755"),
    ] {
        let answer = call("POST", "/fs/mkdir", body.clone()).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{body}");
        assert_eq!(stat(path).await.mode, mode, "{body}");
    }
    symlink("../dir", at("p/link")).unwrap();
    for (path, more) in [
        ("file", ""),
        ("link", ""),
        ("one", ""),
        ("p/link", "&recursive=true"),
        ("p", "&recursive=true"),
    ] {
        let uri = format!("/fs/remove?path={}{more}", encoded(&at(path)));
        assert_eq!(call("DELETE", &uri, "").await.status, 200, "{path}");
        assert!(fs::symlink_metadata(at(path)).is_err(), "{path}");
    }
    assert!(at("dir/a").exists(), "a link was not followed");
}

/// A client that sends everything before it reads anything.
#[tokio::test]
async fn the_error_of_a_large_upload_is_received_and_not_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, router()).await });
    let size = 20 << 20;
    for (query, expected) in [
        ("path=/tmp/x&mode=cp-v9", "invalid mode: cp-v9"),
        ("path=/tmp&mode=tar", "invalid archive"),
        ("path=/proc/slice-none/x", "proc"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let head = format!(
            "POST /cp?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..size >> 20 {
            stream.write_all(&vec![1; 1 << 20]).await.expect(query);
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect(query);
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains(expected),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file_and_no_other() {
    let root = tree();
    let before = snapshot(root.path());
    for more in ["", "mode=cp-v1-binary&source_name=x"] {
        let parts: [Result<&[u8], std::io::Error>; 2] =
            [Ok(b"half"), Err(std::io::Error::other("gone"))];
        let body = Body::from_stream(futures::stream::iter(parts));
        let answer = call("POST", &cp(&root.path().join("file"), more), body).await;
        assert_eq!(answer.status, 400);
        assert!(answer.error().contains("connection closed unexpectedly"));
    }
    assert_eq!(before, snapshot(root.path()));
}
