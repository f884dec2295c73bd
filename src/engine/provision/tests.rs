//! What a guest is to get, from secrets and files of a directory; the condition for each outcome.
//! Out of scope: agents.

use std::path::PathBuf;

use super::*;
use crate::api::allowed::AllowedDirectories;
use crate::api::secret::{SecretChange, SecretValue};

struct Host {
    dir: tempfile::TempDir,
    secrets: Secrets,
    files: FileAccess,
}

impl Host {
    fn new() -> Self {
        // Only root may write there, and to the directories above it.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let files = FileAccess {
            allowed: AllowedDirectories {
                programs: Vec::new(),
                images: vec![dir.path().to_owned()],
            },
            ..FileAccess::default()
        };
        Self {
            secrets: Secrets::new(dir.path()),
            files,
            dir,
        }
    }

    fn secret(&self, name: &str, value: &str) {
        let change = SecretChange {
            value: Some(SecretValue(value.into())),
            ..SecretChange::default()
        };
        let name = name.parse().expect("a name");
        let stored = match self.secrets.get(&name).expect("read") {
            None => self.secrets.create(&name, change),
            Some(_) => self.secrets.update(&name, change),
        };
        stored.expect("stored");
    }

    fn resolve(&self, provision: &Provision, needs_userdata: bool) -> Resolved {
        let desired = Desired {
            name: Name::new("web-1").expect("a name"),
            provision: provision.clone(),
        };
        resolve(&desired, &self.secrets, &self.files, needs_userdata)
    }
}

fn provision(secrets: &[&str], userdata: Option<Userdata>) -> Provision {
    let secrets = secrets.iter().map(|name| name.parse().expect("a name"));
    Provision {
        secrets: secrets.collect(),
        userdata,
        ..Provision::default()
    }
}

fn script(text: &str) -> Option<Userdata> {
    Some(Userdata::Script(text.parse().expect("a script")))
}

#[test]
fn userdata_waits_for_all_secrets() {
    let host = Host::new();
    host.secret("there", "value");
    let desired = provision(&["there", "absent"], script("echo"));
    let found = host.resolve(&desired, true);
    assert_eq!(
        found.problems,
        ["secret \"absent\" does not exist, and userdata waits for it"]
    );
    assert_eq!(found.request.userdata, None);
    assert!(found.request.userdata_pending);
    assert_eq!(found.request.secrets.len(), 1);
    host.secret("absent", "value");
    let complete = host.resolve(&desired, true);
    assert_eq!(complete.problems, [""; 0]);
    assert_eq!(complete.request.userdata, Some(STANDARD.encode("echo")));
    assert!(!complete.request.userdata_pending);
    assert_ne!(complete.request.generation, found.request.generation);
    // The guest has run it.
    let later = host.resolve(&desired, false);
    assert_eq!(later.request.userdata, None);
    assert_eq!(later.request.generation, complete.request.generation);
}

#[test]
fn each_change_has_another_generation_and_none_depends_on_a_value() {
    let (host, other) = (Host::new(), Host::new());
    host.secret("a", "value");
    other.secret("a", "value");
    let desired = provision(&["a"], None);
    let first = host.resolve(&desired, true).request.generation;
    assert_eq!(host.resolve(&desired, true).request.generation, first);
    // The same value on another host: an agent cannot confirm a guess of it.
    assert_ne!(other.resolve(&desired, true).request.generation, first);
    host.secret("a", "changed");
    assert_ne!(host.resolve(&desired, true).request.generation, first);
    let mut generations: Vec<String> = [
        provision(&[], None),
        provision(&["a"], None),
        provision(&["b"], None),
        provision(&[], script("a")),
        provision(&[], script("b")),
        provision(&[], Some(Userdata::File("a".into()))),
    ]
    .iter()
    .map(|desired| host.resolve(desired, false).request.generation)
    .collect();
    let count = generations.len();
    generations.sort();
    generations.dedup();
    assert_eq!(generations.len(), count);
}

#[test]
fn a_file_that_cannot_be_used_is_named_and_read_again() {
    let host = Host::new();
    let path = host.dir.path().join("userdata.sh");
    let of = |path: PathBuf| provision(&[], Some(Userdata::File(path)));
    let absent = host.resolve(&of(path.clone()), true);
    assert!(absent.problems[0].contains("does not exist"), "{absent:?}");
    assert!(absent.request.userdata_pending);
    for (content, why) in [
        (vec![b'x'; MAX_FILE as usize + 1], "more than"),
        (b"#cloud-config\n".to_vec(), "cloud-config"),
    ] {
        std::fs::write(&path, content).expect("written");
        let refused = host.resolve(&of(path.clone()), true);
        assert!(refused.problems[0].contains(why), "{:?}", refused.problems);
        assert_eq!(refused.request.userdata, None);
    }
    let outside = host.resolve(&of("/etc/shadow".into()), true);
    assert!(outside.problems[0].contains("`images`"), "{outside:?}");
    std::fs::write(&path, "#!/bin/sh\n").expect("written");
    let read = host.resolve(&of(path.clone()), true);
    assert_eq!(read.problems, [""; 0]);
    assert_eq!(read.request.userdata, Some(STANDARD.encode("#!/bin/sh\n")));
    assert_ne!(read.request.generation, absent.request.generation);
    // It is not needed any more.
    std::fs::remove_file(&path).expect("removed");
    let later = host.resolve(&of(path), false);
    assert_eq!(
        (later.problems.len(), later.request.generation),
        (0, read.request.generation)
    );
}

#[test]
fn the_condition_is_one_sentence() {
    use UserdataState::{Failed, None as Never, Pending, Running, Succeeded};
    let status = |state, exit_code, signal: Option<&str>| UserdataStatus {
        state,
        exit_code,
        signal: signal.map(str::to_owned),
    };
    let missing = || vec!["secret \"a\" does not exist".to_owned()];
    for (problems, userdata, reason, message) in [
        (vec![], status(Never, None, None), Reason::Answering, ""),
        (
            vec![],
            status(Running, None, None),
            Reason::UserdataRunning,
            "answers; userdata running",
        ),
        (
            vec![],
            status(Succeeded, Some(0), None),
            Reason::Answering,
            "answers; userdata succeeded",
        ),
        (
            vec![],
            status(Failed, Some(3), None),
            Reason::UserdataFailed,
            "answers; userdata failed with exit status 3",
        ),
        (
            vec![],
            status(Failed, Some(137), Some("SIGKILL")),
            Reason::UserdataFailed,
            "answers; userdata was ended by SIGKILL",
        ),
        (
            vec![],
            status(Failed, None, None),
            Reason::UserdataFailed,
            "answers; userdata was interrupted, and is not run again",
        ),
        (
            missing(),
            status(Pending, None, None),
            Reason::NotProvisioned,
            "answers; secret \"a\" does not exist",
        ),
        (
            missing(),
            status(Failed, Some(1), None),
            Reason::UserdataFailed,
            "answers; secret \"a\" does not exist; userdata failed with exit status 1",
        ),
    ] {
        let outcome = Outcome {
            problems,
            userdata,
            ..Outcome::default()
        };
        let expected = (Status::True, reason, message.to_owned());
        assert_eq!(outcome.condition(), expected);
    }
}

#[test]
fn the_end_of_userdata_is_an_event_once_if_a_state_before_it_was_known() {
    use UserdataState::{Failed, None, Pending, Running, Succeeded};
    // The state before and after each request, and whether it causes an event.
    let table: [&[(UserdataState, UserdataState, bool)]; 6] = [
        &[
            (None, Running, false),
            (Running, Running, false),
            (Succeeded, Succeeded, true),
        ],
        // The interpreter does not exist: it ends with the request that starts it.
        &[(None, Failed, true), (Failed, Failed, false)],
        &[
            (Pending, Running, false),
            (Failed, Failed, true),
            (Failed, Failed, false),
        ],
        // It ended before the daemon started.
        &[(Succeeded, Succeeded, false), (Succeeded, Succeeded, false)],
        &[(None, None, false), (None, None, false)],
        // The guest starts again from its image, and runs it again.
        &[
            (Succeeded, Succeeded, false),
            (None, Running, false),
            (Succeeded, Succeeded, true),
        ],
    ];
    for requests in table {
        let mut is_open = false;
        for (userdata_before, state, expected) in requests {
            let outcome = Outcome {
                userdata_before: *userdata_before,
                userdata: UserdataStatus {
                    state: *state,
                    ..UserdataStatus::default()
                },
                ..Outcome::default()
            };
            let event = outcome.userdata_event(&mut is_open);
            assert_eq!(event.is_some(), *expected, "{requests:?}");
        }
    }
}
