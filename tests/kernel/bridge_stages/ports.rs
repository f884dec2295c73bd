//! A VM's port: what drifts comes back, what is a stranger's stays.
//! Out of scope: frames.

use crate::bridge_stages::host::{Host, identity, requirements};
use test_support::kernel::{self, Canaries};

#[test]
fn every_field_of_a_port_that_drifts_comes_back_and_the_tap_stays() {
    kernel::private(async {
        let canaries = Canaries::release();
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let desired_vm = host.desired_vm(2, "brvm0");
        let _guest = host.vm(&desired_vm).await;
        let index = || kernel::ip("link show vmtap2")[0]["ifindex"].clone();
        let before = index();
        let (mac, ip) = identity(&desired_vm);
        kernel::run("ip link add br9 type bridge && ip link set br9 up");
        for drift in [
            "ip link set vmtap2 mtu 1300".to_owned(),
            "ip link set vmtap2 address 02:00:00:00:00:42".into(),
            "ip link set vmtap2 nomaster".into(),
            "ip link set vmtap2 master br9".into(),
            "bridge link set dev vmtap2 isolated on".into(),
            "bridge link set dev vmtap2 learning on".into(),
            "bridge link set dev vmtap2 flood on".into(),
            format!("bridge fdb del {mac} dev vmtap2 master"),
            format!("bridge fdb replace {mac} dev vmtap2 master static"),
            format!("ip neigh del {ip} dev brvm0"),
            format!("ip neigh replace {ip} lladdr 02:00:00:00:00:43 dev brvm0 nud permanent"),
            "ip link set vmtap2 addrgenmode eui64".into(),
            format!(
                "rm /run/slice/vm/{}/record.json",
                slicectl::owner::uid_of(&desired_vm.port.label)
            ),
            "ip link set brvm0 down && ip link set brvm0 up".into(),
        ] {
            kernel::run(&drift);
            let taken = host.port(&desired_vm).await;
            assert!(!taken.is_empty(), "{drift} was not seen");
            assert_eq!(index(), before, "{drift}");
            assert_eq!(
                host.converge_firewall(&desired_vm).await,
                Vec::<String>::new(),
                "{drift}"
            );
        }
        canaries.assert_alive();
    });
}

#[test]
fn a_tap_that_others_may_open_is_created_again_and_starts_shut() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let mut desired_vm = host.desired_vm(2, "brvm0");
        drop(host.vm(&desired_vm).await);
        desired_vm.slot().tap_owner.uid = 1000;
        let taken = host.port(&desired_vm).await;
        assert_eq!(taken[0], "delete TAP vmtap2");
        let made = &kernel::ip("link show vmtap2")[0];
        assert!(!made["flags"].to_string().contains("UP"), "{made}");
        let taken = host.converge_firewall(&desired_vm).await;
        assert_eq!(taken.last().unwrap(), "turn forwarding on (TAP up)");
    });
}

#[test]
fn a_strangers_link_or_neighbour_is_a_conflict_and_stays() {
    kernel::private(async {
        let mut host = Host::new().await;
        kernel::run(
            "ip link add br0 type bridge
             ip link set br0 up
             ip addr add 192.168.137.1/24 dev br0
             ip neigh add 192.168.137.3 lladdr 02:00:00:00:00:03 dev br0 nud permanent
             ip tuntap add vmtap2 mode tap
             ip link add vmtap4 type bridge",
        );
        host.converge_host_network(requirements("br0", &["192.168.137.1/24"]))
            .await;
        let look = || kernel::run("ip -o link show; ip neigh show nud permanent");
        let before = look();
        for (number, thing) in [
            (2, "link vmtap2"),
            (3, "neighbour 192.168.137.3"),
            (4, "link vmtap4"),
        ] {
            let desired_vm = host.desired_vm(number, "br0");
            let why = host.port_fails(&desired_vm).await;
            assert!(why.contains(thing) && why.contains("not ours"), "{why}");
            assert_eq!(host.tear_down(&desired_vm).await, Vec::<String>::new());
        }
        assert_eq!(look(), before);

        let mut other = host.desired_vm(5, "br0");
        host.port(&other).await;
        other.port.label = host.desired_vm(6, "br0").port.label;
        let why = host.port_fails(&other).await;
        assert!(
            why.contains("it belongs to VM web-5: choose another tap_prefix"),
            "{why}"
        );
    });
}

#[test]
fn a_bridge_with_1023_ports_reports_that_it_is_full() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        kernel::run(
            "for i in $(seq 512); do echo link add d$i type veth peer name e$i; echo link set d$i master brvm0; done | ip -batch -
             for i in $(seq 511); do echo link set e$i master brvm0; done | ip -batch -",
        );
        let why = host.port_fails(&host.desired_vm(2, "brvm0")).await;
        assert!(
            why.ends_with(
                "cannot add a port to bridge brvm0: it has 1023 ports, and no bridge can have more"
            ),
            "{why}"
        );
        kernel::run("ip link del d7");
        host.port(&host.desired_vm(2, "brvm0")).await;
    });
}
