//! What plugins hear, key by key.
//! Out of scope: what they answer.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slicectl::cni::{Attachment, Outcome, Runtime, ValidAttachment};

use crate::cni::stage::{Stage, blue, result};
use test_support::programs::{assert_passes, this_test};

/// Every key of a configuration that the spec speaks of, and some that it does not.
fn conf(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "net",
        "unknownToAll": 1,
        "plugins": [
            {
                "type": "one",
                "name": "not-this",
                "cniVersion": "0.1.0",
                "keyA": ["some", {"more": null}],
                "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
                "capabilities": {"portMappings": true, "mac": false},
                "args": {"cni": {"ips": ["10.1.0.9"]}},
                "prevResult": {"stale": true},
                "cni.dev/anything": 7
            },
            {"type": "two", "capabilities": {"mac": true}}
        ]
    })
}

fn attachment() -> Attachment {
    let mut attachment = blue();
    attachment.args = vec![
        ("IgnoreUnknown".into(), "1".into()),
        ("FOO".into(), "BAR=2".into()),
    ];
    attachment.capability_args = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "mac": "00:11:22:33:44:66",
        "bandwidth": {"ingressRate": 1}
    })
    .as_object()
    .cloned()
    .expect("an object");
    attachment
}

fn stage(version: &str) -> Stage {
    let stage = Stage::new();
    stage.conf("10.conflist", &conf(version));
    for plugin in ["one", "two"] {
        stage.plugin(plugin);
        stage.say(plugin, "ADD.out", &result(version, plugin).to_string());
    }
    stage
}

/// The first plugin's request without what an operation adds.
fn first(version: &str) -> Value {
    json!({
        "type": "one",
        "name": "net",
        "cniVersion": version,
        "keyA": ["some", {"more": null}],
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
        "args": {"cni": {"ips": ["10.1.0.9"]}}
    })
}

fn with(mut request: Value, key: &str, value: Value) -> Value {
    request[key] = value;
    request
}

fn first_attached(version: &str) -> Value {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    with(
        first(version),
        "runtimeConfig",
        json!({"portMappings": ports}),
    )
}

fn second_attached(version: &str) -> Value {
    json!({
        "type": "two",
        "name": "net",
        "cniVersion": version,
        "runtimeConfig": {"mac": "00:11:22:33:44:66"}
    })
}

fn parameters<'a>(stage: &Stage, command: &'a str) -> BTreeMap<&'a str, String> {
    BTreeMap::from([
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", "blue".to_owned()),
        ("CNI_NETNS", "/run/netns/blue".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_ARGS", "IgnoreUnknown=1;FOO=BAR=2".to_owned()),
        ("CNI_PATH", stage.path("bin").display().to_string()),
    ])
}

fn assert_parameters(received: &crate::cni::stage::ReceivedCall, desired: &BTreeMap<&str, String>) {
    let desired: BTreeMap<&str, &str> = desired.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(received.parameters(), desired, "{}", received.command);
    assert!(
        received.environment.contains_key("PATH"),
        "the rest is inherited"
    );
}

#[tokio::test]
async fn add_passes_every_plugin_its_configuration_and_the_result_before() {
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    let answer = stage.runtime.add(&network, &attachment()).await.unwrap();
    assert_eq!(answer.interfaces[0].name, "two");
    let received = stage.calls();
    assert_eq!(stage.order(), ["ADD one", "ADD two"]);
    for call in &received {
        assert_parameters(call, &parameters(&stage, "ADD"));
    }
    assert_eq!(received[0].stdin(), first_attached("1.0.0"));
    let second = with(
        second_attached("1.0.0"),
        "prevResult",
        result("1.0.0", "one"),
    );
    assert_eq!(received[1].stdin(), second);
}

#[tokio::test]
async fn check_and_del_pass_every_plugin_the_final_result() {
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    stage.runtime.add(&network, &attachment()).await.unwrap();
    stage.hush();
    let checked = stage.runtime.check(&network, &attachment()).await.unwrap();
    assert_eq!(checked, Outcome::Done);
    stage.runtime.del(&network, &attachment()).await.unwrap();
    let order = ["CHECK one", "CHECK two", "DEL two", "DEL one"];
    assert_eq!(stage.order(), order);
    let last = result("1.0.0", "two");
    for call in stage.calls() {
        assert_parameters(&call, &parameters(&stage, &call.command));
        let desired = match call.plugin.as_str() {
            "one" => first_attached("1.0.0"),
            _ => second_attached("1.0.0"),
        };
        assert_eq!(call.stdin(), with(desired, "prevResult", last.clone()));
    }
}

#[tokio::test]
async fn del_without_a_namespace_has_an_empty_variable() {
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    stage.runtime.add(&network, &attachment()).await.unwrap();
    stage.hush();
    let mut gone = attachment();
    gone.netns = None;
    stage.runtime.del(&network, &gone).await.unwrap();
    let mut desired = parameters(&stage, "DEL");
    desired.insert("CNI_NETNS", String::new());
    for call in stage.calls() {
        assert_parameters(&call, &desired);
    }
}

#[tokio::test]
async fn gc_passes_every_plugin_the_valid_attachments_and_no_details_of_any() {
    let stage = stage("1.1.0");
    let network = stage.runtime.find("net").unwrap();
    let valid = [ValidAttachment {
        container_id: "green".into(),
        ifname: "eth1".into(),
    }];
    let outcome = stage
        .runtime
        .gc(&network, || Ok(valid.to_vec()))
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(stage.order(), ["GC one", "GC two"]);
    let valid = json!([{"containerID": "green", "ifname": "eth1"}]);
    let mut desired = first("1.1.0");
    desired["capabilities"] = json!({"portMappings": true, "mac": false});
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        desired[key] = valid.clone();
    }
    let received = stage.calls();
    assert_eq!(received[0].stdin(), desired);
    let path = stage.path("bin").display().to_string();
    let parameters = BTreeMap::from([("CNI_COMMAND", "GC".to_owned()), ("CNI_PATH", path)]);
    assert_parameters(&received[0], &parameters);
}

#[tokio::test]
async fn status_passes_every_plugin_its_configuration() {
    let stage = stage("1.1.0");
    let network = stage.runtime.find("net").unwrap();
    let outcome = stage.runtime.status(&network).await.unwrap();
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(stage.order(), ["STATUS one", "STATUS two"]);
    let received = stage.calls();
    let mut desired = first("1.1.0");
    desired["capabilities"] = json!({"portMappings": true, "mac": false});
    assert_eq!(received[0].stdin(), desired);
    let path = stage.path("bin").display().to_string();
    let parameters = BTreeMap::from([("CNI_COMMAND", "STATUS".to_owned()), ("CNI_PATH", path)]);
    assert_parameters(&received[0], &parameters);
}

#[tokio::test]
async fn version_is_requested_with_the_latest_that_we_support() {
    let stage = stage("1.1.0");
    let versions = stage.runtime.version("one").await.unwrap();
    assert_eq!(versions, ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let received = stage.calls();
    assert_eq!(received[0].stdin(), json!({"cniVersion": "1.1.0"}));
    let path = stage.path("bin").display().to_string();
    let parameters = BTreeMap::from([("CNI_COMMAND", "VERSION".to_owned()), ("CNI_PATH", path)]);
    assert_parameters(&received[0], &parameters);
}

#[tokio::test]
async fn numbers_that_no_machine_type_holds_reach_the_plugin_as_they_were_written() {
    let stage = Stage::new();
    let odd =
        r#"{"big":123456789012345678901234567890,"fine":0.10000000000000000000001,"e":1E400}"#;
    stage.plugin("one");
    stage.conf_text(
        "10.conflist",
        format!(
            r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"one","odd":{odd}}}]}}"#
        ),
    );
    let network = stage.runtime.find("net").unwrap();
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.runtime.del(&network, &blue()).await.unwrap();
    for call in stage.calls() {
        assert!(call.text.contains(odd), "{}", call.text);
    }
}

#[tokio::test]
async fn what_a_plugin_adds_to_a_result_reaches_the_next() {
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    let mut odd = result("1.0.0", "one");
    odd["ours"] = json!({"kept": [1, 2]});
    odd["interfaces"][0]["also"] = json!("kept");
    stage.say("one", "ADD.out", &odd.to_string());
    stage.runtime.add(&network, &blue()).await.unwrap();
    assert_eq!(stage.calls()[1].stdin()["prevResult"], odd);
}

#[tokio::test]
async fn what_does_not_fit_the_protocol_reaches_no_plugin() {
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    let spoil: [fn(&mut Attachment); 6] = [
        |it| it.container_id = "../etc".into(),
        |it| it.container_id.clear(),
        |it| it.ifname = "a/b".into(),
        |it| it.ifname = "sixteen_bytes_xx".into(),
        |it| it.args = vec![("A;B".into(), "1".into())],
        |it| it.netns = None,
    ];
    for spoil in spoil {
        let mut attachment = attachment();
        spoil(&mut attachment);
        let error = stage.runtime.add(&network, &attachment).await.unwrap_err();
        assert!(
            matches!(error, slicectl::cni::Error::InvalidArgument { .. }),
            "{error}"
        );
    }
    assert!(stage.order().is_empty());
}

/// Variables of the process cannot be set in a test; so the test runs itself in a process that has them.
#[test]
fn variables_of_the_daemon_choose_the_places_and_do_not_leak_into_the_protocol() {
    if std::env::var_os("CNI_STRAY").is_none() {
        let mut test =
            this_test(variables_of_the_daemon_choose_the_places_and_do_not_leak_into_the_protocol);
        test.envs([
            ("CNI_STRAY", "1"),
            ("CNI_ARGS", "A=1"),
            ("CNI_PATH", "/a::/b"),
            ("SLICE_CNI_CONF_DIR", "/c"),
            ("SLICE_CNI_CACHE_DIR", ""),
        ]);
        assert_passes(test);
        return;
    }
    let runtime = Runtime::from_env();
    let dirs: Vec<_> = runtime.bin_dirs.iter().map(|dir| dir.to_str()).collect();
    assert_eq!(dirs, [Some("/a"), Some("/b")]);
    assert_eq!(runtime.conf_dir.to_str(), Some("/c"));
    assert_eq!(runtime.cache_dir.to_str(), Some("/var/lib/cni"));
    let stage = stage("1.0.0");
    let network = stage.runtime.find("net").unwrap();
    let attachment = blue();
    let add = stage.runtime.add(&network, &attachment);
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(add)
        .unwrap();
    let mut desired = parameters(&stage, "ADD");
    desired.insert("CNI_ARGS", String::new());
    assert_parameters(&stage.calls()[0], &desired);
}
