//! Reads labels of nodes.
//! Out of scope: which nodes have them.

use std::collections::BTreeMap;

use super::keys::limits::MAX_LABELS;
use super::section::{Field, Reader};
use super::yaml::Value;

/// Labels as of Kubernetes, without a prefix: names and values of at most 63 characters.
pub fn read(reader: &mut Reader, field: &Field) -> BTreeMap<String, String> {
    const EXPECTED: &str = "a mapping of labels to their values";
    let mut labels = BTreeMap::new();
    let Value::Map(members) = &field.node.value else {
        reader.unexpected(field, EXPECTED);
        return labels;
    };
    if members.len() > MAX_LABELS {
        reader.refuse(
            field,
            format!(
                "found {} labels, expected at most {MAX_LABELS}",
                members.len()
            ),
        );
        return labels;
    }
    for member in members {
        let item = Field {
            path: format!("{}.{}", field.path, member.key),
            node: &member.value,
        };
        let Some(value) = reader.text(&item, "the value of a label, in quotes") else {
            continue;
        };
        if !is_label(&member.key) || !(value.is_empty() || is_label(value)) {
            reader.refuse(
                &item,
                "expected name and value of at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
            );
            continue;
        }
        if labels
            .insert(member.key.clone(), value.to_owned())
            .is_some()
        {
            reader.refuse_at(member.key_position, &item.path, "duplicate key");
        }
    }
    labels
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().copied().all(inner)
        && outer(bytes.first())
        && outer(bytes.last())
}
