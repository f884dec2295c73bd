//! Fields of stored objects that this program does not know: a newer version of it wrote them. They are kept.
//! Out of scope: the fields that it knows.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Map, Value};

/// What stored objects have beyond what we read of them, by database key.
#[derive(Debug, Default)]
pub(super) struct Unknown(HashMap<String, Fields>);

/// The unknown of one object.
pub(super) type Fields = BTreeMap<String, Field>;

/// Of one field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    /// We do not know the field.
    Whole(Value),
    /// We know it; there is something in it that we do not know.
    Inside(Fields),
}

impl Unknown {
    /// The same of other objects, too.
    pub fn extend(&mut self, other: &Self) {
        let others = other.0.iter();
        self.0
            .extend(others.map(|(key, fields)| (key.clone(), fields.clone())));
    }

    /// Compares what is stored with what we would write in its place.
    ///
    /// # Errors
    /// There is something that cannot be kept.
    pub fn note<T: Serialize>(&mut self, key: &str, stored: &[u8], read: &T) -> Result<(), String> {
        let rewritten = serde_json::to_vec(read).map_err(|e| e.to_string())?;
        // As good as always.
        if rewritten == stored {
            return Ok(());
        }
        let stored: Value = serde_json::from_slice(stored).map_err(|e| e.to_string())?;
        let rewritten: Value = serde_json::from_slice(&rewritten).map_err(|e| e.to_string())?;
        let fields = beyond(&stored, &rewritten, "")?;
        if !fields.is_empty() {
            self.0.insert(key.to_owned(), fields);
        }
        Ok(())
    }

    /// The object as it is to be stored: with the fields that it had and that we do not know, wherever what they are part of
    /// is there still.
    ///
    /// # Errors
    /// It cannot be encoded.
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

    /// Nothing of this object is to be kept any more.
    pub fn forget(&mut self, key: &str) -> Option<Fields> {
        self.0.remove(key)
    }

    /// Takes that back.
    pub fn restore(&mut self, key: String, fields: Fields) {
        self.0.insert(key, fields);
    }

    /// Each with its object, for people.
    pub fn fields(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (key, fields) in &self.0 {
            paths(fields, &format!("{key}: "), &mut all);
        }
        all.sort();
        all
    }
}

/// The part of `stored` that is not in `rewritten`; empty: there is no such part. What a list has at one place and we would
/// not write belongs to an element that may move, and could only be guessed at later.
fn beyond(stored: &Value, rewritten: &Value, path: &str) -> Result<Fields, String> {
    let mut found = Fields::new();
    match (stored, rewritten) {
        (Value::Object(stored), Value::Object(rewritten)) => {
            for (field, value) in stored {
                match rewritten.get(field) {
                    // Absent and null are one.
                    None if value.is_null() => {}
                    None => {
                        found.insert(field.clone(), Field::Whole(value.clone()));
                    }
                    Some(other) => {
                        let inside = beyond(value, other, &format!("{path}.{field}"))?;
                        if !inside.is_empty() {
                            found.insert(field.clone(), Field::Inside(inside));
                        }
                    }
                }
            }
        }
        (Value::Array(stored), Value::Array(rewritten)) => {
            for (n, (stored, rewritten)) in stored.iter().zip(rewritten).enumerate() {
                let path = format!("{path}[{n}]");
                if let Some((field, _)) = beyond(stored, rewritten, &path)?.first_key_value() {
                    return Err(format!(
                        "this sliced does not know {}.{field}, and cannot keep it in a list; start the sliced that wrote it",
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
            (Some(Value::Object(object)), Field::Inside(fields)) => merge(object, fields),
            (None, Field::Whole(value)) => {
                object.insert(name.clone(), value.clone());
            }
            // What it was part of is gone, or has become ours to write.
            (Some(_) | None, _) => {}
        }
    }
}

fn paths(fields: &Fields, before: &str, all: &mut Vec<String>) {
    for (name, field) in fields {
        match field {
            Field::Whole(_) => all.push(format!("{before}{name}")),
            Field::Inside(fields) => paths(fields, &format!("{before}{name}."), all),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::Unknown;

    /// As stored objects are.
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

    /// What becomes of a stored object that is read, changed and written.
    fn rewritten(stored: &Value, change: impl FnOnce(&mut Known)) -> Result<Value, String> {
        let bytes = serde_json::to_vec(stored).expect("JSON");
        let mut known: Known = serde_json::from_slice(&bytes).expect("readable");
        let mut unknown = Unknown::default();
        unknown.note("kind/a", &bytes, &known)?;
        change(&mut known);
        let bytes = unknown.encode("kind/a", &known).expect("encodable");
        Ok(serde_json::from_slice(&bytes).expect("JSON"))
    }

    #[test]
    fn what_is_not_known_is_kept_wherever_its_place_is_kept() {
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
            // Written by a version that wrote what this one leaves out.
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
    fn what_was_part_of_something_that_is_gone_goes_with_it() {
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
        assert_eq!(found, Ok(after), "ours is what counts");
    }

    #[test]
    fn what_is_not_known_inside_a_list_is_refused_by_name() {
        let stored = json!({"name": "a", "list": [{"size": 1}, {"size": 2, "new": 3}]});
        let refused = rewritten(&stored, |_| {}).expect_err("it cannot be kept");
        assert!(refused.contains("list[1].new"), "{refused}");
    }

    #[test]
    fn each_unknown_field_is_named_with_its_object() {
        let stored = json!({"name": "a", "new": 1, "inner": {"size": 1, "other": {"deep": 1}}});
        let bytes = serde_json::to_vec(&stored).expect("JSON");
        let known: Known = serde_json::from_slice(&bytes).expect("readable");
        let mut unknown = Unknown::default();
        unknown.note("vm/1", &bytes, &known).expect("kept");
        assert_eq!(unknown.fields(), ["vm/1: inner.other", "vm/1: new"]);
        assert!(unknown.forget("vm/1").is_some());
        assert!(unknown.fields().is_empty());
    }
}
