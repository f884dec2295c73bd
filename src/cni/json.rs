//! JSON objects that keep the original text of their values.
//! Out of scope: the meaning of keys.
//!
//! # Why
//! A configuration is passed on to plugins with keys that are unknown here. `serde_json::Value` changes a number that is neither an `i64`,
//! a `u64` nor an exact `f64`; raw text does not.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// The length of an excerpt of foreign text in a message, in characters.
const EXCERPT: usize = 200;

/// An object with the raw text of each value. A duplicate key has its last value, as in Go's decoder.
pub(super) type Object = BTreeMap<String, Box<RawValue>>;

/// Serializes a value.
pub(super) fn raw(value: &(impl Serialize + ?Sized)) -> Box<RawValue> {
    // Only a map with keys that are not strings fails, and no caller has one.
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The text of an object.
pub(super) fn text(object: &Object) -> String {
    raw(object).get().to_owned()
}

/// A value of an object; `None` if it is absent or `null`. The error is an excerpt of a value that has another type.
pub(super) fn get<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, String> {
    let Some(value) = object.get(key) else {
        return Ok(None);
    };
    serde_json::from_str(value.get()).map_err(|_| format!("`{key}` = {}", excerpt(value.get())))
}

/// The text on one line; only the beginning and the end of a long text.
pub(super) fn abbreviate(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = line.chars().count();
    match count > 2 * EXCERPT {
        true => {
            let end: String = line.chars().skip(count - EXCERPT).collect();
            format!("{} {end}", excerpt(&line))
        }
        false => line,
    }
}

/// The beginning of a text, on one line; `(empty)` for an empty text.
pub(super) fn excerpt(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(EXCERPT) {
        Some((at, _)) => {
            line.truncate(at);
            line + "…"
        }
        None if line.is_empty() => "(empty)".to_owned(),
        None => line,
    }
}
