//! All endpoints, with good and bad requests.
//! Out of scope: archives of which single entries are wrong (`archive::tests`).

mod refused;
mod uploads;
mod watches;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tower::ServiceExt;

use super::router;
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
