//! The time of a plan of the scheduler: 100,000 VMs on 2,000 nodes, and half of them on half as many nodes.
//! Out of scope: what is decided, and the writes to etcd.
//!
//! `cargo bench --bench schedule`; the exit status is 1 if a bound is missed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use slicectl::api::host_group::HostGroupSpec;
use slicectl::api::manifest::{Source, parse};
use slicectl::api::meta::{Meta, Name, Timestamp, Uid};
use slicectl::fleet::object::{
    Binding, Drain, Group, Labels, Node, NodeStatus, Phase, Placement, Resources, VERSION, Vm,
    VmStatus,
};
use slicectl::fleet::schedule::plan;
use slicectl::fleet::schedule::step::{Plan, Write};
use slicectl::fleet::schedule::view::{Contact, NodeView, Stored, View};

const VMS: usize = 100_000;
const NODES: usize = 2000;
const BOUND: Duration = Duration::from_secs(2);
/// Twice as many VMs on twice as many nodes: n log n is 2.13 times as much, and these machines are noisy.
const GROWTH: f64 = 3.0;
const RUNS: usize = 3;

const GIB: u64 = 1 << 30;

fn main() -> ExitCode {
    let mut is_met = true;
    for groups in [2, 1000, VMS] {
        let [half, whole] = [2, 1].map(|part| measure(VMS / part, NODES / part, groups / part));
        for (kind, (half, whole)) in ["first", "steady", "drain"]
            .into_iter()
            .zip(half.into_iter().zip(whole))
        {
            let growth = whole.as_secs_f64() / half.as_secs_f64();
            let is_ok = whole < BOUND && growth < GROWTH;
            is_met &= is_ok;
            println!(
                "schedule: {VMS} VMs in {groups} groups on {NODES} nodes, {kind} plan: {:.0} ms, {growth:.2} times half as many   bound < 2000, < {GROWTH}   {}",
                whole.as_secs_f64() * 1000.0,
                if is_ok { "ok" } else { "MISSED" }
            );
        }
    }
    match is_met {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The shortest times of a plan that creates all VMs, of one without steps, and of one that drains a node.
fn measure(vms: usize, nodes: usize, groups: usize) -> [Duration; 3] {
    let mut view = fleet(vms, nodes, groups);
    let (created, first) = timed(&view);
    assert_eq!(created.steps.len(), vms);
    run_all(&mut view, created);
    let (nothing, steady) = timed(&view);
    assert_eq!(nothing, Plan::default());
    let drained = Node {
        drain: Some(Drain {
            delete_local: false,
        }),
        ..Node::default()
    };
    let node = view.nodes.values_mut().next().expect("a node");
    node.admin = Some(stored(drained));
    let (moved, drain) = timed(&view);
    assert!(!moved.steps.is_empty());
    [first, steady, drain]
}

fn timed(view: &View) -> (Plan, Duration) {
    let mut shortest = Duration::MAX;
    let mut last = Plan::default();
    for _ in 0..RUNS {
        let mut number = 0;
        let mut uids = || {
            number += 1;
            Uid(uuid(number))
        };
        let begin = Instant::now();
        last = plan(view, &mut uids);
        shortest = shortest.min(begin.elapsed());
    }
    (last, shortest)
}

/// Every VM that the plan creates is Ready on its node.
fn run_all(view: &mut View, plan: Plan) {
    for step in plan.steps {
        let Write::PutVm(vm) = step.write else {
            continue;
        };
        let Binding { node, epoch, .. } = vm.binding.clone().expect("a node for each VM");
        let status = VmStatus {
            epoch,
            phase: Phase::Ready,
            group_generation: vm.group_generation,
            address: None,
            stops_within: None,
            message: None,
        };
        let uid = vm.meta.uid;
        view.statuses
            .insert(uid, BTreeMap::from([(node, stored(status))]));
        view.vms.insert(uid, stored::<Vm>(*vm));
    }
}

fn fleet(vms: usize, nodes: usize, groups: usize) -> View {
    let vcpus = (vms / nodes + 1) as u64;
    let spec = spec(vms / groups);
    let group = |number: usize| {
        let name = name(&format!("g{number}"));
        let group = Group {
            meta: Meta::new(name.clone(), Timestamp::UNIX_EPOCH),
            template_generation: 1,
            spec: spec.clone(),
            placement: Placement {
                max_unavailable: 100,
                ..Placement::default()
            },
            replacement: None,
        };
        (name, stored(group))
    };
    let node = |number: usize| {
        let node = NodeView {
            admin: None,
            status: Some(stored(status(vcpus))),
            contact: Contact::Alive,
            looks: None,
        };
        (name(&format!("n{number}")), node)
    };
    View {
        now: Timestamp::UNIX_EPOCH,
        groups: (1..=groups).map(group).collect(),
        vms: BTreeMap::new(),
        nodes: (1..=nodes).map(node).collect(),
        statuses: BTreeMap::new(),
        ranges: BTreeMap::new(),
    }
}

/// VMs with one vCPU in isolated mode.
fn spec(count: usize) -> HostGroupSpec {
    let text = "config: {host_groups: [{name: web, count: 0, vcpu: 1, ram_mb: 1024, hypervisor: qemu, kernel_file: /vmlinuz, network: {mode: isolated}}]}";
    let source = Source {
        name: "group.yaml".to_owned(),
        text: text.to_owned(),
    };
    let groups = parse(&source).expect("a manifest");
    HostGroupSpec {
        count: count as u32,
        ..groups[0].spec.clone()
    }
}

fn status(vcpus: u64) -> NodeStatus {
    let capacity = Resources {
        vcpus,
        ram_bytes: 10_000 * GIB,
        disk_bytes: 10_000 * GIB,
        isolated: 16_384,
        bridge_ports: 2000,
    };
    NodeStatus {
        labels: Labels::new(),
        architecture: "x86_64".to_owned(),
        hypervisors: vec![slicectl::api::vm::Hypervisor::Qemu],
        secrets: Default::default(),
        has_guard: true,
        has_agent: true,
        networks: Default::default(),
        files: [("/vmlinuz".to_owned(), true)].into(),
        capacity,
        allocatable: capacity,
        version: "1".to_owned(),
        format: VERSION,
        api: None,
        boot_id: "first".to_owned(),
    }
}

fn stored<T>(value: T) -> Stored<T> {
    Stored { revision: 1, value }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn uuid(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}
