//! Requests to a provisioner of a directory in place of the file system of a guest.
//! Out of scope: HTTP; the host name and mounts of a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;

use super::*;
use crate::guest::protocol::Secret;

/// The id of a user who exists nowhere.
const USER: u32 = 54_321;

/// A file system with the users root and ubuntu.
struct Guest {
    root: tempfile::TempDir,
    provisioner: Arc<Provisioner>,
}

impl Guest {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        for directory in ["etc", "run", "root", "home/ubuntu"] {
            fs::create_dir_all(root.path().join(directory)).expect("created");
        }
        let passwd =
            format!("root:x:0:0::/root:/bin/sh\nubuntu:x:{USER}:{USER}::/home/ubuntu:/bin/sh\n");
        fs::write(root.path().join("etc/passwd"), passwd).expect("written");
        let home = root.path().join("home/ubuntu");
        std::os::unix::fs::chown(home, Some(USER), Some(USER)).expect("tests run as root");
        let provisioner = Self::agent(&root);
        Self { root, provisioner }
    }

    fn agent(root: &tempfile::TempDir) -> Arc<Provisioner> {
        Provisioner::new(Place::directory(root.path().to_owned()))
    }

    /// The agent starts again.
    fn restart(&mut self) {
        self.provisioner = Self::agent(&self.root);
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn apply(&self, desired: Provision) -> Provisioned {
        let applied = self.provisioner.apply(desired).await;
        applied.unwrap_or_else(|error| panic!("{}", error.text))
    }

    async fn run(&self, script: &str) -> UserdataStatus {
        let applied = self.apply(userdata(script)).await;
        assert_eq!(applied.problems, [""; 0]);
        let ended = self.provisioner.userdata.ended();
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .expect("it ends")
    }
}

fn userdata(script: &str) -> Provision {
    Provision {
        generation: "1".to_owned(),
        userdata: Some(STANDARD.encode(script)),
        ..Provision::default()
    }
}

fn secret(name: &str, value: &str, uid: u32, permissions: u32) -> Secret {
    Secret {
        name: name.to_owned(),
        data: STANDARD.encode(value),
        permissions,
        uid,
        gid: uid,
    }
}

fn secrets(secrets: Vec<Secret>) -> Provision {
    Provision {
        generation: "s".to_owned(),
        secrets,
        ..Provision::default()
    }
}

#[tokio::test]
async fn secrets_have_their_owner_and_permissions_and_are_removed() {
    let guest = Guest::new();
    let first = vec![
        secret("a", "value a", 0, 0o600),
        secret("b.key", "value b", USER, 0o440),
    ];
    assert_eq!(guest.apply(secrets(first.clone())).await.problems, [""; 0]);
    assert_eq!(guest.provisioner.generation(), "s");
    assert_eq!(guest.read("run/slice/secrets/a"), "value a");
    assert_eq!(guest.read("run/slicer/secrets/b.key"), "value b");
    let found = |name: &str| fs::metadata(guest.at("run/slice/secrets").join(name)).expect(name);
    let b = found("b.key");
    assert_eq!((b.uid(), b.gid(), b.mode() & 0o7777), (USER, USER, 0o440));
    assert_eq!((found("a").uid(), found("a").mode() & 0o7777), (0, 0o600));
    // The same again replaces nothing; a change of one leaves the other.
    let inodes = (found("a").ino(), b.ino());
    guest.apply(secrets(first)).await;
    assert_eq!((found("a").ino(), found("b.key").ino()), inodes);
    let second = vec![secret("b.key", "changed", USER, 0o440)];
    guest.apply(secrets(second)).await;
    assert_eq!(guest.read("run/slice/secrets/b.key"), "changed");
    assert!(!guest.at("run/slice/secrets/a").exists());
    guest.apply(secrets(Vec::new())).await;
    assert_eq!(
        fs::read_dir(guest.at("run/slice/secrets"))
            .expect("a directory")
            .count(),
        0
    );
}

#[tokio::test]
async fn invalid_requests_change_nothing_and_repeat_no_value() {
    let guest = Guest::new();
    let of = |name: &str, data: &str| {
        let secret = Secret {
            name: name.to_owned(),
            data: data.to_owned(),
            ..Secret::default()
        };
        secrets(vec![secret])
    };
    let key = |key: &str| Provision {
        ssh_keys: vec![key.to_owned()],
        ..Provision::default()
    };
    let host = |name: &str| Provision {
        hostname: Some(name.to_owned()),
        ..Provision::default()
    };
    for desired in [
        of("../x", ""),
        of("a/b", ""),
        of("", ""),
        of(".", ""),
        of("..", ""),
        of(".hidden", ""),
        of("a\n", ""),
        of("a", "SECRET%"),
        key("a\nb"),
        key(""),
        key("# comment"),
        host(""),
        host("a/b"),
        host("a b"),
        host(&"x".repeat(64)),
        Provision {
            userdata: Some("SECRET%".to_owned()),
            ..Provision::default()
        },
    ] {
        let error = guest
            .provisioner
            .apply(desired.clone())
            .await
            .expect_err("refused");
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(!error.text.contains("SECRET"), "{}", error.text);
    }
    assert!(!guest.at("run/slice").exists());
    assert!(!guest.at("home/ubuntu/.ssh").exists());
}

#[tokio::test]
async fn keys_are_added_to_those_of_the_image_for_the_user_and_root() {
    let guest = Guest::new();
    fs::create_dir(guest.at("root/.ssh")).expect("created");
    fs::write(guest.at("root/.ssh/authorized_keys"), "own\n").expect("written");
    let keys = |keys: &[&str]| Provision {
        ssh_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..Provision::default()
    };
    assert_eq!(guest.apply(keys(&["k 1", "k 2"])).await.problems, [""; 0]);
    let user = guest.read("home/ubuntu/.ssh/authorized_keys");
    assert!(
        user.contains("\nk 1\nk 2\n") && !user.contains("own"),
        "{user}"
    );
    let root = guest.read("root/.ssh/authorized_keys");
    assert!(root.starts_with("own\n") && root.contains("k 1"), "{root}");
    for (path, mode) in [
        ("home/ubuntu/.ssh", 0o700),
        ("home/ubuntu/.ssh/authorized_keys", 0o600),
    ] {
        let found = fs::metadata(guest.at(path)).expect(path);
        assert_eq!((found.uid(), found.mode() & 0o7777), (USER, mode), "{path}");
    }
    guest.apply(keys(&[])).await;
    assert_eq!(guest.read("root/.ssh/authorized_keys"), "own\n");
    assert_eq!(guest.read("home/ubuntu/.ssh/authorized_keys"), "");
}

#[tokio::test]
async fn links_of_a_user_are_not_followed() {
    // What the user has prepared, and the file that must stay as it is.
    type Attack = fn(&Guest);
    let attacks: [(&str, Attack); 5] = [
        ("the directory is a link", |guest| {
            symlink(guest.at("etc"), guest.at("home/ubuntu/.ssh")).expect("a link");
        }),
        ("the directory is a dangling link", |guest| {
            symlink(guest.at("new"), guest.at("home/ubuntu/.ssh")).expect("a link");
        }),
        ("the file is a link", |guest| {
            fs::create_dir(guest.at("home/ubuntu/.ssh")).expect("created");
            let file = guest.at("home/ubuntu/.ssh/authorized_keys");
            symlink(guest.at("etc/shadow"), file).expect("a link");
        }),
        ("the file is a hard link", |guest| {
            fs::create_dir(guest.at("home/ubuntu/.ssh")).expect("created");
            let file = guest.at("home/ubuntu/.ssh/authorized_keys");
            fs::hard_link(guest.at("etc/shadow"), file).expect("a link");
        }),
        ("the file is a FIFO", |guest| {
            fs::create_dir(guest.at("home/ubuntu/.ssh")).expect("created");
            let file = guest.at("home/ubuntu/.ssh/authorized_keys");
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0)
                .expect("a FIFO");
        }),
    ];
    for (what, attack) in attacks {
        let guest = Guest::new();
        fs::write(guest.at("etc/shadow"), "root:hash").expect("written");
        attack(&guest);
        let desired = Provision {
            generation: "1".to_owned(),
            ssh_keys: vec!["k 1".to_owned()],
            ..Provision::default()
        };
        let applied = guest.apply(desired).await;
        assert_eq!(applied.problems.len(), 1, "{what}: {applied:?}");
        assert!(
            applied.problems[0].contains("ubuntu"),
            "{what}: {applied:?}"
        );
        assert_eq!(guest.provisioner.generation(), "", "{what}");
        assert_eq!(guest.read("etc/shadow"), "root:hash", "{what}");
        assert!(!guest.at("etc/authorized_keys").exists(), "{what}");
        assert!(!guest.at("new").exists(), "{what}");
        // The other user has the key.
        assert!(
            guest.read("root/.ssh/authorized_keys").contains("k 1"),
            "{what}"
        );
    }
}

#[tokio::test]
async fn userdata_runs_once_as_root_with_its_environment() {
    let mut guest = Guest::new();
    let script = format!(
        "#!/bin/sh\necho out $TARGET_USER $HOME; echo err >&2; id -u; pwd; echo x >>{}",
        guest.at("count").display()
    );
    let status = guest.run(&script).await;
    assert_eq!(
        (status.state, status.exit_code),
        (UserdataState::Succeeded, Some(0))
    );
    let log = guest.read("var/log/slice-userdata.log");
    assert_eq!(log, "out ubuntu /root\nerr\n0\n/\n");
    assert_eq!(
        fs::metadata(guest.at("var/log/slice-userdata.log"))
            .expect("a log")
            .mode()
            & 0o777,
        0o600
    );
    assert_eq!(guest.read("etc/slicer/userdata-ran"), "0\n");
    assert!(
        !guest.at("run/slice/userdata").exists(),
        "the script is removed"
    );
    guest.run(&script).await;
    guest.restart();
    assert_eq!(
        guest.provisioner.userdata_status().state,
        UserdataState::Succeeded
    );
    guest.run(&script).await;
    assert_eq!(guest.read("count"), "x\n");
}

#[tokio::test]
async fn the_end_of_userdata_is_reported() {
    for (script, code, signal) in [
        ("exit 3", 3, None),
        ("kill -KILL $$", 137, Some("SIGKILL")),
        ("#!/nowhere/interpreter\n", 127, None),
        ("#!/bin/sh -e\nfalse\nexit 0\n", 1, None),
    ] {
        let mut guest = Guest::new();
        for _ in 0..2 {
            let status = guest.run(script).await;
            assert_eq!(status.state, UserdataState::Failed, "{script}");
            assert_eq!(status.exit_code, Some(code), "{script}");
            assert_eq!(status.signal.as_deref(), signal, "{script}");
            guest.restart();
        }
        assert_eq!(guest.read("etc/slicer/userdata-ran"), format!("{code}\n"));
        assert!(guest.provisioner.has_run());
    }
}

#[tokio::test]
async fn userdata_that_was_interrupted_is_not_run_again() {
    let mut guest = Guest::new();
    let applied = guest.apply(userdata("sleep 300")).await;
    assert_eq!(applied.userdata.state, UserdataState::Running);
    assert!(!guest.provisioner.has_run());
    // The guest loses power, the agent of the next boot reads the disk.
    guest.restart();
    let status = guest.run("exit 0").await;
    assert_eq!(
        (status.state, status.exit_code),
        (UserdataState::Failed, None)
    );
}

#[tokio::test]
async fn userdata_waits_for_what_it_needs() {
    let guest = Guest::new();
    assert!(!guest.provisioner.has_run(), "nothing is known yet");
    let pending = Provision {
        userdata_pending: true,
        ..Provision::default()
    };
    assert_eq!(
        guest.apply(pending).await.userdata.state,
        UserdataState::Pending
    );
    assert!(!guest.provisioner.has_run());
    let nothing = Provision::default();
    assert_eq!(
        guest.apply(nothing).await.userdata.state,
        UserdataState::None
    );
    assert!(guest.provisioner.has_run());
    // A directory in place of a secret.
    fs::create_dir_all(guest.at("run/slice/secrets/a")).expect("created");
    let desired = Provision {
        secrets: vec![secret("a", "value", 0, 0o600)],
        ..userdata("exit 0")
    };
    let applied = guest.apply(desired.clone()).await;
    assert_eq!(
        applied.userdata.state,
        UserdataState::Pending,
        "{applied:?}"
    );
    assert!(applied.problems[0].contains("secrets"), "{applied:?}");
    fs::remove_dir(guest.at("run/slice/secrets/a")).expect("removed");
    let applied = guest.apply(desired).await;
    assert_eq!(
        applied.userdata.state,
        UserdataState::Running,
        "{applied:?}"
    );
    assert_eq!(guest.provisioner.userdata.ended().await.exit_code, Some(0));
}

#[tokio::test]
async fn a_host_name_is_set_once_and_found_by_programs() {
    let guest = Guest::new();
    let hosts = "127.0.0.1\tlocalhost\n127.0.1.1\told # slice-agent\n";
    fs::write(guest.at("etc/hosts"), hosts).expect("written");
    let desired = Provision {
        hostname: Some("web-1".to_owned()),
        ..Provision::default()
    };
    assert_eq!(guest.apply(desired.clone()).await.problems, [""; 0]);
    assert_eq!(guest.read("etc/hostname"), "web-1\n");
    let expected = "127.0.0.1\tlocalhost\n127.0.1.1\tweb-1 # slice-agent\n";
    assert_eq!(guest.read("etc/hosts"), expected);
    assert_eq!(
        fs::metadata(guest.at("etc/hosts"))
            .expect("a file")
            .permissions()
            .mode()
            & 0o777,
        0o644
    );
    // A user of the guest has another opinion.
    fs::write(guest.at("etc/hostname"), "mine\n").expect("written");
    guest.apply(desired).await;
    assert_eq!(guest.read("etc/hostname"), "mine\n");
}

#[tokio::test]
async fn a_guest_without_any_directory_gets_everything() {
    let root = tempfile::tempdir().expect("a directory");
    let provisioner = Guest::agent(&root);
    let desired = Provision {
        hostname: Some("tiny".to_owned()),
        ssh_keys: vec!["k 1".to_owned()],
        secrets: vec![secret("a", "value", 0, 0o600)],
        ..userdata("exit 0")
    };
    let applied = provisioner.apply(desired).await.expect("applied");
    assert_eq!(applied.problems, [""; 0]);
    assert_eq!(provisioner.userdata.ended().await.exit_code, Some(0));
    for path in [
        "etc/hostname",
        "root/.ssh/authorized_keys",
        "run/slice/secrets/a",
        "etc/slicer/userdata-ran",
    ] {
        assert!(root.path().join(path).exists(), "{path}");
    }
}
