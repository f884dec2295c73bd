//! Requests that are refused.
//! Out of scope: `/fs/watch` (`watches`).

use super::{call, cp, encoded, tree};
use crate::guest::archive::tests::snapshot;

/// Method and URI, body, status, part of the error.
type Case = ((&'static str, String), Vec<u8>, u16, &'static str);

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
    let cases: Vec<Case> = vec![
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
