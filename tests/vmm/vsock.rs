//! The vsock device of QEMU with a Linux guest: connections through the back end, how it is confined, and how it ends.
//! Out of scope: the daemon (`tests/e2e/vsock.rs`); single packets (`src/vsock`).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use slicectl::api::life::MachineType;
use slicectl::api::vm::Hypervisor;
use slicectl::host::process::{self, Identity, ProcessState, StopSignal};
use slicectl::reconcile::vmm::{BackEndState, CONSOLE, Confined, Desired, Vmm};
use slicectl::vmm::{Accel, Access, Control, Disk, Machine, Programs, VSOCK, recipe};

use crate::fixture::{PrivateNet, converge, eventually, leave_the_mounts, places, some_vm};
use crate::guest;

/// Generous: on a busy machine a guest without KVM takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
const ECHO: u32 = 7000;
const COUNT: u32 = 7001;
const ATTEMPT: u32 = 7002;

/// A guest with servers on vsock ports, which has booted.
struct Guest {
    _net: PrivateNet,
    _dir: tempfile::TempDir,
    stage: Vmm,
    desired: Desired,
    vmm: Identity,
}

async fn boot(machine: MachineType) -> Guest {
    static USERS: AtomicU32 = AtomicU32::new(0);
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    net.add_tap("169.254.100.1/30");
    leave_the_mounts();
    let initrd = dir.path().join("initrd");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/vsock/build.sh");
    let built = Command::new(script)
        .arg(guest::guest_dir().join("initrd"))
        .arg(&initrd)
        .status();
    assert!(built.unwrap().success());
    let kernel = dir.path().join("vmlinuz");
    std::fs::copy(guest::guest_dir().join("vmlinuz"), &kernel).unwrap();
    let places = places(&[dir.path()]);
    let programs = Programs::new(places.clone());
    let qemu = programs.get(Hypervisor::Qemu, None).await.unwrap();
    let mut desired = some_vm(dir.path(), None);
    let mut spec = guest::spec(Some(initrd));
    spec.kernel_file = Some(kernel);
    spec.lifecycle.machine = machine;
    let tcg = Machine {
        accel: Accel::Tcg,
        tsc_khz: Some(2_000_000),
    };
    desired.launch = recipe(&spec, &guest::slot(&desired.dir, &net), &qemu, &tcg).unwrap();
    let read = |path: &PathBuf| Disk {
        path: path.clone(),
        access: Access::ReadOnly,
    };
    let start = 2_020_000_000 + std::process::id() % 1_000_000 * 100;
    desired.confined = Some(Confined {
        user: start + USERS.fetch_add(1, Ordering::Relaxed),
        vcpu: 1,
        ram_bytes: spec.ram_bytes,
        injected: None,
        files: spec
            .kernel_file
            .iter()
            .chain(&spec.initrd_file)
            .map(read)
            .collect(),
    });
    let stage = Vmm::new(places);
    let (running, _) = converge(&stage, &desired).await;
    let guest = Guest {
        vmm: running.process().unwrap().clone(),
        _net: net,
        _dir: dir,
        stage,
        desired,
    };
    guest.await_output("GUEST vsock ready");
    guest
}

impl Guest {
    #[track_caller]
    fn await_output(&self, words: &str) {
        let output = || std::fs::read_to_string(self.desired.dir.join(CONSOLE)).unwrap_or_default();
        assert!(
            eventually(PATIENCE, || output().contains(words)),
            "no {words:?} in {}",
            output()
        );
    }

    fn back_end(&self) -> Identity {
        match BackEndState::of(&self.desired.dir).unwrap() {
            BackEndState::Running(identity) => identity,
            other => panic!("{other:?}"),
        }
    }

    /// A connection to this port; `None`: it is closed without a reply.
    fn connect(&self, port: u32) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.desired.dir.join(VSOCK)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let mut reply = Vec::new();
        while !reply.ends_with(b"\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                assert!(reply.is_empty(), "{reply:?}");
                return None;
            }
            reply.push(byte[0]);
        }
        assert!(reply.starts_with(b"OK "), "{reply:?}");
        Some(stream)
    }

    fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.back_end().pid);
        std::fs::read_dir(path).unwrap().count()
    }

    async fn clear(self) {
        let nothing = Desired {
            launch: None,
            ..self.desired.clone()
        };
        converge(&self.stage, &nothing).await;
        let parent = nothing.dir.parent().unwrap();
        assert!(!nothing.dir.exists());
        let left = std::fs::read_dir(parent).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        let left: Vec<_> = left
            .iter()
            .filter(|name| *name == "vsock-process")
            .collect();
        assert!(left.is_empty());
    }
}

impl Drop for Guest {
    /// A test that fails leaves no process behind.
    fn drop(&mut self) {
        let back_end = match BackEndState::of(&self.desired.dir) {
            Ok(BackEndState::Running(identity)) => Some(identity),
            _ => None,
        };
        for identity in back_end.iter().chain([&self.vmm]) {
            kill(identity);
        }
    }
}

fn kill(identity: &Identity) {
    if let Ok(ProcessState::Alive(process)) = process::open(identity) {
        process.stop(StopSignal::Kill).unwrap();
    }
}

fn is_alive(identity: &Identity) -> bool {
    matches!(process::open(identity), Ok(ProcessState::Alive(_)))
}

/// Bytes that are not the same everywhere.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

async fn all_kinds_of_connections(machine: MachineType) {
    let guest = boot(machine).await;
    let at_rest = guest.open_files();
    // 10 MB in both directions at once; the end of one direction does not end the other.
    let stream = guest.connect(ECHO).unwrap();
    let sent = bytes(10 << 20);
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        received
    });
    assert!(received == sent, "{} of {}", received.len(), sent.len());

    // The guest ends its direction first.
    let mut stream = guest.connect(COUNT).unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "hello");
    stream.write_all(&bytes(300_000)).unwrap();
    drop(stream);
    guest.await_output("GUEST vsock counted 300000");

    // Many at once, and each its own.
    let mut streams: Vec<UnixStream> = (0..500).map(|_| guest.connect(ECHO).unwrap()).collect();
    for (at, stream) in streams.iter_mut().enumerate() {
        write!(stream, "{at:>8}").unwrap();
    }
    for (at, stream) in streams.iter_mut().enumerate() {
        let mut echo = [0; 8];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(std::str::from_utf8(&echo).unwrap().trim(), at.to_string());
    }
    drop(streams);
    assert!(eventually(PATIENCE, || guest.open_files() == at_rest));

    // A pause stops the queues, and neither QEMU nor the connection.
    let mut stream = guest.connect(ECHO).unwrap();
    let (dir, pid) = (&guest.desired.dir, guest.vmm.pid);
    for _ in 0..3 {
        Control::Qmp.pause(dir, pid).await.unwrap();
        stream.write_all(b"before").unwrap();
        Control::Qmp.resume(dir, pid).await.unwrap();
        let mut echo = [0; 6];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"before");
    }
    drop(stream);

    assert!(guest.connect(9).is_none(), "nobody listens");
    assert!(eventually(PATIENCE, || guest.open_files() == at_rest));
    guest.clear().await;
}

#[tokio::test]
async fn connections_to_a_guest_on_a_microvm_carry_every_byte_in_both_directions() {
    all_kinds_of_connections(MachineType::Microvm).await;
}

#[tokio::test]
async fn connections_to_a_guest_on_a_q35_carry_every_byte_in_both_directions() {
    all_kinds_of_connections(MachineType::Q35).await;
}

/// In kB.
fn memory(identity: &Identity) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", identity.pid)).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let field = line.unwrap().trim().trim_end_matches(" kB");
    field.parse().unwrap()
}

#[tokio::test]
async fn connections_that_a_guest_opens_are_refused_and_cost_nothing() {
    let guest = boot(MachineType::Microvm).await;
    let mut stream = guest.connect(ATTEMPT).unwrap();
    let (files, before) = (guest.open_files(), memory(&guest.back_end()));
    stream.write_all(b"10000\n").unwrap();
    let mut result = String::new();
    stream.read_to_string(&mut result).unwrap();
    assert_eq!(result, "refused 10000 other 0\n");
    let after = memory(&guest.back_end());
    assert!(after <= before + 512, "{before} kB, {after} kB");
    assert!(after < 10_000, "{after} kB");
    assert!(guest.open_files() <= files);
    guest.clear().await;
}

/// The lines of `status` about the privileges of a process.
fn privileges(identity: &Identity) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", identity.pid)).unwrap();
    let kept = [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp:",
    ];
    let lines = status.lines();
    let lines = lines.filter(|line| kept.iter().any(|name| line.starts_with(name)));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_back_end_is_confined_as_its_vmm_is() {
    let guest = boot(MachineType::Microvm).await;
    let (vmm, back_end) = (&guest.vmm, &guest.back_end());
    assert_eq!(privileges(vmm), privileges(back_end));
    let user = guest.desired.confined.as_ref().unwrap().user.to_string();
    let expected = format!("Uid:\t{}", vec![user; 4].join("\t"));
    assert!(privileges(back_end).contains(&expected));
    assert!(privileges(back_end).contains(&"CapEff:\t0000000000000000".to_owned()));
    assert!(privileges(back_end).contains(&"NoNewPrivs:\t1".to_owned()));
    let read = |identity: &Identity, name: &str| {
        let path = format!("/proc/{}/{name}", identity.pid);
        std::fs::read_to_string(path).unwrap()
    };
    assert_eq!(read(vmm, "cgroup"), read(back_end, "cgroup"));
    let namespace = |identity: &Identity, kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", identity.pid);
        std::fs::read_link(path).unwrap()
    };
    let limit = |identity: &Identity| {
        let limits = read(identity, "limits");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max file size"));
        line.map(str::to_owned).unwrap()
    };
    assert_eq!(limit(vmm), limit(back_end), "that of the log");
    for kind in ["net", "pid", "ipc", "uts", "user"] {
        assert_eq!(namespace(vmm, kind), namespace(back_end, kind), "{kind}");
    }
    // A mount namespace of its own, in which it sees less: no image, no disk.
    let own = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    assert_ne!(namespace(back_end, "mnt"), own);
    let mounts = read(back_end, "mountinfo");
    assert!(mounts.contains(&guest.desired.dir.display().to_string()));
    assert!(!mounts.contains("vmlinuz") && read(vmm, "mountinfo").contains("vmlinuz"));
    // It is not taken for the VMM, also without a record of the VMM.
    std::fs::remove_file(guest.desired.record()).unwrap();
    let (observed, steps) = converge(&guest.stage, &guest.desired).await;
    assert_eq!(observed.process(), Some(vmm));
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].starts_with("record the running VMM"), "{steps:?}");
    guest.clear().await;
}

#[tokio::test]
async fn the_back_end_ends_with_its_vmm_and_a_new_vmm_has_a_new_one() {
    let mut guest = boot(MachineType::Microvm).await;
    let back_end = guest.back_end();
    kill(&guest.vmm);
    assert!(eventually(PATIENCE, || !is_alive(&back_end)));
    let (running, _) = converge(&guest.stage, &guest.desired).await;
    guest.vmm = running.process().unwrap().clone();
    assert_ne!(guest.back_end(), back_end);
    let reached = || guest.connect(ECHO).is_some();
    assert!(eventually(PATIENCE, reached));
    // One that is stopped on purpose: nothing is left.
    let (vmm, back_end) = (guest.vmm.clone(), guest.back_end());
    guest.clear().await;
    assert!(!is_alive(&vmm) && !is_alive(&back_end));
}

#[tokio::test]
async fn a_guest_survives_the_end_of_its_back_end() {
    let guest = boot(MachineType::Microvm).await;
    let back_end = guest.back_end();
    let mut stream = guest.connect(ECHO).unwrap();
    kill(&back_end);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(eventually(PATIENCE, || !is_alive(&back_end)));
    assert_eq!(
        BackEndState::of(&guest.desired.dir).unwrap(),
        BackEndState::Ended(process::Exit::Signal(9))
    );
    // It is no drift: the VM is not interrupted.
    assert_eq!(
        converge(&guest.stage, &guest.desired).await.1,
        Vec::<String>::new()
    );
    assert!(is_alive(&guest.vmm));
    guest.clear().await;
}
