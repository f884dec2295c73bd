//! Objects of other programs with our names: a conflict that names a remedy; they are never changed, and other objects do not wait for them.
//! Out of scope: which of a slot's states are a conflict (`tests/pure/laws/net.rs`).

use std::path::Path;

use slicectl::api::condition::{Reason, Status};
use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::api::stage::Stage;
use slicectl::api::vm::Vm;
use slicectl::owner::{Instance, VmNames, vm_names};
use slicectl::store::{self, Store};

use crate::crash::life::{Dirs, End, Intent};
use crate::crash::world::host;
use test_support::kernel;
use test_support::objects::{group, spec, vm};

const RANGE: &str = "169.254.100.0/22";

#[test]
fn a_strangers_link_under_our_name_is_a_conflict() {
    is_a_conflict(
        |names, _| {
            format!(
                "ip link add {} type bridge && ip link set {0} alias mine",
                names.host_link
            )
        },
        |names, _| format!("ip -d link show {}", names.host_link),
        |names, _| format!("ip link del {}", names.host_link),
    );
}

#[test]
fn a_strangers_unlabelled_link_under_our_name_is_a_conflict() {
    is_a_conflict(
        |names, _| format!("ip link add {} type bridge", names.host_link),
        |names, _| format!("ip -d link show {}", names.host_link),
        |names, _| format!("ip link del {}", names.host_link),
    );
}

#[test]
fn a_strangers_namespace_at_our_place_is_a_conflict() {
    is_a_conflict(
        |names, dirs| {
            format!(
                "mkdir -p {dir} && ip netns add theirs && touch {dir}/{name} && mount --bind /run/netns/theirs {dir}/{name}",
                dir = dirs.run.join("netns").display(),
                name = names.netns
            )
        },
        |_, _| "ip -n theirs link; ls -i /run/netns/theirs".to_owned(),
        |names, dirs| {
            format!(
                "umount {0} && rm {0}",
                dirs.run.join("netns").join(&names.netns).display()
            )
        },
    );
}

#[test]
fn a_strangers_namespace_under_our_name_in_ip_netns_is_a_conflict() {
    is_a_conflict(
        |names, _| format!("ip netns add {}", names.netns),
        |names, _| format!("ip -n {} link; ls -i /run/netns/{0}", names.netns),
        |names, _| format!("ip netns del {}", names.netns),
    );
}

#[test]
fn a_strangers_symlink_under_our_name_in_ip_netns_is_a_conflict() {
    is_a_conflict(
        |names, _| format!("ln -s /proc/1/ns/net /run/netns/{}", names.netns),
        |names, _| format!("readlink /run/netns/{}", names.netns),
        |names, _| format!("rm /run/netns/{}", names.netns),
    );
}

#[test]
fn a_foreign_chain_under_our_name_keeps_the_host_network_from_converging() {
    kernel::private_sync(|| {
        let dirs = place();
        let chain = instance(&dirs).chain("OUT");
        kernel::run(&format!(
            "iptables -N {chain} && iptables -A {chain} -s 192.0.2.9 -j DROP"
        ));
        let theirs = || kernel::run(&format!("iptables -S {chain}"));
        let before = theirs();
        assert_eq!(dirs.live(Intent::Apply("web", &two())), End::Unconverged);
        let condition = read(&dirs, |world| {
            world.host_network_status().unwrap().condition.clone()
        });
        assert_eq!(
            (condition.status, condition.reason),
            (Status::False, Reason::Conflict)
        );
        assert!(
            condition.message.contains(&chain)
                && condition.message.contains("iptables -t filter -E"),
            "{}",
            condition.message
        );
        assert_eq!(theirs(), before);
        kernel::run(&format!("iptables -F {chain} && iptables -X {chain}"));
        assert_eq!(dirs.live(Intent::Same), End::Converged);
    });
}

/// A shell command about one VM's names.
type Words = fn(&VmNames, &Dirs) -> String;

/// Puts something of a stranger's where VM 1 wants to be. VM 2 gets up all the same.
fn is_a_conflict(put: Words, show: Words, remove: Words) {
    kernel::private_sync(|| {
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let dirs = place();
        let vms = foretell(&dirs);
        let names = vm_names(&instance(&dirs), vms[0].meta.uid);
        kernel::run(&put(&names, &dirs));
        let theirs = || kernel::run(&show(&names, &dirs));
        let before = theirs();
        assert_eq!(dirs.live(Intent::Same), End::Unconverged);
        let found = read(&dirs, |world| {
            world
                .status(vms[0].meta.uid, Stage::Net)
                .unwrap()
                .condition
                .clone()
        });
        assert_eq!(
            (found.status, found.reason),
            (Status::False, Reason::Conflict),
            "{}",
            found.message
        );
        assert!(found.message.contains("is not ours: "), "{}", found.message);
        assert_eq!(theirs(), before, "it was touched");
        assert!(
            read(&dirs, |world| world
                .is_ready(world.vm(vms[1].meta.uid).unwrap())),
            "the other VM waits"
        );
        kernel::run(&remove(&names, &dirs));
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        // And with the stranger back while the VM goes: it stays, all of ours goes.
        assert_eq!(dirs.live(Intent::Delete("web")), End::Converged);
        kernel::run(&put(&names, &dirs).replace("ip netns add theirs && ", ""));
        let before = (theirs(), host(&dirs));
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        assert_eq!((theirs(), host(&dirs)), before);
    });
}

fn place() -> Dirs {
    Dirs::below(Path::new("/run/place"))
}

fn instance(dirs: &Dirs) -> Instance {
    std::fs::create_dir_all(&dirs.state).unwrap();
    Instance::of(&dirs.state.canonicalize().unwrap())
}

fn two() -> HostGroupSpec {
    HostGroupSpec {
        count: 2,
        update: UpdatePolicy::Rolling,
        template: spec(Some(RANGE), ""),
    }
}

/// A group whose VMs have their uids before anything of them stands.
fn foretell(dirs: &Dirs) -> [Vm; 2] {
    let group = group("web", 2, spec(Some(RANGE), ""));
    let vms = [vm(&group, 1), vm(&group, 2)];
    let (store, _) = Store::open(&dirs.state).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let reported = runtime.block_on(store.write(|txn| {
        txn.put_group(group)?;
        vms.iter().try_for_each(|vm| txn.put_vm(vm.clone()))
    }));
    reported.unwrap_or_else(|error: store::Error| panic!("{error}"));
    store.close();
    vms
}

fn read<T>(dirs: &Dirs, look: impl FnOnce(&store::World) -> T) -> T {
    let (store, _) = Store::open(&dirs.state).unwrap();
    let seen = store.read(look);
    store.close();
    seen
}
