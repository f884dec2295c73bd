//! Fields of stored objects that this version does not know, because a newer version wrote them. They are kept.
//! Out of scope: known fields.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Map, Value};

/// The unknown fields of stored objects, by database key.
#[derive(Debug, Default)]
pub(super) struct UnknownFields(HashMap<String, Fields>);

/// The unknown fields of one object.
pub(super) type Fields = BTreeMap<String, Field>;

/// An unknown field, or a known field with unknown content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    /// The field is not known.
    Whole(Value),
    /// The field is known, and contains unknown fields.
    Nested(Fields),
}

impl UnknownFields {
    /// Adds the unknown fields of other objects.
    pub fn extend(&mut self, other: &Self) {
        let others = other.0.iter();
        self.0
            .extend(others.map(|(key, fields)| (key.clone(), fields.clone())));
    }

    /// Compares a stored object with what this version would write, and records the unknown fields.
    ///
    /// # Errors
    /// There is an unknown field that cannot be kept.
    pub fn record<T: Serialize>(
        &mut self,
        key: &str,
        stored: &[u8],
        read: &T,
    ) -> Result<(), String> {
        let rewritten = serde_json::to_vec(read).map_err(|e| e.to_string())?;
        // The usual case.
        if rewritten == stored {
            return Ok(());
        }
        let stored: Value = serde_json::from_slice(stored).map_err(|e| e.to_string())?;
        let rewritten: Value = serde_json::from_slice(&rewritten).map_err(|e| e.to_string())?;
        let fields = unknown_part(&stored, &rewritten, "")?;
        if !fields.is_empty() {
            self.0.insert(key.to_owned(), fields);
        }
        Ok(())
    }

    /// Encodes an object for storage, with its unknown fields if the object or field that contained them still exists.
    ///
    /// # Errors
    /// The object cannot be encoded.
    pub fn encode<T: Serialize>(&self, key: &str, value: &T) -> serde_json::Result<Vec<u8>> {
        let Some(fields) = self.0.get(key) else {
            return serde_json::to_vec(value);
        };
        let mut value = serde_json::to_value(value)?;
        if let Value::Object(object) = &mut value {
            merge(object, fields);
        }
        serde_json::to_vec(&value)
    }

    /// Removes and returns the unknown fields of an object.
    pub fn remove(&mut self, key: &str) -> Option<Fields> {
        self.0.remove(key)
    }

    /// Undoes [`Self::remove`].
    pub fn restore(&mut self, key: String, fields: Fields) {
        self.0.insert(key, fields);
    }

    /// Describes each unknown field with its object, for users.
    pub fn fields(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (key, fields) in &self.0 {
            collect_paths(fields, &format!("{key}: "), &mut all);
        }
        all.sort();
        all
    }
}

/// The part of `stored` that is not in `rewritten`. Unknown fields of a list element are an error: the element may move, so they could
/// not be assigned to it later.
fn unknown_part(stored: &Value, rewritten: &Value, path: &str) -> Result<Fields, String> {
    let mut found = Fields::new();
    match (stored, rewritten) {
        (Value::Object(stored), Value::Object(rewritten)) => {
            for (field, value) in stored {
                match rewritten.get(field) {
                    // Absent and null are equivalent.
                    None if value.is_null() => {}
                    None => {
                        found.insert(field.clone(), Field::Whole(value.clone()));
                    }
                    Some(other) => {
                        let inside = unknown_part(value, other, &format!("{path}.{field}"))?;
                        if !inside.is_empty() {
                            found.insert(field.clone(), Field::Nested(inside));
                        }
                    }
                }
            }
        }
        (Value::Array(stored), Value::Array(rewritten)) => {
            for (n, (stored, rewritten)) in stored.iter().zip(rewritten).enumerate() {
                let path = format!("{path}[{n}]");
                if let Some((field, _)) = unknown_part(stored, rewritten, &path)?.first_key_value()
                {
                    return Err(format!(
                        "unknown field {}.{field}, which cannot be kept because it is in a list; start the version of sliced that wrote it",
                        path.trim_start_matches('.'),
                    ));
                }
            }
        }
        _ => {}
    }
    Ok(found)
}

fn merge(object: &mut Map<String, Value>, fields: &Fields) {
    for (name, field) in fields {
        match (object.get_mut(name), field) {
            (Some(Value::Object(object)), Field::Nested(fields)) => merge(object, fields),
            (None, Field::Whole(value)) => {
                object.insert(name.clone(), value.clone());
            }
            // The containing field no longer exists, or this version writes the field itself.
            (Some(_) | None, _) => {}
        }
    }
}

fn collect_paths(fields: &Fields, before: &str, all: &mut Vec<String>) {
    for (name, field) in fields {
        match field {
            Field::Whole(_) => all.push(format!("{before}{name}")),
            Field::Nested(fields) => collect_paths(fields, &format!("{before}{name}."), all),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::UnknownFields;

    /// An example of a stored object.
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Known {
        name: String,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        list: Vec<Inner>,
        #[serde(default, skip_serializing_if = "Kind::is_default")]
        kind: Kind,
    }

    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Inner {
        #[serde(default)]
        size: u32,
    }

    #[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
    enum Kind {
        #[default]
        None,
        Left {
            at: u32,
        },
        Right {
            at: u32,
        },
    }

    impl Kind {
        fn is_default(&self) -> bool {
            *self == Self::None
        }
    }

    /// Reads, changes and writes a stored object.
    fn rewritten(stored: &Value, change: impl FnOnce(&mut Known)) -> Result<Value, String> {
        let bytes = serde_json::to_vec(stored).expect("JSON");
        let mut known: Known = serde_json::from_slice(&bytes).expect("readable");
        let mut unknown = UnknownFields::default();
        unknown.record("kind/a", &bytes, &known)?;
        change(&mut known);
        let bytes = unknown.encode("kind/a", &known).expect("encodable");
        Ok(serde_json::from_slice(&bytes).expect("JSON"))
    }

    #[test]
    fn unknown_fields_are_kept_while_their_container_exists() {
        for (stored, after) in [
            (json!({"name": "a"}), json!({"name": "b", "inner": null})),
            (
                json!({"name": "a", "new": {"x": [1]}}),
                json!({"name": "b", "inner": null, "new": {"x": [1]}}),
            ),
            (
                json!({"name": "a", "new": false, "zero": 0, "null": null}),
                json!({"name": "b", "inner": null, "new": false, "zero": 0}),
            ),
            (
                json!({"name": "a", "inner": {"size": 1, "new": "x"}}),
                json!({"name": "b", "inner": {"size": 1, "new": "x"}}),
            ),
            (
                json!({"name": "a", "kind": {"Left": {"at": 1, "new": [{}]}}}),
                json!({"name": "b", "inner": null, "kind": {"Left": {"at": 1, "new": [{}]}}}),
            ),
            // Written by a version that wrote fields which this one omits.
            (
                json!({"name": "a", "inner": null, "list": []}),
                json!({"name": "b", "inner": null, "list": []}),
            ),
        ] {
            let found = rewritten(&stored, |known| known.name = "b".into());
            assert_eq!(found, Ok(after), "of {stored}");
        }
    }

    #[test]
    fn unknown_fields_are_removed_with_their_container() {
        let left = json!({"name": "a", "kind": {"Left": {"at": 1, "new": 2}}});
        let found = rewritten(&left, |known| known.kind = Kind::Right { at: 3 });
        let after = json!({"name": "a", "inner": null, "kind": {"Right": {"at": 3}}});
        assert_eq!(found, Ok(after));
        let found = rewritten(&left, |known| known.kind = Kind::None);
        assert_eq!(found, Ok(json!({"name": "a", "inner": null})));
        let inner = json!({"name": "a", "inner": {"size": 1, "new": 2}});
        let found = rewritten(&inner, |known| known.inner = None);
        assert_eq!(found, Ok(json!({"name": "a", "inner": null})));
        let list = json!({"name": "a", "list": []});
        let found = rewritten(&list, |known| known.list.push(Inner { size: 4 }));
        let after = json!({"name": "a", "inner": null, "list": [{"size": 4}]});
        assert_eq!(found, Ok(after), "the known value is used");
    }

    #[test]
    fn an_unknown_field_in_a_list_is_refused_with_its_path() {
        let stored = json!({"name": "a", "list": [{"size": 1}, {"size": 2, "new": 3}]});
        let refused = rewritten(&stored, |_| {}).expect_err("it cannot be kept");
        assert!(refused.contains("list[1].new"), "{refused}");
    }

    #[test]
    fn each_unknown_field_is_listed_with_its_object() {
        let stored = json!({"name": "a", "new": 1, "inner": {"size": 1, "other": {"deep": 1}}});
        let bytes = serde_json::to_vec(&stored).expect("JSON");
        let known: Known = serde_json::from_slice(&bytes).expect("readable");
        let mut unknown = UnknownFields::default();
        unknown.record("vm/1", &bytes, &known).expect("kept");
        assert_eq!(unknown.fields(), ["vm/1: inner.other", "vm/1: new"]);
        assert!(unknown.remove("vm/1").is_some());
        assert!(unknown.fields().is_empty());
    }
}
