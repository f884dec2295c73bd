//! Requests of users about the fleet against three real members of etcd.
//! Out of scope: the scheduler and the nodes, whose objects the tests write themselves.

mod changes;
mod cli;
mod faults;
mod nodes;
mod reads;
mod waits;

use slicectl::api::manifest::{Draft, Source, parse};
use slicectl::api::meta::{Meta, Name, Timestamp};
use slicectl::api::view::{Applied, ApplyResult};
use slicectl::clock;
use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::Client;
use slicectl::fleet::object::{
    self, Binding, Group, Node, NodeStatus, NodeSubnet, Phase, Resources, Vm, VmStatus,
};
use slicectl::fleet::verbs;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// A group in isolated mode with these keys.
fn manifest(group: &str, count: u32, more: &str) -> String {
    format!(
        "config: {{host_groups: [{{name: {group}, count: {count}, network: {{mode: isolated}}{more}}}]}}\n"
    )
}

fn drafts(text: &str) -> Vec<Draft> {
    let source = Source {
        name: "fleet.yaml".to_owned(),
        text: text.to_owned(),
    };
    parse(&source).expect("a valid manifest")
}

async fn apply(client: &Client, text: &str) -> Result<Vec<ApplyResult>, verbs::Error> {
    verbs::apply(client, &drafts(text), clock::now(), false).await
}

async fn applied(client: &Client, text: &str) -> Applied {
    let results = apply(client, text).await.expect("applied");
    results[0].applied
}

/// The group as it is stored.
async fn stored(client: &Client, group: &str) -> Option<Group> {
    let (_, found) = client.get(Key::Group(name(group))).await.expect("read");
    found.map(|kv| object::decode(&kv.value).expect("a group"))
}

async fn put<T: serde::Serialize>(client: &Client, key: Key, value: &T) {
    let bytes = object::encode(value).expect("JSON");
    client.put(key, bytes, None).await.expect("written");
}

/// What a node of the tests reports.
fn node_status(boot_id: &str) -> NodeStatus {
    let resources = Resources {
        vcpus: 8,
        ram_bytes: 16 << 30,
        disk_bytes: 100 << 30,
        isolated: 1000,
        bridge_ports: 1000,
    };
    NodeStatus {
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        architecture: "x86_64".to_owned(),
        hypervisors: Vec::new(),
        secrets: Default::default(),
        has_guard: true,
        has_agent: true,
        networks: Default::default(),
        files: Default::default(),
        capacity: resources,
        allocatable: resources,
        version: "0.1.0".to_owned(),
        format: object::VERSION,
        api: Some("https://192.0.2.7:8080".to_owned()),
        boot_id: boot_id.to_owned(),
    }
}

/// The subnet of a group on a node.
fn node_subnet(text: &str) -> NodeSubnet {
    let subnet: ipnetwork::Ipv4Network = text.parse().expect("a subnet");
    NodeSubnet {
        subnet,
        gateway: subnet.nth(1).expect("an address"),
    }
}

/// A node that renews its lease, as far as the tests go.
async fn join(client: &Client, node: &str) {
    put(client, Key::NodeStatus(name(node)), &node_status("boot-1")).await;
    let alive = client.put(Key::Alive(name(node)), "", None).await;
    alive.expect("written");
}

/// A VM of a stored group, on this node in epoch 1.
async fn bind(client: &Client, group: &str, index: u32, node: Option<&str>) -> Vm {
    let group = stored(client, group).await.expect("a group");
    let vm = Vm {
        meta: Meta::new(
            name(&format!("{}-{index}", group.meta.name)),
            Timestamp::UNIX_EPOCH,
        ),
        group: group.meta.name.clone(),
        group_uid: group.meta.uid,
        index,
        group_generation: group.meta.generation,
        binding: node.map(|node| Binding {
            node: name(node),
            epoch: 1,
            group_generation: group.meta.generation,
            resources: Resources {
                vcpus: 2,
                ram_bytes: 4 << 30,
                isolated: 1,
                ..Resources::default()
            },
            moving_from: None,
        }),
        epoch: u64::from(node.is_some()),
        previous: Vec::new(),
        refusals: Vec::new(),
        pending: node
            .is_none()
            .then(|| "no node has the resources".to_owned()),
    };
    put(client, Key::Vm(vm.meta.uid), &vm).await;
    vm
}

/// What a node reports of a VM.
async fn report(client: &Client, vm: &Vm, node: &str, epoch: u64, phase: Phase) {
    let status = VmStatus {
        epoch,
        phase,
        group_generation: vm.group_generation,
        address: Some([169, 254, 1, 2].into()),
        stops_within: None,
        message: (phase != Phase::Ready).then(|| "its kernel is missing".to_owned()),
    };
    put(client, Key::VmStatus(name(node), vm.meta.uid), &status).await;
}

/// What administrators have specified of a node.
async fn admin(client: &Client, node: &str) -> Option<Node> {
    let (_, found) = client.get(Key::Node(name(node))).await.expect("read");
    found.map(|kv| object::decode(&kv.value).expect("a node"))
}
