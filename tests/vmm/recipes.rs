//! What each VMM is told, and by which version: golden files in `tests/goldens/recipes/`. `BLESS=1` rewrites them.
//! Out of scope: whether the VMM likes it (`guest`, `real`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use slicectl::api::guest_access::Agent;
use slicectl::api::life::MachineType;
use slicectl::api::network::{Connection, IsolatedSpec, Mac, NetworkSpec};
use slicectl::api::vm::{Hypervisor, VmSpec};
use slicectl::reconcile::vmm::MANAGED_FILES;
use slicectl::vmm::{
    Accel, Access, ConfinedBy, Disk, Launch, Machine, Program, RecipeError, Slot, Sys, Version,
    recipe,
};

/// One VM, to be changed a little.
struct Case {
    spec: VmSpec,
    slot: Slot,
    program: Program,
    machine: Machine,
}

fn case(hypervisor: Hypervisor, major: u32, minor: u32) -> Case {
    let name = match hypervisor {
        Hypervisor::None => "none",
        Hypervisor::Qemu => "qemu-system-x86_64",
        Hypervisor::Firecracker => "firecracker",
        Hypervisor::CloudHypervisor => "cloud-hypervisor",
    };
    Case {
        spec: VmSpec {
            hypervisor,
            vcpu: 2,
            ram_bytes: 512 << 20,
            kernel_file: Some("/boot/guest/vmlinux".into()),
            initrd_file: Some("/boot/guest/initrd".into()),
            dns_servers: vec!["1.1.1.1".parse().unwrap()],
            storage: Default::default(),
            lifecycle: Default::default(),
            guest_access: Default::default(),
            network: NetworkSpec::Isolated(IsolatedSpec {
                max_connections: None,
                range: None,
                policy: Default::default(),
                tap_owner: Default::default(),
            }),
        },
        slot: Slot {
            name: "web-1".parse().unwrap(),
            dir: "/run/slice/vm/x".into(),
            connection: Connection {
                netns: Some("/run/slice/netns/x".into()),
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
            disks: Vec::new(),
            sys: Default::default(),
            confined_by: Default::default(),
            has_serial_port: false,
        },
        program: Program {
            path: Path::new("/usr/bin").join(name),
            version: Version::new(major, minor),
        },
        machine: Machine {
            accel: Accel::Tcg,
            tsc_khz: Some(2_000_000),
        },
    }
}

impl Case {
    fn launch(&self) -> Result<Launch, RecipeError> {
        let launch = recipe(&self.spec, &self.slot, &self.program, &self.machine)?;
        Ok(launch.expect("something to run"))
    }

    fn disks(mut self, disks: &[(&str, Access)]) -> Self {
        let disk = |(path, access): &(&str, Access)| Disk {
            path: path.into(),
            access: *access,
        };
        self.slot.disks = disks.iter().map(disk).collect();
        self
    }

    fn cmdline(mut self, words: &str) -> Self {
        self.spec.lifecycle.cmdline = Some(words.to_owned());
        self
    }

    fn mtu(mut self, mtu: u32) -> Self {
        self.slot.connection.mtu = mtu;
        self
    }

    fn on_the_host(mut self) -> Self {
        self.slot.connection.netns = None;
        self
    }

    fn without_initrd(mut self) -> Self {
        self.spec.initrd_file = None;
        self
    }

    fn q35(mut self) -> Self {
        self.spec.lifecycle.machine = MachineType::Q35;
        self
    }

    fn without_vsock(mut self) -> Self {
        self.spec.guest_access.vsock = false;
        self
    }

    fn injected(mut self) -> Self {
        self.spec.guest_access.agent = Agent::Inject;
        self
    }

    fn of_an_earlier_version(mut self) -> Self {
        self.slot.has_serial_port = true;
        self
    }

    fn kvm(mut self) -> Self {
        self.machine.accel = Accel::Kvm;
        self
    }

    fn jailed(mut self) -> Self {
        self.slot.confined_by = ConfinedBy::Jailer(Program {
            path: "/usr/bin/jailer".into(),
            version: self.program.version,
        });
        self
    }

    fn routes(mut self, many: u8) -> Self {
        let route = |n: u8| {
            let network = format!("10.{n}.0.0/16").parse().unwrap();
            (network, Some("169.254.100.1".parse().unwrap()))
        };
        self.slot.connection.routes = (0..many).map(route).collect();
        self
    }
}

const ROOT: (&str, Access) = ("/var/lib/slice/disks/web-1.img", Access::ReadWrite);
const DATA: (&str, Access) = ("/srv/data.img", Access::ReadOnly);

#[test]
fn every_recipe_is_the_one_on_disk() {
    use Hypervisor::{CloudHypervisor, Firecracker, Qemu};
    let cases = [
        ("firecracker-1.10", case(Firecracker, 1, 10)),
        ("firecracker-1.15-mtu", case(Firecracker, 1, 15).mtu(1450)),
        ("firecracker-1.16-mtu", case(Firecracker, 1, 16).mtu(1450)),
        (
            "firecracker-1.17-disks",
            case(Firecracker, 1, 17)
                .disks(&[ROOT, DATA])
                .without_initrd(),
        ),
        (
            "firecracker-1.17-jailed",
            case(Firecracker, 1, 17).disks(&[ROOT]).jailed(),
        ),
        (
            "firecracker-1.17-own-root",
            case(Firecracker, 1, 17)
                .disks(&[ROOT])
                .cmdline("root=/dev/vda2 ro init=/bin/sh"),
        ),
        (
            "cloud-hypervisor-38-bridge",
            case(CloudHypervisor, 38, 0).on_the_host(),
        ),
        ("cloud-hypervisor-49", case(CloudHypervisor, 49, 0)),
        (
            "cloud-hypervisor-50-read-only",
            case(CloudHypervisor, 50, 2).disks(&[DATA]),
        ),
        (
            "cloud-hypervisor-54-disks",
            case(CloudHypervisor, 54, 0)
                .disks(&[ROOT, DATA])
                .without_initrd()
                .mtu(1450),
        ),
        ("qemu-7.2-tcg", case(Qemu, 7, 2).routes(2)),
        (
            "qemu-7.2-kvm-disks",
            case(Qemu, 7, 2)
                .kvm()
                .disks(&[ROOT, DATA, ("/srv/a,b.img", Access::ReadOnly)])
                .cmdline("loglevel=7"),
        ),
        ("qemu-7.2-q35", case(Qemu, 7, 2).q35().disks(&[ROOT, DATA])),
        ("qemu-7.2-no-vsock", case(Qemu, 7, 2).without_vsock()),
        (
            "qemu-7.2-q35-no-vsock",
            case(Qemu, 7, 2).q35().without_vsock(),
        ),
        (
            "qemu-7.2-serial-port",
            case(Qemu, 7, 2).routes(2).of_an_earlier_version(),
        ),
        (
            "firecracker-1.17-no-vsock",
            case(Firecracker, 1, 17).without_vsock(),
        ),
        (
            "cloud-hypervisor-54-no-vsock",
            case(CloudHypervisor, 54, 0).without_vsock(),
        ),
        ("qemu-10.0-mtu", case(Qemu, 10, 0).kvm().mtu(9000)),
        (
            "qemu-7.2-inject",
            case(Qemu, 7, 2)
                .injected()
                .disks(&[ROOT])
                .cmdline("rdinit=/first -- single"),
        ),
        (
            "firecracker-1.17-inject",
            case(Firecracker, 1, 17)
                .injected()
                .without_initrd()
                .disks(&[ROOT])
                .jailed(),
        ),
        (
            "cloud-hypervisor-54-inject",
            case(CloudHypervisor, 54, 0).injected().without_initrd(),
        ),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/recipes");
    let mut known = BTreeSet::new();
    for (name, case) in cases {
        let golden = dir.join(format!("{name}.txt"));
        compare(&golden, &shown(&case.launch().expect(name)));
        known.insert(golden);
    }
    let on_disk: BTreeSet<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(on_disk, known);
}

fn compare(golden: &Path, text: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(golden, text).unwrap();
    }
    let stored = std::fs::read_to_string(golden)
        .unwrap_or_else(|e| panic!("{}: {e}; BLESS=1 writes it", golden.display()));
    assert_eq!(text, stored, "{}", golden.display());
}

fn shown(launch: &Launch) -> String {
    let mut text = launch.argv.join("\n") + "\n";
    for pipe in &launch.pipes {
        text.push_str(&format!("\n== {pipe}, a pipe\n"));
    }
    for file in &launch.files {
        text.push_str(&format!("\n== {}\n{}", file.name, file.text));
    }
    text
}

#[test]
fn a_recipe_writes_no_file_that_is_not_ours_to_remove() {
    for hypervisor in [
        Hypervisor::Qemu,
        Hypervisor::Firecracker,
        Hypervisor::CloudHypervisor,
    ] {
        let launch = case(hypervisor, 54, 0).launch().unwrap();
        assert!(launch.version.is_some());
        let files = launch.files.into_iter().map(|file| file.name);
        for name in files.chain(launch.pipes) {
            assert!(MANAGED_FILES.contains(&name.as_str()), "{name}");
        }
    }
}

#[test]
fn the_kernel_executes_what_the_agent_expects_to_be() {
    assert_eq!(slicectl::vmm::INJECTED_INIT, slicectl::guest::inject::INIT);
}

#[test]
fn no_version_of_firecracker_gets_an_argument_of_a_later_one() {
    for minor in 10..=17 {
        let launch = case(Hypervisor::Firecracker, 1, minor).mtu(1400).launch();
        let launch = launch.unwrap();
        let config = &launch.files[0];
        assert_eq!(config.name, "vm.json");
        let config: serde_json::Value = serde_json::from_str(&config.text).unwrap();
        let card = &config["network-interfaces"][0];
        assert_eq!(card.get("mtu").is_some(), minor >= 16, "1.{minor}");
        let line = config["boot-source"]["boot_args"].as_str().unwrap();
        assert_eq!(line.contains("slice.mtu=1400"), minor < 16, "1.{minor}");
        assert!(!launch.argv.iter().any(|word| word == "--enable-pci"));
    }
}

#[test]
fn what_a_version_cannot_do_safely_is_refused_with_the_reason() {
    use Hypervisor::{CloudHypervisor, Firecracker, Qemu};
    let mut many = case(Firecracker, 1, 17);
    many.spec.vcpu = 33;
    let cases = [
        (case(Firecracker, 1, 9), "firecracker 1.9 is too old: 1.10"),
        (
            case(CloudHypervisor, 37, 0),
            "cloud-hypervisor 37.0 is too old: 38.0",
        ),
        (case(Qemu, 6, 2), "qemu 6.2 is too old: 7.2"),
        (many, "firecracker supports at most 32 vcpus"),
        (case(CloudHypervisor, 50, 0).disks(&[ROOT]), "51.0 or newer"),
        (case(CloudHypervisor, 48, 0), "49.0 or newer"),
        (
            case(CloudHypervisor, 53, 0).disks(&[("/srv/a,b.img", Access::ReadOnly)]),
            "does not support the path",
        ),
        (
            case(Firecracker, 1, 17)
                .routes(60)
                .cmdline(&"x".repeat(600)),
            "expected at most 2047",
        ),
    ];
    for (case, words) in cases {
        let why = case.launch().unwrap_err().to_string();
        assert!(why.contains(words), "{why}");
    }
}

/// It reads off `/sys` whether the TAP has been made for it.
#[test]
fn an_older_cloud_hypervisor_is_accepted_in_a_namespace_with_its_own_sys() {
    let mut case = case(Hypervisor::CloudHypervisor, 48, 0);
    let refused = case.launch().unwrap_err();
    assert_eq!(refused, RecipeError::OwnAddress(Version::new(48, 0)));
    case.slot.sys = Sys::Own;
    assert!(case.launch().is_ok());
}
