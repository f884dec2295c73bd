//! A VM comes, talks, and goes without a trace.
//! Out of scope: crashes, strangers' doings.

use slicectl::api::network::TapOwner;

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::kernel::{self, Canaries};

#[test]
fn a_guest_on_a_cni_bridge_pings_its_gateway_and_leaves_nothing() {
    kernel::private(async {
        let canaries = Canaries::release();
        comes_and_goes(&Fixture::bridge(), 1500).await;
        canaries.assert_alive();
    });
}

#[test]
fn a_guest_on_a_cni_point_to_point_link_pings_its_gateway_and_leaves_nothing() {
    kernel::private(async {
        let canaries = Canaries::release();
        comes_and_goes(&Fixture::ptp(), 1400).await;
        canaries.assert_alive();
    });
}

async fn comes_and_goes(fixture: &Fixture, mtu: u32) {
    fixture.up().await.unwrap();
    fixture.down().await.unwrap();
    // The bridge, chains that all attachments share, and the IPAM's lock are there from now on.
    let before = fixture.left();

    let (connection, taken) = fixture.up().await.unwrap();
    assert!(!taken.is_empty());
    ping(&connection);
    assert_eq!((connection.mtu, connection.prefix_len), (mtu, 24));
    let host_link = connection.host_link.clone().expect("a host link");
    let seen = kernel::ip(&format!("link show dev {host_link}"));
    assert_eq!(seen[0]["linkinfo"]["info_kind"], "veth", "{host_link}");
    let tap = fixture.inside("ip -o -d link show tap0");
    assert!(tap.contains(&format!("mtu {mtu}")), "{tap}");
    assert!(fixture.inside("ip -6 addr show dev tap0").is_empty());

    let again = fixture.up().await.unwrap();
    assert_eq!(again, (connection, vec![]), "at rest");
    fixture.down().await.unwrap();
    assert_eq!(fixture.left(), before);
    assert_eq!(fixture.down().await.unwrap(), Vec::<String>::new());
}

#[test]
fn the_tap_belongs_to_whom_it_is_to_belong() {
    kernel::private(async {
        let mut fixture = Fixture::bridge();
        let owner = |uid, gid| TapOwner { uid, gid };
        fixture.desired.data_path.as_mut().unwrap().tap_owner = owner(54_321, Some(54_322));
        fixture.up().await.unwrap();
        let tap = fixture.inside("ip -d link show tap0");
        assert!(tap.contains("user 54321 group 54322"), "{tap}");
        assert!(
            tap.contains("persist on") && tap.contains("vnet_hdr on"),
            "{tap}"
        );
        fixture.desired.data_path.as_mut().unwrap().tap_owner = owner(54_323, None);
        let (connection, _) = fixture.up().await.unwrap();
        assert!(
            fixture
                .inside("ip -d link show tap0")
                .contains("user 54323")
        );
        ping(&connection);
    });
}

#[test]
fn a_changed_configuration_is_noticed_and_the_vm_keeps_what_it_was_given() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        let (connection, _) = fixture.up().await.unwrap();
        assert!(!fixture.look().await.network_changed());
        let before = fixture.left();

        let mut plugins = fixture.bridge_plugins();
        plugins[0]["bridge"] = "cni1".into();
        plugins[0]["ipam"]["subnet"] = "10.79.0.0/24".into();
        fixture.configure("1.0.0", &plugins);
        assert!(fixture.look().await.network_changed());
        assert_eq!(fixture.up().await.unwrap(), (connection.clone(), vec![]));
        ping(&connection);

        std::fs::remove_file(fixture.path("conf/10-net.conflist")).unwrap();
        assert!(fixture.look().await.network_changed());
        assert_eq!(fixture.up().await.unwrap(), (connection, vec![]));
        assert_eq!(fixture.left(), before);

        // DEL goes by what ADD went by.
        fixture.down().await.unwrap();
        assert!(!fixture.left().iter().any(|left| left.contains("10.77.0.")));
        assert!(fixture.left().contains("0 veths"), "{:?}", fixture.left());
    });
}

/// What a chain with `tc-redirect-tap` does, in one plugin.
const OWN_TAP: &str = r#"#!/bin/sh
set -e
argument() { echo "$CNI_ARGS" | tr ';' '\n' | sed -n "s/^$1=//p"; }
inside() { nsenter --net="$CNI_NETNS" "$@"; }
tap=$(argument TC_REDIRECT_TAP_NAME)
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
CHECK) inside ip link show "$tap" >/dev/null ;;
DEL)
    ip link del vethhost 2>/dev/null || true
    [ -z "$CNI_NETNS" ] || inside ip link del "$tap" 2>/dev/null || true ;;
ADD)
    ip link add vethhost type veth peer name eth0 netns "$CNI_NETNS"
    ip addr add 10.9.0.1/24 dev vethhost
    ip link set vethhost up
    inside ip addr add 10.9.0.2/24 dev eth0
    inside ip link set eth0 up
    inside ip tuntap add "$tap" mode tap vnet_hdr user "$(argument TC_REDIRECT_TAP_UID)"
    inside ip link set "$tap" up
    for pair in "eth0 $tap" "$tap eth0"; do
        set -- $pair
        inside tc qdisc add dev "$1" ingress
        inside tc filter add dev "$1" parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev "$2"
    done
    mac() { inside ip -o link show "$1" | sed 's/.*ether \([^ ]*\).*/\1/'; }
    cat <<END
{"cniVersion": "1.0.0",
 "interfaces": [{"name": "vethhost"},
                {"name": "eth0", "mac": "$(mac eth0)", "sandbox": "$CNI_NETNS"},
                {"name": "$tap", "mac": "$(mac "$tap")", "sandbox": "$CNI_NETNS"},
                {"name": "$tap", "mac": "$(mac eth0)", "sandbox": "$CNI_CONTAINERID"}],
 "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 1},
         {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 3}]}
END
    ;;
esac
"#;

#[test]
fn the_tap_that_a_chain_made_is_used_and_nothing_of_ours_is_put_there() {
    kernel::private(async {
        let fixture = Fixture::new();
        fixture.plugin("tc-redirect-tap", OWN_TAP);
        fixture.configure("1.0.0", &serde_json::json!([{"type": "tc-redirect-tap"}]));
        let before = fixture.left();
        let (connection, taken) = fixture.up().await.unwrap();
        let ours = |action: &String| action.contains("redirect") || action.contains("create tap0");
        assert!(!taken.iter().any(ours), "{taken:?}");
        let mac = fixture.inside("ip -o link show eth0");
        assert!(mac.contains(&connection.mac.to_string()), "{mac}");
        assert_eq!(connection.tap, "tap0");
        assert_eq!(connection.host_link.as_deref(), Some("vethhost"));
        ping(&connection);
        assert_eq!(fixture.up().await.unwrap(), (connection.clone(), vec![]));

        // The gate is its being up.
        fixture.inside("ip link set tap0 down");
        fixture.up().await.unwrap();
        ping(&connection);

        // Without it the chain is asked again.
        fixture.inside("ip link del tap0");
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before);
    });
}
