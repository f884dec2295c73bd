//! A namespace of one's own, a label of one's own, patience.
//! Out of scope: assertions.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use slicectl::api::meta::{Name, Uid};
use slicectl::host::process::{self, ProcessState};
use slicectl::owner::{Instance, Label};
use slicectl::reconcile::vmm::{Desired, Observed, Vmm};
use slicectl::reconcile::{OnHost, Reconcile, Wait};
use slicectl::vmm::FileAccess;
use slicectl::vmm::Launch;

/// A network namespace that lives in a thread of ours, and dies with this value and the processes in it.
pub struct PrivateNet {
    commands: Sender<Vec<String>>,
    results: Receiver<bool>,
    pub path: PathBuf,
}

impl PrivateNet {
    pub fn new() -> Self {
        let (commands, inbox) = channel::<Vec<String>>();
        let (outbox, results) = channel();
        let (ready, path) = channel();
        std::thread::spawn(move || {
            // SAFETY of the machine: everything below happens in a namespace of this thread.
            #[allow(deprecated)]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)
                .expect("these tests need root, or a user namespace in which they are root");
            let tid = rustix::thread::gettid().as_raw_nonzero();
            let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            ready.send(PathBuf::from(path)).unwrap();
            for words in inbox {
                let done = Command::new(&words[0]).args(&words[1..]).status();
                outbox
                    .send(done.is_ok_and(|status| status.success()))
                    .unwrap();
            }
        });
        let path = path.recv().expect("a network namespace");
        let net = Self {
            commands,
            results,
            path,
        };
        net.run("ip link set lo up");
        net
    }

    /// Runs a command in the namespace; panics if it fails.
    pub fn run(&self, line: &str) {
        assert!(self.succeeds(line), "`{line}` failed");
    }

    /// Runs a command in the namespace.
    pub fn succeeds(&self, line: &str) -> bool {
        self.commands
            .send(line.split(' ').map(str::to_owned).collect())
            .unwrap();
        self.results.recv().unwrap()
    }

    /// `tap0` with the gateway's address.
    pub fn add_tap(&self, address: &str) {
        self.run("ip tuntap add dev tap0 mode tap");
        self.run(&format!("ip addr add {address} dev tap0"));
        self.run("ip link set tap0 up");
    }
}

/// A VM that nobody else has.
pub fn some_vm(dir: &Path, want: Option<Launch>) -> Desired {
    let uid = Uid::random();
    let name: Name = "web-1".parse().unwrap();
    let label: Label = Instance::of(dir).vm_label(&name, uid);
    Desired {
        label,
        uid,
        dir: dir.join("vm"),
        launch: want,
        disks: Vec::new(),
        confined: None,
        grace: Default::default(),
        forced: false,
        left: Default::default(),
        guest: Default::default(),
        evaluated_exits: Default::default(),
    }
}

/// Observe, plan, act, until the plan is empty; returns what was seen last, and the steps taken. What comes by itself is waited for.
pub async fn converge(stage: &Vmm, desired: &Desired) -> (Observed, Vec<String>) {
    let mut steps = Vec::new();
    for _ in 0..6 {
        let observed = stage.observe(desired).await.unwrap();
        let plan = Vmm::plan(desired, &observed).unwrap();
        if plan.is_empty() {
            return (observed, steps);
        }
        for (at, action) in plan.into_iter().enumerate() {
            match Vmm::waits_for(&action) {
                None => {}
                Some(_) if at > 0 => break,
                Some(Wait::Exit(process, left)) => {
                    if let ProcessState::Alive(process) = process::open(&process).unwrap() {
                        let _ = tokio::time::timeout(left, process.ended()).await;
                    }
                    break;
                }
                Some(Wait::Evaluation) => panic!("nobody judges here"),
            }
            steps.push(action.to_string());
            stage
                .act(desired, &action)
                .await
                .unwrap_or_else(|error| panic!("{action}: {error}"));
        }
    }
    panic!("not converging: {steps:?}");
}

/// Waits until `done`, at most `limit`; whether it came.
pub fn eventually(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}

/// What is mounted from now on goes with this thread, and with those that it has started since.
pub fn leave_the_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    thread_local!(static LEFT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if LEFT.replace(true) {
        return;
    }
    // SAFETY of the machine: it is a copy of its mounts that is changed, and only this thread's.
    #[allow(deprecated)]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).expect("these tests need root");
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).unwrap();
}

/// Where these tests have programs and images: the system's, and those in their own directories.
pub fn places(dirs: &[&Path]) -> FileAccess {
    let own = dirs.iter().map(|dir| dir.to_path_buf());
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let named = [
        "SLICE_TEST_QEMU",
        "SLICE_TEST_FIRECRACKER",
        "SLICE_TEST_JAILER",
        "SLICE_TEST_CLOUD_HYPERVISOR",
    ];
    let named = named.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let named = named.filter_map(|program| program.parent().map(Path::to_owned));
    let mut places = FileAccess::default();
    places
        .allowed
        .programs
        .extend(own.clone().chain(named).chain([tmp.clone()]));
    places.allowed.images.extend(own.chain([tmp]));
    places.sliced = env!("CARGO_BIN_EXE_sliced").into();
    places
}

/// The stage, with those.
pub fn stage(dirs: &[&Path]) -> Vmm {
    Vmm::new(places(dirs))
}
