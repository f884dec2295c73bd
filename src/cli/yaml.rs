//! Writes answers as YAML: the only file of this room that knows the YAML library.
//! Out of scope: reading manifests.

use serde::Serialize;

use super::failure::Failure;

/// One YAML document, ending with a line feed.
pub fn document(value: &impl Serialize) -> Result<String, Failure> {
    // By way of JSON, so that both formats have the same keys and the same shapes: the library writes enums as tags.
    let value = serde_json::to_value(value).map_err(|e| Failure::one(e.to_string()))?;
    serde_yaml::to_string(&value).map_err(|e| Failure::one(format!("cannot write YAML: {e}")))
}

/// One scalar as it may stand in a YAML text: quoted when it would be read as something else than this text.
pub fn scalar(text: &str) -> Result<String, Failure> {
    document(&text).map(|line| line.trim_end().to_owned())
}
