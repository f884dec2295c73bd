//! The listener of the daemon's socket: who gets access, what it replaces and what it never replaces.
//! Out of scope: requests (`tests/e2e/transcripts/requests.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use slicectl::wire::Listener;

/// Opens the listener inside a runtime, as a daemon does.
fn open(path: &Path) -> Result<Listener, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    Listener::open(path, "no-such-group").map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    })
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_ours_goes_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let listener = open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing beside it"
    );
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_living_daemons_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _living = UnixListener::bind(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.contains("another sliced is listening"), "{error}");
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    fs::write(&path, "precious").unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_listener_does_not_remove_its_successors_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
}
