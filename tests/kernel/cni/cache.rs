//! What is remembered of an ADD, read as libcni reads it.
//! Out of scope: what plugins receive.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};
use slicectl::cni::{Attachment, Error, Outcome, Version};

use crate::cni::stage::{Stage, blue, result};

/// What libcni's `cachedInfo` holds, read with nothing of ours.
struct Libcni {
    record: Value,
    config: Value,
}

impl Libcni {
    fn read(path: &Path) -> Self {
        let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let config = record["config"].as_str().expect("base64");
        let config = base64::prelude::BASE64_STANDARD.decode(config).unwrap();
        Self {
            config: serde_json::from_slice(&config).unwrap(),
            record,
        }
    }
}

fn rich() -> Attachment {
    let mut attachment = blue();
    attachment.args = vec![("FOO".into(), "BAR".into())];
    attachment.capability_args = json!({"mac": "00:11:22:33:44:66"})
        .as_object()
        .cloned()
        .unwrap();
    attachment
}

#[tokio::test]
async fn a_record_is_what_libcni_writes_where_libcni_writes_it() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one", "two"]);
    stage.runtime.add(&network, &rich()).await.unwrap();
    let path = stage.path("cache/slice/results/net-blue-eth0");
    let read = Libcni::read(&path);
    let mut record = read.record.clone();
    record.as_object_mut().unwrap().remove("config");
    let desired = json!({
        "kind": "cniCacheV1",
        "containerId": "blue",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/run/netns/blue",
        "cniArgs": [["FOO", "BAR"]],
        "capabilityArgs": {"mac": "00:11:22:33:44:66"},
        "result": result("1.0.0", "two")
    });
    assert_eq!(record, desired);
    let on_disk = fs::read_to_string(stage.path("conf/10-net.conflist")).unwrap();
    assert_eq!(
        read.config,
        serde_json::from_str::<Value>(&on_disk).unwrap()
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // No draft is left, and no note on the way.
    assert_eq!(fs::read_dir(stage.path("cache")).unwrap().count(), 2);
    let notes = fs::read_dir(stage.path("cache/unfinished")).unwrap();
    assert_eq!(notes.count(), 0);
}

#[tokio::test]
async fn what_is_empty_is_left_out_as_libcni_does() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.runtime.add(&network, &blue()).await.unwrap();
    let record = Libcni::read(&stage.path("cache/slice/results/net-blue-eth0")).record;
    let keys: Vec<&String> = record.as_object().unwrap().keys().collect();
    let desired = [
        "config",
        "containerId",
        "ifName",
        "kind",
        "netns",
        "networkName",
        "result",
    ];
    assert_eq!(keys, desired);
}

#[tokio::test]
async fn a_record_of_another_runtime_is_read() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    let config =
        json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "one", "theirs": 1}]});
    // As libcni before 1.3 wrote it: without `netns`.
    let record = json!({
        "kind": "cniCacheV1",
        "containerId": "blue",
        "config": base64::prelude::BASE64_STANDARD.encode(config.to_string()),
        "ifName": "eth0",
        "networkName": "net",
        "cniArgs": [["K8S_POD_NAME", "p"]],
        "result": result("1.0.0", "theirs")
    });
    fs::create_dir_all(stage.path("cache/results")).unwrap();
    fs::write(
        stage.path("cache/results/net-blue-eth0"),
        record.to_string(),
    )
    .unwrap();
    fs::write(stage.path("cache/results/rubbish"), "{").unwrap();
    let all = stage.runtime.attachments().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].network.as_str(), &all[0].attachment.netns),
        ("net", &None)
    );
    let seen = all[0].result(Version::V0_4_0).unwrap();
    assert_eq!(seen.interfaces[0].name, "theirs");
    stage.runtime.del(&network, &blue()).await.unwrap();
    let received = stage.calls();
    assert_eq!(received[0].stdin()["theirs"], 1);
    assert_eq!(received[0].environment["CNI_ARGS"], "K8S_POD_NAME=p");
    let left = |file: &str| stage.path("cache/results").join(file).exists();
    assert_eq!((left("rubbish"), left("net-blue-eth0")), (true, false));
}

#[tokio::test]
async fn a_configuration_that_changed_since_add_does_not_change_check_and_del() {
    let stage = Stage::new();
    let before = stage.chain("1.0.0", &["one", "two"]);
    stage.runtime.add(&before, &rich()).await.unwrap();
    let after = stage.chain("1.0.0", &["three"]);
    assert_ne!(before.digest(), after.digest());
    let cached = stage.runtime.cached("net", &blue()).unwrap().unwrap();
    assert_eq!(cached.config().unwrap().digest(), before.digest());
    assert_eq!(cached.attachment, rich());
    stage.hush();
    let checked = stage.runtime.check(&after, &blue()).await.unwrap();
    assert_eq!(checked, Outcome::Done);
    stage.runtime.del(&after, &blue()).await.unwrap();
    let order = ["CHECK one", "CHECK two", "DEL two", "DEL one"];
    assert_eq!(stage.order(), order);
    for call in stage.calls() {
        assert_eq!(call.environment["CNI_ARGS"], "FOO=BAR");
    }
    assert!(stage.runtime.cached("net", &blue()).unwrap().is_none());
    stage.hush();
    stage.runtime.del(&after, &blue()).await.unwrap();
    assert_eq!(stage.order(), ["DEL three"]);
}

#[tokio::test]
async fn drop_ins_are_part_of_what_is_remembered() {
    let stage = Stage::new();
    stage.chain("1.0.0", &["one"]);
    stage.plugin("extra");
    stage.conf("net/10.conf", &json!({"type": "extra"}));
    let network = stage.runtime.find("net").unwrap();
    stage.runtime.add(&network, &blue()).await.unwrap();
    let config = Libcni::read(&stage.path("cache/slice/results/net-blue-eth0")).config;
    assert_eq!(config["plugins"].as_array().unwrap().len(), 2);
    // So that a reader does not look into the folder again.
    assert_eq!(config["loadOnlyInlinedPlugins"], true);
}

#[tokio::test]
async fn a_damaged_record_stops_add_and_check_but_not_del() {
    for damage in ["", "{", r#"{"kind":"other"}"#, "[]"] {
        let stage = Stage::new();
        let network = stage.chain("1.0.0", &["one"]);
        stage.runtime.add(&network, &blue()).await.unwrap();
        fs::write(stage.path("cache/slice/results/net-blue-eth0"), damage).unwrap();
        let check = stage.runtime.check(&network, &blue()).await;
        assert!(matches!(check, Err(Error::DamagedCache { .. })));
        let add = stage.runtime.add(&network, &blue()).await;
        assert!(matches!(add, Err(Error::DamagedCache { .. })));
        stage.hush();
        stage.runtime.del(&network, &blue()).await.unwrap();
        assert_eq!(stage.order(), ["DEL one"]);
        assert!(stage.calls()[0].stdin().get("prevResult").is_none());
        assert!(stage.records().is_empty());
        stage.runtime.add(&network, &blue()).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_with_a_damaged_part_is_used_for_the_rest() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    let path = stage.path("cache/slice/results/net-blue-eth0");
    for (part, value) in [("config", json!("e30=")), ("result", json!({"ips": 7}))] {
        stage.runtime.add(&network, &blue()).await.unwrap();
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record[part] = value;
        fs::write(&path, record.to_string()).unwrap();
        stage.hush();
        stage.runtime.del(&network, &blue()).await.unwrap();
        assert_eq!(stage.order(), ["DEL one"]);
        let reported = stage.calls()[0].stdin().get("prevResult").is_some();
        assert_eq!(reported, part == "config");
        assert!(stage.records().is_empty());
    }
}

#[tokio::test]
async fn an_attachment_whose_record_has_the_same_file_name_is_left_alone() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    let theirs = Attachment::new("a", "/run/netns/a", "b-c");
    let ours = Attachment::new("a-b", "/run/netns/b", "c");
    stage.runtime.add(&network, &theirs).await.unwrap();
    let refused = stage.runtime.add(&network, &ours).await;
    assert!(matches!(refused, Err(Error::DamagedCache { .. })));
    stage.runtime.del(&network, &ours).await.unwrap();
    let check = stage.runtime.check(&network, &theirs).await.unwrap();
    assert_eq!(check, Outcome::Done);
}

#[tokio::test]
async fn what_was_added_is_not_added_again_and_what_was_not_is_not_checked() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    let check = stage.runtime.check(&network, &blue()).await;
    assert!(matches!(check, Err(Error::NotAdded { .. })));
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.hush();
    let again = stage.runtime.add(&network, &blue()).await;
    assert!(matches!(again, Err(Error::AlreadyAdded { .. })));
    assert!(stage.order().is_empty());
    stage.runtime.remove_records("net", &blue()).unwrap();
    stage.runtime.remove_records("net", &blue()).unwrap();
    assert!(stage.order().is_empty() && stage.records().is_empty());
}

#[tokio::test]
async fn records_of_ours_in_the_cache_of_other_runtimes_are_moved_and_theirs_stay() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.runtime.add(&network, &blue()).await.unwrap();
    // As a version of ours did that shared the cache, and as others do.
    let ours = stage.path("cache/slice/results/net-blue-eth0");
    let shared = stage.path("cache/results/net-blue-eth0");
    let theirs = stage.path("cache/results/net-red-eth0");
    let text = fs::read_to_string(&ours).unwrap();
    fs::create_dir_all(stage.path("cache/results")).unwrap();
    fs::rename(&ours, &shared).unwrap();
    fs::write(&theirs, text.replace("blue", "red")).unwrap();

    let is_ours = |container: &str| container == "blue";
    // Until it is moved it is found where it is.
    assert!(stage.runtime.cached("net", &blue()).unwrap().is_some());
    stage.runtime.migrate_records(is_ours).unwrap();
    assert!(ours.exists() && !shared.exists() && theirs.exists());
    stage.runtime.migrate_records(is_ours).unwrap();
    assert_eq!(stage.runtime.attachments().unwrap().len(), 2);
    stage.runtime.del(&network, &blue()).await.unwrap();
    assert!(!ours.exists() && theirs.exists());
}
