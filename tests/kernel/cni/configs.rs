//! Configurations: which file is used, what is read from it, what is wrong with it.
//! Out of scope: what plugins receive of it.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use slicectl::cni::{Error, Network};

use crate::cni::stage::{Stage, blue};

fn list(name: &str, plugin: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": plugin}]})
}

fn plugins(network: &Network) -> Vec<&str> {
    let plugins = network.plugins.iter();
    plugins.map(|plugin| plugin.name.as_str()).collect()
}

fn parse(config: &Value) -> Result<Network, Error> {
    Network::parse(Path::new("/etc/cni/net.d/10.conflist"), &config.to_string())
}

#[test]
fn the_first_file_with_the_name_goes_and_lists_go_before_single_plugins() {
    let stage = Stage::new();
    let single = |plugin: &str| json!({"cniVersion": "0.4.0", "name": "net", "type": plugin});
    stage.conf("00.conf", &single("conf"));
    stage.conf("99.json", &single("json"));
    stage.conf("30.conflist", &list("net", "later"));
    stage.conf("20.conflist", &list("net", "first"));
    stage.conf("10.conflist", &list("other", "stranger"));
    stage.conf("05.conflist.bak", &list("net", "backup"));
    for (winner, file) in [
        ("first", "20.conflist"),
        ("later", "30.conflist"),
        ("conf", "00.conf"),
        ("json", "99.json"),
    ] {
        let network = stage.runtime.find("net").unwrap();
        assert_eq!(plugins(&network), [winner]);
        assert_eq!(network.path, stage.path("conf").join(file));
        std::fs::remove_file(&network.path).unwrap();
    }
    assert!(stage.runtime.find("net").is_err());
}

#[test]
fn a_network_that_is_not_there_is_reported_with_what_is() {
    let mut stage = Stage::new();
    stage.conf("10.conflist", &list("zebra", "one"));
    stage.conf(
        "20.conf",
        &json!({"cniVersion": "0.4.0", "name": "ant", "type": "one"}),
    );
    stage.conf_text("30.conflist", "{ half");
    stage.conf_text("40.conflist", b"\xff");
    let error = stage.runtime.find("net").unwrap_err();
    let Error::NetworkNotFound {
        network,
        searched,
        found,
        unreadable,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((network.as_str(), searched), ("net", &stage.path("conf")));
    assert_eq!(found, &["ant", "zebra"]);
    assert_eq!(unreadable.len(), 2, "{unreadable:?}");
    let text = error.to_string();
    for part in ["`net`", "ant, zebra", "30.conflist", "conf"] {
        assert!(text.contains(part), "{text}");
    }
    stage.runtime.conf_dir = "/nowhere/net.d".into();
    let text = stage.runtime.find("net").unwrap_err().to_string();
    assert!(
        text.contains("/nowhere/net.d") && text.contains("no network"),
        "{text}"
    );
}

#[test]
fn a_file_that_cannot_be_read_does_not_hide_another() {
    let stage = Stage::new();
    stage.conf_text("10.conflist", "{");
    stage.conf("20.conflist", &list("net", "one"));
    assert_eq!(plugins(&stage.runtime.find("net").unwrap()), ["one"]);
}

#[test]
fn a_file_of_any_sort_may_begin_with_a_byte_order_mark() {
    let marked = |value: &serde_json::Value| format!("\u{feff}{value}");
    let stage = Stage::new();
    let single = json!({"cniVersion": "0.4.0", "name": "net", "type": "alone"});
    let added = json!({"type": "added"});
    for (file, value, expected) in [
        ("10.conflist", &list("net", "listed"), vec!["listed"]),
        ("20.conf", &single, vec!["alone"]),
        ("30.json", &single, vec!["alone"]),
    ] {
        stage.conf_text(file, marked(value));
        let network = stage.runtime.find("net").unwrap();
        assert_eq!(plugins(&network), expected, "{file}");
        assert!(!network.config().contains('\u{feff}'));
        assert_eq!(stage.runtime.networks().unwrap(), ["net"]);
        let plain = Network::parse(&network.path, network.config()).unwrap();
        assert_eq!(plain.digest(), network.digest());
        std::fs::remove_file(&network.path).unwrap();
    }
    stage.conf_text("10.conflist", marked(&list("net", "listed")));
    stage.conf_text("net/10.conf", marked(&added));
    assert_eq!(
        plugins(&stage.runtime.find("net").unwrap()),
        ["listed", "added"]
    );
    // A byte order mark of another encoding, a second one, or one in the middle of the file is invalid.
    for bytes in [
        b"\xff\xfe{\0}\0".to_vec(),
        "\u{feff}\u{feff}{}".as_bytes().to_vec(),
        "{\u{feff}}".as_bytes().to_vec(),
    ] {
        stage.conf_text("10.conflist", bytes);
        assert!(stage.runtime.find("net").is_err());
    }
}

#[test]
fn plugins_of_the_drop_in_folder_are_appended_sorted() {
    let stage = Stage::new();
    stage.conf("10.conflist", &list("net", "inlined"));
    stage.conf("net/20.conf", &json!({"type": "second"}));
    stage.conf(
        "net/10.conf",
        &json!({"type": "first", "capabilities": {"mac": true}}),
    );
    stage.conf("net/30.conflist", &json!({"type": "not-this"}));
    let network = stage.runtime.find("net").unwrap();
    assert_eq!(plugins(&network), ["inlined", "first", "second"]);
    assert!(network.capabilities().contains("mac"));
    // Once they are in, they are not added again.
    let again = Network::parse(&network.path, network.config()).unwrap();
    assert_eq!(again, network);
    let mut only = list("net", "inlined");
    only["loadOnlyInlinedPlugins"] = json!(true);
    stage.conf("10.conflist", &only);
    assert_eq!(plugins(&stage.runtime.find("net").unwrap()), ["inlined"]);
    stage.conf(
        "10.conflist",
        &json!({"cniVersion": "1.1.0", "name": "net"}),
    );
    let network = stage.runtime.find("net").unwrap();
    assert_eq!(plugins(&network), ["first", "second"]);
    stage.conf_text("net/10.conf", "[");
    let error = stage.runtime.find("net").unwrap_err();
    assert!(error.to_string().contains("net/10.conf"), "{error}");
}

#[test]
fn an_error_names_the_file_and_what_was_expected() {
    let good = list("net", "one");
    let mut cases = Vec::new();
    let mut case = |key: &str, value: Value, says: &'static str| {
        let mut config = good.clone();
        match value.is_null() {
            true => drop(config.as_object_mut().unwrap().remove(key)),
            false => config[key] = value,
        }
        cases.push((config, says));
    };
    case("name", Value::Null, "no `name`");
    case("name", json!(7), "`name` = 7");
    case("name", json!("a/b"), "network name `a/b`");
    case("cniVersion", json!(1), "`cniVersion` = 1");
    case("cniVersions", json!(["1.0.0", 1]), "a list of versions");
    case(
        "disableCheck",
        json!("perhaps"),
        "`disableCheck` = \"perhaps\"",
    );
    case("disableGC", json!([]), "`disableGC` = []");
    case("plugins", json!([]), "at least one plugin");
    case("plugins", Value::Null, "at least one plugin");
    case("plugins", json!({}), "a list of plugins");
    case("plugins", json!(["bridge"]), "`plugins[0]`");
    case(
        "plugins",
        json!([{"type": "one"}, {}]),
        "`plugins[1]`: no `type`",
    );
    case("plugins", json!([{"type": "../sh"}]), "../sh");
    case("plugins", json!([{"type": ""}]), "a file name");
    case("plugins", json!([{"type": 1}]), "`type` = 1");
    let yes = json!([{"type": "one", "capabilities": {"mac": "yes"}}]);
    case("plugins", yes, "an object with boolean values");
    for (config, says) in cases {
        let error = parse(&config).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("/etc/cni/net.d/10.conflist: "), "{text}");
        assert!(text.contains(says), "{text} lacks {says}");
    }
    let stage = Stage::new();
    let alone = json!({"cniVersion": "1.1.0", "name": "net", "loadOnlyInlinedPlugins": true});
    stage.conf("10.conflist", &alone);
    let text = stage.runtime.find("net").unwrap_err().to_string();
    assert!(text.contains("`loadOnlyInlinedPlugins`"), "{text}");
    let text = stage.runtime.find("a/b").unwrap_err().to_string();
    assert!(text.contains("network name"), "{text}");
}

#[test]
fn booleans_may_be_written_as_text() {
    let mut config = list("net", "one");
    config["disableCheck"] = json!("True");
    config["disableGC"] = json!("false");
    let network = parse(&config).unwrap();
    assert!(network.disable_check && !network.disable_gc);
}

#[test]
fn a_digest_compares_meaning_and_not_spelling() {
    let network = parse(&list("net", "one")).unwrap();
    let path = Path::new("/elsewhere");
    let spaced = r#"{ "plugins": [ {"type": "one"} ],
        "name": "net", "cniVersion": "1.0.0" }"#;
    let same = Network::parse(path, spaced).unwrap();
    assert_eq!(network.digest(), same.digest());
    assert_eq!(network.digest().len(), 32);
    let mut other = list("net", "one");
    other["plugins"][0]["mtu"] = json!(1400);
    assert_ne!(network.digest(), parse(&other).unwrap().digest());
}

#[tokio::test]
async fn a_network_that_was_kept_in_a_file_is_as_good_as_the_one_that_was_found() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one", "two"]);
    let kept = serde_json::to_string(&network).unwrap();
    let back: Network = serde_json::from_str(&kept).unwrap();
    assert_eq!(back, network);
    std::fs::remove_dir_all(&stage.runtime.conf_dir).unwrap();
    stage.runtime.del(&back, &blue()).await.unwrap();
    assert_eq!(stage.order(), ["DEL two", "DEL one"]);
    let spoilt = kept.replace("plugins", "pluguns");
    assert!(serde_json::from_str::<Network>(&spoilt).is_err());
}

/// Something like a configuration, with a part that is something else.
fn almost() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "name",
        "cniVersion",
        "cniVersions",
        "disableCheck",
        "loadOnlyInlinedPlugins",
        "plugins",
    ]);
    let value = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!([null])),
        Just(json!({"type": 1})),
        Just(json!([{"type": "one", "capabilities": null, "ipam": []}])),
        any::<bool>().prop_map(|b| json!(b)),
        any::<f64>().prop_map(|n| json!(n)),
        ".*".prop_map(|text| json!(text)),
        Just(json!("[".repeat(50_000))),
    ];
    (key, value, any::<prop::sample::Index>()).prop_map(|(key, value, at)| {
        let mut config = list("net", "one");
        config[key] = value;
        let mut text = config.to_string();
        // Half of them are cut short.
        let at = at.index(text.len() * 2);
        if at < text.len() && text.is_char_boundary(at) {
            text.truncate(at);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_in_a_file_are_more_than_an_error(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            almost().prop_map(String::into_bytes),
        ],
        file in prop::sample::select(vec!["10.conflist", "10.conf", "10.json", "net/10.conf"]),
    ) {
        let stage = Stage::new();
        stage.conf("20.conflist", &json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "safe"}]}));
        stage.conf_text(file, &bytes);
        match stage.runtime.find("net") {
            Ok(network) => {
                prop_assert!(!network.plugins.is_empty());
                prop_assert!(!network.digest().is_empty());
                let swept = stage.runtime.sweep_host_local(&network, || |_: &str| false);
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                prop_assert!(runtime.block_on(swept).is_ok());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn nests_of_brackets_are_an_error_or_go_through_but_never_overflow_the_stack() {
    let stage = Stage::new();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    stage.conf_text(
        "10.conflist",
        format!(
            r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"one","deep":{deep}}}]}}"#
        ),
    );
    let network = stage.runtime.find("net").unwrap();
    assert_eq!(network.digest().len(), 32);
    stage.conf_text("10.conflist", format!(r#"{{"name":{deep}}}"#));
    assert!(stage.runtime.find("net").is_err());
}
