//! The JSON Schema of manifests and of the settings file (draft 2020-12).
//! Out of scope: rules about several keys, except for keys that exclude each other and keys of a network mode.

use serde_json::{Map, Value as Json, json};

use super::limits::MODES;
use super::{Default, Format, Key, Mapping, Mode, Value};

/// The schema of a document with the keys of `root`. Definitions are those of the mappings below it.
pub fn schema(root: Mapping) -> Json {
    let mut definitions = Map::new();
    for mapping in Mapping::ALL {
        if is_below(root, mapping) {
            definitions.insert(name(mapping).to_owned(), of_mapping(mapping));
        }
    }
    let mut schema = of_mapping(root);
    if let Json::Object(members) = &mut schema {
        members.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        members.insert("title".to_owned(), json!(title(root)));
        if !definitions.is_empty() {
            members.insert("$defs".to_owned(), Json::Object(definitions));
        }
    }
    schema
}

fn title(root: Mapping) -> &'static str {
    match root {
        Mapping::Settings => "Settings file of sliced",
        _ => "Manifest of sliced",
    }
}

fn name(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::Document => "document",
        Mapping::Config => "config",
        Mapping::HostGroup => "hostGroup",
        Mapping::Disk => "disk",
        Mapping::Network => "network",
        Mapping::Cni => "cni",
        Mapping::PortMapping => "portMapping",
        Mapping::Bandwidth => "bandwidth",
        Mapping::Settings => "settings",
        Mapping::Ssh => "ssh",
        Mapping::Api => "api",
        Mapping::ApiAuth => "apiAuth",
        Mapping::ApiTls => "apiTls",
        Mapping::Fleet => "fleet",
    }
}

/// Whether a value of a key of `root`, or of a mapping below it, is the mapping `other`.
fn is_below(root: Mapping, other: Mapping) -> bool {
    root.keys().any(|key| {
        let inner = match &key.value {
            Value::One(inner) | Value::List(Value::One(inner), _) => *inner,
            _ => return false,
        };
        inner == other || is_below(inner, other)
    })
}

fn of_mapping(mapping: Mapping) -> Json {
    let mut properties = Map::new();
    for name in mapping.names() {
        let keys: Vec<&Key> = mapping.keys().filter(|key| key.name == name).collect();
        let property = match keys.as_slice() {
            [one] => of_key(one),
            // A format for each network mode.
            several => json!({"anyOf": several.iter().map(|key| of_key(key)).collect::<Vec<_>>()}),
        };
        properties.insert(name.to_owned(), property);
    }
    let required: Vec<&str> = mapping
        .keys()
        .filter(|key| matches!(key.default, Default::Required))
        .map(|key| key.name)
        .collect();
    let mut schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    let mut rules = exclusive(mapping);
    if mapping == Mapping::Network {
        rules.extend(MODES.map(|(word, mode)| of_mode(word, mode)));
    }
    if !rules.is_empty() {
        schema["allOf"] = json!(rules);
    }
    schema
}

/// At most one of the keys that set the same property.
fn exclusive(mapping: Mapping) -> Vec<Json> {
    let keys: Vec<&Key> = mapping.keys().collect();
    let mut rules = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        let others = keys[at + 1..].iter();
        for other in others.filter(|other| key.property.is_some() && other.property == key.property)
        {
            rules.push(json!({"not": {"required": [key.name, other.name]}}));
        }
    }
    rules
}

/// The keys of a network with this mode.
fn of_mode(word: &str, mode: Mode) -> Json {
    let mut properties = Map::new();
    for name in Mapping::Network.names() {
        let keys: Vec<&Key> = Mapping::Network.keys().filter(|k| k.name == name).collect();
        let valid = keys.iter().find(|key| key.is_valid_in(mode));
        match valid {
            None => properties.insert(name.to_owned(), json!(false)),
            Some(key) if keys.len() > 1 => properties.insert(name.to_owned(), of_key(key)),
            Some(_) => None,
        };
    }
    json!({
        "if": {"properties": {"mode": {"const": word}}, "required": ["mode"]},
        "then": {"properties": properties},
    })
}

fn of_key(key: &Key) -> Json {
    let mut schema = of_value(&key.value);
    if let Json::Object(members) = &mut schema {
        members.insert("description".to_owned(), json!(description(key)));
        let default = match key.default {
            Default::Whole(number) => Some(json!(number)),
            Default::Flag(flag) => Some(json!(flag)),
            Default::Word(word) => Some(json!(word)),
            Default::Required | Default::Text(_) => None,
        };
        members.extend(default.map(|default| ("default".to_owned(), default)));
        if let Ok(example) = serde_json::from_str::<Json>(key.example) {
            members.insert("examples".to_owned(), json!([example]));
        }
    }
    schema
}

fn of_value(value: &Value) -> Json {
    match value {
        Value::Whole(range, multiple) => {
            let mut schema = json!({
                "type": "integer",
                "minimum": range.start(),
                "maximum": range.end(),
            });
            if *multiple != 1 {
                schema["multipleOf"] = json!(multiple);
            }
            schema
        }
        Value::Flag => json!({"type": "boolean"}),
        Value::Choice(names) => json!({"enum": names()}),
        Value::Text(format) => of_text(*format),
        Value::NumberOrText(format) => json!({
            "anyOf": [{"type": "integer", "minimum": 0}, of_text(*format)],
        }),
        Value::List(item, most) => {
            let mut schema = json!({"type": "array", "items": of_value(item)});
            if let Some(most) = most {
                schema["maxItems"] = json!(most);
            }
            schema
        }
        Value::One(mapping) => json!({"$ref": format!("#/$defs/{}", name(*mapping))}),
        Value::Arguments => json!({"type": "object", "additionalProperties": {"type": "string"}}),
    }
}

fn of_text(format: Format) -> Json {
    match format {
        Format::ApiVersion => json!({"const": super::limits::API_VERSION}),
        Format::Kind => json!({"const": super::limits::KIND}),
        format => json!({"type": "string", "pattern": format.pattern()}),
    }
}

/// The text of a key without Markdown, and the default if it is not a value.
fn description(key: &Key) -> String {
    let about = plain(key.about);
    let default = match key.default {
        Default::Text(text) => format!(". Default: {}", plain(text)),
        Default::Required | Default::Whole(_) | Default::Flag(_) | Default::Word(_) => {
            String::new()
        }
    };
    format!("{about}{default}")
}

/// Removes code marks and the targets of links.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        let parts = link
            .split_once("](")
            .and_then(|(label, after)| Some((label, after.split_once(')')?.1)));
        text.push_str(before);
        match parts {
            Some((label, after)) => {
                text.push_str(label);
                rest = after;
            }
            None => {
                text.push('[');
                rest = link;
            }
        }
    }
    text.push_str(rest);
    text.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_contain_no_markdown() {
        assert_eq!(
            plain("see [security](a.md); `[]` for none"),
            "see security; [] for none"
        );
        assert_eq!(plain("a [b"), "a [b");
    }

    #[test]
    fn each_root_has_the_definitions_below_it() {
        let manifest = schema(Mapping::Document);
        for mapping in [
            "config",
            "hostGroup",
            "disk",
            "network",
            "cni",
            "portMapping",
            "bandwidth",
        ] {
            assert!(manifest["$defs"][mapping].is_object(), "{mapping}");
        }
        assert!(manifest["$defs"].get("settings").is_none());
        let settings = schema(Mapping::Settings);
        let names: Vec<_> = settings["$defs"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["api", "apiAuth", "apiTls", "fleet", "ssh"]);
        assert_eq!(
            manifest["$defs"]["hostGroup"]["properties"]["vcpu"]["default"],
            json!(2)
        );
    }
}
