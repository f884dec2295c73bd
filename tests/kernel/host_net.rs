//! Namespaces, links, addresses, routes, neighbours, TAPs and sysctls, over a real kernel.
//! Out of scope: events, see `host_events.rs`.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use slicectl::host::addr::{self, Addr, Of};
use slicectl::host::link::{self, Change, State, VethEnd};
use slicectl::host::neigh::{self, Neigh};
use slicectl::host::netns::{self, Netns};
use slicectl::host::route::{self, NextHop, Route};
use slicectl::host::tap::{self, Framing, Layer, Owner};
use slicectl::host::{Error, Kind, sysctl};
use test_support::guest_stack;
use test_support::kernel::{self, Canaries, Neighbour};

const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// As the net stage does it: IPv6 off, then `lo` labelled and up.
fn prepare(_: &Netns) -> Result<(), Error> {
    sysctl::write_many(&[
        ("net.ipv6.conf.all.disable_ipv6", "1"),
        ("net.ipv6.conf.default.disable_ipv6", "1"),
    ])?;
    let change = Change {
        alias: Some("slice/test".into()),
        state: Some(State::Up),
        ..Change::default()
    };
    link::set_blocking("lo", &change)
}

fn end(name: &str, mac: [u8; 6]) -> VethEnd {
    VethEnd {
        name: name.into(),
        mac,
        mtu: 1400,
        group: 0,
    }
}

fn kind<T>(result: Result<T, Error>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

#[test]
fn a_namespace_is_prepared_before_it_is_visible_and_ip_netns_sees_it() {
    kernel::private(async {
        let canaries = Canaries::release();
        let ns = netns::create(&path("one"), prepare).await.unwrap();
        let lo = link::get(&ns.netlink().unwrap(), "lo")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(lo.alias.as_deref(), Some("slice/test"));
        assert!(lo.up);
        assert_eq!(
            kernel::run("ip netns exec one cat /proc/sys/net/ipv6/conf/all/disable_ipv6"),
            "1\n"
        );
        assert_eq!(kernel::run("ip -n one -6 addr"), "");

        assert_eq!(
            kind(netns::create(&path("one"), |_| Ok(())).await),
            Some(Kind::Exists)
        );
        netns::delete(&path("one")).await.unwrap();
        assert_eq!(kind(netns::delete(&path("one")).await), Some(Kind::Absent));
        assert_eq!(kind(Netns::open(&path("one"))), Some(Kind::Absent));
        canaries.assert_alive();
    });
}

#[test]
fn a_namespace_whose_preparation_fails_is_never_seen() {
    kernel::private(async {
        let failed = netns::create(&path("one"), |_| sysctl::write("net.ipv4.nonsense", "1")).await;
        assert_eq!(kind(failed), Some(Kind::Absent));
        assert_eq!(
            netns::list(Path::new("/run/netns")).unwrap(),
            [] as [PathBuf; 0]
        );
        netns::create(&path("one"), prepare).await.unwrap();
    });
}

#[test]
fn a_plain_file_is_not_taken_for_a_namespace_and_is_built_upon() {
    kernel::private(async {
        std::fs::write(path("left"), "").unwrap();
        assert_eq!(kind(Netns::open(&path("left"))), Some(Kind::Absent));
        let made = netns::create(&path("left"), prepare).await.unwrap();
        let opened = Netns::open(&path("left")).unwrap();
        assert_eq!(made.inode().unwrap(), opened.inode().unwrap());

        std::fs::write(path("litter"), "").unwrap();
        netns::delete(&path("litter")).await.unwrap();
        assert_eq!(
            netns::list(Path::new("/run/netns")).unwrap(),
            [path("left")]
        );
    });
}

#[test]
fn a_namespace_of_another_sort_is_refused_and_not_absent() {
    kernel::private(async {
        let opened = Netns::open(Path::new("/proc/self/ns/uts"));
        assert_eq!(kind(opened), Some(Kind::Other));
    });
}

#[test]
fn sixteen_namespaces_made_at_once_are_sixteen_and_nobody_is_left_inside() {
    kernel::private(async {
        let home = Netns::current().unwrap().inode().unwrap();
        let making = (0..16).map(|n| {
            tokio::spawn(async move {
                netns::create(&path(&format!("n{n}")), prepare)
                    .await
                    .unwrap()
                    .inode()
                    .unwrap()
            })
        });
        let mut inodes = Vec::new();
        for made in making.collect::<Vec<_>>() {
            inodes.push(made.await.unwrap());
        }
        inodes.push(home);
        inodes.sort_unstable();
        inodes.dedup();
        assert_eq!(inodes.len(), 17);
        for _ in 0..64 {
            let here = tokio::task::spawn_blocking(|| Netns::current().unwrap().inode().unwrap());
            assert_eq!(here.await.unwrap(), home);
        }
    });
}

#[test]
fn of_many_makers_of_one_namespace_one_wins() {
    kernel::private(async {
        let making =
            (0..8).map(|_| tokio::spawn(async { netns::create(&path("one"), prepare).await }));
        let mut won = 0;
        for made in making.collect::<Vec<_>>() {
            match made.await.unwrap() {
                Ok(_) => won += 1,
                Err(error) => assert!(matches!(error.kind, Kind::Exists | Kind::Busy), "{error:?}"),
            }
        }
        assert_eq!(won, 1);
        assert_eq!(
            kernel::run("grep -c /run/netns/one /proc/thread-self/mountinfo"),
            "1\n"
        );
    });
}

#[test]
fn a_panic_inside_a_namespace_does_not_leave_the_thread_there() {
    kernel::private_sync(|| {
        let home = Netns::current().unwrap().inode().unwrap();
        let lan = Neighbour::alone("lan");
        let ns = Netns::open(&lan.path()).unwrap();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            ns.run_here(|| -> Result<(), Error> { panic!("on purpose") })
        }));
        assert!(outcome.is_err());
        assert_eq!(Netns::current().unwrap().inode().unwrap(), home);
    });
}

#[test]
fn a_veth_is_created_whole_with_its_far_end_in_the_namespace() {
    kernel::private(async {
        let host = Netns::current().unwrap().netlink().unwrap();
        let ns = netns::create(&path("one"), prepare).await.unwrap();
        let inside = ns.netlink().unwrap();
        link::create_veth(&host, &end("sl0", HERE), &end("up0", THERE), &ns)
            .await
            .unwrap();

        let near = link::get(&host, "sl0").await.unwrap().unwrap();
        let far = link::get(&inside, "up0").await.unwrap().unwrap();
        assert_eq!(
            (near.mac, near.mtu, near.up, near.kind.as_deref()),
            (Some(HERE), 1400, false, Some("veth"))
        );
        assert_eq!((far.mac, far.mtu, far.up), (Some(THERE), 1400, false));
        assert_eq!(near.peer_index, Some(far.index));
        assert!(near.peer_nsid.is_some());
        assert!(link::get(&host, "up0").await.unwrap().is_none());
        assert_eq!(
            kind(link::create_veth(&host, &end("sl0", HERE), &end("up1", THERE), &ns).await),
            Some(Kind::Exists)
        );
        assert!(
            link::get(&inside, "up1").await.unwrap().is_none(),
            "half of a refused veth stayed"
        );

        let change = Change {
            alias: Some("slice/x".into()),
            mtu: Some(1300),
            state: Some(State::Down),
            ..Change::default()
        };
        link::set(&host, near.index, &change).await.unwrap();
        let changed = link::list(&host)
            .await
            .unwrap()
            .into_iter()
            .find(|l| l.name == "sl0")
            .unwrap();
        assert_eq!(
            (changed.alias.as_deref(), changed.mtu, changed.up),
            (Some("slice/x"), 1300, false)
        );
        assert_eq!(changed.mac, Some(HERE));

        link::delete(&host, near.index).await.unwrap();
        assert_eq!(
            kind(link::delete(&host, near.index).await),
            Some(Kind::Absent)
        );
        assert!(link::get(&inside, "up0").await.unwrap().is_none());
    });
}

#[test]
fn addresses_routes_and_neighbours_are_read_back_as_they_were_added() {
    kernel::private(async {
        let host = Netns::current().unwrap().netlink().unwrap();
        let ns = netns::create(&path("one"), prepare).await.unwrap();
        let inside = ns.netlink().unwrap();
        link::create_veth(&host, &end("sl0", HERE), &end("up0", THERE), &ns)
            .await
            .unwrap();
        let index = link::get(&inside, "up0").await.unwrap().unwrap().index;

        let near = link::get(&host, "sl0").await.unwrap().unwrap().index;
        let up = Change {
            state: Some(State::Up),
            ..Change::default()
        };
        link::set(&host, near, &up).await.unwrap();
        link::set(&inside, index, &up).await.unwrap();

        let own = Addr {
            index,
            net: "169.254.8.1/30".parse().unwrap(),
        };
        addr::add(&inside, own).await.unwrap();
        assert_eq!(kind(addr::add(&inside, own).await), Some(Kind::Exists));
        assert_eq!(addr::list(&inside, Of::Index(index)).await.unwrap(), [own]);
        assert_eq!(
            addr::list(&inside, Of::All).await.unwrap().len(),
            2,
            "with lo's"
        );

        let gateway = "169.254.1.1".parse().unwrap();
        let default = Route::default_via(gateway, index);
        let other = Route::on_link("10.9.0.0/16".parse().unwrap(), index);
        for route in [default, other] {
            route::add(&inside, &route).await.unwrap();
            assert_eq!(kind(route::add(&inside, &route).await), Some(Kind::Exists));
        }
        let routes = route::list(&inside).await.unwrap();
        assert!(
            routes.contains(&default) && routes.contains(&other),
            "{routes:?}"
        );
        assert_eq!(routes.len(), 3, "and the kernel's for the subnet");
        assert_eq!(default.next_hop, NextHop::OnLink);
        route::delete(&inside, &default).await.unwrap();
        assert_eq!(
            kind(route::delete(&inside, &default).await),
            Some(Kind::Absent)
        );

        let known = Neigh {
            index,
            ip: gateway,
            mac: HERE,
        };
        neigh::replace(&inside, known).await.unwrap();
        let moved = Neigh {
            mac: THERE,
            ..known
        };
        neigh::replace(&inside, moved).await.unwrap();
        assert_eq!(neigh::list(&inside).await.unwrap(), [moved]);
        neigh::delete(&inside, moved).await.unwrap();
        assert_eq!(
            kind(neigh::delete(&inside, moved).await),
            Some(Kind::Absent)
        );

        addr::delete(&inside, own).await.unwrap();
        assert_eq!(kind(addr::delete(&inside, own).await), Some(Kind::Absent));
    });
}

#[test]
fn a_tap_outlives_its_maker_is_owned_and_labelled_and_can_be_opened_either_way() {
    kernel::private(async {
        let ns = netns::create(&path("one"), prepare).await.unwrap();
        let change = Change {
            alias: Some("slice/t".into()),
            mac: Some(HERE),
            mtu: Some(1400),
            state: Some(State::Up),
            ..Change::default()
        };
        // In a user namespace of one user there is no other to own it.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let (uid, gid) = match map.trim_end().ends_with("4294967295") {
            true => (1234, 56),
            false => (0, 0),
        };
        let owner = Owner {
            uid,
            gid: Some(gid),
        };
        let make = move || tap::create("tap0", owner, &change);
        ns.run(make.clone()).await.unwrap();
        assert_eq!(kind(ns.run(make).await), Some(Kind::Exists));

        let inside = ns.netlink().unwrap();
        let found = link::get(&inside, "tap0").await.unwrap().unwrap();
        assert_eq!(
            (found.alias.as_deref(), found.mac, found.mtu, found.up),
            (Some("slice/t"), Some(HERE), 1400, true)
        );
        let tun = found.tun.unwrap();
        assert_eq!(
            (tun.layer, tun.owner, tun.group),
            (Layer::Tap, Some(uid), Some(gid))
        );
        assert!(
            tun.persist && tun.vnet_hdr && !tun.packet_info && !tun.multi_queue,
            "{tun:?}"
        );

        for framing in [Framing::Plain, Framing::VnetHdr] {
            let guest = ns
                .run(move || guest_stack::attach("tap0", framing))
                .await
                .unwrap();
            assert_eq!(
                kind(ns.run(move || tap::attach("tap0", framing)).await),
                Some(Kind::Busy)
            );
            drop(guest);
        }
        assert_eq!(
            kind(ns.run(|| tap::attach("tap9", Framing::Plain)).await),
            Some(Kind::Absent)
        );
    });
}

#[test]
fn a_sysctl_is_the_namespaces_own() {
    kernel::private(async {
        let ns = netns::create(&path("one"), prepare).await.unwrap();
        ns.run(|| sysctl::write("net.ipv4.ip_forward", "1"))
            .await
            .unwrap();
        assert_eq!(
            ns.run(|| sysctl::read("net.ipv4.ip_forward"))
                .await
                .unwrap(),
            "1"
        );
        assert_eq!(sysctl::read("net.ipv4.ip_forward").unwrap(), "0");
    });
}

/// More namespaces than procfs mounts that they are looked up in, so that several share one.
#[test]
fn each_of_many_namespaces_has_its_own_settings_also_after_another_had_its_number() {
    const KEYS: [(&str, u32); 4] = [
        ("net.ipv4.conf.all.arp_ignore", 2),
        ("net.ipv4.conf.default.rp_filter", 3),
        ("net.ipv4.conf.all.forwarding", 2),
        ("net.ipv6.conf.all.disable_ipv6", 2),
    ];
    let names = KEYS.map(|(key, _)| key);
    let expected = |n: usize| {
        let value = |(at, (_, values)): (usize, &(&str, u32))| {
            Some(((n >> at) as u32 % values).to_string())
        };
        KEYS.iter().enumerate().map(value).collect::<Vec<_>>()
    };
    kernel::private(async move {
        let (mut numbers, mut reused): (Vec<u64>, bool) = (Vec::new(), false);
        // The kernel gives a number out again when it likes: other namespaces of the machine come in between.
        for round in 0..10 {
            let mut all = Vec::new();
            for n in 0..2 * sysctl::MOUNTS + 3 {
                let at = path(&format!("n{n}"));
                let ns = netns::create(&at, |_| Ok(())).await.unwrap();
                let values = expected(n + round);
                let values: Vec<(&str, &str)> = names
                    .into_iter()
                    .zip(values.iter().flatten().map(String::as_str))
                    .collect();
                ns.write_sysctls(&values).unwrap();
                all.push(ns);
            }
            for again in 0..2 {
                for (n, ns) in all.iter().enumerate() {
                    // Opened again, as the next run of a VM does.
                    let ns = match again {
                        0 => ns.clone(),
                        _ => Netns::open(&path(&format!("n{n}"))).unwrap(),
                    };
                    let found = ns.read_sysctls(&names).unwrap();
                    assert_eq!(found, expected(n + round), "{n}");
                    let by_path = ns.run(move || sysctl::read_many(&names)).await.unwrap();
                    assert_eq!(by_path, found, "{n}");
                }
            }
            let inside: Vec<u64> = all.iter().map(|ns| ns.inode().unwrap()).collect();
            reused |= inside.iter().any(|number| numbers.contains(number));
            numbers = inside;
            drop(all);
            for n in 0..2 * sysctl::MOUNTS + 3 {
                netns::delete(&path(&format!("n{n}"))).await.unwrap();
            }
            if reused {
                break;
            }
            // Namespaces end some time after their last user.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        assert!(reused, "no number came again: this shows nothing");
    });
}

#[test]
fn who_is_inside_a_namespace_and_enters_it_or_another_again_comes_back_to_it() {
    kernel::private(async {
        let [one, two] = [path("one"), path("two")];
        let one = netns::create(&one, prepare).await.unwrap();
        let two = netns::create(&two, prepare).await.unwrap();
        let here = || Netns::current().and_then(|here| here.inode());
        let home = here().unwrap();
        let again = Netns::open(&path("one")).unwrap();
        let seen = one.run_here(|| {
            let mut seen = vec![here()?];
            for inner in [&one, &again, &two, &one] {
                seen.push(inner.run_here(here)?);
                seen.push(here()?);
            }
            seen.push(two.run_here(|| one.run_here(here))?);
            seen.push(two.run_here(|| one.run_here(here).and_then(|_| here()))?);
            Ok(seen)
        });
        let [a, b] = [one.inode().unwrap(), two.inode().unwrap()];
        assert_eq!(seen.unwrap(), [a, a, a, a, a, b, a, a, a, a, b]);
        assert_eq!(here().unwrap(), home);
    });
}

#[test]
fn a_neighbour_is_reached_and_a_dead_canary_is_noticed() {
    kernel::private(async {
        let canaries = Canaries::release();
        let lan = Neighbour::join("lan0", "192.168.7.1/24", "192.168.7.10/24");
        kernel::run("busybox ping -c1 -W2 192.168.7.10");
        assert_eq!(lan.ip("route show default")[0]["gateway"], "192.168.7.1");
        assert!(kernel::rules("filter").contains(&"-A FORWARD -i canary0 -j CANARY".to_owned()));
        canaries.assert_alive();
        kernel::run("iptables -F CANARY");
        assert!(std::panic::catch_unwind(|| canaries.assert_alive()).is_err());
    });
}

#[test]
fn many_dumps_requested_at_once_over_one_socket_are_all_complete() {
    // More addresses than one datagram of the kernel's carries, so that dumps overlap.
    const ADDRESSES: usize = 1000;
    kernel::private(async {
        let batch: String = (0..ADDRESSES)
            .map(|n| format!("addr add 10.9.{}.{}/32 dev lo\n", n / 250, n % 250))
            .collect();
        std::fs::write("/run/batch", batch).unwrap();
        kernel::run("ip -batch /run/batch");
        let handle = Netns::current().unwrap().netlink().unwrap();
        let lists = (0..16).map(|_| addr::list(&handle, Of::All));
        for list in futures::future::join_all(lists).await {
            // And 127.0.0.1.
            assert_eq!(list.unwrap().len(), ADDRESSES + 1);
        }
    });
}
