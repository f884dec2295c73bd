//! JSON objects whose unknown parts stay as they were written.
//! Out of scope: what any key means.
//!
//! # Why
//! A configuration is passed on to plugins whose keys we do not know. `serde_json::Value` would turn a number that is neither
//! an `i64`, a `u64` nor an exact `f64` into another; raw text cannot.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// How much of a stranger's text we repeat, in characters.
const EXCERPT: usize = 200;

/// An object, each value as it was written. A key that was written twice has its last value, as for Go's decoder.
pub(super) type Object = BTreeMap<String, Box<RawValue>>;

/// Any value of ours as raw text.
pub(super) fn raw(value: &(impl Serialize + ?Sized)) -> Box<RawValue> {
    // Only maps with keys that are no strings fail, and nobody here has one.
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The object's text.
pub(super) fn text(object: &Object) -> String {
    raw(object).get().to_owned()
}

/// A value of the object; `None` when it is absent or `null`; the text that stands there when it is of another type.
pub(super) fn get<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, String> {
    let Some(value) = object.get(key) else {
        return Ok(None);
    };
    serde_json::from_str(value.get()).map_err(|_| format!("`{key}` = {}", excerpt(value.get())))
}

/// The beginning of a text and, of a long one, its end, on one line.
pub(super) fn ends(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = words.chars().count();
    match count > 2 * EXCERPT {
        true => {
            let end: String = words.chars().skip(count - EXCERPT).collect();
            format!("{} {end}", excerpt(&words))
        }
        false => words,
    }
}

/// The beginning of a text, on one line.
pub(super) fn excerpt(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(EXCERPT) {
        Some((at, _)) => {
            words.truncate(at);
            words + "…"
        }
        None if words.is_empty() => "nothing".to_owned(),
        None => words,
    }
}
