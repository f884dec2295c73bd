//! `scale`: the number of VMs of a group is changed alone, and only if nobody else has changed the group.
//! Out of scope: the question about disks (`questions`).

use slicectl::api::meta::Name;
use slicectl::api::view::{Kind, Object, Scale};
use slicectl::wire::Client;
use slicectl::wire::client::ClientError;

use test_support::harness::{Harness, bridge_group, group, slots, with_daemon};

#[test]
fn a_group_is_scaled_up_and_down_and_keeps_its_other_settings() {
    with_daemon(|harness| {
        harness.apply(&slots(1, "drop: [192.168.1.0/24]"));
        harness.ctl("vm add sandbox --name extra --wait");
        for (count, vms) in [
            (3, vec!["sandbox-1", "sandbox-2", "sandbox-3", "extra"]),
            (1, vec!["sandbox-1", "extra"]),
            (0, vec!["extra"]),
        ] {
            let output = harness.ctl(&format!("scale hg/sandbox --count {count}"));
            assert_eq!(output, "hostgroup/sandbox configured\n");
            harness.until("the VMs", || {
                let mut found = harness.vms();
                found.sort();
                let mut vms = vms.clone();
                vms.sort_unstable();
                (found == vms).then_some(())
            });
            let spec = &harness.get("hg sandbox")["spec"];
            assert_eq!(spec["count"], count);
            assert_eq!(spec["template"]["network"]["drop"][0], "192.168.1.0/24");
        }
        let again = harness.ctl("scale hostgroup sandbox --replicas 0 -o name");
        assert_eq!(again, "hostgroup/sandbox\n");
        assert_eq!(harness.get("hg sandbox")["metadata"]["generation"], 4);
        let events = harness.ctl("events hg/sandbox");
        assert!(events.contains("Scaled"), "{events}");
        assert!(
            events.contains("by root (uid 0): count: 1 -> 3"),
            "{events}"
        );
    });
}

#[test]
fn a_scale_that_is_not_possible_names_the_reason_and_changes_nothing() {
    with_daemon(|harness| {
        harness.save("lab.yaml", &group("lab", 1, "169.254.104.0/24", ""));
        harness.until("the group of the file", || {
            (!harness.get("hg lab").is_null()).then_some(())
        });
        harness.apply(&slots(1, ""));
        let lan = "bridge: br0\ntap_prefix: t\ngateway: 192.168.137.1/29";
        harness.apply(&bridge_group("web", 1, lan));
        for (arguments, status, why) in [
            ("lab --count 2", 1, "lab.yaml: change its `count` there"),
            ("sandbox --count 4000", 1, "hostgroup/sandbox: count: "),
            ("sandbox --count 100000", 1, "expected 0 to"),
            ("web --count 6", 1, "6 VMs do not fit"),
            ("sandbx --count 2", 1, "hostgroup/sandbx not found"),
            ("web --count -1", 2, "--count"),
            ("web", 2, "--count"),
        ] {
            let output = harness.refused(&format!("scale hg {arguments}"), status);
            assert!(output.contains(why), "{arguments}: {output}");
        }
        let output = harness.refused("scale vm/sandbox-1 --count 2", 2);
        assert!(
            output.contains("only host groups can be scaled"),
            "{output}"
        );
        for name in ["lab", "sandbox", "web"] {
            let group = harness.get(&format!("hg {name}"));
            assert_eq!(group["metadata"]["generation"], 1, "{name}");
        }
        // One of several is refused, the other is scaled.
        let output = harness.refused("scale hg lab sandbox --count 2", 1);
        assert!(output.contains("lab.yaml"), "{output}");
        assert_eq!(harness.get("hg sandbox")["spec"]["count"], 2);
    });
}

/// What another command does meanwhile.
type Change = (&'static str, fn(&Harness));

fn seen(client: &Client, harness: &Harness, count: u32) -> Scale {
    let name = Name::new("sandbox").expect("a name");
    let list = tokio(client.get(Kind::HostGroup, Some(&name))).expect("the group");
    let Some(Object::HostGroup(group)) = list.items.first() else {
        panic!("{}", harness.ctl("get hg"));
    };
    Scale {
        count,
        uid: group.metadata.uid,
        generation: group.metadata.generation,
    }
}

fn tokio<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

#[test]
fn a_group_that_was_changed_or_created_again_meanwhile_is_not_scaled() {
    with_daemon(|harness| {
        harness.apply(&slots(2, ""));
        let client = Client::new(harness.run.join("sliced.sock"));
        let name = Name::new("sandbox").expect("a name");
        let changes: [Change; 3] = [
            ("another apply", |harness| {
                harness.apply(&slots(2, "drop: [10.0.0.0/8]"));
            }),
            ("another scale", |harness| {
                harness.ctl("scale hg/sandbox --count 3 --wait");
            }),
            ("created again", |harness| {
                harness.ctl("delete hg/sandbox --wait");
                harness.apply(&slots(2, ""));
            }),
        ];
        for (what, change) in changes {
            let before = seen(&client, &harness, 7);
            change(&harness);
            let spec = harness.get("hg sandbox")["spec"].clone();
            let refused = tokio(client.scale(&name, &before));
            let Err(ClientError::Refused { status, problem }) = refused else {
                panic!("{what}: {refused:?}");
            };
            assert_eq!(status, 409, "{what}: {problem:?}");
            assert!(problem.problems[0].contains("try again"), "{problem:?}");
            assert_eq!(harness.get("hg sandbox")["spec"], spec, "{what}");
        }
        let now = seen(&client, &harness, 1);
        tokio(client.scale(&name, &now)).expect("scaled");
        assert_eq!(harness.get("hg sandbox")["spec"]["count"], 1);
    });
}
