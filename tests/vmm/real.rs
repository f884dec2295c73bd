//! VMMs with a guest of a few kilobytes: started, asked, held, killed, stopped.
//! Out of scope: their configuration (`recipes`); Linux guests (`guest`); their APIs in detail (`api`).
//!
//! `SLICE_TEST_FIRECRACKER`, `SLICE_TEST_CLOUD_HYPERVISOR` and `SLICE_TEST_QEMU` name real programs; these run the tiny guest of
//! `tests/guest`, under KVM. Where none is named, a double (`tests/double`) stands for the first two; QEMU is the one in `PATH`.
//!
//! All of it twice: as root, and confined, in a mount namespace of the test's own. Firecracker a third time: by its jailer, which
//! `SLICE_TEST_JAILER` names beside the real Firecracker.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use slicectl::api::metrics::Counters;
use slicectl::api::vm::{Hypervisor, VmSpec};
use slicectl::host::process::{self, Exit, Identity, ProcessState, StopSignal};
use slicectl::reconcile::OnHost;
use slicectl::reconcile::vmm::{
    Action, CONSOLE, Confined, Desired, LABEL_VAR, LOG_LIMIT, RUN_DIR_VAR, Vmm, started_as,
};
use slicectl::vmm::{
    Accel, Access, ConfinedBy, Control, Disk, GuestState, METRICS, Machine, Program, Programs,
    Slot, recipe,
};

use crate::fixture::{PrivateNet, converge, eventually, leave_the_mounts, places, some_vm};
use crate::guest;
use test_support::vmm::{double_of, jailed_program, program, tiny_guest};

const PATIENCE: Duration = Duration::from_secs(20);
const GUEST: &str = "172.16.0.2";

/// A VMM, a guest, and a wire between it and us.
pub struct Place {
    net: PrivateNet,
    pub dir: tempfile::TempDir,
    pub program: Program,
    hypervisor: Hypervisor,
    kernel: PathBuf,
    pub stage: Vmm,
    user: Option<u32>,
    pub confined_by: ConfinedBy,
}

/// As whom a VMM runs.
#[derive(Clone, Copy, Debug)]
pub enum As {
    Root,
    Itself,
    /// The same, by Firecracker's jailer.
    Jailed,
}

/// How a VMM may be run.
pub fn ways(hypervisor: Hypervisor) -> &'static [As] {
    match hypervisor {
        Hypervisor::Firecracker => &[As::Root, As::Itself, As::Jailed],
        Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => {
            &[As::Root, As::Itself]
        }
    }
}

impl As {
    /// For one VMM: nobody else has it.
    fn user(self) -> Option<u32> {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        match self {
            Self::Root => None,
            Self::Itself | Self::Jailed => {
                let start = 2_000_000_000 + std::process::id() % 1_000_000 * 100;
                Some(start + GIVEN.fetch_add(1, Ordering::Relaxed))
            }
        }
    }
}

pub async fn place(hypervisor: Hypervisor, who: As) -> Place {
    let net = PrivateNet::new();
    net.add_tap("172.16.0.1/24");
    leave_the_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (program, jailer) = match who {
        As::Root | As::Itself => (program(hypervisor, dir.path()), None),
        As::Jailed => {
            let (program, jailer) = jailed_program(dir.path());
            (Some(program), Some(jailer))
        }
    };
    let places = places(&[dir.path()]);
    let programs = Programs::new(places.clone());
    let program = programs.get(hypervisor, program.as_deref()).await.unwrap();
    let confined_by = match &jailer {
        None => ConfinedBy::default(),
        Some(_) => programs
            .confinement(jailer.as_deref(), &program)
            .await
            .unwrap(),
    };
    Place {
        net,
        dir,
        program,
        confined_by,
        hypervisor,
        kernel: tiny_guest(),
        stage: Vmm::new(places),
        user: who.user(),
    }
}

impl Place {
    pub fn desired(&self, change: impl FnOnce(&mut VmSpec, &mut Slot)) -> Desired {
        let mut desired = some_vm(self.dir.path(), None);
        self.want(&mut desired, change);
        desired
    }

    /// The VM's network namespace.
    pub fn netns(&self) -> &Path {
        &self.net.path
    }

    fn want(&self, desired: &mut Desired, change: impl FnOnce(&mut VmSpec, &mut Slot)) {
        let mut spec = VmSpec {
            hypervisor: self.hypervisor,
            ram_bytes: 64 << 20,
            kernel_file: Some(self.kernel.clone()),
            ..guest::spec(None)
        };
        let mut slot = guest::slot(&desired.dir, &self.net);
        slot.confined_by = self.confined_by.clone();
        slot.connection.ip = GUEST.parse().unwrap();
        slot.connection.prefix_len = 24;
        slot.connection.gateway = Some("172.16.0.1".parse().unwrap());
        change(&mut spec, &mut slot);
        // Translation is everywhere; the others have KVM or nothing.
        let machine = Machine {
            accel: Accel::Tcg,
            tsc_khz: Some(2_000_000),
        };
        desired.launch = recipe(&spec, &slot, &self.program, &machine).unwrap();
        let read = |path: &PathBuf| Disk {
            path: path.clone(),
            access: Access::ReadOnly,
        };
        let boot = spec.kernel_file.iter().map(read);
        desired.confined = self.user.map(|user| Confined {
            user,
            vcpu: spec.vcpu,
            ram_bytes: spec.ram_bytes,
            injected: None,
            files: boot.chain(slot.disks.iter().cloned()).collect(),
        });
        desired.disks = slot.disks;
    }

    fn control(&self) -> Control {
        Control::of(self.hypervisor).unwrap()
    }

    fn pings(&self) -> bool {
        // Too short for a time stamp: what a guest reads in it is always the same.
        self.net
            .succeeds(&format!("ping -q -c 1 -W 1 -s 8 -p 00 {GUEST}"))
    }

    fn assert_answers(&self, desired: &Desired) {
        assert!(
            eventually(PATIENCE, || self.pings()),
            "the guest does not answer: {}",
            console(desired)
        );
    }

    pub async fn boot(&self, desired: &Desired) -> Identity {
        let (running, steps) = converge(&self.stage, desired).await;
        assert_eq!(steps, ["create the run directory", "start the VMM"]);
        self.assert_answers(desired);
        running.process().unwrap().clone()
    }

    /// As its own user it has nothing: no capability, no other group, and whatever seccomp it was built with is on.
    fn assert_runs_as_it_should(&self, pid: u32) {
        let Some(user) = self.user else {
            return;
        };
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name}"))
                    .trim()
                    .to_owned()
            };
            assert_eq!(field("Uid:"), vec![user.to_string(); 4].join("\t"));
            assert_eq!(field("Gid:"), vec![user.to_string(); 4].join("\t"));
            assert_eq!(field("Groups:"), "");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            assert_eq!(field("CapBnd:"), self.bounding());
            assert_eq!(field("NoNewPrivs:"), "1");
        }
        let ours = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let its = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_ne!(ours, its);
    }

    /// A jailer leaves what it needed itself, and nothing that could be gained from it.
    fn bounding(&self) -> &str {
        match self.confined_by {
            ConfinedBy::Sliced { .. } => "0000000000000000",
            // CHOWN, DAC_OVERRIDE, SETGID, SETUID, SYS_ADMIN, MKNOD.
            ConfinedBy::Jailer(_) => "00000000082000c3",
        }
    }

    pub async fn ask(&self, desired: &Desired) {
        let observed = self.stage.observe(desired).await.unwrap();
        assert!(observed.running[0].has_control_socket);
        let ask = Action::RequestPowerDown(observed.running[0].process.clone());
        self.stage.act(desired, &ask).await.unwrap();
    }

    pub async fn clear(&self, desired: Desired) -> Vec<String> {
        let nothing = Desired {
            launch: None,
            ..desired
        };
        let steps = converge(&self.stage, &nothing).await.1;
        assert!(!nothing.dir.exists(), "left: {:?}", names(&nothing.dir));
        steps
    }
}

impl Drop for Place {
    /// A test that fails leaves no VMM behind.
    fn drop(&mut self) {
        for found in process::find(LABEL_VAR).unwrap_or_default() {
            let dir = process::env_var(found.identity.pid, RUN_DIR_VAR);
            let ours = matches!(&dir, Ok(Some(dir)) if Path::new(dir).starts_with(self.dir.path()));
            if ours && let Ok(ProcessState::Alive(process)) = process::open(&found.identity) {
                let _ = process.stop(StopSignal::Kill);
            }
        }
    }
}

pub fn console(desired: &Desired) -> String {
    std::fs::read_to_string(desired.dir.join(CONSOLE)).unwrap_or_default()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

pub fn ended(identity: &Identity) -> Option<Exit> {
    match process::open(identity).unwrap() {
        ProcessState::Ended(exit) => Some(exit),
        ProcessState::Alive(_) => None,
    }
}

pub fn assert_ends(identity: &Identity, exit: Exit) {
    eventually(PATIENCE, || ended(identity).is_some());
    assert_eq!(ended(identity), Some(exit));
}

/// From its birth to its end.
async fn a_life(hypervisor: Hypervisor, who: As) {
    let place = place(hypervisor, who).await;
    let (control, desired) = (place.control(), place.desired(|_, _| {}));
    let identity = place.boot(&desired).await;
    let (dir, pid) = (&desired.dir, identity.pid);
    let rest: Vec<String> = converge(&place.stage, &desired).await.1;
    assert_eq!(rest, Vec::<String>::new(), "it is what was wanted");
    assert_eq!(started_as(dir).unwrap(), Some(place.program.clone()));
    place.assert_runs_as_it_should(pid);

    for _ in 0..2 {
        control.pause(dir, pid).await.unwrap();
        assert_eq!(control.state(dir, pid).await.unwrap(), GuestState::Paused);
        assert!(!place.pings(), "a guest that is held answers nobody");
    }
    for _ in 0..2 {
        control.resume(dir, pid).await.unwrap();
        assert_eq!(control.state(dir, pid).await.unwrap(), GuestState::Running);
    }
    place.assert_answers(&desired);
    let other = control.pause(dir, std::process::id()).await;
    assert!(other.is_err(), "another process is not asked");

    let ProcessState::Alive(alive) = process::open(&identity).unwrap() else {
        panic!("it has ended: {}", console(&desired));
    };
    alive.stop(StopSignal::Kill).unwrap();
    alive.ended().await.unwrap();
    assert!(dir.join(control.socket()).exists(), "left behind");
    assert_eq!(started_as(dir).unwrap(), None);
    let (running, steps) = converge(&place.stage, &desired).await;
    assert_eq!(steps, ["start the VMM again: it was killed by SIGKILL"]);
    assert_ne!(running.process().unwrap(), &identity);
    place.assert_answers(&desired);

    let before = running.process().unwrap().clone();
    let mut other = desired.clone();
    place.want(&mut other, |spec, _| {
        spec.lifecycle.cmdline = Some("another=word".to_owned());
    });
    let (running, _) = converge(&place.stage, &other).await;
    assert_ne!(running.process().unwrap(), &before, "its words are others");
    place.assert_answers(&other);
    place.clear(other).await;
}

#[tokio::test]
async fn firecracker_is_started_held_killed_started_again_and_stopped() {
    for who in ways(Hypervisor::Firecracker) {
        a_life(Hypervisor::Firecracker, *who).await;
    }
}

#[tokio::test]
async fn cloud_hypervisor_is_started_held_killed_started_again_and_stopped() {
    for who in ways(Hypervisor::CloudHypervisor) {
        a_life(Hypervisor::CloudHypervisor, *who).await;
    }
}

#[tokio::test]
async fn qemu_is_started_held_killed_started_again_and_stopped() {
    for who in ways(Hypervisor::Qemu) {
        a_life(Hypervisor::Qemu, *who).await;
    }
}

/// Counters of that name, of whatever part.
fn counted(counters: &Counters, name: &str) -> u64 {
    let of = |(key, count): (&String, &serde_json::Number)| {
        let (_, last) = key.rsplit_once('.')?;
        (last == name).then(|| count.as_u64())?
    };
    counters.iter().filter_map(of).max().unwrap_or_default()
}

/// What it counts is what has happened, also while its guest is held, and when nobody has asked for long.
async fn counts(hypervisor: Hypervisor, who: As, name: &str) {
    let place = place(hypervisor, who).await;
    let (control, desired) = (place.control(), place.desired(|_, _| {}));
    let identity = place.boot(&desired).await;
    let (dir, pid) = (&desired.dir, identity.pid);
    let first = control.metrics(dir, pid).await.unwrap();
    assert!(counted(&first, name) > 0, "{first:?}");
    assert!(place.pings());
    control.pause(dir, pid).await.unwrap();
    let second = control.metrics(dir, pid).await.unwrap();
    assert!(counted(&second, name) > 0, "{second:?}");
    control.resume(dir, pid).await.unwrap();
    assert!(control.metrics(dir, std::process::id()).await.is_err());
    // What it warns of stands in nobody's way to the guest's words.
    assert!(
        !console(&desired).contains("purious"),
        "{}",
        console(&desired)
    );
    if hypervisor == Hypervisor::Firecracker {
        assert!(
            flush(&desired, 400).contains("400"),
            "its pipe is never full"
        );
        place.assert_answers(&desired);
        let third = control.metrics(dir, pid).await.unwrap();
        assert!(third.contains_key("net_eth0.tx_packets_count"), "{third:?}");
        assert!(place.pings());
        let fourth = control.metrics(dir, pid).await.unwrap();
        assert!(counted(&fourth, name) > 0, "{fourth:?}");
        // What is no pipe is not read.
        std::fs::remove_file(dir.join(METRICS)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join(METRICS)).unwrap();
        assert!(control.metrics(dir, pid).await.is_err());
    }
    place.clear(desired).await;
}

/// Lets it write its metrics, and reads none, so often or until it cannot: its last answer.
fn flush(desired: &Desired, times: u32) -> String {
    let socket = desired.dir.join(Control::Firecracker.socket());
    let mut last = String::new();
    for _ in 0..times {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let body = r#"{"action_type":"FlushMetrics"}"#;
        let head = format!(
            "PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .unwrap();
        let mut answer = [0; 256];
        let length = stream.read(&mut answer).unwrap();
        last = String::from_utf8_lossy(&answer[..length]).into_owned();
        if !last.contains("204") {
            break;
        }
    }
    last
}

#[tokio::test]
async fn firecracker_reports_its_counters_however_late_the_request() {
    for who in ways(Hypervisor::Firecracker) {
        counts(Hypervisor::Firecracker, *who, "tx_packets_count").await;
    }
}

#[tokio::test]
async fn cloud_hypervisor_reports_its_counters() {
    for who in ways(Hypervisor::CloudHypervisor) {
        counts(Hypervisor::CloudHypervisor, *who, "tx_frames").await;
    }
}

#[tokio::test]
async fn qemu_reports_its_counters_of_each_disk() {
    for who in ways(Hypervisor::Qemu) {
        let place = place(Hypervisor::Qemu, *who).await;
        let image = place.dir.path().join("image");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let desired = place.desired(|_, slot| {
            slot.disks = vec![Disk {
                path: image,
                access: Access::ReadWrite,
            }];
        });
        let identity = place.boot(&desired).await;
        let reported = place.control().metrics(&desired.dir, identity.pid).await;
        let reported = reported.unwrap();
        assert!(
            reported
                .keys()
                .any(|name| name.starts_with("block.disk0.") && name.ends_with("rd_bytes")),
            "{reported:?}"
        );
        place.clear(desired).await;
    }
}

/// The guest ends itself, also if it was held when it was asked.
async fn goes_politely(hypervisor: Hypervisor, who: As) {
    let place = place(hypervisor, who).await;
    for held in [false, true] {
        let desired = place.desired(|_, _| {});
        let identity = place.boot(&desired).await;
        if held {
            let control = place.control();
            control.pause(&desired.dir, identity.pid).await.unwrap();
        }
        place.ask(&desired).await;
        assert_ends(&identity, Exit::Code(0));
        let steps = place.clear(desired).await;
        assert_eq!(steps.len(), 2, "nobody to stop: {steps:?}");
    }
}

#[tokio::test]
async fn a_guest_of_firecracker_goes_when_it_is_asked() {
    for who in ways(Hypervisor::Firecracker) {
        goes_politely(Hypervisor::Firecracker, *who).await;
    }
}

#[tokio::test]
async fn a_guest_of_qemu_goes_when_it_is_asked() {
    for who in ways(Hypervisor::Qemu) {
        goes_politely(Hypervisor::Qemu, *who).await;
    }
}

#[tokio::test]
async fn a_guest_of_cloud_hypervisor_goes_when_it_is_asked() {
    for who in ways(Hypervisor::CloudHypervisor) {
        goes_politely(Hypervisor::CloudHypervisor, *who).await;
    }
}

/// A guest that does not listen goes by the next step.
async fn goes_in_the_end(hypervisor: Hypervisor, who: As, exit: Exit) {
    let place = place(hypervisor, who).await;
    let desired = place.desired(|spec, _| spec.lifecycle.cmdline = Some("tiny=deaf".to_owned()));
    let identity = place.boot(&desired).await;
    let control = place.control();
    control
        .power_down(&desired.dir, identity.pid)
        .await
        .unwrap();
    let deaf = || console(&desired).contains("ignores the button");
    assert!(eventually(PATIENCE, deaf), "{}", console(&desired));
    let state = control.state(&desired.dir, identity.pid).await.unwrap();
    assert_eq!(state, GuestState::Running);
    let observed = place.stage.observe(&desired).await.unwrap();
    let terminate = Action::Terminate(observed.running[0].process.clone());
    place.stage.act(&desired, &terminate).await.unwrap();
    assert_eq!(ended(&identity), Some(exit));
    place.clear(desired).await;
}

#[tokio::test]
async fn a_deaf_guest_of_firecracker_is_terminated() {
    for who in ways(Hypervisor::Firecracker) {
        goes_in_the_end(Hypervisor::Firecracker, *who, Exit::Signal(15)).await;
    }
}

#[tokio::test]
async fn a_deaf_guest_of_cloud_hypervisor_is_terminated() {
    for who in ways(Hypervisor::CloudHypervisor) {
        goes_in_the_end(Hypervisor::CloudHypervisor, *who, Exit::Code(0)).await;
    }
}

#[tokio::test]
async fn a_deaf_guest_of_qemu_is_terminated() {
    for who in ways(Hypervisor::Qemu) {
        goes_in_the_end(Hypervisor::Qemu, *who, Exit::Code(0)).await;
    }
}

/// Root disk, data disk, another MTU, no initrd: whatever a recipe can say, the VMM takes.
async fn accepts_every_argument(hypervisor: Hypervisor, who: As) {
    let place = place(hypervisor, who).await;
    let image = |name: &str, length: u64| {
        let path = place.dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(length).unwrap();
        path
    };
    let root = image("root.img", 8 << 20);
    let data = image("data.img", 1 << 20);
    let disk = |path, access| Disk { path, access };
    let disks = vec![disk(root, Access::ReadWrite), disk(data, Access::ReadOnly)];
    let mut desired = place.desired(|spec, slot| {
        slot.connection.mtu = 1400;
        spec.lifecycle.cmdline = Some("loglevel=7".to_owned());
        slot.disks.clone_from(&disks);
    });
    desired.disks = disks;
    place.net.run("ip link set tap0 mtu 1400");
    let identity = place.boot(&desired).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", identity.pid)).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max file size"));
    assert!(line.unwrap().contains(&(8 << 20).to_string()), "{line:?}");
    place.clear(desired).await;
}

#[tokio::test]
async fn firecracker_accepts_every_argument() {
    for who in ways(Hypervisor::Firecracker) {
        accepts_every_argument(Hypervisor::Firecracker, *who).await;
    }
}

#[tokio::test]
async fn cloud_hypervisor_accepts_every_argument() {
    for who in ways(Hypervisor::CloudHypervisor) {
        accepts_every_argument(Hypervisor::CloudHypervisor, *who).await;
    }
}

#[tokio::test]
async fn qemu_accepts_every_argument() {
    for who in ways(Hypervisor::Qemu) {
        accepts_every_argument(Hypervisor::Qemu, *who).await;
    }
}

/// Firecracker handles the signal that a full file sends, and would end itself.
async fn lives_with_a_full_log(hypervisor: Hypervisor, who: As) {
    let place = place(hypervisor, who).await;
    let desired = place.desired(|spec, _| spec.lifecycle.cmdline = Some("tiny=flood".to_owned()));
    let identity = place.boot(&desired).await;
    let log = std::fs::OpenOptions::new()
        .write(true)
        .open(desired.dir.join(CONSOLE));
    // It is never at a loss for words.
    log.unwrap().set_len(LOG_LIMIT).unwrap();
    for _ in 0..3 {
        place.net.run(&format!("ip neigh flush to {GUEST}"));
        place.assert_answers(&desired);
    }
    assert_eq!(ended(&identity), None);
    let length = std::fs::metadata(desired.dir.join(CONSOLE)).unwrap().len();
    assert_eq!(length, LOG_LIMIT, "the log has an end");
    place.clear(desired).await;
}

#[tokio::test]
async fn firecracker_lives_on_when_its_log_is_full() {
    for who in ways(Hypervisor::Firecracker) {
        lives_with_a_full_log(Hypervisor::Firecracker, *who).await;
    }
}

#[tokio::test]
async fn cloud_hypervisor_lives_on_when_its_log_is_full() {
    for who in ways(Hypervisor::CloudHypervisor) {
        lives_with_a_full_log(Hypervisor::CloudHypervisor, *who).await;
    }
}

/// A VMM that cannot boot is not left standing, and what it said is the reason.
async fn a_bad_kernel_is_the_reason(hypervisor: Hypervisor, who: As, says: &str) {
    let place = place(hypervisor, who).await;
    let kernel = place.dir.path().join("no-kernel");
    std::fs::write(&kernel, "a host's name\n").unwrap();
    let desired = place.desired(|spec, _| spec.kernel_file = Some(kernel));
    let create = place.stage.act(&desired, &Action::CreateRunDir).await;
    create.unwrap();
    let launch = Action::Launch { after: None };
    let error = place.stage.act(&desired, &launch).await.unwrap_err();
    let why = error.source.to_string();
    assert!(why.contains(says), "{why}: {}", console(&desired));
    let observed = place.stage.observe(&desired).await.unwrap();
    assert!(observed.running.is_empty());
    place.clear(desired).await;
}

#[tokio::test]
async fn firecracker_reports_a_bad_kernel() {
    for who in ways(Hypervisor::Firecracker) {
        a_bad_kernel_is_the_reason(Hypervisor::Firecracker, *who, "ernel").await;
    }
}

#[tokio::test]
async fn cloud_hypervisor_reports_a_bad_kernel() {
    for who in ways(Hypervisor::CloudHypervisor) {
        a_bad_kernel_is_the_reason(Hypervisor::CloudHypervisor, *who, "ernel").await;
    }
}

/// As `a_life`, in short, of a version that is not the newest: the recipe says no word that it does not know.
async fn an_older(hypervisor: Hypervisor, double: &str) {
    let mut place = place(hypervisor, As::Itself).await;
    let program = double_of(double, place.dir.path());
    let programs = Programs::new(places(&[place.dir.path()]));
    place.program = programs.get(hypervisor, Some(&program)).await.unwrap();
    let desired = place.desired(|_, slot| slot.connection.mtu = 1400);
    let identity = place.boot(&desired).await;
    place.ask(&desired).await;
    assert_ends(&identity, Exit::Code(0));
    place.clear(desired).await;
}

#[tokio::test]
async fn firecracker_1_10_gets_no_newer_argument() {
    an_older(Hypervisor::Firecracker, "firecracker-1.10").await;
}

#[tokio::test]
async fn cloud_hypervisor_49_gets_no_newer_argument() {
    an_older(Hypervisor::CloudHypervisor, "cloud-hypervisor-49").await;
}
