//! Formats values as YAML; the only file of this module that uses the YAML library.
//! Out of scope: parsing manifests.

use serde::Serialize;

use super::failure::Failure;

/// Formats a value as a YAML document that ends with a line feed.
pub fn document(value: &impl Serialize) -> Result<String, Failure> {
    // Via JSON, so that both formats have the same structure: the library writes enums as YAML tags.
    let value = serde_json::to_value(value).map_err(|e| Failure::one(e.to_string()))?;
    serde_yaml::to_string(&value).map_err(|e| Failure::one(format!("cannot write YAML: {e}")))
}

/// Formats a structure as a YAML document, with the keys in the order of its fields.
pub fn in_order(value: &impl Serialize) -> Result<String, Failure> {
    serde_yaml::to_string(value).map_err(|e| Failure::one(format!("cannot write YAML: {e}")))
}

/// Formats a string as a YAML scalar, quoted if it would not be parsed as this string otherwise.
pub fn scalar(text: &str) -> Result<String, Failure> {
    document(&text).map(|line| line.trim_end().to_owned())
}
