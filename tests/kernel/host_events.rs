//! That changes in any namespace with a veth to us are noticed, and that noise is not.
//! Out of scope: what is done about them.

use std::path::Path;
use std::time::Duration;

use slicectl::host::addr::{self, Addr};
use slicectl::host::events::{Event, Events, What};
use slicectl::host::iptables::Backend;
use slicectl::host::link::{self, Change, State, VethEnd};
use slicectl::host::netns::{self, Netns};
use slicectl::host::rule::{Generation, TableName};
use slicectl::host::{Handle, sysctl};
use test_support::kernel;

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(300);

/// A namespace with a veth, as a VM has; and a listener that has received the events of its creation.
struct Slot {
    events: Events,
    ns: Netns,
    inside: Handle,
    near: u32,
    far: u32,
    nsid: i32,
}

impl Slot {
    async fn make() -> Self {
        let mut events = Events::listen().unwrap();
        let host = Netns::current().unwrap().netlink().unwrap();
        let ns = netns::create(Path::new("/run/netns/one"), |_| Ok(()))
            .await
            .unwrap();
        let inside = ns.netlink().unwrap();
        let end = |name: &str, last| VethEnd {
            name: name.into(),
            mac: [2, 0, 0, 0, 0, last],
            mtu: 1500,
            group: 0,
        };
        link::create_veth(&host, &end("sl0", 1), &end("up0", 2), &ns)
            .await
            .unwrap();
        let near = link::get(&host, "sl0").await.unwrap().unwrap();
        let far = link::get(&inside, "up0").await.unwrap().unwrap().index;
        let up = Change {
            state: Some(State::Up),
            ..Change::default()
        };
        link::set(&host, near.index, &up).await.unwrap();
        link::set(&inside, far, &up).await.unwrap();
        let net = "10.9.0.1/24".parse().unwrap();
        addr::add(&inside, Addr { index: far, net }).await.unwrap();
        // IPv6 takes a while to settle on a new link.
        while tokio::time::timeout(Duration::from_secs(3), events.next())
            .await
            .is_ok()
        {}
        Self {
            events,
            ns,
            inside,
            near: near.index,
            far,
            nsid: near.peer_nsid.unwrap(),
        }
    }

    /// Waits for such an event of the namespace.
    async fn receives(&mut self, what: impl Fn(&What) -> bool) {
        let desired = async {
            loop {
                let event = self.events.next().await.unwrap();
                if event.nsid == Some(self.nsid) && what(&event.kind) {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, desired)
            .await
            .expect("no such event");
    }

    /// The next transaction of the namespace's rules.
    async fn receives_rule_changes(&mut self) -> Generation {
        let desired = async {
            loop {
                let event = self.events.next().await.unwrap();
                if let (Some(_), What::Rules { generation }) = (event.nsid, event.kind) {
                    return generation;
                }
            }
        };
        tokio::time::timeout(SOON, desired)
            .await
            .expect("no rules event")
    }

    async fn receives_nothing(&mut self) {
        if let Ok(event) = tokio::time::timeout(QUIET, self.events.next()).await {
            panic!("received {event:?}");
        }
    }

    /// Runs a shell command inside the namespace.
    fn run(&self, command: &str) {
        kernel::run(&format!("nsenter --net=/run/netns/one sh -ec '{command}'"));
    }
}

#[test]
fn a_link_deleted_inside_is_reported_with_its_name_and_so_is_our_end_of_it() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        let (near, far, nsid) = (slot.near, slot.far, slot.nsid);
        slot.run("ip link del up0");
        let mut received = Vec::new();
        let both = async {
            while received.len() < 2 {
                let Event { nsid, kind: what } = slot.events.next().await.unwrap();
                if let What::Link(link) = what
                    && link.deleted
                {
                    received.push((nsid, link.name, link.index));
                }
            }
        };
        tokio::time::timeout(SOON, both)
            .await
            .expect("not both ends were reported");
        received.sort();
        assert_eq!(received[0], (None, "sl0".to_owned(), near));
        assert_eq!(received[1], (Some(nsid), "up0".to_owned(), far));
    });
}

#[test]
fn an_address_removed_inside_is_reported() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        let net = "10.9.0.1/24".parse().unwrap();
        addr::delete(
            &slot.inside,
            Addr {
                index: slot.far,
                net,
            },
        )
        .await
        .unwrap();
        slot.receives(|what| matches!(what, What::Addr { .. }))
            .await;
    });
}

#[test]
fn a_route_removed_inside_is_noticed() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        slot.run("ip route add 10.10.0.0/16 via 10.9.0.2");
        slot.receives(|what| matches!(what, What::Route { .. }))
            .await;
        slot.run("ip route del 10.10.0.0/16");
        slot.receives(|what| matches!(what, What::Route { .. }))
            .await;
    });
}

#[test]
fn ip_forward_switched_inside_is_reported() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        for value in ["1", "0"] {
            slot.ns
                .run(move || sysctl::write("net.ipv4.ip_forward", value))
                .await
                .unwrap();
            slot.receives(|what| *what == (What::Netconf { index: None }))
                .await;
            while tokio::time::timeout(QUIET, slot.events.next())
                .await
                .is_ok()
            {}
        }
    });
}

#[test]
fn rules_changed_inside_are_reported_once_a_transaction() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        slot.run("nft \"add table ip t; add chain ip t c; add rule ip t c drop; add rule ip t c accept\"");
        slot.receives(|what| matches!(what, What::Rules { .. }))
            .await;
        slot.receives_nothing().await;
        slot.run("nft flush ruleset");
        slot.receives(|what| matches!(what, What::Rules { .. }))
            .await;
        slot.run("iptables -A FORWARD -j DROP");
        slot.receives(|what| matches!(what, What::Rules { .. }))
            .await;
    });
}

#[test]
fn a_look_covers_the_rules_that_were_committed_before_it_and_none_that_came_after() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        let backend = Backend::detect().unwrap();
        slot.run("iptables -A FORWARD -j DROP");
        let look = || backend.read_with_generation(&[TableName::Filter]);
        let (_, seen) = slot.ns.run_here(look).unwrap();
        let seen = seen.expect("there are rules");
        // The builtin chains and the rule, in one transaction or in two.
        let mut committed = vec![slot.receives_rule_changes().await];
        while let Ok(event) = tokio::time::timeout(QUIET, slot.events.next()).await {
            if let What::Rules { generation } = event.unwrap().kind {
                committed.push(generation);
            }
        }
        for committed in committed {
            assert!(seen.covers(committed), "{seen:?} {committed:?}");
        }
        slot.run("iptables -F FORWARD");
        let flushed = slot.receives_rule_changes().await;
        assert!(!seen.covers(flushed), "{seen:?} {flushed:?}");
    });
}

#[test]
fn a_permanent_neighbour_lost_is_noticed_and_arp_is_not() {
    kernel::private(async {
        let mut slot = Slot::make().await;
        kernel::run("ip addr add 10.9.0.2/24 dev sl0");
        slot.run("busybox ping -c1 -W2 10.9.0.2");
        assert!(
            kernel::run("ip neigh show dev sl0").contains("lladdr"),
            "ARP must have happened"
        );
        while let Ok(event) = tokio::time::timeout(QUIET, slot.events.next()).await {
            assert!(!matches!(event.unwrap().kind, What::Neigh { .. }));
        }
        slot.run("ip neigh replace 10.9.0.7 lladdr 02:00:00:00:00:07 dev up0 nud permanent");
        slot.receives(|what| matches!(what, What::Neigh { .. }))
            .await;
        while tokio::time::timeout(QUIET, slot.events.next())
            .await
            .is_ok()
        {}
        slot.run("ip neigh del 10.9.0.7 dev up0");
        slot.receives(|what| matches!(what, What::Neigh { .. }))
            .await;
    });
}

#[test]
fn changes_in_our_own_namespace_are_reported_without_a_namespace_id() {
    kernel::private(async {
        let mut events = Events::listen().unwrap();
        kernel::run("ip link add br9 type bridge");
        let first = tokio::time::timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first.nsid, None);
        assert!(
            matches!(first.kind, What::Link(_) | What::Netconf { .. }),
            "{first:?}"
        );
        kernel::run("nft add table ip t");
        let rules = async {
            let received = |event: &Event| (event.nsid, matches!(event.kind, What::Rules { .. }));
            while received(&events.next().await.unwrap()) != (None, true) {}
        };
        tokio::time::timeout(SOON, rules)
            .await
            .expect("no rules event");
    });
}

#[test]
fn too_many_notifications_are_an_overrun_and_later_ones_arrive() {
    kernel::private(async {
        let mut events = Events::listen().unwrap();
        // Each batch of routes makes far more than the backlog.
        kernel::run(
            "ip link set lo up
             i=0; while [ $i -lt 256 ]; do j=0; while [ $j -lt 256 ]; do
               echo \"route add 10.9.$i.$j dev lo\"; echo \"route del 10.9.$i.$j dev lo\"; j=$((j+1));
             done; i=$((i+1)); done > /run/batch; ip -batch /run/batch",
        );
        let overrun = async { while events.next().await.unwrap().kind != What::Overrun {} };
        tokio::time::timeout(SOON, overrun)
            .await
            .expect("no overrun");
        while tokio::time::timeout(QUIET, events.next()).await.is_ok() {}
        kernel::run("ip link add br9 type bridge");
        tokio::time::timeout(SOON, events.next())
            .await
            .expect("deaf after an overrun")
            .unwrap();
    });
}
