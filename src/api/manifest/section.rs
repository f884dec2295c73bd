//! Reads typed values from the tree, and reports the found and the expected value otherwise.
//! Out of scope: which keys exist.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::keys::{Mapping, expected_mapping, nearest, quoted, unknown_key};
use super::problem::{Location, Position, Problem};
use super::yaml::{Node, Value};

/// A value and its path, such as `config.host_groups[0].name`.
#[derive(Clone)]
pub struct Field<'a> {
    pub path: String,
    pub node: &'a Node,
}

/// A mapping with known keys and without duplicates.
pub struct Section<'a> {
    pub path: String,
    pub at: Position,
    fields: Vec<(&'a str, Field<'a>)>,
}

impl<'a> Section<'a> {
    pub fn get(&self, key: &str) -> Option<&Field<'a>> {
        self.fields
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, field)| field)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// An empty mapping in place of a missing field, with the position of this section.
    pub fn empty_subsection(&self, key: &str) -> Self {
        Self {
            path: format!("{}.{key}", self.path),
            at: self.at,
            fields: Vec::new(),
        }
    }
}

/// Where the VMs of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// On one host.
    Host,
    /// On the nodes of a fleet, each with its own networks.
    Fleet,
}

/// Reads fields and collects problems.
pub struct Reader<'a> {
    /// Where the groups are to be.
    pub scope: Scope,
    file: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str) -> Self {
        Self {
            scope: Scope::Host,
            file,
            problems: Vec::new(),
        }
    }

    /// The problems, in the order of the file.
    pub fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| (p.at.line, p.at.column));
        // A section may be read twice. Uses of an alias are kept: they have the same position, but another path.
        self.problems.dedup();
        self.problems
    }

    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    pub fn location(&self, at: Position) -> Location {
        Location::new(self.file, at)
    }

    pub fn refuse_at(&mut self, at: Position, path: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            at: Location::new(self.file, at),
            field: path.to_owned(),
            message: message.into(),
        });
    }

    pub fn refuse(&mut self, field: &Field, message: impl Into<String>) {
        self.refuse_at(field.node.at, &field.path, message);
    }

    /// Refuses a field that must not be set, and removes the problems of its value, which are irrelevant then.
    pub fn refuse_and_discard_others(&mut self, field: &Field, message: impl Into<String>) {
        self.problems.retain(|problem| problem.field != field.path);
        self.refuse(field, message);
    }

    pub fn unexpected(&mut self, field: &Field, expected: &str) {
        self.refuse(
            field,
            format!("found {}, expected {expected}", field.node.value),
        );
    }

    /// Refuses a text that is not an RFC 1123 label.
    pub fn invalid_name(&mut self, field: &Field, why: &str) {
        self.refuse(field, format!("invalid name {}: {why}", field.node.value));
    }

    /// Reads a mapping and refuses unknown and duplicate keys.
    pub fn section<'n>(&mut self, field: &Field<'n>, mapping: Mapping) -> Option<Section<'n>> {
        let Value::Map(members) = &field.node.value else {
            self.unexpected(field, &expected_mapping(mapping));
            return None;
        };
        let mut fields: Vec<(&str, Field)> = Vec::new();
        let mut first_lines: Vec<(&str, usize)> = Vec::new();
        for member in members {
            let path = match field.path.is_empty() {
                true => member.key.clone(),
                false => format!("{}.{}", field.path, member.key),
            };
            if !mapping.has(&member.key) {
                let message = unknown_key(mapping, &member.key);
                self.refuse_at(member.key_position, &field.path, message);
                continue;
            }
            if let Some((_, line)) = first_lines.iter().find(|(key, _)| *key == member.key) {
                let message = format!("duplicate key, first on line {line}");
                self.refuse_at(member.key_position, &path, message);
                continue;
            }
            first_lines.push((&member.key, member.key_position.line));
            let node = &member.value;
            fields.push((&member.key, Field { path, node }));
        }
        Some(Section {
            path: field.path.clone(),
            at: field.node.at,
            fields,
        })
    }

    pub fn list<'n>(&mut self, field: &Field<'n>, expected: &str) -> Vec<Field<'n>> {
        let Value::List(items) = &field.node.value else {
            self.unexpected(field, expected);
            return Vec::new();
        };
        let item = |(index, node)| Field {
            path: format!("{}[{index}]", field.path),
            node,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub fn text<'n>(&mut self, field: &Field<'n>, expected: &str) -> Option<&'n str> {
        match &field.node.value {
            Value::Text(text) => Some(text),
            _ => {
                self.unexpected(field, expected);
                None
            }
        }
    }

    pub fn flag(&mut self, field: &Field) -> Option<bool> {
        match field.node.value {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.unexpected(field, "true or false");
                None
            }
        }
    }

    pub fn whole(&mut self, field: &Field, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match field.node.value {
            Value::Int(number) => u64::try_from(number).ok().filter(|n| range.contains(n)),
            _ => None,
        };
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.unexpected(field, &format!("a whole number from {least} to {most}"));
        }
        number
    }

    /// One of `words`; `None` if it was refused.
    pub fn one_of<T: Copy>(&mut self, field: &Field, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        // YAML reads a plain `null` or `~` as null, never as a text.
        let found = match &field.node.value {
            Value::Text(text) => choices.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            let near = match &field.node.value {
                Value::Text(text) if names.len() > 1 => nearest(text, &names),
                _ => Vec::new(),
            };
            let hint = match near.is_empty() {
                true => String::new(),
                false => format!("; did you mean {}?", quoted(&near)),
            };
            self.unexpected(field, &format!("{}{hint}", names.join(" or ")));
        }
        found.map(|(_, value)| *value)
    }

    /// An absolute path. Whether the file exists is not checked.
    pub fn path(&mut self, field: &Field) -> Option<PathBuf> {
        const EXPECTED: &str = "the absolute path of a file";
        const EXPECTED_NOT_OCI: &str = "the absolute path of a file; OCI images are not pulled";
        const EXPECTED_WITHOUT_DOT_DOT: &str = "the absolute path of a file, without \"..\"";
        let text = self.text(field, EXPECTED)?;
        // A NUL cannot be part of a VMM's command line, and a line end cannot be shown on one line.
        let is_plain = !text.ends_with('/') && !text.contains(char::is_control);
        // A VMM opens its files by the same paths in a file system that lacks most directories, so `..` may not resolve.
        let has_no_dot_dot = !text.split('/').any(|part| part == "..");
        let expected = match (text.starts_with('/') && is_plain, has_no_dot_dot) {
            (true, true) => return Some(PathBuf::from(text)),
            (true, false) => EXPECTED_WITHOUT_DOT_DOT,
            (false, _) if is_image_reference(text) => EXPECTED_NOT_OCI,
            (false, _) => EXPECTED,
        };
        self.unexpected(field, expected);
        None
    }
}

/// Whether a text looks like the reference of an OCI image, such as `ghcr.io/name/image:tag`: it begins with the name of a host.
fn is_image_reference(text: &str) -> bool {
    let host = text.split_once('/').map(|(host, _)| host);
    host.is_some_and(|host| {
        host.contains('.') && host.starts_with(|c: char| c.is_ascii_alphanumeric())
    })
}
