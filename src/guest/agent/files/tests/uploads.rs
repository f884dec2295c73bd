//! `POST /cp`: what is written, and what is left if it fails.
//! Out of scope: requests that are refused (`refused`).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use axum::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{call, cp, tree};
use crate::guest::agent::files::router;
use crate::guest::archive::tests::{archive, snapshot};

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
    let bytes = archive(&source.path().join("dir"), &[]);
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
