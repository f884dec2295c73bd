//! A real guest: boots, pings its gateway, powers down when asked. `examples/guest/build.sh` makes it.
//! Out of scope: what it may not reach.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use slicectl::api::allowed::Purpose;
use slicectl::api::life::MachineType;
use slicectl::api::network::{Connection, IsolatedSpec, Mac, NetworkSpec};
use slicectl::api::vm::{Hypervisor, VmSpec};
use slicectl::host::Kind;
use slicectl::host::image::{Use, hold};
use slicectl::host::process::{self, ProcessState, TapSlot};
use slicectl::reconcile::vmm::{Action, Attachment, CONSOLE, Desired, Vmm};
use slicectl::reconcile::{OnHost, Reconcile};
use slicectl::vmm::{
    Accel, Access, Disk, Machine, Machines, Program, Programs, RecipeError, Slot, recipe,
};

use crate::fixture::{PrivateNet, converge, eventually, places, some_vm, stage};

/// Generous: on a busy machine a guest without KVM takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("SLICE_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"),
        PathBuf::from,
    );
    assert!(
        dir.join("vmlinuz").exists() && dir.join("initrd").exists(),
        "there is no guest in {0}: make it with `examples/guest/build.sh {0}`, or name another place in SLICE_GUEST_DIR",
        dir.display()
    );
    dir
}

fn initrd_with_probes(dir: &Path, probes: &str) -> PathBuf {
    let (words, out) = (dir.join("probes"), dir.join("initrd"));
    std::fs::write(&words, probes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/guest/with-probes.sh");
    let made = Command::new(script)
        .arg(guest_dir().join("initrd"))
        .arg(&words)
        .arg(&out)
        .status()
        .unwrap();
    assert!(made.success());
    out
}

async fn qemu() -> Program {
    let programs = Programs::new(places(&[]));
    programs.get(Hypervisor::Qemu, None).await.unwrap()
}

async fn machine(run_dir: &Path, qemu: &Program) -> Machine {
    let file = places(&[]).open(Purpose::Program, &qemu.path).unwrap();
    let machine = Machines::default().machine(run_dir, &file).await;
    machine.unwrap()
}

pub fn spec(initrd: Option<PathBuf>) -> VmSpec {
    VmSpec {
        hypervisor: Hypervisor::Qemu,
        vcpu: 1,
        ram_bytes: 128 << 20,
        kernel_file: Some(guest_dir().join("vmlinuz")),
        initrd_file: initrd,
        dns_servers: vec!["1.1.1.1".parse().unwrap()],
        storage: Default::default(),
        lifecycle: Default::default(),
        guest_access: Default::default(),
        network: NetworkSpec::Isolated(IsolatedSpec {
            max_connections: None,
            range: None,
            policy: slicectl::api::policy::Policy::default(),
            tap_owner: slicectl::api::network::TapOwner::default(),
        }),
    }
}

pub fn slot(dir: &Path, net: &PrivateNet) -> Slot {
    Slot {
        name: "web-1".parse().unwrap(),
        dir: dir.to_owned(),
        connection: Connection {
            netns: Some(net.path.clone()),
            tap: "tap0".into(),
            host_link: None,
            mac: Mac([2, 0, 0, 0, 0, 2]),
            ip: "169.254.100.2".parse().unwrap(),
            prefix_len: 30,
            gateway: Some("169.254.100.1".parse().unwrap()),
            addresses: Vec::new(),
            routes: Vec::new(),
            mtu: 1500,
            dns: Vec::new(),
            warnings: Vec::new(),
        },
        disks: vec![],
        sys: Default::default(),
        confined_by: Default::default(),
        has_serial_port: false,
    }
}

#[tokio::test]
async fn a_guest_boots_reaches_its_gateway_and_powers_down_when_asked() {
    from_boot_to_power_down(MachineType::Microvm).await;
}

#[tokio::test]
async fn a_guest_on_a_q35_boots_reaches_its_gateway_and_powers_down_when_asked() {
    from_boot_to_power_down(MachineType::Q35).await;
}

async fn from_boot_to_power_down(board: MachineType) {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    net.add_tap("169.254.100.1/30");
    let initrd = initrd_with_probes(
        dir.path(),
        "ping gateway 169.254.100.1\nspoof liar 10.9.8.7 169.254.100.1\ntcp closed 169.254.100.1 9\n",
    );
    let qemu = qemu().await;
    let machine = machine(dir.path(), &qemu).await;
    let mut desired = some_vm(dir.path(), None);
    let mut spec = spec(Some(initrd));
    spec.lifecycle.machine = board;
    desired.launch = recipe(&spec, &slot(&desired.dir, &net), &qemu, &machine).unwrap();
    let stage = stage(&[]);
    let (running, steps) = converge(&stage, &desired).await;
    assert_eq!(steps, ["create the run directory", "start the VMM"]);
    let identity = running.process().unwrap().clone();

    let console = desired.dir.join(CONSOLE);
    let says =
        |words: &str| std::fs::read_to_string(&console).is_ok_and(|text| text.contains(words));
    for words in [
        "GUEST web-1 ready",
        "GUEST web-1 gateway ok",
        "GUEST web-1 liar blocked",
        "GUEST web-1 closed blocked",
    ] {
        assert!(
            eventually(PATIENCE, || says(words)),
            "no `{words}` in: {}",
            std::fs::read_to_string(&console).unwrap()
        );
    }
    assert_eq!(
        process::tap_slot(identity.pid).unwrap(),
        TapSlot::Attached("tap0".into())
    );
    assert_eq!(
        converge(&stage, &desired).await.1,
        Vec::<String>::new(),
        "rest"
    );

    net.run("ip link del tap0");
    let observed = stage.observe(&desired).await.unwrap();
    assert_eq!(observed.running[0].attachment, Attachment::TapGone);
    assert!(
        !Vmm::plan(&desired, &observed).unwrap().is_empty(),
        "a guest without its wire is drift"
    );

    let ask = Action::RequestPowerDown(observed.running[0].process.clone());
    // It may still be booting when it is asked first.
    for _ in 0..10 {
        stage.act(&desired, &ask).await.unwrap();
        if let ProcessState::Alive(process) = process::open(&identity).unwrap() {
            let _ = tokio::time::timeout(Duration::from_secs(3), process.ended()).await;
        }
    }
    assert!(matches!(
        process::open(&identity).unwrap(),
        ProcessState::Ended(process::Exit::Code(0))
    ));
    assert!(says("GUEST web-1 powers down"), "politely");
    converge(
        &stage,
        &Desired {
            launch: None,
            ..desired.clone()
        },
    )
    .await;
    assert!(!desired.dir.exists());
}

#[tokio::test]
async fn no_vmm_is_started_without_its_tap_and_no_tap_is_made_for_it() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let machine = Machine {
        accel: Accel::Tcg,
        tsc_khz: None,
    };
    let mut desired = some_vm(dir.path(), None);
    let slot = slot(&desired.dir, &net);
    desired.launch = recipe(&spec(None), &slot, &qemu().await, &machine).unwrap();
    let stage = stage(&[]);
    stage.act(&desired, &Action::CreateRunDir).await.unwrap();
    let error = stage
        .act(&desired, &Action::Launch { after: None })
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Absent, "{error}");
    assert!(stage.observe(&desired).await.unwrap().running.is_empty());
    assert!(!net.succeeds("ip link show dev tap0"));
}

#[tokio::test]
async fn a_kernel_that_is_none_is_the_reason_given() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    net.add_tap("169.254.100.1/30");
    let machine = Machine {
        accel: Accel::Tcg,
        tsc_khz: None,
    };
    let mut desired = some_vm(dir.path(), None);
    let spec = VmSpec {
        kernel_file: Some("/nowhere/vmlinuz".into()),
        ..spec(None)
    };
    let slot = slot(&desired.dir, &net);
    desired.launch = recipe(&spec, &slot, &qemu().await, &machine).unwrap();
    let stage = stage(&[]);
    stage.act(&desired, &Action::CreateRunDir).await.unwrap();
    let error = stage
        .act(&desired, &Action::Launch { after: None })
        .await
        .unwrap_err();
    assert!(
        error.source.to_string().contains("/nowhere/vmlinuz"),
        "{}",
        error.source
    );
    converge(
        &stage,
        &Desired {
            launch: None,
            ..desired
        },
    )
    .await;
}

#[tokio::test]
async fn a_slot_without_hypervisor_runs_nothing_and_a_vmm_without_kernel_is_refused() {
    let net_path = PathBuf::from("/run/netns/x");
    let slot = Slot {
        name: "web-1".parse().unwrap(),
        dir: "/run/slice/vm/x".into(),
        connection: Connection {
            netns: Some(net_path),
            tap: "tap0".into(),
            host_link: None,
            mac: Mac([2, 0, 0, 0, 0, 2]),
            ip: "169.254.100.2".parse().unwrap(),
            prefix_len: 30,
            gateway: Some("169.254.100.1".parse().unwrap()),
            addresses: Vec::new(),
            routes: Vec::new(),
            mtu: 1500,
            dns: Vec::new(),
            warnings: Vec::new(),
        },
        disks: vec![],
        sys: Default::default(),
        confined_by: Default::default(),
        has_serial_port: false,
    };
    let machine = Machine {
        accel: Accel::Kvm,
        tsc_khz: Some(1),
    };
    let qemu = qemu().await;
    let bare = VmSpec {
        kernel_file: None,
        ..spec(None)
    };
    assert_eq!(
        recipe(&bare, &slot, &qemu, &machine),
        Err(RecipeError::NoKernel(Hypervisor::Qemu))
    );
    let none = VmSpec {
        hypervisor: Hypervisor::None,
        ..bare
    };
    assert_eq!(recipe(&none, &slot, &qemu, &machine), Ok(None));
}

/// It opens the disk beside our lock, and no second QEMU can.
#[tokio::test]
async fn qemu_runs_on_a_disk_that_nobody_else_may_write_to() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    net.add_tap("169.254.100.1/30");
    let disk = dir.path().join("disk, with a comma");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let qemu = qemu().await;
    let machine = machine(dir.path(), &qemu).await;
    let disks = vec![Disk {
        path: disk.clone(),
        access: Access::ReadWrite,
    }];
    let plain = some_vm(dir.path(), None);
    let slot = Slot {
        disks: disks.clone(),
        ..slot(&plain.dir, &net)
    };
    let initrd = Some(guest_dir().join("initrd"));
    let launch = recipe(&spec(initrd), &slot, &qemu, &machine).unwrap();
    let desired = Desired {
        launch,
        disks,
        ..plain
    };
    let stage = stage(&[]);
    let (observed, _) = converge(&stage, &desired).await;
    let pid = observed.process().expect("it runs").pid;
    let open: Vec<PathBuf> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| *path == disk)
        .collect();
    assert!(
        open.len() >= 2,
        "ours to hold it, QEMU's own to use it: {open:?}"
    );
    let error = hold(&disk, Use::Write).unwrap_err();
    let words = error.source.to_string();
    assert!(
        words.contains(&format!("process {pid} (qemu-system")),
        "{words}"
    );
    let console = desired.dir.join(CONSOLE);
    let sees_it = || {
        let output = std::fs::read_to_string(&console).unwrap_or_default();
        output.contains("GUEST web-1")
    };
    assert!(eventually(PATIENCE, sees_it), "it boots");
    let gone = Desired {
        launch: None,
        ..desired
    };
    converge(&stage, &gone).await;
    hold(&disk, Use::Write).unwrap();
}
