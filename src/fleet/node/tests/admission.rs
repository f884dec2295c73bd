//! What a node refuses, and with which sentence.
//! Out of scope: what the scheduler does about it.

use std::path::PathBuf;

use ipnetwork::Ipv4Network;

use super::*;
use crate::api::guest_access::Agent;
use crate::api::host_group::{HostGroup, Origin};
use crate::api::network::{Addresses, BridgeSpec, CniSpec, NetworkSpec};
use crate::api::placement::Subnets;
use crate::api::provision::Userdata;
use crate::api::storage::{AdditionalDisk, Storage};

fn offered() -> Fixture {
    Fixture::new().object(object(1, Some(binding("n1", 4))))
}

/// The reason for which the VM is refused, if it is.
fn reason(fixture: &Fixture) -> Option<String> {
    let refused = |step: &Step| match step {
        Step::RefuseVm { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let plan = fixture.plan();
    let reason = plan.steps.iter().find_map(refused);
    let adds = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::AddVm { .. } | Step::PutGroup { .. }));
    assert!(reason.is_none() || !adds, "{plan:?}");
    reason
}

fn with(change: impl FnOnce(&mut Group)) -> Fixture {
    let mut group = group("web", 1000, None);
    change(&mut group);
    offered().group(Ok(group))
}

fn free(change: impl FnOnce(&mut Resources)) -> Fixture {
    let mut fixture = offered();
    change(&mut fixture.available.free);
    fixture
}

#[test]
fn a_node_refuses_what_it_cannot_run() {
    let file = || Some(PathBuf::from("/img/a"));
    let too_new = offered().group(undecodable());
    let mut group_conflict = offered();
    group_conflict.available.groups.insert(name("web"));
    let mut vm_conflict = offered();
    vm_conflict.available.vms.insert(name("web-1"));
    let mut image = with(|group| {
        group.spec.template.storage = Storage {
            image: file(),
            size_bytes: Some(3 << 30),
            ..Storage::default()
        }
    });
    image.available.files.insert("/img/a".into(), Ok(1 << 30));
    image.available.free.disk_bytes = 2 << 30;
    let replaced = |change: fn(&mut Group)| {
        with(|group| {
            group.replacement = super::group("a", 1, Some(at(60).0)).replacement;
            change(group);
        })
    };
    let mut unguarded = replaced(|_| {});
    unguarded.guard.runs = false;
    let disk = AdditionalDisk {
        path: "/dev/x".into(),
        read_only: false,
    };
    let mut without_agent = with(|group| {
        group.spec.template.guest_access.agent = Agent::Inject;
    });
    let reason_of = "agent is inject, but this host has no slice-agent";
    without_agent.available.no_agent = Some(reason_of.to_owned());
    let variants = [
        (
            free(|free| free.vcpus = 0),
            "it needs 1 vCPUs, and 0 are free",
        ),
        (
            free(|free| free.ram_bytes = 64 << 20),
            "it needs 128 MiB of memory, and 64 MiB are free",
        ),
        (
            free(|free| free.isolated = 0),
            "it needs 1 networks in isolated mode, and 0 are free",
        ),
        (image, "it needs 3 GiB of disk space, and 2 GiB are free"),
        (
            with(|group| group.spec.template.hypervisor = Hypervisor::Qemu),
            "this node cannot start qemu",
        ),
        (
            with(|group| group.spec.template.kernel_file = file()),
            "this node has no file /img/a",
        ),
        (
            with(|group| group.spec.template.storage.disks = vec![disk]),
            "this node has no file /dev/x",
        ),
        (
            with(|group| group.replacement = super::group("a", 1, Some(at(29).0)).replacement),
            "stop_after is 29 s, expected at least 30 s",
        ),
        (
            unguarded,
            "it may be replaced, and no guard runs on this node: start sliced-fence.service",
        ),
        (
            replaced(|group| group.spec.template.hypervisor = Hypervisor::None),
            "it may be replaced, and has `hypervisor: none`: this node cannot stop its VMM",
        ),
        (
            with(|group| {
                let named = "token".parse().expect("a name");
                group.spec.template.guest_access.provision.secrets = vec![named];
            }),
            "this node has no secret token: `slicectl secret create` on this node",
        ),
        (
            with(|group| group.spec.template.network = cni()),
            "this node has no CNI network lab with all of its plugins",
        ),
        (without_agent, reason_of),
        (
            group_conflict,
            "group web exists on this node and is not of the fleet",
        ),
        (
            vm_conflict,
            "VM web-1 exists on this node and is not of the fleet",
        ),
        (
            too_new,
            "group web cannot be read by this node: format 9 is newer than 1, the newest that this daemon reads: upgrade it",
        ),
    ];
    for (mut fixture, expected) in variants {
        for file in ["/img/a", "/dev/x"] {
            let missing = Err(format!("this node has no file {file}"));
            let files = &mut fixture.available.files;
            files.entry(file.into()).or_insert(missing);
        }
        assert_eq!(reason(&fixture).as_deref(), Some(expected));
        assert_eq!(fixture.phases(), [Some(Phase::Refused)], "{expected}");
    }
    assert_eq!(reason(&offered()), None);
}

fn cni() -> NetworkSpec {
    NetworkSpec::Cni(CniSpec {
        network_name: "lab".to_owned(),
        tap_owner: Default::default(),
        cni: Default::default(),
    })
}

#[test]
fn a_vm_with_a_cni_network_runs_on_a_node_that_has_it() {
    let mut fixture = with(|group| group.spec.template.network = cni());
    fixture.available.networks = ["lab".to_owned()].into();
    assert_eq!(fixture.changes(), ["put group web 1", "add 1 4"]);
}

/// Files are looked for by a task: a VM may be bound before those of its group were looked for.
#[test]
fn a_vm_waits_until_all_files_of_its_group_were_looked_for() {
    let [a, b] = ["/img/a", "/img/b"].map(PathBuf::from);
    let disk = |path: &PathBuf| AdditionalDisk {
        path: path.clone(),
        read_only: false,
    };
    for what in [
        "kernel", "initrd", "image", "program", "jailer", "userdata", "disk",
    ] {
        let mut fixture = with(|group| {
            let spec = &mut group.spec.template;
            spec.storage.disks = vec![disk(&b)];
            match what {
                "kernel" => spec.kernel_file = Some(a.clone()),
                "initrd" => spec.initrd_file = Some(a.clone()),
                "image" => spec.storage.image = Some(a.clone()),
                "program" => spec.lifecycle.program = Some(a.clone()),
                "jailer" => spec.lifecycle.jailer = Some(a.clone()),
                "userdata" => {
                    let file = Userdata::File(a.clone());
                    spec.guest_access.provision.userdata = Some(file);
                }
                _ => spec.storage.disks.push(disk(&a)),
            }
        });
        fixture.available.files.insert(b.clone(), Ok(1));
        assert_eq!(fixture.plan().steps, [], "{what}");
        assert_eq!(fixture.reports(), [ReportReason::Waiting], "{what}");
        let unusable = "this node cannot use it".to_owned();
        fixture
            .available
            .files
            .insert(a.clone(), Err(unusable.clone()));
        assert_eq!(reason(&fixture), Some(unusable), "{what}");
        fixture.available.files.insert(a.clone(), Ok(1));
        assert_eq!(fixture.changes(), ["put group web 1", "add 1 4"], "{what}");
    }
}

#[test]
fn a_vm_is_refused_once_for_each_epoch() {
    let refused = status(4, Phase::Refused);
    let full = || free(|free| free.vcpus = 0);
    assert_eq!(full().status(1, refused.clone()).plan().steps, []);
    let again = full()
        .object(object(1, Some(binding("n1", 5))))
        .status(1, refused.clone());
    assert_eq!(again.changes(), ["refuse 1 5"]);
    // The resources are free now: the scheduler decides when it is offered again.
    assert_eq!(offered().status(1, refused).plan().steps, []);
}

#[test]
fn a_refusal_holds_from_its_decision_until_a_greater_epoch() {
    let refused = |fixture: Fixture| {
        let mut fixture = fixture;
        let (epoch, reason) = (4, "it was full".to_owned());
        fixture
            .refusals
            .insert(uid(1), LocalRefusal { epoch, reason });
        fixture
    };
    // The resources are free now, and the status that was sent is not listed yet.
    let decided = refused(offered());
    assert_eq!(decided.changes(), Vec::<String>::new());
    assert_eq!(decided.phases(), [Some(Phase::Refused)]);
    let mut deleting = object(1, Some(binding("n1", 4)));
    deleting.meta.deleting = true;
    let bound = |node, epoch| Fixture::new().object(object(1, Some(binding(node, epoch))));
    for (name, fixture, changes) in [
        (
            "again",
            bound("n1", 5),
            vec!["put group web 1", "add 1 5", "forget 1"],
        ),
        ("elsewhere", bound("n2", 5), vec!["forget 1"]),
        (
            "deleting",
            Fixture::new().object(deleting),
            vec!["forget 1"],
        ),
        ("missing", Fixture::new(), vec!["forget 1"]),
        ("undecodable", Fixture::new().undecodable(1), vec![]),
    ] {
        assert_eq!(refused(fixture).changes(), changes, "{name}");
    }
}

#[test]
fn vms_of_one_plan_share_the_room() {
    let mut fixture = offered()
        .object(object(2, Some(binding("n1", 1))))
        .object(object(3, Some(binding("n1", 1))));
    fixture.available.free.isolated = 2;
    assert_eq!(
        fixture.changes(),
        ["put group web 1", "add 1 4", "add 2 1", "refuse 3 1"]
    );
}

#[test]
fn a_vm_waits_for_the_deletion_of_one_with_its_name_and_is_refused_if_that_one_stays() {
    let other = LocalVm {
        uid: uid(9),
        ..local(1, 2)
    };
    let mut deleting = object(9, Some(binding("n1", 2)));
    deleting.meta.deleting = true;
    let waits = offered().local(other.clone()).object(deleting);
    assert_eq!(waits.changes(), ["remove 9"]);
    assert_eq!(waits.reports(), [ReportReason::Waiting]);

    let leaving = LocalVm {
        run: Run::Deleting,
        ..other.clone()
    };
    let waits = offered().local(leaving);
    assert_eq!(waits.changes(), Vec::<String>::new());

    let refused = offered().local(other);
    let reason = reason(&refused).expect("a reason");
    assert!(
        reason.ends_with("exists on this node with the same name"),
        "{reason}"
    );
}

#[test]
fn a_vm_waits_for_the_vms_of_an_earlier_group_with_the_name_of_its_group() {
    let earlier = LocalVm {
        group_uid: uid(999),
        run: Run::Deleting,
        ..local(2, 2)
    };
    let fixture = offered().local(earlier);
    assert_eq!(fixture.changes(), Vec::<String>::new());
    assert!(fixture.reports().contains(&ReportReason::Waiting));
}

#[test]
fn a_vm_of_a_group_that_is_missing_is_neither_added_nor_refused() {
    let mut fixture = offered();
    fixture.objects.groups.clear();
    assert_eq!(fixture.plan().steps, []);
    assert_eq!(fixture.reports(), [ReportReason::NoGroup]);
}

fn isolated(range: &str) -> NetworkSpec {
    NetworkSpec::Isolated(IsolatedSpec {
        range: Some(range.parse().unwrap()),
        max_connections: None,
        policy: Policy::default(),
        tap_owner: TapOwner::default(),
    })
}

#[test]
fn a_group_whose_network_conflicts_with_another_on_the_node_is_refused() {
    for (range, origin, conflicts) in [
        ("169.254.0.0/20", Origin::Apply, true),
        (
            "169.254.0.0/20",
            Origin::File("/etc/slice/own.yaml".into()),
            true,
        ),
        ("169.254.64.0/20", Origin::Apply, false),
    ] {
        let mut fixture = with(|group| group.spec.template.network = isolated("169.254.8.0/24"));
        let mut spec = group("own", 2000, None).spec;
        spec.template.network = isolated(range);
        fixture.available.host_groups = vec![HostGroup {
            meta: meta("own", 2000),
            origin,
            spec,
            orders: BTreeMap::new(),
            adopted: false,
            seen_in: None,
        }];
        let found = reason(&fixture);
        assert_eq!(found.is_some(), conflicts, "{found:?}");
        let expected = "group web cannot be on this node: 169.254.8.0/24 overlaps 169.254.0.0/20 of group \"own\" ";
        assert!(found.is_none_or(|found| found.starts_with(expected)));
    }
}

#[test]
fn a_node_takes_as_many_vms_of_a_group_as_its_subnet_has_addresses() {
    let bridge = |prefix_len| {
        let mut web = group("web", 1000, None);
        web.spec.template.network = NetworkSpec::Bridge(BridgeSpec {
            bridge: "br0".into(),
            tap_prefix: "tap".into(),
            gateway: None,
            addresses: Addresses::Any,
            antispoof: true,
            isolate_ports: false,
            max_connections: None,
            tap_owner: TapOwner::default(),
        });
        web.placement.subnets = Some(Subnets {
            pool: "10.0.0.0/16".parse().unwrap(),
            prefix_len,
        });
        web
    };
    for (prefix_len, local_vms, admitted) in [(29, 0, 5), (29, 3, 2), (29, 5, 0), (24, 0, 8)] {
        let mut fixture = Fixture::new().group(Ok(bridge(prefix_len)));
        let gateway = "10.0.0.1".parse().unwrap();
        let subnet = Ipv4Network::new("10.0.0.0".parse().unwrap(), prefix_len).unwrap();
        let subnet = NodeSubnet { subnet, gateway };
        fixture.objects.subnets.insert(name("web"), subnet);
        for index in 1..=local_vms {
            fixture = fixture
                .local(local(index, 4))
                .object(object(index, Some(binding("n1", 4))));
        }
        for index in 11..=18 {
            fixture = fixture.object(object(index, Some(binding("n1", 4))));
        }
        let steps = fixture.plan().steps;
        let count = |is: fn(&Step) -> bool| steps.iter().filter(|step| is(step)).count();
        assert_eq!(count(|step| matches!(step, Step::AddVm { .. })), admitted);
        assert_eq!(
            count(|step| matches!(step, Step::RefuseVm { .. })),
            8 - admitted
        );
    }
}
