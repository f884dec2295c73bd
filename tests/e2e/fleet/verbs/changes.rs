//! Changes of groups: what is written, and what happens to requests at the same time.
//! Out of scope: etcd that does not answer (`faults`).

use futures::future::join_all;
use slicectl::api::meta::Uid;
use slicectl::api::placement::Strategy;
use slicectl::api::view::{Applied, Scale, VmChange};
use slicectl::fleet::keys::Key;
use slicectl::fleet::object::{Group, VERSION};
use slicectl::fleet::verbs::{self, Error, Snapshot};
use test_support::kernel;

use super::super::lab::Lab;
use super::{applied, apply, bind, drafts, manifest, name, put, stored};

const PACK: &str = ", placement: {strategy: pack}";

fn scale(count: u32, generation: Option<u64>) -> Scale {
    Scale {
        count,
        uid: None,
        generation,
    }
}

#[test]
fn a_group_is_created_changed_scaled_and_deleted() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        assert_eq!(
            applied(&client, &manifest("web", 2, "")).await,
            Applied::Created
        );
        let created = stored(&client, "web").await.unwrap();
        assert_eq!((created.meta.generation, created.spec.count), (1, 2));
        // Nothing is written for a group that is as specified.
        assert_eq!(
            applied(&client, &manifest("web", 2, "")).await,
            Applied::Unchanged
        );
        assert_eq!(stored(&client, "web").await.unwrap(), created);
        // The placement is part of the generation, the uid stays.
        assert_eq!(
            applied(&client, &manifest("web", 2, PACK)).await,
            Applied::Configured
        );
        let changed = stored(&client, "web").await.unwrap();
        assert_eq!(changed.meta.generation, 2);
        assert_eq!(changed.meta.uid, created.meta.uid);
        assert_eq!(changed.placement.strategy, Strategy::Pack);
        // A scale changes `count` alone.
        let result = verbs::scale(&client, &name("web"), &scale(5, None)).await;
        assert_eq!(result.unwrap().applied, Applied::Configured);
        let scaled = stored(&client, "web").await.unwrap();
        assert_eq!((scaled.spec.count, scaled.meta.generation), (5, 3));
        assert_eq!(scaled.placement, changed.placement);
        let stale = verbs::scale(&client, &name("web"), &scale(6, Some(2))).await;
        let stale = stale.unwrap_err().to_string();
        assert!(
            stale.contains("changed by another command: generation 3"),
            "{stale}"
        );
        let many = verbs::scale(&client, &name("web"), &scale(99_999, None)).await;
        assert!(matches!(many, Err(Error::Invalid(_))), "{many:?}");
        // Another group of the same name is not the one that was to be deleted.
        let other = verbs::delete_group(&client, &name("web"), Some(Uid::random())).await;
        let other = other.unwrap_err();
        assert!(matches!(other, Error::Conflict(_)), "{other}");
        assert!(!stored(&client, "web").await.unwrap().meta.deleting);
        let uid = Some(created.meta.uid);
        verbs::delete_group(&client, &name("web"), uid)
            .await
            .unwrap();
        assert!(stored(&client, "web").await.unwrap().meta.deleting);
        // Repeated: nothing to do.
        verbs::delete_group(&client, &name("web"), None)
            .await
            .unwrap();
        let error = apply(&client, &manifest("web", 2, "")).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Conflict(_)), "{text}");
        assert!(
            text.starts_with("fleet.yaml:1:") && text.contains("is being deleted"),
            "{text}"
        );
        for missing in [
            verbs::scale(&client, &name("web"), &scale(1, None))
                .await
                .err(),
            verbs::delete_group(&client, &name("none"), None)
                .await
                .err(),
        ] {
            let missing = missing.expect("not found");
            assert!(matches!(missing, Error::NotFound(_)), "{missing}");
        }
    });
}

#[test]
fn all_groups_of_a_request_are_stored_or_none() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let range = ", network: {mode: isolated, range: 169.254.100.0/22}";
        let group = |name: &str, more: &str| format!("{{name: {name}{more}}}");
        let all = |groups: &[String]| format!("config: {{host_groups: [{}]}}\n", groups.join(", "));
        applied(&client, &all(&[group("a", range)])).await;
        // The second one has the range of a group of another request.
        let text = all(&[group("b", ""), group("c", range)]);
        let error = apply(&client, &text).await.unwrap_err().to_string();
        assert!(
            error.contains("overlaps 169.254.100.0/22 of group \"a\""),
            "{error}"
        );
        assert_eq!(stored(&client, "b").await, None);
        // A dry run writes nothing and answers the same.
        let one = drafts(&all(&[group("b", "")]));
        let results = verbs::apply(&client, &one, slicectl::clock::now(), true);
        assert_eq!(results.await.unwrap()[0].applied, Applied::Created);
        assert_eq!(stored(&client, "b").await, None);
        // As many as a transaction holds, and one more.
        let many = |count: u32| {
            let groups: Vec<String> = (0..count).map(|n| group(&format!("g-{n}"), "")).collect();
            all(&groups)
        };
        let error = apply(&client, &many(128)).await.unwrap_err().to_string();
        assert!(error.contains("expected at most 127"), "{error}");
        let results = apply(&client, &many(127)).await.unwrap();
        assert!(results.iter().all(|it| it.applied == Applied::Created));
        assert!(stored(&client, "g-126").await.is_some());
    });
}

#[test]
fn requests_at_the_same_time_lose_no_change_and_create_no_conflict() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        // The same group with different numbers: each is stored at some time, and the generation counts them.
        let texts: Vec<String> = (1..=6).map(|count| manifest("web", count, "")).collect();
        let results = join_all(texts.iter().map(|text| apply(&client, text))).await;
        let won = results.iter().filter(|result| result.is_ok()).count();
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, Error::Busy), "{error}");
        }
        let generation = stored(&client, "web").await.unwrap().meta.generation;
        assert_eq!(generation, won as u64);
        assert!(won >= 1);
        // Scales that have seen the same generation: one wins, the others are told.
        let request = scale(7, Some(generation));
        let web = name("web");
        let requests = [9, 10, 11].map(|count| Scale {
            count,
            ..request.clone()
        });
        let scales = requests.iter();
        let results = join_all(scales.map(|it| verbs::scale(&client, &web, it))).await;
        let won: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{results:?}");
        let winner = won.iter().position(|won| *won).expect("one");
        let count = stored(&client, "web").await.unwrap().spec.count;
        assert_eq!(count, requests[winner].count);
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            let text = error.to_string();
            assert!(text.contains("changed by another command"), "{text}");
        }
        // Two new groups with the same range: whichever is second sees the first.
        let with_range = |name: &str| {
            format!(
                "config: {{host_groups: [{{name: {name}, network: {{mode: isolated, range: 169.254.100.0/22}}}}]}}\n"
            )
        };
        let texts = ["x", "y", "z"].map(with_range);
        let results = join_all(texts.iter().map(|text| apply(&client, text))).await;
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "{results:?}");
    });
}

#[test]
fn a_difference_names_the_fields_and_the_vms() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let diff = async |text: &str| verbs::diff(&client, &drafts(text)).await.unwrap();
        let found = diff(&manifest("web", 2, "")).await;
        assert_eq!((found.plan.add, found.groups[0].fields.len()), (2, 0));
        applied(&client, &manifest("web", 3, "")).await;
        for index in 1..=3 {
            bind(&client, "web", index, Some("node-a")).await;
        }
        assert!(!diff(&manifest("web", 3, "")).await.has_differences());
        let more = format!("{PACK}, vcpu: 4");
        let change = diff(&manifest("web", 2, &more)).await;
        let group = &change.groups[0];
        let fields: Vec<String> = group.fields.iter().map(ToString::to_string).collect();
        assert_eq!(
            fields,
            [
                "count: 3 -> 2",
                "vcpu: 2 -> 4",
                "placement.strategy: spread -> pack"
            ]
        );
        let vms = group.vms.iter().map(|vm| (vm.name.to_string(), vm.change));
        let vms: Vec<(String, VmChange)> = vms.collect();
        let of = |name: &str, change| (name.to_owned(), change);
        assert_eq!(
            vms,
            [
                of("web-1", VmChange::Replace),
                of("web-2", VmChange::Replace),
                of("web-3", VmChange::Delete)
            ]
        );
        // Nothing was written.
        let snapshot = Snapshot::read(&client).await.unwrap();
        assert_eq!(snapshot.groups[&name("web")].value.spec.count, 3);
    });
}

#[test]
fn a_stored_group_of_a_later_version_is_not_changed() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        applied(&client, &manifest("web", 1, "")).await;
        let group: Group = stored(&client, "web").await.unwrap();
        let mut later = serde_json::to_value(&group).unwrap();
        later["version"] = (VERSION + 1).into();
        let bytes = later.to_string().into_bytes();
        let key = Key::Group(name("web"));
        client.put(key.clone(), bytes.clone(), None).await.unwrap();
        let changes = [
            apply(&client, &manifest("web", 2, "")).await.err(),
            verbs::scale(&client, &name("web"), &scale(2, None))
                .await
                .err(),
            verbs::delete_group(&client, &name("web"), None).await.err(),
        ];
        for error in changes {
            let error = error.expect("refused").to_string();
            assert!(
                error.contains("cannot be read") && error.contains("upgrade it"),
                "{error}"
            );
        }
        let (_, kept) = client.get(key.clone()).await.unwrap();
        assert_eq!(kept.unwrap().value, bytes);
        // It is listed with its error, and so is an object that is not of its key.
        let other = Key::Group(name("other"));
        put(&client, other.clone(), &group).await;
        let list = verbs::groups(&Snapshot::read(&client).await.unwrap(), None);
        assert!(list.items.is_empty());
        let keys: Vec<&str> = list.unreadable.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(keys, [other.to_string(), key.to_string()]);
        // Another group is applied, with a warning.
        let results = apply(&client, &manifest("new", 1, "")).await.unwrap();
        assert_eq!(results[0].warnings.len(), 2, "{results:?}");
    });
}

#[test]
fn a_count_is_refused_if_the_pool_of_subnets_never_has_the_addresses() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let bridge = |count: u32| {
            format!(
                "config: {{host_groups: [{{name: br, count: {count}, network: {{bridge: br0, tap_prefix: t}}, placement: {{subnets: {{pool: 10.9.0.0/28, prefix_len: 29}}}}}}]}}\n"
            )
        };
        let expected =
            "11 VMs do not fit: placement.subnets has 2 subnets with addresses for 5 VMs each";
        let error = apply(&client, &bridge(11)).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        // Whether there are two nodes is no error.
        assert_eq!(applied(&client, &bridge(10)).await, Applied::Created);
        let error = verbs::scale(&client, &name("br"), &scale(11, None)).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    });
}
