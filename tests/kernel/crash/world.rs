//! What the host and the store look like, as text that does not depend on uids, blocks and times.
//! Out of scope: what they should look like.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};
use slicectl::api::lease::{Address, Lease};
use slicectl::api::network::{Connection, NetworkSpec};
use slicectl::api::stage::{STAGES, Stage};
use slicectl::owner::{Instance, vm_names};
use slicectl::reconcile::firewall::antispoof;
use slicectl::store::{Store, World};

use crate::crash::life::Dirs;
use test_support::cni_networks;
use test_support::kernel;

/// Host and store of the daemon with these directories. The store must be closed.
pub fn whole(dirs: &Dirs) -> String {
    let (store, _) = Store::open(&dirs.state).unwrap();
    let instance = Instance::of(&dirs.state.canonicalize().unwrap());
    let text = store.read(|world| normalise(&(host(dirs) + &remembered(world)), &instance, world));
    store.close();
    text
}

/// The host's network and the daemon's run directory, exactly.
pub fn host(dirs: &Dirs) -> String {
    let mut text = format!("HOST\n{}", space(""));
    let netns = dirs.run.join("netns");
    let mut names: Vec<_> = fs::read_dir(&netns)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    for path in names {
        let _ = writeln!(
            text,
            "NETNS {}\n{}",
            path.display(),
            space(&format!("nsenter --net={} ", path.display()))
        );
    }
    let found = kernel::run(&format!(
        "find {} /run/netns -mindepth 1 -printf '%p %y %l\\n' | sort",
        dirs.run.display()
    ));
    let empty = ["netns", "vm"].map(|dir| format!("{} d ", dirs.run.join(dir).display()));
    for line in found
        .lines()
        .filter(|line| !empty.iter().any(|dir| dir == line))
    {
        let _ = writeln!(text, "FILE {line}");
    }
    for path in cni_networks::records()
        .into_iter()
        .chain(cni_networks::reservations())
    {
        let _ = writeln!(text, "FILE {}", path.display());
    }
    text + &records(&dirs.run.join("vm"))
}

/// One network namespace.
fn space(inside: &str) -> String {
    let run = |command: &str| kernel::run(&format!("{inside}{command}"));
    let links: Value = serde_json::from_str(&run("ip -j -d addr")).unwrap();
    let mut lines: Vec<String> = links.as_array().unwrap().iter().map(link).collect();
    lines.sort();
    lines.extend(
        run("ip -4 route show table all")
            .lines()
            .map(|line| line.replace("linkdown", "").trim().to_owned()),
    );
    lines.extend(
        run("ip -4 neigh show nud permanent")
            .lines()
            .map(str::to_owned),
    );
    lines.extend(entries(&run("bridge -j fdb show")));
    lines.extend(filters(&run));
    for tool in ["iptables", "ip6tables"] {
        lines.extend(rules(&run(&format!("{tool}-save"))).map(|rule| format!("{tool} {rule}")));
    }
    lines.push(run(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/disable_ipv6",
    ));
    lines.push(String::new());
    lines.join("\n")
}

fn link(link: &Value) -> String {
    let addresses: Vec<String> = link["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|address| address["family"] == "inet")
        .map(|address| {
            format!(
                "{}/{}",
                address["local"].as_str().unwrap(),
                address["prefixlen"]
            )
        })
        .collect();
    let up = link["flags"].as_array().unwrap().contains(&json!("UP"));
    let part = |key: &str| link[key].to_string();
    let [name, alias, mut mac, mtu] = ["ifname", "ifalias", "address", "mtu"].map(part);
    // The host's end of a veth that a plugin made has whatever MAC the kernel drew.
    if name.starts_with("\"veth") {
        mac = "any".to_owned();
    }
    format!(
        "{name} {alias} {mac} mtu {mtu} up {up} {addresses:?} {}{}",
        link["linkinfo"]["info_kind"],
        bridging(link)
    )
}

/// What a bridge does, or does with this port.
fn bridging(link: &Value) -> String {
    let of = |data: &Value, keys: &[&str]| -> String {
        let part = |key: &&str| format!(" {key} {}", data[*key]);
        keys.iter().map(part).collect()
    };
    let info = &link["linkinfo"];
    if info["info_kind"] == "bridge" {
        let keys = ["stp_state", "forward_delay", "vlan_filtering"];
        return of(&info["info_data"], &keys);
    }
    match &link["master"] {
        Value::Null => String::new(),
        master => {
            let keys = ["isolated", "learning", "flood"];
            format!(" on {master}{}", of(&info["info_slave_data"], &keys))
        }
    }
}

/// What bridges were told of MACs, not what they have learned.
fn entries(json: &str) -> Vec<String> {
    let entries: Vec<Value> = serde_json::from_str(json).unwrap();
    let reported = entries
        .iter()
        .filter(|entry| !entry["master"].is_null() && entry["state"] != "");
    let text = |entry: &Value| {
        let [mac, port, bridge, vlan, state, flags] =
            ["mac", "ifname", "master", "vlan", "state", "flags"].map(|key| &entry[key]);
        format!("fdb {mac} {port} {bridge} {vlan} {state} {flags}")
    };
    reported.map(text).collect()
}

/// Filters where frames come in. A program's text says its MAC in numbers; ours says in its name which one it is.
fn filters(run: &impl Fn(&str) -> String) -> Vec<String> {
    let qdiscs = run("tc qdisc show");
    let hooks = qdiscs.lines().filter(|line| line.contains("clsact"));
    let links = hooks.filter_map(|line| line.split(" dev ").nth(1)?.split(' ').next());
    let mut links: Vec<&str> = links.collect();
    links.sort_unstable();
    let mut found = Vec::new();
    for link in links {
        found.push(format!("tc {link} clsact"));
        for filter in run(&format!("tc filter show dev {link} ingress")).lines() {
            // Actions are counted through.
            let filter = filter.split(" index ").next().unwrap_or(filter);
            let (before, rest) = filter.split_once("bytecode '").unwrap_or((filter, ""));
            let after = rest.split_once('\'').map_or("", |(_, after)| after);
            found.push(format!("tc {link} {before}{after}"));
        }
    }
    found
}

/// Rules, chains and policies that say something, with their table.
fn rules(saved: &str) -> impl Iterator<Item = String> + '_ {
    let mut table = "";
    saved.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let says = line.starts_with('-') || (line.starts_with(':') && !line.contains(" ACCEPT "));
        says.then(|| format!("{table} {}", line.split(" [").next().unwrap_or(line)))
    })
}

/// What a daemon without a state would read.
fn records(dir: &Path) -> String {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        if let Ok(text) = fs::read_to_string(entry.unwrap().path().join("record.json")) {
            let mut record: Value = serde_json::from_str(&text).unwrap();
            blank(&mut record);
            found.push(format!("RECORD {record}\n"));
        }
    }
    found.sort();
    found.concat()
}

fn remembered(world: &World) -> String {
    let mut vms: Vec<_> = world.vms().collect();
    vms.sort_by_key(|vm| vm.meta.name.clone());
    let pages = |uid| {
        STAGES.map(|stage| {
            world.status(uid, stage).map(|page| {
                let condition = &page.condition;
                json!([
                    page.acquired,
                    condition.status,
                    condition.reason,
                    condition.message,
                    condition.observed_generation,
                    page.checkpoint.is_some()
                ])
            })
        })
    };
    let mut all = json!({
        "groups": world.groups().collect::<Vec<_>>(),
        "pools": world.pools().collect::<Vec<_>>(),
        "vms": vms.iter().map(|vm| json!([vm, pages(vm.meta.uid)])).collect::<Vec<_>>(),
        "leases": world.leases().collect::<Vec<_>>(),
        "ground": world.host_network_status(),
    });
    blank(&mut all);
    format!("STORE\n{all:#}\n")
}

/// Times, and the uids and editions of groups: an adopted group is a new one.
fn blank(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["created_at", "since"] {
                map.remove(key);
            }
            if map.contains_key("origin")
                && let Some(Value::Object(meta)) = map.get_mut("meta")
            {
                meta.remove("uid");
                meta.remove("generation");
            }
            map.values_mut().for_each(blank);
        }
        Value::Array(values) => values.iter_mut().for_each(blank),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Everything that is a function of a uid or a block under the name of its VM, lines in order.
fn normalise(text: &str, instance: &Instance, world: &World) -> String {
    let mut text = text.to_owned();
    for vm in world.vms() {
        let (names, who) = (vm_names(instance, vm.meta.uid), &vm.meta.name);
        let macs = [
            ("host", names.host_mac),
            ("up", names.uplink_mac),
            ("tap", names.tap_mac),
            ("guest", names.guest_mac),
            ("port", names.port_mac),
        ];
        for (role, mac) in macs {
            for mac in [mac.to_string(), mac.to_string().to_uppercase()] {
                text = text.replace(&mac, &format!("<{who} {role} mac>"));
            }
        }
        for (role, name) in [
            ("link", names.host_link),
            ("netns", names.netns),
            ("uid", vm.meta.uid.to_string()),
        ] {
            text = text.replace(&name, &format!("<{who} {role}>"));
        }
    }
    text = name_plugins_links(&text, world);
    for lease in world.leases() {
        if let Address::Bridge { ip, .. } = lease.address
            && let Some(vm) = world.vms().find(|vm| vm.meta.name == lease.name)
        {
            let mac = vm_names(instance, vm.meta.uid).guest_mac;
            let program = antispoof::digest(&antispoof::program(mac, ip, None));
            text = text.replace(&program, &format!("<{} program>", lease.name));
        }
        text = name_addresses(&text, lease);
    }
    in_order(&text)
}

/// What plugins draw at random: the names of their links on the host, the MACs inside.
fn name_plugins_links(text: &str, world: &World) -> String {
    let mut text = text.to_owned();
    for vm in world.vms() {
        let mark = world
            .status(vm.meta.uid, Stage::Net)
            .and_then(|page| page.checkpoint.clone());
        let known: Option<Connection> = mark.and_then(|mark| serde_json::from_str(&mark).ok());
        let Some(known) = known.filter(|_| matches!(vm.spec.network, NetworkSpec::Cni(_))) else {
            continue;
        };
        text = text.replace(
            &known.mac.to_string(),
            &format!("<{} guest mac>", vm.meta.name),
        );
        if let Some(link) = known.host_link {
            text = text.replace(&link, &format!("<{} link>", vm.meta.name));
        }
    }
    text
}

/// Its role and the VM, if the address is the lease's alone.
fn address_role(lease: &Lease, address: Ipv4Addr) -> Option<u8> {
    match &lease.address {
        Address::Isolated { block, .. } => {
            let role = address.octets()[3] & 3;
            block.network().contains(address).then_some(role)
        }
        Address::Bridge { ip, .. } => (*ip == address).then_some(2),
        Address::Cni { address: cni, .. } => (cni.ip() == address).then_some(2),
    }
}

/// Addresses of a lease's block under its name; the network of a whole pool stays.
fn name_addresses(text: &str, lease: &Lease) -> String {
    let mut named = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[start..]
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .map_or(rest.len(), |n| start + n);
        let (token, after) = (&rest[start..end], &rest[end..]);
        named.push_str(&rest[..start]);
        let role = token.parse().ok().and_then(|ip| address_role(lease, ip));
        match role.filter(|_| !after.starts_with("/22")) {
            Some(role) => {
                let _ = write!(named, "<{} .{role}>", lease.name);
            }
            None => named.push_str(token),
        }
        rest = after;
    }
    named + rest
}

/// Sections of namespaces in order of their (now normal) names, and the host's lines, too; rules keep their order.
fn in_order(text: &str) -> String {
    let mut sections: Vec<String> = Vec::new();
    for line in text.lines() {
        match line.starts_with("NETNS ")
            || line.starts_with("FILE ")
            || line.starts_with("RECORD ")
            || line == "HOST"
            || line == "STORE"
        {
            true => sections.push(line.to_owned()),
            false => sections.last_mut().expect("a section").extend(["\n", line]),
        }
    }
    let stable = |section: &String| {
        let mut lines: Vec<&str> = section.lines().collect();
        // Rules keep their order; links, routes and neighbours have none.
        lines[1..].sort_by_key(|line| {
            match line.starts_with("ip") || line.starts_with("tc ") || section.starts_with("STORE")
            {
                true => "~",
                false => *line,
            }
        });
        lines.join("\n")
    };
    let mut sections: Vec<String> = sections.iter().map(stable).collect();
    sections.sort();
    sections.join("\n")
}
