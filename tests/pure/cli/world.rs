//! What is in the test's world at the start.
//! Out of scope: how it changes.

use std::sync::OnceLock;

use ipnetwork::Ipv4Network;
use slicectl::api::condition::{Reason, Status};
use slicectl::api::event::{Event, EventReason, EventType};
use slicectl::api::host_group::{HostGroupSpec, Origin, UpdatePolicy};
use slicectl::api::meta::{Name, Timestamp, Uid};
use slicectl::api::network::{
    Addresses, Block, BridgeSpec, CniSpec, IsolatedSpec, Mac, Mode, NetworkSpec,
};
use slicectl::api::policy::{OnDeny, Policy};
use slicectl::api::view::*;
use slicectl::api::vm::{Hypervisor, Power, VmSpec};
use slicectl::wire::Refusal;

/// One moment, so that its age is always `5d1h`.
pub fn created() -> Timestamp {
    static CREATED: OnceLock<Timestamp> = OnceLock::new();
    *CREATED.get_or_init(|| {
        let age = std::time::Duration::from_secs(5 * 86_400 + 3600 + 1800);
        let then = Timestamp::now().checked_sub(age).unwrap();
        Timestamp::from_second(then.as_second()).unwrap()
    })
}

/// What a manifest says, as far as this world cares.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: Name,
    pub count: u32,
    pub warnings: Vec<String>,
}

/// Reads `config.host_groups[].{name,count}`; a group called `odd` gives a warning.
pub fn groups(sources: &[Source]) -> Result<Vec<Group>, Refusal> {
    let mut groups = Vec::new();
    let mut problems = Vec::new();
    for source in sources {
        match read(&source.text) {
            Ok(found) => groups.extend(found),
            Err(why) => problems.push(format!("{}: {why}", source.name)),
        }
    }
    match problems.is_empty() {
        true => Ok(groups),
        false => Err(Refusal::Invalid(problems)),
    }
}

fn read(text: &str) -> Result<Vec<Group>, String> {
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
    let groups = value["config"]["host_groups"].as_sequence();
    let groups = groups.ok_or("config.host_groups is missing")?;
    let group = |group: &serde_yaml::Value| {
        let name = group["name"].as_str().ok_or("name is missing")?;
        Ok(Group {
            name: name.parse().map_err(|e| format!("{e}"))?,
            count: group["count"].as_u64().unwrap_or(1) as u32,
            warnings: (name == "odd")
                .then(|| "drop[0] never matches".to_owned())
                .into_iter()
                .collect(),
        })
    };
    groups.iter().map(group).collect()
}

/// Two groups, four VMs in different states, four leases.
pub fn objects() -> Vec<Object> {
    let sandbox = Group {
        name: name("sandbox"),
        count: 3,
        warnings: vec![],
    };
    let lab = Group {
        name: name("lab"),
        count: 1,
        warnings: vec![],
    };
    let mut objects = vec![group_object(&sandbox, 1), group_object(&lab, 1)];
    let states = [
        ("sandbox-1", State::Up),
        ("sandbox-2", State::Conflict),
        ("sandbox-3", State::Going),
        ("lab-1", State::Slot),
    ];
    for (index, (vm, state)) in (1..).zip(states) {
        objects.push(vm_object(vm, index, state));
        objects.push(lease_object(vm, index));
    }
    objects
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn uid(number: u8) -> Uid {
    format!("00000000-0000-4000-8000-0000000000{number:02}")
        .parse()
        .unwrap()
}

fn metadata(named: &str, number: u8) -> MetaView {
    MetaView {
        name: name(named),
        uid: Some(uid(number)),
        generation: Some(2),
        group: None,
        created_at: created(),
        deleting: false,
        finalizers: vec![],
    }
}

fn condition(kind: &str, status: Status, reason: Reason, message: &str) -> ConditionView {
    ConditionView {
        kind: kind.into(),
        status,
        reason,
        message: message.into(),
        since: created(),
        observed_generation: 2,
    }
}

fn spec(hypervisor: Hypervisor) -> VmSpec {
    VmSpec {
        hypervisor,
        vcpu: 1,
        ram_bytes: 128 << 20,
        kernel_file: Some("/var/lib/slice/images/vmlinuz".into()),
        initrd_file: None,
        dns_servers: vec!["1.1.1.1".parse().unwrap()],
        storage: Default::default(),
        lifecycle: Default::default(),
        network: NetworkSpec::Isolated(IsolatedSpec {
            max_connections: None,
            range: Some("169.254.100.0/22".parse().unwrap()),
            policy: policy(),
            tap_owner: Default::default(),
        }),
    }
}

fn policy() -> Policy {
    Policy {
        allow: vec!["192.168.1.7:443/tcp".parse().unwrap()],
        drop: vec!["192.168.1.0/24".parse().unwrap()],
        ..Policy::default()
    }
}

/// A group with so many of its VMs ready.
pub fn group_object(group: &Group, ready_count: u32) -> Object {
    let ready = ready_count == group.count;
    let condition = match ready {
        true => condition("Ready", Status::True, Reason::Converged, ""),
        false => condition(
            "Ready",
            Status::False,
            Reason::Converging,
            "not all VMs are ready",
        ),
    };
    let lab = group.name.as_str() == "lab";
    let (origin, hypervisor) = match lab {
        true => (
            Origin::File("/etc/slice/groups.d/lab.yaml".into()),
            Hypervisor::None,
        ),
        false => (Origin::Apply, Hypervisor::Qemu),
    };
    Object::HostGroup(Box::new(GroupView {
        metadata: metadata(group.name.as_str(), 90),
        origin,
        spec: HostGroupSpec {
            count: group.count,
            update: UpdatePolicy::Rolling,
            template: spec(hypervisor),
        },
        status: GroupStatus {
            ready,
            conditions: vec![condition],
            desired: group.count,
            on_demand: 0,
            current: group.count,
            updated: group.count,
            ready_count,
            range: Some("169.254.100.0/22".parse().unwrap()),
            warnings: vec![],
        },
    }))
}

/// How a VM of this world is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    Slot,
    Conflict,
    Going,
}

pub fn vm_object(named: &str, number: u8, state: State) -> Object {
    let group = named.rsplit_once('-').map_or("sandbox", |(group, _)| group);
    let up = matches!(state, State::Up | State::Slot);
    let hypervisor = match state {
        State::Slot => Hypervisor::None,
        _ => Hypervisor::Qemu,
    };
    let firewall = match up {
        true => condition("Firewall", Status::True, Reason::Converged, ""),
        false => condition(
            "Firewall",
            Status::False,
            Reason::Conflict,
            "chain X is not ours; remove it",
        ),
    };
    let ready = match up {
        true => condition("Ready", Status::True, Reason::Converged, ""),
        false => condition(
            "Ready",
            Status::False,
            Reason::Waiting,
            "Firewall does not hold",
        ),
    };
    Object::Vm(Box::new(VmView {
        metadata: MetaView {
            group: Some(name(group)),
            deleting: state == State::Going,
            finalizers: vec!["slice/lease".into(), "slice/net".into()],
            ..metadata(named, number)
        },
        spec: spec(hypervisor),
        power: Default::default(),
        on_demand: None,
        status: VmStatus {
            ready: up,
            conditions: vec![
                condition("Lease", Status::True, Reason::Converged, ""),
                condition("Net", Status::True, Reason::Converged, ""),
                firewall,
                ready,
            ],
            network: Some(network(number)),
            firewall: FirewallStatus {
                default: DefaultVerdict::Allow,
                allow: policy().allow,
                drop: policy().drop,
                on_deny: OnDeny::Drop,
                digest: up.then(|| "0123456789abcdef".into()),
            },
            vmm: vmm(number, state),
            disk: None,
            warnings: vec![],
        },
    }))
}

fn block(number: u8) -> Block {
    Block::around([169, 254, 100, (number - 1) * 4].into())
}

fn network(number: u8) -> NetworkStatus {
    NetworkStatus {
        mode: Mode::Isolated,
        ip: block(number).guest(),
        prefix_len: 30,
        addresses: Vec::new(),
        gateway: Some(block(number).gateway()),
        routes: Vec::new(),
        mac: Mac([2, 0, 0, 0, 0, number]),
        dns: vec!["1.1.1.1".parse().unwrap()],
        netns: Some(format!("/run/slice/netns/slice-abcdefghij{number:02}").into()),
        tap: "tap0".into(),
        host_link: Some(format!("slabcdeaaaaaa{number:02}")),
        mtu: 1500,
    }
}

fn vmm(number: u8, state: State) -> VmmStatus {
    let running = state == State::Up;
    VmmStatus {
        hypervisor: match state {
            State::Slot => Hypervisor::None,
            _ => Hypervisor::Qemu,
        },
        pid: running.then_some(1000 + u32::from(number)),
        state: match state {
            State::Up => VmmState::Running,
            State::Slot => VmmState::None,
            State::Conflict | State::Going => VmmState::Stopped,
        },
        user: running.then_some(2_013_265_920),
        confined_by: running.then(|| "sliced".into()),
        started_at: running.then(created),
        restarts: 0,
        last_exit: None,
        api_socket: running.then(|| "/run/slice/vm/x/qmp.sock".into()),
        log: running.then(|| "/run/slice/vm/x/console.log".into()),
    }
}

fn lease_object(vm: &str, number: u8) -> Object {
    let group = vm.rsplit_once('-').unwrap().0;
    Object::Lease(LeaseView {
        metadata: MetaView {
            uid: None,
            generation: None,
            group: Some(name(group)),
            ..metadata(vm, number)
        },
        block: Some(block(number)),
        ip: block(number).guest(),
        range: "169.254.100.0/22".parse().unwrap(),
    })
}

/// A bridge group `web`, one called `offline`, and a CNI group `job`, with a VM each.
pub fn other_modes() -> Vec<Object> {
    let bridge = |group: &str| {
        NetworkSpec::Bridge(BridgeSpec {
            max_connections: None,
            bridge: "brvm0".into(),
            tap_prefix: format!("t-{group}-"),
            gateway: Some("192.168.137.1/24".parse().unwrap()),
            addresses: Addresses::Range([192, 168, 137, 20].into(), [192, 168, 137, 80].into()),
            antispoof: true,
            isolate_ports: false,
            tap_owner: Default::default(),
        })
    };
    let cni = NetworkSpec::Cni(CniSpec {
        network_name: "slicer".into(),
        tap_owner: Default::default(),
        cni: Default::default(),
    });
    let mut objects = Vec::new();
    for (number, group, network) in [
        (11, "web", bridge("web")),
        (12, "offline", bridge("offline")),
        (13, "job", cni),
    ] {
        objects.extend(in_mode(number, group, &network));
    }
    objects
}

/// A group with one VM that is up and, in bridge mode, its lease.
fn in_mode(number: u8, group: &str, network: &NetworkSpec) -> Vec<Object> {
    let vm = format!("{group}-1");
    let (ip, range) = ([192, 168, 137, number + 9].into(), "192.168.137.0/24");
    let range: Option<Ipv4Network> = range.parse().ok();
    let wanted = Group {
        name: name(group),
        count: 1,
        warnings: vec![],
    };
    let mut objects = vec![group_object(&wanted, 1), vm_object(&vm, number, State::Up)];
    if network.mode() == Mode::Bridge {
        objects.push(lease_object(&vm, 1));
    }
    for object in &mut objects {
        match object {
            Object::HostGroup(group) => {
                group.spec.template.network = network.clone();
                group.status.range = range.filter(|_| network.mode() == Mode::Bridge);
            }
            Object::Vm(vm) => {
                vm.spec.network = network.clone();
                (vm.status.firewall.allow, vm.status.firewall.drop) = (vec![], vec![]);
                let status = vm.status.network.as_mut().unwrap();
                status.mode = network.mode();
                (status.ip, status.prefix_len) = (ip, 24);
                status.gateway = Some([192, 168, 137, 1].into());
                if let NetworkSpec::Bridge(bridge) = network {
                    status.netns = None;
                    status.tap = bridge.tap(1);
                    status.host_link = Some(bridge.bridge.clone());
                }
            }
            Object::Lease(lease) => {
                (lease.block, lease.ip) = (None, ip);
                lease.range = range.unwrap();
            }
        }
    }
    objects
}

pub fn event(kind: EventType, object: &str, reason: EventReason, message: &str) -> Event {
    Event {
        time: created(),
        object: object.parse().expect("an object"),
        reason,
        message: message.into(),
        count: 1,
        kind,
    }
}

pub fn events() -> Vec<Event> {
    vec![
        event(
            EventType::Normal,
            "hostgroup/sandbox",
            EventReason::Configured,
            "by slicectl apply",
        ),
        event(
            EventType::Normal,
            "vm/sandbox-1",
            EventReason::Ready,
            "VM is ready",
        ),
        Event {
            count: 7,
            ..event(
                EventType::Warning,
                "vm/sandbox-2",
                EventReason::Conflict,
                "chain X\nis not ours",
            )
        },
        event(
            EventType::Warning,
            "manifest/bad.yaml",
            EventReason::ManifestInvalid,
            "line 3: what is `nmae`?",
        ),
        event(
            EventType::Warning,
            "host",
            EventReason::Drift,
            "the jump in FORWARD was gone",
        ),
    ]
}

pub fn leftovers() -> Vec<Orphan> {
    vec![
        Orphan {
            kept: None,
            thing:
                "link slabcdeaaaaaa77, namespace slice-aaaaaaaaaa77, run directory, process 4711"
                    .into(),
            owner: "vm/gone-1@00000000-0000-4000-8000-000000000077".into(),
            error: None,
        },
        Orphan {
            kept: None,
            thing: "CNI attachment that plugins failed to release".into(),
            owner: "slice-abcde-00000000-0000-4000-8000-000000000078".into(),
            error: None,
        },
    ]
}

pub fn checks() -> Vec<Check> {
    let check = |name: &str, verdict, found: &str, remedy: &str| Check {
        name: name.into(),
        status: verdict,
        found: found.into(),
        remedy: remedy.into(),
    };
    vec![
        check("ip_forward", CheckStatus::Ok, "1", ""),
        check(
            "iptables back end",
            CheckStatus::Warn,
            "nft and legacy both have rules",
            "move the legacy rules to nft",
        ),
        check(
            "/dev/kvm",
            CheckStatus::Fail,
            "not there",
            "switch virtualisation on in the firmware",
        ),
    ]
}

/// The VM, once it does what it was told.
pub fn powered(mut vm: Box<VmView>) -> Object {
    let (state, reason) = match vm.power {
        Power::Running | Power::Restarting => (VmmState::Running, Reason::Converged),
        Power::Paused => (VmmState::Paused, Reason::Paused),
        Power::Stopped => (VmmState::Stopped, Reason::Stopped),
    };
    if vm.power == Power::Restarting {
        vm.power = Power::Running;
        vm.status.vmm.restarts = 0;
    }
    let up = state == VmmState::Running;
    let holds = match up {
        true => Status::True,
        false => Status::False,
    };
    vm.status.ready = up;
    vm.status.vmm.state = state;
    vm.status.vmm.pid = vm.status.vmm.pid.filter(|_| state != VmmState::Stopped);
    if state == VmmState::Stopped {
        vm.status.vmm.last_exit = Some(ExitView {
            pid: 1001,
            at: created(),
            status: Some(0),
            signal: None,
            reason: "it exited with status 0: it was stopped".into(),
            last_output: vec!["powers down".into()],
        });
    }
    let conditions = &mut vm.status.conditions;
    conditions.retain(|found| !["Vmm", "Ready"].contains(&found.kind.as_str()));
    let message = match up {
        true => "",
        false => "by slicectl vm",
    };
    conditions.push(condition("Vmm", holds, reason, message));
    conditions.push(condition("Ready", holds, reason, message));
    Object::Vm(vm)
}
