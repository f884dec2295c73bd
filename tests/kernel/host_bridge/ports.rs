//! Bridges, ports and forwarding entries.
//! Out of scope: filters.

use std::time::{Duration, Instant};

use slicectl::host::Kind;
use slicectl::host::bridge::{self, BridgeInfo, NewBridge, Port};
use slicectl::host::fdb::{self, Entry, Sort};
use slicectl::host::link::{self, Change};
use slicectl::host::tap::{self, Owner};

use crate::host_bridge::wire::{BRIDGE_MAC, Wire, bridge, index, kernel, kind, up};
use test_support::frames::{BROADCAST, ethernet};
use test_support::kernel::{self, Canaries, Neighbour};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
/// An experimental EtherType (IEEE 802): nobody answers.
const TALK: u16 = 0x88b5;

fn birth(name: &str, mtu: u32) -> NewBridge {
    NewBridge {
        name: name.into(),
        mac: BRIDGE_MAC,
        mtu,
        group: 0,
    }
}

#[test]
fn a_bridge_is_created_with_its_mac_and_without_a_spanning_tree() {
    kernel::private(async {
        let canaries = Canaries::release();
        let handle = kernel().await;
        bridge::create(&handle, &birth("br0", 1500)).await.unwrap();
        let born = link::get(&handle, "br0").await.unwrap().unwrap();
        assert_eq!(
            (born.kind.as_deref(), born.mac, born.mtu, born.up),
            (Some("bridge"), Some(BRIDGE_MAC), 1500, false)
        );
        assert_eq!(
            born.bridge,
            Some(BridgeInfo {
                max_learned: Some(bridge::MAX_LEARNED),
                ..BridgeInfo::default()
            })
        );
        assert_eq!((born.port, born.master, born.alias), (None, None, None));
        let seen = &kernel::ip("link show br0")[0]["linkinfo"]["info_data"];
        assert_eq!(
            (seen["stp_state"].as_u64(), seen["forward_delay"].as_u64()),
            (Some(0), Some(0))
        );

        let again = bridge::create(&handle, &birth("br0", 1400)).await;
        assert_eq!(kind(again), Some(Kind::Exists));
        let pattern = bridge::create(&handle, &birth("br%d", 1500)).await;
        assert_eq!(kind(pattern), Some(Kind::Other));
        let label = Change {
            alias: Some("slice/bridge".into()),
            ..up()
        };
        link::set(&handle, born.index, &label).await.unwrap();
        let labelled = link::get(&handle, "br0").await.unwrap().unwrap();
        assert_eq!(labelled.alias.as_deref(), Some("slice/bridge"));
        link::delete(&handle, born.index).await.unwrap();
        assert_eq!(link::get(&handle, "br0").await.unwrap(), None);
        assert_eq!(link::get(&handle, "br1").await.unwrap(), None);
        canaries.assert_alive();
    });
}

#[test]
fn a_bridges_mtu_and_mac_do_not_follow_its_ports() {
    kernel::private(async {
        let handle = kernel().await;
        for (mtu, of_port) in [(1400, 1500), (1500, 1400), (9000, 1500), (65535, 68)] {
            bridge::create(&handle, &birth("br0", mtu)).await.unwrap();
            let master = index(&handle, "br0").await;
            // The lowest address among the ports' is what a bridge takes if it may.
            let born = Change {
                mac: Some([2, 0, 0, 0, 0, 0]),
                mtu: Some(of_port),
                master: Some(master),
                ..up()
            };
            tap::create("vmtap0", Owner { uid: 0, gid: None }, &born).unwrap();
            let found = link::get(&handle, "br0").await.unwrap().unwrap();
            assert_eq!((found.mtu, found.mac), (mtu, Some(BRIDGE_MAC)));
            let port = index(&handle, "vmtap0").await;
            link::delete(&handle, port).await.unwrap();
            let found = link::get(&handle, "br0").await.unwrap().unwrap();
            assert_eq!((found.mtu, found.mac), (mtu, Some(BRIDGE_MAC)));
            link::delete(&handle, master).await.unwrap();
        }
    });
}

#[test]
fn a_spanning_tree_that_somebody_turned_on_is_seen_and_turned_off() {
    kernel::private(async {
        let handle = kernel().await;
        kernel::run(
            "ip link add br0 type bridge stp_state 1 forward_delay 400 group_fwd_mask 0x4000",
        );
        let found = link::get(&handle, "br0").await.unwrap().unwrap();
        let busy = BridgeInfo {
            stp: true,
            forward_delay: 400,
            vlan_filtering: false,
            snooping: true,
            group_fwd_mask: 0x4000,
            max_learned: Some(0),
        };
        assert_eq!(found.bridge, Some(busy));
        bridge::calm(&handle, found.index, found.bridge.unwrap_or_default())
            .await
            .unwrap();
        let found = link::get(&handle, "br0").await.unwrap().unwrap();
        let calm = BridgeInfo {
            stp: false,
            forward_delay: 0,
            vlan_filtering: false,
            snooping: false,
            group_fwd_mask: 0,
            max_learned: Some(bridge::MAX_LEARNED),
        };
        assert_eq!(found.bridge, Some(calm));
    });
}

#[test]
fn a_tap_is_a_port_from_birth_and_its_settings_read_back_equal() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let born = Change {
            alias: Some("slice/vm".into()),
            mtu: Some(1400),
            master: Some(master),
            ..Change::default()
        };
        let owner = Owner {
            uid: 1000,
            gid: None,
        };
        tap::create("a-tap-of-15-cha", owner, &born).unwrap();
        let found = link::get(&handle, "a-tap-of-15-cha")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.master, found.mtu, found.alias.as_deref()),
            (Some(master), 1400, Some("slice/vm"))
        );
        assert_eq!(found.tun.and_then(|tun| tun.owner), Some(1000));
        assert_eq!(found.port, Some(Port::default()));

        let all = [false, true].map(|isolated| {
            [false, true].map(|learning| {
                [false, true].map(|unicast_flood| Port {
                    isolated,
                    learning,
                    unicast_flood,
                    protected: isolated != learning,
                })
            })
        });
        for port in all.into_iter().flatten().flatten() {
            bridge::set_port(&handle, found.index, port).await.unwrap();
            let now = link::get(&handle, "a-tap-of-15-cha").await.unwrap();
            assert_eq!(now.and_then(|link| link.port), Some(port));
        }

        let released = Change {
            master: Some(0),
            ..Change::default()
        };
        link::set(&handle, found.index, &released).await.unwrap();
        let now = link::get(&handle, "a-tap-of-15-cha")
            .await
            .unwrap()
            .unwrap();
        assert_eq!((now.master, now.port), (None, None));
        let no_port = bridge::set_port(&handle, found.index, Port::default()).await;
        assert_eq!(kind(no_port), Some(Kind::Other));
    });
}

#[test]
fn forwarding_entries_are_made_listed_found_and_deleted() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let a = Wire::lay(&handle, "vmtap0", Some(master)).await;
        let b = Wire::lay(&handle, "vmtap1", Some(master)).await;
        assert_eq!(fdb::get(&handle, master, GUEST).await.unwrap(), None);

        let entry = Entry::sticky(a.index, GUEST);
        fdb::replace(&handle, entry).await.unwrap();
        let got = fdb::get(&handle, master, GUEST).await.unwrap();
        assert_eq!(got, Some(entry));
        let of_a = fdb::list(&handle, a.index).await.unwrap();
        let lasting: Vec<_> = of_a.iter().filter(|e| e.kind != Sort::Local).collect();
        assert_eq!(lasting, [&entry]);
        assert!(of_a.iter().all(|e| e.port == a.index), "{of_a:?}");
        let of_b = fdb::list(&handle, b.index).await.unwrap();
        assert!(of_b.iter().all(|e| e.mac != GUEST), "{of_b:?}");
        let seen = kernel::run("bridge fdb show dev vmtap0");
        assert!(
            seen.contains("02:00:00:00:00:07 sticky master br0 static"),
            "{seen}"
        );

        // In place of what was there.
        let elsewhere = Entry {
            kind: Sort::Static,
            ..Entry::sticky(b.index, GUEST)
        };
        fdb::replace(&handle, elsewhere).await.unwrap();
        let got = fdb::get(&handle, master, GUEST).await.unwrap();
        assert_eq!(got.map(|e| e.port), Some(b.index));
        assert_eq!(kind(fdb::delete(&handle, entry).await), Some(Kind::Absent));
        fdb::delete(&handle, elsewhere).await.unwrap();
        assert_eq!(fdb::get(&handle, master, GUEST).await.unwrap(), None);
        assert_eq!(
            kind(fdb::delete(&handle, elsewhere).await),
            Some(Kind::Absent)
        );

        // What is no bridge, or no more, is not a bridge without the entry.
        assert!(fdb::get(&handle, a.index, GUEST).await.is_err());
        fdb::replace(&handle, entry).await.unwrap();
        link::delete(&handle, a.index).await.unwrap();
        assert_eq!(fdb::get(&handle, master, GUEST).await.unwrap(), None);
    });
}

#[test]
fn a_sticky_entry_is_not_stolen_by_a_port_that_learns_and_a_static_one_is() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let vm = Wire::lay(&handle, "vmtap0", Some(master)).await;
        let thief = Wire::lay(&handle, "thief0", Some(master)).await;
        let lie = ethernet(BROADCAST, GUEST, TALK, &[1; 46]);
        for (sort, owner) in [(Sort::Sticky, vm.index), (Sort::Static, thief.index)] {
            let entry = Entry {
                kind: sort,
                ..Entry::sticky(vm.index, GUEST)
            };
            fdb::replace(&handle, entry).await.unwrap();
            assert!(thief.send(&lie));
            assert!(!vm.receives(&[], &lie));
            let got = fdb::get(&handle, master, GUEST).await.unwrap();
            assert_eq!(got.map(|e| e.port), Some(owner), "{sort:?}");
        }
    });
}

#[test]
fn isolated_ports_do_not_reach_each_other_but_others_do() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let a = Wire::lay(&handle, "vmtap0", Some(master)).await;
        let b = Wire::lay(&handle, "vmtap1", Some(master)).await;
        let open = Wire::lay(&handle, "vmtap2", Some(master)).await;
        let shout = ethernet(BROADCAST, GUEST, TALK, &[1; 46]);
        let last = ethernet(BROADCAST, OTHER, TALK, &[2; 46]);

        let end = ethernet(BROADCAST, GUEST, TALK, &[3; 46]);
        a.send(&shout);
        open.send(&last);
        assert!(b.receives(&shout, &last));
        a.send(&end);
        assert!(open.receives(&shout, &end));

        let isolated = Port {
            isolated: true,
            ..Port::default()
        };
        for port in [a.index, b.index] {
            bridge::set_port(&handle, port, isolated).await.unwrap();
        }
        a.send(&shout);
        open.send(&last);
        assert!(!b.receives(&shout, &last));
        a.send(&end);
        assert!(open.receives(&shout, &end));
    });
}

#[test]
fn a_port_that_is_not_flooded_receives_what_has_an_entry_and_nothing_strange() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let a = Wire::lay(&handle, "vmtap0", Some(master)).await;
        let b = Wire::lay(&handle, "vmtap1", Some(master)).await;
        let quiet = Port {
            learning: false,
            unicast_flood: false,
            ..Port::default()
        };
        bridge::set_port(&handle, b.index, quiet).await.unwrap();
        let unknown = ethernet([2, 9, 9, 9, 9, 9], OTHER, TALK, &[1; 46]);
        let known = ethernet(GUEST, OTHER, TALK, &[2; 46]);
        let last = ethernet(BROADCAST, OTHER, TALK, &[3; 46]);
        let before = fdb::get(&handle, master, GUEST).await.unwrap();
        assert_eq!(before, None);
        for frame in [&unknown, &known, &last] {
            a.send(frame);
        }
        assert!(!b.receives(&known, &last));

        fdb::replace(&handle, Entry::sticky(b.index, GUEST))
            .await
            .unwrap();
        a.send(&known);
        a.send(&last);
        assert!(b.receives(&known, &last));
        a.send(&unknown);
        a.send(&last);
        assert!(!b.receives(&unknown, &last));
    });
}

#[test]
fn a_port_forwards_without_listening_first_and_the_host_is_reached_over_it() {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let lan = Neighbour::join("lan0", "192.168.137.1/24", "192.168.137.9/24");
        kernel::run("ip addr flush dev lan0; ip addr add 192.168.137.1/24 dev br0");
        let port = index(&handle, "lan0").await;
        let enslaved = Change {
            master: Some(master),
            ..Change::default()
        };
        link::set(&handle, port, &enslaved).await.unwrap();
        // Two forward delays of the kernel's own would be thirty seconds.
        let begin = Instant::now();
        while std::fs::read_to_string("/sys/class/net/lan0/brport/state").unwrap() != "3\n" {
            assert!(begin.elapsed() < Duration::from_secs(5), "not forwarding");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        lan.run("busybox ping -c1 -W5 192.168.137.1");
    });
}

#[test]
fn a_guest_that_sends_from_many_addresses_fills_no_more_than_a_bounded_part_of_the_forwarding_table()
 {
    kernel::private(async {
        let handle = kernel().await;
        let master = bridge(&handle, "br0").await;
        let guest = Wire::lay(&handle, "vmtap0", Some(master)).await;
        let learned = || {
            let count =
                kernel::run("bridge fdb show br br0 dynamic | grep -c 'dev vmtap0' || true");
            count.trim().parse::<u32>().unwrap()
        };
        for number in 0..bridge::MAX_LEARNED + 1000 {
            let [a, b, c, d] = number.to_be_bytes();
            guest.send(&ethernet(BROADCAST, [6, 1, a, b, c, d], TALK, &[0; 46]));
        }
        let found = learned();
        assert!(found > 1000 && found <= bridge::MAX_LEARNED, "{found}");
    });
}
