//! Whose a process is: what a VMM is known by, and what nobody can pretend.
//! Out of scope: under the real daemon (`tests/e2e/identity.rs`).

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use slicectl::api::vm::Hypervisor;
use slicectl::host::process::{self, Identity, ProcessState};
use slicectl::reconcile::OnHost;
use slicectl::reconcile::vmm::{Desired, LABEL_VAR, RUN_DIR_VAR, Vmm};

use crate::fixture::{converge, eventually};
use crate::real::{As, Place, ended, place};

/// `nobody`.
const STRANGER: u32 = 65534;

/// Everything that a VMM tells of itself in its own memory.
struct ReportedIdentity {
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

fn reported(identity: &Identity) -> ReportedIdentity {
    let env = |name: &str| {
        let value = process::env_var(identity.pid, name).unwrap();
        (name.to_owned(), value.unwrap())
    };
    ReportedIdentity {
        argv: process::argv(identity.pid).unwrap(),
        env: ["PATH", "SLICE_MOUNTS", LABEL_VAR, RUN_DIR_VAR]
            .map(env)
            .into(),
    }
}

/// A process that says all that a VMM says, and does nothing; killed when dropped.
struct Forger(Child);

impl Forger {
    /// `before` are words in front of the forged command: who it runs as, and where.
    fn start(before: &[String], reported: &ReportedIdentity) -> Self {
        let (first, rest) = reported.argv.split_first().unwrap();
        // A shell keeps the words that it is started with; it waits for a child that says less.
        let script = "while :; do /bin/busybox sleep 600; done";
        let mut command = match before.split_first() {
            None => Command::new("bash"),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg("bash");
                command
            }
        };
        let exec = format!("exec -a \"$0\" bash -c '{script}' \"$@\"");
        command.args(["-c", &exec, first]).args(rest);
        Self::run(command.env_clear().envs(reported.env.iter().cloned()))
    }

    fn run(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(150));
        Self(child)
    }

    fn is_alive(&mut self) -> bool {
        // Whoever has killed it may have reaped it, too.
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn as_user(user: u32) -> Vec<String> {
    words(&format!(
        "setpriv --reuid {user} --regid {user} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    ))
}

/// In the namespaces of a VMM, as a guest that has broken out of it.
fn within(identity: &Identity, user: u32) -> Vec<String> {
    let enter = words(&format!("nsenter --target {} --mount --net", identity.pid));
    [enter, as_user(user)].concat()
}

fn user(desired: &Desired) -> u32 {
    desired.confined.as_ref().unwrap().user
}

async fn found(desired: &Desired, users: &[(u32, &Desired)]) -> Vec<u32> {
    let stage = Vmm::default();
    let users = users.iter().map(|(user, vm)| (*user, vm.uid));
    stage.set_users(HashMap::from_iter(users));
    stage.claimed(&desired.label.instance).await.unwrap();
    let observed = stage.observe(desired).await.unwrap();
    let pids = observed.running.iter();
    pids.map(|running| running.process.resource().pid).collect()
}

/// Removes the VM with its record lost, as a daemon would that knows of nothing else.
async fn remove_unrecorded(desired: &Desired, users: &[(u32, &Desired)]) {
    let stage = Vmm::default();
    let users = users.iter().map(|(user, vm)| (*user, vm.uid));
    stage.set_users(HashMap::from_iter(users));
    stage.claimed(&desired.label.instance).await.unwrap();
    let nothing = Desired {
        launch: None,
        ..desired.clone()
    };
    converge(&stage, &nothing).await;
}

fn kill(identity: &Identity) {
    crate::processes::kill(identity);
}

struct Two {
    a: Place,
    b: Place,
    desired: Desired,
    other: Desired,
    first: Identity,
    second: Identity,
}

/// Two VMMs of one daemon, with users of their own.
async fn two() -> Two {
    let a = place(Hypervisor::Firecracker, As::Itself).await;
    let b = place(Hypervisor::Firecracker, As::Itself).await;
    let (desired, mut other) = (a.desired(|_, _| {}), b.desired(|_, _| {}));
    let name = "web-2".parse().unwrap();
    other.label = desired.label.instance.vm_label(&name, other.uid);
    let (first, second) = (a.boot(&desired).await, b.boot(&other).await);
    Two {
        a,
        b,
        desired,
        other,
        first,
        second,
    }
}

/// The VM's VMM is gone and its record is lost: whoever pretends to be it now is believed if anybody ever is.
#[tokio::test]
async fn no_process_is_identified_as_a_vmm_by_its_own_claims() {
    let two = two().await;
    let (desired, other) = (&two.desired, &two.other);
    let (a, b) = (user(desired), user(other));
    let reported = reported(&two.first);
    kill(&two.first);
    std::fs::remove_file(desired.record()).unwrap();
    let stranger_with_a_root_called_like_ours = |user: u32| {
        let marks: Vec<String> = reported.env[1..]
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        let script = format!(
            "mount -t tmpfs '{}' /tmp && cp /bin/busybox /tmp/sleep && exec chroot /tmp /sleep 600",
            marks.join("\n")
        );
        let unshare = words("unshare --user --map-root-user --mount sh -c");
        [as_user(user), unshare, vec![script]].concat()
    };
    let cases: [(&str, Vec<String>); 8] = [
        ("a stranger", as_user(STRANGER)),
        ("an ordinary user", as_user(1000)),
        (
            "a user out of the range that is nobody's",
            as_user(2_080_374_000),
        ),
        ("root", Vec::new()),
        (
            "root in the VM's network",
            words(&format!("nsenter --net={}", two.a.netns().display())),
        ),
        ("the VMM of another VM", within(&two.second, b)),
        (
            "its user in its network alone",
            [
                words(&format!("nsenter --net={}", two.b.netns().display())),
                as_user(b),
            ]
            .concat(),
        ),
        (
            "root within another VM's VMM",
            words(&format!(
                "nsenter --target {} --mount --net",
                two.second.pid
            )),
        ),
    ];
    let known = [(a, desired), (b, other)];
    let mut tried = 0;
    for (who, before) in cases {
        let mut forger = Forger::start(&before, &reported);
        assert!(forger.is_alive(), "{who}");
        assert_eq!(
            process::argv(forger.0.id()).unwrap(),
            identity_as_a_script(&reported),
            "{who}"
        );
        for users in [&known[..], &[]] {
            assert_eq!(found(desired, users).await, Vec::<u32>::new(), "{who}");
            remove_unrecorded(desired, users).await;
            assert!(forger.is_alive(), "{who} was killed as the VM's VMM");
            tried += 1;
        }
    }
    for (who, user) in [("a stranger", STRANGER), ("another VM's user", b)] {
        let before = stranger_with_a_root_called_like_ours(user);
        let mut command = Command::new(&before[0]);
        command
            .args(&before[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut forger = Forger::run(&mut command);
        assert!(forger.is_alive(), "{who} makes no user namespace");
        let mountinfo = format!("/proc/{}/mountinfo", forger.0.id());
        let is_within = || {
            let mounts = std::fs::read_to_string(&mountinfo).unwrap_or_default();
            mounts.lines().count() == 1 && mounts.contains(LABEL_VAR)
        };
        assert!(eventually(Duration::from_secs(10), is_within), "{who}");
        assert_eq!(found(desired, &known).await, Vec::<u32>::new(), "{who}");
        remove_unrecorded(desired, &known).await;
        assert!(forger.is_alive(), "{who}");
        tried += 1;
    }
    assert_eq!(tried, 18);
    // The other VM is as it was through all of it.
    assert_eq!(found(other, &known).await, [two.second.pid]);
    assert_eq!(ended(&two.second), None);
    two.b.clear(two.other).await;
}

fn identity_as_a_script(reported: &ReportedIdentity) -> Vec<String> {
    let script = "while :; do /bin/busybox sleep 600; done";
    let [first, rest @ ..] = reported.argv.as_slice() else {
        panic!("no words")
    };
    [&[first.clone(), "-c".into(), script.into()], rest].concat()
}

/// What runs beside a forger is found, and it alone.
#[tokio::test]
async fn a_vmm_without_its_record_is_distinguished_from_its_copies() {
    let two = two().await;
    let (desired, other) = (&two.desired, &two.other);
    let reported = reported(&two.first);
    std::fs::remove_file(desired.record()).unwrap();
    let mut forgers = [
        Forger::start(&as_user(STRANGER), &reported),
        Forger::start(&[], &reported),
        Forger::start(&within(&two.second, user(other)), &reported),
    ];
    let known = [(user(desired), desired), (user(other), other)];
    for users in [&known[..], &[]] {
        assert_eq!(found(desired, users).await, [two.first.pid]);
    }
    // What it starts itself is its own, and no second VMM.
    let mut helper = Forger::start(&within(&two.first, user(desired)), &reported);
    let child_of_it = found(desired, &known).await;
    assert!(child_of_it.contains(&two.first.pid), "{child_of_it:?}");
    remove_unrecorded(desired, &known).await;
    assert!(ended(&two.first).is_some());
    let end = Instant::now() + Duration::from_secs(20);
    while helper.is_alive() {
        assert!(Instant::now() < end, "it does not end with its VMM");
        std::thread::sleep(Duration::from_millis(10));
    }
    for (at, forger) in forgers.iter_mut().enumerate() {
        assert!(forger.is_alive(), "{at}");
    }
    assert_eq!(ended(&two.second), None);
    two.b.clear(two.other).await;
}

/// A process that has changed whatever it can of itself is stopped with its VM all the same, with its record or without.
#[tokio::test]
async fn a_vmm_cannot_hide_by_becoming_something_else() {
    for recorded in [true, false] {
        let place = place(Hypervisor::Firecracker, As::Itself).await;
        let desired = place.desired(|_, _| {});
        let identity = place.boot(&desired).await;
        let dir = desired.dir.display();
        // As after an exec of a guest that has broken out: other words, no environment.
        kill(&identity);
        let script = "exec -a innocent sh -c 'while :; do sleep 600; done'";
        let mut want = desired.clone();
        let launch = want.launch.as_mut().unwrap();
        launch.argv = [
            "/bin/bash",
            "-c",
            &format!("exec env -i PATH=/bin:/usr/bin bash -c \"{script}\""),
        ]
        .map(str::to_owned)
        .into();
        let stage = crate::fixture::stage(&[]);
        let action = slicectl::reconcile::vmm::Action::Launch { after: None };
        stage.act(&want, &action).await.unwrap();
        let running = stage.observe(&want).await.unwrap();
        let changed = running.process().expect("it is the VM's").clone();
        assert!(
            eventually(Duration::from_secs(5), || {
                process::argv(changed.pid)
                    .unwrap()
                    .first()
                    .is_some_and(|word| word == "innocent")
            }),
            "{dir}"
        );
        assert_eq!(process::env_var(changed.pid, LABEL_VAR).unwrap(), None);
        if !recorded {
            std::fs::remove_file(desired.record()).unwrap();
        }
        assert_eq!(
            found(&desired, &[]).await,
            [changed.pid],
            "recorded: {recorded}"
        );
        remove_unrecorded(&desired, &[]).await;
        assert!(ended(&changed).is_some(), "recorded: {recorded}");
    }
}

/// A record is believed if only root can have written it, and of the very process that it names.
#[tokio::test]
async fn a_record_of_somebody_elses_making_is_none() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let place = place(Hypervisor::Firecracker, As::Itself).await;
    let desired = place.desired(|_, _| {});
    let identity = place.boot(&desired).await;
    let mut innocent = Command::new("sleep").arg("600").spawn().unwrap();
    let victim = Identity::of(innocent.id()).unwrap().unwrap();
    let record = desired.record();
    let text = std::fs::read(&record).unwrap();
    type Change<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: [(&str, Change<'_>); 5] = [
        (
            "another user's",
            Box::new(|path| chown(path, Some(STRANGER), None).unwrap()),
        ),
        (
            "to be written by all",
            Box::new(|path| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
            }),
        ),
        (
            "a link",
            Box::new(|path| {
                let real = path.with_file_name("real");
                std::fs::rename(path, &real).unwrap();
                std::os::unix::fs::symlink(&real, path).unwrap();
            }),
        ),
        (
            "a second name",
            Box::new(|path| std::fs::hard_link(path, path.with_file_name("second")).unwrap()),
        ),
        (
            "a pipe",
            Box::new(|path| {
                std::fs::remove_file(path).unwrap();
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            }),
        ),
    ];
    for (what, change) in cases {
        process::write_record(&record, &victim).unwrap();
        change(&record);
        let looked = tokio::time::timeout(Duration::from_secs(5), found(&desired, &[])).await;
        assert_eq!(looked.expect("no wait"), [identity.pid], "{what}");
        assert!(innocent.try_wait().unwrap().is_none(), "{what}");
        for name in ["process", "real", "second"] {
            let _ = std::fs::remove_file(record.with_file_name(name));
        }
    }
    // A pid that has come to mean another process.
    for stale in [
        Identity {
            start: victim.start - 1,
            ..victim.clone()
        },
        Identity {
            boot: "another".into(),
            ..victim.clone()
        },
    ] {
        process::write_record(&record, &stale).unwrap();
        assert!(!found(&desired, &[]).await.contains(&victim.pid));
    }
    std::fs::write(&record, text).unwrap();
    assert_eq!(found(&desired, &[]).await, [identity.pid]);
    place.clear(desired).await;
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert!(matches!(
        process::open(&identity).unwrap(),
        ProcessState::Ended(_)
    ));
}
